//! The two API versions of the resource.

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};

/// A version of the one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `v1`.
    V1,
    /// `v1beta1`, without a required signer name.
    V1beta1,
}

impl Version {
    /// The word in paths.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1beta1 => "v1beta1",
        }
    }

    /// `apiVersion` of its objects.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "certificates.k8s.io/v1",
            Self::V1beta1 => "certificates.k8s.io/v1beta1",
        }
    }

    /// The version of this word.
    pub fn of(word: &str) -> Option<Self> {
        [Self::V1, Self::V1beta1].into_iter().find(|v| v.as_str() == word)
    }

    /// The object in the words of this version.
    pub fn object(self, csr: &CertificateSigningRequest) -> Value {
        // Nothing in the type can fail to be JSON.
        let mut value = serde_json::to_value(csr).unwrap_or_default();
        if self == Self::V1beta1 {
            value["apiVersion"] = json!(self.api_version());
        }
        value
    }
}
