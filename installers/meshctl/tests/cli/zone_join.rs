//! `zone join` against a server of this test.

use std::{fs, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mesh_proto::{
    spiffe::SpiffeId,
    zone::{
        JoinNodeRequest, JoinNodeResponse, JoinZoneRequest, JoinZoneResponse,
        join_server::{Join, JoinServer},
    },
};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls, transport,
};
use time::{Duration, OffsetDateTime};
use tonic::{Request, Response, Status};

use crate::server::{identity, meshctl, run};

/// Global's end of a join: accepts the token `good`'s signature, refuses every other in its own words.
struct Global {
    ca: Ca,
}

#[tonic::async_trait]
impl Join for Global {
    async fn join_zone(
        &self,
        request: Request<JoinZoneRequest>,
    ) -> Result<Response<JoinZoneResponse>, Status> {
        let request = request.into_inner();
        match request.token.rsplit('.').next() {
            Some("good") => {}
            Some("used") => return Err(Status::permission_denied("this token was used already")),
            _ => {
                return Err(Status::permission_denied(
                    "this token expired 100 seconds ago",
                ));
            }
        }
        let subject = Subject {
            spiffe_id: Some(SpiffeId::zone(&"east".parse().unwrap())),
            ..Subject::default()
        };
        let now = OffsetDateTime::now_utc();
        let leaf = self
            .ca
            .sign(&request.csr, &subject, now, Duration::hours(1))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(JoinZoneResponse {
            zone: "east".to_owned(),
            certificate: pki::to_pem(&leaf),
            anchors: self.ca.certificate_pem(),
            global_addresses: vec!["cp1:5685".to_owned()],
            cluster_id: "cluster".to_owned(),
            ingress_token: "ingress-token".to_owned(),
        }))
    }

    async fn join_node(
        &self,
        _request: Request<JoinNodeRequest>,
    ) -> Result<Response<JoinNodeResponse>, Status> {
        Err(Status::unimplemented("no node joins in this test"))
    }
}

struct Server {
    address: String,
    pin: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        mesh_runtime::init();
        let (ca, presented) = identity("spiffe://isthmus.local/global/1");
        let pin = pki::pin(ca.certificate()).unwrap();
        let config = tls::server_config(presented, None, transport::GRPC_ALPN);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(JoinServer::new(Global { ca }))
                .serve_with_incoming(transport::incoming(listener, Arc::new(config))),
        );
        Self {
            address,
            pin,
            _runtime: runtime,
        }
    }

    fn token(&self, signature: &str) -> String {
        token(&self.pin, signature)
    }

    fn join(&self, data: &Path, token: &str, more: &str) -> (i32, String, String) {
        let mut command = meshctl(&format!(
            "zone join --global https://{} --token {token} {more}",
            self.address
        ));
        command.arg("--data-dir").arg(data);
        run(command)
    }
}

fn token(pin: &str, signature: &str) -> String {
    let claims = serde_json::json!({"use": "zone-join", "zone": "east", "pin": pin});
    format!(
        "e30.{}.{signature}",
        URL_SAFE_NO_PAD.encode(claims.to_string())
    )
}

#[test]
fn a_zone_that_joins_has_all_that_its_control_plane_needs() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let data = dir.path().join("east");
    let (code, out, err) = server.join(&data, &server.token("good"), "");
    assert_eq!(code, 0, "{err}");
    for words in [
        "zone east has joined",
        "zone-cp run --config",
        "dataplane run --mode ingress",
    ] {
        assert!(out.contains(words), "{words} in {out}");
    }
    let stored = mesh_runtime::identity_dir::StoredIdentity::load(&data.join("identity"))
        .unwrap()
        .unwrap();
    assert_eq!(stored.chain.len(), 1);
    let facts: serde_json::Value =
        serde_json::from_slice(&fs::read(data.join("identity/zone.json")).unwrap()).unwrap();
    assert_eq!(
        facts,
        serde_json::json!({"zone": "east", "clusterId": "cluster", "globalAddresses": ["cp1:5685"]})
    );
    assert_eq!(
        fs::read_to_string(data.join("ingress.token")).unwrap(),
        "ingress-token"
    );
    let config = fs::read_to_string(data.join("zone-cp.toml")).unwrap();
    assert!(
        config.contains(&format!("data-dir = {:?}", data.display().to_string())),
        "{config}"
    );
}

#[test]
fn an_identity_that_is_there_is_replaced_only_by_force() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let key = dir.path().join("identity/key.pem");
    assert_eq!(server.join(dir.path(), &server.token("good"), "").0, 0);
    let first = fs::read(&key).unwrap();
    let (code, _, err) = server.join(dir.path(), &server.token("good"), "");
    assert_eq!(code, 1);
    assert!(
        err.contains("zone east already") && err.contains("--force"),
        "{err}"
    );
    assert_eq!(fs::read(&key).unwrap(), first);
    assert_eq!(
        server.join(dir.path(), &server.token("good"), "--force").0,
        0
    );
    assert_ne!(fs::read(&key).unwrap(), first);
}

#[test]
fn every_refusal_has_its_own_words_and_leaves_nothing() {
    let server = Server::start();
    for (token, words) in [
        (server.token("used"), "this token was used already"),
        (server.token("old"), "this token expired 100 seconds ago"),
        (token("another-pin", "good"), "not the one this token pins"),
        (
            format!("isthmus.a.b.{}", server.pin),
            "this is an API token",
        ),
        ("nonsense".to_owned(), "not a token"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (code, out, err) = server.join(&dir.path().join("east"), &token, "");
        assert_ne!(code, 0);
        assert!(out.is_empty(), "{out}");
        assert!(err.contains(words), "{words}: {err}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{words}");
    }
}

#[test]
fn a_refused_join_by_force_keeps_what_was_there() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    assert_eq!(server.join(dir.path(), &server.token("good"), "").0, 0);
    let before = fs::read(dir.path().join("identity/key.pem")).unwrap();
    assert_ne!(
        server.join(dir.path(), &server.token("used"), "--force").0,
        0
    );
    assert_eq!(
        fs::read(dir.path().join("identity/key.pem")).unwrap(),
        before
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("ingress.token")).unwrap(),
        "ingress-token"
    );
}

#[test]
fn a_global_that_is_not_there_is_named_and_the_next_one_is_tried() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let token = server.token("good");
    let mut command = meshctl(&format!("zone join --global {free} --token {token}"));
    command.arg("--data-dir").arg(dir.path().join("a"));
    let (code, _, err) = run(command);
    assert_eq!(code, 1);
    assert!(
        err.contains(&free.to_string()) && err.contains("5685"),
        "{err}"
    );
    let both = format!(
        "zone join --global {free},{} --token {token}",
        server.address
    );
    let mut command = meshctl(&both);
    command.arg("--data-dir").arg(dir.path().join("b"));
    let (code, _, err) = run(command);
    assert_eq!(code, 0, "{err}");
}
