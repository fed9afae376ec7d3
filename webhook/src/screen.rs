//! The terminal that a command writes to: its width, and lines that fit it.

use std::io::IsTerminal as _;

/// The least columns that a text is fitted to.
const LEAST_WIDTH: usize = 60;
/// The columns of a terminal that does not say how many it has.
const USUAL_WIDTH: usize = 80;

/// The columns of the terminal that standard output is: of the variable COLUMNS, else as the terminal says. `None`: it is none, so
/// nothing is cut or parted.
pub(crate) fn width() -> Option<usize> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let exported = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    // 0: a terminal whose size nobody has set.
    let says =
        || rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    Some(exported.or_else(says).unwrap_or(USUAL_WIDTH).max(LEAST_WIDTH))
}

/// Words on lines of at most `width` characters; those after the first are indented by two more. A longer word has a line of its
/// own.
pub(crate) fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let indent = text.len() - text.trim_start().len();
    parted(text.trim_start(), " ".repeat(indent), indent + 2, width)
}

/// `first` and `text`, on lines of at most `width` characters; those after the first are indented by the length of `first`. Ends
/// with a line's end.
pub(crate) fn hanging(first: &str, text: &str, width: Option<usize>) -> String {
    let lines = match width {
        None => vec![format!("{first}{text}")],
        Some(width) => parted(text, first.to_owned(), chars(first), width),
    };
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Each line of `text`, [`wrapped`].
pub(crate) fn wrapped_lines(text: &str, width: Option<usize>) -> String {
    text.lines().flat_map(|line| wrapped(line, width)).collect::<Vec<_>>().join("\n")
}

fn parted(text: &str, first: String, indent: usize, width: usize) -> Vec<String> {
    let mut begun = chars(&first);
    let mut lines = vec![first];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| chars(line));
        if line > begun && line + 1 + chars(word) > width {
            lines.push(" ".repeat(indent));
            begun = indent;
        }
        if let Some(line) = lines.last_mut() {
            if chars(line) > begun {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// The columns of a text, one for each character.
pub(crate) fn chars(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_the_width_and_words_stay_whole() {
        assert_eq!(wrapped("  a bb ccc", Some(6)), ["  a bb", "    ccc"]);
        assert_eq!(wrapped("a longer-than-all b", Some(6)), ["a", "  longer-than-all", "  b"]);
        assert_eq!(wrapped("a  b", None), ["a  b"]);
        assert_eq!(hanging("ok  ", "a bb ccc", Some(8)), "ok  a bb\n    ccc\n");
        assert_eq!(hanging("ok  ", "a bb ccc", None), "ok  a bb ccc\n");
        assert_eq!(wrapped_lines("a b\nc d", Some(60)), "a b\nc d");
    }
}
