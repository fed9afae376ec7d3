//! Lists in annotations and arguments, and users' text in messages.

use crate::invalid_value::InvalidValue;

/// The most entries of one list (`extra-sans`, `containers`): a request stays under 4 KiB and a message readable.
pub(crate) const MAX_ENTRIES: usize = 64;

/// A comma-separated list: no spaces, no empty entry, no entry twice.
pub(crate) fn list<T: PartialEq>(
    value: &str,
    entry: impl Fn(&str) -> Result<T, InvalidValue>,
) -> Result<Vec<T>, InvalidValue> {
    if value.is_empty() {
        return Err("is empty; remove the annotation for the default".into());
    }
    let mut entries = Vec::new();
    for word in value.split(',') {
        if entries.len() == MAX_ENTRIES {
            return Err(format!("has more than {MAX_ENTRIES} entries").into());
        }
        if word.is_empty() {
            return Err("has an empty entry; write entries with one comma between them".into());
        }
        if word.trim() != word {
            return Err(format!(
                "has white space around {:?}; write entries with a comma alone between them",
                word.trim()
            )
            .into());
        }
        let entry = entry(word)?;
        if entries.contains(&entry) {
            return Err(format!("has {} twice", quoted(word)).into());
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// A user's text in a message: escaped, and cut where it is long.
pub(crate) fn quoted(s: &str) -> String {
    match s.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}…", &s[..end]),
        None => format!("{s:?}"),
    }
}
