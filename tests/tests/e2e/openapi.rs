//! The API's own description is true: schemathesis makes requests of it, good and bad ones, and looks at the answers.
//!
//! `.ci/run` installs it; elsewhere:
//! `python3 -m venv target/schemathesis && target/schemathesis/bin/pip install schemathesis==4.32.5`.
//! `ISTHMUS_SCHEMATHESIS=long` goes through every case of every body, which takes minutes.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;
use mesh_tests::{
    global::{Global, Node},
    resources,
    world::{World, scene},
};

/// That whatever fits the description is accepted: looked at where a schema can say all there is to say.
const ACCEPTANCE: &str = "positive_data_acceptance";
/// Reads of which it can not: `continue` must be what the page before gave, selectors and times have a grammar, and a
/// revision must have been reached. Nor can it of any write: it has to agree with rules between fields, with what there
/// is, and with who owns it.
const RULES_BEYOND_SCHEMAS: &str =
    "^/v1/(audit|meshes|meshes/\\{mesh\\}/\\{type\\}|\\{type\\}|rollout/\\{revision\\})$";
/// What is begun does not end, and the tool reads answers to their end: it only sees how bad requests are refused.
const ENDLESS: &str = "^/v1/(watch|meshes/\\{mesh\\}/tap)$";
/// The tool would revoke its own token, whose id it reads in a list.
const EXCLUDED_OPERATION: &str = "revokeToken";

fn tool(world: &World) -> PathBuf {
    let target = world
        .binaries()
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default();
    target.join("schemathesis/bin/schemathesis")
}

#[test]
fn schemathesis_finds_nothing_wrong_with_the_api() {
    scene(|world| {
        let tool = tool(world);
        if !tool.is_file() {
            let how = format!(
                "NOT TESTED: {} is missing; .ci/run installs it",
                tool.display()
            );
            anyhow::ensure!(std::env::var_os("CI").is_none(), how);
            eprintln!("{how}");
            return Ok(());
        }
        // It asks as often as it can.
        let (recipe, node) = Node::recipe(world, "global-1")?;
        let recipe = recipe.flag("--api-rate-per-token-max", "100000");
        let global = Global::start_with(world, node, recipe)?;
        global.api()?.apply(
            &(resources::mesh("payments")
                + &resources::zone("east")
                + &resources::allow_everyone("payments", "everyone")),
        )?;
        let run = |arguments: &[&str]| -> anyhow::Result<()> {
            let output = Command::new(&tool)
                .arg("run")
                .arg(format!("https://{}/v1/openapi.json", global.nodes[0].api))
                .args(["--tls-verify", "false", "--no-color", "--seed", "1"])
                .args(["--request-timeout", "20", "--suppress-health-check", "all"])
                .arg("--header")
                .arg(format!("Authorization: Bearer {}", global.admin_token))
                .args(["--exclude-operation-id", EXCLUDED_OPERATION])
                .args(arguments)
                .current_dir(world.directory())
                .output()
                .with_context(|| tool.display().to_string())?;
            let said = String::from_utf8_lossy(&output.stdout);
            anyhow::ensure!(output.status.success(), "{arguments:?}: {said}");
            // Where nearly everything was refused, nothing was tested.
            anyhow::ensure!(!said.contains("returned only 401/403"), "{said}");
            Ok(())
        };
        let all = |arguments: &[&str]| {
            let checks = [
                "--checks",
                "all",
                "--exclude-checks",
                ACCEPTANCE,
                "--exclude-path-regex",
                ENDLESS,
            ];
            run(&[&checks, arguments].concat())
        };
        all(&["--phases", "fuzzing", "--max-examples", "6"])?;
        all(&[
            "--phases",
            "coverage",
            "--include-method",
            "GET",
            "--include-method",
            "DELETE",
        ])?;
        run(&[
            "--include-method",
            "GET",
            "--checks",
            ACCEPTANCE,
            "--mode",
            "positive",
            "--phases",
            "coverage,fuzzing",
            "--max-examples",
            "10",
            "--exclude-path-regex",
            &format!("{ENDLESS}|{RULES_BEYOND_SCHEMAS}"),
        ])?;
        run(&[
            "--include-path-regex",
            ENDLESS,
            "--checks",
            "all",
            "--mode",
            "negative",
            "--phases",
            "coverage,fuzzing",
            "--max-examples",
            "10",
        ])?;
        if std::env::var_os("ISTHMUS_SCHEMATHESIS").is_some_and(|form| form == "long") {
            all(&[
                "--phases",
                "examples,coverage,fuzzing,stateful",
                "--max-examples",
                "50",
            ])?;
        }
        Ok(())
    });
}
