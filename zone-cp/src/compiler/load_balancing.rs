//! `MeshLoadBalancingStrategy`s: how traffic is spread over endpoints.

use mesh_model::{
    Kind as _, MeshLoadBalancingStrategy,
    mesh_load_balancing_strategy::{self as said, LoadBalancerForm},
    policy::{Destination, Selection},
};
use mesh_proto::proxy::{LeastRequest, LoadBalancing, RoundRobin, load_balancing::Policy};

/// Over which time an endpoint of a service that takes requests comes to its whole share. No policy says anything of it.
const SLOW_START_MS: u32 = 10_000;
/// Of how many endpoints the one with the fewest requests is taken, where no policy says.
const CHOICES: u32 = 2;

/// How traffic to a service is spread; `http`: it is requests. Nothing, where that is what proxies do by themselves.
pub(super) fn compile(
    policies: &Selection<'_>,
    destination: &Destination,
    http: bool,
) -> Option<LoadBalancing> {
    let merged = policies.outgoing(&MeshLoadBalancingStrategy::DESCRIPTOR, destination);
    let said: said::LoadBalancing = merged.get().unwrap_or_default();
    let policy = said.load_balancer.and_then(|balancer| match balancer.form {
        LoadBalancerForm::RoundRobin => Some(Policy::RoundRobin(RoundRobin {})),
        LoadBalancerForm::LeastRequest => {
            let settings = balancer.least_request.unwrap_or_default();
            Some(Policy::LeastRequest(LeastRequest {
                choices: settings.choice_count.unwrap_or(CHOICES),
            }))
        }
        // Not yet; whoever applies one is told.
        LoadBalancerForm::RingHash
        | LoadBalancerForm::Random
        | LoadBalancerForm::Maglev
        | LoadBalancerForm::PeakEwma => None,
    });
    let origin = match &policy {
        Some(_) => merged.origin("loadBalancer.type").map(ToString::to_string),
        None => None,
    };
    if policy.is_none() && !http {
        return None;
    }
    let least_request = Policy::LeastRequest(LeastRequest { choices: CHOICES });
    Some(LoadBalancing {
        policy: Some(policy.unwrap_or(least_request)),
        slow_start_ms: if http { SLOW_START_MS } else { 0 },
        origin: origin.unwrap_or_default(),
    })
}
