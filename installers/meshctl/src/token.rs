//! `meshctl token`: makes, lists and revokes tokens.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use mesh_model::api::{CreateToken, CreatedToken, Role, TokenInfo, TokenUse};
use serde::Deserialize;

use crate::{
    cli::{Connection, checked_name},
    client::Client,
    completion,
    failure::Failure,
    kinds,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl token create zone-join --zone east
  meshctl token create dataplane -m payments --name web-1 --valid-for 720h > web-1.token
  meshctl token create dataplane -m payments --label isthmus.io/service=web
  meshctl token create api --role mesh-admin --for-mesh payments --description 'CI of payments'
  meshctl token list
  meshctl token revoke 0a1b2c3d4e5f6071";

const CREATE_EXAMPLES: &str = "\
Examples:
  meshctl token create zone-join --zone east
  meshctl token create dataplane -m payments --name web-1 --valid-for 720h > web-1.token
  meshctl token create api --role viewer --description dashboards";
const DATAPLANE_EXAMPLES: &str = "\
Examples:
  meshctl token create dataplane -m payments --name web-1 > web-1.token
  meshctl token create dataplane -m payments --label isthmus.io/service=web --valid-for 720h";
const INGRESS_EXAMPLES: &str = "\
Examples:
  meshctl token create ingress --zone east > ingress.token";
const ZONE_JOIN_EXAMPLES: &str = "\
Examples:
  meshctl token create zone-join --zone east
  meshctl token create zone-join --zone east --valid-for 24h > east.token";
const NODE_JOIN_EXAMPLES: &str = "\
Examples:
  meshctl token create node-join > node.token";
const API_EXAMPLES: &str = "\
Examples:
  meshctl token create api --user ana
  meshctl token create api --role viewer --description dashboards
  meshctl token create api --role mesh-admin --for-mesh payments --description 'CI of payments'";
const LIST_EXAMPLES: &str = "\
Examples:
  meshctl token list
  meshctl token list -o wide";
const REVOKE_EXAMPLES: &str = "\
Examples:
  meshctl token revoke 0a1b2c3d4e5f6071";

/// Make, list and revoke tokens.
///
/// The text of a token is shown once, on standard output and nothing else there. Whoever has it can do what it allows.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token.
    Create(Create),
    /// List tokens, never their text.
    List(ListTokens),
    /// Make tokens worthless.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct Create {
    #[command(subcommand)]
    usage: Usage,
}

#[derive(Debug, Subcommand)]
enum Usage {
    /// For sidecars of a mesh, at their zone.
    #[command(after_help = DATAPLANE_EXAMPLES)]
    Dataplane {
        /// The only name the dataplane may have; absent: any.
        #[arg(long)]
        name: Option<String>,
        /// A label the dataplane must have, with this value; may be given several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        common: Common,
    },
    /// For the ingress of a zone, at that zone. `zone join` gets one by itself.
    #[command(after_help = INGRESS_EXAMPLES)]
    Ingress {
        /// The zone.
        #[arg(long, add = ArgValueCompleter::new(completion::zones))]
        zone: String,
        #[command(flatten)]
        common: Common,
    },
    /// For a zone that joins, once.
    #[command(after_help = ZONE_JOIN_EXAMPLES)]
    ZoneJoin {
        /// The zone.
        #[arg(long, add = ArgValueCompleter::new(completion::zones))]
        zone: String,
        #[command(flatten)]
        common: Common,
    },
    /// For a further node of the global control plane, once.
    #[command(after_help = NODE_JOIN_EXAMPLES)]
    NodeJoin {
        #[command(flatten)]
        common: Common,
    },
    /// For people and automation, at the API.
    #[command(after_help = API_EXAMPLES)]
    Api {
        /// The user it belongs to: it may what the user's RoleBindings say at the moment it is used.
        #[arg(long, value_name = "USER", conflicts_with_all = ["role", "meshes"], add = ArgValueCompleter::new(completion::users))]
        user: Option<String>,
        /// What its holder may do [default: viewer]
        #[arg(long, value_enum)]
        role: Option<RoleWord>,
        /// A mesh the role is bound to; may be given several times. None: all meshes.
        #[arg(
            long = "for-mesh",
            value_name = "MESH",
            add = ArgValueCompleter::new(completion::meshes),
            required_if_eq("role", "mesh-admin")
        )]
        meshes: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// How long it lives [default: 1h for joins, 30days for dataplanes and ingresses, 90days for the API]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    valid_for: Option<Duration>,
    /// Words for people, shown in lists.
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// table: the text of the token alone; json, yaml: with what lists show; name: its id, after which nobody can get
    /// the text any more.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleWord {
    /// Everything.
    Admin,
    /// Everything inside the meshes named by --for-mesh.
    MeshAdmin,
    /// Look at everything but secrets.
    Viewer,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Self {
        match word {
            RoleWord::Admin => Self::Admin,
            RoleWord::MeshAdmin => Self::MeshAdmin,
            RoleWord::Viewer => Self::Viewer,
        }
    }
}

/// List tokens, never their text.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
struct ListTokens {
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

/// Make tokens worthless.
#[derive(Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
struct Revoke {
    /// The ids, as `token list` shows them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

#[derive(Deserialize)]
struct Tokens {
    items: Vec<TokenInfo>,
}

impl Token {
    /// Carries out one of the three.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.command {
            Command::Create(create) => {
                let (request, format) = create.usage.request(connection)?;
                let client = Client::new(connection)?;
                let created: CreatedToken = client.post(&["tokens"], &[], &request).await?;
                output::print(&show_created(&created, &format)?)?;
                if format.is_table() {
                    eprintln!(
                        "token {}, expires {}",
                        created.info.id, created.info.expires
                    );
                }
                Ok(())
            }
            Command::List(list) => {
                let client = Client::new(connection)?;
                let tokens: Tokens = client.get(&["tokens"], &[]).await?;
                output::print(&show_list(&tokens.items, &list.output)?)
            }
            Command::Revoke(revoke) => {
                for id in &revoke.ids {
                    checked_name(id).map_err(|_| {
                        Failure::invalid(format!(
                            "{id:?} is no token id: `meshctl token list` shows them (an id, not the token's text)"
                        ))
                    })?;
                }
                let client = Client::new(connection)?;
                for id in &revoke.ids {
                    let _: serde_json::Value = client.delete(&["tokens", id]).await?;
                    output::print(&format!("token/{id} revoked"))?;
                }
                Ok(())
            }
        }
    }
}

impl Usage {
    fn request(self, connection: &Connection) -> Result<(CreateToken, Format), Failure> {
        let empty = |usage, common: Common| {
            let format = common.output;
            let request = CreateToken {
                usage,
                valid_for_seconds: common.valid_for.map(|time| time.as_secs()),
                description: common.description,
                mesh: None,
                name: None,
                labels: BTreeMap::new(),
                zone: None,
                user: None,
                role: None,
                meshes: Vec::new(),
            };
            (request, format)
        };
        let of_zone = |usage, zone: String, common| {
            checked_name(&zone)?;
            let (mut request, format) = empty(usage, common);
            request.zone = Some(zone);
            Ok((request, format))
        };
        match self {
            Self::Dataplane {
                name,
                labels,
                common,
            } => {
                // A token for a mesh that nobody named would be handed out by mistake.
                let mesh = connection.named_mesh().ok_or_else(|| {
                    Failure::invalid("for which mesh? Name it with -m MESH or ISTHMUS_MESH")
                })?;
                checked_name(mesh)?;
                let (mut request, format) = empty(TokenUse::Dataplane, common);
                request.mesh = Some(mesh.to_owned());
                request.name = name;
                request.labels = labels.into_iter().collect();
                Ok((request, format))
            }
            Self::Ingress { zone, common } => of_zone(TokenUse::Ingress, zone, common),
            Self::ZoneJoin { zone, common } => of_zone(TokenUse::ZoneJoin, zone, common),
            Self::NodeJoin { common } => Ok(empty(TokenUse::NodeJoin, common)),
            Self::Api {
                user,
                role,
                meshes,
                common,
            } => {
                let (mut request, format) = empty(TokenUse::Api, common);
                request.role = match user {
                    Some(_) => None,
                    None => Some(role.unwrap_or(RoleWord::Viewer).into()),
                };
                request.user = user;
                request.meshes = meshes;
                Ok((request, format))
            }
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn show_created(created: &CreatedToken, format: &Format) -> Result<String, Failure> {
    let name =
        |created: &serde_json::Value| format!("token/{}", kinds::text(&created["info"]["id"]));
    format.show(&Found::one(created)?, || created.token.clone(), name)
}

fn show_list(tokens: &[TokenInfo], format: &Format) -> Result<String, Failure> {
    let table = || {
        let rows = tokens.iter().map(|token| {
            let mut row = vec![
                token.id.clone(),
                word(token.asked.usage),
                scope(token),
                token.state.clone(),
                token.expires.clone(),
                token.asked.description.clone(),
            ];
            if format.is_wide() {
                row.push(token.created.clone());
            }
            row
        });
        let mut header = vec!["ID", "USE", "FOR", "STATE", "EXPIRES", "DESCRIPTION"];
        if format.is_wide() {
            header.push("CREATED");
        }
        output::table(&header, rows.collect())
    };
    let name = |token: &serde_json::Value| format!("token/{}", kinds::text(&token["id"]));
    format.show(&Found::list(tokens)?, table, name)
}

/// A word as it stands in JSON.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// What a token is limited to.
fn scope(token: &TokenInfo) -> String {
    let asked = &token.asked;
    let mut parts = Vec::new();
    parts.extend(asked.role.map(word));
    parts.extend(asked.user.as_ref().map(|user| format!("user={user}")));
    parts.extend(asked.mesh.as_ref().map(|mesh| format!("mesh={mesh}")));
    parts.extend(asked.zone.as_ref().map(|zone| format!("zone={zone}")));
    parts.extend(asked.name.as_ref().map(|name| format!("name={name}")));
    parts.extend(
        asked
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    if !asked.meshes.is_empty() {
        parts.push(format!("meshes={}", asked.meshes.join(",")));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        token: Token,
    }

    fn request(line: &str) -> Result<CreateToken, String> {
        let line = Line::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let Command::Create(create) = line.token.command else {
            panic!("a create command is tested")
        };
        let made = create.usage.request(&line.connection);
        made.map(|(request, _)| request)
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_dataplane_token_has_a_mesh_and_may_have_a_name_and_labels() {
        let made = request(
            "token -m pay create dataplane --name web-1 --label team=a --label isthmus.io/service=web --valid-for 2h",
        )
        .unwrap();
        assert_eq!(made.mesh.as_deref(), Some("pay"));
        assert_eq!(made.labels["isthmus.io/service"], "web");
        assert_eq!(made.valid_for_seconds, Some(7200));
        assert!(
            request("token create dataplane")
                .unwrap_err()
                .contains("-m MESH")
        );
        assert!(request("token -m pay create dataplane --label team").is_err());
    }

    #[test]
    fn a_join_token_names_its_zone() {
        let made = request("token create zone-join --zone east").unwrap();
        assert_eq!(made.zone.as_deref(), Some("east"));
        assert!(request("token create zone-join").is_err());
        assert!(request("token create zone-join --zone ../x").is_err());
    }

    #[test]
    fn a_mesh_admin_is_bound_to_meshes() {
        assert!(request("token create api --role mesh-admin").is_err());
        let made =
            request("token create api --role mesh-admin --for-mesh pay --for-mesh ana").unwrap();
        assert_eq!(made.meshes, ["pay", "ana"]);
    }

    #[test]
    fn a_token_of_a_user_has_no_role_of_its_own() {
        let made = request("token create api --user ana").unwrap();
        assert_eq!((made.user.as_deref(), made.role), (Some("ana"), None));
        assert!(request("token create api --user ana --role viewer").is_err());
        let made = request("token create api").unwrap();
        assert_eq!((made.user, made.role), (None, Some(Role::Viewer)));
    }
}
