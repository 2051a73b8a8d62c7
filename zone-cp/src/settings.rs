//! The command line, and what it means.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use serde::{Deserialize, Serialize};

/// What may be given by flag, environment or file.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Given {
    /// Where identity, resources, keys and registrations are kept [default: /var/lib/isthmus/zone-cp]
    #[arg(long, env = "ISTHMUS_DATA_DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Where dataplanes call [default: [::]:5678]
    #[arg(long, env = "ISTHMUS_DISCOVERY_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery_address: Option<SocketAddr>,
    /// The zone's own API, on loopback [default: 127.0.0.1:5681]
    #[arg(long, env = "ISTHMUS_API_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_address: Option<SocketAddr>,
    /// Health and metrics [default: 127.0.0.1:5680]
    #[arg(long, env = "ISTHMUS_ADMIN_ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_address: Option<SocketAddr>,
    /// The host name or address by which dataplanes reach this machine [default: the host name]
    #[arg(long, env = "ISTHMUS_ADVERTISE_HOST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_host: Option<String>,
    /// How long a dataplane may be away before it is forgotten [default: 30]
    #[arg(long, env = "ISTHMUS_GRACE_PERIOD_SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u64>,
    /// Addresses (host:port) of global, instead of those that joining gave
    #[arg(long, env = "ISTHMUS_GLOBAL", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub global: Vec<String>,
    /// error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, env = "ISTHMUS_LOG_LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where dataplanes call.
    pub discovery_address: SocketAddr,
    /// The zone's own API.
    pub api_address: SocketAddr,
    /// Health and metrics.
    pub admin_address: SocketAddr,
    /// How this machine is reached.
    pub advertise_host: String,
    /// How long a dataplane may be away.
    pub grace: Duration,
    /// Addresses of global; empty: those that joining gave.
    pub global: Vec<String>,
    /// How much is logged.
    pub log_level: String,
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The API has no authentication.
    #[error(
        "api-address: {0} is not a loopback address; the zone's own API is open to whoever reaches it, so that it is served on loopback only"
    )]
    OpenApi(SocketAddr),
}

impl Given {
    /// Fills in what was not given.
    ///
    /// # Errors
    /// Where what was given is not allowed.
    pub fn complete(self) -> Result<Settings, SettingsError> {
        let settings = Settings {
            data_dir: self
                .data_dir
                .unwrap_or_else(|| "/var/lib/isthmus/zone-cp".into()),
            discovery_address: self.discovery_address.unwrap_or(([0; 8], 5678).into()),
            api_address: self.api_address.unwrap_or(([127, 0, 0, 1], 5681).into()),
            admin_address: self.admin_address.unwrap_or(([127, 0, 0, 1], 5680).into()),
            advertise_host: self.advertise_host.unwrap_or_else(host_name),
            grace: Duration::from_secs(self.grace_period_seconds.unwrap_or(30)),
            global: self.global,
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
        };
        if !settings.api_address.ip().is_loopback() {
            return Err(SettingsError::OpenApi(settings.api_address));
        }
        Ok(settings)
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_api_stays_on_loopback() {
        let given = |address: &str| Given {
            api_address: Some(address.parse().unwrap()),
            ..Given::default()
        };
        assert!(given("[::1]:0").complete().is_ok());
        assert!(given("0.0.0.0:5681").complete().is_err());
        assert!(given("[::]:5681").complete().is_err());
    }
}
