//! A JSON patch (RFC 6902) of `add` operations, built for the raw object: parents before children, and a list that is
//! missing or null made by the first item that goes into it.

use std::borrow::Cow;

use json_patch::{
    AddOperation, Patch, PatchOperation, ReplaceOperation,
    jsonptr::{ParseError, Pointer, Token},
};
use serde::Serialize;
use serde_json::Value;

use super::json::{Json, Object};

/// The operations on a pod. Empty where everything is in place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodPatch(Vec<Operation>);

/// One operation: `add`, or `replace`, which `reload: probe` alone needs.
#[derive(Clone, Debug, PartialEq)]
struct Operation {
    replaces: bool,
    /// A JSON pointer.
    path: String,
    value: Item,
}

/// The value that an operation adds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// A tree of values.
    Tree(Value),
    /// JSON that is written already.
    Text(Cow<'static, str>),
    /// A list.
    List(Vec<Self>),
}

impl From<Value> for Item {
    fn from(tree: Value) -> Self {
        Self::Tree(tree)
    }
}

impl Item {
    /// `value`, written; in about `size` bytes.
    ///
    /// # Errors
    /// It has no form in JSON.
    pub(super) fn written(value: &impl Serialize, size: usize) -> Result<Self, serde_json::Error> {
        let mut text = Vec::with_capacity(size);
        serde_json::to_writer(&mut text, value)?;
        String::from_utf8(text).map(|text| Self::Text(text.into())).map_err(serde::ser::Error::custom)
    }

    /// Appends it to `out`, as JSON.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        match self {
            Self::Tree(tree) => serde_json::to_writer(&mut *out, tree)?,
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::List(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    out.extend_from_slice(if at == 0 { b"" } else { b"," });
                    item.write(out)?;
                }
                out.push(b']');
            }
        }
        Ok(())
    }

    fn tree(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Tree(tree) => Ok(tree.clone()),
            Self::Text(text) => serde_json::from_str(text),
            Self::List(items) => items.iter().map(Self::tree).collect(),
        }
    }
}

impl PodPatch {
    /// Sets a field that is not there, or null.
    pub(super) fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        self.add(path, value.into().into());
    }

    /// Replaces a field. `reload: probe` alone does this.
    pub(super) fn replace(&mut self, path: &[&str], value: impl Into<Value>) {
        self.0.push(Operation { replaces: true, path: pointer(path), value: value.into().into() });
    }

    /// Appends to the list `field` of `parent`, which is at `path`.
    pub(super) fn append(&mut self, path: &[&str], parent: &Object<'_>, field: &str, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let mut path = path.to_vec();
        path.push(field);
        if parent.get(field).is_some_and(Json::is_array) {
            path.push("-");
            let path = pointer(&path);
            self.0.extend(items.into_iter().map(|value| Operation { replaces: false, path: path.clone(), value }));
        } else {
            self.add(&path, Item::List(items));
        }
    }

    /// Inserts into the list `field` of `parent`, which is at `path`: each item before the one that has its index once
    /// the items before it are in.
    pub(super) fn insert(&mut self, path: &[&str], parent: &Object<'_>, field: &str, items: Vec<(usize, Item)>) {
        let mut path = path.to_vec();
        path.push(field);
        if !parent.get(field).is_some_and(Json::is_array) {
            if !items.is_empty() {
                self.add(&path, Item::List(items.into_iter().map(|(_, item)| item).collect()));
            }
            return;
        }
        for (index, item) in items {
            let index = index.to_string();
            let mut path = path.clone();
            path.push(&index);
            self.add(&path, item);
        }
    }

    fn add(&mut self, path: &[&str], value: Item) {
        self.0.push(Operation { replaces: false, path: pointer(path), value });
    }

    /// True if it changes nothing.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the patch to `out`, as JSON.
    ///
    /// # Errors
    /// A value has no form in JSON.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        for (at, Operation { replaces, path, value }) in self.0.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"[" } else { b"," });
            out.extend_from_slice(if *replaces { br#"{"op":"replace","path":"# } else { br#"{"op":"add","path":"# });
            serde_json::to_writer(&mut *out, path)?;
            out.extend_from_slice(br#","value":"#);
            value.write(out)?;
            out.push(b'}');
        }
        out.extend_from_slice(if self.0.is_empty() { b"[]" } else { b"]" });
        Ok(())
    }

    /// Applies the patch to `pod`.
    ///
    /// # Errors
    /// It is the patch of another object.
    pub fn apply(&self, pod: &mut Value) -> Result<(), Misfit> {
        let operation = |Operation { replaces, path, value }: &Operation| {
            let (path, value) = (Pointer::parse(path)?.to_buf(), value.tree()?);
            Ok::<_, Misfit>(if *replaces {
                PatchOperation::Replace(ReplaceOperation { path, value })
            } else {
                PatchOperation::Add(AddOperation { path, value })
            })
        };
        let operations = self.0.iter().map(operation).collect::<Result<Vec<_>, _>>()?;
        Ok(json_patch::patch(pod, &Patch(operations))?)
    }
}

/// A patch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// A value is no JSON.
    #[error("a value of the patch: {0}")]
    Value(#[from] serde_json::Error),
    /// A path is no JSON pointer.
    #[error("a path of the patch: {0}")]
    Pointer(#[from] ParseError),
    /// A path is not in the object.
    #[error("{0}")]
    Path(#[from] json_patch::PatchError),
}

/// The JSON pointer of these names (RFC 6901).
fn pointer(path: &[&str]) -> String {
    let mut pointer = String::with_capacity(path.iter().map(|name| name.len() + "/~1~1".len()).sum());
    for name in path {
        pointer.push('/');
        if name.contains(['~', '/']) {
            pointer.push_str(Token::new(*name).encoded());
        } else {
            pointer.push_str(name);
        }
    }
    pointer
}
