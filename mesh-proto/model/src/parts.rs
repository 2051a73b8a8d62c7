//! Shapes that the contents of several kinds share.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`number`] | percentages and decimals, whole or as text |
//! | [`header`] | HTTP headers: names, matches, changes |
//! | [`tls`] | versions of TLS |
//! | [`data_source`] | where a certificate or key comes from |
//! | [`telemetry`] | references to collectors |
//! | [`free`] | JSON whose shape is somebody else's |
//! | [`label_key`] | the key of a label, where it stands as a value |

pub mod data_source;
pub mod free;
pub mod header;
pub mod label_key;
pub mod number;
pub mod telemetry;
pub mod tls;
