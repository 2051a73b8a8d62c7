//! The compiler against files that people can read: `golden/<case>/` holds `input.yaml` (what administrators and this
//! zone's dataplanes wrote; this zone is `east`), `zone-<name>.yaml` (what another zone reports), `unreadable.json`
//! (resources as a newer global may send them, one a line) and `expected.txt`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p zone-cp --test golden` writes what is expected anew; look at the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_model::{Dataplane, Resource, Zone, ZoneIngress, api::Key};
use mesh_proto::{
    document::hex_sha256,
    features, http_match,
    names::{MeshName, ZoneName},
    proxy::{
        Document, HttpRule, HttpTimeouts, IdentityMatch, LeastRequest, LoadBalancing, Protocol,
        RouteBackend, SocketAddress, Timeouts, TlsMode, document::Body, identity_match::SpiffeId,
        load_balancing::Policy,
    },
};
use proptest::{prelude::*, sample::Index};
use zone_cp::{
    compiler,
    view::{MeshSources, MeshView},
};

/// What callers are told of one service: by version, the document and who is sent it.
type Told = BTreeMap<String, (Arc<Document>, Vec<String>)>;

struct Case {
    name: String,
    directory: PathBuf,
    resources: Vec<Arc<Resource>>,
    unreadable: Vec<(Key, Arc<[u8]>)>,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut directories: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    directories.retain(|path| path.is_dir());
    directories.sort();
    directories.into_iter().map(Case::read).collect()
}

impl Case {
    fn read(directory: PathBuf) -> Self {
        let name = directory
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let mut case = Self {
            name,
            resources: Vec::new(),
            unreadable: Vec::new(),
            directory,
        };
        let mut files: Vec<_> = fs::read_dir(&case.directory)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let owner = name
                .strip_prefix("zone-")
                .and_then(|n| n.strip_suffix(".yaml"))
                .unwrap_or_default();
            if name.ends_with(".yaml") {
                let resources = mesh_model::parse(&text, &name)
                    .unwrap_or_else(|v| panic!("{}: {v}", case.name));
                // The first of a file is the oldest.
                let resources = resources.into_iter().zip(1..);
                case.resources.extend(resources.map(|(mut resource, age)| {
                    resource.meta.zone = owner.to_owned();
                    resource.meta.created_revision = age;
                    Arc::new(resource)
                }));
            } else if name == "unreadable.json" {
                for line in text.lines().filter(|line| !line.is_empty()) {
                    let value: serde_json::Value = serde_json::from_str(line).unwrap();
                    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
                    let key = Key {
                        kind: field("type"),
                        mesh: field("mesh"),
                        zone: String::new(),
                        name: field("name"),
                    };
                    assert!(
                        Resource::from_json(line.as_bytes()).is_err(),
                        "{}: {line} can be read",
                        case.name
                    );
                    case.unreadable.push((key, line.as_bytes().into()));
                }
            }
        }
        case
    }

    fn meshes(&self) -> BTreeSet<MeshName> {
        self.resources
            .iter()
            .filter_map(|r| r.meta.mesh.parse().ok())
            .collect()
    }

    /// Everything that is compiled, as text, and the documents' bytes.
    fn compile(&self) -> (String, Vec<Document>) {
        let zone: ZoneName = "east".parse().unwrap();
        let closed_zones = self
            .resources
            .iter()
            .filter(|r| r.get::<Zone>().is_some_and(|zone| !zone.enabled))
            .map(|r| r.meta.name.clone())
            .collect();
        let mut text = String::new();
        let mut documents = Vec::new();
        let mut views = BTreeMap::new();
        for mesh in self.meshes() {
            let dataplanes = self
                .resources
                .iter()
                .filter(|r| r.meta.mesh == mesh.as_str() && r.get::<Dataplane>().is_some())
                .map(|r| (r.meta.name.clone(), r.clone()))
                .collect();
            // Every resource of every mesh goes in: what is not this mesh's must have no effect.
            let view = MeshView::new(MeshSources {
                mesh: &mesh,
                zone: &zone,
                resources: &self.resources,
                unreadable: &self.unreadable,
                dataplanes: &dataplanes,
                closed_zones: &closed_zones,
                own_anchors: &[format!("CA of {mesh} in east").into_bytes()],
            });
            let mut shared: BTreeMap<String, Told> = BTreeMap::new();
            for dataplane in dataplanes.values() {
                let features = features_of(&dataplane.meta.name);
                let compiled = compiler::compile(&view, dataplane, &BTreeSet::new(), &features);
                writeln!(text, "# mesh {mesh}, dataplane {}", dataplane.meta.name).unwrap();
                for (name, document) in &compiled.documents {
                    assert_eq!(document.version, mesh_proto::document::version_of(document));
                    if name == "proxy" {
                        render(&mut text, document);
                    } else {
                        // Callers may be told different things of one service.
                        let told = shared.entry(name.clone()).or_default();
                        let (_, to) = told
                            .entry(document.version.clone())
                            .or_insert_with(|| (document.clone(), Vec::new()));
                        to.push(dataplane.meta.name.clone());
                    }
                    documents.push(Document::clone(document));
                }
            }
            writeln!(text, "# mesh {mesh}, shared").unwrap();
            for told in shared.values() {
                let mut told: Vec<_> = told.values().collect();
                told.sort_by(|a, b| a.1.cmp(&b.1));
                for (document, to) in &told {
                    if told.len() > 1 {
                        writeln!(text, "as {} is told:", to.join(", ")).unwrap();
                    }
                    render(&mut text, document);
                }
            }
            views.insert(mesh, view);
        }
        for resource in self
            .resources
            .iter()
            .filter(|r| r.get::<ZoneIngress>().is_some())
        {
            let services = views.iter().map(|(mesh, view)| (mesh, &view.services));
            let document = compiler::ingress(&zone, resource, services);
            writeln!(text, "# ingress {}", resource.meta.name).unwrap();
            render(&mut text, &document);
            documents.push(document);
        }
        (text, documents)
    }
}

fn address(address: Option<&SocketAddress>) -> String {
    let address = address.expect("an address is always given");
    if address.host.contains(':') {
        format!("[{}]:{}", address.host, address.port)
    } else {
        format!("{}:{}", address.host, address.port)
    }
}

fn matches(text: &mut String, word: &str, entries: &[IdentityMatch]) {
    for entry in entries {
        let what = match entry.spiffe_id.as_ref().unwrap() {
            SpiffeId::Exact(id) => id.clone(),
            SpiffeId::Prefix(prefix) => format!("{prefix}*"),
            SpiffeId::Any(_) => "everyone".to_owned(),
        };
        writeln!(text, "    {word} {what} ({})", entry.origin).unwrap();
    }
}

/// What a policy says; what is built in goes without saying. `built_in` are the time-outs of requests, by request and stream.
fn timeouts(text: &mut String, indent: &str, built_in: (u32, u32), timeouts: Option<&Timeouts>) {
    let timeouts = timeouts.expect("time-outs are always given");
    for (name, ms, built_in, origin) in [
        (
            "connects",
            timeouts.connect_ms,
            5_000,
            &timeouts.connect_origin,
        ),
        ("idle", timeouts.idle_ms, 3_600_000, &timeouts.idle_origin),
    ] {
        if !origin.is_empty() {
            writeln!(text, "{indent}{name} within {ms} ms ({origin})").unwrap();
        } else {
            assert_eq!(ms, built_in);
        }
    }
    if let Some(http) = &timeouts.http {
        http_timeouts(text, indent, built_in, http);
    }
}

fn http_timeouts(text: &mut String, indent: &str, built_in: (u32, u32), http: &HttpTimeouts) {
    for (name, ms, built_in, origin) in [
        ("request", http.request_ms, built_in.0, &http.request_origin),
        (
            "stream idle",
            http.stream_idle_ms,
            built_in.1,
            &http.stream_idle_origin,
        ),
        ("stream", http.max_stream_ms, 0, &http.max_stream_origin),
        (
            "connection",
            http.max_connection_ms,
            0,
            &http.max_connection_origin,
        ),
        (
            "headers",
            http.request_headers_ms,
            0,
            &http.request_headers_origin,
        ),
    ] {
        if !origin.is_empty() {
            writeln!(text, "{indent}{name} within {ms} ms ({origin})").unwrap();
        } else {
            assert_eq!(ms, built_in, "{name}");
        }
    }
}

/// Of calls to services, and of calls that come in.
const OUT: (u32, u32) = (15_000, 1_800_000);
const IN: (u32, u32) = (0, 3_600_000);

fn backends(text: &mut String, indent: &str, backends: &[RouteBackend]) {
    for backend in backends {
        let RouteBackend {
            service_document,
            weight,
        } = backend;
        writeln!(text, "{indent}{weight} to {service_document}").unwrap();
    }
}

fn http_rule(text: &mut String, rule: &HttpRule) {
    let origin = match rule.origin.as_str() {
        "" => "built in",
        origin => origin,
    };
    let matches = match &rule.r#match {
        None => "every request".to_owned(),
        Some(matches) => {
            let mut words = vec![format!("{:?}", matches.path)];
            words.extend((!matches.method.is_empty()).then(|| matches.method.clone()));
            words.extend(
                matches
                    .headers
                    .iter()
                    .map(|h| format!("{} {:?}", h.name, h.value)),
            );
            words.extend(
                matches
                    .query
                    .iter()
                    .map(|q| format!("?{} {:?}", q.name, q.value)),
            );
            words.join(", ")
        }
    };
    writeln!(text, "  request by {origin}: {matches}").unwrap();
    for filter in &rule.filters {
        writeln!(text, "    {:?}", filter.filter.as_ref().expect("a filter")).unwrap();
    }
    if let Some(http) = &rule.timeouts {
        http_timeouts(text, "    ", OUT, http);
    }
    backends(text, "    ", &rule.backends);
}

fn render(text: &mut String, document: &Document) {
    writeln!(
        text,
        "{} needs {}",
        document.name,
        document.required_features.join(", ")
    )
    .unwrap();
    match document.body.as_ref().unwrap() {
        Body::Proxy(proxy) => {
            writeln!(
                text,
                "  is {:?}, workload {}, calls as {}",
                proxy.spiffe_id, proxy.workload, proxy.source_service
            )
            .unwrap();
            for inbound in &proxy.inbounds {
                let (listen, application) = (
                    address(inbound.listen.as_ref()),
                    address(inbound.application.as_ref()),
                );
                let permissive = match inbound.tls() {
                    TlsMode::Strict => "",
                    TlsMode::Permissive => ", permissive",
                    TlsMode::Unspecified => panic!("an inbound says how it is protected"),
                };
                let protocol = protocol(inbound.protocol());
                writeln!(
                    text,
                    "  inbound {} {listen} -> {application} {protocol}{permissive}, service {}",
                    inbound.name, inbound.service
                )
                .unwrap();
                for name in &inbound.server_names {
                    writeln!(text, "    answers to {name}").unwrap();
                }
                let permissions = inbound.permissions.as_ref().unwrap();
                matches(text, "deny", &permissions.deny);
                matches(text, "shadow deny", &permissions.allow_with_shadow_deny);
                matches(text, "allow", &permissions.allow);
                timeouts(text, "    ", IN, inbound.timeouts.as_ref());
                for callers in &inbound.caller_timeouts {
                    matches(text, "from", &callers.matches);
                    timeouts(text, "      ", IN, callers.timeouts.as_ref());
                }
                if let Some(p) = &inbound.probe {
                    writeln!(
                        text,
                        "    probe every {} ms for {} ms, {} down, {} up",
                        p.interval_ms, p.timeout_ms, p.unhealthy_threshold, p.healthy_threshold
                    )
                    .unwrap();
                }
            }
            for outbound in &proxy.outbounds {
                writeln!(
                    text,
                    "  outbound {} -> {}",
                    address(outbound.listen.as_ref()),
                    outbound.service_document
                )
                .unwrap();
            }
        }
        Body::Service(service) => {
            writeln!(
                text,
                "  {} of {}, port {}, {}",
                service.name,
                service.mesh,
                service.port,
                protocol(service.protocol())
            )
            .unwrap();
            timeouts(text, "  ", OUT, service.timeouts.as_ref());
            if let Some(balancing) = &service.load_balancing {
                let LoadBalancing {
                    policy,
                    slow_start_ms,
                    origin,
                } = balancing;
                let policy = policy.as_ref().expect("a policy");
                if origin.is_empty() {
                    assert_eq!(*policy, Policy::LeastRequest(LeastRequest { choices: 2 }));
                    assert_eq!(*slow_start_ms, 10_000);
                } else {
                    writeln!(
                        text,
                        "  spread by {policy:?}, slow start {slow_start_ms} ms ({origin})"
                    )
                    .unwrap();
                }
            }
            if let Some(route) = &service.tcp_route {
                writeln!(text, "  goes, by {}:", route.origin).unwrap();
                backends(text, "    ", &route.backends);
            }
            if let Some(routes) = &service.http_routes {
                http_match::Compiled::new(routes).expect("rules that can be obeyed");
                for rule in &routes.rules {
                    http_rule(text, rule);
                }
            }
            for zone in &service.zones {
                writeln!(text, "  zone {} by {}", zone.zone, zone.server_name).unwrap();
                for id in &zone.identities {
                    writeln!(text, "    must be {id}").unwrap();
                }
            }
        }
        Body::Trust(trust) => {
            for domain in &trust.domains {
                let anchors: Vec<_> = domain
                    .anchors
                    .iter()
                    .map(|der| match std::str::from_utf8(der) {
                        Ok(own) => own.to_owned(),
                        Err(_) => format!("sha256 {}", &hex_sha256(der)[..12]),
                    })
                    .collect();
                writeln!(text, "  {}: {}", domain.name, anchors.join(", ")).unwrap();
            }
        }
        Body::Ingress(ingress) => {
            writeln!(text, "  listens {}", address(ingress.listen.as_ref())).unwrap();
            for route in &ingress.routes {
                writeln!(
                    text,
                    "  {} -> {} ({} of {})",
                    route.server_name, route.endpoints, route.service, route.mesh
                )
                .unwrap();
            }
        }
    }
}

/// What a dataplane can do: one whose name begins with `old-` nothing that came later.
fn features_of(dataplane: &str) -> Vec<String> {
    if dataplane.starts_with("old-") {
        return Vec::new();
    }
    features::DATAPLANE
        .iter()
        .map(|f| (*f).to_owned())
        .collect()
}

fn protocol(protocol: Protocol) -> String {
    protocol
        .as_str_name()
        .trim_start_matches("PROTOCOL_")
        .to_lowercase()
}

#[test]
fn every_case_compiles_to_what_is_expected() {
    let cases = cases();
    assert!(cases.len() >= 15, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let (text, _) = case.compile();
        let expected = case.directory.join("expected.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{}: compiles to\n{text}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_of_one_mesh_never_appear_in_documents_of_another() {
    let case = cases()
        .into_iter()
        .find(|case| case.name == "same-service-name-in-two-meshes")
        .unwrap();
    let (text, _) = case.compile();
    for part in text.split("# mesh ").skip(1) {
        let (own, foreign) = if part.starts_with("pay,") {
            ("pay", "ana")
        } else {
            ("ana", "pay")
        };
        let part = part.split("# ingress").next().unwrap();
        assert!(part.contains(&format!(".{own}.")) || part.contains(&format!("//{own}.")));
        assert!(
            !part.contains(&format!(".{foreign}.")) && !part.contains(&format!("//{foreign}.")),
            "{part}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_order_in_which_resources_come_does_not_matter(swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 0..30)) {
        for mut case in cases() {
            let (_, before) = case.compile();
            for (a, b) in &swaps {
                let count = case.resources.len();
                case.resources.swap(a.index(count), b.index(count));
            }
            case.unreadable.reverse();
            let (_, mut after) = case.compile();
            // Only the order of ingresses in this test's own output follows the input.
            let mut before = before;
            before.sort_by(|a, b| a.version.cmp(&b.version));
            after.sort_by(|a, b| a.version.cmp(&b.version));
            prop_assert_eq!(before, after, "{}", case.name);
        }
    }
}
