//! What a `Mesh` of Kuma 2 said besides its name: mutual TLS, routing, metrics, logs, traces, what leaves the mesh. Here
//! most of it is a resource of its own. And secrets.

use serde_json::{Map, Value, json};

use super::{document::Document, facts::Facts, fields::Fields, report::Notes};

/// A mesh, and the resources that say what it said.
pub(super) fn convert(document: &Document, facts: &Facts, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    let mut own = Map::new();
    let mut made = Vec::new();
    let mesh = document.name.as_str();
    if let Some(zones) = fields.take("zones") {
        own.insert("zones".to_owned(), zones);
    }
    if let Some(Value::Array(names)) = fields.take("skipCreatingInitialPolicies") {
        let (known, others): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| name == "*" || name == "MeshIdentity");
        if !others.is_empty() {
            notes.changed(
                "skipCreatingInitialPolicies",
                "only a MeshIdentity is made with a mesh here; other names are left out",
            );
        }
        if !known.is_empty() {
            own.insert("skipCreatingInitialPolicies".to_owned(), known.into());
        }
    }
    match fields.take_fields("mtls") {
        Some(mtls) => made.extend(mutual_tls(mesh, mtls, notes)),
        None => notes.changed(
            "",
            "had no mutual TLS; here a mesh always has, and whoever is not permitted may not call",
        ),
    }
    if let Some(mut networking) = fields.take_fields("networking") {
        if let Some(mut outbound) = networking.take_fields("outbound") {
            if let Some(passthrough) = outbound.take("passthrough") {
                let mode = if passthrough == false { "None" } else { "All" };
                notes.changed(&outbound.at("passthrough"), "is a MeshPassthrough");
                made.push(beside(
                    mesh,
                    "MeshPassthrough",
                    "passthrough",
                    json!({"default": {"passthroughMode": mode}}),
                ));
            }
            outbound.finish(notes);
        }
        networking.finish(notes);
    }
    if let Some(routing) = fields.take_fields("routing") {
        made.extend(locality(mesh, routing, notes));
    }
    if let Some(metrics) = fields.take_fields("metrics") {
        made.extend(prometheus(mesh, metrics, notes));
    }
    if let Some(tracing) = fields.take("tracing") {
        let used = facts.is_traced(mesh);
        notes.changed(
            "tracing",
            unused("tracing", used, "TrafficTrace", "MeshTrace"),
        );
        if !used && Fields::of(tracing, "tracing").take("backends").is_some() {
            notes.lost(
                "tracing.backends",
                "no TrafficTrace that was read uses them",
            );
        }
    }
    if fields.take("logging").is_some() {
        notes.changed(
            "logging",
            "is said by the MeshAccessLogs that the TrafficLogs become",
        );
    }
    if let Some(mut constraints) = fields.take_fields("constraints") {
        if constraints.take("dataplaneProxy").is_some() {
            notes.lost(
                "constraints.dataplaneProxy",
                "what may join a mesh is said by the tokens that are made for it: `meshctl token create dataplane --label …`",
            );
        }
        constraints.finish(notes);
    }
    if fields.take("meshServices").is_some() {
        notes.changed(
            "meshServices",
            "is left out: every service is a MeshService",
        );
    }
    fields.finish(notes);
    let mut all = vec![document.with_content(Value::Object(own))];
    all.extend(made);
    all
}

fn unused(what: &str, used: bool, old: &str, new: &str) -> String {
    match used {
        true => format!("is said by the {new}s that the {old}s become"),
        false => format!("is left out: {what} needs a {old} to do anything"),
    }
}

/// A resource in the mesh that a `Mesh` makes.
fn beside(mesh: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"type": kind, "mesh": mesh, "name": name, "spec": spec})
}

fn mutual_tls(mesh: &str, mut mtls: Fields, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut made = Vec::new();
    let enabled = mtls
        .take_text("enabledBackend")
        .filter(|name| !name.is_empty());
    if enabled.is_none() {
        notes.changed(
            &mtls.at("enabledBackend"),
            "named no backend, so that there was no mutual TLS; here a mesh always has, and whoever is not permitted may not call",
        );
    }
    if mtls.take("skipValidation").is_some() {
        notes.changed(
            &mtls.at("skipValidation"),
            "is left out: there is no CA from outside to be validated",
        );
    }
    for mut backend in mtls.take_list("backends") {
        let path = backend.path().to_owned();
        let name = backend.take_text("name");
        let form = backend.take_text("type").unwrap_or_default();
        if name != enabled {
            notes.lost(
                &path,
                "was not the enabled backend; one CA a zone and mesh is all there is here",
            );
            continue;
        }
        let mode = backend.take_text("mode");
        if mode.as_deref() == Some("PERMISSIVE") {
            notes.changed(
                &backend.at("mode"),
                "is a MeshTLS: calls without TLS are let in as before",
            );
            let rules = json!([{"default": {"mode": "Permissive"}}]);
            made.push(beside(
                mesh,
                "MeshTLS",
                "permissive",
                json!({"rules": rules}),
            ));
        }
        backend.take("rootChain");
        let expiry = backend.take_fields("dpCert").and_then(|mut cert| {
            if cert.take("requestTimeout").is_some() {
                notes.changed(
                    &cert.at("requestTimeout"),
                    "is left out: a zone's own CA is asked",
                );
            }
            let mut rotation = cert.take_fields("rotation")?;
            let expiry = rotation.take("expiration");
            rotation.finish(notes);
            cert.finish(notes);
            expiry
        });
        let conf = backend.take_fields("conf");
        match form.as_str() {
            "builtin" => {
                let mut conf = conf.unwrap_or_else(|| Fields::of(Value::Null, ""));
                if conf.take("caCert").is_some() {
                    notes.lost(&conf.at("caCert"), "each zone makes its own CA, of a form and life of its own");
                }
                conf.finish(notes);
                notes.changed(&path, "is the MeshIdentity default: each zone makes its own CA, so that certificates are new");
            }
            "provided" => notes.lost(
                &backend.at("conf"),
                "a CA from outside is not taken: each zone makes its own. Where something that stays behind must still be \
                 let in, write its anchors as a MeshTrust",
            ),
            other => notes.lost(&path, format!("{other} issues no certificates here: each zone makes its own CA")),
        }
        backend.finish(notes);
        let mut provider = json!({"type": "Bundled"});
        if let Some(expiry) = expiry {
            provider["bundled"] = json!({"certificateParameters": {"expiry": expiry}});
        }
        let selector = json!({"dataplane": {"matchLabels": {}}});
        made.push(identity(mesh, selector, provider, &path, notes));
    }
    mtls.finish(notes);
    made
}

/// The identity that is made with a mesh, with the life of certificates that was wanted where it can be had.
fn identity(
    mesh: &str,
    selector: Value,
    mut provider: Value,
    path: &str,
    notes: &mut Notes<'_>,
) -> Value {
    let made = |provider: &Value| {
        beside(
            mesh,
            "MeshIdentity",
            "default",
            json!({"selector": selector, "provider": provider}),
        )
    };
    if let Err(violations) = mesh_model::parse_value(&made(&provider), "") {
        let why = violations
            .0
            .first()
            .map_or_else(String::new, |violation| violation.message.clone());
        notes.lost(
            &format!("{path}.dpCert.rotation.expiration"),
            format!("the built-in 24h is taken: {why}"),
        );
        provider = json!({"type": "Bundled"});
    }
    made(&provider)
}

fn locality(mesh: &str, mut routing: Fields, notes: &mut Notes<'_>) -> Option<Value> {
    let mut made = None;
    match routing.take("localityAwareLoadBalancing") {
        Some(Value::Bool(true)) => {
            notes.changed(
                &routing.at("localityAwareLoadBalancing"),
                "is left out: a zone's own endpoints come first anyway",
            );
        }
        Some(_) => {
            notes.changed(
                &routing.at("localityAwareLoadBalancing"),
                "is a MeshLoadBalancingStrategy",
            );
            let to = json!([{"targetRef": {"kind": "Mesh"}, "default": {"localityAwareness": {"disabled": true}}}]);
            made = Some(beside(
                mesh,
                "MeshLoadBalancingStrategy",
                "all-zones-alike",
                json!({"to": to}),
            ));
        }
        None => {}
    }
    match routing.take("zoneEgress") {
        Some(Value::Bool(true)) => notes.lost(
            &routing.at("zoneEgress"),
            "traffic to other zones goes to their ingresses directly; run a ZoneEgress for what leaves the mesh",
        ),
        Some(_) => notes.changed(&routing.at("zoneEgress"), "is left out: it said nothing"),
        None => {}
    }
    if let Some(forbidden) = routing.take("defaultForbidMeshExternalServiceAccess") {
        let path = routing.at("defaultForbidMeshExternalServiceAccess");
        if forbidden == true {
            notes.lost(
                &path,
                "who may call a MeshExternalService can not be narrowed here",
            );
        } else {
            notes.changed(&path, "is left out: it said nothing");
        }
    }
    routing.finish(notes);
    made
}

fn prometheus(mesh: &str, mut metrics: Fields, notes: &mut Notes<'_>) -> Option<Value> {
    let enabled = metrics
        .take_text("enabledBackend")
        .filter(|name| !name.is_empty());
    let mut made = None;
    for mut backend in metrics.take_list("backends") {
        let path = backend.path().to_owned();
        let name = backend.take_text("name");
        let form = backend.take_text("type");
        if name != enabled {
            notes.lost(&path, "was not the enabled backend");
            continue;
        }
        if form.as_deref() != Some("prometheus") {
            notes.lost(&path, "only prometheus is known");
            continue;
        }
        let mut default = Map::new();
        let mut out = Map::new();
        if let Some(mut conf) = backend.take_fields("conf") {
            conf.rename(&mut out, &[("port", "port"), ("path", "path")]);
            let mode = conf.take_fields("tls").and_then(|mut tls| {
                let mode = tls.take_text("mode");
                tls.finish(notes);
                mode
            });
            let mode = match (mode.as_deref(), conf.take("skipMTLS")) {
                (Some("disabled"), _) | (None, Some(Value::Bool(true))) => Some("Disabled"),
                (Some("providedTLS"), _) => Some("ProvidedTLS"),
                (Some("activeMTLSBackend"), _) | (None, Some(Value::Bool(false))) => {
                    Some("ActiveMTLSBackend")
                }
                _ => None,
            };
            out.extend(mode.map(|mode| ("tls".to_owned(), json!({"mode": mode}))));
            if conf.take("tags").is_some() {
                notes.lost(
                    &conf.at("tags"),
                    "metrics have no tags of their own; select proxies by a targetRef",
                );
            }
            let mut applications = Vec::new();
            for mut from in conf.take_list("aggregate") {
                let mut application = Map::new();
                from.rename(
                    &mut application,
                    &[
                        ("name", "name"),
                        ("path", "path"),
                        ("port", "port"),
                        ("address", "address"),
                    ],
                );
                let enabled = from.take("enabled");
                from.finish(notes);
                if enabled != Some(Value::Bool(false)) {
                    applications.push(Value::Object(application));
                }
            }
            if !applications.is_empty() {
                default.insert("applications".to_owned(), applications.into());
            }
            conf.finish(notes);
        }
        backend.finish(notes);
        default.insert(
            "backends".to_owned(),
            json!([{"type": "Prometheus", "prometheus": out}]),
        );
        notes.changed(&path, "is a MeshMetric");
        made = Some(beside(
            mesh,
            "MeshMetric",
            "metrics",
            json!({"default": default}),
        ));
    }
    metrics.finish(notes);
    made
}

/// A log backend of a mesh as one of a MeshAccessLog.
pub(super) fn log_backend(backend: &Value, path: &str, notes: &mut Notes<'_>) -> Option<Value> {
    let mut out = match backend["type"].as_str() {
        Some("file") => json!({"type": "File", "file": {"path": backend["conf"]["path"]}}),
        Some("tcp") => json!({"type": "Tcp", "tcp": {"address": backend["conf"]["address"]}}),
        other => {
            notes.lost(
                path,
                format!("{} is no log backend here", other.unwrap_or("nothing")),
            );
            return None;
        }
    };
    if let Some(format) = backend["format"].as_str() {
        let inner = if out["type"] == "File" { "file" } else { "tcp" };
        out[inner]["format"] = json!({"type": "Plain", "plain": format});
    }
    Some(out)
}

/// A trace backend of a mesh as the content of a MeshTrace.
pub(super) fn tracing(backend: &Value, path: &str, notes: &mut Notes<'_>) -> Option<Value> {
    if backend["type"] != "zipkin" {
        notes.lost(
            path,
            format!(
                "{} is no trace backend here; its agent takes OpenTelemetry",
                backend["type"]
            ),
        );
        return None;
    }
    let mut conf = Fields::of(backend["conf"].clone(), path);
    let mut zipkin = Map::new();
    let names = ["url", "traceId128bit", "apiVersion", "sharedSpanContext"];
    conf.rename(&mut zipkin, &names.map(|name| (name, name)));
    conf.finish(notes);
    let mut default = json!({"backends": [{"type": "Zipkin", "zipkin": zipkin}]});
    if let Some(sampling) = backend["sampling"].as_f64() {
        // Percentages are integers, or decimals in quotes.
        default["sampling"] = match sampling.fract() == 0.0 {
            true => json!({"overall": backend["sampling"].as_u64().unwrap_or(100)}),
            false => json!({"overall": sampling.to_string()}),
        };
    }
    Some(default)
}

/// A secret of a person; those of the control plane itself stay behind.
pub(super) fn secret(document: &Document, notes: &mut Notes<'_>) -> Vec<Value> {
    let name = document.name.as_str();
    let of_control_plane = [
        "dataplane-token-signing-key",
        "zone-token-signing-key",
        "user-token-signing-key",
        "admin-user-token",
        "zone-token-signing-public-key",
        "envoy-admin-ca",
        "inter-cp-ca",
    ]
    .iter()
    .any(|key| name.contains(key))
        || name.contains(".ca-builtin-");
    if of_control_plane {
        notes.changed(
            "",
            "is left out: it belongs to the control plane, and this one has its own",
        );
        return Vec::new();
    }
    vec![document.with_content(document.content.clone())]
}
