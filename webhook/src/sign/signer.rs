//! Signs one request: judges it again as the approver did, by the whole grammar, and issues what its pod is entitled to. Where policy
//! has a person approve, the approval of `approve` is none.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    csr,
    identity::{BoundPod, Denial, Entitlement, Verdict},
    names,
    role::Role,
};
use k8s_openapi::ByteString;
use serde_json::json;

use super::{
    accounts::Accounts,
    asides::Asides,
    authorities::{Authorities, Grant, Granted, Unavailable, issued::Leaf as Recorded},
    cache::pods::host_holder,
    cleaner::Cleaner,
    metrics::Metrics,
    serials::Serials,
};
use crate::{
    ca::{
        authority::Authority,
        issue::{IssueError, Leaf, issue},
    },
    controller::{
        Controller, Trouble,
        case::{self, Case},
        csr::{Handled, Handler, Seen},
        events::{
            Notice, pod_reference,
            reasons::{CERTIFICATE_ISSUED, CERTIFICATE_REFUSED, CERTIFICATE_WAITS, NOT_REVOCABLE},
        },
        facts::Csr,
    },
};

/// The reason of a Failed condition; its message lists the objections.
const FAILED: &str = "SignerValidationFailure";

/// The dependencies for handling requests.
pub(super) struct Signer {
    pub(super) controller: Controller,
    pub(super) authorities: Arc<Authorities>,
    pub(super) metrics: Metrics,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) cleaner: Cleaner,
    pub(super) serials: Serials,
    pub(super) accounts: Accounts,
    /// Events about pods that have one already, and those that are being written.
    pub(super) asides: Asides,
}

impl Handler for Signer {
    fn observe(&self, seen: Seen<'_>) {
        if let Seen::There(csr) = seen {
            self.controller.pods.saw(csr);
        }
        match seen {
            Seen::ListBegins => {
                self.controller.pods.saw_none();
                self.serials.clear();
                self.cleaner.list_begins();
            }
            Seen::There(csr) if is_ours(csr) => {
                self.controller.note_answered(csr);
                self.cleaner.observe(csr);
            }
            Seen::There(csr) if case::is_a_pods_to_another(csr) => self.cleaner.observe(csr),
            Seen::There(_) => {}
            Seen::Gone(csr) => {
                self.serials.done(csr.uid());
                self.cleaner.gone(csr);
            }
            Seen::ListEnds => self.cleaner.list_ends(),
        }
    }

    /// Approved requests that were not refused. The API server accepts a certificate on a denied request; we write none.
    fn concerns(&self, csr: &Csr) -> bool {
        let decided = csr.denied() || csr.failed() || csr.status.has_certificate;
        is_ours(csr) && csr.approved() && !decided && csr.metadata.deletion_timestamp.is_none()
    }

    async fn handle(&self, csr: &Csr) -> Handled {
        let (case, began) = (Case::open(csr), SystemTime::now());
        // Before the decision, which then is of the same namespaces or newer ones.
        let of_namespace = self.check_namespace(csr, &case).await;
        let result = match self.controller.decide(csr, &case).await {
            Ok(Verdict::Approve(entitlement)) => match of_namespace {
                Ok(()) => self.issue(csr, &case, &entitlement).await,
                Err(trouble) => Err(trouble),
            },
            Ok(Verdict::Deny(denials)) => self.refuse(csr, &case, &denials).await,
            Ok(Verdict::NotYet(reason)) => Err(Trouble::NotYet(reason)),
            Err(trouble) => Err(trouble),
        };
        self.controller.trace(csr, &case, began, &result);
        self.controller.outcome(csr, result)
    }
}

impl Signer {
    /// Makes sure that a pod's namespace is the one that the watch has.
    async fn check_namespace(&self, csr: &Csr, case: &Case) -> Result<(), Trouble> {
        let Some(bound) = &case.bound else { return Ok(()) };
        self.accounts.check(&self.controller, &bound.namespace, &csr.spec.uid, csr.created()).await
    }

    async fn issue(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Result<(), Trouble> {
        let not_yet = |what: &str| Trouble::NotYet(what.to_owned());
        if !case::is_approved_by_another(csr)
            && let Some(rule) = self.controller.manual_approval(case.bound.as_ref(), entitlement, false).await?
        {
            let message = format!("by manualApproval[{rule}] of the policy a person approves it, and approve did");
            return self.refuse(csr, case, &[Denial { reason: "NoPersonApproved", message }]).await;
        }
        let now = SystemTime::now();
        let (policy, _) = self.controller.in_force().ok_or_else(|| not_yet("no policy could be read yet"))?;
        // The CA is that of this policy; the one that was read live may name another.
        let namespace = case.bound.as_ref().map(|bound| bound.namespace.as_str());
        if !case::is_approved_by_another(csr) && policy.manual_approval(namespace, &entitlement.signer).is_some() {
            return Err(not_yet("by the policy in force a person approves it"));
        }
        let public_key = case.public_key().ok_or_else(|| not_yet("the request has no public key"))?;
        let mut leaf = Leaf::entitled(entitlement, public_key, csr.expiration());
        leaf.lifetime = self.max_lifetime.map_or(leaf.lifetime, |max| leaf.lifetime.min(max));
        let holder = case.bound.as_ref().map_or_else(|| host_holder(&csr.spec.username), |b| b.pod_uid.clone());
        let key = csr::key_digest(public_key);
        let grant = Grant {
            holder: &holder,
            key: &key,
            role: entitlement.role,
            trusts: csr.annotation(names::TRUSTS_ANNOTATION),
            lifetime: leaf.lifetime,
        };
        let granted = match self.authorities.entry(&policy.authority(&entitlement.signer)) {
            Ok(entry) => self.authorities.grant(&entry, &grant, now).await.map(|granted| (entry, granted)),
            Err(error) => Err(error),
        };
        let (entry, Granted { authority, bundle }) = match granted {
            Ok(granted) => granted,
            Err(Unavailable::Barred(message)) => {
                return self.refuse(csr, case, &[Denial { reason: "PodRevoked", message }]).await;
            }
            Err(error) => return Err(self.unavailable(case, error).await),
        };
        let serial = self.serials.of(csr.uid()).map_err(|_| not_yet("no random numbers"))?;
        let chain = match issue(&authority, &leaf, now, serial) {
            Ok(chain) => chain,
            Err(error @ IssueError::KeyOfAuthority) => {
                let denial = Denial { reason: "KeyOfAuthority", message: error.to_string() };
                return self.refuse(csr, case, &[denial]).await;
            }
            Err(error) => {
                if !matches!(error, IssueError::AuthorityNotValid) {
                    tracing::error!(authority = %entry.name, %error, "cannot issue");
                }
                return Err(Trouble::NotYet(error.to_string()));
            }
        };
        let in_force = self.authorities.in_force(&entitlement.signer, &policy, &entry.name, &bundle).await;
        let certificate = ByteString(in_force.before(&chain.to_pem()).into_bytes());
        let patch = json!({
            "metadata": {"uid": csr.uid(), "resourceVersion": csr.resource_version()},
            "status": {"certificate": certificate},
        });
        let pod = case.bound.as_ref().map(|b| format!("{}/{}", b.namespace, b.pod)).unwrap_or_default();
        let issued = Recorded::new(&holder, pod, &chain.common_name, chain.not_after, now)
            .named(&chain.sans)
            .of_role(entitlement.role)
            .for_key(public_key);
        // Before it is issued: one that then is not does no harm there.
        let first = match self.authorities.note_issued(&entry, &authority, &chain.serial, issued).await {
            Ok(first) => first,
            Err(error) => {
                self.serials.done(csr.uid());
                return Err(self.unavailable(case, error).await);
            }
        };
        self.controller.write(csr, "status", patch).await?;
        self.serials.done(csr.uid());
        self.controller.note_certificate(case, &entitlement.sans, chain.not_after);
        self.metrics.issued(entitlement.role);
        tracing::info!(
            authority = %entry.name,
            generation = authority.generation(),
            serial = chain.serial,
            common_name = chain.common_name,
            not_after = %crate::rollover::rfc3339::text(chain.not_after),
            "issued"
        );
        if first {
            self.tell_first(case.bound.as_ref(), entitlement, &chain.serial, chain.not_after);
        }
        self.tell_of_no_list(case.bound.as_ref(), entitlement, &authority);
        Ok(())
    }

    /// Says beside a pod that it has its first certificate: once, and not of each role and renewal.
    pub(super) fn tell_first(
        &self,
        bound: Option<&BoundPod>,
        entitlement: &Entitlement,
        serial: &str,
        end: SystemTime,
    ) {
        let Some(bound) = bound else { return };
        let Entitlement { role, signer, .. } = entitlement;
        let end = crate::rollover::rfc3339::text(end);
        let note = format!("the first certificate is issued: {role} of {signer}, serial {serial}, until {end}");
        let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
        let notice = Notice { regarding, reason: CERTIFICATE_ISSUED, note };
        self.asides.say_once(&bound.pod_uid, &self.controller.recorder, notice);
    }

    /// Admission sees no CA. So a member gets an Event with its first certificate where nobody can revoke that.
    pub(super) fn tell_of_no_list(&self, bound: Option<&BoundPod>, entitlement: &Entitlement, authority: &Authority) {
        let Some(bound) = bound else { return };
        if authority.signs_lists() || !matches!(entitlement.role, Role::Peer | Role::Server) {
            return;
        }
        let note = format!(
            "{} certificates of this cluster cannot be revoked: the CA may not sign a list, as its certificate has key usages without \
             cRLSign. Give the signer a CA that has it, or one without key usages",
            entitlement.signer.domain
        );
        let regarding = pod_reference(&bound.namespace, &bound.pod, &bound.pod_uid);
        let subject = format!("{} {}", bound.pod_uid, entitlement.signer.domain);
        let notice = Notice { regarding, reason: NOT_REVOCABLE, note };
        self.asides.say_once(&subject, &self.controller.recorder, notice);
    }

    /// There is no authority to sign with now. It may come, so nothing final is written.
    async fn unavailable(&self, case: &Case, error: Unavailable) -> Trouble {
        self.wait(case.bound.as_ref(), error).await
    }

    /// The same for a certificate that waits, of a request of whatever kind. The pod gets an Event where somebody can do something.
    pub(super) async fn wait(&self, bound: Option<&BoundPod>, error: Unavailable) -> Trouble {
        let (reason, message) = match error {
            Unavailable::Api(error) => return error.into(),
            Unavailable::Full(message) => ("TooManyAuthorities", message),
            Unavailable::Enough(message) => ("TooManyCertificates", message),
            error => return Trouble::NotYet(error.to_string()),
        };
        let denial = Denial { reason, message };
        self.controller.tell_pod(bound, CERTIFICATE_WAITS, std::slice::from_ref(&denial)).await;
        Trouble::NotYet(denial.message)
    }

    /// Writes that an approved request is refused all the same.
    async fn refuse(&self, csr: &Csr, case: &Case, denials: &[Denial]) -> Result<(), Trouble> {
        let reasons = case::message(denials);
        self.controller.write(csr, "status", case::patch(csr, "Failed", FAILED, &reasons, SystemTime::now())).await?;
        denials.iter().for_each(|denial| self.metrics.failed(denial.reason));
        tracing::warn!(reasons, "refused");
        self.controller.tell_pod(case.bound.as_ref(), CERTIFICATE_REFUSED, denials).await;
        Ok(())
    }
}

/// True if a request is addressed to a signer of ours.
fn is_ours(csr: &Csr) -> bool {
    case::is_ours(&csr.spec.signer_name)
}
