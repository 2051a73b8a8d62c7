//! HTTP through two whole sidecars, as applications see it: `web` calls `store`. Applications and callers are the tests' own, so
//! that each byte is theirs to say and to look at.

mod application;
mod bodies;
mod closing;
mod detect;
mod differential;
mod floods;
mod grpc;
mod h2spec;
mod large;
mod mesh;
mod routes;
mod smuggling;
#[path = "../support/mod.rs"]
mod support;
mod tap;
mod websocket;
mod wire_client;

use dataplane::settings::Settings;
use mesh_proto::{
    discovery::Role,
    proxy::{self as wire, Document, Protocol},
};
use support::{sidecar::*, *};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// `web` calls `store`: two sidecars in one zone.
struct Scene {
    zone: Zone,
    _dir: TempDir,
    web: Proxy,
    store: Proxy,
    outbound: u16,
    inbound: u16,
    application: u16,
    protocol: Protocol,
}

/// Two sidecars that take what they carry for `protocol`, and `store`'s application at a port.
async fn scene(protocol: Protocol, application: u16) -> Scene {
    scene_with(protocol, application, |_| {}).await
}

async fn scene_with(protocol: Protocol, application: u16, change: impl Fn(&mut Settings)) -> Scene {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, inbound_port) = (free_port(), free_port());
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let service = http_service("store", protocol);
        let store = store_document(protocol, inbound_port, application, allow_any());
        let of_web = vec![trust.clone(), seal_service(service), web];
        world.documents.insert("web-1".into(), of_web);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let web = Proxy::start_with(&zone, &dir, Role::Sidecar, "web-1", &change);
    let store = Proxy::start_with(&zone, &dir, Role::Sidecar, "store-1", &change);
    web.ready().await;
    store.ready().await;
    let scene = Scene {
        zone,
        _dir: dir,
        web,
        store,
        outbound: outbound_port,
        inbound: inbound_port,
        application,
        protocol,
    };
    scene.has_endpoints("store").await;
    scene
}

fn http_service(name: &str, protocol: Protocol) -> wire::Service {
    wire::Service {
        protocol: protocol.into(),
        ..service_body(name)
    }
}

fn store_document(
    protocol: Protocol,
    listen: u16,
    application: u16,
    permissions: wire::Permissions,
) -> Document {
    let inbound = wire::Inbound {
        protocol: protocol.into(),
        ..inbound("store", listen, application, permissions)
    };
    proxy("store", vec![inbound], vec![])
}

impl Scene {
    /// Waits until `web` knows where `service` is.
    async fn has_endpoints(&self, service: &str) {
        let key = format!("service/{service}:80");
        eventually("endpoints have come", async || {
            let config = self.web.config().await;
            config["endpoints"][&key]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        })
        .await;
    }

    /// Puts documents of a dataplane from the given place on, and waits until it has them.
    async fn put(&self, dataplane: &Proxy, name: &str, at: usize, documents: Vec<Document>) {
        let before = revision(dataplane).await;
        self.zone.change(|world| {
            let all = world.documents.get_mut(name).unwrap();
            all.splice(at..(at + documents.len()).min(all.len()), documents);
        });
        eventually("the documents have come", async || {
            revision(dataplane).await > before
        })
        .await;
    }

    /// A caller's connection to `store`.
    async fn connect(&self) -> TcpStream {
        connect(self.outbound).await
    }
}

async fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn revision(dataplane: &Proxy) -> u64 {
    dataplane.config().await["revision"].as_u64().unwrap()
}

/// What has to happen soon.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {SOON:?}: {what}"),
    }
}
