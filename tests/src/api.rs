//! The REST API, as an administrator's program uses it.

use std::{iter, sync::Arc, time::Duration};

use anyhow::Context as _;
use mesh_model::api::{
    CreateToken, CreatedToken, DataplaneView, GlobalStatus, List, Rollout, TokenUse, Written,
};
use mesh_proto::token::ApiToken;
use mesh_runtime::tls::{self, PinVerifier};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    wait::{SOON, eventually},
    world::runtime,
};

/// A client with one token, for one or several nodes: the next is asked where one is not reached.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) servers: Vec<String>,
    pub(crate) token: String,
    http: reqwest::Client,
}

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// Where it is none.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("{} with an unexpected body: {}", self.status, self.body))
    }

    /// The body of a successful answer.
    ///
    /// # Errors
    /// Where the status says that it is not.
    pub fn ok<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        anyhow::ensure!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.body
        );
        self.json()
    }
}

impl Api {
    /// Talks to `servers` (`host:port`) with `token`, whose pin tells them from others.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn new(servers: Vec<String>, token: &str) -> anyhow::Result<Self> {
        let http = client(token)?.timeout(Duration::from_secs(20)).build()?;
        Ok(Self {
            servers,
            token: token.to_owned(),
            http,
        })
    }

    /// The same servers with another token.
    ///
    /// # Errors
    /// Where the token is none.
    pub fn with_token(&self, token: &str) -> anyhow::Result<Self> {
        Self::new(self.servers.clone(), token)
    }

    /// One request, to one server after the other until one answers. A question goes round twice: the first time may find a
    /// connection to a process that has been killed since.
    ///
    /// # Errors
    /// Where no server answers.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> anyhow::Result<Answer> {
        let mut last = anyhow::anyhow!("no server to ask");
        let rounds = if method == "GET" { 2 } else { 1 };
        for server in iter::repeat_n(&self.servers, rounds).flatten() {
            match self.request_to(server, method, path, headers, body) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn request_to(
        &self,
        server: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> anyhow::Result<Answer> {
        let url = format!("https://{server}{path}");
        let mut request = self
            .http
            .request(method.parse()?, &url)
            .bearer_auth(&self.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_owned());
        }
        runtime()
            .block_on(async {
                let response = request.send().await?;
                let status = response.status().as_u16();
                let body = response.text().await?;
                anyhow::Ok(Answer { status, body })
            })
            .with_context(|| format!("{method} {url}"))
    }

    /// A GET whose answer must be a success.
    ///
    /// # Errors
    /// Where it is not, or is of another shape.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.request("GET", path, &[], None)?
            .ok()
            .with_context(|| path.to_owned())
    }

    /// Applies resources (YAML, several documents) as one batch.
    ///
    /// # Errors
    /// Where they are refused.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<Written> {
        self.try_apply(yaml)?.ok().context("apply")
    }

    /// Applies resources, and tells what was answered.
    ///
    /// # Errors
    /// Where nobody answers.
    pub fn try_apply(&self, yaml: &str) -> anyhow::Result<Answer> {
        let headers = [
            ("content-type", "application/yaml"),
            ("x-source-name", "test.yaml"),
        ];
        self.request("POST", "/v1/batch", &headers, Some(yaml))
    }

    /// Puts one resource, and tells what was answered.
    ///
    /// # Errors
    /// Where nobody answers.
    pub fn put(&self, path: &str, resource: &Value) -> anyhow::Result<Answer> {
        let headers = [("content-type", "application/json")];
        self.request("PUT", path, &headers, Some(&resource.to_string()))
    }

    /// Deletes one resource.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn delete(&self, path: &str) -> anyhow::Result<Written> {
        self.request("DELETE", path, &[], None)?
            .ok()
            .with_context(|| format!("delete {path}"))
    }

    /// Every item of a list, page by page.
    ///
    /// # Errors
    /// Where a page is refused.
    pub fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut page: List = self.get(path)?;
        loop {
            items.append(&mut page.items);
            let Some(next) = page.next else {
                return Ok(items);
            };
            let separator = if path.contains('?') { '&' } else { '?' };
            page = self.get(&format!("{path}{separator}continue={next}"))?;
        }
    }

    /// State of the global control plane, as the first reachable node sees it.
    ///
    /// # Errors
    /// Where none is.
    pub fn status(&self) -> anyhow::Result<GlobalStatus> {
        self.get("/v1/status")
    }

    /// Makes a token.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn create_token(&self, asked: &CreateToken) -> anyhow::Result<CreatedToken> {
        let body = serde_json::to_string(asked)?;
        self.request(
            "POST",
            "/v1/tokens",
            &[("content-type", "application/json")],
            Some(&body),
        )?
        .ok()
        .context("create a token")
    }

    /// A token with which any dataplane of `mesh` may register.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn dataplane_token(&self, mesh: &str) -> anyhow::Result<String> {
        let mut asked = token(TokenUse::Dataplane);
        asked.mesh = Some(mesh.to_owned());
        Ok(self.create_token(&asked)?.token)
    }

    /// A token with which `zone` may join, once.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn zone_join_token(&self, zone: &str) -> anyhow::Result<String> {
        let mut asked = token(TokenUse::ZoneJoin);
        asked.zone = Some(zone.to_owned());
        Ok(self.create_token(&asked)?.token)
    }

    /// How far `revision` has come.
    ///
    /// # Errors
    /// Where nobody says.
    pub fn rollout(&self, revision: u64) -> anyhow::Result<Rollout> {
        self.get(&format!("/v1/rollout/{revision}"))
    }

    /// Waits until every dataplane of every zone runs `revision`.
    ///
    /// # Errors
    /// Where they do not soon; with those that do not.
    pub fn wait_for_rollout(&self, revision: u64) -> anyhow::Result<()> {
        eventually(SOON, &format!("revision {revision} is in effect"), || {
            let rollout = self.rollout(revision)?;
            anyhow::ensure!(rollout.complete, "{rollout:?}");
            Ok(())
        })
    }

    /// A dataplane as its zone sees it now.
    ///
    /// # Errors
    /// Where it is not known.
    pub fn dataplane(&self, mesh: &str, name: &str) -> anyhow::Result<DataplaneView> {
        self.get(&format!("/v1/meshes/{mesh}/dataplanes/{name}"))
    }
}

/// A client that knows the servers by the pin in `token`.
pub(crate) fn client(token: &str) -> anyhow::Result<reqwest::ClientBuilder> {
    let pin = ApiToken::parse(token).context("not an API token")?.pin;
    let verifier = PinVerifier::new(pin, Arc::new(|_| Ok(())));
    let tls = tls::client_config(None, Arc::new(verifier), &[b"h2", b"http/1.1"]);
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(Duration::from_secs(3)))
}

/// A request for a token without anything special.
#[must_use]
pub fn token(usage: TokenUse) -> CreateToken {
    CreateToken {
        usage,
        valid_for_seconds: None,
        description: "made by a test".to_owned(),
        mesh: None,
        name: None,
        labels: std::collections::BTreeMap::new(),
        zone: None,
        user: None,
        role: None,
        meshes: Vec::new(),
    }
}

/// Status and body of a plain HTTP GET, such as `/readyz` of a process.
///
/// # Errors
/// Where nobody answers.
pub fn plain_get(url: &str) -> anyhow::Result<Answer> {
    runtime().block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()?;
        let response = client.get(url).send().await?;
        let status = response.status().as_u16();
        anyhow::Ok(Answer {
            status,
            body: response.text().await?,
        })
    })
}

/// Succeeds where the process behind `admin` (`host:port`) says that it is ready.
///
/// # Errors
/// Where it does not, with its reasons.
pub fn ready(admin: &str) -> anyhow::Result<()> {
    let answer = plain_get(&format!("http://{admin}/readyz"))?;
    anyhow::ensure!(answer.status == 200, "not ready: {}", answer.body);
    Ok(())
}
