//! Which programs a command line runs: through wrappers, shells and their scripts, down to etcd and etcdctl.

use std::{collections::BTreeMap, sync::Arc};

use super::{Options, Tool, Variables, flags::part_text};
use crate::injection::shell::{self, Part, Word};

/// How deep shells within shells are read.
pub(super) const MAX_DEPTH: usize = 4;

const SHELLS: [&str; 6] = ["sh", "bash", "ash", "dash", "ksh", "zsh"];

/// Programs that run the program named behind them.
const WRAPPERS: [&str; 24] = [
    "exec",
    "nice",
    "ionice",
    "env",
    "nohup",
    "time",
    "timeout",
    "tini",
    "dumb-init",
    "setpriv",
    "numactl",
    "chrt",
    "taskset",
    "gosu",
    "su-exec",
    "sudo",
    "command",
    "catatonit",
    "stdbuf",
    "setsid",
    "unshare",
    "runuser",
    "su",
    "tini-static",
];

/// Scripts of known images that take etcd's options from the environment alone.
const ENVIRONMENT_SCRIPTS: [&str; 2] = ["/opt/bitnami/scripts/etcd/entrypoint.sh", "/opt/bitnami/scripts/etcd/run.sh"];

/// The most text that is read for one container, in bytes, put together by its scripts or not. Real ones are a hundredth.
const MAX_TEXT: usize = 2 * 1024 * 1024;

/// Reads the command lines of one container.
///
/// A script can say `set -- "$@" "$@"`, and a variable hold others that hold others, so that a small pod is an endless
/// command line: whatever is put together is paid for out of an allowance of some times what is written.
pub(super) struct Reader<'r, 'a> {
    pub(super) variables: &'r Variables<'a>,
    pub(super) options: &'r mut Options,
    /// What the scripts read so far assign.
    pub(super) assigned: BTreeMap<String, Arc<Vec<Word>>>,
    /// The words behind a script: `$@`.
    pub(super) rest: Vec<Word>,
    /// How much more is read, in bytes; `None`: it was more than that.
    left: Option<usize>,
}

impl<'r, 'a> Reader<'r, 'a> {
    /// For a container with `written` bytes of command lines and environment.
    pub(super) fn new(variables: &'r Variables<'a>, options: &'r mut Options, written: usize) -> Self {
        let left = MAX_TEXT.min(4096 + 32 * written);
        Self { variables, options, assigned: BTreeMap::new(), rest: Vec::new(), left: Some(left) }
    }

    /// Whether something was too long to be read.
    pub(super) fn gave_up(&self) -> bool {
        self.left.is_none()
    }

    /// Whether there is allowance for `bytes` more, which are then paid.
    pub(super) fn afford(&mut self, bytes: usize) -> bool {
        self.left = self.left.and_then(|left| left.checked_sub(bytes));
        self.left.is_some()
    }

    /// [`Self::afford`], for words.
    pub(super) fn afford_words(&mut self, words: &[Word]) -> bool {
        self.left.is_some() && self.afford(words.iter().map(cost).sum())
    }

    /// A probe's or hook's command: it is the tool's flags alone that matter, not whether it can be told.
    pub(super) fn hook(&mut self, command: &[&str]) {
        let words: Vec<Word> = command.iter().map(|word| self.expand(word)).collect();
        let (runs, untold, untold_client) =
            (self.options.etcd.runs, self.options.untold.take(), self.options.untold_client.take());
        let script_sets = self.options.script_sets.len();
        self.argv(&words, 0);
        self.options.etcd.runs = runs;
        self.options.untold = untold;
        self.options.untold_client = untold_client;
        self.options.script_sets.truncate(script_sets);
    }

    /// A program and its arguments, not by way of a shell.
    pub(super) fn argv(&mut self, words: &[Word], depth: usize) {
        if !self.afford_words(words) {
            return;
        }
        let Some(program) = words.first() else { return };
        if let Some(tool) = Tool::of(program) {
            return self.flags(tool, &words[1..]);
        }
        let Some(text) = program.text() else {
            return self.untold("the program's name is a variable".to_owned());
        };
        let name = basename(text);
        if SHELLS.contains(&name) {
            return self.shell(&words[1..], depth);
        }
        if let ("su" | "runuser", Some(at)) = (name, words.iter().position(|w| w.text() == Some("-c"))) {
            return self.shell(&words[at..], depth);
        }
        if WRAPPERS.contains(&name) {
            let inner = words
                .iter()
                .enumerate()
                .skip(1)
                .find(|(_, w)| Tool::of(w).is_some() || w.text().is_some_and(|t| SHELLS.contains(&basename(t))));
            return match inner {
                Some((index, _)) => self.argv(&words[index..], depth + 1),
                None if words.iter().skip(1).any(is_positional) => {
                    let rest = std::mem::take(&mut self.rest);
                    self.argv(&rest, depth + 1);
                    self.rest = rest;
                }
                None => self.unknown_program(words),
            };
        }
        self.unknown_program(words);
    }

    fn unknown_program(&mut self, words: &[Word]) {
        let script = words.iter().filter_map(Word::text).find(|text| is_script(text));
        if words.iter().filter_map(Word::text).all(|t| ENVIRONMENT_SCRIPTS.contains(&t)) {
            self.options.entrypoint = true;
        } else if let Some(script) = script {
            let why = format!("what the script {script:?} does is not written in the pod");
            self.options.untold_client.get_or_insert_with(|| why.clone());
            self.untold(why);
        }
    }

    pub(super) fn untold(&mut self, why: String) {
        self.options.untold.get_or_insert(why);
    }

    /// A shell's arguments.
    fn shell(&mut self, words: &[Word], depth: usize) {
        let mut command_string = false;
        for (index, word) in words.iter().enumerate() {
            let Some(text) = word.text() else {
                if command_string
                    || word.0.iter().any(|p| matches!(p, Part::Literal(t) if t.contains(char::is_whitespace)))
                {
                    // Kubernetes put a value that nobody here knows into the script.
                    let script: String = word.0.iter().map(part_text).collect();
                    return self.script(&script, &words[index + 1..], depth);
                }
                self.options.untold_client.get_or_insert_with(|| "the script's name is a variable".to_owned());
                return self.untold("the script's name is a variable".to_owned());
            };
            if command_string {
                if text.starts_with('-') && text != "-" {
                    continue;
                }
                return self.script(text, &words[index + 1..], depth);
            }
            match text.strip_prefix('-').or_else(|| text.strip_prefix('+')) {
                Some(letters) if !letters.starts_with('-') => command_string |= letters.contains('c'),
                Some(_) => {}
                // `-o pipefail`, `-euo pipefail`
                None if index > 0
                    && words[index - 1].text().is_some_and(|t| t.starts_with('-') && t.ends_with('o')) => {}
                None => return self.unknown_script(text, words),
            }
        }
        let why = "a shell is started without a script".to_owned();
        self.untold(why);
    }

    fn unknown_script(&mut self, script: &str, words: &[Word]) {
        if ENVIRONMENT_SCRIPTS.contains(&script) {
            return self.unknown_program(words);
        }
        let why = format!("what the script {script:?} does is not written in the pod");
        self.options.untold_client.get_or_insert_with(|| why.clone());
        self.untold(why);
    }

    /// A shell's script.
    fn script(&mut self, script: &str, rest: &[Word], depth: usize) {
        if depth > MAX_DEPTH {
            return self.untold("shells within shells".to_owned());
        }
        if !self.afford(script.len()) {
            return;
        }
        // The word behind the script is $0.
        let outer = std::mem::replace(&mut self.rest, rest.get(1..).unwrap_or_default().to_vec());
        let commands = shell::commands(script);
        for command in &commands {
            let exports = command.words.first().and_then(Word::text).is_some_and(|w| w == "export" || w == "declare");
            let exported = command.words.iter().skip(1).filter(|_| exports).filter_map(split_assignment);
            for (name, value) in command.assignments.iter().cloned().chain(exported) {
                if name.starts_with("ETCD_") || name.starts_with("ETCDCTL_") {
                    self.options.script_sets.push(name.clone());
                }
                Arc::make_mut(self.assigned.entry(name).or_default()).push(value);
            }
        }
        for command in &commands {
            let words = self.with_known_program(&command.words);
            match words.first() {
                None => {}
                Some(first) if first.text() == Some("set") && words.get(1).and_then(Word::text) == Some("--") => {
                    let before = std::mem::take(&mut self.rest);
                    for word in &words[2..] {
                        let more = if is_positional(word) { before.as_slice() } else { std::slice::from_ref(word) };
                        if self.afford_words(more) {
                            self.rest.extend_from_slice(more);
                        }
                    }
                }
                Some(first) if is_positional(first) => {
                    let rest = std::mem::take(&mut self.rest);
                    self.argv(&rest, depth + 1);
                    self.rest = rest;
                }
                Some(first) => {
                    let known = first.text().map(basename);
                    let runs = Tool::of(first).is_some()
                        || known.is_some_and(|name| SHELLS.contains(&name) || WRAPPERS.contains(&name));
                    if runs || known.is_some_and(|_| first.text().is_some_and(is_script)) {
                        self.argv(&words, depth + 1);
                    }
                }
            }
        }
        self.rest = outer;
    }

    /// The words with a program that is a variable replaced by what the script or the environment assigns to it.
    fn with_known_program(&mut self, words: &[Word]) -> Vec<Word> {
        let mut words = words.to_vec();
        for word in words.iter_mut().take(4) {
            if let [Part::Variable { name, modifier, .. }] = word.0.as_slice() {
                let default = modifier.strip_prefix(":-").or_else(|| modifier.strip_prefix('-')).map(str::to_owned);
                let known = self.texts(name).and_then(|texts| texts.into_iter().next()).or(default);
                if let Some(text) = known.filter(|t| !t.contains(char::is_whitespace) && !t.starts_with('-')) {
                    *word = Word::literal(&text);
                }
            }
        }
        words
    }
}

fn split_assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Literal(first)) = word.0.first() else { return None };
    let (name, value) = first.split_once('=')?;
    let mut parts = vec![Part::Literal(value.to_owned())];
    parts.extend(word.0[1..].iter().cloned());
    Some((name.to_owned(), Word(parts)))
}

pub(super) fn is_positional(word: &Word) -> bool {
    matches!(word.0.as_slice(), [Part::Variable { name, .. }] if name == "@" || name == "*")
}

fn is_script(text: &str) -> bool {
    [".sh", ".bash"].iter().any(|end| text.ends_with(end))
}

pub(super) fn basename(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
}

/// A word in bytes, with what keeping it takes.
pub(super) fn cost(word: &Word) -> usize {
    let of = |part: &Part| match part {
        Part::Literal(text) => text.len(),
        Part::Variable { name, modifier, .. } => name.len() + modifier.len(),
        Part::Substitution => 0,
    };
    word.0.iter().map(|part| 16 + of(part)).sum::<usize>() + 16
}
