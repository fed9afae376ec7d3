//! The bundle that etcd has loaded, as a request states it: the annotation [`crate::names::TRUSTS_ANNOTATION`].
//!
//! Either the bundle's digest, or `unknown:<reason>`. Unknown is never counted as loaded.

use std::{fmt, str::FromStr};

/// The longest value, in bytes; the admission policy for requests takes no longer one.
pub const MAX_TRUSTS: usize = 64;
const UNKNOWN: &str = "unknown:";

/// The sidecar's statement of the trust bundle that etcd has loaded: a value of the annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustStatement {
    /// Digest of the bundle that etcd was seen to have loaded.
    Loaded(String),
    /// It is not known which bundle etcd has loaded.
    Unknown(Unknown),
}

/// Why it is not known which bundle etcd has loaded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    /// The sidecar does not know where etcd listens.
    Listeners,
    /// etcd's port is plain http.
    PlainText,
    /// etcd's port cannot be dialled, or speaks no TLS.
    Unreachable,
    /// etcd started after the bundle was written, and trusts other CAs: it reads another file.
    OtherFile,
    /// The sidecar's own directory cannot be read or written.
    Files,
    /// kubelet requests the certificates, and its request cannot state what etcd has loaded.
    Kubelet,
    /// A reason of another version: at most 48 of `a-z`, `0-9` and `-`.
    Other(String),
}

impl Unknown {
    /// Every reason of this version.
    pub const ALL: [Self; 6] =
        [Self::Listeners, Self::PlainText, Self::Unreachable, Self::OtherFile, Self::Files, Self::Kubelet];

    /// The reason's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Listeners => "listeners",
            Self::PlainText => "plain-text",
            Self::Unreachable => "unreachable",
            Self::OtherFile => "other-file",
            Self::Files => "files",
            Self::Kubelet => "kubelet",
            Self::Other(word) => word,
        }
    }

    /// Its meaning and the next step, for an operator.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Listeners => {
                "the sidecar does not know where etcd listens; set the annotations etcd-tls.dev/client-url and \
                 etcd-tls.dev/peer-url"
            }
            Self::PlainText => "etcd listens with http://; change its URLs to https://",
            Self::Unreachable => {
                "etcd's port cannot be dialled; look at etcd, and at the annotations etcd-tls.dev/client-url and \
                 etcd-tls.dev/peer-url"
            }
            Self::OtherFile => "etcd trusts other CAs than those of its ca.crt; look at its --trusted-ca-file flags",
            Self::Files => "the sidecar cannot read or write its directory; see its log",
            Self::Kubelet => {
                "kubelet's requests state no bundle (issuer pod-certificate); when `etcd-tls-webhook status` shows the trust of each such \
                 pod as loaded, --force the rollover"
            }
            Self::Other(_) => "see the sidecar's log",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        let known = Self::ALL.into_iter().find(|reason| reason.as_str() == word);
        let fits = (1..=48).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        known.or_else(|| fits.then(|| Self::Other(word.to_owned())))
    }
}

/// The value is neither a digest nor `unknown:<reason>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a bundle's digest nor unknown:<reason>")]
pub struct InvalidTrustStatement;

impl FromStr for TrustStatement {
    type Err = InvalidTrustStatement;

    fn from_str(s: &str) -> Result<Self, InvalidTrustStatement> {
        if s.len() > MAX_TRUSTS {
            return Err(InvalidTrustStatement);
        }
        match s.strip_prefix(UNKNOWN) {
            Some(word) => Unknown::of_word(word).map(Self::Unknown).ok_or(InvalidTrustStatement),
            None if s.len() == 32 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) => {
                Ok(Self::Loaded(s.to_owned()))
            }
            None => Err(InvalidTrustStatement),
        }
    }
}

impl fmt::Display for TrustStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded(digest) => f.write_str(digest),
            Self::Unknown(reason) => write!(f, "{UNKNOWN}{}", reason.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back_and_bounded() {
        let digest = "0123456789abcdef0123456789abcdef";
        let mut values = vec![TrustStatement::Loaded(digest.to_owned())];
        values.extend(Unknown::ALL.map(TrustStatement::Unknown));
        values.push(TrustStatement::Unknown(Unknown::Other("a-reason-of-a-later-version".to_owned())));
        for value in values {
            let text = value.to_string();
            assert!(text.len() <= MAX_TRUSTS, "{text}");
            assert_eq!(text.parse(), Ok(value));
        }
        for bad in
            ["", "unknown", "unknown:", "unknown:A", "unknown:a b", "digest", &digest[1..], &"unknown:".repeat(9)]
        {
            assert_eq!(bad.parse::<TrustStatement>(), Err(InvalidTrustStatement), "{bad}");
        }
    }
}
