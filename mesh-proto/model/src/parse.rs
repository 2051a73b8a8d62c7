//! YAML and JSON to resources.
//!
//! ```text
//! text ──yaml──▶ values with places ──envelope──▶ kind, name, labels ──fit──▶ content of the right shape
//!                                      ──serde──▶ typed content ──Kind::validate──▶ resource
//! ```
//!
//! Each step reports everything it finds and hands on something the next can work with, so that all that is wrong with a
//! text is reported at once: [`Violations`], each with source, line, column and field.
//!
//! | module | what it does |
//! | --- | --- |
//! | `yaml` | documents of a text, with the place of every field; bounds depth and aliases |
//! | `scalar` | what a single value means |
//! | `envelope` | what every resource has: type, mesh, name, labels |
//! | `fit` | the content against the shape of its kind |
//! | `legacy` | what to write instead of forms that users of Kuma know |
//! | `report` | gathers what is wrong |

mod envelope;
mod fit;
mod legacy;
mod report;
mod scalar;
mod yaml;

use serde_json::{Map, Value};

use self::{fit::Fit, report::Report};
use crate::{
    check::Checker,
    kinds::Spec,
    labels, path,
    resource::{Meta, Resource},
    selection,
    violation::Violations,
};

/// The mesh of resources that name none, as in Kuma.
pub const DEFAULT_MESH: &str = "default";

/// Reads all documents of a YAML or JSON text. `source` names the text in violations.
///
/// Label prefixes of Kuma are read as ours. Fields that exist only in what is read back (`revision`, `creationTime`,
/// `modificationTime`, `status`, `kri`, `snis` and the label `isthmus.io/origin`) are accepted and dropped. A field that is
/// null is absent.
///
/// # Errors
/// Everything that is wrong, document by document in the order of the text; after the hundredth, their number.
pub fn parse(text: &str, source: &str) -> Result<Vec<Resource>, Violations> {
    parse_in(text, source, DEFAULT_MESH)
}

/// As [`parse`], with the mesh of resources that name none.
///
/// # Errors
/// As [`parse`].
pub fn parse_in(text: &str, source: &str, mesh: &str) -> Result<Vec<Resource>, Violations> {
    let mut resources = Vec::new();
    let mut violations = Vec::new();
    for yaml::Document { value, mut report } in yaml::Documents::of(text) {
        if let Some(value) = value {
            resources.extend(read(value, mesh, Origin::Written, &mut report));
        }
        violations.extend(report.into_violations(source));
    }
    if violations.is_empty() {
        Ok(resources)
    } else {
        Err(report::bounded(violations))
    }
}

/// A document of a text, of whatever it is. It remembers where its fields stand.
#[derive(Debug)]
pub struct Document {
    /// What it says. Keys of labels have our prefixes.
    pub value: Value,
    places: report::Places,
}

impl Document {
    /// Line and column of the field at `path` (as violations write paths), or of the nearest thing around it.
    #[must_use]
    pub fn place(&self, path: &str) -> (u32, u32) {
        let place = self.places.find(path);
        (place.line, place.column)
    }
}

/// Reads all documents of a YAML or JSON text as they are, whether or not they are resources of ours: for what turns
/// other forms into ours.
///
/// # Errors
/// What can not be read at all.
pub fn documents(text: &str, source: &str) -> Result<Vec<Document>, Violations> {
    let mut documents = Vec::new();
    let mut violations = Vec::new();
    for yaml::Document { value, report } in yaml::Documents::of(text) {
        match value {
            Some(value) if report.is_clean() => documents.push(Document {
                value,
                places: report.places,
            }),
            _ => violations.extend(report.into_violations(source)),
        }
    }
    if violations.is_empty() {
        Ok(documents)
    } else {
        Err(report::bounded(violations))
    }
}

/// As [`parse`], for one resource that is a JSON value already. Violations have no line.
///
/// # Errors
/// As [`parse`].
pub fn parse_value(value: &Value, source: &str) -> Result<Resource, Violations> {
    let mut report = Report::default();
    let value = with_canonical_keys(value.clone(), "", &mut report);
    let resource = read(value, DEFAULT_MESH, Origin::Written, &mut report);
    finished(resource, report, source)
}

/// Reads the canonical form.
pub(crate) fn stored(json: &[u8]) -> Result<Resource, Violations> {
    let mut report = Report::default();
    let resource = match serde_json::from_slice(json) {
        Ok(value) => read(value, "", Origin::Stored, &mut report),
        Err(error) => {
            report.add("", format!("not JSON: {error}"));
            None
        }
    };
    finished(resource, report, "")
}

/// Where a value comes from, which decides what it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A person, or a program at the API.
    Written,
    /// [`Resource::to_json`].
    Stored,
}

fn finished(
    resource: Option<Resource>,
    report: Report,
    source: &str,
) -> Result<Resource, Violations> {
    match resource {
        Some(resource) if report.is_clean() => Ok(resource),
        _ => Err(report::bounded(report.into_violations(source))),
    }
}

/// Reads one resource. `None`, or a resource that is not to be used: `report` says why.
fn read(value: Value, mesh: &str, origin: Origin, report: &mut Report) -> Option<Resource> {
    let Value::Object(mut object) = value else {
        report.add(
            "",
            "a resource is an object with `type`, `name` and the fields of its type",
        );
        return None;
    };
    let envelope::Envelope { kind, meta } = envelope::take(&mut object, mesh, origin, report)?;

    let schema = kind.content_schema();
    let (mut content, path) = if kind.spec_field {
        envelope::only_spec_is_left(&object, kind, report);
        (object.remove("spec").unwrap_or_default(), "spec")
    } else {
        (Value::Object(object), "")
    };
    if content.is_null() {
        if schema.requires_content() {
            report.add("spec", "is required");
            return None;
        }
        // There is nothing that would have to be said.
        content = Value::Object(Map::new());
    }
    let mut fit = Fit {
        kind: kind.name,
        schema,
        report,
    };
    fit.check(schema.root(), &mut content, path);

    match kind.read(content) {
        Ok(spec) => {
            validate(&spec, &meta, origin, report);
            Some(Resource { meta, spec })
        }
        Err(error) => {
            // What was made to fit its shape is read; this is only for what a schema can not say.
            let at = error.path().to_string();
            let at = match (path, at.as_str()) {
                (path, ".") => path.to_owned(),
                ("", at) => at.to_owned(),
                (path, at) => format!("{path}.{at}"),
            };
            if report.is_clean() {
                report.add(&at, error.into_inner().to_string());
            }
            None
        }
    }
}

fn validate(spec: &Spec, meta: &Meta, origin: Origin, report: &mut Report) {
    let prefix = if spec.kind().spec_field { "spec." } else { "" };
    let mut checker = Checker::new(prefix);
    if origin == Origin::Stored {
        checker = checker.of_stored();
    }
    spec.validate(meta, &mut checker);
    if spec.policy().is_some() {
        selection::check_role(meta, &mut checker);
    }
    for (path, message) in checker.into_found() {
        if !depends_on_what_is_wrong(&path, report) {
            report.add(&path, message);
        }
    }
}

/// Fields that say what the fields beside them mean. Where one is wrong, nothing can be said about the others.
const DECISIVE: &[&str] = &["type", "kind", "predicate"];

fn depends_on_what_is_wrong(path: &str, report: &Report) -> bool {
    let beside = path::parent(path);
    DECISIVE.iter().any(|field| {
        [path, beside]
            .iter()
            .any(|at| report.is_replaced(&path::field(at, field)))
    })
}

/// Writes our label prefixes for their aliases, in the keys of all objects (no field of a kind holds a `/`).
fn with_canonical_keys(value: Value, path: &str, report: &mut Report) -> Value {
    match value {
        Value::Object(object) => {
            let mut canonical = Map::new();
            for (key, value) in object {
                let name = labels::canonical_key(&key).into_owned();
                let path = path::field(path, &name);
                let value = with_canonical_keys(value, &path, report);
                if canonical.insert(name, value).is_some() {
                    report.add(
                        &path,
                        "is given twice, by two spellings of its prefix; leave one of them out",
                    );
                }
            }
            Value::Object(canonical)
        }
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            let items = items
                .map(|(index, item)| with_canonical_keys(item, &path::item(path, index), report));
            Value::Array(items.collect())
        }
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text, "web.yaml").unwrap_err().to_string()
    }

    #[test]
    fn a_violation_names_source_line_column_and_field() {
        assert_eq!(
            refused(
                "type: Dataplane\nname: a\nnetworking:\n  address: fd00::1\n  inbound:\n    - {port: 0}\n"
            ),
            "web.yaml:6:8: networking.inbound[0].port: must be between 1 and 65535"
        );
        assert_eq!(
            refused("{\n  \"type\": \"Mesh\",\n  \"name\": \"a\",\n  \"zones\": [\"b\", 1]\n}"),
            "web.yaml:4:18: zones[1]: must be text; put it in quotes"
        );
    }

    #[test]
    fn a_broken_document_does_not_hide_the_others() {
        assert_eq!(
            refused("type: Mesh\nname: A\n---\n{\n---\ntype: Zone\nname: B\n")
                .lines()
                .map(|line| line.split(": ").next().unwrap_or_default())
                .collect::<Vec<_>>(),
            ["web.yaml:2:1", "web.yaml:4:1", "web.yaml:7:1"]
        );
    }

    #[test]
    fn the_mesh_is_the_callers_where_none_is_written() {
        let text = "type: Secret\nname: a\ndata: YQ==";
        let mesh = |resources: Vec<Resource>| resources[0].meta.mesh.clone();
        assert_eq!(mesh(parse(text, "").unwrap()), "default");
        assert_eq!(mesh(parse_in(text, "", "payments").unwrap()), "payments");
    }

    #[test]
    fn documents_of_other_kinds_are_read_with_the_places_of_their_fields() {
        let text = "type: TrafficLog\nconf:\n  tags:\n    kuma.io/service: web\n---\n[1]\n";
        let read = documents(text, "").unwrap();
        assert_eq!(read.len(), 2);
        let path = "conf.tags[\"isthmus.io/service\"]";
        assert_eq!(read[0].place(path), (4, 5));
        assert_eq!(read[0].place("conf.nothing"), (2, 1));
        assert!(documents("a: [\n", "x.yaml").is_err());
    }

    #[test]
    fn only_the_canonical_form_holds_owners_and_system_kinds() {
        let owned = r#"{"type": "ZoneIngress", "zone": "east", "name": "a", "networking": {"address": "::1", "port": 1}}"#;
        let resource = Resource::from_json(owned.as_bytes()).unwrap();
        assert_eq!(resource.meta.zone, "east");
        assert_eq!(Resource::from_json(&resource.to_json()), Ok(resource));
        assert!(
            refused(owned).contains("zone: leave it out"),
            "{}",
            refused(owned)
        );

        let issuer = r#"{"type": "TokenIssuer", "name": "zone.east", "spec": {"keys": []}}"#;
        assert!(Resource::from_json(issuer.as_bytes()).is_ok());
        assert!(refused(issuer).contains("written by the control planes alone"));
        // Mesh-scoped, and without a mesh.
        let no_mesh = r#"{"type": "MeshService", "name": "a", "spec": {}}"#;
        assert!(Resource::from_json(no_mesh.as_bytes()).is_err());
    }

    #[test]
    fn nothing_is_said_about_fields_whose_type_is_wrong() {
        let text = "
type: MeshTrace
mesh: payments
name: a
spec: {default: {backends: [{type: Zipkins, openTelemetry: {backendRef: {kind: MeshOpenTelemetryBackend}}}]}}
";
        let messages = refused(text);
        let lines: Vec<&str> = messages.lines().collect();
        assert_eq!(lines.len(), 2, "{messages}");
        assert!(lines[0].contains("backends[0].type: "), "{messages}");
        // What stands in a field of its own is looked at all the same.
        assert!(
            lines[1].contains("openTelemetry.backendRef.labels: "),
            "{messages}"
        );
    }

    #[test]
    fn a_token_refuses_unknown_fields_although_serde_can_not() {
        let token = r#"{"type": "Token", "name": "a", "spec": {"use": "api", "role": "admin", "expiresAt": 1, "x": 1}}"#;
        let error = Resource::from_json(token.as_bytes()).unwrap_err();
        assert!(
            error.to_string().starts_with("spec.x: unknown field"),
            "{error}"
        );
    }

    #[test]
    fn a_value_is_read_as_a_text_is() {
        let value = serde_json::json!({"type": "Mesh", "name": "a", "labels": {"kuma.io/x": "1", "isthmus.io/x": "2"}});
        let error = parse_value(&value, "request body").unwrap_err();
        assert_eq!(
            error.to_string(),
            "request body: labels[\"isthmus.io/x\"]: is given twice, by two spellings of its prefix; leave one of them out"
        );
    }
}
