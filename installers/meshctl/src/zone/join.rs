//! `meshctl zone join`: turns a single-use token into this machine's zone.
//!
//! In this order: what was typed and the token are looked at; the places for the files are proved writable, since the
//! token works only once; a key is made here; global, recognised by the CA pin in the token, signs for it; the files
//! are written, the identity last; the control plane is started and waited for, or the way to start it is told.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use mesh_proto::{
    names::ZoneName,
    spiffe::SpiffeId,
    zone::{JoinZoneRequest, JoinZoneResponse, join_client::JoinClient},
};
use mesh_runtime::{
    identity_dir::StoredIdentity,
    pki,
    tls::{self, LocalIdentity, PinVerifier, WRONG_PIN},
    transport::{self, ConnectError},
};
use tonic::{Code, Status};

use super::{
    claims::{self, Claims},
    files::{Settings, Undo, ZoneFiles},
    readiness::{self, ControlPlane},
    systemd::{self, INGRESS, Systemd, Unit, ZONE_CP},
};
use crate::{cli::Connection, failure::Failure, output};

/// Where zones call a global node.
const ZONE_PORT: u16 = 5685;
/// Global answers a join within this, or says why not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "\
Examples:
  meshctl zone join --global https://cp.example.com:5685 --token TOKEN
  meshctl zone join --global cp1:5685,cp2:5685 --token-file join.token --advertise-host 10.1.0.5 \\
      --with-ingress --ingress-address 10.1.0.5
  meshctl zone join --global https://cp:5685 --token TOKEN --data-dir ./east
                                     everything below ./east; nothing is started

The token comes from `meshctl token create zone-join --zone NAME` and works once.";

/// Join this machine to the global control plane as the control plane of a zone, and start it.
///
/// Where systemd runs the machine, the units are installed, enabled and started, and the command waits until the zone
/// is in; elsewhere it says how to start by hand. A join that fails changes nothing on this machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Join {
    /// The zone port of a global node; several, joined by commas, are tried in order.
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    global: Vec<String>,
    /// Where the control plane keeps its state [default: /var/lib/isthmus/zone-cp]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where its configuration goes [default: /etc/isthmus, or the data directory where that is named]
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// The name or address under which dataplanes reach this machine [default: its host name]
    #[arg(long, value_name = "HOST")]
    advertise_host: Option<String>,
    /// Also set up the zone's ingress on this machine, where other zones enter.
    #[arg(long, requires = "ingress_address")]
    with_ingress: bool,
    /// The address at which the ingress listens.
    #[arg(long, value_name = "IP", requires = "with_ingress")]
    ingress_address: Option<IpAddr>,
    /// The port at which the ingress listens.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10001,
        requires = "with_ingress"
    )]
    ingress_port: u16,
    /// The address that other zones are told [default: the one it listens at]
    #[arg(long, value_name = "HOST", requires = "with_ingress")]
    ingress_advertised_address: Option<String>,
    /// The port that other zones are told [default: the one it listens at]
    #[arg(long, value_name = "PORT", requires = "with_ingress")]
    ingress_advertised_port: Option<u16>,
    /// Only join; start nothing.
    #[arg(long)]
    no_start: bool,
    /// Replace the identity of a zone that this machine has already.
    #[arg(long)]
    force: bool,
    /// How long to wait until the zone, and its ingress, are in.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Join {
    /// Joins, writes and starts.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let addresses = self.addresses()?;
        let token = connection.token()?.ok_or_else(|| {
            Failure::invalid(
                "no token: give the one from `meshctl token create zone-join --zone NAME` by --token or --token-file",
            )
        })?;
        let claims = claims::zone_join(&token)?;
        let files = ZoneFiles::new(self.data_dir.clone(), self.config_dir.clone());
        if let Some(zone) = files.joined_zone().filter(|_| !self.force) {
            return Err(Failure::failed(format!(
                "{} holds the identity of zone {zone} already; the token was not used\nTo replace it: --force. For a second zone on this machine: --data-dir.",
                files.identity().display()
            )));
        }
        let mut undo = Undo::default();
        files.prepare(&mut undo)?;

        let key = pki::new_key().map_err(|error| Failure::failed(error.to_string()))?;
        let request = JoinZoneRequest {
            token,
            csr: pki::request(&key).map_err(|error| Failure::failed(error.to_string()))?,
            version: mesh_proto::VERSION.to_owned(),
        };
        let answer = join(&addresses, &claims, request).await?;
        let identity = checked(key, &answer, &claims).map_err(|reason| {
            Failure::failed(format!("global's answer is not to be used: {reason}"))
        })?;
        files.write(
            &identity,
            &answer,
            &self.configs(&files, &answer.zone),
            &mut undo,
        )?;
        undo.forget();

        output::print(&format!(
            "zone {} has joined\n  identity       {}\n  configuration  {}\n  ingress token  {}",
            answer.zone,
            files.identity().display(),
            files.zone_config().display(),
            files.ingress_token().display(),
        ))?;
        let systemd = Systemd::here();
        if self.no_start || !files.are_usual() || !systemd.runs() {
            return output::print(&self.by_hand(&files, &answer.zone));
        }
        self.start(&systemd, &files, &answer.zone).await
    }

    fn addresses(&self) -> Result<Vec<String>, Failure> {
        self.global.iter().map(|text| address(text)).collect()
    }

    /// Configuration files to write where there are none.
    fn configs(&self, files: &ZoneFiles, zone: &str) -> Vec<(PathBuf, Settings)> {
        let mut zone_cp = toml::Table::new();
        let text = |path: &Path| toml::Value::from(path.display().to_string());
        zone_cp.insert("data-dir".to_owned(), text(&files.data_dir));
        if let Some(host) = &self.advertise_host {
            zone_cp.insert("advertise-host".to_owned(), host.as_str().into());
        }
        let mut configs = vec![(files.zone_config(), Settings(zone_cp))];
        if let Some(address) = self.ingress_address {
            let mut ingress = toml::Table::new();
            ingress.insert("name".to_owned(), ingress_name(zone).into());
            ingress.insert(
                "zone-cp".to_owned(),
                toml::Value::Array(vec!["localhost:5678".into()]),
            );
            ingress.insert("address".to_owned(), address.to_string().into());
            ingress.insert("port".to_owned(), i64::from(self.ingress_port).into());
            if let Some(host) = &self.ingress_advertised_address {
                ingress.insert("advertised-address".to_owned(), host.as_str().into());
            }
            if let Some(port) = self.ingress_advertised_port {
                ingress.insert("advertised-port".to_owned(), i64::from(port).into());
            }
            configs.push((files.ingress_config(), Settings(ingress)));
        }
        configs
    }

    /// How to start without systemd.
    fn by_hand(&self, files: &ZoneFiles, zone: &str) -> String {
        let ingress = if self.with_ingress {
            format!("--config {}", files.ingress_config().display())
        } else {
            format!(
                "--zone-cp localhost:5678 \\\n      --name {} --address IP-THAT-OTHER-ZONES-REACH --port {}",
                ingress_name(zone),
                self.ingress_port
            )
        };
        let state = if files.are_usual() {
            files.data_dir.with_file_name("ingress")
        } else {
            files.data_dir.join("ingress")
        };
        format!(
            "\nNothing was started. Start the zone's control plane:\n  zone-cp run --config {}\nand the zone's ingress, where other zones shall reach its services:\n  dataplane run --mode ingress {ingress} \\\n      --token-file {} --state-dir {} --admin-socket {}",
            files.zone_config().display(),
            files.ingress_token().display(),
            state.display(),
            state.join("admin.sock").display(),
        )
    }

    async fn start(&self, systemd: &Systemd, files: &ZoneFiles, zone: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        let started = |unit: &Unit| {
            let directory = systemd::directory_of(unit.program)
                .map_err(|error| Failure::failed(error.to_string()))?;
            systemd.start(unit, &directory)
        };
        started(&ZONE_CP).map_err(|failure| {
            Failure::failed(format!(
                "the zone has joined, but is not started: {failure}"
            ))
        })?;
        eprintln!("waiting until zone {zone} is in");
        let control_plane = ControlPlane::new(&files.data_dir)?;
        let has_failed = || systemd.has_failed(&ZONE_CP);
        readiness::wait(&ZONE_CP, deadline, has_failed, || control_plane.is_in()).await?;
        output::print(&format!("zone {zone} is in"))?;
        if self.with_ingress {
            started(&INGRESS)?;
            eprintln!("waiting until its ingress serves");
            let name = ingress_name(zone);
            let has_failed = || systemd.has_failed(&INGRESS);
            readiness::wait(&INGRESS, deadline, has_failed, || {
                control_plane.has_ingress(&name)
            })
            .await?;
            output::print(&format!("its ingress serves as {name}"))?;
        }
        Ok(())
    }
}

/// The name of the ingress on the machine of a zone's control plane.
fn ingress_name(zone: &str) -> String {
    format!("ingress-{zone}")
}

/// `host:port` from an address or URL; the port may be left out.
fn address(text: &str) -> Result<String, Failure> {
    let wrong = || {
        Failure::invalid(format!(
            "--global {text:?} is no address: write https://HOST:{ZONE_PORT}"
        ))
    };
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest,
        Some(_) => return Err(wrong()),
        None => text,
    };
    // A scheme without a default port, so that one that was typed is never lost.
    let url = reqwest::Url::parse(&format!("zone://{}", rest.trim_end_matches('/')))
        .map_err(|_| wrong())?;
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(wrong)?;
    if !url.path().is_empty() || url.query().is_some() || !url.username().is_empty() {
        return Err(wrong());
    }
    Ok(format!("{host}:{}", url.port().unwrap_or(ZONE_PORT)))
}

/// Asks one node after the other, until one answers.
async fn join(
    addresses: &[String],
    claims: &Claims,
    request: JoinZoneRequest,
) -> Result<JoinZoneResponse, Failure> {
    let mut unreached = Vec::new();
    for address in addresses {
        match join_at(address, &claims.pin, request.clone()).await {
            Err(Refusal::NotReached(reason)) => unreached.push(reason),
            Err(Refusal::Final(reason)) => return Err(Failure::Failed(reason)),
            Ok(answer) => return Ok(answer),
        }
    }
    Err(Failure::failed(format!(
        "{}\nDoes global-cp run there, and may this machine reach its zone port ({ZONE_PORT})?",
        unreached.join("\n")
    )))
}

/// Why a node does not let the zone join.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Another node may.
    NotReached(String),
    /// None will.
    Final(String),
}

async fn join_at(
    address: &str,
    pin: &str,
    request: JoinZoneRequest,
) -> Result<JoinZoneResponse, Refusal> {
    let accept = |id: &SpiffeId| match (id.as_global_node(), id.as_zone()) {
        (Some(_), _) => Ok(()),
        (None, Some(zone)) => Err(format!("this is the control plane of zone {zone}")),
        (None, None) => Err("this is no global control plane node".to_owned()),
    };
    let verifier = PinVerifier::new(pin.to_owned(), Arc::new(accept));
    let tls = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
    let channel = transport::channel(address, Arc::new(tls))
        .await
        .map_err(|error| not_connected(address, &error))?;
    let mut client = JoinClient::new(channel);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.join_zone(request))
        .await
        .map_err(|_| {
            Refusal::Final(format!(
                "{address} was reached, but gave no answer within {} s. The token may be used by now; if joining with it fails, make a new one.",
                ANSWER_TIMEOUT.as_secs()
            ))
        })?;
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(refused(address, &status)),
    }
}

fn not_connected(address: &str, error: &ConnectError) -> Refusal {
    let ConnectError::Connect { reason, .. } = error else {
        return Refusal::Final(error.to_string());
    };
    let reason = reason.trim_start_matches("unexpected error: ");
    if reason.contains(WRONG_PIN) || reason.contains("spiffe://") {
        return Refusal::Final(format!(
            "{address} answers, but is not to be trusted: {reason}\nThe token was not sent. Take a token of the installation at that address, or name the global control plane's zone port with --global https://HOST:{ZONE_PORT}."
        ));
    }
    Refusal::NotReached(format!("cannot reach {address}: {reason}"))
}

fn refused(address: &str, status: &Status) -> Refusal {
    let message = status.message();
    let wrong_port = || {
        Refusal::Final(format!(
            "{address} answers, but lets no zones join: is it the API's port? Zones join at port {ZONE_PORT}."
        ))
    };
    match status.code() {
        // No gRPC service of ours at all: an HTTP API, most likely, whose answer tonic can not read.
        Code::Internal | Code::Unknown if message.starts_with("protocol error") => wrong_port(),
        Code::Unimplemented => wrong_port(),
        // It says itself that nothing was done.
        Code::Unavailable => Refusal::NotReached(format!("{address}: {message}")),
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::NotFound => Refusal::Final(format!(
            "the zone may not join: {message}\nMake a token with `meshctl token create zone-join --zone NAME`."
        )),
        code => Refusal::Final(format!(
            "{address} could not let the zone join ({code:?}): {message}"
        )),
    }
}

/// What global answered, as an identity that can be used: for the zone of the token, for our key, under the pinned CA.
fn checked(
    key: pki::KeyPair,
    answer: &JoinZoneResponse,
    claims: &Claims,
) -> Result<StoredIdentity, String> {
    let zone: ZoneName = answer.zone.parse().map_err(|error| format!("{error}"))?;
    if claims
        .zone
        .as_ref()
        .is_some_and(|wanted| *wanted != answer.zone)
    {
        return Err(format!("the token is for another zone than {zone}"));
    }
    let chain =
        pki::certificates_from_pem(&answer.certificate).map_err(|error| error.to_string())?;
    let anchors = pki::certificates_from_pem(&answer.anchors).map_err(|error| error.to_string())?;
    let leaf = chain.first().ok_or("there is no certificate")?;
    let id = tls::spiffe_id(leaf).map_err(|error| error.to_string())?;
    if id != SpiffeId::zone(&zone) {
        return Err(format!("the certificate is for {id}"));
    }
    LocalIdentity::none()
        .set(chain.clone(), &pki::private_key(&key))
        .map_err(|error| format!("the certificate is not for our key: {error}"))?;
    if !anchors
        .iter()
        .any(|ca| pki::pin(ca).is_ok_and(|pin| pin == claims.pin))
    {
        return Err("the CA that the token names is not among its anchors".to_owned());
    }
    Ok(StoredIdentity {
        key,
        chain,
        anchors,
    })
}

#[cfg(test)]
mod tests {
    use mesh_runtime::pki::{Ca, Subject};
    use time::{Duration as Span, OffsetDateTime};

    use super::*;

    #[test]
    fn an_address_may_be_a_url_and_may_leave_out_the_port() {
        for (text, expected) in [
            ("https://cp.example.com:5685", "cp.example.com:5685"),
            ("https://cp:443/", "cp:443"),
            ("cp", "cp:5685"),
            ("[::1]:7", "[::1]:7"),
            ("https://[::1]", "[::1]:5685"),
        ] {
            assert_eq!(address(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "http://cp",
            "https://",
            "https://cp/path",
            "",
            "cp:x",
            "https://u@cp",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_for_another_key_zone_or_ca_is_not_used() {
        let now = OffsetDateTime::now_utc();
        let ca = Ca::self_signed("ours", None, now, Span::days(1)).unwrap();
        let key = pki::new_key().unwrap();
        let sign = |key: &pki::KeyPair, zone: &str| {
            let subject = Subject {
                spiffe_id: Some(SpiffeId::zone(&zone.parse().unwrap())),
                ..Subject::default()
            };
            let csr = pki::request(key).unwrap();
            pki::to_pem(&ca.sign(&csr, &subject, now, Span::hours(1)).unwrap())
        };
        let claims = Claims {
            usage: "zone-join".to_owned(),
            pin: pki::pin(ca.certificate()).unwrap(),
            zone: Some("east".to_owned()),
        };
        let answer = |zone: &str, certificate: String| JoinZoneResponse {
            zone: zone.to_owned(),
            certificate,
            anchors: ca.certificate_pem(),
            ..JoinZoneResponse::default()
        };
        let again = || pki::KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let check = |answer: &JoinZoneResponse, claims: &Claims| {
            checked(again(), answer, claims).map(|_| ())
        };

        check(&answer("east", sign(&key, "east")), &claims).unwrap();
        check(&answer("west", sign(&key, "west")), &claims).unwrap_err();
        check(&answer("east", sign(&key, "west")), &claims).unwrap_err();
        let stranger = pki::new_key().unwrap();
        check(&answer("east", sign(&stranger, "east")), &claims).unwrap_err();
        let elsewhere = Claims {
            pin: "another".to_owned(),
            ..claims
        };
        check(&answer("east", sign(&key, "east")), &elsewhere).unwrap_err();
    }

    #[test]
    fn only_a_node_that_did_nothing_is_followed_by_another() {
        let of = |status: Status| refused("cp:5685", &status);
        assert!(matches!(
            of(Status::unavailable("no leader")),
            Refusal::NotReached(_)
        ));
        let Refusal::Final(used) = of(Status::permission_denied("this token was used already"))
        else {
            panic!("a used token is refused by every node")
        };
        assert!(
            used.contains("used already") && used.contains("zone-join"),
            "{used}"
        );
        let Refusal::Final(port) = of(Status::internal("protocol error: x")) else {
            panic!("the wrong port stays wrong")
        };
        assert!(port.contains("5685"), "{port}");
    }
}
