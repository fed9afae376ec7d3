//! JSON as a tree that borrows from its text.
//!
//! Admission reads a pod once, looks at some of its fields and answers with a small tree of its own. A tree of owned and
//! hashed keys costs more than all that is decided by it. Here a string that holds no escape is a slice of the text it
//! was read from, a key written in this program is a slice of the program, and an object is a list of its fields, looked
//! through from its end: an object of Kubernetes has few fields, and of two of one name the last counts.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::SerializeMap as _,
};
use serde_json::{Number, Value};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Self>),
    /// An object.
    Object(Fields<'a>),
}

/// An object's fields, in their order. Two objects are equal where their fields are and have the same order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

/// An object, written out: `object! {"name": "etcd", "ports": list![2379, 2380]}`.
macro_rules! object {
    ($($key:tt : $value:expr),* $(,)?) => {
        $crate::json::Json::Object($crate::json::Fields::from(
            vec![$((::std::borrow::Cow::Borrowed($key), $crate::json::Json::from($value))),*]
        ))
    };
}

/// An array, written out.
macro_rules! list {
    ($($item:expr),* $(,)?) => {
        $crate::json::Json::Array(vec![$($crate::json::Json::from($item)),*])
    };
}

pub(crate) use {list, object};

impl<'a> Json<'a> {
    /// The field of this name, where this is an object that has it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.as_object()?.get(name)
    }

    /// The string's text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// A boolean's value.
    pub const fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A number's value, where it is a whole one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    /// An array's items.
    pub const fn as_array(&self) -> Option<&Vec<Self>> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// An object's fields.
    pub const fn as_object(&self) -> Option<&Fields<'a>> {
        match self {
            Self::Object(fields) => Some(fields),
            _ => None,
        }
    }

    /// Whether it is `null`.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is a string.
    pub const fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    /// Whether it is an array.
    pub const fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Whether it is an object.
    pub const fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// The same, borrowing nothing.
    pub fn into_owned(self) -> Json<'static> {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(value),
            Self::Number(number) => Json::Number(number),
            Self::String(text) => Json::String(Cow::Owned(text.into_owned())),
            Self::Array(items) => Json::Array(items.into_iter().map(Json::into_owned).collect()),
            Self::Object(fields) => Json::Object(fields.into_owned()),
        }
    }
}

impl<'a> Fields<'a> {
    /// No fields.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No fields, and room for some.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The value of the last field of this name.
    pub fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Sets the field of this name, at its place or at the end.
    pub fn set(&mut self, name: &'a str, value: impl Into<Json<'a>>) {
        let value = value.into();
        match self.0.iter_mut().rev().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((Cow::Borrowed(name), value)),
        }
    }

    /// Removes every field of this name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// The fields, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Json<'a>)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }

    /// How many fields there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same, borrowing nothing.
    pub fn into_owned(self) -> Fields<'static> {
        Fields(self.0.into_iter().map(|(key, value)| (Cow::Owned(key.into_owned()), value.into_owned())).collect())
    }
}

impl<'a> From<Vec<(Cow<'a, str>, Json<'a>)>> for Fields<'a> {
    fn from(fields: Vec<(Cow<'a, str>, Json<'a>)>) -> Self {
        Self(fields)
    }
}

impl<'a> From<&'a str> for Json<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Cow::Borrowed(text))
    }
}

impl From<String> for Json<'_> {
    fn from(text: String) -> Self {
        Self::String(Cow::Owned(text))
    }
}

impl From<bool> for Json<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Json<'_> {
    fn from(value: u64) -> Self {
        Self::Number(value.into())
    }
}

impl From<u32> for Json<'_> {
    fn from(value: u32) -> Self {
        Self::Number(value.into())
    }
}

impl From<u16> for Json<'_> {
    fn from(value: u16) -> Self {
        Self::Number(value.into())
    }
}

impl<'a, T: Into<Self>> From<Vec<T>> for Json<'a> {
    fn from(items: Vec<T>) -> Self {
        Self::Array(items.into_iter().map(Into::into).collect())
    }
}

impl<'a> From<Fields<'a>> for Json<'a> {
    fn from(fields: Fields<'a>) -> Self {
        Self::Object(fields)
    }
}

impl<'a> From<&'a Value> for Json<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::String(Cow::Borrowed(text)),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(map) => Self::Object(Fields(
                map.iter().map(|(key, value)| (Cow::Borrowed(key.as_str()), Self::from(value))).collect(),
            )),
        }
    }
}

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => items.serialize(serializer),
            Self::Object(fields) => fields.serialize(serializer),
        }
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Read)
    }
}

struct Read;

impl<'de> Visitor<'de> for Read {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::String(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Key(key), value)) = map.next_entry()? {
            fields.push((key, value));
        }
        Ok(Json::Object(Fields(fields)))
    }
}

struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadKey;
        impl<'de> Visitor<'de> for ReadKey {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(ReadKey)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TEXT: &str = r#"{"a":[1,-2,3.5,1e300,18446744073709551615,true,null],"b\n":{"c":"x","d":"\u00e4\"","":""}}"#;

    #[test]
    fn it_is_read_as_the_owned_tree_is_and_written_again() {
        let ours: Json<'_> = serde_json::from_str(TEXT).unwrap();
        let theirs: Value = serde_json::from_str(TEXT).unwrap();
        assert_eq!(ours, Json::from(&theirs));
        assert_eq!(ours.to_string(), theirs.to_string());
        assert_eq!(ours.clone().into_owned(), ours);
        for bad in ["", "{", "[1,]", "{\"a\" 1}", "{1:2}", "\"\u{1}\"", "nul", "[] x"] {
            assert!(serde_json::from_str::<Json<'_>>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Json<'_>>(&"[".repeat(100_000)).is_err(), "no deeper than the stack");
    }

    #[test]
    fn what_holds_no_escape_is_borrowed() {
        let ours: Json<'_> = serde_json::from_str(TEXT).unwrap();
        let inner = ours.get("b\n").unwrap();
        assert!(matches!(inner.get("c"), Some(Json::String(Cow::Borrowed("x")))));
        assert_eq!(inner.get("d").and_then(Json::as_str), Some("ä\""));
    }

    #[test]
    fn of_two_fields_of_one_name_the_last_counts() {
        let ours: Json<'_> = serde_json::from_str(r#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(ours.get("a").and_then(Json::as_u64), Some(3));
    }

    #[test]
    fn fields_are_set_in_place_and_removed() {
        let mut fields = object! {"a": 1u64, "b": list!["x", false]}.as_object().unwrap().clone();
        fields.set("a", "new");
        fields.set("c", object! {});
        fields.remove("b");
        assert_eq!(Json::from(fields).to_string(), r#"{"a":"new","c":{}}"#);
    }
}
