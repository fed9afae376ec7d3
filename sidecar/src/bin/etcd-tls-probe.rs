//! `etcd-tls-probe`: etcd's liveness probe under `reload: probe`, which kubelet runs in etcd's container. See
//! [`etcd_tls_sidecar::probe`].
//!
//!     etcd-tls-probe --timeout=<seconds>
//!
//! 0: etcd is left alone. 1: it is to be restarted; why, in one line.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use etcd_tls_sidecar::probe;

/// kubelet's own.
const DEFAULT_TIMEOUT: u64 = 1;

const HELP: &str = "\
The liveness probe of etcd under `etcd-tls.dev/reload: probe`. kubelet runs it in etcd's container.

Usage: etcd-tls-probe [--timeout=<SECONDS>]

As the first argument, --help or -h shows this text and asks nothing.
It exits with 0 if etcd is left alone, and with 1, and the reason on standard output, if kubelet has to restart etcd.
An argument that it does not know has no effect.";

fn main() -> ExitCode {
    if env::args().nth(1).is_some_and(|word| word == "--help" || word == "-h") {
        let _ = writeln!(io::stdout(), "{HELP}");
        return ExitCode::SUCCESS;
    }
    // Invalid arguments must not fail etcd's probe.
    let timeout = env::args().find_map(|word| word.strip_prefix("--timeout=")?.parse().ok()).unwrap_or(DEFAULT_TIMEOUT);
    let program = env::current_exe().ok().or_else(|| env::args_os().next().map(PathBuf::from));
    let mut dir = program.as_deref().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
    // The path of a socket must be short, and from within it is.
    if env::set_current_dir(&dir).is_ok() {
        dir = PathBuf::from(".");
    }
    match probe::verdict(&dir, Duration::from_secs(timeout)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stdout(), "{reason}");
            ExitCode::FAILURE
        }
    }
}
