//! `meshctl tap`: requests as they end, one line each. What is not shown, and who is not heard, is said on standard error.

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use mesh_model::api::{Party, Problem, TapState, TappedRequest};
use serde::de::DeserializeOwned;

use crate::{
    cli::{Connection, checked_name},
    client::{Client, ClientError},
    completion,
    failure::Failure,
    inspect,
    output::{self, Format, FormatParser},
};

const EXAMPLES: &str = "\
Examples:
  meshctl tap -m payments --service store                 what store asks and is asked, for ten minutes
  meshctl tap -m payments --to store --status 5xx,none    what failed of it
  meshctl tap -m payments --dataplane web-1 -o wide       what one dataplane sees, with all that is known of it
  meshctl tap -m payments --route try-next --for 60s      what a MeshHTTPRoute takes
  meshctl tap -m payments --service store --count 1 -o json
                                                          the next request only, for scripts";

/// The server says something every ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Tapped dataplanes that are named.
const NAMED_MAX: usize = 8;
/// A column that is wider does not widen the lines after it.
const COLUMN_MAX: usize = 40;

/// Show requests of HTTP as they end, until the time is over or it is interrupted.
///
/// A request between two dataplanes is seen by both: `out` beside the caller, `in` beside the called application; --direction shows one of
/// them. Neither headers nor bodies are shown, and of paths no query without --query. What is refused before it is a request (a malformed
/// or too large head) has `-` for method and path.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["service", "dataplane", "route", "from", "to"]))]
pub(crate) struct Tap {
    /// What this service asks and is asked.
    #[arg(long, value_name = "SERVICE", add = ArgValueCompleter::new(completion::services))]
    service: Option<String>,
    /// What this dataplane sees.
    #[arg(long, value_name = "DATAPLANE", add = ArgValueCompleter::new(completion::dataplanes))]
    dataplane: Option<String>,
    /// What this MeshHTTPRoute takes.
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// What this service asks.
    #[arg(long, value_name = "SERVICE", add = ArgValueCompleter::new(completion::services))]
    from: Option<String>,
    /// What this service is asked.
    #[arg(long, value_name = "SERVICE", add = ArgValueCompleter::new(completion::services))]
    to: Option<String>,
    /// Only with this method.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Only where the path begins so.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Only with one of these statuses: 503, 5xx, or none for no answer.
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<String>,
    /// Only what has failed: not answered, or with 5xx, or by the mesh, or with a status of gRPC that is the server's fault.
    #[arg(long)]
    failed: bool,
    /// Only as it is seen there.
    #[arg(long, value_name = "DIRECTION")]
    direction: Option<Direction>,
    /// Show paths with their queries, which may hold secrets.
    #[arg(long)]
    query: bool,
    /// Requests that are shown in a second at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
    max_rate: u32,
    /// End after so long; an hour at most.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// End after so many requests.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How a request is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Beside the called application.
    Inbound,
    /// Beside the caller's.
    Outbound,
}

impl Tap {
    /// Shows requests until it ends.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let path = ["meshes", &mesh, "tap"];
        let mut stream = client
            .stream(&path, &self.parameters()?, None, SILENCE_MAX)
            .await?;
        let mut told = Told::default();
        let mut columns = Columns::default();
        let mut shown = 0;
        while let Some(event) = stream.next().await? {
            match event.name.as_str() {
                "" | "message" => {
                    let request: TappedRequest = read(&event.data)?;
                    let text = self.show(&request, &mut columns)?;
                    shown += 1;
                    if !output::print_unless_left(&text)? || self.count == Some(shown) {
                        return Ok(());
                    }
                }
                "state" => say(told.changes(read(&event.data)?)),
                "done" => {
                    let state: TapState = read(&event.data)?;
                    say([format!(
                        "{} shown, {} dropped",
                        requests(state.shown),
                        requests(state.dropped)
                    )]);
                    return inspect::complete(&state.unanswered);
                }
                "end" => {
                    let problem: Problem = read(&event.data)?;
                    return Err(Failure::from(ClientError::Refused(Box::new(problem), None)));
                }
                // Of a newer server.
                _ => {}
            }
        }
        Err(Failure::failed("the server ended the tap"))
    }

    fn parameters(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let named = [
            ("service", &self.service),
            ("dataplane", &self.dataplane),
            ("route", &self.route),
            ("from", &self.from),
            ("to", &self.to),
        ];
        let mut parameters = Vec::new();
        for (name, value) in named {
            if let Some(value) = value {
                checked_name(value)?;
                parameters.push((name, value.clone()));
            }
        }
        let texts = [("method", &self.method), ("path", &self.path)];
        for (name, value) in texts {
            parameters.extend(value.clone().map(|value| (name, value)));
        }
        if !self.status.is_empty() {
            parameters.push(("status", self.status.join(",").to_lowercase()));
        }
        if let Some(direction) = self.direction {
            let word = match direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            };
            parameters.push(("direction", word.to_owned()));
        }
        for (name, asked) in [("failed", self.failed), ("query", self.query)] {
            parameters.extend(asked.then(|| (name, "true".to_owned())));
        }
        let seconds = self.time.as_millis().div_ceil(1000);
        if !(1..=3600).contains(&seconds) {
            return Err(Failure::invalid("--for: must be between 1s and 1h"));
        }
        parameters.push(("for", seconds.to_string()));
        parameters.push(("rate", self.max_rate.to_string()));
        Ok(parameters)
    }

    fn show(&self, request: &TappedRequest, columns: &mut Columns) -> Result<String, Failure> {
        let value = || serde_json::to_value(request).map_err(anyhow::Error::from);
        Ok(match &self.output {
            Format::Table => columns.line(request),
            Format::Wide => format!("{}\n{}", columns.line(request), details(request)),
            Format::Json => value()?.to_string(),
            Format::Yaml => format!("---\n{}", mesh_model::to_yaml(&value()?)),
            Format::Name => request.request_id.clone(),
            Format::JsonPath(template) => template.of(&value()?),
        })
    }
}

fn read<T: DeserializeOwned>(data: &str) -> Result<T, Failure> {
    serde_json::from_str(data).map_err(|error| {
        Failure::failed(format!(
            "an event that can not be read ({error}): is meshctl older than the server? `meshctl version` shows both"
        ))
    })
}

/// Beside what is shown.
fn say(lines: impl IntoIterator<Item = String>) {
    for line in lines {
        eprintln!("{}", printable(&line));
    }
}

fn requests(number: u64) -> String {
    match number {
        1 => "1 request".to_owned(),
        number => format!("{number} requests"),
    }
}

/// What has been said of the tap.
#[derive(Default)]
struct Told(Option<TapState>);

impl Told {
    /// What is new in `state`, in words.
    fn changes(&mut self, state: TapState) -> Vec<String> {
        let old = self.0.replace(state.clone()).unwrap_or_default();
        let mut lines = Vec::new();
        if state.dataplanes != old.dataplanes || old == TapState::default() {
            let count = state.dataplanes.len();
            let named: Vec<_> = state
                .dataplanes
                .iter()
                .take(NAMED_MAX)
                .map(String::as_str)
                .collect();
            let more = if count > NAMED_MAX { ", …" } else { "" };
            lines.push(match count {
                0 => "no dataplane is tapped".to_owned(),
                1 => format!("tapping {}", named.join("")),
                _ => format!("tapping {count} dataplanes: {}{more}", named.join(", ")),
            });
        }
        let silent = state.silent.iter().filter(|one| !old.silent.contains(one));
        lines.extend(silent.map(|one| format!("not tapped: {}: {}", one.name, one.reason)));
        let zones = state.unanswered.iter();
        let zones = zones.filter(|one| !old.unanswered.contains(one));
        lines.extend(zones.map(|one| format!("not tapped: zone {}: {}", one.zone, one.reason)));
        if state.dropped > old.dropped {
            let count = requests(state.dropped);
            lines.push(format!(
                "{count} dropped so far: more than are shown in a second (--max-rate), or lost"
            ));
        }
        lines
    }
}

/// Lines under each other.
#[derive(Default)]
struct Columns([usize; 4]);

impl Columns {
    fn line(&mut self, request: &TappedRequest) -> String {
        let time = request.time.split_once('T').map_or("", |(_, time)| time);
        let time: String = time.chars().take(12).collect();
        let direction = match request.direction.as_str() {
            "inbound" => "in",
            "outbound" => "out",
            other => other,
        };
        let (source, destination) = (&request.source, &request.destination);
        let zones = source.zone != destination.zone && !destination.zone.is_empty();
        let party = |party: &Party| match party.zone.as_str() {
            zone if zones && !zone.is_empty() => format!("{} ({zone})", party.service),
            _ => party.service.clone(),
        };
        let cells = [
            format!("{}/{} {direction}", request.zone, request.dataplane),
            format!("{} -> {}", party(source), party(destination)),
            match request.method.as_str() {
                "" => "-".to_owned(),
                method => format!("{method} {}", request.path),
            },
            status(request),
        ];
        let mut line = time;
        for (cell, width) in cells.iter().zip(&mut self.0) {
            let cell = printable(cell);
            let length = cell.chars().count();
            *width = (*width).max(length.min(COLUMN_MAX));
            line.push_str(&format!("  {cell:<width$}", width = *width));
        }
        line.push_str(&format!("  {}", milliseconds(request.duration_ms)));
        if !request.reason.is_empty() {
            let (by, reason) = (&request.said_by, &request.reason);
            line.push_str(&printable(&format!("  {by}: {reason}")));
        }
        line
    }
}

fn status(request: &TappedRequest) -> String {
    let status = request.status.map_or("-".to_owned(), |s| s.to_string());
    match request.grpc_status {
        Some(grpc) => format!("{status} grpc {grpc}"),
        None => status,
    }
}

/// What the line does not say.
fn details(request: &TappedRequest) -> String {
    let known = |name: &str, value: &str| (!value.is_empty()).then(|| format!("{name} {value}"));
    let party = |party: &Party| {
        let words = [party.spiffe_id.as_str(), party.address.as_str()];
        let words = words.into_iter().filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join(" ")
    };
    let times = [
        ("connected after", request.connect_ms),
        ("first byte after", request.first_byte_ms),
    ];
    let times: Vec<_> = times
        .iter()
        .filter_map(|(name, ms)| Some(format!("{name} {}", milliseconds((*ms)?))))
        .collect();
    let bytes = format!(
        "{} bytes sent, {} received",
        request.bytes_sent, request.bytes_received
    );
    let attempts = (request.attempts != 1).then(|| format!("{} attempts", request.attempts));
    let mirrored = request.mirrored.then(|| "mirrored".to_owned());
    let lines = [
        known("from", &party(&request.source)),
        known("to", &party(&request.destination)),
        known("route", &request.route),
        known("by", &request.policy),
        known("why", &request.detail),
        Some(times.join(", ")).filter(|times| !times.is_empty()),
        Some(bytes),
        attempts,
        mirrored,
        known("HTTP", &request.version),
        known("request", &request.request_id),
        known("trace", &request.trace_id),
    ];
    let lines = lines.into_iter().flatten();
    let lines: Vec<_> = lines
        .map(|line| format!("    {}", printable(&line)))
        .collect();
    lines.join("\n")
}

fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{ms:.1}ms")
    } else {
        format!("{:.1}s", ms / 1000.0)
    }
}

/// What callers make up says nothing to the terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mesh_model::api::{SilentDataplane, Unanswered};
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        tap: Tap,
    }

    fn typed(arguments: &str) -> Result<Tap, clap::Error> {
        let arguments = std::iter::once("tap").chain(arguments.split_whitespace());
        Typed::try_parse_from(arguments).map(|typed| typed.tap)
    }

    fn asked(arguments: &str) -> String {
        let parameters = typed(arguments).unwrap().parameters().unwrap();
        let parameters = parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        parameters.collect::<Vec<_>>().join("&")
    }

    #[test]
    fn what_is_typed_is_what_is_asked() {
        assert_eq!(asked("--service store"), "service=store&for=600&rate=100");
        assert_eq!(
            asked(
                "--to store --status 5XX,none --status 404 --failed --direction inbound --query --for 90s --max-rate 5"
            ),
            "to=store&status=5xx,none,404&direction=inbound&failed=true&query=true&for=90&rate=5"
        );
        assert_eq!(
            asked("--dataplane web-1 --route shop --from web --method GET --path /v1 --for 1500ms"),
            "dataplane=web-1&route=shop&from=web&method=GET&path=/v1&for=2&rate=100"
        );
        assert!(typed("").is_err(), "the whole mesh is too much");
        assert!(typed("--method GET").is_err());
        assert!(typed("--service store --max-rate 0").is_err());
        for bad in [
            "--service a/b",
            "--service store --for 0s",
            "--service store --for 2h",
        ] {
            assert!(typed(bad).unwrap().parameters().is_err(), "{bad}");
        }
    }

    fn request() -> TappedRequest {
        serde_json::from_value(json!({
            "time": "2026-11-25T10:41:09.123456Z", "zone": "east", "dataplane": "web-1", "direction": "outbound",
            "source": {"service": "web", "zone": "east", "spiffeId": "spiffe://pay.east.mesh.local/workload/web"},
            "destination": {"service": "store", "zone": "west", "address": "10.0.0.2:80 (west)"},
            "method": "GET", "path": "/items/12", "status": 503, "saidBy": "proxy", "reason": "connect_refused",
            "detail": "10.0.0.2:80: refused\u{1b}[2J", "durationMs": 3.21, "firstByteMs": 1500.0, "bytesSent": 0,
            "bytesReceived": 42, "attempts": 0, "requestId": "4bf9"}))
        .unwrap()
    }

    #[test]
    fn a_line_says_who_asked_what_and_how_it_ended() {
        let mut columns = Columns::default();
        assert_eq!(
            columns.line(&request()),
            "10:41:09.123  east/web-1 out  web (east) -> store (west)  GET /items/12  503  3.2ms  proxy: connect_refused"
        );
        let short = TappedRequest {
            path: "/".into(),
            status: None,
            grpc_status: Some(14),
            reason: String::new(),
            source: Party {
                zone: "west".into(),
                ..request().source
            },
            ..request()
        };
        assert_eq!(
            columns.line(&short),
            "10:41:09.123  east/web-1 out  web -> store                GET /          - grpc 14  3.2ms"
        );
        let no_request = TappedRequest {
            method: String::new(),
            path: String::new(),
            status: Some(431),
            said_by: "client".to_owned(),
            reason: "bad_request".to_owned(),
            ..request()
        };
        assert_eq!(
            columns.line(&no_request),
            "10:41:09.123  east/web-1 out  web (east) -> store (west)  -              431        3.2ms  client: bad_request"
        );
        let details = details(&request());
        let lines: Vec<_> = details.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "from spiffe://pay.east.mesh.local/workload/web",
                "to 10.0.0.2:80 (west)",
                "why 10.0.0.2:80: refused\u{fffd}[2J",
                "first byte after 1.5s",
                "0 bytes sent, 42 received",
                "0 attempts",
                "request 4bf9",
            ]
        );
    }

    #[test]
    fn what_is_not_shown_is_said_once() {
        let mut told = Told::default();
        let mut state = TapState {
            dataplanes: vec!["east/web-1".into()],
            silent: vec![SilentDataplane {
                name: "east/old-1".into(),
                reason: "it is too old to be asked".into(),
            }],
            ..TapState::default()
        };
        assert_eq!(
            told.changes(state.clone()),
            [
                "tapping east/web-1",
                "not tapped: east/old-1: it is too old to be asked"
            ]
        );
        assert!(told.changes(state.clone()).is_empty());
        (state.shown, state.dropped) = (7, 3);
        let dropped = told.changes(state.clone());
        assert!(
            dropped[0].starts_with("3 requests dropped so far"),
            "{dropped:?}"
        );
        assert!(told.changes(state.clone()).is_empty());
        state.dataplanes.push("west/store-1".into());
        state.unanswered.push(Unanswered {
            zone: "north".into(),
            reason: "it is away".into(),
        });
        assert_eq!(
            told.changes(state),
            [
                "tapping 2 dataplanes: east/web-1, west/store-1",
                "not tapped: zone north: it is away"
            ]
        );
        assert_eq!(
            Told::default().changes(TapState::default()),
            ["no dataplane is tapped"]
        );
    }
}
