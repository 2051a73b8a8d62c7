//! Splitting the connections to a service port over backends, by weight.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_proto::proxy as wire;

use super::text;

/// Splits the connections to a service port over backends.
#[derive(Clone)]
pub struct TcpRoute {
    /// The policy entry it comes from.
    pub origin: Arc<str>,
    /// The weights have no common divisor but 1.
    backends: Vec<Backend>,
    /// Sum of the weights.
    total: u64,
    /// From one connection's place among the weights to the next one's. It has no divisor in common with `total`, so
    /// that `total` connections in a row meet each place once, and is about its golden section, so that those of one
    /// backend are spread among them.
    stride: u64,
    /// Counts connections. All workers share it: shares hold for the process.
    turn: Arc<AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Backend {
    service_document: Arc<str>,
    weight: u64,
}

/// Why a route is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InvalidRoute {
    #[error("backends[{0}]: service_document {1:?} does not name a service document")]
    Backend(usize, String),
}

impl TcpRoute {
    /// The document of the next connection's backend. `None`: no backend has a weight.
    #[must_use]
    pub fn next(&self) -> Option<&Arc<str>> {
        self.at(self.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// The document of connection number `turn`. Of any `total` in a row, each backend gets exactly its weight.
    fn at(&self, turn: u64) -> Option<&Arc<str>> {
        let turn = u128::from(turn.checked_rem(self.total)?);
        let place = turn * u128::from(self.stride) % u128::from(self.total);
        let mut end = 0_u128;
        let backend = self.backends.iter().find(|backend| {
            end += u128::from(backend.weight);
            place < end
        });
        backend.map(|backend| &backend.service_document)
    }
}

impl TryFrom<&wire::TcpRoute> for TcpRoute {
    type Error = InvalidRoute;

    fn try_from(wire: &wire::TcpRoute) -> Result<Self, InvalidRoute> {
        let common = wire
            .backends
            .iter()
            .fold(0, |common, backend| gcd(common, backend.weight.into()))
            .max(1);
        let backends = wire
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| {
                let name = &backend.service_document;
                if !name.starts_with("service/") {
                    return Err(InvalidRoute::Backend(index, name.clone()));
                }
                Ok(Backend {
                    service_document: name.as_str().into(),
                    weight: u64::from(backend.weight) / common,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let total = backends.iter().map(|backend| backend.weight).sum();
        Ok(Self {
            origin: text(&wire.origin).unwrap_or_else(|| "its TCP route".into()),
            backends,
            total,
            stride: stride(total),
            // Proxies that make few connections each must not all begin with the same backend.
            turn: Arc::new(AtomicU64::new(mesh_runtime::backoff::random())),
        })
    }
}

impl fmt::Debug for TcpRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpRoute")
            .field("origin", &self.origin)
            .field("backends", &self.backends)
            .finish_non_exhaustive()
    }
}

/// A number next to the golden section of `total` that has no divisor in common with it.
fn stride(total: u64) -> u64 {
    let golden = total / 1000 * 618 + total % 1000 * 618 / 1000;
    (golden.max(1)..)
        .find(|stride| gcd(*stride, total) <= 1)
        .unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn route(weights: &[u32]) -> TcpRoute {
        let backends = weights.iter().enumerate();
        let wire = wire::TcpRoute {
            backends: backends
                .map(|(index, weight)| wire::RouteBackend {
                    service_document: format!("service/store-{index}:80"),
                    weight: *weight,
                })
                .collect(),
            origin: "MeshTCPRoute/split to[0].rules[0]".into(),
        };
        TcpRoute::try_from(&wire).unwrap()
    }

    fn counts(route: &TcpRoute, first: u64, count: u64) -> HashMap<String, u64> {
        let mut counts = HashMap::new();
        for turn in first..first + count {
            let backend = route.at(turn).unwrap().to_string();
            *counts.entry(backend).or_default() += 1;
        }
        counts
    }

    #[test]
    fn connections_of_a_small_share_are_spread() {
        let route = route(&[80, 20]);
        let second: Vec<_> = (0..20)
            .filter(|turn| &**route.at(*turn).unwrap() == "service/store-1:80")
            .collect();
        let apart = second.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(apart.collect::<Vec<_>>(), [5; 3]);
    }

    #[test]
    fn without_a_weight_there_is_nowhere_to_go() {
        assert_eq!(route(&[]).next(), None);
        assert_eq!(route(&[0, 0]).next(), None);
    }

    #[test]
    fn what_is_no_service_document_is_refused() {
        let wire = wire::TcpRoute {
            backends: vec![wire::RouteBackend {
                service_document: "proxy".into(),
                weight: 1,
            }],
            origin: String::new(),
        };
        let error = TcpRoute::try_from(&wire).unwrap_err().to_string();
        assert!(
            error.contains("backends[0]") && error.contains("proxy"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn of_as_many_connections_as_weights_each_backend_gets_exactly_its_weight(
            weights in prop::collection::vec(0_u32..40, 1..5),
            first in 0..u64::MAX / 2,
        ) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            prop_assume!(total > 0);
            let counts = counts(&route(&weights), first, total);
            for (index, weight) in weights.iter().enumerate() {
                let name = format!("service/store-{index}:80");
                prop_assert_eq!(counts.get(&name).copied().unwrap_or(0), u64::from(*weight));
            }
        }

        #[test]
        fn no_weight_is_too_big(weights in prop::collection::vec(any::<u32>(), 1..5), turn in any::<u64>()) {
            let route = route(&weights);
            prop_assert_eq!(route.at(turn).is_some(), weights.iter().any(|weight| *weight > 0));
        }
    }
}
