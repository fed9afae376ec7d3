//! The approver: reads each request of ours, reads its pod live, and writes approve, deny or nothing yet. Requests of our pods to
//! signers of others are decided by the same rules, where the arguments name the signer ([`others`]). What policy leaves to a person
//! is denied or left, and never approved here.
//!
//! It holds no key and can sign nothing; the signer checks again for itself. It needs the rights of the ClusterRole
//! `etcd-tls-approve` in the manifests: read CSRs, pods, Services and namespaces, patch `certificatesigningrequests/approval`,
//! `approve` our signers, write events, and keep two bindings ([`bindings`]).
//!
//! **Invariant.** Denied is written only for what waiting cannot change ([`crate::controller`]).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use etcd_tls_contract::{
    identity::{Denial, Entitlement, Verdict},
    names::REVIEWED_CONDITION,
};
use prometheus_client::registry::Registry;

use crate::{
    controller::{
        Controller, ControllerArgs, Trouble,
        case::{self, Case},
        csr::{self as queue, Handled, Handler, Seen},
        events::{
            Notice, pod_reference,
            reasons::{CERTIFICATE_AWAITS_APPROVAL, CERTIFICATE_DENIED},
            request_reference,
        },
        facts::Csr,
        guards::{self, Components},
        refusals::Refusals,
    },
    error::Error,
};
use metrics::Metrics;
use others::Others;
use warned::Warned;

pub mod bindings;
mod metrics;
mod others;
mod warned;

/// The Lease that the replicas share.
const LEASE: &str = "etcd-tls-approve";

/// The arguments of `approve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    controller: ControllerArgs,
    #[command(flatten)]
    bindings: bindings::BindingArgs,
    /// Grant the right to request only while the admission policy on CertificateRequests is enforced, too. For the component
    /// cert-manager.
    #[arg(long)]
    cert_manager: bool,
    #[command(flatten)]
    others: Others,
}

impl Args {
    /// Approves until told to stop.
    ///
    /// # Errors
    /// The reason why it could not start.
    pub async fn run(self) -> Result<(), Error> {
        let mut registry = Registry::with_prefix("etcd_tls_approve");
        let metrics = Metrics::register(&mut registry);
        let of_cert_manager = !self.others.issuers().is_empty();
        let queue = of_cert_manager.then(|| queue::Metrics::register_certificate_requests(&mut registry));
        let components = Components {
            cert_manager: self.cert_manager,
            approvals_of_cert_manager: of_cert_manager,
            ..Components::default()
        };
        let warned = Arc::new(Warned::default());
        let observer = Some(warned.observer());
        let started = self.controller.start(LEASE, &guards::of_approve(components), registry, observer, queue).await?;
        let controller = started.controller.clone();
        let teller = controller.clone();
        controller.tasks.keep("warnings", move || {
            let (warned, controller) = (Arc::clone(&warned), teller.clone());
            async move { match warned.keep(&controller).await {} }
        });
        let binds = bindings::Reconciler {
            client: controller.client.clone(),
            namespaces: controller.namespaces.clone(),
            policy: controller.policy.clone(),
            recorder: controller.recorder.clone(),
            metrics: metrics.clone(),
            args: self.bindings,
        };
        let binds = binds.run(controller.leader.clone());
        let (others, controller_too) = (Arc::new(self.others), controller.clone());
        let approver = |controller| {
            let (others, metrics) = (Arc::clone(&others), metrics.clone());
            Arc::new(Approver { controller, metrics, others, refusals: Mutex::default() })
        };
        let beside = of_cert_manager.then(|| approver(controller_too));
        started.run(approver(controller), beside, binds, async {}).await;
        Ok(())
    }
}

struct Approver {
    controller: Controller,
    metrics: Metrics,
    others: Arc<Others>,
    refusals: Mutex<Refusals>,
}

impl Handler for Approver {
    fn observe(&self, seen: Seen<'_>) {
        if let Seen::There(csr) = seen {
            self.controller.pods.saw(csr);
            if self.decides(csr) {
                self.controller.note_answered(csr);
            }
            self.notice_others(csr);
        }
        let mut refusals = self.refusals();
        match seen {
            Seen::ListBegins => {
                self.controller.pods.saw_none();
                refusals.clear();
            }
            Seen::There(csr) if self.decides(csr) && (csr.denied() || csr.failed()) => {
                refusals.insert(csr);
            }
            Seen::There(_) | Seen::ListEnds => {}
            Seen::Gone(csr) => refusals.remove(csr),
        }
    }

    fn concerns(&self, csr: &Csr) -> bool {
        case::is_open(csr) && self.decides(csr)
    }

    async fn handle(&self, csr: &Csr) -> Handled {
        let (case, began) = (Case::open(csr), SystemTime::now());
        let result = match self.controller.decide(csr, &case).await {
            Ok(Verdict::Approve(entitlement)) => self.approve_or_leave(csr, &case, &entitlement).await,
            Ok(Verdict::Deny(denials)) => self.deny(csr, &case, &denials).await,
            Ok(Verdict::NotYet(reason)) => Err(Trouble::NotYet(reason)),
            Err(trouble) => Err(trouble),
        };
        self.controller.trace(csr, &case, began, &result);
        self.controller.outcome(csr, result)
    }
}

// One log line and one count for each decision: the requester, the subject and every reason. No bytes of the request.
impl Approver {
    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if requests to that signer, of that requester, are decided here.
    fn decides(&self, csr: &Csr) -> bool {
        case::is_ours(&csr.spec.signer_name) || self.others.concern(csr)
    }

    /// Says once of each issuer of cert-manager that somebody else approves what is to be decided here.
    fn notice_others(&self, csr: &Csr) {
        let approved = csr.status.conditions.iter().find(|c| c.type_ == "Approved" && c.status == "True");
        let by = approved.map(|c| c.reason.as_deref().unwrap_or_default()).filter(|reason| *reason != case::APPROVED);
        let Some(by) = by.filter(|_| csr.spec.issuer.is_some() && self.others.concern(csr)) else { return };
        if self.metrics.approved_by_others(&csr.spec.signer_name) {
            tracing::warn!(
                csr = &*csr.key(),
                issuer = csr.spec.signer_name,
                by,
                "a CertificateRequest was approved by another approver, which has not looked who asks; turn cert-manager's own off"
            );
        }
    }

    /// The subresource that holds the decision.
    const fn subresource(csr: &Csr) -> &'static str {
        if csr.spec.issuer.is_some() { "status" } else { "approval" }
    }

    async fn approve_or_leave(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Result<(), Trouble> {
        // Those to the signers of others are nobody's by this policy.
        if case.signer().is_some()
            && let Some(rule) = self.controller.manual_approval(case.bound.as_ref(), entitlement, is_left(csr)).await?
        {
            return self.leave(csr, case, entitlement, rule).await;
        }
        self.approve(csr, case, entitlement).await
    }

    async fn approve(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Result<(), Trouble> {
        let now = SystemTime::now();
        let message = format!("{} of {}: asks for no more than it is", entitlement.role, csr.spec.signer_name);
        let patch = case::patch(csr, "Approved", case::APPROVED, &message, now);
        self.controller.write(csr, Self::subresource(csr), patch).await?;
        self.controller.note_certificate(case, &entitlement.sans, now + entitlement.lifetime);
        self.metrics.approved();
        let (pod, signer, username) = (case.pod(), &csr.spec.signer_name, &csr.spec.username);
        tracing::info!(csr = csr.name(), uid = csr.uid(), signer, username, pod, "approved");
        Ok(())
    }

    /// Leaves a request to a person, by this rule of policy: says so once, in Events and in a condition.
    async fn leave(&self, csr: &Csr, case: &Case, entitlement: &Entitlement, rule: usize) -> Result<(), Trouble> {
        let (name, signer) = (csr.name(), &csr.spec.signer_name);
        // A host names its requests, and a person copies the command.
        let is_plain =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte));
        let message = format!(
            "{} of {signer}: asks for no more than it is. By manualApproval[{rule}] of the policy a person decides: \
             kubectl certificate approve {}",
            entitlement.role,
            if is_plain { name } else { "<name of the request>" }
        );
        let waits = Err(Trouble::NotYet(message.clone()));
        if is_left(csr) {
            return waits;
        }
        // Of a pod's requests one Event beside the pod: each new request would else be one more object with Events.
        let of_pod = case.bound.as_ref().map(|bound| pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid));
        let regarding = of_pod.unwrap_or_else(|| request_reference(name, csr.uid()));
        self.controller.recorder.say_beside(Notice {
            regarding,
            reason: CERTIFICATE_AWAITS_APPROVAL,
            note: message.clone(),
        });
        let patch = case::patch(csr, REVIEWED_CONDITION, case::MANUAL, &message, SystemTime::now());
        self.controller.write(csr, Self::subresource(csr), patch).await?;
        self.metrics.left();
        let (pod, username) = (case.pod(), &csr.spec.username);
        tracing::info!(csr = name, uid = csr.uid(), signer, username, pod, rule, "left to a person");
        waits
    }

    async fn deny(&self, csr: &Csr, case: &Case, denials: &[Denial]) -> Result<(), Trouble> {
        let reasons = case::message(denials);
        let (pod, signer, username) = (case.pod(), &csr.spec.signer_name, &csr.spec.username);
        if self.refusals().full(csr) {
            self.metrics.unanswered();
            tracing::debug!(
                csr = csr.name(),
                uid = csr.uid(),
                signer,
                username,
                pod,
                reasons,
                "left to the signer to delete"
            );
            return Ok(());
        }
        let patch = case::patch(csr, "Denied", case::DENIED, &reasons, SystemTime::now());
        self.controller.write(csr, Self::subresource(csr), patch).await?;
        denials.iter().for_each(|denial| self.metrics.denied(denial.reason));
        tracing::warn!(csr = csr.name(), uid = csr.uid(), signer, username, pod, reasons, "denied");
        self.controller.tell_pod(case.bound.as_ref(), CERTIFICATE_DENIED, denials).await;
        Ok(())
    }
}

/// True if a request is left to a person.
fn is_left(csr: &Csr) -> bool {
    csr.status.conditions.iter().any(|condition| condition.type_ == REVIEWED_CONDITION)
}
