//! What `explain` says of a request is what becomes of it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context as _;
use mesh_model::api::{ExplainedCall, Explanation};
use mesh_tests::{
    app::Mirror,
    resources,
    sidecar::Sidecar,
    wait::{SOON, eventually},
    world::{World, scene},
};
use serde_json::{Value, json};

use crate::installation::OneZone;

const MESH: &str = "payments";

/// `web` calls `store`, which speaks HTTP, and so does `next`.
struct Shop {
    one: OneZone,
    web: Sidecar,
    /// Their ports.
    store: u16,
    next: u16,
    called: Vec<(Sidecar, Mirror)>,
}

impl Shop {
    fn start(world: &World) -> anyhow::Result<Self> {
        let one = OneZone::start(world)?;
        let (store, next) = (world.port()?, world.port()?);
        let mut called = Vec::new();
        for (name, port) in [("store", store), ("next", next)] {
            let app = Mirror::start(world, name)?;
            let plan = one.plan(name)?.service(name);
            let application = app.address.port();
            let sidecar = plan.inbound_of(port, application, "http").start()?;
            called.push((sidecar, app));
        }
        let web = one.plan("web")?.service("web");
        let web = web.outbound(&format!("store:{store}"))?.start()?;
        one.api
            .apply(&resources::allow_everyone(MESH, "everyone"))?;
        let address = web.to(&format!("store:{store}"));
        eventually(SOON, "web reaches store", || {
            let answer = send(address, "GET /", &[])?;
            anyhow::ensure!(answer.who() == Some("store"), "{answer:?}");
            Ok(())
        })?;
        Ok(Self {
            one,
            web,
            store,
            next,
            called,
        })
    }

    /// Where `web` reaches `store`.
    fn address(&self) -> SocketAddr {
        self.web.to(&format!("store:{}", self.store))
    }
}

/// What came back: the head's lines, and the body.
#[derive(Debug)]
pub(crate) struct Answer {
    head: String,
    body: String,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Who answered, where it was an application.
    fn who(&self) -> Option<&str> {
        (self.status() == "200")
            .then(|| self.body.lines().next())
            .flatten()
    }
}

pub(crate) fn send(address: SocketAddr, request: &str, headers: &[&str]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut text = format!("{request} HTTP/1.1\r\nhost: store\r\nconnection: close\r\n");
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer: {answer:?}"))?;
    Ok(Answer {
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

fn explain(shop: &Shop, request: &str, headers: &[&str]) -> anyhow::Result<ExplainedCall> {
    let (method, path) = request.split_once(' ').context("method and path")?;
    let escaped =
        |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    let (path, headers) = (escaped(path), escaped(&headers.join("\n")));
    let port = shop.store;
    let query =
        format!("from=web&to=store&port={port}&method={method}&path={path}&headers={headers}");
    let mut explanation: Explanation = shop
        .one
        .api
        .get(&format!("/v1/meshes/{MESH}/explain?{query}"))?;
    anyhow::ensure!(explanation.calls.len() == 1, "{explanation:?}");
    explanation.calls.pop().context("just counted")
}

/// What is wrong with what was explained, beside what became of the request.
fn contradiction(call: &ExplainedCall, answer: &Answer) -> Option<String> {
    let caller = &call.caller;
    let status = answer.status();
    if let Some(said) = &caller.answer {
        let as_said = said.starts_with(&format!("answers {status}"));
        return (!as_said || call.verdict != "answered").then(|| format!("{said}: got {status}"));
    }
    let mut backends = caller.backends.iter().filter(|backend| backend.weight > 0);
    let as_said = match answer.who() {
        Some(who) => backends.any(|backend| backend.error.is_none() && backend.service == who),
        None => backends.any(|backend| backend.error.is_some()) && status.starts_with('5'),
    };
    (!as_said).then(|| {
        format!(
            "explained {:?}: got {status} of {:?}",
            caller.backends,
            answer.who()
        )
    })
}

/// What `meshctl top` shows of `store` in one interval in which it is called all the time.
fn top(shop: &Shop, request: &str, by: &str) -> anyhow::Result<Value> {
    let done = AtomicBool::new(false);
    let address = shop.address();
    std::thread::scope(|threads| {
        let caller = threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Once nothing is known of the called any more, there is no answer either.
                let _ = send(address, request, &[]);
            }
        });
        let arguments = ["top", "-m", MESH, "--service", "store", "--by", by];
        let options = ["--interval", "1", "--once", "-o", "json"];
        let shown = shop
            .one
            .global
            .meshctl(&[&arguments[..], &options].concat());
        done.store(true, Ordering::Relaxed);
        caller.join().expect("the caller does not panic");
        Ok(serde_json::from_str(&shown?)?)
    })
}

#[test]
fn top_shows_who_calls_whom_how_many_fail_and_how_long_it_takes() {
    scene(|world| {
        let mut shop = Shop::start(world)?;
        let shown = top(&shop, "GET /", "pair")?;
        let line = &shown["items"][0];
        anyhow::ensure!(
            (&line["source"], &line["destination"]) == (&json!("web"), &json!("store")),
            "{shown}"
        );
        anyhow::ensure!(
            line["requests"].as_u64() > Some(0) && line["failed"] == 0,
            "{shown}"
        );
        anyhow::ensure!(line["p50Seconds"].as_f64() > Some(0.0), "{shown}");
        anyhow::ensure!(shown["missing"] == json!([]), "{shown}");
        // Who is not let in fails, as their callers see it, too.
        let api = &shop.one.api;
        let permission = format!("/v1/meshes/{MESH}/meshtrafficpermissions/everyone");
        api.wait_for_rollout(api.delete(&permission)?.revision)?;
        let shown = top(&shop, "GET /", "pair")?;
        let line = &shown["items"][0];
        anyhow::ensure!(
            line["source"] == "web" && line["failedPercent"] == 100.0,
            "{shown}"
        );
        // Its callers know that it is away. Their dataplanes begin new streams, to look for others.
        shop.called.clear();
        let shown = top(&shop, "GET /", "destination")?;
        let line = &shown["items"][0];
        anyhow::ensure!(
            line["destination"] == "store" && line.get("source").is_none(),
            "{shown}"
        );
        anyhow::ensure!(line["requests"].as_u64() > Some(0), "{shown}");
        anyhow::ensure!(line["failedPercent"] == 100.0, "{shown}");
        Ok(())
    });
}

#[test]
fn what_is_explained_of_a_request_is_what_becomes_of_it() {
    scene(|world| {
        let shop = Shop::start(world)?;
        let api = &shop.one.api;
        let backend = |name: &str, weight: u32| {
            let port = if name == "next" {
                shop.next
            } else {
                shop.store
            };
            json!({"kind": "MeshService", "name": name, "port": port, "weight": weight})
        };
        let route = json!({"type": "MeshHTTPRoute", "mesh": MESH, "name": "shop", "spec": {"to": [{
        "targetRef": {"kind": "MeshService", "name": "store"},
        "rules": [
            {"matches": [{"path": {"type": "PathPrefix", "value": "/v2"}}], "default": {
                "filters": [
                    {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/inner"}}},
                    {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-from", "value": "shop"}], "remove": ["x-secret"]}}],
                "backendRefs": [backend("next", 1)]}},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/v2"}, "headers": [{"name": "x-env", "value": "a,b"}]}],
             "default": {"backendRefs": [backend("store", 1)]}},
            {"matches": [{"path": {"type": "Exact", "value": "/old"}}], "default": {
                "filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 301, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}}}]}},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/split"}}], "default": {
                "backendRefs": [backend("store", 1), backend("next", 1), backend("nobody", 1)]}},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/none"}}], "default": {"backendRefs": [backend("store", 0)]}},
            {"matches": [{"path": {"type": "RegularExpression", "value": "/item/[0-9]+"}}], "default": {"backendRefs": [backend("next", 1)]}},
            {"matches": [{"queryParams": [{"type": "Exact", "name": "v", "value": "2"}]}, {"method": "DELETE"}],
             "default": {"backendRefs": [backend("next", 1)]}},
        ]}]}});
        api.wait_for_rollout(api.apply(&route.to_string())?.revision)?;
        let address = shop.address();
        let requests: [(&str, &[&str]); 23] = [
            ("GET /", &[]),
            ("GET /v2", &[]),
            ("GET /v2/x?y=1", &[]),
            ("GET /v2x", &[]),
            ("GET /a/../v2/x", &[]),
            ("GET //v2//x", &[]),
            ("GET /%76%32/./x", &[]),
            ("GET /v2%2fx", &[]),
            ("GET /v2", &["x-env: a,b"]),
            ("GET /v2", &["X-Env: a", "x-env: b"]),
            ("GET /v2", &["x-env: b", "x-env: a"]),
            ("GET /old", &[]),
            ("GET /old/", &[]),
            ("GET /old?a=b", &[]),
            ("GET /split", &[]),
            ("GET /split/1", &[]),
            ("GET /split/2", &[]),
            ("GET /none", &[]),
            ("GET /item/12", &[]),
            ("GET /item/12/x", &[]),
            ("GET /?v=2&v=1", &[]),
            ("GET /?v=1&v=2", &[]),
            ("DELETE /x", &[]),
        ];
        for (request, headers) in requests {
            let call = explain(&shop, request, headers)?;
            let answer = send(address, request, headers)?;
            if let Some(wrong) = contradiction(&call, &answer) {
                anyhow::bail!("{request} {headers:?}: {wrong}\n{call:#?}\n{answer:?}");
            }
        }
        let changed = send(address, "GET /v2/x?y=1", &["x-secret: s"])?;
        let seen = changed.body.to_lowercase();
        anyhow::ensure!(seen.contains("get /inner/x?y=1 http/1.1"), "{changed:?}");
        anyhow::ensure!(
            seen.contains("x-from: shop") && !seen.contains("x-secret"),
            "{changed:?}"
        );
        Ok(())
    });
}

#[test]
fn a_request_that_is_denied_is_answered_with_403() {
    scene(|world| {
        let shop = Shop::start(world)?;
        let api = &shop.one.api;
        let permission = format!("/v1/meshes/{MESH}/meshtrafficpermissions/everyone");
        api.wait_for_rollout(api.delete(&permission)?.revision)?;
        let answer = send(shop.address(), "GET /", &[])?;
        anyhow::ensure!(answer.status() == "403", "{answer:?}");
        let call = explain(&shop, "GET /", &[])?;
        anyhow::ensure!(call.verdict == "denied", "{call:?}");
        let reason = &call.inbounds.first().context("an inbound")?.reason;
        anyhow::ensure!(reason.contains("answered with 403"), "{reason}");
        Ok(())
    });
}
