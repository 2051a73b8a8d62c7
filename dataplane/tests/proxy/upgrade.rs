//! An upgrade under load: the successor gets the listening sockets, the predecessor ends with the requests it has.

use super::{
    load::{Load, get, pages},
    program::{Plan, Process},
    *,
};

#[tokio::test]
async fn an_upgrade_of_either_sidecar_loses_no_request() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, inbound_port) = (free_port(), free_port());
    let application = pages("store").await;
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let mut port = inbound("store", inbound_port, application, allow_any());
        port.protocol = wire::Protocol::Http.into();
        let mut called = service_body("store");
        called.protocol = wire::Protocol::Http.into();
        let documents = vec![trust.clone(), seal_service(called), web];
        world.documents.insert("web-1".into(), documents);
        let store = proxy("store", vec![port], vec![]);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let start = |service, name, flags: &[&str]| {
        Process::sidecar(&Plan {
            zone: &zone,
            dir: dir.path(),
            service,
            name,
            within: &[],
            flags,
        })
    };
    let mut store = start("store", "store-1", &["--log-level", "info"]);
    let mut web = start("web", "web-1", &["--log-level", "info"]);
    eventually("web reaches store", async || {
        match TcpStream::connect(("127.0.0.1", outbound_port)).await {
            Ok(mut stream) => get(&mut stream).await.is_some(),
            Err(_) => false,
        }
    })
    .await;
    let load = Load::start(outbound_port);
    load.goes_on().await;
    let flags = ["--take-over", "--log-level", "info"];
    let store_after = start("store", "store-1", &flags);
    assert!(
        tokio::task::spawn_blocking(move || store.wait())
            .await
            .unwrap()
    );
    load.goes_on().await;
    let web_after = start("web", "web-1", &flags);
    assert!(
        tokio::task::spawn_blocking(move || web.wait())
            .await
            .unwrap()
    );
    load.goes_on().await;
    assert_eq!(load.failed().await, 0, "requests failed");
    assert_ne!(store_after.pid(), web_after.pid());
}
