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
    /// `csr:<signerName>` of another project.
    Foreign(String),
    /// `cert-manager:<Kind>/<name>[.<group>]`: by a CertificateRequest of cert-manager.
    CertManager(IssuerRef),
    /// `pod-certificate`: our signer of the pod's own cluster, asked by kubelet (KEP-4317).
    PodCertificate,
}

/// The API group of cert-manager's own issuers.
const CERT_MANAGER: &str = "cert-manager.io";

/// A reference to an issuer, as in `spec.issuerRef` of a CertificateRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerRef {
    /// The kind: `Issuer`, `ClusterIssuer`, or that of an external issuer.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The API group.
    pub group: String,
}

impl IssuerRef {
    /// The group of cert-manager's own issuers is the default of `group`.
    pub fn new(kind: &str, name: &str, group: Option<&str>) -> Self {
        let group = group.unwrap_or(CERT_MANAGER);
        Self { kind: kind.to_owned(), name: name.to_owned(), group: group.to_owned() }
    }

    /// A name begins a group at its first dot, if that is a domain of two labels or more.
    fn parse(kind: &str, rest: &str) -> Option<Self> {
        let (name, group) = match rest.split_once('.') {
            Some((name, group)) if group.contains('.') => (name, Some(group)),
            _ => (rest, None),
        };
        let fine = is_kind(kind)
            && names::is_dns_subdomain(name)
            && group.is_none_or(names::is_dns_subdomain)
            && (group.is_some() || matches!(kind, "Issuer" | "ClusterIssuer"));
        fine.then(|| Self::new(kind, name, group))
    }

    /// The issuer as cert-manager names signers, for a request from `namespace`:
    /// `<resource>.<group>/[<namespace>.]<name>`. A kind with `Cluster` in its name is of no namespace.
    pub fn signer_name(&self, namespace: &str) -> String {
        let Self { kind, name, group } = self;
        let resource = kind.to_ascii_lowercase();
        if resource.contains("cluster") {
            format!("{resource}s.{group}/{name}")
        } else {
            format!("{resource}s.{group}/{namespace}.{name}")
        }
    }
}

fn is_kind(kind: &str) -> bool {
    kind.len() <= 63
        && kind.starts_with(|c: char| c.is_ascii_uppercase())
        && kind.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl FromStr for Issuer {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let bad = || {
            format!(
                "{} is not an issuer: csr, csr:<signerName>, pod-certificate, cert-manager:<Issuer|ClusterIssuer>/<name>, or \
                 cert-manager:<Kind>/<name>.<group> for an external issuer",
                quoted(s)
            )
        };
        if s == "csr" {
            return Ok(Self::Csr);
        }
        if s == "pod-certificate" {
            return Ok(Self::PodCertificate);
        }
        if let Some(signer) = s.strip_prefix("csr:") {
            return match signer.parse::<SignerName>() {
                Ok(name) => Ok(Self::Ours(name)),
                Err(e @ SignerNameError::Malformed(_)) => Err(e.to_string().into()),
                Err(SignerNameError::Foreign(_)) => foreign(signer).ok_or_else(|| bad().into()),
            };
        }
        let (kind, name) = s.strip_prefix("cert-manager:").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        IssuerRef::parse(kind, name).map(Self::CertManager).ok_or_else(|| bad().into())
    }
}

/// kube-controller-manager's signer of client certificates: of its signers the only one that signs for a pod.
pub(super) const KUBE_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// The signer of another project. Those of `kubernetes.io` sign nothing for pods but [`KUBE_CLIENT`].
fn foreign(signer: &str) -> Option<Issuer> {
    let fine = is_signer_name(signer) && (signer == KUBE_CLIENT || !signer.starts_with("kubernetes.io/"));
    fine.then(|| Issuer::Foreign(signer.to_owned()))
}

/// True if Kubernetes takes it for a signer's name: a domain of two labels or more, a slash, a path of DNS subdomains.
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
            Self::PodCertificate => f.write_str("pod-certificate"),
            Self::Ours(signer) => write!(f, "csr:{signer}"),
            Self::Foreign(signer) => write!(f, "csr:{signer}"),
            Self::CertManager(IssuerRef { kind, name, group }) if group == CERT_MANAGER => {
                write!(f, "cert-manager:{kind}/{name}")
            }
            Self::CertManager(IssuerRef { kind, name, group }) => write!(f, "cert-manager:{kind}/{name}.{group}"),
        }
    }
}
