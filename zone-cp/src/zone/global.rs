//! What comes from global, and what the zone answers.

use std::{collections::BTreeMap, sync::Arc};

use mesh_model::{TokenIssuer, api::CallRequest};
use mesh_proto::{
    VERSION, features,
    names::MeshName,
    zone::{
        Changes, Cursor, GlobalHello, Query, QueryAnswer, ZoneHello, query::What, to_global,
        to_zone as from_global,
    },
};
use tonic::Status;

use super::{Slot, Zone, anchors};

use crate::{
    event::{Answer, Question, Unknown},
    explain::Call,
    mesh::{Mesh, Surroundings},
    registry::Registry,
    scope::{Scope, Taken},
    sync::{Link, SyncEvent},
    token::{Issuer, Issuers},
    trust::Authorities,
};

impl Zone {
    pub(super) fn handle_sync(&mut self, event: SyncEvent) {
        match event {
            SyncEvent::Connecting(ask) => {
                let _ = ask.send(self.hello());
            }
            SyncEvent::Connected(hello, link) => self.handle_connected(&hello, link),
            SyncEvent::Message(message) => {
                // After a stream was given up, what is left of it is not listened to.
                if self.link.is_some() {
                    self.handle_global(*message);
                }
            }
            SyncEvent::Ended { address, reason } => {
                if self.link.take().is_some() {
                    tracing::warn!(%address, %reason, "the stream to global has ended; the zone goes on with what it knows");
                } else {
                    tracing::debug!(%address, %reason, "global is not reached");
                }
                self.metrics.sync_connected.set(0);
            }
        }
    }

    pub(super) fn hello(&mut self) -> ZoneHello {
        self.global.begin_stream();
        for slot in self.meshes.values_mut() {
            slot.mesh.begin_stream();
        }
        // One history for all cursors: scopes of another begin with a snapshot.
        let history_id = self.global.history_id().to_owned();
        let scopes = std::iter::once(("", &self.global)).chain(
            self.meshes
                .iter()
                .map(|(name, slot)| (name.as_str(), slot.mesh.scope())),
        );
        let cursors = scopes
            .filter(|(_, scope)| scope.history_id() == history_id)
            .filter_map(|(mesh, scope)| {
                Some(Cursor {
                    mesh: mesh.to_owned(),
                    revision: scope.cursor()?,
                })
            })
            .collect();
        ZoneHello {
            version: VERSION.to_owned(),
            features: features::SYNC.iter().map(|f| (*f).to_owned()).collect(),
            session: uuid::Uuid::new_v4().to_string(),
            history_id,
            cursors,
            instance: self.instance.clone(),
        }
    }

    pub(super) fn handle_connected(&mut self, hello: &GlobalHello, link: Link) {
        if hello.cluster_id != self.cluster_id {
            tracing::error!(
                theirs = %hello.cluster_id,
                ours = %self.cluster_id,
                "global is another installation than the one this zone joined: nothing is taken from it"
            );
            link.reconnect();
            return;
        }
        let gone: Vec<_> = self
            .meshes
            .keys()
            .filter(|name| !hello.meshes.iter().any(|mesh| mesh == name.as_str()))
            .cloned()
            .collect();
        for mesh in gone {
            self.forget_mesh(&mesh);
        }
        tracing::info!(revision = hello.revision, version = %hello.version, "connected to global");
        self.link = Some(link);
        self.reporter.begin_stream();
        self.metrics.sync_connected.set(1);
        self.metrics.sync_streams.inc();
        self.metrics.global_revision.set(hello.revision);
        self.report_dirty = true;
        self.status_dirty = true;
    }

    pub(super) fn handle_global(&mut self, message: from_global::Message) {
        match message {
            from_global::Message::Changes(changes) => self.handle_changes(changes),
            from_global::Message::Query(query) => self.handle_query(query),
            from_global::Message::ReportAck(ack) => {
                for (key, reason) in self.reporter.ack(ack) {
                    let key = mesh_proto::zone::ResourceKey::from(key);
                    tracing::warn!(resource = %key, %reason, "global refuses what this zone reports");
                }
                self.status_dirty = true;
            }
            from_global::Message::Heartbeat(beat) => {
                self.metrics.global_revision.set(beat.revision);
                self.note_revision();
            }
            from_global::Message::Hello(_) | from_global::Message::GoAway(_) => {}
        }
    }

    pub(super) fn handle_changes(&mut self, changes: Changes) {
        self.metrics.global_revision.set(changes.to);
        if changes.mesh.is_empty() {
            let taken = self.global.take(changes);
            match &taken {
                Taken::Applied(changed) if !changed.is_empty() => self.take_global_scope(),
                Taken::Unconnected(_) => self.global.forget_cursor(),
                _ => {}
            }
            self.after_changes(None, taken);
            return;
        }
        let Ok(name) = changes.mesh.parse::<MeshName>() else {
            tracing::warn!(mesh = %changes.mesh, "global speaks of a mesh whose name is none: ignored");
            return;
        };
        if !self.meshes.contains_key(&name) && !changes.mesh_gone && !self.add_mesh(&name) {
            return;
        }
        let Some(slot) = self.meshes.get_mut(&name) else {
            return;
        };
        let taken = slot.mesh.take(changes);
        if matches!(taken, Taken::Unconnected(_)) {
            slot.mesh.forget_cursor();
        }
        self.after_changes(Some(name), taken);
    }

    pub(super) fn after_changes(&mut self, scope: Option<MeshName>, taken: Taken) {
        match taken {
            Taken::Gathered => {}
            Taken::Applied(changed) => {
                self.status_dirty = true;
                if changed.is_empty() {
                    self.cursors_to_save.insert(scope);
                } else {
                    tracing::debug!(mesh = ?scope, changes = changed.len(), "resources changed");
                    self.scopes_to_save.insert(scope);
                }
            }
            Taken::Gone => {
                if let Some(mesh) = scope {
                    self.forget_mesh(&mesh);
                }
            }
            Taken::Unconnected(reason) => {
                tracing::warn!(mesh = ?scope, %reason, "what global sends does not follow on what is known: a snapshot is asked for");
                if let Some(link) = self.link.take() {
                    link.reconnect();
                }
            }
        }
    }

    pub(super) fn add_mesh(&mut self, name: &MeshName) -> bool {
        match Authorities::open(&self.store.ca_path(name)) {
            Ok(authorities) => {
                tracing::info!(mesh = %name, "a mesh is placed in this zone");
                let scope = Scope::new(name.as_str());
                let mut mesh =
                    Mesh::new(name.clone(), self.name.clone(), scope, Registry::default());
                mesh.set_surroundings(&self.surroundings);
                mesh.set_own_anchors(anchors(&authorities));
                let slot = Slot {
                    mesh,
                    authorities,
                    streams: BTreeMap::new(),
                    judged_at: None,
                };
                self.meshes.insert(name.clone(), slot);
                true
            }
            Err(error) => {
                tracing::error!(%error, mesh = %name, "the keys of a mesh cannot be kept: the mesh is not served");
                self.trust_problems.insert(name.clone(), error.to_string());
                self.judge_trust();
                false
            }
        }
    }

    pub(super) fn forget_mesh(&mut self, name: &MeshName) {
        let Some(slot) = self.meshes.remove(name) else {
            return;
        };
        tracing::info!(mesh = %name, "a mesh is no longer placed in this zone: it is forgotten");
        for (id, outgoing) in slot.streams.into_values() {
            self.streams.remove(&id);
            outgoing.end(Status::failed_precondition(format!(
                "mesh {name} is not placed in zone {} any more, or does not exist",
                self.name
            )));
        }
        self.store.forget_mesh(name);
        self.trust_problems.remove(name);
        self.judge_trust();
        for queued in [
            &mut self.scopes_to_save,
            &mut self.cursors_to_save,
            &mut self.registrations_to_save,
        ] {
            queued.remove(&Some(name.clone()));
        }
        self.routes_dirty = true;
        self.report_dirty = true;
        self.status_dirty = true;
    }

    /// Zones, ingresses of other zones, token keys.
    pub(super) fn take_global_scope(&mut self) {
        let surroundings = Surroundings::of(&self.global);
        let issuers = self.global.resources().filter_map(|resource| {
            let issuer = resource.get::<TokenIssuer>()?;
            Some((resource.meta.name.clone(), to_issuer(issuer)))
        });
        let issuers = Issuers(issuers.collect());
        for slot in self.meshes.values_mut() {
            slot.mesh.set_surroundings(&surroundings);
        }
        self.surroundings = surroundings;
        if **self.issuers.load() != issuers {
            self.issuers.store(Arc::new(issuers));
            self.end_invalid_tokens();
        }
    }

    pub(super) fn handle_query(&mut self, query: Query) {
        let id = query.id;
        let Some(link) = self.link.clone() else {
            return;
        };
        let reply = move |answer| {
            link.send(to_global::Message::Answer(to_wire(id, answer)));
        };
        match question(query) {
            Some(question) => self.handle_question(question, Box::new(reply)),
            None => reply(Err(Unknown(
                "this zone control plane does not know the question: it is older than global"
                    .to_owned(),
            ))),
        }
    }
}

fn question(query: Query) -> Option<Question> {
    let port = |port: u32| u16::try_from(port).unwrap_or(0);
    Some(match query.what? {
        What::ListDataplanes(list) => Question::Dataplanes { mesh: list.mesh },
        What::InspectDataplane(inspect) => Question::Dataplane {
            mesh: inspect.mesh,
            name: inspect.name,
        },
        What::InspectService(inspect) => Question::Service {
            mesh: inspect.mesh,
            name: inspect.name,
        },
        What::InspectPolicy(inspect) => Question::Policy(inspect.key?.into()),
        What::ExplainCall(explain) => Question::Call {
            mesh: explain.mesh,
            call: Call {
                from: explain.from,
                to: explain.to,
                port: port(explain.port),
                request: explain.request.map(|request| CallRequest {
                    method: request.method,
                    path: request.path,
                    headers: request
                        .headers
                        .into_iter()
                        .map(|h| (h.name, h.value))
                        .collect(),
                }),
            },
        },
        What::ExplainInbound(explain) => Question::Inbound {
            mesh: explain.mesh,
            service: explain.service,
            port: port(explain.port),
            caller: explain.caller_spiffe_id,
        },
        What::PlanChanges(changes) => Question::Plan(changes),
        What::CountRequests(count) => Question::Requests {
            mesh: count.mesh,
            service: count.service,
        },
        What::TapRequests(tapped) => Question::Tap {
            mesh: tapped.mesh,
            dataplane: tapped.dataplane,
            tap: tapped.tap?,
        },
    })
}

/// The longest answer. Global takes messages of 16 MiB; a longer one would end the stream, and with it everything else.
const ANSWER_BYTES_MAX: usize = 12 << 20;

fn to_wire(id: u64, answer: Answer) -> QueryAnswer {
    let found = answer.map(|value| value.to_string().into_bytes());
    let (json, error) = match found {
        Ok(json) if json.len() > ANSWER_BYTES_MAX => {
            let too_long = format!(
                "the answer is longer than {} MiB: ask about less, or the zone itself",
                ANSWER_BYTES_MAX >> 20
            );
            (Vec::new(), too_long)
        }
        Ok(json) => (json, String::new()),
        Err(unknown) => (Vec::new(), unknown.to_string()),
    };
    QueryAnswer { id, json, error }
}

fn to_issuer(issuer: &TokenIssuer) -> Issuer {
    Issuer {
        keys: issuer
            .keys
            .iter()
            .map(|key| (key.kid.clone(), key.public_key.clone()))
            .collect(),
        revoked: issuer
            .revoked
            .iter()
            .map(|token| token.id.clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_global_would_not_take_is_an_error() {
        let short = to_wire(1, Ok("x".into()));
        assert_eq!((&*short.json, &*short.error), (&b"\"x\""[..], ""));
        let long = to_wire(1, Ok("x".repeat(ANSWER_BYTES_MAX).into()));
        assert!(long.json.is_empty() && long.error.contains("12 MiB"));
        let unknown = to_wire(1, Err(Unknown("nobody".into())));
        assert_eq!(unknown.error, "nobody");
    }
}
