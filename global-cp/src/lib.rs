//! The global control plane: what administrators want, replicated over its nodes, served to people and to zones.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`process`] | the life of the process, top to bottom |
//! | [`settings`] | what may be configured |
//! | [`start`] | who the node is; its first start |
//! | [`recover`] | a node whose data is damaged or gone |
//! | [`cluster`] | the replicated log: write an entry, read the state, know the members |
//! | [`state`] | the state machine, and how it is read |
//! | [`store`] | the log and the state on disk |
//! | [`app`] | what every handler shares |
//! | [`access`] | who somebody is: from users, roles and bindings to what they may (pure) |
//! | [`authorize`] | who may do what: one pure function |
//! | [`changes`] | what a request to change resources amounts to: one entry's operations |
//! | [`writes`] | writing them |
//! | [`foretell`] | what a write would do, without doing it |
//! | [`facts`] | facts of the installation that are no resources |
//! | [`sealing`] | sealed values |
//! | [`certificates`] | when which certificate ends (pure) |
//! | [`ca`] | the installation CA |
//! | [`tokens`] | texts of tokens: made, signed, verified |
//! | [`issue`] | records of tokens: made, listed, revoked |
//! | [`join`] | zones and nodes that join |
//! | [`api`] | the REST API |
//! | [`zone_sync`] | the streams of the zones |
//! | [`control`] | what only somebody on the node's machine may ask |
//! | [`audit`] | refused attempts and reads of secrets |
//! | [`metrics`] | what is counted |
//! | [`clock`] | the clock, and times as people read them |

pub mod access;
pub mod api;
pub mod app;
pub mod audit;
pub mod authorize;
pub mod ca;
pub mod certificates;
pub mod changes;
pub mod clock;
pub mod cluster;
pub mod control;
pub mod facts;
pub mod foretell;
pub mod issue;
pub mod join;
pub mod metrics;
pub mod process;
pub mod recover;
pub mod sealing;
pub mod settings;
pub mod start;
pub mod state;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokens;
pub mod writes;
pub mod zone_sync;
