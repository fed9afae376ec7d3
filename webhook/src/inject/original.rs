//! The document before injection, kept behind what it became in comments, so that `uninject` gives it back byte for byte and
//! another image or other options inject anew. JSON has no comments: there an annotation of the object keeps it. In a list each
//! object keeps its own, and nothing of the others: a list may hold Secrets and workloads of several namespaces.

use std::ops::Range;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{encoding::hex, names};
use serde_json::{Value, json};

use super::{documents::Document, yaml::YamlError};

/// The comment that begins it; a digest follows.
const HEAD: &str = "# etcd-tls.dev/original: sha256:";
/// How much of it stands on a line, in bytes.
const WIDTH: usize = 96;
/// The largest JSON object that is kept, in bytes: an object has 256 KiB of annotations, and `kubectl apply` writes all of it
/// into one more.
const MAX_JSON: usize = 48 * 1024;

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

/// True if there is a container of ours in it, at any depth.
pub(super) fn holds_ours(value: &Value) -> bool {
    let is_ours = |container: &Value| {
        let name = container["name"].as_str().unwrap_or_default();
        name == names::INIT_CONTAINER || name == names::SIDECAR_CONTAINER
    };
    match value {
        Value::Object(map) => {
            let containers = map.get("initContainers").and_then(Value::as_array);
            containers.is_some_and(|all| all.iter().any(is_ours)) || map.values().any(holds_ours)
        }
        Value::Array(list) => list.iter().any(holds_ours),
        _ => false,
    }
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

/// `after`, which the JSON document `raw` of value `before` became, as text; and what `uninject` cannot give back of it. Each
/// object that was injected into keeps its own original; the other items of a list stay byte for byte.
///
/// # Errors
/// The value cannot be written.
pub(super) fn write_json(
    document: Document<'_>,
    before: &Value,
    after: &Value,
) -> Result<(String, Vec<String>), YamlError> {
    let (mut marked, mut lost) = (after.clone(), Vec::new());
    if !is_list(before) {
        if !holds_ours(before) {
            keep_in_json(&mut marked, document.raw, &mut lost);
        }
        return Ok((document.write(&marked)?, lost));
    }
    let text = write_items(document.raw, before, &mut marked, &mut lost);
    if let Some(text) = text.filter(|text| serde_json::from_str::<Value>(text).is_ok_and(|read| read == marked)) {
        return Ok((text, lost));
    }
    let lost = vec!["uninject cannot give it back, for more than its items was injected into".to_owned()];
    Ok((document.write(after)?, lost))
}

/// `raw` with those items of a list, at any depth of lists, that differ in `after`.
fn write_items(raw: &str, before: &Value, after: &mut Value, lost: &mut Vec<String>) -> Option<String> {
    let (old, new) = (before.get("items")?.as_array()?, after.get_mut("items")?.as_array_mut()?);
    let spans = items_in(raw);
    if spans.len() != old.len() || new.len() != old.len() {
        return None;
    }
    let (mut text, mut end) = (String::new(), 0);
    for ((span, old), new) in spans.into_iter().zip(old).zip(new) {
        text.push_str(raw.get(end..span.start)?);
        let item = raw.get(span.clone())?;
        if old == new {
            text.push_str(item);
        } else if is_list(old) {
            text.push_str(&write_items(item, old, new, lost)?);
        } else {
            if !holds_ours(old) {
                keep_in_json(new, item, lost);
            }
            if item.contains('\n') {
                let line = raw.get(..span.start)?.rsplit('\n').next().unwrap_or_default();
                let indent = &line[..line.len() - line.trim_start().len()];
                text.push_str(&serde_json::to_string_pretty(new).ok()?.replace('\n', &format!("\n{indent}")));
            } else {
                text.push_str(&serde_json::to_string(new).ok()?);
            }
        }
        end = span.end;
    }
    text.push_str(raw.get(end..)?);
    Some(text)
}

/// Keeps `original`, which became the object `injected`, in it.
fn keep_in_json(injected: &mut Value, original: &str, lost: &mut Vec<String>) {
    if original.len() > MAX_JSON {
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (of(&injected["kind"]), of(&injected["metadata"]["name"]));
        let most = MAX_JSON / 1024;
        lost.push(format!("uninject cannot give it back, for it is JSON of more than {most} KiB: {kind} {name}"));
        return;
    }
    let digest = digest_of(&without_original(injected).to_string(), original);
    let Some(object) = injected.as_object_mut() else { return };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        let kept = format!("sha256:{digest} {}", STANDARD.encode(original));
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[names::ORIGINAL_ANNOTATION] = kept.into();
    }
}

/// Finds the original of a document.
pub(super) fn find(document: &Document<'_>) -> Original {
    if document.is_yaml() { in_comments(document.raw) } else { in_json(document.raw) }
}

fn in_json(raw: &str) -> Original {
    let value = raw.contains("/original\"").then(|| serde_json::from_str(raw).ok()).flatten();
    let found = value.map_or(Original::Absent, |value| in_value(raw, &value));
    match found {
        // Something beside the items of a list was injected into.
        Original::Kept(text) if serde_json::from_str(&text).is_ok_and(|value| holds_ours(&value)) => Original::Changed,
        found => found,
    }
}

/// The original of the object or list `value`, which `raw` is the text of.
fn in_value(raw: &str, value: &Value) -> Original {
    if !is_list(value) {
        return in_object(value);
    }
    let spans = items_in(raw);
    let items = value["items"].as_array().filter(|items| items.len() == spans.len());
    let (mut text, mut end, mut kept) = (String::new(), 0, false);
    for (span, item) in spans.into_iter().zip(items.into_iter().flatten()) {
        text.push_str(&raw[end..span.start]);
        end = span.end;
        match in_value(&raw[span.clone()], item) {
            Original::Kept(original) => {
                kept = true;
                text.push_str(&original);
            }
            other if holds_ours(item) => return other,
            _ => text.push_str(&raw[span]),
        }
    }
    text.push_str(&raw[end..]);
    if kept { Original::Kept(text) } else { Original::Absent }
}

fn in_object(value: &Value) -> Original {
    let annotation = value["metadata"]["annotations"].get(names::ORIGINAL_ANNOTATION);
    let Some(kept) = annotation.and_then(Value::as_str) else { return Original::Absent };
    let said = kept.split_once(' ').map(|(said, _)| said);
    let is_it = |original: &String| {
        said == Some(&format!("sha256:{}", digest_of(&without_original(value).to_string(), original)))
    };
    annotated(value).filter(is_it).map_or(Original::Changed, Original::Kept)
}

/// The original that the annotation of `object` keeps, whatever became of the object.
fn annotated(object: &Value) -> Option<String> {
    let kept = object["metadata"]["annotations"].get(names::ORIGINAL_ANNOTATION)?.as_str()?;
    decoded(kept.split_once(' ')?.1)
}

fn decoded(encoded: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

/// `edited`, the value of `document`, without the originals that it keeps, and the original of it all: of a document that was
/// changed since it was injected.
pub(super) fn remembered(document: &Document<'_>, edited: &Value) -> Option<(Value, Value)> {
    if document.is_yaml() {
        let original = document.with(&commented(document.raw)?).read().ok()??;
        return Some((edited.clone(), original));
    }
    if !is_list(edited) {
        return match annotated(edited) {
            Some(original) => Some((without_original(edited), serde_json::from_str(&original).ok()?)),
            None => (!holds_ours(edited)).then(|| (edited.clone(), edited.clone())),
        };
    }
    let (mut now, mut before) = (edited.clone(), edited.clone());
    let items = edited["items"].as_array()?.iter().map(|item| remembered(document, item));
    let (of_now, of_before): (Vec<Value>, Vec<Value>) = items.collect::<Option<Vec<_>>>()?.into_iter().unzip();
    (now["items"], before["items"]) = (of_now.into(), of_before.into());
    Some((now, before))
}

fn is_list(value: &Value) -> bool {
    value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
        && value.get("items").is_some_and(Value::is_array)
}

/// Where the items stand in `raw`, the valid text of a list. Of several fields `items` the last counts, as for a reader of JSON.
fn items_in(raw: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = raw.find('{').map_or(raw.len(), |at| at + 1);
    while let Some(key) = next_value(raw, at) {
        let Some(value) = next_value(raw, key.end) else { break };
        at = value.end;
        if serde_json::from_str::<String>(&raw[key]).is_ok_and(|key| key == "items") {
            found.clear();
            let mut from = value.start + 1;
            while let Some(item) = next_value(raw, from).filter(|item| item.end < value.end) {
                from = item.end;
                found.push(item);
            }
        }
    }
    found
}

/// Where the next key or value of the object or array around `from` stands; `None` at its end.
fn next_value(raw: &str, from: usize) -> Option<Range<usize>> {
    let between = |byte: u8| byte.is_ascii_whitespace() || byte == b',' || byte == b':';
    let bytes = raw.as_bytes();
    let start = from + bytes.get(from..)?.iter().position(|byte| !between(*byte))?;
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                quoted = !quoted;
                if !quoted && depth == 0 {
                    return Some(start..at + 1);
                }
            }
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return (at > start).then_some(start..at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(start..at + 1);
                }
            }
            byte if depth == 0 && between(*byte) => return Some(start..at),
            _ => {}
        }
    }
    None
}

/// The object without its original, and without what is empty when that is gone.
fn without_original(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(holder) = document.as_object_mut()
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
    let Some(at) = head_in(raw) else { return Original::Absent };
    let said = raw[at + HEAD.len()..].lines().next().unwrap_or_default();
    let is_kept = |line: &str| line.starts_with("# ") || line.trim().is_empty();
    let original = commented(raw).filter(|_| raw[at + HEAD.len()..].lines().skip(1).all(is_kept));
    match original {
        Some(original) if digest_of(&raw[..at], &original) == said.trim_end() => Original::Kept(original),
        _ => Original::Changed,
    }
}

fn head_in(raw: &str) -> Option<usize> {
    raw.rfind(HEAD).filter(|at| *at == 0 || raw[..*at].ends_with('\n'))
}

/// The original that the comments of `raw` keep, whatever became of the rest.
fn commented(raw: &str) -> Option<String> {
    let lines = raw[head_in(raw)? + HEAD.len()..].lines().skip(1);
    decoded(&lines.map_while(|line| line.strip_prefix("# ")).map(str::trim_end).collect::<String>())
}

fn digest_of(injected: &str, original: &str) -> String {
    let both = [digest(&SHA256, injected.as_bytes()), digest(&SHA256, original.as_bytes())];
    let both: Vec<u8> = both.iter().flat_map(|digest| digest.as_ref().to_vec()).collect();
    hex(digest(&SHA256, &both).as_ref())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_kept_original_is_found_and_a_change_is_seen() {
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

    #[test]
    fn items_are_found_in_any_writing_of_a_list() {
        for (raw, items) in [
            (r#"{"kind":"List","items":[]}"#, vec![]),
            (
                r#" {"items" : [ 1 ,"a]\\\"}", {"items":[2]},[],null ] , "kind":"List"}"#,
                vec!["1", r#""a]\\\"}""#, r#"{"items":[2]}"#, "[]", "null"],
            ),
            (r#"{"items":"é","a":{"items":[1]},"\u0069tems":[true,"é"]}"#, vec!["true", r#""é""#]),
            ("{\"items\":[\r\n\t{\"a\":1}\n]}\n", vec![r#"{"a":1}"#]),
        ] {
            assert_eq!(items_in(raw).into_iter().map(|span| &raw[span]).collect::<Vec<_>>(), items, "{raw}");
        }
    }
}
