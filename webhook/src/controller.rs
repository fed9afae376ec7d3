//! What `approve` and `sign` are alike in: each is the leader of some replicas, watches CertificateSigningRequests, judges
//! each one by policy, namespace and live pod, and writes what comes of it.
//!
//! A controller is started with [`ControllerArgs::start`], decides by [`Controller::decide`], writes by [`Controller::write`] and
//! works until it is told to stop in [`Started::run`]. What is its own, it does in a [`Handler`].
//!
//! **Invariant.** A refusal, which no requester can wait out, is never written for an error of ours or the API server's,
//! never by what a watch said of policy, namespace or Services, and never without a policy.

use std::{net::SocketAddr, sync::Arc};

use etcd_tls_contract::{
    identity::{Denial, ServiceFacts, Verdict},
    names,
};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Resource as _,
    api::{ListParams, Patch, PatchParams},
    core::Request,
};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{
    error::Error,
    platform::{health::Health, shutdown},
};
use case::Case;
use client::{RequestError, within};
use csr::{Handler, Outcome};
use events::{Notice, Recorder, pod_reference};
use facts::{Csr, LeanPod};
use guards::{Gate, Guard, Prover};
use lease::Candidate;
use metrics::Metrics;
use pod_reads::PodReads;

pub(crate) mod case;
pub mod client;
pub mod csr;
pub mod events;
pub mod facts;
pub(crate) mod guards;
pub mod lease;
mod metrics;
pub mod namespaces;
mod pod_reads;
pub mod policy;
pub(crate) mod refusals;

/// Asks for an answer without spec and status.
const METADATA_ALONE: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The arguments of every controller.
#[derive(clap::Args, Debug)]
pub struct ControllerArgs {
    /// The system namespace: of the policy, of the Lease and of `sign`'s CAs.
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
}

/// What a controller works with.
#[derive(Clone)]
pub(crate) struct Controller {
    /// The Lease's name, and the name that writes are made under.
    name: &'static str,
    pub(crate) client: Client,
    /// The system namespace.
    pub(crate) namespace: String,
    pub(crate) policy: policy::Current,
    pub(crate) namespaces: namespaces::Current,
    /// Whether this replica leads.
    pub(crate) leader: watch::Receiver<bool>,
    pub(crate) recorder: Recorder,
    pods: PodReads,
    metrics: Metrics,
    gate: Gate,
}

/// A controller that has been started and does nothing yet.
pub(crate) struct Started {
    pub(crate) controller: Controller,
    candidate: Candidate,
    prover: Prover,
    queue: csr::Metrics,
    workers: u16,
    shutdown: watch::Receiver<bool>,
}

impl ControllerArgs {
    /// Connects, watches policy and namespaces, stands for leader by the Lease `name`, and serves the admin port with the
    /// metrics of `registry` and the common ones. `guards`: the admission policies that it depends on.
    ///
    /// # Errors
    /// What kept it from starting.
    pub(crate) async fn start(
        self,
        name: &'static str,
        guards: &[Guard],
        mut registry: Registry,
    ) -> Result<Started, Error> {
        let Self { namespace, identity, workers, admin_address } = self;
        let shutdown = shutdown::on_signals()?;
        let identity = match identity {
            Some(identity) => identity,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let metrics = Metrics::register(&mut registry);
        let queue = csr::Metrics::register(&mut registry);
        let (gate, standings) = Gate::new(guards);
        let client = client::connect_behind(gate.clone()).await?;
        let process = name.strip_prefix("etcd-tls-").unwrap_or(name);
        let recorder = Recorder::new(client.clone(), process, &identity);
        let policy = policy::spawn(client.clone(), &namespace, recorder.clone(), metrics.policy_readable.clone());
        let namespaces = namespaces::spawn(client.clone());
        let candidate = Candidate::spawn(client.clone(), &namespace, name, &identity);
        let leader = candidate.leader();
        let pods = PodReads::default();
        let prover = Prover {
            client: client.clone(),
            system: namespace.clone(),
            process,
            namespaces: namespaces.clone(),
            recorder: recorder.clone(),
            standings,
            enforced: metrics.guarded.clone(),
        };
        let controller =
            Controller { name, client, namespace, policy, namespaces, leader, recorder, pods, metrics, gate };

        let health = Arc::new(Health::new(registry));
        controller.require(&health, queue.clone());
        health.serve(admin_address).await?;
        Ok(Started { controller, candidate, prover, queue, workers, shutdown })
    }
}

impl Started {
    /// Has `handler` handle requests while this replica leads, with `beside` under way, until told to stop; then gives
    /// leadership back.
    pub(crate) async fn run<H: Handler>(self, handler: Arc<H>, beside: impl Future<Output = ()>) {
        let Self { controller, candidate, prover, queue, workers, shutdown } = self;
        let Controller { client, leader, metrics, .. } = controller;
        let shows = metrics.show_leadership(leader.clone());
        tokio::select! {
            () = csr::run(client, handler, usize::from(workers), leader, shutdown, queue) => {}
            () = beside => {}
            () = shows => {}
            never = prover.run() => match never {},
        }
        candidate.release().await;
    }
}

impl Controller {
    /// What it is not ready without.
    fn require(&self, health: &Health, queue: csr::Metrics) {
        let policy = self.policy.clone();
        health.require(move || policy.borrow().as_ref().map(|_| ()).ok_or_else(|| NO_POLICY.to_owned()));
        let namespaces = self.namespaces.clone();
        health.require(move || {
            namespaces.borrow().as_ref().map(|_| ()).ok_or_else(|| "namespaces not listed yet".to_owned())
        });
        let gate = self.gate.clone();
        health.require(move || gate.ready());
        let leader = self.leader.clone();
        health.require(move || {
            let waiting = *leader.borrow() && !queue.is_synced();
            if waiting { Err("CertificateSigningRequests not listed yet".to_owned()) } else { Ok(()) }
        });
    }

    /// Judges a request by its pod, read live, by `services` and by what the watches have of the rest. A denial is for
    /// ever, so it is judged anew by what is read live of everything. An approval costs one read, the pod's, or none where the pod is being read for another of its
    /// requests.
    ///
    /// # Errors
    /// The API server's, of a read.
    pub(crate) async fn decide(
        &self,
        csr: &Csr,
        case: &Case,
        services: &[ServiceFacts],
    ) -> Result<Verdict, RequestError> {
        let Some(policy) = self.policy.borrow().clone() else {
            return Ok(Verdict::NotYet(NO_POLICY.to_owned()));
        };
        let pod = match case.needs_pod() {
            Some(bound) => {
                let pods: Api<LeanPod> = Api::namespaced(self.client.clone(), &bound.namespace);
                let read = within(pods.get_opt(&bound.pod));
                Some((bound, self.pods.join_or(bound, csr.received.0, read).await?))
            }
            None => None,
        };
        let pod = pod.as_ref().and_then(|(bound, found)| Some((bound, found.as_ref().as_ref()?)));
        let seen = pod.as_ref().map(|(bound, pod)| {
            let namespaces = self.namespaces.borrow();
            let namespace = namespaces.as_ref().and_then(|namespaces| namespaces.get(&bound.namespace));
            facts::pod(pod, namespace.is_some_and(|namespace| namespace.opted_in))
        });
        let verdict = case.judge(csr, seen.as_ref(), services, &policy);
        if !matches!(verdict, Verdict::Deny(_)) {
            return Ok(verdict);
        }
        // Neither what a watch has not brought yet nor what was left out may be the reason.
        let policy = policy::live(&self.client, &self.namespace).await?.map_or(policy, Arc::new);
        let Some((bound, pod)) = pod else { return Ok(case.judge(csr, None, &[], &policy)) };
        let namespace = namespaces::live(&self.client, &bound.namespace).await?;
        let services: Api<Service> = Api::namespaced(self.client.clone(), &bound.namespace);
        let services: Vec<_> =
            within(services.list(&ListParams::default())).await?.items.iter().map(facts::service).collect();
        let facts = facts::pod(pod, namespace.is_some_and(|namespace| namespace.opted_in));
        Ok(case.judge(csr, Some(&facts), &services, &policy))
    }

    /// Writes to a subresource of a request; `patch` says of which uid and resourceVersion.
    ///
    /// # Errors
    /// The API server's, as [`Trouble::Write`].
    pub(crate) async fn write(&self, csr: &Csr, subresource: &str, patch: serde_json::Value) -> Result<(), Trouble> {
        let params = PatchParams { field_manager: Some(self.name.to_owned()), ..PatchParams::default() };
        let mut request = Request::new(Csr::url_path(&(), None))
            .patch_subresource(subresource, csr.name(), &params, &Patch::Merge(patch))
            .map_err(|error| Trouble::Write(kube::Error::BuildRequest(error).into()))?;
        // What was written comes by the watch; nobody needs the whole of it in the answer as well.
        if let Ok(metadata_alone) = METADATA_ALONE.parse() {
            request.headers_mut().insert("accept", metadata_alone);
        }
        request.extensions_mut().insert("patch_subresource");
        within(self.client.request_text(request)).await.map_err(Trouble::Write)?;
        Ok(())
    }

    /// An event beside the pod that asked, if it is still there.
    pub(crate) async fn tell_pod(&self, case: &Case, reason: &'static str, denials: &[Denial]) {
        let Some(bound) = &case.bound else { return };
        if denials.iter().any(|denial| denial.reason == "PodGone") {
            return;
        }
        let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
        self.recorder.warn(Notice { regarding, reason, note: case::message(denials) }).await;
    }

    /// Counts and logs how a look at a request went, and says when to look again.
    pub(crate) fn outcome(&self, csr: &Csr, result: Result<(), Trouble>) -> Outcome {
        let csr = csr.name();
        match result {
            Ok(()) => Outcome::Done,
            Err(Trouble::NotYet(reason)) => {
                self.metrics.waits.inc();
                tracing::debug!(csr, reason, "not yet");
                Outcome::NotYet
            }
            Err(Trouble::Write(error)) if error.is_not_found() => Outcome::Done,
            Err(Trouble::Write(error)) if error.is_stale() => {
                self.metrics.conflicts.inc();
                tracing::debug!(csr, %error, "changed since it was looked at");
                Outcome::Stale
            }
            Err(Trouble::Api(error) | Trouble::Write(error)) => {
                self.metrics.errors.inc();
                tracing::warn!(csr, %error, "a request cannot be handled now; trying again");
                Outcome::Failed
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
    Api(#[from] RequestError),
    /// A write of the request itself failed: the request may be gone, or another one by now.
    #[error("{0}")]
    Write(RequestError),
}

const NO_POLICY: &str = "no policy could be read yet";
