//! The metrics of the certificates and bundles on disk: which they are, how long they last, and whether etcd serves them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::role::Role;
use etcd_tls_telemetry::metric;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{issuance::renewal::life, store::Set};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRole {
    role: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WithSerial {
    role: &'static str,
    serial: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WithResult {
    role: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfDomain {
    domain: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WithDigest {
    domain: &'static str,
    digest: String,
}

type Seconds = Gauge<f64, AtomicU64>;

/// See the module. Series with a serial or a digest are those of now alone.
#[derive(Clone, Debug)]
pub(super) struct Held {
    info: Family<WithSerial, Gauge>,
    issued: Family<OfRole, Seconds>,
    renewal: Family<OfRole, Seconds>,
    expiry: Family<OfRole, Seconds>,
    ports: Family<OfRole, Gauge>,
    served: Family<OfRole, Gauge>,
    failing: Family<WithResult, Gauge>,
    bundles: Family<WithDigest, Gauge>,
    list_numbers: Family<OfDomain, Gauge>,
    list_entries: Family<OfDomain, Gauge>,
    /// The labels that [`Self::failing`] has set.
    last: Arc<Mutex<BTreeMap<Role, &'static str>>>,
}

impl Held {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            info: metric(registry, "certificate_info", "1 for the certificate on disk, by its serial number"),
            issued: metric(
                registry,
                "certificate_issued_timestamp_seconds",
                "When the certificate on disk was received: the last success of a request",
            ),
            renewal: metric(
                registry,
                "certificate_renewal_timestamp_seconds",
                "When the next certificate is requested",
            ),
            expiry: metric(registry, "certificate_expiry_timestamp_seconds", "notAfter of the certificate on disk"),
            ports: metric(
                registry,
                "certificate_ports",
                "Ports of etcd that are to serve the certificate and are looked at after a renewal",
            ),
            served: metric(
                registry,
                "certificate_served",
                "1 if all ports serve the certificate on disk, 0 if one serves another; absent until they were looked at",
            ),
            failing: metric(
                registry,
                "request_failing",
                "1 while the last request failed, by its result; absent after a success",
            ),
            bundles: metric(registry, "bundle_info", "1 for the trust bundle on disk, by its digest"),
            list_numbers: metric(
                registry,
                "revocation_list_number",
                "The number of the revocation list on disk; absent while an empty stand-in is there",
            ),
            list_entries: metric(registry, "revocation_list_entries", "Certificates on the revocation list on disk"),
            last: Arc::default(),
        }
    }

    /// Records the set that is on disk at `now`, in the pod with `uid`.
    pub(super) fn installed(&self, set: &Set, uid: &str, now: SystemTime) {
        self.info.clear();
        self.bundles.clear();
        for (domain, list) in &set.lists {
            let label = OfDomain { domain: domain.as_str() };
            self.list_numbers.get_or_create(&label).set(i64::try_from(list.number()).unwrap_or(i64::MAX));
            self.list_entries.get_or_create(&label).set(i64::try_from(list.entries().len()).unwrap_or(i64::MAX));
        }
        for (role, entry) in &set.roles {
            let chain = entry.chain();
            let (life, label) = (life(entry, now), OfRole { role: role.as_str() });
            let serial = WithSerial { role: role.as_str(), serial: chain.serial.clone() };
            self.info.get_or_create(&serial).set(1);
            self.issued.get_or_create(&label).set(seconds(life.issued));
            self.renewal.get_or_create(&label).set(seconds(life.renew_at(uid, &chain.serial)));
            self.expiry.get_or_create(&label).set(seconds(chain.not_after));
            let digest = WithDigest { domain: role.domain().as_str(), digest: entry.bundle().digest() };
            self.bundles.get_or_create(&digest).set(1);
        }
    }

    /// How many ports of etcd serve `role`'s certificate.
    pub(super) fn ports(&self, role: Role, ports: usize) {
        self.ports.get_or_create(&OfRole { role: role.as_str() }).set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    /// True if all of `role`'s ports serve the certificate on disk; `None`: they are to be looked at.
    pub(super) fn served(&self, role: Role, served: Option<bool>) {
        let label = OfRole { role: role.as_str() };
        match served {
            Some(served) => {
                self.served.get_or_create(&label).set(i64::from(served));
            }
            None => {
                self.served.remove(&label);
            }
        }
    }

    /// `role`'s last request ended with `failure`, a word of a fixed set; `None`: it succeeded.
    pub(super) fn asked(&self, role: Role, failure: Option<&'static str>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let label = |result| WithResult { role: role.as_str(), result };
        if let Some(result) = last.remove(&role) {
            self.failing.remove(&label(result));
        }
        if let Some(result) = failure {
            self.failing.get_or_create(&label(result)).set(1);
            last.insert(role, result);
        }
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
