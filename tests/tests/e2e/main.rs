//! End to end: the real processes, real clients, and what must be true of them. All in one binary, since linking it is
//! dear; `cargo test -p mesh-tests --test e2e tokens` runs one module.
//!
//! | module | what it shows |
//! | --- | --- |
//! | [`demo`] | everything the demo claims, faults under traffic included |
//! | [`traffic`] | permissions decide over real bytes, which arrive whole |
//! | [`identity`] | who is refused at a strict port |
//! | [`tokens`] | who may register, join and call the API |
//! | [`rollout`] | refusals are named, and a change touches only whom it concerns |
//! | [`zones`] | joining, silence, removal, life without global |
//! | [`links`] | the stream between global and a zone, broken in every way |
//! | [`durability`] | what was answered is on disk |
//! | [`cluster`] | several global nodes |
//! | [`processes`] | what every process does the same way; IPv6 |
//! | [`kinds`] | every kind is written, listed and taken by its zone |
//! | [`api`] | batches, pages, preconditions, watches, problems |
//! | [`explain`] | what `explain` says is what a connection does |
//! | [`detection`] | what is spoken at a port that declares nothing is found out, and where it is not, said |
//! | [`requests`] | what `explain` says of a request is what becomes of it |
//! | [`tap`] | what `meshctl tap` shows is what was asked |
//! | [`life`] | instances restart and CAs change under load, and no request fails |
//! | [`pages`] | what README and the book tell their readers to type |
//! | [`watches`] | a watch goes on over restarts and changes of leader |
//! | [`openapi`] | the API's own description is true: schemathesis |
//! | [`command_line`] | bad input to every command |

mod api;
mod cluster;
mod command_line;
mod demo;
mod detection;
mod durability;
mod explain;
mod identity;
mod installation;
mod kinds;
mod life;
mod links;
mod openapi;
mod pages;
mod processes;
mod requests;
mod rollout;
mod tap;
mod tokens;
mod traffic;
mod watches;
mod zones;
