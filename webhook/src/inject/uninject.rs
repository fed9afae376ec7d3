//! `uninject`: the manifests as they were before `inject`.

use std::{io::Write, path::PathBuf};

use serde_json::Value;

use super::{
    InjectError, documents, foreign,
    original::{self, Original},
    read,
};
use crate::error::Error;

/// The arguments of `uninject`.
#[derive(clap::Args, Debug)]
pub struct UninjectArgs {
    /// A file with one or more manifests that `inject` wrote; - is standard input. Can be repeated.
    #[arg(short = 'f', long = "filename", required = true)]
    filenames: Vec<PathBuf>,
}

impl UninjectArgs {
    /// Reads, gives back, writes. Nothing is written unless all of it can be.
    ///
    /// # Errors
    /// Unreadable input, or the documents that cannot be restored.
    #[allow(clippy::unused_async)] // As every subcommand.
    pub async fn run(self) -> Result<(), Error> {
        let (mut problems, mut out) = (Vec::new(), String::new());
        for filename in &self.filenames {
            let name = filename.display();
            let text = read(filename)?;
            match uninject(&text) {
                Ok(text) => documents::join(&mut out, &text),
                Err(InjectError(found)) => problems.extend(found.iter().map(|problem| format!("{name}: {problem}"))),
            }
        }
        if !problems.is_empty() {
            return Err(InjectError(problems).into());
        }
        std::io::stdout().lock().write_all(out.as_bytes())?;
        Ok(())
    }
}

/// Gives back each document of `text` as it was before `inject`, byte for byte; others stay as they are.
///
/// # Errors
/// Every document that was injected into and does not hold what it was, or was changed since.
pub fn uninject(text: &str) -> Result<String, InjectError> {
    let (mut out, mut problems) = (String::new(), Vec::new());
    for (index, document) in documents::split(text).into_iter().enumerate() {
        let what = |value: &Value| {
            let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = [&value["metadata"]["name"], &value["metadata"]["generateName"]].map(of).concat();
            format!("document {}: {} {name}", index + 1, of(&value["kind"]))
        };
        match (original::find(&document), document.read()) {
            (Original::Kept(original), _) => out.push_str(&original),
            (_, Ok(Some(value))) if original::holds_ours(&value) => problems.push(format!(
                "{}: it was injected, and {}; take the manifest from where it was kept before",
                what(&value),
                match original::find(&document) {
                    Original::Changed => "changed since, so what it was before is not known",
                    _ => "does not hold what it was before: it is from the API server, of an older version, or JSON of more than 48 KiB",
                }
            )),
            (_, Err(error)) if !foreign::passes_unread(document.raw) => {
                problems.push(format!("document {}: {error}", index + 1));
            }
            _ => out.push_str(document.raw),
        }
    }
    if problems.is_empty() { Ok(out) } else { Err(InjectError(problems)) }
}
