//! A zone control plane with two sidecars' worth of fixed documents, to run and measure the proxy by hand:
//! `client` takes plaintext at port 1 and calls `server`, whose sidecar listens at port 2 and forwards to port 3.
//!
//! ```sh
//! cargo run --release -p dataplane --example static_zone -- 18001 18002 18080 http
//! ```
//! The last word is what they speak: `tcp`, `http`, `http2` or `grpc`.
//! It prints the two commands that start the sidecars.

#[path = "../tests/support/mod.rs"]
mod support;

use mesh_proto::proxy::Protocol;
use support::{Zone, allow_any, endpoints, inbound, outbound, proxy, seal_service, service_body};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ports: Vec<u16> = words.iter().filter_map(|p| p.parse().ok()).collect();
    let protocol = match words.get(3).map(String::as_str) {
        None | Some("tcp") => Some(Protocol::Tcp),
        Some("http") => Some(Protocol::Http),
        Some("http2") => Some(Protocol::Http2),
        Some("grpc") => Some(Protocol::Grpc),
        Some(_) => None,
    };
    let ([outbound_port, inbound_port, application], Some(protocol)) = (&ports[..], protocol)
    else {
        eprintln!(
            "usage: static_zone OUTBOUND_PORT INBOUND_PORT APPLICATION_PORT [tcp|http|http2|grpc]"
        );
        std::process::exit(2);
    };
    let (outbound_port, inbound_port, application) = (*outbound_port, *inbound_port, *application);
    let zone = Zone::start(&["pay.east.mesh.local"]).await;
    let trust = zone.trust();
    zone.change(|world| {
        world.heartbeat_ms = 10_000;
        let client = proxy("client", vec![], vec![outbound("server", outbound_port)]);
        let mut port = inbound("server", inbound_port, application, allow_any());
        port.protocol = protocol.into();
        let mut called = service_body("server");
        called.protocol = protocol.into();
        let server = proxy("server", vec![port], vec![]);
        world.documents.insert(
            "client-1".into(),
            vec![trust.clone(), seal_service(called), client],
        );
        world
            .documents
            .insert("server-1".into(), vec![trust, server]);
        let server = endpoints("server", &[inbound_port]);
        world.endpoints.insert(server.key.clone(), server);
    });
    for name in ["client", "server"] {
        println!(
            "dataplane run --mode sidecar --zone-cp {} --token {} --mesh pay --name {name}-1 --address 127.0.0.1 --service {name} --state-dir /tmp/isthmus-{name} --admin-socket /tmp/isthmus-{name}.sock --workers 1",
            zone.address,
            zone.token(),
        );
    }
    std::future::pending::<()>().await;
}
