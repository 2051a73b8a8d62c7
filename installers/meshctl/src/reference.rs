//! The book's page about `meshctl` is what the command line says. `UPDATE_GOLDEN=1` writes it anew.

use std::{fs, path::Path};

use clap::{Arg, Command, CommandFactory as _};

use crate::cli::Cli;

#[test]
fn the_reference_of_meshctl_is_what_the_command_line_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/book/reference/meshctl.md");
    let mut root = Cli::command();
    root.build();
    let mut wanted =
        String::from("# meshctl\n\nGenerated from the command line's own definition.\n");
    page(&root, 2, &mut wanted);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &wanted).expect("the page is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/book/reference/meshctl.md is not what the command line says; UPDATE_GOLDEN=1 writes it anew"
    );
}

fn page(command: &Command, level: usize, out: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    if level > 2 {
        out.push_str(&format!("\n{} {name}\n", "#".repeat(level.min(4))));
    }
    let about = command.get_long_about().or(command.get_about());
    if let Some(about) = about {
        out.push_str(&format!("\n{about}\n"));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    out.push_str(&format!("\n```console\n{usage}\n```\n"));
    // What all commands share is told once, at the top.
    let is_own = |arg: &&Arg| {
        !arg.is_hide_set()
            && !["help", "version"].contains(&arg.get_id().as_str())
            && (level == 2 || !arg.is_global_set())
    };
    let arguments: Vec<_> = command.get_arguments().filter(is_own).collect();
    if !arguments.is_empty() {
        out.push_str("\n| argument | what it says |\n| --- | --- |\n");
    }
    for argument in arguments {
        out.push_str(&row(argument));
    }
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        out.push_str(&format!(
            "\n```console\n{}\n```\n",
            after.to_string().trim()
        ));
    }
    for inner in command.get_subcommands() {
        if inner.get_name() != "help" && !inner.is_hide_set() {
            page(inner, level + 1, out);
        }
    }
}

fn row(argument: &Arg) -> String {
    let mut said = argument
        .get_long_help()
        .or(argument.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let values: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && argument.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        said.push_str(&format!(" One of {}.", values.join(", ")));
    }
    let defaults: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    if !defaults.is_empty() && argument.get_action().takes_values() {
        said.push_str(&format!(" Default: {}.", defaults.join(" ")));
    }
    if let Some(variable) = argument.get_env() {
        said.push_str(&format!(" Or `{}`.", variable.to_string_lossy()));
    }
    let said = said.replace('\n', " ").replace('|', "\\|");
    format!(
        "| `{}` | {said} |\n",
        argument.to_string().replace('|', "\\|")
    )
}
