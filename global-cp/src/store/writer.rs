//! The one thread that writes the log.
//!
//! Jobs that wait while the disk syncs are written together and share the next sync (group commit). A job is answered
//! when it is on disk, never before. After a failed sync nothing is known of what the disk holds, so nothing is written
//! any more; Raft is told, and the node stops.

use std::{io, sync::mpsc, thread};

use super::{
    database::{Batch, Database},
    watermark::{Mark, Watermark},
};

/// Jobs written with one sync, at most.
const JOBS_AT_ONCE: usize = 256;
/// Jobs that wait, at most; who brings one more waits for a place. openraft brings one at a time.
const QUEUE: usize = 1024;

/// One change of the log.
pub struct Job {
    /// What to write.
    pub batch: Batch,
    /// What may be acknowledged once this is on disk.
    pub mark: Mark,
    /// How it must be written.
    pub kind: Kind,
    /// Told when it is on disk, or why not.
    pub done: Box<dyn FnOnce(io::Result<()>) + Send>,
}

/// How a job must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Synced before it is answered.
    Durable,
    /// Synced before it is answered; what was acknowledged before is acknowledged no longer.
    Lowering,
    /// Not worth a sync.
    Hint,
}

/// The running thread. Dropping it waits until all jobs are done, and releases the database.
pub struct Handle {
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Handle {
    /// Queues a job; waits where the queue is full.
    ///
    /// # Errors
    /// Where the thread has ended, which it does only by a defect.
    pub fn send(&self, job: Job) -> io::Result<()> {
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(|| io::Error::other("the thread that writes the Raft log has ended"))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Starts the thread.
///
/// # Errors
/// Where the system refuses one.
pub fn start(database: Database, watermark: Watermark) -> io::Result<Handle> {
    let (sender, jobs) = mpsc::sync_channel(QUEUE);
    let thread = thread::Builder::new()
        .name("raft-log".to_owned())
        .spawn(move || {
            Writer {
                database,
                watermark,
                failed: None,
            }
            .run(&jobs);
        })?;
    Ok(Handle {
        jobs: Some(sender),
        thread: Some(thread),
    })
}

struct Writer {
    database: Database,
    watermark: Watermark,
    failed: Option<String>,
}

impl Writer {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            group.extend(jobs.try_iter().take(JOBS_AT_ONCE - 1));
            self.write_group(group);
        }
    }

    fn write_group(&mut self, group: Vec<Job>) {
        let mut answers = Vec::with_capacity(group.len());
        let mut result = match &self.failed {
            Some(reason) => Err(io::Error::other(reason.clone())),
            None => Ok(()),
        };
        let mut together = Together::default();
        for job in group {
            if job.kind == Kind::Lowering && result.is_ok() {
                // What was there before counts in full before it counts for less.
                result = self.write(&mut together);
                if result.is_ok() {
                    result = self.watermark.set_and_sync(job.mark);
                }
            }
            together.batches.push(job.batch);
            together.durable |= job.kind != Kind::Hint;
            together.mark = Some(job.mark);
            answers.push(job.done);
        }
        if result.is_ok() {
            result = self.write(&mut together);
        }
        if let Err(error) = &result
            && self.failed.is_none()
        {
            tracing::error!(%error, store = %self.database.path().display(), "the Raft log can not be written");
            self.failed = Some(format!(
                "the Raft log in {} could not be written: {error}",
                self.database.path().display()
            ));
        }
        for answer in answers {
            answer(match &self.failed {
                None => Ok(()),
                Some(reason) => Err(io::Error::other(reason.clone())),
            });
        }
    }

    fn write(&mut self, together: &mut Together) -> io::Result<()> {
        let Together {
            batches,
            durable,
            mark,
        } = std::mem::take(together);
        if batches.is_empty() {
            return Ok(());
        }
        self.database.write(&batches, durable)?;
        match mark {
            Some(mark) if durable => self.watermark.set(mark),
            _ => Ok(()),
        }
    }
}

/// What is written with one sync.
#[derive(Default)]
struct Together {
    batches: Vec<Batch>,
    durable: bool,
    mark: Option<Mark>,
}
