use std::{collections::HashSet, future::Future, rc::Rc, sync::Arc};

use arc_swap::ArcSwap;
use socket2::SockRef;
use time::Duration as TimeDuration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::LocalSet,
    time::timeout,
};

use super::*;
use crate::{
    config::Timeouts,
    metrics::Counters,
    record::Direction,
    snapshot::Snapshot,
    tls::{
        self, handshake, server_name,
        tests::{EAST, NAME, ca, everybody, identity, names, only, tcp, trust},
    },
    workers::{Limits, Shared},
};

fn worker() -> Rc<Worker> {
    let shared = Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        open: Arc::default(),
        limits: Limits::default(),
        lookups: mpsc::channel(1).0,
        taps: Arc::default(),
    };
    Worker::new(Arc::new(shared), Counters::default())
}

fn connection() -> Rc<Connection> {
    let from = "127.0.0.1:1".parse().unwrap();
    Rc::new(Connection::new(Direction::Inbound, from))
}

/// Runs a test beside relays.
fn run<F: Future>(test: F) -> F::Output {
    mesh_runtime::init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        timeout(Duration::from_secs(60), test)
            .await
            .expect("in time")
    };
    LocalSet::new().block_on(&runtime, limited)
}

/// A client and a server with a relay between them, and what the relay will say.
struct Path {
    client: TcpStream,
    server: TcpStream,
    ends: Vec<tokio::task::JoinHandle<End>>,
    connections: Vec<Rc<Connection>>,
}

impl Path {
    /// `client — relay — server`, all plain: an ingress.
    async fn plain() -> Self {
        let ((client, near), (far, server)) = (tcp().await, tcp().await);
        let mut path = Self {
            client,
            server,
            ends: vec![],
            connections: vec![],
        };
        path.spawn(Socket::plain(near, vec![]), Socket::plain(far, vec![]));
        path
    }

    /// `client — relay = TLS = relay — server`: two sidecars.
    async fn mesh() -> Self {
        let ((client, near), (mut out, mut into), (far, server)) =
            (tcp().await, tcp().await, tcp().await);
        let east = ca("east");
        let trust = trust(&[(EAST, &east)]);
        let web = identity(&east, EAST, "web", TimeDuration::ZERO);
        let identities = only(&web);
        let accepting = handshake::accept(
            &mut into,
            tls::server_config(&web, trust.clone(), names(&[NAME]), everybody()),
        );
        let calling = handshake::connect(
            &mut out,
            tls::client_config(&web, trust, identities),
            server_name::on_wire(NAME).unwrap(),
        );
        let (accepted, called) = tokio::join!(accepting, calling);
        let mut path = Self {
            client,
            server,
            ends: vec![],
            connections: vec![],
        };
        path.spawn(
            Socket::plain(near, vec![]),
            Socket::tls(out, called.unwrap()),
        );
        path.spawn(
            Socket::tls(into, accepted.unwrap()),
            Socket::plain(far, vec![]),
        );
        path
    }

    fn spawn(&mut self, source: Socket, destination: Socket) {
        let connection = connection();
        self.connections.push(connection.clone());
        let worker = worker();
        self.ends.push(tokio::task::spawn_local(async move {
            relay(source, destination, &connection, &worker).await
        }));
    }

    /// Reasons with which the relays have ended.
    async fn reasons(self) -> HashSet<&'static str> {
        let mut reasons = HashSet::new();
        drop((self.client, self.server));
        for end in self.ends {
            reasons.insert(end.await.unwrap().reason.as_str());
        }
        reasons
    }
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("a clean end");
    bytes
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn each_direction_ends_by_itself() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            path.client.write_all(b"question").await.unwrap();
            path.client.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.server).await, b"question");
            // The other direction goes on after the first has ended.
            path.server.write_all(b"answer").await.unwrap();
            path.server.write_all(b", second part").await.unwrap();
            path.server.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.client).await, b"answer, second part");
            assert!(
                path.connections
                    .iter()
                    .all(|c| c.sent.get() == 8 && c.received.get() == 19)
            );
            assert_eq!(path.reasons().await, [""].into());
        }
        // The server first.
        for mut path in [Path::plain().await, Path::mesh().await] {
            path.server.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.client).await, b"");
            path.client.write_all(b"late").await.unwrap();
            path.client.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.server).await, b"late");
            assert_eq!(path.reasons().await, [""].into());
        }
    });
}

#[test]
fn a_big_tail_is_delivered_whole_before_the_end() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            let sent = noise(6_000_000);
            let expected = sent.clone();
            path.client.write_all(b"get").await.unwrap();
            let mut server = path.server;
            let serving = tokio::task::spawn_local(async move {
                server.write_all(&sent).await.unwrap();
                // Closed at once, with the tail still on its way; nothing is unread but what the client sends later.
                let mut question = [0; 3];
                server.read_exact(&mut question).await.unwrap();
                drop(server);
            });
            // The client reads late, and slowly at first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut bytes = vec![0; 1000];
            path.client.read_exact(&mut bytes).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            bytes.extend(read_all(&mut path.client).await);
            assert!(bytes == expected);
            serving.await.unwrap();
        }
    });
}

#[test]
fn a_client_that_still_sends_gets_the_whole_answer_of_a_server_that_has_closed() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            let expected = noise(30_000);
            let mut server = path.server;
            server.write_all(&expected).await.unwrap();
            drop(server);
            // What is sent now can reach nobody, and must not destroy the answer by a reset.
            for _ in 0..20 {
                path.client.write_all(&noise(10_000)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(read_all(&mut path.client).await == expected);
        }
    });
}

#[test]
fn an_answer_is_whole_even_if_its_server_has_closed_before_the_proxy_looks() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            let expected = noise(30_000);
            let mut server = path.server;
            server.write_all(&expected).await.unwrap();
            drop(server);
            // Several writes to a server that has gone, the first of which it resets, before its end is read.
            path.client.try_write(&noise(200_000)).unwrap();
            assert!(read_all(&mut path.client).await == expected);
        }
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            path.server.write_all(b"half of an ans").await.unwrap();
            let mut half = [0; 14];
            path.client.read_exact(&mut half).await.unwrap();
            SockRef::from(&path.server)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(path.server);
            let error = path.client.read(&mut half).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn tls_that_is_cut_is_no_clean_end() {
    run(async {
        let path = Path::mesh().await;
        let mut client = path.client;
        // The relay at the server's side goes without a word, as a killed process does.
        path.ends[1].abort();
        let mut byte = [0; 1];
        let error = client.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_sender_and_costs_no_memory() {
    run(async {
        for mut path in [Path::plain().await, Path::mesh().await] {
            let chunk = noise(64 * 1024);
            let mut sent = 0;
            // Until the kernel's buffers and the relay's one buffer a hop are full.
            while let Ok(count) =
                timeout(Duration::from_millis(300), path.client.write(&chunk)).await
            {
                sent += count.unwrap();
                assert!(sent < 64 << 20, "nobody stops the sender");
            }
            let client = path.client;
            let mut server = path.server;
            let reading = async {
                let mut received = 0;
                let mut room = vec![0; 64 * 1024];
                while received < sent {
                    received += server.read(&mut room).await.unwrap();
                }
                received
            };
            assert_eq!(reading.await, sent);
            drop(client);
        }
    });
}

#[test]
fn a_connection_that_is_asked_to_end_does_so_at_once() {
    run(async {
        let mut path = Path::mesh().await;
        path.client.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        path.server.read_exact(&mut byte).await.unwrap();
        path.connections[1].close(Reason::PermissionWithdrawn);
        // A reset, not a clean end: nobody takes half of something for the whole.
        assert!(path.server.read(&mut byte).await.is_err());
        assert!(path.client.read(&mut byte).await.is_err());
        let reasons = path.reasons().await;
        assert!(reasons.contains("permission_withdrawn"), "{reasons:?}");
    });
}

#[test]
fn the_record_names_the_time_out_that_ended_a_connection_and_its_policy() {
    run(async {
        let mut path = Path::plain().await;
        let connection = &path.connections[0];
        connection.limit_idle(&Timeouts {
            idle: Some(Duration::from_secs(300)),
            idle_origin: "MeshTimeout/fast to[0]".into(),
            ..Timeouts::default()
        });
        connection.close(Reason::IdleTimeout);
        let end = path.ends.remove(0).await.unwrap();
        assert_eq!(end.closed_by, ClosedBy::Proxy);
        assert_eq!(end.detail, "idle timeout 5m0s of MeshTimeout/fast to[0]");
    });
}

#[test]
fn small_and_big_messages_arrive_as_they_were_sent() {
    run(async {
        let mut path = Path::mesh().await;
        for len in [1, 100, 16_384, 16_385, 70_000, 3, 200_000, 1] {
            let (client, server) = (&mut path.client, &mut path.server);
            let sent = noise(len);
            let mut there = vec![0; len];
            let mut back = vec![0; len];
            let calling = async {
                client.write_all(&sent).await.unwrap();
                client.read_exact(&mut back).await.unwrap();
            };
            let answering = async {
                server.read_exact(&mut there).await.unwrap();
                server.write_all(&there).await.unwrap();
            };
            tokio::join!(calling, answering);
            assert!(back == sent, "{len}");
        }
    });
}
