//! HTTP/1.x and HTTP/2, request by request.
//!
//! A connection whose service (or inbound) speaks HTTP comes here from [`outbound`](crate::outbound) and
//! [`inbound`](crate::inbound), after mesh TLS and before any byte of it is read. In the order in which a request passes them:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`serve`] | which version the caller speaks; its requests, one by one or many at once |
//! | [`h1`], [`h2io`] | one connection of HTTP/1; a socket as h2 wants it, with writes that leave together |
//! | [`flood`] | peers that make work for nothing |
//! | [`request`] | one request's way, one function a step |
//! | [`side`] | in or out: permission, or route |
//! | [`route`] | which rule, what its filters change |
//! | [`upstream`] | a connection to the next hop, the request on it, the head of its answer |
//! | [`pool`] | connections to the next hop that requests share |
//! | [`body`], [`room`] | bodies, as they come, with back-pressure; how much of requests may wait |
//! | [`reply`] | the way back to the caller |
//! | [`record`], [`metrics`], [`tap`] | one record a request; counts and durations; what somebody looks at now |
//! | [`message`], [`websocket`], [`limits`] | heads without what is of one hop; keys; bounds |
//!
//! HTTP/1 is read and written by our own code on httparse, HTTP/2 by the h2 crate; `docs/decisions/010` says why.

pub mod body;
pub mod flood;
pub mod h1;
pub mod h2io;
pub mod limits;
pub mod message;
pub mod metrics;
pub mod pool;
pub mod record;
pub mod reply;
pub mod request;
pub mod room;
pub mod route;
pub mod serve;
pub mod side;
pub mod tap;
pub mod upstream;
pub mod websocket;
