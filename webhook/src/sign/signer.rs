//! Signs one request: judges it again as the approver did, by the whole grammar, and issues what its pod is entitled to; and
//! deletes it when it is done with.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    identity::{Denial, Entitlement, Verdict},
    names::{self, SignerName},
};
use k8s_openapi::{ByteString, api::core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use serde_json::json;

use super::{
    authorities::{Authorities, Grant, Unavailable},
    cache::{latest::Latest, pods::host_holder, services::Services},
    cleaner::{self, Fate},
    metrics::Metrics,
};
use crate::{
    ca::issue::{IssueError, Leaf, issue},
    controller::{
        Controller,
        case::{self, Case},
        client::within,
        csr::{Handler, Interest, Outcome},
        facts::Csr,
    },
};

/// The reason of a Failed condition; what speaks against the request is in its message.
const FAILED: &str = "SignerValidationFailure";

/// What requests are handled with.
pub(super) struct Signer {
    pub(super) controller: Controller,
    pub(super) authorities: Arc<Authorities>,
    pub(super) services: Services,
    pub(super) metrics: Metrics,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) latest: Mutex<Latest>,
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
            Fate::Delete(_) => self.clean(csr).await,
            Fate::Orphan(_) => self.look_for_pod(csr).await,
        }
    }
}

impl Signer {
    async fn sign(&self, csr: &Csr) -> Outcome {
        let case = Case::open(csr);
        let services = match case.needs_pod() {
            Some(bound) => match self.services.of(&bound.namespace) {
                Some(services) => services,
                None => return self.controller.not_yet(csr, "Services not listed yet"),
            },
            None => Vec::new(),
        };
        match self.controller.decide(csr, &case, &services).await {
            Ok(Verdict::Approve(entitlement)) => self.issue(csr, &case, &entitlement).await,
            Ok(Verdict::Deny(denials)) => self.refuse(csr, &case, &denials).await,
            Ok(Verdict::NotYet(reason)) => self.controller.not_yet(csr, &reason),
            Err(error) => self.controller.failed(csr, &error),
        }
    }

    async fn issue(&self, csr: &Csr, case: &Case, entitlement: &Entitlement) -> Outcome {
        let now = SystemTime::now();
        let Some(policy) = self.controller.policy.borrow().clone() else { return Outcome::NotYet };
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
        let slot = match self.authorities.slot(&policy.authority(&entitlement.signer)) {
            Ok(slot) => slot,
            Err(error) => return self.unavailable(csr, case, error).await,
        };
        let authority = match self.authorities.grant(&slot, &grant, now).await {
            Ok(authority) => authority,
            Err(error) => return self.unavailable(csr, case, error).await,
        };
        let mut serial = [0; 16];
        if aws_lc_rs::rand::fill(&mut serial).is_err() {
            return self.controller.not_yet(csr, "no random numbers");
        }
        let chain = match issue(&authority, &leaf, now, serial) {
            Ok(chain) => chain,
            Err(error @ IssueError::AuthorityNotValid) => return self.controller.not_yet(csr, &error.to_string()),
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
        if let Err(error) = self.controller.write(csr, "status", patch).await {
            return self.controller.not_written(csr, &error);
        }
        self.metrics.issued(entitlement.role);
        tracing::info!(
            csr = csr.name(),
            uid = csr.uid(),
            authority = %slot.name,
            generation = authority.generation(),
            pod = case.pod(),
            x509.serial = chain.serial,
            x509.common_name = chain.common_name,
            x509.not_after = %crate::rollover::rfc3339::text(chain.not_after),
            "issued"
        );
        self.supersede(csr).await;
        Outcome::Done
    }

    /// There is no authority to sign with now. It may come, so nothing final is written.
    async fn unavailable(&self, csr: &Csr, case: &Case, error: Unavailable) -> Outcome {
        match error {
            Unavailable::Api(error) => self.controller.failed(csr, &error),
            Unavailable::Full(why) => {
                let denial = Denial { reason: "TooManyAuthorities", message: why };
                self.controller.tell_pod(case, "CertificateWaits", std::slice::from_ref(&denial)).await;
                self.controller.not_yet(csr, &denial.message)
            }
            error => self.controller.not_yet(csr, &error.to_string()),
        }
    }

    /// Writes that an approved request is refused all the same.
    async fn refuse(&self, csr: &Csr, case: &Case, denials: &[Denial]) -> Outcome {
        let reasons = case::message(denials);
        let patch = case::patch(csr, "Failed", FAILED, &reasons);
        if let Err(error) = self.controller.write(csr, "status", patch).await {
            return self.controller.not_written(csr, &error);
        }
        denials.iter().for_each(|denial| self.metrics.failed(denial.reason));
        tracing::warn!(csr = csr.name(), uid = csr.uid(), username = csr.spec.username, reasons, "refused");
        self.controller.tell_pod(case, "CertificateRefused", denials).await;
        Outcome::Done
    }

    /// Deletes the request that this one takes the place of.
    async fn supersede(&self, csr: &Csr) {
        let before = self.latest.lock().unwrap_or_else(PoisonError::into_inner).put(csr);
        if let Some((name, uid)) = before {
            self.delete(&name, &uid, None).await;
        }
    }

    async fn delete(&self, name: &str, uid: &str, version: Option<&str>) -> Outcome {
        let api: Api<Csr> = Api::all(self.controller.client.clone());
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: version.map(str::to_owned) });
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

    async fn clean(&self, csr: &Csr) -> Outcome {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).remove(csr);
        self.delete(csr.name(), csr.uid(), Some(csr.resource_version())).await
    }

    /// Deletes a pending request whose pod is gone: nobody will fetch its certificate.
    async fn look_for_pod(&self, csr: &Csr) -> Outcome {
        let case = Case::open(csr);
        let Some(bound) = &case.bound else { return Outcome::After(cleaner::PENDING) };
        let pods: Api<Pod> = Api::namespaced(self.controller.client.clone(), &bound.namespace);
        match within(pods.get_metadata_opt(&bound.pod)).await {
            Ok(pod) if pod.as_ref().is_none_or(|pod| pod.metadata.uid.as_deref() != Some(&bound.pod_uid)) => {
                self.clean(csr).await
            }
            Ok(_) => Outcome::After(cleaner::PENDING),
            Err(error) => self.controller.failed(csr, &error),
        }
    }
}
