//! Clusters of real nodes in one process, over real TLS on the loopback interface.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use mesh_proto::{
    raft::{ConnectedZone, Entry, Operation, Outcome, Precondition, Put, operation},
    spiffe::SpiffeId,
    zone::{NodeAddresses, Query, QueryAnswer, ResourceKey},
};
use mesh_runtime::{
    pki::{self, Ca, Subject},
    tls::{LocalIdentity, TrustDomains},
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::net::TcpListener;

use super::{
    Cluster, Node, QueryError, Settings, Start, StartError, Status, WriteError, ZoneStreams,
};
use crate::{
    audit::{Attempt, AttemptLog, Wanted},
    store::{self, OpenError},
};

/// A zone is connected to the node with the same number.
struct OneZone(u64);

impl ZoneStreams for OneZone {
    fn query(&self, zone: String, query: Query) -> BoxFuture<'static, Option<QueryAnswer>> {
        let connected = zone == format!("zone-{}", self.0);
        Box::pin(async move {
            connected.then(|| QueryAnswer {
                id: query.id,
                ..QueryAnswer::default()
            })
        })
    }

    fn statuses(&self) -> Vec<ConnectedZone> {
        vec![ConnectedZone {
            zone: format!("zone-{}", self.0),
            ..ConnectedZone::default()
        }]
    }
}

/// What all nodes of a test share.
struct Installation {
    ca: Ca,
    cluster_id: &'static str,
    dirs: Vec<TempDir>,
}

impl Installation {
    fn new() -> Self {
        Self::of("ours")
    }

    fn of(cluster_id: &'static str) -> Self {
        mesh_runtime::init();
        let now = OffsetDateTime::now_utc();
        Self {
            ca: Ca::self_signed("test", None, now, time::Duration::days(1)).unwrap(),
            cluster_id,
            dirs: (0..5).map(|_| tempfile::tempdir().unwrap()).collect(),
        }
    }

    fn dir(&self, id: u64) -> &Path {
        self.dirs[usize::try_from(id).unwrap()].path()
    }

    fn node(&self, id: u64) -> Node {
        Node {
            node_uuid: format!("disk-{id}"),
            node_id: id,
            cluster_id: self.cluster_id.to_owned(),
        }
    }

    async fn try_start(&self, node: Node, start: Start) -> Result<Cluster, StartError> {
        let id = node.node_id;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = |port: &str| format!("127.0.0.1:{port}");
        let addresses = NodeAddresses {
            api: address("1"),
            zone: address("2"),
            raft: listener.local_addr().unwrap().to_string(),
        };
        let key = pki::new_key().unwrap();
        let subject = Subject {
            spiffe_id: Some(SpiffeId::global_node(id)),
            ..Subject::default()
        };
        let now = OffsetDateTime::now_utc();
        let leaf = self
            .ca
            .sign(
                &pki::request(&key).unwrap(),
                &subject,
                now,
                time::Duration::hours(1),
            )
            .unwrap();
        let identity = LocalIdentity::none();
        identity.set(vec![leaf], &pki::private_key(&key)).unwrap();
        let anchors = [self.ca.certificate().clone()];
        Cluster::start(Settings {
            data_dir: self.dir(id).to_owned(),
            node,
            addresses,
            listener,
            identity,
            trust: Arc::new(TrustDomains::installation(&anchors).unwrap()),
            start,
            zones: Arc::new(OneZone(id)),
            attempts: AttemptLog::open(self.dir(id)).unwrap(),
        })
        .await
    }

    async fn start(&self, id: u64, start: Start) -> Cluster {
        self.try_start(self.node(id), start).await.unwrap()
    }

    async fn first(&self) -> Cluster {
        self.start(1, Start::Bootstrap).await
    }

    async fn join(&self, id: u64, via: &Cluster) -> Cluster {
        let via = vec![via.raft_address().unwrap().to_string()];
        self.start(id, Start::Join(via)).await
    }

    async fn three(&self) -> [Cluster; 3] {
        let first = self.first().await;
        let second = self.join(2, &first).await;
        // Through a follower, which names the leader.
        let third = self.join(3, &second).await;
        [first, second, third]
    }
}

fn put(name: &str, json: &str) -> Entry {
    put_if(name, json, None)
}

fn put_if(name: &str, json: &str, precondition: Option<Precondition>) -> Entry {
    Entry {
        operations: vec![Operation {
            operation: Some(operation::Operation::Put(Put {
                key: Some(key(name)),
                json: json.as_bytes().to_vec(),
                precondition,
            })),
        }],
        ..Entry::default()
    }
}

fn key(name: &str) -> ResourceKey {
    ResourceKey::global("Mesh", "", name)
}

fn has(cluster: &Cluster, name: &str) -> bool {
    cluster.state().get(&key(name)).is_some()
}

/// Stops a node and returns when its store is closed.
async fn stop(cluster: Cluster) {
    cluster.shutdown().await;
}

async fn until(cluster: &Cluster, what: &str, wanted: impl Fn(&Status) -> bool) {
    tokio::time::timeout(Duration::from_secs(30), cluster.changed(wanted))
        .await
        .unwrap_or_else(|_| panic!("not within 30 s: {what}; {:#?}", cluster.status()));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_writes_reads_and_comes_back() {
    let installation = Installation::new();
    let cluster = installation.first().await;
    assert!(cluster.is_leader());
    let history = cluster.state().history_id();
    assert!(!history.is_empty());
    let result = cluster.write(put("a", "{}")).await.unwrap();
    assert_eq!(result.operations[0].outcome(), Outcome::Created);
    cluster.linearize().await.unwrap();
    let stored = cluster.state().get(&key("a")).unwrap();
    assert_eq!(stored.modified_revision, result.revision);
    assert!(stored.modified_ms > 0);
    stop(cluster).await;

    let cluster = installation.start(1, Start::Again).await;
    assert!(has(&cluster, "a"));
    assert_eq!(cluster.state().history_id(), history);
    let again = cluster.write(put("b", "{}")).await.unwrap();
    assert_eq!(again.revision, result.revision + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_reads() {
    let installation = Installation::new();
    let nodes = installation.three().await;
    for (index, node) in nodes.iter().enumerate() {
        let name = format!("from-{index}");
        node.write(put(&name, "{}")).await.unwrap();
        // Whoever wrote here reads it here at once; elsewhere, after asking for the newest.
        assert!(has(node, &name));
        for other in &nodes {
            other.linearize().await.unwrap();
            assert!(has(other, &name));
        }
    }
    until(&nodes[0], "the leader knows what all have", |status| {
        status.members.len() == 3
            && status
                .members
                .iter()
                .all(|member| member.voter && member.reachable && member.matched.is_some())
    })
    .await;
    for node in &nodes {
        assert_eq!(node.status().leader, Some(1));
        assert_eq!(node.state().history_id(), nodes[0].state().history_id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_precondition_comes_back_from_the_leader() {
    let installation = Installation::new();
    let nodes = installation.three().await;
    let written = nodes[1].write(put("a", "1")).await.unwrap();
    let exists = put_if("a", "2", Some(Precondition { revision: 0 }));
    let refused = nodes[2].write(exists).await.unwrap();
    let refusal = refused.refusal.unwrap();
    assert_eq!(refusal.actual_revision, written.revision);
    assert_eq!(nodes[0].state().get(&key("a")).unwrap().json, b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_happens_once() {
    let installation = Installation::new();
    let nodes = installation.three().await;
    let entry = Entry {
        request_id: "one".to_owned(),
        ..put("a", "{}")
    };
    let first = nodes[1].write(entry.clone()).await.unwrap();
    let second = nodes[2].write(entry).await.unwrap();
    assert_eq!(first, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_goes_on_without_the_leader_and_it_comes_back_elsewhere() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    second.write(put("before", "{}")).await.unwrap();
    stop(first).await;
    // Offered to the old leader's place until there is a new one.
    second.write(put("after", "{}")).await.unwrap();
    assert_ne!(second.leader(), Some(1));

    // On another port.
    let first = installation.start(1, Start::Again).await;
    first.linearize().await.unwrap();
    assert!(has(&first, "before") && has(&first, "after"));
    let address = first.raft_address().unwrap().to_string();
    until(&third, "the membership knows the new address", |status| {
        status
            .members
            .iter()
            .any(|member| member.id == 1 && member.addresses.raft == address)
    })
    .await;
    first.write(put("again", "{}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_refuses_writes_and_reads_and_says_why() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    first.write(put("a", "{}")).await.unwrap();
    stop(second).await;
    stop(third).await;
    let error = first.write(put("b", "{}")).await.unwrap_err();
    assert!(matches!(error, WriteError::NoQuorum(_)), "{error}");
    let error = first.linearize().await.unwrap_err();
    assert!(error.to_string().contains("consistency=stale"), "{error}");
    assert!(has(&first, "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_far_behind_gets_a_snapshot() {
    let installation = Installation::new();
    let first = installation.first().await;
    for index in 0..20 {
        let name = format!("m{index}");
        first.write(put(&name, "{}")).await.unwrap();
    }
    compact(&first).await;
    let second = installation.join(2, &first).await;
    assert_eq!(second.state().list("Mesh", None, None, 100).len(), 20);
    assert_eq!(second.state().revision(), first.state().revision());
    // It holds up a restart.
    stop(second).await;
    let second = installation.start(2, Start::Again).await;
    second.linearize().await.unwrap();
    assert_eq!(second.state().list("Mesh", None, None, 100).len(), 20);
}

/// Snapshots and purges all that `cluster` has applied.
async fn compact(cluster: &Cluster) {
    let applied = cluster.status().applied.unwrap();
    let raft = &cluster.0.raft;
    raft.trigger().snapshot().await.unwrap();
    raft.wait(None)
        .metrics(
            |metrics| metrics.snapshot.is_some_and(|id| id.index >= applied),
            "a snapshot",
        )
        .await
        .unwrap();
    raft.trigger().purge_log(applied).await.unwrap();
    raft.wait(None)
        .metrics(
            |metrics| metrics.purged.is_some_and(|id| id.index >= applied),
            "purged",
        )
        .await
        .unwrap();
}

/// Members come and go while one is away and the log it lacks is purged: with the snapshot it must get the membership
/// as it is now, or two majorities could come to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_learns_who_the_members_are_from_the_snapshot() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    stop(third).await;
    first.write(put("a", "{}")).await.unwrap();
    let fourth = installation.join(4, &first).await;
    first.remove_node(2).await.unwrap();
    stop(second).await;
    first.write(put("b", "{}")).await.unwrap();
    compact(&first).await;
    compact(&fourth).await;
    let third = installation.start(3, Start::Again).await;
    third.linearize().await.unwrap();
    let members: Vec<_> = third
        .status()
        .members
        .iter()
        .map(|member| member.id)
        .collect();
    assert_eq!(members, [1, 3, 4]);
    // Two of these three decide, without the leader that was.
    stop(first).await;
    third.write(put("c", "{}")).await.unwrap();
    assert!(has(&third, "a") && has(&third, "b"));
    stop(fourth).await;
    assert!(third.write(put("d", "{}")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_nodes_restart_one_after_the_other() {
    let installation = Installation::new();
    let mut nodes = installation.three().await.map(Some);
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let index = round % 3;
        let others: Vec<_> = (0..3)
            .filter(|other| *other != index)
            .map(|other| nodes[other].clone().unwrap())
            .collect();
        let writing = async {
            let mut names = Vec::new();
            for number in 0..10 {
                let name = format!("r{round}-{number}");
                let node = &others[number % 2];
                // What is not acknowledged may be there or not.
                if node.write(put(&name, "{}")).await.is_ok() {
                    names.push(name);
                }
            }
            names
        };
        let restarting = async {
            stop(nodes[index].take().unwrap()).await;
            installation.start(index as u64 + 1, Start::Again).await
        };
        let (names, node) = tokio::join!(writing, restarting);
        acknowledged.extend(names);
        node.linearize().await.unwrap();
        // Each port is a new one, and nodes that all move at once could not find each other.
        let address = node.raft_address().unwrap().to_string();
        for other in others.iter().chain([&node]) {
            until(other, "the new address is known", |status| {
                status
                    .members
                    .iter()
                    .any(|member| member.addresses.raft == address)
            })
            .await;
        }
        if round == 3 {
            compact(&node).await;
        }
        nodes[index] = Some(node);
    }
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    for node in nodes.iter().flatten() {
        node.linearize().await.unwrap();
        let missing: Vec<_> = acknowledged
            .iter()
            .filter(|name| !has(node, name))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_disk_does_not_take_an_id_again() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    let via = vec![first.raft_address().unwrap().to_string()];
    stop(third).await;
    for file in fs::read_dir(installation.dir(3)).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    let wiped = Node {
        node_uuid: "another disk".to_owned(),
        ..installation.node(3)
    };
    let joining = installation.try_start(wiped, Start::Join(via));
    // It is told to go away, or told nothing; a voter with its old id it never becomes.
    let taken = tokio::time::timeout(Duration::from_secs(3), joining).await;
    assert!(!matches!(taken, Ok(Ok(_))));
    first.write(put("a", "{}")).await.unwrap();
    second.linearize().await.unwrap();
    assert_eq!(first.0.speaker.members.uuid(3), Some("disk-3".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_store_does_not_start() {
    let installation = Installation::new();
    let [first, _second, third] = installation.three().await;
    first.write(put("a", "{}")).await.unwrap();
    stop(third).await;
    fs::remove_dir_all(installation.dir(3).join("store")).unwrap();
    let error = installation
        .try_start(installation.node(3), Start::Again)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, StartError::Store(OpenError::LostWrites { .. })),
        "{error}"
    );
}

/// The whole data directory put back, watermark and all: only the leader can know.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_put_back_to_an_older_state_is_not_counted_on() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    first.write(put("a", "{}")).await.unwrap();
    third.linearize().await.unwrap();
    stop(third).await;
    let copy = tempfile::tempdir().unwrap();
    copy_files(installation.dir(3), copy.path());
    let third = installation.start(3, Start::Again).await;
    for index in 0..5 {
        let name = format!("m{index}");
        first.write(put(&name, "{}")).await.unwrap();
    }
    third.linearize().await.unwrap();
    let newest = first.status().applied;
    until(&first, "the third has everything", |status| {
        status
            .members
            .iter()
            .any(|member| member.id == 3 && member.matched >= newest)
    })
    .await;
    stop(third).await;
    fs::remove_dir_all(installation.dir(3)).unwrap();
    copy_files(copy.path(), installation.dir(3));
    let third = installation.start(3, Start::Again).await;
    // The leader goes on with the other, and neither panics nor sends the old node anything.
    first.write(put("after", "{}")).await.unwrap();
    second.linearize().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!has(&third, "after") && !has(&third, "m4"));
    assert!(first.is_leader());
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy_files(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_node_is_refused() {
    let ours = Installation::new();
    let first = ours.first().await;
    let theirs = Installation {
        // The same CA, so that only the cluster's id tells them apart.
        ca: Ca::from_pem(&ours.ca.certificate_pem(), ours.ca.key_pem()).unwrap(),
        ..Installation::of("theirs")
    };
    let via = vec![first.raft_address().unwrap().to_string()];
    let error = theirs
        .try_start(theirs.node(2), Start::Join(via))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("cluster \"ours\""), "{error}");
    assert_eq!(first.status().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_ca_is_refused() {
    let ours = Installation::new();
    let first = ours.first().await;
    let strangers = Installation::new();
    let via = first.raft_address().unwrap().to_string();
    let joining = strangers.try_start(strangers.node(2), Start::Join(vec![via]));
    let joined = tokio::time::timeout(Duration::from_secs(2), joining).await;
    assert!(!matches!(joined, Ok(Ok(_))));
    assert_eq!(first.status().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_are_asked_wherever_they_are_connected() {
    let installation = Installation::new();
    let nodes = installation.three().await;
    for node in &nodes {
        for id in 1..=3 {
            let query = Query {
                id: 7,
                ..Query::default()
            };
            let answer = node.query_zone(&format!("zone-{id}"), query).await.unwrap();
            assert_eq!(answer.id, 7);
        }
        let mut zones: Vec<_> = node
            .zone_statuses()
            .await
            .zones
            .into_iter()
            .map(|(id, zone)| (id, zone.zone))
            .collect();
        zones.sort();
        assert_eq!(
            zones,
            [1, 2, 3].map(|id| (id, format!("zone-{id}"))).to_vec()
        );
    }
    let error = nodes[0]
        .query_zone("nowhere", Query::default())
        .await
        .unwrap_err();
    let QueryError::NotConnected { unreachable, .. } = error;
    assert!(unreachable.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_counts_no_more() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    first.remove_node(3).await.unwrap();
    stop(third).await;
    first.write(put("a", "{}")).await.unwrap();
    until(&second, "two members", |status| status.members.len() == 2).await;
    first.remove_node(3).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_too_large_is_refused_before_it_is_written() {
    let installation = Installation::new();
    let first = installation.first().await;
    let revision = first.state().revision();
    let error = first
        .write(put("a", &"x".repeat(super::BIGGEST_ENTRY)))
        .await
        .unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    assert_eq!(first.state().revision(), revision);
    // Nearly as large goes through, and to followers.
    let second = installation.join(2, &first).await;
    let large = "x".repeat(super::BIGGEST_ENTRY - 1000);
    let written = second.write(put("a", &large)).await;
    // A busy machine may take longer than a write is waited for; it is decided all the same.
    assert!(
        matches!(written, Ok(_) | Err(WriteError::NoQuorum(_))),
        "{written:?}"
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    let there = || first.state().get(&key("a")).map(|stored| stored.json.len());
    while there() != Some(large.len()) {
        assert!(Instant::now() < deadline, "not in time: {:?}", there());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_reported_with_what_to_do() {
    let installation = Installation::new();
    let first = installation.first().await;
    first.write(put("a", "{}")).await.unwrap();
    stop(first).await;
    let db = installation.dir(1).join("store/log.redb");
    let mut bytes = fs::read(&db).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(used / 2);
    fs::write(&db, bytes).unwrap();
    let error = installation
        .try_start(installation.node(1), Start::Again)
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("meshctl global recover"),
        "{error}"
    );
}

#[test]
fn a_directory_without_its_node_file_is_not_new() {
    let dir = tempfile::tempdir().unwrap();
    assert!(store::directory::load(dir.path()).unwrap().is_none());
    let mark = dir.path().join("acknowledged");
    let mut watermark = store::watermark::Watermark::open(&mark, true).unwrap();
    assert!(store::directory::load(dir.path()).unwrap().is_none());
    watermark
        .set(store::watermark::Mark {
            last: None,
            vote: Some(store::types::Vote::new(1, 1)),
        })
        .unwrap();
    let error = store::directory::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("node.json"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_anywhere_is_found_everywhere_and_a_silent_node_is_named() {
    let installation = Installation::new();
    let [first, second, third] = installation.three().await;
    for (node, second) in [(&first, 1), (&third, 2), (&second, 3)] {
        node.0.attempts.add(Attempt {
            time: format!("2026-01-01T00:00:0{second}Z"),
            actor: format!("token/{}", node.node_id()),
            ..Attempt::default()
        });
    }
    let wanted = Wanted {
        limit: 10,
        ..Wanted::default()
    };
    let found = second.attempts(&wanted).await;
    let mut actors: Vec<_> = found
        .found
        .iter()
        .map(|(node, attempt)| format!("{node} {}", attempt.actor))
        .collect();
    actors.sort();
    assert_eq!(actors, ["1 token/1", "2 token/2", "3 token/3"]);
    assert!(found.unreachable.is_empty());
    stop(third).await;
    let found = second.attempts(&wanted).await;
    assert_eq!((found.found.len(), found.unreachable), (2, vec![3]));
}
