//! The requests of one pod, or of one requester that is no pod, that nothing has superseded. Pure.

use std::{sync::Arc, time::SystemTime};

/// When a request was made; and among those of one second, which passed by first in this term. 0: a list brought it.
pub(super) type Age = (SystemTime, u64);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) age: Age,
    pub(super) name: Arc<str>,
    /// Else it is open.
    pub(super) issued: bool,
}

/// See the module. They are few, and in the order of their age.
#[derive(Debug, Default)]
pub(super) struct Linked(Vec<Link>);

impl Linked {
    pub(super) fn add(&mut self, link: Link) {
        let place = self.0.partition_point(|other| *other < link);
        self.0.reserve_exact(1);
        self.0.insert(place, link);
    }

    /// Removes one; whether none is left.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.0.retain(|link| *link.name != *name);
        self.0.is_empty()
    }

    /// The open ones: of one role, or of all.
    pub(super) fn open<'a>(&'a self, of: Option<&'a str>) -> impl Iterator<Item = &'a Link> {
        self.0.iter().filter(move |link| !link.issued && of.is_none_or(|of| role(&link.name) == of))
    }

    /// The issued ones of a role.
    pub(super) fn issued<'a>(&'a self, of: &'a str) -> impl DoubleEndedIterator<Item = &'a Link> {
        self.0.iter().filter(move |link| link.issued && role(&link.name) == of)
    }
}

/// The part of a request's name that all of its pod and role share: all but the digest of the key.
pub(super) fn role(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(role, _)| role)
}
