//! The wanted fields of a stream of JSON, and nothing of the rest. Pure.
//!
//! An object can be large: 1.5 MB in etcd, six times that as JSON. A [`Projection`] reads an answer of the API server piece by
//! piece, copies the fields in use and skips all others. The copy of one object is limited, too; an object beyond the limit is
//! marked as cut.

use std::sync::Arc;

/// Bytes of a key that is looked at; a longer one is none that is wanted.
const MAX_KEY: usize = 512;
/// Levels of nesting; Kubernetes' own objects have less than thirty.
const MAX_DEPTH: usize = 512;

/// Which fields are wanted: a tree of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    /// All of the value.
    All,
    /// Only that there is one: `true` stands for it.
    Presence,
    /// Members of an object, by name; a name that ends in `*` stands for all that begin so.
    Of(Vec<(String, Self)>),
    /// Of each element of a list.
    Each(Box<Self>),
}

impl Fields {
    /// The tree of these paths. The parts of a path are names of members; `[]` stands for each element of a list, `?` for the
    /// presence of what comes before it.
    pub(crate) fn of(paths: &[&[&str]]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for path in paths {
            match path.first() {
                None => return Self::All,
                Some(&"?") => return Self::Presence,
                Some(&"[]") => {
                    let rest: Vec<&[&str]> = paths.iter().map(|path| path.get(1..).unwrap_or_default()).collect();
                    return Self::Each(Box::new(Self::of(&rest)));
                }
                Some(name) if !names.contains(name) => names.push(name),
                Some(_) => {}
            }
        }
        let member = |name: &&str| {
            let rest: Vec<&[&str]> =
                paths.iter().filter(|path| path.first() == Some(name)).map(|path| &path[1..]).collect();
            ((*name).to_owned(), Self::of(&rest))
        };
        Self::Of(names.iter().map(member).collect())
    }

    fn member(&self, key: &[u8]) -> Option<&Self> {
        match self {
            Self::All => Some(self),
            Self::Of(members) => {
                members.iter().find(|(name, _)| matches(name.as_bytes(), key)).map(|(_, fields)| fields)
            }
            Self::Presence | Self::Each(_) => None,
        }
    }
}

fn matches(name: &[u8], key: &[u8]) -> bool {
    match name.strip_suffix(b"*") {
        Some(prefix) => key.starts_with(prefix),
        None => name == key,
    }
}

/// A piece that is complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// An element of the list that is taken apart.
    Item(Kept),
    /// A whole value of the stream.
    Whole(Kept),
}

/// The wanted fields, as JSON.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) json: Vec<u8>,
    /// More was wanted than one object may have.
    pub(crate) cut: bool,
}

/// Invalid JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server's answer is no JSON, or nested too deep, at byte {0}")]
pub(crate) struct NotJson(u64);

/// See the module.
#[derive(Debug)]
pub(crate) struct Projection {
    fields: Arc<Fields>,
    /// The member of the outermost object whose elements are pieces of their own.
    items: Option<&'static str>,
    limit: usize,
    state: State,
    stack: Vec<Level>,
    key: Vec<u8>,
    out: Vec<u8>,
    /// Where the piece begins in `out`.
    start: usize,
    cut: bool,
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a value, or after one.
    Between,
    /// In a string, and whether the byte before was a backslash.
    Text { what: Text, escaped: bool },
    /// In a number or a word.
    Word { kept: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Key,
    /// Kept since here in `out`.
    Kept(usize),
    /// Skipped; the closing quote is kept for one that was cut.
    Skipped {
        quote: bool,
    },
}

#[derive(Debug)]
struct Level {
    object: bool,
    /// The wanted fields of this object or list; `None`: none.
    wanted: Option<Arc<Fields>>,
    /// The wanted fields of the next member's value.
    next: Option<Arc<Fields>>,
    key_comes: bool,
    written: bool,
    /// Its elements are pieces of their own.
    items: bool,
}

impl Projection {
    /// Of a stream of values, such as a watch's; an object has at most `limit` bytes of wanted fields.
    pub(crate) fn new(fields: Arc<Fields>, limit: usize) -> Self {
        Self {
            fields,
            items: None,
            limit,
            state: State::Between,
            stack: Vec::new(),
            key: Vec::new(),
            out: Vec::new(),
            start: 0,
            cut: false,
            at: 0,
        }
    }

    /// Of a list: the elements of this member come one by one.
    pub(crate) fn of_list(fields: Arc<Fields>, items: &'static str, limit: usize) -> Self {
        Self { items: Some(items), ..Self::new(fields, limit) }
    }

    /// Takes the next bytes; `done` gets what is complete.
    ///
    /// # Errors
    /// They are no JSON.
    pub(crate) fn push(&mut self, bytes: &[u8], mut done: impl FnMut(Piece)) -> Result<(), NotJson> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            let used = match self.state {
                State::Text { what, escaped } => self.text(rest, what, escaped, &mut done),
                State::Word { kept } => {
                    if matches!(byte, b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n') {
                        self.state = State::Between;
                        self.value_ends(&mut done);
                        0
                    } else {
                        if kept {
                            self.out.push(byte);
                        }
                        1
                    }
                }
                State::Between => {
                    self.between(byte, &mut done).ok_or(NotJson(self.at))?;
                    1
                }
            };
            self.at += used as u64;
            rest = if used == 0 {
                rest
            } else if used == 1 {
                after
            } else {
                &rest[used..]
            };
        }
        Ok(())
    }

    /// True if no value is begun.
    pub(crate) fn is_between_values(&self) -> bool {
        self.stack.is_empty() && self.state == State::Between
    }

    /// Some bytes of a string; how many.
    fn text(&mut self, bytes: &[u8], what: Text, escaped: bool, done: &mut impl FnMut(Piece)) -> usize {
        let plain =
            if escaped { 1 } else { bytes.iter().position(|b| matches!(b, b'"' | b'\\')).unwrap_or(bytes.len()) };
        if plain > 0 {
            let plain = plain.min(bytes.len());
            let what = self.copy(&bytes[..plain], what);
            self.state = State::Text { what, escaped: false };
            return plain;
        }
        let what = if bytes[0] == b'\\' {
            let what = self.copy(b"\\", what);
            self.state = State::Text { what, escaped: true };
            return 1;
        } else {
            what
        };
        self.state = State::Between;
        match what {
            Text::Key => self.key_ends(),
            Text::Kept(_) | Text::Skipped { quote: true } => {
                self.out.push(b'"');
                self.value_ends(done);
            }
            Text::Skipped { quote: false } => self.value_ends(done),
        }
        1
    }

    fn copy(&mut self, bytes: &[u8], what: Text) -> Text {
        match what {
            Text::Key => {
                let room = (MAX_KEY + 1).saturating_sub(self.key.len());
                self.key.extend_from_slice(&bytes[..bytes.len().min(room)]);
                what
            }
            Text::Kept(since) if self.out.len() - self.start + bytes.len() > self.limit => {
                self.out.truncate(since);
                self.cut = true;
                Text::Skipped { quote: true }
            }
            Text::Kept(_) => {
                self.out.extend_from_slice(bytes);
                what
            }
            Text::Skipped { .. } => what,
        }
    }

    fn key_ends(&mut self) {
        let full = self.out.len() - self.start > self.limit;
        let too_long = self.key.len() > MAX_KEY;
        let depth = self.stack.len();
        let Some(level) = self.stack.last_mut() else { return };
        level.key_comes = false;
        let wanted = level.wanted.as_deref().and_then(|fields| fields.member(&self.key)).cloned();
        if wanted.is_some() && (full || too_long) {
            self.cut = true;
            level.next = None;
            return;
        }
        level.next = wanted.map(Arc::new);
        let apart = depth == 1 && self.items.is_some_and(|items| items.as_bytes() == self.key);
        if level.next.is_some() && !apart {
            if level.written {
                self.out.push(b',');
            }
            level.written = true;
            self.out.push(b'"');
            self.out.extend_from_slice(&self.key);
            self.out.extend_from_slice(b"\":");
        }
    }

    fn between(&mut self, byte: u8, done: &mut impl FnMut(Piece)) -> Option<()> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b',' => {
                let level = self.stack.last_mut()?;
                level.key_comes = level.object;
            }
            b':' => {}
            b'}' | b']' => {
                let level = self.stack.pop()?;
                if level.object != (byte == b'}') {
                    return None;
                }
                if level.wanted.is_some() && !level.items {
                    self.out.push(byte);
                }
                self.value_ends(done);
            }
            b'"' if self.stack.last().is_some_and(|level| level.key_comes) => {
                self.key.clear();
                self.state = State::Text { what: Text::Key, escaped: false };
            }
            _ => self.value_begins(byte)?,
        }
        Some(())
    }

    fn value_begins(&mut self, byte: u8) -> Option<()> {
        let full = self.out.len() - self.start > self.limit;
        let wanted = match self.stack.last_mut() {
            None => Some(Arc::clone(&self.fields)),
            Some(level) if level.object => level.next.take(),
            Some(level) if level.items => {
                self.start = self.out.len();
                self.cut = false;
                each(level.wanted.as_deref())
            }
            Some(level) => {
                let wanted = each(level.wanted.as_deref());
                if wanted.is_some() && full {
                    self.cut = true;
                    None
                } else {
                    if wanted.is_some() && level.written {
                        self.out.push(b',');
                    }
                    level.written |= wanted.is_some();
                    wanted
                }
            }
        };
        // The list of items is delivered one by one and never copied.
        let apart = self.stack.len() == 1 && self.items.is_some_and(|items| items.as_bytes() == self.key);
        let mut wanted = wanted.filter(|_| !apart || byte == b'[');
        if wanted.as_deref() == Some(&Fields::Presence) {
            self.out.extend_from_slice(if byte == b'n' { b"null" } else { b"true" });
            wanted = None;
        }
        match byte {
            b'{' | b'[' => {
                if self.stack.len() >= MAX_DEPTH {
                    return None;
                }
                let object = byte == b'{';
                let fits = match wanted.as_deref() {
                    Some(Fields::Of(_)) => object,
                    Some(Fields::Each(_)) => !object,
                    _ => true,
                };
                if !fits {
                    self.out.extend_from_slice(b"null");
                    wanted = None;
                }
                let items = !object && apart && wanted.is_some();
                if wanted.is_some() && !items {
                    self.out.push(byte);
                }
                self.stack.push(Level { object, wanted, next: None, key_comes: object, written: false, items });
            }
            b'"' => {
                let what = match wanted {
                    Some(_) => {
                        self.out.push(b'"');
                        Text::Kept(self.out.len())
                    }
                    None => Text::Skipped { quote: false },
                };
                self.state = State::Text { what, escaped: false };
            }
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                if wanted.is_some() {
                    self.out.push(byte);
                }
                self.state = State::Word { kept: wanted.is_some() };
            }
            _ => return None,
        }
        Some(())
    }

    fn value_ends(&mut self, done: &mut impl FnMut(Piece)) {
        match self.stack.last_mut() {
            None => {
                let kept = Kept { json: std::mem::take(&mut self.out), cut: self.cut };
                (self.start, self.cut) = (0, false);
                done(Piece::Whole(kept));
            }
            Some(level) if level.items => {
                let kept = Kept { json: self.out.split_off(self.start), cut: self.cut };
                (self.start, self.cut) = (0, false);
                done(Piece::Item(kept));
            }
            Some(_) => {}
        }
    }
}

/// The wanted fields of a list's elements.
fn each(wanted: Option<&Fields>) -> Option<Arc<Fields>> {
    match wanted? {
        Fields::All => Some(Arc::new(Fields::All)),
        Fields::Each(fields) => Some(Arc::new((**fields).clone())),
        Fields::Presence | Fields::Of(_) => None,
    }
}

#[cfg(test)]
mod tests;
