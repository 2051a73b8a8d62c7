//! The clock, and times as people read them.

use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Unix seconds now.
#[must_use]
pub fn now_seconds() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}

/// Now, as RFC 3339.
#[must_use]
pub fn now_text() -> String {
    text(OffsetDateTime::now_utc())
}

/// Unix milliseconds as RFC 3339, in UTC.
#[must_use]
pub fn from_ms(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or_default();
    let millis = u16::try_from(ms % 1000).unwrap_or_default();
    let time = OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.replace_millisecond(millis).ok());
    text(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// Unix seconds as RFC 3339, in UTC.
#[must_use]
pub fn from_seconds(seconds: u64) -> String {
    from_ms(seconds.saturating_mul(1000))
}

/// RFC 3339 as Unix milliseconds. `None`: it is none, or before 1970.
#[must_use]
pub fn parse_ms(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

fn text(time: OffsetDateTime) -> String {
    time.replace_nanosecond(time.millisecond() as u32 * 1_000_000)
        .unwrap_or(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(from_ms(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(
            parse_ms("2023-11-14T23:13:20.123+01:00"),
            Some(1_700_000_000_123)
        );
        assert_eq!(parse_ms("yesterday"), None);
        assert_eq!(from_seconds(0), "1970-01-01T00:00:00Z");
        assert!(!from_ms(u64::MAX).is_empty());
    }
}
