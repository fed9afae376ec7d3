//! The purpose of a certificate and the authority that signs it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The purpose for which an etcd pod uses a certificate. Each role has a directory, a key and a certificate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `--peer-cert-file`: both ends of a connection between members.
    Peer,
    /// `--cert-file`: the client port. etcd's gRPC gateway presents it as a client, too.
    Server,
    /// A client of etcd; etcd's auth takes its CN for the user.
    Client,
    /// A reader of etcd's metrics port.
    Metrics,
}

/// A certificate authority's field of trust. Peers are apart from clients, so that a client's certificate opens no
/// peer port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// Signs [`Role::Peer`].
    Peer,
    /// Signs [`Role::Server`] and [`Role::Client`].
    Client,
    /// Signs [`Role::Metrics`]; by default the same authority as [`Domain::Client`], since etcd's metrics port takes
    /// the client CA.
    Metrics,
}

impl Role {
    /// Every role, in the order in which they are written, listed and requested.
    pub const ALL: [Self; 4] = [Self::Peer, Self::Server, Self::Client, Self::Metrics];

    /// The role's word in annotations, file paths and CSR names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Server => "server",
            Self::Client => "client",
            Self::Metrics => "metrics",
        }
    }

    /// The authority domain that signs this role's certificates.
    pub const fn domain(self) -> Domain {
        match self {
            Self::Peer => Domain::Peer,
            Self::Server | Self::Client => Domain::Client,
            Self::Metrics => Domain::Metrics,
        }
    }

    /// The subject's organization (O), fixed by the contract.
    pub const fn organization(self) -> &'static str {
        match self {
            Self::Peer => "system:etcd-peers",
            Self::Server => "system:etcd-servers",
            Self::Client => "system:etcd-clients",
            Self::Metrics => "system:etcd-metrics",
        }
    }

    /// The prefix of the pod's name in a CN: `system:etcd-peer:` and so on. A client's CN is its user, bare.
    pub const fn common_name_prefix(self) -> &'static str {
        match self {
            Self::Peer => "system:etcd-peer:",
            Self::Server => "system:etcd-server:",
            Self::Client => "",
            Self::Metrics => "system:etcd-metrics:",
        }
    }
}

impl Domain {
    /// Every domain.
    pub const ALL: [Self; 3] = [Self::Peer, Self::Client, Self::Metrics];
    /// Those that have a revocation list. Metrics have their CA with the clients, or are not asked for their certificate.
    pub const WITH_LISTS: [Self; 2] = [Self::Peer, Self::Client];

    /// The domain's word: the first label of its signer name, and its key in the trust ConfigMap (`peer.crt`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
            Self::Metrics => "metrics",
        }
    }

    /// The key of this domain's bundle in the trust ConfigMap.
    pub const fn trust_key(self) -> &'static str {
        match self {
            Self::Peer => "peer.crt",
            Self::Client => "client.crt",
            Self::Metrics => "metrics.crt",
        }
    }

    /// The key of this domain's revocation list in the trust ConfigMap. Metrics have none: etcd's metrics port reads the
    /// clients'.
    pub const fn crl_key(self) -> Option<&'static str> {
        match self {
            Self::Peer => Some("peer.crl"),
            Self::Client => Some("client.crl"),
            Self::Metrics => None,
        }
    }
}

/// A word that names neither a role nor a domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is none of {expected}")]
pub struct UnknownWord {
    word: String,
    expected: &'static str,
}

impl FromStr for Role {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| UnknownWord { word: s.to_owned(), expected: "peer, server, client, metrics" })
    }
}

impl FromStr for Domain {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|d| d.as_str() == s)
            .ok_or_else(|| UnknownWord { word: s.to_owned(), expected: "peer, client, metrics" })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
