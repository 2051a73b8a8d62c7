//! Joining and zone sync over real connections, with a zone that the tests play.

use std::{sync::Arc, time::Duration};

use mesh_model::{MeshTrust, Meta, Resource, ZoneIngress};
use mesh_proto::{
    features,
    zone::{
        Changes, Cursor, GlobalHello, Heartbeat, JoinNodeRequest, JoinZoneRequest,
        JoinZoneResponse, MeshStatus, NodeAddresses, QueryAnswer, ReportAck, ResourceKey,
        ResourceRecord, ToGlobal, ToZone, ZoneHello, ZoneReport, ZoneStatus,
        join_client::JoinClient, to_global, to_zone::Message, zone_sync_client::ZoneSyncClient,
    },
};
use mesh_runtime::{
    pki,
    tls::{self, LocalIdentity, PinVerifier, SpiffeVerifier},
    transport,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{testing::TestNode, tokens};

/// A zone's side of a join.
async fn join(address: &str, token: &str) -> Result<(LocalIdentity, JoinZoneResponse), Status> {
    let key = pki::new_key().unwrap();
    let request = JoinZoneRequest {
        token: token.to_owned(),
        csr: pki::request(&key).unwrap(),
        version: "0.1.0".into(),
    };
    let response = JoinClient::new(pinned(address, token).await)
        .join_zone(request)
        .await?
        .into_inner();
    let identity = LocalIdentity::none();
    let mut chain = pki::certificates_from_pem(&response.certificate).unwrap();
    chain.extend(pki::certificates_from_pem(&response.anchors).unwrap());
    identity.set(chain, &pki::private_key(&key)).unwrap();
    Ok((identity, response))
}

async fn pinned(address: &str, token: &str) -> Channel {
    let pin = tokens::unverified_claims(token).unwrap().pin;
    let verifier = PinVerifier::new(pin, Arc::new(|_| Ok(())));
    let config = tls::client_config(None, Arc::new(verifier), transport::GRPC_ALPN);
    transport::channel(address, Arc::new(config)).await.unwrap()
}

/// A zone's stream, as the zone has it.
struct ZoneEnd {
    outgoing: mpsc::Sender<ToGlobal>,
    incoming: Streaming<ToZone>,
}

async fn client(
    node: &TestNode,
    address: &str,
    identity: LocalIdentity,
) -> ZoneSyncClient<Channel> {
    let verifier = SpiffeVerifier::new(node.trust.clone(), Arc::new(|_| Ok(())));
    let config = tls::client_config(Some(identity), Arc::new(verifier), transport::GRPC_ALPN);
    let channel = transport::channel(address, Arc::new(config)).await.unwrap();
    ZoneSyncClient::new(channel)
}

impl ZoneEnd {
    async fn connect(
        node: &TestNode,
        address: &str,
        identity: &LocalIdentity,
        hello: ZoneHello,
    ) -> Result<Self, Status> {
        let (outgoing, receiver) = mpsc::channel(64);
        let mut client = client(node, address, identity.clone()).await;
        outgoing
            .send(ToGlobal {
                message: Some(to_global::Message::Hello(hello)),
            })
            .await
            .unwrap();
        let incoming = client
            .sync(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { outgoing, incoming })
    }

    async fn say(&self, message: to_global::Message) {
        let message = ToGlobal {
            message: Some(message),
        };
        self.outgoing.send(message).await.unwrap();
    }

    /// The next message that `wanted` takes; others are passed over.
    async fn next<T>(&mut self, wanted: impl Fn(Message) -> Option<T>) -> T {
        loop {
            let message = self
                .incoming
                .message()
                .await
                .unwrap()
                .expect("the stream goes on");
            if let Some(found) = message.message.and_then(&wanted) {
                return found;
            }
        }
    }

    async fn hello(&mut self) -> GlobalHello {
        self.next(|message| match message {
            Message::Hello(hello) => Some(hello),
            _ => None,
        })
        .await
    }

    async fn changes(&mut self) -> Changes {
        self.next(|message| match message {
            Message::Changes(changes) => Some(changes),
            _ => None,
        })
        .await
    }

    /// The next change of one of `mesh`'s resources.
    async fn change_in(&mut self, mesh: &str) -> Changes {
        loop {
            let changes = self.changes().await;
            if changes.mesh == mesh && (!changes.put.is_empty() || !changes.delete.is_empty()) {
                return changes;
            }
        }
    }

    async fn report(&mut self, report: ZoneReport) -> ReportAck {
        self.say(to_global::Message::Report(report)).await;
        self.next(|message| match message {
            Message::ReportAck(ack) => Some(ack),
            _ => None,
        })
        .await
    }

    /// Why the stream ends.
    async fn end(&mut self) -> String {
        loop {
            match self.incoming.message().await {
                Ok(Some(ToZone {
                    message: Some(Message::GoAway(away)),
                })) => return away.reason,
                Ok(Some(_)) => {}
                Ok(None) => return String::new(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

fn hello(session: &str) -> ZoneHello {
    ZoneHello {
        version: "0.1.0".into(),
        features: features::SYNC.iter().map(|f| (*f).to_owned()).collect(),
        session: session.into(),
        history_id: String::new(),
        cursors: vec![],
        instance: "i1".into(),
    }
}

async fn two_zones() -> (TestNode, String) {
    let node = TestNode::start().await;
    node.apply(
        "type: Mesh\nname: pay\n---\ntype: Mesh\nname: ana\nzones: [west]\n---\ntype: Zone\nname: east\n---\ntype: Zone\nname: west\n",
    )
    .await
    .ok();
    let address = node.serve_zones().await;
    (node, address)
}

async fn joined(node: &TestNode, address: &str, zone: &str) -> LocalIdentity {
    let (token, _) = node.token(json!({"use": "zone-join", "zone": zone})).await;
    join(address, &token).await.unwrap().0
}

// === joining ===

#[tokio::test]
async fn a_zone_joins_once_with_a_token_and_its_own_key() {
    let node = TestNode::start().await;
    let address = node.serve_zones().await;
    // Making the token makes the zone.
    let (token, id) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    node.get("/v1/zones/east").await.ok();
    let (_, response) = join(&address, &token).await.unwrap();
    assert_eq!(response.zone, "east");
    assert_eq!(response.cluster_id, node.app.cluster.cluster_id());
    let ingress = tokens::unverified_claims(&response.ingress_token).unwrap();
    assert_eq!(
        (ingress.usage.as_str(), ingress.zone.as_deref()),
        ("ingress", Some("east"))
    );
    let refused = join(&address, &token).await.unwrap_err();
    assert!(refused.message().contains("used already"), "{refused}");
    let tokens = node.get("/v1/tokens").await.ok();
    let used = tokens["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["id"] == id.as_str())
        .unwrap();
    assert_eq!(used["state"], "used");
    // And written down, both times.
    let audit = node.get("/v1/audit").await.ok().to_string();
    assert!(
        audit.contains("zone east joins") && audit.contains("used already"),
        "{audit}"
    );
}

#[tokio::test]
async fn of_many_who_use_one_token_at_once_one_gets_in() {
    let node = TestNode::start().await;
    let address = node.serve_zones().await;
    let (token, _) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    let tries = futures::future::join_all((0..8).map(|_| join(&address, &token))).await;
    assert_eq!(tries.iter().filter(|joined| joined.is_ok()).count(), 1);
    for refused in tries.into_iter().filter_map(Result::err) {
        assert!(refused.message().contains("used already"), "{refused}");
    }
}

#[tokio::test]
async fn tokens_that_do_not_fit_are_refused_each_in_its_words_and_cost_nothing() {
    let node = TestNode::start().await;
    let address = node.serve_zones().await;
    let (good, good_id) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    let (node_join, _) = node.token(json!({"use": "node-join"})).await;
    let other = TestNode::start().await;
    let (foreign, _) = other
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    let send = |token: String, csr: Vec<u8>| {
        let (address, good) = (address.clone(), good.clone());
        async move {
            let request = JoinZoneRequest {
                token,
                csr,
                version: String::new(),
            };
            JoinClient::new(pinned(&address, &good).await)
                .join_zone(request)
                .await
                .unwrap_err()
        }
    };
    let csr = || pki::request(&pki::new_key().unwrap()).unwrap();
    for (token, words) in [
        (node_join, "this is a token for node-join"),
        (foreign, "belongs to another installation"),
        ("garbage".to_owned(), "not a join token"),
        (node.admin.clone(), "this is a token for api"),
    ] {
        let refused = send(token, csr()).await;
        assert!(refused.message().contains(words), "{words}: {refused}");
    }
    // A request that makes no sense does not use the token up.
    let refused = send(good.clone(), b"nonsense".to_vec()).await;
    assert!(refused.message().contains("request"), "{refused}");
    // Somebody takes the token back.
    node.delete(&format!("/v1/tokens/{good_id}")).await.ok();
    let refused = send(good.clone(), csr()).await;
    assert!(refused.message().contains("revoked"), "{refused}");
    // A new one, and the zone is deleted meanwhile.
    let (again, _) = node
        .token(json!({"use": "zone-join", "zone": "east"}))
        .await;
    node.delete("/v1/zones/east").await.ok();
    let refused = send(again, csr()).await;
    assert!(refused.message().contains("revoked"), "{refused}");
}

#[tokio::test]
async fn a_node_gets_a_new_id_and_the_sealing_key_once() {
    let node = TestNode::start().await;
    let address = node.serve_zones().await;
    let (token, _) = node.token(json!({"use": "node-join"})).await;
    let request = || JoinNodeRequest {
        token: token.clone(),
        csr: pki::request(&pki::new_key().unwrap()).unwrap(),
        version: String::new(),
        node_uuid: "u".into(),
        addresses: Some(NodeAddresses {
            api: "h:1".into(),
            zone: "h:2".into(),
            raft: "h:3".into(),
        }),
    };
    let mut client = JoinClient::new(pinned(&address, &token).await);
    let response = client.join_node(request()).await.unwrap().into_inner();
    assert_eq!(response.node_id, 2);
    assert_eq!(response.sealing_key, node.app.sealing.bytes());
    assert_eq!(response.raft_addresses.len(), 1);
    let refused = client.join_node(request()).await.unwrap_err();
    assert!(refused.message().contains("used already"), "{refused}");
}

// === streams ===

#[tokio::test]
async fn a_zone_hears_what_concerns_it_and_resumes_where_it_was() {
    let (node, address) = two_zones().await;
    let identity = joined(&node, &address, "east").await;
    let mut zone = ZoneEnd::connect(&node, &address, &identity, hello("s1"))
        .await
        .unwrap();
    let greeting = zone.hello().await;
    assert_eq!(greeting.meshes, ["pay"]);
    let global = zone.changes().await;
    assert!(global.snapshot && global.last && global.mesh.is_empty());
    let keys: Vec<String> = global
        .put
        .iter()
        .map(|r| r.key.clone().unwrap().to_string())
        .collect();
    assert_eq!(
        keys,
        [
            "Mesh pay",
            "TokenIssuer pay",
            "TokenIssuer zone.east",
            "Zone east",
            "Zone west"
        ]
    );
    let pay = zone.changes().await;
    assert_eq!((pay.mesh.as_str(), pay.put.len()), ("pay", 1));
    // A secret is not told; a change after it is.
    node.put(
        "/v1/meshes/pay/secrets/s",
        "type: Secret\nmesh: pay\nname: s\ndata: AAAA\n",
    )
    .await
    .ok();
    node.apply("type: MeshTrafficPermission\nmesh: pay\nname: p\nspec: {rules: []}\n")
        .await
        .ok();
    let change = zone.change_in("pay").await;
    assert_eq!(change.put[0].key.as_ref().unwrap().name, "p");
    // The stream is lost; things happen; it resumes from its cursors.
    drop(zone);
    node.delete("/v1/meshes/pay/meshtrafficpermissions/p")
        .await
        .ok();
    let mut again = hello("s2");
    again.history_id = greeting.history_id.clone();
    again.cursors = ["", "pay"]
        .map(|mesh| Cursor {
            mesh: mesh.into(),
            revision: change.to,
        })
        .into();
    let mut zone = ZoneEnd::connect(&node, &address, &identity, again.clone())
        .await
        .unwrap();
    let resumed = zone.change_in("pay").await;
    assert!(!resumed.snapshot);
    assert_eq!(
        (resumed.from, resumed.delete[0].name.as_str()),
        (change.to, "p")
    );
    // Of another history: everything anew.
    again.history_id = "another".into();
    let mut zone = ZoneEnd::connect(&node, &address, &identity, again)
        .await
        .unwrap();
    assert!(zone.changes().await.snapshot);
}

#[tokio::test]
async fn a_zone_may_report_only_what_is_its_own() {
    let (node, address) = two_zones().await;
    let identity = joined(&node, &address, "east").await;
    let mut zone = ZoneEnd::connect(&node, &address, &identity, hello("s"))
        .await
        .unwrap();
    zone.hello().await;
    let ca = pki::Ca::self_signed(
        "ca",
        None,
        time::OffsetDateTime::now_utc(),
        time::Duration::days(1),
    )
    .unwrap();
    let trust = |mesh: &str, zone: &str, name: &str, domain: &str| {
        let spec = MeshTrust::from_der(domain, [ca.certificate().as_ref()]);
        record(&Resource::new(Meta::new(mesh, name).in_zone(zone), spec))
    };
    let service = |mesh: &str, zone: &str, name: &str| {
        ResourceRecord {
        key: Some(ResourceKey::in_zone("MeshService", mesh, zone, name)),
        json: format!(
            r#"{{"mesh":"{mesh}","name":"{name}","spec":{{"ports":[{{"appProtocol":"tcp","port":80}}]}},"type":"MeshService","zone":"{zone}"}}"#
        )
        .into_bytes(),
        revision: 0, modified_ms: 0, created_revision: 0, }
    };
    let ingress = Resource::new(
        Meta::new("", "in").in_zone("east"),
        serde_json::from_value::<ZoneIngress>(
            json!({"networking": {"address": "10.0.0.1", "port": 10001}}),
        )
        .unwrap(),
    );
    let mut lying = service("pay", "east", "liar");
    lying.key = Some(ResourceKey::in_zone("MeshService", "pay", "east", "other"));
    let put = vec![
        service("pay", "east", "web"),
        trust("pay", "east", "own", "pay.east.mesh.local"),
        record(&ingress),
        // From here on: refused, each for its own reason.
        service("pay", "west", "stolen"),
        service("ana", "east", "elsewhere"),
        trust("pay", "east", "west", "pay.west.mesh.local"),
        trust("pay", "east", "ana", "ana.east.mesh.local"),
        trust("pay", "east", "any", "corp.example"),
        lying,
        ResourceRecord {
            key: Some(ResourceKey::in_zone(
                "MeshService",
                "pay",
                "east",
                "garbage",
            )),
            json: b"{".to_vec(),
            revision: 0,
            modified_ms: 0,
            created_revision: 0,
        },
        ResourceRecord {
            key: Some(ResourceKey::in_zone("Secret", "pay", "east", "s")),
            json: b"{}".to_vec(),
            revision: 0,
            modified_ms: 0,
            created_revision: 0,
        },
    ];
    let report = ZoneReport {
        epoch: 1,
        sequence: 1,
        full: true,
        put,
        delete: vec![],
    };
    let ack = zone.report(report.clone()).await;
    let mut refused: Vec<String> = ack
        .refused
        .iter()
        .map(|r| r.key.as_ref().unwrap().name.clone())
        .collect();
    refused.sort();
    assert_eq!(
        refused,
        [
            "ana",
            "any",
            "elsewhere",
            "garbage",
            "other",
            "s",
            "stolen",
            "west"
        ]
    );
    let owned: Vec<String> = crate::changes::owned_by_zone(&node.app.image(), "east")
        .into_iter()
        .map(|s| s.key.name)
        .collect();
    assert_eq!(owned, ["web", "own", "in"]);
    // The same again costs no entry.
    let before = node.revision();
    zone.report(ZoneReport {
        sequence: 2,
        ..report.clone()
    })
    .await;
    assert_eq!(node.revision(), before);
    // Older ones are ignored: nothing is taken away.
    zone.say(to_global::Message::Report(ZoneReport {
        sequence: 1,
        put: vec![],
        ..report.clone()
    }))
    .await;
    zone.report(ZoneReport {
        sequence: 3,
        ..report.clone()
    })
    .await;
    assert_eq!(node.revision(), before);
    // A delta takes one away, a full report what it does not name.
    let delta = ZoneReport {
        sequence: 4,
        full: false,
        put: vec![],
        delete: vec![
            ResourceKey::in_zone("MeshService", "pay", "east", "web"),
            ResourceKey::in_zone("MeshService", "pay", "west", "stolen"),
        ],
        ..report.clone()
    };
    let ack = zone.report(delta).await;
    assert_eq!(ack.refused.len(), 1);
    zone.report(ZoneReport {
        sequence: 5,
        put: vec![service("pay", "east", "api")],
        ..report
    })
    .await;
    let names: Vec<String> = crate::changes::owned_by_zone(&node.app.image(), "east")
        .into_iter()
        .map(|s| s.key.name)
        .collect();
    assert_eq!(names, ["api"]);
}

fn record(resource: &Resource) -> ResourceRecord {
    ResourceRecord {
        key: Some(resource.key()),
        json: resource.to_json(),
        revision: 0,
        modified_ms: 0,
        created_revision: 0,
    }
}

#[tokio::test]
async fn the_others_hear_of_a_zones_services_and_of_its_end() {
    let (node, address) = two_zones().await;
    let (east, west) = (
        joined(&node, &address, "east").await,
        joined(&node, &address, "west").await,
    );
    let mut east = ZoneEnd::connect(&node, &address, &east, hello("e"))
        .await
        .unwrap();
    let mut west = ZoneEnd::connect(&node, &address, &west, hello("w"))
        .await
        .unwrap();
    let key = ResourceKey::in_zone("MeshService", "pay", "east", "web");
    let web = ResourceRecord {
        key: Some(key.clone()),
        json: br#"{"mesh":"pay","name":"web","spec":{"ports":[{"appProtocol":"tcp","port":80}]},"type":"MeshService","zone":"east"}"#.to_vec(),
        revision: 0, modified_ms: 0, created_revision: 0, };
    east.report(ZoneReport {
        epoch: 1,
        sequence: 1,
        full: true,
        put: vec![web],
        delete: vec![],
    })
    .await;
    loop {
        let change = west.change_in("pay").await;
        if change.put.iter().any(|r| r.key.as_ref() == Some(&key)) {
            break;
        }
    }
    node.delete("/v1/zones/east").await.ok();
    assert!(east.end().await.contains("deleted"));
    loop {
        let change = west.change_in("pay").await;
        if change.delete.contains(&key) {
            break;
        }
    }
}

fn service_of(mesh: &str, zone: &str, name: &str) -> ResourceRecord {
    let spec = serde_json::from_value::<mesh_model::MeshService>(json!({"ports": [{"port": 80}]}));
    record(&Resource::new(
        Meta::new(mesh, name).in_zone(zone),
        spec.unwrap(),
    ))
}

/// FIELD a7: what is called the same in several zones and meshes is several things, everywhere, and each goes with its
/// own zone or mesh only (a5, a6, g3).
#[tokio::test]
async fn the_same_name_in_three_zones_and_two_meshes_is_six_things() {
    let zones = ["east", "north", "west"];
    let meshes = ["ana", "pay"];
    let node = TestNode::start().await;
    node.apply("type: Mesh\nname: pay\n---\ntype: Mesh\nname: ana\n")
        .await
        .ok();
    let address = node.serve_zones().await;
    let mut ends = Vec::new();
    for zone in zones {
        let identity = joined(&node, &address, zone).await;
        let mut end = ZoneEnd::connect(&node, &address, &identity, hello("s"))
            .await
            .unwrap();
        end.hello().await;
        let report = ZoneReport {
            epoch: 1,
            sequence: 1,
            full: true,
            put: meshes.map(|mesh| service_of(mesh, zone, "web")).into(),
            delete: vec![],
        };
        assert!(end.report(report).await.refused.is_empty());
        ends.push(end);
    }
    let all = |image: &crate::state::image::Image| {
        let found = image.list("MeshService", None, None, 100).into_iter();
        found
            .map(|stored| {
                format!(
                    "{} {} {}",
                    stored.key.mesh, stored.key.zone, stored.key.name
                )
            })
            .collect::<Vec<_>>()
    };
    let expected: Vec<String> = meshes
        .iter()
        .flat_map(|mesh| zones.map(|zone| format!("{mesh} {zone} web")))
        .collect();
    assert_eq!(all(&node.app.image()), expected);
    for (mesh, zone) in meshes
        .iter()
        .flat_map(|mesh| zones.map(|zone| (mesh, zone)))
    {
        let read = node
            .get(&format!("/v1/meshes/{mesh}/meshservices/web?zone={zone}"))
            .await
            .ok();
        assert_eq!(
            (&read["mesh"], &read["labels"]["isthmus.io/origin"]),
            (&json!(mesh), &json!(zone))
        );
    }
    // A zone that comes anew hears of the four of the others, and only of them.
    let identity = joined(&node, &address, "north").await;
    let mut again = ZoneEnd::connect(&node, &address, &identity, hello("s2"))
        .await
        .unwrap();
    again.hello().await;
    let mut heard = Vec::new();
    for _ in 0..3 {
        let changes = again.changes().await;
        assert!(changes.snapshot && changes.last);
        heard.extend(changes.put.into_iter().filter_map(|record| record.key));
    }
    heard.retain(|key| key.kind == "MeshService");
    let mut heard: Vec<String> = heard
        .iter()
        .map(|key| format!("{} {}", key.mesh, key.zone))
        .collect();
    heard.sort();
    assert_eq!(heard, ["ana east", "ana west", "pay east", "pay west"]);
    // With a zone go its own, here and in the others; what is called the same stays.
    node.delete("/v1/zones/west").await.ok();
    let left: Vec<String> = expected
        .iter()
        .filter(|name| !name.contains("west"))
        .cloned()
        .collect();
    assert_eq!(all(&node.app.image()), left);
    let gone = again.change_in("pay").await;
    assert_eq!(
        gone.delete,
        [ResourceKey::in_zone("MeshService", "pay", "west", "web")]
    );
    // With a mesh all in it, in every zone; of the other mesh nobody hears anything.
    let (token, _) = node.token(json!({"use": "dataplane", "mesh": "pay"})).await;
    let issuer = node.get("/v1/tokenissuers/pay").await.ok();
    node.delete("/v1/meshes/ana").await.ok();
    assert_eq!(all(&node.app.image()), ["pay east web", "pay north web"]);
    assert_eq!(node.get("/v1/tokenissuers/pay").await.ok(), issuer);
    let claims = tokens::unverified_claims(&token).unwrap();
    assert!(node.get("/v1/tokens").await.text.contains(&claims.jti));
    loop {
        let changes = again.changes().await;
        assert!(
            changes.mesh != "pay" || changes.delete.is_empty(),
            "{changes:?}"
        );
        if changes.mesh_gone {
            assert_eq!(changes.mesh, "ana");
            break;
        }
    }
}

#[tokio::test]
async fn a_disabled_zone_is_cut_off_and_stays_out() {
    let (node, address) = two_zones().await;
    let identity = joined(&node, &address, "east").await;
    let mut zone = ZoneEnd::connect(&node, &address, &identity, hello("s"))
        .await
        .unwrap();
    zone.hello().await;
    node.put("/v1/zones/east", "type: Zone\nname: east\nenabled: false\n")
        .await
        .ok();
    assert!(zone.end().await.contains("disabled"));
    let refused = ZoneEnd::connect(&node, &address, &identity, hello("t"))
        .await
        .err()
        .unwrap();
    assert!(refused.message().contains("disabled"), "{refused}");
}

#[tokio::test]
async fn without_a_certificate_nobody_syncs_and_without_features_no_zone() {
    let (node, address) = two_zones().await;
    let refused = ZoneEnd::connect(&node, &address, &LocalIdentity::none(), hello("s"))
        .await
        .err()
        .unwrap();
    assert!(refused.message().contains("join first"), "{refused}");
    // A node of the cluster is no zone.
    let refused = ZoneEnd::connect(&node, &address, &node.identity, hello("s"))
        .await
        .err()
        .unwrap();
    assert!(refused.message().contains("join first"), "{refused}");
    let identity = joined(&node, &address, "east").await;
    let old = ZoneHello {
        features: vec![],
        ..hello("s")
    };
    let mut zone = ZoneEnd::connect(&node, &address, &identity, old)
        .await
        .unwrap();
    assert!(zone.end().await.contains("sync.cursors"));
}

#[tokio::test]
async fn each_stream_is_dropped_by_its_own_silence() {
    let heartbeat = Duration::from_millis(200);
    let node = TestNode::start_with(heartbeat).await;
    node.apply("type: Zone\nname: east\n").await.ok();
    let address = node.serve_zones().await;
    let identity = joined(&node, &address, "east").await;
    let mut frozen = ZoneEnd::connect(&node, &address, &identity, hello("frozen"))
        .await
        .unwrap();
    let other = ZoneHello {
        instance: "i2".into(),
        ..hello("living")
    };
    let living = ZoneEnd::connect(&node, &address, &identity, other)
        .await
        .unwrap();
    let beating = async {
        for number in 0.. {
            living
                .say(to_global::Message::Heartbeat(Heartbeat {
                    number,
                    revision: 0,
                }))
                .await;
            tokio::time::sleep(heartbeat / 2).await;
        }
    };
    tokio::select! {
        reason = frozen.end() => assert!(reason.contains("nothing came"), "{reason}"),
        () = beating => unreachable!(),
    }
    let sessions: Vec<String> = crate::cluster::ZoneStreams::statuses(&node.app.streams)
        .into_iter()
        .map(|s| s.session)
        .collect();
    assert_eq!(sessions, ["living"]);
}

#[tokio::test]
async fn rollout_status_and_dataplanes_come_from_the_zone() {
    let (node, address) = two_zones().await;
    let identity = joined(&node, &address, "east").await;
    let mut zone = ZoneEnd::connect(&node, &address, &identity, hello("s"))
        .await
        .unwrap();
    zone.hello().await;
    let written = node
        .apply("type: MeshTrafficPermission\nmesh: pay\nname: p\nspec: {rules: []}\n")
        .await
        .ok();
    let revision = written["revision"].as_u64().unwrap();
    node.delete("/v1/zones/west").await.ok();
    let status = |current| ZoneStatus {
        revision: node.revision(),
        meshes: vec![MeshStatus {
            mesh: "pay".into(),
            revision,
            dataplanes: 2,
            current,
            pending: vec!["web".into(); (2 - current) as usize],
            pending_count: 2 - current,
            ..MeshStatus::default()
        }],
        refused: vec![],
    };
    zone.say(to_global::Message::Status(status(1))).await;
    let rollout = format!("/v1/rollout/{revision}?mesh=pay");
    loop {
        let answer = node.get(&rollout).await.ok();
        if answer["zones"][0]["applied"] == true {
            assert_eq!(answer["complete"], false);
            assert_eq!(answer["zones"][0]["pending"], json!(["pay/web"]));
            break;
        }
        tokio::task::yield_now().await;
    }
    zone.say(to_global::Message::Status(status(2))).await;
    // A long poll ends when it is complete.
    let answer = node.get(&format!("{rollout}&wait=10")).await.ok();
    assert_eq!(answer["complete"], true, "{answer}");
    let connection = node.get("/v1/zones/east/status").await.ok();
    assert_eq!(
        (&connection["state"], &connection["dataplanes"]),
        (&json!("online"), &json!(2))
    );
    // Dataplanes: asked of the zone; what it says of another mesh is dropped.
    let answering = async {
        let query = zone
            .next(|message| match message {
                Message::Query(query) => Some(query),
                _ => None,
            })
            .await;
        let view = |mesh: &str| json!({"mesh": mesh, "zone": "lie", "name": "web", "state": "online", "spiffeId": "", "version": "", "services": [], "certificateNotAfter": 0, "documents": [], "resource": null});
        let answer = QueryAnswer {
            id: query.id,
            json: json!([view("pay"), view("ana")]).to_string().into_bytes(),
            error: String::new(),
        };
        zone.say(to_global::Message::Answer(answer)).await;
    };
    let (list, ()) = tokio::join!(node.get("/v1/meshes/pay/dataplanes"), answering);
    let list = list.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&list["items"][0]["mesh"], &list["items"][0]["zone"]),
        (&json!("pay"), &json!("east"))
    );
}
