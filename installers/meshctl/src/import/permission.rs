//! Who may call: MeshTrafficPermission with `from`, and TrafficPermission.
//!
//! Kuma 2 and this project decide differently, so that permissions of a mesh are looked at together:
//!
//! - With `from`, the most specific entry that matches decides. Here a denial wins wherever it stands, then whoever is
//!   allowed anywhere is let in, and nobody else. Taking over every denial and every allowance therefore lets in nobody
//!   new: where the deciding entry was a denial, it denies here; where none matched, none allows. It may let in fewer,
//!   where an allowance was stronger than a denial; that is told.
//! - "Everyone is denied" is what holds here anyway, unless a weaker entry allows somebody; only then it is taken over.
//! - A denial that can not be said takes every allowance with it that it was stronger than.
//! - Of several TrafficPermissions for one inbound, only the most specific counted. Here they add up; one of them that
//!   lets in more than a more specific one for the same inbound is left out.

use std::{cmp::Reverse, collections::BTreeSet};

use serde_json::{Value, json};

use super::{
    Made,
    document::Document,
    facts::Facts,
    fields::Fields,
    report::{Line, Notes},
    target::{self, Callers, Target},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    AllowWithShadowDeny,
    Deny,
}

/// One entry: these callers, at these proxies.
struct Entry {
    document: usize,
    path: String,
    target: Target,
    callers: Callers,
    action: Action,
    /// Place among the entries of its policy.
    index: usize,
}

impl Entry {
    /// What Kuma 2 goes by: the greater is the stronger.
    fn strength<'a>(&self, documents: &'a [Document]) -> (u8, Reverse<&'a str>, usize) {
        let name = documents[self.document].name.as_str();
        (self.target.rank, Reverse(name), self.index)
    }

    fn meets(&self, other: &Self, documents: &[Document]) -> bool {
        documents[self.document].mesh == documents[other.document].mesh
            && self.target.overlaps(&other.target)
            && self.callers.overlaps(&other.callers)
    }
}

/// All permissions of all meshes. Meshes in which a denial in the form of here had to be left out go into `poisoned`.
pub(super) fn convert(
    documents: &[Document],
    facts: &Facts,
    poisoned: &mut BTreeSet<String>,
    lines: &mut Vec<(usize, Line)>,
) -> Vec<Made> {
    let mut made = with_from(documents, facts, poisoned, lines);
    made.extend(of_old_kind(documents, facts, lines));
    made
}

// === MeshTrafficPermission ===

fn with_from(
    documents: &[Document],
    facts: &Facts,
    poisoned: &mut BTreeSet<String>,
    lines: &mut Vec<(usize, Line)>,
) -> Vec<Made> {
    let mut made = Vec::new();
    let mut entries = Vec::new();
    let mut unsaid = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        if document.kind != "MeshTrafficPermission" {
            continue;
        }
        let mut notes = Notes::of(document);
        let mut fields = Fields::of(document.content.clone(), "");
        let from = fields.take_list("from");
        if from.is_empty() {
            match with_rules(document, fields, &mut notes) {
                Some(value) => made.push((value, index)),
                None if super::check::denies(&document.with_content(document.content.clone())) => {
                    poisoned.insert(document.mesh.clone());
                }
                None => {}
            }
        } else {
            let path = fields.at("targetRef");
            let target = target::top(fields.take("targetRef"), &path, &mut notes);
            for (at, entry) in from.into_iter().enumerate() {
                read_entry(
                    entry,
                    target.as_ref(),
                    (index, at),
                    &mut entries,
                    &mut unsaid,
                    &mut notes,
                );
            }
            if fields.take("rules").is_some() {
                notes.lost("rules", "stands beside from, and Kuma takes only one of them: write a policy of its own");
            }
            fields.finish(&mut notes);
        }
        lines.extend(notes.lines.into_iter().map(|line| (index, line)));
    }
    made.extend(said(documents, facts, &entries, &unsaid, lines));
    made
}

/// A policy that is written as here already; its selection may still be one by tags.
fn with_rules(document: &Document, mut fields: Fields, notes: &mut Notes<'_>) -> Option<Value> {
    let path = fields.at("targetRef");
    let selected = fields.take("targetRef");
    let had = selected.is_some();
    let target = target::top(selected.clone(), &path, notes)?;
    let mut content = fields.rest();
    // What is as it should be stays as it is written.
    let same = selected
        .as_ref()
        .is_some_and(|value| value["kind"] == "Mesh" || value["kind"] == "Dataplane");
    if had {
        let value = target
            .value()
            .or_else(|| same.then(|| json!({"kind": "Mesh"})));
        content.extend(value.map(|value| ("targetRef".to_owned(), value)));
    }
    Some(document.with_content(Value::Object(content)))
}

fn read_entry(
    mut entry: Fields,
    target: Option<&Target>,
    (document, index): (usize, usize),
    entries: &mut Vec<Entry>,
    unsaid: &mut Vec<Entry>,
    notes: &mut Notes<'_>,
) {
    let callers = Callers::by_target(entry.take("targetRef"));
    let mut default = entry.take_fields("default");
    let action = default
        .as_mut()
        .and_then(|default| default.take_text("action"));
    let path = entry.path().to_owned();
    let action = match action.as_deref() {
        Some("Allow" | "ALLOW") => Action::Allow,
        Some("AllowWithShadowDeny" | "ALLOW_WITH_SHADOW_DENY") => Action::AllowWithShadowDeny,
        Some("Deny" | "DENY") => Action::Deny,
        // What can not be read counts as the strictest.
        other => {
            let what = other.unwrap_or("nothing");
            notes.lost(
                &path,
                format!("{what} is no action; nobody is let in by it"),
            );
            Action::Deny
        }
    };
    if let Some(default) = default {
        default.finish(notes);
    }
    entry.finish(notes);
    let read = |target: &Target| Entry {
        document,
        path: path.clone(),
        target: target.clone(),
        callers: callers.clone(),
        action,
        index,
    };
    match (target, &callers) {
        (Some(target), Callers::Unsayable(why)) => {
            notes.lost(&path, format!("{}: {why}", left_out(action)));
            unsaid.push(read(target));
        }
        (Some(target), _) => entries.push(read(target)),
        (None, _) => {
            notes.lost(
                &path,
                format!(
                    "{}: its policy selects what can not be selected here",
                    left_out(action)
                ),
            );
            // It may be about any proxy.
            unsaid.push(read(&Target {
                rank: u8::MAX,
                ..Target::default()
            }));
        }
    }
}

fn left_out(action: Action) -> &'static str {
    match action {
        Action::Deny => {
            "a denial that is left out, and with it every allowance that it was stronger than"
        }
        Action::Allow | Action::AllowWithShadowDeny => "an allowance that is left out",
    }
}

/// The policies that say all entries.
fn said(
    documents: &[Document],
    facts: &Facts,
    entries: &[Entry],
    unsaid: &[Entry],
    lines: &mut Vec<(usize, Line)>,
) -> Vec<Made> {
    let strength = |entry: &Entry| entry.strength(documents);
    let denials = || unsaid.iter().filter(|entry| entry.action == Action::Deny);
    let mut made: Vec<Made> = Vec::new();
    for entry in entries {
        let document = &documents[entry.document];
        let mut notes = Notes::of(document);
        notes.lines.clear();
        let rule = rule(entry, entries, denials(), documents, facts, &mut notes);
        debug_assert!(
            entry.action != Action::Deny || rule.is_some() || entry.callers == Callers::Everyone
        );
        if entry.action != Action::Deny {
            let stronger = |other: &&Entry| {
                other.action == Action::Deny
                    && strength(other) < strength(entry)
                    && other.meets(entry, documents)
            };
            if let (Some(_), Some(denial)) = (
                &rule,
                entries
                    .iter()
                    .filter(stronger)
                    .find(|denial| is_said(denial, entries, documents)),
            ) {
                notes.lost(
                    &entry.path,
                    format!(
                        "some of it is denied now by {}, {}: here a denial wins wherever it stands",
                        documents[denial.document].in_words(),
                        documents[denial.document].path(&denial.path)
                    ),
                );
            }
        }
        lines.extend(notes.lines.into_iter().map(|line| (entry.document, line)));
        let Some(rule) = rule else {
            continue;
        };
        match made.iter_mut().find(|(_, index)| *index == entry.document) {
            Some((value, _)) => {
                if let Some(rules) = value["spec"]["rules"].as_array_mut() {
                    rules.push(rule);
                }
            }
            None => {
                let mut content = json!({"rules": [rule]});
                if let Some(target) = entry.target.value() {
                    content["targetRef"] = target;
                }
                made.push((document.with_content(content), entry.document));
            }
        }
    }
    made
}

/// "Everyone is denied" says something only where a weaker entry allows somebody.
fn is_said(denial: &Entry, entries: &[Entry], documents: &[Document]) -> bool {
    denial.callers != Callers::Everyone
        || entries.iter().any(|other| {
            other.action != Action::Deny
                && other.strength(documents) < denial.strength(documents)
                && other.meets(denial, documents)
        })
}

/// The rule that says an entry, where one is needed and there may be one.
fn rule<'a>(
    entry: &Entry,
    entries: &[Entry],
    mut lost_denials: impl Iterator<Item = &'a Entry>,
    documents: &[Document],
    facts: &Facts,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let document = &documents[entry.document];
    if entry.action == Action::Deny {
        if !is_said(entry, entries, documents) {
            notes.changed(
                &entry.path,
                "is left out: whoever is not allowed is denied here",
            );
            return None;
        }
    } else if let Some(denial) = lost_denials.find(|denial| {
        denial.meets(entry, documents) && denial.strength(documents) > entry.strength(documents)
    }) {
        notes.lost(
            &entry.path,
            format!(
                "an allowance that is left out: {} denied some of it, which can not be said here",
                documents[denial.document].in_words()
            ),
        );
        return None;
    }
    let matches = match entry.callers.matches(document, facts, &entry.path) {
        Ok(matches) => matches,
        Err(why) if entry.action == Action::Deny => {
            notes.lost(
                &entry.path,
                format!("{why}; everyone is denied in its place"),
            );
            vec![json!({"spiffeID": {"type": "Prefix", "value": "spiffe://"}})]
        }
        Err(why) => {
            notes.lost(&entry.path, format!("an allowance that is left out: {why}"));
            return None;
        }
    };
    let list = match entry.action {
        Action::Allow => "allow",
        Action::AllowWithShadowDeny => "allowWithShadowDeny",
        Action::Deny => "deny",
    };
    notes.changed(&entry.path, "callers are matched by their SPIFFE IDs");
    Some(json!({"default": {list: matches}}))
}

// === TrafficPermission ===

struct Old {
    document: usize,
    destinations: Vec<(String, Target)>,
    sources: Vec<(String, Callers)>,
}

fn of_old_kind(documents: &[Document], facts: &Facts, lines: &mut Vec<(usize, Line)>) -> Vec<Made> {
    let mut read = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        if document.kind != "TrafficPermission" {
            continue;
        }
        let mut notes = Notes::of(document);
        read.push(read_old(document, index, &mut notes));
        lines.extend(notes.lines.into_iter().map(|line| (index, line)));
    }
    let mut made = Vec::new();
    for old in &read {
        let document = &documents[old.document];
        let mut notes = Notes::of(document);
        notes.lines.clear();
        let newer = documents
            .iter()
            .any(|other| other.kind == "MeshTrafficPermission" && other.mesh == document.mesh);
        if newer {
            notes.lost(
                "",
                "is left out: where there are MeshTrafficPermissions, they count alone",
            );
        } else {
            made.extend(
                say_old(old, &read, documents, facts, &mut notes)
                    .into_iter()
                    .map(|value| (value, old.document)),
            );
        }
        lines.extend(notes.lines.into_iter().map(|line| (old.document, line)));
    }
    made
}

fn read_old(document: &Document, index: usize, notes: &mut Notes<'_>) -> Old {
    let mut fields = Fields::of(document.content.clone(), "");
    let mut sources = Vec::new();
    for mut source in fields.take_list("sources") {
        let path = source.path().to_owned();
        sources.push((
            path,
            Callers::by_tags(super::fields::texts(source.take("match"))),
        ));
        source.finish(notes);
    }
    let mut destinations = Vec::new();
    for mut destination in fields.take_list("destinations") {
        let path = destination.path().to_owned();
        if let Some(target) = target::by_match(&mut destination, notes) {
            destinations.push((path, target));
        } else {
            // Whatever it selected, nothing weaker may let in more there.
            destinations.push((
                String::new(),
                Target {
                    rank: u8::MAX,
                    ..Target::default()
                },
            ));
        }
        destination.finish(notes);
    }
    fields.finish(notes);
    Old {
        document: index,
        destinations,
        sources,
    }
}

fn say_old(
    old: &Old,
    all: &[Old],
    documents: &[Document],
    facts: &Facts,
    notes: &mut Notes<'_>,
) -> Vec<Value> {
    let document = &documents[old.document];
    let mut allow = Vec::new();
    for (path, callers) in &old.sources {
        match callers.matches(document, facts, path) {
            Ok(matches) => allow.extend(matches),
            Err(why) => notes.lost(path, format!("an allowance that is left out: {why}")),
        }
    }
    let mut made = Vec::new();
    for (path, target) in old.destinations.iter().filter(|(path, _)| !path.is_empty()) {
        if let Some(narrower) = narrower(old, target, all, documents) {
            notes.lost(
                path,
                format!(
                    "is left out: {} is for some of the same inbounds and lets in fewer, and counted alone there; \
                     permissions add up here, so write one for each other service",
                    documents[narrower.document].in_words()
                ),
            );
            continue;
        }
        if allow.is_empty() {
            continue;
        }
        let name = match made.len() {
            0 => document.name.clone(),
            more => format!("{}-{}", document.name, more + 1),
        };
        let mut content = json!({"rules": [{"default": {"allow": allow}}]});
        if let Some(target) = target.value() {
            content["targetRef"] = target;
        }
        notes.changed(
            path,
            "is a MeshTrafficPermission; callers are matched by their SPIFFE IDs",
        );
        made.push(document.made("MeshTrafficPermission", &name, content));
    }
    made
}

/// Another permission that counted alone, or may have, at some inbound that `target` selects, and lets in fewer.
fn narrower<'a>(
    old: &Old,
    target: &Target,
    all: &'a [Old],
    documents: &[Document],
) -> Option<&'a Old> {
    all.iter().find(|other| {
        let same_mesh = documents[other.document].mesh == documents[old.document].mesh;
        let covered = old
            .sources
            .iter()
            .all(|(_, ours)| other.sources.iter().any(|(_, theirs)| theirs.cover(ours)));
        other.document != old.document
            && same_mesh
            && !covered
            && other
                .destinations
                .iter()
                .any(|(_, theirs)| theirs.overlaps(target) && theirs.rank >= target.rank)
    })
}
