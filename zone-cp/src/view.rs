//! Everything the compiler knows of one mesh.
//!
//! Made from the mesh's own resources and nothing else, so that no code that handles a mesh can see another
//! (invariant 8).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{MeshIdentity, MeshTrafficPermission, MeshTrust, Resource, api::Key, identity};
use mesh_proto::{
    names::{MeshName, ZoneName},
    spiffe::TrustDomain,
};
use serde_json::{Value, json};

use crate::services::{self, Services, Sources};

/// One mesh, as it is seen from one zone.
#[derive(Debug, Clone)]
pub struct MeshView {
    /// The mesh.
    pub mesh: MeshName,
    /// This zone.
    pub zone: ZoneName,
    /// `MeshIdentity`s.
    pub identities: Vec<Arc<Resource>>,
    /// `MeshTrafficPermission`s, and a stand-in that denies for each one that cannot be read.
    pub permissions: Vec<Arc<Resource>>,
    /// SPIFFE IDs of this zone's dataplanes, by name.
    pub spiffe_ids: BTreeMap<String, String>,
    /// The services.
    pub services: Services,
    /// Anchors (DER) by trust domain.
    pub trust: BTreeMap<String, BTreeSet<Vec<u8>>>,
}

/// What a [`MeshView`] is made from.
#[derive(Debug, Clone, Copy)]
pub struct MeshSources<'a> {
    /// The mesh.
    pub mesh: &'a MeshName,
    /// This zone.
    pub zone: &'a ZoneName,
    /// The mesh's synchronised resources.
    pub resources: &'a [Arc<Resource>],
    /// Those that cannot be read: key and text.
    pub unreadable: &'a [(Key, Arc<[u8]>)],
    /// Dataplanes of this zone, by name.
    pub dataplanes: &'a BTreeMap<String, Arc<Resource>>,
    /// Zones that administrators have closed.
    pub closed_zones: &'a BTreeSet<String>,
    /// Anchors (DER) of this zone's own CAs of the mesh.
    pub own_anchors: &'a [Vec<u8>],
}

impl MeshView {
    /// The view that `sources` give. The order in which resources come does not matter.
    #[must_use]
    pub fn new(sources: MeshSources<'_>) -> Self {
        let identities = of_kind::<MeshIdentity>(sources);
        let spiffe_ids = spiffe_ids(&identities, sources);
        Self {
            mesh: sources.mesh.clone(),
            zone: sources.zone.clone(),
            permissions: permissions(sources),
            services: services::services(Sources {
                mesh: sources.mesh,
                zone: sources.zone,
                resources: sources.resources,
                dataplanes: sources.dataplanes,
                spiffe_ids: &spiffe_ids,
                closed_zones: sources.closed_zones,
            }),
            trust: trust(&identities, sources),
            identities,
            spiffe_ids,
        }
    }

    /// This zone's own trust domains in the mesh: the `MeshIdentity` that each comes from first, and the domain.
    #[must_use]
    pub fn own_domains(&self) -> Vec<(Arc<Resource>, TrustDomain)> {
        let mut domains: Vec<(Arc<Resource>, TrustDomain)> = Vec::new();
        for resource in &self.identities {
            if let Ok(domain) = identity::trust_domain(resource, &self.zone)
                && !domains.iter().any(|(_, known)| *known == domain)
            {
                domains.push((resource.clone(), domain));
            }
        }
        domains
    }
}

/// SPIFFE IDs of the dataplanes, by name. One that no identity selects has none, and nobody can call it.
#[must_use]
pub fn spiffe_ids(
    identities: &[Arc<Resource>],
    sources: MeshSources<'_>,
) -> BTreeMap<String, String> {
    let identities: Vec<&Resource> = identities.iter().map(Arc::as_ref).collect();
    sources
        .dataplanes
        .iter()
        .filter_map(|(name, dataplane)| {
            let id = identity::spiffe_id(&identities, dataplane, sources.zone).ok()?;
            Some((name.clone(), id.to_string()))
        })
        .collect()
}

/// The resources of kind `K` of this very mesh, sorted.
pub(crate) fn of_kind<K: mesh_model::Kind>(sources: MeshSources<'_>) -> Vec<Arc<Resource>> {
    let mut found: Vec<_> = sources
        .resources
        .iter()
        .filter(|r| r.meta.mesh == sources.mesh.as_str() && r.get::<K>().is_some())
        .cloned()
        .collect();
    found.sort_by(|a, b| a.meta.cmp(&b.meta));
    found
}

/// The permissions. What cannot be read must not widen what is allowed (invariant 6): in its place stands a permission
/// that denies everybody on the proxies it selects, as far as that much of it can be read, else on all.
pub(crate) fn permissions(sources: MeshSources<'_>) -> Vec<Arc<Resource>> {
    let mut permissions = of_kind::<MeshTrafficPermission>(sources);
    for (key, text) in sources.unreadable {
        if key.kind == "MeshTrafficPermission" && key.mesh == sources.mesh.as_str() {
            permissions.extend(stand_in(key, text).map(Arc::new));
        }
    }
    permissions.sort_by(|a, b| a.meta.cmp(&b.meta));
    permissions
}

fn stand_in(key: &Key, text: &[u8]) -> Option<Resource> {
    let written: Value = serde_json::from_slice(text).unwrap_or_default();
    let deny = |target: Option<&Value>| {
        let mut spec = json!({
            "rules": [{"default": {"deny": [{"spiffeID": {"type": "Prefix", "value": "spiffe://"}}]}}],
        });
        if let Some(target) = target {
            spec["targetRef"] = target.clone();
        }
        let whole = json!({
            "type": key.kind, "mesh": key.mesh, "name": format!("{}.unreadable", key.name), "spec": spec,
        });
        Resource::from_json(whole.to_string().as_bytes()).ok()
    };
    let target = written.pointer("/spec/targetRef");
    target
        .and_then(|target| deny(Some(target)))
        .or_else(|| deny(None))
}

/// Anchors by trust domain: this zone's own, those that administrators wrote, and those of other zones for the domains
/// that are theirs. A zone's word counts for no domain but its own (invariant 8).
pub(crate) fn trust(
    identities: &[Arc<Resource>],
    sources: MeshSources<'_>,
) -> BTreeMap<String, BTreeSet<Vec<u8>>> {
    let mut trust: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for domain in identities
        .iter()
        .filter_map(|r| identity::trust_domain(r, sources.zone).ok())
    {
        trust
            .entry(domain.to_string())
            .or_default()
            .extend(sources.own_anchors.iter().cloned());
    }
    for resource in of_kind::<MeshTrust>(sources) {
        let Some(content) = resource.get::<MeshTrust>() else {
            continue;
        };
        if may_speak_for(
            &resource.meta.zone,
            &content.trust_domain,
            identities,
            sources,
        ) {
            trust
                .entry(content.trust_domain.clone())
                .or_default()
                .extend(content.anchors());
        }
    }
    trust.retain(|_, anchors| !anchors.is_empty());
    trust
}

fn may_speak_for(
    owner: &str,
    domain: &str,
    identities: &[Arc<Resource>],
    sources: MeshSources<'_>,
) -> bool {
    if owner.is_empty() {
        return true; // Administrators.
    }
    if owner == sources.zone.as_str() || sources.closed_zones.contains(owner) {
        return false; // Our own come from disk; a closed zone's no longer count.
    }
    let Ok(owner) = owner.parse::<ZoneName>() else {
        return false;
    };
    identities
        .iter()
        .filter_map(|r| identity::trust_domain(r, &owner).ok())
        .chain([TrustDomain::of_mesh_in_zone(sources.mesh, &owner)])
        .any(|theirs| theirs.as_str() == domain)
}
