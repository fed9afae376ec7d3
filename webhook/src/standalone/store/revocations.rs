//! The revocations of each domain, as writer and readers share them.

use std::{collections::BTreeMap, sync::Arc};

use etcd_tls_contract::{csr, role::Domain};

use crate::sign::ledger::Revoked;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Revocations(BTreeMap<Domain, Arc<Revoked>>);

impl Revocations {
    /// The revocations of a domain.
    pub(crate) fn get(&self, domain: Domain) -> Option<&Arc<Revoked>> {
        self.0.get(&domain)
    }

    /// Those of each domain that has any.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Domain, &Revoked)> {
        self.0.iter().map(|(domain, revoked)| (*domain, &**revoked))
    }

    /// Replaces the revocations of a domain.
    pub(super) fn revise(&mut self, domain: Domain, revoked: Arc<Revoked>) {
        self.0.insert(domain, revoked);
    }

    /// True if a certificate is revoked.
    pub fn lists(&self, serial: &str) -> bool {
        self.0.values().any(|revoked| revoked.lists(serial))
    }

    /// True if an operator has revoked a certificate of this public key because the key is compromised.
    pub fn compromised(&self, public_key: &[u8]) -> bool {
        !self.0.is_empty() && self.compromised_digest(&csr::key_digest(public_key))
    }

    /// [`Self::compromised`], of a key's digest.
    pub(super) fn compromised_digest(&self, key: &str) -> bool {
        self.0.values().any(|revoked| revoked.compromised(key))
    }
}
