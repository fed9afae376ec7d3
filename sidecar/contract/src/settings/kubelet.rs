//! The settings that `issuer: pod-certificate` excludes: kubelet requests the certificates, and its request
//! (KEP-4317) has a key, a longest life and nothing else of a pod's choice.

use std::time::Duration;

use super::{Reload, Settings};
use crate::{
    duration::format_duration,
    key::{KeyAlgorithm, KeyRotation},
    life::POD_CERTIFICATE_BACKDATE,
};

/// The shortest life: kube-apiserver takes no shorter certificate.
const SHORTEST: Duration = Duration::from_secs(60 * 60);
/// The longest `maxExpirationSeconds` that kube-apiserver takes in a volume.
const LONGEST: Duration = Duration::from_secs(91 * 24 * 60 * 60);

/// The annotations, without their prefix, that cannot be with it: which, why, and what to write instead.
pub(super) fn obstacles(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut say = |key: &'static str, why: &str| found.push((key, format!("with issuer pod-certificate, {why}")));
    let Settings { extra_sans, user, key, key_rotation, duration, reload, .. } = settings;
    if !extra_sans.dns.is_empty() || !extra_sans.ips.is_empty() {
        say(
            "extra-sans",
            "kubelet can ask for no names, so the certificate holds the pod's own alone; remove it, or use the issuer csr",
        );
    }
    if user.is_some() {
        say("user", "kubelet can ask for no user name; remove it, or use the issuer csr");
    }
    if key_type(*key).is_none() {
        say(
            "key",
            &format!("kubelet makes no key of {key}; use ecdsa-p256, ecdsa-p384, ed25519, rsa-3072 or rsa-4096"),
        );
    }
    if *key_rotation == KeyRotation::OnCaChange {
        say("key-rotation", "kubelet makes a new key for each certificate; remove it");
    }
    if !(SHORTEST..=LONGEST).contains(duration) {
        say("duration", &format!("kube-apiserver takes 1h to {}", format_duration(LONGEST)));
    }
    if *reload == Reload::Probe {
        say(
            "reload",
            "probe needs a volume that the sidecar writes and etcd mounts, and etcd mounts kubelet's; use auto, none or signal:<SIG>",
        );
    }
    found
}

/// `keyType` of the volume's source; `None`: kubelet makes no such key.
pub const fn key_type(key: KeyAlgorithm) -> Option<&'static str> {
    Some(match key {
        KeyAlgorithm::EcdsaP256 => "ECDSAP256",
        KeyAlgorithm::EcdsaP384 => "ECDSAP384",
        KeyAlgorithm::Ed25519 => "ED25519",
        KeyAlgorithm::Rsa3072 => "RSA3072",
        KeyAlgorithm::Rsa4096 => "RSA4096",
        KeyAlgorithm::Rsa2048 => return None,
    })
}

/// `maxExpirationSeconds` of the volume's source for a life of `duration`: what is backdated comes on top.
pub fn max_expiration(duration: Duration) -> u64 {
    (duration + POD_CERTIFICATE_BACKDATE).min(LONGEST).as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn problems(annotations: &[(&str, &str)]) -> String {
        let own = [("issuer", "pod-certificate")];
        let annotations = own.iter().chain(annotations);
        let annotations =
            annotations.map(|(key, value)| (format!("etcd-tls.dev/{key}"), (*value).to_owned())).collect();
        let problems = Settings::parse(&annotations).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn settings_that_kubelet_cannot_request_are_refused_with_the_reason() {
        for (key, value, roles, reason) in [
            ("extra-sans", "etcd.example.com", "peer", "kubelet can ask for no names"),
            ("extra-sans", "192.0.2.1", "peer", "kubelet can ask for no names"),
            ("user", "backup", "client", "kubelet can ask for no user name"),
            ("key", "rsa-2048", "peer", "kubelet makes no key of rsa-2048"),
            ("key-rotation", "on-ca-change", "peer", "a new key for each certificate"),
            ("duration", "30m", "peer", "takes 1h to"),
            ("duration", "2200h", "peer", "takes 1h to"),
            ("reload", "probe", "peer", "kubelet's"),
            ("trust", "configmap/ca", "peer", "is for the issuers of others"),
        ] {
            let said = problems(&[(key, value), ("roles", roles)]);
            assert!(
                said.contains(&format!("annotation etcd-tls.dev/{key}: ")) && said.contains(reason),
                "{key}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let several = problems(&[("extra-sans", "a.example.com"), ("duration", "10m")]);
        assert_eq!(several.lines().count(), 2, "{several}");
    }

    #[test]
    fn settings_that_kubelet_can_request_are_taken() {
        for annotations in [
            &[][..],
            &[("duration", "1h"), ("key", "ed25519"), ("roles", "peer,server,client,metrics")],
            &[("duration", "2184h"), ("key", "rsa-3072"), ("reload", "signal:SIGTERM"), ("cluster", "events")],
        ] {
            assert_eq!(problems(annotations), "");
        }
        assert_eq!(max_expiration(Duration::from_secs(86_400)), 86_520);
        assert_eq!(max_expiration(LONGEST), 7_862_400);
    }
}
