//! Mutated messages for fuzzing properties (`fuzz/src`): some in every test run, more for as long as
//! `FAIRWAY_FUZZ_SECONDS` says (`fuzz/README.md`).

use std::time::{Duration, Instant};

/// What must hold of any bytes; it panics where it does not.
pub(crate) type Property = fn(&[u8]);

fn mutated(
    random: &mut fastrand::Rng,
    corpus: &[&[u8]],
    tokens: &[&[u8]],
    flags: usize,
) -> Vec<u8> {
    let mut input = corpus[random.usize(..corpus.len())].to_vec();
    for _ in 0..random.usize(..6) {
        let at = random.usize(..=input.len());
        let end = (at + random.usize(..9)).min(input.len());
        match random.u8(..5) {
            0 => drop(input.drain(at..end)),
            1 => drop(input.splice(
                at..end,
                tokens[random.usize(..tokens.len())].iter().copied(),
            )),
            2 => input.insert(at, random.u8(..)),
            3 => drop(input.splice(at..at, input[at..end].to_vec())),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
    let flags = std::iter::repeat_with(|| random.u8(..))
        .take(flags)
        .collect::<Vec<_>>();
    [flags, input].concat()
}

/// Gives `property` the messages of `corpus`, mutated with `tokens`, after `flags` bytes of any value.
pub(crate) fn drive(
    name: &str,
    property: Property,
    corpus: &[&[u8]],
    tokens: &[&[u8]],
    flags: usize,
) {
    let seconds = std::env::var("FAIRWAY_FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let until = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let mut random = match until {
        Some(_) => fastrand::Rng::new(),
        None => fastrand::Rng::with_seed(9112),
    };
    let mut rounds = 0u64;
    while until.map_or(rounds < 3000, |until| Instant::now() < until) {
        rounds += 1;
        let input = mutated(&mut random, corpus, tokens, flags);
        if std::panic::catch_unwind(|| property(&input)).is_err() {
            panic!("{name}: b\"{}\"", input.escape_ascii());
        }
    }
}
