//! `etcd-tls-webhook revoke <namespace>/<cluster>`: has the signer revoke a certificate, or shows what is revoked. It runs with
//! the caller's kubeconfig and needs only `get` and `patch` on the cluster's trust ConfigMap, and the marker right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use etcd_tls_contract::{
    crl::{self, Crl, NoSerial, Reason},
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use super::{
    Action, MOST_IN_USE, Report, STANDALONE_ANNOTATION, Selector, cut,
    elsewhere::{self, Around},
    renewed,
    signer::Signer,
    status_annotation,
};
use crate::{
    error::{Error, NotSeen},
    operator::{self, Cluster, say, trust_map},
    rollover::rfc3339,
    status,
};

/// Revokes a certificate of a cluster, takes that back, or shows what is revoked.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").args(["serial", "pod", "user", "list"]).required(true)))]
pub struct Args {
    /// The cluster, as <namespace>/<cluster>.
    cluster: ClusterName,
    /// The certificate's serial number in hexadecimal digits, as `openssl x509 -noout -serial` prints it. If a pod uses the
    /// certificate, the pod is renewed first.
    #[arg(long, value_parser = serial)]
    serial: Option<Selector>,
    /// Revoke all certificates of this pod at once: its name in the cluster's namespace, or <namespace>/<name>. The signer
    /// issues no further certificate to the pod until it is created anew.
    #[arg(long, value_parser = Selector::pod)]
    pod: Option<Selector>,
    /// Revoke all existing certificates of this user (the CN). Pods that use them are renewed first.
    #[arg(long, value_parser = Selector::user)]
    user: Option<Selector>,
    /// The reason: keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn or unspecified.
    #[arg(long, default_value = "unspecified", conflicts_with_all = ["undo", "list"])]
    reason: Reason,
    /// Revoke even if too few members for a quorum keep an accepted peer certificate, or if a pod that uses the certificates
    /// was not renewed within --timeout.
    #[arg(long, conflicts_with_all = ["undo", "list"])]
    force: bool,
    /// Do not renew the pods first: the pods that use the certificates are refused until their next renewal. --pod implies
    /// this.
    #[arg(long, conflicts_with_all = ["undo", "list"])]
    at_once: bool,
    /// Also end existing connections, of all clients: every etcd member is restarted, one at a time and never without quorum. A
    /// cluster of one member is unavailable for some seconds.
    #[arg(long, conflicts_with_all = ["undo", "list"])]
    cut: bool,
    /// How long to wait for pods to renew and, with --cut, for members to restart. kubelet delivers the annotation `renew`
    /// within a minute or two. A pod counts as renewed when its sidecar has the new files; a program that reads them only at
    /// start is refused until it restarts.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = etcd_tls_contract::duration::parse_duration)]
    timeout: Duration,
    /// Accept the certificates again.
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// List the revoked certificates, and change nothing.
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
        let (client, _) = self.at.connect().await?;
        self.run_by(client).await
    }

    async fn run_by(self, client: Client) -> Result<(), Error> {
        let Self { cluster, serial, pod, user, reason, force, at_once, cut, timeout, undo, list: _, at: _ } = self;
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &cluster.namespace);
        let name = cluster.trust_config_map(&cluster.namespace);
        let before = trust_map::read(&api, &name).await?;
        let Some(selector) = serial.or(pod).or(user) else { return say(&lists(&cluster, &before)) };
        // Every authority is asked, also one without a list: it says why it has none.
        let trusted = |domain: &Domain| before.data.as_ref().is_some_and(|data| data.contains_key(domain.trust_key()));
        let domains: Vec<Domain> = Domain::WITH_LISTS.into_iter().filter(trusted).collect();
        if domains.is_empty() || published(&before).is_empty() {
            let none = if is_standalone(&before) { NONE_OF_HOSTS.to_owned() } else { none(&cluster) };
            return Err(none.into());
        }
        // Others than the one of this number are found in the record.
        let by_record = !matches!(selector, Selector::Serial(_)) || reason == Reason::KeyCompromise;
        let signer = Signer { api: &api, name: &name, domains: &domains, selector, reason, force };
        let standalone = is_standalone(&before);
        if standalone && cut {
            return Err("--cut is for pods: this signer issues to hosts. Restart their etcd one after the other".into());
        }
        let said = if undo {
            signer.ask(Action::Undo, None).await?
        } else if at_once || matches!(signer.selector, Selector::Pod(_)) {
            signer.ask(if force { Action::Force } else { Action::Add }, None).await?
        } else {
            renewed::revoke(&client, &signer, timeout, force).await?
        };
        if said.count == 0 && !said.bars {
            return Err(said.text().into());
        }
        let refused: Result<(), Error> = if said.refused() { Err(said.text().into()) } else { said.print() };
        let maybe_more = said.lacked_before.filter(|_| by_record).map(|before| Err(maybe_more(before, undo).into()));
        if undo {
            return cut::first_of([refused].into_iter().chain(maybe_more).collect());
        }
        if said.count == 0 {
            if refused.is_ok() {
                say(BAR_ALONE)?;
            }
            return cut::first_of([refused].into_iter().chain(maybe_more).collect());
        }
        if standalone {
            say(EFFECT_ON_HOSTS)?;
            return refused;
        }
        say(EFFECT)?;
        let mut results = vec![refused];
        if cut {
            let lists = published(&trust_map::read(&api, &name).await?);
            let numbers = lists.into_iter().map(|(domain, list)| (domain, list.number())).collect();
            results.push(cut::cut(&client, &cluster, &numbers, &said.elsewhere, timeout).await);
        } else {
            say("Connections that exist stay until they end.")?;
        }
        results.push(enforced(&client, &cluster, &domains, &said.elsewhere).await);
        results.extend(said.more_elsewhere.then(|| Err(unnamed(&cluster).into())));
        results.extend(maybe_more);
        cut::first_of(results)
    }
}

/// Certificates of which the record knows nothing stay as they are.
fn maybe_more(before: u64, undo: bool) -> NotSeen {
    let what = if undo { "other revoked certificates of it" } else { "other certificates to revoke" };
    NotSeen(format!("Cannot determine whether there are {what}: {}", super::lacks(before)))
}

/// Members that the signer did not name were not looked at.
fn unnamed(cluster: &ClusterName) -> NotSeen {
    NotSeen(format!(
        "The signer names {MOST_IN_USE} members outside of namespace {} at a time. Cannot determine whether others use the list; none of \
         them was restarted",
        cluster.namespace
    ))
}

/// The consequence of a revocation.
const EFFECT: &str = "Members refuse new connections with it as soon as their sidecars have the list: within seconds where they \
                      watch the trust ConfigMap, else within two minutes, by kubelet.";

/// The same at a standalone signer.
const EFFECT_ON_HOSTS: &str = "Members refuse new connections with it as soon as their sidecars have the list, within seconds, if \
                               their etcd has --client-crl-file and --peer-crl-file. Connections that exist stay until they \
                               end. The signer takes no request with it.";

/// The consequence of a revocation of a pod of which no certificate is known.
const BAR_ALONE: &str = "Nothing is on a revocation list, so members refuse no certificate, and --cut restarts no member. If the pod has \
                         a certificate nevertheless, use --serial.";

/// Of members that are no pods.
const OF_HOST: &str =
    "no pod, so nothing tells here whether its etcd reads the list: it needs --client-crl-file and --peer-crl-file";

fn is_standalone(object: &ConfigMap) -> bool {
    object.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(STANDALONE_ANNOTATION))
}

/// Names the members that do not look at the list.
///
/// # Errors
/// There are some, or they cannot be determined.
async fn enforced(
    client: &Client,
    cluster: &ClusterName,
    domains: &[Domain],
    elsewhere: &BTreeSet<String>,
) -> Result<(), Error> {
    match elsewhere::look(client, cluster, elsewhere).await {
        Ok(Around { pods, unread, hosts }) => {
            if !hosts.is_empty() {
                say(&format!("{}: {OF_HOST}", hosts.join(", ")))?;
            }
            let mut results = Vec::new();
            let without = status::without_list(&pods, cluster, domains);
            if !without.is_empty() {
                let lines: Vec<_> = without.iter().map(|line| operator::plain(line)).collect();
                results.push(Err(lines.join("\n").into()));
            }
            let unreadable = status::unreadable(&pods, cluster);
            if !unreadable.is_empty() {
                let all = unreadable.join(", ");
                let why = cut::UNREADABLE;
                results.push(Err(NotSeen(format!("Cannot determine whether pod {all} uses the list: {why}")).into()));
            }
            if !unread.is_empty() {
                let all = unread.join("; ");
                results.push(Err(NotSeen(format!("Cannot determine whether all members use the list: {all}")).into()));
            }
            cut::first_of(results)
        }
        Err(refused) => Err(NotSeen(format!(
            "Cannot determine whether all members use the list: {refused}; {}",
            refused.right.question()
        ))
        .into()),
    }
}

/// The lists that the signer publishes.
fn published(object: &ConfigMap) -> BTreeMap<Domain, Crl> {
    let list = |domain: Domain| {
        let der = object.binary_data.as_ref()?.get(domain.crl_key()?)?;
        Some((domain, Crl::parse(&der.0).ok()?))
    };
    Domain::WITH_LISTS.into_iter().filter_map(list).collect()
}

const NONE_OF_HOSTS: &str = "the standalone signer publishes no revocation list: its CA may not sign lists (its certificate has \
                             key usages without cRLSign), or its --csrdir cannot be written; see its log";

fn none(cluster: &ClusterName) -> String {
    format!(
        "no revocation list of {cluster} is published. Either the signer is of an earlier version, or its CA may not sign lists \
         (its certificate has key usages without cRLSign), or it is away: see the log of deployment etcd-tls-sign in {}",
        names::SYSTEM_NAMESPACE
    )
}

/// The signer's report on a list.
fn report(object: &ConfigMap, domain: Domain) -> Option<Report> {
    let text = object.metadata.annotations.as_ref()?.get(&status_annotation(domain))?;
    serde_json::from_str(text).ok()
}

fn lists(cluster: &ClusterName, object: &ConfigMap) -> String {
    let lists = published(object);
    let mut text = String::new();
    for domain in Domain::WITH_LISTS {
        let Report { lacks_before, whose, .. } = report(object, domain).unwrap_or_default();
        if let Some(before) = lacks_before {
            let _ = writeln!(text, "{cluster} {domain}: {}", super::lacks(before));
        }
        let Some(list) = lists.get(&domain) else {
            let _ = writeln!(text, "{cluster} {domain}: no revocation list is published");
            continue;
        };
        let _ = writeln!(text, "{cluster} {domain}: list {}, {} revoked", list.number(), list.entries().len());
        for (serial, entry) in list.entries() {
            let whose = whose.get(serial).map(|whose| format!(" {}", operator::plain(whose))).unwrap_or_default();
            let _ = writeln!(text, "{serial} {} {}{whose}", rfc3339::text(entry.at), entry.reason);
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
        time::SystemTime,
    };

    use clap::Parser as _;
    use etcd_tls_contract::key::KeyAlgorithm;
    use http_body_util::BodyExt as _;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    use super::{
        super::{Request, request_annotation},
        *,
    };
    use crate::ca::{authority::Authority, crl};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Runs the command with `arguments` at a signer that answers each request with `report`; true: it looked at pods.
    async fn revoke(arguments: &str, report: Report) -> (Result<(), Error>, bool) {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let ca = Authority::generate("ca", KeyAlgorithm::EcdsaP256, day, now).unwrap();
        let list = crl::sign(&ca, 7, std::iter::empty(), now).unwrap();
        let mut trust = ConfigMap::default();
        for domain in Domain::WITH_LISTS {
            trust.data.get_or_insert_default().insert(domain.trust_key().to_owned(), String::new());
            let lists = trust.binary_data.get_or_insert_default();
            lists.insert(domain.crl_key().unwrap().to_owned(), ByteString(list.der().to_vec()));
        }
        let all = Arc::new(Mutex::new((trust, false)));
        let state = Arc::clone(&all);
        let server = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            let (state, report) = (Arc::clone(&state), report.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut state = state.lock().unwrap();
                if head.uri.path().ends_with("/pods") {
                    state.1 = true;
                    let page = json!({"metadata": {}, "items": []}).to_string();
                    return Ok::<_, Infallible>(hyper::Response::new(http_body_util::Full::new(page.into())));
                }
                let written: Value = serde_json::from_slice(&body).unwrap_or_default();
                for domain in Domain::WITH_LISTS {
                    let asked = written["metadata"]["annotations"][request_annotation(domain)].as_str();
                    let Some(request) = asked.and_then(|text| text.parse::<Request>().ok()) else { continue };
                    let report = Report { answer: Some(request.accepted("done")), ..report.clone() };
                    let annotations = state.0.metadata.annotations.get_or_insert_default();
                    annotations.insert(status_annotation(domain), serde_json::to_string(&report).unwrap());
                }
                let object = serde_json::to_string(&state.0).unwrap();
                Ok(hyper::Response::new(http_body_util::Full::new(object.into())))
            }
        });
        let line = format!("revoke prod/etcd {arguments}");
        let result = Line::parse_from(line.split(' ')).args.run_by(Client::new(server, "default")).await;
        let looked = all.lock().unwrap().1;
        (result, looked)
    }

    #[tokio::test]
    async fn a_bar_alone_restarts_nobody_and_is_done_where_the_record_lacks_nothing() {
        let report = |count, bars, lacked_before| Report { count, bars, lacked_before, ..Report::default() };
        let (done, looked) = revoke("--pod app-0 --cut", report(0, true, None)).await;
        assert!(done.is_ok() && !looked, "{done:?}");
        let (lacking, looked) = revoke("--pod app-0", report(0, true, Some(7))).await;
        let lacking = lacking.unwrap_err();
        assert!(lacking.is::<NotSeen>() && lacking.to_string().contains("only --serial revokes those"), "{lacking}");
        assert!(!looked);
        let (none, _) = revoke("--pod app-0", report(0, false, Some(7))).await;
        assert!(!none.unwrap_err().is::<NotSeen>(), "nothing was done");
        let (done, looked) = revoke("--pod app-0", report(1, true, None)).await;
        assert!(done.is_ok() && looked, "{done:?}");
    }

    #[tokio::test]
    async fn members_that_the_signer_may_not_have_named_are_no_success() {
        let of = |members: usize| {
            let elsewhere = (0..members).map(|n| format!("host m{n}")).collect();
            revoke("--serial 4f0a --at-once", Report { count: 1, elsewhere, ..Report::default() })
        };
        let (all, _) = of(MOST_IN_USE - 1).await;
        assert!(all.is_ok(), "{all:?}");
        let (some, _) = of(MOST_IN_USE).await;
        let some = some.unwrap_err();
        assert!(some.is::<NotSeen>() && some.to_string().contains("names 100 members"), "{some}");
    }
}
