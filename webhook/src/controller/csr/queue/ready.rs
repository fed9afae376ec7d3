//! The requests of one requester that are ready: its users take turns, and each user's are in the order of arrival. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// How far into a user's requests [`Ready::promote`] looks.
const LOOK_AHEAD: usize = 64;

/// See the module. A user is in `turns` exactly once while it has a request, and else not.
#[derive(Debug, Default)]
pub(super) struct Ready {
    turns: VecDeque<Arc<str>>,
    names: HashMap<Arc<str>, VecDeque<Arc<str>>>,
}

impl Ready {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// `user`, in the allocation that is here already if there is one.
    pub(super) fn shared(&self, user: &str) -> Arc<str> {
        self.names.get_key_value(user).map_or_else(|| Arc::from(user), |(known, _)| Arc::clone(known))
    }

    pub(super) fn push(&mut self, user: &Arc<str>, name: Arc<str>) {
        let names = self.names.entry(Arc::clone(user)).or_default();
        if names.is_empty() {
            self.turns.push_back(Arc::clone(user));
        }
        names.push_back(name);
    }

    /// Takes the first request of the user whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Arc<str>> {
        let user = self.turns.pop_front()?;
        let names = self.names.get_mut(&user)?;
        let name = names.pop_front();
        if names.is_empty() {
            self.names.remove(&user);
        } else {
            self.turns.push_back(user);
        }
        name
    }

    /// Has `user` give its next request that `is` names out of turn, if one is near.
    pub(super) fn promote(&mut self, user: &str, is: impl Fn(&Arc<str>) -> bool) -> bool {
        if let Some(names) = self.names.get_mut(user)
            && let Some(at) = names.iter().take(LOOK_AHEAD).position(is)
            && let Some(name) = names.remove(at)
            && let Some(turn) = self.turns.iter().position(|other| **other == *user)
            && let Some(user) = self.turns.remove(turn)
        {
            names.push_front(name);
            self.turns.push_front(user);
            return true;
        }
        false
    }
}
