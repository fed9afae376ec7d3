//! What the words behind etcd or etcdctl set: its flags, those in variables included.

use std::sync::Arc;

use super::{
    Flags, Setting, Tool,
    programs::{MAX_DEPTH, Reader, is_positional},
};
use crate::injection::{
    shell::{Part, Word},
    view::Variable,
};

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

impl Reader<'_, '_> {
    /// A tool's own arguments.
    pub(super) fn flags(&mut self, tool: Tool, words: &[Word]) {
        if !self.afford_words(words) {
            return;
        }
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
    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        self.texts_within(name, 0)
    }

    fn texts_within(&mut self, name: &str, depth: usize) -> Option<Vec<String>> {
        let Some(words) = self.assigned.get(name).map(Arc::clone) else {
            return match self.variables.get(name)? {
                Variable::Literal(text) => self.afford(text.len()).then(|| vec![text.to_owned()]),
                Variable::From => None,
            };
        };
        if depth > MAX_DEPTH || !self.afford_words(&words) {
            return None;
        }
        let mut texts: Vec<String> = Vec::new();
        for word in words.iter() {
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

    /// A word of `command` or `args` after Kubernetes' own `$(NAME)`: what the pod writes out is put in, the rest stays open.
    pub(super) fn expand(&mut self, text: &str) -> Word {
        let mut parts: Vec<Part> = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let Some(named) = rest.strip_prefix('(') else {
                literal.push('$');
                continue;
            };
            // Without a bracket that closes there is no name in all of the rest.
            let Some((name, after)) = named.split_once(')') else {
                literal.push('$');
                break;
            };
            match self.variables.get(name) {
                Some(Variable::Literal(value)) if self.afford(value.len()) && !value.contains('$') => {
                    literal.push_str(value);
                }
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
        }
        literal.push_str(rest);
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Literal(literal));
        }
        // What envFrom brings is expanded as well, and nobody here knows it.
        let brought = text.strip_prefix("$(").and_then(|t| t.strip_suffix(')'));
        if let Some(name) = brought.filter(|name| self.variables.from_elsewhere && self.variables.get(name).is_none()) {
            return Word(vec![Part::Variable { name: name.to_owned(), modifier: String::new(), quoted: true }]);
        }
        Word(parts)
    }
}

/// Whether what follows `text` is the value of its last flag.
fn ends_in_value(text: &str) -> bool {
    let last = text.split_whitespace().next_back().unwrap_or_default();
    let open = text.ends_with(char::is_whitespace);
    last.starts_with('-') && last.contains('=') != open && !SWITCHES.contains(&last.trim_start_matches('-'))
}

/// A part as text that a shell reads as an expansion again.
pub(super) fn part_text(part: &Part) -> String {
    match part {
        Part::Literal(text) => text.clone(),
        Part::Variable { name, .. } => format!("${{{name}}}"),
        Part::Substitution => "$(:)".to_owned(),
    }
}
