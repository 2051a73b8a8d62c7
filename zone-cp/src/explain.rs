//! Whether a call is allowed, where it goes, and which policies say so.
//!
//! Answers come from the very documents the zone has compiled and from the endpoint sets it sends, not from a second
//! evaluation: what a proxy runs is what is explained. Where it does not run what is wanted of it (yet), the answer is
//! about what it runs, and says so.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{
    api::{CallRequest, ExplainedBackend, ExplainedCaller, ExplainedInbound, ExplainedRule},
    identity, permission,
};
use mesh_proto::{
    document,
    http_match::{Compiled, path::normal},
    proxy::{
        CallerTimeouts, Document, HttpRoutes, HttpRule, Permissions, Protocol, Proxy, RouteBackend,
        Service, document::Body,
    },
};

use crate::{
    compiler::{self, ServiceRef},
    describe,
    endpoints::{ServicePort, Set},
    mesh::Mesh,
};

/// Dataplanes that an answer is about at most.
const DATAPLANES_MAX: usize = 200;

/// A call that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// A dataplane, a service or a workload.
    pub from: String,
    /// A service.
    pub to: String,
    /// 0: each port.
    pub port: u16,
    /// What becomes of this request, where the port takes requests of HTTP.
    pub request: Option<CallRequest>,
}

/// Where calls of the dataplanes that `from` names go; at most 200 of them.
#[must_use]
pub fn call(mesh: &Mesh, call: &Call) -> Vec<ExplainedCaller> {
    let mut explained = Vec::new();
    for name in callers(mesh, &call.from).iter().take(DATAPLANES_MAX) {
        for reference in references(mesh, name, call) {
            explained.extend(caller(mesh, name, &reference, call.request.as_ref()));
        }
    }
    explained
}

/// Whether the dataplanes behind a service of this zone let a caller in; at most 200 of them. Port 0: each port.
#[must_use]
pub fn inbound(mesh: &Mesh, service: &str, port: u16, caller: &str) -> Vec<ExplainedInbound> {
    let Some(own) = mesh.services().own.get(service) else {
        return Vec::new();
    };
    let ports = own
        .members
        .iter()
        .filter(|(own, _)| port == 0 || **own == port);
    let members = ports.flat_map(|(port, members)| members.iter().map(move |m| (*port, m)));
    members
        .take(DATAPLANES_MAX)
        .map(|(port, member)| {
            let mut explained = ExplainedInbound {
                zone: mesh.view().zone.to_string(),
                dataplane: member.dataplane.clone(),
                inbound: member.inbound.clone(),
                service: service.to_owned(),
                port,
                ready: mesh.is_ready(member),
                allowed: false,
                shadow_denied: false,
                origin: None,
                reason: String::new(),
                settings: Vec::new(),
            };
            let_in(mesh, caller, &mut explained);
            explained
        })
        .collect()
}

/// A document as a dataplane has it.
struct InForce<'a> {
    document: &'a Document,
    /// Why that is not what the zone wants, where it is not.
    note: Option<String>,
}

fn in_force<'a>(mesh: &'a Mesh, dataplane: &str, name: &str) -> Option<InForce<'a>> {
    let tracker = mesh.tracker(dataplane)?;
    let wanted = tracker.wanted().get(name);
    let runs_wanted = wanted.is_some_and(|d| tracker.running(name) == Some(&d.version));
    let running = tracker.running_document(name);
    let (document, runs) = match (running, wanted) {
        (Some(running), _) => (running, true),
        (None, Some(wanted)) => (wanted, false),
        (None, None) => return None,
    };
    let note = if runs_wanted {
        None
    } else {
        let why = match tracker.refused().get(name) {
            Some(refusal) => format!("the dataplane has refused the newest: {}", refusal.reason),
            None if mesh.is_stopped(dataplane, name) => {
                "the newest goes no further: those who tried it have refused it".to_owned()
            }
            None => "the dataplane has not acknowledged the newest yet".to_owned(),
        };
        let which = if runs { "an older one" } else { "the newest" };
        Some(format!("document {name}: this is {which}; {why}"))
    };
    Some(InForce { document, note })
}

impl InForce<'_> {
    fn proxy(&self) -> Option<&Proxy> {
        match &self.document.body {
            Some(Body::Proxy(proxy)) => Some(proxy),
            _ => None,
        }
    }
}

fn service(document: &Document) -> Option<&Service> {
    match &document.body {
        Some(Body::Service(service)) => Some(service),
        _ => None,
    }
}

/// The dataplane of this name; where there is none, those behind the service, else those of the workload.
fn callers(mesh: &Mesh, from: &str) -> BTreeSet<String> {
    if mesh.registration(from).is_some() {
        return [from.to_owned()].into();
    }
    let behind = &mesh.services().behind;
    let of_service: BTreeSet<String> = mesh
        .registry()
        .iter()
        .filter(|(name, _)| behind.get(*name).is_some_and(|all| all.contains(from)))
        .map(|(name, _)| name.to_owned())
        .collect();
    if !of_service.is_empty() {
        return of_service;
    }
    mesh.registry()
        .iter()
        .filter(|(_, r)| identity::workload(&r.resource) == from)
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// What a dataplane may mean by the called service: its own references to it, and for ports it has none to, the port in
/// every zone.
fn references(mesh: &Mesh, dataplane: &str, call: &Call) -> BTreeSet<ServiceRef> {
    let wanted = |port: u16| call.port == 0 || call.port == port;
    let resource = mesh.registration(dataplane).map(|r| &r.resource);
    let mut references: BTreeSet<ServiceRef> = resource
        .map(|r| compiler::declared(r))
        .unwrap_or_default()
        .into_iter()
        .filter(|r| r.of.service == call.to && wanted(r.of.port))
        .collect();
    let known = mesh.services().destinations.get(&call.to);
    let mut ports: BTreeSet<u16> = known
        .iter()
        .flat_map(|zones| zones.values())
        .flat_map(|there| there.ports.iter().map(|p| p.port))
        .filter(|port| wanted(*port))
        .collect();
    // Of a service that nobody knows there is nothing to explain, whatever the port.
    if call.port != 0 && (known.is_some() || !references.is_empty()) {
        ports.insert(call.port);
    }
    for port in ports {
        if !references.iter().any(|r| r.of.port == port) {
            references.insert(ServiceRef {
                of: ServicePort {
                    service: call.to.clone(),
                    port,
                },
                zone: None,
            });
        }
    }
    references
}

fn caller(
    mesh: &Mesh,
    name: &str,
    reference: &ServiceRef,
    request: Option<&CallRequest>,
) -> Option<ExplainedCaller> {
    let listeners = in_force(mesh, name, document::PROXY)?;
    let proxy = listeners.proxy()?;
    let document_name = reference.document_name();
    let outbound = proxy
        .outbounds
        .iter()
        .find(|outbound| outbound.service_document == document_name)
        .map(|outbound| describe::address(outbound.listen.as_ref()));
    let mut explained = ExplainedCaller {
        zone: proxy.zone.clone(),
        dataplane: name.to_owned(),
        spiffe_id: proxy.spiffe_id.clone(),
        service: reference.of.service.clone(),
        port: reference.of.port,
        outbound,
        request: None,
        route: None,
        rules: Vec::new(),
        answer: None,
        backends: Vec::new(),
        settings: Vec::new(),
    };
    let mut notes: BTreeSet<String> = listeners.note.iter().cloned().collect();
    // Without an outbound there is no document: what one would say is compiled for the answer.
    let needed = mesh.needed(name, reference);
    let find = |document: &str| {
        let (reference, compiled) = needed
            .iter()
            .find(|(_, compiled)| compiled.name == document)?;
        let (document, note) = match in_force(mesh, name, document) {
            Some(found) => (found.document, found.note),
            None => (&**compiled, None),
        };
        Some((reference, service(document)?, note))
    };
    let (_, called, note) = find(&document_name)?;
    notes.extend(note);
    let takes_requests = compiler::takes_requests(called.protocol());
    if called.protocol() == Protocol::Detect {
        notes.insert(describe::DETECTED.to_owned());
    }
    let request = request.filter(|_| {
        takes_requests || {
            let protocol = describe::protocol(called.protocol());
            notes.insert(format!(
                "the port takes {protocol}: requests are not looked into"
            ));
            false
        }
    });
    explained.request = request.map(|request| format!("{} {}", request.method, request.path));
    let mut timeouts = called.timeouts.clone();
    // Connections of bytes, which have a route of their own.
    let connections = || match &called.tcp_route {
        Some(route) => route.backends.clone(),
        None => vec![RouteBackend {
            service_document: document_name.clone(),
            weight: 1,
        }],
    };
    let shares = match &called.http_routes {
        Some(routes) => {
            let rules = concerned(routes, request);
            explained.rules = rules.iter().map(|rule| explained_rule(rule)).collect();
            if request.is_some() {
                let rule = rules.first().copied();
                explained.answer = answer(rule);
                explained.route = rule.map(|rule| rule.origin.clone());
                explained.route.take_if(|origin| origin.is_empty());
                let own = rule.and_then(|rule| rule.timeouts.clone());
                if let (Some(own), Some(timeouts)) = (own, &mut timeouts) {
                    timeouts.http = Some(own);
                }
            }
            let mut backends: Vec<_> = rules
                .iter()
                .flat_map(|rule| rule.backends.clone())
                .collect();
            if request.is_none() && called.protocol() == Protocol::Detect {
                let bytes = connections();
                explained.rules.push(ExplainedRule {
                    matches: describe::NOT_HTTP.to_owned(),
                    origin: called.tcp_route.as_ref().map(|route| route.origin.clone()),
                    filters: Vec::new(),
                    backends: describe::http::backends(&bytes),
                    settings: Vec::new(),
                });
                backends.extend(bytes);
            }
            together(&backends)
        }
        None => {
            let route = called.tcp_route.as_ref();
            explained.route = route.map(|route| route.origin.clone());
            connections()
        }
    };
    for RouteBackend {
        service_document,
        weight,
    } in shares
    {
        explained.backends.push(match find(&service_document) {
            Some((reference, there, note)) => {
                notes.extend(note);
                backend(mesh, reference, there, weight)
            }
            None => undelivered(&service_document, weight),
        });
    }
    explained
        .settings
        .extend(describe::service_settings(&Service {
            timeouts,
            ..called.clone()
        }));
    if explained.outbound.is_none() {
        notes.insert(format!(
            "dataplane {name} declares no outbound to {}: this is what one would do",
            describe::service_name(&document_name)
        ));
    }
    explained.settings.extend(notes);
    Some(explained)
}

/// The rules for a request: the one that takes it, where there is one; without a request, all of them.
fn concerned<'a>(routes: &'a HttpRoutes, request: Option<&CallRequest>) -> Vec<&'a HttpRule> {
    let Some(request) = request else {
        return routes.rules.iter().collect();
    };
    // A dataplane would have refused what can not be compiled.
    let Ok(compiled) = Compiled::new(routes) else {
        return Vec::new();
    };
    let (path, query) = match request.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (request.path.as_str(), None),
    };
    let path = normal(path);
    let found = compiled.find(&request.method, &path, query, request.headers.as_slice());
    found
        .and_then(|index| routes.rules.get(index))
        .into_iter()
        .collect()
}

fn explained_rule(rule: &HttpRule) -> ExplainedRule {
    let timeouts = rule.timeouts.iter().flat_map(describe::http::timeouts);
    ExplainedRule {
        matches: describe::http::matches(rule.r#match.as_ref()),
        origin: Some(rule.origin.clone()).filter(|origin| !origin.is_empty()),
        filters: describe::http::filters(&rule.filters),
        backends: describe::http::backends(&rule.backends),
        settings: timeouts
            .map(|(name, value)| format!("http.{name} {value}"))
            .collect(),
    }
}

/// What the caller's proxy answers by itself to a request that this rule takes.
fn answer(rule: Option<&HttpRule>) -> Option<String> {
    let Some(rule) = rule else {
        return Some("answers 404: no rule takes this request".to_owned());
    };
    if let Some(redirect) = describe::http::redirect(rule) {
        return Some(describe::http::redirected(redirect));
    }
    let has_backend = rule.backends.iter().any(|backend| backend.weight > 0);
    (!has_backend).then(|| "answers 500: the rule names no backend with a weight".to_owned())
}

/// The backends of several rules, each once.
fn together(backends: &[RouteBackend]) -> Vec<RouteBackend> {
    let mut weights: BTreeMap<&str, u32> = BTreeMap::new();
    for backend in backends {
        let weight = weights.entry(&backend.service_document).or_default();
        *weight = (*weight).max(backend.weight);
    }
    let backends = weights.into_iter().map(|(document, weight)| RouteBackend {
        service_document: document.to_owned(),
        weight,
    });
    backends.collect()
}

fn undelivered(document: &str, weight: u32) -> ExplainedBackend {
    let name = describe::service_name(document);
    let (service, port) = name.rsplit_once(':').unwrap_or((name, "0"));
    ExplainedBackend {
        service: service.to_owned(),
        port: port.parse().unwrap_or(0),
        weight,
        endpoints: Vec::new(),
        zones: Vec::new(),
        identities: Vec::new(),
        error: Some("the dataplane has no document of this service".to_owned()),
    }
}

/// Where connections to one service go: to the endpoints of the own zone while there are any, else to all.
fn backend(mesh: &Mesh, reference: &ServiceRef, there: &Service, weight: u32) -> ExplainedBackend {
    let identities_in = |zone: &str| there.zones.iter().find(|z| z.zone == zone);
    let own_zone = mesh.view().zone.as_str();
    let mut set = mesh.endpoints(reference);
    set.retain(|_, place| identities_in(&place.zone).is_some());
    let here: Set = crate::endpoints::in_zone(&set, own_zone);
    let used = if here.is_empty() { set } else { here };
    let zones: BTreeSet<&String> = used.values().map(|place| &place.zone).collect();
    let identities: BTreeSet<&String> = zones
        .iter()
        .filter_map(|zone| identities_in(zone))
        .flat_map(|zone| &zone.identities)
        .collect();
    let name = describe::service_name(&reference.document_name()).to_owned();
    let error = if there.zones.is_empty() {
        Some(format!("there is no {name} in any zone"))
    } else if used.is_empty() {
        Some(format!("no endpoint of {name} is ready"))
    } else if identities.is_empty() {
        Some(format!("nobody behind {name} has an identity"))
    } else {
        None
    };
    ExplainedBackend {
        service: reference.of.service.clone(),
        port: reference.of.port,
        weight,
        endpoints: describe::endpoints(&used),
        zones: zones.into_iter().cloned().collect(),
        identities: identities.into_iter().cloned().collect(),
        error,
    }
}

fn let_in(mesh: &Mesh, caller: &str, explained: &mut ExplainedInbound) {
    let Some(found) = in_force(mesh, &explained.dataplane, document::PROXY) else {
        explained.reason = "the dataplane has no document that lets anybody in".to_owned();
        return;
    };
    let inbound = found
        .proxy()
        .and_then(|proxy| proxy.inbounds.iter().find(|i| i.name == explained.inbound));
    let Some(inbound) = inbound else {
        explained.reason = format!("the dataplane has no inbound {} yet", explained.inbound);
        explained.settings.extend(found.note);
        return;
    };
    let permissions = inbound.permissions.clone().unwrap_or_default();
    let decision = permission::decide(&permissions, caller);
    explained.reason = if permissions == Permissions::default() {
        "denied: no permission says who may call this inbound".to_owned()
    } else {
        decision.to_string()
    };
    if !decision.allowed {
        // The connection of a caller that is known stays; each of its requests is refused.
        match inbound.protocol() {
            Protocol::Grpc => explained
                .reason
                .push_str("; answered with status 7 of gRPC"),
            Protocol::Http | Protocol::Http2 => {
                explained
                    .reason
                    .push_str("; answered with 403, or status 7 of gRPC");
            }
            // The handshake refuses it, before anybody knows what would be spoken.
            Protocol::Unspecified | Protocol::Tcp | Protocol::Tls | Protocol::Detect => {}
        }
    }
    explained.allowed = decision.allowed;
    explained.shadow_denied = decision.shadow_denied;
    explained.origin = decision.why.map(|why| why.origin);
    let includes = |callers: &&CallerTimeouts| {
        let mut matches = callers.matches.iter();
        matches.any(|entry| permission::matches(entry, caller))
    };
    let of_caller = inbound.caller_timeouts.iter().find(includes);
    let of_caller = of_caller.and_then(|callers| callers.timeouts.as_ref());
    if let Some(timeouts) = of_caller.or(inbound.timeouts.as_ref()) {
        explained.settings.extend(describe::timeouts(timeouts));
    }
    explained.settings.extend(describe::inbound_tls(inbound));
    explained.settings.extend(found.note);
}
