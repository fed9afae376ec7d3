//! A run of etcd or etcdctl: the options that its flags and its environment set.

use std::collections::BTreeMap;

use super::{
    programs::Tool,
    text::{Part, Text},
};

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::injection) enum Setting {
    /// This text; `true` for a switch without a value.
    Text(String),
    /// Text with `${NAME}` where only the node or the script knows more.
    Open(String),
    /// Set, but to what is not known.
    Unknown,
}

impl Setting {
    /// The setting of a variable with this text.
    pub(super) fn of(text: &Text) -> Self {
        match (text.as_str(), text.0.as_slice()) {
            (Some(text), _) => Self::Text(text.to_owned()),
            (None, [_]) => Self::Unknown,
            (None, _) => Self::Open(text.shown()),
        }
    }
}

/// The value that a script gives a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::injection) enum Kept {
    Set(String),
    Unset,
    /// Set, but not exported.
    Unexported,
    /// One or the other of these.
    Unclear,
}

/// One run.
#[derive(Clone, Debug, Default)]
pub(in crate::injection) struct Run {
    pub(in crate::injection) tool: Option<Tool>,
    pub(in crate::injection) place: String,
    /// By name, without dashes.
    pub(in crate::injection) flags: BTreeMap<String, Setting>,
    /// Its words that are no flags.
    pub(in crate::injection) words: Vec<String>,
    /// The values that the script gives the variables of etcd and etcdctl.
    pub(in crate::injection) variables: BTreeMap<String, Kept>,
    /// The wrapper that takes the pod's groups from it.
    pub(in crate::injection) dropped: Option<String>,
    /// A known image's own script.
    pub(in crate::injection) image: bool,
    /// It asks for its version or for help.
    pub(super) asks: bool,
    /// Why its flags are undetermined.
    pub(super) doubt: Option<String>,
}

/// Flags without a value: the word behind one is another flag.
const SWITCHES: &str = "auto-tls client-cert-auth debug enable-grpc-gateway enable-log-rotation enable-pprof enable-v2 \
    experimental-compact-hash-check-enabled experimental-corrupt-check experimental-enable-distributed-tracing \
    experimental-enable-lease-checkpoint experimental-enable-lease-checkpoint-persist experimental-initial-corrupt-check \
    experimental-memory-mlock experimental-peer-skip-client-san-verification experimental-stop-grpc-service-on-defrag \
    experimental-txn-mode-write-with-shared-buffer force-new-cluster h help initial-election-tick-advance \
    insecure-skip-tls-verify insecure-transport insecure-discovery peer-auto-tls peer-client-cert-auth \
    peer-skip-client-san-verification pre-vote socket-reuse-address socket-reuse-port strict-reconfig-check unsafe-no-fsync \
    version write-out-hex hex prefix keys-only print-value-only from-key cluster";

impl Run {
    /// True if it talks to etcd: a run of etcdctl that does more than to print or to work on files.
    pub(in crate::injection) fn dials(&self) -> bool {
        let word = |index: usize| self.words.get(index).map_or("", String::as_str);
        let on_files = word(0) == "snapshot" && matches!(word(1), "status" | "restore");
        !self.asks && !on_files && !matches!(word(0), "" | "version" | "help" | "completion" | "backup")
    }

    /// Reads the words behind the program.
    pub(super) fn read(tool: Tool, words: &[Text], place: String) -> Self {
        let mut run = Self { tool: Some(tool), place, ..Self::default() };
        let mut index = 0;
        while let Some(word) = words.get(index) {
            index += 1;
            let prefix = word.prefix();
            if let Some(hole) = word.loose() {
                run.unknown(tool, hole, !prefix.is_empty());
                continue;
            }
            let dashes = prefix.len() - prefix.trim_start_matches('-').len();
            if dashes == 0 {
                // etcdctl takes words that are no flags, and quotes or a single word show that they are meant as such.
                match word.0.first() {
                    Some(Part::Hole(shown, ..)) if tool == Tool::Etcd => run.unknown(tool, shown, false),
                    _ => run.words.push(word.shown()),
                }
                continue;
            }
            let flag = &prefix[dashes.min(2)..];
            let whole = word.as_str().is_some();
            let (name, setting) = match flag.split_once('=') {
                Some((name, value)) if whole => (name, Setting::Text(value.to_owned())),
                Some((name, _)) => {
                    (name, Setting::Open(word.shown().split_once('=').map(|(_, v)| v.to_owned()).unwrap_or_default()))
                }
                None if !whole => {
                    run.unknown(tool, &word.shown(), false);
                    continue;
                }
                None if flag.is_empty() || SWITCHES.split_whitespace().any(|switch| switch == flag) => {
                    run.asks |= matches!(flag, "version" | "help" | "h");
                    (flag, Setting::Text("true".to_owned()))
                }
                None => {
                    let next = words.get(index).filter(|next| !next.prefix().starts_with('-'));
                    index += usize::from(next.is_some());
                    if let Some(hole) = next.and_then(Text::loose) {
                        run.unknown(tool, hole, true);
                    }
                    let of = |next: &Text| {
                        next.as_str().map_or_else(|| Setting::Open(next.shown()), |t| Setting::Text(t.to_owned()))
                    };
                    (flag, next.map_or(Setting::Unknown, of))
                }
            };
            run.flags.insert(name.to_owned(), setting);
        }
        run
    }

    /// `value`: at the place of a value.
    fn unknown(&mut self, tool: Tool, hole: &str, value: bool) {
        let quotes = if value { " (in double quotes they are one value)" } else { "" };
        self.doubt.get_or_insert_with(|| {
            format!("gives {} the words {hole}, which may hold any flags{quotes}", tool.program())
        });
    }
}
