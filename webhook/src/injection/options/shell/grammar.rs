//! The grammar of scripts: lists, pipelines, compound commands, redirections.

use super::*;

impl Shell<'_> {
    pub(super) fn peek(&self) -> Option<char> {
        self.script.chars.get(self.script.at).copied()
    }

    pub(super) fn ahead(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, c)| self.script.chars.get(self.script.at + index) == Some(&c))
    }

    pub(super) fn eat(&mut self, text: &str) -> bool {
        let ahead = self.ahead(text);
        self.script.at += if ahead { text.chars().count() } else { 0 };
        ahead
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.script.at += usize::from(next.is_some());
        next
    }

    /// The word in front of it as it is written, as far as it needs no quotes.
    pub(super) fn bare(&self) -> String {
        let rest = self.script.chars.get(self.script.at..).unwrap_or_default().iter().take(80);
        rest.take_while(|c| !c.is_whitespace() && !";&|()<>".contains(**c)).collect()
    }

    pub(super) fn eat_bare(&mut self, word: &str) -> bool {
        self.bare() == word && self.eat(word)
    }

    /// Skips white space and comments, and with `lines` the ends of lines.
    pub(super) fn blank(&mut self, lines: bool) -> Followed {
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

    pub(super) fn here_documents(&mut self) -> Followed {
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
    pub(super) fn follow(&mut self, text: &Text, place: String) -> Followed {
        let mut script = Script { place, ..Script::default() };
        let mut chars = Vec::new();
        for part in &text.0 {
            match part {
                Part::Known(known) if known.contains(|c: char| u32::from(c) >= HOLES) => {
                    return self.doubt("has a private character");
                }
                Part::Known(known) => chars.extend(known.chars()),
                Part::Hole(shown, kind, _) if *kind > Kind::Word => {
                    return self.doubt(format!("puts {shown}, of which nothing is known, into a script"));
                }
                hole => {
                    chars.extend(char::from_u32(HOLES + script.holes.len() as u32));
                    script.holes.push(Text(vec![hole.clone()]));
                }
            }
        }
        self.pay(4 * chars.len())?;
        script.chars = chars.into();
        self.within(script)
    }

    /// Follows a script, and then what it stood in.
    pub(super) fn within(&mut self, script: Script) -> Followed {
        let outer = std::mem::replace(&mut self.script, script);
        self.list(&[""])?;
        self.script = outer;
        Ok(())
    }

    /// A list of commands up to one of `ends`, which is taken: a keyword, a bracket, `;;`, or the end of the text.
    pub(super) fn list(&mut self, ends: &[&'static str]) -> Followed<&'static str> {
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
            let (before, recorded) = (self.assignments, self.recorded);
            let (first, ending, listed) = (self.runs.len(), self.ending.clone(), std::mem::take(&mut self.listed));
            self.pipeline()?;
            while self.eat("&&") || self.eat("||") {
                self.blank(true)?;
                let before = self.commands;
                self.maybe(Self::pipeline)?;
                // Perhaps it prints nothing.
                self.commands += usize::from(self.commands > before);
            }
            match self.peek() {
                Some('&') if before != self.assignments => return self.doubt("assigns in the background"),
                Some('&') => {
                    if recorded != self.recorded {
                        // Perhaps not written yet.
                        self.files.clear();
                    }
                    self.script.at += 1;
                    self.in_background(first, ending);
                }
                Some(';') if self.ahead(";;") => {}
                Some(';') => self.script.at += 1,
                _ => {}
            }
            self.listed = self.listed.max(listed);
        }
    }

    pub(super) fn pipeline(&mut self) -> Followed {
        while ["!", "time", "-p"].iter().any(|word| self.eat_bare(word)) {
            self.blank(false)?;
        }
        let (before, commands, recorded) = (self.assignments, self.commands, self.recorded);
        let first = self.runs.len();
        self.command()?;
        self.blank(false)?;
        let mut printed = Some(self.output.clone()).filter(|_| self.commands == commands + 1);
        while self.peek() == Some('|') && !self.ahead("||") {
            if before != self.assignments && self.perhaps == 0 {
                return self.doubt("assigns in a pipeline");
            }
            if recorded != self.recorded {
                self.files.clear();
            }
            let errors = self.ahead("|&");
            self.script.at += if errors { 2 } else { 1 };
            self.blank(true)?;
            self.input = printed.take().filter(|_| !errors);
            let (last, fed) = (self.runs.len(), self.listed);
            let (piped, reads) = (self.piped, self.is_run(first));
            self.piped |= reads;
            let before = self.commands;
            self.apart(|shell| shell.maybe(Self::command))?;
            self.piped = piped;
            self.in_pipeline(first, last, fed);
            // The output of all of it is that of the last, where this is one command.
            if self.commands == before + 1 {
                self.commands = commands + 1;
                printed = Some(self.output.clone()).filter(|text| text.kind() < Kind::Any);
            } else {
                self.commands += 1;
            }
            self.blank(false)?;
        }
        Ok(())
    }

    pub(super) fn command(&mut self) -> Followed {
        self.commands += 1;
        let begun = self.commands;
        let input = self.input.take();
        match self.bare().as_str() {
            "if" => {
                self.script.at += 2;
                self.list(&["then"])?;
                self.maybe(|shell| {
                    while shell.list(&["elif", "else", "fi", "then"])? != "fi" {}
                    Ok(())
                })?;
            }
            word @ ("while" | "until") => {
                self.script.at += 5;
                let turns = self.turns(word);
                self.repeat(turns, |shell| shell.list(&["do"]).and_then(|_| shell.list(&["done"])).map(|_| ()))?;
            }
            "for" => self.each()?,
            "case" => self.cases()?,
            "{" => {
                // Its output is that of the commands within it.
                self.script.at += 1;
                self.commands -= 1;
                self.list(&["}"])?;
                return self.redirections();
            }
            "[[" => {
                let mut kind = Kind::Word;
                while !self.eat_bare("]]") {
                    self.blank(true)?;
                    match self.peek() {
                        Some(c) if "()<>&|;".contains(c) => self.script.at += 1,
                        // What matches is a part of the word before.
                        _ if self.eat_bare("=~") => self.unknown("BASH_REMATCH", kind)?,
                        _ => kind = self.word(false)?.iter().flatten().map(Text::kind).max().unwrap_or(kind),
                    }
                    self.blank(true)?;
                }
            }
            "function" => {
                self.script.at += "function".len();
                self.blank(false)?;
                let name = self.bare();
                self.script.at += name.chars().count();
                self.blank(false)?;
                let _ = self.eat("(");
                return self.define(name, false);
            }
            word @ ("select" | "coproc") => {
                return self.doubt(format!("says {word}, which is not understood"));
            }
            _ if self.eat("((") => self.computation()?,
            _ if self.eat("(") => drop(self.apart(|shell| shell.maybe(|shell| shell.list(&[")"])))?),
            _ => return self.simple(input),
        }
        // It prints something, perhaps several times, or nothing.
        if self.commands > begun {
            self.commands += 1;
        } else {
            self.commands -= 1;
        }
        self.redirections()
    }

    pub(super) fn redirections(&mut self) -> Followed {
        let outer = self.target.take();
        self.blank(false)?;
        while self.redirects() {
            self.redirection(&mut None)?;
            self.blank(false)?;
        }
        self.target = outer;
        Ok(())
    }

    /// Follows a loop until nothing new comes of it. `turns`: how often it is run.
    pub(super) fn repeat(&mut self, turns: Turns, turn: impl Fn(&mut Self) -> Followed) -> Followed {
        let (start, outer, certain) = (self.script.at, self.turn, self.perhaps - self.left_early);
        let begun = self.begins();
        for number in 0..4 {
            (self.script.at, self.turn) = (start, Some(number.max(outer.unwrap_or(0))));
            self.maybe(&turn)?;
        }
        (self.turn, self.perhaps) = (outer, certain + self.left_early);
        self.looped(turns, begun);
        Ok(())
    }

    pub(super) fn each(&mut self) -> Followed {
        self.script.at += 3;
        self.blank(false)?;
        if self.eat("((") {
            return self.counted();
        }
        let name = self.bare();
        self.script.at += name.chars().count();
        self.blank(true)?;
        let (mut items, mut certain) = (Vec::new(), true);
        if self.eat_bare("in") {
            self.blank(false)?;
            while !matches!(self.peek(), None | Some('\n' | ';')) {
                let more = self.word(true)?;
                certain &= more.len() == 1;
                items.extend(more.into_iter().flatten());
                self.blank(false)?;
            }
        } else {
            let lists = self.items("@");
            certain = lists.len() == 1;
            items.extend(lists.into_iter().flatten());
        }
        self.blank(true)?;
        self.eat(";");
        self.blank(true)?;
        if !programs::is_name(&name) || !self.eat_bare("do") {
            return self.doubt("has a loop that is not understood");
        }
        if certain && (1..=MAX_TURNS).contains(&items.len()) && items.iter().all(|i| i.kind() == Kind::Word) {
            // As often as it says.
            let (start, certain) = (self.script.at, self.perhaps - self.left_early);
            for item in items {
                self.script.at = start;
                self.assign(&name, vec![Some(item)])?;
                self.list(&["done"])?;
            }
            self.perhaps = certain + self.left_early;
            return Ok(());
        }
        let kind = |item: &Text| if item.loose().is_some() { Kind::Any } else { item.kind() };
        let kinds = items.iter().map(kind).max().unwrap_or(Kind::Word);
        // Over nothing, the variable stays as it was.
        let kinds = if items.is_empty() { Kind::Any } else { kinds };
        let items = if items.len() < MAX_TEXTS && kinds < Kind::Any {
            items
        } else {
            vec![Text::hole(format!("${{{name}}}"), kinds)]
        };
        self.assign(&name, items.into_iter().map(Some).collect())?;
        self.repeat(Turns::Counted, |shell| shell.list(&["done"]).map(|_| ()))
    }

    /// `((…))` behind its brackets. A shell without it runs the words as commands in subshells.
    fn computation(&mut self) -> Followed {
        let text = self.arithmetic()?;
        for name in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|name| programs::is_name(name))
        {
            let texts = self.texts(name)?;
            let odd = |text: &Text| text.kind() > Kind::Word || text.shown().contains("etcd");
            let expands = text.contains('$') && texts.iter().flatten().any(odd);
            if name.contains("etcd") || expands || self.functions.contains_key(name) || programs::is_known(name) {
                return self.doubt("computes within ((…)) with names of programs");
            }
        }
        self.maybe(|shell| shell.compute(&text))
    }

    /// `for ((…))` behind its brackets. A shell without it ends there.
    fn counted(&mut self) -> Followed {
        let text = self.arithmetic()?;
        self.compute(&text)?;
        self.blank(true)?;
        self.eat(";");
        self.blank(true)?;
        if !self.eat_bare("do") {
            return self.doubt("has a loop that is not understood");
        }
        let endless = text.split(';').nth(1).is_some_and(|condition| condition.trim().is_empty());
        let turns = if endless { Turns::Endless } else { Turns::Unknown };
        self.repeat(turns, |shell| shell.list(&["done"]).map(|_| ()))
    }

    pub(super) fn cases(&mut self) -> Followed {
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

    pub(super) fn redirects(&self) -> bool {
        let digits = self.script.chars[self.script.at..].iter().take_while(|c| c.is_ascii_digit()).count();
        match self.script.chars.get(self.script.at + digits) {
            Some('<' | '>') => self.script.chars.get(self.script.at + digits + 1) != Some(&'('),
            _ => self.ahead("&>"),
        }
    }

    /// A redirection, and what is read by it where it changes that.
    pub(super) fn redirection(&mut self, input: &mut Option<Text>) -> Followed {
        let start = self.script.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit() || "<>&|".contains(c))
            && !self.ahead(">(")
            && !self.ahead("<(")
        {
            self.script.at += 1;
        }
        let operator: String = self.script.chars[start..self.script.at].iter().collect();
        let here = operator.trim_start_matches(|c: char| c.is_ascii_digit()) == "<<";
        *input = if operator.contains('<') { None } else { input.take() };
        if operator.ends_with(|c: char| c.is_ascii_digit()) || self.eat("-") && !here {
            return Ok(());
        }
        let strips = here && self.script.chars.get(self.script.at - 1) == Some(&'-');
        self.blank(false)?;
        let from = self.script.at;
        let targets = self.word(false)?;
        if here {
            let raw: String = self.script.chars[from..self.script.at].iter().collect();
            let delimiter: String = raw.chars().filter(|c| !"'\"\\".contains(*c)).collect();
            let plain = delimiter != raw;
            if operator == "<<" {
                *input = self.here_document(&delimiter, plain, strips)?;
            }
            self.script.heredocs.push((delimiter, plain));
        } else if operator == "<<<" {
            if let [words] = targets.as_slice() {
                *input = words.first().cloned().filter(|_| words.len() == 1);
            }
        } else if operator.contains('>') {
            // The output goes elsewhere.
            self.commands += usize::from(!operator.starts_with('2'));
            self.written.extend(targets.iter().flatten().map(|text| programs::basename(&text.shown()).to_owned()));
            match targets.as_slice() {
                [words] if words.len() == 1 => self.redirected(&operator, words[0].as_str()),
                _ => self.redirected(&operator, None),
            }
        }
        Ok(())
    }
}
