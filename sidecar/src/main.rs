//! `etcd-tls-sidecar`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use etcd_tls_sidecar::cli::Cli;

/// One thread: between two renewals there is nothing to do, and nothing shall be held for it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
