//! `meshctl check`: what deserves attention in the installation, and when certificates end.

use std::time::Duration;

use clap::Args;
use mesh_model::api::{Check as Answer, Expiry};
use serde_json::Value;

use crate::{
    cli::Connection,
    client::Client,
    failure::Failure,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl check
  meshctl check --fail-if-expiring 30d       for a nightly job: 4 where an authority ends within 30 days
  meshctl check -o wide                      with every certificate
  meshctl check -o json";

/// Certificates shown unless more are asked for.
const SHOWN: usize = 5;

/// Look over the installation: nodes, zones, dataplanes, certificates. Exit code 4 where something deserves attention.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    /// Exit with 4 where a certificate authority or anchor ends within this time. Certificates of nodes, zones and
    /// dataplanes are short-lived and renewed by themselves; of these, only one that was not renewed in time counts.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    fail_if_expiring: Option<Duration>,
    /// Exit with 0 where there are warnings only.
    #[arg(long)]
    allow_warnings: bool,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Check {
    /// Asks, shows and judges.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let client = Client::new(connection)?;
        let answer: Answer = client.get(&["check"], &[]).await?;
        let wide = self.output.is_wide();
        let subjects = |_: &Value| {
            let findings = answer.findings.iter();
            findings
                .map(|finding| finding.subject.clone())
                .collect::<Vec<_>>()
                .join("\n")
        };
        let text = || text(&answer, wide);
        output::print(&self.output.show(&Found::one(&answer)?, text, subjects)?)?;
        self.judge(&answer)
    }

    fn judge(&self, answer: &Answer) -> Result<(), Failure> {
        let mut lines = Vec::new();
        let bad = answer
            .findings
            .iter()
            .filter(|finding| finding.severity == "error" || !self.allow_warnings)
            .count();
        if bad > 0 {
            lines.push(match bad {
                1 => "one thing deserves attention".to_owned(),
                many => format!("{many} things deserve attention"),
            });
        }
        if let Some(within) = self.fail_if_expiring {
            let ending = answer.certificates.iter().filter(|one| ends(one, within));
            lines.extend(ending.map(|one| format!("{}: {}", one.subject, left(one))));
        }
        if lines.is_empty() {
            Ok(())
        } else {
            Err(Failure::Finding(lines.join("\n")))
        }
    }
}

/// True where somebody has to do something about a certificate's end.
fn ends(certificate: &Expiry, within: Duration) -> bool {
    let renewed_by_itself = ["global node ", "zone ", "dataplane "]
        .iter()
        .any(|kind| certificate.subject.starts_with(kind));
    let limit = if renewed_by_itself {
        0
    } else {
        within.as_secs()
    };
    certificate.seconds_left < i64::try_from(limit).unwrap_or(i64::MAX)
}

fn left(certificate: &Expiry) -> String {
    match u64::try_from(certificate.seconds_left) {
        Ok(seconds) => format!(
            "ends in {} ({})",
            output::span(Duration::from_secs(seconds)),
            certificate.not_after
        ),
        Err(_) => format!("ended ({})", certificate.not_after),
    }
}

fn text(answer: &Answer, wide: bool) -> String {
    let mut text = if answer.findings.is_empty() {
        "nothing deserves attention".to_owned()
    } else {
        let rows = answer.findings.iter().map(|finding| {
            vec![
                finding.severity.clone(),
                finding.subject.clone(),
                finding.message.clone(),
                finding.remedy.clone(),
            ]
        });
        output::table(
            &["SEVERITY", "SUBJECT", "WHAT", "WHAT TO DO"],
            rows.collect(),
        )
    };
    let shown = if wide { usize::MAX } else { SHOWN };
    if !answer.certificates.is_empty() {
        let rows = answer.certificates.iter().take(shown);
        let rows = rows.map(|one| {
            let left = u64::try_from(one.seconds_left).map(Duration::from_secs);
            vec![
                one.subject.clone(),
                left.map_or_else(|_| "expired".to_owned(), output::span),
                one.not_after.clone(),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&output::table(
            &["CERTIFICATE OF", "ENDS IN", "AT"],
            rows.collect(),
        ));
        let more = answer.certificates.len().saturating_sub(shown);
        if more > 0 {
            text.push_str(&format!("\nand {more} more that end later (-o wide)"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_counts_before_it_ends_and_what_is_renewed_by_itself_after() {
        let expiry = |subject: &str, seconds_left| Expiry {
            subject: subject.to_owned(),
            not_after: String::new(),
            seconds_left,
        };
        let within = Duration::from_secs(100);
        assert!(ends(&expiry("installation CA", 99), within));
        assert!(!ends(&expiry("installation CA", 100), within));
        assert!(ends(&expiry("CA of pay in west", 99), within));
        assert!(!ends(&expiry("dataplane pay/web-1", 1), within));
        assert!(ends(&expiry("dataplane pay/web-1", -1), within));
    }
}
