//! What became of each field: kept, changed, or not kept, with its place and why.

use serde::Serialize;

use super::document::Document;

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// As it was.
    Kept,
    /// Says the same in another form, or is not needed any more.
    Changed,
    /// What it said is not said any more.
    NotKept,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    outcome: Outcome,
    file: String,
    line: u32,
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    message: String,
}

impl Line {
    /// Nothing of it had to be changed.
    pub(super) fn kept(document: &Document) -> Self {
        Self::new(Outcome::Kept, document, "", "as it is".to_owned())
    }

    /// Something that is not said any more.
    pub(super) fn lost(document: &Document, field: &str, message: String) -> Self {
        Self::new(Outcome::NotKept, document, field, message)
    }

    fn new(outcome: Outcome, document: &Document, field: &str, message: String) -> Self {
        Self {
            outcome,
            file: document.source.clone(),
            line: document.place(field).0,
            resource: document.in_words(),
            field: if field.is_empty() {
                String::new()
            } else {
                document.path(field)
            },
            message,
        }
    }

    /// True for what is not said any more.
    pub(super) fn is_lost(&self) -> bool {
        self.outcome == Outcome::NotKept
    }
}

/// What is said of one document while it is converted.
pub(super) struct Notes<'d> {
    document: &'d Document,
    /// So far.
    pub(super) lines: Vec<Line>,
}

impl<'d> Notes<'d> {
    /// Begins, with what the envelope of the document already lost.
    pub(super) fn of(document: &'d Document) -> Self {
        let mut notes = Self {
            document,
            lines: Vec::new(),
        };
        for field in &document.odd {
            let mut line = Line::lost(document, "", "is no field that is known here".to_owned());
            line.field.clone_from(field);
            notes.lines.push(line);
        }
        for (field, message) in &document.envelope_notes {
            let mut line = Line::lost(document, "", message.clone());
            line.field.clone_from(field);
            notes.lines.push(line);
        }
        notes
    }

    /// The field at `path` of the content says the same in another form.
    pub(super) fn changed(&mut self, path: &str, message: impl Into<String>) {
        let line = Line::new(Outcome::Changed, self.document, path, message.into());
        self.add(line);
    }

    /// What the field at `path` says is not said any more.
    pub(super) fn lost(&mut self, path: &str, message: impl Into<String>) {
        self.add(Line::lost(self.document, path, message.into()));
    }

    fn add(&mut self, line: Line) {
        if !self.lines.contains(&line) {
            self.lines.push(line);
        }
    }
}

/// The report for people: what was changed and lost, and with `all` what was kept, too; then how much of each.
pub(super) fn text(lines: &[Line], all: bool) -> String {
    let mut text = String::new();
    let mut counts = [0_usize; 3];
    for line in lines {
        let word = match line.outcome {
            Outcome::Kept => "kept",
            Outcome::Changed => "changed",
            Outcome::NotKept => "NOT KEPT",
        };
        counts[line.outcome as usize] += 1;
        if line.outcome == Outcome::Kept && !all {
            continue;
        }
        let field = match line.field.as_str() {
            "" => String::new(),
            field => format!(": {field}"),
        };
        text.push_str(&format!(
            "{}:{}: {word}: {}{field}: {}\n",
            line.file, line.line, line.resource, line.message
        ));
    }
    let [kept, changed, lost] = counts;
    text.push_str(&format!(
        "{kept} kept as they are, {changed} changed, {lost} not kept\n"
    ));
    text
}
