//! Which endpoint a connection goes to: least request of two random ones (P2C), own zone first.
//!
//! Endpoints come in four tiers: of the own zone; of another zone; of the own zone, failed lately; of another zone,
//! failed lately. A tier is used only where the ones before have nobody left that has not been tried.

use std::time::Instant;

use mesh_proto::names::ZoneName;

use crate::config::Endpoint;

/// Chooses among `endpoints`, none of `tried` (indices). `load` says how many connections of this worker an endpoint
/// has, `random` gives evenly distributed numbers. `None`: all have been tried.
pub fn pick(
    endpoints: &[Endpoint],
    own_zone: &ZoneName,
    tried: &[usize],
    now: Instant,
    load: impl Fn(&Endpoint) -> u32,
    mut random: impl FnMut() -> u64,
) -> Option<usize> {
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
    let first = below(random(), count);
    if count == 1 {
        return nth(first);
    }
    // Another one, evenly.
    let second = (first + 1 + below(random(), count - 1)) % count;
    let (first, second) = (nth(first)?, nth(second)?);
    if load(&endpoints[second]) < load(&endpoints[first]) {
        Some(second)
    } else {
        Some(first)
    }
}

/// An evenly distributed number below `bound`, from one below 2^64.
fn below(random: u64, bound: usize) -> usize {
    let wide = u128::from(random) * bound as u128;
    usize::try_from(wide >> 64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Host;

    fn endpoint(last_octet: u8, zone: &str) -> Endpoint {
        Endpoint {
            host: Host::Ip([10, 0, 0, last_octet].into()),
            port: 80,
            zone: zone.parse().unwrap(),
            through_ingress: zone != "east",
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
            let picked = pick(&endpoints, &east(), &[], now, |_| 0, &mut random);
            assert!(matches!(picked, Some(1 | 2)), "{picked:?}");
        }
        let picked = pick(&endpoints, &east(), &[1, 2], now, |_| 0, &mut random);
        assert_eq!(picked, Some(0));
        let picked = pick(&endpoints, &east(), &[0, 1, 2], now, |_| 0, &mut random);
        assert_eq!(picked, None);
    }

    #[test]
    fn an_endpoint_that_failed_comes_last_until_its_time_is_over() {
        let endpoints = [endpoint(1, "east"), endpoint(2, "west")];
        let now = Instant::now();
        endpoints[0].health.failed(now, Duration::from_secs(10));
        let at = |now| pick(&endpoints, &east(), &[], now, |_| 0, numbers());
        assert_eq!(at(now), Some(1));
        assert_eq!(at(now + Duration::from_secs(11)), Some(0));
        // Where all have failed, the own zone is first again.
        endpoints[1].health.failed(now, Duration::from_secs(10));
        assert_eq!(at(now), Some(0));
        endpoints[0].health.succeeded();
        assert_eq!(at(now), Some(0));
    }

    #[test]
    fn of_two_the_one_with_fewer_connections_is_taken_and_all_get_some() {
        let endpoints: Vec<_> = (1..=5).map(|n| endpoint(n, "east")).collect();
        let mut counts = [0_u32; 5];
        let mut random = numbers();
        for _ in 0..1000 {
            let load = |endpoint: &Endpoint| match endpoint.host {
                Host::Ip(std::net::IpAddr::V4(ip)) => counts[usize::from(ip.octets()[3]) - 1],
                _ => unreachable!("all are IPv4"),
            };
            let picked = pick(&endpoints, &east(), &[], Instant::now(), load, &mut random);
            counts[picked.unwrap()] += 1;
        }
        let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
        assert!(spread <= 5, "{counts:?}");
    }
}
