//! The annotation `renew` of the pod, as kubelet projects it into a file: a new value asks for new certificates at once.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use etcd_tls_contract::{
    names,
    renew::{Renew, read_restart},
    role::Role,
};

use crate::os::directory_watch::DirectoryWatch;

/// The bytes of a value that count; a pod's annotations may have 256 KiB.
const MAX_VALUE: u64 = 4096;

/// The file with the annotation's value.
#[derive(Debug)]
pub struct RenewFile {
    path: PathBuf,
    watch: Option<DirectoryWatch>,
}

impl RenewFile {
    /// In the projected volume of the token. A pod that an older version injected into has no such file: then nothing is asked.
    pub fn new(token_dir: &Path) -> Self {
        let watch = DirectoryWatch::new(token_dir)
            .inspect_err(|error| {
                tracing::warn!(%error, "the directory of the token cannot be watched; the annotation renew is read every minute");
            })
            .ok();
        Self { path: token_dir.join(names::RENEW_FILE), watch }
    }

    /// Wakes who waits for a change of it.
    pub const fn watch(&self) -> Option<&DirectoryWatch> {
        self.watch.as_ref()
    }

    /// The value; empty without the annotation, `None` where the file cannot be read.
    pub fn value(&self) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(&self.path).ok()?.take(MAX_VALUE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The request that a value of the annotation `renew` makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenewalRequest {
    /// New certificates of these roles.
    pub roles: BTreeSet<Role>,
    /// A restart of etcd, by this id.
    pub restart: Option<String>,
}

/// The values of the annotation seen so far. Each value makes one request.
#[derive(Debug, Default)]
pub struct SeenValues {
    /// The last value that was not empty; `None` until the file was read.
    last: Option<String>,
}

impl SeenValues {
    /// For which of `roles` `value` asks, or whether for a restart of etcd. The value that a process finds at its start asks for nothing, nor does an
    /// annotation that is removed.
    pub fn asks(&mut self, value: Option<String>, roles: &BTreeSet<Role>) -> RenewalRequest {
        let Some(value) = value else { return RenewalRequest::default() };
        match &self.last {
            Some(last) if *last == value || value.is_empty() => RenewalRequest::default(),
            None => {
                self.last = Some(value);
                RenewalRequest::default()
            }
            Some(_) => {
                let restart = read_restart(&value).map(str::to_owned);
                let renew = Renew::read(&value);
                self.last = Some(value);
                let named = |role: &Role| restart.is_none() && renew.names(*role);
                RenewalRequest { roles: roles.iter().copied().filter(named).collect(), restart }
            }
        }
    }
}

/// The request of the annotation for a role's certificate. It is pending until a request that began after that has ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingRenewal {
    waits: bool,
    under_way: bool,
}

impl PendingRenewal {
    /// A new value asks for it.
    pub const fn ask(&mut self) {
        self.waits = true;
    }

    /// True if a request is due for it.
    pub const fn is_due(self) -> bool {
        self.waits
    }

    /// A request begins.
    pub const fn begin(&mut self) {
        (self.waits, self.under_way) = (false, self.waits);
    }

    /// The request has ended; where it came to nothing, another one is due.
    pub const fn end(&mut self, well: bool) {
        (self.waits, self.under_way) = (self.waits || self.under_way && !well, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_value_asks_once() {
        let roles = BTreeSet::from([Role::Peer, Role::Server]);
        let mut seen = SeenValues::default();
        for (value, expected) in [
            (None, &[][..]),
            (Some("at the start"), &[]),
            (Some("at the start"), &[]),
            (Some("1"), &[Role::Peer, Role::Server]),
            (Some("1"), &[]),
            (None, &[]),
            (Some(""), &[]),
            (Some("1"), &[]),
            (Some("peer:2"), &[Role::Peer]),
            (Some("client:3"), &[]),
            (Some("peer:2"), &[Role::Peer]),
        ] {
            let asked = seen.asks(value.map(str::to_owned), &roles);
            let expected = RenewalRequest { roles: expected.iter().copied().collect(), restart: None };
            assert_eq!(asked, expected, "{value:?}");
        }
        let restart = RenewalRequest { restart: Some("4f".to_owned()), ..RenewalRequest::default() };
        assert_eq!(seen.asks(Some("restart:4f".to_owned()), &roles), restart, "and no certificate");
        assert_eq!(seen.asks(Some("restart:4f".to_owned()), &roles), RenewalRequest::default());
        let mut seen = SeenValues::default();
        assert_eq!(seen.asks(Some(String::new()), &roles), RenewalRequest::default(), "no annotation at the start");
        assert_eq!(seen.asks(Some("1".to_owned()), &roles).roles, roles);
        let mut seen = SeenValues::default();
        assert_eq!(
            seen.asks(Some("restart:4f".to_owned()), &roles),
            RenewalRequest::default(),
            "it was there at the start"
        );
    }

    #[test]
    fn a_request_that_fails_or_began_before_is_made_again() {
        let mut asked = PendingRenewal::default();
        asked.ask();
        asked.begin();
        assert!(!asked.is_due());
        asked.end(false);
        assert!(asked.is_due(), "it failed");
        asked.begin();
        asked.ask();
        asked.end(true);
        assert!(asked.is_due(), "it was asked for while a request was under way");
        asked.begin();
        asked.end(true);
        assert!(!asked.is_due());
        asked.begin();
        asked.end(false);
        assert!(!asked.is_due(), "another reason's request failed");
    }
}
