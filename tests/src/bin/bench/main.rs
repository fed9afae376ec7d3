//! `bench`: the project's figures, as ratios of one run, ours and the reference interleaved.
//!
//! A machine's own speed cancels out of a ratio taken in turns (A B A B …), so the figures can be held to targets on any
//! machine. A missed target is said, and is no failure of the command: the machine may be a slow or a busy one.
//!
//! `bench [section…]` measures some sections alone.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

mod admission;
mod asks;
mod backends;
mod credentials;
mod crowd;
mod fairness;
mod load;
mod report;
mod revocation;
mod rotation;
mod scale;
mod sidecar;
mod signing;
mod size;
mod standalone;
mod stats;
mod steps;
mod wire;

use std::process::ExitCode;

use futures::{FutureExt, future::LocalBoxFuture};
use report::Report;

type Measure = for<'a> fn(&'a mut Report) -> LocalBoxFuture<'a, Result<(), String>>;

/// The measurements, in the order of the report.
const SECTIONS: [(&str, Measure); 11] = [
    ("admission", |report| admission::measure(report).boxed_local()),
    ("sidecar", |report| sidecar::measure(report).boxed_local()),
    ("signing", |report| signing::measure(report).boxed_local()),
    ("backends", |report| backends::measure(report).boxed_local()),
    ("credentials", |report| credentials::measure(report).boxed_local()),
    ("scale", |report| scale::measure(report).boxed_local()),
    ("fairness", |report| fairness::measure(report).boxed_local()),
    ("standalone", |report| standalone::measure(report).boxed_local()),
    ("rotation", |report| rotation::measure(report).boxed_local()),
    ("revocation", |report| revocation::measure(report).boxed_local()),
    ("size", |report| {
        size::measure(report);
        async { Ok(()) }.boxed_local()
    }),
];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.first().is_some_and(|word| word == admission::FIXED) {
        return admission::serve_fixed(&wanted[1..]).await;
    }
    if let Some(unknown) = wanted.iter().find(|w| !SECTIONS.iter().any(|(name, _)| name == w)) {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        println!("bench: there is no section {unknown}; there are: {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    tests::install_crypto();
    let mut report = Report::default();
    for (name, measure) in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        report.section(name);
        // The harness panics with what went wrong; the other sections go on.
        let ended = std::panic::AssertUnwindSafe(measure(&mut report)).catch_unwind().await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(why)) => report.broke_off(&why),
            Err(_) => report.broke_off("see above"),
        }
    }
    report.print();
    ExitCode::SUCCESS
}
