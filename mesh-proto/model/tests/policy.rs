//! The policy engine by examples: resources and questions in, answers out.
//!
//! Each file in `golden/policy/` holds resources as YAML, and behind them cases: a line `=== question`, and the answer until
//! the next. `UPDATE_GOLDEN=1 cargo test -p mesh-model --test policy` writes the answers. The label `owner/zone` makes a
//! resource a zone's.
//!
//! | question | answer |
//! | --- | --- |
//! | `order KIND` | entries of a kind, the weakest first |
//! | `selected KIND DATAPLANE` | policies that concern a dataplane, the weakest first |
//! | `outgoing KIND DATAPLANE SERVICE[:PORT] [in ZONE] [by ROUTE]` | what they come to for a destination |
//! | `incoming KIND DATAPLANE INBOUND` | what they come to for an inbound, by caller, the most specific first |
//! | `caller KIND DATAPLANE INBOUND ID` | the same for one caller |
//! | `proxy KIND DATAPLANE` | what they come to for the proxy as a whole |
//! | `routes KIND DATAPLANE SERVICE:PORT` | rules of routes, in the order they are tried |
//! | `permissions DATAPLANE INBOUND` | who may call, in the order that is looked at |
//! | `decide DATAPLANE INBOUND ID` | whether one caller may call, and why |
//! | `concerning SERVICE[:PORT]` | entries that are about a destination |
//! | `conditions [KIND]` | conditions of all resources, or those of a kind |

use std::{fmt::Write, fs, path::Path};

use mesh_model::{
    Dataplane, Resource,
    dataplane::Inbound,
    find_kind, permission,
    policy::{
        Destination, Known, Merged, PolicySet, Proxy, Services, SpiffeIdMatch, conditions, routes,
    },
};

const OWNER: &str = "owner/zone";

/// The resources of one file.
struct World {
    resources: Vec<Resource>,
    services: Services,
    set: PolicySet,
}

impl World {
    fn new(text: &str, name: &str) -> Self {
        let mut resources = mesh_model::parse(text, name).unwrap_or_else(|e| panic!("{e}"));
        for resource in &mut resources {
            if let Some(zone) = resource.meta.labels.remove(OWNER) {
                resource.meta.zone = zone;
            }
        }
        Self {
            services: Services::of(&resources),
            set: PolicySet::new("m", &resources),
            resources,
        }
    }

    fn named(&self, kind: &str, name: &str) -> &Resource {
        self.resources
            .iter()
            .find(|r| r.kind().name == kind && r.meta.name == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    fn inbound(&self, dataplane: &str, inbound: &str) -> &Inbound {
        let dataplane: &Dataplane = self.named("Dataplane", dataplane).get().unwrap();
        let mut inbounds = dataplane.networking.inbound.iter();
        inbounds.find(|i| i.name_or_port() == inbound).unwrap()
    }

    fn destination(&self, words: &[&str]) -> Destination {
        let (name, port) = match words[0].split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (words[0], None),
        };
        let service = self.services.iter().find(|s| s.name == name);
        let service = service.unwrap_or_else(|| panic!("no service {name}"));
        let mut destination = Destination::new(service);
        if let Some(port) = port {
            destination = destination.at(service.port(port).unwrap_or_else(|| panic!("{port}")));
        }
        for pair in words[1..].chunks(2) {
            destination = match pair {
                ["in", zone] => destination.in_zone(zone),
                ["by", route] => destination.by_route(&self.named("MeshHTTPRoute", route).meta),
                other => panic!("{other:?}"),
            };
        }
        destination
    }

    fn answer(&self, question: &str) -> String {
        let words: Vec<&str> = question.split_whitespace().collect();
        let kind = |name: &str| find_kind(name).unwrap_or_else(|| panic!("no kind {name}"));
        let select = |dataplane: &str| {
            let dataplane = self.named("Dataplane", dataplane);
            self.set.select(Proxy::of(dataplane))
        };
        match words.as_slice() {
            ["order", name] => lines(self.set.order(kind(name))),
            ["selected", name, dataplane] => {
                lines(select(dataplane).policies(kind(name)).map(|key| &key.name))
            }
            ["outgoing", name, dataplane, destination @ ..] => shown(
                &select(dataplane).outgoing(kind(name), &self.destination(destination)),
                "",
            ),
            ["incoming", name, dataplane, inbound] => {
                let inbound = self.inbound(dataplane, inbound);
                let incoming = select(dataplane).incoming(kind(name), inbound);
                let mut text = String::new();
                for rule in &incoming.rules {
                    let SpiffeIdMatch { form, value } = &rule.callers;
                    writeln!(text, "from {form:?} {value}").unwrap();
                    text += &shown(&rule.merged, "  ");
                }
                text + "from everyone\n" + &shown(&incoming.everyone, "  ")
            }
            ["caller", name, dataplane, inbound, id] => {
                let inbound = self.inbound(dataplane, inbound);
                let incoming = select(dataplane).incoming(kind(name), inbound);
                shown(incoming.of_caller(Some(id)), "")
            }
            ["proxy", name, dataplane] => shown(&select(dataplane).proxy_wide(kind(name)), ""),
            ["routes", name, dataplane, destination @ ..] => {
                let destination = self.destination(destination);
                let merged = select(dataplane).outgoing(kind(name), &destination);
                lines(
                    routes::in_order(&merged, |_| 0).iter().map(|rule| {
                        format!("{} -> {} ({})", rule.matches, rule.default, rule.origin)
                    }),
                )
            }
            ["permissions", dataplane, inbound] => {
                let permissions = self.permissions(dataplane, inbound);
                let lists = [
                    ("deny", permissions.deny),
                    ("allowWithShadowDeny", permissions.allow_with_shadow_deny),
                    ("allow", permissions.allow),
                ];
                let entries = lists.iter().flat_map(|(list, entries)| {
                    entries.iter().map(move |entry| {
                        format!("{list} {} ({})", permission::shown(entry), entry.origin)
                    })
                });
                lines(entries)
            }
            ["decide", dataplane, inbound, id] => {
                let permissions = self.permissions(dataplane, inbound);
                let decision = permission::decide(&permissions, id);
                let mut text = format!("{decision}\n");
                for also in decision.matching.iter().skip(1) {
                    writeln!(
                        text,
                        "also {} {} ({})",
                        also.list, also.callers, also.origin
                    )
                    .unwrap();
                }
                text
            }
            ["concerning", destination] => {
                lines(self.set.concerning(&self.destination(&[destination])))
            }
            ["conditions", kind @ ..] => {
                let resources: Vec<&Resource> = self.resources.iter().collect();
                let mut dataplanes = resources.clone();
                dataplanes.retain(|r| r.get::<Dataplane>().is_some());
                let known = Known {
                    services: Some(&self.services),
                    dataplanes: Some(&dataplanes),
                };
                let mut found = conditions(&resources, known);
                found.retain(|c| kind.is_empty() || kind.contains(&c.key.kind.as_str()));
                lines(found.iter().map(|c| {
                    let status = if c.status { "" } else { "not " };
                    format!(
                        "{}/{} {}: {status}{} ({}): {}",
                        c.key.kind, c.key.name, c.field, c.kind, c.reason, c.message
                    )
                }))
            }
            other => panic!("no such question: {other:?}"),
        }
    }

    fn permissions(&self, dataplane: &str, inbound: &str) -> mesh_proto::proxy::Permissions {
        let policies: Vec<&Resource> = self.resources.iter().collect();
        permission::effective(
            &policies,
            self.named("Dataplane", dataplane),
            self.inbound(dataplane, inbound),
        )
    }
}

fn lines(items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    let lines: String = items.into_iter().map(|item| format!("{item}\n")).collect();
    if lines.is_empty() {
        "nothing\n".to_owned()
    } else {
        lines
    }
}

fn shown(merged: &Merged, indent: &str) -> String {
    lines(merged.lines().iter().map(|line| format!("{indent}{line}")))
}

/// Answers every question of `text`.
fn answered(name: &str, text: &str) -> (String, usize) {
    let (resources, cases) = match text.split_once("\n=== ") {
        Some((resources, cases)) => (resources, cases),
        None => panic!("{name} has no case"),
    };
    let world = World::new(resources, name);
    let mut answered = format!("{}\n", resources.trim_end());
    let mut count = 0;
    for case in cases.split("\n=== ") {
        let question = case.lines().next().unwrap_or_default();
        // What stands behind a dash explains the case.
        let asked = question.split(" -- ").next().unwrap_or_default();
        write!(answered, "\n=== {question}\n{}", world.answer(asked)).unwrap();
        count += 1;
    }
    (answered, count)
}

#[test]
fn the_examples_are_answered_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/policy");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut cases = 0;
    let mut wrong = String::new();
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let (answered, count) = answered(&name, &text);
        cases += count;
        if update {
            fs::write(&path, &answered).unwrap();
        } else if answered != text {
            for (expected, found) in text.lines().zip(answered.lines()) {
                if expected != found {
                    writeln!(wrong, "{name}:\n- {expected}\n+ {found}").unwrap();
                }
            }
            writeln!(wrong, "{name} differs").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(cases >= 60, "only {cases} cases");
}
