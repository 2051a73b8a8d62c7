//! Servers that close connections at any moment between requests: nobody is told of it (FIELD c1).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::{wire_client::Wire, *};

/// A generator that gives the same in each run (xorshift).
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let step = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ x << 17
        };
        let before = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |x| Some(step(x)));
        step(before.unwrap()) % sides
    }
}

/// Answers, and closes connections that it said nothing of: with the answer, a moment after it, or (where the connection has
/// carried a request before, and this one may be asked twice) when it has read the next.
async fn fickle(dice: Dice) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let dice = dice.clone();
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                let mut is_first = true;
                while let Some(asked) = wire.request().await? {
                    if !is_first && asked.method() == "GET" && dice.roll(8) == 0 {
                        return Ok(());
                    }
                    is_first = false;
                    let body = format!("{} {}", asked.target(), asked.text());
                    wire.send(format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    ))
                    .await?;
                    let pause = match dice.roll(4) {
                        0 => 0,
                        1 => dice.roll(200),
                        _ => continue,
                    };
                    for _ in 0..pause {
                        tokio::task::yield_now().await;
                    }
                    // Says the end before it refuses what it has not read. A server that closes at once says one thing only (RST), of
                    // which nobody can tell whether the request was read, so that a POST is not sent again then.
                    return wire.stream.shutdown().await;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    port
}

/// Answers and resets the connection, sometimes when it has read the next request and not answered it. Keeps which it has read.
async fn brutal(dice: Dice, read: Seen) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (dice, read) = (dice.clone(), read.clone());
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                while let Some(asked) = wire.request().await? {
                    let count = read.count(asked.target());
                    if dice.roll(8) == 0 && count == 1 {
                        break;
                    }
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    wire.send(answer).await?;
                    if dice.roll(4) == 0 {
                        break;
                    }
                }
                SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO))
            });
        }
    });
    port
}

/// How often each request has been read.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<HashMap<String, usize>>>);

impl Seen {
    fn count(&self, target: &str) -> usize {
        let mut all = self.0.lock().unwrap();
        let count = all.entry(target.to_owned()).or_default();
        *count += 1;
        *count
    }
}

#[tokio::test]
async fn what_a_server_may_have_read_before_it_reset_is_not_sent_again() {
    let dice = Dice(Arc::new(AtomicU64::new(0x2545_f491_4f6c_dd1d)));
    let read = Seen::default();
    let scene = scene(Protocol::Http, brutal(dice, read.clone()).await).await;
    let mut wire = Wire::new(scene.connect().await);
    let mut unanswered = 0;
    for n in 0..400 {
        let request = format!("POST /{n} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        wire.send(request).await.unwrap();
        let answer = soon("an answer", wire.answer("POST")).await.unwrap();
        match answer.status() {
            200 => {}
            502 => {
                let reason = answer.field("x-isthmus-reason");
                assert!(matches!(reason, Some("reset" | "truncated")), "{answer:?}");
                unanswered += 1;
            }
            _ => panic!("{answer:?}"),
        }
    }
    let all = read.0.lock().unwrap();
    let twice: Vec<_> = all.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "processed more than once: {twice:?}");
    // Those that were read and not answered are among them.
    assert!(unanswered > 20, "{unanswered}");
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_costs_nobody_a_request() {
    let count = std::env::var("ISTHMUS_CLOSING_REQUESTS");
    let count: u64 = count.map_or(2000, |count| count.parse().unwrap());
    let dice = Dice(Arc::new(AtomicU64::new(0x9e37_79b9_7f4a_7c15)));
    let scene = scene(Protocol::Http, fickle(dice).await).await;
    let callers = (0..4).map(|caller| {
        let port = scene.outbound;
        async move {
            let mut wire = Wire::new(connect(port).await);
            let mut failed = Vec::new();
            for n in 0..count / 4 {
                let path = format!("/{caller}/{n}");
                // A body that is sent on while it comes can not be sent twice, one that has come with the head can.
                let (method, text, body) = match n % 4 {
                    0 => (
                        "POST",
                        format!(
                            "POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody"
                        ),
                        "body",
                    ),
                    1 => (
                        "PUT",
                        format!(
                            "PUT {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody"
                        ),
                        "body",
                    ),
                    _ => (
                        "GET",
                        format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"),
                        "",
                    ),
                };
                wire.send(text).await.unwrap();
                let answer = soon("an answer", wire.answer(method)).await.unwrap();
                if answer.status() != 200 || answer.text() != format!("{path} {body}") {
                    failed.push((method, answer));
                }
            }
            failed
        }
    });
    let failed = futures::future::join_all(callers).await.concat();
    assert!(
        failed.is_empty(),
        "{} of {count}: {:#?}",
        failed.len(),
        &failed[..failed.len().min(3)]
    );
}
