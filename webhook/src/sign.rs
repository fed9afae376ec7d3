//! The signer: judges each approved request again, by the live pod, and issues what the pod is entitled to, whole.
//!
//! ```text
//! authorities   the CAs, each kept by a Secret, held by the leader alone
//! keeper        makes CAs, publishes their trust, takes the steps of rollovers
//! serving       the webhook's serving pair and caBundle
//! cleaner       when a finished request may go
//! ```
//!
//! What it may do in the API server is the ClusterRole and the Role `etcd-tls-sign` in the manifests, and the ClusterRole
//! `etcd-tls-trust`, which the approver binds in opted-in namespaces: the first 403 there is *not yet*.
//!
//! **Invariant.** An approval is necessary and not enough: nothing is issued that this process has not judged for itself,
//! and nothing of a request but its public key is signed.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_sidecar::{
    identity::{Denial, Entitlement, Verdict},
    names::{self, SignerName},
    policy::Policy,
    role::Domain,
    settings::parse_duration,
    telemetry,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Service},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    approve::review::{self, Case},
    cli::Error,
    client::{self, RequestError, within},
    csr_watch::{self, Handler, Interest, Outcome},
    events::{Notice, Recorder, pod_reference},
    facts::{self, Csr},
    health::Health,
    issue::{IssueError, Leaf, issue},
    lease::Candidate,
    namespace_watch, policy_watch,
    shutdown::{self, until},
};
use authorities::{Authorities, Grant, Unavailable};
use cleaner::Fate;
use keeper::Keeper;
use metrics::Metrics;
use objects::Objects;
use pods::{Pods, host_holder};
use services::Services;
use serving::{Lifetimes, Serving};

mod authorities;
mod cleaner;
mod keeper;
mod metrics;
mod objects;
mod pods;
mod services;
mod serving;
mod state;
mod trust;
mod watches;

/// The Lease that the replicas share.
const LEASE: &str = "etcd-tls-sign";
/// The reason of a Failed condition; what speaks against the request is in its message.
const FAILED: &str = "SignerValidationFailure";

/// An etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ClusterName {
    namespace: String,
    name: String,
}

impl ClusterName {
    fn signer(&self, domain: Domain) -> SignerName {
        SignerName { domain, namespace: self.namespace.clone(), cluster: self.name.clone() }
    }
}

/// The arguments of `sign`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The namespace of the policy, the CAs and the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = names::SYSTEM_NAMESPACE)]
    namespace: String,
    /// This replica's name, one of its own [default: the host name, which is the pod's].
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
    /// The longest life of a leaf, whatever was asked for; may be less than the API server's ten minutes.
    #[arg(long, value_parser = parse_duration)]
    max_lifetime: Option<Duration>,
    /// The life of the webhook's serving certificate; it is renewed at half of it.
    #[arg(long, default_value = "720h", value_parser = parse_duration)]
    serving_lifetime: Duration,
    /// The life of the webhook's own CA; the next one is published at half of it.
    #[arg(long, default_value = "17520h", value_parser = parse_duration)]
    serving_ca_lifetime: Duration,
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
    /// Signs until told to stop.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn run(self) -> Result<(), Error> {
        let Self {
            namespace,
            identity,
            max_lifetime,
            serving_lifetime,
            serving_ca_lifetime,
            workers,
            admin_address,
            log_level,
            log_format,
        } = self;
        telemetry::init(log_format, &log_level)?;
        let shutdown = shutdown::on_signals()?;
        let identity = match identity {
            Some(identity) => identity,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        let client = client::connect().await?;
        let recorder = Recorder::new(client.clone(), "sign", &identity);

        let mut registry = metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let queue = csr_watch::Metrics::register(&mut registry);
        let health = Arc::new(Health::new(registry));

        let policy = policy_watch::spawn(client.clone(), &namespace, recorder.clone(), metrics.policy_readable.clone());
        let namespaces = namespace_watch::spawn(client.clone());
        let candidate = Candidate::spawn(client.clone(), &namespace, LEASE, &identity);
        require(&health, &policy, &namespaces, &candidate, &queue);
        health.serve(admin_address).await?;

        let changed = Arc::new(Notify::new());
        let authorities =
            Authorities::new(client.clone(), &namespace, policy.clone(), namespaces.clone(), Arc::clone(&changed));
        let signer = Arc::new(Signer {
            client: client.clone(),
            policy,
            namespaces,
            authorities: Arc::new(authorities),
            services: Services::default(),
            recorder,
            metrics: metrics.clone(),
            max_lifetime,
            serving: Lifetimes { leaf: serving_lifetime, ca: serving_ca_lifetime },
            latest: Mutex::default(),
        });
        let terms = Arc::clone(&signer).terms(namespace, changed, candidate.leader());
        let shows = metrics.show_leadership(candidate.leader());
        let signs = csr_watch::run(client, signer, usize::from(workers), candidate.leader(), shutdown, queue);
        tokio::select! {
            () = signs => {}
            never = terms => match never {},
            () = shows => {}
        }
        candidate.release().await;
        Ok(())
    }
}

fn require(
    health: &Health,
    policy: &policy_watch::Current,
    namespaces: &namespace_watch::Current,
    candidate: &Candidate,
    queue: &csr_watch::Metrics,
) {
    let policy = policy.clone();
    health
        .require(move || policy.borrow().as_ref().map(|_| ()).ok_or_else(|| "no policy could be read yet".to_owned()));
    let namespaces = namespaces.clone();
    health.require(move || {
        namespaces.borrow().as_ref().map(|_| ()).ok_or_else(|| "namespaces not listed yet".to_owned())
    });
    let (leader, queue) = (candidate.leader(), queue.clone());
    health.require(move || {
        let waiting = *leader.borrow() && !queue.is_synced();
        if waiting { Err("CertificateSigningRequests not listed yet".to_owned()) } else { Ok(()) }
    });
}

/// What both the requests' handler and the keeper work with.
struct Signer {
    client: Client,
    policy: policy_watch::Current,
    namespaces: namespace_watch::Current,
    authorities: Arc<Authorities>,
    services: Services,
    recorder: Recorder,
    metrics: Metrics,
    max_lifetime: Option<Duration>,
    serving: Lifetimes,
    /// The last request that was issued for each pod and role, by the part of its name that says these, and its uid:
    /// the next one supersedes it.
    latest: Mutex<HashMap<String, (String, String)>>,
}

impl Handler for Signer {
    fn interest(&self, csr: &Csr) -> Interest {
        if csr.spec.signer_name.parse::<SignerName>().is_err() {
            return Interest::Ignore;
        }
        match cleaner::fate(csr, SystemTime::now()) {
            Fate::Issue => Interest::Now,
            Fate::Delete(wait) | Fate::Orphan(wait) => Interest::After(wait),
        }
    }

    async fn handle(&self, csr: &Csr) -> Outcome {
        match cleaner::fate(csr, SystemTime::now()) {
            Fate::Issue => self.sign(csr).await,
            Fate::Delete(_) => self.delete(csr.name(), csr.uid(), Some(csr.resource_version())).await,
            Fate::Orphan(_) => self.look_for_pod(csr).await,
        }
    }
}

impl Signer {
    /// Keeps authorities, trust and the webhook's serving pair while this replica leads. At a term's end every key is
    /// dropped.
    async fn terms(
        self: Arc<Self>,
        system: String,
        changed: Arc<Notify>,
        mut leader: watch::Receiver<bool>,
    ) -> std::convert::Infallible {
        loop {
            until(&mut leader, true).await;
            let mut tasks = JoinSet::new();
            let keeper = Keeper {
                client: self.client.clone(),
                system: system.clone(),
                policy: self.policy.clone(),
                namespaces: self.namespaces.clone(),
                authorities: Arc::clone(&self.authorities),
                pods: Pods::default(),
                secrets: Objects::default(),
                config_maps: Objects::default(),
                changed: Arc::clone(&changed),
                recorder: self.recorder.clone(),
                metrics: self.metrics.clone(),
                given: HashMap::new(),
                said: HashMap::new(),
                settled: HashMap::new(),
            };
            tasks.spawn(async move { match keeper.run().await {} });
            tasks.spawn(Arc::clone(&self).serve(system.clone()));
            tasks.spawn(self.services.clone().watch(self.client.clone()));
            tokio::select! {
                () = until(&mut leader, false) => {}
                Some(Err(error)) = tasks.join_next() => tracing::error!(%error, "a part of the signer broke off; starting it again"),
            }
            tasks.shutdown().await;
            self.authorities.clear();
            self.services.clear();
            self.metrics.forget_all();
            self.latest.lock().unwrap_or_else(PoisonError::into_inner).clear();
            // What broke off may break off again at once.
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Keeps the webhook's serving pair; the cluster's domain, which is one of its names, is policy's.
    async fn serve(self: Arc<Self>, system: String) {
        let mut policy = self.policy.clone();
        loop {
            let current = policy.borrow_and_update().clone();
            let domain =
                current.map_or_else(|| Policy::default().cluster_domain, |policy| policy.cluster_domain.clone());
            let serving = Serving {
                client: self.client.clone(),
                system: system.clone(),
                cluster_domain: domain,
                lifetimes: self.serving,
                metrics: self.metrics.clone(),
            };
            tokio::select! {
                never = serving.run() => match never {},
                changed = policy.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn sign(&self, csr: &Csr) -> Outcome {
        let case = Case::open(csr);
        let verdict = match self.decide(csr, &case).await {
            Ok(verdict) => verdict,
            Err(error) => return self.failed(csr, &error),
        };
        match verdict {
            Verdict::Approve(entitlement) => self.issue(csr, &case, &entitlement).await,
            Verdict::Deny(denials) => self.refuse(csr, &case, &denials).await,
            Verdict::NotYet(reason) => self.not_yet(csr, &reason),
        }
    }

    /// Reads the pod live and judges, as the approver did, by the whole grammar.
    async fn decide(&self, csr: &Csr, case: &Case) -> Result<Verdict, RequestError> {
        let Some(policy) = self.policy.borrow().clone() else {
            return Ok(Verdict::NotYet("no policy could be read yet".to_owned()));
        };
        let Some(bound) = case.needs_pod() else {
            return Ok(case.judge(csr, None, &[], &policy));
        };
        let Some(services) = self.services.of(&bound.namespace) else {
            return Ok(Verdict::NotYet("Services not listed yet".to_owned()));
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        let Some(pod) = within(pods.get_opt(&bound.pod)).await? else {
            return Ok(case.judge(csr, None, &services, &policy));
        };
        let opted_in = self.namespaces.borrow().as_ref().and_then(|n| n.get(&bound.namespace).map(|n| n.opted_in));
        let verdict = case.judge(csr, Some(&facts::pod(&pod, opted_in.unwrap_or_default())), &services, &policy);
        if !matches!(verdict, Verdict::Deny(_)) {
            return Ok(verdict);
        }
        // Failed is for ever, so what a watch said of the namespace or of its Services may not be its reason: the approver
        // may have seen a Service that has not passed by here yet.
        let namespace = namespace_watch::live(&self.client, &bound.namespace).await?;
        let services: Api<Service> = Api::namespaced(self.client.clone(), &bound.namespace);
        let services: Vec<_> =
            within(services.list(&ListParams::default())).await?.items.iter().map(facts::service).collect();
        let facts = facts::pod(&pod, namespace.is_some_and(|namespace| namespace.opted_in));
        Ok(case.judge(csr, Some(&facts), &services, &policy))
    }

    async fn issue(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Outcome {
        let now = SystemTime::now();
        let Some(policy) = self.policy.borrow().clone() else { return Outcome::NotYet };
        let Some(public_key) = case.public_key() else { return Outcome::Failed };
        let mut leaf = Leaf::entitled(entitlement, public_key, csr.expiration());
        leaf.lifetime = self.max_lifetime.map_or(leaf.lifetime, |max| leaf.lifetime.min(max));
        let holder = case.bound.as_ref().map_or_else(|| host_holder(&csr.spec.username), |b| b.pod_uid.clone());
        let grant = Grant {
            holder: &holder,
            role: entitlement.role,
            trusts: csr.annotation(names::TRUSTS_ANNOTATION),
            lifetime: leaf.lifetime,
        };
        let slot = self.authorities.slot(&policy.authority(&entitlement.signer));
        let authority = match self.authorities.grant(&slot, &grant, now).await {
            Ok(authority) => authority,
            Err(Unavailable::Api(error)) => return self.failed(csr, &error),
            Err(error) => return self.not_yet(csr, &error.to_string()),
        };
        let mut serial = [0; 16];
        if aws_lc_rs::rand::fill(&mut serial).is_err() {
            return self.not_yet(csr, "no random numbers");
        }
        let chain = match issue(&authority, &leaf, now, serial) {
            Ok(chain) => chain,
            Err(error @ IssueError::AuthorityNotValid) => return self.not_yet(csr, &error.to_string()),
            Err(error @ IssueError::KeyOfAuthority) => {
                let denial = Denial { reason: "KeyOfAuthority", message: error.to_string() };
                return self.refuse(csr, case, &[denial]).await;
            }
            Err(error) => {
                tracing::error!(csr = csr.name(), authority = %slot.name, %error, "cannot issue");
                return Outcome::NotYet;
            }
        };
        let certificate = ByteString(chain.to_pem().into_bytes());
        let patch = json!({
            "metadata": {"uid": csr.uid(), "resourceVersion": csr.resource_version()},
            "status": {"certificate": certificate},
        });
        match self.write(csr, patch).await {
            Ok(()) => {
                self.metrics.issued(entitlement.role);
                let pod = case.bound.as_ref().map(|b| format!("{}/{}", b.namespace, b.pod)).unwrap_or_default();
                tracing::info!(
                    csr = csr.name(),
                    uid = csr.uid(),
                    authority = %slot.name,
                    generation = authority.generation(),
                    pod,
                    x509.serial = chain.serial,
                    x509.common_name = chain.common_name,
                    x509.not_after = %crate::rollover::rfc3339::text(chain.not_after),
                    "issued"
                );
                self.supersede(csr).await;
                Outcome::Done
            }
            Err(error) => self.not_written(csr, &error),
        }
    }

    /// Writes that an approved request is refused all the same.
    async fn refuse(&self, csr: &Csr, case: &Case, denials: &[Denial]) -> Outcome {
        let reasons = review::message(denials);
        match self.write(csr, review::patch(csr, "Failed", FAILED, &reasons)).await {
            Ok(()) => {
                denials.iter().for_each(|denial| self.metrics.failed(denial.reason));
                tracing::warn!(csr = csr.name(), uid = csr.uid(), username = csr.spec.username, reasons, "refused");
                if let Some(bound) = case.bound.as_ref().filter(|_| denials.iter().all(|d| d.reason != "PodGone")) {
                    let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
                    self.recorder.warn(Notice { regarding, reason: "CertificateRefused", note: reasons }).await;
                }
                Outcome::Done
            }
            Err(error) => self.not_written(csr, &error),
        }
    }

    async fn write(&self, csr: &Csr, patch: serde_json::Value) -> Result<(), RequestError> {
        let api: Api<Csr> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(LEASE.to_owned()), ..PatchParams::default() };
        within(api.patch_status(csr.name(), &params, &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Deletes the request that this one takes the place of.
    async fn supersede(&self, csr: &Csr) {
        let Some((pod_and_role, _)) = csr.name().rsplit_once('-') else { return };
        let this = (csr.name().to_owned(), csr.uid().to_owned());
        let before = {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.insert(pod_and_role.to_owned(), this.clone())
        };
        if let Some((name, uid)) = before.filter(|before| *before != this) {
            self.delete(&name, &uid, None).await;
        }
    }

    async fn delete(&self, name: &str, uid: &str, version: Option<&str>) -> Outcome {
        let api: Api<Csr> = Api::all(self.client.clone());
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: version.map(str::to_owned) });
        {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            let pod_and_role = name.rsplit_once('-').map(|(first, _)| first).unwrap_or_default();
            if latest.get(pod_and_role).is_some_and(|(_, latest)| latest == uid) {
                latest.remove(pod_and_role);
            }
        }
        match within(api.delete(name, &params)).await {
            Ok(_) => {
                self.metrics.cleaned.inc();
                tracing::debug!(csr = name, "deleted: done with");
                Outcome::Done
            }
            Err(error) if error.is_not_found() => Outcome::Done,
            Err(error) if error.is_stale() => Outcome::Stale,
            Err(error) => {
                tracing::debug!(csr = name, %error, "cannot delete a finished request; trying again");
                Outcome::Failed
            }
        }
    }

    /// Deletes a pending request whose pod is gone: nobody will fetch its certificate.
    async fn look_for_pod(&self, csr: &Csr) -> Outcome {
        let case = Case::open(csr);
        let Some(bound) = &case.bound else { return Outcome::After(cleaner::PENDING) };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &bound.namespace);
        match within(pods.get_metadata_opt(&bound.pod)).await {
            Ok(pod) if pod.as_ref().is_none_or(|pod| pod.metadata.uid.as_deref() != Some(&bound.pod_uid)) => {
                self.delete(csr.name(), csr.uid(), Some(csr.resource_version())).await
            }
            Ok(_) => Outcome::After(cleaner::PENDING),
            Err(error) => self.failed(csr, &error),
        }
    }

    fn not_written(&self, csr: &Csr, error: &RequestError) -> Outcome {
        if error.is_not_found() {
            return Outcome::Done;
        }
        if error.is_stale() {
            self.metrics.conflicts.inc();
            tracing::debug!(csr = csr.name(), %error, "changed since it was looked at");
            return Outcome::Stale;
        }
        self.failed(csr, error)
    }

    fn not_yet(&self, csr: &Csr, reason: &str) -> Outcome {
        self.metrics.waits.inc();
        tracing::debug!(csr = csr.name(), reason, "not yet");
        Outcome::NotYet
    }

    fn failed(&self, csr: &Csr, error: &RequestError) -> Outcome {
        self.metrics.errors.inc();
        tracing::warn!(csr = csr.name(), %error, "cannot sign now; trying again");
        Outcome::Failed
    }
}
