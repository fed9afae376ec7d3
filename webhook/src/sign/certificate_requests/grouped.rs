//! The requests of a list, one pod and role after another, and what is to be done about each. Pure.
//!
//! A list is in the order of namespaces and names, so the requests of one pod and role come one after another. Those of one
//! pod and role alone are held, and of these a few: the memory does not depend on how many requests there are.

use std::{collections::BTreeMap, time::SystemTime};

use etcd_tls_contract::role::Role;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::sign::cleaner::ledger::Times;

/// Requests of one pod and role that stay, however they stand; the sidecar has one at a time. The newest ones stay.
const PER_ROLE: usize = 4;
/// Requests of one namespace that are read in one round. The next round begins after them.
const LOOKS: usize = 256;
/// Hexadecimal digits of a key's digest ([`etcd_tls_contract::csr::key_digest`]).
const DIGEST: usize = 32;

/// One request of ours, by its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) created: SystemTime,
}

/// The action on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Delete it, however it stands.
    Delete(Known),
    /// Read it, and delete it if it is done with.
    Look {
        request: Known,
        /// A later one of its pod and role takes its place.
        superseded: bool,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Grouped {
    times: Times,
    /// Namespace, and pod uid and role.
    group: Option<(String, String)>,
    /// Of the group, the oldest first.
    newest: Vec<Known>,
    /// A pod left more than are kept.
    flood: bool,
    /// The namespace that is read, and how many of its requests may be read yet.
    looks: (String, usize),
    /// Where reading begins, by namespace: those before were read in the last round.
    begins: BTreeMap<String, String>,
    /// The same for the next round.
    next: BTreeMap<String, String>,
}

impl Grouped {
    pub(super) fn new(times: Times) -> Self {
        Self {
            times,
            group: None,
            newest: Vec::with_capacity(PER_ROLE + 1),
            flood: false,
            looks: (String::new(), LOOKS),
            begins: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }

    /// Takes the next object of a list.
    pub(super) fn take(&mut self, metadata: ObjectMeta, now: SystemTime) -> Vec<Task> {
        let Some((owner, known)) = recognise(metadata) else { return Vec::new() };
        let same = self.group.as_ref().is_some_and(|(ns, of)| *ns == known.namespace && *of == owner);
        let mut tasks = if same { Vec::new() } else { self.group_ends(now) };
        self.group = Some((known.namespace.clone(), owner));
        self.newest.insert(self.newest.partition_point(|other| other.created <= known.created), known);
        if self.newest.len() > PER_ROLE {
            self.flood = true;
            tasks.push(Task::Delete(self.newest.remove(0)));
        }
        tasks
    }

    /// The list is complete, or another group begins.
    pub(super) fn group_ends(&mut self, now: SystemTime) -> Vec<Task> {
        self.group = None;
        let mut group = std::mem::take(&mut self.newest);
        let Some(newest) = group.last().map(|known| known.created) else { return Vec::new() };
        let mut tasks = Vec::new();
        for request in group.drain(..) {
            let superseded = request.created < newest;
            let age = now.duration_since(request.created).unwrap_or_default();
            if (superseded || age >= self.times.issued.min(self.times.refused)) && self.may_look(&request) {
                tasks.push(Task::Look { request, superseded });
            }
        }
        self.newest = group;
        tasks
    }

    /// A round is over, or broke off. Returns true if a pod left more requests than are kept.
    pub(super) fn round_ends(&mut self) -> bool {
        self.group = None;
        self.newest.clear();
        self.looks = (String::new(), LOOKS);
        self.begins = std::mem::take(&mut self.next);
        std::mem::take(&mut self.flood)
    }

    fn may_look(&mut self, request: &Known) -> bool {
        if self.looks.0 != request.namespace {
            self.looks = (request.namespace.clone(), LOOKS);
        }
        if self.begins.get(&request.namespace).is_some_and(|begins| request.name < *begins) {
            return false;
        }
        if self.looks.1 == 0 {
            self.next.entry(request.namespace.clone()).or_insert_with(|| request.name.clone());
            return false;
        }
        self.looks.1 -= 1;
        true
    }
}

fn recognise(metadata: ObjectMeta) -> Option<(String, Known)> {
    let name = metadata.name?;
    let owner = owner(&name)?;
    let created = SystemTime::from(metadata.creation_timestamp?.0);
    let (namespace, uid, version) = (metadata.namespace?, metadata.uid?, metadata.resource_version?);
    Some((owner, Known { namespace, name, uid, version, created }))
}

/// Pod uid and role of `etcd-tls-<pod uid>-<role>-<digest>`; `None` for every other name.
fn owner(name: &str) -> Option<String> {
    let (front, digest) = name.strip_prefix("etcd-tls-")?.rsplit_once('-')?;
    let (uid, role) = front.rsplit_once('-')?;
    let is_hex = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_uid = uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && uid.split('-').all(is_hex);
    let is_role = Role::ALL.into_iter().any(|known| known.as_str() == role);
    (is_uid && is_role && digest.len() == DIGEST && is_hex(digest)).then(|| front.to_owned())
}

#[cfg(test)]
mod tests;
