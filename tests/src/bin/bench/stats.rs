//! Medians and other order statistics, and what the kernel says of a process.

use std::{fs, time::Duration};

/// The value that `part` (0 to 1) of all do not exceed; zero of none.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let above = values.iter().map(|value| -value).collect::<Vec<_>>();
    (percentile(values, 0.5) - percentile(&above, 0.5)) / 2.0
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The memory of a process, in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident, the program's and its libraries' pages included.
    pub(crate) resident: f64,
    /// Of these, its own data.
    pub(crate) anonymous: f64,
}

/// The memory of `pid` now.
pub(crate) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    Memory { resident: field("Rss:"), anonymous: field("Anonymous:") }
}

/// The most that `pid` was ever resident, in MiB.
pub(crate) fn peak(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// How often all threads of `pid` went to sleep, and so were woken, so far.
pub(crate) fn sleeps(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |text: String| {
        text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
    };
    tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok().and_then(of)).sum::<u64>()
}

/// User and system CPU time of `pid` so far, in seconds.
pub(crate) fn cpu(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, parentheses too.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or_default();
    // USER_HZ is 100 on every architecture that etcd runs on.
    (ticks(11) + ticks(12)) / 100.0
}
