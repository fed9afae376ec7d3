//! The findings about a pod, each with the next step, from the facts that were seen of it.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::{
    names,
    role::{Domain, Role},
    trusts::{TrustStatement, Unknown},
};

use super::{
    super::{
        lists::{self, Port},
        metrics::{Certificate, Sidecar, Trust},
    },
    Finding, PodSeen, RolloverRow, State, at, duration,
};
use crate::rollover::Report;

/// The findings of one pod, as they are made.
pub(super) struct Findings<'a> {
    pub(super) pod: &'a PodSeen,
    /// All so far, in the order in which they were made.
    pub(super) all: Vec<Finding>,
}

impl Findings<'_> {
    pub(super) fn say(&mut self, state: State, reason: impl Into<String>, next: impl Into<String>) {
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

    pub(super) fn of_the_pod(&mut self) {
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
        let unmeant = pod.ports.iter().filter(|port| port.unmeant).cloned();
        let (unlisted, unmeant): (Vec<Port>, Vec<Port>) = unmeant.partition(|port| port.unlisted);
        if let Some(sentence) = lists::sentence(&unlisted) {
            self.say(
                State::Attention,
                format!("etcd {sentence}"),
                "give the signer a CA that has cRLSign, or one without key usages (docs/revocation.md, Bounds)"
                    .to_owned(),
            );
        }
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
        for request in pod.requests.iter().filter(|request| request.awaits_person) {
            self.say(
                State::Attention,
                format!("{}: request {} waits for a person to decide (docs/approval.md)", request.role, request.name),
                request.command(),
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
    pub(super) fn of_refusals(&mut self, role: Role, issued: Option<f64>) -> bool {
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
    pub(super) fn of_a_role(
        &mut self,
        role: Role,
        certificate: &Certificate,
        failing: Option<&str>,
        waits: bool,
        now: SystemTime,
    ) {
        let refused = self.of_refusals(role, certificate.issued);
        if self.pod.revoked.contains(&role) {
            let serial = certificate.serial.as_deref().unwrap_or_default();
            let refused_by = match role {
                Role::Peer => "the other members refuse its connections",
                Role::Server => "no sidecar takes this member for healthy, so no other member restarts",
                Role::Client | Role::Metrics => "members refuse its connections",
            };
            self.say(
                State::Failing,
                format!("{role}: the certificate {serial} is revoked: {refused_by}"),
                format!(
                    "etcd-tls-webhook renew {0}/{1}; or, where revoke --pod barred it: kubectl -n {0} delete pod {1}",
                    self.pod.namespace, self.pod.name
                ),
            );
        }
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

    pub(super) fn of_a_wait(&mut self, role: Role, ca: &str, members: &[String]) {
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

    pub(super) fn of_the_trust(&mut self, sidecar: &Sidecar) {
        for (domain, trust) in &sidecar.trust {
            if let Trust::Unknown(word) = trust {
                let unknown = match format!("unknown:{word}").parse() {
                    Ok(TrustStatement::Unknown(unknown)) => unknown,
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
        for domain in &sidecar.lists_refused {
            let reason = format!("{domain}: the revocation list on offer is refused; the one before stays in use");
            self.say(State::Attention, reason, self.log());
        }
        for domain in &sidecar.refused {
            self.say(State::Attention, format!("{domain}: the trust bundle on offer is refused"), self.log());
        }
    }

    pub(super) fn of_a_rollover(&mut self, domain: Domain, report: &Report) -> Option<RolloverRow> {
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
