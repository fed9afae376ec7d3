//! Deletes finished requests, a few at once, while this replica leads.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::identity::{BoundPod, Verdict};
use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
    core::PartialObjectMeta,
};
use tokio::time::{Instant, sleep_until};

use super::{
    authorities::recollected::Recollected,
    cleaner::ledger::{Ended, Order, Step, Why},
    signer::Signer,
};
use crate::controller::{
    case::{self, Case},
    client::{ApiServerError, within},
    facts::{self, Csr},
    pods::Found,
};

/// Steps that are taken at once.
const AT_ONCE: usize = 8;
/// How long issued requests stay at most while a new leader looks in them for certificates that are not recorded: where it cannot,
/// they would fill the API server's store.
const SPARE_FOR: Duration = Duration::from_secs(10 * 60);
/// How often to look whether records cannot be written.
const LOOK_AT_RECORDS: Duration = Duration::from_secs(1);
/// The reason of a denial whose pod is gone.
const POD_GONE: [&str; 2] = ["PodGone", "WrongPod"];

impl Signer {
    /// Takes the cleaner's steps when they are due.
    pub(super) async fn clean_up(&self) -> Infallible {
        let cleaner = &self.cleaner;
        cleaner.ledger().release(Instant::now());
        let mut steps = FuturesUnordered::new();
        let (recollected, patience) = (self.authorities.recollected(), Instant::now() + SPARE_FOR);
        let mut said = false;
        let (mut looked, mut some_unrecorded) = (Instant::now(), false);
        loop {
            if looked.elapsed() >= LOOK_AT_RECORDS {
                (looked, some_unrecorded) = (Instant::now(), self.authorities.some_spare_requests(Instant::now()));
            }
            let next_due = {
                let mut ledger = cleaner.ledger();
                let spares = *recollected.borrow() != Recollected::All;
                let too_late = Instant::now() >= patience;
                if spares && too_late && !said {
                    tracing::warn!(
                        "issued requests are deleted, although certificates of the leader before could not be looked for in \
                         them: records may lack some for good"
                    );
                    said = true;
                }
                ledger.spare(spares && !too_late);
                while steps.len() < AT_ONCE
                    && let Some(order) = ledger.take(Instant::now())
                {
                    steps.push(async move {
                        let ended = self.step(&order, some_unrecorded).await;
                        (order, ended)
                    });
                }
                self.metrics.requests(ledger.len(), ledger.held());
                if steps.len() < AT_ONCE { ledger.next_due() } else { None }
            };
            tokio::select! {
                Some((order, ended)) = steps.next() => cleaner.ledger().finish(&order, ended, Instant::now()),
                () = cleaner.changed.notified() => {}
                () = async {
                    match next_due {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    async fn step(&self, order: &Order, some_unrecorded: bool) -> Ended {
        match order.step {
            Step::Delete(_) if some_unrecorded && order.recorded && self.is_unrecorded(order).await => {
                Ended::Unrecorded
            }
            Step::Delete(why) => self.delete(order, why).await,
            Step::Look => self.look(order).await,
        }
    }

    /// True if the certificate of a request may be in no Secret, since that cannot be written: a successor finds it in the request.
    async fn is_unrecorded(&self, order: &Order) -> bool {
        let Some(policy) = self.controller.policy.borrow().clone() else { return true };
        match facts::csrs().get::<Csr>(&self.controller.client, &order.name).await {
            Ok(Some(csr)) => Case::open(&csr)
                .signer()
                .is_some_and(|signer| self.authorities.spares_requests(&policy.authority(signer), Instant::now())),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    async fn delete(&self, order: &Order, why: Why) -> Ended {
        let api: Api<PartialObjectMeta<CertificateSigningRequest>> = Api::all(self.controller.client.clone());
        let preconditions =
            Preconditions { uid: Some(order.uid.to_string()), resource_version: Some(order.version.to_string()) };
        let params = DeleteParams::default().preconditions(preconditions);
        match within(api.delete(&order.name, &params)).await {
            // An object, and no status: it is still there.
            Ok(answer) => {
                let held =
                    answer.left().is_some_and(|object| object.metadata.finalizers.is_some_and(|f| !f.is_empty()));
                if held {
                    return Ended::Held;
                }
                self.metrics.deleted(why.as_str());
                tracing::debug!(csr = &*order.name, reason = why.as_str(), "deleted");
                Ended::Gone
            }
            Err(error) if error.is_not_found() => Ended::Gone,
            Err(error) if error.is_stale() => Ended::Changed,
            Err(error) => {
                self.metrics.delete_failures.inc();
                // An outage is said once, by the watches. An answer such as 403 is about this right.
                if error.code().is_some_and(|code| code < 500) {
                    tracing::warn!(csr = &*order.name, %error, "cannot delete a request that is done with; trying again");
                } else {
                    tracing::debug!(csr = &*order.name, %error, "cannot delete a request that is done with; trying again");
                }
                Ended::Failed
            }
        }
    }

    /// True if the pod of a request is gone, as the API server says now: a watch alone is not enough to delete.
    async fn is_orphaned(&self, bound: &BoundPod, version: &str) -> Result<bool, ApiServerError> {
        let pods = &self.controller.pods;
        let gone = |found: &Found| match found {
            Found::Gone => true,
            Found::There(pod) => pod.uid != bound.pod_uid,
            Found::TooLarge => false,
        };
        Ok(gone(&pods.no_older_than(bound, version).await?) && gone(&pods.now(bound, version).await?))
    }

    /// An open request whose pod is gone has nobody to fetch its certificate; one that would be refused goes without an
    /// answer where its requester has enough of them, or after the time that a refused one stays.
    async fn look(&self, order: &Order) -> Ended {
        let csr = match facts::csrs().get::<Csr>(&self.controller.client, &order.name).await {
            Ok(Some(csr)) if order.uid == *csr.uid() => csr,
            Ok(_) => return Ended::Gone,
            Err(error) => {
                tracing::debug!(csr = &*order.name, %error, "cannot read an undecided request; trying again");
                return Ended::Failed;
            }
        };
        if order.version != *csr.resource_version() {
            self.cleaner.observe(&csr);
            return Ended::Changed;
        }
        let case = Case::open(&csr);
        if case::is_a_pods_to_another(&csr) {
            return match &case.bound {
                Some(bound) => self
                    .is_orphaned(bound, csr.resource_version())
                    .await
                    .map_or(Ended::Failed, |is| if is { Ended::Delete(Why::Orphaned) } else { Ended::Stays }),
                None => Ended::Stays,
            };
        }
        match self.controller.decide(&csr, &case).await {
            Ok(Verdict::Deny(denials)) if denials.iter().any(|denial| POD_GONE.contains(&denial.reason)) => {
                Ended::Delete(Why::Orphaned)
            }
            Ok(Verdict::Deny(_)) if self.cleaner.ledger().goes_unanswered(&csr, SystemTime::now()) => {
                Ended::Delete(Why::Unanswered)
            }
            Ok(_) => Ended::Stays,
            Err(_) => Ended::Failed,
        }
    }
}
