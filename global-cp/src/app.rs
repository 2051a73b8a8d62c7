//! What every handler of this process shares.

use std::{sync::Arc, time::Duration};

use mesh_proto::zone::ResourceKey;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{conditions::Conditions, limits::Limits, observed::Lookout},
    audit::{Attempt, AttemptLog},
    authorize::{Action, Actor, Denied, authorize},
    clock,
    cluster::Cluster,
    metrics::Metrics,
    sealing::SealingKey,
    state::{State, image::Image},
    zone_sync::streams::Streams,
};

/// What every handler shares. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// The parts of an [`App`].
pub struct Shared {
    /// The replicated state.
    pub cluster: Cluster,
    /// Opens and seals secrets.
    pub sealing: SealingKey,
    /// Refused attempts, reads of secrets, taps.
    pub attempts: AttemptLog,
    /// Zones connected to this node.
    pub streams: Streams,
    /// What all zones said last.
    pub lookout: Lookout,
    /// What is to be said about the resources of each mesh.
    pub conditions: Conditions,
    /// Counters.
    pub metrics: Metrics,
    /// How much is done at once.
    pub limits: Limits,
    /// Host under which others reach this node.
    pub advertise_host: String,
    /// Time between two heartbeats of a zone's stream.
    pub heartbeat: Duration,
    /// The process stops.
    pub stop: CancellationToken,
}

impl App {
    /// Joins the parts.
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// The read side of the replicated state.
    #[must_use]
    pub fn state(&self) -> &State {
        self.0.cluster.state()
    }

    /// One moment of the replicated state.
    #[must_use]
    pub fn image(&self) -> Arc<Image> {
        self.state().image()
    }

    /// Says whether `actor` may do `action`, and keeps a record where it may not.
    ///
    /// # Errors
    /// Where it may not.
    pub fn authorize(
        &self,
        actor: &Actor,
        action: Action,
        mesh: &str,
        kind: &str,
    ) -> Result<(), Denied> {
        authorize(actor, action, mesh, kind).inspect_err(|denied| self.refused(actor, denied, mesh))
    }

    /// Keeps a record of a refusal.
    pub fn refused(&self, actor: &Actor, denied: &Denied, mesh: &str) {
        let asked = match actor.request.as_str() {
            "" => String::new(),
            request => format!(" ({request})"),
        };
        self.attempts.add(Attempt {
            what: format!("{} {}{asked}", denied.verb, denied.what),
            outcome: "refused".to_owned(),
            reason: denied.reason.to_owned(),
            kind: denied.kind.clone(),
            ..attempt(actor, mesh)
        });
    }

    /// Keeps a record of an attempt that nobody vouches for.
    pub fn refused_stranger(&self, actor: &str, address: &str, what: &str, reason: &str) {
        self.attempts.add(Attempt {
            time: clock::now_text(),
            actor: actor.to_owned(),
            address: address.to_owned(),
            what: what.to_owned(),
            outcome: "refused".to_owned(),
            reason: reason.to_owned(),
            ..Attempt::default()
        });
    }

    /// Keeps a record of requests of a mesh being looked at as they end.
    pub fn tapped(&self, actor: &Actor, mesh: &str, what: &str) {
        self.attempts.add(Attempt {
            what: format!("tap requests of mesh {mesh}: {what}"),
            outcome: "read".to_owned(),
            ..attempt(actor, mesh)
        });
    }

    /// Keeps a record of a secret's value being read.
    pub fn secret_read(&self, actor: &Actor, key: &ResourceKey) {
        self.attempts.add(Attempt {
            what: format!("read the value of {key}"),
            outcome: "read".to_owned(),
            kind: key.kind.clone(),
            ..attempt(actor, &key.mesh)
        });
    }
}

/// What every record of somebody's attempt has in common.
fn attempt(actor: &Actor, mesh: &str) -> Attempt {
    Attempt {
        time: clock::now_text(),
        actor: actor.name.clone(),
        address: actor.address.clone(),
        meshes: (!mesh.is_empty())
            .then(|| mesh.to_owned())
            .into_iter()
            .collect(),
        request_id: actor.request_id.clone(),
        ..Attempt::default()
    }
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
