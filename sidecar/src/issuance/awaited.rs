//! For whose CA a signed certificate waits: its issuer has changed the CA, and no bundle at hand holds the new one, or not
//! everybody trusts it yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::role::Role;
use tokio::sync::Notify;

/// Of a CA's name, which is its issuer's to choose.
const MAX_NAME: usize = 200;
/// Of the members that are shown; a cluster has seven or so.
const MAX_MEMBERS: usize = 16;

/// The members and the CA that a certificate waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// The CA's name.
    pub authority: String,
    /// The etcd members that do not trust it yet, where the bundle comes with the issuer's answer; else empty.
    pub members: Vec<String>,
}

/// The CAs that are waited for, by role.
#[derive(Debug, Default)]
pub struct Awaited {
    told: Notify,
    by_role: Mutex<BTreeMap<Role, (Wait, Arc<Notify>)>>,
}

impl Awaited {
    /// `role`'s certificate waits for the CA of this name, until `members` trust it. Notified when another one is asked for
    /// meanwhile.
    pub fn begin(&self, role: Role, authority: &str, members: Vec<String>) -> Arc<Notify> {
        let cut = |name: &str| name.chars().take(MAX_NAME).collect();
        let members = members.iter().take(MAX_MEMBERS).map(|name| cut(name)).collect();
        let wait = Wait { authority: cut(authority), members };
        let mut all = self.lock();
        let asked = all.get(&role).map(|(_, asked)| Arc::clone(asked)).unwrap_or_default();
        all.insert(role, (wait, Arc::clone(&asked)));
        drop(all);
        self.told.notify_one();
        asked
    }

    /// Asks for another certificate of `role` instead of one that waits for members; whether one does.
    pub fn ask_again(&self, role: Role) -> bool {
        let all = self.lock();
        let asked = all.get(&role).filter(|(wait, _)| !wait.members.is_empty()).map(|(_, asked)| asked.notify_one());
        asked.is_some()
    }

    /// `role`'s certificate waits no more.
    pub fn end(&self, role: Role) {
        self.lock().remove(&role);
    }

    /// Ends when one has begun to wait.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<Role, Wait> {
        self.lock().iter().map(|(role, (wait, _))| (*role, wait.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Role, (Wait, Arc<Notify>)>> {
        self.by_role.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
