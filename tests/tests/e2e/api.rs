//! Batches, pages, preconditions, watches, problems: by curl where a person would use it.

use std::collections::BTreeSet;

use anyhow::Context as _;
use mesh_model::api::{List, Problem, Written};
use mesh_tests::{
    api::plain_get,
    client::{curl, openssl_client},
    global::{Global, Node},
    process::{Process, Recipe},
    resources,
    wait::{SOON, eventually},
    world::scene,
};
use serde_json::{Value, json};

#[test]
fn a_batch_is_written_whole_or_not_at_all() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        let written =
            api.apply(&(resources::mesh("a") + &resources::mesh("b") + &resources::zone("z")))?;
        anyhow::ensure!(written.results.len() == 3, "{written:?}");
        let revision = api.status()?.revision;
        for (what, bad) in [
            ("an unknown field", "type: Mesh\nname: bad\nzoness: []\n"),
            ("an unknown kind", "type: Mehs\nname: bad\n"),
            ("a bad name", "type: Mesh\nname: Not_A_Label\n"),
            (
                "no mesh",
                "type: MeshTrafficPermission\nname: p\nspec: {}\n",
            ),
            ("broken YAML", "type: Mesh\nname: [\n"),
            (
                "legacy form",
                "type: MeshTrafficPermission\nmesh: a\nname: p\nspec: {from: []}\n",
            ),
        ] {
            let answer = api.try_apply(&format!("{}{bad}", resources::mesh("new")))?;
            anyhow::ensure!((400..500).contains(&answer.status), "{what}: {answer:?}");
            let problem: Problem = answer.json()?;
            anyhow::ensure!(
                !problem.title.is_empty() && problem.kind == "invalid",
                "{what}: {problem:?}"
            );
        }
        anyhow::ensure!(
            api.status()?.revision == revision,
            "a refused batch changed something"
        );
        let answer = api.request("GET", "/v1/meshes/new", &[], None)?;
        anyhow::ensure!(
            answer.status == 404,
            "the good half was written: {answer:?}"
        );
        // All violations at once, each with its place.
        let answer = api.try_apply(
            "type: Mesh\nname: x\nzoness: []\n---\ntype: Zone\nname: y\nenabled: 7\nfoo: 1\n",
        )?;
        let problem: Problem = answer.json()?;
        anyhow::ensure!(problem.violations.len() >= 3, "{problem:?}");
        Ok(())
    });
}

#[test]
fn preconditions_dry_runs_and_repeated_requests_are_kept() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        let mesh = json!({"type": "Mesh", "name": "payments"});
        let put = |headers: &[(&str, &str)], query: &str, resource: &Value| {
            let mut all = vec![("content-type", "application/json")];
            all.extend(headers);
            api.request(
                "PUT",
                &format!("/v1/meshes/payments{query}"),
                &all,
                Some(&resource.to_string()),
            )
        };
        let dry: Written = put(&[], "?dry_run=true", &mesh)?.ok()?;
        anyhow::ensure!(
            dry.dry_run && api.request("GET", "/v1/meshes/payments", &[], None)?.status == 404
        );
        let first: Written = put(&[("if-none-match", "*")], "", &mesh)?.ok()?;
        anyhow::ensure!(put(&[("if-none-match", "*")], "", &mesh)?.status == 412);
        let limited = json!({"type": "Mesh", "name": "payments", "zones": ["east"]});
        let stale = put(&[("if-match", "\"1\"")], "", &limited)?;
        anyhow::ensure!(stale.status == 412 || stale.status == 409, "{stale:?}");
        let quoted = format!("\"{}\"", first.revision);
        put(&[("if-match", &quoted)], "", &limited)?.ok::<Written>()?;
        // The same request again, as after a lost answer: it happens once.
        let wider = json!({"type": "Mesh", "name": "payments", "zones": ["east", "west"]});
        let id = [("x-request-id", "7b5f7a36-1c54-4f0f-9f62-0d7e8a3f6d11")];
        let once: Written = put(&id, "", &wider)?.ok()?;
        put(&[], "", &limited)?.ok::<Written>()?;
        let again: Written = put(&id, "", &wider)?.ok()?;
        anyhow::ensure!(once.revision == again.revision, "it happened twice");
        let now: Value = api.get("/v1/meshes/payments")?;
        anyhow::ensure!(
            now["zones"] == json!(["east"]),
            "the repeated request undid a later one: {now}"
        );
        let history: Value = api.get("/v1/meshes/payments/history")?;
        anyhow::ensure!(
            history["items"]
                .as_array()
                .is_some_and(|items| items.len() >= 4),
            "{history}"
        );
        Ok(())
    });
}

#[test]
fn who_asks_too_much_is_told_when_to_come_back() {
    scene(|world| {
        let (recipe, node) = Node::recipe(world, "global-1")?;
        let recipe = recipe
            .flag("--api-body-bytes-max", "1000")
            .flag("--api-watches-per-token-max", "1")
            .flag("--api-rate-per-token-max", "5")
            .flag("--history-changes-max", "50");
        let global = Global::start_with(world, node, recipe)?;
        let api = global.api()?;
        let big = resources::mesh("a") + &"# filler\n".repeat(200);
        anyhow::ensure!(api.try_apply(&big)?.status == 413);
        let url = |path: &str| format!("https://{}{path}", global.nodes[0].api);
        let bearer = format!("Authorization: Bearer {}", global.admin_token);
        let ask = |arguments: &[&str]| {
            let mut all = vec!["-sk", "-D-", "-H", &bearer];
            all.extend(arguments);
            curl(&all)
        };
        let begun = url("/v1/watch");
        let recipe = Recipe::new("curl".as_ref())
            .arg("-skN")
            .flag("-H", &bearer)
            .arg(&begun);
        let watch = Process::start(world, "watch", recipe)?;
        eventually(SOON, "the first watch is served", || {
            anyhow::ensure!(watch.output().contains("bookmark"));
            Ok(())
        })?;
        let second = ask(&[&begun])?.text.to_lowercase();
        anyhow::ensure!(
            second.contains(" 429") && second.contains("retry-after:"),
            "{second}"
        );
        // Twice as many as in a second may come at once; so many more, as fast as can be, are too many.
        let many = vec![url("/v1/version"); 200];
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let answers = ask(&many)?.text.to_lowercase();
        anyhow::ensure!(
            answers.contains(" 429") && answers.contains("retry-after:"),
            "{answers}"
        );
        let metrics = plain_get(&format!("http://{}/metrics", global.nodes[0].admin))?.body;
        for limit in ["body-bytes", "watches-of-token", "rate-of-token"] {
            let line = format!("global_cp_http_limited_total{{limit=\"{limit}\"}}");
            anyhow::ensure!(metrics.contains(&line), "{line}: {metrics}");
        }
        Ok(())
    });
}

#[test]
fn history_is_as_long_as_the_flags_say() {
    const CHANGES: usize = 30;
    scene(|world| {
        let kept = |name: &str, flag: Option<(&str, &str)>| -> anyhow::Result<usize> {
            let (mut recipe, node) = Node::recipe(world, name)?;
            if let Some((flag, value)) = flag {
                recipe = recipe.flag(flag, value);
            }
            let global = Global::start_with(world, node, recipe)?;
            let api = global.api()?;
            let mut number = 0;
            let mut change = || -> anyhow::Result<Vec<Value>> {
                number += 1;
                let label = format!("labels: {{number: \"{number}\"}}");
                api.apply(&format!("type: Mesh\nname: payments\n{label}\n"))?;
                let history: Value = api.get("/v1/meshes/payments/history")?;
                let items = history["items"].as_array().context("a history")?;
                Ok(items.clone())
            };
            for _ in 1..CHANGES {
                change()?;
            }
            let Some((_, value)) = flag else {
                return Ok(change()?.len());
            };
            // A node says to its cluster how much is kept when it is there; from then on each change sees to it.
            eventually(SOON, &format!("{value} is kept"), || {
                let items = change()?;
                anyhow::ensure!(items.len() < CHANGES, "{} are kept", items.len());
                Ok(items.len())
            })
        };
        let all = kept("unbounded", None)?;
        anyhow::ensure!(all == CHANGES, "by default {all} are kept");
        let by_number = kept("by-number", Some(("--history-changes-max", "5")))?;
        anyhow::ensure!(by_number == 5, "{by_number} are kept");
        let by_size = kept("by-size", Some(("--history-bytes-max", "2000")))?;
        anyhow::ensure!((1..20).contains(&by_size), "{by_size} are kept");
        Ok(())
    });
}

#[test]
fn ten_thousand_resources_are_listed_in_pages() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        for batch in 0..20 {
            let yaml: String = (0..500)
                .map(|number| {
                    let number = batch * 500 + number;
                    resources::allow_everyone("payments", &format!("p-{number:05}")).replace(
                        "spec:",
                        &format!("labels: {{parity: \"{}\"}}\nspec:", number % 2),
                    )
                })
                .collect();
            api.apply(&yaml)?;
        }
        let path = "/v1/meshes/payments/meshtrafficpermissions";
        let mut names = BTreeSet::new();
        let (mut pages, mut next) = (0, None);
        loop {
            let suffix = next.map_or_else(String::new, |next: String| format!("&continue={next}"));
            let page: List = api.get(&format!("{path}?limit=300{suffix}"))?;
            anyhow::ensure!(page.items.len() <= 300, "a page of {}", page.items.len());
            pages += 1;
            for item in &page.items {
                let name = item["name"].as_str().context("a name")?.to_owned();
                anyhow::ensure!(names.insert(name.clone()), "{name} comes twice");
            }
            let Some(token) = page.next else { break };
            next = Some(token);
        }
        anyhow::ensure!(
            names.len() == 10_000 && pages == 34,
            "{} in {pages} pages",
            names.len()
        );
        anyhow::ensure!(
            api.list(path)?.len() == 10_000,
            "without a limit, pages still lead to all"
        );
        anyhow::ensure!(api.list(&format!("{path}?selector=parity=1"))?.len() == 5_000);
        let listed = global.meshctl(&[
            "get",
            "meshtrafficpermissions",
            "-m",
            "payments",
            "-o",
            "name",
        ])?;
        anyhow::ensure!(
            listed.lines().count() == 10_000,
            "meshctl lists {}",
            listed.lines().count()
        );
        Ok(())
    });
}

#[test]
fn curl_trusts_the_printed_ca_and_watches_changes() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        let address = &global.nodes[0].api;
        // What an administrator would do: fetch the chain, and believe the CA whose pin was printed.
        let arguments = ["-showcerts".to_owned()];
        let shown = openssl_client(address.parse()?, &arguments, "Q\n")?;
        let chain = mesh_runtime::pki::certificates_from_pem(&pem_blocks(&shown.text))?;
        let ca = chain
            .iter()
            .find(|der| mesh_runtime::pki::pin(der).is_ok_and(|pin| pin == global.pin))
            .context("no certificate of the chain has the printed pin")?;
        let ca = world.file("ca.pem", &mesh_runtime::pki::to_pem(ca))?;
        let ca = ca.display().to_string();
        let bearer = format!("authorization: Bearer {}", global.admin_token);
        let base = format!("https://{address}");
        let printed = curl(&[
            "--fail",
            "--cacert",
            &ca,
            "-H",
            &bearer,
            &format!("{base}/v1/version"),
        ])?;
        anyhow::ensure!(printed.success, "{printed:?}");
        let printed = curl(&[
            "--cacert",
            &ca,
            "-w",
            "%{http_code}",
            &format!("{base}/v1/meshes"),
        ])?;
        anyhow::ensure!(
            printed.text.ends_with("401"),
            "without a token: {printed:?}"
        );

        let from = |revision: u64| {
            Recipe::new("curl".as_ref())
                .arg("--silent")
                .arg("--no-buffer")
                .flag("--cacert", &ca)
                .flag("-H", &bearer)
                .arg(format!("{base}/v1/watch?from={revision}"))
        };
        let watch = Process::start(world, "watch", from(api.status()?.revision))?;
        let first = api.apply(&resources::mesh("payments"))?;
        let second = api.delete("/v1/meshes/payments")?;
        eventually(SOON, "both events arrive, each with its revision", || {
            let events = watch.output();
            for revision in [first.revision, second.revision] {
                anyhow::ensure!(events.contains(&format!("id: {revision}")), "{events}");
            }
            Ok(())
        })?;
        // From the middle, as after a broken connection: only what came later.
        let later = Process::start(world, "later", from(first.revision))?;
        eventually(SOON, "the second event arrives", || {
            let events = later.output();
            anyhow::ensure!(
                events.contains(&format!("id: {}\n", second.revision)),
                "{events}"
            );
            anyhow::ensure!(
                !events.contains(&format!("id: {}\n", first.revision)),
                "{events}"
            );
            Ok(())
        })
    });
}

fn pem_blocks(text: &str) -> String {
    let mut inside = false;
    text.lines()
        .filter(|line| {
            inside |= line.starts_with("-----BEGIN CERTIFICATE");
            let keep = inside;
            inside &= !line.starts_with("-----END CERTIFICATE");
            keep
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn every_path_answers_bad_input_with_a_problem_and_changes_nothing() {
    scene(|world| {
        let global = Global::start(world)?;
        let api = global.api()?;
        api.apply(&resources::mesh("payments"))?;
        let revision = api.status()?.revision;
        let long = format!("/v1/meshes/{}", "x".repeat(5000));
        for (method, path, body) in [
            ("GET", "/", None),
            ("GET", "/v1/nothing", None),
            ("GET", "/v1/meshes/payments/nothing", None),
            ("GET", "/v1/meshes/nowhere", None),
            ("GET", "/v1/meshes/%00", None),
            ("GET", "/v1/meshes/..%2f..%2fetc", None),
            ("GET", &long, None),
            ("GET", "/v1/meshes?limit=-1", None),
            ("GET", "/v1/meshes?limit=many", None),
            ("GET", "/v1/meshes?continue=garbage", None),
            ("GET", "/v1/meshes?selector=%3D%3D", None),
            ("GET", "/v1/watch?from=yesterday", None),
            ("GET", "/v1/rollout/none", None),
            ("PUT", "/v1/meshes/payments", Some("")),
            ("PUT", "/v1/meshes/payments", Some("{")),
            ("PUT", "/v1/meshes/payments", Some("[]")),
            (
                "PUT",
                "/v1/meshes/payments",
                Some("{\"type\":\"Mesh\",\"name\":\"other\"}"),
            ),
            (
                "PUT",
                "/v1/meshes/payments",
                Some("{\"type\":\"Zone\",\"name\":\"payments\"}"),
            ),
            (
                "PUT",
                "/v1/meshes/payments/dataplanes/x",
                Some("{\"type\":\"Dataplane\",\"mesh\":\"payments\",\"name\":\"x\"}"),
            ),
            ("POST", "/v1/batch", Some("{\"put\": 7}")),
            ("POST", "/v1/tokens", Some("{\"use\": \"everything\"}")),
            (
                "POST",
                "/v1/tokens",
                Some("{\"use\": \"dataplane\", \"mesh\": \"nowhere\"}"),
            ),
            ("POST", "/v1/tokens", Some("{\"use\": \"zone-join\"}")),
            ("DELETE", "/v1/tokens/none", None),
            ("DELETE", "/v1/meshes/nowhere", None),
            ("PATCH", "/v1/meshes/payments", Some("{}")),
            ("GET", "/v1/zones/nowhere/status", None),
            ("GET", "/v1/meshes/payments/dataplanes/nobody", None),
            ("GET", "/v1/schema/Nothing", None),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = api.request(method, path, &headers, body)?;
            let what = format!(
                "{method} {} {body:?}: {answer:?}",
                &path[..path.len().min(60)]
            );
            let nothing_to_delete = method == "DELETE" && answer.status == 200;
            anyhow::ensure!(
                (400..500).contains(&answer.status) || nothing_to_delete,
                "{what}"
            );
            if !nothing_to_delete {
                let problem: Problem = answer.json().with_context(|| what.clone())?;
                anyhow::ensure!(
                    !problem.title.is_empty() && problem.status == answer.status,
                    "{what}"
                );
            }
        }
        anyhow::ensure!(
            api.status()?.revision == revision,
            "bad input changed something"
        );
        Ok(())
    });
}
