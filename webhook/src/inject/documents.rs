//! The documents of a manifest file: YAML between `---` lines, or JSON values one after the other.

use serde_json::Value;

use super::yaml::{self, YamlError};

/// One document, as it stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Every byte of it, its marker and the comments before it included.
    pub(super) raw: &'a str,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Yaml,
    Json,
}

/// Splits `text`; the documents' raw texts, joined, are `text` again.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    if let Some(documents) = text.trim_start().starts_with('{').then(|| split_json(text)).flatten() {
        return documents;
    }
    let mut documents = Vec::new();
    let mut start = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if at > start && is_marker(line) {
            documents.push(Document { raw: &text[start..at], form: Form::Yaml });
            start = at;
        }
        at += line.len();
    }
    documents.push(Document { raw: &text[start..], form: Form::Yaml });
    documents
}

/// Appends a file's text to others'.
pub(super) fn join(out: &mut String, text: &str) {
    if !out.is_empty() {
        if !out.ends_with('\n') {
            out.push('\n');
        }
        let json = |text: &str| text.trim_start().starts_with('{');
        let parted = text.starts_with("---") || (json(out) && json(text));
        if !parted {
            out.push_str("---\n");
        }
    }
    out.push_str(text);
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn split_json(text: &str) -> Option<Vec<Document<'_>>> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    let mut documents = Vec::new();
    let mut start = 0;
    while let Some(value) = stream.next() {
        value.ok()?;
        let end = stream.byte_offset();
        documents.push(Document { raw: &text[start..end], form: Form::Json });
        start = end;
    }
    // White space at the end.
    documents.push(Document { raw: &text[start..], form: Form::Json });
    Some(documents)
}

impl<'a> Document<'a> {
    /// A document of the same form.
    pub(super) fn with(self, raw: &'a str) -> Self {
        Document { raw, ..self }
    }

    /// True if it can have comments.
    pub(super) fn is_yaml(&self) -> bool {
        self.form == Form::Yaml
    }

    /// The value; `None` where there is none, in an empty document or one of comments alone.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&self) -> Result<Option<Value>, YamlError> {
        let empty = match self.form {
            Form::Json => self.raw.trim().is_empty(),
            Form::Yaml => self.raw.lines().all(|line| {
                // A directive stands in a document of its own here, before the marker of the one that it is for.
                let directive = line.starts_with('%');
                let line = line.trim().trim_start_matches('\u{feff}');
                directive || line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
            }),
        };
        if empty {
            return Ok(None);
        }
        match self.form {
            Form::Json => serde_json::from_str(self.raw).map(Some).map_err(|e| YamlError::Unreadable(e.to_string())),
            Form::Yaml => yaml::read(self.raw.trim_start_matches('\u{feff}')).map(Some),
        }
    }

    /// This document with another value: its marker and the comments at its head stay.
    ///
    /// # Errors
    /// The value cannot be written.
    pub(super) fn write(&self, value: &Value) -> Result<String, YamlError> {
        match self.form {
            Form::Json => {
                let lead = &self.raw[..self.raw.len() - self.raw.trim_start().len()];
                let pretty = self.raw.trim().contains('\n');
                let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
                Ok(format!("{lead}{}", text.map_err(|_| YamlError::Unwritable)?))
            }
            Form::Yaml => {
                let mut head = String::new();
                for line in self.raw.split_inclusive('\n') {
                    let bare = line.trim();
                    let marker = is_marker(line)
                        && matches!(bare.trim_start_matches('-').trim_start().chars().next(), None | Some('#'));
                    if bare.is_empty() || bare.starts_with('#') || marker {
                        head.push_str(line);
                    } else {
                        if is_marker(line) {
                            head.push_str("---\n");
                        }
                        break;
                    }
                }
                Ok(head + &yaml::write(value)?)
            }
        }
    }
}
