//! One authority in one round: how it stands, and the step of its rollover that is due.

use std::{sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    names::{self, SignerName},
    policy::Policy,
    role::Domain,
};

use tokio::time::Instant;

use super::Reconciler;
use crate::{
    ca::authority::Authority,
    controller::events::{Reason, reasons},
    revoke,
    rollover::{
        ChangeOver, LivePod, Report, Request, Situation, Step, Waiting, decide, overdue, request_annotation, rfc3339,
    },
    sign::authorities::{
        Unavailable,
        making::generate,
        quota::{Entry, Held},
        state::{Stored, life},
    },
    sign::cache::pods::is_host,
};

/// The phase of an authority that could not be looked at just now.
pub(super) const UNKNOWN: &str = "unknown";
/// The phase of an authority of which no rollover is under way.
pub(super) const STABLE: &str = "stable";

/// The pods of an authority.
#[derive(Debug)]
pub(super) enum LivePods {
    /// Not every pod was seen yet.
    NotListed,
    /// The authority seemed to rest, and then nothing is decided by its pods.
    NotGathered,
    These(Vec<LivePod>),
}

/// The result of a round for an authority.
pub(super) struct RoundResult {
    pub(super) name: Arc<SignerName>,
    pub(super) report: Report,
    pub(super) waiting: usize,
    pub(super) not_after: Option<SystemTime>,
    pub(super) trouble: Option<String>,
    pub(super) done: Option<(Step, Stored)>,
    /// Pods that have been waited for too long.
    pub(super) overdue: Option<String>,
    /// Since when pods are waited for.
    pub(super) waiting_since: Option<SystemTime>,
    /// Since when nobody uses the authority.
    pub(super) idle_since: Option<SystemTime>,
}

impl Reconciler {
    /// True if something may be decided by the pods of an authority: a rollover is under way or its state is not known, or
    /// somebody asks something.
    pub(super) fn may_move(&self, entry: &Entry) -> bool {
        let rests = |held: &Held| matches!(held, Held::Ready(ready) if ready.stored.state.rollover.is_none());
        let asked = |name: &SignerName| {
            let config_map = self.config_maps.get(&name.namespace, &names::trust_config_map(&name.cluster));
            config_map.is_some_and(|config_map| !config_map.requests.is_empty())
        };
        !entry.held.try_lock().is_ok_and(|held| rests(&held)) || asked(&entry.name)
    }

    /// Looks at one authority and takes the step that is due.
    pub(super) async fn look_at(&self, entry: &Entry, live: &LivePods, policy: &Policy) -> RoundResult {
        let now = SystemTime::now();
        let name = &entry.name;
        let (mut held, error) = self.authorities.look(entry, now).await;
        let result = |report, waiting, not_after, trouble, done| RoundResult {
            name: Arc::clone(name),
            report,
            waiting,
            not_after,
            trouble,
            done,
            overdue: None,
            waiting_since: None,
            idle_since: None,
        };
        let stored = match (&*held, error) {
            (Held::Ready(ready), None) => ready.stored.clone(),
            (_, error) => {
                let phase = match &*held {
                    Held::Lost => "lost",
                    Held::Unusable => "unusable",
                    Held::Ready(_) | Held::Unknown => UNKNOWN,
                };
                let mut report = Report::new(None, &[], None);
                phase.clone_into(&mut report.phase);
                let error = error.map(|e| e.to_string()).unwrap_or_default();
                report.waiting = vec![error.clone()];
                self.record(entry, &mut held).await;
                return result(report, 1, None, Some(error), None);
            }
        };
        let revocation = self.revocation(name, &stored);
        let with_unseen;
        let live = match live {
            LivePods::These(pods) => {
                let unseen = entry.newcomers().unseen(|uid| self.authorities.shows_pod(uid), Instant::now());
                if unseen.is_empty() {
                    pods.as_slice()
                } else {
                    with_unseen = [pods.as_slice(), &unseen].concat();
                    &with_unseen
                }
            }
            LivePods::NotGathered if stored.state.rollover.is_none() && revocation.is_none() => &[],
            // An authority that began to move since is looked at again.
            LivePods::NotListed | LivePods::NotGathered => {
                let mut report = report_of(&stored, &[]);
                report.waiting.push("the list of pods".to_owned());
                return result(report, 1, Some(stored.active.not_after()), None, None);
            }
        };
        // A pod without its label, say, is there all the same.
        let there =
            |uid: &str| is_host(uid) || self.authorities.shows_pod(uid) || live.iter().any(|pod| pod.uid == *uid);
        let (active, next) = (life(&stored.active), stored.next.as_deref().map(life));
        let given_secret = policy.given_secret(name);
        let given = given_secret.and_then(|secret| self.given.get(secret)).map(|(_, authority)| authority);
        let given_life = given.map(|given| life(given));
        let request = self.request(name, &stored);
        let situation = Situation {
            now,
            active: &active,
            next: next.as_ref(),
            given: given_life.as_ref(),
            user_owned: given_secret.is_some(),
            outside_clients: outside_clients(name, policy),
            client_overlap: policy.rollover.client_overlap,
            pods: live,
            leaves_until: stored.state.leaves_until,
            request: request.as_ref(),
        };
        let decision = decide(stored.state.rollover.as_deref(), &situation);
        let mut after = match &decision.step {
            Some(step) => match self.next_ca(name, step, given_secret, policy, now).await {
                Ok(next) => stored.after(step, next, now),
                Err(error) => {
                    // Certificates issued meanwhile are recorded all the same.
                    let report = report_of(&stored, &[]);
                    if entry.unwritten().is_due(Instant::now())
                        && let Err(error) = self.authorities.persist(entry, &mut held, stored).await
                    {
                        return result(report, 0, None, Some(error.to_string()), None);
                    }
                    return result(report, 0, None, Some(error.to_string()), None);
                }
            },
            None => stored.clone(),
        };
        if decision.answer.is_some() {
            after.state.answer = decision.answer.clone().map(Box::new);
        }
        if let Some(rollover) = &mut after.state.rollover {
            rollover.prune(there);
        }
        let voters = revocation.as_ref().map(|_| {
            let namespaces = self.namespaces.borrow();
            namespaces.as_ref().map(|namespaces| self.pods.voters(name, namespaces, policy)).unwrap_or_default()
        });
        let issued = Arc::clone(&after.issued);
        if revocation.is_some() {
            self.authorities.note_gap(&mut after);
        }
        after.revoke(revocation.as_ref(), &name.namespace, (live, &voters.unwrap_or_default()), now);
        after.issued = issued;
        let asked = request.is_some() || revocation.is_some();
        after.state.idle_since = self.idle_since(name, &after, asked, policy, now);
        let idle_since = after.state.idle_since;
        let done = decision.step.clone().map(|step| (step, after.clone()));
        let changed = done.is_some() || after.state != stored.state || after.revoked != stored.revoked;
        if changed || entry.unwritten().is_due(Instant::now()) {
            if let Some(rollover) = &mut after.state.rollover {
                rollover.forget_gone(there);
            }
            if let Err(error) = self.authorities.persist(entry, &mut held, after.clone()).await {
                // Another round reads what is there and decides again.
                return result(report_of(&stored, &[]), 0, None, Some(error.to_string()), None);
            }
            if changed {
                // There may be a next step at once.
                self.changed.notify_one();
            }
        }
        let until = after.active.not_after();
        let waiting = decision.waiting.len();
        let waiting_since = decision.waiting.iter().find_map(|w| match w {
            Waiting::Pod { since, .. } => Some(*since),
            _ => None,
        });
        let waiting_since = waiting_since.filter(|_| decision.step.is_none());
        let overdue = overdue(&decision.waiting, now).filter(|_| decision.step.is_none());
        let result = result(report_of(&after, &decision.waiting), waiting, Some(until), None, done);
        RoundResult { overdue, waiting_since, idle_since, ..result }
    }

    /// Records what was issued while nothing else can be done: the published list cannot be compared, say.
    async fn record(&self, entry: &Entry, held: &mut Held) {
        let stored = match &*held {
            Held::Ready(ready) if entry.unwritten().is_due(Instant::now()) => ready.stored.clone(),
            Held::Ready(_) | Held::Unknown | Held::Lost | Held::Unusable => return,
        };
        if let Err(error) = self.authorities.persist(entry, held, stored).await {
            tracing::debug!(authority = %entry.name, %error, "the record is not written yet");
        }
    }

    /// The CA that a step publishes.
    async fn next_ca(
        &self,
        name: &SignerName,
        step: &Step,
        given_secret: Option<&str>,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<Option<Authority>, Unavailable> {
        match (step, given_secret) {
            (Step::Publish(_) | Step::Force, Some(_)) => self.authorities.given(policy, name, now).await,
            (Step::Publish(_) | Step::Force, None) => generate(name, policy, now).map(Some),
            _ => Ok(None),
        }
    }

    /// An operator's request that has no answer yet.
    fn request(&self, name: &SignerName, stored: &Stored) -> Option<Request> {
        let config_map = self.config_maps.get(&name.namespace, &names::trust_config_map(&name.cluster))?;
        let text = config_map.requests.get(&request_annotation(name.domain))?;
        let request: Request = text.parse().ok()?;
        (stored.state.answer.as_ref().map(|a| &a.id) != Some(&request.id)).then_some(request)
    }
}

impl Reconciler {
    /// An operator's request to revoke that has no answer yet.
    fn revocation(&self, name: &SignerName, stored: &Stored) -> Option<revoke::Request> {
        let config_map = self.config_maps.get(&name.namespace, &names::trust_config_map(&name.cluster))?;
        let text = config_map.requests.get(&revoke::request_annotation(name.domain))?;
        let request: revoke::Request = text.parse().ok()?;
        (stored.revoked.answer().map(|answer| &answer.id) != Some(&request.id)).then_some(request)
    }
}

/// True if others than pods may hold leaves of an authority: it signs clients.
fn outside_clients(name: &SignerName, policy: &Policy) -> bool {
    let mapped = policy.shared.iter().filter(|shared| shared.authority == *name).flat_map(|shared| &shared.signers);
    mapped.chain([name]).any(|signer| signer.domain != Domain::Peer)
}

fn report_of(stored: &Stored, waiting: &[crate::rollover::Waiting]) -> Report {
    let mut report = Report::new(stored.state.rollover.as_deref(), waiting, stored.state.answer.as_deref().cloned());
    report.active = Some(stored.active.generation());
    report.active_until = Some(rfc3339::text(stored.active.not_after()));
    report
}

/// A step, for people.
pub(super) fn describe(name: &SignerName, step: &Step, after: &Stored, report: &Report) -> (&'static Reason, String) {
    let active = after.active.generation();
    match step {
        Step::Publish(trigger) => {
            let next = after.next.as_ref().map(|next| next.generation()).unwrap_or_default();
            (reasons::ROLLOVER_PUBLISHED, format!("{name}: CA {next} is published beside {active} ({trigger:?})"))
        }
        Step::ChangeOver(ChangeOver::Trusted) => {
            (reasons::ROLLOVER_CHANGED_OVER, format!("{name}: all pods trust CA {active}, which signs from now on"))
        }
        Step::ChangeOver(ChangeOver::Expiring) => (
            reasons::ROLLOVER_FORCED,
            format!(
                "{name}: the old CA is about to expire, so CA {active} signs from now on, although some pods do not \
                 trust it yet: {}",
                report.waiting.join("; ")
            ),
        ),
        Step::ChangeOver(ChangeOver::Forced) => (
            reasons::ROLLOVER_FORCED,
            format!(
                "{name}: by an operator's order CA {active} signs from now on, although some pods do not trust it \
                 yet: {}",
                report.waiting.join("; ")
            ),
        ),
        Step::Force => (
            reasons::ROLLOVER_FORCED,
            format!(
                "{name}: by an operator's order CA {} is published beside {active} and signs at once",
                after.next.as_ref().map(|next| next.generation()).unwrap_or_default()
            ),
        ),
        Step::ForceRetire => (
            reasons::ROLLOVER_FORCED,
            format!("{name}: by an operator's order the old CA is gone before its last certificate; {active} is left"),
        ),
        Step::Retire => (
            reasons::ROLLOVER_DONE,
            format!("{name}: the old CA's last leaf has gone, and so has the CA; {active} is left"),
        ),
        Step::Abort(why) => {
            (reasons::ROLLOVER_ABORTED, format!("{name}: the next CA was taken back ({why:?}); {active} goes on"))
        }
        Step::ConfirmClients => (
            reasons::ROLLOVER_CLIENTS_CONFIRMED,
            format!("{name}: an operator says that the clients outside trust the new CA"),
        ),
    }
}
