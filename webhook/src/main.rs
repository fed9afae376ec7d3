//! The binary: reads the command line, runs one subcommand, and turns its error into a line and an exit code.

use std::{io::Write as _, process::ExitCode};

use etcd_tls_telemetry::exit::Exit;
use etcd_tls_webhook::{
    cli::{self, Cli},
    error::with_causes,
    exit::{exit, nobody_reads},
    operator::plain_lines,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = cli::name(arguments.first().map_or_else(Default::default, std::ffi::OsString::as_os_str));
    match Cli::read(arguments).run() {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            if !nobody_reads(&*error) {
                report(name, &*error);
            }
            exit(&*error).into()
        }
    }
}

/// Says the error and everything that caused it, safe for a terminal.
fn report(name: &str, error: &(dyn std::error::Error + 'static)) {
    // The API server, a pod or an object of somebody else may have written parts of it.
    // A command's error belongs on its standard error at every log level, and on nothing else where that is closed.
    let _ = writeln!(std::io::stderr(), "{name}: {}", plain_lines(&with_causes(error)));
}
