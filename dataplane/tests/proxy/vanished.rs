//! Hosts that vanish: their packets are lost, and nobody says that a connection has ended (FIELD c6).
//!
//! Each test makes a host of its own, a network namespace at the other end of a cable, for which it needs root.

use std::{net::SocketAddr, process::Command};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    program::{Plan, Process},
    *,
};

/// Within this time connections through the host are given up.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// A host that this test made, connected to ours.
struct Host {
    name: String,
    ours: String,
    theirs: String,
}

impl Host {
    /// `None`, said loudly, where this process may not make one.
    fn make(number: u8) -> Option<Self> {
        let pid = std::process::id();
        // Addresses for tests of networks (RFC 2544), four for each host.
        let [_, _, third, fourth] = (pid << 3 | u32::from(number) << 2).to_be_bytes();
        let host = Self {
            name: format!("isthmus-{pid}-{number}"),
            ours: format!("198.18.{third}.{}", fourth | 1),
            theirs: format!("198.18.{third}.{}", fourth | 2),
        };
        let (name, cable) = (&*host.name, format!("ist{pid}-{number}"));
        if let Err(error) = run(&["ip", "netns", "add", name]) {
            eprintln!(
                "\n!!! NOT TESTED: connections through a host that vanishes. It needs root, and `ip` of iproute2: {error}\n"
            );
            return None;
        }
        let [ours, theirs] = [&host.ours, &host.theirs].map(|address| format!("{address}/30"));
        let made = [
            &[
                "ip", "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", name,
            ][..],
            &["ip", "address", "add", &ours, "dev", &cable],
            &["ip", "link", "set", &cable, "up"],
            &["ip", "-n", name, "address", "add", &theirs, "dev", "eth0"],
            &["ip", "-n", name, "link", "set", "eth0", "up"],
            &["ip", "-n", name, "link", "set", "lo", "up"],
        ];
        for command in made {
            run(command).unwrap();
        }
        Some(host)
    }

    /// From now on its packets are lost, both ways.
    fn vanish(&self) {
        let rules = "add table inet cut; \
            add chain inet cut in { type filter hook input priority 0; }; \
            add chain inet cut out { type filter hook output priority 0; }; \
            add rule inet cut in iifname eth0 drop; \
            add rule inet cut out oifname eth0 drop";
        run(&["ip", "netns", "exec", &self.name, "nft", rules]).unwrap();
    }

    /// What a command line begins with that runs there.
    fn within(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// An application there, as [`echo`].
    async fn echo(&self, name: &'static str) -> SocketAddr {
        let space = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        // A socket stays in the namespace of the thread that opened it.
        let listening = thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), kind).unwrap();
            std::net::TcpListener::bind("0.0.0.0:0").unwrap()
        });
        let listener = listening.join().unwrap();
        let port = echo_on(listener, name);
        SocketAddr::new(self.theirs.parse().unwrap(), port)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The cable goes with it.
        let _ = run(&["ip", "netns", "delete", &self.name]);
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", words.join(" "), said.trim()))
}

/// `web` calls `store`, which runs beside it (`near`) and at another place (`away`), each a process of its own.
struct Scene {
    zone: Zone,
    /// Who `away` talks to.
    away: Zone,
    outbound: u16,
    near: u16,
    _dir: TempDir,
    processes: Vec<Process>,
}

/// `away` is the sidecar there, whose inbound is `inbound`, run by the command line that begins with `within`.
async fn scene(
    host: &Host,
    inbound_away: impl FnOnce(u16) -> wire::Inbound,
    within: &[&str],
) -> Scene {
    let zone = Zone::start(&[DOMAIN]).await;
    // The same zone for those who reach us by cable.
    let by_cable = format!("{}:0", host.ours).parse().unwrap();
    let by_cable = Zone::serve(zone.world.clone(), by_cable).await;
    let dir = tempfile::tempdir().unwrap();
    let (outbound_port, near, away) = (free_port(), free_port(), free_port());
    let application = echo("near").await;
    let trust = zone.trust();
    let away = inbound_away(away);
    zone.change(|world| {
        let web = proxy("web", vec![], vec![outbound("store", outbound_port)]);
        let documents = vec![trust.clone(), service("store"), web];
        world.documents.insert("web-1".into(), documents);
        let inbound_near = inbound("store", near, application, allow_any());
        let mut there = endpoints("store", &[near]);
        there.put.push(mesh_proto::discovery::Endpoint {
            address: away.listen.clone(),
            zone: "east".into(),
            through_ingress: false,
        });
        for (name, inbound) in [("store-near", inbound_near), ("store-away", away)] {
            let store = proxy("store", vec![inbound], vec![]);
            let documents = vec![trust.clone(), store];
            world.documents.insert(name.into(), documents);
        }
        world.endpoints.insert(there.key.clone(), there);
    });
    let plan = |zone, service, name| Plan {
        zone,
        dir: dir.path(),
        service,
        name,
        within: &[],
        flags: &["--log-level", "debug"],
    };
    let processes = vec![
        Process::sidecar(&plan(&zone, "web", "web-1")),
        Process::sidecar(&plan(&zone, "store", "store-near")),
        Process::sidecar(&Plan {
            within,
            ..plan(&by_cable, "store", "store-away")
        }),
    ];
    let scene = Scene {
        zone,
        away: by_cable,
        outbound: outbound_port,
        near,
        _dir: dir,
        processes,
    };
    for name in ["near", "away"] {
        eventually(name, async || {
            call(scene.outbound).await.as_deref() == Some(name)
        })
        .await;
    }
    scene
}

impl Scene {
    /// So many open connections to `away`.
    async fn open(&self, count: usize) -> Vec<TcpStream> {
        let (mut open, mut others) = (Vec::new(), Vec::new());
        while open.len() < count {
            let mut stream = TcpStream::connect(("127.0.0.1", self.outbound))
                .await
                .unwrap();
            let mut name = [0; 4];
            stream.read_exact(&mut name).await.unwrap();
            if name == *b"away" {
                open.push(stream);
            } else {
                // It stays for now: the next one goes to who has fewer.
                others.push(stream);
            }
        }
        open
    }
}

/// Every one of `open` ends in time, whether or not something is being sent.
async fn given_up(open: Vec<TcpStream>) {
    let since = Instant::now();
    for (index, mut stream) in open.into_iter().enumerate() {
        let sending = index % 2 == 0;
        let left = GIVEN_UP.saturating_sub(since.elapsed());
        let ended = timeout(left, async {
            if sending {
                stream.write_all(b"hello").await?;
            }
            stream.read(&mut [0]).await
        });
        let ended = ended.await;
        assert!(
            matches!(ended, Ok(Ok(0) | Err(_))),
            "after {GIVEN_UP:?}, sending: {sending}: {ended:?}"
        );
    }
}

/// Sends without end, and takes what comes back, until the connection ends.
async fn send_for_ever(stream: TcpStream) {
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        let chunk = [7; 64 * 1024];
        while write.write_all(&chunk).await.is_ok() {}
    };
    let taking = async {
        let mut room = [0; 64 * 1024];
        while matches!(read.read(&mut room).await, Ok(1..)) {}
    };
    tokio::select! { () = sending => {}, () = taking => {} }
}

/// Further connections go to who is still there.
async fn all_go_near(outbound: u16) {
    for _ in 0..8 {
        assert_eq!(call(outbound).await.as_deref(), Some("near"));
    }
}

#[tokio::test]
async fn connections_to_a_host_that_vanishes_are_given_up_and_further_ones_go_elsewhere() {
    let Some(host) = Host::make(0) else { return };
    let application = host.echo("away").await;
    let inbound_away = |port| wire::Inbound {
        listen: Some(wire::SocketAddress {
            host: host.theirs.clone(),
            port: u32::from(port),
        }),
        ..inbound("store", port, application.port(), allow_any())
    };
    let scene = scene(&host, inbound_away, &host.within()).await;
    let mut open = scene.open(5).await;
    let mut busy = tokio::spawn(send_for_ever(open.remove(4)));
    host.vanish();
    let bulk = async {
        let ended = timeout(GIVEN_UP, &mut busy).await;
        assert!(ended.is_ok(), "after {GIVEN_UP:?}, in the middle of bulk");
    };
    tokio::join!(given_up(open), bulk, all_go_near(scene.outbound));
    // The operator sees where they went, and that it was no clean end.
    eventually("five records of it", async || {
        let records = scene.processes[0].records();
        let to_host = |record: &&serde_json::Value| {
            let address = record["dst.addr"].as_str().unwrap_or_default();
            let reason = record["reason"].as_str().unwrap_or_default();
            address.starts_with(&host.theirs) && matches!(reason, "reset" | "peer_vanished")
        };
        records.iter().filter(to_host).count() == 5
    })
    .await;
}

#[tokio::test]
async fn connections_to_an_application_whose_host_vanishes_are_given_up_and_it_is_unready() {
    let Some(host) = Host::make(1) else { return };
    let application = host.echo("away").await;
    let inbound_away = |port| wire::Inbound {
        application: Some(wire::SocketAddress {
            host: host.theirs.clone(),
            port: u32::from(application.port()),
        }),
        probe: Some(wire::Probe {
            interval_ms: 500,
            timeout_ms: 500,
            unhealthy_threshold: 2,
            healthy_threshold: 1,
        }),
        ..inbound("store", port, 1, allow_any())
    };
    let scene = scene(&host, inbound_away, &[]).await;
    let open = scene.open(4).await;
    host.vanish();
    let elsewhere = async {
        let unready = |name: &str, up: &Up| match up {
            Up::Readiness(readiness) if name == "store-away" => {
                readiness.inbounds.iter().any(|i| !i.ready).then_some(())
            }
            _ => None,
        };
        scene
            .away
            .hear("that the application is gone", unready)
            .await;
        // As a zone does: who is not ready is nobody's endpoint.
        scene.zone.change(|world| {
            let there = endpoints("store", &[scene.near]);
            world.endpoints.insert(there.key.clone(), there);
        });
        eventually("all go near", async || {
            call(scene.outbound).await.as_deref() == Some("near")
        })
        .await;
        all_go_near(scene.outbound).await;
    };
    tokio::join!(given_up(open), elsewhere);
}
