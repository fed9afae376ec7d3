//! Keys: `…/key` and `…/key-rotation`.

use std::{fmt, str::FromStr};

use crate::{invalid_value::InvalidValue, text::quoted};

/// A key's algorithm and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum KeyAlgorithm {
    /// `ecdsa-p256`, the default.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// `ecdsa-p384`.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// `ed25519`.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// `rsa-2048`: only where policy lists it.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// `rsa-3072`.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// `rsa-4096`.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

/// When a new key is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRotation {
    /// `always`: for each certificate.
    Always,
    /// `on-ca-change`: the key is kept until the trust bundle changes, so no handshake sees half a pair.
    OnCaChange,
}

impl KeyAlgorithm {
    /// Every algorithm, weakest last.
    pub const ALL: [Self; 6] =
        [Self::EcdsaP256, Self::EcdsaP384, Self::Ed25519, Self::Rsa4096, Self::Rsa3072, Self::Rsa2048];

    /// The name in annotations and in the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Ed25519 => "ed25519",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }
}

impl FromStr for KeyAlgorithm {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        Self::ALL.into_iter().find(|key| key.as_str() == s).ok_or_else(|| {
            format!("{} is not a key: ecdsa-p256, ecdsa-p384, ed25519, rsa-3072, rsa-4096, or where policy lists it rsa-2048", quoted(s)).into()
        })
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyRotation {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        match s {
            "always" => Ok(Self::Always),
            "on-ca-change" => Ok(Self::OnCaChange),
            _ => Err(format!("{} is neither always nor on-ca-change", quoted(s)).into()),
        }
    }
}

impl fmt::Display for KeyRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::OnCaChange => "on-ca-change",
        })
    }
}
