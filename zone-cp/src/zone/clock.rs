//! What time brings: leases that end, CAs that age, files that are due.

use std::time::Duration;

use mesh_proto::{
    discovery::{GoAway, ToDataplane, to_dataplane},
    names::MeshName,
};
use tokio::time::Instant;

use super::{KEEP_LIMIT, SAVE_DELAY, SAVE_DELAY_MAX, SLOW_TICKS, Zone};

use crate::{discovery::unix_ms, ingresses::Ingresses, metrics::OfMesh};

impl Zone {
    pub(super) fn handle_tick(&mut self) {
        let now = unix_ms();
        self.ticks += 1;
        if self.additive && now >= self.started_ms.saturating_add(self.grace_ms) {
            self.end_additive();
        }
        self.expire(now);
        self.end_invalid_tokens();
        self.measure();
        self.judge();
        if self.ticks % SLOW_TICKS == 1 {
            self.handle_slow_tick();
        }
    }

    pub(super) fn expire(&mut self, now: u64) {
        let mut gone = Vec::new();
        for (name, slot) in &mut self.meshes {
            let names = slot.mesh.expire(now, self.grace_ms);
            gone.extend(
                names
                    .into_iter()
                    .map(|dataplane| (Some(name.clone()), dataplane)),
            );
        }
        let names = self.ingresses.expire(now, self.grace_ms);
        gone.extend(names.into_iter().map(|ingress| (None, ingress)));
        for (mesh, name) in gone {
            tracing::info!(mesh = ?mesh.as_ref().map(MeshName::as_str), dataplane = %name,
                "a dataplane stayed away through its grace period and is forgotten");
            self.registrations_to_save.insert(mesh);
            self.report_dirty = true;
            self.status_dirty = true;
            self.save_soon();
        }
    }

    /// Whoever was registered has had its time to come back: what is known now is everything.
    pub(super) fn end_additive(&mut self) {
        self.additive = false;
        self.report_dirty = true;
        for slot in self.meshes.values_mut() {
            for (name, message) in slot.mesh.feed_again() {
                if let Some((_, outgoing)) = slot.streams.get(&name) {
                    outgoing.send(message);
                }
            }
            for message in Ingresses::greet(&slot.mesh.ingress_sets(), false) {
                for (_, outgoing) in self.ingress_streams.values() {
                    outgoing.send(message.clone());
                }
            }
        }
    }

    pub(super) fn handle_slow_tick(&mut self) {
        let names: Vec<_> = self.meshes.keys().cloned().collect();
        for name in &names {
            self.rotate(name, true);
        }
        if !self.cursors_to_save.is_empty() {
            self.scopes_to_save.append(&mut self.cursors_to_save);
        }
    }

    pub(super) fn measure(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (name, slot) in &self.meshes {
            let of = OfMesh {
                mesh: name.to_string(),
            };
            let registry = slot.mesh.registry();
            self.metrics
                .dataplanes_connected
                .get_or_create(&of)
                .set(gauge(slot.streams.len()));
            self.metrics
                .dataplanes_registered
                .get_or_create(&of)
                .set(gauge(registry.len()));
            let ends = registry
                .iter()
                .filter(|(_, r)| r.stream.is_some())
                .map(|(_, r)| r.certificate_not_after)
                .filter(|end| *end > 0);
            let earliest = ends
                .min()
                .map_or(0, |end| i64::try_from(end).unwrap_or(i64::MAX));
            self.metrics
                .earliest_certificate_end
                .get_or_create(&of)
                .set(earliest);
        }
        self.metrics
            .ingresses_connected
            .set(gauge(self.ingress_streams.len()));
    }

    /// The more there is to write, the longer it waits for more of the same.
    pub(super) fn save_soon(&mut self) {
        if self.save_at.is_none() {
            let registered: usize = self.meshes.values().map(|s| s.mesh.registry().len()).sum();
            let longer = Duration::from_millis(u64::try_from(registered / 10).unwrap_or(0));
            self.save_at = Some(Instant::now() + SAVE_DELAY + longer.min(SAVE_DELAY_MAX));
        }
    }

    /// Puts on the disk what global has said, before it takes effect and is acknowledged: a zone that is killed and comes
    /// back while global is away must never go back to a permission that was withdrawn. A disk that does not answer does
    /// not hold up what was withdrawn either.
    pub(super) async fn keep_scopes(&mut self) {
        let written: Vec<_> = std::mem::take(&mut self.scopes_to_save)
            .iter()
            .filter_map(|mesh| match mesh {
                None => Some(self.store.save_scope(None, &self.global)),
                Some(name) => {
                    let slot = self.meshes.get(name)?;
                    Some(self.store.save_scope(Some(name), slot.mesh.scope()))
                }
            })
            .collect();
        let all = futures::future::join_all(written);
        if tokio::time::timeout(KEEP_LIMIT, all).await.is_err() {
            tracing::error!(
                "the store takes longer than {KEEP_LIMIT:?}: what changed takes effect before it is kept"
            );
        }
    }

    pub(super) fn save(&mut self) {
        self.save_at = None;
        for mesh in std::mem::take(&mut self.registrations_to_save) {
            match &mesh {
                None => self
                    .store
                    .save_registrations(None, self.ingresses.registry()),
                Some(name) => {
                    if let Some(slot) = self.meshes.get(name) {
                        self.store
                            .save_registrations(Some(name), slot.mesh.registry());
                    }
                }
            }
        }
    }

    /// Dataplanes go on with what they have, and call again at their leisure.
    pub(super) fn say_goodbye(&mut self) {
        let of_meshes = self
            .meshes
            .values_mut()
            .flat_map(|slot| std::mem::take(&mut slot.streams).into_values());
        let ingresses = std::mem::take(&mut self.ingress_streams).into_values();
        for (_, outgoing) in of_meshes.chain(ingresses) {
            outgoing.send(ToDataplane {
                message: Some(to_dataplane::Message::GoAway(GoAway {
                    addresses: Vec::new(),
                    reason: "this zone control plane is stopping".to_owned(),
                })),
            });
        }
    }
}
