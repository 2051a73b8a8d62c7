//! How far a revision has come, and in which state a zone is. Pure.

use std::collections::BTreeSet;

use mesh_model::api::{Refused, Rollout, ZoneConnection, ZoneRollout};
use mesh_proto::raft::ConnectedZone;

use crate::authorize::mesh_of;

/// Silence after which a zone is shown as stale.
pub const STALE_AFTER_MS: u64 = 30_000;

/// What is known of a zone beside its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownZone {
    /// Its name.
    pub name: String,
    /// Whether it may be connected.
    pub enabled: bool,
    /// Whether it has ever reported. One that was only declared, perhaps by a mistyped name, is waited for by nobody.
    pub joined: bool,
    /// Meshes placed in it.
    pub meshes: BTreeSet<String>,
}

/// Of several streams of one zone (on several nodes, while an old one dies), the one heard last.
#[must_use]
pub fn stream_of<'a>(zone: &str, streams: &'a [ConnectedZone]) -> Option<&'a ConnectedZone> {
    streams
        .iter()
        .filter(|stream| stream.zone == zone)
        .min_by_key(|stream| stream.silent_ms)
}

/// The state of a zone. Only what the zone has acknowledged makes it `online`; a living connection does not.
#[must_use]
pub fn zone_state(zone: &KnownZone, stream: Option<&ConnectedZone>, newest: u64) -> &'static str {
    match stream {
        _ if !zone.enabled => "disabled",
        None if !zone.joined => "unjoined",
        None => "offline",
        Some(stream) if stream.silent_ms > STALE_AFTER_MS => "stale",
        Some(stream) if stream.acknowledged_revision >= newest => "online",
        Some(_) => "behind",
    }
}

/// A zone's connection, counting the dataplanes of the meshes that `visible` says yes to.
pub fn connection(
    zone: &KnownZone,
    streams: &[ConnectedZone],
    newest: u64,
    visible: impl Fn(&str) -> bool,
) -> ZoneConnection {
    let stream = stream_of(&zone.name, streams);
    let meshes = stream
        .and_then(|s| s.status.as_ref())
        .map(|status| status.meshes.as_slice())
        .unwrap_or_default();
    let sum = |count: fn(&mesh_proto::zone::MeshStatus) -> u32| {
        meshes
            .iter()
            .filter(|m| visible(&m.mesh))
            .map(count)
            .fold(0u32, u32::saturating_add)
    };
    ZoneConnection {
        name: zone.name.clone(),
        state: zone_state(zone, stream, newest).to_owned(),
        version: stream.map(|s| s.version.clone()).unwrap_or_default(),
        acknowledged_revision: stream.map(|s| s.acknowledged_revision).unwrap_or_default(),
        silent_ms: stream.map(|s| s.silent_ms),
        dataplanes: sum(|m| m.dataplanes),
        current_dataplanes: sum(|m| m.current),
    }
}

/// How far `revision` has come for the meshes that `concerned` says yes to, in the zones that have joined and in which
/// one of them is placed.
pub fn rollout(
    revision: u64,
    newest: u64,
    zones: &[KnownZone],
    streams: &[ConnectedZone],
    concerned: impl Fn(&str) -> bool,
) -> Rollout {
    let zones: Vec<ZoneRollout> = zones
        .iter()
        .filter(|zone| zone_state(zone, stream_of(&zone.name, streams), newest) != "unjoined")
        .filter(|zone| zone.enabled && zone.meshes.iter().any(|mesh| concerned(mesh)))
        .map(|zone| zone_rollout(revision, newest, zone, streams, &concerned))
        .collect();
    Rollout {
        revision,
        complete: zones.iter().all(is_complete),
        zones,
    }
}

fn is_complete(zone: &ZoneRollout) -> bool {
    zone.applied
        && zone.current >= zone.dataplanes
        && zone.pending.is_empty()
        && zone.silent.is_empty()
        && zone.refused.is_empty()
        && zone.refused_resources.is_empty()
}

fn zone_rollout(
    revision: u64,
    newest: u64,
    zone: &KnownZone,
    streams: &[ConnectedZone],
    concerned: &impl Fn(&str) -> bool,
) -> ZoneRollout {
    let stream = stream_of(&zone.name, streams);
    let mut rollout = ZoneRollout {
        zone: zone.name.clone(),
        state: zone_state(zone, stream, newest).to_owned(),
        applied: false,
        dataplanes: 0,
        current: 0,
        pending: vec![],
        silent: vec![],
        refused: vec![],
        refused_resources: vec![],
    };
    let Some(status) = stream.and_then(|s| s.status.as_ref()) else {
        return rollout;
    };
    let expected = zone.meshes.iter().filter(|mesh| concerned(mesh));
    // A mesh that the zone does not mention has not arrived there yet.
    rollout.applied = expected.clone().all(|mesh| {
        status
            .meshes
            .iter()
            .any(|m| m.mesh == **mesh && m.revision >= revision)
    });
    for mesh in status.meshes.iter().filter(|m| concerned(&m.mesh)) {
        let named = |name: &String| format!("{}/{name}", mesh.mesh);
        rollout.dataplanes = rollout.dataplanes.saturating_add(mesh.dataplanes);
        rollout.current = rollout.current.saturating_add(mesh.current);
        rollout.pending.extend(mesh.pending.iter().map(named));
        rollout.silent.extend(mesh.silent.iter().map(named));
        rollout
            .refused
            .extend(mesh.refused.iter().map(|refusal| Refused {
                dataplane: named(&refusal.dataplane),
                document: refusal.document.clone(),
                reason: refusal.reason.clone(),
            }));
    }
    rollout.refused_resources = status
        .refused
        .iter()
        .filter_map(|refusal| {
            let key = refusal.key.as_ref()?;
            let mesh = mesh_of(key);
            (mesh.is_empty() || concerned(mesh)).then(|| format!("{key}: {}", refusal.reason))
        })
        .collect();
    rollout
}

#[cfg(test)]
mod tests {
    use mesh_proto::zone::{DataplaneRefusal, MeshStatus, ZoneStatus};

    use super::*;

    fn zone() -> KnownZone {
        KnownZone {
            name: "east".into(),
            enabled: true,
            joined: true,
            meshes: ["pay".to_owned(), "ana".to_owned()].into(),
        }
    }

    fn stream(acknowledged: u64, silent_ms: u64, meshes: Vec<MeshStatus>) -> ConnectedZone {
        ConnectedZone {
            zone: "east".into(),
            version: "0.1.0".into(),
            session: "s".into(),
            status: Some(ZoneStatus {
                revision: acknowledged,
                meshes,
                refused: vec![],
            }),
            silent_ms,
            acknowledged_revision: acknowledged,
            certificate_not_after: 0,
        }
    }

    fn mesh(name: &str, revision: u64, dataplanes: u32, current: u32) -> MeshStatus {
        MeshStatus {
            mesh: name.into(),
            revision,
            dataplanes,
            current,
            ..MeshStatus::default()
        }
    }

    #[test]
    fn a_zone_is_online_only_if_it_has_acknowledged_the_newest() {
        let zone = zone();
        for (stream, expected) in [
            (None, "offline"),
            (Some(stream(10, 0, vec![])), "online"),
            (Some(stream(9, 0, vec![])), "behind"),
            (Some(stream(10, 31_000, vec![])), "stale"),
        ] {
            assert_eq!(zone_state(&zone, stream.as_ref(), 10), expected);
        }
        let declared = KnownZone {
            joined: false,
            ..zone.clone()
        };
        assert_eq!(zone_state(&declared, None, 10), "unjoined");
        assert!(rollout(10, 10, &[declared], &[], |_| true).zones.is_empty());
        let disabled = KnownZone {
            enabled: false,
            ..zone
        };
        assert_eq!(
            zone_state(&disabled, Some(&stream(10, 0, vec![])), 10),
            "disabled"
        );
    }

    #[test]
    fn a_rollout_is_complete_when_every_concerned_dataplane_runs_it() {
        let run =
            |streams: &[ConnectedZone]| rollout(10, 10, &[zone()], streams, |mesh| mesh == "pay");
        assert!(!run(&[]).complete);
        assert!(run(&[stream(10, 0, vec![mesh("pay", 10, 2, 2)])]).complete);
        // The other mesh lags; nobody asked about it.
        assert!(
            run(&[stream(
                9,
                0,
                vec![mesh("pay", 10, 2, 2), mesh("ana", 9, 1, 0)]
            )])
            .complete
        );
        assert!(!run(&[stream(9, 0, vec![mesh("pay", 9, 2, 2)])]).complete);
        assert!(!run(&[stream(10, 0, vec![])]).complete);
        assert!(!run(&[stream(10, 0, vec![mesh("pay", 10, 2, 1)])]).complete);

        let mut refusing = mesh("pay", 10, 1, 1);
        refusing.refused = vec![DataplaneRefusal {
            dataplane: "web".into(),
            document: "proxy".into(),
            reason: "unknown feature".into(),
        }];
        let refused = run(&[stream(10, 0, vec![refusing])]);
        assert!(!refused.complete);
        assert_eq!(refused.zones[0].refused[0].dataplane, "pay/web");
    }

    #[test]
    fn of_two_streams_the_living_one_counts() {
        let streams = [stream(3, 40_000, vec![]), stream(10, 5, vec![])];
        assert_eq!(
            stream_of("east", &streams).unwrap().acknowledged_revision,
            10
        );
    }

    #[test]
    fn counts_hold_only_what_may_be_seen() {
        let streams = [stream(
            10,
            0,
            vec![mesh("pay", 10, 2, 1), mesh("ana", 10, 5, 5)],
        )];
        let seen = connection(&zone(), &streams, 10, |mesh| mesh == "pay");
        assert_eq!((seen.dataplanes, seen.current_dataplanes), (2, 1));
    }
}
