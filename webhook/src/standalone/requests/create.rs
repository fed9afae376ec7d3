//! A new request: taken in, decided on, signed where it is approved, and stored in one write.
//!
//! What could never be signed is refused, and nothing of it is stored.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::identity::{Asked, Entitlement, Verdict};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::Value;

use crate::standalone::{
    auth::User,
    error::ApiError,
    requests::{
        auto_approve::{self, Decision},
        intake::{self, Checked},
        pods::Look,
        server::Server,
    },
    store::{Stored, status_mut},
    version::Version,
};

/// Creates a request.
///
/// # Errors
/// What is wrong with it, or that it could not be stored.
pub async fn create(
    server: &Server,
    user: &User,
    version: Version,
    body: Value,
    dry_run: bool,
) -> Result<Arc<Stored>, ApiError> {
    let mut csr = intake::read(version, body)?;
    intake::own(&mut csr, user)?;
    let name = csr.metadata.name.clone().unwrap_or_default();
    let checked =
        intake::check(server, version, &csr).map_err(|causes| ApiError::Invalid { name: name.clone(), causes })?;
    // The cheapest of all answers, before anything is signed.
    if server.store.get(&name).is_some() {
        return Err(ApiError::AlreadyExists(name));
    }
    let now = SystemTime::now();
    let outcome = server.judge(user, &csr, &checked, now, None)?;
    if dry_run {
        return Ok(Arc::new(Stored::unsaved(csr)));
    }
    match outcome {
        Outcome::Approved { reason, message, entitled } => {
            let mut status = vec![condition("Approved", reason, &message)];
            match server.sign(&csr, &checked, entitled.as_ref(), now) {
                Ok(certificate) => status_mut(&mut csr).certificate = Some(ByteString(certificate.into_bytes())),
                Err(error) => status.push(condition("Failed", "SignerFailed", &error)),
            }
            status_mut(&mut csr).conditions = Some(status);
        }
        Outcome::Denied(message) => {
            status_mut(&mut csr).conditions = Some(vec![condition("Denied", "NotEntitled", &message)]);
        }
        Outcome::Waiting(_) => {}
    }
    let stored = server.store.create(csr).await?;
    server.tell(&stored, &checked, user);
    Ok(stored)
}

/// What was decided on a request.
pub enum Outcome {
    /// Approved; with what to issue, where that is not just what was asked.
    Approved {
        /// One word, for the condition.
        reason: &'static str,
        /// Who or what approved.
        message: String,
        /// All that the pod or host is entitled to.
        entitled: Option<Entitlement>,
    },
    /// Denied, with every reason.
    Denied(String),
    /// Left for later, or for a person.
    Waiting(String),
}

impl Server {
    /// Decides on a request: by the law, for pods and the hosts that policy lists; else by the groups' rules. The pods are
    /// those of `look`, or of now.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`]: the caller asks to be another.
    pub(super) fn judge(
        &self,
        user: &User,
        csr: &CertificateSigningRequest,
        checked: &Checked,
        now: SystemTime,
        look: Option<&Look>,
    ) -> Result<Outcome, ApiError> {
        if let Some(signer) = &checked.signer
            && self.law.knows(user)
        {
            let requester = user.requester();
            let usages = csr.spec.usages.clone().unwrap_or_default();
            let asked = Asked {
                name: csr.metadata.name.as_deref().unwrap_or_default(),
                signer,
                requester: &requester,
                usages: &usages,
                expiration: lifetime(csr),
                request: &checked.request,
            };
            let verdict = match look {
                Some(look) => self.law.judge(&asked, look),
                None => self.law.judge(&asked, &self.law.look()),
            };
            return Ok(match verdict {
                Verdict::Approve(entitlement) => Outcome::Approved {
                    reason: "Entitled",
                    message: "the request says no more than its requester is".to_owned(),
                    entitled: Some(entitlement),
                },
                Verdict::Deny(denials) => {
                    let reasons: Vec<String> = denials.iter().map(|d| format!("{}: {}", d.reason, d.message)).collect();
                    Outcome::Denied(reasons.join("; "))
                }
                Verdict::NotYet(reason) => Outcome::Waiting(reason),
            });
        }
        let decision = self.store.with(|index, _| {
            let holder = index.holder(&checked.request.common_name, now);
            auto_approve::decide(user, &checked.request, &checked.recognised, holder, &self.rules)
        });
        match decision {
            Decision::Approve(rule) => Ok(Outcome::Approved {
                reason: "AutoApproved",
                message: format!("approved by --approve-group {rule}"),
                entitled: None,
            }),
            Decision::Wait(reason) => Ok(Outcome::Waiting(reason)),
            Decision::Forbid(reason) => Err(ApiError::Forbidden(reason)),
        }
    }

    /// Issues what was approved: to a pod or a listed host all that it is entitled to, to others what they asked for.
    ///
    /// # Errors
    /// For the `Failed` condition.
    pub(super) fn sign(
        &self,
        csr: &CertificateSigningRequest,
        checked: &Checked,
        entitled: Option<&Entitlement>,
        now: SystemTime,
    ) -> Result<String, String> {
        let request = &checked.request;
        let asked = lifetime(csr);
        let (role, common_name, sans, life) = match entitled {
            Some(e) => (e.role, e.common_name.as_str(), &e.sans, Some(asked.map_or(e.lifetime, |a| a.min(e.lifetime)))),
            None => (checked.recognised.role, request.common_name.as_str(), &request.sans, asked),
        };
        self.profiles.issue(role, common_name, sans, &request.public_key, life, now).map_err(|e| e.to_string())
    }

    /// Says in the log what became of a request.
    pub(super) fn tell(&self, stored: &Stored, checked: &Checked, by: &User) {
        let status = stored.csr.status.as_ref();
        let conditions: Vec<&str> =
            status.iter().flat_map(|s| s.conditions.iter().flatten()).map(|c| c.type_.as_str()).collect();
        let issued = status.is_some_and(|s| s.certificate.is_some());
        self.metrics.outcome(issued, conditions.contains(&"Denied"), conditions.contains(&"Failed"));
        let mut messages = status.iter().flat_map(|s| s.conditions.iter().flatten()).map(|c| c.message.as_deref());
        tracing::info!(
            request = stored.name(),
            owner = stored.owner(),
            by = by.name,
            profile = %checked.recognised.role,
            cn = checked.request.common_name,
            conditions = conditions.join(","),
            issued,
            message = messages.next_back().flatten().unwrap_or_default(),
            "request decided on"
        );
    }
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
