//! What reaches the terminal: tables without decoration, YAML, JSON and names. Colour only on a terminal.

use std::io::Write as _;

use clap::ValueEnum;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// How a result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// YAML documents, which `meshctl apply` takes back.
    Yaml,
    /// JSON.
    Json,
    /// One `kind/name` a line, for scripts.
    Name,
}

/// Writes to standard output. Nobody who reads on (as behind `| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let mut write = || {
        out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    match write() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// `value` as JSON for people.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("the result does not become JSON: {error}")))
}

/// Several values as YAML documents.
pub(crate) fn yaml<'a>(values: impl IntoIterator<Item = &'a serde_json::Value>) -> String {
    let documents: Vec<_> = values.into_iter().map(mesh_model::to_yaml).collect();
    documents.join("---\n")
}

/// A table: a header in capitals and rows.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        table.force_no_tty();
    }
    for row in rows {
        let cells = row.into_iter().map(|text| {
            let text = if text.is_empty() {
                "-".to_owned()
            } else {
                text
            };
            match colour(&text) {
                Some(colour) => Cell::new(text).fg(colour),
                None => Cell::new(text),
            }
        });
        table.add_row(cells.collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// Words that say how something is.
fn colour(word: &str) -> Option<Color> {
    match word {
        "online" | "active" | "ready" => Some(Color::Green),
        "behind" | "stale" | "used" | "not ready" | "unjoined" => Some(Color::Yellow),
        "offline" | "disabled" | "expired" | "revoked" | "refused" | "unreachable" => {
            Some(Color::Red)
        }
        _ => None,
    }
}

/// How long ago an RFC 3339 time was, as `3d`, `5h`, `12m`, `40s`; the text itself where it is no such time.
pub(crate) fn age(time: &str, now: std::time::SystemTime) -> String {
    let Ok(then) = humantime::parse_rfc3339_weak(time) else {
        return time.to_owned();
    };
    span(now.duration_since(then).unwrap_or_default())
}

/// How long until `unix_seconds`, or `ended`.
pub(crate) fn until(unix_seconds: u64, now: std::time::SystemTime) -> String {
    let end = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds);
    match end.duration_since(now) {
        Ok(left) => span(left),
        Err(_) => "ended".to_owned(),
    }
}

/// A duration in its largest unit.
pub(crate) fn span(duration: std::time::Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_table_is_columns_and_nothing_else() {
        let text = table(
            &["NAME", "STATE"],
            vec![
                vec!["east".into(), "online".into()],
                vec!["far-west".into(), String::new()],
            ],
        );
        assert_eq!(text, "NAME       STATE\neast       online\nfar-west   -");
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |ago: u64| {
            let then = now - Duration::from_secs(ago);
            age(&humantime::format_rfc3339_seconds(then).to_string(), now)
        };
        assert_eq!(
            [at(5), at(300), at(10_000), at(400_000)],
            ["5s", "5m", "2h", "4d"]
        );
        assert_eq!(age("yesterday", now), "yesterday");
        assert_eq!(until(999_999, now), "ended");
    }
}
