//! Dataplanes, ingresses, egresses, and services inside and outside the mesh.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    document::Document,
    facts::Facts,
    fields::{Fields, texts},
    report::Notes,
    target::SERVICE,
};

/// A dataplane: tags of its inbounds become its labels.
pub(super) fn dataplane(document: &Document, facts: &Facts, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    let Some(mut networking) = fields.take_fields("networking") else {
        notes.lost("networking", "is required");
        return Vec::new();
    };
    if networking.take("gateway").is_some() {
        notes.lost(
            "networking.gateway",
            "there are no gateways in this version; the dataplane is left out",
        );
        return Vec::new();
    }
    let mut labels: BTreeMap<String, String> = document
        .labels
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let mut inbounds = Vec::new();
    for inbound in networking.take_list("inbound") {
        match self::inbound(inbound, &mut labels, notes) {
            Some(inbound) => inbounds.push(inbound),
            None => return Vec::new(),
        }
    }
    let mut outbounds = Vec::new();
    for outbound in networking.take_list("outbound") {
        outbounds.extend(self::outbound(document, facts, outbound, notes));
    }
    if networking.take("transparentProxying").is_some() {
        notes.lost(
            "networking.transparentProxying",
            "transparent interception is not in this version: name what is called under networking.outbound",
        );
    }
    if fields.take("metrics").is_some() {
        notes.lost(
            "metrics",
            "every dataplane has metrics; what is merged into them is a MeshMetric's to say",
        );
    }
    if fields.take("probes").is_some() {
        notes.lost("probes", "write serviceProbe at the inbound");
    }
    fields.finish(notes);
    let mut out = networking.rest();
    out.insert("inbound".to_owned(), inbounds.into());
    if !outbounds.is_empty() {
        out.insert("outbound".to_owned(), outbounds.into());
    }
    let mut value = document.with_content(json!({"networking": out}));
    if labels.is_empty() {
        if let Some(value) = value.as_object_mut() {
            value.remove("labels");
        }
    } else {
        value["labels"] = json!(labels);
    }
    vec![value]
}

/// An inbound without its tags. `None`: they can not be labels of the dataplane, which is noted. A dataplane without a
/// label could slip out of a policy that selects it, so that it is left out as a whole.
fn inbound(
    mut inbound: Fields,
    labels: &mut BTreeMap<String, String>,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let path = inbound.at("tags");
    let tags = texts(inbound.take("tags"));
    let mut out: Map<String, Value>;
    let mut protocol = None;
    for (key, value) in tags {
        match key.as_str() {
            "isthmus.io/protocol" => protocol = Some(value),
            // Said by the zone at which it registers.
            "isthmus.io/zone" => {}
            _ => match labels.get(&key) {
                Some(other) if *other != value => {
                    let advice = match key == SERVICE {
                        true => "run one dataplane for each service",
                        false => "labels are the dataplane's, not the inbound's",
                    };
                    notes.lost(
                        &path,
                        format!("{key} is {value} here and {other} elsewhere in the dataplane; it is left out: {advice}"),
                    );
                    return None;
                }
                _ => {
                    labels.insert(key, value);
                }
            },
        }
    }
    if !path.is_empty() {
        notes.changed(
            &path,
            "tags are labels of the dataplane, and the protocol is a field of the inbound",
        );
    }
    out = inbound.rest();
    match protocol.as_deref() {
        None | Some("tcp") => {}
        Some(known @ ("http" | "http2" | "grpc" | "tls")) => {
            out.insert("protocol".to_owned(), known.into());
        }
        Some(other) => notes.changed(&path, format!("protocol {other} is carried as TCP")),
    }
    Some(Value::Object(out))
}

fn outbound(
    document: &Document,
    facts: &Facts,
    mut outbound: Fields,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let path = outbound.path().to_owned();
    let mut tags = texts(outbound.take("tags"));
    tags.extend(
        outbound
            .take_text("service")
            .map(|name| (SERVICE.to_owned(), name)),
    );
    let mut out = outbound.rest();
    if !tags.is_empty() {
        let service = tags.remove(SERVICE).unwrap_or_default();
        let zone = tags.remove("isthmus.io/zone");
        if let Some((key, _)) = tags.iter().next() {
            notes.lost(
                &path,
                format!("a service is called, and not those of its instances with the tag {key}"),
            );
            return None;
        }
        let Some(port) = facts.port(&document.mesh, &service) else {
            notes.lost(
                &path,
                format!("a call names the port here, and the files leave open which one {service} has: give its dataplanes, too"),
            );
            return None;
        };
        let mut backend = json!({"kind": "MeshService", "name": service, "port": port});
        if let Some(zone) = zone {
            backend["labels"] = json!({"isthmus.io/zone": zone});
        }
        notes.changed(
            &path,
            format!("calls the MeshService {service} at its port {port}"),
        );
        out.insert("backendRef".to_owned(), backend);
    }
    Some(Value::Object(out))
}

/// An ingress or egress of a zone.
pub(super) fn zone_proxy(document: &Document, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    if fields.take("zone").is_some() {
        notes.changed(
            "zone",
            "is left out: it belongs to the zone at which it registers",
        );
    }
    fields.take("availableServices");
    if let Some(mut networking) = fields.take_fields("networking") {
        if networking.take("admin").is_some() {
            notes.changed(
                "networking.admin",
                "is left out: the admin port is a socket file",
            );
        }
        let content = json!({"networking": networking.rest()});
        fields.finish(notes);
        return vec![document.with_content(content)];
    }
    notes.lost("networking", "is required");
    Vec::new()
}

/// A service that is declared, with a selection by tags.
pub(super) fn mesh_service(document: &Document, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut content = document.content.clone();
    if let Some(selector) = content.get_mut("selector").and_then(Value::as_object_mut)
        && let Some(tags) = selector.remove("dataplaneTags")
    {
        selector.insert("dataplaneLabels".to_owned(), json!({"matchLabels": tags}));
        notes.changed("selector.dataplaneTags", "tags are labels");
    }
    vec![document.with_content(content)]
}

/// A service outside the mesh.
pub(super) fn external_service(document: &Document, notes: &mut Notes<'_>) -> Vec<Value> {
    let mut fields = Fields::of(document.content.clone(), "");
    let tags_path = fields.at("tags");
    let mut tags = texts(fields.take("tags"));
    let name = tags
        .remove(SERVICE)
        .unwrap_or_else(|| document.name.clone());
    let protocol = tags
        .remove("isthmus.io/protocol")
        .unwrap_or_else(|| "tcp".to_owned());
    if let Some(zone) = tags.remove("isthmus.io/zone") {
        notes.lost(
            &tags_path,
            format!("was reached through zone {zone} only; here every zone reaches it by itself"),
        );
    }
    let Some(mut networking) = fields.take_fields("networking") else {
        notes.lost("networking", "is required");
        return Vec::new();
    };
    let address = networking.take_text("address").unwrap_or_default();
    let split = address.rsplit_once(':').and_then(|(host, port)| {
        Some((
            host.trim_matches(['[', ']']).to_owned(),
            port.parse::<u16>().ok()?,
        ))
    });
    let Some((host, port)) = split else {
        notes.lost("networking.address", "must be HOST:PORT");
        return Vec::new();
    };
    let mut content = json!({
        "match": {"type": "HostnameGenerator", "port": port, "protocol": protocol},
        "endpoints": [{"address": host, "port": port}],
    });
    if let Some(mut tls) = networking.take_fields("tls") {
        let enabled = tls.take("enabled").unwrap_or(Value::Bool(false));
        let mut out = json!({"enabled": enabled});
        let mut verification = Map::new();
        tls.rename(&mut verification, &[("serverName", "serverName")]);
        if let Some(renegotiation) = tls.take("allowRenegotiation") {
            out["allowRenegotiation"] = renegotiation;
        }
        for (from, to) in [
            ("caCert", "caCert"),
            ("clientCert", "clientCert"),
            ("clientKey", "clientKey"),
        ] {
            let at = tls.at(from);
            if let Some(source) = tls
                .take(from)
                .and_then(|source| data_source(&source, &at, notes))
            {
                verification.insert(to.to_owned(), source);
            }
        }
        if tls.take("skipHostnameVerification") == Some(Value::Bool(true)) {
            verification.insert("mode".to_owned(), "SkipSAN".into());
        }
        if !verification.is_empty() {
            out["verification"] = Value::Object(verification);
        }
        tls.finish(notes);
        content["tls"] = out;
    }
    networking.finish(notes);
    fields.finish(notes);
    notes.changed("", format!("is the MeshExternalService {name}"));
    let mut value = document.made("MeshExternalService", &name, content);
    if !tags.is_empty() {
        let mut labels = document.labels.clone();
        labels.extend(tags.into_iter().map(|(key, value)| (key, value.into())));
        value["labels"] = Value::Object(labels);
    }
    vec![value]
}

/// `{secret}`, `{inline}` or `{inlineString}` as here.
fn data_source(source: &Value, path: &str, notes: &mut Notes<'_>) -> Option<Value> {
    if let Some(secret) = source["secret"].as_str() {
        return Some(json!({"type": "Secret", "secretRef": {"kind": "Secret", "name": secret}}));
    }
    let text = source["inlineString"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(source["inline"].as_str()?)
                .ok()?;
            String::from_utf8(bytes).ok()
        });
    let Some(text) = text else {
        notes.lost(path, "only secret, inline and inlineString are read");
        return None;
    };
    Some(json!({"type": "InsecureInline", "insecureInline": {"value": text}}))
}
