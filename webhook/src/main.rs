//! The binary: reads the command line, runs one subcommand, and turns its error into a line and an exit code.

use std::process::ExitCode;

use etcd_tls_telemetry::exit::Exit;
use etcd_tls_webhook::{
    cli::{self, Cli},
    error::with_causes,
    exit::exit,
    operator::plain_lines,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = cli::name(arguments.first().map_or_else(Default::default, std::ffi::OsString::as_os_str));
    match Cli::read(arguments).run() {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            report(name, &*error);
            exit(&*error).into()
        }
    }
}

/// Says the error and everything that caused it, safe for a terminal.
#[allow(clippy::print_stderr)] // A command's error belongs on its standard error at every log level.
fn report(name: &str, error: &(dyn std::error::Error + 'static)) {
    // The API server, a pod or an object of somebody else may have written parts of it.
    eprintln!("{name}: {}", plain_lines(&with_causes(error)));
}
