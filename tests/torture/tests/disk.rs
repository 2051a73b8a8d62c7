//! Disk and memory of a store that is overwritten again and again, and what is given back after a burst.

use std::{fs, path::Path};

use anyhow::ensure;
use store_torture::{
    asked,
    driver::{Driver, Files, Open},
};

const KEYS: u64 = 1000;
const SIZE: u64 = 200;
/// Entries in one append.
const BATCH: u64 = 64;
/// A snapshot of what lives is of the same size as what lives, nearly.
const TIMES_LIVE: u64 = 4;

#[test]
fn disk_and_memory_level_off_under_overwrites() {
    let overwrites = asked("ISTHMUS_TEST_OVERWRITES", 20_000);
    let world = tempfile::tempdir().unwrap();
    let directory = world.path().join("data");
    let mut life = Life::begin(&directory).unwrap();
    let step = (overwrites / 10).max(1);
    let mut sizes = Vec::new();
    while life.next < overwrites {
        life.overwrite(step, SIZE).unwrap();
        sizes.push(life.measure().unwrap());
        println!("{} overwrites: {}", life.next, sizes.last().unwrap());
    }
    let last = sizes.last().unwrap();
    let middle = &sizes[sizes.len() / 2];
    // The past is bounded; until it is full, it grows.
    if overwrites >= 1_000_000 {
        assert!(
            last.store <= TIMES_LIVE * last.live,
            "more than {TIMES_LIVE} times what lives: {last}"
        );
        assert!(last.resident <= middle.resident * 3 / 2, "{middle}, {last}");
    }
    life.close().unwrap();
}

#[test]
fn disk_is_given_back_after_a_burst() {
    let burst = asked("ISTHMUS_TEST_BURST_MB", 40);
    let world = tempfile::tempdir().unwrap();
    let directory = world.path().join("data");
    let mut life = Life::begin(&directory).unwrap();
    life.overwrite(6_000, SIZE).unwrap();
    let before = life.measure().unwrap();
    // 100 kB each, none of which is purged before the end.
    life.append_only(burst * 10, 100_000).unwrap();
    let full = life.measure().unwrap();
    life.purge().unwrap();
    life.overwrite(12_000, SIZE).unwrap();
    let after = life.measure().unwrap();
    life.close().unwrap();
    println!("before: {before}\nin the burst: {full}\nafter: {after}");
    assert!(full.log >= burst << 20, "{full}");
    assert!(after.log <= full.log / 4, "{full}, {after}");
    // And after a restart nothing of it is left.
    let life = Life::again(&directory, after.next).unwrap();
    let again = life.measure().unwrap();
    println!("opened again: {again}");
    life.close().unwrap();
}

#[derive(Debug)]
struct Measured {
    next: u64,
    log: u64,
    state: u64,
    snapshots: u64,
    store: u64,
    live: u64,
    resident: u64,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "log {:.1} MiB, state {:.1} MiB, snapshots {:.1} MiB, live {:.1} MiB, memory {:.1} MiB",
            mib(self.log),
            mib(self.state),
            mib(self.snapshots),
            mib(self.live),
            mib(self.resident)
        )
    }
}

struct Life {
    driver: Driver,
    directory: std::path::PathBuf,
    next: u64,
    number: u64,
}

impl Life {
    fn begin(directory: &Path) -> anyhow::Result<Self> {
        Self::open(directory, Open::Create, 0)
    }

    fn again(directory: &Path, next: u64) -> anyhow::Result<Self> {
        Self::open(directory, Open::Again, next)
    }

    fn open(directory: &Path, open: Open, next: u64) -> anyhow::Result<Self> {
        let mut driver = Driver::start(directory, open, Files::Usual)?;
        let opened = driver.opened()?;
        ensure!(opened.is_ok(), "{opened:?}");
        Ok(Self {
            driver,
            directory: directory.to_owned(),
            next,
            number: 1,
        })
    }

    fn order(&mut self, words: &str) -> anyhow::Result<()> {
        let number = self.number;
        self.number += 1;
        self.driver.send(&format!("{number} {words}"))?;
        let answer = self.driver.answer_patiently()?;
        ensure!(answer == format!("ok {number}"), "{answer}");
        Ok(())
    }

    fn overwrite(&mut self, count: u64, size: u64) -> anyhow::Result<()> {
        let first = self.next;
        self.next += count;
        self.order(&format!(
            "overwrite 1 {first} {count} {KEYS} {size} {BATCH}"
        ))
    }

    /// Appended and applied, without a snapshot.
    fn append_only(&mut self, count: u64, size: u64) -> anyhow::Result<()> {
        for _ in 0..count.div_ceil(10) {
            let first = self.next;
            self.next += 10;
            let entries: String = (0..10).map(|key| format!(" {key}:{size}")).collect();
            self.order(&format!("append 1 {first}{entries}"))?;
            self.order(&format!("apply {first} {}", first + 9))?;
        }
        Ok(())
    }

    fn purge(&mut self) -> anyhow::Result<()> {
        self.order("snapshot")?;
        self.order(&format!("purge 1 {}", self.next - 1))
    }

    fn measure(&self) -> anyhow::Result<Measured> {
        let log = size(&self.directory.join("store/log.redb"));
        let state = size(&self.directory.join("store/state.redb"));
        let mut snapshots: Vec<_> = fs::read_dir(self.directory.join("snapshots"))?
            .flatten()
            .map(|file| size(&file.path()))
            .collect();
        snapshots.sort_unstable();
        Ok(Measured {
            next: self.next,
            log,
            state,
            store: log + state,
            live: snapshots.last().copied().unwrap_or_default(),
            snapshots: snapshots.iter().sum(),
            resident: self.driver.resident_bytes()?,
        })
    }

    fn close(self) -> anyhow::Result<()> {
        self.driver.close()
    }
}

fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    match fs::metadata(path) {
        Err(_) => 0,
        // What it really takes: a part of a file may never have been written.
        Ok(metadata) if metadata.is_file() => metadata.blocks() * 512,
        Ok(_) => fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| size(&file.path()))
            .sum(),
    }
}
