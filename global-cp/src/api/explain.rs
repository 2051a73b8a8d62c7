//! Whether a call is allowed, where it goes, and which policies say so.
//!
//! The zones of the callers say where calls go, the zones of the called say whom they let in; each answers from what it
//! has compiled. Here the two sides are put together.

use std::collections::{BTreeMap, BTreeSet};

use axum::{Json, extract::State};
use mesh_model::api::{
    CallRequest, ExplainedCall, ExplainedCaller, ExplainedInbound, Explanation, Unanswered,
};
use mesh_proto::zone::{self, ExplainCall, ExplainInbound, ResourceKey, query::What};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    caller::{Caller, Params, Segments},
    problem::Problem,
    zones::{self, Question},
};
use crate::{
    app::App,
    authorize::{Action, sees},
    state::image::Image,
};

/// Services looked at for a name that was probably meant.
const SERVICES_MAX: usize = 20_000;
/// Names suggested at once.
const NAMED_MAX: usize = 3;
/// Called sides asked about for one explanation: callers of one identity that go the same way count as one.
const INBOUND_QUESTIONS_MAX: usize = 500;

// What `CallRequest::of_parameters` takes, as the published description says it.
pub(super) const TOKEN_PATTERN: &str = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
const PATH_PATTERN: &str = r"^/[^\x00-\x20\x7f#]*$";
const HEADERS_PATTERN: &str = r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x1f\x7f-\x9f]*(\n|$))*$";

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// A dataplane, a service or a workload.
    from: String,
    /// A service.
    to: String,
    /// Absent: each port.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// Method of a request that is asked about, where the port takes requests of HTTP; absent: `GET`. Without `method`, `path`
    /// and `headers`, each request that may be.
    #[schemars(regex(pattern = TOKEN_PATTERN))]
    method: Option<String>,
    /// Its path, with the query; absent: `/`.
    #[schemars(regex(pattern = PATH_PATTERN))]
    path: Option<String>,
    /// Its headers: lines of `name: value`.
    #[schemars(regex(pattern = HEADERS_PATTERN))]
    headers: Option<String>,
    #[serde(rename = "consistency")]
    #[schemars(with = "Option<super::query::Consistency>")]
    _consistency: Option<String>,
}

/// `GET /v1/meshes/{mesh}/explain?from=web&to=store&port=80`
pub async fn explain(
    State(app): State<App>,
    caller: Caller,
    Segments(mesh): Segments<String>,
    Params(params): Params<ExplainQuery>,
) -> Result<Json<Explanation>, Problem> {
    caller.may(&app, Action::Read, &mesh, "Dataplane")?;
    if params.port == Some(0) {
        return Err(Problem::bad_request("port: must be between 1 and 65535"));
    }
    let (method, path) = (params.method.as_deref(), params.path.as_deref());
    let request = CallRequest::of_parameters(method, path, params.headers.as_deref())
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    let zones = zones::zones_of(&app.image(), &mesh, None)?;
    let what = What::ExplainCall(ExplainCall {
        mesh: mesh.clone(),
        from: params.from.clone(),
        to: params.to.clone(),
        port: params.port.unwrap_or_default().into(),
        request: request.map(to_wire),
    });
    let answers = zones::ask::<Vec<ExplainedCaller>>(&app, &zones, &what).await;
    let mut unanswered = answers.silent();
    let callers: Vec<ExplainedCaller> = answers
        .answered
        .into_iter()
        .flat_map(|(zone, callers)| {
            callers.into_iter().map(move |caller| ExplainedCaller {
                zone: zone.clone(),
                ..caller
            })
        })
        .collect();
    if callers.is_empty() {
        return Err(unexplained(
            &app.image(),
            &caller,
            &mesh,
            &params,
            &unanswered,
        ));
    }
    let known: BTreeSet<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
    let wanted: BTreeSet<Way> = callers
        .iter()
        .flat_map(ways)
        .filter(|way| known.contains(way.zone.as_str()))
        .collect();
    if wanted.len() > INBOUND_QUESTIONS_MAX {
        return Err(Problem::bad_request(format!(
            "this is about {} ways, more than the {INBOUND_QUESTIONS_MAX} that are explained at once",
            wanted.len()
        ))
        .detail("name a single dataplane as `from`, and a port"));
    }
    let questions = wanted.iter().map(|way| way.question(&mesh)).collect();
    let answers = zones::ask_each::<Vec<ExplainedInbound>>(&app, questions).await;
    let mut inbounds = BTreeMap::new();
    for (way, (question, answer)) in wanted.into_iter().zip(answers) {
        match answer {
            Ok(found) => {
                let named = found.into_iter().map(|inbound| ExplainedInbound {
                    zone: question.zone.clone(),
                    ..inbound
                });
                inbounds.insert(way, named.collect());
            }
            Err(silent) => unanswered.push(silent.into()),
        }
    }
    unanswered.sort_by(|a, b| a.zone.cmp(&b.zone));
    unanswered.dedup();
    Ok(Json(Explanation {
        mesh,
        from: params.from,
        to: params.to,
        calls: callers
            .into_iter()
            .map(|caller| combine(caller, &inbounds))
            .collect(),
        unanswered,
    }))
}

fn to_wire(request: CallRequest) -> zone::CallRequest {
    let headers = request.headers.into_iter();
    zone::CallRequest {
        method: request.method,
        path: request.path,
        headers: headers
            .map(|(name, value)| zone::CallHeader { name, value })
            .collect(),
    }
}

/// Why no zone has an answer: nothing of that name is called, or nobody of that name calls.
fn unexplained(
    image: &Image,
    caller: &Caller,
    mesh: &str,
    params: &ExplainQuery,
    unanswered: &[Unanswered],
) -> Problem {
    let services: BTreeSet<String> = image
        .list("MeshService", Some(mesh), None, SERVICES_MAX)
        .into_iter()
        .filter(|stored| sees(&caller.actor, &stored.key))
        .map(|stored| stored.key.name)
        .collect();
    let (from, to) = (&params.from, &params.to);
    let (what, hint) = if services.contains(to) {
        let what = format!(
            "knows a dataplane, service or workload {from:?} of mesh {mesh} that could call"
        );
        (what, meant(from, &services))
    } else if let Some(kind) = other_destination(image, mesh, to) {
        return Problem::not_found(format!("{to} is a {kind} of mesh {mesh}"))
            .detail("only calls to a MeshService are explained so far");
    } else {
        let what = format!("knows a service {to:?} of mesh {mesh} that could be called");
        (what, meant(to, &services))
    };
    if unanswered.is_empty() {
        return Problem::not_found(format!("no zone {what}")).detail(hint);
    }
    let words: Vec<String> = unanswered
        .iter()
        .map(|zone| format!("{}: {}", zone.zone, zone.reason))
        .collect();
    Problem::unavailable(format!("no zone that answers {what}"))
        .detail(format!("{}; {hint}", words.join("; ")))
}

/// Which kind of destination `name` is, where it is one that no MeshService is.
fn other_destination(image: &Image, mesh: &str, name: &str) -> Option<&'static str> {
    ["MeshMultiZoneService", "MeshExternalService"]
        .into_iter()
        .find(|kind| image.get(&ResourceKey::global(kind, mesh, name)).is_some())
}

/// The services that are probably meant by `word`, or some of those there are.
fn meant(word: &str, services: &BTreeSet<String>) -> String {
    let near = mesh_model::near(word, services.iter().map(String::as_str));
    if !near.is_empty() {
        let near: Vec<_> = near.into_iter().take(NAMED_MAX).collect();
        return format!("did you mean {}?", near.join(" or "));
    }
    let named: Vec<_> = services
        .iter()
        .take(NAMED_MAX)
        .map(String::as_str)
        .collect();
    match services.len().saturating_sub(NAMED_MAX) {
        _ if named.is_empty() => "the mesh has no service yet".to_owned(),
        0 => format!("its services are {}", named.join(", ")),
        more => format!("its services are {} and {more} more", named.join(", ")),
    }
}

/// A way into a zone that calls of one identity may take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    zone: String,
    service: String,
    port: u16,
    caller: String,
}

impl Way {
    fn question(&self, mesh: &str) -> Question {
        Question {
            zone: self.zone.clone(),
            what: What::ExplainInbound(ExplainInbound {
                mesh: mesh.to_owned(),
                service: self.service.clone(),
                port: self.port.into(),
                caller_spiffe_id: self.caller.clone(),
            }),
        }
    }
}

/// The ways that calls of `caller` take, where they are not bound to fail before.
fn ways(caller: &ExplainedCaller) -> impl Iterator<Item = Way> {
    caller
        .backends
        .iter()
        .filter(|backend| backend.error.is_none() && backend.weight > 0)
        .flat_map(|backend| {
            backend.zones.iter().map(|zone| Way {
                zone: zone.clone(),
                service: backend.service.clone(),
                port: backend.port,
                caller: caller.spiffe_id.clone(),
            })
        })
}

/// Puts the two sides of a call together. A way that `inbounds` does not hold is one whose zone did not answer.
fn combine(
    caller: ExplainedCaller,
    inbounds: &BTreeMap<Way, Vec<ExplainedInbound>>,
) -> ExplainedCall {
    let mut met: Vec<ExplainedInbound> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    let mut silent: Vec<String> = Vec::new();
    let mut nothing = false;
    if let Some(answer) = &caller.answer {
        reasons.push(format!("{}'s proxy {answer}", caller.dataplane));
    }
    for backend in caller.backends.iter().filter(|backend| backend.weight > 0) {
        let called = format!("{}:{}", backend.service, backend.port);
        if let Some(error) = &backend.error {
            nothing = true;
            reasons.push(format!("{called}: {error}"));
        } else if backend.zones.is_empty() {
            nothing = true;
            reasons.push(format!("{called}: nobody is there to take the call"));
        }
    }
    for way in ways(&caller) {
        match inbounds.get(&way) {
            None => silent.push(way.zone),
            Some(found) => {
                if !found.iter().any(|inbound| inbound.ready) {
                    nothing = true;
                    reasons.push(format!(
                        "{}:{}: nothing in zone {} takes connections",
                        way.service, way.port, way.zone
                    ));
                }
                met.extend(found.iter().cloned());
            }
        }
    }
    met.sort_by(|a, b| {
        (&a.zone, &a.dataplane, &a.inbound, a.port).cmp(&(
            &b.zone,
            &b.dataplane,
            &b.inbound,
            b.port,
        ))
    });
    met.dedup();
    let open = met.iter().filter(|inbound| inbound.ready);
    let allowed = open.clone().filter(|inbound| inbound.allowed).count();
    let refused = open.clone().count() - allowed;
    let (verdict, decisive) = match (allowed, refused, nothing) {
        _ if caller.answer.is_some() => ("answered", Some(true)),
        _ if !silent.is_empty() => ("unknown", None),
        (0, _, _) => ("denied", Some(false)),
        (_, 0, false) => ("allowed", Some(true)),
        _ => ("mixed", Some(false)),
    };
    let mut said: Vec<String> = match decisive {
        None => {
            silent.sort();
            silent.dedup();
            vec![format!(
                "zone {} has to say, and does not answer",
                silent.join(" and zone ")
            )]
        }
        Some(decisive) => {
            let mut said: Vec<String> = open
                .filter(|inbound| inbound.allowed == decisive)
                .map(|inbound| inbound.reason.clone())
                .collect();
            said.extend(reasons);
            said
        }
    };
    if said.is_empty() {
        said.push(format!(
            "nothing leads to {}:{}",
            caller.service, caller.port
        ));
    }
    let mut seen = BTreeSet::new();
    said.retain(|reason| seen.insert(reason.clone()));
    let more = said.len().saturating_sub(REASONS_MAX);
    said.truncate(REASONS_MAX);
    let mut reason = said.join("; ");
    if more > 0 {
        reason.push_str(&format!("; and {more} more"));
    }
    if caller.outbound.is_none() {
        reason.push_str(&format!(
            "; {} declares no outbound that leads there",
            caller.dataplane
        ));
    }
    ExplainedCall {
        caller,
        inbounds: met,
        verdict: verdict.to_owned(),
        reason,
    }
}

/// Reasons named in the one line.
const REASONS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use mesh_model::api::ExplainedBackend;

    use super::*;

    /// What the case is, where calls go, who is met there, and what must come of it: verdict and reason.
    type Case = (
        &'static str,
        Vec<ExplainedBackend>,
        Vec<ExplainedInbound>,
        &'static str,
        &'static str,
    );

    fn backend(service: &str, zones: &[&str]) -> ExplainedBackend {
        ExplainedBackend {
            service: service.into(),
            port: 80,
            weight: 1,
            endpoints: vec![],
            zones: zones.iter().map(|zone| (*zone).to_owned()).collect(),
            identities: vec![],
            error: None,
        }
    }

    fn caller(backends: Vec<ExplainedBackend>) -> ExplainedCaller {
        ExplainedCaller {
            zone: "east".into(),
            dataplane: "web-1".into(),
            spiffe_id: "spiffe://pay.east.mesh.local/workload/web".into(),
            service: "store".into(),
            port: 80,
            outbound: Some("127.0.0.1:8080".into()),
            request: None,
            route: None,
            rules: vec![],
            answer: None,
            backends,
            settings: vec![],
        }
    }

    fn inbound(name: &str, ready: bool, allowed: bool) -> ExplainedInbound {
        ExplainedInbound {
            zone: "west".into(),
            dataplane: name.into(),
            inbound: "http".into(),
            service: "store".into(),
            port: 80,
            ready,
            allowed,
            shadow_denied: false,
            origin: allowed.then(|| "web-to-store#0".to_owned()),
            reason: if allowed {
                "web-to-store#0 allows it".into()
            } else {
                "no permission allows it".into()
            },
            settings: vec![],
        }
    }

    fn explain(
        backends: Vec<ExplainedBackend>,
        answers: &[(&str, Vec<ExplainedInbound>)],
    ) -> (String, String) {
        let caller = caller(backends);
        let inbounds = ways(&caller)
            .filter_map(|way| {
                let (_, found) = answers
                    .iter()
                    .find(|(service, _)| *service == way.service)?;
                Some((way, found.clone()))
            })
            .collect();
        let call = combine(caller, &inbounds);
        (call.verdict, call.reason)
    }

    #[test]
    fn the_verdict_follows_from_every_inbound_that_can_be_met() {
        let west = || vec![backend("store", &["west"])];
        let table: [Case; 6] = [
            (
                "all let it in",
                west(),
                vec![inbound("a", true, true), inbound("b", true, true)],
                "allowed",
                "web-to-store#0 allows it",
            ),
            (
                "none does",
                west(),
                vec![inbound("a", true, false)],
                "denied",
                "no permission allows it",
            ),
            (
                "some do",
                west(),
                vec![inbound("a", true, true), inbound("b", true, false)],
                "mixed",
                "no permission allows it",
            ),
            (
                "one that is not ready is not met",
                west(),
                vec![inbound("a", true, true), inbound("b", false, false)],
                "allowed",
                "web-to-store#0 allows it",
            ),
            (
                "none is ready",
                west(),
                vec![inbound("a", false, true)],
                "denied",
                "store:80: nothing in zone west takes connections",
            ),
            (
                "no endpoint anywhere",
                vec![backend("store", &[])],
                vec![],
                "denied",
                "store:80: nobody is there to take the call",
            ),
        ];
        for (case, backends, found, verdict, reason) in table {
            let explained = explain(backends, &[("store", found)]);
            assert_eq!(explained, (verdict.to_owned(), reason.to_owned()), "{case}");
        }
    }

    #[test]
    fn a_backend_that_fails_before_anybody_is_met_denies_its_share() {
        let mut missing = backend("other", &[]);
        missing.error = Some("there is no service other".into());
        let backends = vec![backend("store", &["west"]), missing.clone()];
        let found = [("store", vec![inbound("a", true, true)])];
        let (verdict, reason) = explain(backends, &found);
        assert_eq!(verdict, "mixed");
        assert_eq!(reason, "other:80: there is no service other");
        // Without a share of the calls it decides nothing.
        missing.weight = 0;
        let (verdict, _) = explain(vec![backend("store", &["west"]), missing], &found);
        assert_eq!(verdict, "allowed");
    }

    #[test]
    fn what_a_silent_zone_would_say_is_not_guessed() {
        let (verdict, reason) = explain(vec![backend("store", &["west"])], &[]);
        assert_eq!(verdict, "unknown");
        assert_eq!(reason, "zone west has to say, and does not answer");
    }

    #[test]
    fn what_the_callers_proxy_answers_needs_nobody() {
        let mut caller = caller(vec![]);
        caller.answer = Some("answers 404: no rule takes this request".into());
        let call = combine(caller, &BTreeMap::new());
        assert_eq!(call.verdict, "answered");
        assert_eq!(
            call.reason,
            "web-1's proxy answers 404: no rule takes this request"
        );
    }

    #[test]
    fn a_caller_without_outbound_is_told_so() {
        let mut caller = caller(vec![]);
        caller.outbound = None;
        let call = combine(caller, &BTreeMap::new());
        assert_eq!(call.verdict, "denied");
        assert_eq!(
            call.reason,
            "nothing leads to store:80; web-1 declares no outbound that leads there"
        );
    }
}
