//! The command line of Isthmus.
//!
//! A command is read in `cli`, each group's own part of it in the file of the group; that file also carries it out.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`cli`] | what was typed: the commands and the flags that all share |
//! | [`context`] | servers, tokens and meshes under names, in a file |
//! | [`completion`] | what shells are offered, live names among it |
//! | [`failure`] | why a command does not do what was asked, and the exit code |
//! | [`client`] | the REST API of the global control plane: TLS, requests, what its errors mean |
//! | [`events`] | server-sent events |
//! | [`kinds`] | kinds of resources as people name them, their place in the API, their columns |
//! | [`conditions`] | what is to be said about a resource |
//! | [`sources`] | files, folders and standard input to resources, with every violation of all of them |
//! | [`output`], [`jsonpath`] | tables, YAML, JSON, names and what templates pick |
//! | [`apply`], [`delete`], [`edit`], [`rollback`] | commands that write |
//! | [`get`], [`watch`], [`history`], [`audit`] | commands that show what is stored |
//! | [`diff`], [`plan`], [`inspect`], [`explain`], [`check`] | commands that say what would be, what is, and why |
//! | [`top`], [`tap`] | requests of services as they are counted, and as they end |
//! | [`token`], [`global`], [`version`], [`zone`] | one command group each |
//! | [`import`] | Kuma's forms to ours; needs no server |
//! | `reference` | in tests: the book's page about all of this |
//! | [`rollout`] | waiting until a revision is in effect |
//!
//! Exit codes: 0 done, 1 failed, 2 usage or invalid input, 3 written but refused or not complete in time, 4 done and the
//! answer is not the good one.

use std::process::ExitCode;

use clap::Parser as _;

mod apply;
mod audit;
mod check;
mod cli;
mod client;
mod completion;
mod conditions;
mod context;
mod delete;
mod diff;
mod edit;
mod events;
mod explain;
mod failure;
mod get;
mod global;
mod history;
mod import;
mod inspect;
mod jsonpath;
mod kinds;
mod output;
mod plan;
#[cfg(test)]
mod reference;
mod rollback;
mod rollout;
mod sources;
mod tap;
mod token;
mod top;
mod version;
mod watch;
mod zone;

fn main() -> ExitCode {
    mesh_runtime::init();
    completion::answer_shell();
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("meshctl: the system gives no event loop: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}
