//! Injection without a cluster: manifests in, manifests out.

use crate::cli::Error;

/// The arguments of `inject`.
#[derive(clap::Args, Debug)]
pub struct Args {}

impl Args {
    /// Reads, injects, writes.
    ///
    /// # Errors
    /// What could not be read, or which pods cannot be injected into.
    pub async fn run(self) -> Result<(), Error> {
        let Self {} = self;
        todo!()
    }
}
