//! nginx as a proxy.

use std::path::Path;

use super::{Hop, Role, Service, Side, certificates::SERVER_NAME};

/// All of a configuration but its `server`s; `own` is a folder of this process alone.
pub(crate) fn head(own: &Path, connections: usize) -> String {
    let own = own.display();
    format!(
        "daemon off;
master_process off;
pid {own}/pid;
error_log stderr warn;
user root;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  # A call of gRPC may go on for as long as it likes.
  client_max_body_size 0;
  http2_max_concurrent_streams 1000;
  sendfile on;
  client_body_temp_path {own}/body;
  proxy_temp_path {own}/proxy;
  fastcgi_temp_path {own}/fastcgi;
  uwsgi_temp_path {own}/uwsgi;
  scgi_temp_path {own}/scgi;
  proxy_max_temp_file_size 0;
"
    )
}

pub(super) fn config(side: &Side<'_>) -> String {
    // A connection to each side.
    let mut text = head(&side.directory.join(&side.name), 21_000);
    for hop in &side.hops {
        text.push_str(&server(side, hop));
    }
    text.push_str("}\n");
    text
}

fn server(side: &Side<'_>, hop: &Hop) -> String {
    let name = hop.service.name();
    let own = side.certificates.of(side.role);
    let (certificate, key) = (own.certificate.display(), own.key.display());
    let ca = side.certificates.ca.display();
    // gRPC has a module of its own, with the same settings under other names.
    let module = match hop.service {
        Service::Grpc => "grpc",
        _ => "proxy",
    };
    let speaks_http2 = match (hop.service, side.role) {
        (Service::Grpc, _) | (Service::Http2, Role::Client) => " http2",
        _ => "",
    };
    let (listen_tls, scheme, pass_tls) = match side.role {
        Role::Client => (
            String::new(),
            if module == "grpc" { "grpcs" } else { "https" },
            format!(
                "{module}_ssl_certificate {certificate};
      {module}_ssl_certificate_key {key};
      {module}_ssl_trusted_certificate {ca};
      {module}_ssl_verify on;
      {module}_ssl_name {SERVER_NAME};
      {module}_ssl_server_name on;
      {module}_ssl_protocols TLSv1.3;"
            ),
        ),
        Role::Server => (
            format!(
                " ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_client_certificate {ca};
    ssl_verify_client on;
    ssl_protocols TLSv1.3"
            ),
            if module == "grpc" { "grpc" } else { "http" },
            String::new(),
        ),
    };
    // Kept connections are HTTP/1.1's, and nobody may say otherwise.
    let kept = match module {
        "proxy" => "proxy_http_version 1.1;\n      proxy_set_header Connection \"\";",
        _ => "",
    };
    format!(
        "  upstream {name} {{ server 127.0.0.1:{next}; keepalive 1000; keepalive_requests 1000000000; keepalive_timeout 600s; }}
  server {{
    listen 127.0.0.1:{listen}{speaks_http2}{listen_tls};
    location / {{
      {module}_pass {scheme}://{name};
      {kept}
      {pass_tls}
    }}
  }}
",
        listen = hop.listen,
        next = hop.next,
    )
}
