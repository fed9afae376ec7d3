//! The options that a container's own command line sets, as far as they can be determined.
//!
//! etcd and etcdctl refuse to start where an option is given by flag and by environment variable, even by an empty one. So
//! nothing is set in the environment before this is known. If any part of a command line is not fully understood, the whole
//! command line is undetermined.
//!
//! ```text
//! options       the result for a container
//! environment   its variables, with Kubernetes' own $(NAME) put in
//! shell         its scripts, followed down to the programs they run
//! programs      what a program does with its words: wrappers, shells, programs that run no other
//! fate          what becomes of the container when etcd ends
//! run           what the words and variables of etcd and etcdctl set
//! text          text with holes
//! ```

use std::collections::{BTreeSet, HashMap};

use self::{
    environment::Environment,
    shell::Shell,
    text::{Part, Text},
};
pub(super) use self::{
    fate::{After, Fate},
    programs::Tool,
    run::{Kept, Run, Setting},
    shell::Doubt,
};
use super::{json::Json, view::Container};

mod environment;
mod fate;
mod programs;
mod run;
mod sed;
mod shell;
mod text;

/// The most text that is read for one container, in bytes, put together by its scripts or not. Real ones are a hundredth.
const MAX_TEXT: usize = 2 * 1024 * 1024;
/// Commands of etcdctl, by which it is seen that it is the program of an image.
const COMMANDS: &str =
    "snapshot member endpoint defrag get put del compaction alarm user role auth lease move-leader txn check watch";

/// A container's command lines, read.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Each run of etcd and etcdctl, those of probes and hooks included.
    pub(super) runs: Vec<Run>,
    /// The image's own entry point runs, with at most flags for arguments.
    pub(super) entrypoint: bool,
    /// An image whose scripts give etcdctl its certificates by flag.
    pub(super) own_client_flags: bool,
    /// Where and what it runs, which is all known and no etcd.
    pub(super) idle: Option<String>,
    /// Why the flags of etcd are undetermined.
    pub(super) undetermined: Option<Doubt>,
    /// Why the flags of etcdctl are undetermined.
    pub(super) undetermined_client: Option<Doubt>,
    /// What becomes of the container when etcd ends.
    pub(super) after: After,
    /// The container's environment.
    pub(super) variables: HashMap<String, Setting>,
}

impl Options {
    /// Reads `command` and `args`, and the programs that probes and hooks run, which share the environment.
    pub(super) fn read(container: &Container<'_>) -> Self {
        let commands = container.list("command").len();
        let line: Vec<&str> = container.words("command").chain(container.words("args")).collect();
        let hooks: Vec<(String, Vec<&str>)> = hooks(container).collect();
        let written =
            line.iter().chain(hooks.iter().flat_map(|(_, words)| words)).map(|word| word.len()).sum::<usize>();
        let variables: usize = container.list("env").iter().map(|e| e.get("value").as_str().map_or(8, str::len)).sum();
        let left = MAX_TEXT.min(container.room + 32 * (written + variables));
        let mut environment = Environment::of(container, left);

        let mut options = Self::default();
        let words: Vec<Text> = line.iter().map(|word| argument(environment.expand(word))).collect();
        let hooks: Vec<(String, Vec<Text>)> = hooks
            .into_iter()
            .map(|(place, words)| (place, words.iter().map(|word| argument(environment.expand(word))).collect()))
            .collect();
        if environment.left == 0 {
            let doubt = Doubt { why: "puts together more than is read".to_owned(), place: "env".to_owned() };
            let after = unknown(&doubt);
            return Self { undetermined: Some(doubt.clone()), undetermined_client: Some(doubt), after, ..options };
        }
        let left = environment.left;
        let mut shell = Shell::new(&environment, left);
        let place = |at: usize| match at.checked_sub(commands) {
            Some(at) => format!("args[{at}]"),
            None => format!("command[{at}]"),
        };
        let run = Run::read(Tool::Etcdctl, &words, String::new());
        let client = commands == 0 && run.words.first().is_some_and(|word| programs::has(COMMANDS, word));
        let flags = words.first().is_none_or(|first| first.prefix().starts_with('-'));
        options.entrypoint = commands == 0 && flags && !client;
        let followed = match options.entrypoint || client {
            true if words.is_empty() => Ok(()),
            true => {
                shell.tool(if client { Tool::Etcdctl } else { Tool::Etcd }, &words, &[], "args");
                Ok(())
            }
            false => shell.program(&words, &[], &place),
        };
        options.after = shell.after();
        let is_seen = options.entrypoint || shell.runs.iter().any(|run| run.image || run.tool == Some(Tool::Etcd));
        let undetermined = shell.doubts.get(&Tool::Etcd).filter(|_| !is_seen);
        if let Some(doubt) = followed.as_ref().err().or(undetermined) {
            options.after = options.after.or(unknown(doubt));
        }
        options.undetermined = shell.doubts.remove(&Tool::Etcd);
        options.undetermined_client = shell.doubts.remove(&Tool::Etcdctl);
        if let Err(doubt) = followed {
            options.undetermined = Some(doubt.clone());
            options.undetermined_client = Some(doubt);
        }
        options.runs = shell.runs;
        for (place, words) in hooks {
            // It is etcdctl's flags alone that matter.
            let mut shell = Shell::new(&environment, left);
            let followed = shell.program(&words, &[], &|at| format!("{place}[{at}]"));
            let doubt = followed.err().or_else(|| shell.doubts.remove(&Tool::Etcdctl));
            options.undetermined_client = options.undetermined_client.or(doubt);
            options.runs.extend(shell.runs.into_iter().filter(|run| run.tool != Some(Tool::Etcd)));
        }
        let image = options.runs.iter().any(|run| run.image);
        options.entrypoint |= image && !options.runs_etcd();
        let name = container.object.get("image").and_then(Json::as_str).unwrap_or_default();
        options.own_client_flags =
            image || (options.entrypoint && name.split('/').any(|part| part.starts_with("bitnami")));
        if !options.runs_etcd() && !options.entrypoint && options.undetermined.is_none() {
            let line: String = line.join(" ").chars().take(80).collect();
            options.idle = Some(format!("{} runs {line:?}", place(0)));
        }
        options.variables = environment.by_name.into_iter().map(|(name, text)| (name, Setting::of(&text))).collect();
        options
    }

    /// The runs of a tool.
    pub(super) fn runs_of(&self, tool: Tool) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.tool == Some(tool))
    }

    /// True if etcd is run, by name.
    pub(super) fn runs_etcd(&self) -> bool {
        self.runs_of(Tool::Etcd).next().is_some()
    }

    /// The value of a flag, `--name` or `-name`, in any run of a tool.
    pub(super) fn flag(&self, tool: Tool, name: &str) -> Option<Setting> {
        let set = || self.runs_of(tool).filter_map(|run| run.flags.get(name));
        let first = set().next()?;
        if set().all(|setting| setting == first) {
            return Some(first.clone());
        }
        let settings: BTreeSet<&Setting> = set().collect();
        let known: Vec<&Setting> = settings.iter().copied().filter(|s| **s != Setting::Unknown).collect();
        match known.as_slice() {
            [one] => Some((*one).clone()),
            several => {
                let text = |setting: &&Setting| match setting {
                    Setting::Text(text) | Setting::Open(text) => text.clone(),
                    Setting::Unknown => String::new(),
                };
                Some(Setting::Open(several.iter().map(text).collect::<Vec<_>>().join(",")))
            }
        }
    }

    /// True if it is etcd's gRPC proxy or gateway, which have options of their own.
    pub(super) fn is_proxy(&self) -> bool {
        self.runs_of(Tool::Etcd)
            .any(|run| run.words.first().is_some_and(|word| word == "grpc-proxy" || word == "gateway"))
    }

    /// The value that the pod or its scripts give a variable.
    pub(super) fn variable(&self, tool: Tool, variable: &str) -> Option<Setting> {
        let set = self.kept(tool, variable).find_map(|(_, kept)| match kept {
            Kept::Set(text) => Some(Setting::Open(text.clone())),
            _ => None,
        });
        set.or_else(|| self.variables.get(variable).cloned())
    }

    /// True if a variable is set, or may be, for a run of its tool.
    pub(super) fn is_set(&self, run: &Run, variable: &str) -> bool {
        match run.variables.get(variable) {
            None => self.variables.contains_key(variable),
            Some(kept) => matches!(kept, Kept::Set(_) | Kept::Unclear),
        }
    }

    /// The values that scripts give a variable, for each run of `tool` for which they change it.
    pub(super) fn kept<'a>(&'a self, tool: Tool, variable: &'a str) -> impl Iterator<Item = (&'a Run, &'a Kept)> {
        self.runs_of(tool).filter_map(move |run| Some((run, run.variables.get(variable)?)))
    }
}

/// Nothing is known of a script that is not understood to its end.
fn unknown(doubt: &Doubt) -> After {
    After { fate: Fate::Unknown, why: format!("{} {}", doubt.place, doubt.why) }
}

/// An argument as a program gets it: no shell parts it.
fn argument(mut text: Text) -> Text {
    for part in &mut text.0 {
        if let Part::Hole(_, _, quoted) = part {
            *quoted = true;
        }
    }
    text
}

/// The commands of probes and hooks.
pub(super) fn hooks<'a>(container: &Container<'a>) -> impl Iterator<Item = (String, Vec<&'a str>)> {
    let object = container.object;
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|name| ("", name, object.get(name)));
    let lifecycle = object.get("lifecycle");
    let hooks = ["postStart", "preStop"].map(|name| ("lifecycle.", name, lifecycle.map(|l| l.get(name))));
    probes.into_iter().chain(hooks).filter_map(|(of, name, hook)| {
        let command = hook?.get("exec").get("command").as_array()?;
        Some((format!("{of}{name}.exec.command"), command.iter().filter_map(Json::as_str).collect()))
    })
}

#[cfg(test)]
mod tests;
