//! The tasks of the leader beside signing requests: authorities and trust, the webhook's serving pair, deletion of finished
//! requests. When leadership ends, the records are written and every key is dropped.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::policy::Policy;
use tokio::{sync::Notify, time::sleep};

use super::{
    cache::{objects::Objects, pods::Pods},
    certificate_requests::CertificateRequests,
    cleaner::ledger::Times,
    cluster_trust_bundles::ClusterTrustBundles,
    near_end::NearEnd,
    pod_certificates::PodCertificates,
    recollection::Recollection,
    reconcile::{
        Reconciler,
        idle::{Attempts, Retired},
        said::Said,
    },
    serving::{Lifetimes, Serving},
    signer::Signer,
};
use crate::{controller::tasks::Jobs, platform::shutdown::until};

/// See the module.
pub(super) struct LeaderTasks {
    pub(super) signer: Arc<Signer>,
    /// The pods that have opted in.
    pub(super) members: Pods,
    /// Triggers a round of the reconciler.
    pub(super) changed: Arc<Notify>,
    /// Of the webhook's serving pair; `None`: another keeps it.
    pub(super) lifetimes: Option<Lifetimes>,
    /// When CertificateRequests of cert-manager are deleted, if they are.
    pub(super) certificate_requests: Option<Times>,
    /// True if bundles are published as ClusterTrustBundles, too.
    pub(super) cluster_trust_bundles: bool,
    /// True if PodCertificateRequests are answered, too.
    pub(super) pod_certificates: bool,
}

impl LeaderTasks {
    /// Runs the tasks in each term of leadership.
    pub(super) async fn keep(self) -> std::convert::Infallible {
        let Self { signer, members, changed, lifetimes, certificate_requests, cluster_trust_bundles, pod_certificates } =
            self;
        let controller = &signer.controller;
        let mut leader = controller.leader.clone();
        loop {
            until(&mut leader, true).await;
            let mut tasks = Jobs::new(controller.tasks.clone());
            signer.authorities.begin();
            let reconciler = Reconciler {
                client: controller.client.clone(),
                system: controller.namespace.clone(),
                policy: controller.policy.clone(),
                namespaces: controller.namespaces.clone(),
                authorities: Arc::clone(&signer.authorities),
                pods: members.clone(),
                secrets: Objects::default(),
                config_maps: Objects::default(),
                changed: Arc::clone(&changed),
                tasks: controller.tasks.clone(),
                recorder: controller.recorder.clone(),
                metrics: signer.metrics.clone(),
                given: HashMap::new(),
                said: Said::default(),
                upkeep: HashMap::new(),
                in_use: None,
                kept_clusters: BTreeSet::new(),
                retired: Retired::default(),
                retirements: Attempts::default(),
                waited: false,
            };
            tasks.start("authorities", (), async move { match reconciler.run().await {} });
            let recollection = Recollection {
                client: controller.client.clone(),
                authorities: Arc::clone(&signer.authorities),
                policy: controller.policy.clone(),
                pod_certificates,
            };
            tasks.start("recollection", (), async move { match recollection.keep().await {} });
            if let Some(lifetimes) = lifetimes {
                tasks.start("serving pair", (), serve(Arc::clone(&signer), lifetimes));
            }
            let cleaning = Arc::clone(&signer);
            tasks.start("cleaning", (), async move { match cleaning.clean_up().await {} });
            if let Some(times) = certificate_requests {
                let (client, metrics) = (controller.client.clone(), signer.metrics.clone());
                let requests = CertificateRequests { client, times, metrics };
                tasks.start("certificate requests", (), async move { match requests.clean_up().await {} });
            }
            if cluster_trust_bundles {
                let bundles = ClusterTrustBundles {
                    client: controller.client.clone(),
                    authorities: Arc::clone(&signer.authorities),
                    namespaces: controller.namespaces.clone(),
                    metrics: signer.metrics.clone(),
                };
                tasks.start("cluster trust bundles", (), async move { match bundles.keep().await {} });
            }
            let near_end = NearEnd {
                authorities: Arc::clone(&signer.authorities),
                pods: members.clone(),
                recorder: controller.recorder.clone(),
                max_lifetime: signer.max_lifetime,
            };
            tasks.start("certificates near their end", (), async move { match near_end.keep().await {} });
            if pod_certificates {
                let certificates = PodCertificates::new(Arc::clone(&signer));
                tasks.start("pod certificates", (), async move { match certificates.keep().await {} });
            }
            tokio::select! {
                () = until(&mut leader, false) => {}
                // None of them ends but by a panic.
                _ = tasks.next() => tracing::info!("the leader's tasks are started again"),
            }
            tasks.abort().await;
            signer.authorities.flush().await;
            signer.authorities.clear();
            signer.metrics.forget_all();
            // The task may fail again at once.
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Keeps the webhook's serving pair; the cluster's domain, which is one of its names, is policy's.
async fn serve(signer: Arc<Signer>, lifetimes: Lifetimes) {
    let mut policy = signer.controller.policy.clone();
    loop {
        let current = policy.borrow_and_update().clone();
        let domain = current.map_or_else(|| Policy::default().cluster_domain, |policy| policy.cluster_domain.clone());
        let serving = Serving {
            client: signer.controller.client.clone(),
            system: signer.controller.namespace.clone(),
            cluster_domain: domain,
            lifetimes,
            metrics: signer.metrics.clone(),
        };
        tokio::select! {
            never = serving.run() => match never {},
            changed = policy.changed() => if changed.is_err() { return },
        }
    }
}
