//! What deserves attention: what ends soon, who is away, what is refused.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use mesh_model::api::{Check, DataplaneView, Expiry, Finding, TokenUse};
use mesh_proto::{
    raft::ConnectedZone,
    zone::{ListDataplanes, MeshStatus, query::What},
};

use super::{
    caller::Caller,
    problem::Problem,
    status::known_zones,
    zones::{self, NoAnswer, Question},
};
use crate::{
    app::App,
    authorize::{Action, Actor, authorize, mesh_of},
    certificates::{self, Lifetime},
    clock, cluster, issue,
    state::image::Image,
    tokens,
    zone_sync::rollout::{KnownZone, stream_of, zone_state},
};

/// Certificates in the answer, the earliest end first.
const CERTIFICATES_MAX: usize = 1000;
/// Findings in the answer, the worst first.
const FINDINGS_MAX: usize = 1000;
/// Dataplanes of one mesh in one zone that are named.
const NAMED_MAX: usize = 20;
/// Detections that timed out are told for so long.
const DETECTION_SECONDS: i64 = 24 * 3600;
/// Tokens that end within this are told.
const TOKEN_SECONDS: i64 = 14 * 24 * 3600;

/// `GET /v1/check`: of what the caller may see.
pub async fn check(State(app): State<App>, caller: Caller) -> Result<Json<Check>, Problem> {
    caller.may(&app, Action::ReadInstallation, "", "")?;
    let actor = &caller.actor;
    let statuses = app.cluster.zone_statuses().await;
    let nodes = statuses.nodes.clone();
    let connected: Vec<ConnectedZone> = statuses.zones.into_iter().map(|(_, zone)| zone).collect();
    let image = app.image();
    let zones = known_zones(&image);
    let now = i64::try_from(clock::now_seconds()).unwrap_or(i64::MAX);
    let (views, silent) = dataplanes(&app, actor, &zones, &connected).await;
    let mut lifetimes: Vec<Lifetime> = views.iter().filter_map(lifetime).collect();
    lifetimes.extend(
        certificates::stored(&image)
            .into_iter()
            .filter(|life| life.mesh.is_empty() || reads(actor, &life.mesh, "MeshTrust")),
    );
    lifetimes.extend(certificates::of_control_planes(&nodes, &connected));
    lifetimes.sort_by(|a, b| (a.ends, &a.subject).cmp(&(b.ends, &b.subject)));

    let mut findings = Vec::new();
    findings.extend(lifetimes.iter().filter_map(|life| ending(life, now)));
    findings.extend(of_nodes(&app.cluster.status()));
    findings.extend(of_zones(&zones, &connected, image.revision()));
    for zone in &zones {
        if let Some(stream) = stream_of(&zone.name, &connected) {
            findings.extend(of_stream(stream, |mesh, kind| reads(actor, mesh, kind)));
        }
    }
    findings.extend(undetected(&views, now));
    findings.extend(silent.into_iter().map(|zone| {
        finding(
            "warning",
            format!("zone {}", zone.zone),
            format!("it did not say which dataplanes it has: {}", zone.reason),
            "what its dataplanes say is missing here; ask again when it answers",
        )
    }));
    findings.extend(of_tokens(&image, actor, now));
    findings.sort_by(|a, b| (&a.severity, &a.subject).cmp(&(&b.severity, &b.subject)));
    findings.truncate(FINDINGS_MAX);
    lifetimes.truncate(CERTIFICATES_MAX);
    Ok(Json(Check {
        findings,
        certificates: lifetimes
            .into_iter()
            .map(|life| Expiry {
                subject: life.subject,
                not_after: clock::from_seconds(u64::try_from(life.ends).unwrap_or_default()),
                seconds_left: life.ends - now,
            })
            .collect(),
    }))
}

fn reads(actor: &Actor, mesh: &str, kind: &str) -> bool {
    authorize(actor, Action::Read, mesh, kind).is_ok()
}

fn finding(severity: &str, subject: String, message: String, remedy: &str) -> Finding {
    Finding {
        severity: severity.to_owned(),
        subject,
        message,
        remedy: remedy.to_owned(),
    }
}

/// Dataplanes, as their zones know them. Only meshes that have some in a zone are asked about.
async fn dataplanes(
    app: &App,
    actor: &Actor,
    zones: &[KnownZone],
    connected: &[ConnectedZone],
) -> (Vec<DataplaneView>, Vec<NoAnswer>) {
    let mut questions = Vec::new();
    for zone in zones.iter().filter(|zone| zone.enabled) {
        let status = stream_of(&zone.name, connected).and_then(|stream| stream.status.as_ref());
        let meshes = status.iter().flat_map(|status| &status.meshes);
        let asked = meshes.filter(|mesh| {
            mesh.dataplanes > 0
                && zone.meshes.contains(&mesh.mesh)
                && reads(actor, &mesh.mesh, "Dataplane")
        });
        questions.extend(asked.map(|mesh| Question {
            zone: zone.name.clone(),
            what: What::ListDataplanes(ListDataplanes {
                mesh: mesh.mesh.clone(),
            }),
        }));
    }
    let mut found = Vec::new();
    let mut silent: Vec<NoAnswer> = Vec::new();
    for (question, answer) in zones::ask_each::<Vec<DataplaneView>>(app, questions).await {
        let What::ListDataplanes(ListDataplanes { mesh }) = question.what else {
            continue;
        };
        match answer {
            Ok(views) => found.extend(views.into_iter().filter(|view| view.mesh == mesh)),
            Err(zone) if silent.iter().all(|known| known.zone != zone.zone) => silent.push(zone),
            Err(_) => {}
        }
    }
    (found, silent)
}

fn lifetime(view: &DataplaneView) -> Option<Lifetime> {
    (view.certificate_not_after > 0).then(|| Lifetime {
        subject: format!("dataplane {}/{}", view.mesh, view.name),
        mesh: view.mesh.clone(),
        ends: i64::try_from(view.certificate_not_after).unwrap_or(i64::MAX),
        // How long it was made for is not known here.
        worry: 0,
    })
}

/// Ports at which connections were delayed, since nothing says what is spoken there and nobody could tell.
fn undetected(views: &[DataplaneView], now: i64) -> Vec<Finding> {
    #[derive(Default)]
    struct Seen {
        by_callers: u64,
        by_called: u64,
        last_at: u64,
    }
    let mut ports: BTreeMap<(&str, &str, u16), Seen> = BTreeMap::new();
    for view in views {
        for told in &view.detection_timeouts {
            let port = (&*view.mesh, &*told.service, told.port);
            let seen = ports.entry(port).or_default();
            let by = match told.direction.as_str() {
                "inbound" => &mut seen.by_called,
                _ => &mut seen.by_callers,
            };
            *by = by.saturating_add(told.connections);
            seen.last_at = seen.last_at.max(told.last_at);
        }
    }
    let ago = |seen: &Seen| now - i64::try_from(seen.last_at).unwrap_or(now);
    ports
        .into_iter()
        .filter(|(_, seen)| ago(seen) < DETECTION_SECONDS)
        .map(|((mesh, service, port), seen)| {
            // The called one sees again most of what callers have seen.
            let count = match seen.by_callers.max(seen.by_called) {
                1 => "one connection".to_owned(),
                many => format!("{many} connections"),
            };
            // A dataplane's clock may be ahead.
            let ago = words(ago(&seen).max(0));
            finding(
                "warning",
                format!("service {mesh}/{service}:{port}"),
                format!(
                    "nothing declares what it speaks, and of {count} that could not be told in time, the last {ago} ago: each was held back for seconds",
                ),
                "say it in the MeshService (`appProtocol: tcp` on that port, or `http`, `http2`, `grpc`), or in the Dataplane of each instance (`protocol` of the inbound)",
            )
        })
        .collect()
}

/// What is over, or should have been renewed.
fn ending(life: &Lifetime, now: i64) -> Option<Finding> {
    let left = life.ends - now;
    let remedy = match life.subject.split_once(' ') {
        Some(("installation", _)) => "rotate the installation CA",
        Some(("global", _)) => "look at the log of that node: it renews its certificate by itself",
        Some(("dataplane", _)) => {
            "look at the logs of the dataplane and its zone: it asks for a new one by itself"
        }
        _ => {
            "look at the log of the zone's control plane: it renews it by itself while it is connected"
        }
    };
    if left <= 0 {
        let message = format!("its certificate ended {} ago", words(-left));
        return Some(finding("error", life.subject.clone(), message, remedy));
    }
    (left < life.worry).then(|| {
        let message = format!(
            "its certificate ends in {}, and should have been renewed by now",
            words(left)
        );
        finding("warning", life.subject.clone(), message, remedy)
    })
}

fn words(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn of_nodes(status: &cluster::Status) -> Vec<Finding> {
    let mut findings: Vec<Finding> = status
        .members
        .iter()
        .filter(|member| !member.reachable)
        .map(|member| {
            finding(
                "error",
                format!("global node {}", member.id),
                format!("it does not answer at {}", member.addresses.raft),
                "start it again; if its machine is lost: `meshctl global remove-node`, and join a new one",
            )
        })
        .collect();
    if status.leader.is_none() {
        findings.push(finding(
            "error",
            "global control plane".to_owned(),
            "no node leads: nothing can be written".to_owned(),
            "start the nodes that are down: more than half of them must run",
        ));
    }
    findings
}

fn of_zones(zones: &[KnownZone], connected: &[ConnectedZone], newest: u64) -> Vec<Finding> {
    let look =
        "look at the log of its control plane, and whether it reaches a global node's zone port";
    zones
        .iter()
        .filter_map(|zone| {
            let stream = stream_of(&zone.name, connected);
            let subject = format!("zone {}", zone.name);
            match zone_state(zone, stream, newest) {
                "offline" => Some(finding(
                    "error",
                    subject,
                    "it is not connected; its dataplanes go on with what they have".to_owned(),
                    look,
                )),
                "stale" => Some(finding(
                    "error",
                    subject,
                    "nothing was heard of it for more than 30 s".to_owned(),
                    look,
                )),
                "behind" => Some(finding(
                    "warning",
                    subject,
                    format!(
                        "it has applied revision {} of {newest}",
                        stream.map_or(0, |stream| stream.acknowledged_revision)
                    ),
                    "ask again: this passes within a second, unless the zone is overloaded",
                )),
                "unjoined" => Some(finding(
                    "warning",
                    subject,
                    "it was declared and has never been heard of".to_owned(),
                    "join it with `meshctl zone join`, or delete it",
                )),
                _ => None,
            }
        })
        .collect()
}

/// What a zone says of its dataplanes, and of what it was told.
fn of_stream(stream: &ConnectedZone, reads: impl Fn(&str, &str) -> bool) -> Vec<Finding> {
    let Some(status) = &stream.status else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let seen = |mesh: &&MeshStatus| mesh.mesh.is_empty() || reads(&mesh.mesh, "Dataplane");
    for mesh in status.meshes.iter().filter(seen) {
        for refusal in mesh.refused.iter().take(NAMED_MAX) {
            findings.push(finding(
                "error",
                format!("dataplane {}/{}", mesh.mesh, refusal.dataplane),
                format!("it refuses {}: {}", refusal.document, refusal.reason),
                "`meshctl inspect` on what was changed last shows it too: change it, roll it back, or upgrade the dataplane",
            ));
        }
        let more = (mesh.refused_count as usize).saturating_sub(NAMED_MAX);
        if more > 0 {
            findings.push(finding(
                "error",
                format!("mesh {} in {}", mesh.mesh, stream.zone),
                format!("{more} further dataplanes refuse something"),
                "mend what the named ones refuse first",
            ));
        }
        if mesh.silent_count > 0 {
            let mut names = mesh.silent.clone();
            names.truncate(NAMED_MAX);
            findings.push(finding(
                "warning",
                format!("mesh {} in {}", mesh.mesh, stream.zone),
                format!(
                    "{} dataplanes are known and not connected: {}",
                    mesh.silent_count,
                    names.join(", ")
                ),
                "start them again; those that are gone for good are forgotten after the grace period",
            ));
        }
    }
    for refusal in &status.refused {
        let Some(key) = &refusal.key else { continue };
        let mesh = mesh_of(key);
        if mesh.is_empty() || reads(mesh, &key.kind) {
            findings.push(finding(
                "error",
                key.to_string(),
                format!("zone {} can not apply it: {}", stream.zone, refusal.reason),
                "change it, or upgrade the zone's control plane",
            ));
        }
    }
    findings
}

fn of_tokens(image: &Image, actor: &Actor, now: i64) -> Vec<Finding> {
    let listed = issue::list(image, actor, u64::try_from(now).unwrap_or_default());
    listed
        .into_iter()
        .filter(|token| {
            token.state == "active"
                && !matches!(token.asked.usage, TokenUse::ZoneJoin | TokenUse::NodeJoin)
        })
        .filter_map(|token| {
            let ends = i64::try_from(clock::parse_ms(&token.expires)? / 1000).ok()?;
            let left = ends - now;
            let described = match token.asked.description.as_str() {
                "" => String::new(),
                text => format!(", {text:?}"),
            };
            (left < TOKEN_SECONDS).then(|| {
                finding(
                    "warning",
                    format!("token {}", token.id),
                    format!(
                        "it ends in {} ({}{described})",
                        words(left),
                        tokens::use_word(token.asked.usage)
                    ),
                    "make a new one with `meshctl token create` and hand it over before",
                )
            })
        })
        .collect()
}
