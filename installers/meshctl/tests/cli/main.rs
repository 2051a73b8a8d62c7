//! Whole runs of the program against a server of this test, over the same TLS as in life.

mod apply;
mod connection;
mod look;
mod server;
mod units;
mod wait;
mod zone_join;
