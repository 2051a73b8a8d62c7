//! Drives the fuzz targets of `dataplane/fuzz` on a stable toolchain: inputs of the corpora, changed at random. What is found first
//! becomes an input of the corpus.
//!
//! `ISTHMUS_FUZZ_SECONDS=60` lets each target run so long, and `ISTHMUS_FUZZ_SEED=NUMBER` by other inputs than always;
//! `cargo +nightly fuzz run TARGET` in `dataplane` runs it under libFuzzer.
#![allow(unreachable_pub, missing_docs)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use proptest::test_runner::{RngAlgorithm, TestRng};

/// Without a time that is asked for, so many inputs.
const INPUTS: u32 = 50_000;

/// Pieces that mean something to somebody.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"-1",
    b"+",
    b"0x",
    b"ffffffffffffffff",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: ",
    b"HTTP/1.",
    b"chunked",
    b"\xff",
    b"\x16\x03\x01",
    b"\x00\x00",
    b"18446744073709551616",
];

struct Dice(TestRng);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        use proptest::prelude::Rng as _;
        self.0.next_u64() as usize % sides.max(1)
    }

    fn change(&mut self, input: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let to = at + self.below((input.len() - at).min(16) + 1);
        match self.below(6) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 => drop(input.drain(at..to)),
            2 => {
                let again = input[at..to].to_vec();
                input.splice(at..at, again);
            }
            3 | 0 => {
                let piece = PIECES[self.below(PIECES.len())];
                input.splice(at..to, piece.iter().copied());
            }
            4 => {
                let other = &others[self.below(others.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, self.below(256) as u8),
        }
    }
}

fn fuzz(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let files = std::fs::read_dir(&corpus).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let mut inputs: Vec<_> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    let holds = |input: &[u8]| {
        let held = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(
            held.is_ok(),
            "{name} does not hold for \"{}\"",
            input.escape_ascii()
        );
    };
    for input in &inputs {
        holds(input);
    }
    let asked = |name| {
        std::env::var(name)
            .ok()
            .map(|number| number.parse::<u64>().unwrap())
    };
    let until = asked("ISTHMUS_FUZZ_SECONDS").map(|n| Instant::now() + Duration::from_secs(n));
    // The same inputs each time, unless others are asked for: what fails can be run again.
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&asked("ISTHMUS_FUZZ_SEED").unwrap_or(1).to_le_bytes());
    let mut dice = Dice(TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let mut count = 0;
    while until.map_or(count < INPUTS, |until| Instant::now() < until) {
        let mut input = inputs[dice.below(inputs.len())].clone();
        for _ in 0..=dice.below(4) {
            dice.change(&mut input, &inputs);
        }
        holds(&input);
        count += 1;
        // Some of them are what the next are made of.
        if dice.below(64) == 0 && input.len() < 4096 {
            match inputs.len() < 512 {
                true => inputs.push(input),
                false => {
                    let at = paths.len() + dice.below(inputs.len() - paths.len());
                    inputs[at] = input;
                }
            }
        }
    }
    eprintln!("{name}: {count} inputs");
}

#[test]
fn request_heads_are_read_as_one_thing_only() {
    fuzz("request_head", targets::request_head);
}

#[test]
fn what_is_spoken_is_said_once() {
    fuzz("first_bytes", targets::first_bytes);
}

#[test]
fn response_heads_are_read_as_one_thing_only() {
    fuzz("response_head", targets::response_head);
}

#[test]
fn bodies_in_chunks_are_read_alike_however_they_are_cut() {
    fuzz("chunked_body", targets::chunked_body);
}

#[test]
fn server_names_are_read_alike_when_more_comes() {
    fuzz("client_hello", targets::client_hello);
}

#[test]
fn rules_match_what_they_say() {
    fuzz("http_match", targets::http_match);
}
