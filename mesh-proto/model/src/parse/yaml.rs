//! YAML text (and so JSON) to values that remember where they stand.
//!
//! Values follow the core schema of YAML 1.2. What is legal YAML and a trap is refused: duplicate keys, tags, numbers
//! with leading zeros. Depth and the work that aliases can cause are bounded, whatever the text.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::{
    report::{Place, Report},
    scalar::{self, no_tags},
};
use crate::{labels, path};

/// How deep a document may be nested.
const MAX_DEPTH: usize = 64;
/// How many nodes the aliases of one document may stand for.
const MAX_ALIASED_NODES: usize = 10_000;

/// One document: what was read, and what is wrong with it so far.
pub(super) struct Document {
    /// `None`: the document could not be read to its end.
    pub(super) value: Option<Value>,
    pub(super) report: Report,
}

/// The documents of a text, one at a time; empty ones are left out.
pub(super) struct Documents<'t> {
    parser: Parser<'t, StrInput<'t>>,
    ended: bool,
}

impl<'t> Documents<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let options = granit_parser::options! {
            emit_comments: false,
            flow_nesting_limit: MAX_DEPTH + 1,
            block_nesting_limit: MAX_DEPTH + 1,
        };
        Self {
            parser: Parser::new_from_str_with_options(text, options),
            ended: false,
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Document;

    fn next(&mut self) -> Option<Document> {
        while !self.ended {
            match Reader::new(&mut self.parser).document() {
                Ok(Next::Document(at, node)) => {
                    if !node.is_null() {
                        return Some(located(at, &node));
                    }
                }
                Ok(Next::End) => self.ended = true,
                Err(Broken { at, message }) => {
                    // What follows the next `---` can still be read.
                    self.ended = !matches!(self.parser.proceed_next_document(), Ok(true));
                    let mut report = Report::default();
                    report.places.insert("", at);
                    report.add("", message);
                    return Some(Document {
                        value: None,
                        report,
                    });
                }
            }
        }
        None
    }
}

/// A document that can not be read on.
struct Broken {
    at: Place,
    message: String,
}

enum Next {
    Document(Place, Rc<Node>),
    End,
}

/// A value. Shared between where it is anchored and its aliases, so that no text makes more of them than it has signs.
struct Node {
    data: Data,
    /// Nodes in it, itself included.
    size: usize,
    /// Levels in it, itself included.
    depth: usize,
}

enum Data {
    Value(Value),
    /// A scalar that is refused, and why.
    Wrong(String),
    List(Vec<(Place, Rc<Node>)>),
    Map(Vec<(Key, Rc<Node>)>),
}

struct Key {
    at: Place,
    text: String,
    /// Written as `<<`, without quotes.
    merges: bool,
}

struct Reader<'p, 'input> {
    parser: &'p mut Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, Rc<Node>>,
    aliased_nodes: usize,
}

impl<'p, 'input> Reader<'p, 'input> {
    fn new(parser: &'p mut Parser<'input, StrInput<'input>>) -> Self {
        Self {
            parser,
            anchors: HashMap::new(),
            aliased_nodes: 0,
        }
    }

    fn document(&mut self) -> Result<Next, Broken> {
        loop {
            match self.event()? {
                None | Some((Event::StreamEnd, _)) => return Ok(Next::End),
                Some((Event::DocumentStart(..), _)) => {
                    let Some((event, span)) = self.event()? else {
                        return Ok(Next::End);
                    };
                    let at = place(&span.start);
                    return Ok(Next::Document(at, self.node(event, span, 1)?));
                }
                Some(_) => {}
            }
        }
    }

    fn event(&mut self) -> Result<Option<(Event<'input>, Span)>, Broken> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(error)) => Err(Broken {
                at: place(error.marker()),
                message: format!("not YAML: {}", error.info()),
            }),
        }
    }

    fn node(&mut self, event: Event<'input>, span: Span, depth: usize) -> Result<Rc<Node>, Broken> {
        let at = place(&span.start);
        let broken = |message: String| Err(Broken { at, message });
        if depth > MAX_DEPTH {
            return broken(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let (anchor, data) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let data = match scalar::value(&text, style, tag.as_deref()) {
                    Ok(value) => Data::Value(value),
                    Err(message) => Data::Wrong(message),
                };
                (anchor, data)
            }
            Event::SequenceStart(_, anchor, tag) => {
                let items = Data::List(self.items(depth)?);
                (anchor, items.untagged(tag.as_deref(), "seq"))
            }
            Event::MappingStart(_, anchor, tag) => {
                let entries = Data::Map(self.entries(depth)?);
                (anchor, entries.untagged(tag.as_deref(), "map"))
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor) else {
                    return broken("an alias can not stand inside what it refers to".into());
                };
                self.aliased_nodes = self.aliased_nodes.saturating_add(target.size);
                if self.aliased_nodes > MAX_ALIASED_NODES {
                    return broken(format!(
                        "the aliases of this document stand for more than {MAX_ALIASED_NODES} values"
                    ));
                }
                if depth + target.depth > MAX_DEPTH {
                    return broken(format!("nested deeper than {MAX_DEPTH} levels"));
                }
                return Ok(Rc::clone(target));
            }
            other => return broken(format!("not YAML: unexpected {other:?}")),
        };
        let node = Rc::new(Node::of(data));
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn items(&mut self, depth: usize) -> Result<Vec<(Place, Rc<Node>)>, Broken> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.event()? {
            if event == Event::SequenceEnd {
                break;
            }
            let at = place(&span.start);
            items.push((at, self.node(event, span, depth + 1)?));
        }
        Ok(items)
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(Key, Rc<Node>)>, Broken> {
        let mut entries = Vec::new();
        while let Some((event, span)) = self.event()? {
            if event == Event::MappingEnd {
                break;
            }
            let at = place(&span.start);
            let key = match event {
                Event::Scalar(text, style, _, None) => Key {
                    at,
                    merges: text == "<<" && style == ScalarStyle::Plain,
                    text: text.into_owned(),
                },
                _ => {
                    return Err(Broken {
                        at,
                        message: "a key must be text".into(),
                    });
                }
            };
            let Some((event, span)) = self.event()? else {
                break;
            };
            entries.push((key, self.node(event, span, depth + 1)?));
        }
        Ok(entries)
    }
}

impl Node {
    fn of(data: Data) -> Self {
        let (size, depth) = match &data {
            Data::Value(_) | Data::Wrong(_) => (0, 0),
            Data::List(items) => measure(items.iter().map(|(_, node)| node)),
            Data::Map(entries) => measure(entries.iter().map(|(_, node)| node)),
        };
        Self {
            data,
            size: size.saturating_add(1),
            depth: depth + 1,
        }
    }

    fn is_null(&self) -> bool {
        matches!(self.data, Data::Value(Value::Null))
    }
}

/// All nodes of `children`, and the levels of the deepest.
fn measure<'n>(children: impl Iterator<Item = &'n Rc<Node>>) -> (usize, usize) {
    children.fold((0, 0), |(size, depth), child| {
        (size.saturating_add(child.size), depth.max(child.depth))
    })
}

impl Data {
    /// Refuses any tag but the one that says what is seen anyway.
    fn untagged(self, tag: Option<&Tag>, allowed: &str) -> Self {
        match tag {
            Some(tag) if !tag.is_yaml_core_schema_tag(allowed) => Self::Wrong(no_tags(tag)),
            _ => self,
        }
    }
}

fn place(marker: &Marker) -> Place {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place {
        line: number(marker.line()),
        column: number(marker.col().saturating_add(1)),
    }
}

/// Turns a tree into a value and the places of its parts, and reports what is wrong with keys and scalars.
fn located(at: Place, root: &Node) -> Document {
    let mut report = Report::default();
    report.places.insert("", at);
    let value = value(root, "", &mut report);
    Document {
        value: Some(value),
        report,
    }
}

fn value(node: &Node, path: &str, report: &mut Report) -> Value {
    match &node.data {
        Data::Value(value) => value.clone(),
        Data::Wrong(message) => {
            report.replace(path, message);
            Value::Null
        }
        Data::List(items) => {
            let mut list = Vec::with_capacity(items.len());
            for (index, (at, item)) in items.iter().enumerate() {
                let path = path::item(path, index);
                report.places.insert(&path, *at);
                list.push(value(item, &path, report));
            }
            Value::Array(list)
        }
        Data::Map(entries) => Value::Object(object(entries, path, report)),
    }
}

fn object(entries: &[(Key, Rc<Node>)], path: &str, report: &mut Report) -> Map<String, Value> {
    let mut object = Map::new();
    let mut seen: HashSet<String> = HashSet::new();
    for (key, node) in entries.iter().filter(|(key, _)| !key.merges) {
        let name = labels::canonical_key(&key.text).into_owned();
        let path = path::field(path, &name);
        if seen.contains(&name) {
            report.add_at(&path, key.at, duplicate(&key.text, &name));
            continue;
        }
        report.places.insert(&path, key.at);
        object.insert(name.clone(), value(node, &path, report));
        seen.insert(name);
    }
    for (key, node) in entries.iter().filter(|(key, _)| key.merges) {
        merge(&mut object, key, node, path, report);
    }
    object
}

fn duplicate(written: &str, name: &str) -> String {
    if written == name {
        "is given twice; leave one of them out".to_owned()
    } else {
        format!("is given twice ({written} is another spelling of {name}); leave one of them out")
    }
}

/// Adds what `<<` brings: the fields of an object, or of several, that are not there yet.
fn merge(
    into: &mut Map<String, Value>,
    key: &Key,
    node: &Rc<Node>,
    path: &str,
    report: &mut Report,
) {
    let sources: Vec<&Node> = match &node.data {
        Data::List(items) => items.iter().map(|(_, node)| &**node).collect(),
        _ => vec![node],
    };
    for source in sources {
        let Data::Map(entries) = &source.data else {
            let message = "`<<` takes an object, or a list of objects";
            report.add_at(&path::field(path, "<<"), key.at, message);
            continue;
        };
        for (name, value) in object(entries, path, report) {
            into.entry(name).or_insert(value);
        }
    }
}
