//! Revocation: who may revoke, what a request does to the record, and the lists that are signed of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{names::ClusterName, role::Domain};
use tokio::time;

use crate::{
    ca::authority::Authority,
    revoke::{Action, Request, Selector},
    sign::ledger::{ByRecord, Issued, Known, Revoked, Voter},
    standalone::{auth::User, error::ApiError, requests::server::Server, store::ledger::Ledger},
};

/// How often expired entries leave the lists, and a new CA signs them.
const REFRESH: Duration = Duration::from_secs(10);

/// Clusters, and hosts of each, that an answer names at most.
const MOST_NAMED: usize = 20;

/// A request, with the cluster that it names.
#[derive(Clone, Debug)]
struct Asked {
    cluster: ClusterName,
    requests: BTreeMap<Domain, Request>,
}

impl Server {
    /// True if `user` may revoke: a member of an administrators' group, or whom policy lists.
    pub fn may_revoke(&self, user: &User) -> bool {
        self.is_admin(user) || self.entitlements.policy().may_revoke(&user.name, &user.groups)
    }

    /// True if `user` is in an administrators' group.
    pub fn is_admin(&self, user: &User) -> bool {
        self.admin_groups.iter().any(|group| user.is_in(group))
    }

    /// Does what an operator of `cluster` asks, for each domain. When it returns, the new lists are durable and published.
    ///
    /// # Errors
    /// There is no CA for a domain, a list cannot be signed, or it cannot be stored: nothing was changed.
    pub async fn revoke(&self, cluster: ClusterName, requests: BTreeMap<Domain, Request>) -> Result<(), ApiError> {
        for (domain, request) in &requests {
            if self.profiles.authority(*domain).is_none() {
                return Err(ApiError::BadRequest(format!("this signer has no CA for {domain} certificates")));
            }
            if matches!(request.selector, Selector::Pod(_)) && request.action != Action::Undo {
                return Err(ApiError::BadRequest(
                    "this signer bars no pods: name certificates with --serial or --user".to_owned(),
                ));
            }
        }
        self.revise(Some(Asked { cluster, requests })).await
    }

    /// Signs the lists that are missing or have changed: expired entries leave, and after a change of the CA the new one signs.
    ///
    /// # Errors
    /// They cannot be signed or stored; the lists before stay.
    pub async fn refresh_lists(&self) -> Result<(), ApiError> {
        self.revise(None).await
    }

    /// [`Self::refresh_lists`], for ever.
    pub async fn keep_lists(&self) {
        let mut said = None;
        loop {
            match self.refresh_lists().await {
                Ok(()) => said = None,
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::error!(error, "the revocation lists cannot be renewed; those before stay in force");
                        said = Some(error);
                    }
                }
            }
            time::sleep(REFRESH).await;
        }
    }

    async fn revise(&self, asked: Option<Asked>) -> Result<(), ApiError> {
        let authorities: Vec<(Domain, Arc<Authority>)> = Domain::WITH_LISTS
            .into_iter()
            .filter_map(|domain| Some((domain, self.profiles.authority(domain)?)))
            .collect();
        let own = self.cluster.clone();
        self.store.revise(move |ledger| revised(ledger, &authorities, own.as_ref(), asked.as_ref())).await
    }
}

/// The revocations that differ from those of `ledger`: after what is asked, and without what has ended. Where no quorum of one
/// domain would stand, no domain does it.
fn revised(
    ledger: &Ledger,
    authorities: &[(Domain, Arc<Authority>)],
    own: Option<&ClusterName>,
    asked: Option<&Asked>,
) -> Result<Vec<(Domain, Revoked)>, ApiError> {
    let now = SystemTime::now();
    let nothing = Issued::default();
    let mut new = Vec::new();
    let mut refusal = None;
    for (domain, authority) in authorities {
        let mut revoked = ledger.revoked(*domain).map(|revoked| Revoked::clone(revoked)).unwrap_or_default();
        let issued = ledger.issued(*domain).unwrap_or(&nothing);
        let request = asked.and_then(|asked| Some((asked, asked.requests.get(domain)?)));
        if let Some((asked, request)) = request {
            let voters = voters(issued, own.unwrap_or(&asked.cluster), now);
            let by_record = by_record(ledger, *domain, &request.selector, &voters);
            let ca_end = authority.not_after();
            let known = Known {
                issued,
                namespace: &asked.cluster.namespace,
                signs_lists: authority.signs_lists(),
                live: &[],
                voters: &voters,
                by_record: (*domain == Domain::Peer).then_some(&by_record),
                // Certificates of an earlier CA may end later.
                leaves_end: issued.last_end().map_or(ca_end, |last| last.max(ca_end)),
                authority_end: ca_end,
            };
            if revoked.take(request, &known, now) {
                refusal = Some(*domain);
            }
        }
        let changed = revoked.refresh(authority, now).map_err(|error| {
            ApiError::Internal(format!(
                "the {domain} revocation list cannot be signed, and nothing was changed: {error}"
            ))
        })?;
        if changed || request.is_some() {
            new.push((*domain, revoked));
        }
    }
    if let (Some(refuses), Some(asked)) = (refusal, asked) {
        return unchanged(ledger, authorities, refuses, asked, new);
    }
    Ok(new)
}

/// The revocations as they are, with the refusals of `new`. What another domain would have done, it does not.
fn unchanged(
    ledger: &Ledger,
    authorities: &[(Domain, Arc<Authority>)],
    refuses: Domain,
    asked: &Asked,
    new: Vec<(Domain, Revoked)>,
) -> Result<Vec<(Domain, Revoked)>, ApiError> {
    let now = SystemTime::now();
    let mut same = Vec::new();
    for (domain, refused) in new {
        let Some(request) = asked.requests.get(&domain).filter(|_| !refused.refuses()) else {
            same.push((domain, refused));
            continue;
        };
        let mut before = ledger.revoked(domain).map(|revoked| Revoked::clone(revoked)).unwrap_or_default();
        before.leave(request, &format!("nothing is changed, as it is refused for {refuses} certificates"), now);
        if let Some((_, authority)) = authorities.iter().find(|(of, _)| *of == domain) {
            before.refresh(authority, now).map_err(|error| ApiError::Internal(error.to_string()))?;
        }
        same.push((domain, before));
    }
    Ok(same)
}

/// The hosts that hold valid peer certificates. Where a request named no signer, and so no cluster, it is of `cluster`.
fn voters(issued: &Issued, cluster: &ClusterName, now: SystemTime) -> Vec<Voter> {
    let member = |(holder, of): (&str, &str)| (of.parse().unwrap_or_else(|_| cluster.clone()), holder.to_owned());
    // A host is one member of a cluster, also where not each of its certificates names it.
    let members: BTreeSet<(ClusterName, String)> = issued.peers(now).into_iter().map(member).collect();
    members.into_iter().map(|(cluster, holder)| Voter { holder, cluster, running: true }).collect()
}

/// The members for people, and whether the serial number that is named is recorded in another domain than `domain`.
fn by_record(ledger: &Ledger, domain: Domain, selector: &Selector, voters: &[Voter]) -> ByRecord {
    let mut hosts: BTreeMap<&ClusterName, Vec<&str>> = BTreeMap::new();
    for voter in voters {
        let host = voter.holder.split_once(':').map_or(voter.holder.as_str(), |(_, host)| host);
        hosts.entry(&voter.cluster).or_default().push(host);
    }
    let text = |(cluster, hosts): (&ClusterName, Vec<&str>)| {
        let shown = hosts.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
        let more =
            if hosts.len() > MOST_NAMED { format!(" and {} more", hosts.len() - MOST_NAMED) } else { String::new() };
        format!("{shown}{more} ({cluster})")
    };
    let counted = hosts.into_iter().take(MOST_NAMED).map(text).collect::<Vec<_>>().join("; ");
    let others =
        Domain::WITH_LISTS.into_iter().filter(|other| *other != domain).filter_map(|other| ledger.issued(other));
    let of_others = match selector {
        Selector::Serial(serial) if others.into_iter().any(|issued| issued.has(serial)) => [serial.clone()].into(),
        _ => BTreeSet::new(),
    };
    ByRecord { counted, of_others }
}
