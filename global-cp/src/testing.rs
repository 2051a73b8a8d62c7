//! A whole node in one process, for tests: the real first start, the real store, the real router, without sockets of
//! its own for the API.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use mesh_proto::zone::{NodeAddresses, QueryAnswer, query::What, to_zone::Message};
use mesh_runtime::tls::{LocalIdentity, TrustDomains};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{
    api,
    app::{App, Shared},
    audit::AttemptLog,
    authorize::Actor,
    cluster::{self, Cluster},
    facts,
    metrics::Metrics,
    settings::Settings,
    start, writes,
    zone_sync::{
        report::Position,
        streams::{Stream, Streams},
    },
};

/// A node.
pub(crate) struct TestNode {
    pub(crate) app: App,
    pub(crate) router: Router,
    /// The first admin's token.
    pub(crate) admin: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) identity: LocalIdentity,
    pub(crate) trust: Arc<TrustDomains>,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Checks that it is a problem with this status.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/problem+json",
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!(problem["status"], status);
        problem
    }

    /// Checks that it went well.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.text);
        self.json()
    }
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        Self::start_with(Duration::from_secs(5)).await
    }

    /// With another time between two heartbeats of zones' streams.
    pub(crate) async fn start_with(heartbeat: Duration) -> Self {
        mesh_runtime::init();
        let dir = tempfile::tempdir().unwrap();
        let config = Settings {
            data_dir: Some(dir.path().to_owned()),
            advertise_host: Some("localhost".into()),
            ..Settings::default()
        }
        .resolve(None)
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = NodeAddresses {
            api: "localhost:1".into(),
            zone: "localhost:2".into(),
            raft: format!("localhost:{port}"),
        };
        let prepared = start::prepare(&config, &addresses).await.unwrap();
        let identity = LocalIdentity::none();
        prepared
            .identity
            .present(&identity, &start::identity_dir(dir.path()))
            .unwrap();
        let trust = Arc::new(TrustDomains::installation(&prepared.identity.anchors).unwrap());
        let streams = Streams::default();
        let attempts = AttemptLog::open(dir.path()).unwrap();
        let cluster = Cluster::start(cluster::Settings {
            data_dir: dir.path().to_owned(),
            node: prepared.node,
            addresses,
            listener,
            identity: identity.clone(),
            trust: trust.clone(),
            start: prepared.start,
            zones: Arc::new(streams.clone()),
            attempts: attempts.clone(),
        })
        .await
        .unwrap();
        let registry = Arc::new(std::sync::Mutex::new(Registry::default()));
        let metrics = Metrics::new(&registry);
        let app = App::new(Shared {
            cluster,
            sealing: prepared.sealing,
            attempts,
            streams,
            lookout: api::observed::Lookout::default(),
            conditions: api::conditions::Conditions::default(),
            limits: api::limits::Limits::new(config.bounds, metrics.clone()),
            metrics,
            advertise_host: "localhost".into(),
            heartbeat,
            stop: CancellationToken::new(),
        });
        let founded = start::finish(&app, dir.path(), &prepared.first.unwrap())
            .await
            .unwrap()
            .expect("the first start prints a token");
        Self {
            router: api::router(app.clone()),
            app,
            admin: founded.admin_token,
            dir,
            identity,
            trust,
        }
    }

    /// Serves zones and joining nodes, and returns where.
    pub(crate) async fn serve_zones(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(crate::process::serve_zones(
            self.app.clone(),
            listener,
            self.identity.clone(),
            self.trust.clone(),
        ));
        address
    }

    /// Sends a request with `token`.
    pub(crate) async fn send(
        &self,
        token: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(body.into()).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(&self.admin, Method::GET, path, &[], Body::empty())
            .await
    }

    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Answer {
        self.send(token, Method::GET, path, &[], Body::empty())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: &str) -> Answer {
        self.send(&self.admin, Method::PUT, path, &[], body.to_owned())
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(&self.admin, Method::DELETE, path, &[], Body::empty())
            .await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send(&self.admin, Method::POST, path, &headers, body.to_string())
            .await
    }

    /// Applies YAML documents as one batch.
    pub(crate) async fn apply(&self, yaml: &str) -> Answer {
        self.send(
            &self.admin,
            Method::POST,
            "/v1/batch",
            &[("content-type", "application/yaml")],
            yaml.to_owned(),
        )
        .await
    }

    /// Makes a token and returns its text and id.
    pub(crate) async fn token(&self, asked: Value) -> (String, String) {
        let made = self
            .send(
                &self.admin,
                Method::POST,
                "/v1/tokens",
                &[("content-type", "application/json")],
                asked.to_string(),
            )
            .await
            .ok();
        (
            made["token"].as_str().unwrap().to_owned(),
            made["info"]["id"].as_str().unwrap().to_owned(),
        )
    }

    /// A token for people with `role` in `meshes`.
    pub(crate) async fn person(&self, role: &str, meshes: &[&str]) -> String {
        self.token(json!({"use": "api", "role": role, "meshes": meshes}))
            .await
            .0
    }

    /// Plays a zone that is joined and connected, and gives these answers to questions. It is connected until the
    /// stream is taken out of `app.streams`.
    pub(crate) async fn play_zone(
        &self,
        name: &str,
        answer: impl Fn(What) -> Result<Value, String> + Send + 'static,
    ) -> Arc<Stream> {
        let reported = Position {
            epoch: 1,
            sequence: 1,
        };
        let fact = facts::set(&facts::zone_report_name(name), reported.encode(), None);
        writes::write_operations(&self.app, &Actor::system(), vec![fact], String::new())
            .await
            .unwrap();
        let (outgoing, mut questions) = mpsc::channel(64);
        let stream = Arc::new(Stream::new(
            name.to_owned(),
            "i".to_owned(),
            "s".to_owned(),
            "0.1.0".to_owned(),
            outgoing,
        ));
        self.app.streams.add(&stream);
        let answering = Arc::downgrade(&stream);
        tokio::spawn(async move {
            while let Some(Ok(message)) = questions.recv().await {
                let (Some(Message::Query(query)), Some(stream)) =
                    (message.message, answering.upgrade())
                else {
                    continue;
                };
                let said = answer(query.what.expect("a question asks something"));
                stream.answer(QueryAnswer {
                    id: query.id,
                    json: said
                        .as_ref()
                        .map_or(vec![], |json| json.to_string().into_bytes()),
                    error: said.err().unwrap_or_default(),
                });
            }
        });
        stream
    }

    /// Keeps no more than this many changes from now on.
    pub(crate) async fn limit_history(&self, changes: u64) {
        use prost::Message as _;
        let limits = crate::state::records::HistoryLimits { changes, bytes: 0 };
        let set = crate::facts::set(
            crate::state::image::HISTORY_LIMITS,
            limits.encode_to_vec(),
            None,
        );
        let actor = crate::authorize::Actor::system();
        crate::writes::write_operations(&self.app, &actor, vec![set], String::new())
            .await
            .unwrap();
    }

    pub(crate) fn revision(&self) -> u64 {
        self.app.state().revision()
    }
}
