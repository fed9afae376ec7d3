//! `bench`: the project's figures, as ratios of one run, ours and the reference interleaved.
//!
//! A machine's own speed cancels out of a ratio taken in turns (A B A B …), so the figures can be held to targets on any
//! machine. A missed target is said, and is no failure of the command: the machine may be a slow or a busy one.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

mod report;
mod size;

use std::process::ExitCode;

use report::Report;

/// What there is to measure, in the order of the report.
const SECTIONS: [&str; 1] = ["size"];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|w| !SECTIONS.contains(&w.as_str())) {
        println!("bench: there is no section {unknown}; there are: {}", SECTIONS.join(", "));
        return ExitCode::FAILURE;
    }
    let mut report = Report::default();
    for section in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == section) {
            continue;
        }
        report.section(section);
        size::measure(&mut report);
    }
    report.print();
    ExitCode::SUCCESS
}
