//! Shell completion and man pages, made from the same description of the command line as `--help`.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use clap_complete::Shell;

use crate::error::{Error, OfFile};

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

/// Says nothing more is to be offered, such as names of files: a directive of cobra, on the last line.
const NO_FILES: &str = ":4";

/// Prints what may stand in the place of the last word, for kubectl, which runs a program of this name to complete `kubectl etcd-tls`
/// (<https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/>).
///
/// # Errors
/// Standard output cannot be written.
pub fn complete(command: &clap::Command, words: &[OsString]) -> io::Result<()> {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut text = String::new();
    for (word, help) in offers(command, &words) {
        let _ = writeln!(text, "{word}\t{help}");
    }
    writeln!(io::stdout(), "{text}{NO_FILES}")
}

/// The words that may stand in the place of the last one of `words`, each with its help.
fn offers(command: &clap::Command, words: &[String]) -> Vec<(String, String)> {
    let (begun, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let mut command = command.clone();
    command.build();
    let mut valued: Option<clap::Arg> = None;
    for word in before {
        if valued.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            let named = |arg: &&clap::Arg| {
                let long = arg.get_long().is_some_and(|long| *word == format!("--{long}"));
                long || arg.get_short().is_some_and(|short| *word == format!("-{short}"))
            };
            valued = command.get_arguments().find(named).filter(|arg| arg.get_action().takes_values()).cloned();
        } else if let Some(next) = command.find_subcommand(word) {
            command = next.clone();
        }
    }
    let first = |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string).unwrap_or_default();
    let values = |arg: &clap::Arg| -> Vec<(String, String)> {
        let all = arg.get_possible_values();
        all.iter().map(|value| (value.get_name().to_owned(), first(value.get_help()))).collect()
    };
    let mut all = Vec::new();
    if let Some(arg) = &valued {
        all.extend(values(arg));
    } else if begun.starts_with('-') {
        let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
        all.extend(shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first(arg.get_help())))));
    } else {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        all.extend(shown.map(|command| (command.get_name().to_owned(), first(command.get_about()))));
        all.extend(command.get_positionals().flat_map(values));
    }
    all.retain(|(word, _)| word.starts_with(begun));
    // One line each.
    all.into_iter().map(|(word, help)| (word, help.lines().next().unwrap_or_default().to_owned())).collect()
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
        let written = fs::create_dir_all(&self.directory);
        written
            .and_then(|()| clap_mangen::generate_to(command, &self.directory))
            .map_err(|error| OfFile::new(&self.directory, error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn subcommands_flags_and_values_are_offered() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            offers(&Cli::command(), &words).into_iter().map(|(word, _)| word).collect::<Vec<_>>()
        };
        assert_eq!(of("rollo"), ["rollover"]);
        assert!(of("").len() > 12);
        assert_eq!(of("check na"), ["namespace"]);
        assert_eq!(of("rollover --confirm"), ["--confirm-clients"]);
        assert_eq!(of("status -n web -o js"), ["json"]);
        assert_eq!(of("status --output y"), ["yaml"]);
        assert_eq!(of("completion b"), ["bash"]);
        assert!(of("status -n ").is_empty(), "a name that it does not know");
    }
}
