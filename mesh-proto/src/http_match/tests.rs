use proptest::prelude::*;

use super::*;
use crate::proxy::HttpRule;

/// `GET /path?query` with headers `name: value`.
struct Request<'a>(&'a str, &'a [(&'a str, &'a str)]);

fn of(one: HttpMatch) -> Result<Compiled, InvalidHttpRoutes> {
    Compiled::new(&HttpRoutes {
        rules: vec![HttpRule {
            r#match: Some(one),
            ..HttpRule::default()
        }],
    })
}

#[track_caller]
fn check(one: &HttpMatch, Request(line, headers): Request<'_>, expected: bool) {
    let (method, target) = line.split_once(' ').expect("method and target");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers: Vec<(String, String)> = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let compiled = of(one.clone()).expect("a good match");
    let found = compiled.find(method, path, query, headers.as_slice());
    assert_eq!(found.is_some(), expected, "{one:?}: {line} {headers:?}");
}

fn path(path: http_match::Path) -> HttpMatch {
    HttpMatch {
        path: Some(path),
        ..HttpMatch::default()
    }
}

fn prefix(value: &str) -> HttpMatch {
    path(http_match::Path::Prefix(value.to_owned()))
}

fn header(name: &str, value: header_match::Value) -> HttpMatch {
    HttpMatch {
        headers: vec![HeaderMatch {
            name: name.to_owned(),
            value: Some(value),
        }],
        ..HttpMatch::default()
    }
}

fn query(name: &str, value: query_match::Value) -> HttpMatch {
    HttpMatch {
        query: vec![QueryMatch {
            name: name.to_owned(),
            value: Some(value),
        }],
        ..HttpMatch::default()
    }
}

#[test]
fn a_prefix_ends_at_a_segment() {
    let shop = prefix("/shop");
    for (target, expected) in [
        ("/shop", true),
        ("/shop/", true),
        ("/shop/cart", true),
        ("/shop?x=1", true),
        ("/shopping", false),
        ("/", false),
        ("/a/shop", false),
        ("/SHOP", false),
    ] {
        check(&shop, Request(&format!("GET {target}"), &[]), expected);
    }
    let every = prefix("/");
    check(&every, Request("GET /", &[]), true);
    check(&every, Request("GET /x", &[]), true);
    check(&every, Request("OPTIONS *", &[]), true);
    check(&HttpMatch::default(), Request("OPTIONS *", &[]), true);
}

#[test]
fn an_exact_path_is_the_whole_path_without_the_query() {
    let cart = path(http_match::Path::Exact("/shop/cart".to_owned()));
    check(&cart, Request("GET /shop/cart", &[]), true);
    check(&cart, Request("GET /shop/cart?x=/y", &[]), true);
    check(&cart, Request("GET /shop/cart/", &[]), false);
    check(&cart, Request("GET //shop/%63art", &[]), true);
    check(&cart, Request("GET /shop%2Fcart", &[]), false);
    // A rule's own path may be written in another way as well.
    let cart = path(http_match::Path::Exact("/shop/./x/..//%63art".to_owned()));
    check(&cart, Request("GET /shop/cart", &[]), true);
}

#[test]
fn a_regular_expression_matches_the_whole_text() {
    let number = path(http_match::Path::Regex("/[0-9]+|/none".to_owned()));
    check(&number, Request("GET /12", &[]), true);
    check(&number, Request("GET /none", &[]), true);
    check(&number, Request("GET /12/x", &[]), false);
    check(&number, Request("GET /x/12", &[]), false);
    let version = header("x-version", header_match::Value::Regex("a|ab".to_owned()));
    check(&version, Request("GET /", &[("x-version", "ab")]), true);
    check(&version, Request("GET /", &[("x-version", "abc")]), false);
    let page = query("page", query_match::Value::Regex("[0-9]*".to_owned()));
    check(&page, Request("GET /?page=12", &[]), true);
    check(&page, Request("GET /?page", &[]), true);
    check(&page, Request("GET /?page=x", &[]), false);
    check(&page, Request("GET /", &[]), false);
}

#[test]
fn a_method_is_compared_as_it_is() {
    let get = HttpMatch {
        method: "GET".to_owned(),
        ..HttpMatch::default()
    };
    check(&get, Request("GET /", &[]), true);
    check(&get, Request("HEAD /", &[]), false);
    check(&get, Request("get /", &[]), false);
}

#[test]
fn values_of_one_header_are_joined_by_commas() {
    let exact = |value: &str| header("x-env", header_match::Value::Exact(value.to_owned()));
    let two = [("x-env", "a"), ("other", "x"), ("x-env", "b")];
    check(&exact("a,b"), Request("GET /", &two), true);
    check(&exact("a"), Request("GET /", &two), false);
    check(&exact("b"), Request("GET /", &two), false);
    check(&exact("a,"), Request("GET /", &two), false);
    check(&exact("a,b,"), Request("GET /", &two), false);
    check(&exact("a,b"), Request("GET /", &[("x-env", "a,b")]), true);
    check(&exact(""), Request("GET /", &[("x-env", "")]), true);
    check(&exact(""), Request("GET /", &[]), false);
    let starts = header("x-env", header_match::Value::Prefix("a,".to_owned()));
    check(&starts, Request("GET /", &two), true);
    check(&starts, Request("GET /", &[("x-env", "a")]), false);
    let regex = header("x-env", header_match::Value::Regex("a,(b|c)".to_owned()));
    check(&regex, Request("GET /", &two), true);
    let cookie = header("cookie", header_match::Value::Exact("a=1; b=2".to_owned()));
    check(
        &cookie,
        Request("GET /", &[("cookie", "a=1"), ("cookie", "b=2")]),
        true,
    );
}

#[test]
fn a_header_can_be_asked_to_be_there_or_not() {
    let there = header("x-debug", header_match::Value::Present(true));
    let absent = header("x-debug", header_match::Value::Present(false));
    check(&there, Request("GET /", &[("x-debug", "")]), true);
    check(&there, Request("GET /", &[]), false);
    check(&absent, Request("GET /", &[("x-debug", "")]), false);
    check(&absent, Request("GET /", &[]), true);
}

#[test]
fn of_a_parameter_that_occurs_twice_the_first_counts() {
    let one = query("v", query_match::Value::Exact("1".to_owned()));
    check(&one, Request("GET /?v=1&v=2", &[]), true);
    check(&one, Request("GET /?v=2&v=1", &[]), false);
    check(&one, Request("GET /?w=1&v=1", &[]), true);
    check(&one, Request("GET /?vv=1", &[]), false);
    check(&one, Request("GET /?v=%31", &[]), false);
    let equals = query("v", query_match::Value::Exact("a=b".to_owned()));
    check(&equals, Request("GET /?v=a=b", &[]), true);
}

#[test]
fn matches_that_can_not_be_obeyed_are_refused_with_their_place() {
    let check = |one: HttpMatch, expected: &str| {
        let routes = HttpRoutes {
            rules: vec![
                HttpRule::default(),
                HttpRule {
                    r#match: Some(one),
                    ..HttpRule::default()
                },
            ],
        };
        let error = Compiled::new(&routes)
            .expect_err("must be refused")
            .to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check(prefix("shop"), "rules[1].match.prefix: must be a path");
    check(prefix("/a b"), "rules[1].match.prefix: must be a path");
    check(
        prefix("/shop/"),
        "rules[1].match.prefix: a prefix ends without",
    );
    check(
        path(http_match::Path::Exact("/a?b".to_owned())),
        "rules[1].match.exact: must be a path",
    );
    for bad in ["(", "a)(b", "(?x)a # comment", "(a{1000}){1000}"] {
        let regex = path(http_match::Path::Regex(bad.to_owned()));
        check(regex, "rules[1].match.regex: is not a regular expression");
    }
    let method = HttpMatch {
        method: "GE T".to_owned(),
        ..HttpMatch::default()
    };
    check(method, "rules[1].match.method: ");
    let present = header_match::Value::Present(true);
    check(
        header("X-Env", present.clone()),
        "rules[1].match.headers[0].name: ",
    );
    check(
        header(":path", present.clone()),
        "rules[1].match.headers[0].name: ",
    );
    check(header("", present), "rules[1].match.headers[0].name: ");
    let mut empty = header("x", header_match::Value::Present(true));
    empty.headers[0].value = None;
    check(empty, "rules[1].match.headers[0].value: does not say");
    check(
        query("", query_match::Value::Exact(String::new())),
        "rules[1].match.query[0].name: ",
    );
}

#[test]
fn the_first_rule_that_matches_counts() {
    let rule = |one: Option<HttpMatch>| HttpRule {
        r#match: one,
        ..HttpRule::default()
    };
    let routes = HttpRoutes {
        rules: vec![
            rule(Some(prefix("/a/b"))),
            rule(Some(prefix("/a"))),
            rule(None),
        ],
    };
    let compiled = Compiled::new(&routes).expect("good rules");
    let mut headers = http::HeaderMap::new();
    headers.append("x", http::HeaderValue::from_static("1"));
    let find = |path: &str| compiled.find("GET", path, None, &headers);
    assert_eq!(find("/a/b/c"), Some(0));
    assert_eq!(find("/a/c"), Some(1));
    assert_eq!(find("/c"), Some(2));
    let none = Compiled::new(&HttpRoutes::default()).expect("no rules");
    assert_eq!(none.find("GET", "/", None, &headers), None);
}

/// What the documentation says, in the plainest words, with no regard for cost.
fn naive(one: &HttpMatch, request: &Sent) -> bool {
    let whole = |pattern: &str, text: &str| {
        let found = Regex::new(&format!("^({pattern})$"))
            .expect("a pattern")
            .find(text);
        found.is_some()
    };
    let seen = path::compared(&request.path).into_owned();
    let path = match &one.path {
        None => true,
        Some(http_match::Path::Exact(path)) => *path == seen,
        Some(http_match::Path::Prefix(prefix)) if prefix == "/" => true,
        Some(http_match::Path::Prefix(prefix)) => {
            seen == *prefix || seen.starts_with(&format!("{prefix}/"))
        }
        Some(http_match::Path::Regex(pattern)) => whole(pattern, &seen),
    };
    let header = |header: &HeaderMatch| {
        let named = request
            .headers
            .iter()
            .filter(|(name, _)| *name == header.name);
        let values: Vec<&str> = named.map(|(_, value)| value.as_str()).collect();
        let joined = (!values.is_empty()).then(|| values.join(","));
        match (header.value.as_ref().expect("a value"), joined) {
            (header_match::Value::Present(wanted), joined) => *wanted == joined.is_some(),
            (_, None) => false,
            (header_match::Value::Exact(wanted), Some(value)) => *wanted == value,
            (header_match::Value::Prefix(wanted), Some(value)) => value.starts_with(wanted),
            (header_match::Value::Regex(pattern), Some(value)) => whole(pattern, &value),
        }
    };
    let parameter = |parameter: &QueryMatch| {
        let found = request
            .query
            .iter()
            .find(|(name, _)| *name == parameter.name);
        match (parameter.value.as_ref().expect("a value"), found) {
            (_, None) => false,
            (query_match::Value::Exact(wanted), Some((_, value))) => wanted == value,
            (query_match::Value::Regex(pattern), Some((_, value))) => whole(pattern, value),
        }
    };
    path && (one.method.is_empty() || one.method == request.method)
        && one.headers.iter().all(header)
        && one.query.iter().all(parameter)
}

#[derive(Debug)]
struct Sent {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

fn a_pattern() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a*", "a|ab", "[ab,]+", ".*", "/a(/b)?", "/a.*|/b", ""])
        .prop_map(str::to_owned)
}

fn a_path() -> impl Strategy<Value = String> {
    "(/[ab]{1,2}){1,2}"
}

fn a_match() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        a_path().prop_map(http_match::Path::Exact),
        a_path().prop_map(http_match::Path::Prefix),
        Just(http_match::Path::Prefix("/".to_owned())),
        a_pattern().prop_map(http_match::Path::Regex),
    ];
    let header = prop_oneof![
        "[ab,]{0,3}".prop_map(header_match::Value::Exact),
        "[ab,]{0,3}".prop_map(header_match::Value::Prefix),
        a_pattern().prop_map(header_match::Value::Regex),
        any::<bool>().prop_map(header_match::Value::Present),
    ];
    let header = ("[xy]", header).prop_map(|(name, value)| HeaderMatch {
        name,
        value: Some(value),
    });
    let parameter = prop_oneof![
        "[ab]{0,2}".prop_map(query_match::Value::Exact),
        a_pattern().prop_map(query_match::Value::Regex),
    ];
    let parameter = ("[pq]", parameter).prop_map(|(name, value)| QueryMatch {
        name,
        value: Some(value),
    });
    let method = prop::sample::select(vec!["", "GET", "POST"]).prop_map(str::to_owned);
    (
        prop::option::of(path),
        method,
        prop::collection::vec(header, 0..2),
        prop::collection::vec(parameter, 0..2),
    )
        .prop_map(|(path, method, headers, query)| HttpMatch {
            path,
            method,
            headers,
            query,
        })
}

fn a_request() -> impl Strategy<Value = Sent> {
    let method = prop::sample::select(vec!["GET", "POST"]).prop_map(str::to_owned);
    (
        method,
        "(/[ab]{0,2}){1,3}",
        prop::collection::vec(("[pq]", "[ab]{0,2}"), 0..3),
        prop::collection::vec(("[xy]", "[ab,]{0,2}"), 0..4),
    )
        .prop_map(|(method, path, query, headers)| Sent {
            method,
            path,
            query,
            headers,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rule_that_is_found_is_the_first_that_matches_in_plain_words(
        matches in prop::collection::vec(a_match(), 0..4),
        request in a_request(),
    ) {
        let rules = matches.iter().map(|one| HttpRule {
            r#match: Some(one.clone()),
            ..HttpRule::default()
        });
        let compiled = Compiled::new(&HttpRoutes { rules: rules.collect() }).expect("good rules");
        let pairs = request.query.iter().map(|(name, value)| format!("{name}={value}"));
        let query = pairs.collect::<Vec<_>>().join("&");
        let query = (!request.query.is_empty()).then_some(query.as_str());
        let found = compiled.find(&request.method, &request.path, query, request.headers.as_slice());
        let expected = matches.iter().position(|one| naive(one, &request));
        prop_assert_eq!(found, expected);
    }
}
