//! The power goes at any moment: what was acknowledged is there, in a state that some order of events explains.

use std::path::Path;

use anyhow::{Context as _, ensure};
use store_torture::{
    asked,
    driver::{Driver, Files, Open},
    model::{Model, Told},
    power::{FATES, Fate, Recording},
    random::Random,
    session::{self, Sent, Session},
    trace::{self, Event, What},
};

/// Orders in one recorded run.
const ORDERS: u64 = 250;
/// Moments looked at in one recorded run.
const CUTS_EACH: u64 = 50;

#[test]
fn what_was_acknowledged_survives_a_loss_of_power() {
    let cuts = asked("ISTHMUS_TEST_POWER_CUTS", 30);
    let seed = asked("ISTHMUS_TEST_SEED", 1);
    let (mut done, mut failures) = (0, Vec::new());
    while done < cuts {
        let count = CUTS_EACH.min(cuts - done);
        let seed = seed.wrapping_mul(7_000_003).wrapping_add(done);
        failures.extend(run(seed, count).unwrap());
        done += count;
        println!("{done} cuts, {} failures", failures.len());
    }
    assert!(
        failures.is_empty(),
        "{} of {cuts}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Records one run, and takes its power away at `cuts` moments.
fn run(seed: u64, cuts: u64) -> anyhow::Result<Vec<String>> {
    let world = tempfile::tempdir()?;
    let directory = world.path().join("data");
    let file = world.path().join("trace");
    let mut random = Random::new(seed);
    let mut driver = Driver::start_traced(&directory, Files::AsIfBig, &file)?;
    let opened = driver.opened()?;
    ensure!(opened.is_ok(), "{opened:?}");
    let told = Told::default();
    let mut session = Session::new(driver, Model::default(), &told, Random::new(random.draw()));
    session.run(ORDERS)?;
    let (_, sent) = session.close()?;
    let text = std::fs::read(&file)?;
    let events = trace::read(&text, &directory)?;
    let recording = Recording::of(&events)?;
    let syncs = events.iter().filter(|e| matches!(e.what, What::Sync(_)));
    let (log, state) = (
        compactions(&events, "log.redb"),
        compactions(&events, "state.redb"),
    );
    println!(
        "seed {seed}: {} calls, {} syncs, the log was compacted {log} times, the state {state} times",
        events.len(),
        syncs.count()
    );
    ensure!(log > 0 && state > 0, "nothing was compacted");
    let mut failures = Vec::new();
    for cut in 0..cuts {
        let at = usize::try_from(random.below(events.len() as u64))?;
        let moment = events[at].ended;
        let fate = FATES[usize::try_from(cut)? % FATES.len()];
        let target = world.path().join(format!("cut-{cut}"));
        recording.rebuild(moment, fate, &mut random, &target)?;
        if let Err(error) = look(&target, &events, &sent, moment, &mut random) {
            let words = format!("seed {seed}, line {moment}, {fate:?}: {error:#}");
            println!("{words:.2000}");
            failures.push(words.chars().take(2000).collect());
        }
        std::fs::remove_dir_all(&target)?;
    }
    Ok(failures)
}

/// How often a file was compacted while it was open.
fn compactions(events: &[Event], file: &str) -> usize {
    events
        .iter()
        .skip_while(|event| event.what != What::Say("opened".to_owned()))
        .filter(|event| match &event.what {
            What::Log(line) => line.contains("is compacted") && line.contains(file),
            _ => false,
        })
        .count()
}

/// Opens what is left, and compares it with what had been acknowledged by then.
fn look(
    directory: &Path,
    events: &[Event],
    sent: &[Sent],
    moment: usize,
    random: &mut Random,
) -> anyhow::Result<()> {
    let mut model = Model::default();
    for order in sent {
        session::order(&mut model, order);
    }
    let mut open = Open::Create;
    for event in events.iter().take_while(|event| event.ended <= moment) {
        let What::Say(line) = &event.what else {
            continue;
        };
        if line == "opened" {
            open = Open::Again;
        }
        let number = line.strip_prefix("ok ").and_then(|n| n.parse().ok());
        if let Some(number) = number.map(|number: usize| number - 1) {
            session::acknowledge(&mut model, &sent[number]);
        }
    }
    let mut driver = Driver::start(directory, open, Files::AsIfBig)?;
    if let Err(reason) = driver.opened()? {
        anyhow::bail!("does not open: {reason}");
    }
    let told = driver.dump()?;
    model.check(&told)?;
    // Once in a while, life goes on.
    if random.once_in(4) {
        model.go_on(&told);
        let mut session = Session::new(driver, model, &told, Random::new(random.draw()));
        session.run(30).context("going on")?;
        let model = session.kill()?;
        let mut driver = Driver::start(directory, Open::Again, Files::AsIfBig)?;
        let opened = driver.opened().context("the second time")?;
        ensure!(opened.is_ok(), "the second time: {opened:?}");
        model.check(&driver.dump()?).context("the second time")?;
    }
    Ok(())
}

/// The harness can see a lie: if no sync ever counted, acknowledged orders would be lost.
#[test]
fn a_store_that_does_not_sync_would_be_found_out() {
    let world = tempfile::tempdir().unwrap();
    let directory = world.path().join("data");
    let file = world.path().join("trace");
    let mut driver = Driver::start_traced(&directory, Files::AsIfBig, &file).unwrap();
    assert!(driver.opened().unwrap().is_ok());
    let told = Told::default();
    let mut session = Session::new(driver, Model::default(), &told, Random::new(3));
    session.run(40).unwrap();
    let (_, sent) = session.close().unwrap();
    let mut events = trace::read(&std::fs::read(&file).unwrap(), &directory).unwrap();
    let ready = events
        .iter()
        .position(|event| event.what == What::Say("opened".to_owned()))
        .unwrap();
    // From when it is open, no sync counts.
    let mut at = 0;
    events.retain(|event| {
        at += 1;
        at <= ready || !matches!(event.what, What::Sync(_))
    });
    let recording = Recording::of(&events).unwrap();
    let moment = events.last().unwrap().ended;
    let mut random = Random::new(1);
    let target = world.path().join("cut");
    recording
        .rebuild(moment, Fate::Lost, &mut random, &target)
        .unwrap();
    look(&target, &events, &sent, moment, &mut random).unwrap_err();
}
