//! `-o jsonpath=TEMPLATE`, as kubectl's users write it: text, and between braces a path (`{.items[*].name}`), a text in
//! quotes (`{"\n"}`), or `{range PATH}…{end}`. The paths themselves are RFC 9535's.

use serde_json::Value;
use serde_json_path::JsonPath;

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Path(JsonPath),
    Range(JsonPath, Vec<Part>),
}

impl Template {
    /// Reads `text`. A query without braces, such as `$.items[*].name` or `.name`, is taken as one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a template is missing: jsonpath='{.items[*].name}'".to_owned());
        }
        if !text.contains('{') && text.starts_with(['$', '.', '@']) {
            return Ok(Self(vec![Part::Path(path(text)?)]));
        }
        let mut rest = text;
        let parts = parts(&mut rest, 0)?;
        Ok(Self(parts))
    }

    /// What the template makes of `value`.
    pub(crate) fn of(&self, value: &Value) -> String {
        let mut out = String::new();
        write(&self.0, value, &mut out);
        out
    }
}

/// Ranges within ranges are followed this far.
const DEPTH_MAX: usize = 16;

/// Reads parts up to the end of the text, or of the range that `depth` says we are in.
fn parts(rest: &mut &str, depth: usize) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    loop {
        let Some(open) = rest.find('{') else {
            if depth > 0 {
                return Err("a {range …} without its {end}".to_owned());
            }
            if !rest.is_empty() {
                parts.push(Part::Text((*rest).to_owned()));
            }
            return Ok(parts);
        };
        if open > 0 {
            parts.push(Part::Text(rest[..open].to_owned()));
        }
        let (inside, after) = braces(&rest[open + 1..])?;
        *rest = after;
        match inside {
            "end" if depth > 0 => return Ok(parts),
            "end" => return Err("an {end} without a {range …}".to_owned()),
            _ => {}
        }
        if let Some(over) = inside.strip_prefix("range ") {
            if depth == DEPTH_MAX {
                return Err(format!("more than {DEPTH_MAX} ranges within each other"));
            }
            let over = path(over.trim())?;
            parts.push(Part::Range(over, self::parts(rest, depth + 1)?));
        } else if inside.starts_with(['"', '\'']) {
            parts.push(Part::Text(quoted(inside)?));
        } else {
            parts.push(Part::Path(path(inside)?));
        }
    }
}

/// What stands up to the closing brace, quotes minded, and what comes after it.
fn braces(text: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Ok((text[..at].trim(), &text[at + 1..])),
            (None, _) => {}
        }
    }
    Err(format!("{{{text}: a closing brace is missing"))
}

fn quoted(text: &str) -> Result<String, String> {
    let quote = text.chars().next().unwrap_or('"');
    let inside = text[1..]
        .strip_suffix(quote)
        .ok_or_else(|| format!("{text}: a closing quote is missing"))?;
    let mut out = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(c) => c,
                None => '\\',
            },
            c => c,
        });
    }
    Ok(out)
}

/// kubectl's way of writing a path in the standard's: it begins with `$`, and a dot in a name is written `\.`.
fn path(text: &str) -> Result<JsonPath, String> {
    let rooted = match text.strip_prefix(['$', '@']) {
        Some(rest) => rest.to_owned(),
        None if text.starts_with(['.', '[']) => text.to_owned(),
        None => format!(".{text}"),
    };
    let rooted = if rooted == "." { "" } else { rooted.as_str() };
    JsonPath::parse(&format!("${}", with_quoted_names(rooted)))
        .map_err(|error| format!("{text}: {error}"))
}

/// `.labels.kuma\.io/service` and `.a-b` as `['…']`, since names of the standard's short form hold neither.
fn with_quoted_names(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut brackets = 0_usize;
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => brackets += 1,
            (None, ']') => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        let plain = quote.is_none() && brackets == 0 && c == '.';
        if !plain {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'.') {
            // Any depth: `..name`.
            chars.next();
            out.push('.');
        }
        let mut name = String::new();
        let mut odd = false;
        while let Some(&c) = chars.peek() {
            match c {
                '.' | '[' => break,
                '\\' => {
                    chars.next();
                    odd = true;
                    name.extend(chars.next());
                }
                c => {
                    odd |= !(c.is_alphanumeric() || c == '_' || c == '*');
                    name.push(c);
                    chars.next();
                }
            }
        }
        if odd {
            if out.ends_with('.') {
                out.push('.');
            }
            let name = name.replace('\\', "\\\\").replace('\'', "\\'");
            out.push_str(&format!("['{name}']"));
        } else {
            out.push('.');
            out.push_str(&name);
        }
    }
    out
}

fn write(parts: &[Part], value: &Value, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(path) => {
                let found = path.query(value);
                let words: Vec<_> = found.iter().map(|value| word(value)).collect();
                out.push_str(&words.join(" "));
            }
            Part::Range(over, inner) => {
                for item in over.query(value).iter() {
                    write(inner, item, out);
                }
            }
        }
    }
}

/// A text without quotes, anything else as JSON.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(template: &str) -> String {
        let value = json!({"items": [
            {"name": "web", "labels": {"isthmus.io/service": "web", "a-b": 1}, "ports": [80, 90]},
            {"name": "api", "labels": {"isthmus.io/service": "api"}, "ports": [81]},
        ]});
        Template::parse(template).unwrap().of(&value)
    }

    #[test]
    fn paths_are_written_as_for_kubectl() {
        for (template, text) in [
            ("{.items[*].name}", "web api"),
            ("{$.items[0].name}", "web"),
            ("{items[1].name}", "api"),
            ("$.items[*].name", "web api"),
            (".items[-1:].name", "api"),
            ("{.items[*].labels.isthmus\\.io/service}", "web api"),
            ("{.items[0].labels.a-b}", "1"),
            ("{.items[0]['labels']['isthmus.io/service']}", "web"),
            ("{.items[?(@.name==\"api\")].ports}", "[81]"),
            ("{..ports[0]}", "80 81"),
            (
                "first: {.items[0].name}, no: {.items[9].name}.",
                "first: web, no: .",
            ),
        ] {
            assert_eq!(of(template), text, "{template}");
        }
    }

    #[test]
    fn a_range_repeats_what_is_in_it() {
        assert_eq!(
            of(r#"{range .items[*]}{.name}{"\t"}{range .ports[*]}<{@}>{end}{"\n"}{end}"#),
            "web\t<80><90>\napi\t<81>\n"
        );
    }

    #[test]
    fn what_can_not_be_read_is_told() {
        for (template, words) in [
            ("", "missing"),
            ("{.items", "closing brace"),
            ("{range .items[*]}{.name}", "{end}"),
            ("{end}", "{range"),
            ("{.items[}", "items["),
            ("{\"a}", "closing"),
        ] {
            let refused = Template::parse(template).unwrap_err();
            assert!(refused.contains(words), "{template}: {refused}");
        }
    }
}
