//! The small application of the demo and of the tests: a shopping list in three processes.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`answer`] | what the three say to each other |
//! | [`store`] | keeps the items, in memory |
//! | [`api`] | between the two |
//! | [`web`] | the page, and the data it refreshes itself from |
//! | [`upstream`] | the call to the next process |
//!
//! Nothing here knows the mesh: each process calls the next one at an address of its own machine, where its sidecar
//! listens. Every answer lists the hops it came through, so that a person sees which zone answered.

mod answer;
mod api;
mod store;
mod upstream;
mod web;

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use answer::Place;

#[derive(Debug, Parser)]
#[command(
    version,
    about = "A shopping list in three processes: web, api and store"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The page that people open
    Web(Caller),
    /// Between the page and the store
    Api(Caller),
    /// Keeps the items, in memory
    Store(Common),
}

#[derive(Debug, Args)]
struct Common {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The zone this process runs in, as it says of itself
    #[arg(long, default_value = "nowhere")]
    zone: String,
    /// The mesh this process belongs to, as it says of itself
    #[arg(long, default_value = "none")]
    mesh: String,
}

#[derive(Debug, Args)]
struct Caller {
    #[command(flatten)]
    common: Common,
    /// Where the next process is called: usually an outbound of the own sidecar
    #[arg(long)]
    upstream: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let (common, router) = match Cli::parse().role {
        Role::Web(caller) => {
            let place = Place::new("web", &caller.common.zone, &caller.common.mesh);
            let router = web::router(place, upstream::Upstream::new(&caller.upstream)?);
            (caller.common, router)
        }
        Role::Api(caller) => {
            let place = Place::new("api", &caller.common.zone, &caller.common.mesh);
            let router = api::router(place, upstream::Upstream::new(&caller.upstream)?);
            (caller.common, router)
        }
        Role::Store(common) => {
            let router = store::router(Place::new("store", &common.zone, &common.mesh));
            (common, router)
        }
    };
    let listener = tokio::net::TcpListener::bind(common.listen)
        .await
        .with_context(|| format!("cannot listen on {}", common.listen))?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, router)
        .with_graceful_shutdown(async {
            // Without a handler the process runs until it is killed, which is as good for a demo.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
