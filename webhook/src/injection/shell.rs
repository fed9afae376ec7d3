//! A POSIX shell's text, read as far as it says which programs run with which words.
//!
//! Nothing is executed and nothing guessed: a word is what is written, with its expansions kept as expansions, for
//! whoever asks to resolve or to give up on.

/// A simple command: a program and its words, or assignments alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    /// `NAME=value` before the program.
    pub(super) assignments: Vec<(String, Word)>,
    /// The program and what follows it, redirections left out.
    pub(super) words: Vec<Word>,
}

/// One word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Part>);

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text that stands for itself.
    Literal(String),
    /// `$NAME`, `${NAME…}`, `$@`: the name, the raw text, and whether quotes keep it one word.
    Variable {
        /// The parameter's name.
        name: String,
        /// What follows the name within the braces: `:-default` and the like.
        modifier: String,
        /// Within double quotes.
        quoted: bool,
    },
    /// `$(…)`, `` `…` `` or `$((…))`: known only when it runs.
    Substitution,
}

impl Word {
    /// A word of plain text.
    pub(super) fn literal(text: &str) -> Self {
        Self(vec![Part::Literal(text.to_owned())])
    }

    /// The text up to the first expansion, and whether that is all of it.
    pub(super) fn prefix(&self) -> (&str, bool) {
        match self.0.as_slice() {
            [] => ("", true),
            [Part::Literal(text)] => (text, true),
            [Part::Literal(text), ..] => (text, false),
            _ => ("", false),
        }
    }

    /// The whole text where nothing in it is expanded.
    pub(super) fn text(&self) -> Option<&str> {
        let (text, whole) = self.prefix();
        whole.then_some(text)
    }
}

/// Reads the commands of `script`, in order, those within compound commands included; command substitutions are not
/// looked into.
pub(super) fn commands(script: &str) -> Vec<Command> {
    Reader { chars: script.chars().collect(), at: 0, heredocs: Vec::new(), done: Vec::new(), now: Command::default() }
        .read()
}

/// Words after which a command begins.
const KEYWORDS: [&str; 10] = ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "}"];

struct Reader {
    chars: Vec<char>,
    at: usize,
    /// Delimiters of here-documents that begin at the next line.
    heredocs: Vec<String>,
    done: Vec<Command>,
    now: Command,
}

impl Reader {
    fn read(mut self) -> Vec<Command> {
        while let Some(c) = self.peek() {
            match c {
                '\n' => {
                    self.at += 1;
                    self.end_command();
                    self.skip_heredocs();
                }
                ';' | '&' | '|' | '(' | ')' => {
                    self.at += 1;
                    self.end_command();
                }
                '<' | '>' => self.redirection(),
                '#' => self.skip_line(),
                c if c.is_whitespace() => self.at += 1,
                '\\' if self.chars.get(self.at + 1) == Some(&'\n') => self.at += 2,
                _ => {
                    let word = self.word();
                    self.push(word);
                }
            }
        }
        self.end_command();
        self.done
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn end_command(&mut self) {
        let command = std::mem::take(&mut self.now);
        if command != Command::default() {
            self.done.push(command);
        }
    }

    fn push(&mut self, word: Word) {
        if self.now.words.is_empty() {
            if let Some((name, value)) = assignment(&word) {
                self.now.assignments.push((name, value));
                return;
            }
            if word.text().is_some_and(|text| KEYWORDS.contains(&text)) {
                return;
            }
        }
        self.now.words.push(word);
    }

    fn skip_line(&mut self) {
        while self.peek().is_some_and(|c| c != '\n') {
            self.at += 1;
        }
    }

    fn redirection(&mut self) {
        // A file descriptor's number before it is a word of digits that we already took; it does no harm as one.
        let here = self.chars[self.at] == '<' && self.chars.get(self.at + 1) == Some(&'<');
        let string = here && self.chars.get(self.at + 2) == Some(&'<');
        while self.peek().is_some_and(|c| matches!(c, '<' | '>' | '&' | '|' | '-')) {
            self.at += 1;
        }
        while self.peek().is_some_and(|c| c == ' ' || c == '\t') {
            self.at += 1;
        }
        if self.peek().is_some_and(|c| !matches!(c, '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>')) {
            let target = self.word();
            if here && !string {
                self.heredocs.push(target.text().unwrap_or_default().to_owned());
            }
        }
    }

    fn skip_heredocs(&mut self) {
        for delimiter in std::mem::take(&mut self.heredocs) {
            while self.at < self.chars.len() {
                let start = self.at;
                self.skip_line();
                let line: String = self.chars[start..self.at].iter().collect();
                self.at = (self.at + 1).min(self.chars.len());
                if line.trim_start_matches('\t') == delimiter {
                    break;
                }
            }
        }
    }

    fn word(&mut self) -> Word {
        let mut parts = Parts::default();
        while let Some(c) = self.peek() {
            match c {
                c if c.is_whitespace() => break,
                ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\'' => {
                    self.at += 1;
                    parts.open();
                    while let Some(c) = self.peek() {
                        self.at += 1;
                        if c == '\'' {
                            break;
                        }
                        parts.char(c);
                    }
                }
                '"' => {
                    self.at += 1;
                    parts.open();
                    self.double_quoted(&mut parts);
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => {}
                        Some(c) => parts.char(c),
                        None => parts.char('\\'),
                    }
                    self.at += 1;
                }
                '$' => self.expansion(&mut parts, false),
                '`' => self.backquoted(&mut parts),
                c => {
                    parts.char(c);
                    self.at += 1;
                }
            }
        }
        parts.word()
    }

    fn double_quoted(&mut self, parts: &mut Parts) {
        while let Some(c) = self.peek() {
            match c {
                '"' => {
                    self.at += 1;
                    return;
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => {}
                        Some(c @ ('"' | '\\' | '$' | '`')) => parts.char(c),
                        Some(c) => {
                            parts.char('\\');
                            parts.char(c);
                        }
                        None => parts.char('\\'),
                    }
                    self.at += 1;
                }
                '$' => self.expansion(parts, true),
                '`' => self.backquoted(parts),
                c => {
                    parts.char(c);
                    self.at += 1;
                }
            }
        }
    }

    fn backquoted(&mut self, parts: &mut Parts) {
        self.at += 1;
        while let Some(c) = self.peek() {
            self.at += if c == '\\' { 2 } else { 1 };
            if c == '`' {
                break;
            }
        }
        parts.expand(Part::Substitution);
    }

    fn expansion(&mut self, parts: &mut Parts, quoted: bool) {
        self.at += 1;
        match self.peek() {
            Some('(') => {
                self.balanced('(', ')');
                parts.expand(Part::Substitution);
            }
            Some('{') => {
                let inner = self.balanced('{', '}');
                let length = inner
                    .char_indices()
                    .find(|(_, c)| !(c.is_ascii_alphanumeric() || *c == '_'))
                    .map_or(inner.len(), |(i, _)| i);
                let length = if length == 0 { inner.chars().next().map_or(0, char::len_utf8) } else { length };
                let (name, modifier) = inner.split_at(length);
                parts.expand(Part::Variable { name: name.to_owned(), modifier: modifier.to_owned(), quoted });
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let start = self.at;
                while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.at += 1;
                }
                let name = self.chars[start..self.at].iter().collect();
                parts.expand(Part::Variable { name, modifier: String::new(), quoted });
            }
            Some(c) if c.is_ascii_digit() || "@*#?$!-".contains(c) => {
                self.at += 1;
                parts.expand(Part::Variable { name: c.to_string(), modifier: String::new(), quoted });
            }
            _ => parts.char('$'),
        }
    }

    /// Skips a bracketed piece, which may hold quotes and more brackets; its inside.
    fn balanced(&mut self, open: char, close: char) -> String {
        let mut depth = 0usize;
        let start = self.at + 1;
        while let Some(c) = self.peek() {
            self.at += 1;
            match c {
                '\\' => self.at += 1,
                '\'' if depth > 0 && open == '(' => {
                    while self.peek().is_some_and(|c| c != '\'') {
                        self.at += 1;
                    }
                    self.at += 1;
                }
                c if c == open => depth += 1,
                c if c == close => {
                    depth -= 1;
                    if depth == 0 {
                        return self.chars[start..self.at - 1].iter().collect();
                    }
                }
                _ => {}
            }
        }
        self.at = self.chars.len();
        self.chars.get(start..).unwrap_or_default().iter().collect()
    }
}

/// Collects a word's parts; adjacent text is one part.
#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn open(&mut self) {
        if self.0.is_empty() {
            self.0.push(Part::Literal(String::new()));
        }
    }

    fn char(&mut self, c: char) {
        if let Some(Part::Literal(text)) = self.0.last_mut() {
            text.push(c);
        } else {
            self.0.push(Part::Literal(c.to_string()));
        }
    }

    fn expand(&mut self, part: Part) {
        if self.0.as_slice() == [Part::Literal(String::new())] {
            self.0.clear();
        }
        self.0.push(part);
    }

    fn word(self) -> Word {
        Word(self.0)
    }
}

/// `NAME=value`.
fn assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Literal(first)) = word.0.first() else { return None };
    let (name, rest) = first.split_once('=')?;
    let name = name.strip_suffix('+').unwrap_or(name);
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        return None;
    }
    let mut value = Vec::new();
    if !rest.is_empty() {
        value.push(Part::Literal(rest.to_owned()));
    }
    value.extend(word.0[1..].iter().cloned());
    Some((name.to_owned(), Word(value)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn plain(script: &str) -> Vec<Vec<String>> {
        commands(script)
            .into_iter()
            .map(|c| c.words.iter().map(|w| w.text().unwrap_or("<expanded>").to_owned()).collect())
            .collect()
    }

    #[test]
    fn commands_are_split_and_quotes_are_read() {
        assert_eq!(
            plain("mkdir -p /x && exec etcd --name='a b' \\\n  --cert-file \"/y z\" # --key-file=no\necho done; true"),
            [
                vec!["mkdir", "-p", "/x"],
                vec!["exec", "etcd", "--name=a b", "--cert-file", "/y z"],
                vec!["echo", "done"],
                vec!["true"]
            ]
        );
    }

    #[test]
    fn compound_commands_and_here_documents() {
        assert_eq!(
            plain(
                "if [ -d /x ]; then\n  etcd --a\nelse\n  (etcd --b 2>&1) >/dev/null\nfi\ncat <<EOF >f\netcd --no\nEOF\netcd --c"
            ),
            [
                vec!["[", "-d", "/x", "]"],
                vec!["etcd", "--a"],
                vec!["etcd", "--b", "2"],
                vec!["fi"],
                vec!["cat"],
                vec!["etcd", "--c"]
            ]
        );
    }

    #[test]
    fn expansions_are_kept() {
        let read = commands("A=1 B=$X etcd $FLAGS \"${MORE:-x y}\" --name=$(hostname -s) '$no' a`b`");
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].assignments[0], ("A".to_owned(), Word::literal("1")));
        let words = &read[0].words;
        assert_eq!(words[1].0, [Part::Variable { name: "FLAGS".into(), modifier: String::new(), quoted: false }]);
        assert_eq!(words[2].0, [Part::Variable { name: "MORE".into(), modifier: ":-x y".into(), quoted: true }]);
        assert_eq!(words[3].prefix(), ("--name=", false));
        assert_eq!(words[4].text(), Some("$no"));
        assert_eq!(words[5].0, [Part::Literal("a".into()), Part::Substitution]);
    }

    #[test]
    fn garbage_ends() {
        for script in ["'", "\"", "$(", "${", "`", "\\", "<<", "<<X", "a\\", "$((1", "((((", "${}", "\"${x", "$'"] {
            let _ = commands(script);
        }
    }
}
