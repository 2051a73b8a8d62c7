//! Percentiles at half of what saturates: of what saturates each pair itself, and of what saturates the base, which is the
//! same rate for all.

use super::{
    Run,
    workloads::{HTTP1, HTTP2, Workload, words},
};
use crate::{
    load::Shape,
    peers::{BASE, chain::Chain},
    report::Results,
};

pub(super) fn measure(run: &Run<'_>, results: &mut Results) {
    for workload in [HTTP1, HTTP2] {
        turns(run, &workload, results);
    }
}

fn turns(run: &Run<'_>, workload: &Workload, results: &mut Results) {
    let shape = Shape::of(run.effort.at_once);
    let what = format!("{}, {}", workload.name, words(shape));
    let mut saturated: Vec<(&Chain, f64)> = Vec::new();
    for chain in run.serving(workload.service) {
        match workload.saturate(chain, shape, run.effort.time / 2) {
            Ok(seen) => saturated.push((chain, seen.outcome.per_second())),
            Err(error) => results.failed(chain.name, &format!("{what}, saturated"), &error),
        }
    }
    let base = saturated.iter().find(|(chain, _)| chain.name == BASE);
    let base = base.map(|(_, rate)| *rate);
    let of_base = format!("{BASE}'s");
    for (chain, own) in saturated {
        let rates = [("its own", Some(own)), (&*of_base, base)];
        for (whose, saturation) in rates {
            let Some(saturation) = saturation else {
                continue;
            };
            let what = format!("{what}, at half of {whose} saturation");
            let seen = workload.open(chain, shape).and_then(|mut load| {
                workload.watch(chain, || load.at_rate(saturation / 2.0, run.effort.time))
            });
            match seen {
                Ok(seen) => seen.report(&mut results.dataplane, chain.name, &what),
                Err(error) => results.failed(chain.name, &what, &error),
            }
        }
    }
}
