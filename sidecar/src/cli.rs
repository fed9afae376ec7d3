//! The command line of `etcd-tls-sidecar`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    init::{Error, InitArgs},
    request::RequestArgs,
    run::RunArgs,
    telemetry::{self, Format},
};

/// Requests, proves, stores and renews the certificates of an etcd pod.
#[derive(Parser, Debug)]
#[command(name = "etcd-tls-sidecar", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The form of a log line.
    #[arg(long, global = true, env = "ETCD_TLS_LOG_FORMAT", default_value = "text", value_enum)]
    log_format: Format,
    /// A level, or targets with levels: info,etcd_tls_sidecar=debug.
    #[arg(long, global = true, env = "ETCD_TLS_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Gets the first certificates of a pod, and ends.
    Init(InitArgs),
    /// Keeps the certificates of a pod fresh, or with --kubeconfig those of a host.
    Run(RunArgs),
    /// Gets certificates for a host once, and ends.
    Request(RequestArgs),
}

impl Cli {
    /// Runs the command; the exit code follows sysexits.h.
    pub async fn run(self) -> ExitCode {
        let Self { command, log_format, log_level } = self;
        if let Err(error) = telemetry::init(log_format, &log_level) {
            #[allow(clippy::print_stderr, reason = "there is no log to write it to")]
            {
                eprintln!("etcd-tls-sidecar: {error}");
            }
            return ExitCode::from(78);
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "etcd-tls-sidecar");
        match command.run().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "ended");
                error.exit_code()
            }
        }
    }
}

impl Command {
    async fn run(self) -> Result<(), Error> {
        match self {
            Self::Init(args) => args.run().await,
            Self::Run(args) => args.run().await,
            Self::Request(args) => args.run().await,
        }
    }
}
