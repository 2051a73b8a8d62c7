//! Who calls: dataplanes and ingresses, from arrival to end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{MeshIdentity, Resource, identity};
use mesh_proto::{
    discovery::{Certificate, CertificateRequest, Role, ToDataplane, to_dataplane, to_zone},
    names::MeshName,
};
use time::OffsetDateTime;
use tonic::Status;

use super::{Peer, Slot, Zone};

use crate::{
    discovery::{Newcomer, unix_seconds},
    endpoints::Address,
    ingresses::Ingresses,
    mesh::Mesh,
    metrics::OfMesh,
    registry::{Admission, StreamId},
    stream::Outgoing,
    token,
};

impl Zone {
    pub(super) fn handle_arrival(&mut self, newcomer: Newcomer) {
        let Newcomer {
            role,
            arrival,
            running,
            outgoing,
            answer,
        } = newcomer;
        let (id, name) = (arrival.stream, arrival.resource.meta.name.clone());
        let registered = match role {
            Role::Ingress => self.register_ingress(arrival, &running, &outgoing),
            _ => self.register_dataplane(arrival, &running, &outgoing),
        };
        match registered {
            Ok(mesh) => {
                self.streams.insert(id, Peer { mesh, name });
                let _ = answer.send(Ok(()));
            }
            Err(status) => {
                self.metrics.arrivals_refused.inc();
                tracing::warn!(dataplane = %name, reason = status.message(), "a dataplane is not registered");
                let _ = answer.send(Err(status));
            }
        }
    }

    pub(super) fn register_dataplane(
        &mut self,
        arrival: crate::registry::Arrival,
        running: &[mesh_proto::discovery::DocumentVersion],
        outgoing: &Outgoing<ToDataplane>,
    ) -> Result<Option<MeshName>, Status> {
        let asked = &arrival.resource.meta.mesh;
        let mesh: MeshName = asked
            .parse()
            .map_err(|error: mesh_proto::names::InvalidName| {
                Status::invalid_argument(error.to_string())
            })?;
        let zone = &self.name;
        let slot = self.meshes.get_mut(&mesh).ok_or_else(|| {
            Status::unavailable(format!("mesh {mesh} is not known in zone {zone}: it does not exist, is not placed here, or has not arrived yet"))
        })?;
        // A zone that does not know a mesh wholly serves nobody in it, rather than half of it (FIELD e6).
        if slot.mesh.scope().cursor().is_none() && slot.mesh.scope().records().is_empty() {
            return Err(Status::unavailable(format!(
                "mesh {mesh} has not arrived in zone {zone} yet: call again"
            )));
        }
        let (stream, name) = (arrival.stream, arrival.resource.meta.name.clone());
        warn_of_same_address(&slot.mesh, &arrival.resource);
        match slot.mesh.arrive(arrival, running) {
            Admission::Outdated { connected } => Err(outdated(&name, connected)),
            Admission::Admitted { changed, .. } => {
                if let Some(registration) = slot.mesh.registration(&name) {
                    self.gatherings
                        .arrived(&mesh, &name, registration, stream, outgoing);
                }
                let old = slot.streams.insert(name, (stream, outgoing.clone()));
                end_replaced(&mut self.streams, old);
                self.registrations_to_save.insert(Some(mesh.clone()));
                self.report_dirty |= changed;
                self.status_dirty = true;
                self.save_soon();
                Ok(Some(mesh))
            }
        }
    }

    pub(super) fn register_ingress(
        &mut self,
        arrival: crate::registry::Arrival,
        running: &[mesh_proto::discovery::DocumentVersion],
        outgoing: &Outgoing<ToDataplane>,
    ) -> Result<Option<MeshName>, Status> {
        let (stream, name) = (arrival.stream, arrival.resource.meta.name.clone());
        match self.ingresses.arrive(arrival, running) {
            Admission::Outdated { connected } => Err(outdated(&name, connected)),
            Admission::Admitted { .. } => {
                let old = self
                    .ingress_streams
                    .insert(name.clone(), (stream, outgoing.clone()));
                end_replaced(&mut self.streams, old);
                self.settle();
                let revision = self.newest_revision();
                self.publish_routes(revision, Some(&name));
                let additive = self.additive;
                for slot in self.meshes.values() {
                    for message in Ingresses::greet(&slot.mesh.ingress_sets(), additive) {
                        outgoing.send(message);
                    }
                }
                self.registrations_to_save.insert(None);
                self.report_dirty = true;
                self.save_soon();
                Ok(None)
            }
        }
    }

    pub(super) fn handle_message(&mut self, stream: StreamId, message: to_zone::Message) {
        let Some(peer) = self.streams.get(&stream).cloned() else {
            return; // Its stream was ended here.
        };
        match (&peer.mesh, message) {
            (Some(mesh), to_zone::Message::Answer(answer)) => {
                self.gatherings.take(mesh, &peer.name, stream, answer);
            }
            (Some(mesh), message) => self.handle_dataplane(mesh, &peer.name, message),
            (None, message) => self.handle_ingress(&peer.name, message),
        }
    }

    pub(super) fn handle_dataplane(
        &mut self,
        mesh_name: &MeshName,
        name: &str,
        message: to_zone::Message,
    ) {
        let Some(slot) = self.meshes.get_mut(mesh_name) else {
            return;
        };
        let of = OfMesh {
            mesh: mesh_name.to_string(),
        };
        let count = |documents: usize| u64::try_from(documents).unwrap_or(0);
        match message {
            to_zone::Message::Ack(ack) => {
                self.metrics
                    .acks
                    .get_or_create(&of)
                    .inc_by(count(ack.documents.len()));
                slot.mesh.ack(name, &ack);
                self.status_dirty = true;
            }
            to_zone::Message::Nack(nack) => {
                self.metrics
                    .nacks
                    .get_or_create(&of)
                    .inc_by(count(nack.documents.len()));
                for refused in &nack.documents {
                    tracing::warn!(mesh = %mesh_name, dataplane = %name, document = %refused.name,
                        reason = %refused.reason, "a dataplane refuses a document and goes on with what it has");
                }
                slot.mesh.nack(name, &nack);
                self.status_dirty = true;
            }
            to_zone::Message::CertificateRequest(request) => self.issue(mesh_name, name, &request),
            to_zone::Message::Readiness(readiness) => {
                slot.mesh.readiness(name, &readiness.inbounds);
                self.registrations_to_save.insert(Some(mesh_name.clone()));
                self.save_soon();
            }
            to_zone::Message::Heartbeat(beat) => {
                if slot.mesh.beat(name, beat) {
                    self.registrations_to_save.insert(Some(mesh_name.clone()));
                    self.save_soon();
                }
            }
            to_zone::Message::Leaving(_) => {
                tracing::info!(mesh = %mesh_name, dataplane = %name, "a dataplane drains");
                slot.mesh.leaving(name);
                self.registrations_to_save.insert(Some(mesh_name.clone()));
                self.save_soon();
            }
            // Taken before.
            to_zone::Message::Answer(_) => {}
            to_zone::Message::Hello(_) => {
                if let Some((_, outgoing)) = slot.streams.get(name) {
                    outgoing.end(Status::invalid_argument("hello came twice"));
                }
            }
        }
    }

    pub(super) fn handle_ingress(&mut self, name: &str, message: to_zone::Message) {
        match message {
            to_zone::Message::Ack(ack) => self.report_dirty |= self.ingresses.ack(name, &ack),
            to_zone::Message::Nack(nack) => {
                for refused in &nack.documents {
                    tracing::warn!(ingress = %name, document = %refused.name, reason = %refused.reason,
                        "an ingress refuses a document and goes on with what it has");
                }
                self.ingresses.nack(name, &nack);
            }
            to_zone::Message::Leaving(_) => {
                tracing::info!(ingress = %name, "an ingress drains");
                self.ingresses.leaving(name);
                self.report_dirty = true;
            }
            // An ingress has no identity of its own and no application behind it.
            to_zone::Message::CertificateRequest(request) => {
                let message = certificate(
                    &request.spiffe_id,
                    Err("an ingress has no identity".to_owned()),
                );
                if let Some((_, outgoing)) = self.ingress_streams.get(name) {
                    outgoing.send(message);
                }
            }
            to_zone::Message::Readiness(_)
            | to_zone::Message::Heartbeat(_)
            | to_zone::Message::Answer(_) => return,
            to_zone::Message::Hello(_) => {
                if let Some((_, outgoing)) = self.ingress_streams.get(name) {
                    outgoing.end(Status::invalid_argument("hello came twice"));
                }
            }
        }
        self.registrations_to_save.insert(None);
        self.save_soon();
    }

    pub(super) fn handle_gone(&mut self, stream: StreamId, heard_ms: u64, reason: &str) {
        self.gatherings.gone(stream);
        let Some(peer) = self.streams.remove(&stream) else {
            return;
        };
        tracing::info!(mesh = ?peer.mesh.as_ref().map(MeshName::as_str), dataplane = %peer.name, %reason, "a stream has ended");
        match &peer.mesh {
            Some(mesh) => {
                let Some(slot) = self.meshes.get_mut(mesh) else {
                    return;
                };
                if slot
                    .streams
                    .get(&peer.name)
                    .is_some_and(|(id, _)| *id == stream)
                {
                    slot.streams.remove(&peer.name);
                }
                slot.mesh.disconnected(&peer.name, stream, heard_ms);
            }
            None => {
                if self
                    .ingress_streams
                    .get(&peer.name)
                    .is_some_and(|(id, _)| *id == stream)
                {
                    self.ingress_streams.remove(&peer.name);
                }
                self.report_dirty |= self.ingresses.disconnected(&peer.name, stream, heard_ms);
            }
        }
        self.registrations_to_save.insert(peer.mesh);
        self.status_dirty = true;
        self.save_soon();
    }

    pub(super) fn issue(&mut self, mesh_name: &MeshName, name: &str, request: &CertificateRequest) {
        // The newest entitlement counts.
        self.settle_mesh(mesh_name);
        let Some(slot) = self.meshes.get(mesh_name) else {
            return;
        };
        let of = OfMesh {
            mesh: mesh_name.to_string(),
        };
        let issued = issue(slot, name, request);
        match &issued {
            Ok(_) => self.metrics.certificates_issued.get_or_create(&of).inc(),
            Err(reason) => {
                tracing::warn!(mesh = %mesh_name, dataplane = %name, asked = %request.spiffe_id, %reason,
                    "no certificate is issued");
                self.metrics.certificates_refused.get_or_create(&of).inc()
            }
        };
        if let Some((_, outgoing)) = slot.streams.get(name) {
            outgoing.send(certificate(&request.spiffe_id, issued));
        }
    }

    /// Ends the streams of those whose tokens no longer hold (FIELD b15).
    pub(super) fn end_invalid_tokens(&mut self) {
        let issuers = self.issuers.load_full();
        let now = unix_seconds();
        let refused: Vec<_> = self
            .streams
            .values()
            .filter_map(|peer| {
                let registry = match &peer.mesh {
                    Some(mesh) => self.meshes.get(mesh)?.mesh.registry(),
                    None => self.ingresses.registry(),
                };
                let token = &registry.get(&peer.name)?.token;
                let refused = token::still_valid(token, &issuers, now).err()?;
                Some((peer.clone(), refused))
            })
            .collect();
        for (peer, refused) in refused {
            self.end_refused(&peer, &refused);
        }
    }

    /// Who was revoked is out of use at once, rather than after a grace period.
    pub(super) fn end_refused(&mut self, peer: &Peer, refused: &token::Refused) {
        tracing::warn!(mesh = ?peer.mesh.as_ref().map(MeshName::as_str), dataplane = %peer.name, %refused,
            "the stream of a dataplane is ended");
        let expired = matches!(refused, token::Refused::Expired { .. });
        let stream = match &peer.mesh {
            Some(mesh) => {
                let Some(slot) = self.meshes.get_mut(mesh) else {
                    return;
                };
                if !expired {
                    slot.mesh.leaving(&peer.name);
                }
                slot.streams.get(&peer.name)
            }
            None => {
                if !expired {
                    self.ingresses.leaving(&peer.name);
                    self.report_dirty = true;
                }
                self.ingress_streams.get(&peer.name)
            }
        };
        if let Some((_, outgoing)) = stream {
            outgoing.end(Status::unauthenticated(refused.to_string()));
        }
    }
}

fn outdated(name: &str, connected: u64) -> Status {
    Status::already_exists(format!(
        "a newer session (number {connected}) of {name} is connected: give each dataplane a name and a state directory of its own"
    ))
}

fn end_replaced(
    streams: &mut BTreeMap<StreamId, Peer>,
    old: Option<(StreamId, Outgoing<ToDataplane>)>,
) {
    if let Some((id, outgoing)) = old {
        streams.remove(&id);
        outgoing.end(Status::aborted(
            "another stream of this name has taken over",
        ));
    }
}

/// Two dataplanes at one address both keep their entries; somebody should know (FIELD f9).
fn warn_of_same_address(mesh: &Mesh, resource: &Resource) {
    let listens = |resource: &Resource| -> BTreeSet<Address> {
        let networking = resource
            .get::<mesh_model::Dataplane>()
            .map(|d| &d.networking);
        networking
            .iter()
            .flat_map(|n| {
                n.inbound.iter().map(|inbound| Address {
                    host: inbound.listen_address(n).to_string(),
                    port: inbound.port,
                })
            })
            .collect()
    };
    let wanted = listens(resource);
    for (name, other) in mesh.registry().iter() {
        if name == resource.meta.name {
            continue;
        }
        if let Some(address) = listens(&other.resource).intersection(&wanted).next() {
            tracing::warn!(mesh = %resource.meta.mesh, dataplane = %resource.meta.name, other = %name, %address,
                "two dataplanes say they listen at the same address");
        }
    }
}

fn issue(slot: &Slot, name: &str, request: &CertificateRequest) -> Result<Vec<Vec<u8>>, String> {
    let registration = slot.mesh.registration(name).ok_or("not registered")?;
    let identities: Vec<&Resource> = slot
        .mesh
        .view()
        .identities
        .iter()
        .map(Arc::as_ref)
        .collect();
    let dataplane = &registration.resource;
    let zone = &slot.mesh.view().zone;
    let entitled =
        identity::spiffe_id(&identities, dataplane, zone).map_err(|error| error.to_string())?;
    if request.spiffe_id != entitled.to_string() {
        return Err(format!("this dataplane's identity is {entitled}"));
    }
    let lifetime = identity::select(&identities, dataplane)
        .and_then(|resource| resource.get::<MeshIdentity>())
        .map_or(time::Duration::DAY, |identity| {
            time::Duration::try_from(identity.certificate_lifetime()).unwrap_or(time::Duration::DAY)
        });
    slot.authorities
        .issue(&request.csr, &entitled, lifetime, OffsetDateTime::now_utc())
        .map(|leaf| vec![leaf.to_vec()])
        .map_err(|error| error.to_string())
}

fn certificate(spiffe_id: &str, issued: Result<Vec<Vec<u8>>, String>) -> ToDataplane {
    let (chain, error) = match issued {
        Ok(chain) => (chain, String::new()),
        Err(error) => (Vec::new(), error),
    };
    ToDataplane {
        message: Some(to_dataplane::Message::Certificate(Certificate {
            spiffe_id: spiffe_id.to_owned(),
            chain,
            error,
        })),
    }
}
