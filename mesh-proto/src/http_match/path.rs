//! Paths that mean the same: what is forwarded of them, and what is compared with rules.
//!
//! A server may take `/a/../b`, `/%62` and `//b` for `/b`. A rule for `/b` that could be avoided by writing it so would be none.

use std::borrow::Cow;

/// The path as it is forwarded: without dot segments (RFC 3986 §6.2.2.3), with what needs no escape not escaped (§6.2.2.2), `\` as
/// `/`, and `%` only where an escape begins. Slashes stay as they came, since there are servers (stores of objects) to which `a//b` is
/// another name than `a/b`. Doing it again changes nothing.
#[must_use]
pub fn normal(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let dotted = bytes.windows(2).any(|pair| pair == b"/.");
    if !path.starts_with('/') || !(dotted || memchr(bytes, b"%\\")) {
        return Cow::Borrowed(path);
    }
    let plain = map_escapes(path, |byte| is_unreserved(byte).then_some(byte));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = plain[1..].split(['/', '\\']).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if segments.peek().is_none() {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    Cow::Owned(format!("/{}", kept.join("/")))
}

/// What of a [`normal`] path is compared: every escape that a server may undo is undone, but those of `/`, `\`, `%`, `?` and `#`,
/// which would change what the path consists of; those that stay are in capitals; what is not ASCII is escaped; and several slashes
/// are one.
#[must_use]
pub fn compared(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let doubled = bytes.windows(2).any(|pair| pair == b"//");
    if !(doubled || memchr(bytes, b"%") || !path.is_ascii()) {
        return Cow::Borrowed(path);
    }
    let undone = |byte: u8| {
        let stays = !byte.is_ascii_graphic() || b"/\\%?#".contains(&byte);
        (!stays).then_some(byte)
    };
    let plain = map_escapes(path, undone);
    let mut compared = String::with_capacity(plain.len());
    for char in plain.chars() {
        match char {
            '/' if compared.ends_with('/') => {}
            char if char.is_ascii() => compared.push(char),
            char => {
                let mut buffer = [0; 4];
                for byte in char.encode_utf8(&mut buffer).bytes() {
                    compared.push_str(&format!("%{byte:02X}"));
                }
            }
        }
    }
    Cow::Owned(compared)
}

/// What follows `prefix` in a [`normal`] path that a rule with this prefix takes.
#[must_use]
pub fn after_prefix<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let prefix = prefix.trim_end_matches('/');
    if let Some(rest) = path.strip_prefix(prefix)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return Some(rest);
    }
    let normal = normal(prefix);
    let wanted = compared(&normal);
    let wanted = wanted.trim_end_matches('/');
    let ends = path.match_indices('/').map(|(at, _)| at);
    ends.chain([path.len()])
        .find(|end| compared(&path[..*end]) == wanted)
        .map(|end| &path[end..])
}

fn memchr(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.iter().any(|byte| wanted.contains(byte))
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Undoes the escapes of which `undone` gives the byte (ASCII), and writes others in capitals. A `%` that begins none becomes one of
/// its own.
fn map_escapes(path: &str, undone: impl Fn(u8) -> Option<u8>) -> String {
    let mut mapped = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        mapped.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let digits = rest.get(..2).and_then(|digits| {
            let are_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| are_hex)
        });
        match digits {
            None => mapped.push_str("%25"),
            Some(byte) => {
                rest = &rest[2..];
                match undone(byte) {
                    Some(byte) => mapped.push(byte.into()),
                    None => mapped.push_str(&format!("%{byte:02X}")),
                }
            }
        }
    }
    mapped.push_str(rest);
    mapped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_mean_the_same_are_compared_alike() {
        for (sent, forwarded, matched) in [
            ("/", "/", "/"),
            ("*", "*", "*"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a/../b", "/b", "/b"),
            ("/a/./b", "/a/b", "/a/b"),
            ("/a/..", "/", "/"),
            ("/a/b/..", "/a/", "/a/"),
            ("/a/.", "/a/", "/a/"),
            ("/../../b", "/b", "/b"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/a/.%2e/b", "/b", "/b"),
            ("/a/..%2fb", "/a/..%2Fb", "/a/..%2Fb"),
            ("/a\\..\\b", "/b", "/b"),
            ("/a%5c..", "/a%5C..", "/a%5C.."),
            ("//b", "//b", "/b"),
            ("/a//../b", "/a/b", "/a/b"),
            ("/a///b//", "/a///b//", "/a/b/"),
            ("/%61%7e", "/a~", "/a~"),
            ("/a%3Ab", "/a%3Ab", "/a:b"),
            ("/a%3ab", "/a%3Ab", "/a:b"),
            ("/a:b", "/a:b", "/a:b"),
            ("/%25%32%65", "/%252e", "/%252e"),
            ("/%2%65", "/%252e", "/%252e"),
            ("/100%", "/100%25", "/100%25"),
            ("/%3f%23", "/%3F%23", "/%3F%23"),
            ("/é", "/é", "/%C3%A9"),
            ("/%c3%a9", "/%C3%A9", "/%C3%A9"),
            ("/...", "/...", "/..."),
            ("/.a/..b", "/.a/..b", "/.a/..b"),
        ] {
            assert_eq!(normal(sent), forwarded, "{sent}");
            assert_eq!(compared(&normal(sent)), matched, "{sent}");
        }
    }

    #[test]
    fn what_follows_a_prefix_is_as_it_came() {
        for (path, prefix, rest) in [
            ("/a/b", "/a", Some("/b")),
            ("/a", "/a", Some("")),
            ("/ab", "/a", None),
            ("/a/b", "/", Some("/a/b")),
            ("//a//b", "/a", Some("//b")),
            ("/a%3Ab//c", "/a:b", Some("//c")),
            ("/a:b", "/a%3ab", Some("")),
        ] {
            assert_eq!(after_prefix(path, prefix), rest, "{path} {prefix}");
        }
    }

    fn paths() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "/", "/", "/", ".", "..", "%", "%2", "%2e", "%2E", "%2f", "%5c", "%25", "%3a", ":",
            "\\", "a", "e", "5", "é", "%c3", "%C3%A9", "%61", "~", "%7E", "$", "%24",
        ]);
        prop::collection::vec(pieces, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    /// Somebody else's idea of what a path means: a server that undoes all escapes but those of slashes, then merges slashes, then
    /// removes dot segments.
    fn as_a_server_may_see(path: &str) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut rest = path.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let hex = after
                .get(..2)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let hex = hex.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
            match (first, hex.map(|hex| u8::from_str_radix(hex, 16).unwrap())) {
                (b'%', Some(byte)) if !b"/\\".contains(&byte) => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                _ => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for segment in bytes.split(|byte| b"/\\".contains(byte)) {
            match segment {
                b"" | b"." => {}
                b".." => drop(segments.pop()),
                segment => segments.push(segment.to_ascii_lowercase()),
            }
        }
        segments
    }

    proptest! {
        #[test]
        fn doing_it_again_changes_nothing(path in paths()) {
            let once = normal(&path).into_owned();
            prop_assert_eq!(normal(&once), once.as_str());
            let seen = compared(&once).into_owned();
            prop_assert_eq!(compared(&seen), seen.as_str());
        }

        /// Whatever a server makes of what is forwarded, it makes of what is compared: nobody reaches `/b` by a path that the rule for `/b`
        /// does not take.
        #[test]
        fn a_server_sees_what_is_compared(path in paths()) {
            let forwarded = normal(&path).into_owned();
            let seen = as_a_server_may_see(&forwarded);
            prop_assert_eq!(&seen, &as_a_server_may_see(&compared(&forwarded)));
            prop_assert!(!forwarded.split('/').any(|segment| matches!(segment, "." | "..")));
        }
    }
}
