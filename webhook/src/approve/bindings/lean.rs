//! Objects of RBAC as far as they are read.

use serde::{Deserialize, de::DeserializeOwned};

use crate::controller::listed::Object;

/// The label of what `approve` makes in a namespace.
pub(super) const OUR_LABEL: (&str, &str) = ("app.kubernetes.io/name", "etcd-tls");

/// The fields that are read.
pub(super) const WANTED: &[&[&str]] = &[
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "labels", OUR_LABEL.0],
    &["subjects"],
    &["roleRef"],
    &["rules"],
];

/// An object, and whether it is larger than what is read of one.
#[derive(Debug, Deserialize)]
#[serde(from = "T", bound = "T: DeserializeOwned")]
pub(super) struct Lean<T>(pub(super) T, pub(super) bool);

impl<T> From<T> for Lean<T> {
    fn from(object: T) -> Self {
        Self(object, false)
    }
}

impl<T: DeserializeOwned + Send + 'static> Object for Lean<T> {
    fn cut(&mut self) {
        self.1 = true;
    }
}
