//! The stored values: one role's verified files, and the set of all roles.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::{
    certificate::{Bundle, CertificateError, Chain},
    crl::Crl,
    csr::PrivateKey,
    role::{Domain, Role},
    san::Sans,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Facts that are not in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When the certificate was received, in seconds of the Unix epoch by this machine's clock: its life is counted from
    /// here, not from a backdated notBefore.
    pub received: u64,
    /// Digest of the trust bundle under which the key was made; `key-rotation: on-ca-change` keeps the key while it is
    /// the same.
    pub key_bundle: String,
    /// The request's [`names::TRUSTS_ANNOTATION`].
    #[serde(default)]
    pub trusts: Option<String>,
    /// Digest of the bundle in force of the role's domain, as the signer last stated it.
    #[serde(default)]
    pub in_force: Option<String>,
}

impl Record {
    /// [`Self::received`] as a time.
    pub fn received_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.received)
    }
}

/// One role's chain, key and bundle, proven to fit each other.
pub struct Entry {
    pub(super) chain: Chain,
    pub(super) chain_pem: String,
    pub(super) key_pem: Zeroizing<String>,
    pub(super) bundle: Bundle,
    pub(super) record: Record,
}

/// Every role's entry: the content of one generation.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// By role.
    pub roles: BTreeMap<Role, Arc<Entry>>,
    /// Revocation lists, verified; a domain without one gets [`etcd_tls_contract::crl::stand_in`].
    pub lists: BTreeMap<Domain, Arc<Crl>>,
}

impl Entry {
    /// Proves a certificate that was just signed: the chain verifies against `bundle` at `now` as the role's peers would
    /// do it, it is for `key`, and its names hold all of `asked`.
    ///
    /// # Errors
    /// The reason why a peer would refuse it.
    pub fn prove(
        role: Role,
        chain_pem: &str,
        key: &PrivateKey,
        bundle: &Bundle,
        asked: &Sans,
        record: Record,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        let chain = Chain::parse(chain_pem.as_bytes())?;
        chain.verify(role, bundle, &key.public_key(), asked, now)?;
        // Without the text before the first block.
        let chain_pem = chain.to_pem();
        Ok(Self { chain, chain_pem, key_pem: key.to_pem(), bundle: bundle.clone(), record })
    }

    /// The same certificate and key under another bundle, if it verifies there as well.
    ///
    /// # Errors
    /// The bundle lacks the certificate's CA.
    pub fn with_bundle(&self, role: Role, bundle: &Bundle, now: SystemTime) -> Result<Self, CertificateError> {
        // Whether the bundle holds the CA does not depend on the hour: a clock that was stepped refuses no bundle.
        let at = now.clamp(self.chain.not_before, self.chain.not_after);
        self.chain.verify(role, bundle, &self.chain.public_key, &Sans::default(), at)?;
        Ok(Self {
            chain: self.chain.clone(),
            chain_pem: self.chain_pem.clone(),
            key_pem: self.key_pem.clone(),
            bundle: bundle.clone(),
            record: self.record.clone(),
        })
    }

    /// The chain, leaf first.
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The chain's PEM text.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The key's PKCS#8 PEM text. For a TLS configuration; never for a log.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The bundle that the role's peers are verified against.
    pub const fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The facts that are not in the certificate.
    pub const fn record(&self) -> &Record {
        &self.record
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("serial", &self.chain.serial).field("bundle", &self.bundle.digest()).finish()
    }
}

impl Set {
    /// This set with `role`'s entry replaced.
    pub fn with(&self, role: Role, entry: Entry) -> Self {
        let mut roles = self.roles.clone();
        roles.insert(role, Arc::new(entry));
        Self { roles, lists: self.lists.clone() }
    }

    /// True if every one of `roles` is there.
    pub fn holds<'a>(&self, roles: impl IntoIterator<Item = &'a Role>) -> bool {
        roles.into_iter().all(|role| self.roles.contains_key(role))
    }
}
