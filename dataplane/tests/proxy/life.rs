//! What a proxy goes through in its life while requests go on: new certificates, and its own end.

use super::{
    load::{Load, get, pages},
    *,
};

/// `web` calls `store`, which speaks HTTP and has as many sidecars as ports.
async fn start(zone: &Zone, dir: &TempDir, stores: usize) -> (u16, Proxy, Vec<(u16, Proxy)>) {
    let (outbound_port, application) = (free_port(), pages("store").await);
    let ports: Vec<u16> = (0..stores).map(|_| free_port()).collect();
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let mut called = service_body("store");
        called.protocol = wire::Protocol::Http.into();
        let documents = vec![trust.clone(), seal_service(called), web];
        world.documents.insert("web-1".into(), documents);
        for (index, port) in ports.iter().enumerate() {
            let mut inbound = inbound("store", *port, application, allow_any());
            inbound.protocol = wire::Protocol::Http.into();
            let store = proxy("store", vec![inbound], vec![]);
            let name = format!("store-{}", index + 1);
            world.documents.insert(name, vec![trust.clone(), store]);
        }
        let there = endpoints("store", &ports);
        world.endpoints.insert(there.key.clone(), there);
    });
    let web = Proxy::start(zone, dir, Role::Sidecar, "web-1");
    let mut all = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let name = format!("store-{}", index + 1);
        all.push((port, Proxy::start(zone, dir, Role::Sidecar, &name)));
    }
    web.ready().await;
    for (_, store) in &all {
        store.ready().await;
    }
    eventually("web reaches store", async || {
        match TcpStream::connect(("127.0.0.1", outbound_port)).await {
            Ok(mut stream) => get(&mut stream).await.is_some(),
            Err(_) => false,
        }
    })
    .await;
    (outbound_port, web, all)
}

/// How many certificates a proxy has taken.
async fn certificates(proxy: &Proxy) -> u64 {
    let metrics = proxy.metrics().await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("isthmus_dataplane_certificates_issued_total"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn new_certificates_fail_no_request() {
    let zone = Zone::start(&[DOMAIN]).await;
    zone.change(|world| world.life = time::Duration::seconds(4));
    let dir = tempfile::tempdir().unwrap();
    let (port, web, stores) = start(&zone, &dir, 1).await;
    let load = Load::start(port);
    load.goes_on().await;
    let before = (certificates(&web).await, certificates(&stores[0].1).await);
    eventually("three further certificates for each", async || {
        certificates(&web).await >= before.0 + 3 && certificates(&stores[0].1).await >= before.1 + 3
    })
    .await;
    load.goes_on().await;
    assert_eq!(load.failed().await, 0, "requests failed");
}

#[tokio::test]
async fn a_proxy_that_ends_under_load_fails_no_request() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (port, _web, mut stores) = start(&zone, &dir, 2).await;
    let load = Load::start(port);
    load.goes_on().await;
    let (_, leaving) = stores.remove(0);
    let left = stores[0].0;
    let ending = tokio::spawn(leaving.stop());
    // What a zone does when it hears that one leaves.
    zone.hear("it leaves", |name, up| {
        (name == "store-1" && matches!(up, Up::Leaving(_))).then_some(())
    })
    .await;
    zone.change(|world| {
        let there = endpoints("store", &[left]);
        world.endpoints.insert(there.key.clone(), there);
    });
    ending.await.unwrap();
    load.goes_on().await;
    assert_eq!(load.failed().await, 0, "requests failed");
}

/// FIELD c3: what comes from outside drains; what the application asks goes on as if nothing were.
#[tokio::test]
async fn a_proxy_that_drains_cuts_none_of_its_applications_own_calls() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, web, _stores) = start(&zone, &dir, 1).await;
    // Somebody calls `web` as well, and does not end: so that it drains for as long as it may.
    let (inbound_port, caller_port) = (free_port(), free_port());
    let application = echo("web").await;
    let trust = zone.trust();
    zone.change(|world| {
        let into = inbound("web", inbound_port, application, allow_any());
        let web = proxy("web", vec![into], vec![outbound("store", outbound_port)]);
        *world
            .documents
            .get_mut("web-1")
            .unwrap()
            .last_mut()
            .unwrap() = web;
        let caller = proxy("caller", vec![], vec![outbound("web", caller_port)]);
        let documents = vec![trust.clone(), seal_service(service_body("web")), caller];
        world.documents.insert("caller-1".into(), documents);
        let there = endpoints("web", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let caller = Proxy::start(&zone, &dir, Role::Sidecar, "caller-1");
    caller.ready().await;
    eventually("web is called", async || call(caller_port).await.is_some()).await;
    let mut held = TcpStream::connect(("127.0.0.1", caller_port))
        .await
        .unwrap();
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0; 4]).await.unwrap();
    let mut asking = TcpStream::connect(("127.0.0.1", outbound_port))
        .await
        .unwrap();
    assert_eq!(get(&mut asking).await, Some(true));
    let ending = tokio::spawn(web.stop());
    zone.hear("it leaves", |name, up| {
        (name == "web-1" && matches!(up, Up::Leaving(_))).then_some(())
    })
    .await;
    // Nobody new gets in from here on.
    eventually("it takes no more from outside", async || {
        TcpStream::connect(("127.0.0.1", inbound_port))
            .await
            .is_err()
    })
    .await;
    for _ in 0..20 {
        assert_eq!(get(&mut asking).await, Some(true), "cut, or told to close");
    }
    let mut another = TcpStream::connect(("127.0.0.1", outbound_port))
        .await
        .unwrap();
    assert_eq!(get(&mut another).await, Some(true));
    drop(held);
    ending.await.unwrap();
}
