//! What the processes of Isthmus say to each other.
//!
//! No I/O, no async, no clock: values in, values out. This crate depends on no other crate of ours.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`proxy`] | generated: the documents a zone compiles for its dataplanes (`proto/isthmus/proxy.proto`) |
//! | [`discovery`] | generated: the stream between a zone and one dataplane |
//! | [`tap`] | generated: requests that are shown as they end |
//! | [`zone`] | generated: joining, and the stream between global and one zone |
//! | [`raft`] | generated: calls between global nodes, and the entries of the Raft log |
//! | [`document`] | a document's version, the hash of its content |
//! | [`features`] | names of what a part may require of another |
//! | [`http_match`] | which rule of a document's HTTP routes takes a request |
//! | [`names`] | RFC 1035 labels: meshes, zones, services |
//! | [`spiffe`] | SPIFFE IDs and trust domains |
//! | [`sni`] | server names between dataplanes |
//! | [`token`] | the forms of tokens, and the CA pin each carries |
//! | [`resource_key`] | what names a resource everywhere, and how it is written as text |

/// Generated code; its modules follow the protobuf packages, since it names other packages by that path.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    pub mod proxy {
        pub mod v1 {
            tonic::include_proto!("isthmus.proxy.v1");
        }
    }
    pub mod tap {
        pub mod v1 {
            tonic::include_proto!("isthmus.tap.v1");
        }
    }
    pub mod discovery {
        pub mod v1 {
            tonic::include_proto!("isthmus.discovery.v1");
        }
    }
    pub mod zone {
        pub mod v1 {
            tonic::include_proto!("isthmus.zone.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("isthmus.raft.v1");
        }
    }
}

pub use generated::{
    discovery::v1 as discovery, proxy::v1 as proxy, raft::v1 as raft, tap::v1 as tap,
    zone::v1 as zone,
};

pub mod document;
pub mod features;
pub mod http_match;
pub mod names;
pub mod resource_key;
pub mod sni;
pub mod spiffe;
pub mod token;

/// Semantic version of this build, as hello messages carry it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The application protocol (ALPN) that marks TLS between dataplanes, so that an inbound can tell it from an
/// application's own TLS.
pub const MESH_ALPN: &[u8] = b"isthmus-mesh/1";
