//! What shells are offered.

use std::time::Instant;

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use crate::server::{Server, meshctl, run};

fn server() -> Server {
    let names = |names: &[&str]| {
        let items: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let answer = json!({"items": items, "revision": 1});
        get(move || {
            let answer = answer.clone();
            async move { Json(answer) }
        })
    };
    Server::start(
        Router::new()
            .route("/v1/meshes", names(&["pay", "ana"]))
            .route("/v1/zones", names(&["east", "west"]))
            .route(
                "/v1/meshes/pay/meshservices",
                names(&["web", "web-admin", "api"]),
            )
            .route("/v1/meshes/pay/dataplanes", names(&["web-1"])),
    )
}

/// What is offered for the last word of `line`, as bash asks for it.
fn offered(server: &Server, line: &str) -> Vec<String> {
    let words: Vec<_> = line.split(' ').collect();
    let mut command = server.meshctl("--");
    command
        .args(&words)
        .env("_MESHCTL_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_IFS", "\n");
    let (code, out, err) = run(command);
    assert_eq!((code, err.as_str()), (0, ""));
    out.lines().map(str::to_owned).collect()
}

#[test]
fn kinds_and_live_names_are_offered() {
    let server = server();
    assert_eq!(offered(&server, "meshctl get meshserv"), ["meshservices"]);
    assert_eq!(
        offered(&server, "meshctl -m pay get msvc we"),
        ["web", "web-admin"]
    );
    assert_eq!(offered(&server, "meshctl get msvc web -m pay a"), ["api"]);
    assert_eq!(
        offered(&server, "meshctl delete -m pay meshservice/a"),
        ["meshservice/api"]
    );
    assert_eq!(offered(&server, "meshctl get zones -m p"), ["pay"]);
    assert_eq!(
        offered(&server, "meshctl zone show ")[..2],
        ["east", "west"]
    );
    assert_eq!(
        offered(&server, "meshctl explain -m pay --to web --from web"),
        ["web", "web-1", "web-admin"]
    );
    assert_eq!(
        offered(&server, "meshctl inspect dataplane -m pay w"),
        ["web-1"]
    );
    let policies = offered(&server, "meshctl inspect policy mesh");
    assert!(
        policies.contains(&"meshtrafficpermissions".to_owned()),
        "{policies:?}"
    );
    assert!(
        !policies.contains(&"meshservices".to_owned()),
        "{policies:?}"
    );
}

#[test]
fn commands_and_flags_are_offered_without_a_server() {
    let mut command = meshctl("-- meshctl ex");
    command
        .env("_MESHCTL_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "1");
    assert_eq!(run(command), (0, "explain".to_owned(), String::new()));
}

#[test]
fn a_server_that_does_not_answer_is_nobodys_trouble() {
    let api = Router::new().route(
        "/v1/meshes",
        get(|| async { std::future::pending::<Json<Value>>().await }),
    );
    let server = Server::start(api);
    let begun = Instant::now();
    assert!(offered(&server, "meshctl get zones -m p").is_empty());
    // Far less than what an answer may take elsewhere.
    assert!(begun.elapsed().as_secs() < 20);
    let mut command = server.meshctl("-- meshctl get zones -m p");
    command
        .env("ISTHMUS_TOKEN", "nonsense")
        .env("_MESHCTL_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "4");
    assert_eq!(run(command), (0, String::new(), String::new()));
}

#[test]
fn the_script_of_each_shell_is_printed() {
    for (shell, words) in [
        ("bash", "complete -o nospace"),
        ("zsh", "#compdef meshctl"),
        ("fish", "complete --keep-order"),
    ] {
        let (code, out, err) = run(meshctl(&format!("completion {shell}")));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(words), "{shell}: {out}");
        assert!(out.contains("_MESHCTL_COMPLETE"), "{shell}: {out}");
    }
    let (code, _, err) = run(meshctl("completion tcsh"));
    assert_eq!(code, 2);
    assert!(err.contains("bash, zsh, fish"), "{err}");
}

#[test]
fn bash_itself_completes_with_the_script() {
    let server = server();
    let program = assert_cmd::cargo::cargo_bin("meshctl");
    let folder = program.parent().unwrap().display();
    // What the shell does when somebody presses tab after "meshctl zone show e".
    let script = format!(
        "export PATH={folder}:$PATH\n\
         source <(meshctl completion bash)\n\
         COMP_WORDS=(meshctl zone show e) COMP_CWORD=3 COMP_TYPE=9 COMP_LINE='meshctl zone show e' COMP_POINT=19\n\
         _clap_complete_meshctl meshctl e show\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", &script])
        .env("ISTHMUS_SERVER", &server.url)
        .env("ISTHMUS_TOKEN", server.token())
        .env("ISTHMUS_CONFIG", "/nowhere")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "east\n",
        "{output:?}"
    );
}
