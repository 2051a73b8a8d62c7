//! Who tries new documents first (FIELD d14).
//!
//! A change that concerns several proxies of one version goes to one of them, the canary; the others are held until it
//! has answered. What it takes goes on to the others. What it refuses for what the document says is tried by a second one,
//! so that a single proxy, which may be in a stranger's hands, can not hold up what all others would take. What both
//! refuse is stopped for the others until something else is wanted under that name, and nothing else is. A proxy that can
//! not listen at the moment, goes away or says nothing stops nothing: a change may withdraw a right, and must not wait
//! for local trouble.
//!
//! Plain decisions: [`Rollouts::judge`] looks at the answers, [`Rollouts::resume`] ends the stops that a change
//! overtakes, [`Rollouts::plan`] says who is sent something now. The mesh calls them in this order whenever it settles.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::registry::StreamId;

/// How long the others wait for a canary's answer at most. The tick that looks at it adds up to a second; together they stay
/// below the two seconds within which a withdrawn permission closes connections.
pub const PATIENCE: Duration = Duration::from_millis(750);
/// How long a second canary has at least, where the first took most of that time to refuse.
const SECOND_PATIENCE: Duration = Duration::from_millis(250);

/// Trials under way, and documents that are stopped.
#[derive(Debug, Default)]
pub struct Rollouts {
    trials: Vec<Trial>,
    stops: Vec<Stop>,
}

/// One canary, and those who wait for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trial {
    /// Version of all proxies concerned.
    version: String,
    canary: String,
    /// On this stream it was sent what it tries.
    stream: StreamId,
    /// Nobody waits for its answer longer.
    until: Instant,
    held: BTreeSet<String>,
    /// Who tried before it, and what that one refused: document and version.
    first: Option<(String, BTreeMap<String, String>)>,
}

/// A document that goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The document's name.
    pub document: String,
    /// Version of the proxies concerned.
    pub version: String,
    /// Who refused it, each with the version it refused.
    pub canaries: BTreeMap<String, String>,
    /// From whom it is kept, each with the version that was wanted there.
    pub held: BTreeMap<String, String>,
}

/// A dataplane that lacks documents, is connected, and has not just come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Version of the proxy.
    pub version: String,
    /// Its stream.
    pub stream: StreamId,
    /// Its last answer to a document was a refusal: one more would say little, and one proxy that refuses everything must
    /// not keep the others from change after change.
    pub declined: bool,
    /// It owes an answer to something older: it would keep the others waiting.
    pub owes: bool,
    /// What it lacks was stopped, and is what it was then.
    pub rejoins: bool,
}

/// How far a canary is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its stream, while it is connected.
    pub stream: Option<StreamId>,
    /// It has acknowledged or refused everything it was sent.
    pub answered: bool,
    /// What it refuses for what it says: document and version.
    pub refused: BTreeMap<String, String>,
    /// See [`Candidate::declined`].
    pub declined: bool,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Version of the proxies concerned.
    pub version: String,
    /// What must not go on to the others: document, and who refused which version of it.
    pub refused: BTreeMap<String, BTreeMap<String, String>>,
    /// Those who are held no longer. Where the first canary has refused something it is the second alone: it tries next.
    pub released: BTreeSet<String>,
}

impl Rollouts {
    /// Ends the trials whose canary has answered, has gone, or has had its time, or goes on with a second canary.
    pub fn judge(&mut self, now: Instant, standing: impl Fn(&str) -> Standing) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        self.trials.retain_mut(|trial| {
            let found = standing(&trial.canary);
            let same = found.stream == Some(trial.stream);
            if same && !found.answered && now < trial.until {
                return true;
            }
            let (verdict, goes_on) = trial.judge(found.refused, now, &standing);
            verdicts.push(verdict);
            goes_on
        });
        verdicts
    }

    /// Keeps a document from those who have not got it.
    pub fn stop(&mut self, stop: Stop) {
        if !stop.held.is_empty() {
            self.stops.push(stop);
        }
    }

    /// Ends the stops that no longer hold, since something else is wanted under that name by one of those concerned, or
    /// since a canary `runs` what it had refused. Returned are those from whom something was kept. Only `affected` can
    /// want something else than before.
    pub fn resume(
        &mut self,
        affected: &BTreeSet<String>,
        wanted: impl Fn(&str, &str) -> Option<String>,
        runs: impl Fn(&Stop) -> bool,
    ) -> BTreeSet<String> {
        let mut resumed = BTreeSet::new();
        self.stops.retain(|stop| {
            let changed = |name: &str, version: &str| {
                affected.contains(name)
                    && wanted(name, &stop.document).is_none_or(|now| now != *version)
            };
            let over = stop
                .canaries
                .iter()
                .chain(&stop.held)
                .any(|(name, version)| changed(name, version))
                || runs(stop);
            if over {
                resumed.extend(stop.held.keys().cloned());
            }
            !over
        });
        resumed
    }

    /// Who of those that lack something is sent it now. The others are held.
    pub fn plan(&mut self, lacking: Vec<Candidate>, now: Instant) -> BTreeSet<String> {
        let mut go = BTreeSet::new();
        let mut groups: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        for candidate in lacking {
            let version = candidate.version.clone();
            groups.entry(version).or_default().push(candidate);
        }
        for (version, group) in groups {
            self.plan_group(version, group, now, &mut go);
        }
        go
    }

    fn plan_group(
        &mut self,
        version: String,
        group: Vec<Candidate>,
        now: Instant,
        go: &mut BTreeSet<String>,
    ) {
        // A canary tries the newest, so that what the others get in the end was tried.
        let tries = |trial: &Trial, candidate: &Candidate| {
            trial.canary == candidate.name && trial.stream == candidate.stream
        };
        let (canaries, group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|c| self.trials.iter().any(|trial| tries(trial, c)));
        go.extend(canaries.iter().map(|c| c.name.clone()));
        let rest: Vec<_> = group
            .into_iter()
            .filter(|c| !self.is_held(&c.name))
            .collect();
        if let Some(under_way) = self
            .trials
            .iter_mut()
            .find(|trial| canaries.iter().any(|c| tries(trial, c)))
        {
            under_way.held.extend(rest.into_iter().map(|c| c.name));
            return;
        }
        // Those whom the change itself concerns try it; one alone never waits.
        let (rejoining, fresh): (Vec<_>, Vec<_>) = rest.iter().partition(|c| c.rejoins);
        let able = if fresh.is_empty() { rejoining } else { fresh };
        let canary = match able[..] {
            [one] => Some(one),
            _ => able
                .into_iter()
                .filter(|c| !c.declined)
                .min_by_key(|c| (c.owes, &c.name)),
        };
        let Some(canary) = canary.cloned() else {
            // Where all have refused something, nobody's answer would help.
            go.extend(rest.into_iter().map(|c| c.name));
            return;
        };
        go.insert(canary.name.clone());
        let mut held: BTreeSet<_> = rest.into_iter().map(|c| c.name).collect();
        held.remove(&canary.name);
        if !held.is_empty() {
            self.trials.push(Trial {
                version,
                canary: canary.name,
                stream: canary.stream,
                until: now + PATIENCE,
                held,
                first: None,
            });
        }
    }

    /// Nothing is held back from this one any more: it comes anew, or is gone.
    pub fn forget(&mut self, name: &str) {
        for trial in &mut self.trials {
            trial.held.remove(name);
        }
        self.stops.retain_mut(|stop| {
            stop.held.remove(name);
            !stop.held.is_empty()
        });
    }

    /// Documents that are kept from a dataplane.
    #[must_use]
    pub fn stopped(&self, name: &str) -> BTreeSet<String> {
        let stops = self.stops.iter().filter(|s| s.held.contains_key(name));
        stops.map(|stop| stop.document.clone()).collect()
    }

    fn is_held(&self, name: &str) -> bool {
        self.trials.iter().any(|trial| trial.held.contains(name))
    }
}

impl Trial {
    /// What comes of the answer of the canary, and whether the trial goes on with another.
    fn judge(
        &mut self,
        refused: BTreeMap<String, String>,
        now: Instant,
        standing: impl Fn(&str) -> Standing,
    ) -> (Verdict, bool) {
        let mut verdict = Verdict {
            version: self.version.clone(),
            refused: BTreeMap::new(),
            released: BTreeSet::new(),
        };
        if !refused.is_empty() && self.first.is_none() {
            let second = self.held.iter().find_map(|name| {
                let found = standing(name);
                let stream = found.stream.filter(|_| !found.declined)?;
                Some((name.clone(), stream))
            });
            if let Some((second, stream)) = second {
                self.held.remove(&second);
                verdict.released.insert(second.clone());
                let first = std::mem::replace(&mut self.canary, second);
                self.first = Some((first, refused));
                self.stream = stream;
                self.until = self.until.max(now + SECOND_PATIENCE);
                return (verdict, true);
            }
        }
        let canary = std::mem::take(&mut self.canary);
        for (document, version) in refused {
            let mut canaries = BTreeMap::from([(canary.clone(), version)]);
            if let Some((first, before)) = &self.first {
                let Some(version) = before.get(&document) else {
                    continue; // The first took it.
                };
                canaries.insert(first.clone(), version.clone());
            }
            verdict.refused.insert(document, canaries);
        }
        verdict.released = std::mem::take(&mut self.held);
        (verdict, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str) -> Candidate {
        Candidate {
            name: name.into(),
            version: "1".into(),
            stream: StreamId(1),
            declined: false,
            owes: false,
            rejoins: false,
        }
    }

    fn candidates(names: &str) -> Vec<Candidate> {
        names.split(' ').map(candidate).collect()
    }

    fn names(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn versions(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
    }

    fn standing(answered: bool, refused: &[(&str, &str)]) -> Box<dyn Fn(&str) -> Standing> {
        let standing = Standing {
            stream: Some(StreamId(1)),
            answered,
            refused: versions(refused),
            declined: false,
        };
        Box::new(move |_| standing.clone())
    }

    fn proxy_stopped() -> Rollouts {
        let mut rollouts = Rollouts::default();
        rollouts.stop(Stop {
            document: "proxy".into(),
            version: "1".into(),
            canaries: versions(&[("a", "a2")]),
            held: versions(&[("b", "b2"), ("c", "c2")]),
        });
        rollouts
    }

    #[test]
    fn one_alone_is_not_held() {
        let mut rollouts = Rollouts::default();
        assert_eq!(rollouts.plan(candidates("a"), Instant::now()), names("a"));
        let mut other = candidate("b");
        other.version = "2".into();
        let each_of_its_version = vec![candidate("a"), other];
        assert_eq!(
            rollouts.plan(each_of_its_version, Instant::now()),
            names("a b")
        );
        assert_eq!(rollouts.judge(Instant::now(), standing(true, &[])), []);
    }

    #[test]
    fn the_others_are_held_until_the_canary_has_answered() {
        let (mut rollouts, now) = (Rollouts::default(), Instant::now());
        assert_eq!(rollouts.plan(candidates("b a c"), now), names("a"));
        assert_eq!(rollouts.judge(now, standing(false, &[])), []);
        // A later change goes to the same canary, and to nobody who waits for it; another alone does not wait.
        assert_eq!(rollouts.plan(candidates("a b d"), now), names("a"));
        assert_eq!(rollouts.plan(candidates("b e"), now), names("e"));
        assert_eq!(
            rollouts.judge(now, standing(true, &[])),
            [verdict(&[], "b c d")]
        );
        assert_eq!(rollouts.judge(now, standing(true, &[])), []);
    }

    fn verdict(refused: &[(&str, &[(&str, &str)])], released: &str) -> Verdict {
        let refused = refused.iter();
        Verdict {
            version: "1".into(),
            refused: refused
                .map(|(document, by)| ((*document).into(), versions(by)))
                .collect(),
            released: names(released),
        }
    }

    #[test]
    fn what_the_first_refuses_is_tried_by_a_second_and_stopped_where_that_one_refuses_it_too() {
        let now = Instant::now();
        let proxy: &[(&str, &str)] = &[("proxy", "2")];
        let both: (&str, &[(&str, &str)]) = ("proxy", &[("a", "2"), ("b", "2")]);
        // What the second says; what is stopped.
        for (second, stopped) in [
            (standing(true, proxy), vec![both]),
            (
                standing(true, &[("proxy", "2"), ("trust", "2")]),
                vec![both],
            ),
            (standing(true, &[("trust", "2")]), vec![]),
            (standing(true, &[]), vec![]),
            (Box::new(|_: &str| Standing::default()) as Box<_>, vec![]),
        ] {
            let mut rollouts = Rollouts::default();
            rollouts.plan(candidates("a b c d"), now);
            assert_eq!(
                rollouts.judge(now, standing(true, proxy)),
                [verdict(&[], "b")]
            );
            assert_eq!(rollouts.judge(now, standing(false, &[])), []);
            // Its time is that of the first, or a little more.
            assert_eq!(rollouts.judge(now, &second), [verdict(&stopped, "c d")]);
        }
    }

    #[test]
    fn the_second_is_one_that_is_connected_and_has_declined_nothing() {
        let now = Instant::now();
        let proxy: (&str, &[(&str, &str)]) = ("proxy", &[("a", "2")]);
        let found = |able: &'static str| {
            move |name: &str| Standing {
                declined: name != able,
                ..standing(true, &[("proxy", "2")])(name)
            }
        };
        let mut rollouts = Rollouts::default();
        rollouts.plan(candidates("a b c d"), now);
        assert_eq!(rollouts.judge(now, found("c")), [verdict(&[], "c")]);
        let mut rollouts = Rollouts::default();
        rollouts.plan(candidates("a b c d"), now);
        assert_eq!(
            rollouts.judge(now, found("nobody")),
            [verdict(&[proxy], "b c d")]
        );
    }

    #[test]
    fn a_first_that_refuses_at_the_last_moment_leaves_the_second_little_time() {
        let (mut rollouts, now) = (Rollouts::default(), Instant::now());
        rollouts.plan(candidates("a b c"), now);
        let refused = now + PATIENCE - Duration::from_millis(1);
        rollouts.judge(refused, standing(true, &[("proxy", "2")]));
        let silent = standing(false, &[]);
        assert_eq!(rollouts.judge(now + PATIENCE, &silent), []);
        assert_eq!(
            rollouts.judge(refused + SECOND_PATIENCE, &silent),
            [verdict(&[], "c")]
        );
    }

    #[test]
    fn nobody_waits_for_one_that_is_silent_or_gone_or_on_another_stream() {
        let now = Instant::now();
        let again = Standing {
            stream: Some(StreamId(2)),
            ..Standing::default()
        };
        for (later, found) in [
            (PATIENCE, standing(false, &[])("a")),
            (Duration::ZERO, Standing::default()),
            (Duration::ZERO, again),
        ] {
            let mut rollouts = Rollouts::default();
            rollouts.plan(candidates("a b"), now);
            let verdicts = rollouts.judge(now + later, |_| found.clone());
            assert_eq!(verdicts[0].released, names("b"), "{found:?}");
        }
    }

    #[test]
    fn the_canary_is_the_first_that_has_declined_nothing_and_owes_nothing() {
        let mut rollouts = Rollouts::default();
        let mut all = candidates("a b c d");
        all[0].declined = true;
        all[1].owes = true;
        assert_eq!(rollouts.plan(all.clone(), Instant::now()), names("c"));
        let mut rollouts = Rollouts::default();
        all.iter_mut().for_each(|c| c.declined = true);
        assert_eq!(rollouts.plan(all, Instant::now()), names("a b c d"));
    }

    #[test]
    fn what_was_stopped_waits_for_the_one_that_the_change_concerns() {
        let (mut rollouts, now) = (Rollouts::default(), Instant::now());
        let mut all = candidates("a b c");
        all[2].declined = true;
        all[0].rejoins = true;
        all[1].rejoins = true;
        assert_eq!(rollouts.plan(all, now), names("c"));
        let verdicts = rollouts.judge(now, standing(true, &[]));
        assert_eq!(verdicts[0].released, names("a b"));
    }

    #[test]
    fn a_stop_holds_until_something_else_is_wanted_by_one_of_those_concerned() {
        let before = versions(&[("a", "a2"), ("b", "b2"), ("c", "c2")]);
        for (affected, changed, resumed) in [
            ("a b c", "", ""),
            ("d", "d", ""),
            ("a", "a", "b c"),
            ("c", "c", "b c"),
        ] {
            let mut rollouts = proxy_stopped();
            let wanted = |name: &str, _: &str| {
                let new = (name == changed).then(|| "new".to_owned());
                new.or_else(|| before.get(name).cloned())
            };
            assert_eq!(rollouts.stopped("b"), names("proxy"));
            assert_eq!(
                rollouts.resume(&names(affected), wanted, |_| false),
                names(resumed)
            );
            assert_eq!(rollouts.stopped("b").is_empty(), !resumed.is_empty());
        }
    }

    #[test]
    fn a_stop_ends_when_the_canary_runs_it_after_all_and_for_one_that_comes_anew() {
        let none = |_: &str, _: &str| None;
        let mut rollouts = proxy_stopped();
        rollouts.forget("c");
        assert_eq!(rollouts.stopped("c"), names(""));
        assert_eq!(rollouts.resume(&names(""), none, |_| false), names(""));
        let runs = |stop: &Stop| stop.canaries == versions(&[("a", "a2")]);
        assert_eq!(rollouts.resume(&names(""), none, runs), names("b"));
    }
}
