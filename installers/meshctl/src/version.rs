//! `meshctl version`: of this program and of the server.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cli::Connection,
    client::Client,
    failure::Failure,
    output::{self, Format, FormatParser, Found},
};

const EXAMPLES: &str = "\
Examples:
  meshctl version
  meshctl version --client -o json";

/// Show the version of meshctl, and of the global control plane where a token is given.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Version {
    /// Ask no server.
    #[arg(long)]
    client: bool,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

#[derive(Deserialize)]
struct Server {
    version: String,
}

impl Version {
    /// Shows both. A server that does not answer is a failure, told after the client's version.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let ask = !self.client && (connection.token()?.is_some() || connection.ca_file.is_some());
        let server = if ask {
            Some(server_version(connection).await)
        } else {
            None
        };
        let known = server.as_ref().and_then(|answer| answer.as_ref().ok());
        let value = json!({"client": mesh_proto::VERSION, "server": known});
        let in_words = || {
            let mut text = format!("client  {}", mesh_proto::VERSION);
            if let Some(version) = known {
                text.push_str(&format!("\nserver  {version}"));
            } else if !ask && !self.client {
                text.push_str("\nserver  not asked: no token given");
            }
            text
        };
        let name = |version: &Value| {
            format!("meshctl/{}", mesh_proto::VERSION)
                + match version["server"].as_str() {
                    Some(server) => format!("\nglobal-cp/{server}"),
                    None => String::new(),
                }
                .as_str()
        };
        let text = self.output.show(&Found::One(value), in_words, name)?;
        output::print(&text)?;
        server.map_or(Ok(()), |answer| answer.map(|_| ()))
    }
}

async fn server_version(connection: &Connection) -> Result<String, Failure> {
    let client = Client::new(connection)?;
    let server: Server = client.get(&["version"], &[]).await?;
    Ok(server.version)
}
