//! An inbound that takes mesh TLS, an application's own TLS and plaintext, and tells them apart.

use super::*;

/// The beginning of a ClientHello of nobody's mesh: version, random, one cipher, no extensions.
fn foreign_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let mut hello = vec![22, 3, 1];
    hello.extend((body.len() as u16 + 4).to_be_bytes());
    hello.extend([1, 0]);
    hello.extend((body.len() as u16).to_be_bytes());
    hello.extend(body);
    hello
}

/// Says `bytes`, and how the application (which sends them back, after its name) answers.
async fn answer(port: u16, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(bytes).await.ok()?;
    stream.shutdown().await.ok()?;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    timeout(Duration::from_secs(10), reading).await.ok()?.ok()?;
    Some(answer)
}

#[tokio::test]
async fn a_permissive_inbound_takes_everything_and_a_strict_one_mesh_tls_only() {
    let scene = scene().await;
    let set = |mode: wire::TlsMode| {
        let mut inbound = inbound(
            "store",
            scene.inbound,
            scene.application,
            allow(Match::Exact(identity("web"))),
        );
        inbound.tls = mode.into();
        let document = proxy("store", vec![inbound], vec![]);
        scene.zone.change(|world| {
            world.documents.get_mut("store-1").unwrap()[1] = document;
        });
    };
    assert_ne!(
        answer(scene.inbound, b"plain").await.as_deref(),
        Some(&b"storeplain"[..])
    );
    set(wire::TlsMode::Permissive);
    eventually("plaintext is taken", async || {
        answer(scene.inbound, b"plain").await.as_deref() == Some(b"storeplain")
    })
    .await;
    let hello = foreign_hello();
    let wanted = [b"store", &hello[..]].concat();
    assert_eq!(answer(scene.inbound, &hello).await, Some(wanted));
    // A client that waits for the server to speak first gets to hear it.
    assert_eq!(
        answer(scene.inbound, b"").await.as_deref(),
        Some(&b"store"[..])
    );
    // Mesh TLS still is what it was: known, and judged.
    assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
    scene
        .store
        .counted(&[
            "source=\"web\"",
            "direction=\"inbound\"",
            "outcome=\"completed\"",
        ])
        .await;
    set(wire::TlsMode::Strict);
    eventually("plaintext is refused", async || {
        answer(scene.inbound, b"plain").await.as_deref() != Some(b"storeplain")
    })
    .await;
    assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
}
