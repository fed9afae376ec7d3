//! The port to the API server: make a CertificateSigningRequest, look at it; watch the trust ConfigMap.

use std::{future::Future, time::Duration};

use self::objects::CertificateSigningRequest;

pub mod cert_manager;
pub mod http;
pub mod kubeconfig;
pub mod objects;
pub mod pod;
pub mod watch;

/// The two calls of a requester. One value serves one request of one role.
pub trait Api {
    /// Makes ready for a call, so that the call takes no longer than its answer.
    ///
    /// # Errors
    /// See [`ApiError`].
    fn connect(&mut self) -> impl Future<Output = Result<(), ApiError>> {
        std::future::ready(Ok(()))
    }

    /// POST.
    ///
    /// # Errors
    /// See [`ApiError`].
    fn create(
        &mut self,
        request: &CertificateSigningRequest,
    ) -> impl Future<Output = Result<CertificateSigningRequest, ApiError>>;

    /// GET by name.
    ///
    /// # Errors
    /// See [`ApiError`].
    fn get(
        &mut self,
        name: &str,
        version: Version,
    ) -> impl Future<Output = Result<CertificateSigningRequest, ApiError>>;

    /// No request follows for some time: idle connections may be closed.
    fn rest(&mut self) {}
}

/// How new an answer must be; the API server's own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// As it is stored now. It costs the API server a question to its etcd.
    MostRecent,
    /// As the API server has it at hand (`resourceVersion=0`): an earlier state perhaps, or the absence of what was made a
    /// moment ago.
    Any,
}

/// Why a call gave no object, by whose fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The API server's answer.
    #[error("the API server answers {code}: {message}")]
    Status {
        /// The HTTP status.
        code: u16,
        /// Its message; a few hundred characters at most.
        message: String,
        /// Retry-After, where it says so.
        retry_after: Option<Duration>,
    },
    /// The answer is not from an API server, or cut: a proxy's page, a partial body.
    #[error("the answer from {address} is not from an API server: {message}")]
    Malformed {
        /// The address that was called.
        address: String,
        /// The fault.
        message: String,
    },
    /// No answer.
    #[error("the API server at {address} cannot be reached: {message}")]
    Unreachable {
        /// The address that was called.
        address: String,
        /// Why not.
        message: String,
    },
    /// We do not know where or with what to ask: no token, no CA.
    #[error("{0}")]
    Access(String),
}

impl ApiError {
    /// The HTTP status, if there was one.
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            Self::Malformed { .. } | Self::Unreachable { .. } | Self::Access(_) => None,
        }
    }

    /// When the API server asks to be left alone until.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Malformed { .. } | Self::Unreachable { .. } | Self::Access(_) => None,
        }
    }
}
