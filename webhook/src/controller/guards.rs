//! Proves that the admission policies which hold our own accounts are enforced, and keeps a right from being used while the
//! policy that guards it is not.
//!
//! ```text
//! shipped   what the manifests say: each policy, and how a live one falls short of it
//! access    which policy guards a call of the API
//! attempt   a write that must be refused, as a dry run
//! ```
//!
//! A policy counts as enforced when the live objects hold all that the shipped ones do, and when the API server refuses the
//! writes that the policy forbids. **Invariant.** A write whose policy was not proven within [`VALID`] is not sent: the gate is
//! part of the client, so no caller can forget it. Leases and Events are not gated: without a Lease nobody works, and an Event
//! reports a missing policy.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use etcd_tls_telemetry::admin::CheckError;
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    core::v1::ObjectReference,
};
use kube::{Api, Client};
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    client::within,
    events::{Notice, Recorder, reasons::POLICY_NOT_ENFORCED},
    namespaces,
};
use attempt::Attempt;
use shipped::Shipped;

pub(crate) use access::Access;
pub(crate) use policies::{Components, Guard, of_approve, of_sign};

mod access;
mod attempt;
mod policies;
mod shipped;

/// How often a proof is created again.
const EVERY: Duration = Duration::from_secs(30);
/// How often where something is missing.
const SOON: Duration = Duration::from_secs(2);
/// How long a proof counts while the API server cannot be asked.
const VALID: Duration = Duration::from_secs(5 * 60);

/// The known state of an admission policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PolicyState {
    /// Not proven: at start, or for too long while the API server failed us. Why.
    Unproven(String),
    /// Proven, then.
    Enforced(Instant),
    /// Not enforced: each fault.
    Broken(Vec<String>),
}

impl PolicyState {
    /// The fault at `now`, if there is one.
    fn fault(&self, now: Instant) -> Option<String> {
        match self {
            Self::Unproven(why) => Some(format!("not proven to be enforced: {why}")),
            Self::Enforced(at) if now.saturating_duration_since(*at) > VALID => {
                Some(format!("not proven to be enforced any more: the last proof is older than {} s", VALID.as_secs()))
            }
            Self::Enforced(_) => None,
            Self::Broken(faults) => Some(format!("not enforced: {}", faults.join("; "))),
        }
    }

    /// The state after another proof. An inconclusive one leaves the last proof in place.
    fn after(&self, proof: Proof, now: Instant) -> Self {
        match proof {
            Proof::Enforced => Self::Enforced(now),
            Proof::Broken(faults) => Self::Broken(faults),
            Proof::Unknown(why) => match self {
                Self::Enforced(at) if now.saturating_duration_since(*at) <= VALID => self.clone(),
                Self::Enforced(_) | Self::Unproven(_) => Self::Unproven(why),
                Self::Broken(_) => self.clone(),
            },
        }
    }
}

/// The result of one proof that a policy is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It is in place, and refuses what it must refuse.
    Enforced,
    /// Each fault.
    Broken(Vec<String>),
    /// Why it could not be found out.
    Unknown(String),
}

/// The state of every policy that a process depends on.
pub(crate) type PolicyStates = BTreeMap<Guard, PolicyState>;

/// Allows calls only while the policies that limit them are enforced.
#[derive(Clone)]
pub(crate) struct Gate {
    policy_states: watch::Receiver<PolicyStates>,
}

/// A call that was not sent, since its policy is not enforced.
#[derive(Debug, thiserror::Error)]
#[error(
    "not sent: ValidatingAdmissionPolicy {policy} is {fault}; {consequence} until it is. Apply the manifests again"
)]
pub(crate) struct NotEnforced {
    policy: &'static str,
    fault: String,
    consequence: &'static str,
}

impl Gate {
    /// A gate with how the policies of a process stand, and the other end, by which that is changed.
    pub(crate) fn new(guards: &[Guard]) -> (Self, watch::Sender<PolicyStates>) {
        let unproven = || PolicyState::Unproven("not looked at yet".to_owned());
        let (sender, policy_states) = watch::channel(guards.iter().map(|guard| (*guard, unproven())).collect());
        (Self { policy_states }, sender)
    }

    /// Checks that a call may be sent.
    ///
    /// # Errors
    /// The policy that guards it is not enforced.
    pub(crate) fn check(&self, access: &Access) -> Result<(), NotEnforced> {
        let now = Instant::now();
        let policy_states = self.policy_states.borrow();
        for guard in access.guards() {
            // One that another process depends on guards no right of this one.
            if let Some(fault) = policy_states.get(guard).and_then(|state| state.fault(now)) {
                return Err(NotEnforced { policy: guard.name(), fault, consequence: guard.consequence() });
            }
        }
        Ok(())
    }

    /// Checks that every policy of the process is enforced.
    ///
    /// # Errors
    /// Each policy that is not, and what follows from it.
    pub(crate) fn ready(&self) -> Result<(), UnenforcedPolicies> {
        let now = Instant::now();
        let policy_states = self.policy_states.borrow();
        let faults: Vec<_> =
            policy_states.iter().filter_map(|(guard, s)| Some(sentence(*guard, &s.fault(now)?))).collect();
        if faults.is_empty() { Ok(()) } else { Err(UnenforcedPolicies(faults)) }
    }
}

/// Policies that are not enforced, a sentence for each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(crate) struct UnenforcedPolicies(Vec<String>);

impl From<UnenforcedPolicies> for CheckError {
    fn from(unready: UnenforcedPolicies) -> Self {
        unready.to_string().into()
    }
}

fn sentence(guard: Guard, fault: &str) -> String {
    format!("ValidatingAdmissionPolicy {} is {fault}; {} until it is", guard.name(), guard.consequence())
}

/// The last report about a policy.
#[derive(Debug, Default)]
struct Said {
    /// Looks in a row that found a fault.
    looks: u32,
    fault: Option<String>,
}

/// The label of a policy's gauge.
pub(crate) type PolicyLabel = [(&'static str, &'static str); 1];

/// Looks at the policies again and again.
pub(crate) struct Prover {
    /// An attempt is a dry run, which the gate lets through.
    pub(crate) client: Client,
    pub(crate) system: String,
    /// `approve` or `sign`.
    pub(crate) process: &'static str,
    pub(crate) namespaces: namespaces::Current,
    pub(crate) recorder: Recorder,
    pub(crate) policy_states: watch::Sender<PolicyStates>,
    pub(crate) enforced: Family<PolicyLabel, Gauge>,
}

impl Prover {
    /// Works until it is dropped.
    pub(crate) async fn run(self) -> Infallible {
        let mut said: BTreeMap<Guard, Said> = BTreeMap::new();
        loop {
            let guards: Vec<Guard> = self.policy_states.borrow().keys().copied().collect();
            for guard in guards {
                let proof = self.prove(guard).await;
                let now = Instant::now();
                let before = self.policy_states.borrow().get(&guard).cloned();
                let before = before.unwrap_or_else(|| PolicyState::Unproven("not looked at yet".to_owned()));
                let after = before.after(proof, now);
                let fault = after.fault(now);
                self.enforced.get_or_create(&[("policy", guard.name())]).set(i64::from(fault.is_none()));
                self.policy_states.send_if_modified(|policy_states| {
                    let changed = policy_states.get(&guard) != Some(&after);
                    policy_states.insert(guard, after);
                    changed
                });
                self.say(guard, fault, said.entry(guard).or_default()).await;
            }
            let now = Instant::now();
            let fine = self.policy_states.borrow().values().all(|state| state.fault(now).is_none());
            sleep(if fine { EVERY } else { SOON }).await;
        }
    }

    /// Reports a fault that lasts for two looks: right after an install, policies are not yet in force for a moment.
    async fn say(&self, guard: Guard, fault: Option<String>, said: &mut Said) {
        let Some(fault) = fault else {
            if std::mem::take(said).fault.is_some() {
                tracing::info!(policy = guard.name(), "the admission policy is enforced again");
            }
            return;
        };
        said.looks += 1;
        if said.looks < 2 || said.fault.as_ref() == Some(&fault) {
            return;
        }
        let note = format!("{}. Apply the manifests again", sentence(guard, &fault));
        tracing::error!(policy = guard.name(), fault, "an admission policy is not enforced");
        let regarding = ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("Deployment".to_owned()),
            namespace: Some(self.system.clone()),
            name: Some(format!("etcd-tls-{}", self.process)),
            ..ObjectReference::default()
        };
        self.recorder.say_beside(Notice { regarding, reason: POLICY_NOT_ENFORCED, note });
        said.fault = Some(fault);
    }

    async fn prove(&self, guard: Guard) -> Proof {
        prove(guard, self.process, &self.client, &self.client, &self.system, &self.namespaces).await
    }
}

/// Looks at a policy once: at the live objects with `reader`, and by attempts that must be refused with `writer`, which acts as
/// the account of `process`.
pub(crate) async fn prove(
    guard: Guard,
    process: &str,
    reader: &Client,
    writer: &Client,
    system: &str,
    namespaces: &namespaces::Current,
) -> Proof {
    let shipped = match Shipped::of(guard) {
        Ok(shipped) => shipped,
        Err(error) => return Proof::Unknown(error.to_string()),
    };
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(reader.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(reader.clone());
    let name = guard.name();
    let live = match (within(policies.get_opt(name)).await, within(bindings.get_opt(name)).await) {
        (Ok(policy), Ok(binding)) => (policy, binding),
        (Err(error), _) | (_, Err(error)) => return Proof::Unknown(error.to_string()),
    };
    let mut faults = shipped.faults(live.0.as_ref(), live.1.as_ref());
    for attempt in Attempt::of(guard, process) {
        match attempt.make(writer, system, namespaces, name).await {
            attempt::Answer::Refused | attempt::Answer::NothingToTry => {}
            attempt::Answer::Accepted => faults.push(format!("the API server let through {}", attempt.what())),
            attempt::Answer::Unknown(error) if faults.is_empty() => return Proof::Unknown(error),
            attempt::Answer::Unknown(error) => {
                tracing::debug!(policy = name, error, "an attempt says nothing of a policy");
            }
        }
    }
    if faults.is_empty() { Proof::Enforced } else { Proof::Broken(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Components = Components {
        cert_manager: true,
        cluster_trust_bundles: true,
        pod_certificates: true,
        approvals_of_cert_manager: true,
    };

    #[test]
    fn a_proof_counts_for_a_while_and_a_fault_until_it_is_disproved() {
        let now = Instant::now();
        let unknown = || Proof::Unknown("away".to_owned());
        let start = PolicyState::Unproven("not looked at yet".to_owned());
        assert!(start.fault(now).is_some());
        assert_eq!(start.after(unknown(), now), PolicyState::Unproven("away".to_owned()));
        let proven = start.after(Proof::Enforced, now);
        assert_eq!(proven.fault(now + VALID), None);
        assert_eq!(proven.after(unknown(), now + VALID), proven);
        let late = now + VALID + Duration::from_secs(1);
        assert!(proven.fault(late).is_some());
        assert_eq!(proven.after(unknown(), late), PolicyState::Unproven("away".to_owned()));
        let broken = proven.after(Proof::Broken(vec!["missing".to_owned()]), now);
        assert!(broken.fault(now).is_some_and(|fault| fault.contains("missing")));
        assert_eq!(broken.after(unknown(), now), broken);
        assert_eq!(broken.after(Proof::Enforced, late), PolicyState::Enforced(late));
    }

    #[tokio::test]
    async fn pod_certificates_are_answered_while_their_policy_is_enforced_and_no_longer() {
        let status = "/apis/certificates.k8s.io/v1beta1/namespaces/a/podcertificaterequests/x/status";
        let status = Access::of("PATCH", status, None);
        let (gate, sender) = Gate::new(&of_sign(Components { pod_certificates: true, ..Components::default() }));
        assert!(gate.check(&status).is_err());
        sender.send_modify(|policy_states| {
            policy_states.values_mut().for_each(|s| *s = PolicyState::Enforced(Instant::now()));
        });
        assert!(gate.check(&status).is_ok() && gate.ready().is_ok());
        sender.send_modify(|policy_states| {
            policy_states.insert(Guard::PodCertificates, PolicyState::Broken(vec!["unbound".to_owned()]));
        });
        let refused = gate.check(&status).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.contains("etcd-tls-pod-certificates") && error.contains("unbound")));
        assert!(gate.ready().is_err());
        // An API server that enforces no policy shows them all as shipped; the attempt at a Secret gets through.
        sender.send_modify(|policy_states| {
            policy_states.insert(Guard::PodCertificates, PolicyState::Enforced(Instant::now()));
            policy_states.insert(
                Guard::Secrets,
                PolicyState::Broken(vec!["the API server let through another Secret".to_owned()]),
            );
        });
        let refused = gate.check(&status).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.contains("etcd-tls-secrets") && error.contains("let through")));
        let without = of_sign(Components { pod_certificates: false, ..ALL });
        assert!(!without.contains(&Guard::PodCertificates), "without the component, nothing asks for it");
    }

    #[tokio::test]
    async fn cluster_trust_bundles_are_published_while_their_policy_is_enforced_and_no_longer() {
        let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles/peer.etcd-tls.dev:a.etcd:bundle";
        let writes = ["PATCH", "DELETE"].map(|method| Access::of(method, path, None));
        let (gate, sender) = Gate::new(&of_sign(Components { cluster_trust_bundles: true, ..Components::default() }));
        assert!(writes.iter().all(|write| gate.check(write).is_err()));
        assert!(gate.check(&Access::of("GET", path, None)).is_ok());
        sender.send_modify(|policy_states| {
            policy_states.values_mut().for_each(|s| *s = PolicyState::Enforced(Instant::now()));
        });
        assert!(writes.iter().all(|write| gate.check(write).is_ok()));
        sender.send_modify(|policy_states| {
            policy_states.insert(Guard::ClusterTrustBundles, PolicyState::Broken(vec!["unbound".to_owned()]));
        });
        let refused = gate.check(&writes[0]).map_err(|error| error.to_string());
        assert!(
            refused.is_err_and(|error| error.contains("etcd-tls-cluster-trust-bundles") && error.contains("unbound"))
        );
        let without = of_sign(Components { cluster_trust_bundles: false, ..ALL });
        assert!(!without.contains(&Guard::ClusterTrustBundles), "without the component, nothing asks for it");
    }

    #[tokio::test]
    async fn the_rights_of_cert_managers_component_are_used_while_its_policies_are_enforced_and_no_longer() {
        let delete = "/apis/cert-manager.io/v1/namespaces/a/certificaterequests/x";
        let delete = Access::of("DELETE", delete, None);
        let binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/etcd-tls-requesters";
        let binding = Access::of("PATCH", binding, None);
        let component = Components { cert_manager: true, ..Components::default() };
        for (access, guards, guard) in [
            (delete, of_sign(component), Guard::CertificateRequestDeletes),
            (binding, of_approve(component), Guard::CertificateRequests),
        ] {
            let (gate, sender) = Gate::new(&guards);
            assert!(gate.check(&access).is_err());
            let proven = |policy_states: &mut PolicyStates| {
                policy_states.values_mut().for_each(|state| *state = PolicyState::Enforced(Instant::now()));
            };
            sender.send_modify(proven);
            assert!(gate.check(&access).is_ok() && gate.ready().is_ok());
            sender.send_modify(|policy_states| {
                policy_states.insert(guard, PolicyState::Broken(vec!["unbound".to_owned()]));
            });
            let refused = gate.check(&access).map_err(|error| error.to_string());
            assert!(refused.is_err_and(|error| error.contains(guard.name()) && error.contains("unbound")));
            assert!(gate.ready().is_err());
        }
        let (gate, sender) = Gate::new(&of_approve(Components::default()));
        sender.send_modify(|policy_states| {
            policy_states.values_mut().for_each(|s| *s = PolicyState::Enforced(Instant::now()));
        });
        assert!(gate.check(&binding).is_ok(), "without the component, nothing asks for it");
    }

    #[tokio::test]
    async fn a_right_is_used_while_its_policy_is_proven_and_no_longer() {
        let (gate, sender) = Gate::new(&of_approve(Components::default()));
        let access = |method, path| Access::of(method, path, None);
        let binding = access("PATCH", "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings/etcd-tls-sign");
        let lease = access("PUT", "/apis/coordination.k8s.io/v1/namespaces/etcd-tls-system/leases/etcd-tls-approve");
        let refused = gate.check(&binding).map_err(|error| error.to_string());
        assert!(refused.is_err_and(|error| error.contains("etcd-tls-bindings") && error.contains("not looked at yet")));
        assert!(gate.check(&lease).is_ok(), "without a Lease nobody could say so");
        assert!(gate.ready().is_err_and(|why| why.to_string().contains("etcd-tls-bindings")));
        sender.send_modify(|policy_states| {
            policy_states.values_mut().for_each(|s| *s = PolicyState::Enforced(Instant::now()));
        });
        assert!(gate.check(&binding).is_ok() && gate.ready().is_ok());
        sender.send_modify(|policy_states| {
            policy_states.insert(Guard::Bindings, PolicyState::Broken(vec!["unbound".to_owned()]));
        });
        assert!(gate.check(&binding).is_err());
        assert!(gate.ready().is_err_and(|why| why.to_string().contains("unbound")));
    }
}
