//! `meshctl context`: servers, tokens and meshes under names, in one file, so that they need not be typed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    cli::{Connection, checked_name},
    client, completion,
    failure::Failure,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl context set production --server https://cp.example.com:5682 --token-file prod.token -m payments
  meshctl context list
  meshctl context use production
  meshctl context show
  meshctl get meshes --context production
  meshctl context delete production

Contexts are kept in ~/.config/isthmus/config.yaml ($XDG_CONFIG_HOME is minded), or in the file that ISTHMUS_CONFIG
names; only you may read it. A flag goes before the environment, and that before the context.";

const LIST_EXAMPLES: &str = "\
Examples:
  meshctl context list
  meshctl context list -o name";
const USE_EXAMPLES: &str = "\
Examples:
  meshctl context use production";
const SET_EXAMPLES: &str = "\
Examples:
  meshctl context set production --server https://cp.example.com:5682 --token-file prod.token
  meshctl context set production -m payments          the mesh only; the rest stays
  meshctl context set staging --server https://staging:5682 --ca-file ca.pem --use";
const DELETE_EXAMPLES: &str = "\
Examples:
  meshctl context delete staging";
const SHOW_EXAMPLES: &str = "\
Examples:
  meshctl context show
  meshctl context show production -o yaml";

/// Keep servers, tokens and meshes under names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Context {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List contexts.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// How the result is shown.
        #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
        output: Format,
    },
    /// Make a context the current one.
    #[command(after_help = USE_EXAMPLES)]
    Use {
        /// The context.
        #[arg(add = ArgValueCompleter::new(completion::contexts))]
        name: String,
    },
    /// Make a context, or change one, from --server, --token, --token-file, --ca-file and --mesh or their environment
    /// variables.
    ///
    /// What is not given stays as it is. The first context becomes the current one.
    #[command(after_help = SET_EXAMPLES)]
    Set {
        /// The context.
        #[arg(add = ArgValueCompleter::new(completion::contexts))]
        name: String,
        /// Make it the current one.
        #[arg(long = "use")]
        and_use: bool,
    },
    /// Delete contexts.
    #[command(after_help = DELETE_EXAMPLES)]
    Delete {
        /// The contexts.
        #[arg(required = true, add = ArgValueCompleter::new(completion::contexts))]
        names: Vec<String>,
    },
    /// Show a context, without its token's secret.
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// The context [default: the current one]
        #[arg(add = ArgValueCompleter::new(completion::contexts))]
        name: Option<String>,
        /// How the result is shown.
        #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
        output: Format,
    },
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    contexts: BTreeMap<String, Saved>,
}

/// One context.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Saved {
    /// The API of a global node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Or the file it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// CAs trusted instead of the token's pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mesh: Option<String>,
}

impl Context {
    /// Carries out one of them.
    pub(crate) fn run(self, typed: &Connection) -> Result<(), Failure> {
        let path = path()?;
        let mut config = Config::load(&path)?;
        match self.command {
            Command::List { output } => config.list(&path, &output),
            Command::Show { name, output } => config.show(typed, name, &output),
            Command::Use { name } => {
                config.find(&name)?;
                config.current = Some(name.clone());
                config.save(&path)?;
                output::print(&format!("context/{name} is the current one"))
            }
            Command::Set { name, and_use } => {
                checked_name(&name)?;
                let saved = config.contexts.entry(name.clone()).or_default();
                saved.set(typed)?;
                if and_use || config.current.is_none() {
                    config.current = Some(name.clone());
                }
                let current = config.current.as_ref() == Some(&name);
                config.save(&path)?;
                let tail = if current { ", the current one" } else { "" };
                output::print(&format!("context/{name} saved{tail}"))
            }
            Command::Delete { names } => {
                for name in &names {
                    config.find(name)?;
                }
                for name in &names {
                    config.contexts.remove(name);
                    config.current = config.current.filter(|current| current != name);
                }
                config.save(&path)?;
                let lines = names.iter().map(|name| format!("context/{name} deleted\n"));
                output::print(&lines.collect::<String>())
            }
        }
    }
}

/// The context that is named, or the current one where nobody names any.
pub(crate) fn in_use(named: Option<&str>) -> Result<Option<Saved>, Failure> {
    let Ok(path) = path() else {
        return match named {
            None => Ok(None),
            Some(_) => Err(no_place()),
        };
    };
    let config = Config::load(&path)?;
    let name = named.or(config.current.as_deref());
    let Some(name) = name else {
        return Ok(None);
    };
    let saved = config.find(name)?.clone();
    if saved.token.is_some() {
        warn_if_others_may_read(&path);
    }
    Ok(Some(saved))
}

/// The names of all contexts.
pub(crate) fn names() -> Vec<String> {
    let config = path().and_then(|path| Config::load(&path));
    config.map_or_else(
        |_| Vec::new(),
        |config| config.contexts.into_keys().collect(),
    )
}

fn path() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("ISTHMUS_CONFIG") {
        return Ok(path.into());
    }
    let folder = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")));
    folder
        .map(|folder| folder.join("isthmus").join("config.yaml"))
        .ok_or_else(no_place)
}

fn no_place() -> Failure {
    Failure::invalid("there is no place for contexts: set HOME, XDG_CONFIG_HOME or ISTHMUS_CONFIG")
}

fn warn_if_others_may_read(path: &Path) {
    let open = fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
    if open {
        eprintln!(
            "warning: others may read the tokens in {path}: chmod 600 {path}",
            path = path.display()
        );
    }
}

impl Config {
    /// Reads the file; one that is not there is empty.
    fn load(path: &Path) -> Result<Self, Failure> {
        let refused = |error: String| {
            Failure::invalid(format!(
                "{}: {error}\nMend it, or move it away and make the contexts anew with `meshctl context set`.",
                path.display()
            ))
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(refused(error.to_string())),
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let plain = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(&text, plain)
            .map_err(|error| refused(error.to_string()))
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        }
        let value = serde_json::to_value(self).map_err(|error| failed(&error))?;
        let text = mesh_model::to_yaml(&value);
        mesh_runtime::files::write_atomic(path, text.as_bytes(), 0o600)
            .map_err(|error| failed(&error))
    }

    fn find(&self, name: &str) -> Result<&Saved, Failure> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            Failure::invalid(match names.as_slice() {
                [] => format!(
                    "there is no context {name:?}, nor any other: make one with `meshctl context set {name} --server URL …`"
                ),
                names => format!("there is no context {name:?}; there are {}", names.join(", ")),
            })
        })
    }

    fn list(&self, path: &Path, format: &Format) -> Result<(), Failure> {
        if self.contexts.is_empty() && format.is_table() {
            eprintln!(
                "There are no contexts in {}; `meshctl context set NAME --server URL --token-file FILE` makes one.",
                path.display()
            );
            return Ok(());
        }
        let items = self.contexts.iter();
        let found = items.map(|(name, saved)| self.view(name, saved)).collect();
        let table = || {
            let rows = self.contexts.iter().map(|(name, saved)| {
                let current = self.current.as_ref() == Some(name);
                vec![
                    if current { "*" } else { "" }.to_owned(),
                    name.clone(),
                    saved.server.clone().unwrap_or_default(),
                    saved.mesh.clone().unwrap_or_default(),
                    saved.token_in_words(),
                ]
            });
            output::table(
                &["CURRENT", "NAME", "SERVER", "MESH", "TOKEN"],
                rows.collect(),
            )
        };
        let text = format.show(&Found::List(found), table, short_name)?;
        output::print(&text)
    }

    fn show(
        &self,
        typed: &Connection,
        name: Option<String>,
        format: &Format,
    ) -> Result<(), Failure> {
        let name = name
            .or_else(|| typed.context.clone())
            .or_else(|| self.current.clone())
            .ok_or_else(|| {
                Failure::invalid(
                    "no context is the current one: `meshctl context list` shows all, `meshctl context use NAME` chooses",
                )
            })?;
        let saved = self.find(&name)?;
        let table = || {
            let path = |path: &Option<PathBuf>| {
                path.as_ref()
                    .map_or_else(|| "-".to_owned(), |path| path.display().to_string())
            };
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            format!(
                "Name:     {name}{}\nServer:   {}\nToken:    {}\nCA file:  {}\nMesh:     {}",
                if self.current.as_ref() == Some(&name) {
                    " (current)"
                } else {
                    ""
                },
                text(&saved.server),
                saved.token_in_words(),
                path(&saved.ca_file),
                text(&saved.mesh),
            )
        };
        let found = Found::One(self.view(&name, saved));
        output::print(&format.show(&found, table, short_name)?)
    }

    /// For programs, without secrets.
    fn view(&self, name: &str, saved: &Saved) -> Value {
        let mut value = json!({
            "name": name,
            "current": self.current.as_deref() == Some(name),
        });
        let shown = Saved {
            token: saved.token.as_deref().map(shown_token),
            ..saved.clone()
        };
        if let (Value::Object(value), Ok(Value::Object(fields))) =
            (&mut value, serde_json::to_value(shown))
        {
            value.extend(fields);
        }
        value
    }
}

fn short_name(item: &Value) -> String {
    format!("context/{}", item["name"].as_str().unwrap_or_default())
}

/// A token's public half.
fn shown_token(token: &str) -> String {
    match mesh_proto::token::ApiToken::parse(token) {
        Some(token) => format!("isthmus.{}.…", token.id),
        None => "…".to_owned(),
    }
}

impl Saved {
    fn token_in_words(&self) -> String {
        match (&self.token, &self.token_file) {
            (Some(token), _) => shown_token(token),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "-".to_owned(),
        }
    }

    /// Takes over what was typed, once it is proved to be usable.
    fn set(&mut self, typed: &Connection) -> Result<(), Failure> {
        let Connection {
            server,
            token,
            token_file,
            ca_file,
            mesh,
            context: _,
        } = typed;
        if let Some(server) = server {
            client::server_url(server)?;
            self.server = Some(server.clone());
        }
        if let Some(mesh) = mesh {
            checked_name(mesh)?;
            self.mesh = Some(mesh.clone());
        }
        if let Some(path) = ca_file {
            client::host_name_verifier(path)?;
            self.ca_file = Some(absolute(path)?);
        }
        if let Some(text) = typed.token()? {
            client::checked_token(&text)?;
            (self.token, self.token_file) = match token_file {
                Some(path) => (None, Some(absolute(path)?)),
                None => (token.as_ref().map(|_| text), None),
            };
        }
        Ok(())
    }
}

/// The context is used from other folders, too.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::invalid(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_back_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.yaml");
        let saved = Saved {
            server: Some("https://a:1".to_owned()),
            token: Some("isthmus.id.secret.pin".to_owned()),
            mesh: Some("pay".to_owned()),
            ..Saved::default()
        };
        let config = Config {
            current: Some("a".to_owned()),
            contexts: [("a".to_owned(), saved)].into(),
        };
        config.save(&path).unwrap();
        assert_eq!(Config::load(&path).unwrap(), config);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, "current: a\ncontexts:\n  a: {srver: x}\n").unwrap();
        let refused = Config::load(&path).unwrap_err().to_string();
        assert!(refused.contains("config.yaml"), "{refused}");
        assert!(refused.contains("srver"), "{refused}");
        assert!(refused.contains("line 3"), "{refused}");
    }

    #[test]
    fn a_tokens_secret_is_not_shown() {
        let saved = Saved {
            token: Some("isthmus.id.secret.pin".to_owned()),
            ..Saved::default()
        };
        let view = Config::default().view("a", &saved).to_string();
        assert!(!view.contains("secret"), "{view}");
    }
}
