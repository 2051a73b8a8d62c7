//! The call to the next process.

use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::answer::{Answer, Hop, NewItem, Place};

/// Calls the next process, over one kept connection where it can.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    base: String,
    client: reqwest::Client,
}

impl Upstream {
    pub(crate) fn new(base: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(3))
            .no_proxy()
            .build()?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            client,
        })
    }

    /// The list as the next process has it, with `place` before its hops. Status 502 where it can not be had.
    pub(crate) async fn list(&self, place: &Place) -> (StatusCode, Answer) {
        self.call(place, self.client.get(format!("{}/items", self.base)))
            .await
    }

    /// Puts `item` on the list.
    pub(crate) async fn add(&self, place: &Place, item: &NewItem) -> (StatusCode, Answer) {
        let request = self.client.post(format!("{}/items", self.base)).json(item);
        self.call(place, request).await
    }

    async fn call(&self, place: &Place, request: reqwest::RequestBuilder) -> (StatusCode, Answer) {
        let begun = Instant::now();
        let outcome = fetch(request).await;
        let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
        match outcome {
            Ok(answer) => {
                let status = if answer.error.is_none() {
                    StatusCode::OK
                } else {
                    StatusCode::BAD_GATEWAY
                };
                (status, answer.through(place, took_ms))
            }
            Err(error) => (
                StatusCode::BAD_GATEWAY,
                Answer {
                    hops: vec![Hop {
                        place: place.clone(),
                        next_ms: None,
                    }],
                    items: vec![],
                    error: Some(format!(
                        "{} cannot reach {}: {error}",
                        place.role, self.base
                    )),
                },
            ),
        }
    }
}

/// Any answer of the next process counts, also one that says 502: it tells more than its status.
async fn fetch(request: reqwest::RequestBuilder) -> Result<Answer, String> {
    let response = request.send().await.map_err(|error| root_cause(&error))?;
    let bytes = response.bytes().await.map_err(|error| root_cause(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("an answer that is no list: {error}"))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
