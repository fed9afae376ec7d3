//! The command line: one variant for each subcommand, each with arguments and a `run` of its own.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use etcd_tls_telemetry::{log::LogArgs, panics};
use tokio::runtime::Builder;

use crate::{
    admit, approve, ca, check, error::Error, inject, pages, renew, revoke, rollover, sign, standalone, status,
};

/// Worker threads at most: enough for the standalone signer's work, and no thread for each core of a large node.
const MAX_WORKERS: usize = 4;

/// Gives every etcd pod its own TLS certificates and rotates them.
#[derive(Debug, Parser)]
#[command(name = "etcd-tls-webhook", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Restore the CAs of a cluster from a backup after its namespace was created anew.
    Adopt(sign::adopt::Args),
    /// Serve admission reviews: inject the sidecar into pods that opted in.
    Admit(admit::Args),
    /// Approve certificate requests that ask for no more than the names and addresses of their pod; deny the others.
    Approve(approve::Args),
    /// Check the install, a namespace, a pod, a policy or a cluster, and name the next step for each problem.
    Check(Box<check::Args>),
    /// Print the completion script for a shell.
    Completion(pages::CompletionArgs),
    /// Inject the sidecar into manifests, offline.
    Inject(inject::Args),
    /// Issue certificates as Secret manifests or as files, without a running signer, for members with known names.
    Issue(Box<ca::command::Args>),
    /// Write a man page for this program and each of its subcommands.
    Man(pages::ManArgs),
    /// Renew the certificates of a cluster or of one pod now.
    Renew(renew::Args),
    /// Revoke a certificate of a cluster, undo that, or show the revoked certificates.
    Revoke(revoke::Args),
    /// Move a cluster to a new CA, show the progress, or abort.
    Rollover(rollover::Args),
    /// Sign approved certificate requests, keep the CAs, and publish the trust bundles.
    Sign(sign::Args),
    /// Serve the CSR API and sign requests where there is no Kubernetes API server.
    Standalone(Box<standalone::Args>),
    /// Restore manifests as they were before inject, byte for byte.
    Uninject(inject::UninjectArgs),
    /// Show the certificates of pods, those with problems first.
    Status(status::Args),
}

/// The name under which kubectl finds a plugin for `kubectl etcd-tls`.
const PLUGIN: &str = "kubectl-etcd_tls";
/// The name under which kubectl finds the program that completes `kubectl etcd-tls`.
const COMPLETES: &str = "kubectl_complete-etcd_tls";

/// How the program is called: by its own name, or as a plugin of kubectl where its file has that name.
pub fn name(program: &OsStr) -> &'static str {
    let file = Path::new(program).file_name().unwrap_or_default();
    if file == PLUGIN { "kubectl etcd-tls" } else { "etcd-tls-webhook" }
}

impl Cli {
    /// Reads the command line, the program's name first. Ends the program where there is nothing to run.
    pub fn read(arguments: Vec<OsString>) -> Self {
        let program = arguments.first().map(Path::new).and_then(Path::file_name);
        if program.is_some_and(|file| file == COMPLETES) {
            let done = pages::complete(&Self::command(), arguments.get(1..).unwrap_or_default());
            std::process::exit(i32::from(done.is_err()));
        }
        let name = name(arguments.first().map_or_else(Default::default, OsString::as_os_str));
        let matches = Self::command().name(name).bin_name(name).get_matches_from(arguments);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Installs the process's crypto provider, starts the runtime and runs the subcommand to its end.
    ///
    /// # Errors
    /// The subcommand's.
    pub fn run(self) -> Result<(), Error> {
        panics::count();
        self.log.init()?;
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .map_err(|_| "a crypto provider is already installed in this process")?;
        let runtime = match self.command.workers() {
            1 => Builder::new_current_thread().enable_all().build()?,
            workers => Builder::new_multi_thread().worker_threads(workers).enable_all().build()?,
        };
        runtime.block_on(async {
            match self.command {
                Command::Admit(args) => args.run().await,
                Command::Adopt(args) => args.run().await,
                Command::Approve(args) => args.run().await,
                Command::Check(args) => args.run().await,
                Command::Completion(args) => args.run(Self::command()),
                Command::Inject(args) => args.run().await,
                Command::Issue(args) => args.run().await,
                Command::Man(args) => args.run(Self::command()),
                Command::Renew(args) => args.run().await,
                Command::Revoke(args) => args.run().await,
                Command::Rollover(args) => args.run().await,
                Command::Sign(args) => args.run().await,
                Command::Standalone(args) => args.run().await,
                Command::Status(args) => args.run().await,
                Command::Uninject(args) => args.run().await,
            }
        })
    }
}

impl Command {
    /// Threads. The controllers wait for the API server and do little between two of its answers: a second thread would cost
    /// more in handing work over, and in memory of its own, than it brings.
    fn workers(&self) -> usize {
        match self {
            Self::Approve(_) | Self::Sign(_) => 1,
            Self::Admit(args) if args.workers().is_some() => args.workers().unwrap_or(1),
            _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_WORKERS),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_file_name_says_how_the_program_is_called() {
        for (program, expected) in [
            ("etcd-tls-webhook", "etcd-tls-webhook"),
            ("/usr/bin/kubectl-etcd_tls", "kubectl etcd-tls"),
            ("kubectl-etcd_tls", "kubectl etcd-tls"),
            ("", "etcd-tls-webhook"),
        ] {
            assert_eq!(super::name(program.as_ref()), expected, "{program}");
        }
    }

    #[test]
    fn every_subcommands_arguments_go_together() {
        super::Cli::command().debug_assert();
    }
}
