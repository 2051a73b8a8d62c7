//! How far this node has ever acknowledged, kept in a small file outside the database.
//!
//! A database that loses its newest entries, because a file was damaged, deleted or put back from an older copy, opens
//! without complaint; the node would then help to elect a leader that lacks what it once vouched for. So the newest
//! entry and vote are noted here *after* they are on disk, and compared at start.
//!
//! The notes are not synced one by one: after a loss of power the mark may lag, which only makes the check weaker, never
//! wrong. Only when the log legitimately gets shorter (another leader's entries replace ours) is the mark lowered first
//! and synced. Two slots are written in turn, so that a torn write leaves the other.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use aws_lc_rs::digest;

use super::types::{LogId, Vote};

const SLOT: usize = 128;
const MAGIC: &[u8; 8] = b"isthmusw";
const BODY: usize = 8 + 7 * 8;

/// What was acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The newest log entry.
    pub last: Option<LogId>,
    /// The newest vote.
    pub vote: Option<Vote>,
}

/// The file.
#[derive(Debug)]
pub struct Watermark {
    file: File,
    generation: u64,
    mark: Mark,
}

/// Whether the file says that something was acknowledged. One that can not be read may have said so.
#[must_use]
pub fn is_used(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => {
            !read_newest(&file).is_ok_and(|(_, mark)| mark.last.is_none() && mark.vote.is_none())
        }
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// What the file at `path` says.
///
/// # Errors
/// Where it is missing or neither slot is whole.
pub fn read(path: &Path) -> io::Result<Mark> {
    read_newest(&File::open(path)?).map(|(_, mark)| mark)
}

/// Makes the file, with `mark` in it, whole or not at all.
///
/// # Errors
/// Where the system refuses.
pub fn make(path: &Path, mark: Mark) -> io::Result<()> {
    let slot = encode(1, &mark);
    mesh_runtime::files::write_atomic(path, &[slot, slot].concat(), 0o600)
}

impl Watermark {
    /// Opens the file, or makes it where `create` is set.
    ///
    /// # Errors
    /// Where it is missing or neither slot is whole.
    pub fn open(path: &Path, create: bool) -> io::Result<Self> {
        if create && !path.exists() {
            make(path, Mark::default())?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let (generation, mark) = read_newest(&file)?;
        Ok(Self {
            file,
            generation,
            mark,
        })
    }

    /// What was acknowledged.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Notes what is on disk now.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn set(&mut self, mark: Mark) -> io::Result<()> {
        self.generation += 1;
        self.mark = mark;
        let offset = if self.generation.is_multiple_of(2) {
            0
        } else {
            SLOT as u64
        };
        self.file
            .write_all_at(&encode(self.generation, &mark), offset)
    }

    /// Like [`Self::set`], and returns when the note is on disk.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn set_and_sync(&mut self, mark: Mark) -> io::Result<()> {
        self.set(mark)?;
        // Both slots, so that the older one does not say more than is true should this one be torn later.
        self.set(mark)?;
        rustix::fs::fdatasync(&self.file)?;
        Ok(())
    }
}

fn read_newest(file: &File) -> io::Result<(u64, Mark)> {
    let mut slots = [0; 2 * SLOT];
    let mut length = 0;
    while length < slots.len() {
        match file.read_at(&mut slots[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    slots
        .chunks(SLOT)
        .filter_map(decode)
        .max_by_key(|(generation, _)| *generation)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is damaged: neither of its two notes matches its checksum",
            )
        })
}

fn encode(generation: u64, mark: &Mark) -> [u8; SLOT] {
    let vote = mark.vote.unwrap_or_default();
    // An index is stored plus one, so that 0 says: none.
    let (next, term, leader) = mark.last.map_or((0, 0, 0), |last| {
        (last.index + 1, last.leader_id.term, last.leader_id.node_id)
    });
    let flags = u64::from(mark.vote.is_some()) | (u64::from(vote.committed) << 1);
    let fields = [
        generation,
        next,
        term,
        leader,
        vote.leader_id.term,
        vote.leader_id.node_id,
        flags,
    ];
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(MAGIC);
    for (field, place) in fields.iter().zip(slot[8..BODY].chunks_mut(8)) {
        place.copy_from_slice(&field.to_be_bytes());
    }
    let sum = digest::digest(&digest::SHA256, &slot[..BODY]);
    slot[BODY..BODY + 32].copy_from_slice(sum.as_ref());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Mark)> {
    let (body, sum) = (slot.get(..BODY)?, slot.get(BODY..BODY + 32)?);
    if &body[..8] != MAGIC || digest::digest(&digest::SHA256, body).as_ref() != sum {
        return None;
    }
    let mut fields = body[8..]
        .chunks(8)
        .filter_map(|field| Some(u64::from_be_bytes(field.try_into().ok()?)));
    let mut field = || fields.next();
    let (generation, next, term, leader) = (field()?, field()?, field()?, field()?);
    let (vote_term, vote_node, flags) = (field()?, field()?, field()?);
    let last = next
        .checked_sub(1)
        .map(|index| LogId::new(openraft::CommittedLeaderId::new(term, leader), index));
    let vote = (flags & 1 != 0).then(|| Vote {
        leader_id: openraft::LeaderId::new(vote_term, vote_node),
        committed: flags & 2 != 0,
    });
    Some((generation, Mark { last, vote }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(index: u64) -> Mark {
        Mark {
            last: Some(LogId::new(openraft::CommittedLeaderId::new(3, 2), index)),
            vote: Some(Vote::new_committed(4, 1)),
        }
    }

    #[test]
    fn a_mark_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acknowledged");
        assert!(Watermark::open(&path, false).is_err());
        let mut file = Watermark::open(&path, true).unwrap();
        assert!(!is_used(&path));
        for index in 0..5 {
            file.set(mark(index)).unwrap();
            assert_eq!(Watermark::open(&path, false).unwrap().mark(), mark(index));
        }
        assert!(is_used(&path));
    }

    #[test]
    fn a_torn_note_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acknowledged");
        let mut file = Watermark::open(&path, true).unwrap();
        file.set(mark(7)).unwrap();
        file.set(mark(8)).unwrap();
        // The newest generation is 3, in the second slot.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[SLOT + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Watermark::open(&path, false).unwrap().mark(), mark(7));
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(Watermark::open(&path, false).is_err());
    }
}
