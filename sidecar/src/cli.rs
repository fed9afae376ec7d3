//! The command line of `etcd-tls-sidecar`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use etcd_tls_telemetry::{exit::Exit, log::LogArgs, panics};

use crate::{
    commands::{init::InitArgs, request::RequestArgs, run::RunArgs},
    error::Error,
};

/// Requests, verifies, stores and renews the certificates of an etcd pod or host.
#[derive(Parser, Debug)]
#[command(name = "etcd-tls-sidecar", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Obtain the first certificates of a pod, and exit.
    Init(Box<InitArgs>),
    /// Renew the certificates of a pod or, with --kubeconfig, of a host; with --secret, copy a certificate into a Secret.
    Run(Box<RunArgs>),
    /// Obtain certificates for a host once, and exit.
    Request(Box<RequestArgs>),
}

impl Cli {
    /// Runs the command; see [`Exit`] for the exit code.
    pub async fn run(self) -> ExitCode {
        let Self { command, log } = self;
        panics::count();
        if let Err(error) = log.init() {
            #[allow(clippy::print_stderr, reason = "there is no log to write it to")]
            {
                eprintln!("etcd-tls-sidecar: {error}");
            }
            return Exit::Configuration.into();
        }
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "etcd-tls-sidecar");
        match command.run().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "ended");
                error.exit().into()
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
