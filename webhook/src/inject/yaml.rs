//! YAML as kubectl reads it, and written so that every reader reads it alike.
//!
//! Read by YAML 1.1's rules, kubectl's: `defaultMode: 0400` is octal, `yes` is true. Written with quotes wherever any
//! version could take a string for something else, and read back before it is given out.

use std::fmt::Write;

use serde_json::Value;

use crate::operator::is_invisible;

/// A manifest that cannot be read, or not be written so that it reads the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum YamlError {
    /// No YAML.
    #[error("{0}")]
    Unreadable(String),
    /// A value that YAML would not give back.
    #[error("the document cannot be written as YAML that reads the same")]
    Unwritable,
}

/// Reads one document.
///
/// # Errors
/// It is no YAML, or more than any manifest.
pub(super) fn read(document: &str) -> Result<Value, YamlError> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        // Without the library's advice to programmers.
        let mut said = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        if document.contains("{{") {
            said.push_str("\nIf it is a template, render it first, as helm template does.");
        }
        YamlError::Unreadable(said)
    })
}

/// Writes one document, in block style, lists not indented, as `kubectl get -o yaml` does.
///
/// # Errors
/// The text would not parse to `value`.
pub(crate) fn write(value: &Value) -> Result<String, YamlError> {
    let mut text = String::new();
    block(value, 0, &mut text);
    if read(&text).as_ref() == Ok(value) { Ok(text) } else { Err(YamlError::Unwritable) }
}

/// A value on lines of its own, each indented.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in map.iter().enumerate() {
                if index > 0 {
                    pad(indent, out);
                }
                let _ = write!(out, "{}:", key_text(key));
                entry(value, indent, indent, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    pad(indent, out);
                }
                out.push('-');
                match value {
                    Value::Object(map) if !map.is_empty() => {
                        out.push(' ');
                        block(value, indent + 2, out);
                    }
                    Value::Array(list) if !list.is_empty() => {
                        out.push(' ');
                        block(value, indent + 2, out);
                    }
                    _ => entry(value, indent, indent + 2, out),
                }
            }
        }
        _ => {
            scalar(value, indent, out);
            out.push('\n');
        }
    }
}

/// The value after `key:` or `-`.
fn entry(value: &Value, indent: usize, list_indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            pad(indent + 2, out);
            block(value, indent + 2, out);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push('\n');
            pad(list_indent, out);
            block(value, list_indent, out);
        }
        _ => {
            out.push(' ');
            scalar(value, indent, out);
            out.push('\n');
        }
    }
}

fn scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(_) | Value::Number(_) => {
            let _ = write!(out, "{value}");
        }
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        Value::String(text) if is_literal(text) => literal(text, indent, out),
        Value::String(text) => out.push_str(&key_text(text)),
    }
}

/// True if a text of several lines can stand as a literal block.
fn is_literal(text: &str) -> bool {
    let body = text.trim_end_matches('\n');
    !body.is_empty()
        && text.contains('\n')
        && !body.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || c == '\t' || is_printable(c))
        // A line of spaces alone could pass for indentation.
        && !body.lines().any(|line| !line.is_empty() && line.trim().is_empty())
}

fn literal(text: &str, indent: usize, out: &mut String) {
    let body = text.trim_end_matches('\n');
    let newlines = text.len() - body.len();
    out.push_str(match newlines {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent + 2, out);
            out.push_str(line);
        }
    }
    for _ in 1..newlines {
        out.push('\n');
    }
}

/// A text on one line: plain where nobody can take it for anything else.
fn key_text(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    if text.chars().all(is_printable) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if is_printable(c) => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let good = |c: char| c.is_ascii_alphanumeric() || " _./:@%+=,()$~-".contains(c);
    let lead = first.is_ascii_alphanumeric() || "_/$(".contains(first) || (text.starts_with("--") && text.len() > 3);
    lead && text.chars().all(good)
        && !text.starts_with("---")
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !is_word(text)
        && !could_be_number(text)
}

/// Words that some version of YAML reads as something else.
fn is_word(text: &str) -> bool {
    ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

/// Numbers, dates and sexagesimals of any version, and more than those.
fn could_be_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.chars().all(|c| c.is_ascii_hexdigit() || "xXoOTZtz_+-.: ".contains(c))
}

/// True if it may stand as it is: YAML takes it, and it does not change how a terminal shows others.
fn is_printable(c: char) -> bool {
    let yaml = matches!(c, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
        || c >= '\u{10000}';
    yaml && !is_invisible(c)
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    #[test]
    fn read_as_kubectl_reads() {
        let read = read(
            "a: 0400\nb: yes\nc: 'yes'\nd: 1e3\ne: 0x10\nf: ~\ng: 08:30\nh: \"0400\"\ni: on\nj: 1.20\nk: 2026-11-22\n",
        )
        .unwrap();
        assert_eq!(read["a"], 256, "octal");
        assert_eq!(read["b"], true);
        assert_eq!(read["c"], "yes");
        assert_eq!(read["d"], 1000.0);
        assert_eq!(read["e"], 16);
        assert_eq!(read["f"], Value::Null);
        assert_eq!(read["h"], "0400");
        assert_eq!(read["i"], true);
        assert_eq!(read["k"], "2026-11-22");
    }

    #[test]
    fn anchors_and_merges_are_resolved() {
        let read = read("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}\n").unwrap();
        assert_eq!(read, json!({"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}));
    }

    #[test]
    fn strings_stay_strings() {
        let texts = vec![
            "",
            " ",
            "a",
            "yes",
            "No",
            "ON",
            "off",
            "y",
            "N",
            "true",
            "FALSE",
            "null",
            "~",
            "0777",
            "0o17",
            "1e3",
            "1_000",
            "0x1F",
            "1:30",
            "12:30:45",
            "2026-11-22",
            "2026-11-22T10:00:00Z",
            ".5",
            ".inf",
            ".nan",
            "-.inf",
            "+1",
            "-1",
            "-",
            "--",
            "---",
            "--a=b",
            "- a",
            "a: b",
            "a:",
            ":a",
            "a #b",
            "#a",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a",
            "{a",
            "[a",
            "a,b",
            "=",
            "<<",
            "it's",
            "\"q\"",
            "tab\there",
            "a\nb",
            "a\nb\n",
            "a\nb\n\n",
            "\na",
            " a\nb",
            "a\n  b\n",
            "a\n \nb",
            "\n",
            "\n\n",
            "a\r\nb",
            "\u{0}",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{feff}x",
            "\u{1F600}",
            "é",
            "$(POD_NAME)",
            "etcd-0=https://x:2380",
            "10m",
            "16Mi",
            "1Gi",
            "5.4.3",
            "v1",
            "1.30",
            "...",
            "a\tb\nc",
            "\tx\ny",
            "a \nb",
            "- x\n- y",
            "x: |\n  y\n",
            "0",
            "00",
            "?",
            "? a",
            "a\n---\nb",
            "a\n...\nb",
            "a\u{202e}b",
            "a\nb\u{2066}c\u{2069}\n",
            "\u{200b}",
            "a\u{61c}b\u{180e}c\u{e0041}",
        ];
        let all = json!({"list": &texts, "nested": {"list": [&texts, [&texts]], "keys": texts.iter().map(|t| ((*t).to_owned(), json!({"x": t}))).collect::<serde_json::Map<_, _>>()}});
        let text = write(&all).unwrap();
        assert!(!text.contains(is_invisible), "a character that changes how others are shown");
        for options in
            [serde_saphyr::options! {}, serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: true }]
        {
            let again: Value = serde_saphyr::from_str_with_options(&text, options).unwrap();
            assert_eq!(again, all);
        }
    }

    #[test]
    fn block_style_with_compact_lists() {
        let value = json!({"a": [{"b": 1, "c": [1, [2, 3], {}]}, "x"], "d": {}, "e": {"f": "l1\nl2\n"}, "g": null});
        assert_eq!(
            write(&value).unwrap(),
            "a:\n- b: 1\n  c:\n  - 1\n  - - 2\n    - 3\n  - {}\n- x\nd: {}\ne:\n  f: |\n    l1\n    l2\ng: null\n"
        );
    }
}
