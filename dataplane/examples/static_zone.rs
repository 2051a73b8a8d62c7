//! A zone control plane with two sidecars' worth of fixed documents, to run and measure the proxy by hand:
//! `client` takes plaintext at port 1 and calls `server`, whose sidecar listens at port 2 and forwards to port 3.
//!
//! ```sh
//! cargo run --release -p dataplane --example static_zone -- 18001 18002 18080
//! ```
//! It prints the two commands that start the sidecars.

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Zone, allow_any, endpoints, inbound, outbound, proxy, service};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let ports: Vec<u16> = std::env::args()
        .skip(1)
        .filter_map(|p| p.parse().ok())
        .collect();
    let [outbound_port, inbound_port, application] = ports[..] else {
        eprintln!("usage: static_zone OUTBOUND_PORT INBOUND_PORT APPLICATION_PORT");
        std::process::exit(2);
    };
    let zone = Zone::start(&["pay.east.mesh.local"]).await;
    let trust = zone.trust();
    zone.change(|world| {
        world.heartbeat_ms = 10_000;
        let client = proxy("client", vec![], vec![outbound("server", outbound_port)]);
        let server = proxy(
            "server",
            vec![inbound("server", inbound_port, application, allow_any())],
            vec![],
        );
        world.documents.insert(
            "client-1".into(),
            vec![trust.clone(), service("server"), client],
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
