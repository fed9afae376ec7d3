//! For whose CA a signed certificate waits: its issuer has changed the CA, and no bundle at hand holds the new one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::role::Role;
use tokio::sync::Notify;

/// Of a CA's name, which is its issuer's to choose.
const MAX_NAME: usize = 200;

/// The CAs that are waited for, by role.
#[derive(Debug, Default)]
pub struct Awaited {
    told: Notify,
    by_role: Mutex<BTreeMap<Role, String>>,
}

impl Awaited {
    /// `role`'s certificate waits for the CA of this name.
    pub fn begin(&self, role: Role, authority: &str) {
        self.lock().insert(role, authority.chars().take(MAX_NAME).collect());
        self.told.notify_one();
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
    pub fn all(&self) -> BTreeMap<Role, String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Role, String>> {
        self.by_role.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
