//! `meshctl get`: lists and shows resources.

use std::{collections::BTreeSet, time::SystemTime};

use clap::Args;
use clap_complete::ArgValueCompleter;
use mesh_model::{
    Descriptor, Scope, Writers,
    api::{DataplaneView, List, Unanswered},
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cli::Connection,
    client::Client,
    completion,
    failure::Failure,
    kinds::{self, Targets, targets},
    output::{self, Format, FormatParser, Found},
};

/// Resources asked for at once; the pages are put together here.
const PAGE: usize = 500;

const EXAMPLES: &str = "\
Examples:
  meshctl get meshes
  meshctl get meshservices -m payments
  meshctl get msvc store -m payments --zone west -o yaml
  meshctl get meshtrafficpermissions -m payments -o wide
  meshctl get meshes -o jsonpath='{.items[*].name}'
  meshctl get meshtrafficpermissions -m payments -l team=checkout
  meshctl get meshservices -A                 of all meshes that you may see
  meshctl get dataplanes -m payments          as their zones see them now";

/// List or show resources.
///
/// A kind is named as in YAML (MeshService), in the plural (meshservices) or shortly (msvc).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Get {
    /// The kind, and the names of the resources to show; none: all.
    #[arg(value_name = "KIND [NAME]", required = true, add = ArgValueCompleter::new(completion::kind_and_names))]
    what: Vec<String>,
    /// Of all meshes that you may see, whatever -m, ISTHMUS_MESH or the context say.
    #[arg(short = 'A', long)]
    all_meshes: bool,
    /// Only resources with these labels: key=value, key!=value, key, !key, joined by commas.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only what this zone owns.
    #[arg(long, value_name = "ZONE", add = ArgValueCompleter::new(completion::zones))]
    zone: Option<String>,
    /// How the result is shown.
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    output: Format,
}

impl Get {
    /// Asks and shows.
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let Targets { kind, names } = targets(&self.what)?;
        if let Some(zone) = &self.zone {
            crate::cli::checked_name(zone)?;
        }
        if !names.is_empty() && self.selector.is_some() {
            return Err(Failure::invalid(
                "name resources or select them by -l, not both",
            ));
        }
        let mesh = connection.mesh()?;
        let client = Client::new(connection)?;
        let place = Place {
            client: &client,
            kind,
            mesh: (!self.all_meshes).then_some(&*mesh),
        };
        if kind.name == kinds::DATAPLANE {
            return self.dataplanes(place, &names).await;
        }
        let items = if names.is_empty() {
            self.list(place).await?
        } else {
            self.named(place, &names).await?
        };
        if items.is_empty() && self.output.is_table() {
            eprintln!("{}", place.nothing());
            return Ok(());
        }
        let wide = self.output.is_wide();
        let table = || kinds::table(kind, &items, SystemTime::now(), wide, self.all_meshes);
        output::print(&self.show(kind, self.found(items.clone(), &names), table)?)
    }

    /// One named resource is shown as itself, several as a list; and what could be several is one too.
    fn found(&self, mut items: Vec<Value>, names: &[String]) -> Found {
        match (names, items.len()) {
            ([_], 1) if !self.all_meshes => Found::One(items.remove(0)),
            _ => Found::List(items),
        }
    }

    fn show(
        &self,
        kind: &Descriptor,
        found: Found,
        table: impl FnOnce() -> String,
    ) -> Result<String, Failure> {
        self.output.show(&found, table, |item| {
            kinds::short_name(kind.name, &kinds::text(&item["name"]))
        })
    }

    async fn list(&self, place: Place<'_>) -> Result<Vec<Value>, Failure> {
        let mut query = Vec::new();
        query.extend(self.selector.clone().map(|text| ("selector", text)));
        query.extend(self.zone.clone().map(|zone| ("zone", zone)));
        every(place.client, &place.path(), &query).await
    }

    async fn named(&self, place: Place<'_>, names: &[String]) -> Result<Vec<Value>, Failure> {
        if place.is_everywhere() {
            let mut items = self.list(place).await?;
            items.retain(|item| names.iter().any(|name| item["name"] == **name));
            for name in names {
                if !items.iter().any(|item| item["name"] == **name) {
                    return Err(place.not_found(name));
                }
            }
            return Ok(items);
        }
        let mut query = Vec::new();
        query.extend(self.zone.clone().map(|zone| ("zone", zone)));
        let mut items = Vec::new();
        for name in names {
            let mut path = place.path();
            path.push(name);
            match place.client.get(&path, &query).await {
                Ok(item) => items.push(item),
                Err(error) if error.status() == Some(404) && self.zone.is_none() => {
                    let owned = self.owned_by_zones(place, name).await?;
                    if owned.is_empty() {
                        return Err(error.into());
                    }
                    items.extend(owned);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(items)
    }

    /// Resources of this name that zones own. Without a zone the API means what administrators wrote; a person who names
    /// what only zones have means those.
    async fn owned_by_zones(&self, place: Place<'_>, name: &str) -> Result<Vec<Value>, Failure> {
        if place.kind.writers == Writers::Admin {
            return Ok(Vec::new());
        }
        let mut items = self.list(place).await?;
        items.retain(|item| item["name"] == name);
        Ok(items)
    }

    async fn dataplanes(&self, place: Place<'_>, names: &[String]) -> Result<(), Failure> {
        if self.selector.is_some() {
            return Err(Failure::invalid(
                "dataplanes are asked of their zones, which know no selectors; use --zone, or -o json and a filter",
            ));
        }
        let query: Vec<_> = self
            .zone
            .clone()
            .map(|zone| ("zone", zone))
            .into_iter()
            .collect();
        let mut views: Vec<DataplaneView> = Vec::new();
        let mut unanswered = Vec::new();
        if place.is_everywhere() {
            (views, unanswered) = everywhere(place, &query).await?;
            if let Some(missing) = names
                .iter()
                .find(|name| !views.iter().any(|view| view.name == **name))
                && unanswered.is_empty()
            {
                return Err(place.not_found(missing));
            }
            views.retain(|view| names.is_empty() || names.contains(&view.name));
        } else if names.is_empty() {
            let answer: Dataplanes = place.client.get(&place.path(), &query).await?;
            (views, unanswered) = (answer.items, answer.unanswered);
        } else {
            for name in names {
                let mut path = place.path();
                path.push(name);
                views.push(place.client.get(&path, &query).await?);
            }
        }
        views.sort_by(|a, b| (&a.mesh, &a.name, &a.zone).cmp(&(&b.mesh, &b.name, &b.zone)));
        if views.is_empty() && self.output.is_table() {
            eprintln!("{}", place.nothing());
        } else {
            let items = views.iter().map(|view| view.resource.clone()).collect();
            let wide = self.output.is_wide();
            let table = || dataplane_table(&views, SystemTime::now(), wide, place.is_everywhere());
            output::print(&self.show(place.kind, self.found(items, names), table)?)?;
        }
        if unanswered.is_empty() {
            return Ok(());
        }
        // A list that may lack something is no success.
        let zones: Vec<_> = unanswered
            .iter()
            .map(|zone| format!("zone {} did not answer: {}", zone.zone, zone.reason))
            .collect();
        Err(Failure::failed(format!(
            "dataplanes may be missing from this list\n{}",
            zones.join("\n")
        )))
    }
}

/// The dataplanes of all meshes that the caller may see, and zones that did not answer.
async fn everywhere(
    place: Place<'_>,
    query: &[(&str, String)],
) -> Result<(Vec<DataplaneView>, Vec<Unanswered>), Failure> {
    let (mut views, mut unanswered) = (Vec::new(), Vec::<Unanswered>::new());
    let meshes = every(place.client, &["meshes"], &[]).await?;
    for mesh in &meshes {
        let mesh = kinds::text(&mesh["name"]);
        let path = kinds::path(place.kind, &mesh);
        let answer: Dataplanes = match place.client.get(&path, query).await {
            Ok(answer) => answer,
            // Deleted meanwhile.
            Err(error) if error.status() == Some(404) => continue,
            Err(error) => return Err(error.into()),
        };
        views.extend(answer.items);
        // A zone that is silent about one mesh is about the others.
        let known: BTreeSet<_> = unanswered.iter().map(|zone| zone.zone.clone()).collect();
        let new = answer.unanswered.into_iter();
        unanswered.extend(new.filter(|zone| !known.contains(&zone.zone)));
    }
    Ok((views, unanswered))
}

/// Everything that a list holds, page by page.
async fn every(
    client: &Client,
    path: &[&str],
    query: &[(&str, String)],
) -> Result<Vec<Value>, Failure> {
    let mut items = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.push(("limit", PAGE.to_string()));
        query.extend(next.clone().map(|at| ("continue", at)));
        let page: List = client.get(path, &query).await?;
        items.extend(page.items);
        if page.next.is_none() {
            return Ok(items);
        }
        if page.next == next {
            return Err(Failure::failed(
                "the server sends the same page again and again",
            ));
        }
        next = page.next;
    }
}

/// What is asked for, and where.
#[derive(Clone, Copy)]
struct Place<'a> {
    client: &'a Client,
    kind: &'static Descriptor,
    /// `None`: in all meshes.
    mesh: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn path(&self) -> Vec<&'a str> {
        match self.mesh {
            Some(mesh) => kinds::path(self.kind, mesh),
            None => vec![self.kind.plural],
        }
    }

    /// Whether more than one mesh is looked at.
    fn is_everywhere(&self) -> bool {
        self.mesh.is_none() && self.kind.scope == Scope::Mesh
    }

    fn nothing(&self) -> String {
        let kind = self.kind.plural;
        match (self.kind.scope, self.mesh) {
            (Scope::Global, _) => format!("There are no such {kind}."),
            (Scope::Mesh, None) => {
                format!("There are no such {kind} in any mesh that you may see.")
            }
            (Scope::Mesh, Some(mesh)) => {
                format!("There are no such {kind} in mesh {mesh} (another mesh: -m MESH, all: -A).")
            }
        }
    }

    fn not_found(&self, name: &str) -> Failure {
        Failure::failed(format!(
            "there is no {} in any mesh that you may see",
            kinds::short_name(self.kind.name, name)
        ))
    }
}

/// The dataplanes of a mesh, as their zones answered.
#[derive(Deserialize)]
struct Dataplanes {
    items: Vec<DataplaneView>,
    #[serde(default)]
    unanswered: Vec<Unanswered>,
}

fn dataplane_table(views: &[DataplaneView], now: SystemTime, wide: bool, meshes: bool) -> String {
    let rows = views.iter().map(|view| {
        let refused = view
            .documents
            .iter()
            .any(|document| document.refused.is_some());
        let current = view
            .documents
            .iter()
            .filter(|document| document.running.as_ref() == Some(&document.wanted))
            .count();
        let mut row = Vec::new();
        if meshes {
            row.push(view.mesh.clone());
        }
        row.extend([
            view.name.clone(),
            view.zone.clone(),
            view.state.clone(),
            view.services.join(","),
            if refused {
                "refused".to_owned()
            } else {
                format!("{current}/{}", view.documents.len())
            },
            match view.certificate_not_after {
                0 => String::new(),
                end => output::until(end, now),
            },
            view.version.clone(),
        ]);
        if wide {
            row.push(kinds::text(&view.resource["networking"]["address"]));
            row.push(view.spiffe_id.clone());
            row.push(kinds::labels(&view.resource["labels"]));
        }
        row
    });
    let mut header = Vec::new();
    if meshes {
        header.push("MESH");
    }
    header.extend([
        "NAME",
        "ZONE",
        "STATE",
        "SERVICES",
        "CURRENT",
        "CERTIFICATE",
        "VERSION",
    ]);
    if wide {
        header.extend(["ADDRESS", "IDENTITY", "LABELS"]);
    }
    output::table(&header, rows.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusing_dataplane_is_shown_as_such() {
        let view: DataplaneView = serde_json::from_value(json!({
            "mesh": "pay", "zone": "east", "name": "web-1", "state": "online", "spiffeId": "", "version": "0.1.0",
            "services": ["web"], "certificateNotAfter": 0, "resource": {},
            "documents": [{"name": "proxy", "wanted": "b", "running": "a", "refused": "unknown feature"}],
        }))
        .unwrap();
        let table = dataplane_table(std::slice::from_ref(&view), SystemTime::now(), false, false);
        assert!(table.contains("refused"), "{table}");
        let wide = dataplane_table(&[view], SystemTime::now(), true, true);
        assert!(wide.contains("IDENTITY"), "{wide}");
        assert!(
            wide.starts_with("MESH ") && wide.contains("\npay "),
            "{wide}"
        );
    }
}
