//! The API's own description: an OpenAPI 3.1 document, made from the types that the handlers take and give.
//!
//! A route is registered with a summary, and what its handler takes and gives is read off its signature: a route can not be
//! forgotten, nor described as something else. What no signature says is added in [`complete`]: parts of paths, headers,
//! errors, and the resources, whose schemas are those that are checked against ([`mesh_model::json_schema`]).

use std::sync::Arc;

use aide::{
    OperationInput, OperationOutput,
    generate::GenContext,
    openapi::{MediaType, OpenApi, Operation, RequestBody, SchemaObject},
    operation::{ParamLocation, add_parameters, parameters_from_schema, set_body},
    transform::TransformOperation,
};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use mesh_model::{
    Descriptor, Scope,
    api::{self, AnyResource, Batch},
};
use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Map, Value, json};

use super::{
    caller::{Body, Caller, NoParams, Params, Segments},
    problem::Problem,
};

/// The document, as it is served.
#[derive(Debug, Clone)]
pub struct Document(Arc<Bytes>);

impl Document {
    /// Completes what was read off the handlers.
    #[must_use]
    pub fn new(described: &OpenApi) -> Self {
        let mut document = serde_json::to_value(described).unwrap_or_default();
        complete(&mut document);
        Self(Arc::new(document.to_string().into()))
    }

    /// `GET /v1/openapi.json`: for everybody, since it says nothing of any installation.
    #[must_use]
    pub fn answer(&self) -> Response {
        let body = (*self.0).clone();
        let media_type = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, media_type)], body).into_response()
    }
}

/// Names a route and says what it is for.
pub fn about(
    id: &'static str,
    summary: &'static str,
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.id(id).summary(summary)
}

// === what extractors add ===

impl OperationInput for Caller {}
impl OperationInput for NoParams {}
impl<T> OperationInput for Segments<T> {}
/// What it is the text of, the route says.
impl OperationInput for Body {}

impl<T: JsonSchema> OperationInput for Params<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let schema = context.schema.subschema_for::<T>();
        let parameters = parameters_from_schema(context, schema, ParamLocation::Query);
        add_parameters(context, operation, parameters);
    }
}

/// Errors are the same everywhere; see [`complete`].
impl OperationOutput for Problem {
    type Inner = api::Problem;
}

/// The body is JSON of this type, and nothing else.
pub fn takes<T: JsonSchema>(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    body::<T>(operation, None)
}

/// The body is a batch, as JSON, or YAML documents to put.
pub fn takes_batch(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    body::<Batch>(
        operation,
        Some("YAML documents to put, as `meshctl apply -f` reads them"),
    )
}

/// The body is a resource.
pub fn takes_resource(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    body::<AnyResource>(operation, Some("the resource as a YAML document"))
}

/// The answer is a stream of events, most of them of one form.
pub fn gives_events<'t, T: JsonSchema>(
    mut operation: TransformOperation<'t>,
    description: &str,
) -> TransformOperation<'t> {
    aide::generate::in_context(|context| {
        let schema = context.schema.subschema_for::<T>();
        let response = aide::openapi::Response {
            description: description.to_owned(),
            content: [("text/event-stream".to_owned(), media(schema))]
                .into_iter()
                .collect(),
            ..Default::default()
        };
        let responses = operation.inner_mut().responses.get_or_insert_default();
        responses.responses.insert(
            aide::openapi::StatusCode::Code(200),
            aide::openapi::ReferenceOr::Item(response),
        );
    });
    operation
}

fn body<'t, T: JsonSchema>(
    mut operation: TransformOperation<'t>,
    yaml: Option<&str>,
) -> TransformOperation<'t> {
    aide::generate::in_context(|context| {
        let schema = context.schema.subschema_for::<T>();
        let json = ("application/json".to_owned(), media(schema));
        let yaml = yaml.map(|description| {
            let schema = json_schema!({"type": "string", "description": description});
            ("application/yaml".to_owned(), media(schema))
        });
        let body = RequestBody {
            content: std::iter::once(json).chain(yaml).collect(),
            required: true,
            ..RequestBody::default()
        };
        set_body(context, operation.inner_mut(), body);
    });
    operation
}

fn media(schema: Schema) -> MediaType {
    MediaType {
        schema: Some(SchemaObject {
            json_schema: schema,
            example: None,
            external_docs: None,
        }),
        ..MediaType::default()
    }
}

// === what no signature says ===

const METHODS: &[&str] = &["get", "put", "post", "delete"];

fn complete(document: &mut Value) {
    document["openapi"] = "3.1.0".into();
    document["info"] = json!({
        "title": "Isthmus",
        "description": "The global control plane of Isthmus: what administrators want, and how far it has come.",
        "version": mesh_proto::VERSION,
    });
    document["security"] = json!([{"token": []}]);
    let components = &mut document["components"];
    components["securitySchemes"]["token"] = json!({
        "type": "http",
        "scheme": "bearer",
        "description": "An API token, which `meshctl token create` makes",
    });
    resources(&mut components["schemas"]);
    components["schemas"]["Problem"] = problem_schema();
    components["responses"]["Problem"] = json!({
        "description": "What was wrong, and what to do about it",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    });
    components["responses"]["Later"] = json!({
        "description": "Too much at once, or no quorum now: come back later",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}},
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    });
    for (path, operations) in document["paths"].as_object_mut().into_iter().flatten() {
        for method in METHODS {
            if let Some(Value::Object(operation)) = operations.get_mut(*method) {
                complete_operation(path, method, operation);
            }
        }
    }
}

fn complete_operation(path: &str, method: &str, operation: &mut Map<String, Value>) {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| path_parameter(path, name))
        .collect();
    let takes_body = operation.contains_key("requestBody");
    if method != "get" {
        if path.starts_with("/v1/{type}") || path.starts_with("/v1/meshes/") {
            parameters.push(header_parameter(
                "If-Match",
                "The revision it must have, in quotes",
                // No number that would not fit.
                json!({"type": "string", "pattern": "^\"[1-9][0-9]{0,17}\"$"}),
            ));
            if method == "put" {
                parameters.push(header_parameter(
                    "If-None-Match",
                    "`*`: it must not exist",
                    json!({"type": "string", "enum": ["*"]}),
                ));
            }
        }
        parameters.push(header_parameter(
            "X-Request-Id",
            "An id of this write: repeated with the same one, it happens once",
            json!({"type": "string", "pattern": "^[!-~]{1,128}$"}),
        ));
    }
    if takes_body {
        parameters.push(header_parameter(
            "X-Source-Name",
            "What the body is called in violations",
            json!({"type": "string"}),
        ));
    }
    let known = operation.entry("parameters").or_insert_with(|| json!([]));
    if let Value::Array(known) = known {
        known.splice(0..0, parameters);
    }
    let mut errors = vec!["400", "401", "403", "404", "405", "500"];
    if path != "/v1/openapi.json" {
        errors.extend(["410", "422"]);
        if method != "get" {
            errors.extend(["409", "412"]);
        }
    }
    if takes_body {
        errors.extend(["408", "413", "415"]);
    }
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    for status in errors {
        responses[status] = json!({"$ref": "#/components/responses/Problem"});
    }
    for status in ["429", "503"] {
        responses[status] = json!({"$ref": "#/components/responses/Later"});
    }
    if path == "/v1/openapi.json" {
        operation.insert("security".to_owned(), json!([]));
    }
}

fn path_parameter(path: &str, name: &str) -> Value {
    let text = json!({"type": "string", "minLength": 1, "maxLength": 253});
    let (schema, description) = match name {
        "type" => (
            json!({"type": "string", "enum": types(path)}),
            "The kind of resource",
        ),
        "mesh" => (text, "The mesh"),
        "zone" => (text, "The zone"),
        "name" => (text, "The resource's name"),
        "revision" => (json!({"type": "integer", "minimum": 0}), "The revision"),
        "id" if path.contains("nodes") => (json!({"type": "integer", "minimum": 1}), "The node"),
        _ => (text, "The id"),
    };
    json!({"in": "path", "name": name, "required": true, "description": description, "schema": schema})
}

/// Segments of URLs of the kinds that a path can be about.
fn types(path: &str) -> Vec<&'static str> {
    let fits = |kind: &&Descriptor| match path {
        "/v1/schema/{type}" => true,
        // Dataplanes are with their zones, tokens have a list of their own.
        _ if matches!(kind.name, "Dataplane" | "Token") => false,
        "/v1/{type}" => true,
        path if path.starts_with("/v1/{type}") => kind.scope == Scope::Global,
        _ => kind.scope == Scope::Mesh,
    };
    let kinds = mesh_model::kinds().iter().filter(fits);
    kinds.map(|kind| kind.plural).collect()
}

fn header_parameter(name: &str, description: &str, schema: Value) -> Value {
    json!({"in": "header", "name": name, "required": false, "description": description, "schema": schema})
}

/// The schema of every kind, and of a resource of any kind.
fn resources(schemas: &mut Value) {
    let mut any = Vec::new();
    for kind in mesh_model::kinds() {
        let mut schema = mesh_model::json_schema(kind);
        let name = format!("{}Resource", kind.name);
        let definitions = match schema.as_object_mut() {
            Some(fields) => {
                fields.remove("$schema");
                fields.remove("$defs")
            }
            None => None,
        };
        refer(&mut schema, kind.name);
        if let Some(Value::Object(definitions)) = definitions {
            for (inner, mut definition) in definitions {
                refer(&mut definition, kind.name);
                schemas[format!("{}.{inner}", kind.name)] = definition;
            }
        }
        any.push(json!({"$ref": format!("#/components/schemas/{name}")}));
        schemas[name] = schema;
    }
    schemas["Resource"] =
        json!({"description": "A resource, of the kind that its `type` says", "anyOf": any});
    schemas["ResourceView"] = json!({
        "description": "A resource as it reads back; applied again, it changes nothing",
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "mesh": {"type": "string"},
            "name": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "revision": {"type": "integer", "description": "Revision of its last change"},
            "creationTime": {"type": "string", "format": "date-time"},
            "modificationTime": {"type": "string", "format": "date-time"},
        },
        "required": ["type", "name"],
        "additionalProperties": true,
    });
}

/// Points references to a kind's own definitions to where they stand in this document.
fn refer(schema: &mut Value, kind: &str) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get_mut("$ref")
                && let Some(inner) = to.strip_prefix("#/$defs/")
            {
                *to = format!("#/components/schemas/{kind}.{inner}");
            }
            fields.values_mut().for_each(|value| refer(value, kind));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| refer(value, kind)),
        _ => {}
    }
}

fn problem_schema() -> Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings
        .into_generator()
        .into_root_schema_for::<api::Problem>()
        .to_value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNode;

    /// Every reference in the document leads somewhere.
    fn check_references(document: &Value, at: &Value) {
        match at {
            Value::Object(fields) => {
                if let Some(Value::String(to)) = fields.get("$ref") {
                    let pointer = to.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{to}");
                }
                fields
                    .values()
                    .for_each(|value| check_references(document, value));
            }
            Value::Array(items) => items
                .iter()
                .for_each(|value| check_references(document, value)),
            _ => {}
        }
    }

    #[tokio::test]
    async fn the_document_is_whole_and_for_everybody() {
        let node = TestNode::start().await;
        let answer = node.get_as("", "/v1/openapi.json").await;
        let document = answer.ok();
        check_references(&document, &document);
        let mut ids = std::collections::BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let at = format!("{method} {path}");
                let id = operation["operationId"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{at}: no id"));
                assert!(ids.insert(id.to_owned()), "{at}: {id} twice");
                assert!(operation["summary"].is_string(), "{at}: no summary");
                let well = operation["responses"].as_object().unwrap().iter();
                let well: Vec<_> = well.filter(|(status, _)| status.starts_with('2')).collect();
                assert!(!well.is_empty(), "{at}: nothing is said to go well");
                for (status, response) in well {
                    assert!(response["content"].is_object(), "{at} {status}: {response}");
                }
                let body = operation["requestBody"].is_object();
                assert_eq!(body, matches!(method.as_str(), "put" | "post"), "{at}");
            }
        }
        let kinds = document["components"]["schemas"]["Resource"]["anyOf"]
            .as_array()
            .unwrap();
        assert_eq!(kinds.len(), mesh_model::kinds().len());
        // What is served is what is described.
        for path in [
            "/v1/diff",
            "/v1/rollback",
            "/v1/watch",
            "/v1/meshes/{mesh}/{type}/{name}",
        ] {
            assert!(document["paths"][path].is_object(), "{path}");
        }
    }
}
