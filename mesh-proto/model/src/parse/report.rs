//! Gathers what is wrong with one text, each with its place.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    path::parent,
    violation::{Violation, Violations},
};

/// More are counted, not listed.
const MOST: usize = 100;

/// Line and column, from 1; 0 where there is no text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// Where the fields of one document stand in its text: a field of an object at its key, an item of a list where it begins.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<String, Place>);

impl Places {
    pub(super) fn insert(&mut self, path: &str, place: Place) {
        self.0.entry(path.to_owned()).or_insert(place);
    }

    /// The place of `path`, or of the nearest thing around it that exists.
    pub(super) fn find(&self, mut path: &str) -> Place {
        loop {
            if let Some(place) = self.0.get(path) {
                return *place;
            }
            if path.is_empty() {
                return Place::default();
            }
            path = parent(path);
        }
    }
}

/// What is wrong with one document.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) places: Places,
    found: Vec<(String, Option<Place>, String)>,
    // Paths of values that were replaced, so that what follows from them is not reported too.
    replaced: BTreeSet<String>,
}

impl Report {
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// The field at `path` is wrong.
    pub(super) fn add(&mut self, path: &str, message: impl Into<String>) {
        if !self.is_replaced(path) {
            self.found.push((path.to_owned(), None, message.into()));
        }
    }

    /// The same, with a place other than that of the field.
    pub(super) fn add_at(&mut self, path: &str, place: Place, message: impl Into<String>) {
        self.found
            .push((path.to_owned(), Some(place), message.into()));
    }

    /// The field at `path` is wrong, and its value is replaced so that the rest can be looked at.
    pub(super) fn replace(&mut self, path: &str, message: impl Into<String>) {
        self.add(path, message);
        self.replaced.insert(path.to_owned());
    }

    /// True where the value at `path`, or one around it, was replaced.
    pub(super) fn is_replaced(&self, mut path: &str) -> bool {
        loop {
            if self.replaced.contains(path) {
                return true;
            }
            if path.is_empty() {
                return false;
            }
            path = parent(path);
        }
    }

    /// With their places, in the order of the text.
    pub(super) fn into_violations(self, source: &str) -> Vec<Violation> {
        let Self { places, found, .. } = self;
        let mut violations: Vec<Violation> = found
            .into_iter()
            .map(|(path, place, message)| {
                let Place { line, column } = place.unwrap_or_else(|| places.find(&path));
                Violation {
                    source: source.to_owned(),
                    line,
                    column,
                    path,
                    message,
                }
            })
            .collect();
        violations.sort_by_key(|violation| (violation.line, violation.column));
        violations
    }
}

/// All of them, or the first hundred and how many more there are.
pub(super) fn bounded(mut violations: Vec<Violation>) -> Violations {
    if let Some(more) = violations.len().checked_sub(MOST + 1) {
        violations.truncate(MOST);
        let last = violations[MOST - 1].clone();
        violations.push(Violation {
            path: String::new(),
            message: format!("and {} more violations", more + 1),
            ..last
        });
    }
    Violations(violations)
}
