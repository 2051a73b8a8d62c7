//! What dataplanes see of a zone: who gets in, what they are sent, and what becomes of their answers.

mod support;

use std::time::Duration;

use mesh_model::MeshTrafficPermission;
use mesh_proto::{
    discovery::{
        DocumentNack, Documents, InboundReadiness, Leaving, Nack, NackKind, Readiness, Role,
        to_dataplane, to_zone,
    },
    proxy::document::Body,
};
use mesh_runtime::{pki, tls};
use serde_json::json;
use support::*;
use tonic::Code;

const GRACE: Duration = Duration::from_secs(30);
const WEB: &str = "spiffe://pay.east.mesh.local/workload/web";

async fn zone_with(
    resources: &[mesh_model::Resource],
) -> (Installation, FakeGlobal, ZoneStream, RunningZone) {
    let installation = Installation::new();
    let mut global = FakeGlobal::start(&installation).await;
    let zone = RunningZone::start(&installation, GRACE).await;
    let mut stream = global.stream().await;
    stream.introduce(&installation, 5, resources).await;
    stream
        .status("the mesh is known", |s| {
            s.meshes.len() == 1 && s.revision == 5
        })
        .await;
    (installation, global, stream, zone)
}

#[tokio::test]
async fn a_dataplane_gets_documents_endpoints_and_a_certificate_and_counts_when_it_acknowledges() {
    let (installation, _global, mut stream, zone) =
        zone_with(&[allow("web", "{kind: Mesh}", WEB)]).await;
    let token = installation.token("pay", json!({}));
    let web = Newcomer::new(
        token.clone(),
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 8080)]),
    );
    let store = Newcomer::new(token, &dataplane("store-1", "store", "10.0.0.2", &[]));
    let mut web = web.connect(&zone, &installation).await.unwrap();
    let Ok(to_dataplane::Message::Welcome(welcome)) = web.next().await else {
        panic!("welcome comes first")
    };
    assert_eq!(welcome.zone, "east");
    assert_eq!(
        pki::certificates_from_pem(&welcome.control_plane_anchors[0]).unwrap()[0],
        *installation.ca.certificate()
    );
    web.until("documents", |d| d.documents.len() == 3).await;
    assert_eq!(
        web.endpoints
            .get("service/store:8080")
            .cloned()
            .unwrap_or_default(),
        [""; 0]
    );

    let mut store = store.connect(&zone, &installation).await.unwrap();
    store.until("documents", |d| d.documents.len() == 2).await;
    web.until("the endpoint of store", |d| {
        d.endpoints
            .get("service/store:8080")
            .is_some_and(|set| *set == ["10.0.0.2:8080"])
    })
    .await;
    web.until(
        "the identity of store",
        |d| match &d.documents["service/store:8080"].body {
            Some(Body::Service(s)) => s.zones.len() == 1 && s.zones[0].identities.len() == 1,
            _ => false,
        },
    )
    .await;
    stream
        .status("both are current", |s| {
            s.meshes[0].current == 2 && s.meshes[0].dataplanes == 2
        })
        .await;
    stream
        .reported("services and trust", |owned| {
            owned.len() == 3
                && owned["MeshService store in mesh pay, zone east"]["spec"]["state"] == "Available"
                && owned.keys().any(|key| key.starts_with("MeshTrust"))
        })
        .await;

    // Exactly the identity it is entitled to.
    let refused = web
        .certificate("spiffe://pay.east.mesh.local/workload/store")
        .await
        .unwrap_err();
    assert!(refused.contains(WEB), "{refused}");
    let leaf = web.certificate(WEB).await.unwrap();
    assert_eq!(tls::spiffe_id(&leaf).unwrap().to_string(), WEB);
    let Some(Body::Trust(trust)) = &web.documents["trust"].body else {
        panic!()
    };
    let mut domains = tls::TrustDomains::default();
    for domain in &trust.domains {
        let anchors: Vec<_> = domain.anchors.iter().map(|a| a.clone().into()).collect();
        domains.add(domain.name.parse().unwrap(), &anchors).unwrap();
    }
    let now = rustls_pki_types::UnixTime::now();
    assert_eq!(
        domains
            .verify(&[leaf], now, tls::Peer::Client)
            .unwrap()
            .to_string(),
        WEB
    );

    // What people see.
    let (status, view) = zone.get("/v1/meshes/pay/dataplanes/web-1").await;
    assert_eq!(status, 200);
    assert_eq!(view["spiffeId"], WEB);
    assert_eq!(
        view["inbounds"][0]["permissions"][0],
        format!("allow {WEB} (web#0)")
    );
    assert_eq!(view["outbounds"][0]["endpoints"][0], "10.0.0.2:8080 (east)");
    assert_eq!(zone.get("/v1/meshes/ana/dataplanes").await.0, 404);
    let (_, services) = zone.get("/v1/meshes/pay/services").await;
    assert_eq!(services.as_array().unwrap().len(), 2);
    assert_eq!(http_get(zone.listening.admin, "/readyz").await.0, 200);
    zone.stop().await;
}

#[tokio::test]
async fn each_bad_token_is_refused_with_its_own_reason() {
    let (installation, _global, _stream, zone) = zone_with(&[]).await;
    let web = dataplane("web-1", "web", "10.0.0.1", &[]);
    let foreign = web.replace("\"pay\"", "\"ana\"");
    let now = unix_seconds();
    let pay = |change| installation.token("pay", change);
    let mut unsigned = pay(json!({}));
    unsigned.replace_range(..unsigned.find('.').unwrap(), "eyJhbGciOiJub25lIn0"); // {"alg":"none"}
    let table = [
        (
            "none",
            String::new(),
            &web,
            Code::Unauthenticated,
            "no token",
        ),
        (
            "alg=none",
            unsigned,
            &web,
            Code::Unauthenticated,
            "only ES256",
        ),
        (
            "expired",
            pay(json!({"exp": now - 500})),
            &web,
            Code::Unauthenticated,
            "expired",
        ),
        (
            "for another use",
            pay(json!({"use": "zone-join"})),
            &web,
            Code::Unauthenticated,
            "zone-join",
        ),
        (
            "for another name",
            pay(json!({"name": "web-2"})),
            &web,
            Code::PermissionDenied,
            "web-2",
        ),
        (
            "for other labels",
            pay(json!({"labels": {"team": "a"}})),
            &web,
            Code::PermissionDenied,
            "team",
        ),
        (
            "of another mesh",
            installation.token("ana", json!({})),
            &web,
            Code::PermissionDenied,
            "for mesh \"ana\"",
        ),
        (
            "in another mesh",
            pay(json!({})),
            &foreign,
            Code::PermissionDenied,
            "asks for mesh \"ana\"",
        ),
        (
            "of a mesh that is not here",
            installation.token("ana", json!({})),
            &foreign,
            Code::Unavailable,
            "placed in this zone",
        ),
        (
            "of another mesh's key",
            installation.token("ana", json!({"mesh": "pay"})),
            &web,
            Code::Unauthenticated,
            "not one of",
        ),
    ];
    for (case, token, resource, code, words) in table {
        let refused = Newcomer::new(token, resource)
            .connect(&zone, &installation)
            .await
            .err()
            .unwrap();
        assert_eq!(refused.code(), code, "{case}: {refused}");
        assert!(refused.message().contains(words), "{case}: {refused}");
    }
    let bad = Newcomer::new(
        pay(json!({})),
        "type: Dataplane\nmesh: pay\nname: x\nnetworking:\n  adress: 10.0.0.1\n",
    );
    let refused = bad.connect(&zone, &installation).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("adress"), "{refused}");
    zone.stop().await;
}

#[tokio::test]
async fn a_revoked_token_ends_its_stream_and_no_other() {
    let (installation, _global, stream, zone) = zone_with(&[]).await;
    let connect = |id: &str, name: &str| {
        Newcomer::new(
            installation.token("pay", json!({"jti": id})),
            &dataplane(name, "web", "10.0.0.1", &[]),
        )
    };
    let mut bad = connect("bad", "web-1")
        .connect(&zone, &installation)
        .await
        .unwrap();
    let mut good = connect("good", "web-2")
        .connect(&zone, &installation)
        .await
        .unwrap();
    stream
        .delta("", 5, 6, &[installation.issuer("pay", &["bad"])], &[])
        .await;
    let end = bad.end().await;
    assert_eq!(end.code(), Code::Unauthenticated);
    assert!(end.message().contains("revoked"), "{end}");
    let again = connect("bad", "web-1")
        .connect(&zone, &installation)
        .await
        .err()
        .unwrap();
    assert!(again.message().contains("revoked"), "{again}");
    stream
        .delta("pay", 5, 6, &[allow("p", "{kind: Mesh}", WEB)], &[])
        .await;
    good.until("the other goes on", |d| d.revision == 6).await;
    zone.stop().await;
}

#[tokio::test]
async fn a_change_that_concerns_one_of_fifty_leaves_the_others_alone() {
    let (installation, _global, mut stream, zone) = zone_with(&[]).await;
    let token = installation.token("pay", json!({}));
    let mut all = Vec::new();
    for n in 0..50 {
        let resource = dataplane(&format!("web-{n}"), &format!("s{n}"), "10.0.0.1", &[]);
        all.push(
            Newcomer::new(token.clone(), &resource)
                .connect(&zone, &installation)
                .await
                .unwrap(),
        );
    }
    for one in &mut all {
        one.until("documents", |d| d.documents.len() == 2).await;
    }
    stream
        .status("all are current", |s| s.meshes[0].current == 50)
        .await;
    let before: Vec<_> = all.iter().map(|d| d.documents_sent).collect();

    let only_seven = allow(
        "seven",
        "{kind: Dataplane, labels: {isthmus.io/service: s7}}",
        WEB,
    );
    stream.delta("pay", 5, 6, &[only_seven], &[]).await;
    stream.advance(&[""], 5, 6).await;
    let status = stream
        .status("the revision is compiled", |s| s.revision == 6)
        .await;
    // Those it does not concern count at once.
    assert_eq!(status.meshes[0].revision, 6);
    assert!(status.meshes[0].current >= 49);
    all[7].until("the permission", |d| d.revision == 6).await;
    stream
        .status("and the one when it has acknowledged", |s| {
            s.meshes[0].current == 50
        })
        .await;
    let mut touched = Vec::new();
    for (n, one) in all.iter_mut().enumerate() {
        // Whatever was sent before the answer to this is read with it.
        one.certificate(&format!("spiffe://pay.east.mesh.local/workload/s{n}"))
            .await
            .unwrap();
        if one.documents_sent != before[n] {
            touched.push(n);
        }
    }
    assert_eq!(touched, [7]);
    zone.stop().await;
}

#[tokio::test]
async fn a_refused_document_is_reported_with_its_reason_until_it_is_replaced() {
    let (installation, _global, mut stream, zone) = zone_with(&[]).await;
    let token = installation.token("pay", json!({}));
    let mut web = Newcomer::new(token, &dataplane("web-1", "web", "10.0.0.1", &[]))
        .connect(&zone, &installation)
        .await
        .unwrap();
    web.until("documents", |d| d.documents.len() == 2).await;
    stream
        .delta("pay", 5, 6, &[allow("p", "{kind: Mesh}", WEB)], &[])
        .await;
    stream.advance(&[""], 5, 6).await;
    let documents = loop {
        if let to_dataplane::Message::Documents(documents) = web.next().await.unwrap() {
            break documents;
        }
    };
    let refused = documents.put[0].clone();
    web.say(to_zone::Message::Nack(Nack {
        revision: documents.revision,
        documents: vec![DocumentNack {
            name: refused.name,
            version: refused.version,
            reason: "unknown feature moon".into(),
            kind: NackKind::Content.into(),
        }],
    }))
    .await;
    let status = stream
        .status("the refusal, of the document and of the policy", |s| {
            s.meshes[0].refused_count == 1 && s.meshes[0].conditions.len() == 1
        })
        .await;
    let refusal = &status.meshes[0].refused[0];
    assert_eq!(
        (
            refusal.dataplane.as_str(),
            refusal.document.as_str(),
            refusal.reason.as_str()
        ),
        ("web-1", "proxy", "unknown feature moon")
    );
    let condition = &status.meshes[0].conditions[0];
    let key = key_of::<MeshTrafficPermission>("pay", "p");
    assert_eq!(condition.key.as_ref(), Some(&key));
    assert_eq!(condition.reason, "RefusedByDataplane");
    stream
        .delta(
            "pay",
            6,
            7,
            &[],
            &[key_of::<MeshTrafficPermission>("pay", "p")],
        )
        .await;
    stream.advance(&[""], 6, 7).await;
    web.until("the old one again", |d| d.revision == 7).await;
    stream
        .status("current again", |s| {
            s.revision == 7 && s.meshes[0].current == 1
        })
        .await;
    zone.stop().await;
}

#[tokio::test]
async fn endpoints_follow_readiness_and_leaving_without_a_document() {
    let (installation, _global, mut stream, zone) = zone_with(&[]).await;
    let token = installation.token("pay", json!({}));
    let client = Newcomer::new(
        token.clone(),
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 8080)]),
    );
    let mut client = client.connect(&zone, &installation).await.unwrap();
    let store = Newcomer::new(token, &dataplane("store-1", "store", "10.0.0.2", &[]));
    let mut store = store.connect(&zone, &installation).await.unwrap();
    let endpoints = |d: &FakeDataplane| d.endpoints.get("service/store:8080").map_or(0, Vec::len);
    store.until("documents", |d| d.documents.len() == 2).await;
    client.until("one endpoint and one identity", |d| {
        endpoints(d) == 1 && matches!(&d.documents["service/store:8080"].body, Some(Body::Service(s)) if s.zones.len() == 1)
    }).await;
    let sent = client.documents_sent;

    let say = |ready| {
        to_zone::Message::Readiness(Readiness {
            inbounds: vec![InboundReadiness {
                name: "8080".into(),
                ready,
            }],
        })
    };
    store.say(say(false)).await;
    client.until("no endpoint", |d| endpoints(d) == 0).await;
    let unavailable = |state: &'static str| {
        move |owned: &std::collections::BTreeMap<String, serde_json::Value>| {
            owned
                .get("MeshService store in mesh pay, zone east")
                .is_some_and(|s| s["spec"]["state"] == state)
        }
    };
    stream
        .reported("the service is unavailable", unavailable("Unavailable"))
        .await;
    store.say(say(true)).await;
    client.until("one endpoint", |d| endpoints(d) == 1).await;
    stream
        .reported("the service is available", unavailable("Available"))
        .await;
    store.say(to_zone::Message::Leaving(Leaving {})).await;
    client.until("no endpoint", |d| endpoints(d) == 0).await;
    assert_eq!(client.documents_sent, sent);
    // It said it leaves: nothing waits for it.
    drop(store);
    stream
        .status("it is forgotten", |s| s.meshes[0].dataplanes == 1)
        .await;
    zone.stop().await;
}

#[tokio::test]
async fn of_two_streams_of_one_name_the_newer_session_wins() {
    let (installation, _global, _stream, zone) = zone_with(&[]).await;
    let mut newcomer = Newcomer::new(
        installation.token("pay", json!({})),
        &dataplane("web-1", "web", "10.0.0.1", &[]),
    );
    newcomer.session_number = 5;
    let mut old = newcomer.connect(&zone, &installation).await.unwrap();
    newcomer.session_number = 4;
    let refused = newcomer.connect(&zone, &installation).await.err().unwrap();
    assert_eq!(refused.code(), Code::AlreadyExists);
    newcomer.session_number = 6;
    let mut new = newcomer.connect(&zone, &installation).await.unwrap();
    assert_eq!(old.end().await.code(), Code::Aborted);
    new.until("documents", |d| d.documents.len() == 2).await;
    zone.stop().await;
}

#[tokio::test]
async fn an_ingress_gets_routes_and_endpoints_and_is_reported_when_it_runs_them() {
    let (installation, _global, mut stream, zone) = zone_with(&[]).await;
    let store = Newcomer::new(
        installation.token("pay", json!({})),
        &dataplane("store-1", "store", "10.0.0.2", &[]),
    );
    let mut store = store.connect(&zone, &installation).await.unwrap();
    store.until("documents", |d| d.documents.len() == 2).await;
    let mut ingress = Newcomer::new(
        installation.token("zone.east", json!({})),
        "{type: ZoneIngress, name: in, networking: {address: 10.0.0.9, port: 10001}}",
    );
    ingress.role = Role::Ingress;
    let mut ingress = ingress.connect(&zone, &installation).await.unwrap();
    ingress
        .until("the route and its endpoint", |d| {
            d.documents.contains_key("ingress")
                && d.endpoints
                    .get("ingress/pay/store:8080")
                    .is_some_and(|set| *set == ["10.0.0.2:8080"])
        })
        .await;
    stream
        .reported("the ingress", |owned| {
            owned.contains_key("ZoneIngress in, zone east")
        })
        .await;
    assert!(
        ingress
            .certificate(WEB)
            .await
            .unwrap_err()
            .contains("no identity")
    );

    // A route of another mesh's service comes beside it.
    stream
        .delta(
            "",
            5,
            6,
            &[
                yaml("{type: Mesh, name: ana}"),
                installation.issuer("ana", &[]),
            ],
            &[],
        )
        .await;
    stream.snapshot("ana", 6, &[identity("ana")]).await;
    stream
        .status("the second mesh", |s| s.meshes.len() == 2)
        .await;
    let resource = dataplane("store-1", "store", "10.1.0.2", &[]).replace("\"pay\"", "\"ana\"");
    let other = Newcomer::new(installation.token("ana", json!({})), &resource);
    let mut other = other.connect(&zone, &installation).await.unwrap();
    other.until("documents", |d| d.documents.len() == 2).await;
    ingress
        .until("both", |d| {
            d.endpoints
                .get("ingress/ana/store:8080")
                .is_some_and(|set| *set == ["10.1.0.2:8080"])
        })
        .await;
    let Some(Body::Ingress(routes)) = &ingress.documents["ingress"].body else {
        panic!()
    };
    assert_eq!(routes.routes.len(), 2);

    ingress.say(to_zone::Message::Leaving(Leaving {})).await;
    stream
        .reported("no ingress", |owned| {
            !owned.contains_key("ZoneIngress in, zone east")
        })
        .await;
    zone.stop().await;
}

#[tokio::test]
async fn another_zones_service_is_reached_through_its_ingress_while_it_has_endpoints() {
    let (installation, _global, stream, zone) = zone_with(&[]).await;
    let client = Newcomer::new(
        installation.token("pay", json!({})),
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 5432)]),
    );
    let mut client = client.connect(&zone, &installation).await.unwrap();
    client.until("documents", |d| d.documents.len() == 3).await;
    let service = |state: &str| {
        owned(
            yaml(&format!(
                "{{type: MeshService, mesh: pay, name: store, spec: {{ports: [{{port: 5432}}], identities: [{{type: SpiffeID, value: \"spiffe://pay.west.mesh.local/workload/store\"}}], state: {state}}}}}"
            )),
            "west",
        )
    };
    let ingress = owned(
        yaml(
            "{type: ZoneIngress, name: in, networking: {address: 10.2.0.9, port: 10001, advertisedAddress: west.example, advertisedPort: 443}}",
        ),
        "west",
    );
    stream.delta("", 5, 6, &[ingress], &[]).await;
    stream
        .delta("pay", 5, 6, &[service("Available")], &[])
        .await;
    let set = |d: &FakeDataplane| {
        d.endpoints
            .get("service/store:5432")
            .cloned()
            .unwrap_or_default()
    };
    client
        .until("the ingress", |d| set(d) == ["west.example:443"])
        .await;
    let sent = client.documents_sent;
    stream
        .delta("pay", 6, 7, &[service("Unavailable")], &[])
        .await;
    client.until("no endpoint", |d| set(d).is_empty()).await;
    stream
        .delta("pay", 7, 8, &[service("Available")], &[])
        .await;
    client
        .until("the ingress again", |d| set(d) == ["west.example:443"])
        .await;
    assert_eq!(
        client.documents_sent, sent,
        "availability changes no document"
    );
    let closed = yaml("{type: Zone, name: west, enabled: false}");
    stream.delta("", 6, 9, &[closed], &[]).await;
    client.until("west is closed", |d| set(d).is_empty()).await;
    zone.stop().await;
}

#[tokio::test]
async fn a_dataplane_that_falls_silent_is_dropped_and_keeps_its_endpoints_for_the_grace_period() {
    let (installation, _global, mut stream, zone) = zone_with(&[]).await;
    let token = installation.token("pay", json!({}));
    let store = Newcomer::new(token, &dataplane("store-1", "store", "10.0.0.2", &[]));
    let mut store = store.connect(&zone, &installation).await.unwrap();
    store.until("documents", |d| d.documents.len() == 2).await;
    stream
        .status("it is current", |s| s.meshes[0].current == 1)
        .await;
    store.fall_silent();
    assert_eq!(store.end().await.code(), Code::DeadlineExceeded);
    stream
        .status("it is silent", |s| s.meshes[0].silent_count == 1)
        .await;
    let (_, services) = zone.get("/v1/meshes/pay/services").await;
    assert_eq!(
        services[0]["zones"][0]["ports"][0]["endpoints"][0],
        "10.0.0.2:8080 (east)"
    );
    zone.stop().await;
}

#[tokio::test]
async fn who_is_revoked_is_out_of_use_at_once() {
    let (installation, _global, stream, zone) = zone_with(&[]).await;
    let newcomer = |id: &str, resource: &str| {
        Newcomer::new(installation.token("pay", json!({"jti": id})), resource)
    };
    let client = newcomer(
        "good",
        &dataplane("web-1", "web", "10.0.0.1", &[(5000, "store", 8080)]),
    );
    let mut client = client.connect(&zone, &installation).await.unwrap();
    let store = newcomer("bad", &dataplane("store-1", "store", "10.0.0.2", &[]));
    let mut store = store.connect(&zone, &installation).await.unwrap();
    store.until("documents", |d| d.documents.len() == 2).await;
    let endpoints = |d: &FakeDataplane| d.endpoints.get("service/store:8080").map_or(0, Vec::len);
    client.until("the endpoint", |d| endpoints(d) == 1).await;
    let revoked = installation.issuer("pay", &["bad"]);
    stream.delta("", 5, 6, &[revoked], &[]).await;
    client.until("no endpoint", |d| endpoints(d) == 0).await;
    zone.stop().await;
}

// === canary ===

/// Three of one version that run what they are sent, and what speaks to their zone.
struct Three {
    all: Vec<FakeDataplane>,
    stream: ZoneStream,
    zone: RunningZone,
    installation: Installation,
    _global: FakeGlobal,
    revision: u64,
    /// Who is to try what comes next.
    canary: usize,
}

impl Three {
    async fn start() -> Self {
        let (installation, global, mut stream, zone) = zone_with(&[]).await;
        let token = installation.token("pay", json!({}));
        let mut all = Vec::new();
        for n in 1..=3 {
            let resource = dataplane(&format!("web-{n}"), "web", &format!("10.0.0.{n}"), &[]);
            let mut one = Newcomer::new(token.clone(), &resource)
                .connect(&zone, &installation)
                .await
                .unwrap();
            one.until("documents", |d| d.documents.len() == 2).await;
            all.push(one);
        }
        stream
            .status("all are current", |s| s.meshes[0].current == 3)
            .await;
        Self {
            all,
            stream,
            zone,
            installation,
            _global: global,
            revision: 5,
            canary: 0,
        }
    }

    /// A permission for `workload`, and what the canary is sent for it.
    async fn permit(&mut self, workload: &str) -> Documents {
        let id = format!("spiffe://pay.east.mesh.local/workload/{workload}");
        let (from, to) = (self.revision, self.revision + 1);
        self.revision = to;
        self.stream
            .delta("pay", from, to, &[allow("p", "{kind: Mesh}", &id)], &[])
            .await;
        self.stream.advance(&[""], from, to).await;
        self.tried().await
    }

    /// What the canary is sent next.
    async fn tried(&mut self) -> Documents {
        loop {
            if let to_dataplane::Message::Documents(documents) =
                self.all[self.canary].next().await.unwrap()
            {
                return documents;
            }
        }
    }

    /// A permission that the first two refuse.
    async fn two_refuse(&mut self) {
        let tried = self.permit("web").await;
        self.refuse(&tried, NackKind::Content).await;
        self.canary = 1;
        let tried = self.tried().await;
        self.refuse(&tried, NackKind::Content).await;
    }

    async fn refuse(&self, documents: &Documents, kind: NackKind) {
        let refused = documents.put.iter().map(|document| DocumentNack {
            name: document.name.clone(),
            version: document.version.clone(),
            reason: "unknown feature moon".into(),
            kind: kind.into(),
        });
        let nack = Nack {
            revision: documents.revision,
            documents: refused.collect(),
        };
        self.all[self.canary]
            .say(to_zone::Message::Nack(nack))
            .await;
    }

    async fn accept(&self, documents: &Documents) {
        let taken = versions(&documents.put);
        self.all[self.canary].ack(documents.revision, taken).await;
    }

    fn others(&mut self) -> impl Iterator<Item = &mut FakeDataplane> {
        let canary = self.canary;
        let all = self.all.iter_mut().enumerate();
        all.filter(move |(at, _)| *at != canary).map(|(_, one)| one)
    }

    /// Nobody else has been sent anything of this revision.
    async fn others_wait(&mut self) {
        let revision = self.revision;
        for one in self.others() {
            waits(one, revision).await;
        }
    }

    async fn others_follow(&mut self) {
        let revision = self.revision;
        for one in self.others() {
            one.until("what was tried", |d| d.revision == revision)
                .await;
        }
    }
}

async fn waits(one: &mut FakeDataplane, revision: u64) {
    // Whatever was sent before the answer to this is read with it.
    one.certificate(WEB).await.unwrap();
    assert!(one.revision < revision, "{}", one.revision);
}

#[tokio::test]
async fn a_change_of_three_reaches_the_others_when_the_first_has_taken_it() {
    let mut three = Three::start().await;
    let tried = three.permit("web").await;
    three.others_wait().await;
    three
        .stream
        .status("all are pending", |s| {
            s.revision == 6 && s.meshes[0].pending == ["web-1", "web-2", "web-3"]
        })
        .await;
    three.accept(&tried).await;
    three.others_follow().await;
    three
        .stream
        .status("all are current", |s| s.meshes[0].current == 3)
        .await;
    three.zone.stop().await;
}

#[tokio::test]
async fn what_two_refuse_goes_no_further_until_something_else_is_wanted() {
    let mut three = Three::start().await;
    three.two_refuse().await;
    let status = three
        .stream
        .status("the refusals", |s| s.meshes[0].refused_count == 2)
        .await;
    let refusals = status.meshes[0].refused.iter();
    let refusals: Vec<_> = refusals.map(|r| (&*r.dataplane, &*r.reason)).collect();
    assert_eq!(
        refusals,
        [
            ("web-1", "unknown feature moon"),
            ("web-2", "unknown feature moon")
        ]
    );
    assert_eq!(status.meshes[0].pending, ["web-3"]);
    waits(&mut three.all[2], three.revision).await;

    // Those who refuse everything stop only once: another tries the next change.
    three.canary = 2;
    let tried = three.permit("store").await;
    three.others_wait().await;
    three.accept(&tried).await;
    three.others_follow().await;
    three
        .stream
        .status("all are current", |s| s.meshes[0].current == 3)
        .await;
    three.zone.stop().await;
}

#[tokio::test]
async fn what_the_first_refuses_and_the_second_takes_goes_on() {
    let mut three = Three::start().await;
    let tried = three.permit("web").await;
    three.refuse(&tried, NackKind::Content).await;
    three.canary = 1;
    let tried = three.tried().await;
    waits(&mut three.all[2], three.revision).await;
    three.accept(&tried).await;
    let revision = three.revision;
    three.all[2]
        .until("what the second took", |d| d.revision == revision)
        .await;
    three
        .stream
        .status("the others are current", |s| {
            s.meshes[0].current == 2 && s.meshes[0].refused_count == 1
        })
        .await;
    three.zone.stop().await;
}

#[tokio::test]
async fn an_unrelated_change_goes_past_what_is_stopped() {
    let mut three = Three::start().await;
    three.two_refuse().await;
    three
        .stream
        .status("the refusals", |s| s.meshes[0].refused_count == 2)
        .await;
    let before = three.all[2].documents["proxy"].clone();
    let (from, to) = (three.revision, three.revision + 1);
    three.revision = to;
    let anchor = three.installation.ca.certificate().clone();
    let trust = mesh_model::Resource::new(
        mesh_model::Meta::new("pay", "another"),
        mesh_model::MeshTrust::from_der("other.example", [anchor.as_ref()]),
    );
    three.stream.delta("pay", from, to, &[trust], &[]).await;
    let knows = |d: &FakeDataplane| matches!(&d.documents["trust"].body, Some(Body::Trust(t)) if t.domains.len() == 2);
    // The third tries it, for the first two have refused something.
    three.all[2].until("the anchor", knows).await;
    three.all[0].until("the anchor", knows).await;
    three.all[1].until("the anchor", knows).await;
    assert_eq!(before, three.all[2].documents["proxy"]);
    three.zone.stop().await;
}

#[tokio::test]
async fn what_the_first_can_not_do_on_its_host_stops_nobody() {
    let mut three = Three::start().await;
    let tried = three.permit("web").await;
    three.refuse(&tried, NackKind::Local).await;
    three.others_follow().await;
    three
        .stream
        .status("the others are current", |s| {
            s.meshes[0].current == 2 && s.meshes[0].refused_count == 1
        })
        .await;
    three.zone.stop().await;
}

#[tokio::test]
async fn nobody_waits_long_for_a_first_that_says_nothing() {
    let mut three = Three::start().await;
    let _unanswered = three.permit("web").await;
    three.others_wait().await;
    three.others_follow().await;
    three
        .stream
        .status("the others are current", |s| {
            s.meshes[0].current == 2 && s.meshes[0].pending == ["web-1"]
        })
        .await;
    three.zone.stop().await;
}
