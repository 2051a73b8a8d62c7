//! A global control plane that answers as a test says: real TLS with an installation CA of its own, and a token that
//! pins it.

use std::{
    io,
    net::SocketAddr,
    process::Output,
    sync::{Arc, Mutex},
};

use assert_cmd::Command;
use axum::{Router, body::Bytes, extract::Request, middleware::Next, response::Response};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls::{self, LocalIdentity},
};
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// A request that has come.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) uri: String,
    pub(crate) request_id: Option<String>,
    pub(crate) body: serde_json::Value,
}

/// A running server; gone when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) pin: String,
    pub(crate) ca_pem: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    /// Serves `api` as global node 1.
    pub(crate) fn start(api: Router) -> Self {
        Self::start_as("spiffe://isthmus.local/global/1", api)
    }

    /// Serves `api` with the identity `spiffe_id`.
    pub(crate) fn start_as(spiffe_id: &str, api: Router) -> Self {
        mesh_runtime::init();
        let (ca, identity) = identity(spiffe_id);
        let config = tls::server_config(identity, None, &[b"h2", b"http/1.1"]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let noting = seen.clone();
        let api = api.layer(axum::middleware::from_fn(
            move |request: Request, next: Next| note(noting.clone(), request, next),
        ));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TlsListener {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        };
        runtime.spawn(async move { axum::serve(listener, api).await });
        Self {
            url: format!("https://localhost:{}", address.port()),
            pin: pki::pin(ca.certificate()).unwrap(),
            ca_pem: ca.certificate_pem(),
            seen,
            _runtime: runtime,
        }
    }

    /// An API token that pins this server's CA.
    pub(crate) fn token(&self) -> String {
        format!("isthmus.id.secret.{}", self.pin)
    }

    /// `meshctl` with this server and token, and `line` split at blanks.
    pub(crate) fn meshctl(&self, line: &str) -> Command {
        let mut command = meshctl(line);
        command
            .env("ISTHMUS_SERVER", &self.url)
            .env("ISTHMUS_TOKEN", self.token());
        command
    }

    /// What has come so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// `meshctl` without any setting of whoever runs the tests.
pub(crate) fn meshctl(line: &str) -> Command {
    let mut command = Command::cargo_bin("meshctl").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ISTHMUS_") {
            command.env_remove(name);
        }
    }
    // Nor any context of theirs.
    command.env("ISTHMUS_CONFIG", "/nowhere/isthmus.yaml");
    command.args(line.split_whitespace());
    command
}

/// Runs to the end: exit code, standard output, standard error.
pub(crate) fn run(mut command: Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A CA and an identity that it signed, presented with the CA.
pub(crate) fn identity(spiffe_id: &str) -> (Ca, LocalIdentity) {
    let now = OffsetDateTime::now_utc();
    let ca = Ca::self_signed("test installation", None, now, Duration::days(1)).unwrap();
    let key = pki::new_key().unwrap();
    let subject = Subject {
        spiffe_id: Some(spiffe_id.parse().unwrap()),
        dns_names: vec!["localhost".to_owned()],
        ..Subject::default()
    };
    let csr = pki::request(&key).unwrap();
    let leaf = ca.sign(&csr, &subject, now, Duration::hours(1)).unwrap();
    let identity = LocalIdentity::none();
    identity
        .set(
            vec![leaf, ca.certificate().clone()],
            &pki::private_key(&key),
        )
        .unwrap();
    (ca, identity)
}

async fn note(seen: Arc<Mutex<Vec<Seen>>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let bytes: Bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    seen.lock().unwrap().push(Seen {
        uri: parts.uri.path_and_query().unwrap().to_string(),
        request_id: parts
            .headers
            .get("x-request-id")
            .map(|value| value.to_str().unwrap().to_owned()),
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    });
    next.run(Request::from_parts(parts, bytes.into())).await
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, peer)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
