//! Shell completion and man pages, made from the same description of the command line as `--help`.

use std::{fs, io::Write as _, path::PathBuf};

use clap_complete::Shell;

use crate::error::Error;

/// The arguments of `completion`.
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// The shell. For example: source <(etcd-tls-webhook completion bash)
    shell: Shell,
}

impl CompletionArgs {
    /// Prints what the shell has to read.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self, mut command: clap::Command) -> Result<(), Error> {
        let name = command.get_name().to_owned();
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, &name, &mut text);
        // clap_complete 4.6 writes a name with a dash in two ways in what bash reads, so that nothing was offered behind a subcommand.
        let text = String::from_utf8_lossy(&text).replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// The arguments of `man`.
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// The directory, such as ~/.local/share/man/man1. It is created if it does not exist.
    directory: PathBuf,
}

impl ManArgs {
    /// Writes a page for the program and for each of its subcommands.
    ///
    /// # Errors
    /// The directory or a page cannot be written.
    pub fn run(&self, command: clap::Command) -> Result<(), Error> {
        fs::create_dir_all(&self.directory)?;
        clap_mangen::generate_to(command, &self.directory)?;
        Ok(())
    }
}
