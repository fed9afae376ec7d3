//! The approver: reads each request of ours, reads its pod live, and writes approve, deny or nothing yet.
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

use etcd_tls_contract::identity::{Denial, Entitlement, Verdict};
use prometheus_client::registry::Registry;

use crate::{
    controller::{
        Controller, ControllerArgs, Trouble,
        case::{self, Case},
        csr::{Handler, Outcome, Seen},
        facts::Csr,
        guards::{self, Components},
        refusals::Refusals,
    },
    error::Error,
};
use metrics::Metrics;
use warned::Warned;

pub mod bindings;
mod metrics;
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
    /// Give the right to request only while the policy on CertificateRequests is enforced, too; for the component cert-manager.
    #[arg(long)]
    cert_manager: bool,
}

impl Args {
    /// Approves until told to stop.
    ///
    /// # Errors
    /// The reason why it could not start.
    pub async fn run(self) -> Result<(), Error> {
        let mut registry = Registry::with_prefix("etcd_tls_approve");
        let metrics = Metrics::register(&mut registry);
        let components = Components { cert_manager: self.cert_manager, ..Components::default() };
        let warned = Arc::new(Warned::default());
        let observer = Some(warned.observer());
        let started = self.controller.start(LEASE, &guards::of_approve(components), registry, observer).await?;
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
        let approver = Approver { controller, metrics, refusals: Mutex::default() };
        started.run(Arc::new(approver), binds, async {}).await;
        Ok(())
    }
}

struct Approver {
    controller: Controller,
    metrics: Metrics,
    refusals: Mutex<Refusals>,
}

impl Handler for Approver {
    fn observe(&self, seen: Seen<'_>) {
        if let Seen::There(csr) = seen {
            self.controller.pods.saw(csr);
            self.controller.note_answered(csr);
        }
        let mut refusals = self.refusals();
        match seen {
            Seen::ListBegins => refusals.clear(),
            Seen::There(csr) if case::is_ours(&csr.spec.signer_name) && (csr.denied() || csr.failed()) => {
                refusals.insert(csr);
            }
            Seen::There(_) | Seen::ListEnds => {}
            Seen::Gone(csr) => refusals.remove(csr),
        }
    }

    fn concerns(&self, csr: &Csr) -> bool {
        case::concerns_us(csr)
    }

    async fn handle(&self, csr: &Csr) -> Outcome {
        let (case, began) = (Case::open(csr), SystemTime::now());
        let result = match self.controller.decide(csr, &case).await {
            Ok(Verdict::Approve(entitlement)) => self.approve(csr, &case, &entitlement).await,
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

    async fn approve(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Result<(), Trouble> {
        let message = format!("{} of {}: asks for no more than it is", entitlement.role, entitlement.signer);
        self.controller.write(csr, "approval", case::patch(csr, "Approved", case::APPROVED, &message)).await?;
        self.controller.note_certificate(case, &entitlement.sans, SystemTime::now() + entitlement.lifetime);
        self.metrics.approved();
        let (pod, signer, username) = (case.pod(), &csr.spec.signer_name, &csr.spec.username);
        tracing::info!(csr = csr.name(), uid = csr.uid(), signer, username, pod, "approved");
        Ok(())
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
        self.controller.write(csr, "approval", case::patch(csr, "Denied", case::DENIED, &reasons)).await?;
        denials.iter().for_each(|denial| self.metrics.denied(denial.reason));
        tracing::warn!(csr = csr.name(), uid = csr.uid(), signer, username, pod, reasons, "denied");
        self.controller.tell_pod(case.bound.as_ref(), "CertificateDenied", denials).await;
        Ok(())
    }
}
