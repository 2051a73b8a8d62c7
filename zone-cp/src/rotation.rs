//! When a mesh's CA is made, renewed and retired: decisions over times and acknowledgements, nothing else.
//!
//! ```text
//!   made ──▶ announced beside the issuing one ──▶ everybody has it ──▶ issues ──▶ the old one is retired
//!            (at 2/3 of the issuing one's life)   (acks, and a       (at once)   (when the last certificate
//!                                                  minimum time)                  it signed has ended)
//! ```
//!
//! Issuing before everybody has the anchor would make peers refuse fresh certificates; retiring before the last
//! certificate has ended would make them refuse old ones. What is absent blocks the change, and [`blocked_by`] says so.
//! All times are Unix seconds.

/// How long a mesh CA lives.
pub const CA_LIFETIME_SECONDS: i64 = 90 * 24 * 3600;
/// How long a workload certificate lives.
pub const LEAF_LIFETIME_SECONDS: i64 = 24 * 3600;
/// The least time between announcing an anchor and issuing from it: other zones' dataplanes get it from their zones,
/// whose acknowledgement this zone does not see.
pub const PROPAGATION_SECONDS: i64 = 600;
/// Clocks may differ by this much (see `mesh_runtime::pki::NOT_BEFORE_SKEW`).
const SKEW_SECONDS: i64 = 2 * 3600;

/// What is known of one CA certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Names the CA among those of its mesh.
    pub id: String,
    /// When it was made, and so first announced.
    pub made: i64,
    /// When it ends.
    pub not_after: i64,
}

/// The CAs of one mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cas {
    /// Signs.
    pub issuing: Option<Anchor>,
    /// Announced, and will sign.
    pub next: Option<Anchor>,
    /// Signed until the given time; certificates of it may still be in use.
    pub retiring: Vec<(Anchor, i64)>,
}

/// Who has the newest anchors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Every connected dataplane of the mesh in this zone runs the newest trust document.
    pub dataplanes: bool,
    /// Global has acknowledged the report that holds the newest anchors.
    pub global: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a CA that issues at once: there is none.
    MakeFirst,
    /// Make a CA and announce it beside the issuing one.
    MakeNext,
    /// Issue from the announced one.
    Switch,
    /// Forget the CA with this id.
    Retire(String),
}

/// The next step, if any is due.
#[must_use]
pub fn due(cas: &Cas, acknowledged: Acknowledged, now: i64) -> Option<Step> {
    let Some(issuing) = &cas.issuing else {
        return Some(Step::MakeFirst);
    };
    match &cas.next {
        None if renewal_is_due(issuing, now) => return Some(Step::MakeNext),
        Some(next) if waits_for(issuing, next, acknowledged, now).is_none() => {
            return Some(Step::Switch);
        }
        _ => {}
    }
    cas.retiring
        .iter()
        .find(|(anchor, signed_until)| {
            now >= (signed_until + LEAF_LIFETIME_SECONDS + SKEW_SECONDS).min(anchor.not_after)
        })
        .map(|(anchor, _)| Step::Retire(anchor.id.clone()))
}

/// Why an announced CA does not issue yet, for the person on call. `None`: nothing waits.
#[must_use]
pub fn blocked_by(cas: &Cas, acknowledged: Acknowledged, now: i64) -> Option<&'static str> {
    waits_for(cas.issuing.as_ref()?, cas.next.as_ref()?, acknowledged, now)
}

fn renewal_is_due(issuing: &Anchor, now: i64) -> bool {
    now >= issuing.made + (issuing.not_after - issuing.made) / 3 * 2
}

fn waits_for(
    issuing: &Anchor,
    next: &Anchor,
    acknowledged: Acknowledged,
    now: i64,
) -> Option<&'static str> {
    if now >= issuing.not_after {
        // Nothing can be issued otherwise: it can only get better.
        return None;
    }
    if !acknowledged.global {
        return Some(
            "global has not acknowledged the new anchor, so that other zones do not have it",
        );
    }
    if !acknowledged.dataplanes {
        return Some("a dataplane of this zone has not acknowledged the new anchor");
    }
    (now < next.made + PROPAGATION_SECONDS)
        .then_some("the new anchor is still on its way to the other zones' dataplanes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Acknowledged = Acknowledged {
        dataplanes: true,
        global: true,
    };

    /// Carries steps out on plain values.
    struct Simulation {
        cas: Cas,
        now: i64,
        made: u32,
    }

    impl Simulation {
        fn anchor(&mut self) -> Anchor {
            self.made += 1;
            Anchor {
                id: format!("ca{}", self.made),
                made: self.now,
                not_after: self.now + CA_LIFETIME_SECONDS,
            }
        }

        fn run(&mut self, acknowledged: Acknowledged) -> Vec<Step> {
            let mut steps = Vec::new();
            while let Some(step) = due(&self.cas, acknowledged, self.now) {
                match &step {
                    Step::MakeFirst => self.cas.issuing = Some(self.anchor()),
                    Step::MakeNext => self.cas.next = Some(self.anchor()),
                    Step::Switch => {
                        let next = self.cas.next.take();
                        let old = std::mem::replace(&mut self.cas.issuing, next);
                        self.cas.retiring.extend(old.map(|a| (a, self.now)));
                    }
                    Step::Retire(id) => self.cas.retiring.retain(|(a, _)| a.id != *id),
                }
                steps.push(step);
            }
            steps
        }
    }

    fn started() -> Simulation {
        let mut simulation = Simulation {
            cas: Cas::default(),
            now: 0,
            made: 0,
        };
        assert_eq!(simulation.run(ALL), [Step::MakeFirst]);
        simulation
    }

    const DAY: i64 = 24 * 3600;

    #[test]
    fn a_new_anchor_is_announced_before_it_issues_and_the_old_one_outlives_its_certificates() {
        let mut s = started();
        s.now = 60 * DAY - 1;
        assert_eq!(s.run(ALL), []);
        s.now = 60 * DAY;
        assert_eq!(s.run(ALL), [Step::MakeNext]);
        s.now += PROPAGATION_SECONDS;
        assert_eq!(s.run(ALL), [Step::Switch]);
        assert_eq!(s.cas.issuing.as_ref().unwrap().id, "ca2");
        s.now += DAY;
        assert_eq!(s.run(ALL), []);
        s.now += 2 * 3600;
        assert_eq!(s.run(ALL), [Step::Retire("ca1".into())]);
        assert_eq!(s.cas.retiring, []);
    }

    #[test]
    fn whoever_lacks_the_new_anchor_blocks_it_visibly() {
        let mut s = started();
        s.now = 60 * DAY;
        s.run(ALL);
        s.now += DAY;
        let no_global = Acknowledged {
            global: false,
            ..ALL
        };
        assert_eq!(s.run(no_global), []);
        assert!(
            blocked_by(&s.cas, no_global, s.now)
                .unwrap()
                .contains("global")
        );
        let no_dataplane = Acknowledged {
            dataplanes: false,
            ..ALL
        };
        assert_eq!(s.run(no_dataplane), []);
        assert!(
            blocked_by(&s.cas, no_dataplane, s.now)
                .unwrap()
                .contains("dataplane")
        );
        assert_eq!(s.run(ALL), [Step::Switch]);
    }

    #[test]
    fn an_ended_issuer_is_replaced_whoever_is_absent() {
        let nobody = Acknowledged {
            dataplanes: false,
            global: false,
        };
        let mut s = started();
        s.now = 90 * DAY;
        assert_eq!(s.run(nobody)[..2], [Step::MakeNext, Step::Switch]);
    }

    #[test]
    fn over_ten_years_there_are_never_more_than_three_anchors_and_always_one_that_issues() {
        let mut s = started();
        while s.now < 3650 * DAY {
            s.now += 3600;
            s.run(ALL);
            let issuing = s.cas.issuing.as_ref().unwrap();
            assert!(issuing.not_after > s.now + LEAF_LIFETIME_SECONDS);
            assert!(1 + usize::from(s.cas.next.is_some()) + s.cas.retiring.len() <= 3);
        }
        // One for each 60 days, not one for each look.
        assert!((60..=62).contains(&s.made), "{}", s.made);
    }
}
