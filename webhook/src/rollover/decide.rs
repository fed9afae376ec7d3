//! The next step of a rollover: a function of the situation.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use super::{
    Abort, Action, Answer, ChangeOver, Decision, Life, LivePod, Phase, Request, Rollover, Situation, Step, Trigger,
    Waiting,
};
use etcd_tls_contract::{
    role::Domain,
    trusts::{TrustStatement, Unknown},
};

/// How long before the old CA's end it is changed over even though not everybody trusts the new one: at most this, and a
/// twentieth of the CA's life at most. Leaves of the old CA are cut to its end, so they are renewed within that time.
const LAST_CALL: Duration = Duration::from_secs(60 * 60);
/// How long the old CA stays beyond its last leaf's end while a pod is not known to have a leaf of the new one: the
/// signer's clock may be wrong.
pub(super) const CLOCK_GRACE: Duration = Duration::from_secs(2 * 60 * 60);

/// The next step.
pub fn decide(state: Option<&Rollover>, s: &Situation<'_>) -> Decision {
    let (requested, answer) = match s.request {
        None => (None, None),
        Some(request) => {
            let (step, answer) = weigh(request, state, s);
            (step, Some(answer))
        }
    };
    let (step, waiting) = match (requested, state) {
        (Some(step), _) => (Some(step), Vec::new()),
        (None, None) => stable(s),
        (None, Some(r)) if r.phase == Phase::Published => published(r, s),
        (None, Some(r)) => signing(r, s),
    };
    Decision { step, waiting, answer }
}

/// The effect of an operator's request.
fn weigh(request: &Request, state: Option<&Rollover>, s: &Situation<'_>) -> (Option<Step>, Answer) {
    let accepted = |step, message: &str| (Some(step), Answer::accepted(request, message));
    let refused = |message: &str| (None, Answer::refused(request, message));
    match (request.action, state.map(|r| r.phase)) {
        (Action::Start, Some(Phase::Published | Phase::Signing)) => {
            refused("a rollover is under way already; see --status")
        }
        (Action::Start, None) if s.user_owned => {
            refused("this CA is the user's: replace the Secret that policy names, and the rollover begins by itself")
        }
        (Action::Start, None) => accepted(Step::Publish(Trigger::Command), "a new CA is being published"),
        (Action::Abort, Some(Phase::Published)) => accepted(
            Step::Abort(Abort::Command),
            "the new CA is being taken back; members that had loaded it restart once more",
        ),
        (Action::Abort, Some(Phase::Signing)) => refused(
            "the new CA signs already and the old one's key is gone; to leave the new CA, start another rollover when this \
             one is done",
        ),
        (Action::ConfirmClients, Some(Phase::Published)) => {
            accepted(Step::ConfirmClients, "the clients outside are taken to trust the new CA")
        }
        (Action::ConfirmClients, Some(Phase::Signing)) => refused("the new CA signs already"),
        (Action::Abort | Action::ConfirmClients, None) => refused("no rollover is under way"),
        (Action::Force, None) if s.user_owned => {
            refused("this CA is the user's: replace the Secret that policy names, then force the rollover that begins")
        }
        (Action::Force, None) => accepted(Step::Force, "a new CA is being published and signs at once"),
        (Action::Force, Some(Phase::Published)) if unfit(s).is_some() => {
            refused("the new CA is not valid now and is taken back; force again for another one")
        }
        (Action::Force, Some(Phase::Published)) => accepted(
            Step::ChangeOver(ChangeOver::Forced),
            "the new CA signs from now on, even if a pod does not trust it yet",
        ),
        (Action::Force, Some(Phase::Signing)) => {
            accepted(Step::ForceRetire, "the old CA is removed now, even if a pod still has a certificate of it")
        }
    }
}

fn stable(s: &Situation<'_>) -> (Option<Step>, Vec<Waiting>) {
    if let Some(given) = s.given
        && given.generation != s.active.generation
        && given.unfit(s.now).is_none()
    {
        return (Some(Step::Publish(Trigger::Replaced)), Vec::new());
    }
    if s.now < half(s.active) {
        return (None, Vec::new());
    }
    if s.user_owned {
        return (None, vec![Waiting::UserCa { until: s.active.not_after }]);
    }
    (Some(Step::Publish(Trigger::Schedule)), Vec::new())
}

fn published(r: &Rollover, s: &Situation<'_>) -> (Option<Step>, Vec<Waiting>) {
    // Nothing is signed by the next CA yet: another one, or the old one again, costs no more than a restart.
    if let Some(given) = s.given
        && given.generation != r.new
    {
        return (Some(Step::Abort(Abort::Replaced)), Vec::new());
    }
    if let Some(why) = unfit(s) {
        return (Some(Step::Abort(why)), Vec::new());
    }
    let mut waiting = untrusting(r, s);
    if r.forced {
        return (Some(Step::ChangeOver(ChangeOver::Forced)), waiting);
    }
    if s.outside_clients && !r.clients_confirmed {
        let until = s.client_overlap.and_then(|overlap| r.since.checked_add(overlap));
        if until.is_none_or(|until| s.now < until) {
            waiting.push(Waiting::ClientsOutside { until });
        }
    }
    if waiting.is_empty() {
        return (Some(Step::ChangeOver(ChangeOver::Trusted)), waiting);
    }
    if s.now >= last_call(s.active) {
        return (Some(Step::ChangeOver(ChangeOver::Expiring)), waiting);
    }
    (None, waiting)
}

fn signing(r: &Rollover, s: &Situation<'_>) -> (Option<Step>, Vec<Waiting>) {
    let until = r.old_leaves_until.unwrap_or(r.since);
    let mut waiting: Vec<Waiting> = s
        .pods
        .iter()
        .filter(|pod| r.pods.get(&pod.uid).is_none_or(|seen| !pod.roles.is_subset(&seen.renewed)))
        .map(|pod| Waiting::Renewal(pod.name.clone()))
        .collect();
    if s.now < until {
        waiting.push(Waiting::OldLeaves { until });
    } else if until.checked_add(CLOCK_GRACE).is_some_and(|end| end <= s.now) {
        waiting.clear();
    }
    if waiting.is_empty() { (Some(Step::Retire), waiting) } else { (None, waiting) }
}

fn untrusting(r: &Rollover, s: &Situation<'_>) -> Vec<Waiting> {
    let trusts = |pod: &LivePod| {
        let domains: BTreeSet<Domain> = pod.roles.iter().map(|role| role.domain()).collect();
        r.pods.get(&pod.uid).is_some_and(|seen| domains.is_subset(&seen.trusts))
    };
    let unknown = |pod: &LivePod| {
        if pod.of_kubelet {
            return Some(Unknown::Kubelet);
        }
        let word = r.pods.get(&pod.uid)?.unknown.values().next()?;
        match format!("unknown:{word}").parse() {
            Ok(TrustStatement::Unknown(reason)) => Some(reason),
            _ => None,
        }
    };
    let waiting = |pod: &LivePod| Waiting::Pod { name: pod.name.clone(), since: r.since, unknown: unknown(pod) };
    s.pods.iter().filter(|pod| !trusts(pod)).map(waiting).collect()
}

/// Why the next CA cannot take over now. One that issues nothing would leave every pod without a certificate, and the old key is gone
/// by then.
fn unfit(s: &Situation<'_>) -> Option<Abort> {
    s.next.map_or(Some(Abort::Expired), |next| next.unfit(s.now))
}

fn half(life: &Life) -> SystemTime {
    life.not_before + length(life) / 2
}

fn last_call(life: &Life) -> SystemTime {
    life.not_after - LAST_CALL.min(length(life) / 20)
}

fn length(life: &Life) -> Duration {
    life.not_after.duration_since(life.not_before).unwrap_or_default()
}
