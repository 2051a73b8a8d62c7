//! Endpoint sets: those that are touched are computed anew, and differences go to those who have them.

use std::collections::BTreeSet;

use mesh_model::{Dataplane, dataplane::InboundState};

use super::{Dirty, Mesh, Settled, endpoints_message};
use crate::endpoints::{self, Member, ServicePort, Set};

impl Mesh {
    /// A set that nobody used before is computed now.
    pub(super) fn dirty_set(&mut self, of: &ServicePort) {
        if !self.sets.contains_key(of) {
            let set = self.compute_set(of);
            self.sets.insert(of.clone(), set);
        }
    }

    pub(super) fn compute_set(&self, of: &ServicePort) -> Set {
        let mut set = Set::new();
        if let Some(members) = self
            .view
            .services
            .own
            .get(&of.service)
            .and_then(|service| service.members.get(&of.port))
        {
            set.extend(endpoints::own(&self.zone, members, |member| {
                self.is_ready(member)
            }));
        }
        for (zone, there) in self
            .view
            .services
            .destinations
            .get(&of.service)
            .into_iter()
            .flatten()
        {
            let offers = there.available && there.ports.iter().any(|port| port.port == of.port);
            if *zone == *self.zone.as_str() || !offers {
                continue;
            }
            if let Some(ingresses) = self.surroundings.ingresses.get(zone) {
                set.extend(endpoints::remote(zone, ingresses));
            }
        }
        set
    }

    /// Whether a workload of a service takes connections.
    #[must_use]
    pub fn is_ready(&self, member: &Member) -> bool {
        let Some(registration) = self.registry.get(&member.dataplane) else {
            return false;
        };
        let inbound = registration.resource.get::<Dataplane>().and_then(|d| {
            d.networking
                .inbound
                .iter()
                .find(|i| i.name_or_port() == member.inbound)
        });
        let Some(inbound) = inbound else { return false };
        let reported = registration.readiness.get(&member.inbound).copied();
        // Without a probe an application is ready until its proxy says otherwise; with one it is when the probe says so.
        let ready = reported.unwrap_or(inbound.service_probe.is_none());
        ready
            && registration.listening
            && !registration.leaving
            && inbound.stated() == InboundState::Ready
    }

    /// The sets that are other than before: old and new.
    pub(super) fn settle_sets(
        &mut self,
        dirty: &Dirty,
        settled: &mut Settled,
    ) -> Vec<(ServicePort, Set, Set)> {
        let touched = |service: &String| dirty.every_endpoint || dirty.endpoints.contains(service);
        let mut ports: BTreeSet<ServicePort> = self
            .sets
            .keys()
            .filter(|of| touched(&of.service))
            .cloned()
            .collect();
        let own = self
            .view
            .services
            .own
            .iter()
            .filter(|(name, _)| touched(name));
        for (name, service) in own {
            ports.extend(service.members.keys().map(|port| ServicePort {
                service: name.clone(),
                port: *port,
            }));
        }
        let used = self.users.iter().filter(|(name, _)| touched(name));
        ports.extend(used.flat_map(|(_, refs)| refs.keys().map(|reference| reference.of.clone())));
        let mut changed = Vec::new();
        for of in ports {
            let new = self.compute_set(&of);
            let old = self.sets.get(&of).cloned().unwrap_or_default();
            let exists = self
                .view
                .services
                .own
                .get(&of.service)
                .is_some_and(|s| s.members.contains_key(&of.port));
            let used = self
                .users
                .get(&of.service)
                .is_some_and(|refs| refs.keys().any(|r| r.of == of));
            if exists || used {
                self.sets.insert(of.clone(), new.clone());
            } else {
                self.sets.remove(&of);
            }
            if new != old {
                let here = self.zone.as_str();
                let key = endpoints::ingress_key(&self.name, &of);
                let (before, after) = (
                    endpoints::in_zone(&old, here),
                    endpoints::in_zone(&new, here),
                );
                settled
                    .ingress_sets
                    .extend(endpoints::delta(&key, &before, &after));
                settled.report_changed |= before.is_empty() != after.is_empty();
                changed.push((of, old, new));
            }
        }
        changed
    }

    /// Sends differences to those who have the sets: what goes, or (`coming`) what comes.
    pub(super) fn send_deltas(
        &self,
        changed: &[(ServicePort, Set, Set)],
        coming: bool,
        settled: &mut Settled,
    ) {
        for (of, old, new) in changed {
            let users = self.users.get(&of.service).into_iter().flatten();
            for (reference, names) in users.filter(|(reference, _)| reference.of == *of) {
                let (old, new) = match &reference.zone {
                    None => (old.clone(), new.clone()),
                    Some(zone) => (endpoints::in_zone(old, zone), endpoints::in_zone(new, zone)),
                };
                let Some(mut delta) = endpoints::delta(&reference.document_name(), &old, &new)
                else {
                    continue;
                };
                if coming {
                    delta.remove.clear();
                } else {
                    delta.put.clear();
                }
                if delta.put.is_empty() && delta.remove.is_empty() {
                    continue;
                }
                for name in names {
                    if self
                        .sessions
                        .get(name)
                        .is_some_and(|s| s.fed.contains(reference))
                    {
                        settled
                            .sends
                            .push((name.clone(), endpoints_message(delta.clone())));
                    }
                }
            }
        }
    }
}
