//! Clients that ask and ask over HTTP/1 and HTTP/2, and an application that answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::*;

/// An application that answers every request of HTTP/1 with its name.
pub(crate) async fn pages(name: &'static str) -> u16 {
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
pub(crate) async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// One request and its answer. `Some(true)`: more may follow on the connection.
pub(crate) async fn get(stream: &mut TcpStream) -> Option<bool> {
    let request = b"GET / HTTP/1.1\r\nhost: store\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let head = head(stream).await?;
    let mut body = [0; 5];
    stream.read_exact(&mut body).await.ok()?;
    (head.starts_with("HTTP/1.1 200") && body == *b"store")
        .then(|| !head.contains("connection: close"))
}

/// Asks on one connection until it takes no more, as its other side may say. How many requests it took and did not answer.
async fn ask_over_http2(port: u16, stop: &AtomicBool, done: &AtomicUsize) -> usize {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await else {
        return 1;
    };
    let Ok((mut sender, connection)) = h2::client::handshake(stream).await else {
        return 1;
    };
    let driving = tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        sender = match sender.ready().await {
            Ok(ready) => ready,
            Err(_) => break,
        };
        let request = http::Request::get("http://store/").body(()).unwrap();
        let Ok((answer, _)) = sender.send_request(request, true) else {
            break;
        };
        let answered = async {
            let answer = answer.await?;
            let status = answer.status();
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                data?;
            }
            Ok::<_, h2::Error>(status == 200)
        };
        match answered.await {
            Ok(true) => done.fetch_add(1, Ordering::Relaxed),
            Ok(false) | Err(_) => return 1,
        };
    }
    driving.abort();
    0
}

/// Clients that ask and ask, and what they have seen.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<usize>>,
}

impl Load {
    pub(crate) fn start(port: u16) -> Self {
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
        let of_http2 = (0..2).map(|_| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut failed = 0;
                while !stop.load(Ordering::Relaxed) {
                    failed += ask_over_http2(port, &stop, &done).await;
                }
                failed
            })
        });
        let clients = clients.chain(of_http2).collect();
        Self {
            stop,
            done,
            clients,
        }
    }

    pub(crate) async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("100 more requests", async || {
            self.done.load(Ordering::Relaxed) > before + 100
        })
        .await;
    }

    pub(crate) async fn failed(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for client in self.clients {
            failed += client.await.unwrap();
        }
        failed
    }
}
