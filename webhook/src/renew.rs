//! `etcd-tls-webhook renew`: asks the sidecars of one pod or of a cluster for new certificates now, by the pods' annotation
//! `renew`, with the caller's rights.
//!
//! ```text
//! choose   which pods and roles are meant; pure
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::{
    invalid_value::InvalidValue,
    names::{self, ClusterName},
    renew::Renew,
    role::{Domain, Role},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    controller::client::within,
    error::{Error, NotInTime},
    operator::{Cluster, Refused, Right, say},
    status::{self, Sidecar, Unseen},
};

mod choose;

use choose::{Chosen, Kind, Split, Target};

/// The pause between two looks at the sidecars.
const POLL: Duration = Duration::from_secs(1);

/// The arguments of `renew`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A pod or an etcd cluster, as <namespace>/<pod> or <namespace>/<cluster>.
    #[arg(value_name = "NAMESPACE/NAME")]
    target: Target,
    /// The kind of the name. Needed if there are a pod and a cluster of that name.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Renew only this role: peer, server, client or metrics. Can be repeated.
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<Role>,
    /// Wait until every sidecar has its new certificates.
    #[arg(long)]
    wait: bool,
    /// How long --wait waits. kubelet can take a minute or two to deliver the annotation to the sidecar.
    #[arg(long, default_value = "5m", value_name = "DURATION", requires = "wait", value_parser = etcd_tls_contract::duration::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    cluster: Cluster,
}

/// Why certificates are not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// Nothing of that name.
    #[error(
        "no pod of namespace {} that has opted in and has not ended is named {}, and none belongs to a cluster of that name; \
         etcd-tls-webhook status -n {} shows them", .0.namespace, .0.name, .0.namespace
    )]
    NoSuch(Target),
    /// A pod and a cluster have the name.
    #[error("{0} is both a pod and a cluster of several pods; give --kind pod or --kind cluster")]
    Ambiguous(Target),
    /// No pod holds such a certificate.
    #[error("{target} holds no certificate of role {}", list(.roles))]
    NoRole {
        /// The named object.
        target: Target,
        /// The roles that were named.
        roles: BTreeSet<Role>,
    },
    /// Its roles are not known.
    #[error("the annotations of pod {0} cannot be read; etcd-tls-webhook check pod {0} names the mistakes")]
    Unreadable(String),
    /// The annotation does not reach the sidecar.
    #[error(
        "pod {0} does not bring the annotation to a sidecar: it has none, an earlier version injected into it, or it is a static \
         pod; delete it, so that it is made anew"
    )]
    Blind(String),
    /// kubelet alone renews.
    #[error(
        "kubelet requests the certificates of pod {0}, at its own time alone (issuer pod-certificate); delete it, so that it is made \
         anew with others"
    )]
    ByKubelet(String),
    /// The same key would be certified again.
    #[error(
        "pod {0} keeps its private key when it renews (key-rotation: on-ca-change); delete it, so that it is made anew with \
         another key, or revoke with --pod or --at-once"
    )]
    KeepsKey(String),
    /// A sidecar that cannot be asked.
    #[error("it cannot be seen whether pod {pod} renews: {reason}; {next}; without --wait it is asked nevertheless")]
    Unseen {
        /// The pod.
        pod: String,
        /// Why.
        reason: String,
        /// The next step.
        next: String,
        /// True if the caller lacks a right.
        denied: bool,
    },
}

impl Args {
    /// Writes the annotation, and waits for the new certificates where that was asked for.
    ///
    /// # Errors
    /// [`RenewError`], [`NotInTime`]; pods cannot be listed or patched.
    pub async fn run(self) -> Result<(), Error> {
        let (client, _) = self.cluster.connect().await?;
        let roles: BTreeSet<Role> = self.roles.into_iter().collect();
        let pods = status::opted_in(&client, Some(&self.target.namespace)).await?;
        let chosen = choose::choose(&pods, &self.target, self.kind, &roles)?;
        let namespace = &self.target.namespace;
        let mut before = BTreeMap::new();
        if self.wait {
            for pod in &chosen {
                before.insert(pod.name.clone(), serials(&look(&client, namespace, pod).await?));
            }
        }
        let renew = Renew { roles, id: jiff::Timestamp::now().to_string() };
        for pod in &chosen {
            annotate(&client, namespace, pod, &renew.to_string()).await?;
            say(&format!("pod {}: asked to renew {}", pod.name, list(&pod.roles)))?;
        }
        if !self.wait {
            return say(&format!(
                "kubelet brings it to each sidecar within a minute or two; --wait waits for that, and \
                 etcd-tls-webhook status -n {namespace} -o wide shows the certificates"
            ));
        }
        wait(&client, namespace, &chosen, &before, self.timeout).await
    }
}

/// Writes the annotation.
async fn annotate(client: &Client, namespace: &str, pod: &Chosen, value: &str) -> Result<(), Refused> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    // The uid: a pod that was made again meanwhile has new certificates already.
    let annotations = json!({names::RENEW_ANNOTATION: value});
    let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid, "annotations": annotations}}));
    within(api.patch_metadata(&pod.name, &PatchParams::default(), &patch))
        .await
        .map_err(|error| Right::new("patch", "pods", Some(namespace)).refused(error))?;
    Ok(())
}

/// A pod whose annotation `renew` was written, for new certificates or a restart of etcd.
#[derive(Debug)]
pub(crate) struct AnnotatedPod(Chosen);

impl AnnotatedPod {
    /// The serial numbers of the certificates on its disk.
    ///
    /// # Errors
    /// Its sidecar cannot be seen.
    pub(crate) async fn serials(&self, client: &Client) -> Result<BTreeSet<String>, RenewError> {
        Ok(serials(&self.look(client).await?).into_values().collect())
    }

    /// The state of its sidecar.
    ///
    /// # Errors
    /// It cannot be seen.
    pub(crate) async fn look(&self, client: &Client) -> Result<Sidecar, RenewError> {
        look(client, &self.0.namespace, &self.0).await
    }

    /// The domains of which its sidecar keeps a revocation list.
    pub(crate) fn lists(&self) -> BTreeSet<Domain> {
        if self.0.keeps_lists { self.0.roles.iter().map(|role| role.domain()).collect() } else { BTreeSet::new() }
    }

    /// Its name for people.
    pub(crate) fn shown(&self) -> &str {
        &self.0.shown
    }

    /// Writes the annotation.
    ///
    /// # Errors
    /// No right to.
    pub(crate) async fn annotate(&self, client: &Client, value: &str) -> Result<(), Refused> {
        annotate(client, &self.0.namespace, &self.0, value).await
    }
}

/// Why a pod is not asked to renew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The pod's name is not of the form `<namespace>/<name>`.
    #[error(transparent)]
    Name(#[from] InvalidValue),
    /// It is not there, or would not renew.
    #[error(transparent)]
    Renew(#[from] RenewError),
    /// The API server refused to read or patch it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl AskError {
    /// True if the pod is not there any more.
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(self, Self::Renew(RenewError::NoSuch(_)))
    }
}

/// Asks the pod `<namespace>/<name>` with this uid for new certificates of all roles, with a `new_key` where that matters.
///
/// # Errors
/// It is not there, does not see the annotation, keeps its key, or cannot be read or patched.
pub(crate) async fn ask(client: &Client, pod: &str, uid: &str, new_key: bool) -> Result<AnnotatedPod, AskError> {
    let target: Target = pod.parse()?;
    let api: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
    let found = within(api.get_opt(&target.name))
        .await
        .map_err(|error| Right::new("get", "pods", Some(&target.namespace)).refused(error))?;
    let found: Vec<Pod> = found.into_iter().filter(|pod| pod.metadata.uid.as_deref() == Some(uid)).collect();
    let mut chosen = choose::choose(&found, &target, Some(Kind::Pod), &BTreeSet::new())?;
    let pod = chosen.pop().ok_or_else(|| RenewError::NoSuch(target.clone()))?;
    if new_key {
        pod.gives_new_key()?;
    }
    let renew = Renew { roles: BTreeSet::new(), id: jiff::Timestamp::now().to_string() };
    let asked = AnnotatedPod(pod);
    asked.annotate(client, &renew.to_string()).await?;
    Ok(asked)
}

/// The members of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Those that can be asked for something.
    pub(crate) seeing: Vec<AnnotatedPod>,
    /// The names of those that do not see the annotation.
    pub(crate) blind: Vec<String>,
    /// The names of pods that may be members, and whose annotations cannot be read.
    pub(crate) unreadable: Vec<String>,
}

/// The members of `cluster` among `pods`.
///
/// # Errors
/// There is none.
pub(crate) fn members(pods: &[Pod], cluster: &ClusterName) -> Result<Members, RenewError> {
    let target = Target { namespace: cluster.namespace.clone(), name: cluster.name.clone() };
    let roles = BTreeSet::from([Role::Peer, Role::Server]);
    let Split { chosen, blind, unreadable } = choose::split(pods, &target, Some(Kind::Cluster), &roles)?;
    Ok(Members { seeing: chosen.into_iter().map(AnnotatedPod).collect(), blind, unreadable })
}

/// The state that the sidecar of `pod` reports.
async fn look(client: &Client, namespace: &str, pod: &Chosen) -> Result<Sidecar, RenewError> {
    let seen = status::ask(client, namespace, &pod.name, pod.admin_port).await;
    seen.map_err(|Unseen { reason, next, denied }| RenewError::Unseen { pod: pod.name.clone(), reason, next, denied })
}

/// The serial number of each role's certificate.
fn serials(sidecar: &Sidecar) -> BTreeMap<Role, String> {
    let serial = |(role, certificate): (&Role, &status::Certificate)| Some((*role, certificate.serial.clone()?));
    sidecar.certificates.iter().filter_map(serial).collect()
}

/// Waits until no role of a chosen pod has the certificate that it had before.
async fn wait(
    client: &Client,
    namespace: &str,
    chosen: &[Chosen],
    before: &BTreeMap<String, BTreeMap<Role, String>>,
    after: Duration,
) -> Result<(), Error> {
    let deadline = Instant::now() + after;
    let mut open: BTreeSet<(&str, Role)> =
        chosen.iter().flat_map(|pod| pod.roles.iter().map(|role| (pod.name.as_str(), *role))).collect();
    loop {
        let mut pending = Vec::new();
        for pod in chosen.iter().filter(|pod| open.iter().any(|(name, _)| *name == pod.name)).collect::<Vec<_>>() {
            let seen = look(client, namespace, pod).await;
            for role in &pod.roles {
                let key = (pod.name.as_str(), *role);
                if !open.contains(&key) {
                    continue;
                }
                let what = format!("pod {} {role}", pod.name);
                match &seen {
                    Err(error) => pending.push(format!("{what}: {error}")),
                    Ok(sidecar) => {
                        let (now, old) = (serials(sidecar), before.get(&pod.name).and_then(|old| old.get(role)));
                        match now.get(role).filter(|now| Some(*now) != old) {
                            Some(serial) => {
                                open.remove(&key);
                                say(&format!("{what}: renewed, serial {serial}"))?;
                            }
                            None => pending.push(match sidecar.failing.get(role) {
                                Some(word) => format!("{what}: its request fails ({word})"),
                                None => format!("{what}: still the certificate of before"),
                            }),
                        }
                    }
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(NotInTime { after, pending }.into());
        }
        sleep(POLL).await;
    }
}

/// Roles as a person writes them.
fn list(roles: &BTreeSet<Role>) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}
