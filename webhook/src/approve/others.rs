//! Whose requests are decided besides those to our own signers: none, unless arguments name the signer. Pure.
//!
//! The same rules of identity hold for all of them. Requests of others to a named signer are left to whoever approves them: only those
//! of our pods are decided, by the name that the admission policies give them.

use std::{collections::BTreeSet, str::FromStr};

use etcd_tls_contract::{names::SignerName, settings::Issuer};

use crate::controller::{case, facts::Csr};

/// The arguments.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct Others {
    /// Also approve or deny the pods' CertificateSigningRequests to this signer of another project. Can be repeated. `approve`
    /// needs the verb approve on this name of signers.certificates.k8s.io.
    #[arg(long = "approve-signer", value_name = "SIGNER", value_parser = signer)]
    signers: Vec<String>,
    /// Also approve or deny the pods' CertificateRequests to this issuer of cert-manager:
    /// issuers.cert-manager.io/NAMESPACE.NAME or clusterissuers.cert-manager.io/NAME. Can be repeated. `approve` needs the verb
    /// approve on this name of signers.cert-manager.io, and cert-manager's own approver must be off.
    #[arg(long = "approve-issuer", value_name = "ISSUER", value_parser = issuer)]
    issuers: Vec<String>,
}

impl Others {
    /// The issuers of cert-manager that are named.
    pub(super) fn issuers(&self) -> BTreeSet<&str> {
        self.issuers.iter().map(String::as_str).collect()
    }

    /// True if a request is one of our pods to a signer that is named.
    pub(super) fn concern(&self, csr: &Csr) -> bool {
        let named = if csr.spec.issuer.is_some() { &self.issuers } else { &self.signers };
        named.contains(&csr.spec.signer_name) && case::is_a_pods_to_another(csr)
    }
}

/// A signer as `csr:<signerName>` takes it, that is not ours.
fn signer(text: &str) -> Result<String, String> {
    match format!("csr:{text}").parse::<Issuer>() {
        Ok(Issuer::Foreign(signer)) => Ok(signer),
        Ok(_) => Err("is a signer of etcd-tls, whose requests are decided anyhow".to_owned()),
        Err(_) => Err("is no signer's name that pods can request from: <domain>/<path>".to_owned()),
    }
}

/// An issuer as cert-manager names signers.
fn issuer(text: &str) -> Result<String, String> {
    let fine = signer(text).is_ok() && SignerName::from_str(text).is_err() && !text.starts_with("kubernetes.io/");
    let (resource, name) = text.split_once('/').unwrap_or_default();
    let of_cluster = resource.split('.').next().unwrap_or_default().contains("cluster");
    if fine && !name.contains('/') && (of_cluster || name.contains('.')) {
        return Ok(text.to_owned());
    }
    Err("is no issuer: issuers.cert-manager.io/<namespace>.<name> or clusterissuers.cert-manager.io/<name>".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_of_others_are_taken() {
        for good in ["example.com/ca", "kubernetes.io/kube-apiserver-client", "issuers.cert-manager.io/prod.company"] {
            assert_eq!(signer(good), Ok(good.to_owned()));
        }
        for bad in
            ["", "ca", "example.com/*", "kubernetes.io/kubelet-serving", "peer.etcd-tls.dev/a.b", "etcd-tls.dev/a.b"]
        {
            assert!(signer(bad).is_err(), "{bad}");
        }
        for good in [
            "issuers.cert-manager.io/prod.company",
            "clusterissuers.cert-manager.io/company",
            "stepclusterissuers.certmanager.step.sm/ca",
            "stepissuers.certmanager.step.sm/prod.ca",
        ] {
            assert_eq!(issuer(good), Ok(good.to_owned()));
        }
        for bad in [
            "issuers.cert-manager.io/company",
            "issuers.cert-manager.io/*",
            "clusterissuers.cert-manager.io/*",
            "clusterissuers.cert-manager.io/a/b",
            "company",
            "kubernetes.io/kube-apiserver-client",
        ] {
            assert!(issuer(bad).is_err(), "{bad}");
        }
    }
}
