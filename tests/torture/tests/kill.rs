//! `kill -9` at any moment: what was acknowledged is there, and nothing else.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, ensure};
use store_torture::{
    asked,
    driver::{Driver, Files, Open},
    model::{Model, Told},
    random::Random,
    session::Session,
};

/// Kills before a new directory is begun.
const KILLS_EACH: u64 = 25;

#[test]
fn what_was_acknowledged_survives_kill_9_and_nothing_else_appears() {
    let cycles = asked("ISTHMUS_TEST_TORTURE_CYCLES", 40);
    let seed = asked("ISTHMUS_TEST_SEED", 1);
    let (mut done, mut acknowledged) = (0, 0);
    while done < cycles {
        let count = KILLS_EACH.min(cycles - done);
        let directory = tempfile::tempdir().unwrap();
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(done);
        match life(directory.path(), seed, count) {
            Ok(orders) => acknowledged += orders,
            Err(error) => panic!(
                "seed {seed}, files kept in {}: {error:?}",
                directory.keep().display()
            ),
        }
        done += count;
        println!("{done} kills, {acknowledged} orders acknowledged");
    }
}

/// One directory's life through `kills`. Returns how many orders were acknowledged.
fn life(directory: &Path, seed: u64, kills: u64) -> anyhow::Result<u64> {
    let directory = directory.join("data");
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let mut open = Open::Create;
    let mut acknowledged = 0;
    for kill in 0..kills {
        let files = if random.once_in(2) {
            Files::AsIfBig
        } else {
            Files::Usual
        };
        let mut driver = Driver::start(&directory, open, files)?;
        if open == Open::Create && random.once_in(4) {
            // In the middle of making it.
            thread::sleep(Duration::from_micros(random.below(20_000)));
            if driver.kill().iter().any(|line| line == "opened") {
                open = Open::Again;
            }
            continue;
        }
        let opened = driver.opened().context("reopening")?;
        ensure!(opened.is_ok(), "kill {kill}: refused: {opened:?}");
        open = Open::Again;
        let told = driver
            .dump()
            .with_context(|| format!("after kill {kill}"))?;
        model
            .check(&told)
            .with_context(|| format!("after kill {kill}"))?;
        model.go_on(&told);
        let mut session = Session::new(driver, model, &told, Random::new(random.draw()));
        session.run(random.below(120))?;
        // In the middle of whatever is under way.
        thread::sleep(Duration::from_micros(random.below(6_000)));
        acknowledged += session.acknowledged;
        model = session.kill()?;
    }
    if open == Open::Again {
        finally(&directory, &model)?;
    }
    Ok(acknowledged)
}

fn finally(directory: &Path, model: &Model) -> anyhow::Result<Told> {
    let mut driver = Driver::start(directory, Open::Again, Files::Usual)?;
    let opened = driver.opened()?;
    ensure!(opened.is_ok(), "at last: {opened:?}");
    let told = driver.dump()?;
    model.check(&told)?;
    driver.close()?;
    Ok(told)
}
