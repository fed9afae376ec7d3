//! Words and their expansions.

use super::*;

/// The texts that a word can be, while it is put together: of each the words that are complete, and the one that is not.
pub(super) struct Word {
    /// True if white space in expansions parts words.
    pub(super) splits: bool,
    pub(super) texts: Vec<(Vec<Text>, Option<Text>)>,
}

impl Word {
    fn new(splits: bool) -> Self {
        Self { splits, texts: vec![(Vec::new(), None)] }
    }

    fn str(&mut self, text: &str) {
        self.texts.iter_mut().for_each(|(_, open)| open.get_or_insert_default().push_str(text));
    }

    fn done(self) -> Vec<Vec<Text>> {
        self.texts.into_iter().map(|(done, open)| done.into_iter().chain(open).collect()).collect()
    }
}

impl Shell<'_> {
    /// A word: each of the lists of words that it can become. An assignment's value is not parted.
    pub(super) fn word(&mut self, splits: bool) -> Followed<Vec<Vec<Text>>> {
        let start = self.script.at;
        let mut word = Word::new(splits);
        let mut odd = false;
        while let Some(c) = self.peek() {
            match c {
                '<' | '>' if self.script.at == start && (self.eat("<(") || self.eat(">(")) => {
                    // It runs beside the script.
                    let ending = self.ending.clone();
                    self.apart(|shell| shell.maybe(|shell| shell.list(&[")"])))?;
                    self.ending = ending;
                    word.str("/dev/fd/63");
                }
                c if c.is_whitespace() || ";&|()<>".contains(c) => break,
                '\'' | '"' => match self.whole_list() {
                    Some((name, from)) => self.all(&mut word, &name, from, true)?,
                    None => {
                        word.str("");
                        self.quoted(&mut word)?;
                    }
                },
                '\\' | '`' | '$' => self.special(&mut word, false)?,
                c => {
                    // A pattern or braces can become any words, which may look like flags.
                    odd |= match c {
                        '*' | '?' => {
                            let open = word.texts.first().and_then(|(_, open)| open.as_ref());
                            !odd && can_be_flags(&open.map(Text::shown).unwrap_or_default())
                        }
                        '{' if self.script.at == start && self.numbers() => {
                            self.expand(&mut word, vec![Some(Text::hole("numbers", Kind::Words))], false)?;
                            continue;
                        }
                        '{' => self.bare().contains(',') || self.bare().contains(".."),
                        _ => false,
                    };
                    self.script.at += 1;
                    self.letter(&mut word, c, false)?;
                }
            }
        }
        if self.script.at == start {
            return self.doubt(
                self.peek().map_or_else(|| "ends too early".to_owned(), |c| format!("has {c:?} where a word begins")),
            );
        }
        if odd && splits {
            self.expand(&mut word, vec![Some(Text::hole("a pattern", Kind::Many))], true)?;
        }
        Ok(word.done())
    }

    /// `{1..9}` in front of it, a word of its own, which is taken.
    fn numbers(&mut self) -> bool {
        let bare = self.bare();
        let inner =
            bare.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).and_then(|inner| inner.split_once(".."));
        let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let numbers = inner.is_some_and(|(from, to)| number(from) && number(to));
        self.script.at += if numbers { bare.len() } else { 0 };
        numbers
    }

    fn letter(&mut self, word: &mut Word, c: char, quoted: bool) -> Followed {
        let hole = u32::from(c).checked_sub(HOLES).and_then(|index| self.script.holes.get(index as usize)).cloned();
        match hole {
            Some(text) => self.expand(word, vec![Some(text)], quoted),
            None => {
                word.str(c.encode_utf8(&mut [0; 4]));
                self.pay(word.texts.len())
            }
        }
    }

    /// The content of the quotes that follow.
    fn quoted(&mut self, word: &mut Word) -> Followed {
        let quote = self.next();
        while let Some(c) = self.peek() {
            match c {
                _ if Some(c) == quote => {
                    self.script.at += 1;
                    return Ok(());
                }
                '\\' | '`' | '$' if quote == Some('"') => self.special(word, true)?,
                c => {
                    self.script.at += 1;
                    self.letter(word, c, true)?;
                }
            }
        }
        self.doubt("has a quote that does not end")
    }

    /// A backslash, a backquote or a `$`.
    fn special(&mut self, word: &mut Word, quoted: bool) -> Followed {
        match self.next() {
            Some('\\') => match self.next() {
                None | Some('\n') => Ok(()),
                Some(c) => {
                    word.str(if quoted && !"\"\\$`".contains(c) { "\\" } else { "" });
                    self.letter(word, c, true)
                }
            },
            Some('`') => {
                let mut chars = Vec::new();
                while let Some(c) = self.next().filter(|c| *c != '`') {
                    chars.extend(if c == '\\' { self.next() } else { Some(c) });
                }
                chars.push(')');
                self.pay(chars.len())?;
                let script = Script {
                    chars: chars.into(),
                    holes: self.script.holes.clone(),
                    place: self.place(),
                    ..Script::default()
                };
                let outer = std::mem::replace(&mut self.script, script);
                let text = self.substitution()?;
                self.script = outer;
                self.expand(word, vec![Some(text)], quoted)
            }
            _ if (self.ahead("'") || self.ahead("\"")) && !quoted => {
                self.quoted(&mut Word::new(false))?;
                self.expand(word, vec![Some(Text::hole("$'…' or $\"…\"", Kind::Many))], true)
            }
            _ if self.eat("((") => {
                let text = self.arithmetic()?;
                self.maybe(|shell| shell.compute(&text))?;
                self.expand(word, vec![Some(Text::hole(format!("$(({text}))"), Kind::Word))], quoted)
            }
            _ if self.eat("(") => {
                let text = self.substitution()?;
                self.expand(word, vec![Some(text)], quoted)
            }
            _ if self.eat("{") => self.braces(word, quoted),
            _ => match self.name() {
                name if name.is_empty() => {
                    word.str("$");
                    Ok(())
                }
                name => self.parameter(word, &name, quoted),
            },
        }
    }

    fn name(&mut self) -> String {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut name: String = self.peek().filter(|c| letter(*c) || "@*#?$!-".contains(*c)).into_iter().collect();
        self.script.at += name.len();
        if programs::is_name(&name) {
            while let Some(c) = self.peek().filter(|c| letter(*c)) {
                name.push(c);
                self.script.at += 1;
            }
        }
        name
    }

    /// `$NAME`, `$1`, `$@`.
    fn parameter(&mut self, word: &mut Word, name: &str, quoted: bool) -> Followed {
        match (name, name.parse::<usize>()) {
            ("@" | "*", _) => self.listed(word, "@", name == "*", quoted),
            (_, Ok(_)) => {
                let texts = self.argument(name);
                self.expand(word, texts, quoted)
            }
            _ => {
                let texts = self.texts(name)?;
                self.expand(word, texts, quoted)
            }
        }
    }

    /// `${…}`, behind its bracket.
    fn braces(&mut self, word: &mut Word, quoted: bool) -> Followed {
        let name = self.name();
        if self.eat("}") {
            return self.parameter(word, &name, quoted);
        }
        if let Some(joined) = (programs::is_name(&name))
            .then(|| [("[@]}", false), ("[*]}", true)].into_iter().find(|(end, _)| self.eat(end)))
            .flatten()
        {
            return self.listed(word, &name, joined.1, quoted);
        }
        if let Some(texts) = self.item(&name) {
            return self.expand(word, texts, quoted);
        }
        let colon = self.eat(":");
        let operator = self.peek().unwrap_or_default();
        if !is_parameter(&name) || !"-=+?".contains(operator) {
            let text = self.raw('{', '}')?;
            // Of these characters the shell makes something else.
            let plain = !colon && !text.contains(['\\', '&', '~']);
            if let Some((from, to)) = text.strip_prefix("//").and_then(|text| text.split_once('/')).filter(|_| plain)
                && let [Some(known)] = self.scalar(&name)?.as_slice()
                && let Some(text) = known.replaced(from, to)
            {
                return self.expand(word, vec![Some(text)], quoted);
            }
            let kind = self.part(&name, colon, &text, quoted || !word.splits)?;
            let text = format!("${{{name}{}{text}}}", if colon { ":" } else { "" });
            return self.expand(word, vec![Some(Text::hole(text, kind))], quoted);
        }
        self.script.at += 1;
        let texts = self.scalar(&name)?;
        let mut other = Word::new(false);
        self.depth += 1;
        while self.peek().is_some_and(|c| c != '}') && self.depth < MAX_DEPTH {
            match self.peek() {
                Some('"') => self.quoted(&mut other)?,
                Some('\\' | '`' | '$') => self.special(&mut other, quoted)?,
                Some('\'') if !quoted => return self.doubt("has quotes within ${…}"),
                Some(c) => {
                    self.script.at += 1;
                    self.letter(&mut other, c, quoted)?;
                }
                None => {}
            }
        }
        self.depth -= 1;
        if !self.eat("}") {
            return self.doubt("has a bracket that does not close");
        }
        let other = other.done().into_iter().map(|mut all| all.pop());
        let filled = |text: &Option<Text>| {
            text.as_ref().is_some_and(|t| t.0.iter().any(|p| !matches!(p, Part::Hole(_, k, _) if *k > Kind::Word)))
        };
        let empty = |text: &Option<Text>| text.as_ref().is_none_or(|t| t.0.is_empty());
        let mut all: Vec<Option<Text>> = Vec::new();
        let other_too = |text: &Option<Text>| filled(text) == (operator == '+') || !(filled(text) || empty(text));
        if operator != '?' && (!colon || texts.iter().any(other_too)) {
            all.extend(other);
        }
        match operator {
            '+' if texts.iter().any(|text| !filled(text)) => all.push(None),
            '+' => {}
            _ => all.extend(texts.into_iter().filter(|text| !colon || !empty(text) || operator == '?')),
        }
        if operator == '=' {
            self.assign(&name, all.clone())?;
        }
        self.expand(word, all, quoted)
    }

    /// Each of the texts of a variable or of an argument by its number.
    fn scalar(&mut self, name: &str) -> Followed<Vec<Option<Text>>> {
        if name.parse::<usize>().is_ok() { Ok(self.argument(name)) } else { self.texts(name) }
    }

    /// How much `${name…}` is, with the `text` of an operator that cuts, replaces or selects; `one`: it stays one word.
    fn part(&mut self, name: &str, colon: bool, text: &str, one: bool) -> Followed<Kind> {
        let operator = text.chars().next().unwrap_or_default();
        if name == "#" {
            return Ok(Kind::Word);
        }
        // The value of another variable.
        if name == "!" && programs::is_name(text) && one {
            return Ok(Kind::Any);
        }
        if !is_parameter(name) || text.contains('@') || (operator == '[' && text.contains('$')) {
            return Ok(Kind::Many);
        }
        let matched = operator == '[' && name == "BASH_REMATCH";
        let texts = match operator {
            '[' if !matched => vec![Some(Text::hole("", Kind::Any))],
            _ => self.scalar(name)?,
        };
        // What holds flags can become flags.
        let flags = |text: &Text| {
            let known = |part: &Part| if let Part::Known(known) = part { known.clone() } else { "$".to_owned() };
            let known: String = text.0.iter().map(known).collect();
            known.starts_with('-') || known.contains("--") || known.contains(" -")
        };
        if texts.iter().flatten().any(flags) {
            return Ok(Kind::Many);
        }
        let kind = texts.iter().flatten().map(Text::kind).max().unwrap_or(Kind::Word);
        let cuts =
            if colon { operator.is_ascii_digit() || " $(".contains(operator) } else { "#%^,".contains(operator) };
        // A replacement can begin a flag.
        let flag =
            text.trim_start_matches('/').split_once('/').is_some_and(|(_, new)| new.starts_with('-') && new != "-");
        let plain = |c: char| c.is_ascii_alphanumeric() || "./_-:,=%+#".contains(c);
        let replaces = !colon && operator == '/' && !flag && text.chars().all(plain);
        Ok(match kind {
            // A part of words is still words.
            Kind::Word | Kind::Words if cuts || matched => kind,
            Kind::Word if replaces => kind,
            _ if one => Kind::Any,
            _ => Kind::Many,
        })
    }

    /// The text of an arithmetic expression up to its two brackets, which are taken.
    pub(super) fn arithmetic(&mut self) -> Followed<String> {
        let text = self.raw('(', ')')?;
        if self.eat(")") { Ok(text) } else { self.doubt("computes in a way that is not understood") }
    }

    /// Arithmetic: the variables that it assigns are numbers from here on.
    pub(super) fn compute(&mut self, text: &str) -> Followed {
        let compared =
            ["==", "!=", "<=", ">="].iter().fold(text.to_owned(), |text, operator| text.replace(operator, " "));
        let assigns =
            compared.contains('=') || ["<<=", ">>=", "++", "--"].iter().any(|operator| text.contains(operator));
        if assigns && text.contains('[') {
            return self.doubt("computes in a way that is not understood");
        }
        let names = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|name| programs::is_name(name));
        for name in names.filter(|_| assigns) {
            self.unknown(name, Kind::Word)?;
        }
        Ok(())
    }

    /// Everything up to the bracket that closes one just read.
    pub(super) fn raw(&mut self, open: char, close: char) -> Followed<String> {
        let (mut depth, mut inner) = (1, String::new());
        while let Some(c) = self.next() {
            match c {
                '$' if open == '(' && self.ahead("(") && !self.ahead("((") => {
                    // A number, which a program prints.
                    self.script.at += 1;
                    self.substitution()?;
                    inner.push('0');
                    continue;
                }
                '\\' => inner.extend(self.next()),
                '\'' | '"' | '`' => return self.doubt("has quotes within an expansion"),
                c if c == open => depth += 1,
                c if c == close => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.pay(inner.len())?;
                return if inner.replace("$((", "").contains("$(") {
                    self.doubt("runs a program within an expansion")
                } else {
                    Ok(inner)
                };
            }
            inner.push(c);
        }
        self.doubt("has a bracket that does not close")
    }

    /// A command substitution, after its bracket: returns its output.
    fn substitution(&mut self) -> Followed<Text> {
        let (before, outer) = (self.commands, std::mem::take(&mut self.output));
        self.apart(|shell| shell.maybe(|shell| shell.list(&[")"])))?;
        let one = self.commands == before + 1;
        // Of what is around it, nothing is printed yet.
        self.commands = before;
        let output = std::mem::replace(&mut self.output, outer);
        Ok(if one { output } else { Text::hole("$(…)", Kind::Any) })
    }

    /// Puts an expansion, one of `texts`, into a word.
    pub(super) fn expand(&mut self, word: &mut Word, mut texts: Vec<Option<Text>>, quoted: bool) -> Followed {
        texts.sort_unstable();
        texts.dedup();
        if word.texts.len() * texts.len() > MAX_TEXTS {
            // Nothing at all is a word less, unless there is some of the word already.
            let begun = word.texts.iter().all(|(_, open)| open.as_ref().is_some_and(|text| !text.0.is_empty()));
            let empty = texts.iter().any(|text| text.as_ref().is_none_or(|text| text.0.is_empty()));
            let hole = if empty && !begun { Text::hole("…", Kind::Many) } else { one_of(&texts) };
            texts = vec![Some(hole)];
        }
        let separator = self.separator();
        let cost = word.texts.iter().flat_map(|(done, open)| done.iter().chain(open)).map(Text::cost);
        let cost = if texts.len() > 1 { cost.sum::<usize>() } else { 0 };
        self.pay(cost * texts.len() + word.texts.len() * texts.iter().flatten().map(Text::cost).sum::<usize>())?;
        let splits = word.splits;
        let put = |text: &Option<Text>, (done, open): &mut (Vec<Text>, Option<Text>)| match text {
            None if splits => {}
            Some(text) if splits && !quoted => split(text, separator, done, open),
            Some(text) => open.get_or_insert_default().append(text, quoted),
            None => drop(open.get_or_insert_default()),
        };
        if let [text] = texts.as_slice() {
            word.texts.iter_mut().for_each(|one| put(text, one));
            return Ok(());
        }
        for before in std::mem::take(&mut word.texts) {
            for text in &texts {
                let mut one = before.clone();
                put(text, &mut one);
                word.texts.push(one);
            }
        }
        Ok(())
    }
}

/// True if a name is a variable's, or the number of an argument.
fn is_parameter(name: &str) -> bool {
    programs::is_name(name) || name.parse::<usize>().is_ok_and(|n| n > 0)
}

/// True if a pattern that begins with this text can become words that are flags: those begin with the same text.
fn can_be_flags(known: &str) -> bool {
    known.is_empty() || (known.starts_with('-') && !known.contains('='))
}

/// Parts a text at its separators, as a shell does with an expansion outside quotes.
fn split(text: &Text, separator: Option<fn(char) -> bool>, done: &mut Vec<Text>, open: &mut Option<Text>) {
    for part in &text.0 {
        match (part, separator) {
            (Part::Known(known), Some(separator)) => {
                for (index, piece) in known.split(separator).enumerate() {
                    if index > 0 {
                        done.extend(open.take());
                    }
                    if piece.is_empty() {
                        continue;
                    }
                    let word = open.get_or_insert_default();
                    let pattern = piece.find(['*', '?', '[']);
                    if pattern.is_some_and(|at| can_be_flags(&(word.shown() + &piece[..at]))) {
                        word.append(&Text::hole(piece, Kind::Many), false);
                    } else {
                        word.push_str(piece);
                    }
                }
            }
            (Part::Hole(..), Some(_)) => open.get_or_insert_default().append(&Text(vec![part.clone()]), false),
            _ => open.get_or_insert_default().append(&Text::hole(text.shown(), Kind::Many), false),
        }
    }
}
