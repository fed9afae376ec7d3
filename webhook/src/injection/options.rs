//! Which options a container's own command line sets, as far as it can be read.
//!
//! etcd and etcdctl refuse to start where an option is given by flag and by environment variable, even by an empty one,
//! so nothing may be set in the environment before this is known.

use std::collections::BTreeMap;

use super::{
    shell::{self, Part, Word},
    view::{Container, Variable},
};
use crate::json::Json;

/// How deep shells within shells are read.
const MAX_DEPTH: usize = 4;

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

/// etcd's flags without a value: the word behind one is another flag, not its value.
const SWITCHES: [&str; 33] = [
    "auto-tls",
    "client-cert-auth",
    "debug",
    "enable-grpc-gateway",
    "enable-log-rotation",
    "enable-pprof",
    "enable-v2",
    "experimental-compact-hash-check-enabled",
    "experimental-corrupt-check",
    "experimental-enable-distributed-tracing",
    "experimental-enable-lease-checkpoint",
    "experimental-enable-lease-checkpoint-persist",
    "experimental-initial-corrupt-check",
    "experimental-memory-mlock",
    "experimental-peer-skip-client-san-verification",
    "experimental-stop-grpc-service-on-defrag",
    "experimental-txn-mode-write-with-shared-buffer",
    "force-new-cluster",
    "h",
    "help",
    "initial-election-tick-advance",
    "insecure-skip-tls-verify",
    "insecure-transport",
    "peer-auto-tls",
    "peer-client-cert-auth",
    "peer-skip-client-san-verification",
    "pre-vote",
    "socket-reuse-address",
    "socket-reuse-port",
    "strict-reconfig-check",
    "unsafe-no-fsync",
    "version",
    "write-out-hex",
];

/// A program whose options matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Etcd,
    Etcdctl,
}

impl Tool {
    fn of(word: &Word) -> Option<Self> {
        match basename(word.text()?) {
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
        let mut words: Vec<Word> = Vec::new();
        let mut whole: Vec<&str> = Vec::new();
        for text in container.words("command").chain(container.words("args")) {
            whole.push(text);
            words.push(expand(text, container));
        }
        let explicit = !container.list("command").is_empty();
        let mut reader = Reader { container, options: &mut options, assigned: BTreeMap::new(), rest: Vec::new() };
        match words.first() {
            None => reader.options.entrypoint = true,
            Some(first) if !explicit && first.prefix().0.starts_with('-') => {
                reader.options.entrypoint = true;
                reader.flags(Tool::Etcd, &words);
            }
            Some(_) => reader.argv(&words, 0),
        }
        // What probes and hooks run gets the container's environment as well.
        for hook in ["livenessProbe", "readinessProbe", "startupProbe"] {
            reader.hook(container.object.get(hook));
        }
        if let Some(lifecycle) = container.object.get("lifecycle") {
            reader.hook(lifecycle.get("postStart"));
            reader.hook(lifecycle.get("preStop"));
        }
        if !options.etcd.runs && !options.entrypoint && options.untold.is_none() {
            options.untold =
                Some(format!("{:?} does not name etcd", whole.join(" ").chars().take(80).collect::<String>()));
        }
        options
    }
}

struct Reader<'r, 'a> {
    container: &'r Container<'a>,
    options: &'r mut Options,
    /// What the scripts read so far assign.
    assigned: BTreeMap<String, Vec<Word>>,
    /// The words behind a script: `$@`.
    rest: Vec<Word>,
}

impl Reader<'_, '_> {
    /// A probe's or hook's command: it is the tool's flags alone that matter, not whether it can be told.
    fn hook(&mut self, probe: Option<&Json<'_>>) {
        let command = probe.and_then(|p| p.get("exec")).and_then(|e| e.get("command")).and_then(|c| c.as_array());
        let Some(command) = command else { return };
        let words: Vec<Word> = command.iter().filter_map(|w| w.as_str()).map(|w| expand(w, self.container)).collect();
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
    fn argv(&mut self, words: &[Word], depth: usize) {
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

    fn untold(&mut self, why: String) {
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
                self.assigned.entry(name).or_default().push(value);
            }
        }
        for command in &commands {
            let words = self.with_known_program(&command.words);
            match words.first() {
                None => {}
                Some(first) if first.text() == Some("set") && words.get(1).and_then(Word::text) == Some("--") => {
                    let before = std::mem::take(&mut self.rest);
                    for word in &words[2..] {
                        if is_positional(word) {
                            self.rest.extend(before.iter().cloned());
                        } else {
                            self.rest.push(word.clone());
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
    fn with_known_program(&self, words: &[Word]) -> Vec<Word> {
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

    /// A tool's own arguments.
    fn flags(&mut self, tool: Tool, words: &[Word]) {
        self.flags_of(tool).runs = true;
        let mut index = 0;
        while let Some(word) = words.get(index) {
            index += 1;
            let (prefix, whole) = word.prefix();
            let dashes = prefix.len() - prefix.trim_start_matches('-').len();
            if dashes == 0 {
                self.loose_word(tool, word);
                continue;
            }
            let name_and_value = &prefix[dashes.min(2)..];
            let (name, value) = match name_and_value.split_once('=') {
                Some((name, value)) if whole => (name, Setting::Text(value.to_owned())),
                Some((name, _)) => {
                    let text: String = word.0.iter().map(part_text).collect();
                    (name, Setting::Open(text.split_once('=').map_or_else(String::new, |(_, v)| v.to_owned())))
                }
                None if !whole => {
                    self.loose_word(tool, word);
                    continue;
                }
                None if name_and_value.is_empty() || SWITCHES.contains(&name_and_value) => {
                    (name_and_value, Setting::Text("true".to_owned()))
                }
                None => {
                    let next = words.get(index).filter(|w| !w.prefix().0.starts_with('-'));
                    index += usize::from(next.is_some());
                    let value = match next {
                        None => Setting::Unknown,
                        Some(next) => match next.text() {
                            Some(text) => Setting::Text(text.to_owned()),
                            None => Setting::Open(next.0.iter().map(part_text).collect()),
                        },
                    };
                    (name_and_value, value)
                }
            };
            self.flags_of(tool).add(name, value);
        }
    }

    /// A word in a flag's place that is no flag by its own text.
    fn loose_word(&mut self, tool: Tool, word: &Word) {
        if is_positional(word) {
            let rest = std::mem::take(&mut self.rest);
            self.flags(tool, &rest);
            self.rest = rest;
            return;
        }
        for part in &word.0 {
            match part {
                Part::Literal(text) => {
                    // Text that an unquoted variable of the pod brought: it may hold several flags.
                    self.flags_of(tool).loose.push(text.clone());
                }
                // A quoted expansion is one word, and etcdctl takes words that are no flags.
                Part::Variable { quoted: true, .. } | Part::Substitution if tool == Tool::Etcdctl => {}
                Part::Substitution => self.untold_flags(tool, "a command substitution".to_owned()),
                Part::Variable { name, modifier, .. } => {
                    match self.texts(name) {
                        Some(texts) => self.flags_of(tool).loose.extend(texts),
                        None => self.untold_flags(tool, format!("${{{name}}}")),
                    }
                    self.flags_of(tool).loose.push(modifier.clone());
                }
            }
        }
    }

    fn untold_flags(&mut self, tool: Tool, what: String) {
        match tool {
            Tool::Etcd => self.untold(format!("{what} may hold flags of etcd")),
            Tool::Etcdctl => {
                self.options.untold_client.get_or_insert_with(|| format!("{what} may hold flags of etcdctl"));
            }
        }
    }

    /// Everything that a variable may hold, where that is written in the pod.
    fn texts(&self, name: &str) -> Option<Vec<String>> {
        self.texts_within(name, 0)
    }

    fn texts_within(&self, name: &str, depth: usize) -> Option<Vec<String>> {
        let Some(words) = self.assigned.get(name) else {
            return match self.container.variable(name)? {
                Variable::Literal(text) => Some(vec![text.to_owned()]),
                Variable::From => None,
            };
        };
        if depth > MAX_DEPTH {
            return None;
        }
        let mut texts: Vec<String> = Vec::new();
        for word in words {
            let mut so_far = String::new();
            for part in &word.0 {
                match part {
                    Part::Literal(text) => so_far.push_str(text),
                    // A flag's value is no flag, whatever it is.
                    part if ends_in_value(&so_far) => so_far.push_str(&part_text(part)),
                    Part::Variable { name: inner, .. } if inner == name => {}
                    Part::Variable { name: inner, .. } => texts.extend(self.texts_within(inner, depth + 1)?),
                    Part::Substitution => return None,
                }
            }
            texts.push(so_far);
        }
        Some(texts)
    }

    fn flags_of(&mut self, tool: Tool) -> &mut Flags {
        match tool {
            Tool::Etcd => &mut self.options.etcd,
            Tool::Etcdctl => &mut self.options.etcdctl,
        }
    }
}

/// A word of `command` or `args` after Kubernetes' own `$(NAME)`: what the pod writes out is put in, the rest stays open.
fn expand(text: &str, container: &Container<'_>) -> Word {
    let mut parts: Vec<Part> = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            literal.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match container.variable(name) {
                Some(Variable::Literal(value)) if !value.contains('$') => literal.push_str(value),
                Some(_) => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Variable { name: name.to_owned(), modifier: String::new(), quoted: true });
                }
                // The kubelet leaves what it does not know, `$(hostname)` for instance, to the shell.
                None => {
                    literal.push_str("$(");
                    literal.push_str(name);
                    literal.push(')');
                }
            }
            rest = after;
        } else {
            literal.push('$');
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || parts.is_empty() {
        parts.push(Part::Literal(literal));
    }
    // What envFrom brings is expanded as well, and nobody here knows it.
    let brought = text.strip_prefix("$(").and_then(|t| t.strip_suffix(')'));
    if let Some(name) =
        brought.filter(|name| container.variable(name).is_none() && !container.list("envFrom").is_empty())
    {
        return Word(vec![Part::Variable { name: name.to_owned(), modifier: String::new(), quoted: true }]);
    }
    Word(parts)
}

/// Whether what follows `text` is the value of its last flag.
fn ends_in_value(text: &str) -> bool {
    let last = text.split_whitespace().next_back().unwrap_or_default();
    let open = text.ends_with(char::is_whitespace);
    last.starts_with('-') && last.contains('=') != open && !SWITCHES.contains(&last.trim_start_matches('-'))
}

/// A part as text that a shell reads as an expansion again.
fn part_text(part: &Part) -> String {
    match part {
        Part::Literal(text) => text.clone(),
        Part::Variable { name, .. } => format!("${{{name}}}"),
        Part::Substitution => "$(:)".to_owned(),
    }
}

fn split_assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Literal(first)) = word.0.first() else { return None };
    let (name, value) = first.split_once('=')?;
    let mut parts = vec![Part::Literal(value.to_owned())];
    parts.extend(word.0[1..].iter().cloned());
    Some((name.to_owned(), Word(parts)))
}

fn is_positional(word: &Word) -> bool {
    matches!(word.0.as_slice(), [Part::Variable { name, .. }] if name == "@" || name == "*")
}

fn is_script(text: &str) -> bool {
    [".sh", ".bash"].iter().any(|end| text.ends_with(end))
}

fn basename(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
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
