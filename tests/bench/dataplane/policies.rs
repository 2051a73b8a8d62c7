//! What each policy costs two sidecars, beside the same two without it.

use super::{
    Run,
    workloads::{HTTP1, words},
};
use crate::{
    load::Shape,
    peers::{
        chain::Chain,
        isthmus::{Installation, POLICIES, Policy},
    },
    report::{BARE, Results},
};

pub(super) fn measure(run: &Run<'_>, results: &mut Results) {
    let ours = run.chains.iter().find_map(|(_, chain)| {
        let installation = chain.installation.as_ref()?;
        Some((chain, installation))
    });
    let Some((chain, installation)) = ours else {
        return;
    };
    let all: Vec<&Policy> = POLICIES.iter().collect();
    let mut sets = vec![(BARE, Vec::new())];
    sets.extend(all.iter().map(|policy| (policy.name, vec![*policy])));
    // Last, since all are on in everything else.
    sets.push(("all", all));
    for (name, set) in sets {
        if let Err(error) = turn(run, chain, installation, (name, &set), results) {
            results.failed(chain.name, &format!("policies, {name}"), &error);
        }
    }
}

fn turn(
    run: &Run<'_>,
    chain: &Chain,
    installation: &Installation,
    (name, set): (&str, &[&Policy]),
    results: &mut Results,
) -> anyhow::Result<()> {
    let shape = Shape::of(run.effort.at_once);
    installation.switch_on(set)?;
    let seen = HTTP1.saturate(chain, shape, run.effort.time)?;
    let what = format!("{}, {}", HTTP1.name, words(shape));
    seen.report(&mut results.policies, name, &what);
    Ok(())
}
