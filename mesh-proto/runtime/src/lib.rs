//! What every process of Isthmus does the same way.
//!
//! The parts may not depend on each other's crates, so what they share beside the wire stands here (see
//! `docs/decisions/001-mesh-runtime.md`). Nothing here knows a mesh, a policy or a resource.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`config`] | settings from a file, the environment and flags |
//! | [`logging`] | logs as text or JSON, at a level that changes at run time |
//! | [`admin`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`pki`] | keys, requests, certificates, pins |
//! | [`tls`] | who is at the other end: verifiers by SPIFFE ID and by pin |
//! | [`transport`] | gRPC over those |
//! | [`identity_dir`] | a process's key, certificate and anchors on disk |
//! | [`files`] | files that are whole or not there |
//! | [`backoff`] | how long to wait before calling again |
//! | [`shutdown`] | SIGTERM and SIGINT |

pub mod admin;
pub mod backoff;
pub mod config;
pub mod files;
pub mod identity_dir;
pub mod logging;
pub mod pki;
pub mod shutdown;
pub mod tls;
pub mod transport;

use sd_notify::NotifyState;

/// Makes aws-lc-rs the TLS provider of the process. Calling it again does nothing.
pub fn init() {
    // An error means that a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Tells systemd that the process serves. Does nothing where systemd did not start it.
pub fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells systemd that this process is ready, and is the service's main one from now on.
pub fn notify_taken_over() {
    notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told that the process is ready");
    }
}
