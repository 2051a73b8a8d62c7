//! How records are named in the map. The first byte says what a record is; the rest sorts as readers need it.
//!
//! | prefix | rest | value |
//! | --- | --- | --- |
//! | `r` | kind, mesh, zone, name, separated by 0 | the resource, [`super::records::Resource`] |
//! | `c` | revision, ordinal | one change, [`super::records::Change`] |
//! | `i` | kind, mesh, zone, name, each followed by 0, then revision, ordinal | nothing: a resource's changes |
//! | `s` | name | a fact of the cluster |
//! | `q` | actor, request id, separated by 0 | what the request did, [`super::records::Request`] |
//! | `t` | number | the `q` key of the request with that number, so that the oldest can be found |
//! | `a` | number | [`super::records::Audit`] |
//! | `m` | `counters`, `applied`, `membership` | what the state machine knows of itself |

use mesh_proto::zone::ResourceKey;

/// Counters of the state machine.
pub const COUNTERS: &[u8] = b"mcounters";
/// JSON of the id of the last applied log entry.
pub const APPLIED: &[u8] = b"mapplied";
/// JSON of the last applied membership.
pub const MEMBERSHIP: &[u8] = b"mmembership";

/// Whether a resource can be named so: the separator occurs in no part, and no part is unreasonably long.
#[must_use]
pub fn is_nameable(key: &ResourceKey) -> bool {
    const LONGEST: usize = 253;
    let ok = |part: &str| part.len() <= LONGEST && !part.contains('\0');
    !key.kind.is_empty()
        && !key.name.is_empty()
        && [&key.kind, &key.mesh, &key.zone, &key.name]
            .into_iter()
            .all(|part| ok(part))
}

/// The record of a resource.
#[must_use]
pub fn resource(key: &ResourceKey) -> Vec<u8> {
    joined(b'r', &[&key.kind, &key.mesh, &key.zone, &key.name])
}

/// What the records of all resources of a kind, or of a kind in one mesh, begin with.
#[must_use]
pub fn resources(kind: &str, mesh: Option<&str>) -> Vec<u8> {
    let mut prefix = match mesh {
        Some(mesh) => joined(b'r', &[kind, mesh]),
        None => joined(b'r', &[kind]),
    };
    prefix.push(0);
    prefix
}

/// The resource that a record's name names; `None` where it is another record.
#[must_use]
pub fn parse_resource(name: &[u8]) -> Option<ResourceKey> {
    let text = std::str::from_utf8(name.strip_prefix(b"r")?).ok()?;
    let mut parts = text.split('\0');
    let key = ResourceKey {
        kind: parts.next()?.to_owned(),
        mesh: parts.next()?.to_owned(),
        zone: parts.next()?.to_owned(),
        name: parts.next()?.to_owned(),
    };
    parts.next().is_none().then_some(key)
}

/// One change.
#[must_use]
pub fn change(revision: u64, ordinal: u32) -> Vec<u8> {
    numbered(b"c", revision, ordinal)
}

/// Revision and ordinal of a change's record.
#[must_use]
pub fn parse_change(name: &[u8]) -> Option<(u64, u32)> {
    let rest = name.strip_prefix(b"c")?;
    let (revision, ordinal) = rest.split_at_checked(8)?;
    Some((
        u64::from_be_bytes(revision.try_into().ok()?),
        u32::from_be_bytes(ordinal.try_into().ok()?),
    ))
}

/// One change of a resource.
#[must_use]
pub fn history(key: &ResourceKey, revision: u64, ordinal: u32) -> Vec<u8> {
    numbered(&histories(key), revision, ordinal)
}

/// What the records of all changes of a resource begin with.
#[must_use]
pub fn histories(key: &ResourceKey) -> Vec<u8> {
    let mut prefix = joined(b'i', &[&key.kind, &key.mesh, &key.zone, &key.name]);
    prefix.push(0);
    prefix
}

/// A fact of the cluster.
#[must_use]
pub fn system(name: &str) -> Vec<u8> {
    joined(b's', &[name])
}

/// What a request did. Ids are told apart by who sent them, so that nobody can use up another's.
#[must_use]
pub fn request(actor: &str, id: &str) -> Vec<u8> {
    joined(b'q', &[actor, id])
}

/// The request with a number.
#[must_use]
pub fn request_number(number: u64) -> Vec<u8> {
    counted(b't', number)
}

/// The audit record with a number.
#[must_use]
pub fn audit(number: u64) -> Vec<u8> {
    counted(b'a', number)
}

/// The first name behind all that begin with `prefix`; `None` where there can be none.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn joined(prefix: u8, parts: &[&str]) -> Vec<u8> {
    let mut name = vec![prefix];
    name.extend_from_slice(parts.join("\0").as_bytes());
    name
}

fn counted(prefix: u8, number: u64) -> Vec<u8> {
    let mut name = vec![prefix];
    name.extend_from_slice(&number.to_be_bytes());
    name
}

fn numbered(prefix: &[u8], revision: u64, ordinal: u32) -> Vec<u8> {
    let mut name = prefix.to_vec();
    name.extend_from_slice(&revision.to_be_bytes());
    name.extend_from_slice(&ordinal.to_be_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resources_name_reads_back() {
        let key = ResourceKey::in_zone("MeshService", "pay", "east", "web");
        assert_eq!(parse_resource(&resource(&key)), Some(key));
        assert_eq!(parse_resource(b"sfact"), None);
        assert_eq!(parse_resource(b"ra\0b"), None);
    }

    #[test]
    fn changes_sort_by_revision_then_ordinal() {
        let mut names = [change(256, 0), change(1, 2), change(1, 1), change(2, 0)];
        names.sort();
        let sorted: Vec<_> = names.iter().filter_map(|name| parse_change(name)).collect();
        assert_eq!(sorted, [(1, 1), (1, 2), (2, 0), (256, 0)]);
    }

    #[test]
    fn one_kinds_resources_do_not_mix_with_anothers() {
        let mesh = resource(&ResourceKey::global("Mesh", "", "a"));
        let service = resource(&ResourceKey::global("MeshService", "", "a"));
        assert!(mesh.starts_with(&resources("Mesh", None)));
        assert!(!service.starts_with(&resources("Mesh", None)));
    }

    #[test]
    fn a_name_with_a_separator_inside_is_refused() {
        assert!(!is_nameable(&ResourceKey::global("Mesh", "", "a\0b")));
        assert!(!is_nameable(&ResourceKey::global("", "", "a")));
        assert!(is_nameable(&ResourceKey::global("Mesh", "", "a")));
    }

    #[test]
    fn the_end_of_a_prefix_lies_behind_it() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(&[b'a', 255]), Some(b"b".to_vec()));
        assert_eq!(after_prefix(&[255]), None);
    }
}
