//! The published CAs of which the signer reports nothing: the cluster's own, or another cluster's. Pure.

use etcd_tls_contract::{
    certificate::Bundle,
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;

use super::Report;
use crate::error::{Error, NotSeen};

/// The CAs of a trust ConfigMap of which there is no report, nor one of another CA with the same bundle: by policy, that one signs.
pub(super) fn unreported(object: &ConfigMap, reports: &[(Domain, Report)]) -> Vec<Domain> {
    let bundle = |domain: Domain| object.data.as_ref()?.get(domain.trust_key());
    let is_told = |domain: Domain| reports.iter().any(|(of, _)| *of == domain || bundle(*of) == bundle(domain));
    Domain::ALL.into_iter().filter(|domain| bundle(*domain).is_some() && !is_told(*domain)).collect()
}

/// True if a CA that is published for `domain` has the name of one that the signer made for `cluster`:
/// `etcd-tls <domain> <random> <namespace>.<cluster>`, 64 characters at most. Another cluster's or the user's has none such.
pub(super) fn is_own(object: &ConfigMap, cluster: &ClusterName, domain: Domain) -> bool {
    let Some(pem) = object.data.as_ref().and_then(|data| data.get(domain.trust_key())) else { return false };
    // Nothing is known of a bundle that cannot be read.
    let Ok(bundle) = Bundle::parse(pem.as_bytes()) else { return true };
    let whole = format!("{}.{}", cluster.namespace, cluster.name);
    bundle.subjects().iter().any(|subject| {
        // The name ends the subject.
        let text = String::from_utf8_lossy(subject);
        let Some(at) = text.rfind("etcd-tls ") else { return false };
        let of = text[at..].rsplit(' ').next().unwrap_or_default();
        of == whole || (text.len() - at == 64 && whole.starts_with(of))
    })
}

/// Of CAs that may not be the cluster's: the step may be done all the same.
pub(super) fn left_out(cluster: &ClusterName, of_others: &[Domain]) -> String {
    format!(
        "{cluster} {}: left out, as the signer says nothing of this CA. By policy it is another cluster's, and its rollover is that of the \
         other cluster; or it is one that you gave, and the signer has not reported yet",
        list(of_others)
    )
}

/// # Errors
/// There is a CA of the cluster of which the signer says nothing.
pub(super) fn not_seen(cluster: &ClusterName, silent: &[Domain]) -> Result<(), Error> {
    if silent.is_empty() {
        return Ok(());
    }
    Err(NotSeen(format!(
        "{cluster} {}: left out, as the signer says nothing of this CA. It has not reported yet, or cannot: see the log of deployment \
         etcd-tls-sign in {}",
        list(silent),
        names::SYSTEM_NAMESPACE
    ))
    .into())
}

fn list(domains: &[Domain]) -> String {
    domains.iter().map(|domain| domain.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_ca_without_a_report_is_named() {
        let object = |metrics: &str| ConfigMap {
            data: Some(
                [("peer", "P"), ("client", "C"), ("metrics", metrics)]
                    .map(|(domain, pem)| (domain.parse::<Domain>().unwrap().trust_key().to_owned(), pem.to_owned()))
                    .into(),
            ),
            ..ConfigMap::default()
        };
        let of = |metrics: &str, domains: &[Domain]| {
            let reports: Vec<_> = domains.iter().map(|domain| (*domain, Report::new(None, &[], None))).collect();
            unreported(&object(metrics), &reports)
        };
        let (peer, client, metrics) = (Domain::Peer, Domain::Client, Domain::Metrics);
        assert_eq!(of("C", &[client]), [peer]);
        assert_eq!(of("C", &[peer, client]), [], "the CA for clients is that of metrics");
        assert_eq!(of("M", &[peer, client]), [metrics], "a CA of its own");
        assert_eq!(of("M", &Domain::ALL), []);
        assert_eq!(unreported(&ConfigMap::default(), &[]), []);
        let cluster: ClusterName = "prod/etcd".parse().unwrap();
        assert!(not_seen(&cluster, &[]).is_ok());
        let error = not_seen(&cluster, &[peer]).unwrap_err();
        assert!(error.downcast_ref::<NotSeen>().is_some() && error.to_string().starts_with("prod/etcd peer: "));
    }
}
