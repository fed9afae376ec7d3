//! Answers PodCertificateRequests (KEP-4317) to our signer names, where the component pod-certificates is installed and the API
//! server serves them. kubelet makes them for a pod's projected volume of `podCertificate`, and there is no approver: each is
//! judged here by the live pod.
//!
//! Every answer is final: kubelet asks no second time for a pod that was denied. What can change by waiting has no answer yet.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::{
    csr,
    identity::{Denial, Entitlement, PodCertificateFacts, SHORTEST_POD_CERTIFICATE, Verdict, judge_for_kubelet},
    life::{Life, POD_CERTIFICATE_BACKDATE},
    names::SignerName,
};
use kube::{
    api::{Patch, PatchParams},
    core::Request,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    authorities::{Grant, Granted, Unavailable, issued::Leaf as Recorded},
    serials::Serials,
    signer::Signer,
};
use crate::{
    ca::issue::{IssueError, Leaf, issue_from},
    controller::{
        Trouble,
        client::ApiServerError,
        listed::{Event, Events, Key, WatchError},
        tasks::Jobs,
        written::written,
    },
    rollover::rfc3339,
};
use request::{PodCertificateRequest, Times, source};
use version::GROUP;
pub(super) use version::served;
use waiting::Waiting;

mod request;
mod version;
mod waiting;

/// How soon a list or a watch that failed is tried again.
const SOON: Duration = Duration::from_secs(2);
/// Requests that are worked on at once.
const WORKERS: usize = 16;
/// How soon the API is looked for again, and how often what was left out is listed at most.
const AGAIN: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct PodCertificates {
    signer: Arc<Signer>,
    /// Apart from those of CertificateSigningRequests, which are dropped with each list of them.
    serials: Arc<Serials>,
}

/// Why nothing is answered.
#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error(
        "the API server serves no PodCertificateRequests of {GROUP}: turn on its feature gate PodCertificateRequest and \
         --runtime-config={GROUP}/v1beta1/podcertificaterequests=true, or take the component pod-certificates away"
    )]
    NotServed,
    #[error(transparent)]
    Request(#[from] ApiServerError),
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl PodCertificates {
    /// Those of this signer.
    pub(super) fn new(signer: Arc<Signer>) -> Self {
        Self { signer, serials: Arc::default() }
    }

    /// Answers until it is dropped.
    pub(super) async fn keep(self) -> Infallible {
        let jobs = Jobs::new(self.signer.controller.tasks.clone());
        let (mut said, mut work) = (None, Work { waiting: Waiting::default(), jobs });
        loop {
            let result = match served(&self.signer.controller.client).await {
                Ok(Some(version)) => self.answer(&version, &mut work, &mut said).await,
                Ok(None) => Err(AnswerError::NotServed),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::warn!(error = text, "PodCertificateRequests are not answered; trying again");
                    said = Some(text);
                }
                sleep(if matches!(error, AnswerError::NotServed) { AGAIN } else { SOON }).await;
            }
        }
    }

    /// Until the watch fails. What waits stays so, with its pauses.
    async fn answer(&self, version: &str, work: &mut Work, said: &mut Option<String>) -> Result<(), AnswerError> {
        let Work { waiting, jobs } = work;
        let list =
            || Events::<PodCertificateRequest>::new(self.signer.controller.client.clone(), source(version, None));
        let mut events = list();
        let mut list_from = Instant::now() + AGAIN;
        loop {
            let now = Instant::now();
            waiting.gone().iter().for_each(|uid| self.serials.done(uid));
            if waiting.wants_list() && now >= list_from {
                (events, list_from) = (list(), now + AGAIN);
                waiting.list_begins();
            }
            while jobs.len() < WORKERS
                && let Some((key, uid)) = waiting.next(now)
            {
                let (signer, serials) = (Arc::clone(&self.signer), Arc::clone(&self.serials));
                let (version, of) = (version.to_owned(), key.clone());
                let work = async move { handle(&signer, &serials, &version, &of).await };
                jobs.start("pod certificate request", (key, uid), work);
            }
            let due = waiting.next_due().filter(|_| jobs.len() < WORKERS);
            let wake = [due, waiting.wants_list().then_some(list_from)].into_iter().flatten().min();
            tokio::select! {
                ((key, uid), done) = jobs.next() => {
                    let waits = done != Some(true) && waiting.again(&key, &uid, Instant::now());
                    if !waits {
                        waiting.done(&key, &uid);
                        self.serials.done(&uid);
                    }
                }
                event = events.next() => match event? {
                    Event::Begins => waiting.list_begins(),
                    Event::Complete => {
                        waiting.list_ends();
                        *said = None;
                        tracing::info!(version, waiting = waiting.len(), "PodCertificateRequests are answered");
                    }
                    Event::Applied(request) | Event::Listed(request) => {
                        if request.concerns_us() {
                            waiting.offer(request.key(), request.uid(), Instant::now());
                        } else {
                            waiting.remove(&request.key());
                        }
                    }
                    Event::Deleted(request) => waiting.remove(&request.key()),
                    Event::Progress => {}
                },
                () = async {
                    match wake {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }
}

/// The requests of a term of leadership.
struct Work {
    waiting: Waiting,
    /// Those that are worked on, by name and uid; whether nothing is left to do for one.
    jobs: Jobs<(Key, Arc<str>), bool>,
}

/// True if nothing is left to do for a request.
async fn handle(signer: &Signer, serials: &Serials, version: &str, key: &Key) -> bool {
    let (namespace, name) = key;
    let result = async {
        let found = source(version, Some(namespace)).get(&signer.controller.client, name).await?;
        let Some(request) = found.filter(PodCertificateRequest::concerns_us) else { return Ok(()) };
        let answering = Answering { signer, serials, version, namespace, name, request: &request };
        answering.answer().await
    };
    match result.await {
        Ok(()) => true,
        Err(Trouble::Write(error)) if error.is_not_found() => true,
        Err(trouble @ (Trouble::NotYet(_) | Trouble::Services(_))) => {
            tracing::debug!(%namespace, request = %name, reason = %trouble, "not yet");
            false
        }
        Err(Trouble::Write(error)) if error.code() == Some(409) => {
            tracing::debug!(%namespace, request = %name, %error, "changed since it was looked at");
            false
        }
        Err(error) => {
            tracing::warn!(
                %namespace, request = %name, %error,
                "a PodCertificateRequest cannot be answered now; trying again"
            );
            false
        }
    }
}

/// One request, being answered.
struct Answering<'a> {
    signer: &'a Signer,
    serials: &'a Serials,
    version: &'a str,
    namespace: &'a str,
    name: &'a str,
    request: &'a PodCertificateRequest,
}

impl Answering<'_> {
    async fn answer(&self) -> Result<(), Trouble> {
        let request = self.request;
        let Some(signer) = request.signer() else { return Ok(()) };
        let (bound, public_key) = (request.bound(), request.public_key());
        if request.cut {
            let message = "the request is larger than any that is needed: shorten the volume's userAnnotations";
            return self.refuse("Denied", Denial { reason: "TooLarge", message: message.to_owned() }).await;
        }
        let asked = PodCertificateFacts {
            signer: &signer,
            bound: &bound,
            max_expiration: request.max_expiration(),
            key: public_key.as_deref().and_then(csr::key_algorithm),
            annotations: &request.spec.unverified_user_annotations,
        };
        let Signer { controller, accounts, .. } = self.signer;
        let (account, created) = (&request.spec.service_account_uid, request.created());
        // Before the decision, which then is of the same namespaces or newer ones.
        let of_namespace = accounts.check(controller, &bound.namespace, account, created).await;
        let judge = |pod: Option<&_>, services: &[_], policy: &_| judge_for_kubelet(&asked, pod, services, policy);
        match (controller.decide_by(Some(&bound), Some(&signer), request.version(), judge).await?, public_key) {
            (Verdict::Approve(entitlement), Some(key)) => {
                of_namespace?;
                match self.manual_approval(&entitlement).await? {
                    None => self.issue(&signer, &entitlement, &key).await,
                    Some(denial) => self.refuse("Denied", denial).await,
                }
            }
            (Verdict::Deny(denials), _) => self.refuse_all("Denied", &denials).await,
            (Verdict::NotYet(reason), _) => Err(Trouble::NotYet(reason)),
            (Verdict::Approve(_), None) => Err(Trouble::NotYet("the request has no public key".to_owned())),
        }
    }

    /// Nobody approves a PodCertificateRequest. Where policy has a person approve, there is none.
    async fn manual_approval(&self, entitlement: &Entitlement) -> Result<Option<Denial>, Trouble> {
        let rule = self.signer.controller.manual_approval(Some(&self.request.bound()), entitlement, false).await?;
        Ok(rule.map(|rule| {
            let message = format!(
                "by manualApproval[{rule}] of the policy a person approves certificates, and nobody can approve a \
                 PodCertificateRequest: let the pod have the issuer csr"
            );
            Denial { reason: "ManualApproval", message }
        }))
    }

    async fn issue(&self, name: &SignerName, entitlement: &Entitlement, public_key: &[u8]) -> Result<(), Trouble> {
        let not_yet = |what: &str| Trouble::NotYet(what.to_owned());
        let Signer { controller, authorities, metrics, max_lifetime, .. } = self.signer;
        let (policy, _) = controller.in_force().ok_or_else(|| not_yet("no policy could be read yet"))?;
        let bound = self.request.bound();
        if policy.manual_approval(Some(&bound.namespace), &entitlement.signer).is_some() {
            return Err(not_yet("by the policy in force a person approves it"));
        }
        let mut leaf = Leaf::entitled(entitlement, public_key, *max_lifetime);
        let shortest = SHORTEST_POD_CERTIFICATE - POD_CERTIFICATE_BACKDATE;
        if leaf.lifetime < shortest {
            let message = "sign's --max-lifetime is less than an hour, and kube-apiserver takes no shorter pod certificate: raise it, \
                           or let the pod have its certificate of the issuer csr";
            return self.refuse("Failed", Denial { reason: "LifetimeTooShort", message: message.to_owned() }).await;
        }
        // The API server compares the status with the certificate, which has whole seconds.
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = UNIX_EPOCH + Duration::from_secs(elapsed.as_secs());
        leaf.lifetime = Duration::from_secs(leaf.lifetime.as_secs());
        let key = csr::key_digest(public_key);
        let grant =
            Grant { holder: &bound.pod_uid, key: &key, role: entitlement.role, trusts: None, lifetime: leaf.lifetime };
        let granted = match authorities.entry(&policy.authority(name)) {
            Ok(entry) => authorities.grant(&entry, &grant, now).await.map(|granted| (entry, granted)),
            Err(error) => Err(error),
        };
        let (entry, Granted { authority, .. }) = match granted {
            Ok(granted) => granted,
            Err(error) => return self.unavailable(error).await,
        };
        let serial = self.serials.of(self.request.uid()).map_err(|_| not_yet("no random numbers"))?;
        let chain = match issue_from(&authority, &leaf, now, POD_CERTIFICATE_BACKDATE, serial) {
            Ok(chain) => chain,
            Err(error @ IssueError::KeyOfAuthority) => {
                let denial = Denial { reason: "KeyOfAuthority", message: error.to_string() };
                return self.refuse("Denied", denial).await;
            }
            Err(error) => {
                if !matches!(error, IssueError::AuthorityNotValid) {
                    tracing::error!(authority = %entry.name, %error, "cannot issue");
                }
                return Err(Trouble::NotYet(error.to_string()));
            }
        };
        if chain.not_after < now + shortest {
            return Err(not_yet("the CA ends within an hour; a rollover to a new CA is due"));
        }
        let life = Life { issued: now, not_after: chain.not_after };
        let times = Times {
            not_before: chain.not_before,
            not_after: chain.not_after,
            begin_refresh_at: life.renew_at(&bound.pod_uid, &chain.serial),
        };
        let pod = format!("{}/{}", bound.namespace, bound.pod);
        let issued = Recorded::new(&bound.pod_uid, pod.clone(), &chain.common_name, chain.not_after, now)
            .named(&chain.sans)
            .of_role(entitlement.role)
            .for_key(public_key)
            .of_kubelet();
        // Before it is issued: one that then is not does no harm there.
        let first = match authorities.note_issued(&entry, &authority, &chain.serial, issued).await {
            Ok(first) => first,
            Err(error) => {
                self.serials.done(self.request.uid());
                return self.unavailable(error).await;
            }
        };
        self.write(&self.request.issue(&chain.to_pem(), &times, now)).await?;
        self.serials.done(self.request.uid());
        let ips = entitlement.sans.ips.iter().copied().filter(|ip| !ip.is_loopback());
        controller.pods.hold(&bound.pod_uid, ips, chain.not_after);
        metrics.issued(entitlement.role);
        tracing::info!(
            authority = %entry.name,
            generation = authority.generation(),
            serial = chain.serial,
            common_name = chain.common_name,
            pod,
            request = self.name,
            not_after = %rfc3339::text(chain.not_after),
            "issued a pod certificate"
        );
        if first {
            self.signer.tell_first(Some(&bound), entitlement, &chain.serial, chain.not_after);
        }
        self.signer.tell_of_no_list(Some(&bound), entitlement, &authority);
        Ok(())
    }

    /// There is no authority to sign with now. It may come, so nothing final is written but where an operator has barred the pod.
    async fn unavailable(&self, error: Unavailable) -> Result<(), Trouble> {
        match error {
            Unavailable::Barred(message) => {
                let message =
                    format!("{message}; kubelet does not ask again for this pod, so make the pod again in any case");
                self.refuse("Denied", Denial { reason: "PodRevoked", message }).await
            }
            error => Err(self.signer.wait(Some(&self.request.bound()), error).await),
        }
    }

    async fn refuse(&self, kind: &str, denial: Denial) -> Result<(), Trouble> {
        self.refuse_all(kind, &[denial]).await
    }

    /// Writes that there will be no certificate. kubelet shows it as an Event on the pod.
    async fn refuse_all(&self, kind: &str, denials: &[Denial]) -> Result<(), Trouble> {
        self.write(&self.request.refusal(kind, denials, SystemTime::now())).await?;
        denials.iter().for_each(|denial| self.signer.metrics.failed(denial.reason));
        let reasons = crate::controller::case::message(denials);
        tracing::warn!(namespace = self.namespace, request = self.name, reasons, "a pod certificate is refused");
        Ok(())
    }

    async fn write(&self, patch: &serde_json::Value) -> Result<(), Trouble> {
        let params = PatchParams { field_manager: Some("etcd-tls-sign".to_owned()), ..PatchParams::default() };
        let request = Request::new(source(self.version, Some(self.namespace)).path)
            .patch_subresource("status", self.name, &params, &Patch::Merge(patch))
            .map_err(|error| Trouble::Write(kube::Error::BuildRequest(error).into()))?;
        let client = &self.signer.controller.client;
        let metadata = written(client, request, "patch_subresource").await.map_err(Trouble::Write)?;
        if metadata.uid == self.request.metadata.uid { Ok(()) } else { Err(Trouble::Write(ApiServerError::NotWritten)) }
    }
}
