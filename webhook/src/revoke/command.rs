//! `etcd-tls-webhook revoke <namespace>/<cluster>`: has the signer revoke a certificate, or shows what is revoked. It runs with
//! the caller's kubeconfig and needs only `get` and `patch` on the cluster's trust ConfigMap, and the marker right.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, time::Duration};

use etcd_tls_contract::{
    crl::{self, Crl, NoSerial, Reason},
    encoding::hex,
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Action, DOMAINS, Report, Request, Selector, members, request_annotation, status_annotation};
use crate::{
    controller::client,
    error::{Error, NotSeen},
    operator::{self, Cluster},
    rollover::rfc3339,
    status,
};

/// How long to wait for the signer's answer.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// Revokes a certificate of a cluster, takes that back, or shows what is revoked.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").args(["serial", "pod", "user", "list"]).required(true)))]
pub struct Args {
    /// The cluster, as <namespace>/<cluster>.
    cluster: ClusterName,
    /// The certificate's serial number in hexadecimal digits, as `openssl x509 -noout -serial` prints it.
    #[arg(long, value_parser = serial)]
    serial: Option<Selector>,
    /// A pod of the cluster's namespace, or <namespace>/<name>, that is not trusted any more: all its certificates. The signer
    /// gives it no other until it is made again.
    #[arg(long, value_parser = Selector::pod)]
    pod: Option<Selector>,
    /// All certificates of this user, the CN. Its pods get new ones with their next renewal.
    #[arg(long, value_parser = Selector::user)]
    user: Option<Selector>,
    /// Why: keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn or unspecified.
    #[arg(long, default_value = "unspecified", conflicts_with_all = ["undo", "list"])]
    reason: Reason,
    /// Revoke them even where that leaves no quorum of members whose peer certificates are accepted.
    #[arg(long, conflicts_with_all = ["undo", "list"])]
    force: bool,
    /// Accept the certificates again.
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// Show what is revoked, and change nothing.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    at: Cluster,
}

fn serial(text: &str) -> Result<Selector, NoSerial> {
    crl::serial(text).map(Selector::Serial)
}

impl Args {
    /// Writes the requests and waits for the signer's answers, or prints the lists.
    ///
    /// # Errors
    /// No such cluster, no right to its ConfigMap, no answer, a refusal, or members that do not look at the list.
    pub async fn run(self) -> Result<(), Error> {
        let Self { cluster, serial, pod, user, reason, force, undo, list: _, at } = self;
        let (client, _) = at.connect().await?;
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &cluster.namespace);
        let name = cluster.trust_config_map(&cluster.namespace);
        let before = look(&api, &name).await?;
        let Some(selector) = serial.or(pod).or(user) else { return say(&lists(&cluster, &before)) };
        // Every authority is asked, also one without a list: it says why it has none.
        let trusted = |domain: &Domain| before.data.as_ref().is_some_and(|data| data.contains_key(domain.trust_key()));
        let domains: Vec<Domain> = DOMAINS.into_iter().filter(trusted).collect();
        if domains.is_empty() || published(&before).is_empty() {
            return Err(none(&cluster).into());
        }
        let action = match (undo, force) {
            (true, _) => Action::Undo,
            (false, true) => Action::Force,
            (false, false) => Action::Add,
        };
        let request = Request { action, id: id()?, selector, reason };
        let annotations: BTreeMap<String, String> =
            domains.iter().map(|domain| (request_annotation(*domain), request.to_string())).collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        client::within(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let now = look(&api, &name).await?;
            if let Some(said) = answered(&now, &domains, &request)? {
                say(&said)?;
                return if undo { Ok(()) } else { enforced(&client, &cluster, &domains).await };
            }
            sleep(POLL).await;
        }
        Err(format!(
            "the signer did not answer within {} s; the request stands: see the log of deployment etcd-tls-sign in {}. A signer \
             of an earlier version revokes nothing",
            PATIENCE.as_secs(),
            names::SYSTEM_NAMESPACE
        )
        .into())
    }
}

/// Names the members that do not look at the list.
///
/// # Errors
/// There are some, or they cannot be told.
async fn enforced(client: &Client, cluster: &ClusterName, domains: &[Domain]) -> Result<(), Error> {
    match status::opted_in(client, Some(&cluster.namespace)).await {
        Ok(pods) => {
            let without = members::without_list(&pods, cluster, domains);
            if without.is_empty() {
                Ok(())
            } else {
                Err(without.iter().map(|line| operator::plain(line)).collect::<Vec<_>>().join("\n").into())
            }
        }
        Err(refused) => Err(NotSeen(format!(
            "Whether all members look at the list cannot be told: {refused}; {}",
            refused.right.question()
        ))
        .into()),
    }
}

async fn look(api: &Api<ConfigMap>, name: &str) -> Result<ConfigMap, Error> {
    client::within(api.get_opt(name)).await?.ok_or_else(|| {
        format!(
            "there is no ConfigMap {name} in this namespace: no pod of this cluster has opted in, or the signer is away"
        )
        .into()
    })
}

/// The lists that the signer publishes.
fn published(object: &ConfigMap) -> BTreeMap<Domain, Crl> {
    let list = |domain: Domain| {
        let der = object.binary_data.as_ref()?.get(domain.crl_key()?)?;
        Some((domain, Crl::parse(&der.0).ok()?))
    };
    DOMAINS.into_iter().filter_map(list).collect()
}

fn none(cluster: &ClusterName) -> String {
    format!(
        "no revocation list of {cluster} is published. Either the signer is of an earlier version, or its CA may not sign lists \
         (its certificate has key usages without cRLSign), or it is away: see the log of deployment etcd-tls-sign in {}",
        names::SYSTEM_NAMESPACE
    )
}

/// What the signer answered, when it has answered for all of `domains`. It writes the answer with the list.
///
/// # Errors
/// A domain was refused, or nothing was found. What was done for the others is in the text.
fn answered(object: &ConfigMap, domains: &[Domain], request: &Request) -> Result<Option<String>, Error> {
    let (mut text, mut count, mut refused) = (String::new(), 0, false);
    for domain in domains {
        let annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(&status_annotation(*domain)));
        let report: Option<Report> = annotation.and_then(|text| serde_json::from_str(text).ok());
        let Some((answer, about)) = report.and_then(|report| Some((report.answer?, report.count))) else {
            return Ok(None);
        };
        if answer.id != request.id {
            return Ok(None);
        }
        count += about;
        refused |= !answer.accepted;
        let verdict = if answer.accepted { "" } else { "refused: " };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{domain}: {verdict}{}", answer.message);
    }
    if count == 0 || refused {
        return Err(text.trim_end().to_owned().into());
    }
    if request.action != Action::Undo {
        text += "Members refuse new connections with it as soon as their sidecars have the list: within seconds where they watch the \
                 trust ConfigMap, else within two minutes, by kubelet. Connections that exist stay until they end.";
    }
    Ok(Some(text.trim_end().to_owned()))
}

fn lists(cluster: &ClusterName, object: &ConfigMap) -> String {
    let lists = published(object);
    let mut text = String::new();
    for domain in DOMAINS {
        let Some(list) = lists.get(&domain) else {
            let _ = writeln!(text, "{cluster} {domain}: no revocation list is published");
            continue;
        };
        let _ = writeln!(text, "{cluster} {domain}: list {}, {} revoked", list.number(), list.entries().len());
        for (serial, entry) in list.entries() {
            let _ = writeln!(text, "{serial} {} {}", rfc3339::text(entry.at), entry.reason);
        }
    }
    text.trim_end().to_owned()
}

fn say(text: &str) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers")?;
    Ok(hex(&bytes))
}
