//! The policies of one mesh, indexed once: which of them concern a proxy, in which order, and what they come to.
//!
//! ```text
//! resources ──PolicySet::new──▶ entries of each kind in their order, found by what they refer to
//!                                 │ select(proxy)
//!                                 ▼
//!                              Selection ── outgoing(kind, destination) ─▶ Merged
//!                                        ── incoming(kind, inbound) ─────▶ rules by caller, each Merged
//!                                        ── proxy_wide(kind) ────────────▶ Merged
//! ```
//!
//! What is merged depends on the set of resources alone, never on the order they came in. The order of entries does not
//! depend on the proxy, so it is made once; and what one list of entries comes to is kept, as most proxies share it.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use mesh_proto::{proxy::Permissions, zone::ResourceKey};
use serde_json::Value;

use super::{
    Destination, Entry, MatchForm, Merged, Origin, Policy, PolicyShape, SpiffeIdMatch, ToKind,
    ToTarget, merge::merge,
};
use crate::{
    kind::{Descriptor, Kind},
    kinds::{Dataplane, MeshTrafficPermission, dataplane::Inbound},
    labels, permission,
    resource::{Meta, Resource},
    selection::{self, Reach, Strength, TargetRef, Tie},
};

/// The policies of one mesh.
#[derive(Debug, Default)]
pub struct PolicySet {
    kinds: BTreeMap<&'static str, KindSet>,
}

/// A proxy, as policies select it.
#[derive(Debug, Clone, Copy)]
pub struct Proxy<'a> {
    /// Its envelope.
    pub meta: &'a Meta,
    /// What it offers.
    pub inbounds: &'a [Inbound],
}

impl<'a> Proxy<'a> {
    /// A dataplane, or another proxy without inbounds.
    #[must_use]
    pub fn of(resource: &'a Resource) -> Self {
        let dataplane = resource.get::<Dataplane>();
        Self {
            meta: &resource.meta,
            inbounds: dataplane
                .map(|dataplane| dataplane.networking.inbound.as_slice())
                .unwrap_or_default(),
        }
    }
}

/// The policies of one kind, the weakest first, and their entries, the weakest first.
#[derive(Debug)]
struct KindSet {
    shape: PolicyShape,
    policies: Vec<Selector>,
    to: Vec<ToEntry>,
    /// Indexes of the entries of `to` for every destination.
    to_mesh: Vec<usize>,
    /// By what they name.
    to_named: BTreeMap<ToKind, BTreeMap<String, Vec<usize>>>,
    /// All others: by labels without a name.
    to_labelled: Vec<usize>,
    rules: Vec<RuleEntry>,
    proxy: Vec<ProxyEntry>,
    /// By policy, where this kind is `MeshTrafficPermission`.
    permissions: Vec<Permissions>,
    built_in: BuiltIn,
    merged: Mutex<MergedLists>,
}

/// What lists of entries, by their indexes, come to.
type MergedLists = BTreeMap<(Level, Vec<usize>), Arc<Merged>>;

/// Which of the three a list of entries is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    To,
    Rules,
    Proxy,
}

#[derive(Debug)]
struct BuiltIn {
    to: Option<Value>,
    rules: Option<Value>,
    proxy: Option<Value>,
}

/// Which proxies a policy selects.
#[derive(Debug)]
struct Selector {
    key: ResourceKey,
    target: Option<TargetRef>,
    reach: Reach,
}

#[derive(Debug)]
struct ToEntry {
    policy: usize,
    origin: Origin,
    target: ToTarget,
    default: Value,
}

#[derive(Debug)]
struct RuleEntry {
    policy: usize,
    origin: Origin,
    /// None: everyone.
    matches: Vec<SpiffeIdMatch>,
    default: Value,
}

#[derive(Debug)]
struct ProxyEntry {
    policy: usize,
    origin: Origin,
    default: Value,
}

impl PolicySet {
    /// The policies of `mesh` among `resources`. All else is ignored.
    #[must_use]
    pub fn new<'a>(mesh: &str, resources: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut policies: BTreeMap<&'static str, Vec<&Resource>> = BTreeMap::new();
        for resource in resources {
            if resource.meta.mesh == mesh && resource.policy().is_some() {
                policies
                    .entry(resource.kind().name)
                    .or_default()
                    .push(resource);
            }
        }
        let kinds = policies.into_iter().filter_map(|(name, policies)| {
            let kind = policies.first()?.kind();
            Some((name, KindSet::new(kind, policies)?))
        });
        Self {
            kinds: kinds.collect(),
        }
    }

    /// What concerns `proxy`, which must be of this mesh.
    #[must_use]
    pub fn select(&self, proxy: Proxy<'_>) -> Selection<'_> {
        let kinds = self.kinds.iter();
        Selection {
            kinds: kinds
                .map(|(name, kind)| (*name, Selected::new(kind, proxy)))
                .collect(),
        }
    }

    /// The policies of `kind`, the weakest first.
    pub fn policies(&self, kind: &Descriptor) -> impl Iterator<Item = &ResourceKey> {
        let kind = self.kinds.get(kind.name);
        kind.into_iter()
            .flat_map(|kind| kind.policies.iter().map(|policy| &policy.key))
    }

    /// The entries of `to` of any kind that mean `destination`, its service or the whole mesh; of each kind the weakest
    /// first.
    #[must_use]
    pub fn concerning(&self, destination: &Destination) -> Vec<&Origin> {
        let mut found = Vec::new();
        for kind in self.kinds.values() {
            let all = (0..kind.to.len()).map(|index| &kind.to[index]);
            found.extend(
                all.filter(|entry| destination.is_meant_by(&entry.target))
                    .map(|entry| &entry.origin),
            );
        }
        found
    }

    /// The entries of `kind` in their order, the weakest first: of `to`, then of `rules`, then for the proxy.
    #[must_use]
    pub fn order(&self, kind: &Descriptor) -> Vec<&Origin> {
        let Some(kind) = self.kinds.get(kind.name) else {
            return Vec::new();
        };
        let to = kind.to.iter().map(|entry| &entry.origin);
        let rules = kind.rules.iter().map(|entry| &entry.origin);
        let proxy = kind.proxy.iter().map(|entry| &entry.origin);
        to.chain(rules).chain(proxy).collect()
    }
}

impl KindSet {
    fn new(kind: &'static Descriptor, mut resources: Vec<&Resource>) -> Option<Self> {
        let shape = *kind.policy()?;
        let built_in = kind.built_in();
        resources.sort_by_cached_key(|policy| (Strength::of(policy), Tie::of(&policy.meta)));
        let mut set = Self {
            shape,
            policies: Vec::new(),
            to: Vec::new(),
            to_mesh: Vec::new(),
            to_named: BTreeMap::new(),
            to_labelled: Vec::new(),
            rules: Vec::new(),
            proxy: Vec::new(),
            permissions: Vec::new(),
            built_in: BuiltIn {
                to: serde_json::from_str(built_in.to).ok(),
                rules: serde_json::from_str(built_in.rules).ok(),
                proxy: serde_json::from_str(built_in.proxy).ok(),
            },
            merged: Mutex::default(),
        };
        let mut strengths = Vec::new();
        for resource in resources {
            let Some(policy) = resource.policy() else {
                continue;
            };
            strengths.push(Strength::of(resource));
            set.add(resource, policy);
        }
        // Policies are in their order already, and so are the entries of each: a stable sort by what comes between strength
        // and tie-break does the rest.
        set.to.sort_by_key(|entry| {
            let target = &entry.target;
            (
                strengths[entry.policy],
                target.kind,
                target.section_name.is_some(),
            )
        });
        for (index, entry) in set.to.iter().enumerate() {
            let target = &entry.target;
            let name = target.name.as_ref();
            let name = name.or_else(|| target.labels.get(labels::DISPLAY_NAME));
            match (target.kind, name) {
                (ToKind::Mesh, _) => set.to_mesh.push(index),
                (kind, Some(name)) => {
                    let of_kind = set.to_named.entry(kind).or_default();
                    of_kind.entry(name.clone()).or_default().push(index);
                }
                (_, None) => set.to_labelled.push(index),
            }
        }
        Some(set)
    }

    fn add(&mut self, resource: &Resource, policy: &dyn Policy) {
        let index = self.policies.len();
        let key = resource.key();
        let origin = |entry| Origin::Policy {
            key: key.clone(),
            entry,
        };
        self.to.extend(
            policy
                .to()
                .into_iter()
                .enumerate()
                .map(|(at, part)| ToEntry {
                    policy: index,
                    origin: origin(Entry::To(at)),
                    target: part.target.clone(),
                    default: part.default,
                }),
        );
        let rules = policy.rules().into_iter().enumerate();
        self.rules.extend(rules.map(|(at, part)| {
            RuleEntry {
                policy: index,
                origin: origin(Entry::Rules(at)),
                matches: part
                    .matches
                    .iter()
                    .map(|entry| entry.spiffe_id.clone())
                    .collect(),
                default: part.default,
            }
        }));
        self.proxy.extend(policy.proxy().map(|default| ProxyEntry {
            policy: index,
            origin: origin(Entry::Proxy),
            default,
        }));
        let permission = resource.get::<MeshTrafficPermission>();
        self.permissions
            .extend(permission.map(|permission| permission::of_policy(&resource.meta, permission)));
        self.policies.push(Selector {
            target: policy.target_ref().cloned(),
            reach: Reach::of(resource),
            key,
        });
    }

    /// What the entries with these indexes come to, in this order.
    fn merged(&self, level: Level, entries: Vec<usize>) -> Arc<Merged> {
        let key = (level, entries);
        let known = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(merged) = known.get(&key) {
            return merged.clone();
        }
        drop(known);
        let (_, entries) = &key;
        let built_in = match level {
            Level::To => &self.built_in.to,
            Level::Rules => &self.built_in.rules,
            Level::Proxy => &self.built_in.proxy,
        };
        let built_in = built_in.iter().map(|value| (Origin::BuiltIn, value));
        let entries = entries.iter().map(|index| match level {
            Level::To => (self.to[*index].origin.clone(), &self.to[*index].default),
            Level::Rules => (
                self.rules[*index].origin.clone(),
                &self.rules[*index].default,
            ),
            Level::Proxy => (
                self.proxy[*index].origin.clone(),
                &self.proxy[*index].default,
            ),
        });
        let merged = Arc::new(merge(&self.shape, built_in.chain(entries)));
        let mut known = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key, merged.clone());
        merged
    }
}

/// What concerns one proxy.
#[derive(Debug)]
pub struct Selection<'s> {
    kinds: BTreeMap<&'static str, Selected<'s>>,
}

#[derive(Debug)]
struct Selected<'s> {
    set: &'s KindSet,
    /// By policy: it selects the proxy, if perhaps only an inbound.
    some: Vec<bool>,
    /// By policy: the proxy has what it selects.
    whole: Vec<bool>,
    to_mesh: Vec<usize>,
    /// What those come to alone, as it is for most destinations.
    to_all: OnceLock<Arc<Merged>>,
}

impl<'s> Selected<'s> {
    fn new(set: &'s KindSet, proxy: Proxy<'_>) -> Self {
        let some = |policy: &Selector| {
            policy.reach.contains(proxy.meta)
                && selection::selects_dataplane(policy.target.as_ref(), proxy.meta)
        };
        let some: Vec<bool> = set.policies.iter().map(some).collect();
        let whole = |(policy, some): (&Selector, &bool)| {
            *some
                && (policy.section().is_none()
                    || proxy
                        .inbounds
                        .iter()
                        .any(|inbound| policy.concerns(inbound)))
        };
        let whole: Vec<bool> = set.policies.iter().zip(&some).map(whole).collect();
        let to_mesh = set.to_mesh.iter().copied();
        Self {
            to_mesh: to_mesh
                .filter(|index| whole[set.to[*index].policy])
                .collect(),
            to_all: OnceLock::new(),
            set,
            some,
            whole,
        }
    }
}

impl Selector {
    fn section(&self) -> Option<&str> {
        self.target.as_ref()?.section_name.as_deref()
    }

    fn concerns(&self, inbound: &Inbound) -> bool {
        self.section()
            .is_none_or(|section| selection::is_section(inbound, section))
    }
}

impl Selection<'_> {
    /// The policies of `kind` that concern the proxy, or an inbound of it; the weakest first.
    pub fn policies(&self, kind: &Descriptor) -> impl Iterator<Item = &ResourceKey> {
        let selected = self.kinds.get(kind.name).into_iter();
        selected.flat_map(|selected| {
            let policies = selected.set.policies.iter().zip(&selected.whole);
            policies
                .filter(|(_, whole)| **whole)
                .map(|(policy, _)| &policy.key)
        })
    }

    /// What policies of `kind` come to for traffic to `destination`: what they say of its port, else of the service, else of
    /// the mesh, else what is built in.
    #[must_use]
    pub fn outgoing(&self, kind: &Descriptor, destination: &Destination) -> Arc<Merged> {
        let Some(selected) = self.kinds.get(kind.name) else {
            return built_in(kind, Level::To);
        };
        let set = selected.set;
        let named = destination.names().filter_map(|(kind, name)| {
            // Sections and further labels are looked at below.
            set.to_named.get(&kind)?.get(name)
        });
        let meant = named.flatten().chain(&set.to_labelled).copied();
        let mut entries: Vec<usize> = meant
            .filter(|index| {
                let entry = &set.to[*index];
                selected.whole[entry.policy] && destination.is_meant_by(&entry.target)
            })
            .collect();
        if entries.is_empty() {
            let all = || set.merged(Level::To, selected.to_mesh.clone());
            return selected.to_all.get_or_init(all).clone();
        }
        entries.extend(&selected.to_mesh);
        entries.sort_unstable();
        set.merged(Level::To, entries)
    }

    /// What policies of `kind` come to for traffic that comes in at `inbound`, by caller.
    #[must_use]
    pub fn incoming(&self, kind: &Descriptor, inbound: &Inbound) -> Incoming {
        let Some(selected) = self.kinds.get(kind.name) else {
            return Incoming {
                rules: Vec::new(),
                everyone: built_in(kind, Level::Rules),
            };
        };
        let set = selected.set;
        let mut entries = Vec::new();
        for (index, rule) in set.rules.iter().enumerate() {
            if selected.some[rule.policy] && set.policies[rule.policy].concerns(inbound) {
                entries.push((index, rule));
            }
        }
        let named = entries.iter().flat_map(|(_, rule)| &rule.matches);
        let mut callers: Vec<&SpiffeIdMatch> = named.collect();
        callers.sort_by_key(|callers| Reverse(specificity(callers)));
        callers.dedup();
        let merged = |callers: Option<&SpiffeIdMatch>| {
            // The weakest first: rules for everyone, then by how specific their match is.
            let mut relevant: Vec<_> = entries
                .iter()
                .filter_map(|(index, rule)| Some((rule.relevance(callers)?, *index)))
                .collect();
            relevant.sort_unstable();
            let relevant = relevant.into_iter().map(|(_, index)| index).collect();
            set.merged(Level::Rules, relevant)
        };
        let rules = callers.into_iter().map(|callers| IncomingRule {
            callers: callers.clone(),
            merged: merged(Some(callers)),
        });
        Incoming {
            rules: rules.collect(),
            everyone: merged(None),
        }
    }

    /// Who may call `inbound`, as [`permission::effective`] says.
    #[must_use]
    pub fn permissions(&self, inbound: &Inbound) -> Permissions {
        let Some(selected) = self.kinds.get(MeshTrafficPermission::DESCRIPTOR.name) else {
            return Permissions::default();
        };
        let set = selected.set;
        let strongest_first = set.policies.iter().zip(&set.permissions).enumerate().rev();
        let concerned = strongest_first
            .filter(|(index, (policy, _))| selected.some[*index] && policy.concerns(inbound));
        permission::together(concerned.map(|(_, (_, permissions))| permissions.clone()))
    }

    /// What policies of `kind` come to for the proxy as a whole.
    #[must_use]
    pub fn proxy_wide(&self, kind: &Descriptor) -> Arc<Merged> {
        let Some(selected) = self.kinds.get(kind.name) else {
            return built_in(kind, Level::Proxy);
        };
        let entries = selected.set.proxy.iter().enumerate();
        let entries = entries.filter(|(_, entry)| selected.whole[entry.policy]);
        let entries = entries.map(|(index, _)| index).collect();
        selected.set.merged(Level::Proxy, entries)
    }
}

/// What holds where there is no policy of `kind`.
fn built_in(kind: &Descriptor, level: Level) -> Arc<Merged> {
    let built_in = kind.built_in();
    let text = match level {
        Level::To => built_in.to,
        Level::Rules => built_in.rules,
        Level::Proxy => built_in.proxy,
    };
    let value: Option<Value> = serde_json::from_str(text).ok();
    let entries = value.iter().map(|value| (Origin::BuiltIn, value));
    match kind.policy() {
        Some(shape) => Arc::new(merge(shape, entries)),
        None => Arc::new(Merged::default()),
    }
}

/// What concerns an inbound, by caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// The most specific first. The first that matches a caller is all that concerns it: what less specific rules say is
    /// merged into it.
    pub rules: Vec<IncomingRule>,
    /// For callers that no rule matches.
    pub everyone: Arc<Merged>,
}

/// What concerns some callers.
#[derive(Debug, Clone, PartialEq)]
pub struct IncomingRule {
    /// Who.
    pub callers: SpiffeIdMatch,
    /// What.
    pub merged: Arc<Merged>,
}

impl Incoming {
    /// What concerns the caller with this SPIFFE ID; `None`: one without.
    #[must_use]
    pub fn of_caller(&self, spiffe_id: Option<&str>) -> &Merged {
        let concerns = |rule: &&IncomingRule| spiffe_id.is_some_and(|id| rule.callers.matches(id));
        let rule = self.rules.iter().find(concerns);
        rule.map_or(&self.everyone, |rule| &rule.merged)
    }
}

/// How specific a match is: exact, then the longer prefix. Different for different matches.
fn specificity(callers: &SpiffeIdMatch) -> (bool, usize, Reverse<&str>) {
    let value = callers.value.as_str();
    (
        callers.form == MatchForm::Exact,
        value.len(),
        Reverse(value),
    )
}

impl RuleEntry {
    /// How specific it is about `callers`, where it concerns all of them.
    fn relevance(&self, callers: Option<&SpiffeIdMatch>) -> Option<Option<(bool, usize)>> {
        if self.matches.is_empty() {
            return Some(None);
        }
        let callers = callers?;
        let covering = self.matches.iter().filter(|outer| match callers.form {
            MatchForm::Exact => outer.matches(&callers.value),
            MatchForm::Prefix => outer.form == MatchForm::Prefix && outer.matches(&callers.value),
        });
        covering
            .map(|outer| (outer.form == MatchForm::Exact, outer.value.len()))
            .max()
            .map(Some)
    }
}
