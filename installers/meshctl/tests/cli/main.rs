//! Whole runs of the program against a server of this test, over the same TLS as in life.

mod apply;
mod attention;
mod completion;
mod connection;
mod context;
mod edit;
mod explain;
mod import;
mod intent;
mod look;
mod server;
mod units;
mod wait;
mod watch;
mod zone_join;
