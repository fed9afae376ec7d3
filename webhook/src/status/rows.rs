//! From what was seen to what is said of each pod. Pure: the time is a value.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    names,
    role::{Domain, Role},
    settings::{Problem, Settings},
    trusts::{Trusts, Unknown},
};
use serde::Serialize;

use super::{
    lists::{self, Port},
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
    /// Whether it has the sidecar.
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
    /// Its requests.
    pub(super) requests: Vec<RequestSeen>,
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
    /// Whether it holds a certificate.
    pub(crate) issued: bool,
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
    /// Whether its ports refuse revoked certificates.
    pub(super) revocation: Vec<Port>,
    /// Whether etcd has to be restarted to load a bundle.
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
    /// What.
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
    let trust = domains.iter().map(|domain| trust_row(*domain, &sidecar, pod.sidecar.is_ok())).collect();
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

struct Findings<'a> {
    pod: &'a PodSeen,
    all: Vec<Finding>,
}

impl Findings<'_> {
    fn say(&mut self, state: State, reason: impl Into<String>, next: impl Into<String>) {
        self.all.push(Finding { state, reason: reason.into(), next: next.into() });
    }

    fn log(&self) -> String {
        self.logs_of(names::SIDECAR_CONTAINER)
    }

    fn logs_of(&self, container: &str) -> String {
        format!("kubectl -n {} logs {} -c {container}", self.pod.namespace, self.pod.name)
    }

    fn describe(&self) -> String {
        format!("kubectl -n {} describe pod {}", self.pod.namespace, self.pod.name)
    }

    fn of_the_pod(&mut self) {
        let pod = self.pod;
        if !pod.injected {
            self.say(
                State::Failing,
                "it has opted in, but has no sidecar: it was created before admission was installed, or while it was away",
                format!("kubectl -n {} delete pod {}, if a controller makes it again", pod.namespace, pod.name),
            );
            return;
        }
        if let Err(problems) = &pod.settings {
            let each: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.annotation, p.message)).collect();
            let reason = format!("its annotations cannot be read: {}", each.join("; "));
            self.say(State::Unknown, reason, self.describe());
        }
        let unmeant: Vec<Port> = pod.ports.iter().filter(|port| port.unmeant).cloned().collect();
        if let Some(sentence) = lists::sentence(&unmeant) {
            self.say(
                State::Attention,
                format!("etcd {sentence}"),
                format!(
                    "recreate the pod, or say that it is meant by {}revocation: off (docs/revocation.md, Limits)",
                    names::ANNOTATION_PREFIX
                ),
            );
        }
        for line in &pod.trouble {
            self.say(State::Attention, line.clone(), self.describe());
        }
        if let Err(unseen) = &pod.sidecar {
            self.say(State::Unknown, unseen.reason.clone(), unseen.next.clone());
            // Only the requests are known.
            for role in pod.settings.clone().unwrap_or_default().roles {
                self.of_refusals(role, None);
            }
        }
    }

    /// The last request for `role`, if it was refused and nothing was issued since.
    fn of_refusals(&mut self, role: Role, issued: Option<f64>) -> bool {
        let last =
            self.pod.requests.iter().filter(|request| request.role == role).max_by_key(|request| request.created);
        let Some((request, why)) = last.and_then(|request| Some((request, request.refused.as_ref()?))) else {
            return false;
        };
        if issued.zip(request.created).is_some_and(|(issued, created)| at(issued) >= created) {
            return false;
        }
        self.say(
            State::Failing,
            format!("{role}: request {}: {why}", request.name),
            format!("kubectl describe csr {}", request.name),
        );
        true
    }

    /// `waits`: a new certificate waits for the members' trust, on purpose, until a fifth of the life is left.
    fn of_a_role(
        &mut self,
        role: Role,
        certificate: &Certificate,
        failing: Option<&str>,
        waits: bool,
        now: SystemTime,
    ) {
        let refused = self.of_refusals(role, certificate.issued);
        match certificate.expiry.map(at) {
            None => self.say(State::Failing, format!("{role}: there is no certificate yet"), self.log()),
            Some(expiry) if expiry <= now => {
                let since = duration(now.duration_since(expiry).unwrap_or_default());
                self.say(State::Failing, format!("{role}: the certificate expired {since} ago"), self.log());
            }
            Some(expiry) => {
                if let Some(renewal) = certificate.renewal.map(at) {
                    // A renewal may take some tries; a quarter of the time that is left for it is for them.
                    let rest = expiry.duration_since(renewal).unwrap_or_default();
                    let left = expiry.duration_since(now).unwrap_or_default();
                    if now > renewal + rest / 4 && !(waits && left > rest / 4) {
                        let left = duration(left);
                        self.say(
                            State::Failing,
                            format!("{role}: the renewal is overdue; the certificate expires in {left}"),
                            self.log(),
                        );
                    }
                }
            }
        }
        if let Some(word) = failing.filter(|_| !refused) {
            self.say(State::Attention, format!("{role}: the last request failed: {word}"), self.log());
        }
        match (certificate.served, certificate.ports) {
            (Some(false), _) => self.say(
                State::Attention,
                format!("{role}: a port of etcd serves another certificate than the one on disk"),
                self.log(),
            ),
            // The first look comes with the start of the sidecar: a port that etcd does not open shows.
            (None, Some(ports)) if ports > 0.0 && certificate.expiry.is_some() => {
                let young = certificate.issued.is_some_and(|issued| now < at(issued) + Duration::from_secs(120));
                if !young {
                    self.say(
                        State::Unknown,
                        format!("{role}: no port of etcd was seen to serve the certificate: etcd is not up, or listens elsewhere"),
                        self.log(),
                    );
                }
            }
            _ => {}
        }
    }

    fn of_a_wait(&mut self, role: Role, ca: &str, members: &[String]) {
        if !members.is_empty() {
            let members = members.join(", ");
            return self.say(
                State::Attention,
                format!("{role}: a signed certificate waits until etcd trusts the CA {ca}: {members}"),
                "its issuer's CA was changed with no overlap; renew the cluster, so that its other pods learn of it \
                 (docs/issuers.md, The CA from the answer)",
            );
        }
        self.say(
            State::Attention,
            format!("{role}: a signed certificate waits for a trust bundle that holds the CA {ca}"),
            "if its issuer's CA was changed, put the new CA beside the old one in the bundle (docs/issuers.md, Trust)",
        );
    }

    fn of_the_trust(&mut self, sidecar: &Sidecar) {
        for (domain, trust) in &sidecar.trust {
            if let Trust::Unknown(word) = trust {
                let unknown = match format!("unknown:{word}").parse() {
                    Ok(Trusts::Unknown(unknown)) => unknown,
                    _ => Unknown::Other(word.clone()),
                };
                self.say(
                    State::Unknown,
                    format!("{domain}: it cannot be seen which trust bundle etcd has loaded ({word})"),
                    unknown.advice(),
                );
            }
        }
        if !sidecar.restart_due.is_empty() {
            let domains: Vec<&str> = sidecar.restart_due.iter().map(|domain| domain.as_str()).collect();
            let waits = sidecar.restart_waits.as_deref();
            self.say(
                State::Attention,
                format!(
                    "etcd must be restarted to load the new trust bundle ({}){}",
                    domains.join(", "),
                    waits.map_or_else(String::new, |word| format!("; that waits: {}", waits_for(word)))
                ),
                if waits == Some("by_hand") {
                    "restart etcd's container, one member at a time: docs/operations.md, Restarts".to_owned()
                } else {
                    self.log()
                },
            );
        }
        for domain in &sidecar.refused {
            self.say(State::Attention, format!("{domain}: the trust bundle on offer is refused"), self.log());
        }
    }

    fn of_a_rollover(&mut self, domain: Domain, report: &Report) -> Option<RolloverRow> {
        let cluster = self.pod.settings.as_ref().ok()?.home(&self.pod.namespace);
        if matches!(report.phase.as_str(), "lost" | "unusable") {
            self.say(
                State::Failing,
                format!("the CA of {cluster} {domain} is {}: nothing is issued", report.phase),
                format!("kubectl -n {} logs deploy/etcd-tls-sign", names::SYSTEM_NAMESPACE),
            );
        }
        (report.phase != "stable").then(|| RolloverRow {
            domain,
            phase: report.phase.clone(),
            since: report.since.clone(),
            waiting: report.waiting.clone(),
        })
    }
}

/// The meaning of the sidecar's code for a wait.
fn waits_for(word: &str) -> String {
    let text = match word {
        "announced" => "the notice before a restart",
        "by_hand" => "you restart it: the sidecar may not",
        "cluster_unknown" => "etcd's members cannot be listed",
        "leader_last" => "this member leads the cluster, and the others go first",
        "lock_lost" | "locked" => "another member is being restarted",
        "no_lock" => "neither etcd nor a Lease gives the lock",
        "no_memory" => "the sidecar's directory cannot be written",
        "no_process" => "etcd's process is not found",
        "no_quorum" => "without this member there is no quorum",
        "not_a_member" => "this etcd is not in its cluster's member list",
        "not_back" => "etcd has not come back from the last restart",
        "not_ended" => "etcd still runs after the signal",
        "pace" => "the last restart was a few minutes ago",
        "peer_refuses" => "with the new certificate not every member is reached",
        "told" => "a signal was sent",
        "unhealthy" => "another member is not healthy",
        other => other,
    };
    text.to_owned()
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

fn trust_row(domain: Domain, sidecar: &Sidecar, seen: bool) -> TrustRow {
    let bundle = sidecar.bundles.get(&domain).cloned();
    let state = match sidecar.trust.get(&domain) {
        Some(Trust::Loaded) => "loaded",
        Some(Trust::Due) => "due",
        Some(Trust::Unknown(_)) => "unknown",
        // A client's process reads its bundle itself.
        None if seen && sidecar.trust.is_empty() => "-",
        None => "unknown",
    };
    TrustRow { domain, bundle, state }
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
