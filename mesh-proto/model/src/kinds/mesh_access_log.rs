//! `MeshAccessLog`: where records of traffic go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::Checker,
    kind::{Descriptor, Kind, NameRule, Scope, Writers},
    parts::{free::FreeJson, telemetry::CollectorRef},
    policy::{self, Policy, PolicyShape, Rule, RulePart, To, ToKind, ToPart},
    resource::Meta,
    selection::TargetRef,
};

/// Where records of traffic go, and what they hold. Either `rules` or `to`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshAccessLog {
    /// Which proxies. Absent: all of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For outgoing traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To<AccessLogs>>,
    /// For incoming traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule<AccessLogs>>,
}

/// Where records go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLogs {
    /// All of these. Empty: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<LogBackend>>,
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogBackend {
    /// Which.
    #[serde(rename = "type")]
    pub form: LogBackendForm,
    /// Of `Tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpLog>,
    /// Of `File`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileLog>,
    /// Of `OpenTelemetry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetryLog>,
}

/// Where records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogBackendForm {
    /// To a server, one a line.
    Tcp,
    /// To a file beside the proxy, one a line.
    File,
    /// To an OpenTelemetry collector.
    OpenTelemetry,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpLog {
    /// What is written; absent: one line of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// Host and port.
    pub address: String,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileLog {
    /// What is written; absent: one line of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// Its path.
    pub path: String,
}

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenTelemetryLog {
    /// Attributes of each record; values may hold placeholders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Vec<LogAttribute>>,
    /// Body of each record; texts in it may hold placeholders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<FreeJson>,
    /// The collector.
    pub backend_ref: CollectorRef,
}

/// An attribute of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogAttribute {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogFormat {
    /// As what.
    #[serde(rename = "type")]
    pub form: LogFormatForm,
    /// Of `Plain`: a line with placeholders such as `%START_TIME%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub plain: Option<String>,
    /// Of `Json`: fields, whose values may hold placeholders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub json: Option<Vec<LogField>>,
    /// True: what has no value is left out, not written as `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omit_empty_values: Option<bool>,
}

/// As what a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogFormatForm {
    /// A line of text.
    Plain,
    /// A JSON object.
    Json,
}

/// A field of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogField {
    /// Its name.
    #[schemars(length(min = 1))]
    pub key: String,
    /// Its value.
    #[schemars(length(min = 1))]
    pub value: String,
}

impl Kind for MeshAccessLog {
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "MeshAccessLog",
        plural: "meshaccesslogs",
        short: "mal",
        scope: Scope::Mesh,
        writers: Writers::Admin,
        spec_field: true,
        name_rule: NameRule::Subdomain,
    };

    const POLICY: Option<PolicyShape> = Some(PolicyShape {
        to: ToKind::ALL,
        rules: true,
        proxy: false,
        lists: &[],
    });

    fn policy(&self) -> Option<&dyn Policy> {
        Some(self)
    }

    fn validate(&self, _: &Meta, out: &mut Checker) {
        policy::check(self, out);
        let parts = [("to", !self.to.is_empty()), ("rules", !self.rules.is_empty())];
        out.at_least_one("", &parts);
        if parts.iter().all(|(_, is_given)| *is_given) {
            out.add("to", "give either rules or to, not both");
        }
        for (index, entry) in self.to.iter().enumerate() {
            entry.default.check(&format!("to[{index}].default"), out);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.default.check(&format!("rules[{index}].default"), out);
        }
    }
}

impl Policy for MeshAccessLog {
    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<ToPart<'_>> {
        policy::to_parts(&self.to)
    }

    fn rules(&self) -> Vec<RulePart<'_>> {
        policy::rule_parts(&self.rules)
    }
}

impl AccessLogs {
    fn check(&self, at: &str, out: &mut Checker) {
        if self.backends.is_none() {
            out.add(format!("{at}.backends"), "is required; to log nothing, write `backends: []`");
        }
        for (index, backend) in self.backends.iter().flatten().enumerate() {
            backend.check(&format!("{at}.backends[{index}]"), out);
        }
    }
}

impl LogBackend {
    fn check(&self, at: &str, out: &mut Checker) {
        let wanted = match self.form {
            LogBackendForm::Tcp => "tcp",
            LogBackendForm::File => "file",
            LogBackendForm::OpenTelemetry => "openTelemetry",
        };
        out.only_of_type(
            at,
            wanted,
            &[
                ("tcp", self.tcp.is_some()),
                ("file", self.file.is_some()),
                ("openTelemetry", self.open_telemetry.is_some()),
            ],
        );
        if let Some(tcp) = &self.tcp {
            out.host_and_port(format!("{at}.tcp.address"), &tcp.address);
            check_format(tcp.format.as_ref(), &format!("{at}.tcp.format"), out);
        }
        if let Some(file) = &self.file {
            out.file_path(format!("{at}.file.path"), &file.path);
            check_format(file.format.as_ref(), &format!("{at}.file.format"), out);
        }
        if let Some(collector) = &self.open_telemetry {
            let at = format!("{at}.openTelemetry");
            collector.backend_ref.check(&format!("{at}.backendRef"), out);
            let attributes = collector.attributes.as_deref().unwrap_or_default();
            for (index, attribute) in attributes.iter().enumerate() {
                if let Some(message) = attribute_name_error(&attribute.key) {
                    out.add(format!("{at}.attributes[{index}].key"), message);
                }
            }
            let attributes_at = format!("{at}.attributes");
            out.unique(&attributes_at, ".key", attributes, |a| Some(a.key.clone()));
        }
    }
}

fn check_format(format: Option<&LogFormat>, at: &str, out: &mut Checker) {
    let Some(format) = format else { return };
    let wanted = match format.form {
        LogFormatForm::Plain => "plain",
        LogFormatForm::Json => "json",
    };
    let fields = [("plain", format.plain.is_some()), ("json", format.json.is_some())];
    out.only_of_type(at, wanted, &fields);
    let json = format.json.as_deref().unwrap_or_default();
    out.unique(&format!("{at}.json"), ".key", json, |field| Some(field.key.clone()));
}

/// Why `key` can not name an attribute of OpenTelemetry.
fn attribute_name_error(key: &str) -> Option<&'static str> {
    if key.contains('%') {
        return Some("must not hold placeholders; only values may");
    }
    if key.starts_with("otel.") {
        return Some("names that begin with \"otel.\" are OpenTelemetry's own");
    }
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let parts_are_whole = key.split(['.', '_']).all(|part| !part.is_empty() && part.bytes().all(lower));
    let begins_well = key.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    (!parts_are_whole || !begins_well).then_some(
        "must begin with a lower-case letter, and hold lower-case letters and digits with single '.' or '_' between them",
    )
}
