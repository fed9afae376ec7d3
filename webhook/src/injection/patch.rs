//! A JSON patch of `add` operations, built for the raw object: parents before children, and a list that is missing or
//! null made by the first item that goes into it.

use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation, jsonptr::PointerBuf};
use serde_json::{Map, Value};

/// The operations so far.
#[derive(Debug, Default)]
pub(super) struct Additions(Vec<PatchOperation>);

impl Additions {
    /// Sets a field that is not there, or null.
    pub(super) fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        self.0.push(PatchOperation::Add(AddOperation { path: pointer(path), value: value.into() }));
    }

    /// Replaces a field. `reload: probe` alone does this.
    pub(super) fn replace(&mut self, path: &[&str], value: impl Into<Value>) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path: pointer(path), value: value.into() }));
    }

    /// Appends to the list `field` of `parent`, which is at `path`.
    pub(super) fn append(&mut self, path: &[&str], parent: &Map<String, Value>, field: &str, items: Vec<Value>) {
        if items.is_empty() {
            return;
        }
        let mut path = path.to_vec();
        path.push(field);
        if parent.get(field).is_some_and(Value::is_array) {
            path.push("-");
            for item in items {
                self.set(&path, item);
            }
        } else {
            self.set(&path, Value::Array(items));
        }
    }

    /// Inserts into the list `field` of `parent`, which is at `path`: each item before the one that has its index once
    /// the items before it are in.
    pub(super) fn insert(
        &mut self,
        path: &[&str],
        parent: &Map<String, Value>,
        field: &str,
        items: Vec<(usize, Value)>,
    ) {
        let mut path = path.to_vec();
        path.push(field);
        if !parent.get(field).is_some_and(Value::is_array) {
            if !items.is_empty() {
                self.set(&path, Value::Array(items.into_iter().map(|(_, item)| item).collect()));
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
fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}
