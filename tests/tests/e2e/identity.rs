//! Who is refused at a strict port.

use mesh_runtime::{files, pki::Ca};
use mesh_tests::{
    client::{curl, openssl_client, who_answers},
    fake_dataplane::{FakeDataplane, IssuedIdentity},
    fake_zone::forge,
    resources,
    wait::{SOON, eventually},
    world::{World, scene},
    zone::Zone,
};
use time::{Duration, OffsetDateTime};

use crate::installation::{OneZone, Pair};

/// Whether `store`'s sidecar lets openssl with this certificate through to the application, and what openssl saw.
fn admits(pair: &Pair, identity: &IssuedIdentity) -> anyhow::Result<(bool, String)> {
    let arguments = identity.openssl_arguments(&pair.server_name());
    let printed = openssl_client(pair.inbound(), &arguments, "knock\nbye\n")?;
    Ok((printed.text.contains("store: knock"), printed.text))
}

fn issued(
    one: &OneZone,
    world: &World,
    mesh: &str,
    workload: &str,
) -> anyhow::Result<IssuedIdentity> {
    let token = one.api.dataplane_token(mesh)?;
    let name = format!("{workload}-visitor");
    let resource = resources::dataplane(mesh, &name, "127.0.0.1", world.port()?, 9, workload);
    let visitor = FakeDataplane::start(&one.west.discovery, &token, &resource)?;
    let id = resources::spiffe_id(mesh, "west", workload);
    visitor.certificate(world, &format!("{mesh}-{workload}"), &id)
}

#[test]
fn only_a_certificate_of_the_own_mesh_with_a_permission_is_admitted() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        one.api.apply(&resources::mesh("analytics"))?;
        // The one who may: so the refusals below have no other cause.
        let (admitted, text) = admits(&pair, &issued(&one, world, "payments", "web")?)?;
        anyhow::ensure!(admitted, "web of payments is refused:\n{text}");
        for (mesh, workload) in [("payments", "batch"), ("analytics", "web")] {
            let (admitted, text) = admits(&pair, &issued(&one, world, mesh, workload)?)?;
            anyhow::ensure!(!admitted, "{workload} of {mesh} is admitted:\n{text}");
        }
        Ok(())
    });
}

#[test]
fn plaintext_and_anonymous_tls_are_refused_at_a_strict_port() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        anyhow::ensure!(
            who_answers(pair.inbound()).is_err(),
            "plaintext was answered"
        );
        let url = format!("http://{}/", pair.inbound());
        let printed = curl(&[&url])?;
        anyhow::ensure!(!printed.success, "curl was answered: {printed:?}");
        let anonymous = [
            "-tls1_3",
            "-quiet",
            "-servername",
            &pair.server_name(),
            "-alpn",
            "isthmus-mesh/1",
        ]
        .map(str::to_owned);
        let printed = openssl_client(pair.inbound(), &anonymous, "knock\nbye\n")?;
        anyhow::ensure!(
            !printed.text.contains("store:"),
            "without a certificate: {printed:?}"
        );
        let old = ["-tls1_2", "-quiet", "-servername", &pair.server_name()].map(str::to_owned);
        let printed = openssl_client(pair.inbound(), &old, "knock\nbye\n")?;
        anyhow::ensure!(
            !printed.text.contains("store:"),
            "with TLS 1.2: {printed:?}"
        );
        // Each is counted with a reason, and logged.
        eventually(SOON, "the refusals are counted", || {
            let metrics = pair.store.metrics()?;
            let refused = |reason: &str| {
                metrics.lines().any(|line| {
                    line.contains(&format!("reason=\"{reason}\"")) && !line.ends_with(" 0")
                })
            };
            anyhow::ensure!(refused("plaintext"), "{metrics}");
            let tls = ["peer_certificate", "not_mesh_tls", "handshake"];
            anyhow::ensure!(tls.into_iter().any(refused), "{metrics}");
            Ok(())
        })
    });
}

/// A CA that a mesh trusts for one domain says that it made an identity of another domain of the same mesh.
#[test]
fn a_ca_vouches_for_its_own_trust_domain_only() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let now = OffsetDateTime::now_utc();
        let domain = "payments.elsewhere.mesh.local";
        let id = format!("spiffe://{domain}").parse()?;
        let ca = Ca::self_signed("elsewhere", Some(&id), now, Duration::days(1))?;
        let pem: String = ca
            .certificate_pem()
            .lines()
            .map(|line| format!("          {line}\n"))
            .collect();
        one.api.apply(&format!(
            "type: MeshTrust\nmesh: payments\nname: elsewhere\nspec:\n  trustDomain: {domain}\n  caBundles:\n    - type: Pem\n      pem:\n        value: |\n{pem}"
        ))?;
        let own = format!("spiffe://{domain}/workload/web");
        one.api.apply(&resources::permission(
            "payments",
            "elsewhere",
            Some("store"),
            &[("Exact", &own)],
        ))?;
        let honest = forge(world, &ca, "honest", &own)?;
        eventually(
            SOON,
            "the other installation's workload is admitted",
            || {
                let (admitted, text) = admits(&pair, &honest)?;
                anyhow::ensure!(admitted, "{text}");
                Ok(())
            },
        )?;
        let web = resources::spiffe_id("payments", "west", "web");
        let (admitted, text) = admits(&pair, &forge(world, &ca, "forged", &web)?)?;
        anyhow::ensure!(
            !admitted,
            "an identity of west made elsewhere is admitted:\n{text}"
        );
        Ok(())
    });
}

/// Whoever has stolen a zone has its CA key of the mesh. That makes identities of that zone, and of no other.
#[test]
fn the_ca_of_a_stolen_zone_makes_nobody_of_another_zone() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let pair = Pair::start(&one)?;
        let east = Zone::start(world, &one.global, "east")?;
        let file = east.data.join("ca/payments/authorities");
        let stolen = eventually(SOON, "east has its CA", || {
            let kept: serde_json::Value = serde_json::from_slice(&files::read_checksummed(&file)?)?;
            anyhow::ensure!(
                kept["authorities"][0]["key"].is_string(),
                "no authority yet"
            );
            Ok(kept)
        })?;
        let text = |field: &str| stolen["authorities"][0][field].as_str().unwrap_or_default();
        let ca = Ca::from_pem(text("certificate"), text("key"))?;
        let own = resources::spiffe_id("payments", "east", "web");
        one.api.apply(&resources::permission(
            "payments",
            "web-of-the-east",
            Some("store"),
            &[("Exact", &own)],
        ))?;
        let honest = forge(world, &ca, "honest", &own)?;
        eventually(SOON, "web of the east is admitted", || {
            let (admitted, text) = admits(&pair, &honest)?;
            anyhow::ensure!(admitted, "{text}");
            Ok(())
        })?;
        // This one may call, where its own zone says who it is.
        let web = resources::spiffe_id("payments", "west", "web");
        let (admitted, text) = admits(&pair, &forge(world, &ca, "forged", &web)?)?;
        anyhow::ensure!(!admitted, "east made an identity of west:\n{text}");
        Ok(())
    });
}

#[test]
fn a_zone_issues_only_the_identity_a_dataplane_has() {
    scene(|world| {
        let one = OneZone::start(world)?;
        let resource =
            resources::dataplane("payments", "web", "127.0.0.1", world.port()?, 9, "web");
        let web = FakeDataplane::start(&one.west.discovery, &one.token, &resource)?;
        web.certificate(
            world,
            "own",
            &resources::spiffe_id("payments", "west", "web"),
        )?;
        for (mesh, zone, workload) in [
            ("payments", "west", "store"),
            ("payments", "east", "web"),
            ("analytics", "west", "web"),
        ] {
            let id = resources::spiffe_id(mesh, zone, workload);
            let refused = web.certificate(world, "foreign", &id);
            anyhow::ensure!(refused.is_err(), "{id} was issued to web");
        }
        Ok(())
    });
}
