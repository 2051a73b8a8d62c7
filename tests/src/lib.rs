//! The harness: starts the real processes of Isthmus, causes faults, and waits for what must become true.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`world`] | a folder, ports and the binaries of one test; logs are shown where it fails |
//! | [`ports`] | ports that no other process on this machine takes meanwhile |
//! | [`process`] | one process: start, kill, freeze, restart, its log |
//! | [`wait`] | waiting for a condition, with a deadline |
//! | [`api`] | the REST API |
//! | [`global`] | the nodes of a global control plane |
//! | [`zone`] | a zone: joining, its control plane, its ingress |
//! | [`sidecar`] | a sidecar beside a workload |
//! | [`app`] | workloads: the demo's application, and an echo |
//! | [`client`] | real clients: curl, openssl, and a conversation over TCP |
//! | [`load`] | clients that ask and ask, of which none asks twice; an application that speaks gRPC |
//! | [`link`] | a link between two processes that can be broken in one direction, or fall silent |
//! | [`watcher`] | a client of the watch that comes back where it has been |
//! | [`fake_dataplane`] | a client of a zone that acknowledges or refuses as it is told |
//! | [`fake_zone`] | a zone that says to one real dataplane what it is told to say |
//! | [`demo`] | the installation of the demo, and all it claims |
//! | [`resources`] | resources as an administrator writes them |
//! | [`walk`] | typing in what a page of the documentation says |
//! | [`usage`] | memory and CPU time of a process |
//!
//! Everything blocks: a test reads from top to bottom. What speaks gRPC or HTTP runs on [`world::runtime`].

pub mod api;
pub mod app;
pub mod client;
pub mod demo;
pub mod fake_dataplane;
pub mod fake_zone;
pub mod global;
pub mod link;
pub mod load;
pub mod ports;
pub mod process;
pub mod resources;
pub mod sidecar;
pub mod usage;
pub mod wait;
pub mod walk;
pub mod watcher;
pub mod world;
pub mod zone;
