//! A shell's script, followed far enough to tell which programs it runs with which words.
//!
//! The script is parsed and followed in one pass. Nothing is run and nothing is guessed: a variable has the set of all texts
//! assigned to it, and a command that may or may not run adds its texts to the earlier ones. A construct that is not understood
//! ends the reading: the whole command line is then undetermined.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    environment::Environment,
    fate::{self, After, Fate},
    programs::{self, Passed, Step, Tool},
    run::{Kept, Run},
    text::{Kind, Part, Text},
};

mod child;
mod commands;
mod ending;
mod files;
mod grammar;
mod input;
mod lists;
mod words;

use self::ending::{Around, Ending, Turns};

/// How deep scripts, lists and words are nested.
const MAX_DEPTH: usize = 40;
/// The maximum of different texts of a variable or a word.
const MAX_TEXTS: usize = 64;
/// The maximum of followed turns of a loop over known words.
const MAX_TURNS: usize = 16;
/// The first of the characters that stand for holes in a script.
const HOLES: u32 = 0xF0000;

/// One hole for too many texts: it can be as much as the most of them, and is shown by the first.
fn one_of(texts: &[Option<Text>]) -> Text {
    let kind = texts.iter().flatten().map(Text::kind).max().unwrap_or(Kind::Word);
    let shown = texts.iter().flatten().map(Text::shown).find(|text| !text.is_empty()).unwrap_or_default();
    Text::hole(format!("{}…", shown.trim_end_matches('…')), kind)
}

/// Why the command line is undetermined, and the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::injection) struct Doubt {
    pub(in crate::injection) why: String,
    pub(in crate::injection) place: String,
}

/// What a program does that starts etcd without the variables of its container.
const CLEARS: &str = "which clears the environment by which the options come";

impl Doubt {
    /// True if etcd does not see the variables of its container, whatever the annotation `options` says.
    pub(in crate::injection) fn clears_environment(&self) -> bool {
        self.why.ends_with(CLEARS)
    }

    /// True if it is of words of a run alone: all of the command line is read.
    pub(in crate::injection) fn is_of_words(&self) -> bool {
        self.why.contains("which may hold any flags")
    }
}

pub(super) type Followed<T = ()> = Result<T, Doubt>;

/// A text that is being followed.
#[derive(Clone, Default)]
struct Script {
    chars: Rc<[char]>,
    at: usize,
    holes: Vec<Text>,
    place: String,
    /// A position, and how many lines end before it.
    counted: Cell<(usize, usize)>,
    /// The delimiters of here-documents that begin at the next line, and whether they are plain.
    heredocs: Vec<(String, bool)>,
}

/// The state while the command lines of a container are followed.
pub(super) struct Shell<'e> {
    environment: &'e Environment,
    script: Script,
    /// The script's variables with each text that one can have; `None` is unset.
    variables: BTreeMap<String, Vec<Option<Text>>>,
    /// Arrays, and by the name `@` the words behind the script: each of the lists that one can be; none: not known any more.
    lists: BTreeMap<String, Vec<Vec<Text>>>,
    exported: BTreeSet<String>,
    /// Variables that are assigned or exported in an undetermined way.
    tainted: BTreeSet<String>,
    /// The bodies of functions; `None`: one of several, or none.
    functions: BTreeMap<String, Option<Script>>,
    /// Files that the scripts write: a program of such a name is not the system's any more.
    written: BTreeSet<String>,
    /// Of these it is certain what is in them.
    files: BTreeMap<String, Text>,
    /// Files of the variables that `etcdctl member add` prints, if there is anything in them.
    members: BTreeSet<String>,
    /// Where the output of the command goes that is being read, and what is there before, where that is known.
    target: Option<(String, Option<Text>)>,
    /// Names of files that are perhaps written, so that what is in them is not certain later either.
    unsure: BTreeSet<String>,
    /// How many files there were of which it was certain.
    recorded: usize,
    /// It is not certain that a script of its own, which is being followed, runs, or that what it prints is in the file.
    branch: bool,
    /// How many commands were followed, what the last one prints, and how many assignments there were.
    commands: usize,
    output: Text,
    /// The input of the next command, if it is known.
    input: Option<Text>,
    /// The script itself is what the commands in it read.
    read_from: bool,
    assignments: usize,
    /// The variable whose new value is being read.
    assigning: String,
    /// Within what may happen or not, and how much of that came of leaving a function or several loops early.
    perhaps: usize,
    left_early: usize,
    /// How much of it there is at the start of the process that is followed.
    process: usize,
    /// The turn of a loop.
    turn: Option<usize>,
    /// The function being followed: the uncertainty at its start and the outer values of its local variables.
    function: Option<Frame>,
    /// The text is only parsed.
    parsing: bool,
    depth: usize,
    /// The command that cleared the environment, and the one that dropped the pod's groups.
    cleared: Option<String>,
    dropped: Option<String>,
    pub(super) runs: Vec<Run>,
    /// How far it is with the runs of etcd, and the fate by the list of commands that is being followed.
    ending: Ending,
    listed: Fate,
    /// What it follows is the container's main process, or reads what etcd prints.
    main: bool,
    piped: bool,
    /// How often it left a loop or the script.
    leaves: usize,
    /// The loop around, whether a command that fails ends the shell, and whether what is assigned is exported.
    around: Around,
    errexit: bool,
    allexport: bool,
    /// A handler that runs when the shell ends: its place.
    at_exit: Option<String>,
    /// There is a handler of signals.
    handled: bool,
    /// `$!` is etcd.
    job: bool,
    /// The first doubt of each tool.
    pub(super) doubts: BTreeMap<Tool, Doubt>,
    /// How much more is read, in bytes.
    left: usize,
}

/// A call of a function.
#[derive(Default)]
struct Frame {
    perhaps: usize,
    locals: Vec<Local>,
}

/// A variable, and what it was outside the function.
type Local = (String, Option<Vec<Option<Text>>>, Option<Vec<Vec<Text>>>);

impl<'e> Shell<'e> {
    pub(super) fn new(environment: &'e Environment, left: usize) -> Self {
        Self {
            environment,
            script: Script::default(),
            variables: BTreeMap::new(),
            exported: BTreeSet::new(),
            allexport: false,
            lists: BTreeMap::from([("@".to_owned(), vec![Vec::new()])]),
            tainted: BTreeSet::new(),
            functions: BTreeMap::new(),
            written: BTreeSet::new(),
            files: BTreeMap::new(),
            members: BTreeSet::new(),
            target: None,
            unsure: BTreeSet::new(),
            recorded: 0,
            branch: false,
            commands: 0,
            output: Text::default(),
            input: None,
            read_from: false,
            assignments: 0,
            assigning: String::new(),
            perhaps: 0,
            left_early: 0,
            process: 0,
            turn: None,
            function: None,
            parsing: false,
            depth: 0,
            cleared: None,
            dropped: None,
            runs: Vec::new(),
            ending: Ending::default(),
            listed: Fate::default(),
            main: true,
            piped: false,
            leaves: 0,
            around: Around::default(),
            errexit: false,
            at_exit: None,
            handled: false,
            job: false,
            doubts: BTreeMap::new(),
            left,
        }
    }

    fn doubt<T>(&self, why: impl Into<String>) -> Followed<T> {
        Err(Doubt { why: why.into(), place: self.place() })
    }

    fn place(&self) -> String {
        // Counted on from where the last place was.
        let script = &self.script;
        let (from, line) = script.counted.get();
        let at = script.at.saturating_sub(1).min(script.chars.len());
        let lines = script.chars[from.min(at)..from.max(at)].iter().filter(|c| **c == '\n').count();
        let line = if at < from { line - lines } else { line + lines };
        script.counted.set((at, line));
        format!("{} line {}", script.place, line + 1)
    }

    /// Pays for `bytes` more: a small script can make an endless text.
    fn pay(&mut self, bytes: usize) -> Followed {
        self.left = self.left.saturating_sub(bytes);
        if self.left > 0 {
            Ok(())
        } else {
            Err(Doubt { why: "puts together more than is read".to_owned(), place: self.script.place.clone() })
        }
    }

    fn note(&mut self, tool: Tool, why: &str, place: &str) {
        self.doubts.entry(tool).or_insert_with(|| Doubt { why: why.to_owned(), place: place.to_owned() });
    }

    /// Each of the texts that a variable can have.
    fn texts(&mut self, name: &str) -> Followed<Vec<Option<Text>>> {
        let known = ["HOSTNAME", "PWD", "RANDOM", "PPID", "UID", "EUID", "#", "?", "$", "!"].contains(&name);
        let shown = if name == "!" { self.last_job().to_owned() } else { format!("${{{name}}}") };
        let hole = |kind| Text::hole(shown.clone(), kind);
        let texts = match self.variables.get(name) {
            _ if self.tainted.contains(name) => vec![Some(hole(Kind::Any))],
            Some(texts) => texts.clone(),
            None if name == self.assigning && !name.starts_with("ETCD") && self.is_new(name) => vec![None],
            None => vec![Some(
                self.environment
                    .by_name
                    .get(name)
                    .cloned()
                    .unwrap_or_else(|| hole(if known { Kind::Word } else { Kind::Any })),
            )],
        };
        self.pay(texts.iter().flatten().map(Text::cost).sum())?;
        Ok(texts)
    }

    /// True if the pod does not set it: a variable that only the script assigns is empty before.
    fn is_new(&self, name: &str) -> bool {
        !self.environment.may_bring(name) && !self.environment.by_name.contains_key(name)
    }

    /// What separates words in expansions: white space, or a comma; `None`: it is not known.
    fn separator(&self) -> Option<fn(char) -> bool> {
        match self.variables.get("IFS").map(Vec::as_slice) {
            None if !self.environment.by_name.contains_key("IFS") => Some(char::is_whitespace),
            Some([None]) => Some(char::is_whitespace),
            Some([Some(text)]) if text.as_str() == Some(",") => Some(|c| c == ','),
            _ => None,
        }
    }

    /// Assigns one of `texts` to a variable.
    fn assign(&mut self, name: &str, texts: Vec<Option<Text>>) -> Followed {
        self.assignments += 1;
        if self.parsing {
            return Ok(());
        }
        // What is run now is in a hole.
        let known = |part: &Part, what: &str| matches!(part, Part::Known(known) if known.contains(what));
        // As octal numbers, too.
        let runs = |part: &Part| ["$(", "`", "\\044", "\\140"].into_iter().any(|what| known(part, what));
        let tame = |text: &Text| self.written.is_empty() && text.as_str().is_some_and(programs::is_tame);
        let wild = |text: &Text| text.0.iter().any(runs) && !tame(text);
        if name == "PS4" && texts.iter().flatten().any(wild) {
            return self.doubt("sets PS4 to what runs programs");
        }
        if self.allexport && name.starts_with("ETCD") && self.exported.insert(name.to_owned()) && self.perhaps > 0 {
            self.tainted.insert(name.to_owned());
        }
        if let Some(list) = self.lists.get_mut(name) {
            // Its first item.
            list.clear();
        }
        let plain = |text: Option<Text>| {
            text.map(|text| {
                let mut plain = Text::default();
                plain.append(&text, false);
                plain
            })
        };
        let mut texts: Vec<_> = texts.into_iter().map(plain).collect();
        // A local variable is not what it was before the call.
        let local = self.function.as_ref().filter(|frame| frame.locals.iter().any(|(local, ..)| local == name));
        let mut certain = local.map_or(0, |frame| frame.perhaps);
        if name == "IFS" {
            certain = certain.max(self.process);
        }
        if self.perhaps > certain {
            let mut before = match self.variables.get(name) {
                None if self.is_new(name) => vec![None],
                _ => self.texts(name)?,
            };
            texts.retain(|text| !before.contains(text));
            if self.turn.is_some_and(|turn| turn > 0) && !texts.is_empty() {
                // A text that changes with each turn of a loop.
                let kind = texts.iter().flatten().map(Text::kind).max().unwrap_or(Kind::Word);
                let shown = before.iter().flatten().map(Text::shown).find(|t| !t.is_empty()).unwrap_or_default();
                let more = Some(Text::hole(format!("{shown}…"), kind));
                let held = |t: &Option<Text>| t.as_ref().is_some_and(|t| t.shown().ends_with('…') && t.kind() >= kind);
                texts = if before.iter().any(held) { Vec::new() } else { vec![more] };
            }
            before.append(&mut texts);
            texts = before;
        }
        if texts.len() > MAX_TEXTS {
            let nothing = [None, Some(Text::default())].into_iter().filter(|text| texts.contains(text));
            let nothing: Vec<Option<Text>> = nothing.collect();
            texts = vec![Some(one_of(&texts))];
            texts.extend(nothing);
        }
        self.pay(64 + texts.iter().flatten().map(Text::cost).sum::<usize>())?;
        self.variables.insert(name.to_owned(), texts);
        Ok(())
    }

    fn unknown(&mut self, name: &str, kind: Kind) -> Followed {
        self.assign(name, vec![Some(Text::hole(format!("${{{name}}}"), kind))])
    }

    /// Follows what another process than this shell does.
    fn apart<T>(&mut self, follow: impl FnOnce(&mut Self) -> Followed<T>) -> Followed<T> {
        let main = std::mem::replace(&mut self.main, false);
        let process = std::mem::replace(&mut self.process, self.perhaps + 1);
        let separator = self.variables.get("IFS").cloned();
        let done = follow(self)?;
        (self.main, self.process) = (main, process);
        match separator {
            Some(texts) => drop(self.variables.insert("IFS".to_owned(), texts)),
            None => drop(self.variables.remove("IFS")),
        }
        Ok(done)
    }

    /// Follows what may happen or not.
    fn maybe<T>(&mut self, follow: impl FnOnce(&mut Self) -> Followed<T>) -> Followed<T> {
        self.perhaps += 1;
        let done = follow(self)?;
        self.perhaps -= 1;
        Ok(done)
    }
}
