//! The application of HTTP/1 that tests call, with and without proxies. It keeps what it was asked.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::net::{TcpListener, TcpStream};

use super::wire_client::{Framing, Message, Wire};

/// What has been asked, how many requests are never answered, and how many connections are open.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Message>>>, Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Seen {
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn hanging(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> usize {
        self.2.load(Ordering::SeqCst)
    }

    fn put(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

/// Serves at a port of its own.
pub(crate) async fn application() -> (u16, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            // Whoever goes away has its reasons.
            let seen = all.clone();
            seen.2.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let _ = serve(stream, &seen).await;
                seen.2.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (port, seen)
}

/// A checksum, good enough to find what is lost, doubled or swapped (FNV-1a).
pub(crate) fn sum(bytes: &[u8], so_far: u64) -> u64 {
    bytes.iter().fold(so_far, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(crate) const SUM: u64 = 0xcbf2_9ce4_8422_2325;

/// Bytes that are nowhere alike, from `at` on.
pub(crate) fn pattern(at: usize, length: usize) -> Vec<u8> {
    let word = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (at..at + length).map(|n| word(n / 8)[n % 8]).collect()
}

async fn serve(stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut wire = Wire::new(stream);
    while let Some(mut head) = wire.head().await? {
        let path = head.target().split('?').next().unwrap_or("").to_owned();
        let goes_on = match path.as_str() {
            "/continue" => {
                wire.send("HTTP/1.1 100 Continue\r\n\r\n").await?;
                wire.body(&mut head, Framing::None).await?;
                echo(&mut wire, &head).await?
            }
            "/expectation-failed" => {
                wire.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
                    .await?;
                false
            }
            // Says nothing before its answer, and reads the body after it.
            "/early" => {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-early: 1\r\n\r\nearly")
                    .await?;
                // Which may never come.
                wire.body(&mut head, Framing::None).await.is_ok()
            }
            path if path.starts_with("/hang") => {
                seen.1.fetch_add(1, Ordering::SeqCst);
                wire.head().await?;
                return Ok(());
            }
            // Says more than comes, and goes on waiting.
            "/stops" => {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")
                    .await?;
                wire.head().await?;
                return Ok(());
            }
            // Refuses what it has not read.
            "/refuse" => {
                wire.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
                    .await?;
                false
            }
            // Never comes to its answer.
            "/endless-hints" => loop {
                wire.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
                    .await?;
            },
            "/hints" => {
                wire.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
                    .await?;
                echo(&mut wire, &head).await?
            }
            "/chunked" => {
                wire.body(&mut head, Framing::None).await?;
                wire.send(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n",
                )
                .await?;
                for part in head.body.chunks(3) {
                    let size = format!("{:X}\r\n", part.len());
                    wire.send([size.as_bytes(), part, b"\r\n"].concat()).await?;
                }
                wire.send("0\r\nx-sum: 42\r\nx-more: yes\r\n\r\n").await?;
                true
            }
            "/until-close" => {
                wire.send("HTTP/1.1 200 OK\r\n\r\nall that comes").await?;
                false
            }
            "/http10" => {
                wire.send("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold")
                    .await?;
                false
            }
            "/no-content" => {
                wire.send("HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n")
                    .await?;
                true
            }
            "/not-modified" => {
                wire.send(
                    "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 100\r\n\r\n",
                )
                .await?;
                true
            }
            "/head" => {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nx-a: b\r\n\r\n")
                    .await?;
                true
            }
            "/head-chunked" => {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await?;
                true
            }
            "/hop-fields" => {
                wire.send("HTTP/1.1 200 OK\r\nconnection: x-hop, keep-alive\r\nkeep-alive: timeout=7\r\nx-hop: 1\r\nx-end: 2\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n")
                    .await?;
                true
            }
            "/cookies" => {
                wire.send("HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nx-b: 1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n")
                    .await?;
                true
            }
            "/broken" => {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
                    .await?;
                false
            }
            "/download" => {
                let length: usize = head.target().split('=').nth(1).unwrap().parse().unwrap();
                wire.send(format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
                ))
                .await?;
                for at in (0..length).step_by(1 << 16) {
                    wire.send(pattern(at, (1 << 16).min(length - at))).await?;
                }
                true
            }
            "/upload" => {
                wire.body(&mut head, Framing::None).await?;
                let found = format!("{} {:x}", head.body.len(), sum(&head.body, SUM));
                head.body = found.clone().into_bytes();
                answer(&mut wire, &head, found.as_bytes()).await?
            }
            // Fields of a size, so many of them.
            path if path.starts_with("/fields/") => {
                let mut numbers = path.split('/').skip(2).map(|n| n.parse::<usize>().unwrap());
                let (size, count) = (numbers.next().unwrap(), numbers.next().unwrap());
                let mut text = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".to_owned();
                for n in 0..count {
                    text.push_str(&format!("x-large-{n}: {}\r\n", "v".repeat(size)));
                }
                wire.send(text + "\r\n").await?;
                true
            }
            _ => {
                wire.body(&mut head, Framing::None).await?;
                echo(&mut wire, &head).await?
            }
        };
        seen.put(head);
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// Sends the body back.
async fn echo(wire: &mut Wire<TcpStream>, head: &Message) -> io::Result<bool> {
    let text = format!("{} {:?}", head.method(), head.text());
    answer(wire, head, text.as_bytes()).await
}

async fn answer(wire: &mut Wire<TcpStream>, head: &Message, body: &[u8]) -> io::Result<bool> {
    let is_old = head.start.ends_with("HTTP/1.0");
    let goes_on = match head.field("connection") {
        Some(value) if value.eq_ignore_ascii_case("close") => false,
        Some(value) if value.eq_ignore_ascii_case("keep-alive") => true,
        _ => !is_old,
    };
    let connection = match (goes_on, is_old) {
        (false, _) => "connection: close\r\n",
        (true, true) => "connection: keep-alive\r\n",
        (true, false) => "",
    };
    let length = body.len();
    let start = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{connection}\r\n");
    wire.send([start.as_bytes(), body].concat()).await?;
    Ok(goes_on)
}
