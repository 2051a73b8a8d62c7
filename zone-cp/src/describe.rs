//! What documents say, in words: the same words wherever people look at them.
//!
//! Every value that a policy decided comes with its origin, so that "why does this proxy do this" has an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_model::{api::SettingChange, duration, permission};
use mesh_proto::{
    document::{self, hex_sha256},
    proxy::{
        Document, IdentityMatch, Inbound, Permissions, Protocol, Proxy, Service, SocketAddress,
        TcpRoute, Timeouts, TlsMode, Trust, document::Body,
    },
};

pub mod http;

use crate::{
    endpoints::{Address, Set},
    tracker::Documents,
};

/// `deny|allowWithShadowDeny|allow <match> (<policy>#<rule>)`, in the order in which they are looked at.
#[must_use]
pub fn permissions(permissions: &Permissions) -> Vec<String> {
    let lists = [
        ("deny", &permissions.deny),
        ("allowWithShadowDeny", &permissions.allow_with_shadow_deny),
        ("allow", &permissions.allow),
    ];
    lists
        .into_iter()
        .flat_map(|(word, list)| list.iter().map(move |entry| permission(word, entry)))
        .collect()
}

fn permission(word: &str, entry: &IdentityMatch) -> String {
    format!("{word} {} ({})", permission::shown(entry), entry.origin)
}

/// `connectionTimeout 5s (built in)` and so on; for requests `http.requestTimeout 15s (built in)`.
#[must_use]
pub fn timeouts(timeouts: &Timeouts) -> Vec<String> {
    let mut lines = vec![
        format!("connectionTimeout {}", connect(timeouts)),
        format!("idleTimeout {}", idle(timeouts)),
    ];
    let of_requests = timeouts.http.as_ref().map(http::timeouts);
    let of_requests = of_requests.into_iter().flatten();
    lines.extend(of_requests.map(|(name, value)| format!("http.{name} {value}")));
    lines
}

fn connect(timeouts: &Timeouts) -> String {
    with_origin(&milliseconds(timeouts.connect_ms), &timeouts.connect_origin)
}

fn idle(timeouts: &Timeouts) -> String {
    with_origin(
        &milliseconds_or_never(timeouts.idle_ms),
        &timeouts.idle_origin,
    )
}

fn milliseconds_or_never(ms: u32) -> String {
    match ms {
        0 => "never".to_owned(),
        ms => milliseconds(ms),
    }
}

fn milliseconds(ms: u32) -> String {
    duration::Duration(Duration::from_millis(ms.into())).to_string()
}

fn with_origin(value: &str, origin: &str) -> String {
    let origin = if origin.is_empty() {
        "built in"
    } else {
        origin
    };
    format!("{value} ({origin})")
}

/// `90 store:80, 10 store-v2:80 (MeshTCPRoute/…)`.
#[must_use]
pub fn route(route: &TcpRoute) -> String {
    with_origin(&http::backends(&route.backends), &route.origin)
}

/// Where traffic to the service of `document` really goes, in the order in which rules are tried. Nothing: to the service.
#[must_use]
pub fn routes(document: &str, service: &Service) -> Vec<String> {
    match (&service.http_routes, &service.tcp_route) {
        (Some(routes), _) => {
            let bytes =
                (service.protocol() == Protocol::Detect).then(|| not_http(document, service));
            routes.rules.iter().map(http::rule).chain(bytes).collect()
        }
        (None, Some(tcp)) => vec![route(tcp)],
        (None, None) => Vec::new(),
    }
}

/// What no rule for requests is about, at a port that declares nothing.
pub const NOT_HTTP: &str = "what is not HTTP";

fn not_http(document: &str, service: &Service) -> String {
    let to = match &service.tcp_route {
        Some(tcp) => route(tcp),
        None => with_origin(&format!("1 {}", service_name(document)), ""),
    };
    format!("{NOT_HTTP}: to {to}")
}

/// Time-outs and the spreading over endpoints, with their origins.
#[must_use]
pub fn service_settings(service: &Service) -> Vec<String> {
    let timeouts = service.timeouts.iter().flat_map(timeouts);
    let balancing = service.load_balancing.iter().map(http::load_balancing);
    let balancing = balancing.map(|text| format!("loadBalancer {text}"));
    timeouts.chain(balancing).collect()
}

/// A service document's name as people say it: `store:80`, or `store.west:80` where only that zone is meant.
#[must_use]
pub fn service_name(document: &str) -> &str {
    document.strip_prefix("service/").unwrap_or(document)
}

/// `tcp`, `http`, …; `detected` where nothing is declared.
#[must_use]
pub fn protocol(protocol: Protocol) -> String {
    if protocol == Protocol::Detect {
        return "detected".to_owned();
    }
    let name = protocol.as_str_name();
    name.trim_start_matches("PROTOCOL_").to_lowercase()
}

/// What is to be said of a port whose protocol is detected.
pub const DETECTED: &str = "protocol detected: what the client says first shows whether a connection is HTTP; where the server speaks first, or it is anything else, it is TCP";

/// The same, of a port as it is written.
#[must_use]
pub fn declared(declared: Option<mesh_model::dataplane::Protocol>) -> String {
    protocol(declared.map_or(Protocol::Detect, Into::into))
}

/// What is to be said of an inbound that takes more than mesh TLS.
#[must_use]
pub fn inbound_tls(inbound: &Inbound) -> Option<String> {
    (inbound.tls() == TlsMode::Permissive).then(|| {
        "tls permissive: plaintext and TLS of applications are let in, without asking the permissions".to_owned()
    })
}

/// `strict`, `permissive`.
#[must_use]
pub fn tls(mode: TlsMode) -> String {
    let name = mode.as_str_name();
    name.trim_start_matches("TLS_MODE_").to_lowercase()
}

/// `host:port`.
#[must_use]
pub fn address(address: Option<&SocketAddress>) -> String {
    address.map_or_else(String::new, |a| {
        Address {
            host: a.host.clone(),
            port: u16::try_from(a.port).unwrap_or(0),
        }
        .to_string()
    })
}

/// `host:port (zone[, through ingress])` of each.
#[must_use]
pub fn endpoints(set: &Set) -> Vec<String> {
    set.iter()
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

/// The effective settings in which two sets of documents differ, at most `max` of them.
#[must_use]
pub fn changes(before: &Documents, after: &Documents, max: usize) -> Vec<SettingChange> {
    let mut changes = Vec::new();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old.map(|d| &d.version) == new.map(|d| &d.version) {
            continue;
        }
        let found = changes.len();
        let (old, new) = (
            old.map(|d| settings(d)).unwrap_or_default(),
            new.map(|d| settings(d)).unwrap_or_default(),
        );
        let keys: BTreeSet<&Key> = old.0.keys().chain(new.0.keys()).collect();
        changes.extend(
            keys.into_iter()
                .filter(|key| old.0.get(*key) != new.0.get(*key))
                .map(|key| SettingChange {
                    of: key.of.clone(),
                    setting: key.setting.clone(),
                    before: old.0.get(key).cloned(),
                    after: new.0.get(key).cloned(),
                }),
        );
        if changes.len() == found {
            // What has no words of its own: the order of what stands in no order, for one.
            changes.push(SettingChange {
                of: format!("document {name}"),
                setting: "version".to_owned(),
                before: before.get(name).map(|d| d.version.clone()),
                after: after.get(name).map(|d| d.version.clone()),
            });
        }
        if changes.len() >= max {
            changes.truncate(max);
            break;
        }
    }
    changes
}

/// Where a setting stands. Settings that are lists have one for each item, so that a difference names the item alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    of: String,
    setting: String,
    item: String,
}

#[derive(Debug, Default)]
struct Settings(BTreeMap<Key, String>);

impl Settings {
    fn set(&mut self, of: &str, setting: &str, value: impl Into<String>) {
        let key = Key {
            of: of.to_owned(),
            setting: setting.to_owned(),
            item: String::new(),
        };
        self.0.insert(key, value.into());
    }

    fn add(&mut self, of: &str, setting: &str, items: impl IntoIterator<Item = String>) {
        for item in items {
            let key = Key {
                of: of.to_owned(),
                setting: setting.to_owned(),
                item: item.clone(),
            };
            self.0.insert(key, item);
        }
    }
}

fn settings(document: &Document) -> Settings {
    let mut settings = Settings::default();
    match &document.body {
        Some(Body::Proxy(proxy)) => of_proxy(proxy, &mut settings),
        Some(Body::Service(service)) => of_service(&document.name, service, &mut settings),
        Some(Body::Trust(trust)) => of_trust(trust, &mut settings),
        Some(Body::Ingress(_)) | None => {}
    }
    settings
}

fn of_proxy(proxy: &Proxy, settings: &mut Settings) {
    settings.set("identity", "spiffeId", &proxy.spiffe_id);
    settings.set("identity", "workload", &proxy.workload);
    settings.set("identity", "callsAs", &proxy.source_service);
    for inbound in &proxy.inbounds {
        of_inbound(inbound, settings);
    }
    for outbound in &proxy.outbounds {
        let of = format!("outbound {}", address(outbound.listen.as_ref()));
        settings.set(&of, "service", service_name(&outbound.service_document));
    }
}

fn of_inbound(inbound: &Inbound, settings: &mut Settings) {
    let of = format!("inbound {}", inbound.name);
    settings.set(&of, "listen", address(inbound.listen.as_ref()));
    settings.set(&of, "application", address(inbound.application.as_ref()));
    settings.set(&of, "protocol", protocol(inbound.protocol()));
    settings.set(&of, "tls", tls(inbound.tls()));
    settings.set(&of, "service", &inbound.service);
    settings.add(&of, "serverNames", inbound.server_names.iter().cloned());
    if let Some(entries) = &inbound.permissions {
        settings.add(&of, "permissions", permissions(entries));
    }
    if let Some(timeouts) = &inbound.timeouts {
        of_timeouts(&of, timeouts, settings);
    }
    for callers in &inbound.caller_timeouts {
        let shown: Vec<_> = callers.matches.iter().map(permission::shown).collect();
        let of = format!("{of} for {}", shown.join(", "));
        if let Some(timeouts) = &callers.timeouts {
            of_timeouts(&of, timeouts, settings);
        }
    }
    if let Some(probe) = &inbound.probe {
        let text = format!(
            "every {} for {}, {} down, {} up",
            milliseconds(probe.interval_ms),
            milliseconds(probe.timeout_ms),
            probe.unhealthy_threshold,
            probe.healthy_threshold
        );
        settings.set(&of, "probe", text);
    }
}

fn of_service(document: &str, service: &Service, settings: &mut Settings) {
    let of = format!("service {}", service_name(document));
    settings.set(&of, "protocol", protocol(service.protocol()));
    for zone in &service.zones {
        let name = format!("zones.{}", zone.zone);
        settings.set(&of, &name, &zone.server_name);
        let identities = format!("{name}.identities");
        settings.add(&of, &identities, zone.identities.iter().cloned());
    }
    if let Some(timeouts) = &service.timeouts {
        of_timeouts(&of, timeouts, settings);
    }
    if let Some(tcp) = &service.tcp_route {
        settings.set(&of, "route", route(tcp));
    }
    if let Some(routes) = &service.http_routes {
        settings.add(&of, "requests", routes.rules.iter().map(http::rule));
    }
    if let Some(balancing) = &service.load_balancing {
        settings.set(&of, "loadBalancing", http::load_balancing(balancing));
    }
}

fn of_timeouts(of: &str, timeouts: &Timeouts, settings: &mut Settings) {
    settings.set(of, "timeouts.connect", connect(timeouts));
    settings.set(of, "timeouts.idle", idle(timeouts));
    for (name, value) in timeouts.http.iter().flat_map(http::timeouts) {
        settings.set(of, &format!("timeouts.http.{name}"), value);
    }
}

fn of_trust(trust: &Trust, settings: &mut Settings) {
    for domain in &trust.domains {
        let of = format!("{} {}", document::TRUST, domain.name);
        let anchors = domain.anchors.iter();
        settings.add(
            &of,
            "anchors",
            anchors.map(|der| format!("sha256 {}", &hex_sha256(der)[..16])),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_proto::proxy::{RouteBackend, identity_match::SpiffeId};

    use super::*;

    fn documents(of: impl IntoIterator<Item = (&'static str, Body)>) -> Documents {
        let sealed = of.into_iter().map(|(name, body)| {
            let document = document::seal(name.to_owned(), vec![], body);
            (name.to_owned(), Arc::new(document))
        });
        sealed.collect()
    }

    fn lines(before: &Documents, after: &Documents) -> Vec<String> {
        let changes = changes(before, after, 100);
        let side = |side: Option<String>| side.unwrap_or_else(|| "-".into());
        let line = |c: SettingChange| {
            let (before, after) = (side(c.before), side(c.after));
            format!("{}: {}: {before} => {after}", c.of, c.setting)
        };
        changes.into_iter().map(line).collect()
    }

    fn service(service: Service) -> Documents {
        documents([("service/a:80", Body::Service(service))])
    }

    fn proxy(deny: &[&str], allow: &[&str]) -> Documents {
        let entries = |of: &[&str]| {
            let entry = |id: &&str| IdentityMatch {
                spiffe_id: Some(SpiffeId::Exact((*id).into())),
                origin: format!("{id}#0"),
            };
            of.iter().map(entry).collect()
        };
        let inbound = Inbound {
            name: "main".into(),
            permissions: Some(Permissions {
                deny: entries(deny),
                allow: entries(allow),
                ..Permissions::default()
            }),
            ..Inbound::default()
        };
        let body = Body::Proxy(Proxy {
            inbounds: vec![inbound],
            ..Proxy::default()
        });
        documents([("proxy", body)])
    }

    #[test]
    fn a_permission_that_comes_or_goes_is_named_alone() {
        let (before, after) = (proxy(&[], &["a", "b"]), proxy(&["c"], &["b"]));
        assert_eq!(
            lines(&before, &after),
            [
                "inbound main: permissions: allow a (a#0) => -",
                "inbound main: permissions: - => deny c (c#0)"
            ]
        );
    }

    #[test]
    fn what_has_no_words_is_a_difference_all_the_same() {
        let (before, after) = (proxy(&[], &["a", "b"]), proxy(&[], &["b", "a"]));
        let lines = lines(&before, &after);
        assert!(
            lines.len() == 1 && lines[0].starts_with("document proxy: version: "),
            "{lines:?}"
        );
    }

    #[test]
    fn a_timeout_is_shown_before_and_after_with_its_origin() {
        let timeouts = |connect_ms, origin: &str| {
            service(Service {
                timeouts: Some(Timeouts {
                    connect_ms,
                    idle_ms: 0,
                    connect_origin: origin.into(),
                    ..Timeouts::default()
                }),
                ..Service::default()
            })
        };
        assert_eq!(
            lines(
                &timeouts(5_000, ""),
                &timeouts(90_000, "MeshTimeout/x to[0]")
            ),
            ["service a:80: timeouts.connect: 5s (built in) => 1m30s (MeshTimeout/x to[0])"]
        );
    }

    #[test]
    fn a_route_that_comes_is_shown_with_its_backends() {
        let backend = |name: &str, weight| RouteBackend {
            service_document: name.into(),
            weight,
        };
        let routed = service(Service {
            tcp_route: Some(TcpRoute {
                backends: vec![backend("service/a:80", 9), backend("service/b.west:81", 1)],
                origin: "MeshTCPRoute/r to[0].rules[0]".into(),
            }),
            ..Service::default()
        });
        assert_eq!(
            lines(&service(Service::default()), &routed),
            ["service a:80: route: - => 9 a:80, 1 b.west:81 (MeshTCPRoute/r to[0].rules[0])"]
        );
    }

    #[test]
    fn no_more_than_asked_for_is_listed() {
        let after = proxy(&[], &["a", "b", "c", "d"]);
        assert_eq!(changes(&Documents::new(), &after, 3).len(), 3);
    }
}
