//! Files that a script writes: as long as it is certain what is in one, it is followed as a script where it is run or read.

use super::*;

/// Programs that change no file. Any other may change each of them.
const READERS: &str = ": [ test true false echo printf pwd sleep wait exit umask kill cat tac head tail cut tr wc grep egrep \
    fgrep mkdir chmod chown chgrp ls stat du df basename dirname readlink realpath seq expr hostname uname whoami id groups \
    nproc arch md5sum sha1sum sha256sum sha512sum getent ps pgrep pidof free uptime which type printenv break continue return \
    read shift";

/// The one name of a path that is written in several ways.
pub(super) fn path(name: &str) -> &str {
    let mut path = name;
    while let Some(rest) = path.strip_prefix("./") {
        path = rest;
    }
    path
}

impl Shell<'_> {
    /// A program has run.
    pub(super) fn ran(&mut self, words: &[Text]) {
        let reads = words.first().and_then(Text::as_str).is_some_and(|name| {
            let name = programs::basename(name);
            READERS.split_whitespace().any(|known| known == name)
        });
        if !reads {
            self.files.clear();
            if words.first().and_then(Text::as_str) != Some("rm") {
                self.members.clear();
            }
        }
    }

    /// etcd or etcdctl has run, which write the files that they are given.
    pub(super) fn ran_tool(&mut self, words: &[Text]) {
        let mentioned = |file: &String| {
            words.iter().any(|word| word.loose().is_some() || word.shown().contains(programs::basename(file)))
        };
        self.files.retain(|file, _| !mentioned(file));
    }

    /// The output of a command goes to a file; `None`: to one of an unknown name.
    pub(super) fn redirected(&mut self, operator: &str, target: Option<&str>) {
        let Some(target) = target else {
            self.members.clear();
            return self.files.clear();
        };
        let appends = matches!(operator, ">>" | "1>>");
        let name = programs::basename(target);
        let before = self.files.remove(path(target)).filter(|_| appends);
        // By another path it may be the same file.
        self.files.retain(|file, _| programs::basename(file) != name);
        self.members.retain(|file| programs::basename(file) != name);
        let whole = matches!(operator, ">" | ">|" | "1>" | "1>|");
        // Of two, the first is empty.
        let first = self.target.is_none();
        self.target =
            Some((path(target).to_owned(), if whole { Some(Text::default()) } else { before }.filter(|_| first)));
    }

    /// A command whose output went to the last target has printed this, as far as that is known.
    pub(super) fn wrote(&mut self, printed: Option<&Text>) {
        let Some((file, before)) = self.target.take() else { return };
        if self.parsing {
            return;
        }
        let name = programs::basename(&file).to_owned();
        let first = before.as_ref().is_some_and(|text| text.0.is_empty());
        if first && printed.is_some_and(programs::is_member) {
            self.members.insert(file);
        } else if self.perhaps > 0 || self.branch {
            // Perhaps now, perhaps when a signal comes or in the background.
            self.unsure.insert(name);
        } else if let (false, Some(mut text), Some(printed)) = (self.unsure.contains(&name), before, printed) {
            text.append(printed, false);
            self.files.insert(file, text);
            self.recorded += 1;
        }
    }

    /// The script in a file of this path, where that is known.
    pub(super) fn file(&mut self, name: &str) -> Followed<Option<Text>> {
        let Some(text) = self.files.get(path(name)).cloned() else { return Ok(None) };
        self.pay(text.cost())?;
        if text.0.iter().any(|part| matches!(part, Part::Hole(_, kind, _) if *kind > Kind::Word)) {
            return Ok(None);
        }
        let first = text.prefix().lines().next().unwrap_or_default();
        self.errexit |= first.starts_with("#!") && first.contains(" -");
        let known = first.strip_prefix("#!").is_none_or(|line| {
            let words: Vec<Text> = line.split_whitespace().map(Text::known).collect();
            let words = match words.first().and_then(Text::as_str) {
                Some("/usr/bin/env") => &words[1..],
                _ => &words[..],
            };
            words.len() <= 2 && matches!(programs::step(words), programs::Step::Stdin(..))
        });
        Ok(Some(text).filter(|_| known))
    }
}

/// The text that a program prints to the last byte, where that is known; `output` is what it leaves in a `$(…)`.
pub(super) fn printed(words: &[Text], output: &Text) -> Option<Text> {
    let name = programs::basename(words.first()?.as_str()?);
    let mut text = Text::default();
    match (name, words.get(1).map(Text::as_str)) {
        ("cat", None) => return Some(output.clone()),
        _ if programs::is_member(output) => return Some(output.clone()),
        ("echo", _) => {
            text.append(output, false);
            text.push_str("\n");
        }
        ("printf", _) => return programs::formatted(words),
        _ => return None,
    }
    Some(text)
}
