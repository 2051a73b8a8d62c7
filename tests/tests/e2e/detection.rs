//! What is spoken at a port that declares nothing is found out, and where it can not be told in time, `meshctl check` says so.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::Context as _;
use mesh_model::api::{Check, Explanation, Finding};
use mesh_tests::{
    app::Mirror,
    client::{KeptAlive, curl},
    global::Global,
    resources,
    sidecar::Sidecar,
    wait::{SOON, eventually},
    world::{World, scene},
};

use crate::installation::{OneZone, Pair};

const MESH: &str = "payments";
const TIMEOUTS: &str = "isthmus_dataplane_detection_timeouts_total{";

/// What `meshctl check` finds of `service`.
fn found(global: &Global, service: &str) -> anyhow::Result<Option<Finding>> {
    // It ends with 4 where anything is found.
    let output = global.try_meshctl(&["check", "-o", "json"], "")?;
    let check: Check = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let subject = format!("service {MESH}/{service}");
    let mut findings = check.findings.into_iter();
    Ok(findings.find(|finding| finding.subject == subject))
}

#[test]
fn check_names_a_port_at_which_clients_are_held_back_until_it_is_declared() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        anyhow::ensure!(found(&one.global, &pair.service)?.is_none());
        // Half a request line, as which this might go on.
        let mut client = TcpStream::connect(pair.outbound())?;
        client.write_all(b"GET /half")?;
        let finding = eventually(SOON, "check names the service", || {
            found(&one.global, &pair.service)?.context("nothing is found")
        })?;
        anyhow::ensure!(finding.severity == "warning", "{finding:?}");
        anyhow::ensure!(finding.message.contains("of one connection"), "{finding:?}");
        anyhow::ensure!(finding.remedy.contains("appProtocol: tcp"), "{finding:?}");
        let output = one.global.try_meshctl(&["check"], "")?;
        let table = String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(output.status.code() == Some(4), "{output:?}");
        anyhow::ensure!(
            table.contains(&format!("service {MESH}/{}", pair.service)),
            "{table}"
        );
        let inspect = ["inspect", "dataplane", "web", "-m", MESH];
        let inspected = one.global.meshctl(&inspect)?;
        let words = format!("1 outbound connections to {}", pair.service);
        anyhow::ensure!(inspected.contains(&words), "{inspected}");
        // What was held back was passed on all the same.
        client.set_read_timeout(Some(SOON))?;
        client.write_all(b"\n")?;
        let mut answer = [0; 16];
        client.read_exact(&mut answer)?;
        anyhow::ensure!(&answer == b"store: GET /half", "{answer:?}");

        let (name, port) = pair.service.split_once(':').context("name:port")?;
        let declared = format!(
            "type: MeshService\nmesh: {MESH}\nname: {name}\nspec:\n  selector: {{dataplaneLabels: {{matchLabels: {{isthmus.io/service: {name}}}}}}}\n  ports:\n    - {{port: {port}, appProtocol: tcp}}\n"
        );
        let written = one.api.apply(&declared)?;
        one.api.wait_for_rollout(written.revision)?;
        eventually(SOON, "nothing is found any more", || {
            let found = found(&one.global, &pair.service)?;
            anyhow::ensure!(found.is_none(), "{found:?}");
            Ok(())
        })
    });
}

/// Says this to everybody, at once, and nothing else.
const BANNER: &str = "220 mail ready\r\n";

/// A server that speaks first, and listens then.
fn mail(world: &World) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((world.loopback(), world.port()?))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(BANNER.as_bytes());
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    Ok(port)
}

/// What a server says to whom says nothing.
fn greeting(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut heard = [0; BANNER.len()];
    stream.read_exact(&mut heard)?;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// A line of the metrics that has all of `words`.
fn counted(sidecar: &Sidecar, words: &[&str]) -> anyhow::Result<()> {
    eventually(SOON, &format!("{}: {words:?}", sidecar.name), || {
        let metrics = sidecar.metrics()?;
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        anyhow::ensure!(metrics.lines().any(has), "{metrics}");
        Ok(())
    })
}

#[test]
fn what_declares_nothing_is_http_where_requests_come_and_bytes_where_its_server_speaks_first() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let shop_app = Mirror::start(world, "shop")?;
        let applications = [("shop", shop_app.address.port()), ("mail", mail(world)?)];
        let mut web = one.plan("web")?.service("web");
        let mut called = Vec::new();
        for (name, application) in applications {
            let port = world.port()?;
            let plan = one.plan(name)?.service(name).inbound(port, application);
            called.push(plan.start()?);
            web = web.outbound(&format!("{name}:{port}"))?;
        }
        let web = web.start()?;
        let [shop, mail] = &*called else {
            anyhow::bail!("two are called")
        };
        let [(shop_service, shop_address), (mail_service, mail_address)] = &*web.outbounds else {
            anyhow::bail!("two are reached")
        };
        one.api
            .apply(&resources::allow_everyone(MESH, "everyone"))?;
        eventually(SOON, "the server that speaks first is heard", || {
            let heard = greeting(*mail_address)?;
            anyhow::ensure!(heard == BANNER, "{heard:?}");
            Ok(())
        })?;
        let url = format!("http://{shop_address}/items?x=1");
        eventually(SOON, "curl is answered", || {
            let answer = curl(&["--fail", &url])?;
            anyhow::ensure!(answer.text.starts_with("shop\n"), "{answer:?}");
            Ok(())
        })?;
        let ok = "status=\"200\"";
        let requests = "isthmus_dataplane_requests_total{";
        counted(
            &web,
            &[requests, "destination=\"shop\"", "\"outbound\"", ok],
        )?;
        counted(shop, &[requests, "source=\"web\"", "\"inbound\"", ok])?;
        let connections = "isthmus_dataplane_connections_total{";
        let completed = "outcome=\"completed\"";
        counted(&web, &[connections, "destination=\"mail\"", completed])?;
        counted(mail, &[connections, "source=\"web\"", completed])?;
        for sidecar in [&web, shop, mail] {
            let metrics = sidecar.metrics()?;
            // Nobody has waited for anything to be told.
            anyhow::ensure!(!metrics.contains(TIMEOUTS), "{metrics}");
            let of_mail =
                |line: &str| line.starts_with(requests) && line.contains("destination=\"mail\"");
            anyhow::ensure!(!metrics.lines().any(of_mail), "{metrics}");
        }

        for service in [shop_service, mail_service] {
            let (name, port) = service.split_once(':').context("name:port")?;
            let path = format!("/v1/meshes/{MESH}/explain?from=web&to={name}&port={port}");
            let explained: Explanation = one.api.get(&path)?;
            let notes = &explained.calls[0].caller.settings;
            let said = notes
                .iter()
                .any(|note| note.starts_with("protocol detected"));
            anyhow::ensure!(said, "{explained:?}");
            let inspect = ["inspect", "service", name, "-m", MESH];
            let inspected = one.global.meshctl(&inspect)?;
            anyhow::ensure!(inspected.contains("detected"), "{inspected}");
        }

        // A permission is asked for each request, and the connection stays; where bytes are spoken, for each connection.
        let mut kept = KeptAlive::open(*shop_address)?;
        let (status, _) = kept.ask("/before")?;
        anyhow::ensure!(status == 200, "{status}");
        let permission = resources::permission_path(MESH, "everyone");
        one.api
            .wait_for_rollout(one.api.delete(&permission)?.revision)?;
        let (status, body) = kept.ask("/after")?;
        anyhow::ensure!(status == 403, "{status}: {body}");
        let (status, _) = kept.ask("/again")?;
        anyhow::ensure!(status == 403, "{status}");
        let denied = "reason=\"permission_denied\"";
        counted(shop, &[requests, "status=\"403\"", denied])?;
        anyhow::ensure!(greeting(*mail_address).is_err(), "mail is still heard");
        counted(mail, &[connections, "source=\"web\"", denied])
    });
}

/// Who of the [`Mirror`]s takes what is no request for one.
fn who_takes_bytes(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    // It answers after an empty line, whatever was said before.
    stream.write_all(b"who?\n\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("no answer")?.1;
    let (who, said) = body.split_once('\n').context("no name")?;
    anyhow::ensure!(said == "who?\n", "{answer:?}");
    Ok(who.to_owned())
}

#[test]
fn at_a_port_that_declares_nothing_requests_obey_the_http_route_and_bytes_the_tcp_route() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let mut called = Vec::new();
        let mut ports = Vec::new();
        for name in ["store", "blue", "green"] {
            let app = Mirror::start(world, name)?;
            let port = world.port()?;
            let plan = one.plan(name)?.service(name);
            called.push((plan.inbound(port, app.address.port()).start()?, app));
            ports.push(port);
        }
        let service = format!("store:{}", ports[0]);
        let web = one.plan("web")?.service("web");
        let web = web.outbound(&service)?.start()?;
        let address = web.to(&service);
        let api = &one.api;
        api.apply(&resources::allow_everyone(MESH, "everyone"))?;
        let go = |requests: &str, other_requests: &str, bytes: &str| {
            let what = format!("requests go to {requests} and {other_requests}, bytes to {bytes}");
            eventually(SOON, &what, || {
                let found = (
                    KeptAlive::open(address)?.get("/v2/items")?,
                    KeptAlive::open(address)?.get("/")?,
                    who_takes_bytes(address)?,
                );
                let is = |body: &str, name: &str| body.lines().next() == Some(name);
                let all =
                    is(&found.0, requests) && is(&found.1, other_requests) && found.2 == bytes;
                anyhow::ensure!(all, "{found:?}");
                Ok(())
            })
        };
        go("store", "store", "store")?;
        let to = |rules: &str| {
            format!(
                "spec: {{to: [{{targetRef: {{kind: MeshService, name: store}}, rules: [{{{rules}}}]}}]}}"
            )
        };
        let default = |name: &str, port: u16| {
            format!("default: {{backendRefs: [{{kind: MeshService, name: {name}, port: {port}}}]}}")
        };
        let tcp = to(&default("green", ports[2]));
        api.apply(&format!(
            "type: MeshTCPRoute\nmesh: {MESH}\nname: bytes\n{tcp}\n"
        ))?;
        // Without rules of their own, requests go as connections do.
        go("green", "green", "green")?;
        let v2 = "matches: [{path: {type: PathPrefix, value: /v2}}]";
        let http = to(&format!("{v2}, {}", default("blue", ports[1])));
        let http = format!("type: MeshHTTPRoute\nmesh: {MESH}\nname: requests\n{http}\n");
        api.apply(&http)?;
        go("blue", "store", "green")?;

        let (name, port) = service.split_once(':').context("name:port")?;
        let explain = |more: &[&str]| {
            let call = [
                "explain", "-m", MESH, "--from", "web", "--to", name, "--port", port,
            ];
            one.global.meshctl(&[&call[..], more].concat())
        };
        let explained = explain(&[])?;
        let bytes = format!(
            "  rule       what is not HTTP\n    by MeshTCPRoute/bytes to[0].rules[0]\n    to 1 green:{}\n",
            ports[2]
        );
        anyhow::ensure!(explained.contains(&bytes), "{explained}");
        anyhow::ensure!(explained.contains("meets      green "), "{explained}");
        let bytes = format!(
            "what is not HTTP: to 1 green:{} (MeshTCPRoute/bytes",
            ports[2]
        );
        let inspected = one
            .global
            .meshctl(&["inspect", "dataplane", "web", "-m", MESH])?;
        anyhow::ensure!(inspected.contains(&bytes), "{inspected}");

        api.delete(&format!("/v1/meshes/{MESH}/meshtcproutes/bytes"))?;
        go("blue", "store", "store")
    });
}
