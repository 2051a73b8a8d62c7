//! What people see of the zone when they look.

use mesh_model::{
    Dataplane, Stamp,
    api::{DataplaneView, DocumentView, InboundView, OutboundView},
};
use mesh_proto::{
    names::ZoneName,
    proxy::{
        IdentityMatch, Permissions, Proxy, SocketAddress, document::Body, identity_match::SpiffeId,
    },
    zone::ZoneStatus,
};
use serde_json::{Value, json};

use crate::{
    compiler, endpoints::Address, event::Unknown, ingresses::Ingresses, mesh::Mesh,
    registry::Registration,
};

/// All dataplanes of a mesh, as `DataplaneView`s without inbounds and outbounds.
#[must_use]
pub fn dataplanes(mesh: &Mesh, zone: &ZoneName) -> Value {
    let views: Vec<_> = mesh
        .registry()
        .iter()
        .map(|(name, registration)| view(mesh, zone, name, registration))
        .collect();
    json!(views)
}

/// One dataplane with permissions, their origins, and endpoints.
///
/// # Errors
/// Where there is none of this name.
pub fn dataplane(mesh: &Mesh, zone: &ZoneName, name: &str) -> Result<Value, Unknown> {
    let registration = mesh.registration(name).ok_or_else(|| {
        Unknown(format!(
            "dataplane {name} of mesh {} is not known in zone {zone}",
            mesh.name()
        ))
    })?;
    let mut view = view(mesh, zone, name, registration);
    let proxy = mesh
        .tracker(name)
        .and_then(|t| t.wanted().get(mesh_proto::document::PROXY).cloned());
    if let Some(Body::Proxy(proxy)) = proxy.as_deref().and_then(|d| d.body.as_ref()) {
        view.inbounds = inbounds(proxy, registration);
        view.outbounds = outbounds(mesh, name, proxy, registration);
    }
    Ok(json!(view))
}

/// Services of a mesh with their endpoints, as far as this zone knows them.
#[must_use]
pub fn services(mesh: &Mesh) -> Value {
    let destinations = mesh.services().destinations.iter();
    let list: Vec<_> = destinations
        .map(|(name, zones)| {
            let zones: Vec<_> = zones
                .iter()
                .map(|(zone, there)| {
                    let ports: Vec<_> = there
                        .ports
                        .iter()
                        .map(|port| {
                            let reference = compiler::ServiceRef {
                                of: crate::endpoints::ServicePort {
                                    service: name.clone(),
                                    port: port.port,
                                },
                                zone: Some(zone.clone()),
                            };
                            json!({
                                "port": port.port,
                                "name": port.name,
                                "appProtocol": port.app_protocol,
                                "endpoints": endpoints(mesh, &reference),
                            })
                        })
                        .collect();
                    json!({"zone": zone, "identities": there.identities, "ports": ports})
                })
                .collect();
            json!({"name": name, "zones": zones})
        })
        .collect();
    json!(list)
}

/// The zone itself.
#[must_use]
pub fn zone(name: &ZoneName, status: &ZoneStatus, connected: bool, ingresses: &Ingresses) -> Value {
    let meshes: Vec<_> = status
        .meshes
        .iter()
        .map(|mesh| {
            json!({
                "mesh": mesh.mesh,
                "revision": mesh.revision,
                "dataplanes": mesh.dataplanes,
                "current": mesh.current,
                "pending": mesh.pending,
                "silent": mesh.silent,
                "refused": mesh.refused.iter().map(|r| json!({
                    "dataplane": r.dataplane, "document": r.document, "reason": r.reason,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    let refused: Vec<_> = status
        .refused
        .iter()
        .map(|r| {
            let key = r.key.as_ref().map(ToString::to_string);
            json!({"resource": key, "reason": r.reason})
        })
        .collect();
    let ingresses: Vec<_> = ingresses
        .registry()
        .iter()
        .map(|(name, r)| json!({"name": name, "state": state(r), "listening": r.listening}))
        .collect();
    json!({
        "zone": name.as_str(),
        "connectedToGlobal": connected,
        "revision": status.revision,
        "meshes": meshes,
        "ingresses": ingresses,
        "refused": refused,
    })
}

fn view(mesh: &Mesh, zone: &ZoneName, name: &str, registration: &Registration) -> DataplaneView {
    let tracker = mesh.tracker(name);
    let documents = tracker.into_iter().flat_map(|tracker| {
        tracker
            .wanted()
            .iter()
            .map(|(document, wanted)| DocumentView {
                name: document.clone(),
                wanted: wanted.version.clone(),
                running: tracker.running(document).map(str::to_owned),
                refused: tracker.refused().get(document).map(|r| r.reason.clone()),
            })
    });
    let behind = mesh.services().own.iter().filter(|(_, service)| {
        service
            .members
            .values()
            .flatten()
            .any(|member| member.dataplane == name)
    });
    DataplaneView {
        mesh: mesh.name().to_string(),
        zone: zone.to_string(),
        name: name.to_owned(),
        state: state(registration).to_owned(),
        spiffe_id: mesh
            .view()
            .spiffe_ids
            .get(name)
            .cloned()
            .unwrap_or_default(),
        version: registration.version.clone(),
        services: behind.map(|(service, _)| service.clone()).collect(),
        certificate_not_after: registration.certificate_not_after,
        documents: documents.collect(),
        resource: registration.resource.to_view(&Stamp::default()),
        inbounds: Vec::new(),
        outbounds: Vec::new(),
    }
}

fn state(registration: &Registration) -> &'static str {
    match registration.stream {
        Some(_) => "online",
        None => "offline",
    }
}

fn inbounds(proxy: &Proxy, registration: &Registration) -> Vec<InboundView> {
    proxy
        .inbounds
        .iter()
        .map(|inbound| {
            let ready = registration
                .readiness
                .get(&inbound.name)
                .copied()
                .unwrap_or(inbound.probe.is_none());
            let stated_ready = registration.resource.get::<Dataplane>().is_some_and(|d| {
                d.networking.inbound.iter().any(|i| {
                    i.name_or_port() == inbound.name
                        && i.stated() == mesh_model::dataplane::InboundState::Ready
                })
            });
            InboundView {
                name: inbound.name.clone(),
                listen: address(inbound.listen.as_ref()),
                application: address(inbound.application.as_ref()),
                state: if ready && stated_ready {
                    "ready"
                } else {
                    "not ready"
                }
                .to_owned(),
                service: inbound.service.clone(),
                permissions: inbound
                    .permissions
                    .as_ref()
                    .map(permissions)
                    .unwrap_or_default(),
            }
        })
        .collect()
}

/// In the order in which they are looked at.
fn permissions(permissions: &Permissions) -> Vec<String> {
    let line = |word: &str, entry: &IdentityMatch| {
        let what = match &entry.spiffe_id {
            Some(SpiffeId::Exact(id)) => id.clone(),
            Some(SpiffeId::Prefix(prefix)) => format!("{prefix}*"),
            Some(SpiffeId::Any(true)) => "everyone".to_owned(),
            Some(SpiffeId::Any(false)) | None => "nobody".to_owned(),
        };
        format!("{word} {what} ({})", entry.origin)
    };
    let deny = permissions.deny.iter().map(|e| line("deny", e));
    let shadow = permissions
        .allow_with_shadow_deny
        .iter()
        .map(|e| line("allowWithShadowDeny", e));
    let allow = permissions.allow.iter().map(|e| line("allow", e));
    deny.chain(shadow).chain(allow).collect()
}

fn outbounds(
    mesh: &Mesh,
    name: &str,
    proxy: &Proxy,
    registration: &Registration,
) -> Vec<OutboundView> {
    let references = compiler::declared(&registration.resource);
    proxy
        .outbounds
        .iter()
        .map(|outbound| {
            let reference = references
                .iter()
                .find(|r| r.document_name() == outbound.service_document);
            let document = mesh
                .tracker(name)
                .and_then(|t| t.wanted().get(&outbound.service_document).cloned());
            let identities = match document.as_deref().and_then(|d| d.body.as_ref()) {
                Some(Body::Service(service)) => service
                    .zones
                    .iter()
                    .flat_map(|z| z.identities.clone())
                    .collect(),
                _ => Vec::new(),
            };
            OutboundView {
                listen: address(outbound.listen.as_ref()),
                service: outbound.service_document.clone(),
                endpoints: reference.map(|r| endpoints(mesh, r)).unwrap_or_default(),
                identities,
            }
        })
        .collect()
}

fn endpoints(mesh: &Mesh, reference: &compiler::ServiceRef) -> Vec<String> {
    mesh.endpoints(reference)
        .iter()
        .map(|(address, place)| {
            let through = if place.through_ingress {
                ", through ingress"
            } else {
                ""
            };
            format!("{address} ({}{through})", place.zone)
        })
        .collect()
}

fn address(address: Option<&SocketAddress>) -> String {
    address.map_or_else(String::new, |a| {
        Address {
            host: a.host.clone(),
            port: u16::try_from(a.port).unwrap_or(0),
        }
        .to_string()
    })
}
