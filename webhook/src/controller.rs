//! The common parts of `approve` and `sign`: each is the leader of some replicas, watches CertificateSigningRequests, judges
//! each one by policy, namespace and live pod, and writes what comes of it.
//!
//! A controller is started with [`ControllerArgs::start`], decides by [`Controller::decide`], writes by [`Controller::write`]
//! and works in [`Started::run`] until shutdown. A [`Handler`] holds the process's own part.
//!
//! **Invariant.** A refusal, which no requester can wait out, is never written for an error of ours or the API server's,
//! never by what a watch said of policy, namespace or Services, and never without a policy.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    identity::{BoundPod, Denial},
    names,
};
use futures::future;
use kube::{
    Client, Resource as _,
    api::{Patch, PatchParams},
    core::Request,
};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{
    error::Error,
    platform::{health::Health, shutdown},
    traces::{self, Reconciliation, Traces},
};
use case::Case;
use client::ApiServerError;
use csr::{Handled, Handler};
use events::{Notice, Reason, Recorder, pod_reference};
use facts::{CertificateRequest, Csr, Kind};
use guards::{Gate, Guard, Prover};
use lease::Candidate;
use metrics::Metrics;
use pods::Pods;
use services::Services;
use tasks::Tasks;
use written::written;

pub(crate) mod case;
pub mod client;
pub mod csr;
pub mod events;
pub mod facts;
mod gated;
pub(crate) mod guards;
pub(crate) mod ids;
mod judging;
pub mod lease;
pub(crate) mod listed;
mod metrics;
pub mod namespaces;
pub(crate) mod pods;
pub mod policy;
pub(crate) mod projection;
pub(crate) mod refusals;
pub(crate) mod services;
pub(crate) mod tasks;
pub(crate) mod told;
pub(crate) mod written;

/// The arguments of every controller.
#[derive(clap::Args, Debug)]
pub struct ControllerArgs {
    /// The system namespace. It holds the policy, the Leases and the CAs.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// The unique name of this replica in the Lease [default: the host name, which is the pod's].
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// The number of requests that are handled at once.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// The address of /live, /ready and /metrics.
    #[arg(long, default_value = "[::]:9179")]
    admin_address: SocketAddr,
    /// Read each request's pod from etcd instead of from the API server's cache. Needed if the API server keeps resources in
    /// several etcd clusters (--etcd-servers-overrides), whose resourceVersions cannot be compared.
    #[arg(long)]
    live_reads: bool,
}

/// The dependencies of a controller.
#[derive(Clone)]
pub(crate) struct Controller {
    /// The Lease's name, and the name that writes are made under.
    name: &'static str,
    pub(crate) client: Client,
    /// The system namespace.
    pub(crate) namespace: String,
    pub(crate) policy: policy::Current,
    pub(crate) namespaces: namespaces::Current,
    /// True if this replica leads.
    pub(crate) leader: watch::Receiver<bool>,
    pub(crate) recorder: Recorder,
    pub(crate) pods: Pods,
    pub(crate) services: Services,
    /// Starts tasks, and starts them again after a panic.
    pub(crate) tasks: Tasks,
    metrics: Metrics,
    gate: Gate,
    traces: Traces,
}

/// A controller that has been started and does nothing yet.
pub(crate) struct Started {
    pub(crate) controller: Controller,
    candidate: Candidate,
    prover: Prover,
    queue: csr::Metrics,
    of_cert_manager: Option<csr::Metrics>,
    workers: u16,
    shutdown: watch::Receiver<bool>,
}

impl ControllerArgs {
    /// Connects, watches policy and namespaces, stands for leader by the Lease `name`, and serves the admin port with the
    /// metrics of `registry` and the common ones. `guards`: the admission policies that it depends on. `observer` sees the pods.
    /// `of_cert_manager`: the figures of CertificateRequests, where they are decided, too.
    ///
    /// # Errors
    /// The reason why it could not start.
    pub(crate) async fn start(
        self,
        name: &'static str,
        guards: &[Guard],
        mut registry: Registry,
        observer: Option<pods::Observer>,
        of_cert_manager: Option<csr::Metrics>,
    ) -> Result<Started, Error> {
        let Self { namespace, identity, workers, admin_address, live_reads } = self;
        let shutdown = shutdown::on_signals()?;
        let identity = match identity {
            Some(identity) => identity,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let metrics = Metrics::register(&mut registry);
        let queue = csr::Metrics::register(&mut registry);
        let tasks = Tasks::register(&mut registry);
        let (gate, policy_states) = Gate::new(guards);
        let client = gated::connect(gate.clone()).await?;
        let process = name.strip_prefix("etcd-tls-").unwrap_or(name);
        let recorder = Recorder::new(client.clone(), process, &identity);
        let namespaces = namespaces::spawn(&client, &tasks);
        let policy = policy::spawn(&client, &namespace, &recorder, &metrics.policy_readable, &tasks);
        let policy = policy::in_force(policy, namespaces.clone(), &namespace, &recorder, &tasks);
        let candidate = Candidate::spawn(client.clone(), &namespace, name, &identity);
        let leader = candidate.leader();
        let pods = Pods::spawn(&client, live_reads, &tasks, observer);
        let services = Services::spawn(&client, &tasks);
        let prover = Prover {
            client: client.clone(),
            system: namespace.clone(),
            process,
            namespaces: namespaces.clone(),
            recorder: recorder.clone(),
            policy_states,
            enforced: metrics.enforced.clone(),
        };
        let controller = Controller {
            name,
            client,
            namespace,
            policy,
            namespaces,
            leader,
            recorder,
            pods,
            services,
            tasks,
            metrics,
            gate,
            traces: Traces::start(process),
        };

        let health = Arc::new(Health::new(registry));
        controller.require(&health);
        controller.require_listed::<Csr>(&health, queue.clone());
        if let Some(queue) = of_cert_manager.clone() {
            controller.require_listed::<CertificateRequest>(&health, queue);
        }
        health.serve(admin_address).await?;
        Ok(Started { controller, candidate, prover, queue, of_cert_manager, workers, shutdown })
    }
}

impl Started {
    /// Has `handler` handle requests, and `of_cert_manager` CertificateRequests, while this replica leads, with `beside` under way,
    /// until told to stop; then does what is `last` and gives leadership back.
    pub(crate) async fn run<H: Handler>(
        self,
        handler: Arc<H>,
        of_cert_manager: Option<Arc<H>>,
        beside: impl Future<Output = ()>,
        last: impl Future<Output = ()>,
    ) {
        let Self { controller, candidate, prover, queue, of_cert_manager: second, workers, shutdown } = self;
        let Controller { client, leader, metrics, tasks, .. } = controller;
        let shows = metrics.show_leadership(leader.clone());
        let workers = usize::from(workers);
        let besides = async {
            if let Some((handler, queue)) = of_cert_manager.zip(second) {
                let (client, leader, shutdown, tasks) =
                    (client.clone(), leader.clone(), shutdown.clone(), tasks.clone());
                csr::run::<CertificateRequest, H>(client, handler, workers, leader, shutdown, queue, tasks).await;
            }
        };
        let requests = csr::run::<Csr, H>(
            client.clone(),
            handler,
            workers,
            leader.clone(),
            shutdown.clone(),
            queue,
            tasks.clone(),
        );
        tokio::select! {
            _ = future::join(requests, besides) => {}
            () = beside => {}
            () = shows => {}
            never = prover.run() => match never {},
        }
        last.await;
        candidate.release().await;
    }
}

impl Controller {
    /// Registers the conditions of readiness.
    fn require(&self, health: &Health) {
        let policy = self.policy.clone();
        health.require(move || policy.borrow().as_ref().map(|_| ()).ok_or_else(|| NO_POLICY.to_owned()));
        let namespaces = self.namespaces.clone();
        health.require(move || {
            namespaces.borrow().as_ref().map(|_| ()).ok_or_else(|| "namespaces not listed yet".to_owned())
        });
        let (pods, services) = (self.pods.clone(), self.services.clone());
        health.require(move || if pods.is_complete() { Ok(()) } else { Err("pods not listed yet".to_owned()) });
        health.require(move || if services.is_complete() { Ok(()) } else { Err("Services not listed yet".to_owned()) });
        let gate = self.gate.clone();
        health.require(move || gate.ready());
    }

    /// Has a leader be ready when it has seen every request of a kind once, or the API server does not know the kind.
    fn require_listed<K: Kind>(&self, health: &Health, queue: csr::Metrics) {
        let leader = self.leader.clone();
        health.require(move || if *leader.borrow() { queue.is_listed::<K>() } else { Ok(()) });
    }

    /// Writes to a subresource of a request; `patch` says of which uid and resourceVersion.
    ///
    /// # Errors
    /// The API server's, as [`Trouble::Write`].
    pub(crate) async fn write(&self, csr: &Csr, subresource: &str, patch: serde_json::Value) -> Result<(), Trouble> {
        let params = PatchParams { field_manager: Some(self.name.to_owned()), ..PatchParams::default() };
        let path = match (&csr.spec.issuer, &csr.metadata.namespace) {
            (Some(_), Some(namespace)) => facts::collection(namespace),
            _ => Csr::url_path(&(), None),
        };
        let request = Request::new(path)
            .patch_subresource(subresource, csr.name(), &params, &Patch::Merge(patch))
            .map_err(|error| Trouble::Write(kube::Error::BuildRequest(error).into()))?;
        // The watch delivers the written object.
        let metadata = written(&self.client, request, "patch_subresource").await.map_err(Trouble::Write)?;
        if metadata.uid.as_deref() == Some(csr.uid()) {
            Ok(())
        } else {
            Err(Trouble::Write(ApiServerError::NotWritten))
        }
    }

    /// An event beside the pod that asked, if it is still there.
    pub(crate) async fn tell_pod(&self, bound: Option<&BoundPod>, reason: &'static Reason, denials: &[Denial]) {
        let Some(bound) = bound else { return };
        if denials.iter().any(|denial| denial.reason == "PodGone") {
            return;
        }
        let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
        self.recorder.say_beside(Notice { regarding, reason, note: case::message(denials) });
    }

    /// Exports the span of a reconciliation that began at that time.
    pub(crate) fn trace(&self, csr: &Csr, case: &Case, began: SystemTime, result: &Result<(), Trouble>) {
        if self.traces.is_on() {
            let pod = case.bound.as_ref().and_then(|bound| self.pods.facts(bound));
            let admission = pod.and_then(|pod| traces::on_pod(&pod.annotations));
            let reconciliation = Reconciliation {
                csr: csr.name(),
                csr_uid: csr.uid(),
                created: csr.created().unwrap_or(began),
                signer: &csr.spec.signer_name,
                requester: &csr.spec.username,
                pod: &case.pod(),
                admission,
                began,
            };
            self.traces.reconciled(&reconciliation, result.as_ref().err().map(|trouble| trouble as _));
        }
    }

    /// Counts and logs how a look at a request went, and says when to look again.
    pub(crate) fn outcome(&self, csr: &Csr, result: Result<(), Trouble>) -> Handled {
        let csr = csr.name();
        match result {
            Ok(()) => Handled::Done,
            Err(trouble @ (Trouble::NotYet(_) | Trouble::Services(_))) => {
                self.metrics.waits.inc();
                tracing::debug!(csr, reason = %trouble, "not yet");
                Handled::NotYet
            }
            Err(Trouble::Write(error)) if error.is_not_found() => Handled::Done,
            Err(Trouble::Write(error)) if error.is_stale() => {
                self.metrics.conflicts.inc();
                tracing::debug!(csr, %error, "changed since it was looked at");
                Handled::Stale
            }
            Err(Trouble::Api(error) | Trouble::Write(error)) => {
                self.metrics.errors.inc();
                tracing::warn!(csr, %error, "a request cannot be handled now; trying again");
                Handled::Failed
            }
        }
    }
}

/// Why a request could not be handled now. None of it is final.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// It has to wait for something.
    #[error("{0}")]
    NotYet(String),
    /// A read failed.
    #[error(transparent)]
    Api(#[from] ApiServerError),
    /// The Services that select the pod are not known.
    #[error(transparent)]
    Services(#[from] services::Unknown),
    /// A write of the request itself failed: the request may be gone, or another one by now.
    #[error("{0}")]
    Write(ApiServerError),
}

const NO_POLICY: &str = "no policy could be read yet";
