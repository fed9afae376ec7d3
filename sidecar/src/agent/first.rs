//! The first certificates, before etcd starts. Valid files on disk are used without any request: etcd must start without
//! signer, API server and network. Only what etcd cannot start without is waited for.

use std::{cell::Cell, collections::BTreeSet, path::Path, rc::Rc, time::Duration, time::SystemTime};

use etcd_tls_contract::role::{Domain, Role};
use futures::{StreamExt as _, stream::FuturesUnordered};

use crate::{
    agent::{subject::Agent, trust::TrustError},
    error::Error,
    issuance::{
        obtain::Failure,
        renewal::{Reason, Renewal, Template, life, renewal},
    },
    kube::{Api, ApiError, Version, objects::CertificateSigningRequest},
    os::clock::Clock,
    store::{self, Entries, Entry, files::Files},
};

/// When one role has failed, how long the others may still take: their certificates are then there for the next start.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How long to wait for a certificate in the place of one that peers may refuse, where the API server takes the request.
/// `run` goes on with it.
const REFUSED_LIMIT: Duration = Duration::from_secs(20);
/// How long to wait for what is of use but not needed, and for an API server to take a request. After that etcd starts with
/// the files on disk.
const USEFUL_LIMIT: Duration = Duration::from_millis(500);

/// How much later than its limit a call that hangs is given up.
const GRACE: Duration = Duration::from_millis(100);

/// How the start of etcd depends on a role's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing to request. A certificate that is due is renewed by `run`.
    Good,
    /// Worth a request, not worth waiting: the clock may be wrong, since by it the certificate is not valid yet; or the
    /// answer states whether a changed bundle on offer is in force.
    Useful,
    /// Peers may refuse it: the bundle on offer lacks its CA, or it lacks a name or an address.
    Refused,
    /// etcd cannot start without a new one.
    Missing,
}

fn start(template: &Template, entry: Option<&Entry>, now: SystemTime) -> Start {
    let expired = entry.is_none_or(|e| life(e, now).left(now).is_zero());
    match renewal(template, entry, None, now) {
        Renewal::Due(Reason::Missing) => Start::Missing,
        Renewal::Due(Reason::Early) => Start::Useful,
        Renewal::Due(_) if expired => Start::Missing,
        // etcd starts with it, and with that perhaps the API server that is to be asked.
        Renewal::Due(Reason::Names(_)) => Start::Refused,
        Renewal::Due(
            Reason::Due | Reason::Trusts | Reason::Outdated | Reason::Offered | Reason::Asked | Reason::Ahead,
        )
        | Renewal::At(_) => Start::Good,
    }
}

/// The roles whose certificate etcd cannot start without: it is missing or expired.
pub fn missing<C: Clock, F: Files>(agent: &Agent<C, F>, templates: &[Template]) -> BTreeSet<Role> {
    let now = agent.clock().now();
    let missing = |template: &&Template| start(template, agent.entry(template.role).as_deref(), now) == Start::Missing;
    templates.iter().filter(missing).map(|template| template.role).collect()
}

/// True if etcd can start with the files in `dir` as they are: read without the directory's lock, and without writing.
pub fn at_hand(dir: &Path, templates: &[Template], now: SystemTime) -> bool {
    matches!(store::entries(dir), Ok(Some(entries)) if usable(&entries, templates, now))
}

fn usable(entries: &Entries, templates: &[Template], now: SystemTime) -> bool {
    templates.iter().all(|template| {
        let Some(Ok(entry)) = entries.get(&template.role) else { return false };
        let verified = entry.with_bundle(template.role, entry.bundle(), now).is_ok();
        verified && start(template, Some(entry), now) != Start::Missing
    })
}

/// The roles whose certificates a bundle on offer would refuse, and those that ask whether a changed bundle is in force: the
/// first of its domain.
fn offered(refused: &[(Domain, TrustError)], templates: &[Template]) -> (BTreeSet<Role>, BTreeSet<Role>) {
    let (mut refuses, mut asks) = (BTreeSet::new(), BTreeSet::new());
    for (domain, error) in refused {
        let TrustError::NotInForce { lacks, .. } = error else { continue };
        if lacks.is_empty() {
            asks.extend(templates.iter().map(|template| template.role).find(|role| role.domain() == *domain));
        } else {
            refuses.extend(lacks);
        }
    }
    (refuses, asks)
}

/// Gets what `templates` lack, all at once, and installs the whole set.
///
/// # Errors
/// Every role's failure that was known two seconds after the first.
pub async fn fill<C: Clock, F: Files, A: Api>(
    agent: &Agent<C, F>,
    templates: &[Template],
    api: impl Fn() -> A,
    timeout: Duration,
) -> Result<(), Error> {
    // Take the bundle on offer before etcd starts: etcd loads it then and never again.
    let refused = agent.take_trust();
    for (domain, error) in &refused {
        if error.is_asked_about() {
            tracing::info!(%domain, "a changed trust bundle is on offer; asking the signer whether it is in force");
        } else {
            tracing::warn!(%domain, %error, "trust bundle on offer not taken");
        }
    }
    let (mut refuses, asks) = offered(&refused, templates);
    refuses.extend(agent.outdated(&refused).into_keys());
    let mut requests = FuturesUnordered::new();
    let now = agent.clock().now();
    for template in templates {
        let start = match start(template, agent.entry(template.role).as_deref(), now) {
            Start::Good | Start::Useful if refuses.contains(&template.role) => Start::Refused,
            Start::Good if asks.contains(&template.role) => Start::Useful,
            Start::Good => continue,
            start => start,
        };
        // etcd is about to start and will load just this.
        let trusts = agent.bundle_digest(template.role.domain());
        let api = api();
        requests.push(async move {
            let soon = |limit| timeout.min(agent.clock().elapsed() + limit);
            let result = match start {
                Start::Refused => if_taken(agent, template, api, trusts, soon(REFUSED_LIMIT)).await,
                Start::Useful => within(agent, template, api, trusts, soon(USEFUL_LIMIT)).await,
                Start::Missing | Start::Good => within(agent, template, api, trusts, timeout).await,
            };
            (template.role, start, result)
        });
    }
    if requests.is_empty() {
        tracing::info!("the certificates on disk are good; none is requested");
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
            Some((role, Start::Missing, Err(failure))) => failures.push((role, failure)),
            Some((role, _, Err(failure))) => {
                tracing::warn!(%role, error = %failure, "the certificate on disk stays in use, under the bundle it was issued with");
            }
            None => break,
        }
    }
    drop(requests);
    if !failures.is_empty() {
        return Err(Error::Requests(failures));
    }
    if !refuses.is_empty() || !asks.is_empty() {
        // With certificates of its CA, or the signer's statement, the bundle is taken, for the domain's other roles too.
        for (domain, error) in agent.take_trust() {
            tracing::warn!(%domain, %error, "trust bundle on offer not taken");
        }
    }
    for (domain, error) in agent.take_lists() {
        tracing::warn!(%domain, %error, "revocation list on offer not taken");
    }
    if let Err(error) = agent.install() {
        if !agent.has_lists() || !agent.on_disk().is_some_and(|entries| usable(&entries, templates, now)) {
            return Err(error.into());
        }
        tracing::warn!(%error, "new files could not be written; etcd starts with those on disk");
    }
    Ok(())
}

/// Requests a certificate, for at most `limit` after the start of the process.
async fn within<C: Clock, F: Files, A: Api>(
    agent: &Agent<C, F>,
    template: &Template,
    api: A,
    trusts: Option<String>,
    limit: Duration,
) -> Result<Entry, Failure> {
    let left = limit.saturating_sub(agent.clock().elapsed());
    tokio::select! {
        result = agent.obtain(template, api, trusts, Some(limit)) => result,
        // A little later, so that the request itself can say what it waits for.
        () = agent.clock().sleep(left + GRACE) => Err(unanswered(template, limit)),
    }
}

/// The same, but gives up at once where no API server takes the request.
async fn if_taken<C: Clock, F: Files, A: Api>(
    agent: &Agent<C, F>,
    template: &Template,
    api: A,
    trusts: Option<String>,
    limit: Duration,
) -> Result<Entry, Failure> {
    let answered = Rc::new(Cell::new(false));
    let api = Answered { api, answered: Rc::clone(&answered) };
    let silent = async {
        agent.clock().sleep(USEFUL_LIMIT).await;
        if answered.get() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = within(agent, template, api, trusts, limit) => result,
        () = silent => Err(unanswered(template, USEFUL_LIMIT)),
    }
}

fn unanswered(template: &Template, after: Duration) -> Failure {
    Failure::Timeout {
        name: format!("etcd-tls-{}-{}-…", template.uid, template.role),
        after,
        last: "the API server has not answered".to_owned(),
    }
}

/// An API server, and whether it has answered with an object.
struct Answered<A> {
    api: A,
    answered: Rc<Cell<bool>>,
}

impl<A> Answered<A> {
    fn note(&self, answer: Result<CertificateSigningRequest, ApiError>) -> Result<CertificateSigningRequest, ApiError> {
        self.answered.set(self.answered.get() || answer.is_ok());
        answer
    }
}

impl<A: Api> Api for Answered<A> {
    async fn connect(&mut self) -> Result<(), ApiError> {
        self.api.connect().await
    }

    async fn create(&mut self, request: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
        let answer = self.api.create(request).await;
        self.note(answer)
    }

    async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
        let answer = self.api.get(name, version).await;
        self.note(answer)
    }

    fn rest(&mut self) {
        self.api.rest();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::{
        key::{KeyAlgorithm, KeyRotation},
        san::Sans,
    };

    use super::*;
    use crate::testing::Authority;

    #[test]
    fn only_what_etcd_cannot_start_without_is_waited_for() {
        let authority = Authority::new();
        let entry = authority.entry(Role::Peer);
        let mut template = Template {
            role: Role::Peer,
            uid: "m1".to_owned(),
            common_name: entry.chain().common_name.clone(),
            sans: entry.chain().sans.clone(),
            signer: "peer.etcd-tls.dev/kube-system.etcd".to_owned(),
            lifetime: Duration::from_secs(86_400),
            key: KeyAlgorithm::EcdsaP256,
            key_rotation: KeyRotation::Always,
        };
        let (from, to) = (entry.chain().not_before, entry.chain().not_after);
        let whole = to.duration_since(from).unwrap();
        assert_eq!(start(&template, None, from), Start::Missing);
        for (at, expected, name) in [
            (from + whole / 10, Start::Good, "fresh"),
            (to - Duration::from_secs(1), Start::Good, "due: `run` renews it"),
            (to, Start::Missing, "expired"),
            (from - Duration::from_secs(1), Start::Useful, "a clock before notBefore"),
            (SystemTime::UNIX_EPOCH, Start::Useful, "a clock without a battery"),
        ] {
            assert_eq!(start(&template, Some(&entry), at), expected, "{name}");
        }
        template.sans = Sans { dns: ["another.example.com".to_owned()].into(), ..template.sans };
        for (at, expected) in
            [(from + whole / 10, Start::Refused), (to - Duration::from_secs(1), Start::Refused), (to, Start::Missing)]
        {
            assert_eq!(start(&template, Some(&entry), at), expected, "a name is lacking");
        }
    }
}
