//! Ends the connections that exist, after a revocation: each sidecar restarts its etcd, one member at a time and never without
//! quorum, as for a new CA.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::{names::ClusterName, renew::restart, role::Domain};
use kube::Client;
use tokio::time::{Instant, sleep};

use super::elsewhere::{self, Around};
use crate::{
    error::{Error, NotInTime, NotSeen},
    operator::{request_id, say},
    renew::{self, AnnotatedPod, Members, RenewError},
    status::Sidecar,
};

/// The pause between two looks at the sidecars.
const POLL: Duration = Duration::from_secs(1);
/// Why a pod may be a member.
pub(super) const UNREADABLE: &str = "its annotations cannot be read; use the etcd-tls-webhook of the cluster's version, and see \
                                     etcd-tls-webhook check pod";
/// How long a list may take to a member whose sidecar cannot be seen: kubelet brings it within this time.
const UNSEEN: Duration = Duration::from_secs(2 * 60);

/// Has the members of `cluster` restart once they have the lists of these `numbers`, and shows how that goes.
///
/// # Errors
/// Members cannot be listed or asked, cannot be seen, or have not all restarted within `timeout`.
pub(super) async fn cut(
    client: &Client,
    cluster: &ClusterName,
    numbers: &BTreeMap<Domain, u64>,
    elsewhere: &BTreeSet<String>,
    timeout: Duration,
) -> Result<(), Error> {
    let Around { pods, unread, hosts } = elsewhere::look(client, cluster, elsewhere).await?;
    let Members { seeing: members, blind, unreadable } = match renew::members(&pods, cluster) {
        // The members that are no pods, or cannot be read, are named all the same.
        Err(RenewError::NoSuch(_) | RenewError::NoRole { .. }) if !hosts.is_empty() || !unread.is_empty() => {
            Members::default()
        }
        found => found?,
    };
    let deadline = Instant::now() + timeout;
    // Before that, who is cut off would be let in again.
    let began = Instant::now();
    let unseen = loop {
        let (mut pending, mut unseen) = (Vec::new(), Vec::new());
        for member in &members {
            let seen = member.look(client).await;
            if late(seen.as_ref(), numbers, &member.lists(), began.elapsed()) {
                let what = if seen.is_ok() { "lacks the list" } else { "cannot be seen, and may lack the list" };
                pending.push(format!("pod {} {what}", member.shown()));
            } else if seen.is_err() {
                unseen.push(member.shown());
            }
        }
        if pending.is_empty() {
            for name in &unseen {
                say(&format!(
                    "pod {name}: its sidecar cannot be seen. If it gets the list after its restart, connections with a \
                     revoked certificate may be open again: see etcd_tls_revocation_list_number there, and restart it again"
                ))?;
            }
            break unseen.into_iter().map(str::to_owned).collect::<Vec<_>>();
        }
        if Instant::now() >= deadline {
            return Err(NotInTime { after: timeout, pending }.into());
        }
        sleep(POLL).await;
    };
    let id = request_id()?;
    let (mut asked, mut failed) = (Vec::new(), None);
    for member in members {
        match member.annotate(client, &restart(&id)).await {
            Ok(()) => {
                say(&format!("pod {}: asked to end its connections by a restart of etcd", member.shown()))?;
                asked.push(member);
            }
            // It was deleted, or made again under its name.
            Err(refused) if refused.is_gone() => {
                say(&format!("pod {}: it has gone, and its connections with it", member.shown()))?;
            }
            // The others are asked nevertheless.
            Err(refused) => {
                say(&format!("pod {} cannot be asked: {refused}", member.shown()))?;
                failed.get_or_insert(refused);
            }
        }
    }
    let followed = if asked.is_empty() { Ok(()) } else { follow(client, &asked, &id, timeout, deadline).await };
    let mut results = vec![followed];
    results.extend(failed.map(|refused| Err(refused.into())));
    if !blind.is_empty() {
        results.push(Err(RenewError::Blind(blind.join(", ")).into()));
    }
    if !unreadable.is_empty() {
        let all = unreadable.join(", ");
        results.push(Err(NotSeen(format!(
            "Cannot determine whether pod {all} is a member of {cluster}, so it was not restarted: {UNREADABLE}"
        ))
        .into()));
    }
    if !unread.is_empty() {
        let all = unread.join("; ");
        results.push(Err(NotSeen(format!("Members outside of the namespace were not restarted: {all}")).into()));
    }
    if !hosts.is_empty() {
        let all = hosts.join(", ");
        results.push(Err(
            NotSeen(format!("{all}: no pod, so not restarted. Restart its etcd to end its connections")).into()
        ));
    }
    results.extend(not_known(&unseen).map(|unknown| Err(unknown.into())));
    first_of(results)
}

/// Nothing tells whether these had the list before their restart.
fn not_known(unseen: &[String]) -> Option<NotSeen> {
    (!unseen.is_empty()).then(|| {
        NotSeen(format!(
            "It could not be seen whether pod {} had the list before its restart; connections with a revoked certificate may be \
             open again",
            unseen.join(", ")
        ))
    })
}

/// The first error; the others are printed.
pub(super) fn first_of(results: Vec<Result<(), Error>>) -> Result<(), Error> {
    let mut errors = results.into_iter().filter_map(Result::err);
    let Some(first) = errors.next() else { return Ok(()) };
    for error in errors {
        say(&error.to_string())?;
    }
    Err(first)
}

/// True if a member that keeps lists of the domains `kept`, and was looked at after this time, may lack the lists.
fn late(
    seen: Result<&Sidecar, &RenewError>,
    numbers: &BTreeMap<Domain, u64>,
    kept: &BTreeSet<Domain>,
    waited: Duration,
) -> bool {
    seen.map_or(waited < UNSEEN, |sidecar| !has(sidecar, numbers, kept))
}

/// Shows the members' progress until all are done.
async fn follow(
    client: &Client,
    members: &[AnnotatedPod],
    id: &str,
    timeout: Duration,
    deadline: Instant,
) -> Result<(), Error> {
    let mut open: BTreeSet<&str> = members.iter().map(AnnotatedPod::shown).collect();
    let mut last: BTreeMap<&str, Progress> = BTreeMap::new();
    loop {
        for member in members {
            if !open.contains(member.shown()) {
                continue;
            }
            let now = progress(member.look(client).await, id);
            if now == Progress::Done {
                open.remove(member.shown());
            }
            if last.insert(member.shown(), now.clone()).as_ref() != Some(&now) {
                say(&format!("pod {}: {now}", member.shown()))?;
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let unseen = open.iter().all(|name| matches!(last.get(name), Some(Progress::Unseen(_))));
        if unseen && open.len() == members.len() {
            return Err(NotSeen(
                "No member's sidecar can be seen, so that nothing tells when the connections have ended".to_owned(),
            )
            .into());
        }
        if Instant::now() >= deadline {
            let pending = last.iter().filter(|(name, _)| open.contains(*name));
            let pending = pending.map(|(name, progress)| format!("pod {name}: {progress}")).collect();
            return Err(NotInTime { after: timeout, pending }.into());
        }
        sleep(POLL).await;
    }
}

/// How a member's restart goes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Progress {
    #[error("its connections have ended")]
    Done,
    #[error("its etcd was not restarted yet: kubelet brings the request within a minute or two")]
    Asked,
    #[error("the restart of its etcd waits: {0}")]
    Waits(String),
    #[error("{0}")]
    Unseen(String),
}

fn progress(seen: Result<Sidecar, RenewError>, id: &str) -> Progress {
    match seen {
        Ok(sidecar) if sidecar.cut.as_deref() == Some(id) => Progress::Done,
        Ok(sidecar) => sidecar.restart_waits.map_or(Progress::Asked, Progress::Waits),
        Err(error) => Progress::Unseen(error.to_string()),
    }
}

/// True if a sidecar that keeps lists of the domains `kept` has these or later ones. One that shows none has an empty stand-in.
fn has(sidecar: &Sidecar, numbers: &BTreeMap<Domain, u64>, kept: &BTreeSet<Domain>) -> bool {
    let has = |domain, number| sidecar.lists.get(domain).is_some_and(|on_disk| on_disk >= number);
    numbers.iter().filter(|(domain, _)| kept.contains(domain)).all(|(domain, number)| has(domain, number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn an_unseen_member_is_no_success() {
        assert!(not_known(&[]).is_none());
        let unknown = not_known(&["etcd-1".to_owned()]).expect("not known");
        assert!(unknown.to_string().contains("pod etcd-1"));
        assert!(first_of(vec![Ok(()), Ok(())]).is_ok());
        let error = first_of(vec![Ok(()), Err(unknown.into()), Err("other".into())]).expect_err("the first");
        assert!(error.downcast_ref::<NotSeen>().is_some());
    }

    /// An API server without a pod of the cluster, where others cannot be read. A client pod is no member.
    fn without_members(pods: serde_json::Value) -> Client {
        let server = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            let (code, body) = match request.uri().path() {
                "/api/v1/namespaces/prod/pods" => (200, json!({"metadata": {}, "items": pods})),
                _ => (403, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403})),
            };
            let body = http_body_util::Full::new(hyper::body::Bytes::from(body.to_string()));
            std::future::ready(hyper::Response::builder().status(code).body(body))
        });
        Client::new(server, "default")
    }

    #[tokio::test]
    async fn members_that_are_no_pods_or_cannot_be_read_are_named_where_no_pod_is_a_member() {
        let cluster: ClusterName = "prod/etcd".parse().expect("a cluster");
        let annotations = json!({"etcd-tls.dev/cluster": "etcd", "etcd-tls.dev/roles": "client"});
        let metadata =
            json!({"name": "app", "uid": "u", "labels": {"etcd-tls": "dynamic"}, "annotations": annotations});
        let app = json!({"metadata": metadata, "spec": {"containers": []}});
        for pods in [json!([]), json!([app])] {
            let client = without_members(pods);
            let cut = async |elsewhere: &[&str]| {
                let elsewhere = elsewhere.iter().map(|&name| name.to_owned()).collect();
                cut(&client, &cluster, &BTreeMap::new(), &elsewhere, Duration::ZERO).await.expect_err("not all")
            };
            let error = cut(&["host m1"]).await;
            assert!(error.is::<NotSeen>() && error.to_string().contains("host m1: no pod"), "{error}");
            let error = cut(&["pod team/etcd-0"]).await;
            assert!(error.is::<NotSeen>() && error.to_string().contains("pod team/etcd-0: cannot get pods"), "{error}");
            let error = cut(&[]).await;
            assert!(error.is::<RenewError>(), "{error}");
        }
    }

    #[test]
    fn a_members_progress_is_what_its_sidecar_says() {
        let sidecar = |cut: Option<&str>, waits: Option<&str>| {
            Ok(Sidecar { cut: cut.map(str::to_owned), restart_waits: waits.map(str::to_owned), ..Sidecar::default() })
        };
        assert_eq!(progress(sidecar(Some("1"), None), "1"), Progress::Done);
        assert_eq!(progress(sidecar(Some("0"), None), "1"), Progress::Asked, "another request");
        assert_eq!(progress(sidecar(None, Some("lock")), "1"), Progress::Waits("lock".to_owned()));
        let numbers = BTreeMap::from([(Domain::Client, 7)]);
        let on_disk = |number| Sidecar { lists: BTreeMap::from([(Domain::Client, number)]), ..Sidecar::default() };
        let unseen = RenewError::Blind("etcd-0".to_owned());
        let kept = BTreeSet::from([Domain::Peer, Domain::Client]);
        let after = |seconds| late(Err(&unseen), &numbers, &kept, Duration::from_secs(seconds));
        assert!(after(0) && after(119) && !after(120), "kubelet brings it within two minutes");
        assert!(late(Ok(&on_disk(6)), &numbers, &kept, Duration::from_secs(600)));
        assert!(!late(Ok(&on_disk(7)), &numbers, &kept, Duration::ZERO));
        let has = |sidecar: &Sidecar| has(sidecar, &numbers, &kept);
        assert!(has(&on_disk(7)) && has(&on_disk(8)) && !has(&on_disk(6)));
    }

    /// Before its list is there, a sidecar has an empty stand-in, and shows no number.
    #[test]
    fn a_stand_in_is_no_list() {
        let numbers = BTreeMap::from([(Domain::Peer, 7), (Domain::Client, 7)]);
        let of = |domains: &[Domain]| domains.iter().copied().collect::<BTreeSet<_>>();
        let late = |sidecar: &Sidecar, kept| late(Ok(sidecar), &numbers, &of(kept), Duration::ZERO);
        let peers = Sidecar { lists: BTreeMap::from([(Domain::Peer, 7)]), ..Sidecar::default() };
        assert!(late(&Sidecar::default(), &[Domain::Peer, Domain::Client]) && late(&peers, &[Domain::Client]));
        assert!(!late(&peers, &[Domain::Peer]), "it has no other role");
        assert!(!late(&Sidecar::default(), &[]), "it keeps none: revocation is off");
    }
}
