//! Recomputing what was touched, and sending what came out different.

use mesh_proto::{discovery::to_dataplane, names::MeshName, spiffe::TrustDomain};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{PUSH_DELAY, Zone, anchors};

use crate::{
    mesh::Settled,
    metrics::OfMesh,
    rotation::{self, Acknowledged},
    trust::{self, Authorities},
};

impl Zone {
    pub(super) fn settle(&mut self) {
        let names: Vec<_> = self.meshes.keys().cloned().collect();
        for name in &names {
            self.settle_mesh(name);
        }
        if self.routes_dirty {
            self.routes_dirty = false;
            let revision = self.newest_revision();
            self.publish_routes(revision, None);
        }
        self.note_revision();
        if (self.report_dirty || self.status_dirty) && self.push_at.is_none() {
            self.push_at = Some(Instant::now() + PUSH_DELAY);
        }
    }

    pub(super) fn settle_mesh(&mut self, name: &MeshName) {
        let settled = self.settle_once(name);
        self.dispatch(name, settled);
        // The first identity of a mesh makes its CA, whose anchor is settled in turn.
        if self.rotate(name, false) {
            let settled = self.settle_once(name);
            self.dispatch(name, settled);
        }
    }

    pub(super) fn settle_once(&mut self, name: &MeshName) -> Settled {
        let Some(revision) = self.mesh_revision(name) else {
            return Settled::default();
        };
        let Some(slot) = self.meshes.get_mut(name) else {
            return Settled::default();
        };
        let authorities = &mut slot.authorities;
        let now = Instant::now().into_std();
        slot.mesh.settle(revision, self.additive, now, |version| {
            let (generation, kept) = authorities.generation_of(version);
            if let Err(error) = kept {
                tracing::error!(%error, "the trust generation cannot be kept");
            }
            generation
        })
    }

    pub(super) fn dispatch(&mut self, name: &MeshName, settled: Settled) {
        let Some(slot) = self.meshes.get(name) else {
            return;
        };
        let of = OfMesh {
            mesh: name.to_string(),
        };
        for (dataplane, message) in settled.sends {
            if let Some(to_dataplane::Message::Documents(documents)) = &message.message {
                let pushed = u64::try_from(documents.put.len()).unwrap_or(0);
                self.metrics
                    .documents_pushed
                    .get_or_create(&of)
                    .inc_by(pushed);
                self.status_dirty = true;
            }
            if let Some((_, outgoing)) = slot.streams.get(&dataplane) {
                outgoing.send(message);
            }
        }
        for (ingress, message) in self.ingresses.deltas(&settled.ingress_sets) {
            if let Some((_, outgoing)) = self.ingress_streams.get(&ingress) {
                outgoing.send(message);
            }
        }
        for warning in settled.warnings {
            tracing::warn!(mesh = %name, "{warning}");
        }
        self.routes_dirty |= settled.routes_changed;
        self.report_dirty |= settled.report_changed;
    }

    pub(super) fn publish_routes(&mut self, revision: u64, greeted: Option<&str>) {
        let meshes: Vec<_> = self
            .meshes
            .iter()
            .map(|(name, slot)| (name, slot.mesh.services()))
            .collect();
        for (name, message) in self.ingresses.publish(meshes, revision, greeted) {
            if let Some((_, outgoing)) = self.ingress_streams.get(&name) {
                outgoing.send(message);
            }
        }
    }

    /// Looks at the CAs of a mesh. True where its anchors are others now. `always`: not only where there is none yet.
    pub(super) fn rotate(&mut self, name: &MeshName, always: bool) -> bool {
        let global = self.link.is_some() && self.reporter.is_acknowledged() && !self.report_dirty;
        let Some(slot) = self.meshes.get_mut(name) else {
            return false;
        };
        if !always && slot.mesh.has_own_anchors() {
            return false;
        }
        let domains = slot.mesh.view().own_domains();
        let Some((_, domain)) = domains.first() else {
            return false; // Nobody has an identity here: nothing to vouch for.
        };
        let acknowledged = Acknowledged {
            dataplanes: slot.mesh.trust_is_acknowledged(),
            global,
        };
        let problem = rotate_now(&mut slot.authorities, domain, acknowledged, name);
        let changed = slot.mesh.set_own_anchors(anchors(&slot.authorities));
        let of = OfMesh {
            mesh: name.to_string(),
        };
        if let Some(issuing) = slot.authorities.cas().issuing {
            self.metrics
                .mesh_ca_end
                .get_or_create(&of)
                .set(issuing.not_after);
        }
        match problem {
            Some(problem) => drop(self.trust_problems.insert(name.clone(), problem)),
            None => drop(self.trust_problems.remove(name)),
        }
        self.judge_trust();
        changed
    }

    /// Not ready while a CA cannot sign.
    pub(super) fn judge_trust(&self) {
        let problems: Vec<_> = self
            .trust_problems
            .iter()
            .map(|(mesh, problem)| format!("mesh {mesh}: {problem}"))
            .collect();
        let state = if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        };
        self.health.set("trust", state);
    }
}

/// Carries out what is due, and says what is wrong afterwards.
fn rotate_now(
    authorities: &mut Authorities,
    domain: &TrustDomain,
    acknowledged: Acknowledged,
    name: &MeshName,
) -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let problem = match trust::rotate(authorities, domain, acknowledged, now) {
        Ok(steps) => {
            for step in steps {
                tracing::info!(mesh = %name, ?step, "the mesh's CA moves on");
            }
            None
        }
        Err(error) => {
            tracing::error!(%error, mesh = %name, "the mesh's CA cannot be made or renewed");
            Some(error.to_string())
        }
    };
    let cas = authorities.cas();
    if let Some(reason) = rotation::blocked_by(&cas, acknowledged, now.unix_timestamp()) {
        tracing::warn!(mesh = %name, %reason, "the mesh's new CA does not issue yet");
    }
    let ends = cas.issuing.map(|issuing| issuing.not_after);
    problem.or_else(|| match ends {
        Some(end) if end <= now.unix_timestamp() => {
            Some("its CA has ended: no certificate is issued".to_owned())
        }
        _ => None,
    })
}
