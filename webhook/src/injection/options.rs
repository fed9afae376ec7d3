//! Which options a container's own command line sets, as far as it can be read.
//!
//! etcd and etcdctl refuse to start where an option is given by flag and by environment variable, even by an empty one,
//! so nothing may be set in the environment before this is known.
//!
//! ```text
//! options    what is known of a container
//! programs   which programs its command line and its scripts run, with which words
//! flags      what such words set
//! ```

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::view::{Container, Variable};
use programs::Reader;

mod flags;
mod programs;

/// A program whose options matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Etcd,
    Etcdctl,
}

impl Tool {
    fn of(word: &super::shell::Word) -> Option<Self> {
        match programs::basename(word.text()?) {
            "etcd" => Some(Self::Etcd),
            "etcdctl" => Some(Self::Etcdctl),
            _ => None,
        }
    }
}

/// What a flag is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// This text; `true` for a switch without a value.
    Text(String),
    /// Text with `${NAME}` where only the node or the shell knows more.
    Open(String),
    /// Set, but to what is not written where it was looked for.
    Unknown,
}

/// What a command line says of one tool.
#[derive(Debug, Default)]
pub(super) struct Flags {
    set: BTreeMap<String, Setting>,
    /// Texts that end up on the command line somewhere: what they mention counts as set.
    loose: Vec<String>,
    /// The tool is run, by name.
    pub(super) runs: bool,
}

/// A container's command lines, read.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) etcd: Flags,
    pub(super) etcdctl: Flags,
    /// The image's own entry point runs, with at most flags for arguments.
    pub(super) entrypoint: bool,
    /// Why the flags of etcd cannot be told.
    pub(super) untold: Option<String>,
    /// Why the flags of etcdctl cannot be told.
    pub(super) untold_client: Option<String>,
    /// Variables that a script sets itself.
    pub(super) script_sets: Vec<String>,
}

impl Flags {
    /// What `--name` or `-name` is set to.
    pub(super) fn get(&self, name: &str) -> Option<Setting> {
        self.set
            .get(name)
            .cloned()
            .or_else(|| self.loose.iter().any(|text| mentions(text, name)).then_some(Setting::Unknown))
    }

    /// Whether it is etcd's gRPC proxy or gateway, which have options of their own.
    pub(super) fn is_proxy(&self) -> bool {
        self.loose.first().is_some_and(|word| word == "grpc-proxy" || word == "gateway")
    }

    fn add(&mut self, name: &str, setting: Setting) {
        self.set.insert(name.to_owned(), setting);
    }
}

impl Options {
    /// Reads `command` and `args`, and the programs that probes and hooks run, which share the environment.
    pub(super) fn read(container: &Container<'_>) -> Self {
        let mut options = Self::default();
        let whole: Vec<&str> = container.words("command").chain(container.words("args")).collect();
        // What probes and hooks run gets the container's environment as well.
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| container.object.get(probe));
        let lifecycle = container.object.get("lifecycle");
        let hooks = ["postStart", "preStop"].map(|hook| lifecycle.and_then(|l| l.get(hook)));
        let hooks: Vec<Vec<&str>> = probes.into_iter().chain(hooks).flatten().filter_map(exec).collect();

        let variables = Variables::of(container);
        let written = whole.iter().chain(hooks.iter().flatten()).map(|text| text.len()).sum::<usize>();
        let mut reader = Reader::new(&variables, &mut options, written + variables.bytes());
        let words: Vec<_> = whole.iter().map(|text| reader.expand(text)).collect();
        let explicit = !container.list("command").is_empty();
        match words.first() {
            None => reader.options.entrypoint = true,
            Some(first) if !explicit && first.prefix().0.starts_with('-') => {
                reader.options.entrypoint = true;
                reader.flags(Tool::Etcd, &words);
            }
            Some(_) => reader.argv(&words, 0),
        }
        for hook in hooks {
            reader.hook(&hook);
        }
        if reader.gave_up() {
            let why = "what its command line and scripts put together is too long to be read".to_owned();
            options.untold_client = Some(why.clone());
            options.untold = Some(why);
        }
        if !options.etcd.runs && !options.entrypoint && options.untold.is_none() {
            options.untold =
                Some(format!("{:?} does not name etcd", whole.join(" ").chars().take(80).collect::<String>()));
        }
        options
    }
}

/// The words that a probe or hook runs.
fn exec(hook: &Value) -> Option<Vec<&str>> {
    let command = hook.get("exec")?.get("command")?.as_array()?;
    Some(command.iter().filter_map(|word| word.as_str()).collect())
}

/// A container's environment.
struct Variables<'a> {
    by_name: HashMap<&'a str, Variable<'a>>,
    /// Whether `envFrom` brings others, which nobody here knows.
    from_elsewhere: bool,
}

impl<'a> Variables<'a> {
    fn of(container: &Container<'a>) -> Self {
        let from_elsewhere = !container.list("envFrom").is_empty();
        Self { by_name: container.variables().collect(), from_elsewhere }
    }

    fn get(&self, name: &str) -> Option<Variable<'a>> {
        self.by_name.get(name).copied()
    }

    /// How much text it is.
    fn bytes(&self) -> usize {
        let of = |variable: &Variable<'_>| match variable {
            Variable::Literal(text) => text.len(),
            Variable::From => 0,
        };
        self.by_name.values().map(of).sum()
    }
}

/// Whether `text` holds `-name` or `--name` as a flag of its own.
fn mentions(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = &text[..at];
        let dashes = before.len() - before.trim_end_matches('-').len();
        let free = !before[..before.len() - dashes].ends_with(word);
        (1..=2).contains(&dashes) && free && !text[at + name.len()..].starts_with(word)
    })
}

#[cfg(test)]
mod tests;
