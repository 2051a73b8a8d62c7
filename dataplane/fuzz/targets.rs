//! What reads bytes from the network, and what has to hold for any bytes. Each function takes one input and panics where it does not.

use bytes::BytesMut;
use dataplane::{
    detect::{Spoken, is_server_of_http2, look},
    http::{
        h1::{
            chunks::{Chunks, Piece},
            head::{Framing, take_request, take_response, write_request},
        },
        limits::HttpLimits,
    },
};
use http::{HeaderMap, Method};
use mesh_proto::{
    http_match::{
        Compiled, RequestHeaders,
        path::{compared, normal},
    },
    proxy as wire,
    sni::{ClientHello, parse_client_hello},
};

/// What is spoken is never said in another way once more comes.
pub fn first_bytes(input: &[u8]) {
    const TARGET: usize = 64;
    let (mut spoken, mut settings) = (None, None);
    for known in 0..=input.len().min(256) {
        let now = look(&input[..known], TARGET);
        assert!(
            spoken.is_none() || now == spoken,
            "{spoken:?}, then {now:?}"
        );
        spoken = now;
        let now = is_server_of_http2(&input[..known]);
        assert!(settings.is_none() || now == settings);
        settings = now;
    }
    if spoken == Some(Spoken::Http2) {
        assert!(input.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    }
}

/// A head that is taken is written so that it is read as the same again, and however it is cut, it is read alike.
pub fn request_head(input: &[u8]) {
    let limits = HttpLimits::default();
    let mut buffer = BytesMut::from(input);
    let whole = take_request(&mut buffer, &limits);
    // What has come first is never judged in another way once more comes, but for being refused early.
    let half = take_request(&mut BytesMut::from(&input[..input.len() / 2]), &limits);
    match (&half, &whole) {
        (Ok(Some(half)), Ok(Some(whole))) => assert_eq!(half.head.path, whole.head.path),
        (Ok(Some(_)), _) => panic!("a whole head is none once more comes"),
        (Err(_), Ok(Some(_))) => panic!("refused in part, taken as a whole"),
        _ => {}
    }
    let Ok(Some(parsed)) = whole else { return };
    assert!(buffer.len() < input.len());
    let says_length = parsed.head.headers.contains_key("content-length");
    assert!(
        !says_length || parsed.framing != Framing::Chunked,
        "both a length and chunks"
    );
    let mut head = parsed.head;
    // Who sends it on speaks HTTP/1.1, and upgrades where it wants to.
    head.upgrade = None;
    let mut written = Vec::new();
    write_request(&mut written, &head, parsed.framing);
    let mut again = BytesMut::from(&written[..]);
    let read = match (take_request(&mut again, &limits), &head.authority) {
        (Ok(Some(read)), _) => read,
        // Its own few bytes may be what is too much.
        (Err(_), _) if written.len() > input.len() && input.len() > limits.header_bytes / 2 => {
            return;
        }
        (other, _) => panic!("{other:?} of {:?}", String::from_utf8_lossy(&written)),
    };
    assert!(
        again.is_empty(),
        "what is written is one head, and nothing else"
    );
    assert_eq!(
        (&read.head.method, &read.head.path),
        (&head.method, &head.path)
    );
    assert_eq!(read.head.authority, head.authority);
    assert_eq!(read.framing, parsed.framing);
    assert_eq!(read.head.headers, head.headers);
}

/// The same, for answers: those without a body have none.
pub fn response_head(input: &[u8]) {
    let limits = HttpLimits::default();
    for method in [Method::GET, Method::HEAD] {
        let mut buffer = BytesMut::from(input);
        if let Ok(Some(parsed)) = take_response(&mut buffer, &limits, &method) {
            let status = parsed.head.status.as_u16();
            // What follows a 101 is no body.
            let is_bodiless =
                status != 101 && method == Method::HEAD || matches!(status, 204 | 304);
            assert!(!is_bodiless || parsed.framing == Framing::None);
            assert!(!parsed.keep_alive || parsed.framing != Framing::UntilClose);
        }
    }
}

type Body = Result<(Vec<u8>, Option<HeaderMap>, Vec<u8>), &'static str>;

fn chunked(input: &[u8], step: usize) -> Body {
    let limits = HttpLimits::default();
    let (mut chunks, mut buffer, mut body) = (Chunks::default(), BytesMut::new(), Vec::new());
    let mut rest = input;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(step.min(rest.len()));
        rest = later;
        buffer.extend_from_slice(now);
        while let Some(piece) = chunks.take(&mut buffer, &limits)? {
            match piece {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::End(trailers) => {
                    return Ok((body, Some(trailers), [&buffer[..], rest].concat()));
                }
            }
        }
    }
    Ok((body, None, Vec::new()))
}

/// A body is read alike however it is cut.
pub fn chunked_body(input: &[u8]) {
    let whole = chunked(input, input.len().max(1));
    for step in [1, 2, 7] {
        let cut = chunked(input, step);
        match (&whole, &cut) {
            (Ok(whole), Ok(cut)) => assert_eq!(whole, cut, "by {step}"),
            // Why it is refused may depend on what has come.
            (Err(_), Err(_)) => {}
            _ => panic!("{whole:?}, but by {step} {cut:?}"),
        }
    }
}

/// A name that has been read stays the same when more comes.
pub fn client_hello(input: &[u8]) {
    let whole = parse_client_hello(input);
    let half = parse_client_hello(&input[..input.len() / 2]);
    match half {
        ClientHello::Incomplete => {}
        half => assert_eq!(half, whole),
    }
}

struct Field<'a>(&'a [u8]);

impl RequestHeaders for Field<'_> {
    fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        (name == "x-a").then_some(self.0).into_iter()
    }
}

/// Path, query and a header's value, a line each: the first rule that matches is one whose path does.
pub fn http_match(input: &[u8]) {
    use wire::{header_match, http_match::Path, query_match};
    let rule = |path, header: Option<&str>, query: Option<&str>| wire::HttpRule {
        r#match: Some(wire::HttpMatch {
            path: Some(path),
            method: String::new(),
            headers: header
                .map(|value| wire::HeaderMatch {
                    name: "x-a".into(),
                    value: Some(header_match::Value::Regex(value.into())),
                })
                .into_iter()
                .collect(),
            query: query
                .map(|value| wire::QueryMatch {
                    name: "q".into(),
                    value: Some(query_match::Value::Exact(value.into())),
                })
                .into_iter()
                .collect(),
        }),
        ..wire::HttpRule::default()
    };
    thread_local! {
        static ROUTES: std::cell::OnceCell<Compiled> = const { std::cell::OnceCell::new() };
    }
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (path, query, field) = (text(), text(), text());
    let path = normal(&path).into_owned();
    assert_eq!(normal(&path), path);
    let found = ROUTES.with(|routes| {
        let routes = routes.get_or_init(|| {
            let rules = vec![
                rule(Path::Exact("/exact".into()), None, None),
                rule(Path::Regex("/r[0-9]+(/.*)?".into()), Some("a+b?"), None),
                rule(Path::Prefix("/p".into()), None, Some("1 2")),
                rule(Path::Prefix("/p".into()), None, None),
            ];
            Compiled::new(&wire::HttpRoutes { rules }).expect("they are well formed")
        });
        routes.find("GET", &path, Some(&query), &Field(field.as_bytes()))
    });
    let path = compared(&path);
    let below = path == "/p" || path.starts_with("/p/");
    match found {
        Some(0) => assert_eq!(path, "/exact"),
        Some(1) => assert!(path.starts_with("/r")),
        Some(2) => assert!(below && query.contains('q')),
        Some(_) => assert!(below),
        None => assert!(path != "/exact" && !below),
    }
}
