//! Every connection that ends gives its descriptors back, whoever ends it and whether or not the other side answers
//! (FIELD c9).

use super::{
    program::{Plan, Process},
    *,
};

/// Connections of each kind. `ISTHMUS_CONNECTIONS` says how many of all kinds.
const CONNECTIONS: usize = 500;

/// Who ends a connection first, and whether the other side then ends it too. The first byte tells the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    ClientThenApplication = b'a',
    ClientAlone = b'b',
    ApplicationThenClient = b'c',
    ApplicationAlone = b'd',
}

use Kind::*;

/// An application that does what the first byte says. What it does not end, it holds until it is told to let go.
async fn application(let_go: tokio::sync::watch::Receiver<u64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut let_go = let_go.clone();
            tokio::spawn(async move {
                let mut byte = [0];
                stream.read_exact(&mut byte).await?;
                stream.write_all(&byte).await?;
                if byte[0] == ClientThenApplication as u8 || byte[0] == ClientAlone as u8 {
                    let _ = stream.read(&mut byte).await;
                }
                if byte[0] == ClientAlone as u8 {
                    let_go.mark_unchanged();
                    let _ = let_go.changed().await;
                }
                std::io::Result::Ok(())
            });
        }
    });
    port
}

/// One connection up to its end. What is given back is what the client does not end.
async fn connect(port: u16, kind: Kind) -> std::io::Result<Option<TcpStream>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[kind as u8]).await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(match kind {
        ClientThenApplication => {
            stream.shutdown().await?;
            assert_eq!(stream.read(&mut byte).await?, 0);
            None
        }
        ClientAlone => {
            stream.shutdown().await?;
            Some(stream)
        }
        ApplicationThenClient => {
            assert_eq!(stream.read(&mut byte).await?, 0);
            None
        }
        ApplicationAlone => {
            assert_eq!(stream.read(&mut byte).await?, 0);
            Some(stream)
        }
    })
}

#[tokio::test]
async fn descriptors_return_to_the_base_line_however_connections_end() {
    let all = std::env::var("ISTHMUS_CONNECTIONS").ok();
    let count = all.map_or(CONNECTIONS, |all| all.parse::<usize>().unwrap() / 4);
    let zone = Zone::start(&[DOMAIN]).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, inbound_port) = (free_port(), free_port());
    let (let_go, letting_go) = tokio::sync::watch::channel(0);
    let application = application(letting_go).await;
    let trust = zone.trust();
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let store = store_document(inbound_port, application, allow_any());
        // On a busy machine so many handshakes at once take their time, which is not what is looked at here.
        let mut service = service_body("store");
        service.timeouts.as_mut().unwrap().connect_ms = 60_000;
        let documents = vec![trust.clone(), seal_service(service), web];
        world.documents.insert("web-1".into(), documents);
        world.documents.insert("store-1".into(), vec![trust, store]);
        let there = endpoints("store", &[inbound_port]);
        world.endpoints.insert(there.key.clone(), there);
    });
    let [web, store] = [("web", "web-1"), ("store", "store-1")].map(|(service, name)| {
        Process::sidecar(&Plan {
            zone: &zone,
            dir: dir.path(),
            service,
            name,
            within: &[],
            flags: &["--half-close-timeout-seconds", "1", "--log-level", "info"],
        })
    });
    eventually("web reaches store", async || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", outbound_port)).await else {
            return false;
        };
        let _ = stream.write_all(b"c").await;
        stream.read_exact(&mut [0]).await.is_ok()
    })
    .await;
    // No connection is open any more when this stays.
    let descriptors = || (web.descriptors(), store.descriptors());
    let mut base = descriptors();
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = descriptors();
        if now == base {
            break;
        }
        base = now;
    }
    // So many at once that the long form does not take hours, and few enough for the test's own descriptors.
    let at_once = (count / 5).clamp(1, 400);
    for kind in [
        ClientThenApplication,
        ClientAlone,
        ApplicationThenClient,
        ApplicationAlone,
    ] {
        let mut left = count;
        while left > 0 {
            let wave = left.min(at_once);
            left -= wave;
            let calls = (0..wave).map(|_| connect(outbound_port, kind));
            let held = futures::future::join_all(calls).await;
            let held: Vec<_> = held
                .into_iter()
                .map(|held| {
                    held.unwrap_or_else(|error| {
                        panic!("{kind:?}: {error}; {:#?}", web.records());
                    })
                })
                .collect();
            // While what the others hold is still open.
            let what = format!("{kind:?}: {:?} is as low as {base:?}", descriptors());
            eventually(&what, async || {
                let now = descriptors();
                now.0 <= base.0 && now.1 <= base.1
            })
            .await;
            drop(held);
            let_go.send_modify(|wave| *wave += 1);
        }
    }
}
