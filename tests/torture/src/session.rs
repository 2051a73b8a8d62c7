//! Random orders to a driver, as Raft could give them, several under way at a time.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, bail};

use crate::{
    driver::Driver,
    model::{Entry, Id, Model, Order, Told},
    random::Random,
};

/// Orders under way, at most.
const WINDOW: usize = 6;
/// Resources that are put again and again.
const KEYS: u64 = 40;

/// One run of a driver.
#[derive(Debug)]
pub struct Session {
    /// The process.
    pub driver: Driver,
    /// What must be there.
    pub model: Model,
    random: Random,
    next_number: u64,
    open: BTreeMap<u64, Sent>,
    /// Every order as it was sent, by number, for whoever reads the trace.
    pub sent: Vec<Sent>,
    term: u64,
    // Applied in this run, acknowledged.
    applied_here: Option<Id>,
    snapshot: Option<Id>,
    /// How many orders were acknowledged.
    pub acknowledged: u64,
}

/// What an order means to the model.
#[derive(Debug, Clone)]
pub enum Sent {
    /// To the log.
    Log(Order),
    /// A hint.
    Committed,
    /// Entries given to the state machine.
    Apply(Vec<Entry>),
    /// A snapshot is built of this state.
    Snapshot(Option<Id>),
    /// A snapshot is installed.
    Install(Vec<Entry>),
}

/// Gives an order to a model.
pub fn order(model: &mut Model, sent: &Sent) {
    match sent {
        Sent::Log(order) => model.order(order.clone()),
        Sent::Apply(entries) => model.give(entries),
        Sent::Install(entries) => model.install(entries),
        Sent::Committed | Sent::Snapshot(_) => {}
    }
}

/// Tells a model that an order was acknowledged.
pub fn acknowledge(model: &mut Model, sent: &Sent) {
    match sent {
        Sent::Log(_) => model.acknowledge(),
        Sent::Install(entries) => {
            if let Some(last) = entries.last() {
                model.installed(last.id);
            }
        }
        Sent::Snapshot(id) => model.built(*id),
        Sent::Apply(_) | Sent::Committed => {}
    }
}

impl Session {
    /// Goes on with a driver whose store holds what `told` says.
    #[must_use]
    pub fn new(driver: Driver, model: Model, told: &Told, random: Random) -> Self {
        Self {
            driver,
            random,
            next_number: 1,
            open: BTreeMap::new(),
            sent: Vec::new(),
            term: told
                .log
                .vote
                .map_or(1, |(term, ..)| term)
                .max(told.last.map_or(1, |id| id.term))
                .max(told.applied.map_or(1, |id| id.term)),
            applied_here: told.applied,
            snapshot: told.snapshot,
            model,
            acknowledged: 0,
        }
    }

    /// Gives `count` orders more and takes answers as they come.
    ///
    /// # Errors
    /// Where the driver fails or ends.
    pub fn run(&mut self, count: u64) -> anyhow::Result<()> {
        self.close_hole()?;
        for _ in 0..count {
            while self.open.len() >= WINDOW {
                self.wait()?;
            }
            while let Some(line) = self.driver.answer_now() {
                self.take(&line)?;
            }
            self.give_one()?;
        }
        Ok(())
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// Where the driver fails or ends.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        while !self.open.is_empty() {
            self.wait()?;
        }
        Ok(())
    }

    /// Kills the driver; the model then knows all that was acknowledged.
    ///
    /// # Errors
    /// Where an answer makes no sense.
    pub fn kill(mut self) -> anyhow::Result<Model> {
        let last = self.driver.kill();
        for line in last {
            // The last line may be cut.
            if let Some(number) = line.strip_prefix("ok ").and_then(|n| n.parse().ok())
                && let Some(open) = self.open.remove(&number)
            {
                acknowledge(&mut self.model, &open);
            }
        }
        Ok(self.model)
    }

    /// Lets the driver end in order.
    ///
    /// # Errors
    /// Where it fails.
    pub fn close(mut self) -> anyhow::Result<(Model, Vec<Sent>)> {
        self.settle()?;
        self.driver.close()?;
        Ok((self.model, self.sent))
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let line = self.driver.answer()?.context("the driver has ended")?;
        self.take(&line)
    }

    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let number = line
            .strip_prefix("ok ")
            .and_then(|number| number.parse().ok());
        let Some(open) = number.and_then(|number: u64| self.open.remove(&number)) else {
            bail!("the driver says {line:?}");
        };
        acknowledge(&mut self.model, &open);
        self.acknowledged += 1;
        match open {
            Sent::Apply(entries) | Sent::Install(entries) => {
                self.applied_here = self.applied_here.max(entries.last().map(|entry| entry.id));
            }
            Sent::Snapshot(id) => self.snapshot = self.snapshot.max(id),
            Sent::Log(_) | Sent::Committed => {}
        }
        Ok(())
    }

    fn send(&mut self, words: &str, sent: Sent) -> anyhow::Result<()> {
        let number = self.next_number;
        self.next_number += 1;
        order(&mut self.model, &sent);
        self.sent.push(sent.clone());
        self.open.insert(number, sent);
        self.driver.send(&format!("{number} {words}"))
    }

    /// A crash between installing a snapshot and purging the log leaves a log that ends before the state machine; Raft
    /// purges then, first of all.
    fn close_hole(&mut self) -> anyhow::Result<()> {
        let applied = self.applied_here;
        if let Some(id) = applied
            && self.model.expected().last() < applied
        {
            self.purge(id)?;
        }
        Ok(())
    }

    fn purge(&mut self, id: Id) -> anyhow::Result<()> {
        let words = format!("purge {} {}", id.term, id.index);
        self.send(&words, Sent::Log(Order::Purge(id)))
    }

    fn give_one(&mut self) -> anyhow::Result<()> {
        match self.random.below(100) {
            0..45 => self.append(),
            45..50 => self.vote(),
            50..56 => self.truncate(),
            56..84 => self.apply(),
            84..91 => self.build(),
            91..98 => self.purge_some(),
            _ => self.install(),
        }
    }

    fn new_entries(&mut self, first: u64) -> Vec<Entry> {
        let count = match self.random.below(10) {
            0 => 1 + self.random.below(60),
            1..4 => 1 + self.random.below(8),
            _ => 1,
        };
        (first..first + count)
            .map(|index| {
                let size = match self.random.below(40) {
                    0 => self.random.below(120_000),
                    1..4 => self.random.below(9_000),
                    _ => self.random.below(500),
                };
                Entry {
                    id: Id {
                        term: self.term,
                        index,
                    },
                    key: self.random.below(KEYS),
                    size: usize::try_from(size).unwrap_or_default(),
                }
            })
            .collect()
    }

    fn next_index(&self) -> u64 {
        self.model.expected().last().map_or(0, |id| id.index + 1)
    }

    fn append(&mut self) -> anyhow::Result<()> {
        let entries = self.new_entries(self.next_index());
        let words = with_entries("append", &entries);
        self.send(&words, Sent::Log(Order::Append(entries)))
    }

    fn vote(&mut self) -> anyhow::Result<()> {
        self.term += 1;
        let vote = (self.term, 1 + self.random.below(3), self.random.once_in(2));
        let words = format!("vote {} {} {}", vote.0, vote.1, u8::from(vote.2));
        self.send(&words, Sent::Log(Order::Vote(vote)))
    }

    fn truncate(&mut self) -> anyhow::Result<()> {
        let log = self.model.expected();
        let first = self.model.committed().map_or(0, |id| id.index + 1);
        let open: Vec<_> = log.entries.range(first..).map(|(_, e)| e.id).collect();
        if open.is_empty() {
            return self.append();
        }
        let id = open[usize::try_from(self.random.below(open.len() as u64))?];
        let words = format!("truncate {} {}", id.term, id.index);
        // Another leader's entries follow.
        self.send(&words, Sent::Log(Order::Truncate(id)))?;
        self.vote()
    }

    fn apply(&mut self) -> anyhow::Result<()> {
        let first = self.model.applied().map_or(0, |id| id.index + 1);
        let expected = self.model.expected();
        // On disk, and not about to be truncated.
        let sure: Vec<_> = self
            .model
            .acknowledged()
            .entries
            .range(first..)
            .map(|(_, entry)| *entry)
            .take_while(|entry| expected.entries.get(&entry.id.index) == Some(entry))
            .collect();
        if sure.first().is_none_or(|entry| entry.id.index != first) {
            return self.append();
        }
        let count = usize::try_from(1 + self.random.below(sure.len() as u64))?;
        let entries = sure[..count].to_vec();
        let last = entries[count - 1].id;
        if self.random.once_in(2) {
            let words = format!("committed {} {}", last.term, last.index);
            self.send(&words, Sent::Committed)?;
        }
        let words = format!("apply {first} {}", last.index);
        self.send(&words, Sent::Apply(entries))
    }

    fn build(&mut self) -> anyhow::Result<()> {
        let building = self
            .open
            .values()
            .any(|open| matches!(open, Sent::Snapshot(_)));
        let applied = self.model.applied();
        // After a crash, Raft first applies what it had.
        if building || applied.is_none() || applied < self.model.committed() {
            return self.apply();
        }
        self.send("snapshot", Sent::Snapshot(applied))
    }

    fn purge_some(&mut self) -> anyhow::Result<()> {
        let most = self.snapshot.min(self.applied_here);
        let log = self.model.expected();
        let Some(most) = most.filter(|most| Some(*most) > log.purged) else {
            return self.build();
        };
        let ids: Vec<_> = log
            .entries
            .range(..=most.index)
            .map(|(_, entry)| entry.id)
            .collect();
        if ids.is_empty() {
            return self.append();
        }
        let id = ids[usize::try_from(self.random.below(ids.len() as u64))?];
        self.purge(id)
    }

    fn install(&mut self) -> anyhow::Result<()> {
        self.settle()?;
        let applied = self.model.applied();
        if applied != self.model.expected().last() || self.applied_here < applied {
            return self.apply();
        }
        let entries = self.new_entries(self.next_index());
        let last = entries.last().context("there is one")?.id;
        let words = with_entries("install", &entries);
        self.send(&words, Sent::Install(entries))?;
        self.settle()?;
        self.purge(last)
    }
}

fn with_entries(word: &str, entries: &[Entry]) -> String {
    let first = entries.first().map_or(Id { term: 0, index: 0 }, |e| e.id);
    let mut words = format!("{word} {} {}", first.term, first.index);
    for entry in entries {
        let _ = write!(words, " {}:{}", entry.key, entry.size);
    }
    words
}
