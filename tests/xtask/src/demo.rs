//! Shows the mesh at work, or checks it unattended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{
    demo::{Demo, Tenant},
    world::{World, runtime},
};

/// How often the demo looks at what happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn run(check: bool, release: bool) -> anyhow::Result<()> {
    let binaries = crate::cargo::build_binaries(release)?;
    let world = World::with_binaries(&binaries)?;
    let begun = Instant::now();
    let say = |text: &str| println!("[{:6.1} s] {text}", begun.elapsed().as_secs_f32());
    let stop = stop_on_ctrl_c(&world);
    let outcome = Demo::start(&world, &say).and_then(|mut demo| {
        if check {
            demo.check(&say)
        } else {
            println!("{}", invitation(&demo, &world));
            watch(&mut demo, &say, &stop);
            say("stopping, and removing what was made");
            Ok(())
        }
    });
    match outcome {
        Ok(()) if check => say("everything is as claimed"),
        Ok(()) => {}
        Err(error) => {
            eprintln!("{}", world.story(20));
            return Err(error);
        }
    }
    Ok(())
}

/// Ctrl-C while something is being started ends at once: the kernel ends the children with this process. Once the demo
/// runs, it ends in order.
fn stop_on_ctrl_c(world: &World) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, directory) = (stop.clone(), world.directory().to_owned());
    runtime().spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        flag.store(true, Ordering::Release);
        // Whoever watches the demo looks at the flag twice a second. Nobody does while it starts.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let _ = std::fs::remove_dir_all(&directory);
        std::process::exit(130);
    });
    stop
}

fn invitation(demo: &Demo, world: &World) -> String {
    let pages: String = demo
        .tenants
        .iter()
        .map(|tenant| format!("  {:<10} {}\n", tenant.mesh, tenant.page()))
        .collect();
    let payments = &demo.tenants[0];
    let pids: String = demo
        .global
        .nodes
        .iter()
        .map(|node| (&node.process, "a global node"))
        .chain([
            (&demo.east.process, "control plane of east"),
            (&demo.west.process, "control plane of west"),
        ])
        .chain([(&payments.api_sidecar.process, "sidecar of api in payments")])
        .map(|(process, what)| format!("    kill -9 {:<8} # {what}\n", process.pid()))
        .collect();
    format!(
        "
Everything runs. Open the pages:
{pages}
Talk to the control plane from another terminal:
  export ISTHMUS_SERVER=https://{server}
  export ISTHMUS_TOKEN={token}
  export PATH={binaries}:$PATH

Try:
  meshctl global status
  meshctl get dataplanes -m payments
  meshctl inspect dataplane api -m payments
  meshctl delete meshtrafficpermission web-to-api -m payments      # the page of payments is refused, analytics goes on
  meshctl history meshtrafficpermission web-to-api -m payments
  meshctl apply -f {permissions} --wait
  and end what you like; traffic goes on:
{pids}
Logs: {logs}
Ctrl-C stops everything and removes it. What happens:
",
        server = demo.global.nodes[0].api,
        token = demo.global.admin_token,
        binaries = world.binaries().display(),
        permissions = payments.permissions.display(),
        logs = world.logs().display(),
    )
}

/// Tells what changes, until it is asked to stop. What somebody ended is started again after a while, as systemd would.
fn watch(demo: &mut Demo, say: &dyn Fn(&str), stop: &AtomicBool) {
    let mut known: Vec<String> = Vec::new();
    let mut leader = None;
    while !stop.load(Ordering::Acquire) {
        let now: Vec<_> = demo.tenants.iter().map(state).collect();
        for (at, state) in now.iter().enumerate() {
            if known.get(at) != Some(state) {
                say(state);
            }
        }
        known = now;
        if let Ok(status) = demo.api().and_then(|api| api.status())
            && status.leader.is_some()
            && status.leader != leader
        {
            leader = status.leader;
            say(&format!(
                "global: node {} leads",
                leader.unwrap_or_default()
            ));
        }
        restart_what_ended(demo, say);
        thread::sleep(LOOK_EVERY);
    }
}

/// What a person would see on the page.
fn state(tenant: &Tenant) -> String {
    let mesh = &tenant.mesh;
    match tenant.look() {
        Err(_) => format!("{mesh}: the page's own process does not answer"),
        Ok(answer) => {
            let hops: Vec<_> = answer
                .hops
                .iter()
                .map(|hop| format!("{} ({})", hop.role, hop.zone))
                .collect();
            match answer.error {
                None => format!("{mesh}: {}", hops.join(" → ")),
                Some(_) => format!("{mesh}: {} → refused or not reached", hops.join(" → ")),
            }
        }
    }
}

fn restart_what_ended(demo: &mut Demo, say: &dyn Fn(&str)) {
    let nodes = demo.global.nodes.iter_mut().map(|node| &mut node.process);
    let zones = [&mut demo.east, &mut demo.west]
        .into_iter()
        .flat_map(|zone| {
            let ingress = zone.ingress.as_mut().map(|ingress| &mut ingress.process);
            [Some(&mut zone.process), ingress].into_iter().flatten()
        });
    let tenants = demo.tenants.iter_mut().flat_map(|tenant| {
        [
            &mut tenant.web_sidecar,
            &mut tenant.api_sidecar,
            &mut tenant.store_sidecar,
        ]
        .map(|sidecar| &mut sidecar.process)
    });
    for process in nodes.chain(zones).chain(tenants) {
        if !process.is_running() {
            say(&format!(
                "{} has ended; it is started again",
                process.name()
            ));
            if let Err(error) = process.restart() {
                say(&format!("{error:#}"));
            }
        }
    }
}
