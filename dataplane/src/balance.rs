//! Which endpoint a connection or request goes to: least request of some random ones (P2C) or one after the other, own zone
//! first.
//!
//! Endpoints come in four tiers: of the own zone; of another zone; of the own zone, failed lately; of another zone,
//! failed lately. A tier is used only where the ones before have nobody left that has not been tried.

use std::time::{Duration, Instant};

use mesh_proto::names::ZoneName;

use crate::config::{Balancing, Endpoint, Spread};

/// Chooses among `endpoints`, none of `tried` (indices), as `balancing` says. `random` gives evenly distributed numbers, `turn`
/// one more each time. `None`: all have been tried.
pub fn pick(
    endpoints: &[Endpoint],
    balancing: &Balancing,
    own_zone: &ZoneName,
    tried: &[usize],
    now: Instant,
    mut random: impl FnMut() -> u64,
    turn: impl FnOnce() -> u64,
) -> Option<usize> {
    // By far the most frequent case.
    if let ([_], []) = (endpoints, tried) {
        return Some(0);
    }
    let tier = |endpoint: &Endpoint| {
        let far = endpoint.zone != *own_zone || endpoint.through_ingress;
        usize::from(far) + 2 * usize::from(endpoint.health.comes_last(now))
    };
    let mut counts = [0_usize; 4];
    for (index, endpoint) in endpoints.iter().enumerate() {
        if !tried.contains(&index) {
            counts[tier(endpoint)] += 1;
        }
    }
    let best = counts.iter().position(|count| *count > 0)?;
    let nth = |n: usize| {
        endpoints
            .iter()
            .enumerate()
            .filter(|(index, endpoint)| tier(endpoint) == best && !tried.contains(index))
            .nth(n)
            .map(|(index, _)| index)
    };
    let count = counts[best];
    if count == 1 {
        return nth(0);
    }
    match balancing.spread {
        Spread::RoundRobin => {
            let turn = usize::try_from(turn() % count as u64).unwrap_or_default();
            let index = nth(turn)?;
            // A new endpoint gives a part of its turns to the next.
            let share = share(&endpoints[index], balancing.slow_start, now);
            let gives = share < 1000 && below(random(), 1000) >= share;
            if gives {
                nth((turn + 1) % count)
            } else {
                Some(index)
            }
        }
        Spread::LeastRequest(choices) => {
            let first = below(random(), count);
            let mut best: Option<(u128, usize)> = None;
            for choice in 0..choices.max(1) {
                // Others than the first, evenly.
                let n = match choice {
                    0 => first,
                    _ => (first + 1 + below(random(), count - 1)) % count,
                };
                let index = nth(n)?;
                let endpoint = &endpoints[index];
                let load = (endpoint.health.under_way() as u128 + 1) * 1_000_000
                    / share(endpoint, balancing.slow_start, now) as u128;
                if best.is_none_or(|(lowest, _)| load < lowest) {
                    best = Some((load, index));
                }
            }
            best.map(|(_, index)| index)
        }
    }
}

/// How much of a share an endpoint gets, in thousandths: from a tenth to all while it is new.
fn share(endpoint: &Endpoint, slow_start: Duration, now: Instant) -> usize {
    if slow_start.is_zero() {
        return 1000;
    }
    let age = endpoint.health.age(now);
    let grown = age.as_millis().saturating_mul(1000) / slow_start.as_millis().max(1);
    usize::try_from(grown).unwrap_or(1000).clamp(100, 1000)
}

/// An evenly distributed number below `bound`, from one below 2^64.
fn below(random: u64, bound: usize) -> usize {
    let wide = u128::from(random) * bound as u128;
    usize::try_from(wide >> 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;

    fn endpoint(last_octet: u8, zone: &str) -> Endpoint {
        Endpoint {
            host: Host::Ip([10, 0, 0, last_octet].into()),
            port: 80,
            zone: zone.parse().unwrap(),
            through_ingress: zone != "east",
            text: "".into(),
            health: Default::default(),
        }
    }

    /// Numbers that look random and are the same each time.
    fn numbers() -> impl FnMut() -> u64 {
        let mut state = 7_u64;
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed ^ (mixed >> 27)
        }
    }

    fn any(
        endpoints: &[Endpoint],
        tried: &[usize],
        now: Instant,
        random: impl FnMut() -> u64,
    ) -> Option<usize> {
        pick(
            endpoints,
            &Balancing::default(),
            &east(),
            tried,
            now,
            random,
            || 0,
        )
    }

    fn east() -> ZoneName {
        "east".parse().unwrap()
    }

    #[test]
    fn the_own_zone_comes_first_and_another_one_when_it_has_none_left() {
        let endpoints = [
            endpoint(1, "west"),
            endpoint(2, "east"),
            endpoint(3, "east"),
        ];
        let now = Instant::now();
        let mut random = numbers();
        for _ in 0..50 {
            let picked = any(&endpoints, &[], now, &mut random);
            assert!(matches!(picked, Some(1 | 2)), "{picked:?}");
        }
        assert_eq!(any(&endpoints, &[1, 2], now, &mut random), Some(0));
        assert_eq!(any(&endpoints, &[0, 1, 2], now, &mut random), None);
    }

    #[test]
    fn an_endpoint_that_failed_comes_last_until_its_time_is_over() {
        let endpoints = [endpoint(1, "east"), endpoint(2, "west")];
        let now = Instant::now();
        endpoints[0].health.failed(now, Duration::from_secs(10));
        let at = |now| any(&endpoints, &[], now, numbers());
        assert_eq!(at(now), Some(1));
        assert_eq!(at(now + Duration::from_secs(11)), Some(0));
        // Where all have failed, the own zone is first again.
        endpoints[1].health.failed(now, Duration::from_secs(10));
        assert_eq!(at(now), Some(0));
        endpoints[0].health.succeeded();
        assert_eq!(at(now), Some(0));
    }

    #[test]
    fn of_two_the_one_with_fewer_under_way_is_taken_and_all_get_some() {
        let endpoints: Vec<_> = (1..=5).map(|n| endpoint(n, "east")).collect();
        let mut random = numbers();
        let mut held = Vec::new();
        for _ in 0..1000 {
            let picked = any(&endpoints, &[], Instant::now(), &mut random).unwrap();
            held.push(endpoints[picked].health.occupy());
        }
        let counts: Vec<_> = endpoints.iter().map(|e| e.health.under_way()).collect();
        let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
        assert!(spread <= 5, "{counts:?}");
        drop(held);
        assert!(endpoints.iter().all(|e| e.health.under_way() == 0));
    }

    #[test]
    fn in_turn_each_gets_as_many_as_the_others() {
        let endpoints: Vec<_> = (1..=3).map(|n| endpoint(n, "east")).collect();
        let mut counts = [0; 3];
        let balancing = Balancing {
            spread: Spread::RoundRobin,
            slow_start: Duration::ZERO,
        };
        for turn in 0..300 {
            let now = Instant::now();
            let picked = pick(&endpoints, &balancing, &east(), &[], now, numbers(), || {
                turn
            });
            counts[picked.unwrap()] += 1;
        }
        assert_eq!(counts, [100; 3]);
    }

    #[test]
    fn a_new_endpoint_gets_little_at_first_and_its_whole_share_in_the_end() {
        let slow_start = Duration::from_secs(10);
        let old = endpoint(1, "east");
        let born = Instant::now();
        let of_new = |spread: Spread, age: Duration| {
            // All were born at the same moment; only the share of one age against another can be asked for.
            let now = born + age;
            share(&old, slow_start, now).min(match spread {
                Spread::RoundRobin | Spread::LeastRequest(_) => 1000,
            })
        };
        assert_eq!(of_new(Spread::RoundRobin, Duration::ZERO), 100);
        let half = of_new(Spread::RoundRobin, Duration::from_secs(5));
        assert!((450..=550).contains(&half), "{half}");
        assert_eq!(of_new(Spread::RoundRobin, Duration::from_secs(60)), 1000);
    }
}
