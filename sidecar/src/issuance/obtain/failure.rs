//! The failures of a request.

use std::time::Duration;

use crate::store::StoreError;

/// Why there is no new certificate. Each variant calls for another action.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The approver's verdict.
    #[error("request {name} was denied: {reason}")]
    Denied {
        /// The CSR.
        name: String,
        /// The approver's words.
        reason: String,
    },
    /// The signer's verdict.
    #[error("request {name} failed: the signer says {reason}")]
    Failed {
        /// The CSR.
        name: String,
        /// The signer's words.
        reason: String,
    },
    /// The issuer's verdict on the request itself.
    #[error(
        "request {name} is invalid: the issuer says {reason}; change what is asked for (roles, duration, key, extra-sans)"
    )]
    Invalid {
        /// The request.
        name: String,
        /// The issuer's words.
        reason: String,
    },
    /// Gone before it was signed.
    #[error("request {name} was deleted before it was signed; look at who deletes CertificateSigningRequests")]
    Deleted {
        /// The CSR.
        name: String,
    },
    /// Taken by somebody else.
    #[error("request {name} is not ours any more: {reason}; look at who may create CertificateSigningRequests")]
    Replaced {
        /// The CSR.
        name: String,
        /// How that was seen.
        reason: String,
    },
    /// Signed, but not such that a peer would take it.
    #[error("the certificate of request {name} is not installed: {reason}")]
    Rejected {
        /// The CSR.
        name: String,
        /// The reason why a peer would refuse it.
        reason: String,
    },
    /// Nothing within the time given.
    #[error("no certificate within {after:?}; request {name}: {last}")]
    Timeout {
        /// The CSR.
        name: String,
        /// The time given.
        after: Duration,
        /// The last observed state.
        last: String,
    },
    /// The directory cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No key or request could be made.
    #[error("no request can be made: {0}")]
    Key(String),
}

impl Failure {
    /// One word, for a metric.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "denied",
            Self::Failed { .. } => "failed",
            Self::Invalid { .. } => "invalid",
            Self::Deleted { .. } => "deleted",
            Self::Replaced { .. } => "replaced",
            Self::Rejected { .. } => "rejected",
            Self::Timeout { .. } => "timeout",
            Self::Store(_) => "store",
            Self::Key(_) => "key",
        }
    }

    /// True if it was somebody's verdict: asking again soon would meet the same.
    pub const fn is_verdict(&self) -> bool {
        matches!(
            self,
            Self::Denied { .. }
                | Self::Failed { .. }
                | Self::Invalid { .. }
                | Self::Replaced { .. }
                | Self::Rejected { .. }
        )
    }
}
