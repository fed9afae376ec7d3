//! Times as RFC 3339 text, to the second. People read what is persisted, too.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// The text.
pub fn text(t: SystemTime) -> String {
    Timestamp::try_from(t)
        .and_then(|t| Timestamp::from_second(t.as_second()))
        .map_or_else(|_| "a time out of range".to_owned(), |t| t.to_string())
}

pub(crate) fn serialize<S: Serializer>(t: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text(*t))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<Timestamp>().map(SystemTime::from).map_err(D::Error::custom)
}

pub(crate) mod option {
    use super::{Deserializer, Serializer, SystemTime};

    pub(crate) fn serialize<S: Serializer>(t: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match t {
            Some(t) => super::serialize(t, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        #[derive(serde::Deserialize)]
        struct Text(#[serde(with = "super")] SystemTime);
        Ok(<Option<Text> as serde::Deserialize>::deserialize(deserializer)?.map(|Text(t)| t))
    }
}
