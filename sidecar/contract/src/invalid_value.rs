//! The error of a value that a person wrote.

use std::fmt;

/// A value of an annotation, an argument or the policy cannot be used. The text says what is wrong and what to write
/// instead; it continues a sentence that names the place of the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// The same error, with the place of the value before it: `<place>: <error>`.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl From<String> for InvalidValue {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for InvalidValue {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
