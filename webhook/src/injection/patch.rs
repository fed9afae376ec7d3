//! A JSON patch of `add` operations, built for the raw object: parents before children, pointers escaped, and a list that
//! is missing or null made by the first thing that goes into it.

use serde::Serialize;
use serde_json::Value;

use crate::json::{Fields, Json};

/// A JSON patch (RFC 6902).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Patch(pub Vec<Operation>);

/// One operation of a patch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// What is done.
    pub op: Kind,
    /// Where: a JSON pointer.
    pub path: String,
    /// What is put there.
    pub value: Json<'static>,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Adds a field or an item.
    Add,
    /// Puts a value in the place of another one.
    Replace,
}

/// The operations so far.
#[derive(Debug, Default)]
pub(super) struct Additions(Vec<Operation>);

impl Additions {
    /// Sets a field that is not there, or null.
    pub(super) fn set(&mut self, path: &[&str], value: impl Into<Json<'static>>) {
        self.0.push(Operation { op: Kind::Add, path: pointer(path), value: value.into() });
    }

    /// Replaces a field. `reload: probe` alone does this.
    pub(super) fn replace(&mut self, path: &[&str], value: impl Into<Json<'static>>) {
        self.0.push(Operation { op: Kind::Replace, path: pointer(path), value: value.into() });
    }

    /// Appends to the list `field` of `parent`, which is at `path`.
    pub(super) fn append(&mut self, path: &[&str], parent: &Fields<'_>, field: &str, items: Vec<Json<'static>>) {
        if items.is_empty() {
            return;
        }
        let mut path = path.to_vec();
        path.push(field);
        if parent.get(field).is_some_and(Json::is_array) {
            path.push("-");
            for item in items {
                self.set(&path, item);
            }
        } else {
            self.set(&path, Json::Array(items));
        }
    }

    /// Inserts into the list `field` of `parent`, which is at `path`: each item before the one that has its index once
    /// the items before it are in.
    pub(super) fn insert(
        &mut self,
        path: &[&str],
        parent: &Fields<'_>,
        field: &str,
        items: Vec<(usize, Json<'static>)>,
    ) {
        let mut path = path.to_vec();
        path.push(field);
        if !parent.get(field).is_some_and(Json::is_array) {
            if !items.is_empty() {
                self.set(&path, Json::Array(items.into_iter().map(|(_, item)| item).collect()));
            }
            return;
        }
        for (index, item) in items {
            let index = index.to_string();
            let mut path = path.clone();
            path.push(&index);
            self.set(&path, item);
        }
    }

    /// The finished patch.
    pub(super) fn patch(self) -> Patch {
        Patch(self.0)
    }
}

/// The JSON pointer of these names (RFC 6901).
fn pointer(path: &[&str]) -> String {
    let mut pointer = String::with_capacity(64);
    for name in path {
        pointer.push('/');
        for c in name.chars() {
            match c {
                '~' => pointer.push_str("~0"),
                '/' => pointer.push_str("~1"),
                c => pointer.push(c),
            }
        }
    }
    pointer
}

impl Patch {
    /// Puts the patch into the very object that it was made for.
    ///
    /// # Errors
    /// It is another one.
    pub fn apply(&self, object: &mut Value) -> Result<(), serde_json::Error> {
        let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(self)?)?;
        json_patch::patch(object, &patch).map_err(serde::de::Error::custom)
    }
}
