use super::*;

const TARGET: usize = 64;

/// What is told of each beginning of `bytes`, one byte longer each time: after how many bytes it is clear, and what it is then.
fn clear(bytes: &[u8]) -> (usize, Option<Spoken>) {
    for known in 0..=bytes.len() {
        if let Some(spoken) = look(&bytes[..known], TARGET) {
            // More of it changes nothing.
            for more in known..=bytes.len() {
                assert_eq!(look(&bytes[..more], TARGET), Some(spoken), "{bytes:?}");
            }
            return (known, Some(spoken));
        }
    }
    (bytes.len(), None)
}

/// True of all of `cases` that they are clear after so many bytes.
#[track_caller]
fn check(cases: &[(&[u8], usize, Option<Spoken>)]) {
    for (bytes, after, spoken) in cases {
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(clear(bytes), (*after, *spoken), "{shown:?}");
    }
}

#[test]
fn a_request_line_is_http_as_soon_as_its_version_is_there() {
    let http = Some(Spoken::Http1);
    check(&[
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 13, http),
        (b"GET / HTTP/1.0\r\n\r\n", 13, http),
        (b"\r\nGET / HTTP/1.1\r\n", 15, http),
        (b"M-SEARCH * HTTP/1.1\r\n", 4 + 5 + 1, Some(Spoken::Tcp)),
        (b"OPTIONS * HTTP/1.1\r\n", 17, http),
        (b"POST /a?b=c%20d HTTP/1.1\r\n", 23, http),
        (b"GET http://store/ HTTP/1.1\r\n", 25, http),
        (b"GET HTTPS://store/ HTTP/1.1\r\n", 26, http),
        (b"CONNECT store:80 HTTP/1.1\r\n", 24, http),
        (b"CONNECT [::1]:80 HTTP/1.1\r\n", 24, http),
        (b"UPDATEREDIRECTREF / HTTP/1.1\r\n", 27, http),
        ("GET /gr\u{fc}n HTTP/1.1\r\n".as_bytes(), 18, http),
    ]);
}

#[test]
fn the_preface_of_http_2_is_told_wherever_it_is_cut() {
    for known in 0..PREFACE.len() {
        assert_eq!(look(&PREFACE[..known], TARGET), None, "{known}");
        let mut other = PREFACE[..known].to_vec();
        other.push(PREFACE[known] ^ 1);
        // "Q" and "PS" may still be the beginning of a method.
        let spoken = look(&other, TARGET);
        assert!(
            known < 3 || spoken == Some(Spoken::Tcp),
            "{other:?}: {spoken:?}"
        );
    }
    check(&[
        (PREFACE, 24, Some(Spoken::Http2)),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04",
            24,
            Some(Spoken::Http2),
        ),
        (b"PRI * HTTP/1.1\r\n", 12, Some(Spoken::Tcp)),
    ]);
}

#[test]
fn other_protocols_whose_client_speaks_first_are_told_at_once() {
    let tcp = Some(Spoken::Tcp);
    check(&[
        // TLS, PostgreSQL, Kafka, MQTT, AMQP, SSH, LDAP.
        (&[22, 3, 1, 2, 0, 1], 1, tcp),
        (&[0, 0, 0, 8, 4, 210, 22, 47], 1, tcp),
        (&[0, 0, 0, 35, 0, 18], 1, tcp),
        (&[16, 22, 0, 4, 77, 81, 84, 84], 1, tcp),
        (b"AMQP\0\0\x09\x01", 5, tcp),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 5, tcp),
        (&[48, 12, 2, 1, 1], 1, tcp),
        // Redis, both forms; memcached, both; NATS, after its server has spoken; ZooKeeper.
        (b"*1\r\n$4\r\nPING\r\n", 1, tcp),
        (b"PING\r\n", 5, tcp),
        (b"SET a b\r\n", 5, tcp),
        (b"get a\r\n", 1, tcp),
        (&[128, 1, 0, 0], 1, tcp),
        (b"CONNECT {\"verbose\":false}\r\n", 9, tcp),
        (b"ruok", 1, tcp),
        // Text like that of HTTP: RTSP, SIP, ICE, IRC, STOMP, BEEP, FIX, XMPP, PROXY protocol, SMTP of a hasty client.
        (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", 9, tcp),
        (b"OPTIONS * RTSP/1.0\r\n", 11, tcp),
        (b"INVITE sip:a@b SIP/2.0\r\n", 8, tcp),
        (b"SOURCE /stream ICE/1.0\r\n", 16, tcp),
        (b"NICK a\r\n", 6, tcp),
        (b"CONNECT\naccept-version:1.2\n", 8, tcp),
        (b"RPY 0 0 . 0 110\r\n", 5, tcp),
        (b"8=FIX.4.2\x019=5\x01", 1, tcp),
        (b"<?xml version='1.0'?>", 1, tcp),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", 7, tcp),
        (b"EHLO a\r\n", 6, tcp),
    ]);
}

#[test]
fn what_is_only_nearly_a_request_is_not() {
    let tcp = Some(Spoken::Tcp);
    check(&[
        (b"GET /\r\n", 6, tcp),
        (b"GET / HTTP/2.0\r\n", 12, tcp),
        (b"GET / HTTP/0.9\r\n", 12, tcp),
        (b"GET / http/1.1\r\n", 7, tcp),
        (b"GET  / HTTP/1.1\r\n", 5, tcp),
        (b"GET\t/ HTTP/1.1\r\n", 4, tcp),
        (b" GET / HTTP/1.1\r\n", 1, tcp),
        (b"\nGET / HTTP/1.1\r\n", 1, tcp),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", 3, tcp),
        (b"\rGET / HTTP/1.1\r\n", 2, tcp),
        (b"get / HTTP/1.1\r\n", 1, tcp),
        (b"GET * HTTP/1.1\r\n", 5, tcp),
        (b"GET store HTTP/1.1\r\n", 5, tcp),
        (b"GET httpx://store HTTP/1.1\r\n", 9, tcp),
        (b"GET /\0 HTTP/1.1\r\n", 6, tcp),
        (b"-GET / HTTP/1.1\r\n", 1, tcp),
        (b"HTTP/1.1 200 OK\r\n", 5, tcp),
    ]);
}

#[test]
fn what_may_become_a_request_is_waited_for_no_longer_than_a_request_may_be() {
    check(&[
        (b"", 0, None),
        (b"\r", 1, None),
        (b"\r\n", 2, None),
        (b"PING", 4, None),
        (b"GET ", 4, None),
        (b"GET /a", 6, None),
        (b"GET /a HTTP/1", 13, None),
    ]);
    let method = [b'A'; METHOD_BYTES_MAX + 5];
    assert_eq!(clear(&method), (METHOD_BYTES_MAX + 1, Some(Spoken::Tcp)));
    let longest = [b"GET ", &[b'/'; TARGET][..], b" HTTP/1.1"].concat();
    assert_eq!(clear(&longest).1, Some(Spoken::Http1));
    let longer = [b"GET ", &[b'/'; TARGET + 1][..], b" HTTP/1.1"].concat();
    assert_eq!(clear(&longer), (4 + TARGET + 1, Some(Spoken::Tcp)));
}

#[test]
fn whatever_is_taken_for_a_request_begins_one_for_the_parser_too() {
    use crate::http::{h1::head::take_request, limits::HttpLimits};
    use bytes::BytesMut;
    for line in [
        "GET / HTTP/1.1",
        "\r\nGET / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET http://store/ HTTP/1.1",
        "POST /a?b=c HTTP/1.0",
    ] {
        assert_eq!(look(line.as_bytes(), TARGET), Some(Spoken::Http1), "{line}");
        let mut head = BytesMut::from(format!("{line}\r\nHost: store\r\n\r\n").as_bytes());
        let parsed = take_request(&mut head, &HttpLimits::default());
        assert!(matches!(parsed, Ok(Some(_))), "{line}: {parsed:?}");
    }
}

#[test]
fn a_server_of_http2_is_known_by_its_settings() {
    let settings = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
    for known in 0..settings.len() {
        assert_eq!(
            is_server_of_http2(&settings[..known]),
            (known >= 9).then_some(true)
        );
    }
    assert_eq!(is_server_of_http2(&[0, 0, 0, 4, 0, 0, 0, 0, 0]), Some(true));
    for other in [
        &b"220 mail ready\r\n"[..],
        // The greeting of MySQL.
        &[0x4a, 0, 0, 0, 0x0a],
        // An acknowledgement, settings of a stream, of half a setting, and more than a frame may have.
        &[0, 0, 0, 4, 1],
        &[0, 0, 6, 4, 0, 0, 0, 0, 1],
        &[0, 0, 7, 4, 0, 0, 0, 0, 0],
        &[1, 0, 2, 4, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(is_server_of_http2(other), Some(false), "{other:?}");
    }
}
