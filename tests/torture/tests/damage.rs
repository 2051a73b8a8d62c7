//! Files are cut and bytes flipped, one at a time: the store opens with all that was acknowledged, or it says which file
//! is damaged and what to do. It never panics, and never opens with less.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use store_torture::{
    asked,
    driver::{Driver, Files, Open},
    model::{Model, Told},
    random::Random,
    session::Session,
};

#[derive(Debug, Default)]
struct Outcomes {
    whole: u64,
    named: u64,
}

#[test]
fn damage_to_any_file_is_mended_or_named() {
    let flips = asked("ISTHMUS_TEST_FLIPS", 3);
    let seed = asked("ISTHMUS_TEST_SEED", 1);
    let world = tempfile::tempdir().unwrap();
    let good = world.path().join("good");
    let model = live(&good, seed).unwrap();
    let mut files = Vec::new();
    list(&good, &good, &mut files);
    files.sort();
    let mut random = Random::new(seed);
    let mut failures = Vec::new();
    for file in &files {
        let whole = fs::read(good.join(file)).unwrap();
        let mut outcomes = Outcomes::default();
        for (what, bytes) in damages(&whole, flips, &mut random) {
            let trial = world.path().join("trial");
            copy(&good, &trial);
            match bytes {
                Some(bytes) => fs::write(trial.join(file), bytes).unwrap(),
                None => fs::remove_file(trial.join(file)).unwrap(),
            }
            if let Err(error) = look(&trial, &model, &mut outcomes) {
                failures.push(format!("{} {what}: {error:#}", file.display()));
            }
            fs::remove_dir_all(&trial).unwrap();
        }
        println!("{} ({} bytes): {outcomes:?}", file.display(), whole.len());
    }
    assert!(files.len() >= 5, "{files:?}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A store that was closed in order, and what is in it.
fn live(directory: &Path, seed: u64) -> anyhow::Result<Model> {
    let mut driver = Driver::start(directory, Open::Create, Files::Usual)?;
    let opened = driver.opened()?;
    ensure!(opened.is_ok(), "{opened:?}");
    let told = Told::default();
    let mut session = Session::new(driver, Model::default(), &told, Random::new(seed));
    session.run(400)?;
    let (mut model, _) = session.close()?;
    let mut driver = Driver::start(directory, Open::Again, Files::Usual)?;
    let opened = driver.opened()?;
    ensure!(opened.is_ok(), "{opened:?}");
    let told = driver.dump()?;
    model.check(&told)?;
    ensure!(
        told.log.purged.is_some() && told.snapshot.is_some() && !told.log.entries.is_empty(),
        "too little happened: {:?}",
        told.log.last()
    );
    driver.close()?;
    model.go_on(&told);
    Ok(model)
}

fn look(directory: &Path, model: &Model, outcomes: &mut Outcomes) -> anyhow::Result<()> {
    let mut driver = Driver::start(directory, Open::Again, Files::Usual)?;
    match driver.opened()? {
        Ok(()) => {
            let told = driver.dump()?;
            model.check_damaged(&told)?;
            outcomes.whole += 1;
        }
        Err(words) => {
            ensure!(
                words.contains(&*directory.to_string_lossy()),
                "it does not say which file: {words}"
            );
            ensure!(
                words.contains("meshctl global recover"),
                "it does not say what to do: {words}"
            );
            outcomes.named += 1;
        }
    }
    driver.close().context("the driver does not end well")
}

type Damage = (String, Option<Vec<u8>>);

fn damages(whole: &[u8], flips: u64, random: &mut Random) -> Vec<Damage> {
    let length = whole.len();
    // Most of a database's file may never have been written.
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let mut damages = vec![("removed".to_owned(), None)];
    for cut in [0, 1, used / 4, used / 2, used - 1, length.saturating_sub(1)] {
        damages.push((format!("cut to {cut}"), Some(whole[..cut].to_vec())));
    }
    for number in 0..flips {
        let within = if number % 3 == 0 { used.min(64) } else { used };
        let at = usize::try_from(random.below(within.max(1) as u64)).unwrap_or_default();
        if at < length {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << random.below(8);
            damages.push((format!("flipped at {at}"), Some(bytes)));
        }
    }
    if length > 4096 {
        let at = usize::try_from(random.below(used as u64)).unwrap_or_default() / 4096 * 4096;
        let mut bytes = whole.to_vec();
        let end = (at + 4096).min(length);
        bytes[at..end].fill(0);
        damages.push((format!("a page of zeros at {at}"), Some(bytes)));
    }
    damages
}

fn list(directory: &Path, root: &Path, files: &mut Vec<PathBuf>) {
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            list(&path, root, files);
        } else if path.file_name().is_some_and(|name| name != "lock") {
            files.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Two files that do not belong together: the log of yesterday under the acknowledgements of today.
#[test]
fn an_older_log_is_not_taken_for_the_newest() {
    let world = tempfile::tempdir().unwrap();
    let directory = world.path().join("data");
    let model = live(&directory, 5).unwrap();
    let old = world.path().join("old");
    copy(&directory, &old);
    let mut driver = Driver::start(&directory, Open::Again, Files::Usual).unwrap();
    assert!(driver.opened().unwrap().is_ok());
    let told = driver.dump().unwrap();
    let mut session = Session::new(driver, model, &told, Random::new(6));
    session.run(40).unwrap();
    session.close().unwrap();
    fs::copy(old.join("store/log.redb"), directory.join("store/log.redb")).unwrap();
    let outcome = (|| {
        let mut driver = Driver::start(&directory, Open::Again, Files::Usual)?;
        match driver.opened()? {
            Ok(()) => bail!("it was opened"),
            Err(words) => Ok(words),
        }
    })();
    let words = outcome.unwrap();
    assert!(words.contains("meshctl global recover"), "{words}");
}
