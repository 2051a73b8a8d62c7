//! Everything the compiler knows of one mesh.
//!
//! Made from the mesh's own resources and nothing else, so that no code that handles a mesh can see another
//! (invariant 8).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_model::{
    Kind as _, MeshIdentity, MeshTrafficPermission, MeshTrust, Meta, Resource, api::Key, identity,
    policy::PolicySet,
};
use mesh_proto::{
    names::{MeshName, ZoneName},
    spiffe::TrustDomain,
    zone::ResourceKey,
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
    /// The policies, and a stand-in that denies for each permission that cannot be read.
    pub policies: Policies,
    /// SPIFFE IDs of this zone's dataplanes, by name.
    pub spiffe_ids: BTreeMap<String, String>,
    /// The services.
    pub services: Services,
    /// Anchors (DER) by trust domain.
    pub trust: BTreeMap<String, BTreeSet<Vec<u8>>>,
}

/// The policies of one mesh.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Sorted by kind, zone and name.
    pub resources: Vec<Arc<Resource>>,
    /// The same, indexed for evaluation.
    pub set: Arc<PolicySet>,
}

impl Policies {
    /// These policies, sorted as [`policies`] gives them.
    #[must_use]
    pub fn new(mesh: &MeshName, resources: Vec<Arc<Resource>>) -> Self {
        let set = PolicySet::new(mesh.as_str(), resources.iter().map(Arc::as_ref));
        Self {
            set: Arc::new(set),
            resources,
        }
    }

    /// The policy of this key.
    #[must_use]
    pub fn get(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        let of = |resource: &Arc<Resource>| {
            let meta = &resource.meta;
            (resource.kind().name, meta.zone.as_str(), meta.name.as_str()).cmp(&(
                key.kind.as_str(),
                key.zone.as_str(),
                key.name.as_str(),
            ))
        };
        let index = self.resources.binary_search_by(of).ok()?;
        self.resources.get(index)
    }

    /// What is other in `new`: each policy that came, went, or changed (as it was and as it is).
    #[must_use]
    pub fn changes<'a>(&'a self, new: &'a [Arc<Resource>]) -> Vec<&'a Arc<Resource>> {
        fn by_key(all: &[Arc<Resource>]) -> BTreeMap<(&str, &Meta), &Arc<Resource>> {
            let keyed = all.iter().map(|r| ((r.kind().name, &r.meta), r));
            keyed.collect()
        }
        let (old, new) = (by_key(&self.resources), by_key(new));
        let differs = |known: Option<&&Arc<Resource>>, resource: &Arc<Resource>| {
            known.is_none_or(|known| !Arc::ptr_eq(known, resource) && *known != resource)
        };
        let gone = old.iter().filter(|(key, r)| differs(new.get(*key), r));
        let came = new.iter().filter(|(key, r)| differs(old.get(*key), r));
        gone.chain(came).map(|(_, resource)| *resource).collect()
    }
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
            policies: Policies::new(sources.mesh, policies(sources)),
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

/// The policies. What cannot be read must not widen what is allowed (invariant 6): in place of a permission stands one
/// that denies everybody on the proxies it selects, as far as that much of it can be read, else on all.
pub(crate) fn policies(sources: MeshSources<'_>) -> Vec<Arc<Resource>> {
    let mut found: Vec<_> = sources
        .resources
        .iter()
        .filter(|r| r.meta.mesh == sources.mesh.as_str() && r.policy().is_some())
        .cloned()
        .collect();
    for (key, text) in sources.unreadable {
        if key.kind == MeshTrafficPermission::DESCRIPTOR.name && key.mesh == sources.mesh.as_str() {
            found.extend(stand_in(key, text).map(Arc::new));
        }
    }
    found.sort_by(|a, b| (a.kind().name, &a.meta).cmp(&(b.kind().name, &b.meta)));
    found
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
