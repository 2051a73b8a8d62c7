//! What a YAML scalar means, by the core schema of YAML 1.2.

use granit_parser::{ScalarStyle, Tag};
use serde_json::{Number, Value};

/// The value of a scalar by the core schema (YAML 1.2.2, 10.3.2).
pub(super) fn value(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema_tag("str") => return Ok(text.into()),
        Some(tag) => return Err(no_tags(tag)),
        None if style != ScalarStyle::Plain => return Ok(text.into()),
        None => {}
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => match number(text) {
            Ok(Some(number)) => Value::Number(number),
            Ok(None) => text.into(),
            Err(message) => return Err(message),
        },
    })
}

/// `None`: not a number but text.
fn number(text: &str) -> Result<Option<Number>, String> {
    let digits = |text: &str, radix: u32| -> Option<Number> {
        u64::from_str_radix(text, radix).ok().map(Number::from)
    };
    let all = |text: &str, allowed: fn(u8) -> bool| !text.is_empty() && text.bytes().all(allowed);
    if let Some(octal) = text
        .strip_prefix("0o")
        .filter(|rest| all(rest, |b| matches!(b, b'0'..=b'7')))
    {
        return digits(octal, 8).map(Some).ok_or_else(too_large);
    }
    if let Some(hex) = text
        .strip_prefix("0x")
        .filter(|rest| all(rest, |b| b.is_ascii_hexdigit()))
    {
        return digits(hex, 16).map(Some).ok_or_else(too_large);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if all(unsigned, |b| b.is_ascii_digit()) {
        if unsigned.len() > 1 && unsigned.starts_with('0') {
            return Err(format!(
                "YAML readers disagree about numbers with leading zeros; leave them out or, for text, write \"{text}\""
            ));
        }
        let plain = text.strip_prefix('+').unwrap_or(text);
        let whole = plain.parse::<u64>().map(Number::from);
        let whole = whole.or_else(|_| plain.parse::<i64>().map(Number::from));
        return whole.map(Some).map_err(|_| too_large());
    }
    let is_float = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if is_float && let Ok(float) = text.parse::<f64>() {
        return Number::from_f64(float).map(Some).ok_or_else(too_large);
    }
    Ok(None)
}

fn too_large() -> String {
    "this number is too large".to_owned()
}

/// Why a tag is refused.
pub(super) fn no_tags(tag: &Tag) -> String {
    format!("tags are not supported; leave {tag} out")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, expected) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("true", json!(true)),
            ("FALSE", json!(false)),
            ("yes", json!("yes")),
            ("0", json!(0)),
            ("-12", json!(-12)),
            ("+12", json!(12)),
            ("0x1f", json!(31)),
            ("0o17", json!(15)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1m30s", json!("1m30s")),
            ("1.2.3", json!("1.2.3")),
            ("12:30", json!("12:30")),
            (".", json!(".")),
            ("-", json!("-")),
            (".inf", json!(".inf")),
            ("192.168.0.1", json!("192.168.0.1")),
            ("fd00::1", json!("fd00::1")),
        ] {
            assert_eq!(
                value(text, ScalarStyle::Plain, None),
                Ok(expected),
                "{text}"
            );
            assert_eq!(
                value(text, ScalarStyle::DoubleQuoted, None),
                Ok(json!(text))
            );
        }
        for refused in [
            "010",
            "-01",
            "1e999",
            "18446744073709551616",
            "0xfffffffffffffffff",
        ] {
            assert!(
                value(refused, ScalarStyle::Plain, None).is_err(),
                "{refused}"
            );
        }
    }
}
