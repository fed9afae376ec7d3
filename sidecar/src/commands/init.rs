//! `etcd-tls-sidecar init`: the first certificates, before any other container of the pod starts. Files that are good
//! already are left alone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    duration::parse_duration,
    role::{Domain, Role},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{
        subject::{Agent, Subject},
        trust::TrustError,
        work::open,
    },
    error::Error,
    issuance::obtain::{Wish, life, need},
    kube::{Api, http::Kube, pod::PodCredentials},
    os::clock::{Clock, System},
    store::files::Files,
};

/// kubelet reads no more.
const MAX_TERMINATION_MESSAGE: usize = 4096;
/// When one role has failed, how long the others may still take: their certificates would be there for the next start.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How long a certificate is waited for whose predecessor would still do if it were not for the bundle on offer. `run` goes
/// on asking.
const OUTDATED_LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    downward: DownwardArgs,
    /// How long to wait for the certificates before the container ends with the reason (and kubelet starts it again).
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// Where the reason of a failure is written for kubelet.
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

impl InitArgs {
    /// Gets what is missing, and ends.
    ///
    /// # Errors
    /// The reason, which is also in the termination message.
    pub async fn run(self) -> Result<(), Error> {
        let Self { pod, downward, timeout, termination_log } = self;
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = once(&pod, &downward, timeout) => result,
            _ = terminate.recv() => Err(Error::Stopped),
        };
        if let Err(error) = &result {
            write_termination_message(&termination_log, &error.to_string());
        }
        result
    }
}

async fn once(pod: &PodArgs, downward: &DownwardArgs, timeout: Duration) -> Result<(), Error> {
    let subject = Subject::of(pod, downward).map_err(Error::Arguments)?;
    let credentials = PodCredentials::from_env(&pod.token_dir)?;
    let clock = System::new();
    let store = open(&pod.dir, &clock).await?;
    let agent = Agent::new(subject.settings.roles.clone(), clock, store, subject.trust(&pod.trust_dir));
    let wishes: Vec<Wish> = agent.roles().iter().map(|role| subject.wish(*role, subject.facts.ips.clone())).collect();
    fill(&agent, &wishes, || Kube::new(credentials.clone()), timeout).await
}

/// Gets what `wishes` lack, all at once, and installs the whole set.
///
/// # Errors
/// Every role's failure that was known two seconds after the first.
pub async fn fill<C: Clock, F: Files, A: Api>(
    agent: &Agent<C, F>,
    wishes: &[Wish],
    api: impl Fn() -> A,
    timeout: Duration,
) -> Result<(), Error> {
    // Whatever bundle is on offer is in place before etcd starts: it loads it then and never again.
    let refused = agent.take_trust();
    for (domain, error) in &refused {
        if error.is_asked_about() {
            tracing::info!(%domain, "a changed trust bundle is on offer; asking the signer whether it is in force");
        } else {
            tracing::warn!(%domain, %error, "trust bundle on offer not taken");
        }
    }
    let outdated = agent.outdated(&refused);
    let asks = askers(&refused, wishes);
    let mut requests = FuturesUnordered::new();
    for wish in wishes {
        let lacks = lacks(agent, wish);
        if !lacks && !outdated.contains_key(&wish.role) && !asks.contains(&wish.role) {
            continue;
        }
        // etcd is about to start and will load just this.
        let trusts = agent.bundle_digest(wish.role.domain());
        let limit = if lacks { timeout } else { timeout.min(agent.clock().elapsed() + OUTDATED_LIMIT) };
        let api = api();
        requests.push(async move { (wish.role, lacks, agent.obtain(wish, api, trusts, Some(limit)).await) });
    }
    if requests.is_empty() {
        tracing::info!("the certificates on disk are good; none is asked for");
    }
    let mut failures = Vec::new();
    loop {
        let next = if failures.is_empty() {
            requests.next().await
        } else {
            tokio::select! {
                next = requests.next() => next,
                () = agent.clock().sleep(LAST_CALL) => None,
            }
        };
        match next {
            Some((role, _, Ok(entry))) => agent.hold(role, entry),
            Some((role, true, Err(failure))) => failures.push((role, failure)),
            Some((role, false, Err(failure))) => {
                tracing::warn!(%role, error = %failure, "the certificate on disk stays in use, under the bundle it was issued with");
            }
            None => break,
        }
    }
    if !failures.is_empty() {
        return Err(Error::Requests(failures));
    }
    if !outdated.is_empty() || !asks.is_empty() {
        // With certificates of its CA, or the signer's statement, the bundle is taken, for the domain's other roles too.
        for (domain, error) in agent.take_trust() {
            tracing::warn!(%domain, %error, "trust bundle on offer not taken");
        }
    }
    agent.install()?;
    Ok(())
}

/// The roles that ask whether a changed bundle on offer is in force: those whose certificates it would refuse, else the
/// domain's first.
fn askers(refused: &[(Domain, TrustError)], wishes: &[Wish]) -> BTreeSet<Role> {
    let mut asks = BTreeSet::new();
    for (domain, error) in refused {
        let TrustError::NotInForce { lacks, .. } = error else { continue };
        if lacks.is_empty() {
            asks.extend(wishes.iter().map(|wish| wish.role).find(|role| role.domain() == *domain));
        } else {
            asks.extend(lacks);
        }
    }
    asks
}

/// Whether etcd cannot start with what is there. One that is merely due is left to `run`.
fn lacks<C: Clock, F: Files>(agent: &Agent<C, F>, wish: &Wish) -> bool {
    use crate::issuance::obtain::Need;

    let now = agent.clock().now();
    let entry = agent.entry(wish.role);
    match need(wish, entry.as_deref(), None, now) {
        Ok(Need::Missing | Need::Names(_) | Need::Early) => true,
        Ok(Need::Due | Need::Trusts | Need::Outdated | Need::Offered) => {
            entry.is_none_or(|e| life(&e).left(now).is_zero())
        }
        Err(_) => false,
    }
}

/// Leaves the reason where kubelet reads it; outside a pod there is no such file, and nothing is done.
pub fn write_termination_message(path: &Path, message: &str) {
    let mut end = message.len().min(MAX_TERMINATION_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    if path.exists()
        && let Err(error) = fs::write(path, &message[..end])
    {
        tracing::debug!(%error, path = %path.display(), "no termination message");
    }
}
