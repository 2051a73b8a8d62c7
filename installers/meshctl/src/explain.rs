//! `meshctl explain`: whether a call is allowed, where it would go, and which policies say so.

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use mesh_model::api::{
    CallRequest, ExplainedBackend, ExplainedCall, ExplainedInbound, ExplainedRule, Explanation,
};
use serde_json::Value;

use crate::{
    cli::{Connection, checked_name},
    client::Client,
    completion,
    failure::Failure,
    inspect,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl explain --from web --to api -m payments
  meshctl explain --from web-1 --to api --port 8080 -m payments -o wide   with the settings in force
  meshctl explain --from web --to api -m payments --path /v2/x --header x-env=dev
                                                                          what becomes of this request of HTTP
  meshctl explain --from web --to store -m payments --expect denied       for scripts: 4 where it is not";

/// Explain whether a call is allowed, where it would go, and which policies say so, from what the proxies really run.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Explain {
    /// Who calls: a service, or one dataplane.
    #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(completion::callers))]
    from: String,
    /// What is called: a service.
    #[arg(long, value_name = "SERVICE", add = ArgValueCompleter::new(completion::services))]
    to: String,
    /// One of its ports; absent: each.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Method of a request of HTTP to ask about; GET, where another part of one is given.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Its path, with the query; /, where another part is given.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A header of it; may be given more than once.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Exit with 4 where the answer is another one.
    #[arg(long, value_name = "VERDICT")]
    expect: Option<Verdict>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// Every call is let in.
    Allowed,
    /// No call is.
    Denied,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

impl Explain {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        checked_name(&self.from)?;
        checked_name(&self.to)?;
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let mut query = vec![("from", self.from.clone()), ("to", self.to.clone())];
        query.extend(self.port.map(|port| ("port", port.to_string())));
        query.extend(self.request()?);
        let answer: Explanation = client.get(&["meshes", &mesh, "explain"], &query).await?;
        let wide = self.output.is_wide();
        let verdicts = |_: &Value| {
            let calls = answer.calls.iter();
            calls
                .map(|call| call.verdict.clone())
                .collect::<Vec<_>>()
                .join("\n")
        };
        let text = || text(&answer, wide);
        output::print(&self.output.show(&Found::one(&answer)?, text, verdicts)?)?;
        inspect::complete(&answer.unanswered)?;
        self.judge(&answer)
    }

    /// The parameters of the request that is asked about.
    fn request(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let headers = self.header.iter().map(|header| {
            let named = header.split_once('=');
            let named = named.map(|(name, value)| format!("{name}: {value}"));
            named.ok_or_else(|| {
                Failure::invalid(format!("--header {header}: write it as NAME=VALUE"))
            })
        });
        let headers = headers.collect::<Result<Vec<_>, _>>()?.join("\n");
        let headers = (!headers.is_empty()).then_some(headers);
        let (method, path) = (self.method.clone(), self.path.clone());
        CallRequest::of_parameters(method.as_deref(), path.as_deref(), headers.as_deref())
            .map_err(|error| Failure::invalid(format!("--{error}")))?;
        let given = [("method", method), ("path", path), ("headers", headers)];
        let given = given.into_iter();
        Ok(given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect())
    }

    fn judge(&self, answer: &Explanation) -> Result<(), Failure> {
        let Some(expected) = self.expect else {
            return Ok(());
        };
        let as_expected = answer
            .calls
            .iter()
            .all(|call| call.verdict == expected.word());
        if as_expected && !answer.calls.is_empty() {
            return Ok(());
        }
        Err(Failure::Finding(format!(
            "expected: {} to {} is {}; it is not",
            self.from,
            self.to,
            expected.word()
        )))
    }
}

fn text(answer: &Explanation, wide: bool) -> String {
    if answer.calls.is_empty() {
        return format!(
            "no call from {} to {} in mesh {mesh}: `meshctl get dataplanes -m {mesh}` and `meshctl get meshservices -m \
             {mesh}` show what is there",
            answer.from,
            answer.to,
            mesh = answer.mesh
        );
    }
    let calls = answer.calls.iter().map(|call| of_call(call, wide));
    calls.collect::<Vec<_>>().join("\n\n")
}

fn of_call(call: &ExplainedCall, wide: bool) -> String {
    let caller = &call.caller;
    let mut lines = vec![
        format!(
            "{} (zone {}) -> {}:{}: {}",
            caller.dataplane,
            caller.zone,
            caller.service,
            caller.port,
            painted(&call.verdict)
        ),
        format!("  {}", call.reason),
        format!("  calls as   {}", caller.spiffe_id),
        match &caller.outbound {
            Some(outbound) => format!("  calls at   {outbound}"),
            None => "  calls at   nowhere: the dataplane declares no outbound for it".to_owned(),
        },
    ];
    if let Some(request) = &caller.request {
        lines.push(format!("  asks       {request}"));
    }
    if let Some(route) = &caller.route {
        lines.push(format!("  route      {route}"));
    }
    for rule in &caller.rules {
        lines.extend(of_rule(rule, caller.request.is_none(), wide));
    }
    // Of several rules, each has its own shares.
    let several = caller.backends.len() > 1 && caller.rules.len() <= 1;
    let total: u32 = caller.backends.iter().map(|backend| backend.weight).sum();
    for backend in &caller.backends {
        lines.extend(of_backend(backend, several.then_some(total), wide));
    }
    for inbound in &call.inbounds {
        lines.push(of_inbound(inbound));
        if inbound.reason != call.reason {
            lines.push(format!("    {}", inbound.reason));
        }
        if wide {
            lines.extend(
                inbound
                    .settings
                    .iter()
                    .map(|setting| format!("    {setting}")),
            );
        }
    }
    if wide {
        lines.push("  settings of the caller".to_owned());
        lines.extend(
            caller
                .settings
                .iter()
                .map(|setting| format!("    {setting}")),
        );
    }
    lines.join("\n")
}

/// `alone`: nothing else says where the rule is from and where its requests go.
fn of_rule(rule: &ExplainedRule, alone: bool, wide: bool) -> Vec<String> {
    let mut lines = vec![format!("  rule       {}", rule.matches)];
    if alone {
        let origin = rule.origin.as_deref().unwrap_or("built in");
        lines.push(format!("    by {origin}"));
    }
    lines.extend(rule.filters.iter().map(|filter| format!("    {filter}")));
    if alone && !rule.backends.is_empty() {
        lines.push(format!("    to {}", rule.backends));
    }
    if alone && wide {
        let settings = rule.settings.iter();
        lines.extend(settings.map(|setting| format!("    {setting}")));
    }
    lines
}

fn of_backend(backend: &ExplainedBackend, total: Option<u32>, wide: bool) -> Vec<String> {
    let share = total.map_or_else(String::new, |total| {
        format!(", {} of {total} calls", backend.weight)
    });
    let mut lines = vec![format!(
        "  goes to    {}:{}{share}",
        backend.service, backend.port
    )];
    if let Some(error) = &backend.error {
        lines.push(format!("    fails: {error}"));
    }
    lines.extend(
        backend
            .endpoints
            .iter()
            .map(|endpoint| format!("    {endpoint}")),
    );
    if backend.endpoints.is_empty() && backend.error.is_none() {
        lines.push("    no endpoint".to_owned());
    }
    if wide {
        let accepted = backend.identities.iter();
        lines.extend(accepted.map(|identity| format!("    accepts {identity}")));
    }
    lines
}

fn of_inbound(inbound: &ExplainedInbound) -> String {
    let verdict = match (inbound.allowed, inbound.shadow_denied) {
        (true, true) => "allowed, and recorded as denied".to_owned(),
        (true, false) => painted("allowed"),
        (false, _) => painted("denied"),
    };
    let by = match &inbound.origin {
        Some(origin) => format!(" by {origin}"),
        None => String::new(),
    };
    let ready = if inbound.ready { "" } else { "; not ready" };
    format!(
        "  meets      {} (zone {}), inbound {}: {verdict}{by}{ready}",
        inbound.dataplane, inbound.zone, inbound.inbound
    )
}

/// A verdict in its colour.
fn painted(verdict: &str) -> String {
    let colour = match verdict {
        "allowed" => "\u{1b}[32m",
        "denied" => "\u{1b}[31m",
        _ => "\u{1b}[33m",
    };
    if output::colours() {
        format!("{colour}{verdict}\u{1b}[0m")
    } else {
        verdict.to_owned()
    }
}
