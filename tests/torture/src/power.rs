//! The files as they may be after the power was gone.
//!
//! What a sync covered is there. Of everything else, any part may be: a disk and a file system write when they like, in
//! blocks, in any order. A block holds one of the contents that it had since the last sync. Names are kept by
//! directories, and are there for sure only when the directory was synced.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    random::Random,
    trace::{Event, What},
};

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it is there.
    Lost,
    /// All of it is there, as after `kill -9`.
    Kept,
    /// The oldest of it is there, the next change is torn, the rest is lost.
    Torn,
    /// Each change and each block on its own.
    Mixed,
    /// The newest of it is there, and something older is not.
    Reordered,
}

/// All of them.
pub const FATES: [Fate; 5] = [
    Fate::Lost,
    Fate::Kept,
    Fate::Torn,
    Fate::Mixed,
    Fate::Reordered,
];

/// A change of one file's content.
#[derive(Debug)]
enum Change<'a> {
    Write(u64, &'a [u8]),
    Resize(u64),
}

#[derive(Debug)]
struct Made<'a> {
    ended: usize,
    change: Change<'a>,
}

/// A change of the names.
#[derive(Debug, Clone)]
enum Naming {
    Create(PathBuf, usize),
    MakeDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Naming {
    /// The directories that hold the names.
    fn directories(&self) -> Vec<PathBuf> {
        let of = |path: &Path| path.parent().unwrap_or(Path::new("")).to_owned();
        match self {
            Self::Create(path, _) | Self::MakeDir(path) | Self::Remove(path) => vec![of(path)],
            Self::Rename(from, to) => vec![of(from), of(to)],
        }
    }
}

/// A recorded run up to some moment.
#[derive(Debug, Default)]
pub struct Recording<'a> {
    // By number of the file, as it was created.
    files: Vec<Vec<Made<'a>>>,
    syncs: Vec<Vec<(usize, usize)>>,
    namings: Vec<(usize, Naming)>,
    directory_syncs: HashMap<PathBuf, Vec<(usize, usize)>>,
}

impl<'a> Recording<'a> {
    /// Sorts the events of a run by file and directory.
    ///
    /// # Errors
    /// Where they name a file that never was.
    pub fn of(events: &'a [Event]) -> anyhow::Result<Self> {
        let mut recording = Self::default();
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        let mut directories = std::collections::BTreeSet::from([PathBuf::new()]);
        for event in events {
            let missing = || format!("{:?}", event.what);
            let mut made = |path: &PathBuf, change| -> anyhow::Result<()> {
                // Removed while it was open: it is nobody's any more.
                if let Some(file) = names.get(path) {
                    recording.files[*file].push(Made {
                        ended: event.ended,
                        change,
                    });
                }
                Ok(())
            };
            match &event.what {
                What::Write(path, at, bytes) => made(path, Change::Write(*at, bytes))?,
                What::Resize(path, length) => made(path, Change::Resize(*length))?,
                What::Empty(path) => made(path, Change::Resize(0))?,
                What::Create(path) => {
                    if !names.contains_key(path) {
                        let file = recording.files.len();
                        recording.files.push(Vec::new());
                        recording.syncs.push(Vec::new());
                        names.insert(path.clone(), file);
                        let naming = Naming::Create(path.clone(), file);
                        recording.namings.push((event.ended, naming));
                    }
                }
                What::MakeDir(path) => {
                    directories.insert(path.clone());
                    let naming = Naming::MakeDir(path.clone());
                    recording.namings.push((event.ended, naming));
                }
                What::Rename(from, to) => {
                    let file = names.remove(from).with_context(missing)?;
                    names.insert(to.clone(), file);
                    let naming = Naming::Rename(from.clone(), to.clone());
                    recording.namings.push((event.ended, naming));
                }
                What::Remove(path) => {
                    names.remove(path);
                    let naming = Naming::Remove(path.clone());
                    recording.namings.push((event.ended, naming));
                }
                What::Sync(path) => {
                    let span = (event.began, event.ended);
                    if let Some(file) = names.get(path) {
                        recording.syncs[*file].push(span);
                    } else if directories.contains(path) {
                        let syncs = recording.directory_syncs.entry(path.clone());
                        syncs.or_default().push(span);
                    }
                }
                What::Say(_) | What::Log(_) => {}
            }
        }
        Ok(recording)
    }

    /// Writes the files below `target` as they may be when the power goes after the trace's line `moment`.
    ///
    /// # Errors
    /// Where they can not be written.
    pub fn rebuild(
        &self,
        moment: usize,
        fate: Fate,
        random: &mut Random,
        target: &Path,
    ) -> anyhow::Result<()> {
        fs::create_dir_all(target)?;
        for (path, named) in self.names(moment, fate, random) {
            let path = target.join(path);
            match named {
                None => fs::create_dir_all(&path)?,
                Some(file) => {
                    // Its directory's name may be lost.
                    if path.parent().is_some_and(Path::is_dir) {
                        fs::write(&path, self.content(file, moment, fate, random))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The names that are there: a directory (`None`), or a file's number.
    fn names(
        &self,
        moment: usize,
        fate: Fate,
        random: &mut Random,
    ) -> BTreeMap<PathBuf, Option<usize>> {
        let synced = |directory: &PathBuf| {
            let syncs = self.directory_syncs.get(directory);
            last_sync(syncs.map_or(&[], Vec::as_slice), moment)
        };
        let open: Vec<_> = self
            .namings
            .iter()
            .enumerate()
            .filter(|(_, (ended, naming))| {
                let sure = naming.directories().iter().all(|d| synced(d) > *ended);
                *ended <= moment && !sure
            })
            .map(|(at, _)| at)
            .collect();
        let kept = Choice::new(fate, open.len(), random);
        let mut names = BTreeMap::new();
        for (at, (ended, naming)) in self.namings.iter().enumerate() {
            if *ended > moment {
                break;
            }
            let there = match open.iter().position(|open| *open == at) {
                None => true,
                Some(number) => kept.keeps_whole(number, random),
            };
            if there {
                carry_out(naming, &mut names);
            }
        }
        names
    }

    fn content(&self, file: usize, moment: usize, fate: Fate, random: &mut Random) -> Vec<u8> {
        let synced = last_sync(&self.syncs[file], moment);
        let changes = &self.files[file];
        let until = changes.partition_point(|made| made.ended <= moment);
        // What had ended before the sync began is there; the order of ends is the order of the list.
        let sure = changes
            .partition_point(|made| made.ended < synced)
            .min(until);
        let mut now = Vec::new();
        for made in &changes[..sure] {
            made.change.carry_out(&mut now);
        }
        let mut disk = now.clone();
        let open = &changes[sure..until];
        let choice = Choice::new(fate, open.len(), random);
        for (number, made) in open.iter().enumerate() {
            made.change.carry_out(&mut now);
            choice.apply(number, &made.change, &now, &mut disk, random);
        }
        disk
    }
}

/// Beginning of the last sync that had ended by `moment`; 0 where there was none.
fn last_sync(syncs: &[(usize, usize)], moment: usize) -> usize {
    let ended = syncs.iter().filter(|(_, ended)| *ended <= moment);
    ended.map(|(began, _)| *began).max().unwrap_or_default()
}

fn carry_out(naming: &Naming, names: &mut BTreeMap<PathBuf, Option<usize>>) {
    match naming {
        Naming::Create(path, file) => {
            names.insert(path.clone(), Some(*file));
        }
        Naming::MakeDir(path) => {
            names.insert(path.clone(), None);
        }
        Naming::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Naming::Remove(path) => {
            names.remove(path);
        }
    }
}

impl Change<'_> {
    fn carry_out(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap_or(usize::MAX);
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[at..end].copy_from_slice(bytes);
            }
            Self::Resize(length) => content.resize(usize::try_from(*length).unwrap_or(0), 0),
        }
    }
}

/// Which of a file's, or of the names', open changes reach the disk.
struct Choice {
    fate: Fate,
    // The one that is torn, or that is lost although newer ones are there.
    special: usize,
    block: usize,
}

impl Choice {
    fn new(fate: Fate, open: usize, random: &mut Random) -> Self {
        Self {
            fate,
            special: usize::try_from(random.below(open.max(1) as u64)).unwrap_or_default(),
            block: if random.once_in(2) { 512 } else { 4096 },
        }
    }

    fn keeps_whole(&self, number: usize, random: &mut Random) -> bool {
        match self.fate {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::Torn => number < self.special,
            Fate::Mixed => random.once_in(2),
            Fate::Reordered => number != self.special,
        }
    }

    fn apply(
        &self,
        number: usize,
        change: &Change<'_>,
        now: &[u8],
        disk: &mut Vec<u8>,
        random: &mut Random,
    ) {
        let torn = match self.fate {
            Fate::Torn => number == self.special,
            Fate::Mixed => random.once_in(2),
            _ => false,
        };
        if !torn && !self.keeps_whole(number, random) {
            return;
        }
        match change {
            Change::Resize(_) => change.carry_out(disk),
            Change::Write(at, bytes) => {
                let at = usize::try_from(*at).unwrap_or(usize::MAX);
                let end = at + bytes.len();
                let mut start = at / self.block * self.block;
                while start < end {
                    let stop = (start + self.block).min(now.len());
                    if !torn || random.once_in(2) {
                        if disk.len() < stop {
                            disk.resize(stop, 0);
                        }
                        disk[start..stop].copy_from_slice(&now[start..stop]);
                    }
                    start += self.block;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let whats = [
            What::Create("f".into()),
            What::Write("f".into(), 0, vec![1; 8192]),
            What::Sync("f".into()),
            What::Sync("".into()),
            What::Write("f".into(), 4096, vec![2; 8192]),
            What::Create("g".into()),
            What::Rename("g".into(), "h".into()),
        ];
        whats
            .into_iter()
            .enumerate()
            .map(|(at, what)| Event {
                began: at,
                ended: at,
                what,
            })
            .collect()
    }

    fn after(moment: usize, fate: Fate) -> BTreeMap<String, Vec<u8>> {
        let events = events();
        let recording = Recording::of(&events).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(7);
        recording
            .rebuild(moment, fate, &mut random, dir.path())
            .unwrap();
        fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| {
                let name = file.file_name().to_string_lossy().into_owned();
                (name, fs::read(file.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_was_synced_is_there_whatever_becomes_of_the_rest() {
        for fate in FATES {
            let files = after(6, fate);
            assert_eq!(files["f"][..4096], [1; 4096], "{fate:?}");
        }
        assert_eq!(after(6, Fate::Lost)["f"], [1; 8192]);
        assert_eq!(after(6, Fate::Lost).len(), 1);
        let kept = after(6, Fate::Kept);
        assert_eq!(kept["f"].len(), 12288);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["f", "h"]);
    }

    #[test]
    fn before_a_sync_all_may_be_lost() {
        assert!(after(2, Fate::Lost).is_empty());
        assert_eq!(after(2, Fate::Kept)["f"], [1; 8192]);
    }
}
