//! The binary: reads the command line, runs one subcommand, and turns its error into a line and an exit code.

use std::process::ExitCode;

use clap::Parser;
use etcd_tls_telemetry::exit::Exit;
use etcd_tls_webhook::{cli::Cli, error::exit};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            report(&*error);
            exit(&*error).into()
        }
    }
}

/// Says the error and everything that caused it, on one line.
#[allow(clippy::print_stderr)] // A command's last word belongs on its standard error, whatever the log is set to.
fn report(error: &(dyn std::error::Error + 'static)) {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    eprintln!("etcd-tls-webhook: {line}");
}
