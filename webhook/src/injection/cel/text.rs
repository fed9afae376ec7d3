//! Text as CEL writes it.

use etcd_tls_contract::names;

/// A string of CEL.
pub(super) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\\' | '\'' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// A list of strings.
pub(super) fn literals<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    format!("[{}]", texts.into_iter().map(literal).collect::<Vec<_>>().join(", "))
}

/// The value of an annotation of ours, else `default`.
pub(super) fn annotation(key: &str, default: &str) -> String {
    format!("variables.annotations[?{}].orValue({})", full(key), literal(default))
}

/// The CEL condition that the pod has an annotation of ours.
pub(super) fn has(key: &str) -> String {
    format!("{} in variables.annotations", full(key))
}

fn full(key: &str) -> String {
    literal(&format!("{}{key}", names::ANNOTATION_PREFIX))
}

/// A list with `item` where `condition` holds, else an empty one.
pub(super) fn only_if(condition: &str, item: &str) -> String {
    format!("({condition} ? [{item}] : [])")
}
