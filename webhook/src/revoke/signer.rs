//! The signer, as it is asked by annotations of the trust ConfigMap, and what it says.

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use etcd_tls_contract::{crl::Reason, encoding::hex, names, role::Domain};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Action, InUse, Report, Request, Selector, request_annotation, status_annotation};
use crate::{controller::client, error::Error, operator};

/// How long to wait for the signer's answer.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// The signer of a cluster, and what it is asked about.
pub(super) struct Signer<'a> {
    /// The ConfigMaps of the cluster's namespace.
    pub(super) api: &'a Api<ConfigMap>,
    /// The trust ConfigMap.
    pub(super) name: &'a str,
    /// Each has an authority that answers.
    pub(super) domains: &'a [Domain],
    /// The certificates.
    pub(super) selector: Selector,
    /// Why.
    pub(super) reason: Reason,
}

impl Signer<'_> {
    /// Writes a request, about what was issued `until` a time alone, and waits for the answers for all domains.
    ///
    /// # Errors
    /// No right to write it, or no answer.
    pub(super) async fn ask(&self, action: Action, until: Option<u64>) -> Result<Said, Error> {
        let request = Request { action, id: id()?, selector: self.selector.clone(), reason: self.reason, until };
        let annotations: BTreeMap<String, String> =
            self.domains.iter().map(|domain| (request_annotation(*domain), request.to_string())).collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        client::within(self.api.patch(self.name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(said) = answered(&look(self.api, self.name).await?, self.domains, &request) {
                return Ok(said);
            }
            sleep(POLL).await;
        }
        Err(format!(
            "the signer did not answer within {} s; the request stands: see the log of deployment etcd-tls-sign in {}. A signer \
             of an earlier version revokes nothing, or only with --at-once",
            PATIENCE.as_secs(),
            names::SYSTEM_NAMESPACE
        )
        .into())
    }
}

/// The trust ConfigMap.
///
/// # Errors
/// It cannot be read, or is not there.
pub(super) async fn look(api: &Api<ConfigMap>, name: &str) -> Result<ConfigMap, Error> {
    client::within(api.get_opt(name)).await?.ok_or_else(|| {
        format!(
            "there is no ConfigMap {name} in this namespace: no pod of this cluster has opted in, or the signer is away"
        )
        .into()
    })
}

/// The signer's answers to one request, or to several in sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    lines: Vec<String>,
    /// Certificates that it was about.
    pub(super) count: usize,
    /// Whether a domain was refused.
    pub(super) refused: bool,
    /// When the first answer was given.
    pub(super) at: Option<u64>,
    /// Pods that use what was left.
    pub(super) in_use: Vec<InUse>,
}

impl Said {
    /// Adds what was said next.
    pub(super) fn add(&mut self, next: Self) {
        self.count += next.count;
        self.refused |= next.refused;
        for line in next.lines {
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        (self.at, self.in_use) = (self.at.or(next.at), next.in_use);
    }

    /// A line for each domain and answer.
    pub(super) fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Prints it.
    pub(super) fn print(&self) -> Result<(), Error> {
        say(&self.text())
    }
}

/// The signer's answer, once it has answered for all of `domains`. It writes the answer with the list.
fn answered(object: &ConfigMap, domains: &[Domain], request: &Request) -> Option<Said> {
    let mut said = Said::default();
    let mut in_use: BTreeMap<String, InUse> = BTreeMap::new();
    for domain in domains {
        let text = object.metadata.annotations.as_ref()?.get(&status_annotation(*domain))?;
        let Report { answer, count, at, in_use: of_domain } = serde_json::from_str(text).ok()?;
        let answer = answer.filter(|answer| answer.id == request.id)?;
        said.count += count;
        said.at = Some(said.at.map_or(at, |earlier| earlier.min(at)));
        said.refused |= !answer.accepted;
        let verdict = if answer.accepted { "" } else { "refused: " };
        said.lines.push(format!("{domain}: {verdict}{}", answer.message));
        for used in of_domain {
            let known = in_use.entry(used.uid.clone()).or_insert_with(|| used.clone());
            known.serials.extend(used.serials);
            known.kubelet.extend(used.kubelet);
        }
    }
    said.in_use = in_use.into_values().collect();
    Some(said)
}

/// Prints lines, which may have text of others' objects.
pub(super) fn say(text: &str) -> Result<(), Error> {
    for line in text.lines() {
        writeln!(std::io::stdout(), "{}", operator::plain(line))?;
    }
    Ok(())
}

/// An id of its own for each request.
///
/// # Errors
/// There are no random numbers.
pub(super) fn id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers")?;
    Ok(hex(&bytes))
}
