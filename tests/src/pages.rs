//! The commands of docs/, as they stand there, and a shell to type them in.

use std::{env, fs, path::Path, process::Command};

use crate::{process::binary, repository};

fn text(page: &str) -> String {
    fs::read_to_string(repository().join("docs").join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The indented blocks of a section of a page, each without the indentation.
///
/// # Panics
/// The page has no such section, or the section no block.
pub fn blocks(page: &str, section: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut inside, mut open) = (false, false);
    for line in text(page).lines() {
        if line.starts_with('#') {
            (inside, open) = (line.trim_start_matches('#').trim() == section, false);
        } else if let Some(line) = line.strip_prefix("    ").filter(|_| inside) {
            match found.last_mut().filter(|_| open) {
                Some(block) => *block = format!("{block}\n{line}"),
                None => found.push(line.to_owned()),
            }
            open = true;
        } else {
            open = false;
        }
    }
    assert!(!found.is_empty(), "{page} has no block under {section}");
    found
}

/// The code in a sentence of a page that begins so.
///
/// # Panics
/// There is none.
pub fn inline(page: &str, beginning: &str) -> String {
    let text = text(page);
    let found = text.split('`').skip(1).step_by(2).find(|code| code.starts_with(beginning));
    found.unwrap_or_else(|| panic!("{page} has no code that begins with {beginning}")).to_owned()
}

/// A PATH with the built programs, and those of `more`.
pub fn path(more: &[&Path]) -> String {
    let ours = binary("etcd-tls-webhook").parent().expect("a directory").to_owned();
    let more = more.iter().map(|path| path.display().to_string());
    let all = std::iter::once(ours.display().to_string()).chain(more).chain(env::var("PATH"));
    all.collect::<Vec<_>>().join(":")
}

/// Runs a script of bash in `directory`, for four minutes at most; what it prints.
///
/// # Errors
/// It failed: what it printed, and its standard error.
pub fn bash(directory: &Path, path: &str, kubeconfig: Option<&Path>, script: &str) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["240", "bash", "-c", script]).current_dir(directory).env("PATH", path).env_remove("KUBECONFIG");
    command.envs(kubeconfig.map(|file| ("KUBECONFIG", file)));
    let output = command.output().expect("run bash");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout);
    if output.status.success() { Ok(said) } else { Err(format!("{script}\n{said}{}", text(&output.stderr))) }
}
