//! The global control plane.

pub mod cluster;
pub mod state;
