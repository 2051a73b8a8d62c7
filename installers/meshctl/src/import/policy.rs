//! Policies of Kuma 2 with `targetRef`: `from` to `rules`, selections by tags to selections by labels, collectors of
//! OpenTelemetry to resources of their own.

use serde_json::{Map, Value, json};

use super::{
    document::Document,
    facts::Facts,
    fields::{Fields, texts},
    report::Notes,
    target::{self, Callers},
};

/// The kinds; permissions are not among them.
pub(super) const KINDS: [&str; 14] = [
    "MeshAccessLog",
    "MeshCircuitBreaker",
    "MeshFaultInjection",
    "MeshHTTPRoute",
    "MeshHealthCheck",
    "MeshLoadBalancingStrategy",
    "MeshMetric",
    "MeshPassthrough",
    "MeshRateLimit",
    "MeshRetry",
    "MeshTCPRoute",
    "MeshTLS",
    "MeshTimeout",
    "MeshTrace",
];

/// A policy, and the resources that it needs beside it.
pub(super) fn convert(document: &Document, facts: &Facts, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    let mut content = Map::new();
    let mut made = Vec::new();
    let selected = fields.take("targetRef");
    let had = selected.is_some();
    let Some(target) = target::top(selected, "targetRef", notes) else {
        notes.lost("", "the policy is left out");
        return Vec::new();
    };
    match target.value() {
        Some(value) => {
            content.insert("targetRef".to_owned(), value);
        }
        None if had => {
            content.insert("targetRef".to_owned(), json!({"kind": "Mesh"}));
        }
        None => {}
    }
    let mut rules = Vec::new();
    for mut entry in fields.take_list("from") {
        let path = entry.path().to_owned();
        let callers = Callers::by_target(entry.take("targetRef"));
        let mut rule = Map::new();
        if callers != Callers::Everyone {
            match callers.matches(document, facts, &path) {
                Ok(matches) => {
                    rule.insert("matches".to_owned(), matches.into());
                }
                Err(why) => {
                    notes.lost(&path, why);
                    continue;
                }
            }
        } else if rules.iter().any(|rule: &Value| !rule["matches"].is_null()) {
            notes.lost(
                &path,
                "it stood behind an entry for some callers, and so counted more; here what is said of some callers counts \
                 more than what is said of all",
            );
        }
        if let Some(default) = entry.take("default") {
            let path = entry.at("default");
            rule.insert(
                "default".to_owned(),
                inside(document, default, &path, &mut made, notes),
            );
        }
        notes.changed(&path, "from is rules here");
        entry.finish(notes);
        rules.push(Value::Object(rule));
    }
    if let Some(Value::Array(own)) = fields.take("rules") {
        rules.extend(own);
    }
    if !rules.is_empty() {
        content.insert("rules".to_owned(), rules.into());
    }
    let mut to = Vec::new();
    for mut entry in fields.take_list("to") {
        let path = entry.path().to_owned();
        let Some(target) =
            destination(entry.take("targetRef"), &format!("{path}.targetRef"), notes)
        else {
            notes.lost(&path, "the entry is left out");
            continue;
        };
        let mut out = Map::from_iter([("targetRef".to_owned(), target)]);
        if let Some(default) = entry.take("default") {
            let path = entry.at("default");
            out.insert(
                "default".to_owned(),
                inside(document, default, &path, &mut made, notes),
            );
        }
        let mut rest = Value::Object(entry.rest());
        if !backends(document, facts, &mut rest, &path, &mut made, notes) {
            notes.lost(
                &path,
                "the entry is left out, so that no traffic goes where it should not",
            );
            continue;
        }
        if let Value::Object(rest) = rest {
            out.extend(rest);
        }
        to.push(Value::Object(out));
    }
    if !to.is_empty() {
        content.insert("to".to_owned(), to.into());
    }
    if let Some(default) = fields.take("default") {
        content.insert(
            "default".to_owned(),
            inside(document, default, "default", &mut made, notes),
        );
    }
    // What is left is looked at by the kind's own rules.
    content.extend(fields.rest());
    if !["to", "rules", "default"]
        .iter()
        .any(|part| content.contains_key(*part))
    {
        notes.lost("", "nothing is left of it");
        return made;
    }
    made.push(document.with_content(Value::Object(content)));
    made
}

/// The `targetRef` of a `to` entry.
pub(super) fn destination(
    value: Option<Value>,
    path: &str,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let Some(value) = value else {
        return Some(json!({"kind": "Mesh"}));
    };
    let mut fields = Fields::of(value, path);
    let kind = fields
        .take_text("kind")
        .unwrap_or_else(|| "Mesh".to_owned());
    let name = fields.take_text("name");
    let namespace = fields.take_text("namespace");
    let tags = texts(fields.take("tags"));
    let mut out = fields.rest();
    if out.remove("proxyTypes").is_some() {
        notes.changed(path, "proxyTypes is left out: there are sidecars only");
    }
    match kind.as_str() {
        "Mesh" => return Some(json!({"kind": "Mesh"})),
        "MeshService" | "MeshServiceSubset" => {
            let mut labels = texts(out.remove("labels"));
            for (key, value) in tags {
                if key != "isthmus.io/zone" {
                    notes.lost(path, format!("a destination is a service, and not those of its instances with the tag {key}"));
                    return None;
                }
                labels.insert(key, value);
            }
            if let Some(name) = name {
                service(&name, &mut out, &mut labels, path, notes);
            }
            if let Some(namespace) = namespace {
                labels.insert("k8s.isthmus.io/namespace".to_owned(), namespace);
            }
            if !labels.is_empty() {
                out.insert("labels".to_owned(), json!(labels));
            }
            if kind != "MeshService" {
                notes.changed(path, "MeshServiceSubset is a MeshService with labels here");
            }
            out.insert("kind".to_owned(), "MeshService".into());
        }
        "MeshExternalService" | "MeshMultiZoneService" | "MeshHTTPRoute" => {
            out.insert("kind".to_owned(), kind.into());
            out.extend(name.map(|name| ("name".to_owned(), name.into())));
            if let Some(namespace) = namespace {
                out.insert(
                    "labels".to_owned(),
                    json!({"k8s.isthmus.io/namespace": namespace}),
                );
            }
        }
        other => {
            notes.lost(path, format!("{other} is no destination here"));
            return None;
        }
    }
    Some(Value::Object(out))
}

/// A service by its tag `kuma.io/service`: on Kubernetes that was `<name>_<namespace>_svc_<port>`.
fn service(
    tag: &str,
    out: &mut Map<String, Value>,
    labels: &mut std::collections::BTreeMap<String, String>,
    path: &str,
    notes: &mut Notes<'_>,
) {
    let mut parts = tag.split('_');
    let (name, namespace, word, port) = (parts.next(), parts.next(), parts.next(), parts.next());
    if let (Some(name), Some(namespace), Some("svc")) = (name, namespace, word) {
        labels.insert("isthmus.io/display-name".to_owned(), name.to_owned());
        labels.insert("k8s.isthmus.io/namespace".to_owned(), namespace.to_owned());
        if let Some(port) = port {
            out.entry("sectionName").or_insert_with(|| port.into());
        }
        notes.changed(
            path,
            format!("{tag} is the service {name} in namespace {namespace} here"),
        );
    } else {
        out.insert("name".to_owned(), tag.into());
    }
}

/// What is inside `default`, where forms changed.
fn inside(
    document: &Document,
    default: Value,
    path: &str,
    made: &mut Vec<Value>,
    notes: &mut Notes<'_>,
) -> Value {
    let mut default = default;
    if let Some(backends) = default.get_mut("backends").and_then(Value::as_array_mut) {
        for (index, backend) in backends.iter_mut().enumerate() {
            collector(
                document,
                backend,
                &format!("{path}.backends[{index}]"),
                made,
                notes,
            );
        }
        let before = backends.len();
        backends.retain(|backend| backend["type"] != "Datadog");
        if backends.len() < before {
            notes.lost(
                &format!("{path}.backends"),
                "Datadog's own protocol is not spoken here; its agent takes OpenTelemetry",
            );
        }
    }
    if document.kind == "MeshLoadBalancingStrategy" {
        hash_policies(&mut default, path, notes);
    }
    default
}

/// A collector that is named by its address becomes a resource that is referred to.
fn collector(
    document: &Document,
    backend: &mut Value,
    path: &str,
    made: &mut Vec<Value>,
    notes: &mut Notes<'_>,
) {
    let Some(telemetry) = backend
        .get_mut("openTelemetry")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let Some(Value::String(endpoint)) = telemetry.remove("endpoint") else {
        return;
    };
    let (address, port) = match endpoint.rsplit_once(':') {
        Some((address, port)) if port.parse::<u16>().is_ok() => {
            (address, port.parse().unwrap_or(4317))
        }
        _ => (endpoint.as_str(), 4317_u16),
    };
    let name: String = format!("otel-{address}-{port}")
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_end_matches(['-', '.']).to_owned();
    // Its own name is a label that everything has.
    telemetry.insert(
        "backendRef".to_owned(),
        json!({"kind": "MeshOpenTelemetryBackend", "labels": {"isthmus.io/display-name": name}}),
    );
    let mut value = document.made(
        "MeshOpenTelemetryBackend",
        &name,
        json!({"endpoint": {"address": address, "port": port}, "protocol": "grpc"}),
    );
    if let Some(value) = value.as_object_mut() {
        value.remove("labels");
    }
    if !made.contains(&value) {
        made.push(value);
    }
    notes.changed(
        path,
        format!("the collector is the MeshOpenTelemetryBackend {name}"),
    );
}

/// Hash policies stood with the load balancer that uses them.
fn hash_policies(default: &mut Value, path: &str, notes: &mut Notes<'_>) {
    for balancer in ["ringHash", "maglev"] {
        let inner = default.pointer_mut(&format!("/loadBalancer/{balancer}"));
        let Some(policies) = inner
            .and_then(Value::as_object_mut)
            .and_then(|inner| inner.remove("hashPolicies"))
        else {
            continue;
        };
        if default["hashPolicies"].is_null() {
            default["hashPolicies"] = policies;
            notes.changed(
                &format!("{path}.loadBalancer.{balancer}.hashPolicies"),
                "stands beside the load balancer here",
            );
        } else {
            notes.lost(
                &format!("{path}.loadBalancer.{balancer}.hashPolicies"),
                "hash policies stand beside the load balancer already",
            );
        }
    }
}

/// Every `backendRefs` below `value`: subsets become services of their own, ports are filled in. False where one can not
/// be said.
fn backends(
    document: &Document,
    facts: &Facts,
    value: &mut Value,
    path: &str,
    made: &mut Vec<Value>,
    notes: &mut Notes<'_>,
) -> bool {
    match value {
        Value::Object(object) => object.iter_mut().all(|(key, value)| {
            let path = format!("{path}.{key}");
            match (key.as_str(), value) {
                ("backendRefs", Value::Array(items)) => {
                    items.iter_mut().enumerate().all(|(index, item)| {
                        backend(
                            document,
                            facts,
                            item,
                            &format!("{path}[{index}]"),
                            made,
                            notes,
                        )
                    })
                }
                ("backendRef", value) => backend(document, facts, value, &path, made, notes),
                (_, value) => backends(document, facts, value, &path, made, notes),
            }
        }),
        Value::Array(items) => items.iter_mut().enumerate().all(|(index, item)| {
            backends(
                document,
                facts,
                item,
                &format!("{path}[{index}]"),
                made,
                notes,
            )
        }),
        _ => true,
    }
}

/// One backend.
pub(super) fn backend(
    document: &Document,
    facts: &Facts,
    value: &mut Value,
    path: &str,
    made: &mut Vec<Value>,
    notes: &mut Notes<'_>,
) -> bool {
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if kind != "MeshService" && kind != "MeshServiceSubset" {
        return true;
    }
    let mut fields = Fields::of(value.take(), path);
    fields.take("kind");
    let name = fields.take_text("name").unwrap_or_default();
    let tags = texts(fields.take("tags"));
    let mut out = fields.rest();
    out.insert("kind".to_owned(), "MeshService".into());
    if out.contains_key("labels") && name.is_empty() {
        *value = Value::Object(out);
        return true;
    }
    let port = out
        .get("port")
        .and_then(Value::as_u64)
        .or_else(|| facts.port(&document.mesh, &name));
    let mut labels = texts(out.remove("labels"));
    let mut subset = tags.clone();
    if let Some(zone) = subset.remove("isthmus.io/zone") {
        labels.insert("isthmus.io/zone".to_owned(), zone);
    }
    let own = if subset.is_empty() {
        name.clone()
    } else {
        let words: Vec<_> = subset.values().map(|value| value.to_lowercase()).collect();
        format!("{name}-{}", words.join("-")).replace(['_', '.'], "-")
    };
    if name.contains('_') {
        service(&name, &mut out, &mut labels, path, notes);
        if !subset.is_empty() {
            notes.lost(
                path,
                "some instances of a service of Kubernetes can not be a destination here",
            );
            return false;
        }
        if let Some(section) = out
            .get("sectionName")
            .cloned()
            .filter(|_| !out.contains_key("port"))
        {
            out.insert("sectionName".to_owned(), section);
        }
    } else {
        let Some(port) = port else {
            notes.lost(
                path,
                format!("a backend names its port here, and the files leave open which one {name} has: give its dataplanes, too"),
            );
            return false;
        };
        out.insert("name".to_owned(), own.clone().into());
        if !out.contains_key("sectionName") {
            if !out.contains_key("port") {
                notes.changed(
                    path,
                    format!(
                        "a backend names its port here: {port}, as the dataplanes of {name} say"
                    ),
                );
            }
            out.insert("port".to_owned(), port.into());
        }
        if !subset.is_empty() {
            let mut selector = subset;
            selector.insert(target::SERVICE.to_owned(), name.clone());
            let content = json!({
                "selector": {"dataplaneLabels": {"matchLabels": selector}},
                "ports": [{"port": port, "targetPort": port}],
            });
            let mut service = document.made("MeshService", &own, content);
            if let Some(service) = service.as_object_mut() {
                service.remove("labels");
            }
            if !made.contains(&service) {
                made.push(service);
            }
            notes.changed(
                path,
                format!("those instances of {name} are the MeshService {own} here"),
            );
        }
    }
    if !labels.is_empty() {
        out.insert("labels".to_owned(), json!(labels));
    }
    *value = Value::Object(out);
    true
}
