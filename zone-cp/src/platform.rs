//! Where the zone's workloads come from.
//!
//! An adapter turns what its platform knows into Dataplane and ZoneIngress resources; from there on everything is the
//! same. Today there is [`universal`], where a dataplane brings its own resource when it registers. An adapter that
//! watches a platform (Kubernetes: Pods and Services) makes the same resources from what it sees, finds in
//! [`crate::discovery`] the place where a newcomer's resource is decided, and reaches the rest of the zone through
//! [`crate::event::Event`].

pub mod universal;
