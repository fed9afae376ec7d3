//! The state of the sidecar: `/live`, `/ready`, `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use etcd_tls_contract::role::{Domain, Role};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use etcd_tls_telemetry::admin::{CheckError, Status};

use crate::{
    agent::held::Held,
    issuance::{awaited::Awaited, schedule::TICK},
    store::Set,
};

/// The loop runs at least every [`TICK`]. After this time without a turn it is taken to hang.
const STUCK: Duration = Duration::from_secs(3 * TICK.as_secs());

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WaitLabels {
    role: &'static str,
    ca: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MemberLabels {
    role: &'static str,
    member: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RenewalLabels {
    role: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    role: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PortLabels {
    port: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DomainLabel {
    domain: &'static str,
}

/// The prefix of every metric's name.
pub const PREFIX: &str = "etcd_tls";

type Seconds = Gauge<f64, AtomicU64>;

/// The state that probes and scrapers see. The driver writes it; the admin port reads it.
pub struct Health {
    roles: Vec<Role>,
    seen: Mutex<Seen>,
    registry: Registry,
    held: Held,
    renewals: Family<RenewalLabels, Counter>,
    rotated: Family<RoleLabel, Counter>,
    handshakes: Family<PortLabels, Counter>,
    signed_to_served: Histogram,
    issued_after: Histogram,
    refused_total: Family<DomainLabel, Counter>,
    refused: Family<DomainLabel, Gauge>,
    lists_refused_total: Family<DomainLabel, Counter>,
    lists_refused: Family<DomainLabel, Gauge>,
    pending: Family<RoleLabel, Seconds>,
    outcomes: Family<OutcomeLabels, Gauge>,
    waits: Family<WaitLabels, Gauge>,
    waits_for: Family<MemberLabels, Gauge>,
    awaited: OnceLock<Arc<Awaited>>,
    issuer_states: Family<Vec<(&'static str, &'static str)>, Gauge>,
    states: Family<Vec<(&'static str, &'static str)>, Gauge>,
    said: AtomicBool,
}

struct Seen {
    beat: Instant,
    expiry: BTreeMap<Role, SystemTime>,
    pending: BTreeMap<Role, Instant>,
    /// How the last request of a role ended, if it brought no certificate.
    refused: BTreeMap<Role, &'static str>,
    trouble: Option<String>,
}

impl Health {
    /// For a sidecar that is to hold `roles`. Others' metrics are in `registry` already.
    pub fn new(roles: &[Role], mut registry: Registry) -> Self {
        let health = Self {
            roles: roles.to_vec(),
            seen: Mutex::new(Seen {
                beat: Instant::now(),
                expiry: BTreeMap::new(),
                pending: BTreeMap::new(),
                refused: BTreeMap::new(),
                trouble: None,
            }),
            registry: Registry::default(),
            held: Held::register(&mut registry),
            renewals: Family::default(),
            rotated: Family::default(),
            handshakes: Family::default(),
            signed_to_served: Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            issued_after: Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]),
            refused_total: Family::default(),
            refused: Family::default(),
            lists_refused_total: Family::default(),
            lists_refused: Family::default(),
            pending: Family::default(),
            outcomes: Family::default(),
            waits: Family::default(),
            waits_for: Family::default(),
            awaited: OnceLock::new(),
            issuer_states: Family::default(),
            states: Family::default(),
            said: AtomicBool::new(false),
        };
        registry.register(
            "request_pending_seconds",
            "Age of the pending request; 0 if there is none",
            health.pending.clone(),
        );
        registry.register(
            "request_outcome",
            "1 for how the last request ended until one brings a certificate: denied, invalid, failed, rejected or another word of \
             renewals; and 1 for not_yet while a request has no answer",
            health.outcomes.clone(),
        );
        registry.register(
            "certificate_waits",
            "1 while a signed certificate waits for a trust bundle with this CA",
            health.waits.clone(),
        );
        registry.register(
            "certificate_waits_for_member",
            "1 while a signed certificate waits until this member of etcd trusts its CA; `unknown`: the members cannot be seen",
            health.waits_for.clone(),
        );
        registry.register(
            "issuer_states_ca",
            "1 if the issuer's last answer has its CA, from which trust: issuer takes the bundle, else 0; absent otherwise",
            health.issuer_states.clone(),
        );
        registry.register("renewals", "Requests for a certificate that ended, by result", health.renewals.clone());
        registry.register("rotated", "Certificates that all of their ports were seen to serve", health.rotated.clone());
        registry.register(
            "handshakes",
            "Handshakes with etcd's ports after a renewal, by result",
            health.handshakes.clone(),
        );
        registry.register(
            "signed_to_served_seconds",
            "Time from the receipt of a certificate until etcd serves it",
            health.signed_to_served.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "Time from the begin of a request until its certificate was received",
            health.issued_after.clone(),
        );
        registry.register("bundle_refusals", "Offered trust bundles that were refused", health.refused_total.clone());
        registry.register(
            "signer_states_bundles",
            "1 if the signer's last answer states the trust bundles in force; 0 if not (a signer of an earlier version): a \
             changed bundle is then taken as the ConfigMap holds it, unless an earlier answer had a statement",
            health.states.clone(),
        );
        registry.register(
            "bundle_refused",
            "1 while the offered trust bundle is refused and the previous one is kept",
            health.refused.clone(),
        );
        registry.register(
            "revocation_list_refusals",
            "Offered revocation lists that were refused",
            health.lists_refused_total.clone(),
        );
        registry.register(
            "revocation_list_refused",
            "1 while the offered revocation list is refused and the previous one is kept",
            health.lists_refused.clone(),
        );
        Self { registry, ..health }
    }

    /// The loop has come round.
    pub fn beat(&self) {
        self.seen().beat = Instant::now();
    }

    /// Records the set that is on disk at `now`, in the pod with `uid`.
    pub fn installed(&self, set: &Set, uid: &str, now: SystemTime) {
        let mut seen = self.seen();
        seen.expiry = set.roles.iter().map(|(role, entry)| (*role, entry.chain().not_after)).collect();
        self.held.installed(set, uid, now);
        seen.trouble = None;
    }

    /// The files could not be written.
    pub fn trouble(&self, message: String) {
        self.seen().trouble = Some(message);
    }

    /// Shows the CAs that signed certificates wait for.
    pub fn awaits(&self, awaited: Arc<Awaited>) {
        let _ = self.awaited.set(awaited);
    }

    /// A request of `role` begins.
    pub fn asking(&self, role: Role) {
        self.seen().pending.insert(role, Instant::now());
    }

    /// A request of `role` has ended, with `failure`, one of a fixed set of words, or with a certificate.
    pub fn asked(&self, role: Role, failure: Option<&'static str>) {
        let since = {
            let mut seen = self.seen();
            match failure {
                Some(failure) => seen.refused.insert(role, failure),
                None => seen.refused.remove(&role),
            };
            seen.pending.remove(&role)
        };
        if let (Some(since), None) = (since, failure) {
            self.issued_after.observe(since.elapsed().as_secs_f64());
        }
        self.held.asked(role, failure);
        let result = failure.unwrap_or("issued");
        self.renewals.get_or_create(&RenewalLabels { role: role.as_str(), result }).inc();
    }

    /// How many of etcd's ports serve `role`'s certificate.
    pub fn ports(&self, role: Role, ports: usize) {
        self.held.ports(role, ports);
    }

    /// True if all of `role`'s ports serve the certificate on disk; `None`: they are to be looked at.
    pub fn served(&self, role: Role, served: Option<bool>) {
        self.held.served(role, served);
    }

    /// One look at a port: `served`, `not_served` or `unreachable`.
    pub fn handshake(&self, port: &'static str, result: &'static str) {
        self.handshakes.get_or_create(&PortLabels { port, result }).inc();
    }

    /// `role`'s certificate is served, `delay` after it was received.
    pub fn rotated(&self, role: Role, delay: Duration) {
        self.rotated.get_or_create(&RoleLabel { role: role.as_str() }).inc();
        self.signed_to_served.observe(delay.as_secs_f64());
    }

    /// True if `domain`'s bundle on offer is refused; `anew` if it was not the last time.
    pub fn refused(&self, domain: Domain, refused: bool, anew: bool) {
        let label = DomainLabel { domain: domain.as_str() };
        self.refused.get_or_create(&label).set(i64::from(refused));
        if anew {
            self.refused_total.get_or_create(&label).inc();
        }
    }

    /// True if `domain`'s revocation list on offer is refused; `anew` if it was not the last time.
    pub fn list_refused(&self, domain: Domain, refused: bool, anew: bool) {
        let label = DomainLabel { domain: domain.as_str() };
        self.lists_refused.get_or_create(&label).set(i64::from(refused));
        if anew {
            self.lists_refused_total.get_or_create(&label).inc();
        }
    }

    /// True if the signer's last answer stated the bundles in force; `None`: there was no answer yet.
    pub fn signer_states(&self, states: Option<bool>) {
        let Some(states) = states else { return };
        self.states.get_or_create(&Vec::new()).set(i64::from(states));
        if self.said.swap(!states, Ordering::Relaxed) == states {
            if states {
                tracing::info!("the signer states the trust bundles in force");
            } else {
                tracing::warn!(
                    "the signer does not state which trust bundles are in force: it is of an earlier version. Upgrade \
                     etcd-tls-sign; until then a changed trust ConfigMap is believed, unless this pod has seen a statement"
                );
            }
        }
    }

    /// True if the issuer's last answer had its CA; `None`: there was no answer yet, or the bundle does not come from it.
    pub fn issuer_states(&self, states: Option<bool>) {
        if let Some(states) = states {
            self.issuer_states.get_or_create(&Vec::new()).set(i64::from(states));
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Status for Health {
    fn live(&self) -> Result<(), CheckError> {
        let age = self.seen().beat.elapsed();
        if age < STUCK { Ok(()) } else { Err(format!("the loop has not come round for {} s", age.as_secs()).into()) }
    }

    fn ready(&self) -> Result<(), CheckError> {
        let seen = self.seen();
        let now = SystemTime::now();
        let mut missing: Vec<String> = Vec::new();
        for role in &self.roles {
            match seen.expiry.get(role) {
                None => missing.push(format!("role {role}: no certificate yet")),
                Some(at) if *at <= now => missing.push(format!("role {role}: the certificate has expired")),
                Some(_) => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        missing.extend(seen.trouble.clone());
        Err(missing.join("\n").into())
    }

    fn metrics(&self) -> String {
        for role in &self.roles {
            let age = self.seen().pending.get(role).map_or(0.0, |since| since.elapsed().as_secs_f64());
            self.pending.get_or_create(&RoleLabel { role: role.as_str() }).set(age);
        }
        self.outcomes.clear();
        {
            let seen = self.seen();
            for role in &self.roles {
                let open = seen.pending.contains_key(role).then_some("not_yet");
                for outcome in seen.refused.get(role).copied().into_iter().chain(open) {
                    self.outcomes.get_or_create(&OutcomeLabels { role: role.as_str(), outcome }).set(1);
                }
            }
        }
        self.waits.clear();
        self.waits_for.clear();
        for (role, wait) in self.awaited.get().map(|awaited| awaited.all()).unwrap_or_default() {
            let role = role.as_str();
            self.waits.get_or_create(&WaitLabels { role, ca: wait.authority }).set(1);
            for member in wait.members {
                self.waits_for.get_or_create(&MemberLabels { role, member }).set(1);
            }
        }
        let mut text = String::with_capacity(8 * 1024);
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => "# EOF\n".to_owned(),
        }
    }
}
