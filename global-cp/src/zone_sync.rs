//! Zone sync: desired state down to the zones, observed state up, one stream a zone.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`scope`] | what a zone is told, and in which pieces (pure) |
//! | [`report`] | what of a zone's report is taken over (pure) |
//! | [`rollout`] | how far a revision has come, and in which state a zone is (pure) |
//! | [`streams`] | the streams that end at this node |
//! | [`service`] | one stream's life, and the renewal of certificates |

pub mod report;
pub mod rollout;
pub mod scope;
pub mod service;
pub mod streams;

#[cfg(test)]
mod tests;
