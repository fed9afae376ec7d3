//! Simple commands: assignments, the shell's own commands, functions, and programs.

use super::{child::within, *};

/// Programs that print nothing.
const SILENT: &str = "shift unset [ test : true false sleep";

impl Shell<'_> {
    /// `NAME=`, `NAME+=` or `NAME[…]=` in front of it, which is taken: the name, and how it is assigned.
    fn assigns(&mut self) -> Followed<Option<(String, Assigns)>> {
        let bare = self.bare();
        let Some((name, _)) = bare.split_once('=') else { return Ok(None) };
        let item = name.split_once('[').map(|(name, _)| name).filter(|name| programs::is_name(name));
        if let Some(name) = item {
            self.script.at += name.len() + 1;
            self.raw('[', ']')?;
            return if self.eat("=") || self.eat("+=") {
                Ok(Some((name.to_owned(), Assigns::Item)))
            } else {
                self.doubt("assigns to an item of an array")
            };
        }
        let appends = name.ends_with('+');
        let name = name.strip_suffix('+').unwrap_or(name);
        self.script.at += if programs::is_name(name) { name.len() + 1 + usize::from(appends) } else { 0 };
        let how = if appends { Assigns::Appended } else { Assigns::Whole };
        Ok(programs::is_name(name).then(|| (name.to_owned(), how)))
    }

    fn value(&mut self, name: &str, appends: bool) -> Followed<Vec<Option<Text>>> {
        let empty = self.peek().is_none_or(|c| c.is_whitespace() || ";&|)<>".contains(c));
        name.clone_into(&mut self.assigning);
        let new = if empty { vec![vec![Text::default()]] } else { self.word(false)? };
        let new: Vec<Text> = new.into_iter().map(|mut all| all.pop().unwrap_or_default()).collect();
        // A shell that is not bash takes `A+=x` for a command.
        let before = if appends { self.texts(name)? } else { Vec::new() };
        self.assigning.clear();
        if !appends {
            return Ok(new.into_iter().map(Some).collect());
        }
        let joined = before.iter().flat_map(|old| {
            new.iter().map(|new| {
                let mut text = old.clone().unwrap_or_default();
                text.append(new, false);
                Some(text)
            })
        });
        let joined: Vec<_> = joined.chain(before.clone()).collect();
        Ok(joined)
    }

    /// A simple command that reads `input`, unless it is redirected.
    pub(super) fn simple(&mut self, mut input: Option<Text>) -> Followed {
        let start = self.script.at;
        let outer = self.target.take();
        let mut words: Vec<Vec<Text>> = vec![Vec::new()];
        let mut assigned: Vec<(String, [Vec<Option<Text>>; 2])> = Vec::new();
        let mut own = Vec::new();
        let (mut count, mut declares) = (0, false);
        loop {
            self.blank(false)?;
            if self.redirects() {
                self.redirection(&mut input)?;
                continue;
            }
            match self.peek() {
                None | Some('\n' | ';' | '&' | '|' | ')') => break,
                _ => {}
            }
            if (count == 0 || declares)
                && let Some((name, how)) = self.assigns()?
            {
                let appends = how == Assigns::Appended;
                if declares {
                    let _ = self.localise(&words[0], &name);
                }
                if self.eat("(") {
                    self.array(&name, appends)?;
                    declared(&mut words, &name);
                    continue;
                }
                let value = self.value(&name, appends)?;
                if how == Assigns::Item {
                    self.assign_list(&name, Vec::new())?;
                    continue;
                }
                let known = self.variables.contains_key(&name) || self.environment.by_name.contains_key(&name);
                let before = if known { self.texts(&name)? } else { vec![None] };
                self.assign(&name, value.clone())?;
                if declares {
                    declared(&mut words, &name);
                } else {
                    assigned.push((name, [before, value]));
                }
                continue;
            }
            let bare = self.bare();
            if count == 0 {
                declares = ["export", "readonly", "local", "declare", "typeset"].contains(&bare.as_str());
                let from = self.script.at;
                self.script.at += bare.chars().count();
                self.blank(false)?;
                if self.eat("(") {
                    return self.define(bare, true);
                }
                self.script.at = from;
                // Assignments before a program hold for it alone; before a builtin they may stay.
                for (name, [before, value]) in std::mem::take(&mut assigned) {
                    if name == "IFS" && ["read", "mapfile", "readarray"].contains(&bare.as_str()) {
                        self.variables.insert(name, before);
                        continue;
                    }
                    self.assign(&name, before.into_iter().chain(value.clone()).collect())?;
                    own.push((name, value));
                }
            }
            if declares && programs::is_name(&bare) && count > 0 {
                self.local(&words[0], &bare)?;
            }
            let more = self.word(true)?;
            words = self.product(words, more)?;
            count += 1;
        }
        if self.script.at == start {
            return self.doubt(self.peek().map_or_else(
                || "ends before what it began does".to_owned(),
                |c| format!("has {c:?} where a command begins"),
            ));
        }
        if count == 0 {
            // Nothing that prints.
            self.commands -= 1;
            self.wrote(Some(&Text::default()));
            self.target = outer;
            self.passes(&[Text::known(":")], &Step::Harmless);
            return Ok(());
        }
        words.sort_unstable();
        words.dedup();
        if let [words] = words.as_slice() {
            self.input = input;
            let target = self.target.take();
            let output = self.execute(words, &own)?;
            self.target = target;
            let silent = match words.first().and_then(Text::as_str) {
                Some(name) if self.functions.contains_key(name) => false,
                Some("export" | "readonly" | "local" | "declare" | "typeset") => {
                    words.get(1).is_some_and(|word| programs::is_name(word.prefix()))
                }
                name => name.is_some_and(|name| programs::has(SILENT, name)),
            };
            // From here on all output goes there.
            self.branch |= self.target.is_some() && words.first().and_then(Text::as_str) == Some("exec");
            let printed = files::printed(words, &output);
            self.wrote(printed.as_ref());
            self.target = outer;
            if silent {
                self.commands -= 1;
            } else {
                self.output = output;
            }
            return Ok(());
        }
        self.commands += 1;
        self.target = outer;
        words.iter().try_for_each(|words| self.maybe(|shell| shell.execute(words, &own)).map(|_| ()))
    }

    /// Each of `words` followed by each of `more`.
    pub(super) fn product(&mut self, mut words: Vec<Vec<Text>>, mut more: Vec<Vec<Text>>) -> Followed<Vec<Vec<Text>>> {
        if words.len() * more.len() > MAX_TEXTS {
            more = vec![vec![Text::hole("…", Kind::Many)]];
        }
        if let ([_], [_]) = (words.as_slice(), more.as_slice()) {
            words.iter_mut().for_each(|words| words.append(&mut more[0]));
            return Ok(words);
        }
        let all: Vec<Vec<Text>> =
            words.iter().flat_map(|w| more.iter().map(|more| [w.as_slice(), more].concat())).collect();
        self.pay(all.iter().flatten().map(Text::cost).sum())?;
        Ok(all)
    }

    /// Follows a command with its `own` variables; returns its output.
    fn execute(&mut self, words: &[Text], own: &[(String, Vec<Option<Text>>)]) -> Followed<Text> {
        let input = self.input.take();
        let Some(first) = words.first().filter(|_| !self.parsing) else { return Ok(Text::hole("$()", Kind::Any)) };
        self.pay(words.iter().map(Text::cost).sum())?;
        let all = words.iter().map(Text::shown).collect::<Vec<_>>().join(" ");
        let plain: Option<Vec<&str>> = words[1..].iter().map(Text::as_str).collect();
        let plain = || plain.clone().map_or_else(|| self.doubt(format!("says {all}, which is not known")), Ok);
        let place = self.place();
        match first.as_str().unwrap_or_default() {
            name if self.functions.contains_key(name) => return self.call(name, &words[1..], own),
            "export" | "readonly" | "local" | "declare" | "typeset" => {
                let names: Vec<String> = plain()?.iter().map(|&name| name.to_owned()).collect();
                let declares = matches!(words[0].as_str(), Some("export" | "declare" | "typeset"));
                let is_option = |letter: char| names.iter().any(|n| n.starts_with('-') && n.contains(letter));
                for name in names.iter().filter(|name| !name.starts_with('-')) {
                    let exports = declares && (words[0].as_str() == Some("export") || is_option('x'));
                    if !programs::is_name(name) || words[0].as_str() == Some("local") && self.function.is_none() {
                        return self.doubt(format!("says {all}, which is not understood"));
                    }
                    if is_option('A') {
                        self.assign_list(name, Vec::new())?;
                    }
                    if exports && self.exported.insert(name.clone()) && self.perhaps > 0 {
                        self.tainted.insert(name.clone());
                    }
                }
                if names.iter().any(|n| n.starts_with('-') && !n.chars().all(|c| "-xrpaA".contains(c))) {
                    return self.doubt(format!("says {all}, which is not understood"));
                }
            }
            "unset" => {
                let names: Vec<String> = plain()?.iter().filter(|w| **w != "-v").map(|&name| name.to_owned()).collect();
                for name in names {
                    if !programs::is_name(&name) || self.functions.contains_key(&name) {
                        return self.doubt(format!("says {all}, which is not understood"));
                    }
                    self.assign(&name, vec![None])?;
                }
            }
            "return" | "break" | "continue" => {
                // Whether it comes to what follows.
                self.perhaps += 1;
                self.left_early += usize::from(first.as_str() == Some("return") || words.len() > 1);
                self.leaves += usize::from(first.as_str() != Some("continue"));
            }
            "set" => self.options(&words[1..], &all)?,
            "shift" => {
                let count = plain()?.first().map_or(Ok(1), |count| count.parse::<usize>()).unwrap_or(usize::MAX);
                let lists = self.items("@");
                let left: Option<_> = lists.iter().map(|all| all.get(count..).map(<[Text]>::to_vec)).collect();
                self.assign_list("@", left.unwrap_or_default())?;
            }
            "read" | "mapfile" | "readarray" | "head" | "sed" | "dd" if self.read_from && input.is_none() => {
                return self.doubt(format!("uses {all}, which reads from the script itself"));
            }
            "mapfile" | "readarray" => {
                self.passes(words, &Step::Harmless);
                self.lines(&words[1..], input.as_ref(), &all)?;
            }
            "read" | "getopts" => {
                let names: Vec<String> =
                    plain()?.iter().filter(|word| programs::is_name(word)).map(|&name| name.to_owned()).collect();
                for name in names.iter().map(String::as_str).chain(["REPLY", "OPTARG", "OPTIND"]) {
                    self.unknown(name, Kind::Any)?;
                }
                self.passes(words, &Step::Harmless);
            }
            "printf" if words.get(1).is_some_and(|word| word.prefix().starts_with("-v")) => {
                match (words[1].as_str(), words.get(2).and_then(Text::as_str)) {
                    (Some("-v"), Some(name)) if programs::is_name(name) => match programs::formatted(&words[2..]) {
                        // A shell without the option sets nothing.
                        Some(text) => self.assign(name, vec![Some(text), None])?,
                        None => self.unknown(name, Kind::Any)?,
                    },
                    _ => return self.doubt(format!("says {all}")),
                }
            }
            "let" => plain()?.iter().try_for_each(|text| self.compute(text))?,
            "trap" if words.get(1).is_none_or(|handler| matches!(handler.as_str(), Some("" | "-" | "-p"))) => {}
            "trap" if !words[1].prefix().starts_with('-') => {
                self.handles(&words[2..]);
                self.trap(&words[1], place)?;
            }
            name @ ("exec" | "command" | "builtin") => {
                let mut at = 1;
                while let Some(option) = words.get(at).and_then(Text::as_str).filter(|word| word.starts_with('-')) {
                    at += match (name, option) {
                        ("exec", "-a") => 2,
                        ("command", "-v" | "-V") => return Ok(programs::output(words)),
                        (_, "--") | ("exec", "-l") | ("command", "-p") => 1,
                        // It fails: none of its options, and no program's name.
                        ("exec", _) if option[1..].contains(|c| !"acl".contains(c)) => {
                            return Ok(Text::hole("$()", Kind::Any));
                        }
                        _ => return self.doubt(format!("says {name} {option}")),
                    };
                }
                let words = words.get(at..).unwrap_or_default();
                let function = words.first().and_then(Text::as_str).is_some_and(|n| self.functions.contains_key(n));
                self.input = input;
                if name != "exec" && !function {
                    return self.execute(words, own);
                }
                self.program(words, own, &|_| place.clone())?;
            }
            "eval" => {
                let mut script = Text::default();
                for (index, word) in words[1..].iter().enumerate() {
                    script.push_str(if index > 0 { " " } else { "" });
                    script.append(word, false);
                }
                self.follow(&script, format!("{place}, eval"))?;
            }
            name @ ("." | "source") => {
                let file = words.get(1).and_then(Text::as_str).filter(|file| words.len() == 2 && file.contains('/'));
                let script = file.map(|file| self.file(file)).transpose()?.flatten();
                if file.is_some_and(|file| self.members.contains(files::path(file))) {
                    return programs::MEMBER
                        .iter()
                        .try_for_each(|name| self.unknown(name, Kind::Word))
                        .map(|()| Text::default());
                }
                let (Some(file), Some(script)) = (file, script) else {
                    return self.doubt(format!("uses {name}, which is not supported"));
                };
                self.follow(&script, within(&place, file))?;
            }
            name @ ("trap" | "alias" | "enable" | "hash" | "bind" | "fc") => {
                return self.doubt(format!("uses {name}, which is not supported"));
            }
            _ => {
                let arguments: Vec<&str> = words[1..].iter().filter_map(Text::as_str).collect();
                let copies = match (first.as_str(), arguments.as_slice()) {
                    _ if arguments.len() + 1 < words.len() => false,
                    (Some(name @ "cat"), []) => !self.written.contains(name),
                    (Some(name @ ("grep" | "egrep")), ["^ETCD_" | "^ETCD" | "ETCD_" | "ETCD"]) => {
                        !self.written.contains(name) && input.as_ref().is_some_and(programs::is_member)
                    }
                    _ => false,
                };
                let tees = first.as_str() == Some("tee") && words.len() == 2;
                let filter = || programs::filtered(words, input.as_ref());
                let filter = if self.written.contains(programs::basename(first.prefix())) { None } else { filter() };
                let printed = input.clone().filter(|_| copies || tees).or(filter);
                self.input = input;
                self.apart(|shell| shell.program(words, own, &|_| place.clone()))?;
                if let (true, Some(file)) = (tees, words[words.len() - 1].as_str()) {
                    self.redirected(">", Some(file));
                    self.wrote(printed.as_ref());
                }
                return Ok(printed.unwrap_or_else(|| programs::output(words)));
            }
        }
        Ok(Text::hole(format!("$({all})"), Kind::Any))
    }

    /// `set`: the shell's options, and its arguments.
    fn options(&mut self, words: &[Text], all: &str) -> Followed {
        let mut at = 0;
        while let Some(word) = words.get(at).and_then(Text::as_str).filter(|word| word.starts_with(['-', '+'])) {
            let letters = &word[1..];
            at += 1;
            let option = words.get(at).and_then(Text::as_str).filter(|_| letters.contains('o'));
            if letters.starts_with('-') || letters.is_empty() {
                return self.assign_list("@", vec![words[at..].to_vec()]);
            }
            self.errexit |= letters.contains('e') || option == Some("errexit");
            // A file that is there is not written.
            self.branch |= letters.contains('C') || option == Some("noclobber");
            let exports = letters.contains('a') || option == Some("allexport");
            if letters.contains('k') || option == Some("keyword") || exports && self.perhaps > 0 {
                return self.doubt(format!("says {all}"));
            }
            self.allexport = if exports { word.starts_with('-') } else { self.allexport };
            at += usize::from(option.is_some());
        }
        match words.get(at) {
            None => Ok(()),
            Some(word) if word.loose().is_some() || word.prefix().is_empty() => {
                self.doubt(format!("says {all}, of which nothing is known"))
            }
            Some(_) => self.assign_list("@", vec![words[at..].to_vec()]),
        }
    }
}

/// How an assignment changes a variable.
#[derive(Clone, Copy, PartialEq)]
enum Assigns {
    Whole,
    Appended,
    Item,
}

/// Puts a name that was just assigned behind the word that declares it.
fn declared(words: &mut [Vec<Text>], name: &str) {
    words.iter_mut().for_each(|words| words.push(Text::known(name)));
}
