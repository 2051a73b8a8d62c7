//! Permissions decide over real bytes, which arrive whole.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use mesh_tests::{
    client::{Conversation, curl, wait_for_answer, wait_for_refusal, who_answers},
    resources,
    sidecar::Plan,
    usage,
    wait::{SOON, eventually, until},
    world::scene,
};

use crate::installation::{OneZone, PERMISSION, Pair, permission};

#[test]
fn a_permission_decides_and_its_removal_closes_open_connections() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let mut open = Conversation::open(pair.outbound())?;
        assert_eq!(open.say("hello")?, "store: hello");
        one.api
            .delete(&resources::permission_path("payments", PERMISSION))?;
        open.wait_for_end(Duration::from_secs(10))?;
        wait_for_refusal(pair.outbound())?;
        one.api.apply(&permission())?;
        wait_for_answer(pair.outbound(), "store")
    });
}

#[test]
fn nobody_may_call_where_no_permission_says_so() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        // Somebody else in the same mesh, with a good certificate.
        let other = one
            .plan("batch")?
            .service("batch")
            .outbound(&pair.service)?
            .start()?;
        wait_for_refusal(other.to(&pair.service))?;
        let metrics = eventually(SOON, "the refusal is counted with its reason", || {
            let metrics = pair.store.metrics()?;
            let counted = metrics.lines().any(|line| {
                line.contains("permission") && !line.starts_with('#') && !line.ends_with(" 0")
            });
            anyhow::ensure!(counted, "{metrics}");
            Ok(metrics)
        })?;
        anyhow::ensure!(
            metrics.contains("payments"),
            "metrics name no mesh:\n{metrics}"
        );
        // A deny wins over the allow of another policy, whatever they are called.
        let web = resources::spiffe_id("payments", "west", "web");
        let deny = resources::permission("payments", "zz-deny", Some("store"), &[("Exact", &web)])
            .replace("allow:", "deny:");
        one.api.apply(&deny)?;
        wait_for_refusal(pair.outbound())?;
        // What was waited for needs no second look.
        one.global.meshctl(&[
            "delete",
            "meshtrafficpermission",
            "zz-deny",
            "-m",
            "payments",
            "--wait",
        ])?;
        assert_eq!(who_answers(pair.outbound())?, "store");
        Ok(())
    });
}

#[test]
fn equal_names_in_two_meshes_are_two_services() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        one.api.apply(&resources::mesh("analytics"))?;
        one.api
            .apply(&resources::allow_everyone("analytics", "everyone"))?;
        one.api
            .apply(&resources::allow_everyone("payments", "everyone"))?;
        let token = one.api.dataplane_token("analytics")?;
        let visitor = Plan::new(world, &one.west, "analytics", "web", &token)?
            .service("web")
            .outbound(&pair.service)?
            .start()?;
        // Its own mesh has no such service, and it can not name another's.
        wait_for_refusal(visitor.to(&pair.service))?;
        let machine = world.machine();
        let echo = mesh_tests::app::Echo::start_at(world, "store-of-analytics", machine)?;
        let port: u16 = pair.service.rsplit(':').next().context("a port")?.parse()?;
        let _store = Plan::new(world, &one.west, "analytics", "store", &token)?
            .at(machine)
            .service("store")
            .inbound(port, echo.port())
            .start()?;
        wait_for_answer(visitor.to(&pair.service), "store-of-analytics")?;
        assert_eq!(who_answers(pair.outbound())?, "store");
        Ok(())
    });
}

/// FIELD g3: the mesh that goes is the first there was, with its token keys, its CA and open connections.
#[test]
fn a_mesh_that_is_deleted_disturbs_no_other() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        one.api.apply(&resources::mesh("analytics"))?;
        one.api
            .apply(&resources::allow_everyone("analytics", "everyone"))?;
        let token = one.api.dataplane_token("analytics")?;
        let plan = |name: &str| Plan::new(world, &one.west, "analytics", name, &token);
        let echo = mesh_tests::app::Echo::start(world, "cube")?;
        let port = world.port()?;
        let cube = plan("cube")?
            .service("cube")
            .inbound(port, echo.port())
            .start()?;
        let service = format!("cube:{port}");
        let report = plan("report")?
            .service("report")
            .outbound(&service)?
            .start()?;
        let outbound = report.to(&service);
        wait_for_answer(outbound, "cube")?;
        let authorities = one.west.data.join("ca/analytics/authorities");
        let authorities = || std::fs::read(&authorities).context("the CA of analytics");
        let before = (
            authorities()?,
            one.api.dataplane("analytics", "cube")?.documents,
            one.api
                .get::<serde_json::Value>("/v1/tokenissuers/analytics")?,
        );
        let mut open = Conversation::open(outbound)?;
        open.say("before")?;

        // Somebody calls all the while, and retries nothing.
        let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
        let gone = thread::scope(|scope| {
            let calling = scope.spawn(|| -> anyhow::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let who = who_answers(outbound).context("a call failed")?;
                    anyhow::ensure!(who == "cube", "{who} answers");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            let gone = (|| {
                more_answers(&answers)?;
                one.global
                    .meshctl(&["delete", "mesh", "payments", "--wait"])?;
                eventually(SOON, "nothing of payments is left in its zone", || {
                    anyhow::ensure!(!one.west.data.join("ca/payments").exists(), "its CA is");
                    anyhow::ensure!(!one.west.data.join("meshes/mesh-payments").exists());
                    Ok(())
                })?;
                more_answers(&answers)
            })();
            stop.store(true, Ordering::Relaxed);
            calling.join().expect("the caller does not panic")?;
            gone
        });
        gone?;
        assert_eq!(open.say("after")?, "cube: after");
        let after = (
            authorities()?,
            one.api.dataplane("analytics", "cube")?.documents,
            one.api
                .get::<serde_json::Value>("/v1/tokenissuers/analytics")?,
        );
        anyhow::ensure!(
            before == after,
            "analytics was touched:\n{:#?}\n{:#?}",
            (before.1, before.2),
            (after.1, after.2)
        );
        // The tokens that were there are good, and the CA issues.
        let late = plan("late")?.service("late").outbound(&service)?.start()?;
        wait_for_answer(late.to(&service), "cube")?;
        drop((pair, cube));
        Ok(())
    });
}

/// Waits for twenty more calls that were answered.
fn more_answers(answers: &AtomicUsize) -> anyhow::Result<()> {
    let wanted = answers.load(Ordering::Relaxed) + 20;
    eventually(SOON, "calls are answered", || {
        let now = answers.load(Ordering::Relaxed);
        anyhow::ensure!(now >= wanted, "{now} of {wanted}");
        Ok(())
    })
}

#[test]
fn curl_reads_a_page_through_two_sidecars() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let store = mesh_tests::app::App::start(world, "store", "payments", "west", None)?;
        let port = world.port()?;
        let _inbound = one
            .plan("store")?
            .service("store")
            .inbound(port, store.address.port())
            .start()?;
        let service = format!("store:{port}");
        let web = one
            .plan("web")?
            .service("web")
            .outbound(&service)?
            .start()?;
        one.api.apply(&permission())?;
        let url = format!("http://{}/items", web.to(&service));
        eventually(SOON, "curl gets the list", || {
            let printed = curl(&[&url])?;
            anyhow::ensure!(
                printed.success && printed.text.contains("Olives"),
                "{printed:?}"
            );
            Ok(())
        })
    });
}

/// Bytes that differ at every place, so that a lost, repeated or moved block is seen.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// An application that reads all until the end, then answers with what it read, then ends.
fn answer_after_the_end(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).is_ok() {
                    let _ = stream.write_all(&all);
                }
            });
        }
    });
}

fn exchange(address: SocketAddr, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let (mut writer, mut reader) = (stream.try_clone()?, stream);
    let mut received = Vec::new();
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            writer.write_all(sent)?;
            writer.shutdown(Shutdown::Write)
        });
        reader.read_to_end(&mut received)?;
        writing.join().expect("the writer does not panic")?;
        anyhow::Ok(())
    })?;
    Ok(received)
}

#[test]
fn bytes_arrive_whole_after_a_half_close() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, world.port()?))?;
        let application = listener.local_addr()?.port();
        answer_after_the_end(listener);
        let port = world.port()?;
        let store = one
            .plan("store")?
            .service("store")
            .inbound(port, application)
            .start()?;
        let service = format!("store:{port}");
        let web = one
            .plan("web")?
            .service("web")
            .outbound(&service)?
            .start()?;
        one.api.apply(&permission())?;
        let address = web.to(&service);
        eventually(SOON, "the first exchange", || {
            anyhow::ensure!(
                exchange(address, b"once")? == b"once",
                "something else came back"
            );
            Ok(())
        })?;
        for length in [0, 1, 16_384, 16_385, 20_000_000] {
            let sent = pattern(length);
            let received = exchange(address, &sent).with_context(|| format!("{length} bytes"))?;
            anyhow::ensure!(
                received == sent,
                "{length} bytes: {} came back, or others",
                received.len()
            );
        }
        // All is over: both sidecars give their descriptors back.
        let base = |pid| usage::descriptors(pid);
        let (web_pid, store_pid) = (web.process.pid(), store.process.pid());
        let (web_before, store_before) = (base(web_pid)?, base(store_pid)?);
        for _ in 0..50 {
            exchange(address, b"again")?;
        }
        until(
            SOON,
            "descriptors are given back",
            || matches!((base(web_pid), base(store_pid)), (Ok(w), Ok(s)) if w <= web_before + 2 && s <= store_before + 2),
        )
    });
}

#[test]
fn a_dead_endpoint_is_passed_over_and_a_drained_one_loses_nothing() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let port: u16 = pair.service.rsplit(':').next().context("a port")?.parse()?;
        let machine = world.machine();
        let second = mesh_tests::app::Echo::start_at(world, "second", machine)?;
        let mut other = one
            .plan("store-2")?
            .at(machine)
            .service("store")
            .inbound(port, second.port())
            .label("isthmus.io/workload", "store")
            .start()?;
        eventually(SOON, "both answer", || {
            let names: std::collections::BTreeSet<_> = (0..20)
                .map(|_| who_answers(pair.outbound()))
                .collect::<Result<_, _>>()?;
            anyhow::ensure!(names.len() == 2, "{names:?}");
            Ok(())
        })?;
        // No request fails while one is asked to stop, nor after it was killed: the other takes over.
        let mut open = Conversation::open(pair.outbound())?;
        open.say("before")?;
        other.process.kill();
        for _ in 0..20 {
            assert_eq!(who_answers(pair.outbound())?, "store");
        }
        other.process.launch()?;
        other.wait_ready()?;
        wait_until_both(&pair)?;
        let stopping = thread::scope(|scope| {
            let asked = scope.spawn(|| other.process.terminate(SOON));
            for _ in 0..50 {
                who_answers(pair.outbound())?;
            }
            asked.join().expect("no panic")
        })?;
        anyhow::ensure!(
            stopping.success(),
            "asked to stop, it ended with {stopping}"
        );
        Ok(())
    });
}

fn wait_until_both(pair: &Pair) -> anyhow::Result<()> {
    eventually(SOON, "both answer again", || {
        let names: std::collections::BTreeSet<_> = (0..20)
            .map(|_| who_answers(pair.outbound()))
            .collect::<Result<_, _>>()?;
        anyhow::ensure!(names.len() == 2, "{names:?}");
        Ok(())
    })
}
