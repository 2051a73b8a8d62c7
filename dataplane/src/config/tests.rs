use mesh_proto::{
    discovery,
    document::seal,
    proxy::{self as wire, Document, document::Body as WireBody},
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn address() -> Option<wire::SocketAddress> {
    Some(wire::SocketAddress {
        host: "10.0.0.1".into(),
        port: 8080,
    })
}

fn inbound() -> wire::Inbound {
    wire::Inbound {
        name: "main".into(),
        listen: address(),
        application: Some(wire::SocketAddress {
            host: "127.0.0.1".into(),
            port: 80,
        }),
        protocol: wire::Protocol::Http.into(),
        tls: wire::TlsMode::Strict.into(),
        server_names: vec!["sni.msvc.pay.east.web.80".into()],
        service: "web".into(),
        permissions: Some(wire::Permissions::default()),
        timeouts: None,
        ..wire::Inbound::default()
    }
}

fn proxy() -> wire::Proxy {
    wire::Proxy {
        mesh: "pay".into(),
        zone: "east".into(),
        name: "web-1".into(),
        workload: "web".into(),
        spiffe_id: "spiffe://pay.east.mesh.local/workload/web".into(),
        inbounds: vec![inbound()],
        outbounds: vec![wire::Outbound {
            listen: Some(wire::SocketAddress {
                host: "127.0.0.1".into(),
                port: 7000,
            }),
            service_document: "service/store:6379".into(),
        }],
        source_service: String::new(),
    }
}

fn service() -> wire::Service {
    wire::Service {
        mesh: "pay".into(),
        name: "store".into(),
        port: 6379,
        protocol: wire::Protocol::Tcp.into(),
        zones: vec![wire::ServiceZone {
            zone: "east".into(),
            server_name: "sni.msvc.pay.east.store.6379".into(),
            identities: vec!["spiffe://pay.east.mesh.local/workload/store".into()],
        }],
        timeouts: None,
        ..wire::Service::default()
    }
}

fn ingress() -> wire::Ingress {
    wire::Ingress {
        zone: "east".into(),
        name: "gate".into(),
        listen: address(),
        routes: vec![wire::IngressRoute {
            server_name: "sni.msvc.pay.east.store.6379".into(),
            endpoints: "pay/store:6379".into(),
            mesh: "pay".into(),
            service: "store".into(),
        }],
        timeouts: None,
    }
}

fn anchor() -> Vec<u8> {
    crate::tls::tests::ca("east").certificate().to_vec()
}

fn trust() -> wire::Trust {
    wire::Trust {
        domains: vec![wire::TrustDomain {
            name: "pay.east.mesh.local".into(),
            anchors: vec![anchor()],
        }],
    }
}

fn document(body: WireBody) -> Document {
    let name = match &body {
        WireBody::Proxy(_) => "proxy",
        WireBody::Trust(_) => "trust",
        WireBody::Service(_) => "service/store:6379",
        WireBody::Ingress(_) => "ingress",
    };
    seal(name.into(), vec![], body)
}

fn refusal(body: WireBody) -> String {
    let role = match body {
        WireBody::Ingress(_) => Role::Ingress,
        _ => Role::Sidecar,
    };
    read(&document(body), role)
        .expect_err("refused")
        .to_string()
}

#[test]
fn good_documents_are_taken_and_left_out_time_outs_have_defaults() {
    let Ok(Body::Proxy(proxy)) = read(&document(WireBody::Proxy(proxy())), Role::Sidecar) else {
        panic!("a good proxy document is refused");
    };
    assert_eq!(&*proxy.source_service, "web");
    assert_eq!(proxy.inbounds[0].timeouts, Timeouts::default());
    for (body, role) in [
        (WireBody::Trust(trust()), Role::Ingress),
        (WireBody::Service(service()), Role::Sidecar),
        (WireBody::Ingress(ingress()), Role::Ingress),
    ] {
        read(&document(body), role).unwrap();
    }
}

#[test]
fn what_this_version_does_not_have_is_refused() {
    let unknown = seal(
        "proxy".into(),
        vec!["inbound.mtls".into(), "teleport.v2".into()],
        WireBody::Proxy(proxy()),
    );
    let error = read(&unknown, Role::Sidecar).unwrap_err().to_string();
    assert!(
        error.contains("teleport.v2") && !error.contains("inbound.mtls"),
        "{error}"
    );

    let mut forged = document(WireBody::Proxy(proxy()));
    forged.version = "0".repeat(64);
    assert!(matches!(
        read(&forged, Role::Sidecar),
        Err(InvalidDocument::Version(_))
    ));

    let mut empty = Document {
        name: "proxy".into(),
        ..Document::default()
    };
    empty.version = document::version_of(&empty);
    assert_eq!(
        read(&empty, Role::Sidecar).unwrap_err(),
        InvalidDocument::Body
    );

    let misnamed = seal("trust".into(), vec![], WireBody::Proxy(proxy()));
    assert!(matches!(
        read(&misnamed, Role::Sidecar),
        Err(InvalidDocument::Name("proxy"))
    ));

    let error = read(&document(WireBody::Ingress(ingress())), Role::Sidecar).unwrap_err();
    assert!(matches!(error, InvalidDocument::Role("ingress", "sidecar")));
}

#[test]
fn each_bad_field_of_a_proxy_is_named() {
    type Change = fn(&mut wire::Proxy);
    let cases: [(Change, &str); 23] = [
        (|p| p.mesh = "Pay".into(), "mesh"),
        (|p| p.zone.clear(), "zone"),
        (|p| p.name.clear(), "name"),
        (|p| p.workload = "a\nb".into(), "workload"),
        (|p| p.spiffe_id = "web".into(), "spiffe_id"),
        (|p| p.inbounds[0].name.clear(), "name"),
        (|p| p.inbounds[0].listen = None, "listen is missing"),
        (
            |p| p.inbounds[0].listen.as_mut().unwrap().host = "web".into(),
            "listen host",
        ),
        (
            |p| p.inbounds[0].listen.as_mut().unwrap().port = 70_000,
            "port 70000",
        ),
        (
            |p| p.inbounds[0].application.as_mut().unwrap().port = 0,
            "application port 0",
        ),
        (|p| p.inbounds[0].protocol = 0, "protocol 0"),
        (|p| p.inbounds[0].protocol = 99, "protocol 99"),
        (|p| p.inbounds[0].tls = 0, "tls mode 0"),
        (|p| p.inbounds[0].tls = 99, "tls mode 99"),
        (
            |p| p.inbounds[0].server_names.push(String::new()),
            "server name",
        ),
        (
            |p| p.inbounds[0].permissions = None,
            "permissions are missing",
        ),
        (
            |p| {
                p.inbounds[0]
                    .permissions
                    .as_mut()
                    .unwrap()
                    .deny
                    .push(wire::IdentityMatch {
                        spiffe_id: None,
                        origin: "p#3".into(),
                    });
            },
            "deny[0] of \"p#3\"",
        ),
        (
            |p| p.inbounds[0].probe = Some(wire::Probe::default()),
            "probe.interval_ms",
        ),
        (
            |p| p.inbounds.push(inbound()),
            "two inbounds are named main",
        ),
        (
            |p| {
                let mut second = inbound();
                second.name = "second".into();
                p.inbounds.push(second);
            },
            "two listeners at 10.0.0.1:8080",
        ),
        (
            |p| p.outbounds[0].listen = None,
            "outbound 0: listen is missing",
        ),
        (
            |p| p.outbounds[0].service_document = "store".into(),
            "service_document",
        ),
        (|p| p.outbounds[0].listen = address(), "two listeners at"),
    ];
    for (change, word) in cases {
        let mut proxy = proxy();
        change(&mut proxy);
        let reason = refusal(WireBody::Proxy(proxy));
        assert!(reason.contains(word), "{reason:?} does not name {word:?}");
    }
}

#[test]
fn each_bad_field_of_a_service_is_named() {
    type Change = fn(&mut wire::Service);
    let cases: [(Change, &str); 9] = [
        (|s| s.mesh.clear(), "mesh"),
        (|s| s.name.clear(), "name"),
        (|s| s.port = 0, "port 0"),
        (|s| s.protocol = 0, "protocol 0"),
        (|s| s.zones[0].zone = "East".into(), "zone"),
        (|s| s.zones[0].server_name = "a b".into(), "server_name"),
        (|s| s.zones[0].server_name = "10.0.0.1".into(), ""),
        (
            |s| s.zones[0].identities.push("web".into()),
            "identity \"web\"",
        ),
        (
            |s| s.zones.push(s.zones[0].clone()),
            "zone east is there twice",
        ),
    ];
    for (change, word) in cases {
        let mut service = service();
        change(&mut service);
        if word.is_empty() {
            continue;
        }
        let reason = refusal(WireBody::Service(service));
        assert!(reason.contains(word), "{reason:?} does not name {word:?}");
    }
}

#[test]
fn each_bad_field_of_trust_and_ingress_is_named() {
    type Change = fn(&mut wire::Trust);
    let cases: [(Change, &str); 4] = [
        (|t| t.domains[0].name = "A B".into(), "trust domain \"A B\""),
        (|t| t.domains[0].anchors.clear(), "has no anchors"),
        (|t| t.domains[0].anchors.push(vec![1, 2, 3]), "anchor 1"),
        (|t| t.domains.push(t.domains[0].clone()), "there twice"),
    ];
    for (change, word) in cases {
        let mut trust = trust();
        change(&mut trust);
        let reason = refusal(WireBody::Trust(trust));
        assert!(reason.contains(word), "{reason:?} does not name {word:?}");
    }
    type ChangeIngress = fn(&mut wire::Ingress);
    let cases: [(ChangeIngress, &str); 7] = [
        (|i| i.zone.clear(), "zone"),
        (|i| i.name.clear(), "name"),
        (|i| i.listen = None, "listen is missing"),
        (|i| i.routes[0].server_name.clear(), "server name"),
        (|i| i.routes[0].endpoints.clear(), "endpoints is missing"),
        (|i| i.routes[0].mesh.clear(), "mesh"),
        (|i| i.routes.push(i.routes[0].clone()), "be there once"),
    ];
    for (change, word) in cases {
        let mut ingress = ingress();
        change(&mut ingress);
        let reason = refusal(WireBody::Ingress(ingress));
        assert!(reason.contains(word), "{reason:?} does not name {word:?}");
    }
}

#[test]
fn endpoints_are_addresses_or_names() {
    let endpoint = |host: &str, port, zone: &str| {
        Endpoint::try_from(&discovery::Endpoint {
            address: Some(wire::SocketAddress {
                host: host.into(),
                port,
            }),
            zone: zone.into(),
            through_ingress: true,
        })
    };
    for good in ["10.0.0.1", "::1", "gate.example.org", "GATE"] {
        let endpoint = endpoint(good, 1, "east").unwrap();
        assert_eq!(
            Endpoint::try_from(&endpoint.to_wire()).unwrap().to_string(),
            endpoint.to_string()
        );
    }
    assert!(endpoint("a b", 1, "east").is_err());
    assert!(endpoint("10.0.0.1", 0, "east").is_err());
    assert!(endpoint("10.0.0.1", 1, "").is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic_the_conversion(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(mut document) = Document::decode(bytes.as_slice()) {
            document.required_features.clear();
            document.version = document::version_of(&document);
            let _ = read(&document, Role::Sidecar);
            let _ = read(&document, Role::Ingress);
        }
    }

    #[test]
    fn no_mangled_document_panics_the_conversion(
        which in 0..4_usize,
        at in any::<prop::sample::Index>(),
        value: u8,
    ) {
        let body = [
            WireBody::Proxy(proxy()),
            WireBody::Trust(trust()),
            WireBody::Service(service()),
            WireBody::Ingress(ingress()),
        ][which].clone();
        let mut bytes = document(body).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(mut document) = Document::decode(bytes.as_slice()) {
            document.version = document::version_of(&document);
            let _ = read(&document, Role::Sidecar);
            let _ = read(&document, Role::Ingress);
        }
    }
}
