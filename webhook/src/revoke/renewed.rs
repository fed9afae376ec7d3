//! Has the pods that use certificates renew them, and has the signer revoke the old ones then: a pod that is trusted goes on
//! without a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use etcd_tls_contract::crl::Reason;
use futures::{StreamExt as _, stream};
use kube::Client;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Action, InUse, MOST_IN_USE,
    signer::{Signer, SignerAnswers},
};
use crate::{
    error::{Error, NotInTime},
    operator::say,
    renew::{self, AnnotatedPod, AskError},
};

/// The pause between two looks at the sidecars.
const POLL: Duration = Duration::from_secs(1);
/// How long after a renewal the signer counts the old certificate as one that nobody uses.
const SETTLES: Duration = Duration::from_secs(5);
/// How often the signer is asked for a pod whose sidecar cannot be seen.
const UNSEEN: Duration = Duration::from_secs(10);
/// Sidecars that are asked at once.
const AT_ONCE: usize = 16;

/// Pods still use what was to be revoked.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} is not revoked where a pod uses it, because that pod did not renew. Mend that, or give --force or --at-once, or --pod \
     for a pod that is not trusted"
)]
pub(super) struct NotRenewed {
    what: String,
    #[source]
    why: Error,
}

/// Why a pod that uses a certificate is not asked to renew it.
#[derive(Debug, thiserror::Error)]
enum NotAsked {
    /// It could not be asked.
    #[error(transparent)]
    Sidecar(#[from] AskError),
    /// kubelet alone renews the rest of what it uses.
    #[error(
        "kubelet has asked for its certificate {0} for a volume of podCertificate, and renews it at its own time alone: create the \
         pod again, and revoke the certificate then"
    )]
    OfKubelet(String),
}

impl NotAsked {
    fn of_kubelet(used: &InUse) -> Self {
        Self::OfKubelet(used.kubelet.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    }

    /// True if the pod is not there any more.
    const fn is_gone(&self) -> bool {
        matches!(self, Self::Sidecar(error) if error.is_gone())
    }
}

/// Not all pods that use a certificate were asked to renew it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{said} pods use it and did not renew. The signer names {MOST_IN_USE} pods of an authority at a time, so others may not have been \
     asked. Mend those above, or give --at-once --force to revoke it without a renewal"
)]
struct TooMany {
    said: usize,
}

/// Revokes the unused certificates, has pods renew the others, and revokes those; returns the signer's answer. A certificate in
/// use after `timeout` is revoked with `force` alone, and only where every pod that uses it was named.
///
/// # Errors
/// The signer does not answer, or pods did not renew: [`NotRenewed`].
pub(super) async fn revoke(
    client: &Client,
    signer: &Signer<'_>,
    timeout: Duration,
    force: bool,
) -> Result<SignerAnswers, Error> {
    let deadline = Instant::now() + timeout;
    let mut said = SignerAnswers::default();
    let mut asked: BTreeMap<String, Result<AnnotatedPod, NotAsked>> = BTreeMap::new();
    loop {
        let now = signer.ask(Action::Renewed, said.at).await?;
        let (in_use, more) = (now.in_use.clone(), now.more_in_use);
        said.add(now);
        match next(&in_use, said.refused(), force) {
            Next::Done => return Ok(said),
            // It names what was revoked before, too.
            Next::Force => return signer.ask(Action::Force, said.at).await,
            Next::Renew => {}
        }
        // The signer counts in seconds: certificates issued after this are newer than those in use.
        sleep(POLL).await;
        let new_key = signer.reason == Reason::KeyCompromise;
        let new: Vec<&InUse> = in_use.iter().filter(|used| !asked.contains_key(&used.uid)).collect();
        let mut answers = stream::iter(new)
            .map(|used| async move {
                let answer = async {
                    if used.can_renew() {
                        renew::ask(client, &used.pod, &used.uid, new_key).await.map_err(NotAsked::from)
                    } else {
                        Err(NotAsked::of_kubelet(used))
                    }
                };
                (used, timeout_at(deadline, answer).await.ok())
            })
            .buffer_unordered(AT_ONCE);
        while let Some((used, answer)) = answers.next().await {
            // Who was not asked in time waits, and who has gone is none of those that the signer names next.
            let Some(answer) = answer.filter(|answer| !answer.as_ref().is_err_and(NotAsked::is_gone)) else { continue };
            say(&match &answer {
                Ok(_) => format!("pod {}: asked to renew", used.pod),
                Err(error) => format!("pod {} cannot be asked to renew: {error}", used.pod),
            })?;
            asked.insert(used.uid.clone(), answer);
        }
        drop(answers);
        // What kubelet asked for is left when the sidecar has renewed its own.
        for used in in_use.iter().filter(|used| !used.can_renew()) {
            if !matches!(asked.get(&used.uid), Some(Err(_))) {
                asked.insert(used.uid.clone(), Err(NotAsked::of_kubelet(used)));
            }
        }
        let nobody_renews = in_use.iter().all(|used| matches!(asked.get(&used.uid), Some(Err(_))));
        if nobody_renews || Instant::now() >= deadline {
            if force && !more {
                said.add(signer.ask(Action::Force, said.at).await?);
                return Ok(said);
            }
            said.print()?;
            let first = in_use.iter().find_map(|used| asked.remove(&used.uid)?.err()).filter(|_| nobody_renews);
            let pending = in_use.iter().map(|used| format!("pod {} has no newer certificate", used.pod)).collect();
            let why = match first {
                _ if force => TooMany { said: in_use.len() }.into(),
                Some(first) => first.into(),
                None => NotInTime { after: timeout, pending }.into(),
            };
            return Err(NotRenewed { what: signer.selector.to_string(), why }.into());
        }
        wait(client, &in_use, &asked, deadline).await;
    }
}

/// The step after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Done,
    /// Nobody is left to renew, and the refusal is overridden.
    Force,
    /// The pods that use the rest renew.
    Renew,
}

const fn next(in_use: &[InUse], refused: bool, force: bool) -> Next {
    match (in_use.is_empty(), refused && force) {
        (false, _) => Next::Renew,
        (true, true) => Next::Force,
        (true, false) => Next::Done,
    }
}

/// Waits until the sidecars of all that were asked have other certificates on disk; where one cannot be seen, for a while.
async fn wait(
    client: &Client,
    in_use: &[InUse],
    asked: &BTreeMap<String, Result<AnnotatedPod, NotAsked>>,
    deadline: Instant,
) {
    let again = (Instant::now() + UNSEEN).min(deadline);
    loop {
        sleep(POLL).await;
        let looks = in_use.iter().filter_map(|used| Some((used, asked.get(&used.uid)?.as_ref().ok()?)));
        let seen: Vec<Option<bool>> = stream::iter(looks)
            .map(|(used, pod)| async { pod.serials(client).await.ok().map(|on_disk| holds(&on_disk, used)) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let (old, unseen) = (seen.contains(&Some(true)), seen.contains(&None));
        if !old && !unseen {
            return sleep(SETTLES).await;
        }
        if Instant::now() >= if unseen { again } else { deadline } {
            return;
        }
    }
}

/// True if a pod has on disk what is to be revoked.
fn holds(on_disk: &BTreeSet<String>, used: &InUse) -> bool {
    !on_disk.is_disjoint(&used.serials)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::renew::RenewError;

    #[test]
    fn a_pod_that_has_gone_is_no_failure() {
        let error = |error: RenewError| NotAsked::from(AskError::from(error));
        assert!(error(RenewError::NoSuch("a/b".parse().unwrap())).is_gone());
        assert!(!error(RenewError::Blind("b".to_owned())).is_gone());
    }

    #[test]
    fn unused_certificates_are_forced_and_used_ones_renewed_first() {
        let used =
            [InUse { pod: "a/b".to_owned(), uid: "u".to_owned(), serials: BTreeSet::new(), kubelet: BTreeSet::new() }];
        for (in_use, refused, force, then) in [
            (&used[..0], true, true, Next::Force),
            (&used[..0], true, false, Next::Done),
            (&used[..0], false, true, Next::Done),
            (&used[..], true, true, Next::Renew),
            (&used[..], false, false, Next::Renew),
        ] {
            assert_eq!(next(in_use, refused, force), then, "{refused} {force}");
        }
    }
}
