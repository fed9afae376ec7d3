//! The document before injection, kept behind what it became in comments, so that `uninject` gives it back byte for byte and
//! another image or other options inject anew. JSON has no comments, and keeps nothing.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The comment that begins it; a digest follows.
const HEAD: &str = "# etcd-tls.dev/original: sha256:";
/// How much of it stands on a line, in bytes.
const WIDTH: usize = 96;

/// What a document says of itself before injection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Original {
    /// Nothing.
    Absent,
    /// This was it.
    Kept(String),
    /// It is there, but the document is not the one that was injected any more.
    Changed,
}

/// `injected`, which ends with a line end, with the original behind it.
pub(super) fn keep(injected: &str, original: &str) -> String {
    let mut text = format!("{injected}{HEAD}{}\n", digest_of(injected, original));
    let encoded = STANDARD.encode(original);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(WIDTH.min(rest.len()));
        text.push_str("# ");
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text
}

/// Finds the original in a document.
pub(super) fn find(raw: &str) -> Original {
    let Some(at) = raw.rfind(HEAD).filter(|at| *at == 0 || raw[..*at].ends_with('\n')) else { return Original::Absent };
    let mut lines = raw[at + HEAD.len()..].lines();
    let said = lines.next().unwrap_or_default();
    let mut encoded = String::new();
    for line in lines {
        match line.strip_prefix("# ") {
            Some(more) => encoded.push_str(more.trim_end()),
            None if line.trim().is_empty() => {}
            None => return Original::Changed,
        }
    }
    let original = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match original {
        Some(original) if digest_of(&raw[..at], &original) == said.trim_end() => Original::Kept(original),
        _ => Original::Changed,
    }
}

fn digest_of(injected: &str, original: &str) -> String {
    let both = [digest(&SHA256, injected.as_bytes()), digest(&SHA256, original.as_bytes())];
    let both: Vec<u8> = both.iter().flat_map(|digest| digest.as_ref().to_vec()).collect();
    digest(&SHA256, &both).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_kept_is_found_and_a_change_is_seen() {
        for original in ["", "a: 1\r\nb: é\u{2028}\n", &"x".repeat(1000)] {
            let kept = keep("a: 2\n", original);
            assert_eq!(find(&kept), Original::Kept(original.to_owned()));
            assert_eq!(find(&format!("{kept}\n")), Original::Kept(original.to_owned()), "an empty line at the end");
            assert_eq!(find(&kept.replace("a: 2", "a: 3")), Original::Changed);
            assert_eq!(find(&format!("{kept}b: 1\n")), Original::Changed);
        }
        assert_eq!(find("a: 1\n"), Original::Absent);
    }
}
