//! Every reader of bytes of others over its corpus and over changes of it, without libFuzzer: the short form of `make fuzz`.

use tests::{
    fuzz::{Changes, TARGETS, Target, corpus},
    tier,
};

/// How many changes of its corpus each target reads: a count, so that each run has the same inputs. A change of a review or a
/// manifest takes some milliseconds.
const SHORT: usize = 2_000;
const LONG: usize = 50_000;

#[test]
fn no_reader_panics_or_breaks_its_word() {
    tests::install_crypto();
    let changes = if tier::soaking() { LONG } else { SHORT };
    let broken: Vec<String> = TARGETS.iter().filter_map(|target| broken_by(target, changes)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The first input with which `target` panics.
fn broken_by(target: &Target, changes: usize) -> Option<String> {
    let seeds = corpus(target);
    let run = |bytes: &[u8], what: &str| {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (target.run)(bytes)));
        ended.err().map(|_| format!("{}: {what}: {}", target.name, String::from_utf8_lossy(bytes)))
    };
    let mut row = Changes::new(target.name.len() as u64);
    seeds.iter().find_map(|(name, seed)| run(seed, name)).or_else(|| {
        let mut seeds = seeds.iter().cycle().take(changes);
        seeds.find_map(|(name, seed)| run(&row.change(seed), &format!("a change of {name}")))
    })
}
