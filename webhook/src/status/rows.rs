//! From what was seen to what is said of each pod. Pure: the time is a value.

mod findings;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    role::{Domain, Role},
    settings::{Problem, Settings},
    trusts::TrustStatement,
};
use serde::Serialize;

use self::findings::Findings;
use super::{
    lists::Port,
    metrics::{Certificate, Sidecar, Trust},
};
use crate::rollover::{Report, rfc3339};

/// Something that could not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// Why.
    pub(crate) reason: String,
    /// The next step.
    pub(crate) next: String,
    /// True if the caller lacks a right.
    pub(crate) denied: bool,
}

/// The observed facts of one pod.
#[derive(Clone, Debug)]
pub(super) struct PodSeen {
    /// `metadata.namespace`.
    pub(super) namespace: String,
    /// `metadata.name`.
    pub(super) name: String,
    /// The settings of its annotations, or why they cannot be read.
    pub(super) settings: Result<Settings, Vec<Problem>>,
    /// True if it has the sidecar.
    pub(super) injected: bool,
    /// The ports of its etcd, and whether they look at the revocation lists.
    pub(super) ports: Vec<Port>,
    /// Why its containers do not run, one line for each.
    pub(super) trouble: Vec<String>,
    /// Admission's warnings.
    pub(super) warnings: Vec<String>,
    /// The state of its sidecar.
    pub(super) sidecar: Result<Sidecar, Unseen>,
    /// By domain, how the rollover stands; `None`: its bundles are not of our signer.
    pub(super) rollovers: BTreeMap<Domain, Result<Report, Unseen>>,
    /// By domain, the digest of the published bundle, as far as it could be read.
    pub(super) bundles: BTreeMap<Domain, String>,
    /// Its requests.
    pub(super) requests: Vec<RequestSeen>,
    /// The roles whose certificate in use is revoked.
    pub(super) revoked: BTreeSet<Role>,
}

/// A CertificateSigningRequest of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestSeen {
    /// Its name.
    pub(crate) name: String,
    /// For which role.
    pub(crate) role: Role,
    /// When it was made.
    pub(crate) created: Option<SystemTime>,
    /// Why it was denied or failed; `None`: neither.
    pub(crate) refused: Option<String>,
    /// True if it holds a certificate.
    pub(crate) issued: bool,
    /// True if policy leaves it to a person, who has not decided yet.
    pub(crate) awaits_person: bool,
    /// What it states of the bundle that etcd has loaded.
    pub(crate) trusts: Option<TrustStatement>,
}

impl RequestSeen {
    /// The command of the person who decides.
    pub(crate) fn command(&self) -> String {
        format!("kubectl describe csr {0}; then kubectl certificate approve {0}, or deny", self.name)
    }
}

/// How a pod is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It has no valid certificate, or will not get the next one.
    Failing,
    /// Undetermined.
    Unknown,
    /// Somebody should look.
    Attention,
    /// All is well.
    Ok,
}

impl State {
    /// Its word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Unknown => "unknown",
            Self::Attention => "attention",
            Self::Ok => "ok",
        }
    }
}

/// The report on a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// `metadata.namespace`.
    pub(super) namespace: String,
    /// `metadata.name`.
    pub(super) pod: String,
    /// The etcd cluster, as `<namespace>/<cluster>`.
    pub(super) cluster: String,
    /// How it is: the most urgent of its findings.
    pub(super) state: State,
    /// Its certificates.
    pub(super) roles: Vec<RoleRow>,
    /// Its trust.
    pub(super) trust: Vec<TrustRow>,
    /// Its ports, and whether they refuse revoked certificates.
    pub(super) revocation: Vec<Port>,
    /// True if etcd has to be restarted to load a bundle.
    pub(super) restart_due: bool,
    /// The word for what that waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restart_waits: Option<String>,
    /// The rollovers that are under way.
    pub(super) rollovers: Vec<RolloverRow>,
    /// The findings, the most urgent first.
    pub(super) findings: Vec<Finding>,
    /// Admission's warnings.
    pub(super) warnings: Vec<String>,
    /// The version of its sidecar.
    pub(super) sidecar_version: Option<String>,
}

/// A certificate, as far as it is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RoleRow {
    /// The role.
    pub(crate) role: Role,
    /// Its serial number.
    pub(crate) serial: Option<String>,
    /// When it was received; RFC 3339.
    pub(crate) issued: Option<String>,
    /// When the next one is requested; RFC 3339.
    pub(crate) renewal: Option<String>,
    /// Its notAfter; RFC 3339.
    pub(crate) expiry: Option<String>,
    /// Seconds since it was received.
    pub(crate) age_seconds: Option<i64>,
    /// Seconds until its notAfter; negative once it has expired.
    pub(crate) left_seconds: Option<i64>,
    /// `yes`, `no`, `unknown`, or `-` where no port of etcd serves it.
    pub(crate) served: &'static str,
}

/// The known state of a domain's trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TrustRow {
    /// The domain.
    pub(super) domain: Domain,
    /// The digest of the bundle on disk.
    pub(super) bundle: Option<String>,
    /// `loaded`, `due` or `unknown`; `-` where there is no etcd to load it.
    pub(super) state: &'static str,
    /// True if the sidecar could not be asked, so that the state is what `sign` knows of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) reported: bool,
}

/// A rollover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RolloverRow {
    /// The domain.
    pub(super) domain: Domain,
    /// Its phase.
    pub(super) phase: String,
    /// When the phase began; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
    /// The conditions that it waits for.
    pub(super) waiting: Vec<String>,
}

/// Something that somebody should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How urgent it is.
    pub(crate) state: State,
    /// The message.
    pub(crate) reason: String,
    /// The next step.
    pub(crate) next: String,
}

/// Says of each pod how it is at `now`, the most urgent first.
pub(super) fn rows(pods: &[PodSeen], now: SystemTime) -> Vec<Row> {
    let mut rows: Vec<Row> = pods.iter().map(|pod| row(pod, now)).collect();
    rows.sort_by(|a, b| (a.state, &a.namespace, &a.pod).cmp(&(b.state, &b.namespace, &b.pod)));
    rows
}

fn row(pod: &PodSeen, now: SystemTime) -> Row {
    let mut found = Findings { pod, all: Vec::new() };
    found.of_the_pod();
    let settings = pod.settings.clone().unwrap_or_default();
    let sidecar = pod.sidecar.clone().unwrap_or_default();
    let mut roles = Vec::new();
    for role in &settings.roles {
        let certificate = sidecar.certificates.get(role).cloned().unwrap_or_default();
        if pod.injected && pod.sidecar.is_ok() {
            let members = sidecar.awaited_members.get(role).map_or(&[][..], Vec::as_slice);
            let failing = sidecar.failing.get(role).map(String::as_str);
            found.of_a_role(*role, &certificate, failing, !members.is_empty(), now);
            if let Some(ca) = sidecar.awaited.get(role) {
                found.of_a_wait(*role, ca, members);
            }
        }
        roles.push(role_row(*role, &certificate, now));
    }
    if pod.injected && pod.sidecar.is_ok() {
        found.of_the_trust(&sidecar);
    }
    let domains: BTreeSet<Domain> = settings.roles.iter().map(|role| role.domain()).collect();
    let trust = domains.iter().map(|domain| trust_row(*domain, &sidecar, pod)).collect();
    let mut rollovers = Vec::new();
    for (domain, report) in &pod.rollovers {
        match report {
            Ok(report) => rollovers.extend(found.of_a_rollover(*domain, report)),
            Err(unseen) => found.say(
                State::Unknown,
                format!("the rollover of {domain} cannot be seen: {}", unseen.reason),
                unseen.next.clone(),
            ),
        }
    }
    let mut findings = found.all;
    findings.sort_by_key(|finding| finding.state);
    Row {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        cluster: settings.home(&pod.namespace).to_string(),
        state: findings.first().map_or(State::Ok, |finding| finding.state),
        roles,
        trust,
        revocation: pod.ports.clone(),
        restart_due: !sidecar.restart_due.is_empty(),
        restart_waits: sidecar.restart_waits,
        rollovers,
        findings,
        warnings: pod.warnings.clone(),
        sidecar_version: sidecar.version,
    }
}

fn role_row(role: Role, certificate: &Certificate, now: SystemTime) -> RoleRow {
    let seconds = |from: SystemTime, to: SystemTime| match to.duration_since(from) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let text = |seconds: Option<f64>| seconds.map(|seconds| rfc3339::text(at(seconds)));
    RoleRow {
        role,
        serial: certificate.serial.clone(),
        issued: text(certificate.issued),
        renewal: text(certificate.renewal),
        expiry: text(certificate.expiry),
        age_seconds: certificate.issued.map(|issued| seconds(at(issued), now)),
        left_seconds: certificate.expiry.map(|expiry| seconds(now, at(expiry))),
        served: match (certificate.served, certificate.ports) {
            (Some(true), _) => "yes",
            (Some(false), _) => "no",
            (None, Some(0.0)) => "-",
            (None, _) => "unknown",
        },
    }
}

fn trust_row(domain: Domain, sidecar: &Sidecar, pod: &PodSeen) -> TrustRow {
    if pod.sidecar.is_err() {
        let reported = reported(domain, pod);
        return TrustRow { domain, bundle: None, state: reported.unwrap_or("unknown"), reported: reported.is_some() };
    }
    let bundle = sidecar.bundles.get(&domain).cloned();
    let state = match sidecar.trust.get(&domain) {
        Some(Trust::Loaded) => "loaded",
        Some(Trust::Due) => "due",
        Some(Trust::Unknown(_)) => "unknown",
        // A client's process reads its bundle itself.
        None if sidecar.trust.is_empty() => "-",
        None => "unknown",
    };
    TrustRow { domain, bundle, state, reported: false }
}

/// What `sign` knows of the bundle that the pod's etcd has loaded: from its last request that is still there, else from the
/// rollover that is under way.
fn reported(domain: Domain, pod: &PodSeen) -> Option<&'static str> {
    let of_domain = pod.requests.iter().filter(|request| request.role.domain() == domain && request.issued);
    let last = of_domain.max_by_key(|request| request.created);
    if let Some(TrustStatement::Loaded(digest)) = last.and_then(|request| request.trusts.as_ref()) {
        return Some(if pod.bundles.get(&domain)? == digest { "loaded" } else { "due" });
    }
    let report = pod.rollovers.get(&domain)?.as_ref().ok().filter(|report| report.phase == "published")?;
    let name = format!("pod {}/{}: ", pod.namespace, pod.name);
    if report.waiting.iter().any(|line| line.starts_with(&name)) {
        return Some("due");
    }
    // A report names some pods alone.
    let all_named = !report.waiting.iter().any(|line| line.starts_with("and "));
    (all_named && pod.settings.as_ref().is_ok_and(Settings::runs_etcd)).then_some("loaded")
}

/// The time of so many seconds of the Unix epoch. Values beyond all calendars are cut.
fn at(seconds: f64) -> SystemTime {
    const LAST: f64 = 253_402_300_799.0;
    let seconds = if seconds.is_finite() { seconds.clamp(0.0, LAST) } else { 0.0 };
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

/// A duration as kubectl writes ages: its two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, 1..=9) => format!("{minutes}m{}s", seconds % 60),
        (0, 0, _) => format!("{minutes}m"),
        (0, 1..=9, _) if minutes > 0 => format!("{hours}h{minutes}m"),
        (0, ..) => format!("{hours}h"),
        (1..=9, 1.., _) => format!("{days}d{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
pub(super) mod tests;
