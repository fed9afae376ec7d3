//! The process that answers admission reviews.

use crate::cli::Error;

/// The arguments of `admit`.
#[derive(clap::Args, Debug)]
pub struct Args {}

impl Args {
    /// Serves until told to stop.
    ///
    /// # Errors
    /// What kept it from serving.
    pub async fn run(self) -> Result<(), Error> {
        let Self {} = self;
        todo!()
    }
}
