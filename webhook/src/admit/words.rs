//! Warnings in the form that the API server passes on: 256 characters each at most, 4 KiB in all. A longer one is not cut
//! but goes on in the next.

/// The longest warning that the API server passes on whole.
const MAX: usize = 256;
/// More than this would not be passed on: the API server takes 4 KiB for all warnings of a request.
const MOST: usize = 15;
/// The start of each warning.
const PREFIX: &str = "etcd-tls: ";
/// The start of a long warning's further parts.
const NEXT: &str = "etcd-tls: … ";

/// `warnings`, each with our name before it and none longer than the API server passes on.
pub(super) fn spoken(warnings: Vec<String>) -> Vec<String> {
    let mut spoken = Vec::new();
    for warning in &warnings {
        let warning = warning.strip_prefix(PREFIX).unwrap_or(warning);
        let (mut rest, mut prefix) = (warning, PREFIX);
        while !rest.is_empty() {
            let (line, left) = split(rest, MAX - prefix.chars().count());
            spoken.push(format!("{prefix}{line}"));
            (rest, prefix) = (left, NEXT);
        }
    }
    if spoken.len() > MOST {
        let more = spoken.len() - MOST;
        spoken.truncate(MOST);
        spoken.push(format!("{PREFIX}and {more} more lines; `etcd-tls-webhook inject` prints them all"));
    }
    spoken
}

/// A refusal for every one of `problems`, of bounded length.
pub(super) fn refusal(mut problems: Vec<String>) -> String {
    const MOST: usize = 32;
    const LONGEST: usize = 1024;
    if problems.len() > MOST {
        let more = problems.len() - MOST;
        problems.truncate(MOST);
        problems.push(format!("and {more} more"));
    }
    for problem in &mut problems {
        if let Some((end, _)) = problem.char_indices().nth(LONGEST) {
            problem.truncate(end);
            problem.push('…');
        }
    }
    format!("{PREFIX}{}", problems.join("; "))
}

/// The first `max` characters at most, up to a space where there is one, and the rest.
fn split(text: &str, max: usize) -> (&str, &str) {
    let Some((end, _)) = text.char_indices().nth(max) else { return (text, "") };
    // The space may be just behind.
    let at = match text[..end].rfind(' ') {
        _ if text[end..].starts_with(' ') => end,
        Some(at) if at > 0 => at,
        _ => end,
    };
    (&text[..at], text[at..].trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_warning_goes_on_in_the_next_and_loses_nothing() {
        let words: Vec<String> = (0..200).map(|n| format!("word{n}")).collect();
        let spoken = spoken(vec![words.join(" ")]);
        assert!(spoken.len() > 3);
        assert!(spoken.iter().all(|line| line.chars().count() <= MAX), "{spoken:?}");
        let joined: Vec<&str> = spoken
            .iter()
            .map(|line| line.strip_prefix(NEXT).or_else(|| line.strip_prefix(PREFIX)).unwrap_or_default())
            .collect();
        assert_eq!(joined.join(" "), words.join(" "));
    }

    #[test]
    fn characters_are_counted_and_not_split() {
        for text in
            ["ä".repeat(600), "x".repeat(MAX - PREFIX.len()), "x".repeat(MAX - PREFIX.len() + 1), "äx ".repeat(300)]
        {
            let spoken = spoken(vec![text.clone()]);
            assert!(spoken.iter().all(|line| line.chars().count() <= MAX));
            let bare: String = spoken.iter().flat_map(|l| l.chars()).filter(|c| "äx".contains(*c)).collect();
            assert_eq!(bare, text.replace(' ', ""));
        }
        assert_eq!(spoken(vec!["etcd-tls: left".to_owned()]), ["etcd-tls: left"]);
        assert!(spoken(Vec::new()).is_empty());
    }

    #[test]
    fn there_are_no_more_than_are_passed_on() {
        let spoken = spoken((0..100).map(|n| format!("warning {n}")).collect());
        assert_eq!(spoken.len(), MOST + 1);
        assert!(spoken[MOST].contains("and 85 more"), "{}", spoken[MOST]);
        assert!(spoken.iter().map(String::len).sum::<usize>() <= 4096);
    }
}
