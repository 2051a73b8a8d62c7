//! What must be there.
//!
//! Orders to the log are carried out one after the other, so after a crash the log must be as after *some* number of
//! them: all that were acknowledged, and none, some or all of the others, in order. The state machine may lag behind
//! (what is missing is applied again from the log), but never behind what was purged or installed, and it must be
//! exactly what the entries up to there make of it.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context as _, bail, ensure};

/// A log entry's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The leader's term.
    pub term: u64,
    /// The place in the log.
    pub index: u64,
}

/// What an entry puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: Id,
    /// The resource.
    pub key: u64,
    /// The resource's size.
    pub size: usize,
}

/// A vote.
pub type Vote = (u64, u64, bool);

/// An order to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Save a vote.
    Vote(Vote),
    /// Append entries.
    Append(Vec<Entry>),
    /// Remove the log from an index on.
    Truncate(Id),
    /// Remove the log up to an index.
    Purge(Id),
}

/// The log at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// The newest vote.
    pub vote: Option<Vote>,
    /// The newest entry that was purged.
    pub purged: Option<Id>,
    /// The entries that are left.
    pub entries: BTreeMap<u64, Entry>,
}

impl Log {
    /// The newest entry.
    #[must_use]
    pub fn last(&self) -> Option<Id> {
        let newest = self.entries.last_key_value().map(|(_, entry)| entry.id);
        newest.or(self.purged)
    }

    fn carry_out(&mut self, order: &Order) {
        match order {
            Order::Vote(vote) => self.vote = Some(*vote),
            Order::Append(entries) => {
                self.entries
                    .extend(entries.iter().map(|entry| (entry.id.index, *entry)));
            }
            Order::Truncate(id) => {
                self.entries.split_off(&id.index);
            }
            Order::Purge(id) => {
                self.entries = self.entries.split_off(&(id.index + 1));
                self.purged = Some(*id);
            }
        }
    }
}

/// What a store tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its log.
    pub log: Log,
    /// The last entry it names.
    pub last: Option<Id>,
    /// The last applied entry.
    pub applied: Option<Id>,
    /// How many changes the state machine counts.
    pub revision: u64,
    /// Each resource: the revision that last changed it, the entry that did, its size.
    pub resources: BTreeMap<u64, (u64, Id, usize)>,
    /// Each change that is remembered.
    pub changes: BTreeMap<u64, (u64, Id, usize)>,
    /// The newest snapshot.
    pub snapshot: Option<Id>,
}

impl Told {
    /// Reads what the driver's `dump` says.
    ///
    /// # Errors
    /// Where it says something that was never written.
    pub fn parse(lines: &[String]) -> anyhow::Result<Self> {
        let mut told = Self::default();
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            let parsed = match words[0] {
                "vote" => {
                    let vote = (words[1].parse()?, words[2].parse()?, words[3] == "1");
                    told.log.vote = Some(vote);
                    Ok(())
                }
                "purged" => id(&words[1..]).map(|id| told.log.purged = id),
                "last" => id(&words[1..]).map(|id| told.last = id),
                "applied" => id(&words[1..]).map(|id| told.applied = id),
                "snapshot" => id(&words[1..]).map(|id| told.snapshot = id),
                "revision" => {
                    told.revision = words[1].parse()?;
                    Ok(())
                }
                "entry" => content(&words[3..]).and_then(|(key, tag, size)| {
                    let id = id(&words[1..3])?.context("an entry without an id")?;
                    ensure!(tag == id, "entry {id:?} holds {tag:?}");
                    let twice = told.log.entries.insert(id.index, Entry { id, key, size });
                    ensure!(twice.is_none(), "entry {id:?} is there twice");
                    Ok(())
                }),
                "resource" => {
                    content(&[words[1], words[3], words[4]]).and_then(|(key, tag, size)| {
                        told.resources.insert(key, (words[2].parse()?, tag, size));
                        Ok(())
                    })
                }
                "change" => content(&words[2..]).and_then(|(key, tag, size)| {
                    told.changes.insert(words[1].parse()?, (key, tag, size));
                    Ok(())
                }),
                "committed" => Ok(()),
                other => bail!("what is {other}?"),
            };
            parsed.with_context(|| line.clone())?;
        }
        Ok(told)
    }
}

fn id(words: &[&str]) -> anyhow::Result<Option<Id>> {
    Ok(match words {
        ["none"] => None,
        [term, index] => Some(Id {
            term: term.parse()?,
            index: index.parse()?,
        }),
        _ => bail!("no id"),
    })
}

/// `mesh-KEY TERM.INDEX SIZE`
fn content(words: &[&str]) -> anyhow::Result<(u64, Id, usize)> {
    let [name, tag, size] = words else {
        bail!("no content")
    };
    let (term, index) = tag
        .split_once('.')
        .context("the content is not what was written")?;
    let id = Id {
        term: term.parse()?,
        index: index.parse()?,
    };
    let key = name.strip_prefix("mesh-").context("another name")?;
    Ok((key.parse()?, id, size.parse()?))
}

/// What was ordered, and what of it was acknowledged.
#[derive(Debug, Clone, Default)]
pub struct Model {
    // After everything that was acknowledged.
    log: Log,
    // Ordered and not acknowledged, oldest first.
    open: VecDeque<Order>,
    /// Every entry that was given to the state machine, by index: none of them is ever truncated.
    committed: BTreeMap<u64, Entry>,
    /// The state machine never lags behind this.
    applied_least: Option<Id>,
    /// Entries given to the state machine since it was last opened.
    applied: Option<Id>,
    // Installed as a whole: nothing between the two is ever seen.
    gaps: Vec<(Option<Id>, Id)>,
    /// A snapshot at least as new was acknowledged.
    snapshot_least: Option<Id>,
}

impl Model {
    /// An order to the log is given.
    pub fn order(&mut self, order: Order) {
        self.open.push_back(order);
    }

    /// The oldest open order is acknowledged.
    pub fn acknowledge(&mut self) {
        if let Some(order) = self.open.pop_front() {
            if let Order::Purge(id) = &order {
                self.applied_least = self.applied_least.max(Some(*id));
            }
            self.log.carry_out(&order);
        }
    }

    /// Entries are given to the state machine.
    pub fn give(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.committed.insert(entry.id.index, *entry);
            self.applied = self.applied.max(Some(entry.id));
        }
    }

    /// A snapshot is given, which holds `entries` more than the state machine. Nothing else is under way.
    pub fn install(&mut self, entries: &[Entry]) {
        if let Some(last) = entries.last() {
            self.gaps.push((self.applied, last.id));
        }
        self.give(entries);
    }

    /// A snapshot was acknowledged as installed.
    pub fn installed(&mut self, id: Id) {
        self.applied_least = self.applied_least.max(Some(id));
        self.snapshot_least = self.snapshot_least.max(Some(id));
    }

    /// A snapshot was acknowledged as built.
    pub fn built(&mut self, id: Option<Id>) {
        self.snapshot_least = self.snapshot_least.max(id);
    }

    /// The log after everything that was ordered.
    #[must_use]
    pub fn expected(&self) -> Log {
        let mut log = self.log.clone();
        self.open.iter().for_each(|order| log.carry_out(order));
        log
    }

    /// The log after everything that was acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> &Log {
        &self.log
    }

    /// The newest entry that the state machine was given since it was last opened.
    #[must_use]
    pub fn applied(&self) -> Option<Id> {
        self.applied
    }

    /// The newest entry that it was ever given, up to where the log is never truncated.
    #[must_use]
    pub fn committed(&self) -> Option<Id> {
        self.committed.last_key_value().map(|(_, entry)| entry.id)
    }

    /// Compares what a store tells after a crash with what must be there.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, told: &Told) -> anyhow::Result<()> {
        self.check_log(told)?;
        self.check_state(told)?;
        ensure!(
            told.snapshot >= self.snapshot_least,
            "snapshot {:?} was acknowledged, {:?} is the newest",
            self.snapshot_least,
            told.snapshot
        );
        Ok(())
    }

    /// Like [`Self::check`] for a store of which a file was damaged: snapshots may be gone, since the rest is whole without
    /// them.
    ///
    /// # Errors
    /// What differs.
    pub fn check_damaged(&self, told: &Told) -> anyhow::Result<()> {
        self.check_log(told)?;
        self.check_state(told)
    }

    fn check_log(&self, told: &Told) -> anyhow::Result<()> {
        ensure!(
            told.last == told.log.last(),
            "the log says it ends at {:?}, its last entry is {:?}",
            told.last,
            told.log.last()
        );
        let mut log = self.log.clone();
        if log == told.log {
            return Ok(());
        }
        for order in &self.open {
            log.carry_out(order);
            if log == told.log {
                return Ok(());
            }
        }
        bail!(
            "the log is like after none of the orders\n  acknowledged: {}\n  open: {:?}\n  found: {}",
            short(&self.log),
            self.open,
            short(&told.log)
        )
    }

    fn check_state(&self, told: &Told) -> anyhow::Result<()> {
        ensure!(
            told.applied >= self.applied_least && told.applied <= self.committed(),
            "applied is {:?}, must be from {:?} to {:?}",
            told.applied,
            self.applied_least,
            self.committed()
        );
        for (before, after) in &self.gaps {
            ensure!(
                told.applied <= *before || told.applied >= Some(*after),
                "half of a snapshot is there: {:?} between {before:?} and {after:?}",
                told.applied
            );
        }
        let (mut resources, mut changes, mut revision) = (BTreeMap::new(), BTreeMap::new(), 0);
        for entry in self.committed.values() {
            if Some(entry.id) > told.applied {
                break;
            }
            revision += 1;
            resources.insert(entry.key, (revision, entry.id, entry.size));
            changes.insert(revision, (entry.key, entry.id, entry.size));
        }
        ensure!(
            told.revision == revision,
            "applied up to {:?} is revision {revision}, not {}",
            told.applied,
            told.revision
        );
        ensure!(
            told.resources == resources,
            "resources differ:\n  found {:?}\n  expected {resources:?}",
            told.resources
        );
        ensure!(
            told.changes == changes,
            "the history differs: {} changes, expected {}",
            told.changes.len(),
            changes.len()
        );
        Ok(())
    }

    /// Goes on from what the store told, which was checked.
    pub fn go_on(&mut self, told: &Told) {
        self.log = told.log.clone();
        self.open.clear();
        // What was under way as a whole has happened or has not.
        self.gaps.retain(|(_, after)| told.applied >= Some(*after));
        self.committed.retain(|index, entry| {
            Some(entry.id) <= told.applied || told.log.entries.get(index) == Some(entry)
        });
        self.applied = told.applied;
        self.applied_least = self.applied_least.max(told.log.purged);
    }
}

fn short(log: &Log) -> String {
    let ids: Vec<_> = log.entries.values().map(|entry| entry.id).collect();
    let ends = ids.first().zip(ids.last());
    format!(
        "vote {:?}, purged {:?}, {} entries {ends:?}",
        log.vote,
        log.purged,
        ids.len()
    )
}
