//! Every kind of resource can be written, read back, listed and deleted, and its zones take it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context as _;
use mesh_model::{Scope, Writers};
use mesh_tests::{resources, world::scene};
use serde_json::Value;

use crate::installation::OneZone;

/// The valid examples of every kind, which the model's own tests hold to be valid.
fn examples() -> anyhow::Result<Vec<mesh_model::Resource>> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-proto/model/tests/examples");
    let mut folders: Vec<_> = fs::read_dir(examples)?
        .flatten()
        .map(|f| f.path())
        .collect();
    folders.sort();
    let mut found = Vec::new();
    for folder in folders {
        let mut files: Vec<_> = fs::read_dir(&folder)?.flatten().map(|f| f.path()).collect();
        files.sort();
        for file in files {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !name.starts_with("valid-") || !name.ends_with(".yaml") {
                continue;
            }
            let text = fs::read_to_string(&file)?;
            let parsed = mesh_model::parse(&text, &name);
            found.extend(parsed.map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?);
        }
    }
    Ok(found)
}

#[test]
fn every_example_of_every_kind_is_written_listed_and_taken_by_its_zone() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let examples = examples()?;
        let meshes: BTreeSet<_> = examples
            .iter()
            .map(|example| example.meta.mesh.clone())
            .filter(|mesh| !mesh.is_empty())
            .collect();
        for mesh in &meshes {
            one.api.apply(&resources::mesh(mesh))?;
        }
        let mut seen = BTreeSet::new();
        let mut last = 0;
        for example in &examples {
            let kind = example.kind();
            let what = format!("{} {}", kind.name, example.meta.name);
            let view = example.to_view(&mesh_model::Stamp::default());
            let answer = one.api.try_apply(&view.to_string())?;
            if kind.writers == Writers::Zone {
                anyhow::ensure!(answer.status >= 400, "{what} was taken: {answer:?}");
                seen.insert(kind.name);
                continue;
            }
            let written: mesh_model::api::Written = answer.ok().context(what.clone())?;
            last = written.revision;
            let list = match kind.scope {
                Scope::Global => format!("/v1/{}", kind.plural),
                Scope::Mesh => format!("/v1/meshes/{}/{}", example.meta.mesh, kind.plural),
            };
            let read: Value = one.api.get(&format!("{list}/{}", example.meta.name))?;
            anyhow::ensure!(read["type"] == kind.name, "{what}: {read}");
            let listed = one.api.list(&list)?;
            anyhow::ensure!(
                listed
                    .iter()
                    .any(|item| item["name"] == example.meta.name.as_str()),
                "{what} is not in {list}"
            );
            seen.insert(kind.name);
        }
        let missing: Vec<_> = mesh_model::kinds()
            .iter()
            .filter(|kind| kind.writers != Writers::System && !seen.contains(kind.name))
            .map(|kind| kind.name)
            .collect();
        anyhow::ensure!(missing.is_empty(), "no example of {missing:?}");
        one.api.wait_for_rollout(last)?;
        let rollout = one.api.rollout(last)?;
        for zone in &rollout.zones {
            anyhow::ensure!(zone.refused_resources.is_empty(), "{zone:?}");
        }
        Ok(())
    });
}
