//! The signer: judges each approved request again, by the live pod, and issues what the pod is entitled to, whole.
//!
//! ```text
//! authorities   the CAs, each kept by a Secret, held by the leader alone
//! signer        judges and issues one request
//! accounts      which namespace a requester is of, by uid
//! serials       the serial number of a request that is answered again
//! leader_tasks  what a leader keeps beside that: starts and ends reconcile and serving
//! recollection  finds what a killed leader issued and did not record
//! reconcile     makes CAs, publishes their trust, takes the steps of rollovers
//! serving       the webhook's serving pair and caBundle
//! near_end      says that a pod has not renewed a certificate
//! cleaner       deletes the requests that are done with; certificate_requests those of cert-manager
//! pod_certificates   answers the PodCertificateRequests of kubelets
//! cluster_trust_bundles   publishes the bundles for others, too
//! adopt         the command that gives a namespace made again the CAs of a backup
//! ```
//!
//! Its rights are the ClusterRole and the Role `etcd-tls-sign` in the manifests, and the ClusterRole `etcd-tls-trust`, which
//! the approver binds in opted-in namespaces and those of the policy's hosts: the first 403 there is
//! *not yet*. It watches the whole cluster by a fixed number of watches: none is of one namespace but the system's.
//!
//! **Invariant.** An approval is necessary and not enough: nothing is issued that this process has not judged for itself,
//! and nothing of a request but its public key is signed.

use std::{sync::Arc, time::Duration};

use etcd_tls_contract::duration::parse_duration;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use crate::{
    controller::{
        ControllerArgs,
        guards::{self, Components},
    },
    error::Error,
};
use accounts::Accounts;
use asides::Asides;
use authorities::{Authorities, issued::MOST, memory::Records};
use cache::pods::Pods;
use cleaner::{Cleaner, CleanerArgs};
use leader_tasks::LeaderTasks;
use metrics::Metrics;
use serials::Serials;
use serving::Lifetimes;
use signer::Signer;

mod accounts;
pub mod adopt;
mod asides;
mod authorities;
mod cache;
mod certificate_requests;
mod cleaner;
mod cleaning;
mod cluster_trust_bundles;
mod leader_tasks;
pub(crate) mod marks;
mod metrics;
mod near_end;
mod pod_certificates;
mod recollection;
mod reconcile;
mod repair;
mod serials;
mod serving;
mod signer;
mod trust;

/// The records that the standalone signer keeps as well: of valid certificates, and of revoked ones.
pub(crate) mod ledger {
    pub(crate) use super::{
        authorities::{
            issued::{Issued, Leaf, Line},
            revoked::{ByRecord, Known, Revoked},
        },
        cache::pods::{Voter, host_holder},
    };
}

/// The Lease that the replicas share.
const LEASE: &str = "etcd-tls-sign";

/// The arguments of `sign`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    controller: ControllerArgs,
    /// The maximum lifetime of every certificate. It can be less than ten minutes, the minimum that the API server accepts in a
    /// request.
    #[arg(long, value_parser = parse_duration)]
    max_lifetime: Option<Duration>,
    /// The maximum number of valid certificates of one pod or host from one CA. A further request waits until one of them has
    /// ended.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
    certificates_per_pod: u16,
    /// The memory for the record of valid certificates, in MiB: of all pods, hosts and CAs together. When three quarters of it are
    /// taken, the maximum for one pod or host falls, down to 32. When all of it is taken, the largest records forget certificates.
    #[arg(long, default_value_t = 32, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..))]
    record_memory: u16,
    /// The lifetime of the webhook's serving certificate. It is renewed after half of that time.
    #[arg(long, default_value = "720h", value_parser = parse_duration)]
    serving_lifetime: Duration,
    /// The lifetime of the webhook's own CA. The next one is published after half of that time.
    #[arg(long, default_value = "17520h", value_parser = parse_duration)]
    serving_ca_lifetime: Duration,
    /// Leave the webhook's serving certificate and its caBundle to another tool, such as cert-manager.
    #[arg(long, conflicts_with_all = ["serving_lifetime", "serving_ca_lifetime"])]
    external_serving_pair: bool,
    #[command(flatten)]
    cleaner: CleanerArgs,
    /// Also delete finished CertificateRequests of our pods. Needs the rights of the component cert-manager.
    #[arg(long)]
    cert_manager: bool,
    /// Also publish each trust bundle as a ClusterTrustBundle. Needs the rights of the component cluster-trust-bundles.
    #[arg(long)]
    cluster_trust_bundles: bool,
    /// Also answer PodCertificateRequests to our signers. Needs the rights of the component pod-certificates.
    #[arg(long)]
    pod_certificates: bool,
}

impl Args {
    /// Signs until told to stop.
    ///
    /// # Errors
    /// The reason why it could not start.
    pub async fn run(self) -> Result<(), Error> {
        let Self {
            controller,
            max_lifetime,
            certificates_per_pod,
            record_memory,
            serving_lifetime,
            serving_ca_lifetime,
            external_serving_pair,
            cleaner,
            cert_manager,
            cluster_trust_bundles,
            pod_certificates,
        } = self;
        let mut registry = Registry::with_prefix("etcd_tls_sign");
        let records = Arc::new(Records::new(usize::from(record_memory) << 20));
        let metrics = Metrics::register(&mut registry, &records, certificates_per_pod);
        let changed = Arc::new(Notify::new());
        let members = Pods::new(Arc::clone(&changed));
        let components = Components { cert_manager, cluster_trust_bundles, pod_certificates, ..Components::default() };
        let started =
            controller.start(LEASE, &guards::of_sign(components), registry, Some(members.observer()), None).await?;
        let controller = started.controller.clone();
        let authorities = Authorities::new(
            controller.client.clone(),
            &controller.namespace,
            controller.policy.clone(),
            controller.namespaces.clone(),
            controller.pods.clone(),
            (certificates_per_pod, records),
            Arc::clone(&changed),
        );
        let signer = Arc::new(Signer {
            controller,
            authorities: Arc::new(authorities),
            metrics,
            max_lifetime,
            cleaner: Cleaner::new(cleaner),
            serials: Serials::default(),
            accounts: Accounts::default(),
            asides: Asides::default(),
        });
        let lifetimes =
            (!external_serving_pair).then_some(Lifetimes { leaf: serving_lifetime, ca: serving_ca_lifetime });
        let tasks = LeaderTasks {
            signer: Arc::clone(&signer),
            members,
            changed,
            lifetimes,
            certificate_requests: cert_manager.then(|| cleaner.times()),
            cluster_trust_bundles,
            pod_certificates,
        };
        let authorities = Arc::clone(&signer.authorities);
        started
            .run(signer, None, async { match tasks.keep().await {} }, async move { authorities.flush().await })
            .await;
        Ok(())
    }
}
