//! One CA, and a certificate for each side: ECDSA P-256, as our own.

use std::path::PathBuf;

use mesh_runtime::pki::{self, Ca, Subject};
use mesh_tests::world::World;
use time::{Duration, OffsetDateTime};

use super::Role;

/// The DNS name in the server's certificate.
pub(crate) const SERVER_NAME: &str = "bench.local";

/// Files in PEM.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub ca: PathBuf,
    client: Pair,
    server: Pair,
}

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Files of their own for whoever is called `owner`.
    pub(super) fn make(world: &World, owner: &str) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let ca = Ca::self_signed("bench", None, now, Duration::days(1))?;
        let leaf = |role: Role| -> anyhow::Result<Pair> {
            let key = pki::new_key()?;
            let subject = Subject {
                spiffe_id: Some(Self::spiffe_id(role).parse()?),
                dns_names: vec![SERVER_NAME.to_owned()],
                ..Subject::default()
            };
            let certificate = ca.sign(&pki::request(&key)?, &subject, now, Duration::days(1))?;
            let name = format!("{owner}-tls/{}.pem", role.name());
            Ok(Pair {
                certificate: world.file(&name, &pki::to_pem(&certificate))?,
                // haproxy finds the key of `x.pem` in `x.pem.key`.
                key: world.file(&format!("{name}.key"), &key.serialize_pem())?,
            })
        };
        Ok(Self {
            ca: world.file(&format!("{owner}-tls/ca.pem"), &ca.certificate_pem())?,
            client: leaf(Role::Client)?,
            server: leaf(Role::Server)?,
        })
    }

    pub(super) fn of(&self, role: Role) -> &Pair {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }

    pub(super) fn spiffe_id(role: Role) -> String {
        format!("spiffe://bench.local/workload/{}", role.name())
    }
}
