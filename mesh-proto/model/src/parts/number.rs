//! Numbers that people write whole, or as a decimal in quotes: `50`, `"12.5"`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::schema::{FORMAT_DECIMAL, FORMAT_PERCENTAGE};

/// A number ≥ 0, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, try_from = "Written")]
pub enum Decimal {
    /// Without a fraction.
    Whole(u32),
    /// As text, which is a number.
    Text(String),
}

/// A number between 0 and 100, kept as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Decimal")]
pub struct Percentage(Decimal);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Whole(u32),
    Text(String),
}

/// Why a text is not such a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNumber {
    /// No decimal.
    #[error("{0:?} is not a number; write it as 50 or \"12.5\"")]
    Form(String),
    /// Below zero.
    #[error("must be ≥ 0")]
    Negative,
    /// No percentage.
    #[error("must be between 0 and 100")]
    Percentage,
}

impl Decimal {
    /// The number.
    #[must_use]
    pub fn value(&self) -> f64 {
        match self {
            Self::Whole(number) => f64::from(*number),
            // What is not a number was not accepted.
            Self::Text(text) => parse(text).unwrap_or(0.0),
        }
    }
}

impl Percentage {
    /// The number, between 0 and 100.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.0.value()
    }
}

/// Reads a decimal: digits, perhaps with a fraction and an exponent.
pub(crate) fn parse(text: &str) -> Result<f64, InvalidNumber> {
    let form = || InvalidNumber::Form(text.to_owned());
    let is_decimal = text
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    let number: f64 = text.parse().map_err(|_| form())?;
    match number {
        _ if !is_decimal || !number.is_finite() => Err(form()),
        _ if number < 0.0 => Err(InvalidNumber::Negative),
        _ => Ok(number),
    }
}

/// The same, between 0 and 100.
pub(crate) fn parse_percentage(text: &str) -> Result<f64, InvalidNumber> {
    let number = parse(text)?;
    if number <= 100.0 {
        Ok(number)
    } else {
        Err(InvalidNumber::Percentage)
    }
}

impl TryFrom<Written> for Decimal {
    type Error = InvalidNumber;

    fn try_from(written: Written) -> Result<Self, InvalidNumber> {
        match written {
            Written::Whole(number) => Ok(Self::Whole(number)),
            Written::Text(text) => parse(&text).map(|_| Self::Text(text)),
        }
    }
}

impl TryFrom<Decimal> for Percentage {
    type Error = InvalidNumber;

    fn try_from(number: Decimal) -> Result<Self, InvalidNumber> {
        if number.value() <= 100.0 {
            Ok(Self(number))
        } else {
            Err(InvalidNumber::Percentage)
        }
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number, whole or as a decimal in quotes.",
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": u32::MAX},
                {"type": "string", "format": FORMAT_DECIMAL, "examples": ["1.9"]},
            ],
        })
    }
}

impl JsonSchema for Percentage {
    fn schema_name() -> Cow<'static, str> {
        "Percentage".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A percentage, whole or as a decimal in quotes.",
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 100},
                {"type": "string", "format": FORMAT_PERCENTAGE, "examples": ["12.5"]},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (json, value) in [
            ("0", 0.0),
            ("100", 100.0),
            ("\"12.5\"", 12.5),
            ("\".5\"", 0.5),
            ("\"1e1\"", 10.0),
        ] {
            let percentage: Percentage = serde_json::from_str(json).unwrap();
            assert!((percentage.value() - value).abs() < 1e-9, "{json}");
            assert_eq!(serde_json::to_string(&percentage).unwrap(), json);
        }
        for json in [
            "101",
            "-1",
            "\"100.01\"",
            "\"-1\"",
            "\"\"",
            "\"50%\"",
            "\"inf\"",
            "\"NaN\"",
            "1.5",
        ] {
            assert!(serde_json::from_str::<Percentage>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Decimal>("\"100.01\"").is_ok());
    }
}
