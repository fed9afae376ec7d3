//! Lists of words: arrays and the words behind a script or a function; and functions, which get lists of their own.

use super::{words::Word, *};

impl Shell<'_> {
    /// Each of the lists of words that `name` can be; one of any words where that is not known.
    pub(super) fn items(&self, name: &str) -> Vec<Vec<Text>> {
        let shown = if name == "@" { "$@".to_owned() } else { format!("${{{name}[@]}}") };
        let known = self.lists.get(name).filter(|lists| !lists.is_empty() && !self.tainted.contains(name));
        known.cloned().unwrap_or_else(|| vec![vec![Text::hole(shown, Kind::Many)]])
    }

    /// `$1`: each of the texts that it can be. `$0` is a list of its own, which nothing changes.
    pub(super) fn argument(&self, number: &str) -> Vec<Option<Text>> {
        let number_of = number.parse::<usize>().ok();
        let (list, at) = if number_of == Some(0) { ("0", Some(0)) } else { ("@", number_of.map(|n| n - 1)) };
        match (at, self.lists.get(list).filter(|lists| !lists.is_empty())) {
            (Some(at), Some(lists)) => lists.iter().map(|all| all.get(at).cloned()).collect(),
            _ => vec![Some(Text::hole(format!("${number}"), Kind::Any))],
        }
    }

    /// Makes a list one of `new`; none: nothing is known of it.
    pub(super) fn assign_list(&mut self, name: &str, mut new: Vec<Vec<Text>>) -> Followed {
        self.assignments += 1;
        if self.parsing {
            return Ok(());
        }
        let of_call = self.function.as_ref().map_or(0, |frame| frame.perhaps);
        if self.perhaps > if name == "@" { of_call } else { 0 } {
            let before = match self.lists.get(name) {
                None if !self.variables.contains_key(name) => vec![Vec::new()],
                lists => lists.cloned().unwrap_or_default(),
            };
            let changes = before.is_empty() || new.iter().any(|list| !before.contains(list));
            if new.is_empty() || before.is_empty() || (changes && self.turn.is_some_and(|turn| turn > 0)) {
                new.clear();
            } else {
                new.extend(before);
            }
        }
        new.sort_unstable();
        new.dedup();
        if new.len() > MAX_TEXTS {
            new.clear();
        }
        self.pay(64 + new.iter().flatten().map(Text::cost).sum::<usize>())?;
        if name != "@" {
            // By its name alone it is its first item.
            let first = if new.is_empty() {
                vec![Some(Text::hole(format!("${{{name}}}"), Kind::Any))]
            } else {
                new.iter().map(|list| list.first().cloned()).collect()
            };
            self.variables.insert(name.to_owned(), first);
        }
        self.lists.insert(name.to_owned(), new);
        Ok(())
    }

    /// `(…)` behind `NAME=`, and behind its bracket.
    pub(super) fn array(&mut self, name: &str, appends: bool) -> Followed {
        let mut new = match (appends, self.lists.get(name)) {
            (true, None) if self.variables.contains_key(name) => Vec::new(),
            (true, Some(_)) => self.items(name),
            _ => vec![Vec::new()],
        };
        let mut known = true;
        self.blank(true)?;
        while !self.eat(")") {
            let bare = self.bare();
            known &= !(bare.starts_with('[') && bare.contains("]="));
            let more = self.word(true)?;
            new = self.product(new, more)?;
            self.blank(true)?;
        }
        self.assign_list(name, if known { new } else { Vec::new() })
    }

    /// `"$@"`, `"${NAME[@]}"` or `"${NAME[@]:1}"` in front of it, which is taken: the list's name, and how many of its items are
    /// passed over. (Of `"${@:1}"` shells think differently.)
    pub(super) fn whole_list(&mut self) -> Option<(String, usize)> {
        let rest: String = self.script.chars.get(self.script.at..)?.iter().take(80).collect();
        let inner = rest.strip_prefix("\"$")?.split_once('"')?.0;
        let (name, from) = match inner {
            "@" | "{@}" => ("@", 0),
            _ => {
                let (name, from) = inner.strip_prefix('{')?.strip_suffix('}')?.split_once("[@]")?;
                let digits = from.strip_prefix(':').filter(|digits| digits.chars().all(|c| c.is_ascii_digit()));
                let from = if from.is_empty() { 0 } else { digits?.parse().ok()? };
                (Some(name).filter(|name| programs::is_name(name))?, from)
            }
        };
        self.script.at += inner.chars().count() + 3;
        Some((name.to_owned(), from))
    }

    /// `[0]}` in front of it, which is taken: each of the texts that this item of a known list can be.
    pub(super) fn item(&mut self, name: &str) -> Option<Vec<Option<Text>>> {
        let rest: String = self.script.chars.get(self.script.at..)?.iter().take(8).collect();
        let number = rest.strip_prefix('[')?.split_once("]}")?.0;
        let lists = self.lists.get(name).filter(|lists| !lists.is_empty() && !self.tainted.contains(name))?;
        if lists.iter().any(|list| !is_counted(list)) {
            return None;
        }
        let of = |list: &Vec<Text>| match number {
            "-1" => list.last().cloned(),
            _ => list.get(number.parse::<usize>().ok()?).cloned(),
        };
        let known = number == "-1" || number.chars().all(|c| c.is_ascii_digit()) && !number.is_empty();
        let texts = known.then(|| lists.iter().map(of).collect())?;
        self.script.at += number.len() + 3;
        Some(texts)
    }

    /// A list in a word that may have more than the list: `joined` for `*`.
    pub(super) fn listed(&mut self, word: &mut Word, name: &str, joined: bool, quoted: bool) -> Followed {
        if word.splits && !quoted {
            return self.all(word, name, 0, false);
        }
        if word.splits && !joined {
            return self.expand(word, vec![Some(Text::hole(format!("${name}"), Kind::Many))], quoted);
        }
        let by = match self.separator() {
            Some(separator) if joined && separator(',') => ",",
            None if joined => {
                return self.expand(word, vec![Some(Text::hole(format!("${{{name}[*]}}"), Kind::Any))], quoted);
            }
            _ => " ",
        };
        let texts = self.items(name).into_iter().map(|list| {
            let mut text = Text::default();
            for (index, item) in list.iter().enumerate() {
                text.push_str(if index > 0 { by } else { "" });
                text.append(item, false);
            }
            Some(text)
        });
        let texts = texts.collect();
        self.expand(word, texts, quoted)
    }

    /// Puts each item of a list, but for the first `from`, into a word, as words of their own.
    pub(super) fn all(&mut self, word: &mut Word, name: &str, from: usize, quoted: bool) -> Followed {
        let mut lists = self.items(name);
        let counted = from == 0 || lists.iter().all(|list| is_counted(list));
        if counted {
            lists.iter_mut().for_each(|list| drop(list.drain(..from.min(list.len()))));
        }
        if lists.len() * word.texts.len() > MAX_TEXTS || !counted {
            lists = vec![vec![Text::hole(format!("${name}"), Kind::Many)]];
        }
        let mut texts = Vec::new();
        for before in std::mem::take(&mut word.texts) {
            for list in &lists {
                self.pay(before.0.iter().chain(&before.1).map(Text::cost).sum::<usize>() * (lists.len() - 1))?;
                let mut one = Word { splits: word.splits, texts: vec![before.clone()] };
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        one.texts.iter_mut().for_each(|(done, open)| done.extend(open.take()));
                    }
                    self.expand(&mut one, vec![Some(item.clone())], quoted)?;
                }
                texts.append(&mut one.texts);
            }
        }
        word.texts = texts;
        Ok(())
    }

    /// A function, behind the first of its brackets where it has them: its body is parsed, and followed where it is called.
    pub(super) fn define(&mut self, name: String, brackets: bool) -> Followed {
        self.blank(false)?;
        // A handler of a signal was followed with the program.
        let hides = programs::is_known(&name) && (self.handled || !programs::is_shadowed(&name));
        if !self.eat(")") && brackets || hides || name.is_empty() {
            return self.doubt(format!("defines {name}, which is not understood"));
        }
        self.blank(true)?;
        let (start, place, outer) = (self.script.at, self.place(), std::mem::replace(&mut self.parsing, true));
        self.command()?;
        self.parsing = outer;
        if !self.parsing {
            let body = self.script.chars[start..self.script.at].to_vec();
            self.pay(4 * body.len())?;
            let holes = self.script.holes.clone();
            let place = format!("{place}, function {name}");
            let body = Script { chars: body.into(), holes, place, ..Script::default() };
            self.functions.insert(name, Some(body).filter(|_| self.perhaps == 0));
        }
        Ok(())
    }

    /// Follows a call of a function with these words; returns its output.
    pub(super) fn call(&mut self, name: &str, words: &[Text], own: &[(String, Vec<Option<Text>>)]) -> Followed<Text> {
        let Some(body) = self.functions.get(name).cloned().flatten().filter(|_| own.is_empty()) else {
            return self
                .doubt(format!("calls {name}, a function that is defined in a branch or gets variables of its own"));
        };
        self.pay(64 + body.chars.len())?;
        let frame = Frame { perhaps: self.perhaps, locals: Vec::new() };
        let outer = (self.perhaps, self.left_early, self.turn, self.function.replace(frame));
        let arguments = self.lists.insert("@".to_owned(), vec![words.to_vec()]);
        let before = self.commands;
        self.within(body)?;
        let locals = self.function.take().map(|frame| frame.locals).unwrap_or_default();
        for (name, texts, list) in locals.into_iter().rev() {
            match texts {
                Some(texts) => drop(self.variables.insert(name.clone(), texts)),
                None => drop(self.variables.remove(&name)),
            }
            match list {
                Some(list) => drop(self.lists.insert(name, list)),
                None => drop(self.lists.remove(&name)),
            }
        }
        self.lists.extend(arguments.map(|list| ("@".to_owned(), list)));
        (self.perhaps, self.left_early, self.turn, self.function) = outer;
        let one = self.commands == before + 1;
        self.commands = if one { before } else { self.commands };
        Ok(if one { std::mem::take(&mut self.output) } else { Text::hole(format!("$({name})"), Kind::Any) })
    }

    /// Keeps what a variable is outside the function in which `declares` makes it local; whether it does.
    pub(super) fn localise(&mut self, declares: &[Text], name: &str) -> bool {
        let local = matches!(declares.first().and_then(Text::as_str), Some("local" | "declare" | "typeset"));
        let Some(frame) = self.function.as_mut().filter(|_| local && !self.parsing) else { return false };
        if self.perhaps > frame.perhaps {
            self.tainted.insert(name.to_owned());
        }
        let local = (name.to_owned(), self.variables.get(name).cloned(), self.lists.get(name).cloned());
        frame.locals.push(local);
        true
    }

    /// A local variable without a value: it has the outer value or none.
    pub(super) fn local(&mut self, declares: &[Text], name: &str) -> Followed {
        if self.localise(declares, name) {
            let known = self.variables.contains_key(name) || self.environment.by_name.contains_key(name);
            let mut texts = if known { self.texts(name)? } else { Vec::new() };
            texts.push(None);
            self.variables.insert(name.to_owned(), texts);
            self.lists.remove(name);
        }
        Ok(())
    }

    /// Follows the handler of a signal: its variables are undetermined from here on.
    pub(super) fn trap(&mut self, handler: &Text, place: String) -> Followed {
        let (variables, lists, runs) = (self.variables.clone(), self.lists.clone(), self.runs.len());
        let texts = variables.values().flatten().flatten().chain(lists.values().flatten().flatten());
        self.pay(texts.map(Text::cost).sum())?;
        let (ending, leaves) = (self.ending.clone(), self.leaves);
        self.maybe(|shell| shell.follow(handler, format!("{place}, trap")))?;
        (self.ending, self.leaves) = (ending, leaves);
        self.handled = true;
        if self.is_run(runs) {
            return self.doubt("runs etcd when a signal comes");
        }
        if self.runs.len() > runs {
            // With other variables, perhaps.
            let place = self.place();
            self.note(Tool::Etcdctl, "runs etcdctl when a signal comes", &place);
        }
        let changed = self.variables.iter().filter(|(name, texts)| variables.get(*name) != Some(texts));
        let lists = self.lists.iter().filter(|(name, list)| lists.get(*name) != Some(list));
        self.tainted.extend(changed.map(|(name, _)| name.clone()).chain(lists.map(|(name, _)| name.clone())));
        Ok(())
    }
}

/// True if each item is one word, so that their numbers are known.
fn is_counted(list: &[Text]) -> bool {
    list.iter().flat_map(|item| &item.0).all(|part| !matches!(part, Part::Hole(_, kind, _) if *kind > Kind::Word))
}
