//! Whole proxies, each as it runs in its process, with a zone control plane that the test plays.

mod descriptors;
mod ended;
mod floods;
mod life;
mod load;
mod permissive;
mod program;
mod route;
mod slow;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
mod vanished;

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_proto::{
    discovery::{EndpointsDelta, NackKind, Role, to_zone::Message as Up},
    document::{self, seal},
    proxy::{self as wire, document::Body, identity_match::SpiffeId as Match},
};
use support::{sidecar::*, *};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tonic::Status;

/// An application that sends back what it gets, with its name first.
async fn echo(name: &'static str) -> u16 {
    echo_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), name)
}

/// The same with a listener that is there already.
fn echo_on(listener: std::net::TcpListener, name: &'static str) -> u16 {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    port
}

/// Calls and says something: the name of who answered. `None`: nobody did.
async fn call(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(b" hello").await.ok()?;
    stream.shutdown().await.ok()?;
    let mut answer = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut answer))
        .await
        .ok()?
        .ok()?;
    answer.strip_suffix(" hello").map(str::to_owned)
}

/// `web` calls `store`: two sidecars in one zone.
struct Scene {
    zone: Zone,
    dir: TempDir,
    web: Proxy,
    store: Proxy,
    outbound: u16,
    inbound: u16,
    application: u16,
}

fn store_document(
    inbound_port: u16,
    application: u16,
    permissions: wire::Permissions,
) -> wire::Document {
    let inbound = inbound("store", inbound_port, application, permissions);
    proxy("store", vec![inbound], vec![])
}

async fn scene() -> Scene {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, inbound_port) = (free_port(), free_port());
    let application = echo("store").await;
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let store = store_document(
            inbound_port,
            application,
            allow(Match::Exact(identity("web"))),
        );
        world
            .documents
            .insert("web-1".into(), vec![trust.clone(), service("store"), web]);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let web = Proxy::start(&zone, &dir, Role::Sidecar, "web-1");
    let store = Proxy::start(&zone, &dir, Role::Sidecar, "store-1");
    web.ready().await;
    store.ready().await;
    eventually("web reaches store", async || {
        call(outbound_port).await.is_some()
    })
    .await;
    Scene {
        zone,
        dir,
        web,
        store,
        outbound: outbound_port,
        inbound: inbound_port,
        application,
    }
}

impl Scene {
    fn permit(&self, permissions: wire::Permissions) {
        let document = store_document(self.inbound, self.application, permissions);
        self.zone.change(|world| {
            world.documents.get_mut("store-1").unwrap()[1] = document;
        });
    }
}

#[tokio::test]
async fn bytes_pass_between_two_sidecars_and_both_count_them() {
    let scene = scene().await;
    assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
    let who = [
        "source=\"web\"",
        "destination=\"store\"",
        "outcome=\"completed\"",
        "zone=\"east\"",
        "mesh=\"pay\"",
    ];
    scene
        .web
        .counted(&[&who[..], &["direction=\"outbound\""]].concat())
        .await;
    scene
        .store
        .counted(&[&who[..], &["direction=\"inbound\""]].concat())
        .await;
    scene
        .store
        .counted(&[
            "isthmus_dataplane_bytes_total",
            "direction=\"inbound\"",
            "flow=\"received\"",
        ])
        .await;
    // The zone heard of every document, and of readiness.
    let ack = scene
        .zone
        .hear(
            "an ack of the store's proxy document",
            |name, up| match up {
                Up::Ack(ack) if name == "store-1" => ack
                    .documents
                    .iter()
                    .any(|d| d.name == "proxy")
                    .then(|| ack.clone()),
                _ => None,
            },
        )
        .await;
    assert_eq!(ack.documents.len(), 2);
    scene
        .zone
        .hear("readiness", |name, up| match up {
            Up::Readiness(r) if name == "store-1" => {
                r.inbounds.iter().any(|i| i.ready).then_some(())
            }
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn a_withdrawn_permission_closes_open_connections_and_refuses_new_ones() {
    let scene = scene().await;
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();

    scene.permit(wire::Permissions::default());
    let ended = timeout(SOON, open.read(&mut name)).await;
    assert!(
        matches!(ended, Ok(Ok(0) | Err(_))),
        "still open after {SOON:?}: {ended:?}"
    );
    scene
        .store
        .counted(&["reason=\"permission_withdrawn\"", "outcome=\"closed\""])
        .await;
    assert_eq!(call(scene.outbound).await, None);
    scene
        .store
        .counted(&[
            "reason=\"permission_denied\"",
            "outcome=\"refused\"",
            "source=\"web\"",
        ])
        .await;
    // The caller's proxy knows that it was no accident.
    scene
        .web
        .counted(&[
            "reason=\"refused_by_peer\"",
            "outcome=\"refused\"",
            "destination=\"store\"",
        ])
        .await;

    scene.permit(allow_any());
    eventually("allowed again", async || {
        call(scene.outbound).await.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_withdrawn_trust_anchor_closes_open_connections() {
    let scene = scene().await;
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();
    let other = new_ca("another");
    scene.zone.change(|world| {
        let trust = wire::Trust {
            domains: vec![wire::TrustDomain {
                name: DOMAIN.into(),
                anchors: vec![other.certificate().to_vec()],
            }],
        };
        let document = seal(document::TRUST.into(), vec![], Body::Trust(trust));
        world.documents.get_mut("store-1").unwrap()[0] = document;
    });
    let ended = timeout(SOON, open.read(&mut name)).await;
    assert!(
        matches!(ended, Ok(Ok(0) | Err(_))),
        "still open after {SOON:?}: {ended:?}"
    );
    scene.store.counted(&["reason=\"trust_withdrawn\""]).await;
}

#[tokio::test]
async fn plaintext_to_a_strict_port_is_refused_and_counted() {
    let scene = scene().await;
    let mut stream = TcpStream::connect(("127.0.0.1", scene.inbound))
        .await
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // An alert at most: nothing of the application.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.len() <= 7, "{answer:?}");
    scene
        .store
        .counted(&["reason=\"plaintext\"", "outcome=\"refused\""])
        .await;
}

#[tokio::test]
async fn a_bad_document_is_refused_with_its_reason_and_the_last_good_one_stays() {
    let scene = scene().await;
    let good = {
        let world = scene.zone.world.lock().unwrap();
        world.documents["store-1"][1].clone()
    };
    let Some(Body::Proxy(body)) = good.body.clone() else {
        panic!("a proxy document")
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();
    let mut at_taken = body.clone();
    let mut second = inbound("store", taken_port, 1, allow_any());
    second.name = "second".into();
    at_taken.inbounds.push(second);
    let mut unprotected = body.clone();
    unprotected.inbounds[0].tls = 0;
    for (document, words) in [
        (
            seal(
                "proxy".into(),
                vec!["teleport.v2".into()],
                Body::Proxy(body.clone()),
            ),
            vec!["teleport.v2".to_owned()],
        ),
        (
            seal("proxy".into(), vec![], Body::Proxy(unprotected)),
            vec!["tls mode".to_owned()],
        ),
        (
            seal("proxy".into(), vec![], Body::Proxy(at_taken)),
            vec![
                format!("127.0.0.1:{taken_port}"),
                "another process listens there".to_owned(),
            ],
        ),
    ] {
        let version = document.version.clone();
        scene
            .zone
            .change(|world| world.documents.get_mut("store-1").unwrap()[1] = document);
        let (reason, kind) = scene
            .zone
            .hear("a nack", |name, up| match up {
                Up::Nack(nack) if name == "store-1" => {
                    let nack = nack.documents.iter().find(|d| d.version == version)?;
                    Some((nack.reason.clone(), nack.kind()))
                }
                _ => None,
            })
            .await;
        // A port may be free elsewhere; the others would be refused everywhere.
        let local = reason.contains("listens there");
        assert_eq!(kind == NackKind::Local, local, "{reason}");
        for word in words {
            assert!(reason.contains(&word), "{reason}");
        }
        assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
    }
    let config = scene.store.config().await;
    assert_eq!(config["refused"][0]["name"], "proxy");
    assert!(config["documents"].to_string().contains(&good.version));

    // The port becomes free: the document is taken without being sent again.
    drop(taken);
    let version = {
        let world = scene.zone.world.lock().unwrap();
        world.documents["store-1"][1].version.clone()
    };
    scene
        .zone
        .hear("an ack after all", |name, up| match up {
            Up::Ack(ack) if name == "store-1" => ack
                .documents
                .iter()
                .any(|d| d.version == version)
                .then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn a_listener_that_moves_does_not_touch_the_others() {
    let scene = scene().await;
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();
    let second = free_port();
    scene.zone.change(|world| {
        let outbounds = vec![outbound("store", scene.outbound), outbound("store", second)];
        world.documents.get_mut("web-1").unwrap()[2] = proxy("web", vec![], outbounds);
    });
    eventually("the second outbound", async || call(second).await.is_some()).await;
    // What was open before still is.
    open.write_all(b"x").await.unwrap();
    let mut byte = [0; 1];
    open.read_exact(&mut byte).await.unwrap();
    scene.zone.change(|world| {
        world.documents.get_mut("web-1").unwrap()[2] =
            proxy("web", vec![], vec![outbound("store", second)]);
    });
    eventually("the first outbound is gone", async || {
        TcpStream::connect(("127.0.0.1", scene.outbound))
            .await
            .is_err()
    })
    .await;
    open.write_all(b"y").await.unwrap();
    open.read_exact(&mut byte).await.unwrap();
}

#[tokio::test]
async fn a_failed_endpoint_is_left_for_another_one() {
    let scene = scene().await;
    let dead = free_port();
    // A second endpoint that speaks no TLS, and one where nobody listens.
    let liar = echo("liar").await;
    scene.zone.change(|world| {
        let there = endpoints("store", &[dead, liar, scene.inbound]);
        world.endpoints.insert(there.key.clone(), there);
    });
    eventually("the endpoints are there", async || {
        scene.web.config().await["endpoints"]["service/store:80"]
            .as_array()
            .is_some_and(|list| list.len() == 3)
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
    }
}

#[tokio::test]
async fn without_a_reachable_endpoint_it_fails_with_a_reason_and_asks_anew() {
    let scene = scene().await;
    let streams = |zone: &Zone| {
        let world = zone.world.lock().unwrap();
        let hello = |(name, up): &&(String, Up)| name == "web-1" && matches!(up, Up::Hello(_));
        world.heard.iter().filter(hello).count()
    };
    let before = streams(&scene.zone);
    let dead = free_port();
    scene.zone.change(|world| {
        let there = endpoints("store", &[dead]);
        world.endpoints.insert(there.key.clone(), there);
    });
    eventually("nobody answers", async || {
        call(scene.outbound).await.is_none()
    })
    .await;
    scene
        .web
        .counted(&["reason=\"connect_refused\"", "outcome=\"failed\""])
        .await;
    eventually("a fresh look-up", async || {
        let _ = call(scene.outbound).await;
        streams(&scene.zone) > before
    })
    .await;
    scene.zone.change(|world| {
        let none = endpoints("store", &[]);
        world.endpoints.insert(none.key.clone(), none);
    });
    eventually("no endpoints", async || {
        let _ = call(scene.outbound).await;
        scene
            .web
            .metrics()
            .await
            .contains("reason=\"no_endpoints\"")
    })
    .await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_talked_to() {
    let scene = scene().await;
    scene.zone.change(|world| {
        let Some(Body::Service(mut body)) = service("store").body else {
            unreachable!()
        };
        body.zones[0].identities = vec![identity("somebody-else")];
        let document = seal("service/store:80".into(), vec![], Body::Service(body));
        world.documents.get_mut("web-1").unwrap()[1] = document;
    });
    eventually("refused", async || call(scene.outbound).await.is_none()).await;
    scene.web.counted(&["reason=\"server_identity\""]).await;
}

#[tokio::test]
async fn a_proxy_that_starts_without_its_zone_serves_from_disk() {
    let mut scene = scene().await;
    // Endpoints are kept once a second at most.
    scene.zone.stop();
    let Scene {
        zone,
        dir,
        web,
        store,
        outbound,
        ..
    } = &mut scene;
    let (web_dir, outbound) = (web.dir.clone(), *outbound);
    eventually("disconnected", async || {
        web.config().await["zoneControlPlane"]["connected"] == false
    })
    .await;
    let old = std::mem::replace(web, Proxy::start(zone, dir, Role::Sidecar, "other"));
    old.stop().await;
    let again = Proxy::start(zone, dir, Role::Sidecar, "web-1");
    again.ready().await;
    assert_eq!(call(outbound).await.as_deref(), Some("store"));
    let config = again.config().await;
    assert_eq!(config["zoneControlPlane"]["connected"], false);
    assert_eq!(config["sessionNumber"], 2);
    again.stop().await;

    // A damaged file is set aside, said, and the proxy starts.
    let path = web_dir.join("documents");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let again = Proxy::start(zone, dir, Role::Sidecar, "web-1");
    eventually("the admin socket", async || {
        again.ask("GET", "/healthz").await.is_some()
    })
    .await;
    let config = again.config().await;
    assert!(
        config["damagedState"][0]
            .as_str()
            .unwrap()
            .contains("set aside"),
        "{config}"
    );
    assert!(web_dir.join("documents.damaged").exists());
    let (status, reason) = again.ask("GET", "/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(reason.contains("zone control plane"), "{reason}");

    // The zone comes back at the same address, and gives it again.
    let zone = Zone::serve(zone.world.clone(), zone.address).await;
    again.ready().await;
    eventually("served again", async || call(outbound).await.is_some()).await;
    again.stop().await;
    drop(zone);
    let _ = store;
}

#[tokio::test]
async fn a_refused_token_is_said_and_traffic_goes_on() {
    let scene = scene().await;
    scene.zone.change(|world| {
        world.refuse = Some(Status::unauthenticated("token a1 is revoked"));
    });
    scene.zone.stop();
    let _again = Zone::serve(scene.zone.world.clone(), scene.zone.address).await;
    eventually("said", async || {
        let config = scene.web.config().await;
        let reason = config["zoneControlPlane"]["reason"]
            .as_str()
            .unwrap_or_default();
        reason.contains("refuses this proxy's token") && reason.contains("a1 is revoked")
    })
    .await;
    assert_eq!(call(scene.outbound).await.as_deref(), Some("store"));
}

#[tokio::test]
async fn a_zone_that_falls_silent_is_left_and_called_again() {
    let scene = scene().await;
    let hellos = || {
        let world = scene.zone.world.lock().unwrap();
        let hello = |(name, up): &&(String, Up)| name == "web-1" && matches!(up, Up::Hello(_));
        world.heard.iter().filter(hello).count()
    };
    let before = hellos();
    scene.zone.world.lock().unwrap().silent = true;
    eventually("a second stream", async || hellos() > before).await;
    // It says what it runs, so that only what differs is sent.
    let known = scene
        .zone
        .hear("known documents", |name, up| match up {
            Up::Hello(hello) if name == "web-1" && !hello.documents.is_empty() => {
                Some(hello.documents.len())
            }
            _ => None,
        })
        .await;
    assert_eq!(known, 3);
}

/// How many certificates a dataplane has asked for.
fn certificates(zone: &Zone, dataplane: &str) -> usize {
    let world = zone.world.lock().unwrap();
    let asked =
        |(name, up): &&(String, Up)| name == dataplane && matches!(up, Up::CertificateRequest(_));
    world.heard.iter().filter(asked).count()
}

#[tokio::test]
async fn certificates_are_renewed_without_a_failed_or_cut_connection() {
    let scene = scene().await;
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();
    // The certificates in use live a day; new proxies get ones that live six seconds.
    let life = Duration::from_secs(6);
    scene
        .zone
        .change(|world| world.life = life.try_into().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let second = free_port();
    scene.zone.change(|world| {
        let mut documents = world.documents["web-1"].clone();
        documents[2] = proxy("web", vec![], vec![outbound("store", second)]);
        world.documents.insert("web-2".into(), documents);
    });
    let begun = Instant::now();
    let web = Proxy::start(&scene.zone, &dir, Role::Sidecar, "web-2");
    web.ready().await;
    eventually("reached", async || call(second).await.is_some()).await;
    let mut held = TcpStream::connect(("127.0.0.1", second)).await.unwrap();
    held.read_exact(&mut name).await.unwrap();
    // All the while, until the third certificate is there and the first has ended.
    let third = Duration::from_secs(1) + life;
    while certificates(&scene.zone, "web-2") < 3 || begun.elapsed() < third {
        assert!(begun.elapsed() < third + SOON, "no third certificate");
        assert_eq!(call(second).await.as_deref(), Some("store"));
        sleep(Duration::from_millis(50)).await;
    }
    held.write_all(b"z").await.unwrap();
    let mut byte = [0; 1];
    held.read_exact(&mut byte).await.unwrap();
    // It asks when a part of a life is over, and not all the time.
    let lives = begun.elapsed().as_secs_f64() / life.as_secs_f64();
    let asked = certificates(&scene.zone, "web-2");
    assert!(
        (asked as f64) < 2.0 + 2.0 * lives,
        "{asked} certificates in {lives} lives"
    );
}

#[tokio::test]
async fn the_zone_is_told_of_a_new_certificate_at_once() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let trust = zone.trust();
    zone.change(|world| {
        // Later than anybody waits here.
        world.heartbeat_ms = 60_000;
        let store = store_document(free_port(), 1, allow_any());
        world.documents.insert("store-1".into(), vec![trust, store]);
    });
    let _store = Proxy::start(&zone, &dir, Role::Sidecar, "store-1");
    let end = zone
        .hear("when the certificate ends", |_, up| match up {
            Up::Heartbeat(beat) if beat.certificate_not_after > 0 => {
                Some(beat.certificate_not_after)
            }
            _ => None,
        })
        .await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    assert!(end > u64::try_from(now).unwrap(), "{end}");
}

#[tokio::test]
async fn an_ingress_forwards_by_server_name_without_decrypting() {
    let scene = scene().await;
    let gate = free_port();
    scene.zone.change(|world| {
        let ingress = wire::Ingress {
            zone: "east".into(),
            name: "gate".into(),
            listen: Some(address(gate)),
            routes: vec![wire::IngressRoute {
                server_name: server_name("store"),
                endpoints: "pay/store:80".into(),
                mesh: "pay".into(),
                service: "store".into(),
            }],
            timeouts: Some(timeouts()),
        };
        let document = seal(document::INGRESS.into(), vec![], Body::Ingress(ingress));
        world.documents.insert("gate".into(), vec![document]);
        let here = EndpointsDelta {
            key: "pay/store:80".into(),
            ..endpoints("store", &[scene.inbound])
        };
        world.endpoints.insert(here.key.clone(), here);
    });
    let ingress = Proxy::start(&scene.zone, &scene.dir, Role::Ingress, "gate");
    ingress.ready().await;
    // web's endpoint is the ingress now, as it is for a service that runs only in another zone.
    scene.zone.change(|world| {
        let mut there = endpoints("store", &[gate]);
        there.put[0].through_ingress = true;
        world.endpoints.insert(there.key.clone(), there);
    });
    eventually("through the ingress", async || {
        call(scene.outbound).await.is_some()
            && ingress
                .metrics()
                .await
                .contains("direction=\"ingress\",outcome=\"completed\"")
    })
    .await;
    // Plaintext, and a name that is not there.
    let mut stream = TcpStream::connect(("127.0.0.1", gate)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    ingress
        .counted(&["reason=\"plaintext\"", "direction=\"ingress\""])
        .await;
    scene.zone.change(|world| {
        let Some(Body::Service(mut body)) = service("store").body else {
            unreachable!()
        };
        body.zones[0].server_name = "sni.msvc.pay.east.none.80".into();
        let document = seal("service/store:80".into(), vec![], Body::Service(body));
        world.documents.get_mut("web-1").unwrap()[1] = document;
    });
    eventually("an unknown name is refused", async || {
        let _ = call(scene.outbound).await;
        let metrics = ingress.metrics().await;
        metrics.contains("outcome=\"refused\",reason=\"server_name\"")
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_stops_leaves_first_and_lets_open_connections_end() {
    let scene = scene().await;
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();
    scene.store.stop.cancel();
    scene
        .zone
        .hear("leaving", |name, up| {
            (name == "store-1" && matches!(up, Up::Leaving(_))).then_some(())
        })
        .await;
    eventually("accepts no more", async || {
        TcpStream::connect(("127.0.0.1", scene.inbound))
            .await
            .is_err()
    })
    .await;
    // What is open goes on, and ends well.
    open.write_all(b"last words").await.unwrap();
    open.shutdown().await.unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last words");
    scene.store.stop().await;
}

#[tokio::test]
async fn limits_hold_and_others_are_served_again_when_there_is_room() {
    let scene = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let second = free_port();
    scene.zone.change(|world| {
        let mut documents = world.documents["web-1"].clone();
        documents[2] = proxy("web", vec![], vec![outbound("store", second)]);
        world.documents.insert("web-2".into(), documents);
    });
    let web = Proxy::start_with(&scene.zone, &dir, Role::Sidecar, "web-2", |settings| {
        settings.limits.connections = 3;
    });
    web.ready().await;
    eventually("reached", async || call(second).await.is_some()).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", second)).await.unwrap();
        let mut name = [0; 5];
        stream.read_exact(&mut name).await.unwrap();
        held.push(stream);
    }
    assert_eq!(call(second).await, None);
    web.counted(&["reason=\"connection_limit\"", "outcome=\"refused\""])
        .await;
    drop(held);
    eventually("room again", async || call(second).await.is_some()).await;
}

#[tokio::test]
async fn silent_connections_end_within_their_time() {
    let scene = scene().await;
    scene.zone.change(|world| {
        let Some(Body::Service(mut body)) = service("store").body else {
            unreachable!()
        };
        body.timeouts = Some(wire::Timeouts {
            connect_ms: 1000,
            idle_ms: 300,
            ..wire::Timeouts::default()
        });
        let document = seal("service/store:80".into(), vec![], Body::Service(body));
        world.documents.get_mut("web-1").unwrap()[1] = document;
    });
    eventually("an idle connection is ended", async || {
        let mut stream = TcpStream::connect(("127.0.0.1", scene.outbound))
            .await
            .unwrap();
        let mut bytes = Vec::new();
        // It ends by FIN: it was silent, nothing was lost. One that began before the change would stay for long.
        let ended = timeout(Duration::from_secs(3), stream.read_to_end(&mut bytes)).await;
        matches!(ended, Ok(Ok(_)))
    })
    .await;
    scene
        .web
        .counted(&["reason=\"idle_timeout\"", "outcome=\"closed\""])
        .await;
}

#[tokio::test]
async fn an_operator_sees_connections_and_nobody_else_opens_the_socket() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = scene().await;
    let mode = std::fs::metadata(&scene.store.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut open = TcpStream::connect(("127.0.0.1", scene.outbound))
        .await
        .unwrap();
    let mut name = [0; 5];
    open.read_exact(&mut name).await.unwrap();
    let (_, list) = scene.store.ask("GET", "/connections").await.unwrap();
    assert!(
        list.contains(&identity("web")) && list.contains("\"inbound\":\"main\""),
        "{list}"
    );
    let (_, certificate) = scene.store.ask("GET", "/certificate").await.unwrap();
    assert!(certificate.contains(&identity("store")), "{certificate}");
    assert!(!scene.store.config().await.to_string().contains("PRIVATE"));
    let (status, _) = scene.store.ask("POST", "/drain").await.unwrap();
    assert_eq!(status, 202);
}
