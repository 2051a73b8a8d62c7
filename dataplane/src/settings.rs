//! What a person can set: flags, environment, file. What was typed and what it means are two types.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use granit_parser::{Event, Parser};
use mesh_proto::discovery::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{discovery::TokenSource, workers::Limits};

/// Settings as they are typed. Every flag is also an environment variable (`ISTHMUS_` and the name) and a key of the
/// file; flags win over the file.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Typed {
    /// What the proxy is
    #[arg(long, env = "ISTHMUS_MODE", value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Addresses of the zone control plane's discovery port: host:port[,host:port]
    #[arg(long, env = "ISTHMUS_ZONE_CP", value_delimiter = ',')]
    pub zone_cp: Vec<String>,
    /// File that holds the dataplane token; read again at each call
    #[arg(long, env = "ISTHMUS_DATAPLANE_TOKEN_FILE", conflicts_with = "token")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The dataplane token itself
    #[arg(long, env = "ISTHMUS_DATAPLANE_TOKEN", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// File that holds the Dataplane (or ZoneIngress) resource as YAML or JSON; instead of the flags below
    #[arg(long, env = "ISTHMUS_DATAPLANE_FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_file: Option<PathBuf>,
    /// Where key, certificate and documents are kept [default: /var/lib/isthmus/dataplane/<name>]
    #[arg(long, env = "ISTHMUS_STATE_DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Unix socket for operators [default: /run/isthmus/<name>/admin.sock]
    #[arg(long, env = "ISTHMUS_ADMIN_SOCKET")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_socket: Option<PathBuf>,
    /// Take over from the process that has the admin socket, if there is one: its listeners go on without a gap, it drains
    #[arg(long, env = "ISTHMUS_TAKE_OVER")]
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub take_over: bool,
    /// Address for /healthz, /readyz and /metrics [default: none]
    #[arg(long, env = "ISTHMUS_METRICS_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// Threads that carry traffic [default: as many as the cgroup allows, 2 at most]
    #[arg(long, env = "ISTHMUS_WORKERS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Log level or directives [default: info]
    #[arg(long, env = "ISTHMUS_LOG_LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// How long open connections may go on once the proxy is asked to stop [default: 30]
    #[arg(long, env = "ISTHMUS_DRAIN_TIMEOUT_SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_seconds: Option<u64>,
    /// How long a connection of which one side has ended may be silent [default: 60]
    #[arg(long, env = "ISTHMUS_HALF_CLOSE_TIMEOUT_SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_close_timeout_seconds: Option<u64>,
    /// Open connections of the process [default: 16384]
    #[arg(long, env = "ISTHMUS_MAX_CONNECTIONS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,

    /// Mesh of the workload
    #[arg(long, env = "ISTHMUS_MESH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Name of the proxy
    #[arg(long, env = "ISTHMUS_NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Address at which others reach the proxy
    #[arg(long, env = "ISTHMUS_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Service of the workload (label isthmus.io/service)
    #[arg(long, env = "ISTHMUS_SERVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Further labels: key=value
    #[arg(long, env = "ISTHMUS_LABEL", value_delimiter = ',')]
    pub label: Vec<String>,
    /// Inbounds: [name=]PORT:SERVICEPORT[/protocol]
    #[arg(long, env = "ISTHMUS_INBOUND", value_delimiter = ',')]
    pub inbound: Vec<String>,
    /// Outbounds: PORT=SERVICE:PORT
    #[arg(long, env = "ISTHMUS_OUTBOUND", value_delimiter = ',')]
    pub outbound: Vec<String>,
    /// Port of an ingress
    #[arg(long, env = "ISTHMUS_PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Address at which other zones reach an ingress, where it is another one
    #[arg(long, env = "ISTHMUS_ADVERTISED_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertised_address: Option<String>,
    /// Port at which other zones reach an ingress, where it is another one
    #[arg(long, env = "ISTHMUS_ADVERTISED_PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertised_port: Option<u16>,
}

/// What the proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Beside one workload.
    Sidecar,
    /// At the edge of a zone.
    Ingress,
}

/// Settings as they are meant.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sidecar or ingress.
    pub role: Role,
    /// Addresses of the zone control plane.
    pub zone_cp: Vec<String>,
    /// The bearer token.
    pub token: TokenSource,
    /// The resource that describes the proxy.
    pub resource: String,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// The operator's socket.
    pub admin_socket: PathBuf,
    /// Takes over from the process that has the admin socket.
    pub take_over: bool,
    /// For probes and Prometheus.
    pub metrics_address: Option<SocketAddr>,
    /// Threads that carry traffic.
    pub workers: usize,
    /// Level or directives.
    pub log_level: String,
    /// How long open connections may go on at the end.
    pub drain_timeout: Duration,
    /// What is bounded.
    pub limits: Limits,
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidSettings {
    #[error("--{0} is missing")]
    Missing(&'static str),
    #[error("--zone-cp {0:?} is not an address: write host:port")]
    ZoneCp(String),
    #[error("--dataplane-file {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("--dataplane-file says all about the proxy: leave out --{0}")]
    Both(&'static str),
    #[error("--label {0:?} is not of the form key=value")]
    Label(String),
    #[error("--inbound {0:?} is not of the form [name=]PORT:SERVICEPORT[/protocol]")]
    Inbound(String),
    #[error("--outbound {0:?} is not of the form PORT=SERVICE:PORT")]
    Outbound(String),
    #[error("--workers must be 1 to 256")]
    Workers,
    #[error("--max-connections must be at least 1")]
    MaxConnections,
    #[error("--half-close-timeout-seconds must be at least 1")]
    HalfCloseTimeout,
}

impl Typed {
    /// What is meant.
    ///
    /// # Errors
    /// With the first setting that is missing or wrong.
    pub fn settings(self) -> Result<Settings, InvalidSettings> {
        use InvalidSettings::Missing;
        let role = match self.mode.ok_or(Missing("mode"))? {
            Mode::Sidecar => Role::Sidecar,
            Mode::Ingress => Role::Ingress,
        };
        if self.zone_cp.is_empty() {
            return Err(Missing("zone-cp"));
        }
        for address in &self.zone_cp {
            let port = address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                return Err(InvalidSettings::ZoneCp(address.clone()));
            }
        }
        let token = match (&self.token_file, &self.token) {
            (Some(path), _) => TokenSource::File(path.clone()),
            (None, Some(text)) => TokenSource::Text(text.clone()),
            (None, None) => return Err(Missing("token-file")),
        };
        let (resource, name) = match &self.dataplane_file {
            Some(path) => {
                self.nothing_but_the_file()?;
                from_file(path)?
            }
            None => match role {
                Role::Ingress => self.ingress()?,
                _ => self.dataplane()?,
            },
        };
        let workers = self.workers.unwrap_or_else(default_workers);
        if !(1..=256).contains(&workers) {
            return Err(InvalidSettings::Workers);
        }
        let mut limits = Limits::default();
        if let Some(connections) = self.max_connections {
            if connections == 0 {
                return Err(InvalidSettings::MaxConnections);
            }
            limits.connections = connections;
        }
        if let Some(seconds) = self.half_close_timeout_seconds {
            if seconds == 0 {
                return Err(InvalidSettings::HalfCloseTimeout);
            }
            limits.half_close_timeout = Duration::from_secs(seconds);
        }
        Ok(Settings {
            role,
            zone_cp: self.zone_cp,
            token,
            resource,
            state_dir: self
                .state_dir
                .unwrap_or_else(|| Path::new("/var/lib/isthmus/dataplane").join(&name)),
            admin_socket: self
                .admin_socket
                .unwrap_or_else(|| Path::new("/run/isthmus").join(&name).join("admin.sock")),
            take_over: self.take_over,
            metrics_address: self.metrics_address,
            workers,
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
            drain_timeout: Duration::from_secs(self.drain_timeout_seconds.unwrap_or(30)),
            limits,
        })
    }

    fn nothing_but_the_file(&self) -> Result<(), InvalidSettings> {
        let said = [
            ("mesh", self.mesh.is_some()),
            ("address", self.address.is_some()),
            ("service", self.service.is_some()),
            ("label", !self.label.is_empty()),
            ("inbound", !self.inbound.is_empty()),
            ("outbound", !self.outbound.is_empty()),
            ("port", self.port.is_some()),
        ];
        match said.iter().find(|(_, said)| *said) {
            Some((name, _)) => Err(InvalidSettings::Both(name)),
            None => Ok(()),
        }
    }

    /// The Dataplane resource that the flags say. The zone validates it, so that there is one parser for what people
    /// write.
    fn dataplane(&self) -> Result<(String, String), InvalidSettings> {
        let mesh = required("mesh", &self.mesh)?;
        let name = required("name", &self.name)?;
        let address = required("address", &self.address)?;
        let mut labels = serde_json::Map::new();
        if let Some(service) = &self.service {
            labels.insert("isthmus.io/service".to_owned(), json!(service));
        }
        for label in &self.label {
            let (key, value) = label
                .split_once('=')
                .ok_or_else(|| InvalidSettings::Label(label.clone()))?;
            labels.insert(key.to_owned(), json!(value));
        }
        let inbound: Vec<_> = self
            .inbound
            .iter()
            .map(|t| inbound(t))
            .collect::<Result<_, _>>()?;
        let outbound: Vec<_> = self
            .outbound
            .iter()
            .map(|t| outbound(t))
            .collect::<Result<_, _>>()?;
        let resource = json!({
            "type": "Dataplane",
            "mesh": mesh,
            "name": name,
            "labels": labels,
            "networking": {"address": address, "inbound": inbound, "outbound": outbound},
        });
        Ok((resource.to_string(), name))
    }

    fn ingress(&self) -> Result<(String, String), InvalidSettings> {
        let name = required("name", &self.name)?;
        let mut networking = json!({
            "address": required("address", &self.address)?,
            "port": self.port.ok_or(InvalidSettings::Missing("port"))?,
        });
        if let Some(address) = &self.advertised_address {
            networking["advertisedAddress"] = json!(address);
        }
        if let Some(port) = self.advertised_port {
            networking["advertisedPort"] = json!(port);
        }
        let resource = json!({"type": "ZoneIngress", "name": name, "networking": networking});
        Ok((resource.to_string(), name))
    }
}

fn required(name: &'static str, value: &Option<String>) -> Result<String, InvalidSettings> {
    value.clone().ok_or(InvalidSettings::Missing(name))
}

/// The file's text and the name in it.
fn from_file(path: &Path) -> Result<(String, String), InvalidSettings> {
    let refused = |reason: String| InvalidSettings::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let name = name_in(&text).map_err(refused)?;
    // The name becomes part of paths.
    if !mesh_proto::names::is_subdomain(&name) {
        return Err(refused(format!("name {name:?} is not a name")));
    }
    Ok((text, name))
}

/// The value of the key `name` at the top of a YAML (or JSON) document. The zone reads the rest, and says what is wrong
/// with it.
fn name_in(text: &str) -> Result<String, String> {
    let (mut depth, mut key) = (0_usize, true);
    let mut named = false;
    for event in Parser::new_from_str(text) {
        let (event, at) = event.map_err(|error| error.to_string())?;
        match event {
            Event::Scalar(value, ..) if depth == 1 && !key && named => {
                return Ok(value.into_owned());
            }
            Event::Scalar(value, ..) if depth == 1 => {
                named = key && value == "name";
                key = !key;
            }
            Event::Alias(_) if depth == 1 => key = !key,
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if named && depth == 1 {
                    let line = at.start.line();
                    return Err(format!("line {line}: name is not a text"));
                }
                depth += 1;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                depth -= 1;
                if depth == 1 {
                    key = !key;
                }
            }
            Event::DocumentEnd => break,
            _ => {}
        }
    }
    Err("it has no name".to_owned())
}

/// `[name=]PORT:SERVICEPORT[/protocol]`
fn inbound(text: &str) -> Result<Value, InvalidSettings> {
    let bad = || InvalidSettings::Inbound(text.to_owned());
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) => (Some(name), rest),
        None => (None, text),
    };
    let (ports, protocol) = match rest.split_once('/') {
        Some((ports, protocol)) => (ports, Some(protocol)),
        None => (rest, None),
    };
    let (port, service_port) = ports.split_once(':').ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    let mut inbound = json!({"port": number(port)?, "servicePort": number(service_port)?});
    if let Some(name) = name {
        inbound["name"] = json!(name);
    }
    if let Some(protocol) = protocol {
        inbound["protocol"] = json!(protocol);
    }
    Ok(inbound)
}

/// `PORT=SERVICE:PORT`
fn outbound(text: &str) -> Result<Value, InvalidSettings> {
    let bad = || InvalidSettings::Outbound(text.to_owned());
    let (port, rest) = text.split_once('=').ok_or_else(bad)?;
    let (service, service_port) = rest.rsplit_once(':').ok_or_else(bad)?;
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    Ok(json!({
        "port": number(port)?,
        "backendRef": {"kind": "MeshService", "name": service, "port": number(service_port)?},
    }))
}

/// As many as the cgroup's quota and the machine allow, two at most.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed() -> Typed {
        Typed {
            mode: Some(Mode::Sidecar),
            zone_cp: vec!["zone:5678".into()],
            token: Some("t".into()),
            mesh: Some("pay".into()),
            name: Some("web-1".into()),
            address: Some("10.0.0.1".into()),
            ..Typed::default()
        }
    }

    #[test]
    fn flags_make_a_dataplane_resource() {
        let settings = Typed {
            service: Some("web".into()),
            label: vec!["team=a".into()],
            inbound: vec!["main=8080:80/http".into(), "9090:90".into()],
            outbound: vec!["7000=store:6379".into()],
            ..typed()
        }
        .settings()
        .unwrap();
        let resource: Value = serde_json::from_str(&settings.resource).unwrap();
        let wanted = json!({
            "type": "Dataplane", "mesh": "pay", "name": "web-1",
            "labels": {"isthmus.io/service": "web", "team": "a"},
            "networking": {
                "address": "10.0.0.1",
                "inbound": [
                    {"name": "main", "port": 8080, "servicePort": 80, "protocol": "http"},
                    {"port": 9090, "servicePort": 90},
                ],
                "outbound": [
                    {"port": 7000, "backendRef": {"kind": "MeshService", "name": "store", "port": 6379}},
                ],
            },
        });
        assert_eq!(resource, wanted);
        assert_eq!(
            settings.admin_socket,
            Path::new("/run/isthmus/web-1/admin.sock")
        );
        assert!((1..=2).contains(&settings.workers));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |change: fn(&mut Typed)| {
            let mut typed = typed();
            change(&mut typed);
            typed.settings().unwrap_err().to_string()
        };
        for (error, word) in [
            (refused(|t| t.mode = None), "--mode"),
            (refused(|t| t.zone_cp = vec![]), "--zone-cp"),
            (refused(|t| t.zone_cp = vec!["zone".into()]), "host:port"),
            (refused(|t| t.token = None), "--token-file"),
            (refused(|t| t.mesh = None), "--mesh"),
            (refused(|t| t.label = vec!["x".into()]), "key=value"),
            (
                refused(|t| t.inbound = vec!["80".into()]),
                "PORT:SERVICEPORT",
            ),
            (
                refused(|t| t.inbound = vec!["80:x".into()]),
                "PORT:SERVICEPORT",
            ),
            (
                refused(|t| t.outbound = vec!["80:x".into()]),
                "PORT=SERVICE:PORT",
            ),
            (refused(|t| t.workers = Some(0)), "--workers"),
            (
                refused(|t| t.half_close_timeout_seconds = Some(0)),
                "--half-close-timeout-seconds",
            ),
            (
                refused(|t| t.dataplane_file = Some("/none".into())),
                "leave out --mesh",
            ),
        ] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_name_is_found_where_the_resource_has_it() {
        for text in [
            "type: Dataplane\nname: web-2\n",
            "labels: {name: other, a: [name, b]}\nnetworking:\n  inbound:\n  - name: main\nname: \"web-2\"\n",
            "{\"networking\": {\"name\": \"other\"}, \"name\": \"web-2\"}",
            "x: &n web-2\ny: *n\n? {a: b}\n: c\nname: web-2\n",
        ] {
            assert_eq!(name_in(text).as_deref(), Ok("web-2"), "{text}");
        }
        for (text, reason) in [
            ("type: Dataplane\n", "no name"),
            ("", "no name"),
            ("- name: web-2\n", "no name"),
            ("labels: name\n---\nname: web-2\n", "no name"),
            ("mesh: pay\nname: {a: b}\n", "line 2: name is not a text"),
            ("name: [\n", "line"),
        ] {
            let error = name_in(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_is_sent_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataplane.yaml");
        let text = "type: Dataplane\nmesh: pay\nname: web-2\nnetworking: {address: 10.0.0.1}\n";
        std::fs::write(&path, text).unwrap();
        let settings = Typed {
            mesh: None,
            name: None,
            address: None,
            dataplane_file: Some(path),
            ..typed()
        }
        .settings()
        .unwrap();
        assert_eq!(settings.resource, text);
        assert!(settings.state_dir.ends_with("web-2"));
    }
}
