//! The JSON of a pod as a review brings it: strings and keys are borrowed from the body, and the fields of an object keep their
//! order.

use std::collections::HashSet;

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;
pub use serde_json_borrow::{ObjectAsVec as Object, Value as Json};

/// An object with more fields is checked with a set; up to so many, each is compared with those before it.
const FEW: usize = 24;

/// Reads a value. One with an object that has a field twice is an error: readers do not agree which of the two counts.
///
/// # Errors
/// It is no JSON, or a field is there twice.
pub fn unambiguous<'de: 'a, 'a, D: Deserializer<'de>>(reader: D) -> Result<Json<'a>, D::Error> {
    let value: Json<'de> = Json::deserialize(reader)?;
    match repeated(&value) {
        Some(field) => {
            Err(D::Error::custom(format!("duplicate field `{}`", field.chars().take(80).collect::<String>())))
        }
        None => Ok(value),
    }
}

/// `value`, borrowed. (The library's own conversion gives positive integers as negative ones, which are no `u64`.)
pub fn borrowed(value: &Value) -> Json<'_> {
    match value {
        Value::Null => Json::Null,
        Value::Bool(bool) => Json::Bool(*bool),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or_default().into(),
        },
        Value::String(text) => Json::Str(text.into()),
        Value::Array(items) => Json::Array(items.iter().map(borrowed).collect()),
        Value::Object(fields) => {
            Json::Object(fields.iter().map(|(key, value)| (key.as_str(), borrowed(value))).collect())
        }
    }
}

/// A field that an object in `value` has twice.
fn repeated<'a>(value: &'a Json<'_>) -> Option<&'a str> {
    match value {
        Json::Object(object) => repeated_key(object).or_else(|| object.values().find_map(repeated)),
        Json::Array(items) => items.iter().find_map(repeated),
        _ => None,
    }
}

fn repeated_key<'a>(object: &'a Object<'_>) -> Option<&'a str> {
    if object.len() > FEW {
        let mut seen = HashSet::with_capacity(object.len());
        return object.keys().find(|key| !seen.insert(*key));
    }
    // Two fields with different marks have different names, so few are compared.
    let mut marks = 0_u64;
    object.keys().enumerate().find_map(|(at, key)| {
        let mark = 1 << (mark(key) % u64::BITS as usize);
        let new = marks & mark == 0;
        marks |= mark;
        (!new && object.keys().take(at).any(|before| before == key)).then_some(key)
    })
}

/// A number that is the same for the same names.
fn mark(key: &str) -> usize {
    let byte = |at: usize| key.as_bytes().get(at).copied().map_or(0, usize::from);
    key.len() + 7 * byte(0) + byte(key.len() / 2) + 31 * byte(key.len().saturating_sub(1))
}

/// True if `theirs` holds all of `ours`: objects by field, lists item by item.
pub(super) fn contains(theirs: &Json<'_>, ours: &Value) -> bool {
    match (theirs, ours) {
        (Json::Object(theirs), Value::Object(ours)) => {
            ours.iter().all(|(key, ours)| theirs.get(key).is_some_and(|theirs| contains(theirs, ours)))
        }
        (Json::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| contains(theirs, ours))
        }
        (Json::Str(theirs), Value::String(ours)) => theirs == ours,
        (Json::Bool(theirs), Value::Bool(ours)) => theirs == ours,
        (Json::Number(theirs), Value::Number(ours)) => {
            theirs.is_f64() == ours.is_f64() && (theirs.as_i64(), theirs.as_f64()) == (ours.as_i64(), ours.as_f64())
        }
        (Json::Null, Value::Null) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_borrowed_value_is_the_one_that_is_read() {
        let value = json!({"a": [1, -1, 0, u64::MAX, i64::MIN, 1.5, 1e300], "b": {"c": null, "d": "x\u{1}\"", "e": [true, {}]}});
        let text = value.to_string();
        let read: Json<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(borrowed(&value), read);
        assert_eq!(Value::from(&read), value);
        assert!(contains(&read, &value));
        for other in [json!({"a": []}), json!({"a": null}), json!({"b": {"c": false}}), json!({"z": null}), json!([])] {
            assert!(!contains(&read, &other), "{other}");
        }
        for (theirs, ours) in [("1", json!(1.0)), ("1.0", json!(1)), ("-1", json!(u64::MAX)), ("2", json!(1))] {
            assert!(!contains(&serde_json::from_str(theirs).unwrap(), &ours), "{theirs} {ours}");
        }
    }
}
