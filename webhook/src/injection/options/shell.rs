//! A shell's script, followed far enough to tell which programs it runs with which words.
//!
//! The script is parsed and followed at once. Nothing is run and nothing guessed: a variable is each of the texts that were
//! assigned to it, and where something may happen or not, it is what it was or what it would be. What is not understood stops
//! the reading: then nothing at all is told of the command line.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    environment::Environment,
    programs::{self, Passed, Step, Tool},
    run::{Kept, Run},
    text::{Kind, Part, Text},
};

mod commands;
mod words;

/// How deep scripts, lists and words are nested.
const MAX_DEPTH: usize = 40;
/// How many texts a variable or a word is told apart.
const MAX_TEXTS: usize = 64;
/// The first of the characters that stand for holes in a script.
const HOLES: u32 = 0xF0000;

/// One hole for too many texts: it can be as much as the most of them, and is shown by the first.
fn one_of(texts: &[Option<Text>]) -> Text {
    let kind = texts.iter().flatten().map(Text::kind).max().unwrap_or(Kind::Word);
    let shown = texts.iter().flatten().map(Text::shown).find(|text| !text.is_empty()).unwrap_or_default();
    Text::hole(format!("{}…", shown.trim_end_matches('…')), kind)
}

/// Why nothing can be told, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::injection) struct Doubt {
    pub(in crate::injection) why: String,
    pub(in crate::injection) place: String,
}

pub(super) type Followed<T = ()> = Result<T, Doubt>;

/// A text that is being followed.
#[derive(Default)]
struct Script {
    chars: Vec<char>,
    at: usize,
    holes: Vec<Text>,
    place: String,
    /// A position, and how many lines end before it.
    counted: Cell<(usize, usize)>,
    /// The delimiters of here-documents that begin at the next line, and whether they are plain.
    heredocs: Vec<(String, bool)>,
}

/// What is known while the command lines of a container are followed.
pub(super) struct Shell<'e> {
    environment: &'e Environment,
    script: Script,
    /// What the script makes of variables: each of the texts that one can have; `None` is unset.
    variables: BTreeMap<String, Vec<Option<Text>>>,
    exported: BTreeSet<String>,
    /// Assigned in a function, which may be called at any time.
    tainted: BTreeSet<String>,
    functions: BTreeSet<String>,
    /// The words behind the script; `None`: not known any more.
    arguments: Option<Vec<Text>>,
    /// Files that the scripts write: a program of such a name is not the system's any more.
    written: BTreeSet<String>,
    /// How many commands were followed, what the last one prints, and how many assignments there were.
    commands: usize,
    output: Text,
    assignments: usize,
    /// Within what may happen or not; within a loop, and its turn; within a function.
    perhaps: usize,
    turn: Option<usize>,
    function: bool,
    depth: usize,
    /// What cleared the environment, and what took the pod's groups away.
    cleared: Option<String>,
    dropped: Option<String>,
    pub(super) runs: Vec<Run>,
    /// The first doubt of each tool.
    pub(super) doubts: BTreeMap<Tool, Doubt>,
    /// How much more is read, in bytes.
    left: usize,
}

impl<'e> Shell<'e> {
    pub(super) fn new(environment: &'e Environment, left: usize) -> Self {
        Self {
            environment,
            script: Script::default(),
            variables: BTreeMap::new(),
            exported: BTreeSet::new(),
            tainted: BTreeSet::new(),
            functions: BTreeSet::new(),
            arguments: Some(Vec::new()),
            written: BTreeSet::new(),
            commands: 0,
            output: Text::default(),
            assignments: 0,
            perhaps: 0,
            turn: None,
            function: false,
            depth: 0,
            cleared: None,
            dropped: None,
            runs: Vec::new(),
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
        let hole = |kind| Text::hole(format!("${{{name}}}"), kind);
        let texts = match self.variables.get(name) {
            _ if self.tainted.contains(name) => vec![Some(hole(Kind::Any))],
            Some(texts) => texts.clone(),
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

    /// Assigns one of `texts` to a variable.
    fn assign(&mut self, name: &str, texts: Vec<Option<Text>>) -> Followed {
        self.assignments += 1;
        let plain = |text: Option<Text>| {
            text.map(|text| {
                let mut plain = Text::default();
                plain.append(&text, false);
                plain
            })
        };
        let mut texts: Vec<_> = texts.into_iter().map(plain).collect();
        if self.function {
            self.tainted.insert(name.to_owned());
        }
        if self.perhaps > 0 {
            let mut before = match self.variables.get(name) {
                // What the script assigns and the pod does not set is empty before.
                None if !self.environment.by_name.contains_key(name) => vec![None],
                _ => self.texts(name)?,
            };
            texts.retain(|text| !before.contains(text));
            if self.turn.is_some_and(|turn| turn > 0) && !texts.is_empty() {
                // What changes with each turn of a loop.
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

    /// Follows what may happen or not.
    fn maybe<T>(&mut self, follow: impl FnOnce(&mut Self) -> Followed<T>) -> Followed<T> {
        self.perhaps += 1;
        let done = follow(self)?;
        self.perhaps -= 1;
        Ok(done)
    }

    // The grammar.

    fn peek(&self) -> Option<char> {
        self.script.chars.get(self.script.at).copied()
    }

    fn ahead(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, c)| self.script.chars.get(self.script.at + index) == Some(&c))
    }

    fn eat(&mut self, text: &str) -> bool {
        let ahead = self.ahead(text);
        self.script.at += if ahead { text.chars().count() } else { 0 };
        ahead
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.script.at += usize::from(next.is_some());
        next
    }

    /// The word in front of it as it is written, as far as it needs no quotes.
    fn bare(&self) -> String {
        let rest = self.script.chars.get(self.script.at..).unwrap_or_default().iter().take(80);
        rest.take_while(|c| !c.is_whitespace() && !";&|()<>".contains(**c)).collect()
    }

    fn eat_bare(&mut self, word: &str) -> bool {
        self.bare() == word && self.eat(word)
    }

    /// Skips white space and comments, and with `lines` the ends of lines.
    fn blank(&mut self, lines: bool) -> Followed {
        while let Some(c) = self.peek() {
            match c {
                '\n' if !lines => break,
                '\n' => {
                    self.script.at += 1;
                    self.here_documents()?;
                }
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.script.at += 1;
                    }
                }
                '\\' if self.ahead("\\\n") => self.script.at += 2,
                c if c.is_whitespace() => self.script.at += 1,
                _ => break,
            }
        }
        Ok(())
    }

    fn here_documents(&mut self) -> Followed {
        for (delimiter, plain) in std::mem::take(&mut self.script.heredocs) {
            let mut line = String::new();
            while self.peek().is_some() && line != delimiter {
                line.clear();
                while let Some(c) = self.next().filter(|c| *c != '\n') {
                    line.push(c);
                }
                line = line.trim_start_matches('\t').to_owned();
                if !plain && (line.contains("$(") || line.contains('`')) && line.contains("etcd") {
                    return self.doubt("runs programs within a here-document");
                }
            }
        }
        Ok(())
    }

    /// Follows a script.
    fn follow(&mut self, text: &Text, place: String) -> Followed {
        let mut script = Script { place, ..Script::default() };
        for part in &text.0 {
            match part {
                Part::Known(known) if known.contains(|c: char| u32::from(c) >= HOLES) => {
                    return self.doubt("has a private character");
                }
                Part::Known(known) => script.chars.extend(known.chars()),
                Part::Hole(shown, kind, _) if *kind > Kind::Word => {
                    return self.doubt(format!("puts {shown}, of which nothing is known, into a script"));
                }
                hole => {
                    script.chars.extend(char::from_u32(HOLES + script.holes.len() as u32));
                    script.holes.push(Text(vec![hole.clone()]));
                }
            }
        }
        self.pay(4 * script.chars.len())?;
        let outer = std::mem::replace(&mut self.script, script);
        self.list(&[""])?;
        self.script = outer;
        Ok(())
    }

    /// A list of commands up to one of `ends`, which is taken: a keyword, a bracket, `;;`, or the end of the text.
    fn list(&mut self, ends: &[&'static str]) -> Followed<&'static str> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.doubt("is nested too deeply");
        }
        loop {
            self.pay(1)?;
            self.blank(true)?;
            let found = ends.iter().copied().find(|end| match *end {
                "" => self.peek().is_none(),
                ")" | ";;" => self.ahead(end),
                word => self.bare() == word,
            });
            if let Some(end) = found {
                self.script.at += end.len();
                self.depth -= 1;
                return Ok(end);
            }
            let before = self.assignments;
            self.pipeline()?;
            while self.eat("&&") || self.eat("||") {
                self.blank(true)?;
                self.maybe(Self::pipeline)?;
            }
            match self.peek() {
                Some('&') if before != self.assignments => return self.doubt("assigns in the background"),
                Some(';') if self.ahead(";;") => {}
                Some(';' | '&') => self.script.at += 1,
                _ => {}
            }
        }
    }

    fn pipeline(&mut self) -> Followed {
        while ["!", "time", "-p"].iter().any(|word| self.eat_bare(word)) {
            self.blank(false)?;
        }
        let before = self.assignments;
        self.command()?;
        self.blank(false)?;
        while self.peek() == Some('|') && !self.ahead("||") {
            if before != self.assignments && self.perhaps == 0 {
                return self.doubt("assigns in a pipeline");
            }
            self.script.at += if self.ahead("|&") { 2 } else { 1 };
            self.blank(true)?;
            self.maybe(Self::command)?;
            self.commands += 1;
            self.blank(false)?;
        }
        Ok(())
    }

    fn command(&mut self) -> Followed {
        self.commands += 1;
        match self.bare().as_str() {
            "if" => {
                self.script.at += 2;
                self.list(&["then"])?;
                self.maybe(|shell| {
                    while shell.list(&["elif", "else", "fi", "then"])? != "fi" {}
                    Ok(())
                })?;
            }
            "while" | "until" => {
                self.script.at += 5;
                self.repeat(|shell| shell.list(&["do"]).and_then(|_| shell.list(&["done"])).map(|_| ()))?;
            }
            "for" => self.each()?,
            "case" => self.cases()?,
            "{" => {
                self.script.at += 1;
                self.list(&["}"])?;
            }
            "[[" => {
                while !self.eat_bare("]]") {
                    self.blank(true)?;
                    match self.peek() {
                        Some(c) if "()<>&|;".contains(c) => self.script.at += 1,
                        _ => drop(self.word(false)?),
                    }
                    self.blank(true)?;
                }
            }
            word @ ("select" | "coproc" | "function") => {
                return self.doubt(format!("says {word}, which is not understood"));
            }
            _ if self.ahead("((") => return self.doubt("computes within ((…))"),
            _ if self.eat("(") => drop(self.maybe(|shell| shell.list(&[")"]))?),
            _ => return self.simple(),
        }
        self.commands += 1;
        self.blank(false)?;
        while self.redirects() {
            self.redirection()?;
            self.blank(false)?;
        }
        Ok(())
    }

    /// Follows a loop until nothing new comes of it.
    fn repeat(&mut self, turn: impl Fn(&mut Self) -> Followed) -> Followed {
        let (start, outer) = (self.script.at, self.turn);
        for number in 0..4 {
            (self.script.at, self.turn) = (start, Some(number.max(outer.unwrap_or(0))));
            self.maybe(&turn)?;
        }
        self.turn = outer;
        Ok(())
    }

    fn each(&mut self) -> Followed {
        self.script.at += 3;
        self.blank(false)?;
        let name = self.bare();
        self.script.at += name.chars().count();
        self.blank(true)?;
        let mut items = Vec::new();
        if self.eat_bare("in") {
            self.blank(false)?;
            while !matches!(self.peek(), None | Some('\n' | ';')) {
                items.extend(self.word(true)?.into_iter().flatten());
                self.blank(false)?;
            }
        } else {
            items.push(Text::hole("$@", Kind::Many));
        }
        self.blank(true)?;
        self.eat(";");
        self.blank(true)?;
        if !programs::is_name(&name) || !self.eat_bare("do") {
            return self.doubt("has a loop that is not understood");
        }
        let kind = |item: &Text| if item.loose().is_some() { Kind::Any } else { item.kind() };
        let kinds = items.iter().map(kind).max().unwrap_or(Kind::Word);
        let items = if items.len() < MAX_TEXTS && kinds < Kind::Any {
            items
        } else {
            vec![Text::hole(format!("${{{name}}}"), kinds)]
        };
        self.assign(&name, items.into_iter().map(Some).collect())?;
        self.repeat(|shell| shell.list(&["done"]).map(|_| ()))
    }

    fn cases(&mut self) -> Followed {
        self.script.at += 4;
        self.blank(false)?;
        self.word(false)?;
        self.blank(true)?;
        if !self.eat_bare("in") {
            return self.doubt("has a case without in");
        }
        loop {
            self.blank(true)?;
            if self.eat_bare("esac") {
                return Ok(());
            }
            self.eat("(");
            while !self.eat(")") {
                self.word(false)?;
                self.blank(false)?;
                self.eat("|");
                self.blank(false)?;
            }
            if self.maybe(|shell| shell.list(&[";;", "esac"]))? == "esac" {
                return Ok(());
            }
        }
    }

    fn redirects(&self) -> bool {
        let digits = self.script.chars[self.script.at..].iter().take_while(|c| c.is_ascii_digit()).count();
        match self.script.chars.get(self.script.at + digits) {
            Some('<' | '>') => self.script.chars.get(self.script.at + digits + 1) != Some(&'('),
            _ => self.ahead("&>"),
        }
    }

    fn redirection(&mut self) -> Followed {
        let start = self.script.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit() || "<>&|".contains(c))
            && !self.ahead(">(")
            && !self.ahead("<(")
        {
            self.script.at += 1;
        }
        let operator: String = self.script.chars[start..self.script.at].iter().collect();
        let here = operator.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<";
        if operator.ends_with(|c: char| c.is_ascii_digit()) || self.eat("-") && !here {
            return Ok(());
        }
        self.blank(false)?;
        let from = self.script.at;
        let targets = self.word(false)?;
        if here {
            let raw: String = self.script.chars[from..self.script.at].iter().collect();
            let delimiter: String = raw.chars().filter(|c| !"'\"\\".contains(*c)).collect();
            let plain = delimiter != raw;
            self.script.heredocs.push((delimiter, plain));
        } else if operator.contains('>') {
            self.written.extend(targets.iter().flatten().map(|text| programs::basename(&text.shown()).to_owned()));
        }
        Ok(())
    }
}
