//! sed, which runs programs by its command `e` and by the flag of that name. A script is harmless where each of its commands is
//! known to run none.

use super::text::{Kind, Part, Text};

/// Its options without a value, by letter and by name.
const LETTERS: &str = "nEirsuz";
const LONG: &str =
    "--quiet --silent --regexp-extended --in-place --separate --unbuffered --null-data --posix --sandbox --expression";
/// Commands of a letter alone.
const ALONE: &str = "pdDPnNgGhHxl=Fz";

/// True if sed with these words, without its name, runs no other program.
pub(super) fn is_plain(words: &[Text]) -> bool {
    let (mut at, mut scripts, mut operands) = (0, Vec::new(), Vec::new());
    while let Some(word) = words.get(at) {
        at += 1;
        if word.loose().is_some() {
            return false;
        }
        let prefix = word.prefix();
        if let Some(long) = prefix.strip_prefix("--").filter(|long| !long.is_empty()) {
            let name = long.split('=').next().unwrap_or_default();
            if !LONG.split(' ').any(|known| &known[2..] == name) {
                return false;
            }
            match (name, prefix.split_once('=')) {
                ("expression", Some((_, script))) if word.as_str().is_some() => scripts.push(Text::known(script)),
                ("expression", None) => {
                    let Some(script) = words.get(at) else { return false };
                    scripts.push(script.clone());
                    at += 1;
                }
                ("expression", _) => return false,
                _ => {}
            }
        } else if let Some(letters) = prefix.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (index, letter) in letters.char_indices() {
                match letter {
                    // What follows is the suffix of a copy.
                    'i' => break,
                    'e' if index + 1 == letters.len() && word.as_str().is_some() => {
                        let Some(script) = words.get(at) else { return false };
                        scripts.push(script.clone());
                        at += 1;
                    }
                    _ if LETTERS.contains(letter) => {}
                    _ => return false,
                }
            }
        } else {
            operands.push(word);
        }
    }
    if scripts.is_empty() {
        scripts.extend(operands.first().copied().cloned());
    }
    !scripts.is_empty()
        && scripts.iter().all(|text| {
            let holes = text.0.iter().any(|part| matches!(part, Part::Hole(..)));
            known(text).is_some_and(|text| script(&text, holes).is_some())
        })
}

/// True if what sed prints of words are words, as far as its script is one substitution; `one`: of a single word. See
/// [`Kind`].
pub(super) fn keeps_words(arguments: &[&str], one: bool) -> bool {
    let scripts: Vec<&&str> = arguments.iter().filter(|word| !["-e", "-r", "-E", "-n"].contains(word)).collect();
    let [script] = scripts.as_slice() else { return false };
    let chars: Vec<char> = script.chars().collect();
    let Some(&delimiter) = chars.get(1).filter(|c| chars[0] == 's' && c.is_ascii_punctuation() && **c != '\\') else {
        return false;
    };
    let (pattern, new) = match part(&chars, 2, delimiter, true) {
        Some(new) => (&chars[2..new - 1], new),
        None => return false,
    };
    let Some(end) = part(&chars, new, delimiter, false) else { return false };
    let new: String = chars[new..end - 1].iter().filter(|c| **c != '\\').collect();
    let plain = new.chars().all(|c| c.is_ascii_alphanumeric() || "&-._:/,=".contains(c));
    // A letter in the place of an escape is one that it stands for.
    let escapes = chars[2..end - 1].windows(2).any(|pair| pair[0] == '\\' && pair[1].is_ascii_alphabetic());
    let all = ["^", ".*"].contains(&pattern.iter().collect::<String>().as_str())
        && new.starts_with(|c: char| c.is_ascii_alphanumeric());
    let flags = if arguments.contains(&"-n") { "gp" } else { "g" };
    plain && !escapes && (one || all) && chars[end..].iter().all(|c| flags.contains(*c))
}

/// The script with a letter for each name or address that is put into it.
fn known(text: &Text) -> Option<Vec<char>> {
    let mut chars = Vec::new();
    for part in &text.0 {
        match part {
            Part::Known(known) => chars.extend(known.chars()),
            Part::Hole(_, Kind::Word, _) => chars.push('x'),
            Part::Hole(..) => return None,
        }
    }
    Some(chars)
}

/// `Some` where each command is understood. `holes`: it has names or addresses that are not known, which a delimiter may be part of.
fn script(chars: &[char], holes: bool) -> Option<()> {
    let mut at = 0;
    loop {
        while chars.get(at).is_some_and(|c| c.is_whitespace() || ";{}".contains(*c)) {
            at += 1;
        }
        if chars.get(at).is_none() {
            return Some(());
        }
        at = address(chars, at)?;
        if chars.get(at) == Some(&',') {
            at = address(chars, at + 1)?;
        }
        while chars.get(at).is_some_and(|c| *c == ' ' || *c == '!') {
            at += 1;
        }
        let command = *chars.get(at)?;
        at += 1;
        let until = |at: usize, ends: &str| {
            let rest = chars.get(at..).unwrap_or_default();
            at + rest.iter().position(|c| ends.contains(*c)).unwrap_or(rest.len())
        };
        match command {
            's' | 'y' => {
                let in_names = |c: char| holes && "-._:[".contains(c);
                let delimiter = *chars.get(at).filter(|c| c.is_ascii_punctuation() && **c != '\\' && !in_names(**c))?;
                at = part(chars, at + 1, delimiter, true)?;
                at = part(chars, at, delimiter, false)?;
                while command == 's' && chars.get(at).is_some_and(|c| c.is_ascii_digit() || "gIiMmp".contains(*c)) {
                    at += 1;
                }
            }
            '#' | 'r' => at = until(at, "\n"),
            ':' | 'b' | 't' | 'T' => at = until(at, ";\n}"),
            'a' | 'i' | 'c' => {
                at = until(at, "\n");
                while at > 0 && chars.get(at).is_some() && chars.get(at - 1) == Some(&'\\') {
                    at = until(at + 1, "\n");
                }
            }
            'q' | 'Q' => {
                while chars.get(at).is_some_and(|c| c.is_ascii_digit() || *c == ' ') {
                    at += 1;
                }
            }
            '{' => continue,
            _ if ALONE.contains(command) => {}
            _ => return None,
        }
        if chars.get(at).is_some_and(|c| !c.is_whitespace() && !";}#".contains(*c)) {
            return None;
        }
    }
}

/// Behind an address, where there is one.
fn address(chars: &[char], mut at: usize) -> Option<usize> {
    match chars.get(at)? {
        '$' => return Some(at + 1),
        '/' => {
            at = part(chars, at + 1, '/', true)?;
            while chars.get(at).is_some_and(|c| "IM".contains(*c)) {
                at += 1;
            }
        }
        _ => {
            while chars.get(at).is_some_and(|c| c.is_ascii_digit() || "+~".contains(*c)) {
                at += 1;
            }
        }
    }
    Some(at)
}

/// Behind the next delimiter that is not escaped and, in a pattern, not within brackets: GNU sed and busybox take it for a character
/// there.
fn part(chars: &[char], mut at: usize, delimiter: char, pattern: bool) -> Option<usize> {
    loop {
        let c = *chars.get(at)?;
        at += 1;
        match c {
            '\\' => at += 1,
            _ if c == delimiter => return Some(at),
            '\n' => return None,
            '[' if pattern => at = bracket(chars, at)?,
            _ => {}
        }
    }
}

/// Behind the bracket expression that begins before `at`.
fn bracket(chars: &[char], mut at: usize) -> Option<usize> {
    at += usize::from(chars.get(at) == Some(&'^'));
    // The first one is a character of it.
    at += usize::from(chars.get(at) == Some(&']'));
    loop {
        match chars.get(at)? {
            ']' => return Some(at + 1),
            '[' if chars.get(at + 1).is_some_and(|c| ":.=".contains(*c)) => {
                let kind = chars[at + 1];
                let end = chars[at + 2..].windows(2).position(|pair| pair == [kind, ']'])?;
                at += 2 + end + 2;
            }
            // Whether it is one of its characters depends on the program.
            '\\' | '\n' => return None,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(words: &[&str]) -> bool {
        is_plain(&words.iter().map(|word| Text::known(word)).collect::<Vec<_>>())
    }

    #[test]
    fn scripts_that_run_no_program_are_plain() {
        for words in [
            &["s/.*/etcd-&/"][..],
            &["-i", "s|@IP@|10.0.0.1|g;s/a/b/"],
            &["-e", "s/e/e/", "-e", "/e/d", "e.txt"],
            &["-nE", "s/^(.*)-([0-9]+)$/\\2/p"],
            &["-ne", "/etcd /,$!{p;q;}"],
            &["-i.bak", "2,3d\n$a etcd --e\ns,x,y,2", "/etc/e"],
            &["--expression=s/a\\/e/b/", "--in-place=.e", "f"],
            &["y/abc/xye/"],
            &["1~2p # e"],
            &["s/[^/]*$//"],
            &["s/[]/]e/x/"],
            &["s/[[:alpha:]/]/e/"],
            &["s:A:B:"],
            &["s_a_b_", "e"],
        ] {
            assert!(plain(words), "{words:?}");
        }
    }

    #[test]
    fn scripts_that_may_run_programs_are_not() {
        for words in [
            &["s/$/ /e"][..],
            &["s/$/ /ge"],
            &["s_$_ _Ie"],
            &["s|a|b|2e;p"],
            &["1e etcd"],
            &["e"],
            &["/x/ e"],
            &["p;e"],
            &["{e\n}"],
            &["s/[/]/x/e"],
            &["s/[^/]*$//e"],
            &["s/[\\]/e/e/"],
            &["s:A:B:e"],
            &["-f", "script"],
            &["-e", "p", "-e", "e"],
            &["-ne", "$!{e\n}"],
            &["s/a/b/w /dev/stdout"],
            &["--file=script"],
            &[],
        ] {
            assert!(!plain(words), "{words:?}");
        }
        assert!(!is_plain(&[Text::hole("$X", Kind::Any)]));
        for (words, one) in [
            (&["s/etcd-//"][..], true),
            (&["-r", "s/.*-([0-9]+)$/\\1/"], true),
            (&["-n", "s|^.*-|a|p"], true),
            (&["s/.*/etcd-&=https:\\/\\/etcd-&.etcd.prod.svc:2380/"], false),
            (&["-e", "s/^/etcd-/"], false),
        ] {
            assert!(keeps_words(words, one), "{words:?}");
        }
        for (words, one) in [
            (&["s/-/ --/"][..], true),
            (&["s/-/\\n--/"], true),
            (&["s/-/;etcd/"], true),
            (&["s/a/b/;s/b/ c/"], true),
            (&["s/a//"], false),
            (&["s/.*/-&/"], false),
            (&["s/a/b/", "file"], true),
            (&["s/a/b/p"], true),
            (&["y/a/ /"], true),
        ] {
            assert!(!keeps_words(words, one), "{words:?}");
        }
        let mut word = Text::known("s/HOST/");
        word.append(&Text::hole("$HOSTNAME", Kind::Word), true);
        word.push_str("/");
        assert!(is_plain(&[word]));
    }
}
