//! The refusals and warnings for a pod whose certificates kubelet requests, `issuer: pod-certificate`. Settings that its
//! request cannot carry are refused where they are parsed.

use etcd_tls_contract::{args::PodArgs, names};

use super::{Work, listeners::is_loopback};

impl Work<'_> {
    /// True if the certificates hold no address of the pod.
    pub(super) fn is_by_name(&self) -> bool {
        self.settings.is_of_kubelet() && !self.pod.flag("hostNetwork")
    }

    /// The sidecar verifies etcd's client port, so it must reach it under a name or address that the certificate holds.
    pub(super) fn check_reached(&mut self, args: &PodArgs) {
        let Some(url) = args.client_url.as_ref().filter(|url| url.tls && self.is_by_name()) else { return };
        let bare = url.host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<std::net::IpAddr>().is_ok() || bare.contains('$');
        if address && !is_loopback(&url.host) {
            self.problems.push(format!(
                "the sidecar would reach etcd at {url}, an address that its certificate does not hold (issuer pod-certificate: names \
                 alone); let --listen-client-urls have https://127.0.0.1:{} too, or 0.0.0.0 alone",
                url.port
            ));
        }
    }

    pub(super) fn check_kubelet(&mut self) {
        if !self.settings.is_of_kubelet() {
            return;
        }
        if self.config.host.is_some() {
            self.problems.push(
                "annotation etcd-tls.dev/issuer: a static pod has no volume of podCertificate; use csr".to_owned(),
            );
        }
        let annotation = format!("{}revocation", names::ANNOTATION_PREFIX);
        match self.pod.annotations.get(&annotation).map(String::as_str) {
            Some("off") => {}
            Some(_) => self.problems.push(format!(
                "annotation {annotation}: with issuer pod-certificate, the volume that kubelet keeps has no revocation list; write off, or \
                 use the issuer csr"
            )),
            None => self.warnings.push(format!(
                "etcd gets no revocation list with issuer pod-certificate, so it takes revoked certificates; annotate {annotation}: off \
                 where that is meant"
            )),
        }
    }
}
