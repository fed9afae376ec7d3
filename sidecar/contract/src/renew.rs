//! The value of the annotation `renew`: each new value asks for new certificates, of all roles or of those that it names, or for
//! a restart of etcd.

use std::{collections::BTreeSet, fmt};

use crate::role::Role;

/// The separator between the roles and the rest of a value.
const SEPARATOR: char = ':';
/// The value in place of the roles that ends etcd's connections.
const RESTART: &str = "restart";

/// The value that asks for a restart of etcd, one member at a time, so that all connections end, and for no certificate.
pub fn restart(id: &str) -> String {
    format!("{RESTART}{SEPARATOR}{id}")
}

/// The id of a value that [`restart`] made: letters, digits and hyphens, at most 64.
pub fn read_restart(value: &str) -> Option<&str> {
    let id = value.strip_prefix(RESTART)?.strip_prefix(SEPARATOR)?;
    let good = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    good.then_some(id)
}

/// A value of the annotation: `<anything>`, or `<role>[,<role>…]:<anything>` for these roles alone. Any text is one, so that
/// `kubectl annotate pod etcd-0 etcd-tls.dev/renew="$(date)" --overwrite` renews all roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renew {
    /// The roles that are named; empty: all roles of the pod.
    pub roles: BTreeSet<Role>,
    /// The part that makes each value unique.
    pub id: String,
}

impl Renew {
    /// Reads a value; every text is one.
    pub fn read(value: &str) -> Self {
        let named = value.split_once(SEPARATOR).and_then(|(words, id)| {
            let roles: Result<BTreeSet<Role>, _> = words.split(',').map(|word| word.trim().parse::<Role>()).collect();
            Some(Self { roles: roles.ok()?, id: id.to_owned() })
        });
        named.unwrap_or_else(|| Self { roles: BTreeSet::new(), id: value.to_owned() })
    }

    /// True if `role` is renewed.
    pub fn names(&self, role: Role) -> bool {
        self.roles.is_empty() || self.roles.contains(&role)
    }
}

impl fmt::Display for Renew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, role) in self.roles.iter().enumerate() {
            write!(f, "{}{role}", if n == 0 { "" } else { "," })?;
        }
        if self.roles.is_empty() { f.write_str(&self.id) } else { write!(f, "{SEPARATOR}{}", self.id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_read_back_and_near_misses_are_not() {
        assert_eq!(read_restart(&restart("4f-0A")), Some("4f-0A"));
        for other in ["restart", "restart:", "restart:a b", "restarts:1", "peer:1", &restart(&"x".repeat(65))] {
            assert_eq!(read_restart(other), None, "{other}");
        }
    }

    #[test]
    fn a_value_names_roles_or_means_all() {
        for (value, roles) in [
            ("2026-11-28T08:41:32Z", &[][..]),
            ("now", &[]),
            ("peer", &[]),
            ("peer:1", &[Role::Peer]),
            ("peer, server:a:b", &[Role::Peer, Role::Server]),
            ("peer,other:1", &[]),
            (":1", &[]),
            ("", &[]),
        ] {
            let read = Renew::read(value);
            assert_eq!(read.roles, roles.iter().copied().collect(), "{value}");
            let named: Vec<Role> = Role::ALL.into_iter().filter(|role| read.names(*role)).collect();
            assert_eq!(named, if roles.is_empty() { Role::ALL.to_vec() } else { roles.to_vec() }, "{value}");
            assert_eq!(Renew::read(&read.to_string()), read, "{value}");
        }
    }
}
