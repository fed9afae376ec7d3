//! The document before injection, kept behind what it became in comments, so that `uninject` gives it back byte for byte and
//! another image or other options inject anew. JSON has no comments: there an annotation of the object keeps it, in a list of
//! the first object that was injected into.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::names;
use serde_json::{Map, Value, json};

use super::{documents::Document, uninject::holds_ours};

/// The comment that begins it; a digest follows.
const HEAD: &str = "# etcd-tls.dev/original: sha256:";
/// How much of it stands on a line, in bytes.
const WIDTH: usize = 96;
/// The largest JSON document that is kept, in bytes: an object has 256 KiB of annotations, and `kubectl apply` writes all of it
/// into one more.
pub(super) const MAX_JSON: usize = 48 * 1024;

/// The original of a document before injection.
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

/// Keeps `original`, which became the JSON document `injected`, in it; whether it fits.
pub(super) fn keep_in_json(injected: &mut Value, original: &str) -> bool {
    let fits = original.len() <= MAX_JSON;
    let digest = digest_of(&without_original(injected).to_string(), original);
    let Some(holder) = holder(injected).filter(|_| fits) else { return false };
    let metadata = holder.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let kept = format!("sha256:{digest} {}", STANDARD.encode(original));
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[names::ORIGINAL_ANNOTATION] = kept.into();
    }
    true
}

/// Finds the original of a document.
pub(super) fn find(document: &Document<'_>) -> Original {
    if document.is_yaml() { in_comments(document.raw) } else { in_json(document.raw) }
}

fn in_json(raw: &str) -> Original {
    let Some(mut value) = raw.contains("/original\"").then(|| serde_json::from_str(raw).ok()).flatten() else {
        return Original::Absent;
    };
    let rest = without_original(&value);
    let kept = holder(&mut value).and_then(|holder| {
        let kept = holder.get("metadata")?.get("annotations")?.get(names::ORIGINAL_ANNOTATION)?.as_str()?;
        Some(kept.to_owned())
    });
    let Some(kept) = kept else { return Original::Absent };
    let original = kept.split_once(' ').and_then(|(said, encoded)| {
        let original = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        (format!("sha256:{}", digest_of(&rest.to_string(), &original)) == said).then_some(original)
    });
    original.map_or(Original::Changed, Original::Kept)
}

/// The object that keeps the original: the document's, or in a list of objects the first that holds containers of ours.
fn holder(document: &mut Value) -> Option<&mut Map<String, Value>> {
    let is_list = |value: &Value| {
        value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
            && value.get("items").is_some_and(Value::is_array)
    };
    let mut object = document;
    while is_list(object) {
        object = object.get_mut("items")?.as_array_mut()?.iter_mut().find(|item| holds_ours(item))?;
    }
    object.as_object_mut()
}

/// The document without its original, and without what is empty when that is gone.
fn without_original(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(holder) = holder(&mut document)
        && let Some(Value::Object(metadata)) = holder.get_mut("metadata")
    {
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.shift_remove(names::ORIGINAL_ANNOTATION);
        }
        if metadata.get("annotations").is_some_and(|all| all.is_null() || *all == json!({})) {
            metadata.shift_remove("annotations");
        }
        if metadata.is_empty() {
            holder.shift_remove("metadata");
        }
    }
    document
}

fn in_comments(raw: &str) -> Original {
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
            assert_eq!(in_comments(&kept), Original::Kept(original.to_owned()));
            assert_eq!(
                in_comments(&format!("{kept}\n")),
                Original::Kept(original.to_owned()),
                "an empty line at the end"
            );
            assert_eq!(in_comments(&kept.replace("a: 2", "a: 3")), Original::Changed);
            assert_eq!(in_comments(&format!("{kept}b: 1\n")), Original::Changed);
        }
        assert_eq!(in_comments("a: 1\n"), Original::Absent);
    }
}
