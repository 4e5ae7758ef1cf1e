//! The corpus of the fuzz targets, and as many mutilations of it, by the functions that the fuzzer calls.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[allow(dead_code, reason = "a crate of its own for the fuzzer")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

#[test]
fn the_corpus_breaks_nothing() {
    for (name, target) in targets::TARGETS.iter().copied() {
        for bytes in corpus(name) {
            run(name, target, &bytes);
        }
    }
}

/// `TOLLGATE_FUZZ_SECONDS` for each target; without it each file is mutilated a few hundred times.
#[test]
fn mutilations_of_the_corpus_break_nothing() {
    let seconds = env::var("TOLLGATE_FUZZ_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let only = env::var("TOLLGATE_FUZZ_TARGET").ok();
    for (name, target) in targets::TARGETS.iter().copied() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let corpus = corpus(name);
        let started = Instant::now();
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        let mut count = 0_usize;
        loop {
            let mut bytes = corpus[count % corpus.len()].clone();
            for _ in 0..=chance.below(6) {
                mutilate(&mut bytes, &corpus, &mut chance);
            }
            run(name, target, &bytes);
            count += 1;
            let done = match seconds {
                Some(seconds) => started.elapsed() > Duration::from_secs(seconds),
                None => count >= 300 * corpus.len(),
            };
            if done {
                break;
            }
        }
        println!("{name}: {count} in {:?}", started.elapsed());
    }
}

fn run(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(bytes))).is_err() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{name} breaks with {hex}");
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap_or_else(|e| panic!("{name}: {e}")).map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has a corpus");
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutilate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(bytes.len() + 1);
    match chance.below(8) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, chance.byte()),
        2 => bytes.extend_from_slice(&corpus[chance.below(corpus.len())]),
        3 if at < bytes.len() => drop(bytes.remove(at)),
        // What parsers trip over.
        4 if at < bytes.len() => bytes[at] = [0, 1, 2, 0x7F, 0x80, 0xFF, b'/', b'#', b'"', b'%'][chance.below(10)],
        5 => {
            let other = &corpus[chance.below(corpus.len())];
            let from = chance.below(other.len() + 1);
            let piece: Vec<u8> = other[from..].iter().take(chance.below(24)).copied().collect();
            bytes.splice(at..at, piece);
        }
        6 if at < bytes.len() => bytes[at] = chance.byte(),
        _ if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
        _ => {}
    }
}

/// Xorshift with a fixed seed: the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound.max(1)).expect("fits")).expect("fits")
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("a byte")
    }
}
