//! The zone control plane: turns intent into configuration for the zone's dataplanes, issues their identities, and goes
//! on alone while global is away.
//!
//! **Pure core**: values in, values out; time and keys are arguments.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`view`] | everything the compiler knows of one mesh |
//! | [`services`] | the mesh's services: who is behind them, and what can be called |
//! | [`compiler`] | from policy to documents: the only place where policy becomes behaviour |
//! | [`endpoints`] | endpoint sets and their differences, apart from documents |
//! | [`tracker`] | which documents a proxy should run, runs, and refused |
//! | [`registry`] | who is registered: leases by name, ordered by session |
//! | [`mesh`] | one mesh: all of the above together, recomputed as far as a change reaches |
//! | [`ingresses`] | the same for the zone's ingresses |
//! | [`scope`] | what global gave in one scope: steps, cursors, what cannot be read |
//! | [`report`] | what the zone reports of its own |
//! | [`token`] | dataplane and ingress tokens, verified offline |
//! | [`rotation`] | when a mesh's CA is made, renewed and retired |
//! | [`conditions`] | what is to be said about policies as they meet this zone |
//! | [`describe`] | what documents say, in words |
//! | [`inspect`] | what people see when they look |
//! | [`explain`] | whether a call is allowed, where it goes, and which policies say so |
//! | [`plan`] | what changes would change |
//!
//! **Thin shell**: sockets, files and clocks.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`process`] | the whole life of the process |
//! | [`settings`] | the command line |
//! | [`event`] | everything that can wake the loop |
//! | [`zone`] | the loop |
//! | [`platform`] | where workloads come from: machines today |
//! | [`discovery`] | the server that dataplanes call |
//! | [`sync`] | the client of global |
//! | [`stream`] | bounded queues towards peers |
//! | [`store`] | what is kept on disk |
//! | [`trust`] | the mesh CAs' keys |
//! | [`identity`] | the zone's own identity |
//! | [`api`] | the zone's own API |
//! | [`metrics`] | what is counted |
//!
//! One policy change, in order of files: [`sync`] → [`scope`] → [`mesh`] → [`compiler`] → [`tracker`] → [`discovery`],
//! and the answer back: [`discovery`] → [`zone`] → [`tracker`] → [`mesh`] (status) → [`sync`].

pub mod api;
pub mod compiler;
pub mod conditions;
pub mod describe;
pub mod discovery;
pub mod endpoints;
pub mod event;
pub mod explain;
pub mod identity;
pub mod ingresses;
pub mod inspect;
pub mod mesh;
pub mod metrics;
pub mod plan;
pub mod platform;
pub mod process;
pub mod registry;
pub mod report;
pub mod rotation;
pub mod scope;
pub mod services;
pub mod settings;
pub mod store;
pub mod stream;
pub mod sync;
pub mod token;
pub mod tracker;
pub mod trust;
pub mod view;
pub mod zone;
