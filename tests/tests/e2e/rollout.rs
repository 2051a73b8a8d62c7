//! Refusals are named, and a change touches only whom it concerns.

use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::{
    document, features,
    proxy::{
        IdentityMatch, Inbound, Permissions, Protocol, Proxy, SocketAddress, TlsMode,
        document::Body, identity_match::SpiffeId as Match,
    },
};
use mesh_tests::{
    api,
    app::Echo,
    client::openssl_client,
    fake_dataplane::FakeDataplane,
    fake_zone::FakeZone,
    process::{Process, Recipe},
    resources,
    wait::{SOON, eventually},
    world::scene,
};

use crate::installation::{OneZone, PERMISSION, Pair, permission};

#[test]
fn a_refused_document_fails_apply_wait_by_name_and_blocks_nobody_else() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let resource =
            resources::dataplane("payments", "old", "127.0.0.1", world.port()?, 9, "old");
        let old = FakeDataplane::start(&one.west.discovery, &one.token, &resource)?;
        let kept = old.versions();
        let reason = "feature permission.by-moon-phase is not known here";
        old.refuse("proxy", reason);

        let everyone = resources::allow_everyone("payments", "everyone");
        let output = one.global.try_meshctl(
            &["apply", "-f", "-", "--wait", "--timeout", "20s"],
            &everyone,
        )?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        anyhow::ensure!(output.status.code() == Some(3), "{}\n{text}", output.status);
        for word in ["payments/old", "proxy", reason] {
            anyhow::ensure!(text.contains(word), "{word:?} is not named:\n{text}");
        }
        anyhow::ensure!(old.versions() == kept, "the refused document is in force");
        // Others go on: the change reached them, and so do later ones.
        one.api
            .delete(&resources::permission_path("payments", PERMISSION))?;
        one.api
            .delete(&resources::permission_path("payments", "everyone"))?;
        mesh_tests::client::wait_for_refusal(pair.outbound())?;
        one.api.apply(&permission())?;
        mesh_tests::client::wait_for_answer(pair.outbound(), "store")?;
        let inspected = one
            .global
            .meshctl(&["inspect", "dataplane", "store", "-m", "payments"])?;
        anyhow::ensure!(
            inspected.contains(PERMISSION),
            "no origin is shown:\n{inspected}"
        );
        Ok(())
    });
}

#[test]
fn a_silent_dataplane_fails_apply_wait_by_name() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let mut web = one
            .plan("web")?
            .service("web")
            .inbound(world.port()?, world.port()?)
            .start()?;
        web.process.kill();
        let everyone = resources::allow_everyone("payments", "everyone");
        // The zone forgets a dataplane after the grace period; within it, it is silent.
        let output = one.global.try_meshctl(
            &["apply", "-f", "-", "--wait", "--timeout", "1s"],
            &everyone,
        )?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        anyhow::ensure!(
            output.status.success() || text.contains("payments/web"),
            "it failed and did not say who is silent:\n{text}"
        );
        let output = one.global.try_meshctl(
            &["apply", "-f", "-", "--wait", "--timeout", "30s"],
            &everyone,
        )?;
        anyhow::ensure!(
            output.status.success(),
            "a dataplane that went away holds up everyone"
        );
        Ok(())
    });
}

/// 2 real sidecars and 48 clients of the same protocol.
#[test]
fn a_change_for_one_of_fifty_sidecars_leaves_the_others_untouched() {
    scene(|world| {
        let one = OneZone::start(world)?;
        one.api
            .apply(&resources::allow_everyone("payments", "everyone"))?;
        let real: Vec<_> = ["real-a", "real-b"]
            .iter()
            .map(|name| {
                one.plan(name)?
                    .service(name)
                    .inbound(world.port()?, 9)
                    .start()
            })
            .collect::<anyhow::Result<_>>()?;
        let fakes: Vec<_> = (0..48)
            .map(|number| {
                let name = format!("fake-{number}");
                let resource =
                    resources::dataplane("payments", &name, "127.0.0.1", 1000 + number, 9, &name);
                FakeDataplane::start(&one.west.discovery, &one.token, &resource)
            })
            .collect::<anyhow::Result<_>>()?;
        let settled = one
            .api
            .apply(&resources::allow_everyone("payments", "everyone-too"))?;
        one.api.wait_for_rollout(settled.revision)?;
        let running = |name: &str| -> anyhow::Result<_> {
            Ok(one.api.dataplane("payments", name)?.documents)
        };
        let real_before: Vec<_> = real
            .iter()
            .map(|s| running(&s.name))
            .collect::<Result<_, _>>()?;
        let before: Vec<_> = fakes
            .iter()
            .map(|fake| (fake.versions(), fake.seen().documents_sent))
            .collect();
        // Only the 8th is meant.
        let id = resources::spiffe_id("payments", "west", "real-a");
        let change =
            resources::permission("payments", "for-one", Some("fake-7"), &[("Exact", &id)]);
        let written = one.api.apply(&change)?;
        one.api.wait_for_rollout(written.revision)?;
        eventually(SOON, "the one has the change", || {
            anyhow::ensure!(fakes[7].versions() != before[7].0, "not yet");
            Ok(())
        })?;
        for (number, fake) in fakes.iter().enumerate().filter(|(number, _)| *number != 7) {
            let seen = fake.seen();
            anyhow::ensure!(
                fake.versions() == before[number].0,
                "fake-{number} has other documents"
            );
            anyhow::ensure!(
                seen.documents_sent == before[number].1,
                "fake-{number} was sent {} documents for nothing",
                seen.documents_sent - before[number].1
            );
            anyhow::ensure!(seen.ended.is_none(), "fake-{number}: {:?}", seen.ended);
        }
        for (sidecar, before) in real.iter().zip(real_before) {
            anyhow::ensure!(
                running(&sidecar.name)? == before,
                "{} has other documents",
                sidecar.name
            );
        }
        Ok(())
    });
}

const DOMAIN: &str = "payments.west.mesh.local";
const NAME: &str = "sni.msvc.payments.west.store.api";

fn proxy(
    listen: std::net::SocketAddr,
    application: u16,
    allow: &str,
    feature: Option<&str>,
) -> mesh_proto::proxy::Document {
    let address = |host: String, port: u16| {
        Some(SocketAddress {
            host,
            port: port.into(),
        })
    };
    let mut required = vec![
        features::INBOUND_MTLS.to_owned(),
        features::PERMISSION_SPIFFE.to_owned(),
    ];
    required.extend(feature.map(str::to_owned));
    document::seal(
        document::PROXY.to_owned(),
        required,
        Body::Proxy(Proxy {
            mesh: "payments".to_owned(),
            zone: "west".to_owned(),
            name: "store".to_owned(),
            workload: "store".to_owned(),
            spiffe_id: resources::spiffe_id("payments", "west", "store"),
            inbounds: vec![Inbound {
                name: listen.port().to_string(),
                listen: address(listen.ip().to_string(), listen.port()),
                application: address("127.0.0.1".to_owned(), application),
                protocol: Protocol::Tcp.into(),
                tls: TlsMode::Strict.into(),
                server_names: vec![NAME.to_owned()],
                service: "store".to_owned(),
                permissions: Some(Permissions {
                    allow: vec![IdentityMatch {
                        spiffe_id: Some(Match::Exact(allow.to_owned())),
                        origin: "test#0".to_owned(),
                    }],
                    ..Permissions::default()
                }),
                ..Inbound::default()
            }],
            ..Proxy::default()
        }),
    )
}

/// A zone of the future says what this dataplane can not do.
#[test]
fn a_real_dataplane_refuses_an_unknown_feature_and_keeps_its_last_good_state() {
    scene(|world| {
        let zone = FakeZone::start(world, DOMAIN)?;
        let echo = Echo::start(world, "store")?;
        let listen = std::net::SocketAddr::from((world.machine(), world.port()?));
        let metrics = format!("127.0.0.1:{}", world.port()?);
        let recipe = Recipe::new(&world.binary("dataplane"))
            .arg("run")
            .flag("--mode", "sidecar")
            .flag("--zone-cp", &zone.address)
            .flag("--token-file", world.file("token", &zone.token)?)
            .flag("--mesh", "payments")
            .flag("--name", "store")
            .flag("--address", listen.ip().to_string())
            .flag("--service", "store")
            .flag("--inbound", format!("{}:{}", listen.port(), echo.port()))
            .flag("--state-dir", world.directory().join("state"))
            .flag("--admin-socket", world.directory().join("admin.sock"))
            .flag("--metrics-address", &metrics);
        let mut dataplane = Process::start(world, "dataplane", recipe)?;
        let web = resources::spiffe_id("payments", "west", "web");
        let good = proxy(listen, echo.port(), &web, None);
        zone.put(7, vec![zone.trust(DOMAIN), good.clone()]);
        eventually(SOON, "the good documents are acknowledged", || {
            let heard = zone.heard();
            let acked = heard.acks.iter().flat_map(|ack| &ack.documents);
            let found = acked.into_iter().any(|d| d.version == good.version);
            anyhow::ensure!(found, "{heard:?}");
            Ok(())
        })?;
        dataplane.wait_ready(|| api::ready(&metrics))?;
        let client = zone.forge(world, "web", &web)?;
        let answers = || -> anyhow::Result<bool> {
            let printed = openssl_client(listen, &client.openssl_arguments(NAME), "knock\nbye\n")?;
            Ok(printed.text.contains("store: knock"))
        };
        anyhow::ensure!(answers()?, "the good documents are not in force");

        // It would lock web out, if it were applied without the feature.
        let bad = proxy(
            listen,
            echo.port(),
            "spiffe://nobody.local/x",
            Some("permission.by-moon-phase"),
        );
        zone.put(8, vec![bad.clone()]);
        let nack = eventually(SOON, "the document is refused", || {
            let heard = zone.heard();
            let mut refused = heard.nacks.iter().flat_map(|nack| &nack.documents);
            refused
                .find(|d| d.version == bad.version)
                .cloned()
                .context("not yet")
        })?;
        anyhow::ensure!(
            nack.reason.contains("permission.by-moon-phase"),
            "{}",
            nack.reason
        );
        anyhow::ensure!(answers()?, "the last good state was given up");
        let acked = zone
            .heard()
            .acks
            .iter()
            .any(|ack| ack.documents.iter().any(|d| d.version == bad.version));
        anyhow::ensure!(!acked, "it was acknowledged as well");

        // A document that lies about its version, or that is no proxy's, is refused the same way.
        let mut lying = proxy(listen, echo.port(), &web, None);
        lying.version = "0".repeat(64);
        zone.put(9, vec![lying.clone()]);
        eventually(SOON, "a wrong version is refused", || {
            let heard = zone.heard();
            let refused = heard
                .nacks
                .iter()
                .any(|n| n.documents.iter().any(|d| d.version == lying.version));
            anyhow::ensure!(refused, "not yet");
            Ok(())
        })?;
        anyhow::ensure!(answers()?, "the last good state was given up");

        // Its zone gone, the last good state comes back from the disk.
        drop(zone);
        dataplane.restart()?;
        eventually(Duration::from_secs(60), "it serves from its disk", || {
            anyhow::ensure!(answers()?, "not yet");
            Ok(())
        })
    });
}
