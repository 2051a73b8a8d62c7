//! What people see of the zone when they look.

use std::collections::BTreeSet;

use mesh_model::{
    Dataplane, Kind as _, MeshHTTPRoute, MeshService, Stamp,
    api::{
        DataplaneView, DetectionTimeouts, DocumentView, InboundView, Key, OutboundView, ZonePolicy,
        ZoneService, ZoneServicePort,
    },
    permission,
    policy::{self, Destination, ToKind},
    selection,
};
use mesh_proto::{
    discovery,
    names::ZoneName,
    proxy::{Inbound, Protocol, Proxy, document::Body},
    zone::ZoneStatus,
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    compiler::{self, ServiceRef},
    describe,
    event::Unknown,
    ingresses::Ingresses,
    mesh::Mesh,
    registry::Registration,
    scope::{Record, Scope},
};

/// Dataplanes and services that are named of a policy at most.
const NAMES_MAX: usize = 1_000;

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

/// Services of a mesh with their endpoints, as far as this zone knows them. Those of other zones come with the age of what
/// is known of them (FIELD a13).
#[must_use]
pub fn services(mesh: &Mesh, now_ms: u64) -> Value {
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
                            let reference = ServiceRef {
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
                    let mut view =
                        json!({"zone": zone, "identities": there.identities, "ports": ports});
                    if let Some(record) = imported(mesh, zone, name) {
                        set_age(&mut view, record, now_ms);
                    }
                    view
                })
                .collect();
            json!({"name": name, "zones": zones})
        })
        .collect();
    json!(list)
}

/// What another zone has reported of a service.
fn imported<'a>(mesh: &'a Mesh, zone: &str, name: &str) -> Option<&'a Record> {
    let key = Key {
        kind: MeshService::DESCRIPTOR.name.to_owned(),
        mesh: mesh.name().to_string(),
        zone: zone.to_owned(),
        name: name.to_owned(),
    };
    mesh.scope().records().get(&key)
}

/// When a record was changed last, and how long ago that is. Records of a time when global did not say have neither.
fn set_age(view: &mut Value, record: &Record, now_ms: u64) {
    if record.modified_ms == 0 {
        return;
    }
    let nanos = i128::from(record.modified_ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    if let Some(time) = time.and_then(|time| time.format(&Rfc3339).ok()) {
        view["modificationTime"] = time.into();
    }
    // Global's clock may be ahead.
    view["ageSeconds"] = (now_ms.saturating_sub(record.modified_ms) / 1_000).into();
}

/// What global has given in one scope: where each resource comes from, how old it is, and why it cannot be read where it
/// cannot. Not what it says, which may be secret.
#[must_use]
pub fn resources(scope: &Scope, now_ms: u64) -> Value {
    let list: Vec<_> = scope
        .records()
        .iter()
        .map(|(key, record)| {
            let origin = match key.zone.as_str() {
                "" => "global",
                zone => zone,
            };
            let mut view = json!({
                "type": key.kind,
                "mesh": key.mesh,
                "name": key.name,
                "origin": origin,
                "revision": record.revision,
            });
            if let Err(reason) = &record.resource {
                view["unreadable"] = (&**reason).into();
            }
            set_age(&mut view, record, now_ms);
            view
        })
        .collect();
    json!(list)
}

/// One service as this zone runs it. `None`: it has no workload here.
#[must_use]
pub fn service(mesh: &Mesh, name: &str) -> Option<ZoneService> {
    let own = mesh.services().own.get(name)?;
    let target = mesh.services().target(name);
    let ports = own.ports.iter().map(|port| {
        let members = own.members.get(&port.port).into_iter().flatten();
        let endpoints = members.map(|member| {
            let state = ready(mesh.is_ready(member));
            format!("{} ({}, {state})", member.dataplane, member.address)
        });
        ZoneServicePort {
            port: port.port,
            name: port.name_or_port(),
            app_protocol: describe::declared(port.app_protocol),
            endpoints: endpoints.collect(),
        }
    });
    // What is said of the service, or of any of its ports.
    let whole = Destination::new(&target);
    let at_ports = target.ports.iter().map(|port| whole.clone().at(port));
    let set = &mesh.view().policies.set;
    let policies: BTreeSet<String> = std::iter::once(whole.clone())
        .chain(at_ports)
        .flat_map(|destination| set.concerning(&destination))
        .map(ToString::to_string)
        .collect();
    Some(ZoneService {
        zone: mesh.view().zone.to_string(),
        identities: own.identities.iter().cloned().collect(),
        ports: ports.collect(),
        policies: policies.into_iter().collect(),
    })
}

/// Whom a policy concerns here.
///
/// # Errors
/// Where this zone has no such policy.
pub fn policy(mesh: &Mesh, key: &Key) -> Result<Value, Unknown> {
    let zone = &mesh.view().zone;
    let unknown = |why: &str| {
        let key = mesh_proto::zone::ResourceKey::from(key.clone());
        Unknown(format!("{key} {why} in zone {zone}"))
    };
    let record = mesh.scope().records().get(key);
    let record = record.ok_or_else(|| unknown("is not known"))?;
    let resource = record
        .resource
        .as_ref()
        .map_err(|_| unknown("cannot be read"))?;
    let policy = resource.policy().ok_or_else(|| unknown("is no policy"))?;
    let target = policy.target_ref();
    let has_section = target.is_some_and(|target| target.section_name.is_some());
    let mut selected = BTreeSet::new();
    let mut dataplanes = Vec::new();
    for (name, registration) in mesh.registry().iter() {
        let dataplane = &registration.resource;
        if !selection::in_reach(resource, &dataplane.meta)
            || !selection::selects_dataplane(target, &dataplane.meta)
        {
            continue;
        }
        if !has_section {
            selected.insert(name);
            dataplanes.push(name.to_owned());
            continue;
        }
        let inbounds = dataplane.get::<Dataplane>().map(|d| &d.networking.inbound);
        for inbound in inbounds.into_iter().flatten() {
            if selection::selects_inbound(target, &dataplane.meta, inbound) {
                selected.insert(name);
                dataplanes.push(format!("{name}/{}", inbound.name_or_port()));
            }
        }
    }
    dataplanes.truncate(NAMES_MAX);
    let to = policy.to();
    let meant = |destination: &Destination| {
        to.iter()
            .any(|part| part.target.kind != ToKind::Mesh && destination.is_meant_by(part.target))
    };
    let mut destinations = Vec::new();
    for target in mesh.services().targets.iter() {
        let whole = Destination::new(target);
        if meant(&whole) {
            destinations.push(target.name.clone());
            continue;
        }
        for port in &target.ports {
            if meant(&whole.clone().at(port)) {
                destinations.push(format!("{}:{}", target.name, port.number));
            }
        }
    }
    let routes = mesh.view().policies.resources.iter();
    let routes = routes.filter(|route| {
        let nothing = policy::Service::named(ToKind::MeshService, "");
        route.get::<MeshHTTPRoute>().is_some()
            && meant(&Destination::new(&nothing).by_route(&route.meta))
    });
    destinations.extend(routes.map(|route| format!("MeshHTTPRoute {}", route.meta.name)));
    destinations.truncate(NAMES_MAX);
    Ok(json!(ZonePolicy {
        zone: zone.to_string(),
        selected: u32::try_from(selected.len()).unwrap_or(u32::MAX),
        dataplanes,
        destinations,
    }))
}

fn ready(ready: bool) -> &'static str {
    match ready {
        true => "ready",
        false => "not ready",
    }
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
    let behind = mesh.services().behind.get(name).into_iter().flatten();
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
        services: behind.cloned().collect(),
        certificate_not_after: registration.certificate_not_after,
        documents: documents.collect(),
        resource: registration.resource.to_view(&Stamp::default()),
        detection_timeouts: detection_timeouts(mesh, name, registration),
        inbounds: Vec::new(),
        outbounds: Vec::new(),
    }
}

/// Ports at which the dataplane could not tell in time what is spoken, without those of which that has been declared since.
fn detection_timeouts(
    mesh: &Mesh,
    name: &str,
    registration: &Registration,
) -> Vec<DetectionTimeouts> {
    let told = &registration.detection_timeouts;
    if told.is_empty() {
        return Vec::new();
    }
    let bodies = || {
        let documents = mesh.tracker(name).into_iter().flat_map(|t| t.wanted());
        documents.filter_map(|(_, document)| document.body.as_ref())
    };
    let detected_inbound = |one: &discovery::DetectionTimeouts| {
        bodies().find_map(|body| match body {
            Body::Proxy(proxy) => proxy.inbounds.iter().find(|inbound| {
                inbound.protocol() == Protocol::Detect
                    && (&inbound.name, &inbound.service) == (&one.port, &one.service)
            }),
            _ => None,
        })
    };
    let detected_service = |one: &discovery::DetectionTimeouts| {
        bodies().find_map(|body| match body {
            Body::Service(service)
                if service.protocol() == Protocol::Detect
                    && service.name == one.service
                    && service.port.to_string() == one.port =>
            {
                u16::try_from(service.port).ok()
            }
            _ => None,
        })
    };
    let served = compiler::served_ports(mesh.services(), &registration.resource);
    let shown = |one: &discovery::DetectionTimeouts| {
        let (port, direction) = if one.inbound {
            let inbound = detected_inbound(one)?;
            let served = served.get(&inbound.name).into_iter().flatten();
            let port = served
                .filter(|(service, _)| *service == one.service)
                .map(|(_, port)| port.port)
                .next();
            // What no service names is called by its own port.
            let own = || u16::try_from(inbound.listen.as_ref()?.port).ok();
            (port.or_else(own)?, "inbound")
        } else {
            (detected_service(one)?, "outbound")
        };
        Some(DetectionTimeouts {
            service: one.service.clone(),
            port,
            direction: direction.to_owned(),
            connections: one.connections,
            last_at: one.last_at,
        })
    };
    told.iter().filter_map(shown).collect()
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
            let is_ready = registration
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
                listen: describe::address(inbound.listen.as_ref()),
                application: describe::address(inbound.application.as_ref()),
                state: ready(is_ready && stated_ready).to_owned(),
                service: inbound.service.clone(),
                permissions: inbound
                    .permissions
                    .as_ref()
                    .map(describe::permissions)
                    .unwrap_or_default(),
                settings: inbound_settings(inbound),
            }
        })
        .collect()
}

fn inbound_settings(inbound: &Inbound) -> Vec<String> {
    let everyone = inbound.timeouts.iter().flat_map(describe::timeouts);
    let some = inbound.caller_timeouts.iter().flat_map(|callers| {
        let shown: Vec<_> = callers.matches.iter().map(permission::shown).collect();
        let shown = shown.join(", ");
        let lines = callers.timeouts.iter().flat_map(describe::timeouts);
        lines.map(move |line| format!("for {shown}: {line}"))
    });
    everyone
        .chain(some)
        .chain(describe::inbound_tls(inbound))
        .collect()
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
            let service = match document.as_deref().and_then(|d| d.body.as_ref()) {
                Some(Body::Service(service)) => Some(service),
                _ => None,
            };
            let zones = service.into_iter().flat_map(|service| &service.zones);
            OutboundView {
                listen: describe::address(outbound.listen.as_ref()),
                service: outbound.service_document.clone(),
                endpoints: reference.map(|r| endpoints(mesh, r)).unwrap_or_default(),
                identities: zones.flat_map(|z| z.identities.clone()).collect(),
                routes: service
                    .map(|service| describe::routes(&outbound.service_document, service))
                    .unwrap_or_default(),
                settings: service.map(describe::service_settings).unwrap_or_default(),
            }
        })
        .collect()
}

fn endpoints(mesh: &Mesh, reference: &ServiceRef) -> Vec<String> {
    describe::endpoints(&mesh.endpoints(reference))
}
