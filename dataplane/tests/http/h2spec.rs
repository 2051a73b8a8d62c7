//! The cases of h2spec against the listeners of a sidecar.
//!
//! `.ci/run` installs it where Go is; elsewhere:
//! `GOBIN=$PWD/target/h2spec go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible`.

use std::{path::PathBuf, process::Command};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};

use super::{application::application, *};

fn tool() -> PathBuf {
    // The test's own executable is in `<target>/<profile>/deps`.
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(3).unwrap().join("h2spec/h2spec")
}

/// Runs it against a port: the cases that failed.
async fn run(port: u16) -> Option<Vec<String>> {
    let tool = tool();
    if !tool.is_file() {
        let tool = tool.display();
        eprintln!("\n!!! NOT TESTED: {tool} is missing; .ci/run installs it where Go is\n");
        return None;
    }
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_owned();
    let running = tokio::task::spawn_blocking(move || {
        Command::new(tool)
            .args(["generic", "http2", "-h", "127.0.0.1", "-p"])
            .arg(port.to_string())
            .args(["--timeout", "5", "--junit-report"])
            .arg(path)
            .output()
            .unwrap()
    });
    let output = running.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let junit = std::fs::read_to_string(report.path()).unwrap();
    let cases = junit.matches("<testcase ").count();
    assert!(cases > 130, "only {cases} cases were run:\n{text}");
    let failed = junit
        .split("<testcase ")
        .skip(1)
        .filter(|case| case.contains("<failure"));
    Some(
        failed
            .map(|case| {
                let attribute = |name: &str| {
                    let after = case.split_once(&format!("{name}=\"")).unwrap().1;
                    after.split('"').next().unwrap().to_owned()
                };
                format!("{}: {}", attribute("package"), attribute("classname"))
            })
            .collect(),
    )
}

#[tokio::test]
async fn the_outbound_listener_speaks_http2_as_h2spec_wants_it() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let failed = run(scene.outbound).await.unwrap_or_default();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn the_inbound_listener_speaks_http2_as_h2spec_wants_it() {
    let (application, _) = application().await;
    let scene = scene(Protocol::Http, application).await;
    // h2spec knows no mesh TLS: this stands between them.
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = between.local_addr().unwrap().port();
    let peer = std::sync::Arc::new(scene.peer());
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = between.accept().await {
            let peer = peer.clone();
            tokio::spawn(async move {
                let mut tls = peer.connect().await;
                let _ = copy_bidirectional(&mut plain, &mut tls).await;
                // What is left is thrown away, so that the end is no reset.
                let _ = plain.shutdown().await;
                let mut rest = Vec::new();
                let _ = plain.read_to_end(&mut rest).await;
            });
        }
    });
    let failed = run(port).await.unwrap_or_default();
    assert!(failed.is_empty(), "{failed:#?}");
}
