//! The proxy of Isthmus: sidecar and zone ingress.
//!
//! A connection passes the modules in this order, and each depends only on those after it:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`listener`] | accepts, and reads the snapshot, once |
//! | [`inbound`], [`outbound`], [`ingress`] | one connection, from its first byte to its record |
//! | [`detect`] | whether HTTP is spoken, where nobody has declared it |
//! | [`permission`] | who may call |
//! | [`route`] | which service a connection of the application goes to: backends by weight |
//! | [`http`] | requests of HTTP, where that is spoken: their own way, told there; then on with [`balance`] |
//! | [`balance`] | which endpoint |
//! | [`upstream`] | one endpoint after another until one answers |
//! | [`tls`] | mesh TLS: who is at the other end |
//! | [`relay`] | bytes, both ways, until both sides have ended |
//! | [`socket`] | one end of a connection, with or without TLS |
//!
//! Interception (original destinations) is another way for [`listener`] to find a target; nothing after it knows how the
//! connection came.
//!
//! Around them:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`settings`] | flags, environment, file |
//! | [`process`] | the whole life of the process: wiring, ready, drain |
//! | [`control`] | the control thread: takes what the zone says, publishes snapshots, acknowledges or refuses |
//! | [`config`] | wire documents as domain types, converted once |
//! | [`snapshot`] | what connections are handled by: one immutable value |
//! | [`discovery`] | the stream to a zone control plane |
//! | [`certificates`] | when to ask for a certificate, and what to do with it |
//! | [`readiness`] | probes of the application |
//! | [`state`] | what is kept on disk, to start from when the zone is away |
//! | [`handover`] | listening sockets go to the successor |
//! | [`workers`] | one thread with one runtime each |
//! | [`record`], [`metrics`], [`admin`] | what people see |
//! | [`net`] | options of sockets |
//!
//! Threads: one control thread, and as many workers as settings say. Workers share an immutable snapshot and a few
//! atomics; there is no lock between them on the way of a connection.

pub mod admin;
pub mod balance;
pub mod certificates;
pub mod config;
pub mod control;
pub mod detect;
pub mod discovery;
pub mod handover;
pub mod http;
pub mod inbound;
pub mod ingress;
pub mod listener;
pub mod metrics;
pub mod net;
pub mod outbound;
pub mod permission;
pub mod process;
pub mod readiness;
pub mod record;
pub mod relay;
pub mod route;
pub mod settings;
pub mod snapshot;
pub mod socket;
pub mod state;
pub mod tls;
pub mod upstream;
pub mod workers;
