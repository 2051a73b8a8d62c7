//! An upgrade under load: the successor gets the listening sockets, the predecessor ends with the requests it has.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::{
    program::{Plan, Process},
    *,
};

/// An application that answers every request of HTTP/1 with its name.
async fn pages(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while head(&mut stream).await.is_some() {
                    let length = name.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}");
                    stream.write_all(answer.as_bytes()).await?;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    port
}

/// Reads a head; nobody here sends a body with a request. `None`: the connection has ended.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// One request and its answer. `Some(true)`: more may follow on the connection.
async fn get(stream: &mut TcpStream) -> Option<bool> {
    let request = b"GET / HTTP/1.1\r\nhost: store\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let head = head(stream).await?;
    let mut body = [0; 5];
    stream.read_exact(&mut body).await.ok()?;
    (head.starts_with("HTTP/1.1 200") && body == *b"store")
        .then(|| !head.contains("connection: close"))
}

/// Clients that ask and ask, and what they have seen.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<AtomicUsize>::default(),
        );
        let clients = (0..8).map(|_| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut failed = 0;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else {
                        failed += 1;
                        continue;
                    };
                    while !stop.load(Ordering::Relaxed) {
                        match get(&mut stream).await {
                            Some(more) => {
                                done.fetch_add(1, Ordering::Relaxed);
                                if !more {
                                    break;
                                }
                            }
                            None => {
                                failed += 1;
                                break;
                            }
                        }
                    }
                }
                failed
            })
        });
        let clients = clients.collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("100 more requests", async || {
            self.done.load(Ordering::Relaxed) > before + 100
        })
        .await;
    }

    async fn failed(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for client in self.clients {
            failed += client.await.unwrap();
        }
        failed
    }
}

#[tokio::test]
async fn an_upgrade_of_either_sidecar_loses_no_request() {
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, inbound_port) = (free_port(), free_port());
    let application = pages("store").await;
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let mut port = inbound("store", inbound_port, application, allow_any());
        port.protocol = wire::Protocol::Http.into();
        let mut called = service_body("store");
        called.protocol = wire::Protocol::Http.into();
        let documents = vec![trust.clone(), seal_service(called), web];
        world.documents.insert("web-1".into(), documents);
        let store = proxy("store", vec![port], vec![]);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let start = |service, name, flags: &[&str]| {
        Process::sidecar(&Plan {
            zone: &zone,
            dir: dir.path(),
            service,
            name,
            within: &[],
            flags,
        })
    };
    let mut store = start("store", "store-1", &["--log-level", "info"]);
    let mut web = start("web", "web-1", &["--log-level", "info"]);
    eventually("web reaches store", async || {
        match TcpStream::connect(("127.0.0.1", outbound_port)).await {
            Ok(mut stream) => get(&mut stream).await.is_some(),
            Err(_) => false,
        }
    })
    .await;
    let load = Load::start(outbound_port);
    load.goes_on().await;
    let flags = ["--take-over", "--log-level", "info"];
    let store_after = start("store", "store-1", &flags);
    assert!(
        tokio::task::spawn_blocking(move || store.wait())
            .await
            .unwrap()
    );
    load.goes_on().await;
    let web_after = start("web", "web-1", &flags);
    assert!(
        tokio::task::spawn_blocking(move || web.wait())
            .await
            .unwrap()
    );
    load.goes_on().await;
    assert_eq!(load.failed().await, 0, "requests failed");
    assert_ne!(store_after.pid(), web_after.pid());
}
