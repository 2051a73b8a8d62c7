//! Settings: what may be given by flag, environment or file, and what they amount to.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
};

use mesh_runtime::config::{self, ConfigError};
use serde::{Deserialize, Serialize};

use crate::{api::limits::Bounds, cluster::BIGGEST_ENTRY, state::records::HistoryLimits};

/// What may be given. Every flag is also an environment variable and a key of the TOML file.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Where everything is kept [default: /var/lib/isthmus/global-cp]
    #[arg(long, env = "ISTHMUS_DATA_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,

    /// Address of the REST API [default: [::]:5682]
    #[arg(long, env = "ISTHMUS_API_ADDRESS", value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_address: Option<String>,

    /// Address at which zones and new nodes call [default: [::]:5685]
    #[arg(long, env = "ISTHMUS_ZONE_ADDRESS", value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_address: Option<String>,

    /// Address at which the other nodes call [default: [::]:5686]
    #[arg(long, env = "ISTHMUS_RAFT_ADDRESS", value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_address: Option<String>,

    /// Address of health and metrics [default: 127.0.0.1:5680]
    #[arg(long, env = "ISTHMUS_ADMIN_ADDRESS", value_name = "IP:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_address: Option<String>,

    /// Name or address under which zones, nodes and people reach this node [default: the host's name]
    #[arg(long, env = "ISTHMUS_ADVERTISE_HOST", value_name = "HOST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_host: Option<String>,

    /// At the first start: join the installation whose zone port is here, instead of founding one
    #[arg(long, env = "ISTHMUS_JOIN", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,

    /// Token for --join (`meshctl token create`)
    #[arg(
        long,
        env = "ISTHMUS_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,

    /// Largest body of a request to the REST API, in bytes [default: 8388608]
    #[arg(long, env = "ISTHMUS_API_BODY_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_body_bytes_max: Option<NonZeroUsize>,

    /// Requests to the REST API that are answered at once [default: 512]
    #[arg(long, env = "ISTHMUS_API_REQUESTS_MAX", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_requests_max: Option<NonZeroUsize>,

    /// Of these, requests of one token [default: 64]
    #[arg(
        long,
        env = "ISTHMUS_API_REQUESTS_PER_TOKEN_MAX",
        value_name = "NUMBER"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_requests_per_token_max: Option<NonZeroUsize>,

    /// Requests of one token in a second; twice as many may come at once after a pause [default: 2000]
    #[arg(long, env = "ISTHMUS_API_RATE_PER_TOKEN_MAX", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_rate_per_token_max: Option<NonZeroU32>,

    /// Watches that are served at once [default: 512]
    #[arg(long, env = "ISTHMUS_API_WATCHES_MAX", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_watches_max: Option<NonZeroUsize>,

    /// Of these, watches of one token [default: 64]
    #[arg(long, env = "ISTHMUS_API_WATCHES_PER_TOKEN_MAX", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_watches_per_token_max: Option<NonZeroUsize>,

    /// Changes that are kept as history, on all nodes: what the last started node says that says anything
    /// [default: 100000]
    #[arg(long, env = "ISTHMUS_HISTORY_CHANGES_MAX", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_changes_max: Option<NonZeroU64>,

    /// Bytes of changes that are kept as history, on all nodes, as above [default: 67108864]
    #[arg(long, env = "ISTHMUS_HISTORY_BYTES_MAX", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_bytes_max: Option<NonZeroU64>,

    /// error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, env = "ISTHMUS_LOG_LEVEL", value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// What the settings amount to.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Address of the REST API.
    pub api_address: SocketAddr,
    /// Address at which zones and new nodes call.
    pub zone_address: SocketAddr,
    /// Address at which the other nodes call.
    pub raft_address: SocketAddr,
    /// Address of health and metrics.
    pub admin_address: SocketAddr,
    /// Host that others are told.
    pub advertise_host: String,
    /// Where to join at the first start, and with which token.
    pub join: Option<Join>,
    /// How much the API does at once.
    pub bounds: Bounds,
    /// How much of the past is kept, where this node says so.
    pub history: HistoryLimits,
    /// What is logged.
    pub log_level: String,
}

/// Joining an installation.
#[derive(Clone)]
pub struct Join {
    /// `host:port` of a node's zone port.
    pub address: String,
    /// The node-join token.
    pub token: String,
}

/// Shows the address only.
impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not readable or not understood.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// A value is not what it should be.
    #[error("{field}: {value:?} {expected}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The host's name is not known, or no name.
    #[error("advertise-host: the host has no usable name; give one with --advertise-host")]
    HostName,
}

impl Settings {
    /// Lays flags and environment over the file, fills in the defaults and checks every value.
    ///
    /// # Errors
    /// Where the file or a value is wrong; the message names the field, and for the file its line.
    pub fn resolve(self, file: Option<&Path>) -> Result<Config, SettingsError> {
        let settings = config::load(self, file)?;
        let given = settings.clone();
        let join = match (settings.join, settings.token) {
            (Some(address), Some(token)) => Some(Join {
                address: checked_target(address)?,
                token: token.trim().to_owned(),
            }),
            (Some(value), None) => {
                return Err(SettingsError::Value {
                    field: "join",
                    value,
                    expected: "needs a token: give --token",
                });
            }
            (None, _) => None,
        };
        Ok(Config {
            data_dir: settings
                .data_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/isthmus/global-cp")),
            api_address: address("api-address", settings.api_address, "[::]:5682")?,
            zone_address: address("zone-address", settings.zone_address, "[::]:5685")?,
            raft_address: address("raft-address", settings.raft_address, "[::]:5686")?,
            admin_address: address("admin-address", settings.admin_address, "127.0.0.1:5680")?,
            advertise_host: match settings.advertise_host {
                Some(host) => checked_host(host)?,
                None => host_name()?,
            },
            join,
            bounds: bounds(&given)?,
            history: HistoryLimits {
                changes: given.history_changes_max.map_or(0, NonZeroU64::get),
                bytes: given.history_bytes_max.map_or(0, NonZeroU64::get),
            },
            log_level: log_level(settings.log_level),
        })
    }
}

/// The consensus library says at level info what concerns its developers; a plain level means our own parts.
fn log_level(level: Option<String>) -> String {
    let level = level.unwrap_or_else(|| "info".to_owned());
    if matches!(level.as_str(), "info" | "warn") {
        format!("{level},openraft=error")
    } else {
        level
    }
}

fn bounds(given: &Settings) -> Result<Bounds, SettingsError> {
    let default = Bounds::default();
    let body_bytes = given.api_body_bytes_max.unwrap_or(default.body_bytes);
    if body_bytes.get() > BIGGEST_ENTRY {
        return Err(SettingsError::Value {
            field: "api-body-bytes-max",
            value: body_bytes.to_string(),
            expected: "must be at most 16777216: more is never written as one change",
        });
    }
    Ok(Bounds {
        body_bytes,
        requests: given.api_requests_max.unwrap_or(default.requests),
        requests_of_one: given
            .api_requests_per_token_max
            .unwrap_or(default.requests_of_one),
        rate_of_one: given.api_rate_per_token_max.unwrap_or(default.rate_of_one),
        watches: given.api_watches_max.unwrap_or(default.watches),
        watches_of_one: given
            .api_watches_per_token_max
            .unwrap_or(default.watches_of_one),
    })
}

fn address(
    field: &'static str,
    value: Option<String>,
    default: &str,
) -> Result<SocketAddr, SettingsError> {
    let value = value.unwrap_or_else(|| default.to_owned());
    value.parse().map_err(|_| SettingsError::Value {
        field,
        value,
        expected: "must be an IP address and a port, such as 127.0.0.1:5682 or [::]:5682",
    })
}

fn checked_target(value: String) -> Result<String, SettingsError> {
    let good = value
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
    if good {
        Ok(value)
    } else {
        Err(SettingsError::Value {
            field: "join",
            value,
            expected: "must be host:port of the zone port of a node, such as cp1.example.com:5685",
        })
    }
}

fn checked_host(value: String) -> Result<String, SettingsError> {
    let bare = value.trim_start_matches('[').trim_end_matches(']');
    let good = bare.parse::<std::net::IpAddr>().is_ok()
        || (!value.is_empty()
            && value.len() <= 253
            && value
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')));
    if good {
        Ok(bare.to_owned())
    } else {
        Err(SettingsError::Value {
            field: "advertise-host",
            value,
            expected: "must be a host name or an IP address, without a port",
        })
    }
}

fn host_name() -> Result<String, SettingsError> {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    checked_host(name).map_err(|_| SettingsError::HostName)
}

/// `host:port`, with an IPv6 host in brackets.
#[must_use]
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in() {
        let settings = Settings {
            advertise_host: Some("cp1".into()),
            ..Settings::default()
        };
        let config = settings.resolve(None).unwrap();
        assert_eq!(config.api_address.port(), 5682);
        assert!(config.join.is_none());
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let wrong = |change: fn(&mut Settings)| {
            let mut settings = Settings {
                advertise_host: Some("cp1".into()),
                ..Settings::default()
            };
            change(&mut settings);
            settings.resolve(None).unwrap_err().to_string()
        };
        for (message, field) in [
            (
                wrong(|s| s.api_address = Some("5682".into())),
                "api-address",
            ),
            (
                wrong(|s| s.raft_address = Some("host:1".into())),
                "raft-address",
            ),
            (
                wrong(|s| s.advertise_host = Some("a:1".into())),
                "advertise-host",
            ),
            (wrong(|s| s.join = Some("a:1".into())), "join"),
            (
                wrong(|s| {
                    s.join = Some("a".into());
                    s.token = Some("t".into());
                }),
                "join",
            ),
            (
                wrong(|s| s.api_body_bytes_max = NonZeroUsize::new(17 << 20)),
                "api-body-bytes-max",
            ),
        ] {
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn a_wrong_file_is_refused_with_line_and_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("global-cp.toml");
        std::fs::write(&path, "log-level = \"debug\"\napi-adress = \"x\"\n").unwrap();
        let error = Settings::default()
            .resolve(Some(&path))
            .unwrap_err()
            .to_string();
        assert!(error.contains("global-cp.toml:2:"), "{error}");
        assert!(error.contains("api-adress"), "{error}");
    }

    #[test]
    fn ipv6_hosts_are_bracketed() {
        assert_eq!(host_port("::1", 5), "[::1]:5");
        assert_eq!(host_port("a.b", 5), "a.b:5");
    }
}
