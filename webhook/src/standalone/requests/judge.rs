//! The decision on a request, and its effect: the request is approved and signed, denied, or left pending.

use std::time::{Duration, SystemTime};

use etcd_tls_contract::{
    identity::{self, Addressee, Entitlement, RequestFacts, Verdict, bound_pod},
    names::csr_name,
};
use etcd_tls_telemetry::csr_span;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};

use tracing::Span;

use crate::{
    rollover::rfc3339,
    standalone::{
        auth::User,
        error::ApiError,
        profiles::SignError,
        requests::{
            auto_approve::{self, AutoApproval, Context},
            intake::{Checked, InvalidRequest},
            pods::Snapshot,
            server::Server,
        },
        store::{AUTO_APPROVED, ENTITLED, StoredRequest, status_mut},
    },
};

/// The decision on a request.
pub enum Judgement {
    /// Approved; with what to issue, where that is not just what was asked.
    Approved {
        /// One word, for the condition.
        reason: &'static str,
        /// The approver.
        message: String,
        /// All that the pod or host is entitled to.
        entitled: Option<Entitlement>,
    },
    /// Denied, with every reason.
    Denied(String),
    /// Left for later, or for a person.
    Waiting(String),
}

/// An approved request got no certificate. The text is the message of its condition `Failed`.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSigned {
    /// The request itself.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The policy does not entitle its requester; every reason.
    #[error("{0}")]
    Denied(String),
    /// The key is on record as compromised.
    #[error("an operator has revoked this key as compromised; make another one")]
    Compromised,
    /// The authority.
    #[error(transparent)]
    Sign(#[from] SignError),
}

impl Server {
    /// Decides on a request of any API version: for pods and the hosts that policy lists, by the in-cluster rules alone; else
    /// by the groups' rules. The pods are those of `snapshot`, or of now.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`]: the caller asks to be another.
    pub(super) fn judge(
        &self,
        user: &User,
        csr: &CertificateSigningRequest,
        checked: &Checked,
        now: SystemTime,
        snapshot: Option<&Snapshot>,
    ) -> Result<Judgement, ApiError> {
        if self.entitlements.knows(user) {
            return Ok(self.judge_by_policy(user, csr, checked, snapshot));
        }
        let is_token_user = self.auth.is_token_user(&checked.request.common_name);
        let decision = self.store.with(|index, _| {
            let context = Context {
                rules: &self.rules,
                holders: index.holders(),
                policy: self.entitlements.policy(),
                is_token_user,
                now,
            };
            auto_approve::decide(user, &checked.request, &checked.recognised, &context)
        });
        match decision {
            AutoApproval::Approve(rule) => Ok(Judgement::Approved {
                reason: AUTO_APPROVED,
                message: format!("approved by --approve-group {rule}"),
                entitled: None,
            }),
            AutoApproval::Wait(reason) => Ok(Judgement::Waiting(reason)),
            AutoApproval::Forbid(reason) => Err(ApiError::Forbidden(reason)),
        }
    }

    /// A request without a signer's name (v1beta1) is judged as if it named the signer of its own cluster and profile.
    fn judge_by_policy(
        &self,
        user: &User,
        csr: &CertificateSigningRequest,
        checked: &Checked,
        snapshot: Option<&Snapshot>,
    ) -> Judgement {
        let role = checked.recognised.role;
        let host = self.entitlements.policy().host(&user.name, &user.groups);
        let cluster = self.cluster.as_ref().or_else(|| host.map(|host| &host.cluster));
        let assumed = || cluster.map(|cluster| cluster.signer(role.domain()));
        let Some(signer) = checked.signer.clone().or_else(assumed) else {
            return Judgement::Denied("the request names no signer, and --cluster says none".to_owned());
        };
        let requester = user.requester();
        let mut usages = csr.spec.usages.clone().unwrap_or_default();
        let mut name = csr.metadata.name.clone().unwrap_or_default();
        if checked.signer.is_none() {
            // The old agents say no usages, and a host's CN where others name role and key.
            if usages.is_empty() {
                usages = identity::usages(role).iter().map(|usage| (*usage).to_owned()).collect();
            }
            if host.is_some() {
                name = csr_name("host", role, &checked.request.key_digest());
            }
        }
        let asked = RequestFacts {
            name: &name,
            signer: Addressee::Ours(&signer),
            requester: &requester,
            usages: &usages,
            expiration: lifetime(csr),
            request: &checked.request,
        };
        let verdict = match snapshot {
            Some(snapshot) => self.entitlements.judge(&asked, snapshot),
            None => self.entitlements.judge(&asked, &self.entitlements.snapshot()),
        };
        match verdict {
            Verdict::Approve(entitlement) => Judgement::Approved {
                reason: ENTITLED,
                message: "the request says no more than its requester is".to_owned(),
                entitled: Some(entitlement),
            },
            Verdict::Deny(denials) => {
                let reasons: Vec<String> = denials.iter().map(|d| format!("{}: {}", d.reason, d.message)).collect();
                Judgement::Denied(reasons.join("; "))
            }
            Verdict::NotYet(reason) => Judgement::Waiting(reason),
        }
    }

    /// The same judgement, but waiting where policy leaves the decision about its pods and hosts to a person.
    pub(super) fn unless_left(&self, user: &User, judgement: Judgement) -> Judgement {
        let Judgement::Approved { entitled: Some(entitlement), .. } = &judgement else { return judgement };
        let bound = bound_pod(&user.requester()).ok();
        let namespace = bound.as_ref().map(|bound| bound.namespace.as_str());
        match self.entitlements.policy().manual_approval(namespace, &entitlement.signer) {
            Some(rule) => Judgement::Waiting(format!("by manualApproval[{rule}] of the policy a person decides")),
            None => judgement,
        }
    }

    /// Writes the outcome into the request's status, signing what is approved; why it waits, where it does.
    pub(super) fn settle(
        &self,
        csr: &mut CertificateSigningRequest,
        checked: &Checked,
        outcome: Judgement,
        now: SystemTime,
    ) -> Option<String> {
        match outcome {
            Judgement::Approved { reason, message, entitled } => {
                self.approve(csr, condition("Approved", reason, &message), Ok(checked), entitled.as_ref(), now);
                None
            }
            Judgement::Denied(message) => {
                status_mut(csr).conditions = Some(vec![condition("Denied", "NotEntitled", &message)]);
                None
            }
            Judgement::Waiting(reason) => Some(reason),
        }
    }

    /// Adds an approval, and with it the certificate; a `Failed` condition where nothing could be signed.
    pub(super) fn approve(
        &self,
        csr: &mut CertificateSigningRequest,
        approval: CertificateSigningRequestCondition,
        checked: Result<&Checked, NotSigned>,
        entitled: Option<&Entitlement>,
        now: SystemTime,
    ) {
        let signed = checked.and_then(|checked| self.sign(csr, checked, entitled, now));
        let status = status_mut(csr);
        let conditions = status.conditions.get_or_insert_default();
        conditions.push(approval);
        match signed {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(error) => conditions.push(condition("Failed", "SignerFailed", &error.to_string())),
        }
    }

    /// Issues what was approved: to a pod or a listed host all that it is entitled to, to others what they asked for.
    ///
    /// # Errors
    /// For the `Failed` condition.
    fn sign(
        &self,
        csr: &CertificateSigningRequest,
        checked: &Checked,
        entitled: Option<&Entitlement>,
        now: SystemTime,
    ) -> Result<String, NotSigned> {
        let request = &checked.request;
        if self.store.with(|index, _| index.revocations().compromised(&request.public_key)) {
            return Err(NotSigned::Compromised);
        }
        let asked = lifetime(csr);
        let (role, common_name, sans, life) = match entitled {
            Some(e) => (e.role, e.common_name.as_str(), &e.sans, Some(asked.map_or(e.lifetime, |a| a.min(e.lifetime)))),
            None => (checked.recognised.role, request.common_name.as_str(), &request.sans, asked),
        };
        Ok(self.profiles.issue(role, common_name, sans, &request.public_key, life, now)?)
    }

    /// Says in the log what became of a request.
    pub(super) fn tell(&self, stored: &StoredRequest, checked: &Checked, by: &User) {
        let told = stored.conditions();
        let conditions: Vec<&str> = told.iter().map(|condition| condition.kind.as_str()).collect();
        let certificate = stored.certificate();
        let issued = certificate.is_some();
        self.metrics.outcome(issued, conditions.contains(&"Denied"), conditions.contains(&"Failed"), SystemTime::now());
        tracing::info!(
            by = by.name,
            profile = %checked.recognised.role,
            cn = checked.request.common_name,
            conditions = conditions.join(","),
            issued,
            serial = certificate.map(|(serial, _)| serial),
            not_after = certificate.map(|(_, until)| rfc3339::text(until)),
            reason = told.last().and_then(|condition| condition.message.as_deref()).unwrap_or_default(),
            "request decided on"
        );
    }
}

/// The fields of every log line about a request.
pub(super) fn span(csr: &CertificateSigningRequest) -> Span {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let span = csr_span!(
        text(&csr.metadata.name),
        text(&csr.metadata.uid),
        csr.spec.signer_name.as_str(),
        text(&csr.spec.username)
    );
    if let Ok(bound) = bound_pod(&User::of(csr).requester()) {
        span.record("pod", format!("{}/{}", bound.namespace, bound.pod));
    }
    span
}

/// A condition, made now.
pub fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = Some(Time(Timestamp::now()));
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

fn lifetime(csr: &CertificateSigningRequest) -> Option<Duration> {
    csr.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
}
