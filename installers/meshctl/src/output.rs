//! What reaches the terminal: tables without decoration, YAML, JSON, names and what JSONPath picks. Colour only on a
//! terminal.

use std::io::{IsTerminal as _, Write as _};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser},
    error::ErrorKind,
};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{failure::Failure, jsonpath::Template};

/// How a result is shown.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// YAML documents, which `meshctl apply` takes back where they are resources.
    Yaml,
    /// JSON; lists as `{"items": […]}`.
    Json,
    /// One `kind/name` a line, for scripts.
    Name,
    /// What a template picks from the JSON.
    JsonPath(Template),
}

impl Format {
    /// For the eyes of people.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }

    /// With more columns.
    pub(crate) fn is_wide(&self) -> bool {
        *self == Self::Wide
    }

    /// `found` as text. `table` makes what people read, `name` what `-o name` prints of one thing.
    pub(crate) fn show(
        &self,
        found: &Found,
        table: impl FnOnce() -> String,
        name: impl Fn(&Value) -> String,
    ) -> Result<String, Failure> {
        Ok(match self {
            Self::Table | Self::Wide => table(),
            Self::Json => json(&found.json())?,
            Self::JsonPath(template) => template.of(&found.json()),
            Self::Yaml => yaml(found.items()),
            Self::Name => found.items().iter().map(|item| name(item) + "\n").collect(),
        })
    }
}

/// What a command found.
pub(crate) enum Found {
    /// What was asked for by name.
    One(Value),
    /// A list, of whatever length.
    List(Vec<Value>),
}

impl Found {
    /// One thing.
    pub(crate) fn one(thing: &impl Serialize) -> Result<Self, Failure> {
        Ok(Self::One(value(thing)?))
    }

    /// A list.
    pub(crate) fn list(things: &[impl Serialize]) -> Result<Self, Failure> {
        Ok(Self::List(
            things.iter().map(value).collect::<Result<_, _>>()?,
        ))
    }

    fn items(&self) -> &[Value] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::List(items) => items,
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::One(one) => one.clone(),
            Self::List(items) => json!({"items": items}),
        }
    }
}

fn value(thing: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(thing)
        .map_err(|error| Failure::failed(format!("the result does not become JSON: {error}")))
}

/// Reads a [`Format`] as it is typed.
#[derive(Debug, Clone)]
pub(crate) struct FormatParser;

/// What stands before a template.
const JSONPATH: &str = "jsonpath=";

impl TypedValueParser for FormatParser {
    type Value = Format;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Format, clap::Error> {
        let text = value.to_str().unwrap_or_default();
        let refused = |why: &str| {
            let arg = arg.map_or_else(String::new, |arg| format!(" for '{arg}'"));
            clap::Error::raw(
                ErrorKind::ValueValidation,
                format!("invalid value '{text}'{arg}: {why}\n"),
            )
            .with_cmd(command)
        };
        if let Some(template) = text.strip_prefix(JSONPATH) {
            return match Template::parse(template) {
                Ok(template) => Ok(Format::JsonPath(template)),
                Err(why) => Err(refused(&why)),
            };
        }
        Ok(match text {
            "table" => Format::Table,
            "wide" => Format::Wide,
            "yaml" => Format::Yaml,
            "json" => Format::Json,
            "name" => Format::Name,
            _ => {
                return Err(refused(
                    "write table, wide, yaml, json, name, or jsonpath='{.items[*].name}'",
                ));
            }
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue>>> {
        let values = [
            ("table", "columns for people"),
            ("wide", "more columns"),
            ("yaml", "YAML documents, which `meshctl apply` takes back"),
            ("json", "JSON; lists as {\"items\": […]}"),
            ("name", "one kind/name a line, for scripts"),
            (
                JSONPATH,
                "what a template picks from the JSON: jsonpath='{.items[*].name}'",
            ),
        ];
        Some(Box::new(
            values
                .into_iter()
                .map(|(value, help)| PossibleValue::new(value).help(help)),
        ))
    }
}

/// Writes to standard output. Nobody who reads on (as behind `| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_unless_left(text).map(|_| ())
}

/// As [`print`]; false where nobody reads on.
pub(crate) fn print_unless_left(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let mut write = || {
        out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    match write() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
    }
}

/// `value` as JSON for people.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("the result does not become JSON: {error}")))
}

/// Several values as YAML documents.
pub(crate) fn yaml<'a>(values: impl IntoIterator<Item = &'a Value>) -> String {
    let documents: Vec<_> = values.into_iter().map(mesh_model::to_yaml).collect();
    documents.join("---\n")
}

/// Whether standard output takes colours: a terminal, and nobody has said no.
pub(crate) fn colours() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A table: a header in capitals and rows.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    if !colours() {
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
        "online" | "active" | "ready" | "ok" | "allowed" | "done" => Some(Color::Green),
        "behind" | "stale" | "used" | "not ready" | "unjoined" | "warning" | "mixed" => {
            Some(Color::Yellow)
        }
        "offline" | "disabled" | "expired" | "revoked" | "refused" | "unreachable" | "error"
        | "denied" => Some(Color::Red),
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

/// How long ago that was.
pub(crate) fn since(unix_seconds: u64, now: std::time::SystemTime) -> String {
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds);
    span(now.duration_since(then).unwrap_or_default())
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
    fn one_named_thing_is_no_list() {
        let item = json!({"type": "Mesh", "name": "pay"});
        let show = |found: Found, format: Format| {
            let name = |item: &Value| format!("mesh/{}", item["name"].as_str().unwrap());
            format.show(&found, || "table".to_owned(), name).unwrap()
        };
        let one = || Found::One(item.clone());
        let list = || Found::List(vec![item.clone()]);
        assert!(show(one(), Format::Json).starts_with("{\n  \"name\""));
        assert!(show(list(), Format::Json).starts_with("{\n  \"items\": ["));
        assert_eq!(show(list(), Format::Name), "mesh/pay\n");
        assert_eq!(show(list(), Format::Yaml), show(one(), Format::Yaml));
        assert_eq!(show(list(), Format::Wide), "table");
        let picked = Format::JsonPath(Template::parse("{.items[*].name}").unwrap());
        assert_eq!(show(list(), picked), "pay");
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
