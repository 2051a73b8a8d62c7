//! Which documents a proxy should run, which it runs, and which it refused.
//!
//! Feed in what is wanted ([`Tracker::want`]), streams that come and go ([`Tracker::attach`], [`Tracker::detach`]) and
//! the proxy's answers ([`Tracker::ack`], [`Tracker::nack`]); [`Tracker::unsent`] says what to send and takes it as
//! sent. A proxy whose wanted documents do not change is sent nothing, and counts as current all the while.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::{
    discovery::{DocumentNack, DocumentVersion, NackKind},
    document,
    proxy::Document,
};

/// Documents by name.
pub type Documents = BTreeMap<String, Arc<Document>>;

/// The documents of one proxy.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    connected: bool,
    wanted: Documents,
    /// What the proxy has acknowledged, or said it runs when it came.
    running: BTreeMap<String, Running>,
    /// Versions on the way on this stream, or running.
    sent: BTreeMap<String, String>,
    refused: BTreeMap<String, Refusal>,
    /// Versions the proxy has refused on this stream, wanted or not, until it takes another.
    declined: BTreeMap<String, String>,
}

/// A document that a proxy runs.
#[derive(Debug, Clone)]
enum Running {
    /// One that was wanted since it runs it.
    Known(Arc<Document>),
    /// One of which only the version is known: of a time before this process.
    Unknown(String),
}

impl Running {
    fn version(&self) -> &str {
        match self {
            Self::Known(document) => &document.version,
            Self::Unknown(version) => version,
        }
    }
}

/// A document that the proxy did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The version it refused.
    pub version: String,
    /// Why, in its words.
    pub reason: String,
    /// Its host can not do it now; the document may be good.
    pub local: bool,
}

/// How far a proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Currency {
    /// It runs exactly what is wanted.
    Current,
    /// It was sent something and has not answered yet, or is to be sent it.
    Pending,
    /// It has refused something that is wanted.
    Refused,
    /// It is known and not connected.
    Silent,
}

/// What to send.
#[derive(Debug, Default)]
pub struct Unsent {
    /// In the order in which they are to be applied: what others refer to comes first.
    pub put: Vec<Arc<Document>>,
    /// Removals, after all of `put`.
    pub remove: Vec<String>,
}

impl Unsent {
    /// There is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

impl Tracker {
    /// A stream has begun; `running` are the documents the proxy says it runs.
    pub fn attach(&mut self, running: &[DocumentVersion]) {
        self.connected = true;
        self.sent = running
            .iter()
            .map(|d| (d.name.clone(), d.version.clone()))
            .collect();
        self.running.clear();
        for DocumentVersion { name, version } in running {
            self.note_running(name, version);
        }
        self.refused.clear();
        self.declined.clear();
    }

    /// The stream has ended.
    pub fn detach(&mut self) {
        self.connected = false;
    }

    /// Replaces what is wanted.
    pub fn want(&mut self, documents: Documents) {
        self.refused.retain(|name, refusal| {
            documents
                .get(name)
                .is_some_and(|d| d.version == refusal.version)
        });
        self.wanted = documents;
        for (name, running) in &mut self.running {
            if let (Running::Unknown(version), Some(wanted)) = (&*running, self.wanted.get(name))
                && *version == wanted.version
            {
                *running = Running::Known(wanted.clone());
            }
        }
    }

    fn note_running(&mut self, name: &str, version: &str) {
        let wanted = self.wanted.get(name).filter(|d| d.version == version);
        let running = match wanted {
            Some(document) => Running::Known(document.clone()),
            None => Running::Unknown(version.to_owned()),
        };
        self.running.insert(name.to_owned(), running);
    }

    /// What the proxy lacks and was not sent yet. Taken as sent: asking again gives nothing.
    pub fn unsent(&mut self) -> Unsent {
        self.unsent_without(&BTreeSet::new())
    }

    /// The same, and the named documents stay unsent.
    pub fn unsent_without(&mut self, stopped: &BTreeSet<String>) -> Unsent {
        let mut unsent = Unsent::default();
        if !self.connected {
            return unsent;
        }
        for (name, document) in &self.wanted {
            if !stopped.contains(name) && self.sent.get(name) != Some(&document.version) {
                self.sent.insert(name.clone(), document.version.clone());
                unsent.put.push(document.clone());
            }
        }
        unsent.put.sort_by_key(|document| place(&document.name));
        for name in self.sent.keys() {
            if !self.wanted.contains_key(name) {
                unsent.remove.push(name.clone());
            }
        }
        for name in &unsent.remove {
            self.sent.remove(name);
            self.running.remove(name);
            self.declined.remove(name);
        }
        unsent
    }

    /// The proxy runs these now.
    pub fn ack(&mut self, documents: &[DocumentVersion]) {
        for DocumentVersion { name, version } in documents {
            if !self.sent.contains_key(name) {
                continue; // Removed meanwhile.
            }
            if self
                .refused
                .get(name)
                .is_some_and(|r| r.version == *version)
            {
                self.refused.remove(name);
            }
            self.declined.remove(name);
            self.note_running(name, version);
        }
    }

    /// The proxy refuses these and goes on with what it has. Refusals of versions that are no longer wanted are dropped.
    pub fn nack(&mut self, documents: &[DocumentNack]) {
        for nack in documents {
            if self.sent(&nack.name) == Some(&nack.version) {
                self.declined
                    .insert(nack.name.clone(), nack.version.clone());
            }
            if self
                .wanted
                .get(&nack.name)
                .is_some_and(|d| d.version == nack.version)
            {
                let refusal = Refusal {
                    version: nack.version.clone(),
                    reason: nack.reason.clone(),
                    local: nack.kind() == NackKind::Local,
                };
                self.refused.insert(nack.name.clone(), refusal);
            }
        }
    }

    /// How far the proxy is.
    #[must_use]
    pub fn currency(&self) -> Currency {
        if !self.connected {
            Currency::Silent
        } else if !self.refused.is_empty() {
            Currency::Refused
        } else if self
            .wanted
            .iter()
            .all(|(name, d)| self.runs(name, &d.version))
        {
            Currency::Current
        } else {
            Currency::Pending
        }
    }

    /// Whether the proxy has the wanted version of the named document. One that is not wanted counts as had.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.wanted
            .get(name)
            .is_none_or(|document| self.runs(name, &document.version))
    }

    /// Whether there is something to send, beside the named documents.
    #[must_use]
    pub fn lacks_any_without(&self, stopped: &BTreeSet<String>) -> bool {
        let lacks = |name: &String| !stopped.contains(name) && self.lacks(name);
        self.connected
            && (self.wanted.keys().any(lacks)
                || self.sent.keys().any(|name| !self.wanted.contains_key(name)))
    }

    /// Whether the wanted version of the named document has still to be sent.
    #[must_use]
    pub fn lacks(&self, name: &str) -> bool {
        self.wanted
            .get(name)
            .is_some_and(|document| self.sent(name) != Some(&document.version))
    }

    /// The version that was sent of a document, or that the proxy came with.
    #[must_use]
    pub fn sent(&self, name: &str) -> Option<&str> {
        self.sent.get(name).map(String::as_str)
    }

    /// Whether the proxy has acknowledged or refused everything it was sent.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.sent.iter().all(|(name, version)| {
            self.runs(name, version) || self.declined.get(name) == Some(version)
        })
    }

    /// Whether the last answer to any document was a refusal.
    #[must_use]
    pub fn has_declined(&self) -> bool {
        !self.declined.is_empty()
    }

    /// Whether the proxy runs any version of the named document.
    #[must_use]
    pub fn runs_any(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    fn runs(&self, name: &str, version: &str) -> bool {
        self.running
            .get(name)
            .is_some_and(|running| running.version() == version)
    }

    /// What is wanted.
    #[must_use]
    pub fn wanted(&self) -> &Documents {
        &self.wanted
    }

    /// The version the proxy runs of a document.
    #[must_use]
    pub fn running(&self, name: &str) -> Option<&str> {
        self.running.get(name).map(Running::version)
    }

    /// The document of this name that the proxy runs, where its content is known.
    #[must_use]
    pub fn running_document(&self, name: &str) -> Option<&Arc<Document>> {
        match self.running.get(name)? {
            Running::Known(document) => Some(document),
            Running::Unknown(_) => None,
        }
    }

    /// What the proxy has refused of what is wanted, by document.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<String, Refusal> {
        &self.refused
    }
}

/// Trust before services, services before the proxy that refers to them.
fn place(name: &str) -> u8 {
    match name {
        document::TRUST => 0,
        document::PROXY | document::INGRESS => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::proxy::{Service, Trust, document::Body};

    use super::*;

    fn trust() -> Arc<Document> {
        Arc::new(document::seal(
            "trust".into(),
            vec![],
            Body::Trust(Trust::default()),
        ))
    }

    fn service(name: &str, port: u32) -> Arc<Document> {
        let body = Body::Service(Service {
            port,
            ..Service::default()
        });
        Arc::new(document::seal(name.into(), vec![], body))
    }

    fn documents(of: &[Arc<Document>]) -> Documents {
        of.iter().map(|d| (d.name.clone(), d.clone())).collect()
    }

    fn versions(of: &[Arc<Document>]) -> Vec<DocumentVersion> {
        of.iter()
            .map(|d| DocumentVersion {
                name: d.name.clone(),
                version: d.version.clone(),
            })
            .collect()
    }

    #[test]
    fn a_proxy_is_sent_what_it_lacks_once_and_is_current_when_it_acknowledges() {
        let mut tracker = Tracker::default();
        let wanted = [service("service/a:1", 1), trust()];
        tracker.want(documents(&wanted));
        assert_eq!(tracker.currency(), Currency::Silent);
        assert!(tracker.unsent().is_empty());
        tracker.attach(&[]);
        let sent = tracker.unsent();
        assert_eq!(sent.put, [wanted[1].clone(), wanted[0].clone()]);
        assert!(tracker.unsent().is_empty());
        assert_eq!(tracker.currency(), Currency::Pending);
        tracker.ack(&versions(&wanted));
        assert_eq!(tracker.currency(), Currency::Current);
    }

    #[test]
    fn a_proxy_that_runs_everything_already_is_current_and_sent_nothing() {
        let mut tracker = Tracker::default();
        let wanted = [service("service/a:1", 1), trust()];
        tracker.want(documents(&wanted));
        tracker.attach(&versions(&wanted));
        assert!(tracker.unsent().is_empty());
        assert_eq!(tracker.currency(), Currency::Current);
    }

    #[test]
    fn only_what_changed_is_sent_and_what_is_gone_is_removed_last() {
        let mut tracker = Tracker::default();
        let old = [
            service("service/a:1", 1),
            service("service/b:1", 1),
            trust(),
        ];
        tracker.want(documents(&old));
        tracker.attach(&versions(&old));
        let changed = service("service/b:1", 2);
        tracker.want(documents(&[changed.clone(), trust()]));
        let sent = tracker.unsent();
        assert_eq!(sent.put, std::slice::from_ref(&changed));
        assert_eq!(sent.remove, ["service/a:1"]);
        assert_eq!(tracker.currency(), Currency::Pending);
        // The answer to the old version does not count.
        tracker.ack(&versions(&old));
        assert_eq!(tracker.currency(), Currency::Pending);
        tracker.ack(&versions(&[changed]));
        assert_eq!(tracker.currency(), Currency::Current);
    }

    #[test]
    fn a_refusal_is_shown_until_something_else_is_wanted() {
        let mut tracker = Tracker::default();
        let bad = service("service/a:1", 1);
        tracker.want(documents(std::slice::from_ref(&bad)));
        tracker.attach(&[]);
        tracker.unsent();
        tracker.nack(&[DocumentNack {
            name: bad.name.clone(),
            version: bad.version.clone(),
            reason: "unknown feature".into(),
            kind: NackKind::Content.into(),
        }]);
        assert_eq!(tracker.currency(), Currency::Refused);
        assert_eq!(tracker.refused()["service/a:1"].reason, "unknown feature");
        let good = service("service/a:1", 2);
        tracker.want(documents(std::slice::from_ref(&good)));
        assert!(tracker.has_answered() && tracker.has_declined());
        let stopped = BTreeSet::from([good.name.clone()]);
        assert!(tracker.lacks(&good.name) && !tracker.lacks_any_without(&stopped));
        assert!(tracker.unsent_without(&stopped).is_empty());
        assert_eq!(tracker.unsent().put, std::slice::from_ref(&good));
        assert!(!tracker.has_answered());
        assert_eq!(tracker.currency(), Currency::Pending);
        tracker.ack(&versions(&[good]));
        assert!(tracker.has_answered() && !tracker.has_declined());
        assert_eq!(tracker.currency(), Currency::Current);
    }

    #[test]
    fn what_a_proxy_runs_is_known_until_it_acknowledges_something_else() {
        let mut tracker = Tracker::default();
        let (old, new) = (service("service/a:1", 1), service("service/a:1", 2));
        // It comes with something of a time before this process.
        tracker.attach(&versions(std::slice::from_ref(&old)));
        assert_eq!(tracker.running_document("service/a:1"), None);
        tracker.want(documents(std::slice::from_ref(&old)));
        assert_eq!(tracker.running_document("service/a:1"), Some(&old));
        tracker.want(documents(std::slice::from_ref(&new)));
        tracker.unsent();
        assert_eq!(tracker.running_document("service/a:1"), Some(&old));
        tracker.ack(&versions(std::slice::from_ref(&new)));
        assert_eq!(tracker.running_document("service/a:1"), Some(&new));
    }

    #[test]
    fn after_a_reconnect_only_the_difference_is_sent() {
        let mut tracker = Tracker::default();
        let wanted = [service("service/a:1", 1), trust()];
        tracker.want(documents(&wanted));
        tracker.attach(&versions(&wanted));
        tracker.detach();
        assert_eq!(tracker.currency(), Currency::Silent);
        let old = service("service/old:1", 9);
        tracker.attach(&versions(&[trust(), old]));
        let sent = tracker.unsent();
        assert_eq!(sent.put, [wanted[0].clone()]);
        assert_eq!(sent.remove, ["service/old:1"]);
    }
}
