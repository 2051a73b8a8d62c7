//! haproxy.

use super::{Between, Role, Service, Side, certificates::SERVER_NAME};

const HEAD: &str = "global
  nbthread 1
  tune.ssl.default-dh-param 2048
defaults
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
";

pub(super) fn config(side: &Side<'_>) -> String {
    let mut text = HEAD.to_owned();
    let own = side.certificates.of(side.role).certificate.display();
    let ca = side.certificates.ca.display();
    for hop in &side.hops {
        let is_http = hop.service.is_http();
        let (bind, server) = match side.role {
            Role::Client => {
                let alpn = match side.between {
                    _ if !is_http => "",
                    Between::Http1 => "alpn http/1.1",
                    Between::Http2 => "alpn h2",
                };
                let reuse = match hop.service {
                    Service::TcpUnresumed => "no-ssl-reuse",
                    _ => "",
                };
                (
                    String::new(),
                    format!(
                        "ssl crt {own} ca-file {ca} verify required verifyhost {SERVER_NAME} sni str({SERVER_NAME}) ssl-min-ver TLSv1.3 {alpn} {reuse}"
                    ),
                )
            }
            Role::Server => {
                let alpn = if is_http { "alpn h2,http/1.1" } else { "" };
                let protocol = match hop.service {
                    Service::Http2 | Service::Grpc => "proto h2",
                    Service::Http1 | Service::Tcp | Service::TcpUnresumed => "",
                };
                (
                    format!(
                        "ssl crt {own} ca-file {ca} verify required ssl-min-ver TLSv1.3 {alpn}"
                    ),
                    protocol.to_owned(),
                )
            }
        };
        let mode = if is_http {
            "mode http\n  http-reuse always"
        } else {
            "mode tcp"
        };
        text.push_str(&format!(
            "listen {name}
  {mode}
  bind 127.0.0.1:{listen} {bind}
  server next 127.0.0.1:{next} {server}
",
            name = hop.service.name(),
            listen = hop.listen,
            next = hop.next,
        ));
    }
    text
}
