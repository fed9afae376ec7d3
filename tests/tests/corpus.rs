//! Every reader of bytes of others over its corpus and over changes of it, without libFuzzer: the short form of `make fuzz`.

use std::time::{Duration, Instant};

use tests::{
    fuzz::{Changes, TARGETS, Target, corpus},
    tier,
};

/// How long the changes of one target's corpus take.
const SHORT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(120);

#[test]
fn no_reader_panics_or_breaks_its_word() {
    tests::install_crypto();
    let limit = if tier::soaking() { LONG } else { SHORT };
    let broken: Vec<String> = TARGETS.iter().filter_map(|target| broken_by(target, limit)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The first input with which `target` panics.
fn broken_by(target: &Target, limit: Duration) -> Option<String> {
    let seeds = corpus(target);
    let run = |bytes: &[u8], what: &str| {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (target.run)(bytes)));
        ended.err().map(|_| format!("{}: {what}: {}", target.name, String::from_utf8_lossy(bytes)))
    };
    let start = Instant::now();
    let mut changes = Changes::new(target.name.len() as u64);
    seeds.iter().find_map(|(name, seed)| run(seed, name)).or_else(|| {
        let mut row = seeds.iter().cycle().take_while(|_| start.elapsed() < limit);
        row.find_map(|(name, seed)| run(&changes.change(seed), &format!("a change of {name}")))
    })
}
