use std::{collections::BTreeSet, sync::Arc, time::Duration as StdDuration};

use mesh_proto::proxy as wire;
use mesh_runtime::pki::{self, Ca, Subject};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    handshake::{self, Established, HandshakeError},
    identity::Identity,
    session::SessionError,
    verify::Refusal,
    *,
};
use crate::permission::{Pattern, Rule};

pub(crate) const EAST: &str = "pay.east.mesh.local";
const WEST: &str = "pay.west.mesh.local";
pub(crate) const NAME: &str = "sni.msvc.pay.east.web.80";

pub(crate) fn ca(name: &str) -> Ca {
    Ca::self_signed(name, None, OffsetDateTime::now_utc(), Duration::days(2)).unwrap()
}

pub(crate) fn trust(domains: &[(&str, &Ca)]) -> Arc<Trust> {
    let wire = wire::Trust {
        domains: domains
            .iter()
            .map(|(name, ca)| wire::TrustDomain {
                name: (*name).to_owned(),
                anchors: vec![ca.certificate().to_vec()],
            })
            .collect(),
    };
    Arc::new(Trust::try_from(&wire).unwrap())
}

/// An identity from `ca`, taken `ago` and living for an hour.
pub(crate) fn identity(ca: &Ca, domain: &str, workload: &str, ago: Duration) -> Identity {
    let id: SpiffeId = format!("spiffe://{domain}/workload/{workload}")
        .parse()
        .unwrap();
    let key = pki::new_key().unwrap();
    let subject = Subject {
        spiffe_id: Some(id.clone()),
        ..Subject::default()
    };
    let csr = pki::request(&key).unwrap();
    let now = OffsetDateTime::now_utc() - ago;
    let leaf = ca.sign(&csr, &subject, now, Duration::hours(1)).unwrap();
    Identity::new(&id, vec![leaf], &key).unwrap()
}

pub(crate) fn names(names: &[&str]) -> Arc<BTreeSet<String>> {
    Arc::new(names.iter().map(|name| (*name).to_owned()).collect())
}

pub(crate) fn everybody() -> Arc<Permissions> {
    Arc::new(Permissions {
        allow: vec![Rule {
            pattern: Pattern::Any,
            origin: "everybody#0".into(),
        }],
        ..Permissions::default()
    })
}

pub(crate) fn only(identity: &Identity) -> Arc<HashSet<SpiffeId>> {
    Arc::new([identity.spiffe_id.clone()].into())
}

/// Two ends of a TCP connection.
pub(crate) async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// What both ends say to a handshake.
async fn shake(
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
    server: Arc<rustls::ServerConfig>,
) -> (
    Result<Established, HandshakeError>,
    Result<Established, HandshakeError>,
) {
    let (mut near, mut far) = tcp().await;
    let server = async {
        let result = handshake::accept(&mut far, server).await;
        // Closes where it refuses, so that the client learns it.
        if result.is_err() {
            drop(far);
        }
        result
    };
    tokio::join!(handshake::connect(&mut near, client, name), server)
}

struct World {
    east: Ca,
    west: Ca,
    trust: Arc<Trust>,
    server: Identity,
    client: Identity,
}

fn world() -> World {
    mesh_runtime::init();
    let (east, west) = (ca("east"), ca("west"));
    World {
        trust: trust(&[(EAST, &east), (WEST, &west)]),
        server: identity(&east, EAST, "web", Duration::ZERO),
        client: identity(&west, WEST, "api", Duration::ZERO),
        east,
        west,
    }
}

impl World {
    fn client(&self, identity: &Identity) -> Arc<ClientConfig> {
        client_config(identity, self.trust.clone(), only(&self.server))
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        server_config(
            &self.server,
            self.trust.clone(),
            names(&[NAME]),
            everybody(),
        )
    }

    async fn server_refuses(&self, identity: &Identity) -> HandshakeError {
        let name = server_name::on_wire(NAME).unwrap();
        let (_, server) = shake(self.client(identity), name, self.server()).await;
        server.err().expect("the server refuses")
    }
}

#[tokio::test]
async fn two_zones_of_a_mesh_know_each_other_and_prefer_the_hybrid_key_exchange() {
    let world = world();
    let name = server_name::on_wire(NAME).unwrap();
    let (client, server) = shake(world.client(&world.client), name, world.server()).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.peer.id, world.server.spiffe_id);
    assert_eq!(server.peer.id, world.client.spiffe_id);
    assert!(
        world
            .trust
            .holds(server.peer.id.trust_domain(), server.peer.anchor)
    );
    let group = client
        .session
        .common()
        .negotiated_key_exchange_group()
        .unwrap();
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_ca_can_not_vouch_for_another_trust_domain() {
    let world = world();
    // West's CA, known and trusted for west, signs an identity of east.
    let poser = identity(&world.west, EAST, "web", Duration::ZERO);
    let error = world.server_refuses(&poser).await;
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::Chain { .. })),
        "{error}"
    );
    // And as a server, for a client that wants exactly this identity.
    let name = server_name::on_wire(NAME).unwrap();
    let server = server_config(&poser, world.trust.clone(), names(&[NAME]), everybody());
    let (client, _) = shake(world.client(&world.client), name, server).await;
    let error = client.err().unwrap();
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::Chain { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn an_identity_of_another_mesh_is_refused() {
    let world = world();
    let other = ca("analytics");
    let stranger = identity(&other, "analytics.east.mesh.local", "api", Duration::ZERO);
    let error = world.server_refuses(&stranger).await;
    assert!(
        matches!(
            error,
            HandshakeError::Refused(Refusal::UnknownTrustDomain(_))
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_both_times() {
    let world = world();
    let expired = identity(&world.west, WEST, "api", Duration::hours(3));
    assert!(expired.expired(OffsetDateTime::now_utc()));
    let error = world.server_refuses(&expired).await;
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::Time { .. })),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("workload/api")
            && text.contains("ended at")
            && text.contains("clock here says"),
        "{text}"
    );
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused_with_both_times() {
    let world = world();
    let early = identity(&world.west, WEST, "api", Duration::hours(-5));
    let text = world.server_refuses(&early).await.to_string();
    assert!(
        text.contains("begins at") && text.contains("clock here says"),
        "{text}"
    );
}

#[tokio::test]
async fn another_server_name_is_refused() {
    let world = world();
    for name in ["sni.msvc.pay.east.store.80", "sni.msvc.pay.east.web.81"] {
        let name = server_name::on_wire(name).unwrap();
        let (client, server) = shake(world.client(&world.client), name, world.server()).await;
        assert!(matches!(
            server.err().unwrap(),
            HandshakeError::Refused(Refusal::ServerName(_))
        ));
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused_whatever_its_name() {
    let world = world();
    let other = identity(&world.east, EAST, "store", Duration::ZERO);
    let server = server_config(&other, world.trust.clone(), names(&[NAME]), everybody());
    let name = server_name::on_wire(NAME).unwrap();
    let (client, _) = shake(world.client(&world.client), name, server).await;
    let error = client.err().unwrap();
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::OtherIdentity(_))),
        "{error}"
    );
}

#[tokio::test]
async fn a_caller_that_may_not_call_is_told_so() {
    let world = world();
    let name = server_name::on_wire(NAME).unwrap();
    let nobody = Arc::new(Permissions::default());
    let server = server_config(&world.server, world.trust.clone(), names(&[NAME]), nobody);
    let (mut near, mut far) = tcp().await;
    let serving = async {
        let refused = handshake::accept(&mut far, server).await.err().unwrap();
        drop(far);
        refused
    };
    let calling = async {
        // In TLS 1.3 the client is done before the server has seen its certificate: it hears of it afterwards.
        let called = handshake::connect(&mut near, world.client(&world.client), name).await;
        let Established {
            mut session,
            mut incoming,
            ..
        } = called.unwrap();
        loop {
            match session.receive(&mut incoming, &mut Vec::new(), &mut Vec::new()) {
                Ok(received) => drop(incoming.drain(..received.consumed)),
                Err(error) => return error,
            }
            assert_ne!(near.read_buf(&mut incoming).await.unwrap(), 0, "no alert");
        }
    };
    let (refused, heard) = tokio::join!(serving, calling);
    let HandshakeError::Refused(Refusal::Permission { peer, by: None }) = refused else {
        panic!("{refused}");
    };
    assert_eq!(peer.id, world.client.spiffe_id);
    assert!(
        matches!(
            heard,
            SessionError::Tls(rustls::Error::AlertReceived(
                rustls::AlertDescription::AccessDenied
            ))
        ),
        "{heard}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_or_without_mesh_tls_is_refused() {
    let world = world();
    let verifier = Arc::new(ServerVerifier::new(
        world.trust.clone(),
        only(&world.server),
    ));
    let name = server_name::on_wire(NAME).unwrap();
    let anonymous = mesh_runtime::tls::client_config(None, verifier.clone(), &[MESH_ALPN]);
    let (_, server) = shake(Arc::new(anonymous), name.clone(), world.server()).await;
    assert!(matches!(
        server.err().unwrap(),
        HandshakeError::Tls(SessionError::Tls(rustls::Error::NoCertificatesPresented))
    ));
    let no_alpn = mesh_runtime::tls::client_config(None, verifier.clone(), &[]);
    let (_, server) = shake(Arc::new(no_alpn), name.clone(), world.server()).await;
    assert!(matches!(
        server.err().unwrap(),
        HandshakeError::Refused(Refusal::NotMesh)
    ));
    let other_alpn = mesh_runtime::tls::client_config(None, verifier, &[b"h2"]);
    let (_, server) = shake(Arc::new(other_alpn), name, world.server()).await;
    assert!(matches!(
        server.err().unwrap(),
        HandshakeError::Tls(SessionError::Tls(rustls::Error::NoApplicationProtocol))
    ));
}

#[tokio::test]
async fn plaintext_is_recognised_as_such() {
    let world = world();
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        b"\x00\x00\x00\x00\x00\x00",
    ] {
        let (mut near, mut far) = tcp().await;
        near.write_all(bytes).await.unwrap();
        let error = handshake::accept(&mut far, world.server())
            .await
            .err()
            .unwrap();
        assert!(matches!(error, HandshakeError::Plaintext), "{error}");
    }
}

#[tokio::test]
async fn a_peer_that_goes_or_talks_without_end_is_given_up() {
    let world = world();
    let (near, mut far) = tcp().await;
    drop(near);
    let error = handshake::accept(&mut far, world.server())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, HandshakeError::Closed), "{error}");

    // A handshake message that announces 16 MB, and sends them.
    let (mut near, mut far) = tcp().await;
    let talking = async {
        let mut record = vec![22, 3, 1, 0x40, 0];
        record.resize(5 + 0x4000, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        while near.write_all(&record).await.is_ok() {}
    };
    let listening = async {
        let error = handshake::accept(&mut far, world.server())
            .await
            .err()
            .unwrap();
        drop(far);
        error
    };
    let (_, error) = tokio::join!(talking, listening);
    assert!(
        matches!(error, HandshakeError::TooLong | HandshakeError::Tls(_)),
        "{error}"
    );
}

#[tokio::test]
async fn a_refused_client_is_told_by_an_alert() {
    let world = world();
    let (mut near, mut far) = tcp().await;
    let stranger = identity(&ca("x"), "x.east.mesh.local", "api", Duration::ZERO);
    let name = server_name::on_wire(NAME).unwrap();
    let server = handshake::accept(&mut far, world.server());
    let client = async {
        // The client's own part is done before the server has judged it.
        let mut established = handshake::connect(&mut near, world.client(&stranger), name)
            .await
            .unwrap();
        let mut bytes = Vec::new();
        tokio::time::timeout(StdDuration::from_secs(5), near.read_buf(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        established
            .session
            .receive(&mut bytes, &mut plain, &mut out)
            .err()
            .unwrap()
    };
    let (server, client) = tokio::join!(server, client);
    assert!(server.is_err());
    assert!(
        matches!(client, SessionError::Tls(rustls::Error::AlertReceived(_))),
        "{client}"
    );
}

/// What a client sends until it knows the server, cut where TCP may cut it and with one byte changed.
#[test]
fn no_mangled_handshake_panics_a_server() {
    let world = world();
    let hello = {
        let name = server_name::on_wire(NAME).unwrap();
        let config = world.client(&world.client);
        let client = rustls::client::UnbufferedClientConnection::new(config, name).unwrap();
        let mut client = session::Session::Client(Box::new(client));
        let (mut plain, mut hello) = (Vec::new(), Vec::new());
        client.receive(&mut [], &mut plain, &mut hello).unwrap();
        hello
    };
    let server = world.server();
    for at in 0..hello.len() {
        for value in [0, 1, 0x7f, 0xff, hello[at] ^ 1] {
            let mut mangled = hello.clone();
            mangled[at] = value;
            let connection = rustls::server::UnbufferedServerConnection::new(server.clone());
            let mut session = session::Session::Server(Box::new(connection.unwrap()));
            let (mut incoming, mut plain, mut out) = (Vec::new(), Vec::new(), Vec::new());
            for chunk in mangled.chunks(at % 97 + 700) {
                incoming.extend_from_slice(chunk);
                let Ok(received) = session.receive(&mut incoming, &mut plain, &mut out) else {
                    break;
                };
                incoming.drain(..received.consumed);
            }
            let _ = notes::take();
        }
    }
}

#[tokio::test]
async fn a_client_that_sends_a_number_as_the_last_label_learns_what_to_send() {
    let world = world();
    let (mut near, mut far) = tcp().await;
    // As openssl sends it; rustls would not.
    let name = server_name::on_wire(NAME).unwrap();
    let config = world.client(&world.client);
    let client = rustls::client::UnbufferedClientConnection::new(config, name).unwrap();
    let mut client = session::Session::Client(Box::new(client));
    let (mut plain, mut hello) = (Vec::new(), Vec::new());
    client.receive(&mut [], &mut plain, &mut hello).unwrap();
    let at = hello.windows(4).position(|w| w == b"._80").unwrap();
    hello[at + 1] = b'0';
    hello[at - 3..at].copy_from_slice(b"web");
    near.write_all(&hello).await.unwrap();
    let error = handshake::accept(&mut far, world.server())
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, HandshakeError::Refused(Refusal::ServerNameForm(_))),
        "{error}"
    );
    assert!(
        error.to_string().contains("sni.msvc.pay.east.web._080"),
        "{error}"
    );
}
