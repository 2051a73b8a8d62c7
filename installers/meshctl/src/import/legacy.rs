//! Policies with `sources` and `destinations`, to their successors. Of several for one connection only the most specific
//! counted, whole; their successors are merged field by field, which is told where it can make a difference.

use serde_json::{Map, Value, json};

use super::{
    document::Document,
    facts::Facts,
    fields::{Fields, texts},
    mesh, policy,
    report::Notes,
    target::{self, Callers, SERVICE, Target},
};

/// The kinds; TrafficPermission is not among them.
pub(super) const KINDS: [&str; 9] = [
    "CircuitBreaker",
    "FaultInjection",
    "HealthCheck",
    "RateLimit",
    "Retry",
    "Timeout",
    "TrafficLog",
    "TrafficRoute",
    "TrafficTrace",
];

/// What a policy says, in the form of here. `None`: it can not be said, which is noted.
type Conf = Option<Map<String, Value>>;

/// The successors of an old policy.
pub(super) fn convert(document: &Document, facts: &Facts, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    let made = match document.kind.as_str() {
        "TrafficTrace" => trace(document, facts, &mut fields, notes),
        "TrafficRoute" => route(document, facts, &mut fields, notes),
        "FaultInjection" => inbound(
            document,
            facts,
            &mut fields,
            "MeshFaultInjection",
            faults,
            notes,
        ),
        "RateLimit" => inbound(
            document,
            facts,
            &mut fields,
            "MeshRateLimit",
            rate_limit,
            notes,
        ),
        "TrafficLog" => {
            let log = |conf: Option<Fields>, notes: &mut Notes<'_>| {
                access_log(document, facts, conf, notes)
            };
            outbound(document, facts, &mut fields, "MeshAccessLog", log, notes)
        }
        "Timeout" => outbound(document, facts, &mut fields, "MeshTimeout", timeouts, notes),
        "Retry" => outbound(document, facts, &mut fields, "MeshRetry", retries, notes),
        "HealthCheck" => outbound(
            document,
            facts,
            &mut fields,
            "MeshHealthCheck",
            health_check,
            notes,
        ),
        _ => outbound(
            document,
            facts,
            &mut fields,
            "MeshCircuitBreaker",
            circuit_breaker,
            notes,
        ),
    };
    fields.finish(notes);
    made
}

/// For outgoing traffic: a policy for each selection of sources, an entry for each destination.
fn outbound(
    document: &Document,
    facts: &Facts,
    fields: &mut Fields,
    successor: &str,
    conf: impl FnOnce(Option<Fields>, &mut Notes<'_>) -> Conf,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let sources = sources(fields, notes);
    let destinations = destinations(document, facts, fields, notes);
    let Some(conf) = conf(fields.take_fields("conf"), notes) else {
        return Vec::new();
    };
    let to: Vec<_> = destinations
        .into_iter()
        .map(|destination| json!({"targetRef": destination, "default": conf}))
        .collect();
    if to.is_empty() || sources.is_empty() {
        notes.lost("", "nothing is left of it");
        return Vec::new();
    }
    successors(document, successor, sources, json!({"to": to}), notes)
}

fn successors(
    document: &Document,
    successor: &str,
    targets: Vec<Target>,
    content: Value,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    notes.changed(
        "",
        format!("is a {successor}; fields that it leaves open come from weaker policies now"),
    );
    let named = targets.into_iter().enumerate().map(|(index, target)| {
        let name = match index {
            0 => document.name.clone(),
            more => format!("{}-{}", document.name, more + 1),
        };
        let mut content = content.clone();
        if let Some(target) = target.value() {
            content["targetRef"] = target;
        }
        document.made(successor, &name, content)
    });
    named.collect()
}

/// Tags of a `match`. The protocol selects nothing here; what was bound to HTTP by it is about HTTP by itself.
fn tags_of(item: &mut Fields, notes: &mut Notes<'_>) -> std::collections::BTreeMap<String, String> {
    let path = item.at("match");
    let mut tags = texts(item.take("match"));
    let protocol = tags.remove("isthmus.io/protocol");
    if protocol.is_some_and(|protocol| protocol != "*") {
        notes.changed(&path, "the protocol is left out: it selects nothing here, and the policy is about HTTP by itself");
    }
    tags
}

fn sources(fields: &mut Fields, notes: &mut Notes<'_>) -> Vec<Target> {
    selections(fields, "sources", notes)
}

fn selections(fields: &mut Fields, field: &str, notes: &mut Notes<'_>) -> Vec<Target> {
    let mut targets = Vec::new();
    for mut source in fields.take_list(field) {
        let path = source.at("match");
        let tags = tags_of(&mut source, notes);
        targets.extend(target::by_tags(tags, &path, notes));
        source.finish(notes);
    }
    // Everyone includes everybody else.
    if let Some(all) = targets
        .iter()
        .find(|target| target.value().is_none())
        .cloned()
    {
        targets = vec![all];
    }
    targets
}

fn destinations(
    document: &Document,
    facts: &Facts,
    fields: &mut Fields,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let mut out = Vec::new();
    for mut item in fields.take_list("destinations") {
        let path = item.at("match");
        let tags = tags_of(&mut item, notes);
        item.finish(notes);
        out.extend(destination(document, facts, tags, &path, notes));
    }
    out
}

fn destination(
    document: &Document,
    facts: &Facts,
    mut tags: std::collections::BTreeMap<String, String>,
    path: &str,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let service = tags.remove(SERVICE).filter(|service| service != "*");
    if service.is_none() && tags.is_empty() {
        return Some(json!({"kind": "Mesh"}));
    }
    let Some(service) = service else {
        notes.lost(
            path,
            "a destination is a service here, and not whatever has some tag",
        );
        return None;
    };
    if facts.is_external(&document.mesh, &service) {
        return Some(json!({"kind": "MeshExternalService", "name": service}));
    }
    let value = match tags.is_empty() {
        true => json!({"kind": "MeshService", "name": service}),
        false => json!({"kind": "MeshServiceSubset", "name": service, "tags": tags}),
    };
    policy::destination(Some(value), path, notes)
}

/// For incoming traffic: a policy for each selection of destinations, a rule for all sources.
fn inbound(
    document: &Document,
    facts: &Facts,
    fields: &mut Fields,
    successor: &str,
    conf: fn(Option<Fields>, &mut Notes<'_>) -> Conf,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let mut matches = Vec::new();
    let mut everyone = false;
    for mut source in fields.take_list("sources") {
        let path = source.path().to_owned();
        let callers = Callers::by_tags(tags_of(&mut source, notes));
        source.finish(notes);
        everyone |= callers == Callers::Everyone;
        match callers.matches(document, facts, &path) {
            Ok(more) => matches.extend(more),
            Err(why) => notes.lost(&path, why),
        }
    }
    let targets = selections(fields, "destinations", notes);
    let Some(conf) = conf(fields.take_fields("conf"), notes) else {
        return Vec::new();
    };
    if targets.is_empty() || (matches.is_empty() && !everyone) {
        notes.lost("", "nothing is left of it");
        return Vec::new();
    }
    let mut rule = json!({"default": conf});
    if !everyone {
        rule["matches"] = matches.into();
    }
    successors(
        document,
        successor,
        targets,
        json!({"rules": [rule]}),
        notes,
    )
}

// === what each says ===

fn timeouts(conf: Option<Fields>, notes: &mut Notes<'_>) -> Conf {
    let mut conf = conf?;
    let mut out = Map::new();
    conf.rename(&mut out, &[("connectTimeout", "connectionTimeout")]);
    if let Some(mut tcp) = conf.take_fields("tcp") {
        tcp.rename(&mut out, &[("idleTimeout", "idleTimeout")]);
        tcp.finish(notes);
    }
    let mut http_out = Map::new();
    for part in ["http", "grpc"] {
        let Some(mut http) = conf.take_fields(part) else {
            continue;
        };
        let names = ["requestTimeout", "streamIdleTimeout", "maxStreamDuration"];
        for name in names {
            let Some(value) = http.take(name) else {
                continue;
            };
            if http_out.get(name).is_some_and(|other| *other != value) {
                notes.lost(
                    &http.at(name),
                    "is one value for HTTP and gRPC here, and HTTP's is another one",
                );
            } else {
                http_out.insert(name.to_owned(), value);
            }
        }
        if let Some(idle) = http.take("idleTimeout") {
            if out.get("idleTimeout").is_some_and(|other| *other != idle) {
                notes.lost(
                    &http.at("idleTimeout"),
                    "is one value for all connections here, and TCP's is another one",
                );
            } else {
                out.insert("idleTimeout".to_owned(), idle);
            }
        }
        http.finish(notes);
    }
    if !http_out.is_empty() {
        out.insert("http".to_owned(), Value::Object(http_out));
    }
    conf.finish(notes);
    Some(out)
}

fn retries(conf: Option<Fields>, notes: &mut Notes<'_>) -> Conf {
    let mut conf = conf?;
    let mut out = Map::new();
    if let Some(mut tcp) = conf.take_fields("tcp") {
        let mut inner = Map::new();
        tcp.rename(&mut inner, &[("maxConnectAttempts", "maxConnectAttempt")]);
        tcp.finish(notes);
        out.insert("tcp".to_owned(), Value::Object(inner));
    }
    for part in ["http", "grpc"] {
        let Some(mut from) = conf.take_fields(part) else {
            continue;
        };
        let mut inner = Map::new();
        let same = ["numRetries", "perTryTimeout", "backOff"];
        from.rename(&mut inner, &same.map(|name| (name, name)));
        let mut on: Vec<Value> = Vec::new();
        for (field, word) in [
            ("retryOn", retry_on as fn(&str) -> String),
            ("retriableStatusCodes", str::to_owned),
            ("retriableMethods", method),
        ] {
            let values = from.take(field);
            let values = values
                .as_ref()
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            on.extend(values.map(|value| match value.as_str() {
                Some(text) => Value::String(word(text)),
                None => Value::String(word(&value.to_string())),
            }));
        }
        on.retain(|value| value != "retriable_status_codes");
        if !on.is_empty() {
            inner.insert("retryOn".to_owned(), on.into());
        }
        from.finish(notes);
        out.insert(part.to_owned(), Value::Object(inner));
    }
    conf.finish(notes);
    Some(out)
}

/// `gateway_error` to `GatewayError`.
fn retry_on(word: &str) -> String {
    match word {
        "all_5xx" => "5xx".to_owned(),
        "retriable_4xx" => "Retriable4xx".to_owned(),
        "cancelled" => "Canceled".to_owned(),
        "retriable_status_codes" => word.to_owned(),
        other => other.split('_').map(capital).collect(),
    }
}

/// `GET` to `HttpMethodGet`.
fn method(word: &str) -> String {
    format!("HttpMethod{}", capital(&word.to_lowercase()))
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn health_check(conf: Option<Fields>, notes: &mut Notes<'_>) -> Conf {
    let mut conf = conf?;
    let mut out = Map::new();
    if conf.take("healthyPanicThreshold").is_some() {
        notes.lost(
            &conf.at("healthyPanicThreshold"),
            "belongs to a MeshCircuitBreaker here, as outlierDetection.healthyPanicThreshold",
        );
    }
    if let Some(mut http) = conf.take_fields("http") {
        let mut inner = Map::new();
        let same = ["path", "expectedStatuses"];
        http.rename(&mut inner, &same.map(|name| (name, name)));
        if let Some(headers) = headers(http.take("requestHeadersToAdd")) {
            inner.insert("requestHeadersToAdd".to_owned(), headers);
        }
        http.finish(notes);
        out.insert("http".to_owned(), Value::Object(inner));
    }
    // The rest has the same names.
    out.extend(conf.rest());
    Some(out)
}

/// `[{append, header: {key, value}}]` or `[{append, key, value}]` to `{add: […], set: […]}`.
fn headers(value: Option<Value>) -> Option<Value> {
    let value = value?;
    let mut lists = [Vec::new(), Vec::new()];
    for item in value.as_array()? {
        let header = if item["header"].is_null() {
            item
        } else {
            &item["header"]
        };
        let set = item["append"] == false;
        lists[usize::from(set)].push(json!({"name": header["key"], "value": header["value"]}));
    }
    let mut out = Map::new();
    for (name, list) in ["add", "set"].into_iter().zip(lists) {
        if !list.is_empty() {
            out.insert(name.to_owned(), list.into());
        }
    }
    Some(Value::Object(out))
}

fn circuit_breaker(conf: Option<Fields>, notes: &mut Notes<'_>) -> Conf {
    let mut conf = conf?;
    let mut out = Map::new();
    if let Some(limits) = conf.take("thresholds") {
        out.insert("connectionLimits".to_owned(), limits);
    }
    let mut outliers = Map::new();
    let same = [
        "interval",
        "baseEjectionTime",
        "maxEjectionPercent",
        "splitExternalAndLocalErrors",
    ];
    conf.rename(&mut outliers, &same.map(|name| (name, name)));
    if let Some(mut from) = conf.take_fields("detectors") {
        let mut detectors = Map::new();
        from.rename(
            &mut detectors,
            &[
                ("totalErrors", "totalFailures"),
                ("gatewayErrors", "gatewayFailures"),
                ("localErrors", "localOriginFailures"),
                ("failure", "failurePercentage"),
            ],
        );
        if let Some(mut deviation) = from.take_fields("standardDeviation") {
            let mut inner = Map::new();
            deviation.rename(
                &mut inner,
                &[
                    ("requestVolume", "requestVolume"),
                    ("minimumHosts", "minimumHosts"),
                ],
            );
            // A decimal stands in quotes here.
            let factor = deviation.take_text("factor");
            inner
                .extend(factor.map(|factor| ("standardDeviationFactor".to_owned(), factor.into())));
            deviation.finish(notes);
            detectors.insert("successRate".to_owned(), Value::Object(inner));
        }
        from.finish(notes);
        outliers.insert("detectors".to_owned(), Value::Object(detectors));
    }
    if !outliers.is_empty() {
        out.insert("outlierDetection".to_owned(), Value::Object(outliers));
    }
    conf.finish(notes);
    Some(out)
}

fn faults(conf: Option<Fields>, _: &mut Notes<'_>) -> Conf {
    Some(Map::from_iter([("http".to_owned(), json!([conf?.rest()]))]))
}

fn rate_limit(conf: Option<Fields>, notes: &mut Notes<'_>) -> Conf {
    let mut conf = conf?;
    let mut http = conf.take_fields("http")?;
    let mut out =
        json!({"requestRate": {"num": http.take("requests"), "interval": http.take("interval")}});
    if let Some(mut limited) = http.take_fields("onRateLimit") {
        let mut inner = Map::new();
        limited.rename(&mut inner, &[("status", "status")]);
        inner.extend(
            headers(limited.take("headers")).map(|headers| ("headers".to_owned(), headers)),
        );
        limited.finish(notes);
        out["onRateLimit"] = Value::Object(inner);
    }
    http.finish(notes);
    conf.finish(notes);
    Some(Map::from_iter([("local".to_owned(), json!({"http": out}))]))
}

fn access_log(
    document: &Document,
    facts: &Facts,
    conf: Option<Fields>,
    notes: &mut Notes<'_>,
) -> Conf {
    let known = facts.mesh(&document.mesh);
    let mut conf = conf.unwrap_or_else(|| Fields::of(Value::Null, "conf"));
    let named = conf.take_text("backend").filter(|name| !name.is_empty());
    let path = conf.at("backend");
    conf.finish(notes);
    let name = named.or_else(|| known?.default_logging.clone());
    let backend = name.as_ref().and_then(|name| known?.logging.get(name));
    let Some(backend) = backend else {
        notes.lost(
            &path,
            match name {
                Some(name) => format!(
                    "no Mesh {} that was read has the log backend {name}: give it, too",
                    document.mesh
                ),
                None => {
                    "no backend is named, and no Mesh that was read has a default one: give it, too"
                        .to_owned()
                }
            },
        );
        return None;
    };
    let made = mesh::log_backend(backend, &path, notes)?;
    Some(Map::from_iter([("backends".to_owned(), json!([made]))]))
}

fn trace(
    document: &Document,
    facts: &Facts,
    fields: &mut Fields,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let targets = selections(fields, "selectors", notes);
    let known = facts.mesh(&document.mesh);
    let mut conf = fields
        .take_fields("conf")
        .unwrap_or_else(|| Fields::of(Value::Null, "conf"));
    let named = conf.take_text("backend").filter(|name| !name.is_empty());
    let path = conf.at("backend");
    conf.finish(notes);
    let name = named.or_else(|| known?.default_tracing.clone());
    let backend = name.as_ref().and_then(|name| known?.tracing.get(name));
    let Some(default) = backend.and_then(|backend| mesh::tracing(backend, &path, notes)) else {
        if backend.is_none() {
            notes.lost(
                &path,
                format!(
                    "no Mesh {} that was read has the trace backend: give it, too",
                    document.mesh
                ),
            );
        }
        return Vec::new();
    };
    successors(
        document,
        "MeshTrace",
        targets,
        json!({"default": default}),
        notes,
    )
}

fn route(
    document: &Document,
    facts: &Facts,
    fields: &mut Fields,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let sources = sources(fields, notes);
    let destinations = destinations(document, facts, fields, notes);
    let Some(mut conf) = fields.take_fields("conf") else {
        notes.lost("conf", "is required");
        return Vec::new();
    };
    let mut made = Vec::new();
    if let Some(balancer) = conf.take_fields("loadBalancer") {
        let path = balancer.path().to_owned();
        let strategy = load_balancer(balancer, notes);
        let to: Vec<_> = destinations
            .iter()
            .map(|to| json!({"targetRef": to, "default": {"loadBalancer": strategy}}))
            .collect();
        notes.changed(&path, "is a MeshLoadBalancingStrategy");
        if !to.is_empty() {
            made.extend(successors(
                document,
                "MeshLoadBalancingStrategy",
                sources.clone(),
                json!({"to": to}),
                notes,
            ));
        }
    }
    if conf.take("http").is_some() {
        notes.lost(&conf.at("http"), "write it as a MeshHTTPRoute; until then all requests go where the rest of the route says");
    }
    let mut split: Vec<(String, Option<Value>, Value)> = Vec::new();
    for mut part in conf.take_list("split") {
        let path = part.path().to_owned();
        let weight = part.take("weight");
        split.push((
            path,
            part.take("destination"),
            weight.unwrap_or_else(|| json!(1)),
        ));
        part.finish(notes);
    }
    if let Some(only) = conf.take("destination") {
        split.push((conf.at("destination"), Some(only), json!(1)));
    }
    conf.finish(notes);
    let everywhere = split.iter().all(|(_, tags, _)| {
        let tags = texts(tags.clone());
        tags.len() <= 1 && tags.get(SERVICE).is_none_or(|service| service == "*")
    });
    if everywhere {
        notes.changed(
            "",
            "is left out: calls go to the service that is called, without a route",
        );
        return made;
    }
    let mut backends = Vec::new();
    for (path, tags, weight) in split {
        let mut tags = texts(tags);
        let name = tags.remove(SERVICE).unwrap_or_default();
        let mut backend =
            json!({"kind": "MeshServiceSubset", "name": name, "tags": tags, "weight": weight});
        if facts.is_external(&document.mesh, &name) {
            backend = json!({"kind": "MeshExternalService", "name": name, "weight": weight});
        }
        if !policy::backend(document, facts, &mut backend, &path, &mut made, notes) {
            notes.lost(
                "",
                "the route is left out, so that no traffic goes where it should not",
            );
            return made;
        }
        backends.push(backend);
    }
    let mut to = Vec::new();
    for destination in destinations {
        if destination["kind"] == "Mesh" {
            notes.lost(
                "destinations",
                "a route for every service at once can not be said here: name the services",
            );
            continue;
        }
        to.push(
            json!({"targetRef": destination, "rules": [{"default": {"backendRefs": backends}}]}),
        );
    }
    if !to.is_empty() {
        made.extend(successors(
            document,
            "MeshTCPRoute",
            sources,
            json!({"to": to}),
            notes,
        ));
    }
    made
}

fn load_balancer(mut from: Fields, notes: &mut Notes<'_>) -> Value {
    let mut out = Map::new();
    for (field, kind) in [
        ("roundRobin", "RoundRobin"),
        ("leastRequest", "LeastRequest"),
        ("ringHash", "RingHash"),
        ("random", "Random"),
        ("maglev", "Maglev"),
    ] {
        if let Some(mut inner) = from.take_fields(field) {
            let mut settings = Map::new();
            let names = [
                ("choiceCount", "choiceCount"),
                ("minRingSize", "minRingSize"),
                ("maxRingSize", "maxRingSize"),
            ];
            inner.rename(&mut settings, &names);
            let function = match inner.take_text("hashFunction").as_deref() {
                Some("XX_HASH") => Some("XXHash"),
                Some("MURMUR_HASH_2") => Some("MurmurHash2"),
                _ => None,
            };
            settings.extend(function.map(|function| ("hashFunction".to_owned(), function.into())));
            inner.finish(notes);
            out.insert("type".to_owned(), kind.into());
            if !settings.is_empty() {
                out.insert(field.to_owned(), Value::Object(settings));
            }
        }
    }
    from.finish(notes);
    Value::Object(out)
}
