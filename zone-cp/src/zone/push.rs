//! What global and people hear of the zone.

use std::collections::BTreeMap;

use mesh_model::{Resource, api::Key};
use mesh_proto::{
    names::MeshName,
    zone::{ReportRefusal, ZoneStatus, to_global},
};
use tokio::time::Instant;

use super::{JUDGE_INTERVAL, REFUSALS_MAX, Zone};

use crate::scope::Scope;

impl Zone {
    pub(super) fn push(&mut self) {
        self.push_at = None;
        self.judge();
        if self.report_dirty && !self.additive {
            self.report_dirty = false;
            let mut owned = BTreeMap::new();
            let of_meshes = self.meshes.values().flat_map(|slot| slot.mesh.reports());
            let of_zone = self
                .ingresses
                .entries()
                .map(|resource| Resource::clone(resource));
            for resource in of_meshes.chain(of_zone) {
                owned.insert(Key::from(resource.key()), resource.to_json());
            }
            self.reporter.want(owned);
        }
        if let Some(link) = &self.link {
            if !self.additive
                && let Some(report) = self.reporter.unsent()
            {
                link.send(to_global::Message::Report(report));
            }
            if self.status_dirty {
                link.send(to_global::Message::Status(self.status()));
            }
        }
        self.status_dirty = false;
    }

    /// Conditions look at all policies of a mesh: they are found anew once a second at most.
    pub(super) fn judge(&mut self) {
        let now = Instant::now();
        for slot in self.meshes.values_mut() {
            let due = slot.judged_at.is_none_or(|at| now - at >= JUDGE_INTERVAL);
            if due && slot.mesh.is_unjudged() {
                slot.judged_at = Some(now);
                self.status_dirty |= slot.mesh.judge();
            }
        }
    }

    pub(super) fn status(&self) -> ZoneStatus {
        let unreadable = std::iter::once(&self.global)
            .chain(self.meshes.values().map(|slot| slot.mesh.scope()))
            .flat_map(Scope::unreadable)
            .map(|(key, _, reason)| (key, reason));
        let refused_by_global = self.reporter.refused().iter().map(|(k, r)| (k, r.as_str()));
        ZoneStatus {
            revision: self.lowest_revision(),
            meshes: self
                .meshes
                .iter()
                .map(|(name, slot)| slot.mesh.status(self.mesh_revision(name).unwrap_or(0)))
                .collect(),
            refused: unreadable
                .chain(refused_by_global)
                .take(REFUSALS_MAX)
                .map(|(key, reason)| ReportRefusal {
                    key: Some(key.clone().into()),
                    reason: reason.to_owned(),
                })
                .collect(),
        }
    }

    /// Everything of a mesh, and of what is outside any mesh, up to this revision is compiled.
    pub(super) fn mesh_revision(&self, name: &MeshName) -> Option<u64> {
        let mesh = self.meshes.get(name)?.mesh.scope().cursor().unwrap_or(0);
        Some(mesh.min(self.global.cursor().unwrap_or(0)))
    }

    pub(super) fn lowest_revision(&self) -> u64 {
        let scopes =
            std::iter::once(&self.global).chain(self.meshes.values().map(|s| s.mesh.scope()));
        scopes
            .map(|scope| scope.cursor().unwrap_or(0))
            .min()
            .unwrap_or(0)
    }

    pub(super) fn newest_revision(&self) -> u64 {
        let scopes =
            std::iter::once(&self.global).chain(self.meshes.values().map(|s| s.mesh.scope()));
        scopes
            .map(|scope| scope.cursor().unwrap_or(0))
            .max()
            .unwrap_or(0)
    }

    pub(super) fn note_revision(&mut self) {
        let revision = self.lowest_revision();
        self.revision
            .send_if_modified(|known| std::mem::replace(known, revision) != revision);
        let known = i64::try_from(revision).unwrap_or(i64::MAX);
        let global = i64::try_from(self.metrics.global_revision.get()).unwrap_or(i64::MAX);
        self.metrics.sync_revision.set(known);
        self.metrics.sync_lag.set((global - known).max(0));
    }
}
