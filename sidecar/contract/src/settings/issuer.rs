//! The issuer: `…/issuer`.

use std::{fmt, str::FromStr};

use crate::{
    invalid_value::InvalidValue,
    names::{self, SignerName, SignerNameError},
    text::quoted,
};

/// The issuer of a pod's certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// `csr`: our signer of the pod's own cluster.
    Csr,
    /// `csr:<signerName>` under our domain: a cluster elsewhere, where policy allows it.
    Ours(SignerName),
    /// `csr:<signerName>` of another project, which also approves and signs.
    Foreign(String),
    /// `cert-manager:<Kind>/<name>`: Issuer or ClusterIssuer, by way of cert-manager's CSR signers.
    CertManager {
        /// Whether the kind is ClusterIssuer.
        cluster_scoped: bool,
        /// The issuer's name.
        name: String,
    },
}

impl FromStr for Issuer {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let bad = || {
            format!(
                "{} is not an issuer: csr, csr:<signerName>, cert-manager:Issuer/<name> or cert-manager:ClusterIssuer/<name>",
                quoted(s)
            )
        };
        if s == "csr" {
            return Ok(Self::Csr);
        }
        if s == "pod-certificate" {
            return Err("pod-certificate is not supported by this version; write csr, csr:<signerName> or \
                        cert-manager:<Kind>/<name>"
                .into());
        }
        if let Some(signer) = s.strip_prefix("csr:") {
            return match signer.parse::<SignerName>() {
                Ok(name) => Ok(Self::Ours(name)),
                Err(e @ SignerNameError::Malformed(_)) => Err(e.to_string().into()),
                Err(SignerNameError::Foreign(_)) => foreign(signer).ok_or_else(|| bad().into()),
            };
        }
        let (kind, name) = s.strip_prefix("cert-manager:").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        let cluster_scoped = match kind {
            "Issuer" => false,
            "ClusterIssuer" => true,
            _ => return Err(bad().into()),
        };
        if !names::is_dns_subdomain(name) {
            return Err(bad().into());
        }
        Ok(Self::CertManager { cluster_scoped, name: name.to_owned() })
    }
}

/// The signer of another project. Those of `kubernetes.io` sign nothing for pods.
fn foreign(signer: &str) -> Option<Issuer> {
    let fine = is_signer_name(signer) && !signer.starts_with("kubernetes.io/");
    fine.then(|| Issuer::Foreign(signer.to_owned()))
}

/// Whether Kubernetes takes it for a signer's name: a domain of two labels or more, a slash, a path of DNS subdomains.
pub(super) fn is_signer_name(signer: &str) -> bool {
    signer.len() <= 571
        && signer.split_once('/').is_some_and(|(domain, path)| {
            domain.contains('.') && names::is_dns_subdomain(domain) && path.split('/').all(names::is_dns_subdomain)
        })
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Csr => f.write_str("csr"),
            Self::Ours(signer) => write!(f, "csr:{signer}"),
            Self::Foreign(signer) => write!(f, "csr:{signer}"),
            Self::CertManager { cluster_scoped: true, name } => write!(f, "cert-manager:ClusterIssuer/{name}"),
            Self::CertManager { cluster_scoped: false, name } => write!(f, "cert-manager:Issuer/{name}"),
        }
    }
}
