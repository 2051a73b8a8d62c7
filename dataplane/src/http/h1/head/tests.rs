use super::*;

fn request(text: &str) -> Result<Option<ParsedRequest>, BadHead> {
    take_request(&mut BytesMut::from(text.as_bytes()), &HttpLimits::default())
}

fn response(method: Method, text: &str) -> Result<ParsedResponse, BadHead> {
    let mut buffer = BytesMut::from(text.as_bytes());
    take_response(&mut buffer, &HttpLimits::default(), &method).map(|found| found.expect("whole"))
}

#[test]
fn a_good_request_is_read_and_what_follows_stays() {
    let text = "POST /a?b=c HTTP/1.1\r\nHost: shop:80\r\nContent-Length: 3\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Y: 2\r\n\r\nabcGET";
    let mut buffer = BytesMut::from(text.as_bytes());
    let parsed = take_request(&mut buffer, &HttpLimits::default())
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..], b"abcGET");
    assert_eq!(parsed.framing, Framing::Length(3));
    assert!(parsed.keep_alive);
    let head = parsed.head;
    assert_eq!(head.method, Method::POST);
    assert_eq!(head.path.as_str(), "/a?b=c");
    assert_eq!(head.authority.unwrap().as_str(), "shop:80");
    assert_eq!(head.headers.len(), 2);
    assert!(head.headers.contains_key("x-y") && head.headers.contains_key("content-length"));
    let mut written = Vec::new();
    let again = RequestHead {
        authority: Some(Authority::from_static("shop:80")),
        ..head
    };
    write_request(&mut written, &again, Framing::Length(3));
    let written = String::from_utf8(written).unwrap();
    let mut lines: Vec<_> = written.split("\r\n").collect();
    lines[2..4].sort_unstable();
    let wanted = [
        "POST /a?b=c HTTP/1.1",
        "host: shop:80",
        "content-length: 3",
        "x-y: 2",
        "",
        "",
    ];
    assert_eq!(lines, wanted);
}

#[test]
fn a_head_that_has_not_come_whole_is_waited_for() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for end in 0..text.len() {
        assert!(request(&text[..end]).unwrap().is_none(), "{end}");
    }
    assert!(request(text).unwrap().is_some());
    // An empty line before it is ignored.
    assert!(request(&format!("\r\n{text}")).unwrap().is_some());
}

#[test]
fn targets_have_the_forms_that_there_are() {
    let read = |target: &str, method: &str| {
        let parsed = request(&format!(
            "{method} {target} HTTP/1.1\r\nHost: other\r\n\r\n"
        ))?;
        let head = parsed.expect("whole").head;
        Ok::<_, BadHead>((head.path.to_string(), head.authority.unwrap().to_string()))
    };
    let ok = |path: &str, authority: &str| Ok((path.to_owned(), authority.to_owned()));
    assert_eq!(read("http://shop/a?b", "GET"), ok("/a?b", "shop"));
    assert_eq!(read("HTTP://shop:8080", "GET"), ok("/", "shop:8080"));
    assert_eq!(read("http://shop?b", "GET"), ok("/?b", "shop"));
    assert_eq!(read("*", "OPTIONS"), ok("*", "other"));
    assert_eq!(
        read("/<a>?q=\"b\"&c=<d>", "GET"),
        ok("/%3Ca%3E?q=%22b%22&c=%3Cd%3E", "other")
    );
    for (target, method, error) in [
        ("*", "GET", BadHead::Target),
        ("shop:443", "CONNECT", BadHead::Connect),
        ("ftp://shop/", "GET", BadHead::Target),
        ("a", "GET", BadHead::Target),
        ("/a#b", "GET", BadHead::Target),
        ("http:///a", "GET", BadHead::Target),
        ("http://user@shop/a", "GET", BadHead::Target),
    ] {
        assert_eq!(read(target, method), Err(error), "{method} {target}");
    }
}

/// What proxies and servers have been known to read differently.
#[test]
fn what_could_smuggle_a_request_is_refused() {
    use BadHead::*;
    let long = format!("x: {}\r\n", "y".repeat(200_000));
    let many = (0..300).map(|n| format!("x{n}: y\r\n")).collect::<String>();
    let huge = "9".repeat(30);
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000));
    assert_eq!(request(&target).unwrap_err(), TargetTooLong);
    for (fields, wanted) in [
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            LengthAndEncoding,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            LengthAndEncoding,
        ),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", ContentLength),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", ContentLength),
        ("Content-Length: 3, 3\r\n", ContentLength),
        ("Content-Length: +3\r\n", ContentLength),
        ("Content-Length: -3\r\n", ContentLength),
        ("Content-Length: 0x3\r\n", ContentLength),
        ("Content-Length: 3 4\r\n", ContentLength),
        ("Content-Length: \r\n", ContentLength),
        ("Content-Length: 3a\r\n", ContentLength),
        (&format!("Content-Length: {huge}\r\n"), ContentLength),
        ("Content-Length : 3\r\n", Field),
        (" Content-Length: 3\r\n", FoldedLine),
        ("X: y\r\n Content-Length: 3\r\n", FoldedLine),
        ("X: y\r\n\tz\r\n", FoldedLine),
        ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: chunked, chunked\r\n", TransferEncoding),
        ("Transfer-Encoding: identity\r\n", TransferEncoding),
        ("Transfer-Encoding: xchunked\r\n", TransferEncoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            TransferEncoding,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            TransferEncoding,
        ),
        ("Transfer-Encoding : chunked\r\n", Field),
        ("Transfer-Encoding:\x0bchunked\r\n", Field),
        ("Transfer-Encoding\r\n", Field),
        ("X: a\0b\r\n", Field),
        ("X\0: a\r\n", Field),
        ("X: a\rb\r\n", Field),
        ("X: a\n", BareLineFeed),
        ("X: a\nContent-Length: 3\r\n", BareLineFeed),
        (": a\r\n", Field),
        ("X y: a\r\n", Field),
        ("Host: b\r\n", Host),
        (&long, TooLong),
        (&many, TooManyFields),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let found = request(&text);
        match (found, wanted) {
            // Which of the two it is called is httparse's to say.
            (Err(Field | BareLineFeed | NotHttp), Field) => {}
            (found, wanted) => assert_eq!(found.map(|_| ()), Err(wanted), "{fields:?}"),
        }
    }
    for (text, wanted) in [
        ("GET / HTTP/1.1\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            EncodingInHttp10,
        ),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Version),
        ("GET / HTTP/1.1\nHost: a\n\n", BareLineFeed),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", NotHttp),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", NotHttp),
        ("GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n", NotHttp),
        ("\x16\x03\x01\x02", NotHttp),
    ] {
        let found = request(text).map(|_| ());
        assert!(
            found == Err(wanted) || wanted == NotHttp && found.is_err(),
            "{text:?}: {found:?}"
        );
    }
}

#[test]
fn answers_are_framed_as_the_rfc_says() {
    let get = |fields: &str| {
        let parsed = response(Method::GET, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        parsed.map(|parsed| (parsed.framing, parsed.keep_alive))
    };
    assert_eq!(get("Content-Length: 3\r\n"), Ok((Framing::Length(3), true)));
    assert_eq!(get("Content-Length: 0\r\n"), Ok((Framing::None, true)));
    assert_eq!(
        get("Transfer-Encoding: chunked\r\n"),
        Ok((Framing::Chunked, true))
    );
    assert_eq!(get(""), Ok((Framing::UntilClose, false)));
    assert_eq!(
        get("Content-Length: 3\r\nConnection: close\r\n"),
        Ok((Framing::Length(3), false))
    );
    assert!(get("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n").is_err());
    for (method, line) in [
        (Method::HEAD, "HTTP/1.1 200 OK"),
        (Method::GET, "HTTP/1.1 204 No Content"),
        (Method::GET, "HTTP/1.1 304 Not Modified"),
        (Method::GET, "HTTP/1.1 100 Continue"),
    ] {
        let text = format!("{line}\r\nContent-Length: 3\r\n\r\n");
        let parsed = response(method, &text).unwrap();
        assert_eq!(parsed.framing, Framing::None, "{line}");
        assert!(parsed.keep_alive);
    }
    let old = response(Method::GET, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n").unwrap();
    assert!(!old.keep_alive);
    let kept = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5, max=3\r\nContent-Length: 3\r\n\r\n";
    let kept = response(Method::GET, kept).unwrap();
    assert!(kept.keep_alive);
    assert_eq!(kept.idle_seconds, Some(5));
}

#[test]
fn an_upgrade_is_one_only_where_connection_says_so() {
    let text = |connection: &str| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{connection}\r\n")
    };
    let upgrade = |connection: &str| request(&text(connection)).unwrap().unwrap().head.upgrade;
    assert_eq!(
        upgrade("Connection: keep-alive, Upgrade\r\n").unwrap(),
        "websocket"
    );
    assert_eq!(upgrade(""), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        let _ = take_request(&mut buffer, &HttpLimits::default());
        let mut buffer = BytesMut::from(&bytes[..]);
        let _ = take_response(&mut buffer, &HttpLimits::default(), &Method::GET);
    }

    #[test]
    fn mangled_requests_do_not_panic(at in 0..60_usize, byte in proptest::prelude::any::<u8>()) {
        let mut text = b"POST http://a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n".to_vec();
        let at = at % text.len();
        text[at] = byte;
        let _ = take_request(&mut BytesMut::from(&text[..]), &HttpLimits::default());
    }
}
