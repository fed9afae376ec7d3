//! The certificates that kubelet may get for a pod by a PodCertificateRequest (KEP-4317). It asks before the pod
//! has an address, for a key and for a longest life; all else follows from the live pod.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Addressee, BoundPod, Denial, PodFacts, ServiceFacts, Verdict, denial, deny,
    grammar::{entitlement, lacks_address},
    live,
};
use crate::{
    duration::format_duration, key::KeyAlgorithm, life::POD_CERTIFICATE_BACKDATE, names::SignerName, policy::Policy,
    role::Role, settings::Settings,
};

/// The shortest validity that kube-apiserver takes, from notBefore to notAfter.
pub const SHORTEST_POD_CERTIFICATE: Duration = Duration::from_secs(60 * 60);
/// The only key of `userAnnotations` that is known: the role, where the signer signs several of the pod's.
pub const ROLE_ANNOTATION: &str = "etcd-tls.dev/role";

/// The content of a PodCertificateRequest of ours.
#[derive(Clone, Debug)]
pub struct PodCertificateFacts<'a> {
    /// The signer, already recognised as ours.
    pub signer: &'a SignerName,
    /// The pod that it names.
    pub bound: &'a BoundPod,
    /// `spec.maxExpirationSeconds`.
    pub max_expiration: Duration,
    /// The algorithm of the key; `None`: it is none of ours.
    pub key: Option<KeyAlgorithm>,
    /// `spec.unverifiedUserAnnotations`.
    pub annotations: &'a BTreeMap<String, String>,
}

/// The verdict, from the live pod (`None`: there is none of that name) and the Services of its namespace. The lifetime of the
/// entitlement is counted from the issue, [`POD_CERTIFICATE_BACKDATE`] after notBefore.
pub fn judge_for_kubelet(
    asked: &PodCertificateFacts<'_>,
    pod: Option<&PodFacts>,
    services: &[ServiceFacts],
    policy: &Policy,
) -> Verdict {
    let bound = asked.bound;
    let Some(pod) = pod else {
        return deny("PodGone", format!("there is no pod {}/{}", bound.namespace, bound.pod));
    };
    let mut denials = live(bound, pod, "request");
    match asked.key {
        Some(key) if policy.keys.allow(key) => {}
        Some(key) => denials.push(unsupported(&format!("policy's keys do not hold {key}"), policy)),
        None => denials.push(unsupported("etcd-tls signs no key of this type", policy)),
    }
    let settings = match Settings::parse(&pod.annotations) {
        Ok(settings) => settings,
        Err(problems) => {
            denials.extend(problems.iter().map(|problem| denial("BadAnnotation", problem.to_string())));
            return Verdict::Deny(denials);
        }
    };
    let role = match role_of(asked, &settings) {
        Ok(role) => role,
        Err(wrong) => {
            denials.push(wrong);
            return Verdict::Deny(denials);
        }
    };
    let (named, services) = by_name(pod, services);
    let mut entitlement = match entitlement(role, &named, &services, &settings, policy, Addressee::Ours(asked.signer)) {
        Ok(entitlement) => entitlement,
        Err(more) => {
            denials.extend(more);
            return Verdict::Deny(denials);
        }
    };
    if let Some(reason) = lacks_address(role, pod).filter(|_| pod.host_network) {
        return if denials.is_empty() { Verdict::NotYet(reason) } else { Verdict::Deny(denials) };
    }
    if *asked.signer != entitlement.signer {
        let message = format!(
            "the signer is {}, but this {role} is of {}; name that one in the pod's volume",
            asked.signer, entitlement.signer
        );
        denials.push(denial("WrongSigner", message));
    }
    if asked.max_expiration < policy.lifetime.min {
        let (asked, min) = (format_duration(asked.max_expiration), format_duration(policy.lifetime.min));
        let message = format!(
            "a life of at most {asked} is asked for; policy allows no less than {min}: raise maxExpirationSeconds"
        );
        denials.push(denial("WrongLifetime", message));
    }
    entitlement.lifetime = entitlement.lifetime.min(asked.max_expiration.saturating_sub(POD_CERTIFICATE_BACKDATE));
    if is_too_short(entitlement.lifetime) {
        denials.push(denial(
            "LifetimeTooShort",
            format!(
                "the certificate would be valid for {}, and kube-apiserver takes none of less than an hour: raise the pod's \
                 maxExpirationSeconds, its annotation etcd-tls.dev/duration or policy's lifetime.max",
                format_duration(entitlement.lifetime + POD_CERTIFICATE_BACKDATE)
            ),
        ));
    }
    if denials.is_empty() { Verdict::Approve(entitlement) } else { Verdict::Deny(denials) }
}

/// The pod and its Services without addresses, but for those of the host's network: a pod has no other at that time.
fn by_name(pod: &PodFacts, services: &[ServiceFacts]) -> (PodFacts, Vec<ServiceFacts>) {
    let ips = if pod.host_network { pod.ips.clone() } else { Vec::new() };
    let services = services.iter().map(|service| ServiceFacts { cluster_ips: Vec::new(), ..service.clone() });
    (PodFacts { ips, ..pod.clone() }, services.collect())
}

/// True if a certificate that lives so long from its issue is shorter than kube-apiserver takes.
fn is_too_short(lifetime: Duration) -> bool {
    lifetime + POD_CERTIFICATE_BACKDATE < SHORTEST_POD_CERTIFICATE
}

/// The role: the one that the pod names to kubelet, else the pod's only one that the signer signs.
fn role_of(asked: &PodCertificateFacts<'_>, settings: &Settings) -> Result<Role, Denial> {
    let invalid = |message: String| denial("InvalidUnverifiedUserAnnotations", message);
    if let Some(unknown) = asked.annotations.keys().find(|key| *key != ROLE_ANNOTATION) {
        return Err(invalid(format!("{unknown} is not known: the only key of userAnnotations is {ROLE_ANNOTATION}")));
    }
    let domain = asked.signer.domain;
    let of_signer: Vec<Role> = settings.roles.iter().copied().filter(|role| role.domain() == domain).collect();
    if let Some(named) = asked.annotations.get(ROLE_ANNOTATION) {
        let role = named.parse::<Role>().map_err(|error| invalid(format!("{ROLE_ANNOTATION}: {error}")))?;
        if role.domain() != domain {
            return Err(invalid(format!("{ROLE_ANNOTATION}: {} does not sign the role {role}", asked.signer)));
        }
        return Ok(role);
    }
    match of_signer.as_slice() {
        [role] => Ok(*role),
        [] => Err(denial("WrongRole", format!("the pod's etcd-tls.dev/roles hold none that {} signs", asked.signer))),
        several => {
            let several = several.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" and ");
            Err(invalid(format!(
                "{} signs the pod's roles {several}: name one in userAnnotations of the volume, by {ROLE_ANNOTATION}",
                asked.signer
            )))
        }
    }
}

fn unsupported(what: &str, policy: &Policy) -> Denial {
    // kubelet's words for those that both have.
    let words = [
        (KeyAlgorithm::EcdsaP256, "ECDSAP256"),
        (KeyAlgorithm::EcdsaP384, "ECDSAP384"),
        (KeyAlgorithm::Ed25519, "ED25519"),
        (KeyAlgorithm::Rsa3072, "RSA3072"),
        (KeyAlgorithm::Rsa4096, "RSA4096"),
    ];
    let allowed: Vec<&str> = words.iter().filter(|(key, _)| policy.keys.allow(*key)).map(|(_, word)| *word).collect();
    denial("UnsupportedKeyType", format!("{what}; set keyType of the pod's volume to one of {}", allowed.join(", ")))
}
