//! Durations as people write them, in Go's style: `1m30s`, `500ms`, `1.5h`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// Not of Go's form.
    #[error(
        "a duration is written as 1h, 1m30s, 500ms: numbers, each with its unit h, m, s, ms, us or ns"
    )]
    Form,
    /// Below zero.
    #[error("a duration must be ≥ 0")]
    Negative,
    /// Does not fit.
    #[error("a duration is at most 2562047h")]
    TooLong,
}

/// The longest that Go can express, so that files stay exchangeable.
const MAX_NANOS: u128 = i64::MAX as u128;

impl Duration {
    /// In whole milliseconds, at most `u32::MAX`.
    #[must_use]
    pub fn as_millis_u32(self) -> u32 {
        u32::try_from(self.0.as_millis()).unwrap_or(u32::MAX)
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Ok(Self(std::time::Duration::ZERO));
        }
        if rest.is_empty() {
            return Err(InvalidDuration::Form);
        }
        let mut nanos: u128 = 0;
        while !rest.is_empty() {
            let (part, after) = one_part(rest)?;
            nanos = nanos.saturating_add(part);
            rest = after;
        }
        if nanos > MAX_NANOS {
            return Err(InvalidDuration::TooLong);
        }
        if negative && nanos > 0 {
            return Err(InvalidDuration::Negative);
        }
        u64::try_from(nanos)
            .map(|nanos| Self(std::time::Duration::from_nanos(nanos)))
            .map_err(|_| InvalidDuration::TooLong)
    }
}

/// Reads one number with its unit; gives nanoseconds and what follows.
fn one_part(text: &str) -> Result<(u128, &str), InvalidDuration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or(InvalidDuration::Form)?;
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(InvalidDuration::Form);
    }
    let units: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (unit, nanos) = units
        .iter()
        .find(|(unit, _)| rest.starts_with(unit))
        .ok_or(InvalidDuration::Form)?;
    if whole.len() > 20 {
        return Err(InvalidDuration::TooLong);
    }
    let digits = |text: &str| match text {
        "" => Ok(0),
        text => text.parse::<u128>().map_err(|_| InvalidDuration::Form),
    };
    // More digits than nanoseconds have add nothing.
    let fraction = &fraction[..fraction.len().min(15)];
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let value = digits(whole)?.saturating_mul(*nanos) + digits(fraction)? * nanos / scale;
    Ok((value, &rest[unit.len()..]))
}

/// As Go prints it, without its trailing zero parts: `1m30s`, `1h`, `500ms`.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1_000),
            ("ns", 1),
        ] {
            if nanos >= size {
                write!(f, "{}{unit}", nanos / size)?;
                nanos %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": crate::schema::FORMAT_DURATION,
            "examples": ["1m30s"],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<std::time::Duration, InvalidDuration> {
        text.parse::<Duration>().map(|duration| duration.0)
    }

    #[test]
    fn what_go_reads_is_read() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("1m30s", 90_000_000_000),
            ("+5s", 5_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("3us3µs3μs3ns", 9_003),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("2562047h47m16.854775807s", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(
                read(text),
                Ok(std::time::Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "", "+", "-", "3", "s", ".s", "1.1.1s", "1x", "1s ", " 1s", "1 s", "1s-1s", "1d",
        ] {
            assert_eq!(read(text), Err(InvalidDuration::Form), "{text}");
        }
        assert_eq!(read("-1s"), Err(InvalidDuration::Negative));
        for text in [
            "2562048h",
            "9223372036854775808ns",
            "99999999999999999999999999h",
        ] {
            assert_eq!(read(text), Err(InvalidDuration::TooLong), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_are_written_as_they_are_read(nanos in 0..=i64::MAX) {
            let duration = Duration(std::time::Duration::from_nanos(nanos.unsigned_abs()));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in r"[-+.0-9hmsnuµ]{0,40}|.*") {
            let _ = read(&text);
        }
    }
}
