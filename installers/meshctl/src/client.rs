//! The REST API of the global control plane: TLS, requests, and what its errors mean for the person at the terminal.

use std::{io, sync::Arc, time::Duration};

use mesh_model::api::Problem;
use mesh_proto::{spiffe::SpiffeId, token::ApiToken};
use mesh_runtime::{pki, tls, transport::innermost};
use reqwest::{Method, StatusCode, Url, header};
use rustls::{RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cli::Connection,
    events::{Event, Events},
    failure::Failure,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server answers within this, or says why not.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A write meets a cluster that elects a new leader: sent again, with the same request id, after these waits.
const WRITE_AGAIN_AFTER: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// The API of one global control plane node, for one token.
pub(crate) struct Client {
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
}

/// Server-sent events of one answer.
pub(crate) struct EventStream {
    answer: reqwest::Response,
    server: String,
    silence_max: Duration,
    events: Events,
}

impl EventStream {
    /// The next event; `None` where the server ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.events.next() {
                return Ok(Some(event));
            }
            let lost = |reason: String| ClientError::Lost {
                server: self.server.clone(),
                reason,
            };
            match tokio::time::timeout(self.silence_max, self.answer.chunk()).await {
                Err(_) => return Err(lost("nothing was heard for too long".to_owned())),
                Ok(Err(error)) => return Err(lost(innermost(&error))),
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(bytes))) => self.events.push(&bytes).map_err(lost)?,
            }
        }
    }
}

/// Why a request did not get its answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers there.
    #[error(
        "cannot reach the global control plane at {server}: {reason}\nDoes global-cp run there? Name another node with --server https://HOST:5682 or ISTHMUS_SERVER."
    )]
    Unreachable { server: String, reason: String },
    /// Somebody answers, but not the one that is wanted.
    #[error("{server} answers, but is not to be trusted: {reason}\n{advice}")]
    Untrusted {
        server: String,
        reason: String,
        advice: &'static str,
    },
    /// The connection ended before the answer came.
    #[error("{server} was reached, but gave no answer: {reason}")]
    Lost { server: String, reason: String },
    /// The answer is none of this API.
    #[error(
        "{server} answers, but not as the API of global-cp ({what})\nIs the port right? The API of global-cp is on 5682; zones join at 5685; a zone's own control plane is asked on its own machine."
    )]
    Foreign { server: String, what: String },
    /// The server refused, said why, and after how many seconds to come back, where it did.
    #[error("{}", explain(.0, *.1))]
    Refused(Box<Problem>, Option<u64>),
}

/// The problem as a person reads it: every violation on a line of its own, then what to do.
fn explain(problem: &Problem, after: Option<u64>) -> String {
    let mut lines = vec![problem.title.clone()];
    if !problem.violations.is_empty() {
        lines = problem.violations.iter().map(ToString::to_string).collect();
    }
    lines.extend(problem.detail.clone());
    let waiting;
    let advice = match problem.status {
        429 => {
            waiting = match after {
                Some(seconds) => format!(
                    "Too much was asked with this token in a short time. Come back in {seconds} s."
                ),
                None => {
                    "Too much was asked with this token in a short time. Come back a little later."
                        .to_owned()
                }
            };
            Some(waiting.as_str())
        }
        413 => Some("Send it in several smaller parts: fewer files or folders at once."),
        401 => Some(
            "The token is expired, revoked or of another installation. Make a new one with `meshctl token create api` \
                 and give it by --token, --token-file or ISTHMUS_TOKEN.",
        ),
        403 => Some("Ask an admin for a token that may: `meshctl token create api --role ROLE`."),
        503 => Some(
            "Most of the global nodes must be up for this; `meshctl global status` shows them.",
        ),
        _ => None,
    };
    lines.extend(
        advice
            .filter(|_| problem.detail.is_none())
            .map(str::to_owned),
    );
    lines.join("\n")
}

impl ClientError {
    /// The HTTP status of a refusal.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(problem, _) => Some(problem.status),
            _ => None,
        }
    }

    /// Another attempt may succeed, and the server may or may not have done what was asked.
    fn passes_by_itself(&self) -> bool {
        matches!(self, Self::Lost { .. }) || matches!(self.status(), Some(429 | 503))
    }

    /// How long the server asks to wait, within what a person waits.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(_, Some(seconds)) => Some(Duration::from_secs((*seconds).min(5))),
            _ => None,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error.status() {
            Some(400 | 422) => Self::Invalid(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Client {
    /// Prepares to talk to the server; nothing is sent yet.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let server = server_url(connection.server())?;
        let token = connection.token()?;
        let verifier = match (&connection.ca_file, &token) {
            (Some(path), _) => host_name_verifier(path)?,
            (None, Some(token)) => pin_verifier(token)?,
            (None, None) => {
                return Err(Failure::invalid(
                    "no token: give one by --token, --token-file or ISTHMUS_TOKEN, or keep one with `meshctl context set`\nThe first admin token is printed by \
                     global-cp at its first start; others are made with `meshctl token create api`.",
                ));
            }
        };
        let tls = tls::client_config(None, verifier, &[b"h2", b"http/1.1"]);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("meshctl/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // An API never sends its clients elsewhere, and a control plane is reached directly.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| Failure::failed(format!("no HTTP client: {}", innermost(&error))))?;
        Ok(Self {
            http,
            server,
            token,
        })
    }

    /// The server, as the person named it.
    pub(crate) fn server(&self) -> String {
        self.server.as_str().trim_end_matches('/').to_owned()
    }

    /// Reads `/v1/<path>`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, ClientError> {
        self.send(self.request(Method::GET, path, query)).await
    }

    /// Writes, once, even where it has to be sent again.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.request(Method::POST, path, query).json(body);
        self.send_write(request).await
    }

    /// Replaces a resource, where it is still at `revision`; once, even where it has to be sent again.
    pub(crate) async fn put_at<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        revision: u64,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self
            .request(Method::PUT, path, query)
            .header(header::IF_MATCH, format!("\"{revision}\""))
            .json(body);
        self.send_write(request).await
    }

    /// Opens a stream of server-sent events. `silence_max` is how long the server may say nothing at all.
    pub(crate) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        last_event: Option<&str>,
        silence_max: Duration,
    ) -> Result<EventStream, ClientError> {
        let mut request = self
            .request(Method::GET, path, query)
            .header(header::ACCEPT, "text/event-stream")
            // Without an end of its own; each read has one.
            .timeout(Duration::from_secs(365 * 24 * 3600));
        if let Some(id) = last_event {
            request = request.header("last-event-id", id);
        }
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, request.send());
        let answer = match answer.await {
            Ok(answer) => answer.map_err(|error| self.not_sent(&error))?,
            Err(_) => {
                return Err(ClientError::Lost {
                    server: self.server(),
                    reason: "no answer in time".to_owned(),
                });
            }
        };
        if !answer.status().is_success() {
            return Err(self.refusal(answer).await);
        }
        Ok(EventStream {
            answer,
            server: self.server(),
            silence_max,
            events: Events::default(),
        })
    }

    /// Deletes, once, even where it has to be sent again.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
    ) -> Result<T, ClientError> {
        self.send_write(self.request(Method::DELETE, path, &[]))
            .await
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> reqwest::RequestBuilder {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // Encodes what a segment may not hold.
            segments.pop_if_empty().push("v1").extend(path);
        }
        let mut request = self.http.request(method, url).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        request
    }

    async fn send_write<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let request = request.header("x-request-id", uuid::Uuid::new_v4().to_string());
        for wait in WRITE_AGAIN_AFTER {
            let Some(attempt) = request.try_clone() else {
                break;
            };
            match self.send(attempt).await {
                Err(error) if error.passes_by_itself() => {
                    tokio::time::sleep(error.retry_after().unwrap_or(wait)).await;
                }
                answer => return answer,
            }
        }
        self.send(request).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, ClientError> {
        let answer = request
            .send()
            .await
            .map_err(|error| self.not_sent(&error))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(self.refusal(answer).await);
        }
        let what = in_words(&answer);
        let body = answer.bytes().await.map_err(|error| ClientError::Lost {
            server: self.server(),
            reason: innermost(&error),
        })?;
        let foreign = |what: String| ClientError::Foreign {
            server: self.server(),
            what,
        };
        if body.is_empty() && status == StatusCode::NO_CONTENT {
            return serde_json::from_str("null").map_err(|_| foreign(what));
        }
        serde_json::from_slice(&body).map_err(|error| foreign(format!("{what}; {error}")))
    }

    /// What an answer that is no success says.
    async fn refusal(&self, answer: reqwest::Response) -> ClientError {
        let what = in_words(&answer);
        let after = answer
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let body = match answer.bytes().await {
            Ok(body) => body,
            Err(error) => {
                return ClientError::Lost {
                    server: self.server(),
                    reason: innermost(&error),
                };
            }
        };
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Refused(Box::new(problem), after),
            Err(_) => ClientError::Foreign {
                server: self.server(),
                what,
            },
        }
    }

    fn not_sent(&self, error: &reqwest::Error) -> ClientError {
        let server = self.server();
        if let Some(reason) = refused_by_tls(error) {
            let advice = if reason.contains(tls::WRONG_PIN) {
                "Take a token of this installation, or name the right server with --server."
            } else if reason.contains("/zone/") {
                "That is a zone's control plane. meshctl talks to the global one: --server https://HOST:5682."
            } else {
                "Name the right server with --server https://HOST:5682, and with --ca-file the CA that signed its certificate, where that is not the installation's own."
            };
            return ClientError::Untrusted {
                server,
                reason,
                advice,
            };
        }
        let reason = if error.is_timeout() {
            "no answer in time".to_owned()
        } else {
            innermost(error)
        };
        if error.is_connect() {
            ClientError::Unreachable { server, reason }
        } else {
            ClientError::Lost { server, reason }
        }
    }
}

/// Status and form of an answer.
fn in_words(answer: &reqwest::Response) -> String {
    let form = answer.headers().get(header::CONTENT_TYPE);
    let form = form.and_then(|value| value.to_str().ok());
    format!("{}, {}", answer.status(), form.unwrap_or("no content type"))
}

/// A server as it is typed.
pub(crate) fn server_url(text: &str) -> Result<Url, Failure> {
    let refused =
        |why: &str| Failure::invalid(format!("--server {text:?}: {why}; write https://HOST:5682"));
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let url = Url::parse(&with_scheme).map_err(|error| refused(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(refused("the API speaks https only"));
    }
    if url.path() != "/" || url.query().is_some() {
        return Err(refused("only scheme, host and port are wanted"));
    }
    Ok(url)
}

/// Checks the server by the CA pin in the token.
fn pin_verifier(token: &str) -> Result<Arc<dyn ServerCertVerifier>, Failure> {
    let token = checked_token(token)?;
    let accept = |id: &SpiffeId| match (id.as_global_node(), id.as_zone()) {
        (Some(_), _) => Ok(()),
        (None, Some(zone)) => Err(format!("this is the control plane of zone {zone}")),
        (None, None) => Err("this is no global control plane node".to_owned()),
    };
    Ok(Arc::new(tls::PinVerifier::new(token.pin, Arc::new(accept))))
}

/// An API token. One of another sort is told where it belongs.
pub(crate) fn checked_token(token: &str) -> Result<ApiToken, Failure> {
    if let Some(token) = ApiToken::parse(token) {
        return Ok(token);
    }
    Err(Failure::invalid(match crate::zone::claims::read(token) {
        Some(claims) => format!(
            "this is no API token but a {} token: {}",
            claims.usage,
            claims.place()
        ),
        None => "this is no API token: those begin with \"isthmus.\" and are made with `meshctl token create api`"
            .to_owned(),
    }))
}

/// Checks the server by host name and the CAs in a file, as browsers do.
pub(crate) fn host_name_verifier(
    path: &std::path::Path,
) -> Result<Arc<dyn ServerCertVerifier>, Failure> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::invalid(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in pki::certificates_from_pem(&text).map_err(|error| refused(&error))? {
        roots.add(certificate).map_err(|error| refused(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| refused(&error))?;
    Ok(verifier)
}

/// Why TLS refused the server, where it did.
fn refused_by_tls(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inside = error.downcast_ref::<io::Error>().and_then(tls_error_in);
        match inside.or_else(|| error.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::General(reason)) => return Some(reason.clone()),
            Some(error) => return Some(error.to_string()),
            None => next = error.source(),
        }
    }
    None
}

/// The TLS error that an `io::Error` wraps, maybe several times over. Its `source` skips what it wraps.
fn tls_error_in(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner
        .downcast_ref::<rustls::Error>()
        .or_else(|| tls_error_in(inner.downcast_ref::<io::Error>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_addresses_name_a_server() {
        assert_eq!(server_url("a:1").unwrap().as_str(), "https://a:1/");
        assert_eq!(server_url("[::1]:1").unwrap().as_str(), "https://[::1]:1/");
        for bad in ["http://a:1", "https://a/b", "https://", "https://a:x"] {
            assert!(matches!(server_url(bad), Err(Failure::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_names_every_violation_and_a_denied_one_what_to_do() {
        let mut problem = Problem {
            kind: "invalid".to_owned(),
            title: "2 things are wrong".to_owned(),
            status: 422,
            detail: None,
            violations: Vec::new(),
        };
        for line in [3, 7] {
            problem.violations.push(mesh_model::violation::Violation {
                source: "a.yaml".to_owned(),
                line,
                column: 1,
                path: "spec".to_owned(),
                message: "no".to_owned(),
            });
        }
        assert_eq!(
            explain(&problem, None),
            "a.yaml:3:1: spec: no\na.yaml:7:1: spec: no"
        );
        problem.violations.clear();
        problem.status = 429;
        assert!(explain(&problem, Some(3)).contains("Come back in 3 s"));
        problem.status = 401;
        assert!(explain(&problem, None).contains("meshctl token create api"));
    }
}
