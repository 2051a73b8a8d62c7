//! What routes, filters, time-outs and permissions make of requests.

use super::{
    application::{Seen, application},
    wire::{
        HttpFilter, HttpMatch, HttpRule, RouteBackend, http_filter::Filter, http_match::Path,
        path_rewrite,
    },
    wire_client::{Message, Wire},
    *,
};

fn rule(path: Path, filters: Vec<Filter>, backends: &[(&str, u32)]) -> HttpRule {
    let filters = filters.into_iter();
    HttpRule {
        r#match: Some(HttpMatch {
            path: Some(path),
            ..HttpMatch::default()
        }),
        filters: filters
            .map(|filter| HttpFilter {
                filter: Some(filter),
            })
            .collect(),
        backends: backends
            .iter()
            .map(|(name, weight)| RouteBackend {
                service_document: format!("service/{name}:80"),
                weight: *weight,
            })
            .collect(),
        origin: "MeshHTTPRoute/shop to[0].rules[0]".into(),
        ..HttpRule::default()
    }
}

fn prefix(path: &str) -> Path {
    Path::Prefix(path.into())
}

/// `web` calls `store`, some of whose requests go to `blue` and `green`. All of them are behind one sidecar.
struct Routed {
    scene: Scene,
    store: Seen,
    blue: Seen,
    green: Seen,
}

async fn routed(rules: Vec<HttpRule>) -> Routed {
    let (port, store) = application().await;
    let scene = scene(Protocol::Http, port).await;
    let mut inbounds = Vec::new();
    let mut services = Vec::new();
    let mut seen = Vec::new();
    for (name, listen) in [
        ("store", scene.inbound),
        ("blue", free_port()),
        ("green", free_port()),
        ("nowhere", 0),
    ] {
        let mut service = http_service(name, Protocol::Http);
        service.zones[0].identities = vec![identity("store")];
        if name == "store" {
            service.http_routes = Some(wire::HttpRoutes {
                rules: rules.clone(),
            });
        }
        services.push(seal_service(service));
        if listen == 0 {
            continue;
        }
        let application = match name {
            "store" => scene.application,
            _ => {
                let (port, all) = application().await;
                seen.push(all);
                port
            }
        };
        let mut into = inbound(name, listen, application, allow_any());
        into.name = name.into();
        into.protocol = Protocol::Http.into();
        inbounds.push(into);
        scene.zone.change(|world| {
            let there = endpoints(name, &[listen]);
            world.endpoints.insert(there.key.clone(), there);
        });
    }
    scene
        .put(
            &scene.store,
            "store-1",
            1,
            vec![proxy("store", inbounds, vec![])],
        )
        .await;
    let web = proxy("web", vec![], vec![outbound("store", scene.outbound)]);
    let store_service = services.remove(0);
    services.splice(0..0, [store_service, web]);
    scene.put(&scene.web, "web-1", 1, services).await;
    scene.has_endpoints("blue").await;
    scene.has_endpoints("green").await;
    let green = seen.pop().unwrap();
    let blue = seen.pop().unwrap();
    Routed {
        scene,
        store,
        blue,
        green,
    }
}

impl Routed {
    async fn ask(&self, head: &str) -> Message {
        let mut wire = Wire::new(self.scene.connect().await);
        wire.send(format!("{head}\r\n\r\n")).await.unwrap();
        soon("an answer", wire.answer("GET")).await.unwrap()
    }

    async fn get(&self, path: &str) -> Message {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: shop:8080"))
            .await
    }

    /// How many requests each has seen since.
    fn seen(&self) -> [usize; 3] {
        [&self.store, &self.blue, &self.green].map(|seen| seen.take().len())
    }
}

fn header(name: &str, value: &str) -> wire::HttpHeader {
    wire::HttpHeader {
        name: name.into(),
        value: value.into(),
    }
}

fn modifier() -> wire::HeaderModifier {
    wire::HeaderModifier {
        set: vec![header("x-set", "set")],
        add: vec![header("x-add", "added")],
        remove: vec!["x-gone".into(), "set-cookie".into()],
    }
}

#[tokio::test]
async fn requests_go_where_the_first_rule_that_matches_sends_them() {
    let with_header = HttpRule {
        r#match: Some(HttpMatch {
            path: Some(prefix("/p")),
            method: "GET".into(),
            headers: vec![wire::HeaderMatch {
                name: "x-a".into(),
                value: Some(wire::header_match::Value::Exact("b".into())),
            }],
            query: vec![wire::QueryMatch {
                name: "q".into(),
                value: Some(wire::query_match::Value::Exact("1".into())),
            }],
        }),
        ..rule(prefix("/p"), vec![], &[("green", 1)])
    };
    let routed = routed(vec![
        rule(Path::Exact("/p".into()), vec![], &[("blue", 1)]),
        with_header,
        rule(prefix("/p"), vec![], &[("store", 1)]),
        rule(Path::Regex("/r[0-9]+".into()), vec![], &[("blue", 1)]),
        rule(
            prefix("/weighted"),
            vec![],
            &[("blue", 3), ("green", 1), ("store", 0)],
        ),
        rule(prefix("/missing"), vec![], &[("blue", 1), ("missing", 1)]),
        rule(prefix("/nowhere"), vec![], &[("nowhere", 1)]),
        rule(prefix("/none"), vec![], &[]),
    ])
    .await;
    for (path, fields, wanted) in [
        ("/p", "", [0, 1, 0]),
        ("/p/x?q=1", "\r\nX-A: b", [0, 0, 1]),
        ("/p/x?q=2", "\r\nX-A: b", [1, 0, 0]),
        ("/p/x?q=1", "\r\nX-A: c", [1, 0, 0]),
        ("/r17", "", [0, 1, 0]),
    ] {
        let answer = routed
            .ask(&format!("GET {path} HTTP/1.1\r\nHost: shop{fields}"))
            .await;
        assert_eq!(answer.status(), 200, "{path}");
        eventually(&format!("{path} has come"), async || {
            routed.store.len() + routed.blue.len() + routed.green.len() == 1
        })
        .await;
        assert_eq!(routed.seen(), wanted, "{path} {fields}");
    }
    for (path, status, reason) in [
        ("/elsewhere", 404, "no_route"),
        ("/r", 404, "no_route"),
        ("/px", 404, "no_route"),
        ("/none", 500, "no_backend"),
        ("/nowhere", 503, "no_endpoints"),
    ] {
        let answer = routed.get(path).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.field("x-isthmus-reason"), Some(reason), "{path}");
        let (status, reason) = (
            format!("status=\"{status}\""),
            format!("reason=\"{reason}\""),
        );
        routed
            .scene
            .web
            .counted(&["isthmus_dataplane_requests", &status, &reason])
            .await;
    }
    assert_eq!(routed.seen(), [0, 0, 0]);
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(routed.get("/missing").await.status());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 500, 500, 500, 500]);
    eventually("a missing backend keeps its share", async || {
        routed.blue.len() == 4
    })
    .await;
    routed.seen();
    // One connection stays with one worker, which counts exactly.
    let mut wire = Wire::new(routed.scene.connect().await);
    for _ in 0..16 {
        wire.send("GET /weighted HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(
            soon("an answer", wire.answer("GET"))
                .await
                .unwrap()
                .status(),
            200
        );
    }
    eventually("all have come", async || {
        routed.blue.len() + routed.green.len() == 16
    })
    .await;
    assert_eq!(routed.seen(), [0, 12, 4]);
}

#[tokio::test]
async fn nobody_gets_past_a_rule_by_writing_its_path_in_another_way() {
    let rewrite = wire::UrlRewrite {
        path: Some(wire::PathRewrite {
            path: Some(path_rewrite::Path::Prefix("/new".into())),
        }),
        ..wire::UrlRewrite::default()
    };
    let routed = routed(vec![
        rule(prefix("/p"), vec![], &[("blue", 1)]),
        rule(
            prefix("/old:one"),
            vec![Filter::UrlRewrite(rewrite)],
            &[("blue", 1)],
        ),
        rule(prefix("/"), vec![], &[("store", 1)]),
    ])
    .await;
    for (sent, seen) in [
        ("/p/x", "/p/x"),
        ("/a/../p/x", "/p/x"),
        ("/./p/x?a=/../b", "/p/x?a=/../b"),
        ("/a/%2e%2E/p", "/p"),
        ("/%70/x", "/p/x"),
        ("/a\\..\\p\\x", "/p/x"),
        // Servers differ about these: what is forwarded stays what it was.
        ("//p//x", "//p//x"),
        ("/p%2fx/../..//p", "//p"),
        ("//old%3aone//x?y", "/new//x?y"),
        (
            "/p?q=<\"a b\">".replace(' ', "+").as_str(),
            "/p?q=%3C%22a+b%22%3E",
        ),
    ] {
        let answer = routed.get(sent).await;
        assert_eq!(answer.status(), 200, "{sent}");
        eventually(&format!("{sent} has come"), async || {
            routed.store.len() + routed.blue.len() == 1
        })
        .await;
        let asked = routed.blue.take().pop();
        let asked = asked.unwrap_or_else(|| panic!("{sent} got past its rule"));
        assert_eq!(asked.target(), seen, "{sent}");
    }
    // Not the same to anybody.
    for sent in ["/p%2fx", "/pp", "/p../x"] {
        routed.get(sent).await;
        eventually(&format!("{sent} has come"), async || {
            routed.store.len() == 1
        })
        .await;
        assert_eq!(routed.seen(), [1, 0, 0], "{sent}");
    }
}

#[tokio::test]
async fn filters_change_what_they_say_and_nothing_else() {
    let rewrite = wire::UrlRewrite {
        host: "inside".into(),
        path: Some(wire::PathRewrite {
            path: Some(path_rewrite::Path::Prefix("/new".into())),
        }),
    };
    let redirect = wire::HttpRedirect {
        scheme: "https".into(),
        status: 301,
        ..wire::HttpRedirect::default()
    };
    let mirror = wire::HttpMirror {
        service_document: "service/green:80".into(),
        per_million: 1_000_000,
    };
    let routed = routed(vec![
        rule(
            prefix("/asked"),
            vec![Filter::RequestHeaders(modifier())],
            &[("blue", 1)],
        ),
        rule(
            prefix("/hop-fields"),
            vec![Filter::ResponseHeaders(modifier())],
            &[("blue", 1)],
        ),
        rule(
            prefix("/old"),
            vec![Filter::UrlRewrite(rewrite)],
            &[("blue", 1)],
        ),
        rule(prefix("/moved"), vec![Filter::Redirect(redirect)], &[]),
        rule(
            prefix("/copied"),
            vec![Filter::Mirror(mirror)],
            &[("blue", 1)],
        ),
    ])
    .await;
    let fields = "X-Gone: 1\r\nX-Set: no\r\nX-Add: 1\r\nX-Stay: 1";
    routed
        .ask(&format!("GET /asked HTTP/1.1\r\nHost: shop\r\n{fields}"))
        .await;
    eventually("it has come", async || routed.blue.len() == 1).await;
    let asked = routed.blue.take().pop().unwrap();
    let adds = asked.fields.iter().filter(|(name, _)| name == "x-add");
    assert_eq!(
        adds.map(|(_, value)| value.as_str()).collect::<Vec<_>>(),
        ["1", "added"]
    );
    assert_eq!(asked.field("x-set"), Some("set"));
    assert_eq!(
        (asked.field("x-gone"), asked.field("x-stay")),
        (None, Some("1"))
    );

    let answer = routed.get("/hop-fields").await;
    assert_eq!(
        (answer.field("x-set"), answer.field("x-end")),
        (Some("set"), Some("2"))
    );
    assert!(answer.fields.iter().all(|(name, _)| name != "set-cookie"));
    eventually("it has come", async || routed.blue.len() == 1).await;
    routed.blue.take();

    routed.get("/old/a?b=c").await;
    eventually("it has come", async || routed.blue.len() == 1).await;
    let asked = routed.blue.take().pop().unwrap();
    assert_eq!(
        (asked.target(), asked.field("host")),
        ("/new/a?b=c", Some("inside"))
    );

    let answer = routed.get("/moved/a?b=c").await;
    assert_eq!(answer.status(), 301);
    assert_eq!(answer.field("location"), Some("https://shop/moved/a?b=c"));

    let mut wire = Wire::new(routed.scene.connect().await);
    wire.send(
        "POST /copied HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
    )
    .await
    .unwrap();
    wire.send("0\r\n\r\n").await.unwrap();
    assert_eq!(
        soon("an answer", wire.answer("POST"))
            .await
            .unwrap()
            .status(),
        200
    );
    eventually("both have it", async || {
        routed.blue.len() == 1 && routed.green.len() == 1
    })
    .await;
    let [first, copy] = [&routed.blue, &routed.green].map(|seen| seen.take().pop().unwrap());
    assert_eq!((first.target(), first.text()), (copy.target(), copy.text()));
    assert_eq!(copy.text(), "body");
    assert_eq!(routed.store.len(), 0);
}

#[tokio::test]
async fn each_time_out_says_which_it_was() {
    let limited = |path: &str, timeouts: wire::HttpTimeouts| HttpRule {
        timeouts: Some(timeouts),
        ..rule(prefix(path), vec![], &[("store", 1)])
    };
    let of = wire::HttpTimeouts::default();
    let routed = routed(vec![
        limited(
            "/hang/1",
            wire::HttpTimeouts {
                request_ms: 200,
                request_origin: "MeshTimeout/fast to[0]".into(),
                ..of.clone()
            },
        ),
        limited(
            "/hang/2",
            wire::HttpTimeouts {
                stream_idle_ms: 200,
                ..of.clone()
            },
        ),
        limited(
            "/hang/3",
            wire::HttpTimeouts {
                max_stream_ms: 200,
                ..of
            },
        ),
    ])
    .await;
    for (path, reason) in [
        ("/hang/1", "request_timeout"),
        ("/hang/2", "stream_idle"),
        ("/hang/3", "stream_too_long"),
    ] {
        let answer = routed.get(path).await;
        assert_eq!(answer.status(), 504, "{path}");
        assert_eq!(answer.field("x-isthmus-reason"), Some(reason), "{path}");
        let reason = format!("reason=\"{reason}\"");
        let words = [
            "isthmus_dataplane_requests",
            "status=\"504\"",
            "said_by=\"policy\"",
            &reason,
        ];
        routed.scene.web.counted(&words).await;
    }
    // The application's side learns that nobody waits any more.
    routed
        .scene
        .store
        .counted(&["isthmus_dataplane_requests", "reason=\"client_gone\""])
        .await;
}

#[tokio::test]
async fn a_withdrawn_permission_refuses_the_next_request_of_an_open_connection() {
    let (application, seen) = application().await;
    let scene = scene(Protocol::Http, application).await;
    let mut wire = Wire::new(scene.connect().await);
    let mut ask = async || {
        wire.send("GET /x HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        soon("an answer", wire.answer("GET")).await.unwrap()
    };
    assert_eq!(ask().await.status(), 200);
    let permit = async |permissions| {
        let document = store_document(scene.protocol, scene.inbound, application, permissions);
        scene.put(&scene.store, "store-1", 1, vec![document]).await;
    };
    permit(wire::Permissions::default()).await;
    let answer = ask().await;
    assert_eq!(answer.status(), 403);
    assert_eq!(answer.field("x-isthmus-reason"), Some("permission_denied"));
    assert_eq!(seen.len(), 1);
    let words = [
        "isthmus_dataplane_requests",
        "status=\"403\"",
        "said_by=\"policy\"",
        "reason=\"permission_denied\"",
    ];
    scene.store.counted(&words).await;
    // The caller's side takes it for what it is.
    scene.web.counted(&words).await;
    permit(allow_any()).await;
    assert_eq!(ask().await.status(), 200);
}
