//! `etcd-tls-sidecar`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use etcd_tls_sidecar::cli::Cli;
use etcd_tls_telemetry::exit::Exit;

/// One thread: between two renewals there is nothing to do, and nothing shall be held for it.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "there is no log yet")]
            {
                eprintln!("etcd-tls-sidecar: {error}");
            }
            return Exit::System.into();
        }
    };
    let code = runtime.block_on(cli.run());
    // A name that is still being looked up blocks a thread, for as long as the resolver likes. Do not wait for it.
    runtime.shutdown_background();
    code
}
