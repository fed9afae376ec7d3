//! The metrics that Prometheus' client libraries have for every process: `process_*` and `build_info`, and its panics, read at
//! each scrape.

use std::{fmt::Write as _, fs};

use crate::panics;

/// Clock ticks in a second, as `/proc` counts them for programs: 100 on every architecture that Rust is built for here.
const TICKS: f64 = 100.0;

/// The figures in `/proc`; `None`: it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Process {
    cpu_seconds: Option<f64>,
    start_time_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

/// The metrics of this process, in the OpenMetrics text format without its end.
pub fn metrics() -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let mut process =
        parse(&read("/proc/self/stat"), &read("/proc/stat"), &read("/proc/self/status"), &read("/proc/self/limits"));
    process.open_fds = fs::read_dir("/proc/self/fd").ok().and_then(|dir| u64::try_from(dir.count()).ok());
    render(&process)
}

fn parse(stat: &str, machine: &str, status: &str, limits: &str) -> Process {
    // The program's name, in brackets, may hold anything; the third field follows it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |number: usize| fields.get(number.saturating_sub(3)).and_then(|field| field.parse::<f64>().ok());
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let bytes = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    Process {
        cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| (user + system) / TICKS),
        start_time_seconds: boot.zip(ticks(22)).map(|(boot, since)| boot + since / TICKS),
        resident_bytes: bytes("VmRSS"),
        virtual_bytes: bytes("VmSize"),
        open_fds: None,
        max_fds: files.and_then(|number| number.parse().ok()),
    }
}

fn render(process: &Process) -> String {
    let Process { cpu_seconds, start_time_seconds, resident_bytes, virtual_bytes, open_fds, max_fds } = process;
    let number = |value: &Option<u64>| value.map(|value| value.to_string());
    let seconds = |value: &Option<f64>| value.map(|value| value.to_string());
    let mut text = String::new();
    for (name, suffix, kind, help, value) in [
        ("process_cpu_seconds", "_total", "counter", "User and system CPU time, in seconds", seconds(cpu_seconds)),
        ("process_start_time_seconds", "", "gauge", "When the process started", seconds(start_time_seconds)),
        ("process_resident_memory_bytes", "", "gauge", "Resident memory, in bytes", number(resident_bytes)),
        ("process_virtual_memory_bytes", "", "gauge", "Virtual memory, in bytes", number(virtual_bytes)),
        ("process_open_fds", "", "gauge", "Open file descriptors", number(open_fds)),
        ("process_max_fds", "", "gauge", "The limit of open file descriptors", number(max_fds)),
        ("etcd_tls_panics", "_total", "counter", "Panics: defects of the program", Some(panics::counted().to_string())),
    ] {
        if let Some(value) = value {
            // Writing to a String does not fail.
            let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name}{suffix} {value}\n");
        }
    }
    let (build, version) = ("etcd_tls_build", env!("CARGO_PKG_VERSION"));
    let _ = write!(text, "# HELP {build} The build.\n# TYPE {build} info\n{build}_info{{version=\"{version}\"}} 1\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_kernel_writes_it() {
        let stat = "42 (a) b (c)) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 1000 1 1 1 1";
        let status = "Name:\tx\nVmSize:\t   2048 kB\nVmRSS:\t     10 kB\n";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        let process = parse(stat, "cpu 1 2\nbtime 1700000000\n", status, limits);
        assert_eq!(
            process,
            Process {
                cpu_seconds: Some(3.0),
                start_time_seconds: Some(1_700_000_010.0),
                resident_bytes: Some(10_240),
                virtual_bytes: Some(2_097_152),
                open_fds: None,
                max_fds: Some(1024),
            }
        );
        assert_eq!(parse("", "", "", ""), Process::default());
    }

    #[test]
    fn this_process_shows_all_of_it() {
        let text = metrics();
        for name in [
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_open_fds ",
            "process_max_fds ",
            "etcd_tls_panics_total ",
            "etcd_tls_build_info{version=",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
    }
}
