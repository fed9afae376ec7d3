//! The input of a command: here-documents, here-strings and what the command before it in a pipeline prints.

use super::*;

impl Shell<'_> {
    /// The text of the here-document whose delimiter was just read; `None` where it is not known. It begins at the next
    /// line; `strips`: without the tabs in front of each line.
    pub(super) fn here_document(&mut self, delimiter: &str, plain: bool, strips: bool) -> Followed<Option<Text>> {
        let chars = Rc::clone(&self.script.chars);
        let rest = chars.get(self.script.at..).unwrap_or_default();
        let line = rest.iter().position(|c| *c == '\n').unwrap_or(rest.len());
        // What is behind it in its line ends there for certain.
        let behind = &rest[..line];
        let quotes = |quote: char| behind.iter().filter(|c| **c == quote).count();
        let quoted = matches!((quotes('"'), quotes('\'')), (double, 0) if double % 2 == 0);
        if !self.script.heredocs.is_empty() || behind.iter().any(|c| "\\#`(".contains(*c)) || !quoted {
            return Ok(None);
        }
        let mut text = Text::default();
        let mut lines = rest.get(line + 1..).unwrap_or_default().split(|c| *c == '\n');
        loop {
            let Some(mut line) = lines.next() else { return Ok(None) };
            while let (true, ['\t', rest @ ..]) = (strips, line) {
                line = rest;
            }
            self.pay(4 * line.len() + 4)?;
            if line.iter().copied().eq(delimiter.chars()) {
                return Ok(Some(text));
            }
            if !self.here_line(&mut text, line, plain)? {
                return Ok(None);
            }
            text.push_str("\n");
        }
    }

    /// Appends a line of a here-document; whether all of it is known.
    fn here_line(&mut self, text: &mut Text, line: &[char], plain: bool) -> Followed<bool> {
        let mut at = 0;
        while let Some(c) = line.get(at) {
            at += 1;
            let hole =
                u32::from(*c).checked_sub(HOLES).and_then(|index| self.script.holes.get(index as usize)).cloned();
            if let Some(hole) = hole {
                text.append(&hole, false);
                continue;
            }
            // A backslash takes the meaning from these, and the end of its line from that.
            let escaped = line.get(at).filter(|next| "$\\`".contains(**next));
            if let ('\\', false, Some(next)) = (*c, plain, escaped) {
                text.push_str(next.encode_utf8(&mut [0; 4]));
                at += 1;
                continue;
            }
            if plain || !"$\\`".contains(*c) || (*c == '\\' && at < line.len()) {
                text.push_str(c.encode_utf8(&mut [0; 4]));
                continue;
            }
            // A variable by its name, and no other expansion.
            let bracket = line.get(at) == Some(&'{');
            let from = at + usize::from(bracket);
            let letters = line.get(from..).unwrap_or_default();
            let name: String = letters.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
            at = from + name.len() + usize::from(bracket);
            let closes = !bracket || line.get(at - 1) == Some(&'}');
            if *c != '$' || !programs::is_name(&name) || !closes {
                return Ok(false);
            }
            match self.texts(&name)?.as_slice() {
                [Some(value)] => text.append(value, false),
                [None] => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// `mapfile -t NAME`, of an input that is known.
    pub(super) fn lines(&mut self, words: &[Text], input: Option<&Text>, all: &str) -> Followed {
        let name = match words {
            [option, name] if option.as_str() == Some("-t") => name.as_str().filter(|name| programs::is_name(name)),
            _ => None,
        };
        let (Some(name), Some(text)) = (name, input.and_then(Text::as_str)) else {
            return self.doubt(format!("uses {all}, whose input is not known"));
        };
        let items = text.strip_suffix('\n').unwrap_or(text).split('\n').map(Text::known).collect();
        self.assign_list(name, vec![items])
    }
}
