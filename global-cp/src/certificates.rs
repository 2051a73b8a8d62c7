//! Which certificates this installation lives by, and when each ends. Pure.

use mesh_model::{MeshTrust, Resource};
use mesh_proto::raft::ConnectedZone;
use mesh_runtime::pki;
use time::{Duration, OffsetDateTime};

use crate::{ca, facts, state::image::Image};

/// A certificate, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifetime {
    /// Whose, as [`mesh_model::api::Expiry`] says it.
    pub subject: String,
    /// The mesh it belongs to; "" : the installation.
    pub mesh: String,
    /// Unix seconds.
    pub ends: i64,
    /// With less than this left somebody should look at it: it is renewed long before. Seconds.
    pub worry: i64,
}

/// What the state holds: the installation CA, and the anchors of each mesh.
#[must_use]
pub fn stored(image: &Image) -> Vec<Lifetime> {
    let mut found = Vec::new();
    if let Ok(ca) = facts::stored_ca(image) {
        // It is renewed by hand, which takes time.
        let of_pem = of_pem(&ca.bundle, 10);
        found.extend(of_pem.map(|(ends, worry)| Lifetime {
            subject: "installation CA".to_owned(),
            mesh: String::new(),
            ends,
            worry,
        }));
    }
    for stored in image.list("MeshTrust", None, None, usize::MAX) {
        let Ok(resource) = Resource::from_json(&stored.json) else {
            continue;
        };
        let Some(trust) = resource.get::<MeshTrust>() else {
            continue;
        };
        let key = &stored.key;
        let subject = match key.zone.as_str() {
            "" => format!("CA of {} by MeshTrust {}", key.mesh, key.name),
            zone => format!("CA of {} in {zone}", key.mesh),
        };
        for bundle in &trust.ca_bundles {
            let of_pem = of_pem(&bundle.pem.value, 3);
            found.extend(of_pem.map(|(ends, worry)| Lifetime {
                subject: subject.clone(),
                mesh: key.mesh.clone(),
                ends,
                worry,
            }));
        }
    }
    found
}

/// When each certificate ends, and `1 / part` of its life.
fn of_pem(pem: &str, part: i64) -> impl Iterator<Item = (i64, i64)> {
    let certificates = pki::certificates_from_pem(pem).unwrap_or_default();
    certificates.into_iter().filter_map(move |certificate| {
        let (begins, ends) = pki::validity(&certificate).ok()?;
        Some((
            ends.unix_timestamp(),
            (ends - begins).whole_seconds() / part,
        ))
    })
}

/// Those of global nodes (id, Unix seconds of the end; 0: not known) and of connected zones.
pub fn of_control_planes<'a>(
    nodes: &'a [(u64, u64)],
    zones: impl IntoIterator<Item = &'a ConnectedZone> + 'a,
) -> impl Iterator<Item = Lifetime> + 'a {
    let lifetime = |subject: String, ends: u64, life: Duration| Lifetime {
        subject,
        mesh: String::new(),
        ends: i64::try_from(ends).unwrap_or(i64::MAX),
        worry: life.whole_seconds() / 3,
    };
    let nodes = nodes
        .iter()
        .filter(|(_, ends)| *ends > 0)
        .map(move |(id, ends)| lifetime(format!("global node {id}"), *ends, ca::NODE_LIFETIME));
    let zones = zones
        .into_iter()
        .filter(|zone| zone.certificate_not_after > 0)
        .map(move |zone| {
            let subject = format!("zone {}", zone.zone);
            lifetime(subject, zone.certificate_not_after, ca::ZONE_LIFETIME)
        });
    nodes.chain(zones)
}

/// When a certificate ends, in Unix seconds; 0 where it is not readable.
#[must_use]
pub fn end_of(certificate: &rustls_pki_types::CertificateDer<'_>) -> u64 {
    pki::validity(certificate)
        .ok()
        .and_then(|(_, ends): (OffsetDateTime, OffsetDateTime)| {
            u64::try_from(ends.unix_timestamp()).ok()
        })
        .unwrap_or_default()
}
