//! Bad input to every command: a clear error, and nothing is changed.

use anyhow::Context as _;
use mesh_tests::{
    global::{Global, run_with_input},
    process::Recipe,
    resources,
    wait::SOON,
    world::scene,
};

#[test]
fn bad_yaml_fails_every_command_with_its_place() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        let revision = api.status()?.revision;
        let inputs = [
            ("broken YAML", "type: Mesh\nname: [\n", ""),
            (
                "an unknown field",
                "type: Mesh\nname: a\nzoness: []\n",
                "zones",
            ),
            (
                "a value of the wrong kind",
                "type: Zone\nname: a\nenabled: maybe\n",
                "enabled",
            ),
            ("no resource", "just a text\n", ""),
            ("an unknown kind", "type: Mehs\nname: a\n", "Mesh"),
            ("tabs", "type: Mesh\n\tname: a\n", ""),
            ("a list", "- type: Mesh\n", ""),
            ("binary", "\u{0}\u{1}\u{2}", ""),
        ];
        for (what, input, word) in inputs {
            let file = world.file("bad.yaml", input)?.display().to_string();
            for arguments in [
                vec!["apply", "-f", &file],
                vec!["apply", "-f", &file, "--dry-run"],
                vec!["apply", "-f", &file, "--wait"],
                vec!["apply", "-f", "-"],
                vec!["delete", "-f", &file],
                vec!["delete", "-f", "-"],
            ] {
                let output = global.try_meshctl(&arguments, input)?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let context = format!(
                    "{what}: meshctl {}: {}\n{text}",
                    arguments.join(" "),
                    output.status
                );
                anyhow::ensure!(!output.status.success(), "{context}");
                anyhow::ensure!(
                    !text.trim().is_empty() && !text.contains("panicked"),
                    "{context}"
                );
                anyhow::ensure!(text.contains(word), "{word:?} is missing: {context}");
                if arguments.contains(&file.as_str()) {
                    anyhow::ensure!(
                        text.contains("bad.yaml"),
                        "the file is not named: {context}"
                    );
                }
            }
        }
        anyhow::ensure!(
            api.status()?.revision == revision,
            "bad input changed something"
        );
        Ok(())
    });
}

#[test]
fn every_command_answers_wrong_words_with_a_clear_error() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        let revision = api.status()?.revision;
        let lines = [
            "apply",
            "apply -f /does/not/exist.yaml",
            "get",
            "get nothings",
            "get meshes nowhere",
            "get meshes -o xml",
            "get meshservices -m Not_A_Mesh",
            "get meshes -l ==",
            "delete",
            "delete mesh",
            "delete mesh nowhere",
            "history",
            "history mesh ../../etc",
            "history nothing x",
            "inspect",
            "inspect dataplane",
            "inspect dataplane nobody -m payments",
            "zone",
            "zone join",
            "zone join --global https://127.0.0.1:1 --token garbage",
            "zone show nowhere",
            "token create",
            "token create dataplane",
            "token create dataplane -m nowhere",
            "token create zone-join --zone Not_A_Zone",
            "token create api --role everything",
            "token revoke nothing",
            "global",
            "global status --server https://127.0.0.1:1",
            "global status --token wrong",
            "global status --server not-a-url",
            "frobnicate",
        ];
        for line in lines {
            let arguments: Vec<_> = line.split(' ').collect();
            let output = global.try_meshctl(&arguments, "")?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let context = format!("meshctl {line}: {}\n{text}", output.status);
            anyhow::ensure!(!output.status.success(), "{context}");
            anyhow::ensure!(
                !text.trim().is_empty() && !text.contains("panicked"),
                "{context}"
            );
        }
        anyhow::ensure!(
            api.status()?.revision == revision,
            "wrong words changed something"
        );
        Ok(())
    });
}

#[test]
fn what_get_prints_can_be_applied_again() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(
            &(resources::mesh("payments") + &resources::allow_everyone("payments", "everyone")),
        )?;
        let revision = api.status()?.revision;
        for kind in ["meshes", "meshtrafficpermissions", "meshidentities"] {
            let yaml = global.meshctl(&["get", kind, "-m", "payments", "-o", "yaml"])?;
            let output = global.try_meshctl(&["apply", "-f", "-"], &yaml)?;
            anyhow::ensure!(
                output.status.success(),
                "{kind}: {}\n{yaml}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        anyhow::ensure!(
            api.status()?.revision == revision,
            "an unchanged resource got a new revision"
        );
        for format in ["table", "yaml", "json", "name"] {
            let text = global.meshctl(&["get", "meshes", "-o", format])?;
            anyhow::ensure!(text.contains("payments"), "-o {format}: {text}");
        }
        let version = global.meshctl(&["version"])?;
        anyhow::ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        Ok(())
    });
}

/// The other programs refuse a wrong configuration with file, line and field.
#[test]
fn every_process_refuses_a_wrong_configuration() {
    scene(|world| {
        let file = world.file("bad.toml", "log-level = \"info\"\nno-such-setting = 1\n")?;
        let path = file.display().to_string();
        for program in ["global-cp", "zone-cp", "dataplane"] {
            let recipe = Recipe::new(&world.binary(program));
            let output = run_with_input(&recipe, &["run", "--config", &path], "")?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            anyhow::ensure!(!output.status.success(), "{program} started");
            for word in ["bad.toml:2", "no-such-setting"] {
                anyhow::ensure!(text.contains(word), "{program}: {word} is missing: {text}");
            }
        }
        // A sidecar's own file.
        let resource = world.file(
            "dp.yaml",
            "type: Dataplane\nmesh: payments\nname: x\nnetworking: {adress: 1.2.3.4}\n",
        )?;
        let one = crate::installation::OneZone::start(world)?;
        let recipe = Recipe::new(&world.binary("dataplane"))
            .arg("run")
            .flag("--mode", "sidecar")
            .flag("--zone-cp", &one.west.discovery)
            .flag("--token", &one.token)
            .flag("--dataplane-file", resource)
            .flag("--state-dir", world.directory().join("state"))
            .flag("--admin-socket", world.directory().join("admin.sock"));
        let process = mesh_tests::process::Process::start(world, "bad-dataplane", recipe)?;
        mesh_tests::wait::eventually(SOON, "the wrong field is named", || {
            let log = process.log();
            log.contains("adress").then_some(()).context(log)
        })
    });
}
