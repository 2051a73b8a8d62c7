//! What administrators write: typed resources, their validation, JSON Schema and policy semantics.
//!
//! No I/O, no async, no clock: text and values in, values and violations out. The only other crate of ours it knows is
//! `mesh-proto`.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`mod@kinds`] | one file for each kind of resource, and the one list that registers them |
//! | [`kind`] | what a kind is: its names, scope, writers, fields and rules |
//! | [`resource`] | a resource of any kind: envelope and content; the canonical form that is stored and synchronised |
//! | [`view`] | a resource as people read it back |
//! | [`mod@parse`] | YAML and JSON to resources, with every violation at its line and field |
//! | [`check`] | how rules report what is wrong |
//! | [`violation`] | one thing that is wrong, as people see it |
//! | `word` | what to say of a word that is none of those that can stand there |
//! | `path` | paths of fields in violations |
//! | [`schema`] | JSON Schema of every kind, generated from the types |
//! | `shape` | the same schema in the form that values are checked against |
//! | [`mod@difference`] | which fields of two values differ |
//! | [`duration`] | durations as people write them: `1m30s` |
//! | [`labels`] | label syntax, selectors, and the aliases of label prefixes |
//! | [`selection`] | which policies concern which proxy and inbound |
//! | [`policy`] | what all policies have in common, and from many of them one effective configuration |
//! | [`permission`] | `MeshTrafficPermission`s to the one effective permission of an inbound |
//! | [`identity`] | SPIFFE IDs of dataplanes from `MeshIdentity`s |
//! | [`parts`] | shapes that the contents of several kinds share |
//! | `template` | templates of SPIFFE IDs and host names |
//! | `hostname` | host names of services from templates |
//! | [`services`] | `MeshService`s generated from dataplanes, and who belongs to a service |
//! | [`mod@warnings`] | what is accepted but may not do what its author expects |
//! | `enforced` | what is accepted and not enforced by the proxies of this version |
//! | [`api`] | shapes of the REST API |
//!
//! A further kind is one file in `kinds/` and one line in [`mod@kinds`].

pub mod api;
pub mod check;
pub mod difference;
pub mod duration;
mod enforced;
mod hostname;
pub mod identity;
pub mod kind;
pub mod kinds;
pub mod labels;
pub mod parse;
pub mod parts;
mod path;
pub mod permission;
pub mod policy;
pub mod resource;
pub mod schema;
pub mod selection;
pub mod services;
mod shape;
mod template;
pub mod view;
pub mod violation;
pub mod warnings;
mod word;

pub use check::Checker;
pub use difference::{changed_fields, difference};
pub use duration::Duration;
pub use kind::{Descriptor, Kind, NameRule, Scope, Writers, find_kind, is_secret};
pub use kinds::*;
pub use parse::{parse, parse_in, parse_value};
pub use policy::{Policy, PolicyShape};
pub use resource::{Meta, Resource};
pub use schema::json_schema;
pub use view::{Stamp, to_yaml};
pub use violation::{Violation, Violations};
pub use warnings::warnings;
pub use word::near;
