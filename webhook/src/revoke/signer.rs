//! The signer, as it is asked by annotations of the trust ConfigMap, and what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::{crl::Reason, names, role::Domain};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tokio::time::{Instant, sleep};

use super::{Action, InUse, MOST_IN_USE, Report, Request, Selector, request_annotation, status_annotation};
use crate::{
    error::Error,
    operator::{request_id, say, trust_map},
};

/// How long to wait for the signer's answer: a new leader waits for the Lease, and half a minute for what the one before issued.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// The signer of a cluster, and the request to it.
pub(super) struct Signer<'a> {
    /// The ConfigMaps of the cluster's namespace.
    pub(super) api: &'a Api<ConfigMap>,
    /// The trust ConfigMap.
    pub(super) name: &'a str,
    /// Each has an authority that answers.
    pub(super) domains: &'a [Domain],
    /// The certificates.
    pub(super) selector: Selector,
    /// The reason in the revocation list.
    pub(super) reason: Reason,
    /// True if refusals are to be overridden at last.
    pub(super) force: bool,
}

impl Signer<'_> {
    /// Writes a request, about what was issued `until` a time alone, and waits for the answers for all domains.
    ///
    /// # Errors
    /// No right to write it, or no answer.
    pub(super) async fn ask(&self, action: Action, until: Option<u64>) -> Result<SignerAnswers, Error> {
        let request =
            Request { action, id: request_id()?, selector: self.selector.clone(), reason: self.reason, until };
        let annotations: BTreeMap<String, String> =
            self.domains.iter().map(|domain| (request_annotation(*domain), request.to_string())).collect();
        trust_map::annotate(self.api, self.name, annotations).await?;
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(said) =
                answered(&trust_map::read(self.api, self.name).await?, self.domains, &request, self.force)
            {
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

/// The signer's answers to one request, or to several in sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct SignerAnswers {
    lines: Vec<String>,
    /// Certificates that it was about.
    pub(super) count: usize,
    /// [`Report::bars`], of any authority.
    pub(super) bars: bool,
    /// The refusals among the last answers.
    refusals: Vec<String>,
    /// When the first answer was given.
    pub(super) at: Option<u64>,
    /// Pods that use what was left.
    pub(super) in_use: Vec<InUse>,
    /// True if an authority named as many pods as it can, so that others may use it, too.
    pub(super) more_in_use: bool,
    /// [`Report::elsewhere`], of all authorities.
    pub(super) elsewhere: BTreeSet<String>,
    /// True if an authority named as many of these as it can, so that there may be others.
    pub(super) more_elsewhere: bool,
    /// [`Report::lacked_before`], of any authority.
    pub(super) lacked_before: Option<u64>,
}

impl SignerAnswers {
    /// True if the last answer for a domain was a refusal.
    pub(super) fn refused(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// Adds what was said next, for all domains. Of refusals only the last count: what was refused may be granted later.
    pub(super) fn add(&mut self, next: Self) {
        self.count += next.count;
        self.bars |= next.bars;
        self.refusals = next.refusals;
        // Now it is, or the next line says again that it is not.
        self.lines.retain(|line| !line.ends_with(super::NOT_YET));
        for line in next.lines {
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        (self.at, self.in_use, self.more_in_use) = (self.at.or(next.at), next.in_use, next.more_in_use);
        (self.elsewhere, self.more_elsewhere) = (next.elsewhere, next.more_elsewhere);
        self.lacked_before = next.lacked_before;
    }

    /// A line for each domain and answer.
    pub(super) fn text(&self) -> String {
        self.lines.iter().chain(&self.refusals).map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Prints it.
    pub(super) fn print(&self) -> Result<(), Error> {
        say(&self.text())
    }
}

/// The signer's answer, once it has answered for all of `domains`. It writes the answer with the list.
/// With `force` also the pods that wait for a refusal to be overridden count.
fn answered(object: &ConfigMap, domains: &[Domain], request: &Request, force: bool) -> Option<SignerAnswers> {
    let mut said = SignerAnswers::default();
    let mut in_use: BTreeMap<String, InUse> = BTreeMap::new();
    for domain in domains {
        let text = object.metadata.annotations.as_ref()?.get(&status_annotation(*domain))?;
        let Report { answer, count, bars, at, in_use: of_domain, elsewhere, lacked_before, .. } =
            serde_json::from_str(text).ok()?;
        let answer = answer.filter(|answer| answer.id == request.id)?;
        said.count += count;
        said.bars |= bars;
        said.lacked_before = said.lacked_before.max(lacked_before);
        said.more_elsewhere |= elsewhere.len() >= MOST_IN_USE;
        said.elsewhere.extend(elsewhere);
        // 0 is what a signer of an earlier version says for another cluster's authority.
        let at = at.filter(|at| *at > 0);
        said.at = said.at.into_iter().chain(at).min();
        if answer.accepted {
            said.lines.push(format!("{domain}: {}", answer.message));
        } else {
            said.refusals.push(format!("{domain}: refused: {}", answer.message));
        }
        // Nobody renews for what stays refused.
        let of_domain = if answer.accepted || force { of_domain } else { Vec::new() };
        said.more_in_use |= of_domain.len() >= MOST_IN_USE;
        for used in of_domain {
            let known = in_use.entry(used.uid.clone()).or_insert_with(|| used.clone());
            known.serials.extend(used.serials);
            known.kubelet.extend(used.kubelet);
        }
    }
    said.in_use = in_use.into_values().collect();
    Some(said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    fn request() -> Request {
        Request {
            action: Action::Renewed,
            id: "1".to_owned(),
            selector: Selector::Serial("4f0a".to_owned()),
            reason: Reason::Unspecified,
            until: None,
        }
    }

    fn accepted(at: u64, pods: &[&str]) -> Report {
        let used = |pod: &&str| InUse {
            pod: (*pod).to_owned(),
            uid: (*pod).to_owned(),
            serials: BTreeSet::from(["4f0a".to_owned()]),
            kubelet: BTreeSet::new(),
        };
        let in_use = pods.iter().map(used).collect();
        Report { answer: Some(request().accepted("done")), count: 1, at: Some(at), in_use, ..Report::default() }
    }

    fn refused(report: Report) -> Report {
        Report { answer: Some(request().refused("no")), count: 0, ..report }
    }

    fn said(reports: [Report; 2], force: bool) -> SignerAnswers {
        let annotations = Domain::WITH_LISTS
            .into_iter()
            .zip(reports)
            .map(|(d, r)| (status_annotation(d), serde_json::to_string(&r).unwrap()));
        let mut object = ConfigMap::default();
        object.metadata.annotations = Some(annotations.collect());
        answered(&object, &Domain::WITH_LISTS, &request(), force).unwrap()
    }

    #[test]
    fn another_clusters_authority_does_not_tell_when_it_answered() {
        let elsewhere = |at| Report { at, ..refused(Report::default()) };
        for at in [None, Some(0)] {
            for reports in [[accepted(7, &["a/b"]), elsewhere(at)], [elsewhere(at), accepted(7, &["a/b"])]] {
                let said = said(reports, false);
                assert_eq!((said.at, said.in_use.len(), said.refused()), (Some(7), 1, true));
            }
        }
        assert_eq!(said([elsewhere(None), elsewhere(None)], false).at, None);
        assert_eq!(said([accepted(7, &[]), accepted(6, &[])], false).at, Some(6));
    }

    #[test]
    fn a_record_that_lacks_certificates_is_told_by_the_last_answers() {
        // What it lacks now is of no matter: it may have found some since.
        let lacking = |before| Report { lacked_before: before, lacks_before: Some(1), ..accepted(7, &[]) };
        let mut all = said([lacking(None), lacking(Some(60))], false);
        assert_eq!(all.lacked_before, Some(60));
        assert_eq!(said([lacking(Some(120)), lacking(Some(60))], false).lacked_before, Some(120));
        all.add(said([lacking(None), lacking(None)], false));
        assert_eq!(all.lacked_before, None);
    }

    #[test]
    fn members_elsewhere_of_any_authority_are_told() {
        let of = |names: &[&str]| Report {
            elsewhere: names.iter().map(|&name| name.to_owned()).collect(),
            ..accepted(7, &[])
        };
        let all = said([of(&["pod b/etcd-0"]), of(&["host m1", "pod b/etcd-0"])], false);
        assert_eq!(all.elsewhere, BTreeSet::from(["host m1".to_owned(), "pod b/etcd-0".to_owned()]));
    }

    #[test]
    fn nobody_renews_for_a_refusal_that_stands() {
        let pods = |force| {
            let said = said([refused(accepted(7, &["a/b"])), accepted(7, &["a/c"])], force);
            said.in_use.into_iter().map(|used| used.pod).collect::<Vec<_>>()
        };
        assert_eq!(pods(false), ["a/c"]);
        assert_eq!(pods(true), ["a/b", "a/c"], "it is overridden when they have renewed");
    }

    #[test]
    fn pods_of_each_authority_are_counted_by_themselves() {
        let names: Vec<String> = (0..2 * MOST_IN_USE).map(|n| format!("a/b{n}")).collect();
        let pods =
            |from: usize, count: usize| -> Vec<&str> { names[from..from + count].iter().map(String::as_str).collect() };
        let most = MOST_IN_USE;
        let of = |first: Vec<&str>, second: Vec<&str>| {
            let said = said([accepted(7, &first), accepted(7, &second)], true);
            (said.in_use.len(), said.more_in_use)
        };
        assert_eq!(of(pods(0, most - 1), pods(most, most - 1)), (2 * most - 2, false), "each named all of its own");
        assert_eq!(of(pods(0, most), pods(0, 1)), (most, true));
        assert_eq!(of(pods(0, 1), pods(0, most)), (most, true));
        let mut all = said([accepted(7, &pods(0, most)), accepted(7, &[])], true);
        all.add(said([accepted(9, &pods(0, 1)), accepted(9, &[])], true));
        assert!(!all.more_in_use, "the last answer counts");
        let stands = said([refused(accepted(7, &pods(0, most))), accepted(7, &[])], false);
        assert!(!stands.more_in_use, "nobody renews for a refusal");
    }

    #[test]
    fn the_last_answer_of_each_domain_counts() {
        let mut all = said([refused(accepted(7, &[])), accepted(7, &[])], true);
        assert!(all.refused() && all.text().contains("refused: no"));
        all.add(said([accepted(9, &[]), accepted(9, &[])], true));
        assert_eq!((all.refused(), all.at, all.text().contains("refused")), (false, Some(7), false), "{}", all.text());
        let mut not_yet = accepted(9, &["a/b"]);
        not_yet.answer = Some(request().accepted("user app is not revoked yet"));
        all.add(said([not_yet, accepted(9, &[])], true));
        assert!(all.text().contains("not revoked yet"));
        all.add(said([accepted(9, &[]), accepted(9, &[])], true));
        assert!(!all.text().contains("not revoked yet"), "{}", all.text());
        all.add(said([accepted(9, &[]), refused(accepted(9, &[]))], true));
        assert!(all.refused());
    }
}
