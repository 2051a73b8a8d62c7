//! What entries do: tables of cases, and properties of any sequence of entries.

use mesh_proto::raft::{Actor, Delete, Operation as Wrapped, Put, SetSystem};
use proptest::prelude::*;

use super::*;
use crate::state::{Change, Stored, TooOld};

/// Small enough to be reached.
const SMALL: Limits = Limits {
    history_count: 6,
    history_bytes: 600,
    requests_always: 4,
    requests_at_most: 6,
    request_age_ms: 100,
    audit_count: 5,
    audit_bytes: 1 << 20,
};

fn key(name: &str) -> ResourceKey {
    ResourceKey::global("Mesh", "", name)
}

fn put(name: &str, json: &str) -> Operation {
    Operation::Put(Put {
        key: Some(key(name)),
        json: json.as_bytes().to_vec(),
        precondition: None,
    })
}

fn put_at(name: &str, json: &str, revision: u64) -> Operation {
    Operation::Put(Put {
        key: Some(key(name)),
        json: json.as_bytes().to_vec(),
        precondition: Some(Precondition { revision }),
    })
}

fn delete(name: &str) -> Operation {
    Operation::Delete(Delete {
        key: Some(key(name)),
        precondition: None,
    })
}

fn delete_at(name: &str, revision: u64) -> Operation {
    Operation::Delete(Delete {
        key: Some(key(name)),
        precondition: Some(Precondition { revision }),
    })
}

fn set(name: &str, value: &str, expect: Option<&str>) -> Operation {
    Operation::SetSystem(SetSystem {
        name: name.to_owned(),
        value: value.as_bytes().to_vec(),
        expect: expect.map(|expect| expect.as_bytes().to_vec()),
    })
}

fn entry(operations: Vec<Operation>) -> Entry {
    Entry {
        version: ENTRY_VERSION,
        actor: Some(Actor {
            name: "token/t".to_owned(),
            address: "192.0.2.1".to_owned(),
        }),
        time_ms: 1000,
        operations: operations
            .into_iter()
            .map(|operation| Wrapped {
                operation: Some(operation),
            })
            .collect(),
        summary: "test".to_owned(),
        ..Entry::default()
    }
}

/// Applies an entry, makes its writes, and returns its result.
fn step(image: &mut Image, entry: &Entry) -> EntryResult {
    step_with(image, entry, &SMALL)
}

fn step_with(image: &mut Image, entry: &Entry, limits: &Limits) -> EntryResult {
    let applied = apply(image, entry, limits).unwrap();
    for write in applied.writes {
        image.write(write).unwrap();
    }
    applied.result
}

fn run(image: &mut Image, operations: Vec<Operation>) -> EntryResult {
    step(image, &entry(operations))
}

fn since(image: &Image, revision: u64) -> Result<Vec<Change>, TooOld> {
    Ok(image.changes_since(revision)?.collect())
}

/// `revision: outcome, outcome` or `revision: refused at n (actual)`.
fn shown(result: &EntryResult) -> String {
    match &result.refusal {
        Some(refusal) => format!(
            "{}: refused at {} ({})",
            result.revision, refusal.operation, refusal.actual_revision
        ),
        None => format!(
            "{}: {}",
            result.revision,
            result
                .operations
                .iter()
                .map(|operation| operation
                    .outcome()
                    .as_str_name()
                    .trim_start_matches("OUTCOME_"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

#[test]
fn outcomes_and_revisions() {
    let mut image = Image::default();
    for (operations, expected) in [
        (vec![put("a", "1")], "1: CREATED"),
        (vec![put("a", "1")], "1: UNCHANGED"),
        (vec![put("a", "2")], "2: UPDATED"),
        (vec![delete("b")], "2: NOT_FOUND"),
        (vec![put("b", "1"), put("a", "2")], "3: CREATED, UNCHANGED"),
        (vec![put_at("b", "2", 0)], "3: refused at 0 (3)"),
        (vec![put_at("b", "2", 2)], "3: refused at 0 (3)"),
        (vec![put_at("c", "2", 3)], "3: refused at 0 (0)"),
        (
            vec![put("a", "3"), put_at("b", "2", 2)],
            "3: refused at 1 (3)",
        ),
        (vec![put_at("b", "2", 3)], "4: UPDATED"),
        (vec![put_at("c", "1", 0)], "5: CREATED"),
        (vec![delete_at("c", 4)], "5: refused at 0 (5)"),
        (vec![delete_at("c", 5)], "6: DELETED"),
        (vec![delete_at("c", 5)], "6: refused at 0 (0)"),
        // Even the unchanged must be as it was expected.
        (vec![put_at("a", "2", 1)], "6: refused at 0 (2)"),
        // One entry sees its own writes.
        (
            vec![put("d", "1"), put_at("d", "2", 7), delete("d")],
            "7: CREATED, UPDATED, DELETED",
        ),
        (vec![], "7: "),
        (vec![set("fact", "x", None)], "8: CREATED"),
        (vec![set("fact", "x", None)], "8: UNCHANGED"),
        (vec![set("fact", "y", Some("z"))], "8: refused at 0 (8)"),
        (vec![set("fact", "y", Some("x"))], "9: UPDATED"),
        (vec![set("other", "1", Some(""))], "10: CREATED"),
        (vec![set("other", "2", Some(""))], "10: refused at 0 (10)"),
        (vec![put("e\0", "1")], "10: refused at 0 (10)"),
    ] {
        let case = format!("{operations:?}");
        assert_eq!(shown(&run(&mut image, operations)), expected, "{case}");
    }
    assert_eq!(image.get(&key("a")).unwrap().json, b"2");
    assert!(image.get(&key("d")).is_none());
    assert_eq!(image.system("fact").unwrap(), b"y");
}

#[test]
fn a_resource_keeps_its_creation_and_knows_its_last_change() {
    let mut image = Image::default();
    step(
        &mut image,
        &Entry {
            time_ms: 5,
            ..entry(vec![put("a", "1")])
        },
    );
    step(
        &mut image,
        &Entry {
            time_ms: 9,
            ..entry(vec![put("a", "2")])
        },
    );
    assert_eq!(
        image.get(&key("a")),
        Some(Stored {
            key: key("a"),
            json: b"2".to_vec(),
            created_revision: 1,
            modified_revision: 2,
            created_ms: 5,
            modified_ms: 9,
        })
    );
}

#[test]
fn kinds_that_nobody_knows_are_kept_as_they_are() {
    let mut image = Image::default();
    let future = ResourceKey::in_zone("FromTheFuture", "pay", "east", "x");
    let json = b"\xff not even json".to_vec();
    let operation = Operation::Put(Put {
        key: Some(future.clone()),
        json: json.clone(),
        precondition: None,
    });
    run(&mut image, vec![operation]);
    assert_eq!(image.get(&future).unwrap().json, json);
    assert_eq!(image.all_in_mesh("pay").len(), 1);
    assert_eq!(image.kinds(), ["FromTheFuture"]);
}

#[test]
fn an_entry_of_another_version_stops_the_node() {
    let image = Image::default();
    let newer = Entry {
        version: 2,
        ..entry(vec![put("a", "1")])
    };
    assert_eq!(
        apply(&image, &newer, &SMALL),
        Err(ApplyError::UnknownVersion(2))
    );
    let mut unknown = entry(vec![put("a", "1")]);
    unknown.operations.push(Wrapped { operation: None });
    assert_eq!(
        apply(&image, &unknown, &SMALL),
        Err(ApplyError::UnknownOperation(1))
    );
}

#[test]
fn a_state_that_contradicts_itself_stops_the_node() {
    let counters = Counters {
        revision: 1,
        history_floor: 2,
        ..Counters::default()
    };
    let image =
        Image::from_records([(keys::COUNTERS.to_vec(), counters.encode_to_vec().into())]).unwrap();
    assert!(matches!(
        apply(&image, &entry(vec![]), &SMALL),
        Err(ApplyError::Broken(_))
    ));
}

#[test]
fn a_request_happens_once() {
    let mut image = Image::default();
    let one = Entry {
        request_id: "one".to_owned(),
        ..entry(vec![put("a", "1")])
    };
    let first = step(&mut image, &one);
    run(&mut image, vec![put("a", "2")]);
    // Repeated late, it does not undo what came after.
    assert_eq!(step(&mut image, &one), first);
    assert_eq!(image.get(&key("a")).unwrap().json, b"2");
    // The same id with another wish is no repetition.
    let other = Entry {
        operations: entry(vec![put("a", "3")]).operations,
        ..one.clone()
    };
    let refused = step(&mut image, &other).refusal.unwrap();
    assert!(refused.reason.contains("request id"), "{}", refused.reason);
    // Somebody else's ids are their own.
    let somebody = Entry {
        actor: Some(Actor {
            name: "token/other".to_owned(),
            address: String::new(),
        }),
        ..other
    };
    assert!(step(&mut image, &somebody).refusal.is_none());
}

#[test]
fn a_refused_request_may_be_tried_again() {
    let mut image = Image::default();
    let one = Entry {
        request_id: "one".to_owned(),
        ..entry(vec![put_at("a", "2", 1)])
    };
    assert!(step(&mut image, &one).refusal.is_some());
    run(&mut image, vec![put("a", "1")]);
    assert!(step(&mut image, &one).refusal.is_none());
}

#[test]
fn old_requests_are_forgotten_by_number_and_age() {
    let mut image = Image::default();
    let request = |number: u64, time_ms| Entry {
        request_id: format!("r{number}"),
        time_ms,
        ..entry(vec![put("a", &number.to_string())])
    };
    let remembered = |image: &Image| {
        (0..20)
            .filter(|number| {
                image
                    .record(&keys::request("token/t", &format!("r{number}")))
                    .is_some()
            })
            .collect::<Vec<_>>()
    };
    for number in 0..5 {
        step(&mut image, &request(number, 1000));
    }
    // More than are always kept, but young.
    assert_eq!(remembered(&image), [0, 1, 2, 3, 4]);
    step(&mut image, &request(5, 1101));
    assert_eq!(remembered(&image), [2, 3, 4, 5]);
    for number in 6..9 {
        step(&mut image, &request(number, 1101));
    }
    // 2, 3 and 4 are old by now.
    assert_eq!(remembered(&image), [5, 6, 7, 8]);
    for number in 9..12 {
        step(&mut image, &request(number, 1101));
    }
    // Young, but more than are kept at most.
    assert_eq!(remembered(&image), [6, 7, 8, 9, 10, 11]);
}

#[test]
fn the_history_forgets_whole_revisions_and_says_so() {
    let mut image = Image::default();
    run(
        &mut image,
        vec![put("a", "1"), put("b", "1"), put("c", "1")],
    );
    for number in 2..5 {
        run(&mut image, vec![put("a", &number.to_string())]);
    }
    assert_eq!(image.counters().history_count, 6);
    assert_eq!(since(&image, 0).unwrap().len(), 6);
    assert!(!image.history(&key("a")).1);
    run(&mut image, vec![put("a", "5")]);
    // Revision 1 made three changes, and all went.
    assert_eq!(image.counters().history_count, 4);
    assert_eq!(
        since(&image, 0),
        Err(TooOld {
            asked: 0,
            oldest: 1
        })
    );
    let changes = since(&image, 1).unwrap();
    assert_eq!(
        changes
            .iter()
            .map(|change| change.revision)
            .collect::<Vec<_>>(),
        [2, 3, 4, 5]
    );
    let (history, truncated) = image.history(&key("a"));
    assert_eq!(history.len(), 4);
    assert_eq!(history[0].revision, 5);
    assert_eq!(history[0].actor, "token/t");
    assert_eq!(history[0].stored.as_ref().unwrap().json, b"5");
    assert!(truncated);
    let (history, truncated) = image.history(&key("b"));
    assert!(history.is_empty() && truncated);
}

#[test]
fn the_history_is_bounded_in_bytes_but_keeps_the_newest() {
    let mut image = Image::default();
    for number in 0..5 {
        let json = number.to_string().repeat(150);
        run(&mut image, vec![put("a", &json)]);
        assert!(image.counters().history_bytes <= SMALL.history_bytes);
    }
    assert_eq!(image.counters().history_count, 2);
    let large = "x".repeat(1000);
    run(&mut image, vec![put("a", &large)]);
    assert_eq!(image.counters().history_count, 1);
    run(&mut image, vec![put("a", "small")]);
    assert_eq!(image.counters().history_count, 1);
}

#[test]
fn what_a_resource_was_is_known_as_long_as_its_later_changes_are() {
    let mut image = Image::default();
    run(&mut image, vec![put("a", "a1"), put("b", "b1")]);
    let at = |image: &Image, name: &str, revision| match image.at(&key(name), revision) {
        Ok(Some(stored)) => format!(
            "{}@{}",
            String::from_utf8(stored.json).unwrap(),
            stored.modified_revision
        ),
        Ok(None) => "nothing".to_owned(),
        Err(too_old) => format!("only from {}", too_old.oldest),
    };
    assert_eq!(at(&image, "a", 0), "nothing");
    // Enough to forget revision 1, which made both.
    for number in 2..9 {
        run(&mut image, vec![put("c", &number.to_string())]);
    }
    assert_eq!(image.oldest_revision(), 2);
    run(&mut image, vec![put("a", "a10"), delete("b")]);
    run(&mut image, vec![put("b", "b11")]);
    for (name, revision, expected) in [
        ("a", 1, "only from 5"),
        ("a", 5, "a1@1"),
        ("a", 8, "a1@1"),
        ("a", 9, "a10@9"),
        ("b", 8, "b1@1"),
        ("b", 9, "nothing"),
        ("b", 10, "b11@10"),
        ("c", 5, "5@5"),
        ("never", 4, "only from 5"),
        ("never", 5, "nothing"),
    ] {
        assert_eq!(at(&image, name, revision), expected, "{name} at {revision}");
    }
    // What was forgotten of `c` went to the change after it.
    run(&mut image, vec![put("d", "1"), put("e", "1")]);
    assert_eq!(image.oldest_revision(), 7);
    assert_eq!(at(&image, "c", 7), "7@7");
    // Nothing changed since: no history is needed.
    assert_eq!(at(&image, "c", 8), "8@8");
}

#[test]
fn how_much_is_kept_is_a_fact_of_the_cluster() {
    let mut image = Image::default();
    for number in 1..6 {
        run(&mut image, vec![put("a", &number.to_string())]);
    }
    assert_eq!(image.oldest_revision(), 0);
    let limits = records::HistoryLimits {
        changes: 2,
        bytes: 0,
    };
    let said = Operation::SetSystem(SetSystem {
        name: crate::state::image::HISTORY_LIMITS.to_owned(),
        value: limits.encode_to_vec(),
        expect: None,
    });
    run(&mut image, vec![said]);
    // It counts from the next entry on.
    run(&mut image, vec![put("a", "6")]);
    assert_eq!(image.oldest_revision(), 4);
    assert_eq!(image.counters().history_count, 2);
}

#[test]
fn the_past_is_read_in_pages_of_whole_revisions() {
    let mut image = Image::default();
    run(&mut image, vec![put("a", "1"), put("b", "1")]);
    run(&mut image, vec![put("c", "1"), put("d", "1")]);
    run(&mut image, vec![put("a", "2")]);
    run(&mut image, vec![set("fact", "1", None)]);
    let mut cursor = 0;
    let mut pages = Vec::new();
    while cursor < image.revision() {
        let page = image.changes_page(cursor, 1).unwrap();
        pages.push((page.changes.len(), page.through));
        cursor = page.through;
    }
    // The last page ends with what changed no resource.
    assert_eq!(pages, [(2, 1), (2, 2), (1, 4)]);
    assert_eq!(image.changes_page(1, 100).unwrap().changes.len(), 3);
    assert_eq!(image.changes_page(u64::MAX, 1).unwrap().changes, []);
}

#[test]
fn a_deletion_is_a_change_with_a_history() {
    let mut image = Image::default();
    run(&mut image, vec![put("a", "1")]);
    run(&mut image, vec![delete("a")]);
    let changes = since(&image, 1).unwrap();
    assert_eq!(changes.len(), 1);
    assert!(changes[0].stored.is_none());
    let (history, truncated) = image.history(&key("a"));
    assert_eq!(history.len(), 2);
    assert!(history[0].stored.is_none() && !truncated);
}

#[test]
fn every_change_leaves_an_audit_record_and_nothing_else_does() {
    let mut image = Image::default();
    run(&mut image, vec![put("a", "1"), put("b", "1")]);
    run(&mut image, vec![put("a", "1")]);
    run(&mut image, vec![put_at("a", "2", 9)]);
    run(&mut image, vec![set("fact", "1", None)]);
    let audit = image.audit(10);
    assert_eq!(audit.len(), 2);
    assert_eq!(audit[1].changed, [key("a"), key("b")]);
    assert_eq!(audit[1].actor, "token/t");
    assert_eq!(audit[1].address, "192.0.2.1");
    assert_eq!(audit[0].revision, 2);
    for number in 0..10 {
        run(&mut image, vec![put("a", &number.to_string())]);
    }
    assert_eq!(image.audit(100).len(), 5);
    assert_eq!(image.audit(2).len(), 2);
    // Numbers go on, so that a gap can be seen.
    assert_eq!(image.audit(1)[0].number, 11);
}

#[test]
fn listings_go_on_where_they_stopped() {
    let mut image = Image::default();
    let keys: Vec<_> = ["pay", "shop"]
        .into_iter()
        .flat_map(|mesh| {
            ["", "east"].into_iter().flat_map(move |zone| {
                ["a", "b"].map(|name| ResourceKey::in_zone("MeshService", mesh, zone, name))
            })
        })
        .collect();
    for key in keys.iter().rev() {
        let operation = Operation::Put(Put {
            key: Some(key.clone()),
            json: b"{}".to_vec(),
            precondition: None,
        });
        run(&mut image, vec![operation]);
    }
    run(&mut image, vec![put("zzz", "1")]);
    let all = image.list("MeshService", None, None, 100);
    assert_eq!(
        all.iter()
            .map(|stored| stored.key.clone())
            .collect::<Vec<_>>(),
        keys
    );
    let mut paged = Vec::new();
    while paged.len() < keys.len() {
        let page = image.list("MeshService", None, paged.last(), 3);
        assert!(!page.is_empty());
        paged.extend(page.into_iter().map(|stored| stored.key));
    }
    assert_eq!(paged, keys);
    assert_eq!(image.list("MeshService", Some("pay"), None, 100).len(), 4);
    // A cursor that lies outside of what is listed.
    assert_eq!(
        image
            .list("MeshService", Some("pay"), Some(&keys[5]), 100)
            .len(),
        0
    );
    assert_eq!(
        image
            .list("MeshService", Some("shop"), Some(&keys[1]), 100)
            .len(),
        4
    );
    assert_eq!(image.all_in_mesh("shop").len(), 4);
    assert_eq!(image.all_in_mesh("").len(), 1);
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let json = "[0-9]{0,40}";
    let one = prop_oneof![
        4 => (name.clone(), json).prop_map(|(name, json)| put(name, &json)),
        2 => (name.clone(), json, 0..12_u64).prop_map(|(name, json, at)| put_at(name, &json, at)),
        2 => name.clone().prop_map(delete),
        1 => (name.clone(), 0..12_u64).prop_map(|(name, at)| delete_at(name, at)),
        1 => (name, json, prop::option::of(json)).prop_map(|(name, value, expect)| {
            set(name, &value, expect.as_deref())
        }),
    ];
    prop::collection::vec(one, 0..4)
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let one = (operations(), 0..20_u64, 0..30_u64).prop_map(|(operations, request, ms)| Entry {
        request_id: if request < 10 {
            format!("r{request}")
        } else {
            String::new()
        },
        time_ms: ms * 20,
        ..entry(operations)
    });
    prop::collection::vec(one, 0..40)
}

/// What must hold after every entry.
fn check_image(image: &Image) {
    let counters = image.counters();
    let changes = since(image, counters.history_floor).unwrap();
    assert_eq!(changes.len() as u64, counters.history_count);
    let newest = changes
        .iter()
        .map(|change| change.revision)
        .max()
        .unwrap_or_default();
    assert!(newest <= counters.revision);
    let per_revision = changes.iter().filter(|change| change.revision == newest);
    assert!(
        counters.history_count <= SMALL.history_count
            || counters.history_count == per_revision.count() as u64
    );
    let bytes: u64 = image
        .range(b"c", std::ops::Bound::Unbounded)
        .map(|(name, value)| size(name, value))
        .sum();
    assert_eq!(bytes, counters.history_bytes);
    // Each resource is what its newest kept change says.
    for change in &changes {
        let newest = changes
            .iter()
            .rfind(|other| other.key == change.key)
            .unwrap();
        assert_eq!(image.get(&change.key), newest.stored);
    }
    // Each kept change is in the history of its resource, and nothing else is.
    let indexed = image.range(b"i", std::ops::Bound::Unbounded).count();
    assert_eq!(indexed, changes.len());
    let requests = image.range(b"q", std::ops::Bound::Unbounded).count() as u64;
    assert_eq!(requests, counters.next_request - counters.first_request);
    assert!(requests <= SMALL.requests_at_most);
    let audits = image.audit(usize::MAX).len() as u64;
    assert_eq!(audits, counters.next_audit - counters.first_audit);
    assert!(audits <= SMALL.audit_count);
}

proptest! {
    #[test]
    fn the_same_entries_make_the_same_state(entries in entries()) {
        let mut one = Image::default();
        let mut other = Image::default();
        for entry in &entries {
            prop_assert_eq!(step(&mut one, entry), step(&mut other, entry));
            check_image(&one);
        }
        prop_assert!(one.records().eq(other.records()));
        // As it comes back from the disk.
        let records = one.records().map(|(name, value)| (name.to_vec(), value.clone()));
        let read = Image::from_records(records).unwrap();
        prop_assert_eq!(read.counters(), one.counters());
    }

    #[test]
    fn a_refused_entry_changes_nothing_and_a_change_is_one_revision(entries in entries()) {
        let mut image = Image::default();
        for entry in &entries {
            let before = image.clone();
            let applied = apply(&image, entry, &SMALL).unwrap();
            if applied.result.refusal.is_some() {
                prop_assert!(applied.writes.is_empty());
                prop_assert_eq!(applied.result.revision, before.revision());
                prop_assert!(applied.result.operations.is_empty());
            }
            for write in applied.writes {
                image.write(write).unwrap();
            }
            let step = image.revision() - before.revision();
            prop_assert!(step <= 1);
            let resources = |image: &Image| image
                .records()
                .filter(|(name, _)| matches!(name[0], b'r' | b's'))
                .map(|(name, value)| (name.to_vec(), value.clone()))
                .collect::<Vec<_>>();
            if step == 0 {
                prop_assert_eq!(resources(&image), resources(&before));
            }
        }
    }

    #[test]
    fn whoever_follows_the_changes_has_the_resources(entries in entries()) {
        let mut image = Image::default();
        let mut follower = std::collections::BTreeMap::new();
        let mut seen = 0;
        for (count, entry) in entries.iter().enumerate() {
            step(&mut image, entry);
            // Sometimes it sleeps through a few.
            if count % 3 == 2 {
                continue;
            }
            match since(&image, seen) {
                Ok(changes) => for change in changes {
                    match change.stored {
                        Some(stored) => follower.insert(change.key.name.clone(), stored),
                        None => follower.remove(&change.key.name),
                    };
                },
                Err(TooOld { .. }) => {
                    follower = image
                        .list("Mesh", None, None, usize::MAX)
                        .into_iter()
                        .map(|stored| (stored.key.name.clone(), stored))
                        .collect();
                }
            }
            seen = image.revision();
            let all = image.list("Mesh", None, None, usize::MAX);
            prop_assert_eq!(follower.values().cloned().collect::<Vec<_>>(), all);
        }
    }
}
