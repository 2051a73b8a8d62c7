//! Asking zones what only they know. Nothing of it is kept here.
//!
//! A zone is believed about itself alone: callers put its name over whatever name the answer bears, and drop what it
//! says of a mesh that was not asked about.

use futures::{StreamExt as _, stream};
use mesh_model::api::Unanswered;
use mesh_proto::zone::{Query, query::What};
use serde::de::DeserializeOwned;

use super::{
    problem::Problem,
    status::{known_zones, mesh_exists},
};
use crate::{app::App, state::image::Image, zone_sync::rollout::KnownZone};

/// Questions under way at once for one request.
const ASKED_AT_ONCE: usize = 32;

/// A question to one zone.
#[derive(Debug, Clone)]
pub struct Question {
    /// The zone.
    pub zone: String,
    /// What it is asked.
    pub what: What,
}

/// A zone that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// The zone.
    pub zone: String,
    /// Why.
    pub reason: String,
    /// Nobody was there to ask; otherwise the zone has said that it does not know.
    pub absent: bool,
}

impl From<NoAnswer> for Unanswered {
    fn from(silent: NoAnswer) -> Self {
        Self {
            zone: silent.zone,
            reason: silent.reason,
        }
    }
}

/// What several zones said to the same question.
#[derive(Debug)]
pub struct Answers<T> {
    /// By zone.
    pub answered: Vec<(String, T)>,
    /// By zone.
    pub unanswered: Vec<NoAnswer>,
}

impl<T> Answers<T> {
    /// Those that did not answer, for a client.
    #[must_use]
    pub fn silent(&self) -> Vec<Unanswered> {
        self.unanswered.iter().cloned().map(Into::into).collect()
    }
}

/// The zones to ask about `mesh`: the enabled ones in which it is placed, or of these `only` one.
///
/// # Errors
/// Where there is no such mesh, or it is not placed in `only`.
pub fn zones_of(image: &Image, mesh: &str, only: Option<&str>) -> Result<Vec<KnownZone>, Problem> {
    if !mesh_exists(image, mesh) {
        return Err(Problem::not_found(format!("there is no mesh {mesh:?}")));
    }
    let zones: Vec<KnownZone> = known_zones(image)
        .into_iter()
        .filter(|zone| zone.enabled && zone.meshes.contains(mesh))
        .filter(|zone| only.is_none_or(|only| zone.name == only))
        .collect();
    match only {
        Some(only) if zones.is_empty() => Err(Problem::not_found(format!(
            "mesh {mesh} is not placed in an enabled zone {only:?}"
        ))),
        _ => Ok(zones),
    }
}

/// Asks each of `zones` the same. Of those that were only declared, and never heard of, none is missed.
pub async fn ask<T: DeserializeOwned>(app: &App, zones: &[KnownZone], what: &What) -> Answers<T> {
    let questions = zones.iter().map(|zone| Question {
        zone: zone.name.clone(),
        what: what.clone(),
    });
    let mut answers = Answers {
        answered: Vec::new(),
        unanswered: Vec::new(),
    };
    for answer in ask_each(app, questions.collect()).await {
        match answer {
            (question, Ok(answer)) => answers.answered.push((question.zone, answer)),
            (_, Err(silent)) => {
                let joined = zones
                    .iter()
                    .any(|zone| zone.name == silent.zone && zone.joined);
                if joined || !silent.absent {
                    answers.unanswered.push(silent);
                }
            }
        }
    }
    answers
}

/// Asks each question, and gives the answers in the same order.
pub async fn ask_each<T: DeserializeOwned>(
    app: &App,
    questions: Vec<Question>,
) -> Vec<(Question, Result<T, NoAnswer>)> {
    stream::iter(questions)
        .map(|question| async {
            let answer = ask_one(app, &question).await;
            (question, answer)
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await
}

async fn ask_one<T: DeserializeOwned>(app: &App, question: &Question) -> Result<T, NoAnswer> {
    let silent = |reason: String, absent| NoAnswer {
        zone: question.zone.clone(),
        reason,
        absent,
    };
    let query = Query {
        id: 0,
        what: Some(question.what.clone()),
    };
    let answer = app
        .cluster
        .query_zone(&question.zone, query)
        .await
        .map_err(|error| silent(error.to_string(), true))?;
    if !answer.error.is_empty() {
        return Err(silent(answer.error, false));
    }
    serde_json::from_slice(&answer.json)
        .map_err(|error| silent(format!("its answer is not understood: {error}"), false))
}
