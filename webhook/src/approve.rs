//! The approver: reads each request of ours, reads its pod live, and writes approve, deny or nothing yet.
//!
//! It holds no key and can sign nothing; the signer checks again for itself. What it must be able to do in the API server is
//! the ClusterRole `etcd-tls-approve` in the manifests: read CSRs, pods, Services and namespaces, patch
//! `certificatesigningrequests/approval`, `approve` our signers, write events, and keep two bindings ([`bindings`]).
//!
//! **Invariant.** Denied is written only for what waiting cannot change: never for an error of ours or the API server's,
//! never by what a cache says of pod, namespace or Services, never without a policy.

use std::{net::SocketAddr, sync::Arc};

use etcd_tls_sidecar::{
    identity::{Denial, Verdict},
    names, telemetry,
};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};

use crate::{
    cli::Error,
    client::{self, RequestError, within},
    csr_watch::{self, Handler, Interest, Outcome},
    events::{Notice, Recorder, pod_reference},
    facts::{self, Csr},
    health::Health,
    lease::Candidate,
    namespace_watch, policy_watch, shutdown,
};
use metrics::Metrics;
use review::Case;

pub mod bindings;
mod metrics;
pub(crate) mod review;

/// The Lease that the replicas share.
const LEASE: &str = "etcd-tls-approve";

/// The arguments of `approve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The namespace of the policy and of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// This replica's name, one of its own [default: the host name, which is the pod's].
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// Requests that are worked on at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// Where /live, /ready and /metrics are served.
    #[arg(long, default_value = "[::]:9179")]
    admin_address: SocketAddr,
    /// The log's level, or targets with levels (info,kube_client=debug).
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// The form of the log's lines.
    #[arg(long, default_value = "text")]
    log_format: telemetry::Format,
}

impl Args {
    /// Approves until told to stop.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn run(self) -> Result<(), Error> {
        let Self { namespace, identity, workers, admin_address, log_level, log_format } = self;
        telemetry::init(log_format, &log_level)?;
        let shutdown = shutdown::on_signals()?;
        let identity = match identity {
            Some(identity) => identity,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let client = client::connect().await?;
        let recorder = Recorder::new(client.clone(), "approve", &identity);

        let mut registry = metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let queue = csr_watch::Metrics::register(&mut registry);
        let health = Arc::new(Health::new(registry));

        let policy = policy_watch::spawn(client.clone(), &namespace, recorder.clone(), metrics.policy_readable.clone());
        let namespaces = namespace_watch::spawn(client.clone());
        let candidate = Candidate::spawn(client.clone(), &namespace, LEASE, &identity);
        health.require({
            let namespaces = namespaces.clone();
            move || namespaces.borrow().as_ref().map(|_| ()).ok_or_else(|| "namespaces not listed yet".to_owned())
        });
        health.require({
            let policy = policy.clone();
            move || policy.borrow().as_ref().map(|_| ()).ok_or_else(|| "no policy could be read yet".to_owned())
        });
        health.require({
            let (leader, queue) = (candidate.leader(), queue.clone());
            move || {
                let waiting = *leader.borrow() && !queue.is_synced();
                if waiting { Err("CertificateSigningRequests not listed yet".to_owned()) } else { Ok(()) }
            }
        });
        health.serve(admin_address).await?;

        let leader = candidate.leader();
        let approver = Arc::new(Approver {
            client: client.clone(),
            policy: policy.clone(),
            namespaces: namespaces.clone(),
            recorder,
            metrics: metrics.clone(),
        });
        let shows = metrics.show_leadership(leader.clone());
        let binds = bindings::run(client.clone(), namespaces, policy, leader.clone(), metrics.binding_writes.clone());
        let approves = csr_watch::run(client, approver, usize::from(workers), leader, shutdown, queue);
        tokio::select! {
            () = approves => {}
            () = binds => {}
            () = shows => {}
        }
        candidate.release().await;
        Ok(())
    }
}

struct Approver {
    client: Client,
    policy: policy_watch::Current,
    namespaces: namespace_watch::Current,
    recorder: Recorder,
    metrics: Metrics,
}

impl Handler for Approver {
    fn interest(&self, csr: &Csr) -> Interest {
        if review::concerns_us(csr) { Interest::Now } else { Interest::Ignore }
    }

    async fn handle(&self, csr: &Csr) -> Outcome {
        let case = Case::open(csr);
        match self.decide(csr, &case).await {
            Ok(verdict) => self.apply(csr, &case, verdict).await,
            Err(error) => self.failed(csr, &error),
        }
    }
}

impl Approver {
    /// Reads what the verdict needs, live, and judges. An approval costs one read, the pod's.
    async fn decide(&self, csr: &Csr, case: &Case) -> Result<Verdict, RequestError> {
        let Some(policy) = self.policy.borrow().clone() else {
            return Ok(Verdict::NotYet("no policy could be read yet".to_owned()));
        };
        let Some(bound) = case.needs_pod() else {
            return Ok(case.judge(csr, None, &[], &policy));
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let Some(pod) = within(pods.get_opt(&bound.pod)).await? else {
            return Ok(case.judge(csr, None, &[], &policy));
        };
        let opted_in = self.namespaces.borrow().as_ref().and_then(|n| n.get(&bound.namespace).map(|n| n.opted_in));
        let facts = facts::pod(&pod, opted_in.unwrap_or_default());
        let verdict = case.judge(csr, Some(&facts), &[], &policy);
        if !matches!(verdict, Verdict::Deny(_)) {
            return Ok(verdict);
        }
        // A denial is for ever, so nothing that was cached or left out may be its reason: the namespace's label as it is
        // now, and the Services, which add to what the pod may ask for.
        let namespace = namespace_watch::live(&self.client, &bound.namespace).await?;
        let services: Api<Service> = Api::namespaced(self.client.clone(), &bound.namespace);
        let services: Vec<_> =
            within(services.list(&ListParams::default())).await?.items.iter().map(facts::service).collect();
        let facts = facts::pod(&pod, namespace.is_some_and(|namespace| namespace.opted_in));
        Ok(case.judge(csr, Some(&facts), &services, &policy))
    }

    async fn apply(&self, csr: &Csr, case: &Case, verdict: Verdict) -> Outcome {
        let written = match &verdict {
            Verdict::Approve(entitlement) => {
                let message = format!("{} of {}: asks for no more than it is", entitlement.role, entitlement.signer);
                self.write(csr, review::patch(csr, "Approved", review::APPROVED, &message)).await
            }
            Verdict::Deny(denials) => {
                self.write(csr, review::patch(csr, "Denied", review::DENIED, &review::message(denials))).await
            }
            Verdict::NotYet(reason) => {
                self.metrics.not_yet();
                tracing::debug!(csr = csr.name(), reason, "not yet");
                return Outcome::NotYet;
            }
        };
        match written {
            Ok(()) => {
                self.record(csr, case, &verdict);
                if let Verdict::Deny(denials) = verdict {
                    self.tell_pod(case, &denials).await;
                }
                Outcome::Done
            }
            Err(error) if error.is_not_found() => Outcome::Done,
            // Another one of that name, or somebody else was faster: looked at again, as a new one.
            Err(error) if error.is_stale() => {
                self.metrics.stale();
                tracing::debug!(csr = csr.name(), %error, "changed since it was looked at");
                Outcome::Stale
            }
            Err(error) => self.failed(csr, &error),
        }
    }

    async fn write(&self, csr: &Csr, patch: serde_json::Value) -> Result<(), RequestError> {
        let api: Api<Csr> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(LEASE.to_owned()), ..PatchParams::default() };
        within(api.patch_subresource("approval", csr.name(), &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// One line and one count for each decision: who asked, for what, and every reason. Nothing of the request's bytes.
    fn record(&self, csr: &Csr, case: &Case, verdict: &Verdict) {
        let pod = case.bound.as_ref().map(|bound| format!("{}/{}", bound.namespace, bound.pod)).unwrap_or_default();
        let signer = &csr.spec.signer_name;
        match verdict {
            Verdict::Approve(_) => {
                self.metrics.approved();
                tracing::info!(
                    csr = csr.name(),
                    uid = csr.uid(),
                    signer,
                    username = csr.spec.username,
                    pod,
                    "approved"
                );
            }
            Verdict::Deny(denials) => {
                denials.iter().for_each(|denial| self.metrics.denied(denial.reason));
                let reasons = review::message(denials);
                tracing::warn!(
                    csr = csr.name(),
                    uid = csr.uid(),
                    signer,
                    username = csr.spec.username,
                    pod,
                    reasons,
                    "denied"
                );
            }
            Verdict::NotYet(_) => {}
        }
    }

    /// An event beside the pod that asked, if it is still there.
    async fn tell_pod(&self, case: &Case, denials: &[Denial]) {
        let Some(bound) = &case.bound else { return };
        if denials.iter().any(|denial| denial.reason == "PodGone") {
            return;
        }
        let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
        let note = review::message(denials);
        self.recorder.warn(Notice { regarding, reason: "CertificateDenied", note }).await;
    }

    fn failed(&self, csr: &Csr, error: &RequestError) -> Outcome {
        self.metrics.failed();
        tracing::warn!(csr = csr.name(), %error, "cannot decide; trying again");
        Outcome::Failed
    }
}
