//! The two sides of a sidecar, as a request sees them: in to the application, out to a service.

use std::{borrow::Cow, cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use http::{StatusCode, uri::PathAndQuery};
use mesh_proto::http_match::path::normal;

use super::{
    message::{RequestHead, ResponseHead},
    record::{RequestRecord, SaidBy},
    reply::{Answer, REASON_HEADER},
    request::reason_of,
    route,
    upstream::Next,
};
use crate::{
    config::{HttpRule, HttpTimeouts},
    inbound,
    permission::Decision,
    record::Reason,
    snapshot::{ServiceRoute, Snapshot, Target},
    tls::verify::{VerifiedPeer, denied},
    workers::Worker,
};

/// A side of a sidecar, for the requests of one connection.
pub enum Side {
    /// In, to the application.
    Inbound(InboundSide),
    /// Out, to a service.
    Outbound(OutboundSide),
}

/// In, to the application.
pub struct InboundSide {
    /// The inbound's address in the documents.
    pub listen: SocketAddr,
    /// Who called. `None`: a permissive inbound took it without mesh TLS.
    pub peer: Option<VerifiedPeer>,
    /// What was decided by the last snapshot: it holds for all requests until another comes.
    decided: RefCell<Option<Rc<Decided>>>,
}

struct Decided {
    snapshot: Arc<Snapshot>,
    verdict: Result<Verdict, (Reason, Option<Arc<str>>, String)>,
}

struct Verdict {
    policy: Option<Arc<str>>,
    shadow: bool,
    address: SocketAddr,
    protocol: crate::config::Protocol,
    timeouts: crate::config::Timeouts,
}

impl InboundSide {
    /// For a connection of `peer`.
    #[must_use]
    pub fn new(listen: SocketAddr, peer: Option<VerifiedPeer>) -> Self {
        Self {
            listen,
            peer,
            decided: RefCell::default(),
        }
    }
}

/// Out, to a service.
pub struct OutboundSide {
    /// The service document.
    pub document: Arc<str>,
}

/// A request that may go on.
pub struct Admitted {
    /// Where to.
    pub next: Next,
    /// The rule that routed it.
    pub rule: Option<Arc<HttpRule>>,
    /// Services that get a copy.
    pub mirrors: Vec<Arc<ServiceRoute>>,
    /// How long it may take.
    pub timeouts: Arc<HttpTimeouts>,
    /// The policy entry that routed it.
    pub origin: Arc<str>,
}

impl Side {
    /// Decides whether a request may be here, and where it goes.
    ///
    /// # Errors
    /// With the answer, where it goes nowhere.
    pub fn admit(
        &self,
        worker: &Worker,
        snapshot: &Arc<Snapshot>,
        head: &mut RequestHead,
        record: &mut RequestRecord,
    ) -> Result<Admitted, Box<Answer>> {
        make_path_normal(head);
        match self {
            Self::Inbound(side) => side.admit(worker, snapshot, record),
            Self::Outbound(side) => side.admit(worker, snapshot, head, record),
        }
    }

    /// Looks at an answer before it goes back: what the other side's proxy says of why it answered itself goes into the record,
    /// and no application may say such things.
    pub fn look_at_answer(&self, head: &mut ResponseHead, record: &mut RequestRecord) {
        match self {
            Self::Inbound(_) => {
                head.headers.remove(REASON_HEADER);
            }
            Self::Outbound(_) => {
                if let Some(reason) = reason_of(head) {
                    let said_by = match reason {
                        Reason::PermissionDenied => SaidBy::Policy,
                        _ => SaidBy::Proxy,
                    };
                    record.fail(said_by, reason, "said by the proxy at the destination");
                }
            }
        }
    }

    /// How long things may take before it is known where a request goes.
    #[must_use]
    pub fn timeouts(&self, snapshot: &Snapshot) -> Arc<HttpTimeouts> {
        let found = match self {
            Self::Inbound(side) => match snapshot.targets.get(&side.listen) {
                Some(Target::Inbound(route)) => {
                    let peer = side.peer.as_ref().map(|peer| &peer.id);
                    Some(route.inbound.timeouts_for(peer).http.clone())
                }
                _ => None,
            },
            Self::Outbound(side) => {
                let called = snapshot.services.get(&*side.document);
                called.map(|called| called.service.timeouts.http.clone())
            }
        };
        found.unwrap_or_else(|| Arc::new(HttpTimeouts::built_in()))
    }
}

/// Nobody gets past a rule by writing its path in another way, and what is asked next is what was judged.
fn make_path_normal(head: &mut RequestHead) {
    let Cow::Owned(path) = normal(head.path.path()) else {
        return;
    };
    let made = match head.path.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    // It consists of what it consisted of before.
    if let Ok(made) = made {
        head.path = made;
    }
}

impl InboundSide {
    fn admit(
        &self,
        worker: &Worker,
        snapshot: &Arc<Snapshot>,
        record: &mut RequestRecord,
    ) -> Result<Admitted, Box<Answer>> {
        let decided = self.decide(snapshot);
        match &decided.verdict {
            Ok(verdict) => {
                record.policy.clone_from(&verdict.policy);
                if verdict.shadow {
                    worker.count_shadow_denied(&record.connection);
                }
                Ok(Admitted {
                    next: Next::Application {
                        address: verdict.address,
                        protocol: verdict.protocol,
                        timeouts: verdict.timeouts.clone(),
                    },
                    rule: None,
                    mirrors: Vec::new(),
                    timeouts: verdict.timeouts.http.clone(),
                    origin: Arc::default(),
                })
            }
            Err((reason, policy, detail)) => {
                record.policy.clone_from(policy);
                record.fail(SaidBy::Policy, *reason, detail.clone());
                let text = match policy {
                    Some(policy) => format!("{detail} (by {policy})"),
                    None => detail.clone(),
                };
                let status = match reason {
                    Reason::PermissionDenied | Reason::TrustWithdrawn => StatusCode::FORBIDDEN,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                Err(Box::new(Answer::new(status, *reason, text)))
            }
        }
    }

    fn decide(&self, snapshot: &Arc<Snapshot>) -> Rc<Decided> {
        if let Some(decided) = &*self.decided.borrow()
            && Arc::ptr_eq(&decided.snapshot, snapshot)
        {
            return decided.clone();
        }
        let decided = Rc::new(Decided {
            verdict: self.verdict(snapshot),
            snapshot: snapshot.clone(),
        });
        self.decided.replace(Some(decided.clone()));
        decided
    }

    fn verdict(&self, snapshot: &Snapshot) -> Result<Verdict, (Reason, Option<Arc<str>>, String)> {
        let Some(Target::Inbound(route)) = snapshot.targets.get(&self.listen) else {
            let detail = "the inbound has just been removed".to_owned();
            return Err((Reason::NotConfigured, None, detail));
        };
        let inbound = &route.inbound;
        let mut verdict = Verdict {
            policy: None,
            shadow: false,
            address: inbound.application,
            protocol: inbound.protocol,
            timeouts: inbound
                .timeouts_for(self.peer.as_ref().map(|peer| &peer.id))
                .clone(),
        };
        // Without mesh TLS there is nobody to ask about; whether that may be here, the inbound's mode has said.
        let Some(peer) = &self.peer else {
            return Ok(verdict);
        };
        match inbound::judge(snapshot, inbound, peer) {
            Err(reason) => {
                let detail = format!("nobody vouches for {} any more", peer.id);
                return Err((reason, None, detail));
            }
            Ok(Decision::Allowed { by }) => verdict.policy = Some(by.into()),
            Ok(Decision::ShadowDenied { by }) => {
                verdict.policy = Some(by.into());
                verdict.shadow = true;
            }
            Ok(Decision::Denied { by }) => {
                let detail = denied(&peer.id, by).to_string();
                return Err((Reason::PermissionDenied, by.map(Into::into), detail));
            }
        }
        Ok(verdict)
    }
}

impl OutboundSide {
    fn admit(
        &self,
        worker: &Worker,
        snapshot: &Arc<Snapshot>,
        head: &mut RequestHead,
        record: &mut RequestRecord,
    ) -> Result<Admitted, Box<Answer>> {
        let unknown = |record: &mut RequestRecord, what: &str| {
            record.fail(SaidBy::Proxy, Reason::NoService, what);
            let answer = Answer::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Reason::NoService,
                what.to_owned(),
            );
            Err(Box::new(answer))
        };
        let Some(called) = snapshot.services.get(&*self.document) else {
            let what = "the service has not come from the zone control plane: is it connected, and does the service exist?";
            return unknown(record, what);
        };
        let Some(proxy) = &snapshot.proxy else {
            let what = "what this proxy is has not come from the zone control plane";
            return unknown(record, what);
        };
        let routed = match route::route(worker, snapshot, called, head) {
            Ok(routed) => routed,
            Err((answer, origin)) => {
                record.route = origin;
                if answer.reason != Reason::None {
                    record.fail(SaidBy::Policy, answer.reason, answer.text.clone());
                }
                return Err(answer);
            }
        };
        let rule = routed.rule;
        let origin = rule
            .as_ref()
            .map(|rule| rule.origin.clone())
            .unwrap_or_default();
        record.route.clone_from(&origin);
        record.destination = routed.reached.service.name.clone();
        let timeouts = rule.as_ref().and_then(|rule| rule.timeouts.clone());
        Ok(Admitted {
            next: Next::Service {
                route: routed.reached,
                own_zone: proxy.zone.clone(),
            },
            mirrors: routed.mirrors,
            timeouts: timeouts.unwrap_or_else(|| called.service.timeouts.http.clone()),
            rule,
            origin,
        })
    }
}
