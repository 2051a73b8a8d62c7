//! `meshctl import kuma`: what was written for Kuma 2, as this project takes it, and a report of what became of it.
//!
//! ```text
//! files ──document──▶ documents with places ──permission, policy, legacy, mesh, proxy──▶ resources and notes ──check──▶ out
//! ```
//!
//! Each field of what is read is kept, changed into something that means the same, or named in the report; none is
//! dropped silently, and none of what comes out lets in anybody who was not let in before. Everything between reading and
//! writing is pure.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`document`] | the envelope of a document, universal or of Kubernetes |
//! | [`fields`] | taking an object apart so that what nobody took is told |
//! | [`report`] | what became of each field |
//! | [`facts`] | what one document must know of the others |
//! | [`target`] | selectors by tags to selectors by labels, and callers to SPIFFE IDs |
//! | [`permission`] | who may call: the one place where a mistake would let somebody in |
//! | [`policy`] | policies with `from` and `to` |
//! | [`legacy`] | policies with `sources` and `destinations` |
//! | [`mesh`] | what a `Mesh` said besides its name |
//! | [`proxy`] | dataplanes, ingresses, egresses, external services |

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::{document::Document, report::Line};
use crate::{cli::Connection, cli::checked_name, failure::Failure, kinds, output, sources};

mod check;
mod document;
mod facts;
mod fields;
mod legacy;
mod mesh;
mod permission;
mod policy;
mod proxy;
mod report;
mod target;

const EXAMPLES: &str = "\
Examples:
  meshctl import kuma export.yaml --zone east --zone west > isthmus.yaml
  meshctl import kuma policies/ -o isthmus/ --zone east,west --report report.json
  kumactl export --profile all | meshctl import kuma - -o isthmus/ --zone east";

/// Turn what was written for another mesh into what this one takes. Needs no server.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    Kuma(Kuma),
}

const KUMA_EXAMPLES: &str = "\
Examples:
  meshctl import kuma export.yaml --zone east --zone west > isthmus.yaml
  meshctl import kuma policies/ -o isthmus/ --zone east,west --report report.json
  meshctl apply -f isthmus/apply --dry-run

With -o, what `meshctl apply` takes goes below apply/, and what stands beside a workload (dataplanes, ingresses), for
`dataplane run --dataplane-file`, below beside/. Nothing that is written lets in anybody who was not let in before: a
permission that can not be said here is left out.

Exit code 4 where something could not be kept; the report on standard error says what, where and why.";

/// From Kuma 2: Mesh with mtls, policies with from or with sources and destinations, tags, MeshSubset.
#[derive(Debug, Args)]
#[command(after_help = KUMA_EXAMPLES)]
struct Kuma {
    /// Files, folders (with all .yaml, .yml and .json below them), or - for standard input.
    #[arg(value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// A folder for what comes out, one file a resource; standard output where none is named.
    #[arg(short, long = "output-dir", value_name = "DIR")]
    output: Option<PathBuf>,
    /// A zone of the meshes; several are joined by commas, or the flag is given several times. Identities contain the
    /// zone, so that permissions for a service must name each. Zones that the files name are known.
    #[arg(long = "zone", value_name = "ZONE", value_delimiter = ',')]
    zones: Vec<String>,
    /// Write the report here, too: JSON where the name ends in .json, else text.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Import {
    /// Reads, converts, writes and reports.
    pub(crate) fn run(self, connection: &Connection) -> Result<(), Failure> {
        let From::Kuma(kuma) = self.from;
        kuma.run(&connection.mesh()?)
    }
}

impl Kuma {
    fn run(self, mesh: &str) -> Result<(), Failure> {
        for zone in &self.zones {
            checked_name(zone)?;
        }
        let documents = read(&self.files, mesh)?;
        let imported = convert(&documents, &self.zones)?;
        match &self.output {
            Some(folder) => write_folder(folder, &imported)?,
            None => output::print(&output::yaml(&imported.apply))?,
        }
        let mut lines = imported.lines;
        if self.output.is_none() {
            lines.extend(imported.beside.iter().map(|(value, document)| {
                let document = &documents[*document];
                let what = kinds::short_name(
                    &kinds::text(&value["type"]),
                    &kinds::text(&value["name"]),
                );
                Line::lost(
                    document,
                    "",
                    format!("{what} stands beside a workload and is no part of this output: name a folder by -o"),
                )
            }));
        }
        if let Some(path) = &self.report {
            let text = match path
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("json"))
            {
                true => output::json(&json!({"items": lines}))? + "\n",
                false => report::text(&lines, true),
            };
            fs::write(path, text)
                .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        }
        eprint!("{}", report::text(&lines, false));
        let lost = lines.iter().filter(|line| line.is_lost()).count();
        if lost == 0 {
            return Ok(());
        }
        Err(Failure::Finding(match lost {
            1 => "one thing could not be kept".to_owned(),
            many => format!("{many} things could not be kept"),
        }))
    }
}

/// Every document of every file, or everything that can not be read.
fn read(files: &[PathBuf], mesh: &str) -> Result<Vec<Document>, Failure> {
    let mut wrong = Vec::new();
    let mut documents = Vec::new();
    for (source, text) in sources::texts(files, &mut wrong) {
        match mesh_model::parse::documents(&text, &source) {
            Ok(read) => {
                for raw in read {
                    match Document::of(raw, &source, mesh) {
                        Ok(several) => documents.extend(several),
                        Err(violation) => wrong.push(*violation),
                    }
                }
            }
            Err(violations) => wrong.extend(violations.0),
        }
    }
    if !wrong.is_empty() {
        let lines: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        return Err(Failure::invalid(format!(
            "nothing was imported, because not everything can be read:\n{}",
            lines.join("\n")
        )));
    }
    if documents.is_empty() {
        return Err(Failure::invalid("there is no resource in what was given"));
    }
    Ok(documents)
}

/// What comes out.
#[derive(Debug, Default)]
struct Imported {
    /// For `meshctl apply`.
    apply: Vec<Value>,
    /// For `dataplane run`, each with the document that it is from.
    beside: Vec<(Value, usize)>,
    /// What became of it all, in the order of the documents.
    lines: Vec<Line>,
}

/// A resource that was made, and the document that it is from.
type Made = (Value, usize);

/// The whole conversion.
fn convert(documents: &[Document], zones: &[String]) -> Result<Imported, Failure> {
    let facts = facts::Facts::of(documents, zones);
    let mut lines = Vec::new();
    let mut poisoned = BTreeSet::new();
    let mut made: Vec<Made> = permission::convert(documents, &facts, &mut poisoned, &mut lines);
    for (index, document) in documents.iter().enumerate() {
        let mut notes = report::Notes::of(document);
        let values = one(document, &facts, &mut notes);
        made.extend(values.into_iter().map(|value| (value, index)));
        lines.extend(notes.lines.into_iter().map(|line| (index, line)));
    }
    if let Some(place) = facts.zones_were_missed() {
        return Err(Failure::invalid(format!(
            "{place}: this is about callers of some services, and an identity contains the zone of its workload: name \
             every zone of the mesh by --zone ZONE"
        )));
    }
    made.sort_by_key(|(_, index)| *index);
    let mut imported = Imported::default();
    for (value, index) in check::all(documents, made, poisoned, &mut lines) {
        if ["Dataplane", "ZoneIngress", "ZoneEgress"]
            .contains(&value["type"].as_str().unwrap_or_default())
        {
            imported.beside.push((value, index));
        } else {
            imported.apply.push(value);
        }
    }
    // Documents of which nothing is to be told were kept as they are.
    for (index, document) in documents.iter().enumerate() {
        if !lines.iter().any(|(of, _)| *of == index) {
            lines.push((index, Line::kept(document)));
        }
    }
    lines.sort_by_key(|(index, _)| *index);
    imported.lines = lines.into_iter().map(|(_, line)| line).collect();
    // What others refer to comes first, for readers.
    imported
        .apply
        .sort_by_key(|value| match value["type"].as_str() {
            Some("Mesh") => 0,
            Some("Zone") => 1,
            Some("Secret" | "GlobalSecret") => 2,
            Some("MeshIdentity" | "MeshTrust") => 3,
            _ => 4,
        });
    Ok(imported)
}

/// What one document becomes, except for permissions, which are looked at all together.
fn one(document: &Document, facts: &facts::Facts, notes: &mut report::Notes<'_>) -> Vec<Value> {
    match document.kind.as_str() {
        "MeshTrafficPermission" | "TrafficPermission" => Vec::new(),
        "Mesh" => mesh::convert(document, facts, notes),
        "Dataplane" => proxy::dataplane(document, facts, notes),
        "ZoneIngress" | "ZoneEgress" => proxy::zone_proxy(document, notes),
        "ExternalService" => proxy::external_service(document, notes),
        "MeshService" => proxy::mesh_service(document, notes),
        "Secret" | "GlobalSecret" => mesh::secret(document, notes),
        kind if legacy::KINDS.contains(&kind) => legacy::convert(document, facts, notes),
        kind if policy::KINDS.contains(&kind) => policy::convert(document, facts, notes),
        "MeshGateway" | "MeshGatewayRoute" | "MeshGatewayInstance" => {
            notes.lost("", "there are no gateways in this version");
            Vec::new()
        }
        "VirtualOutbound" => {
            notes.lost(
                "",
                "host names of services are made by HostnameGenerators; write one",
            );
            Vec::new()
        }
        "ProxyTemplate" | "MeshProxyPatch" => {
            notes.lost(
                "",
                "is written for Envoy's configuration, and there is no Envoy here",
            );
            Vec::new()
        }
        kind if observed(kind) => {
            notes.changed(
                "",
                "is not taken over: it says what was observed, and is observed anew",
            );
            Vec::new()
        }
        kind => match mesh_model::find_kind(kind) {
            Some(_) => vec![document.with_content(document.content.clone())],
            None => {
                notes.lost("", format!("{kind} is no kind that is known here"));
                Vec::new()
            }
        },
    }
}

fn observed(kind: &str) -> bool {
    kind.ends_with("Insight") || kind.ends_with("Overview") || kind == "Workload"
}

fn write_folder(folder: &Path, imported: &Imported) -> Result<(), Failure> {
    let beside = imported.beside.iter().map(|(value, _)| ("beside", value));
    let apply = imported.apply.iter().map(|value| ("apply", value));
    let mut files: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (part, value) in apply.chain(beside) {
        let word = |field: &str| kinds::text(&value[field]);
        let mut path = folder.join(part);
        if !word("mesh").is_empty() {
            path.push(word("mesh"));
        }
        path.push(format!(
            "{}-{}.yaml",
            word("type").to_lowercase(),
            word("name")
        ));
        files.insert(path, mesh_model::to_yaml(value));
    }
    for (path, text) in files {
        let failed =
            |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // Secrets are among them.
        mesh_runtime::files::write_atomic(&path, text.as_bytes(), 0o600).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
