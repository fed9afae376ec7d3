//! Shared by `init` and `run`: the certificates in use, the offered bundles, the templates of each role, and the one place
//! that writes files.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    certificate::Bundle,
    crl::CrlError,
    identity::{self, PodFacts},
    invalid_value::InvalidValue,
    names,
    role::{Domain, Role},
    settings::{Issuer, Settings},
};

use crate::{
    agent::{
        addresses::{self, Address},
        answered::Answered,
        belief::{Pace, Statements},
        revocation,
        trust::TrustDir,
    },
    issuance::{
        awaited::Awaited,
        obtain::{self, Failure, Issuance},
        others::{Distrusting, DistrustingMembers, Questions},
        renewal::Template,
    },
    kube::{
        Api,
        cert_manager::{CertificateRequests, Requests},
        http::{Credentials, Kube},
    },
    os::clock::Clock,
    store::{Entries, Entry, Set, Store, StoreError, files::Files},
};

mod offered;

/// The subject of the certificates: the pod's own metadata from the downward API.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The facts that a requester knows. [`PodFacts::ips`] are those at the start.
    pub facts: PodFacts,
    /// The settings that the arguments carry.
    pub settings: Settings,
    /// Interface addresses at the start.
    pub at_start: Vec<Address>,
}

impl Subject {
    /// From the command line.
    ///
    /// # Errors
    /// `--extra-sans` or `--user` cannot be used.
    pub fn of(pod: &PodArgs, downward: &DownwardArgs) -> Result<Self, InvalidValue> {
        let settings = pod.settings()?;
        let hostname = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok());
        let facts = PodFacts { hostname: hostname.unwrap_or_default(), ..downward.facts() };
        let at_start = addresses::of_interfaces().unwrap_or_else(|error| {
            tracing::warn!(%error, "interface addresses cannot be read; changes will not be noticed");
            Vec::new()
        });
        Ok(Self { facts, settings, at_start })
    }

    /// The pod's addresses now.
    pub fn addresses(&self) -> Vec<IpAddr> {
        addresses::of_interfaces()
            .map_or_else(|_| self.facts.ips.clone(), |now| addresses::current(&self.facts.ips, &self.at_start, &now))
    }

    /// The bundles that are mounted.
    pub fn trust(&self, args: &PodArgs) -> TrustDir {
        if self.settings.is_of_kubelet() {
            return TrustDir::projected(&args.projected_dir, &self.settings.roles);
        }
        if args.trust_of_issuer {
            return TrustDir::of_answers();
        }
        let dir = &args.trust_dir;
        let ours = self.settings.our_signer(Role::Peer, &self.facts.namespace).is_some();
        TrustDir::new(dir).of_our_signer(ours)
    }

    /// A client that makes the requests which the issuer takes.
    pub fn requests<K: Credentials>(&self, credentials: K) -> Requests<K> {
        let kube = Kube::new(credentials);
        match &self.settings.issuer {
            Issuer::CertManager(issuer) => {
                Requests::CertManager(CertificateRequests::new(kube, issuer.clone(), &self.facts))
            }
            Issuer::Csr | Issuer::Ours(_) | Issuer::Foreign(_) | Issuer::PodCertificate => Requests::Signing(kube),
        }
    }

    /// The template of the certificate for `role` while the pod has `ips`.
    pub fn template(&self, role: Role, ips: Vec<IpAddr>) -> Template {
        // kubelet asks before the pod has an address, so no certificate of its holds one.
        let ips = if self.settings.is_of_kubelet() { Vec::new() } else { ips };
        let facts = PodFacts { ips, ..self.facts.clone() };
        Template {
            role,
            uid: facts.uid.clone(),
            common_name: identity::subject_common_name(role, &facts, &self.settings),
            sans: identity::requested_sans(role, &facts, &self.settings),
            signer: self.settings.signer_name(role, &facts.namespace),
            lifetime: self.settings.duration,
            key: self.settings.key,
            key_rotation: self.settings.key_rotation,
        }
    }
}

/// The certificates of one pod or host, in memory and on disk.
pub struct Agent<C, F> {
    roles: BTreeSet<Role>,
    clock: C,
    store: RefCell<Store<F>>,
    trust: TrustDir,
    stated: RefCell<Statements>,
    pace: RefCell<Pace>,
    awaited: Arc<Awaited>,
    /// The bundle of the issuer's answers, where it comes from there.
    answered: Option<Answered>,
    /// To who can see what etcd's members trust; none where nobody can.
    questions: Option<Arc<Questions>>,
    held: RefCell<Set>,
    /// Roles whose held entry is not on disk yet; their pending keys stay until it is.
    fresh: RefCell<BTreeSet<Role>>,
    dirty: Cell<bool>,
}

impl<C: Clock, F: Files> Agent<C, F> {
    /// With what is on disk. Files that do not hold together are requested again; they stay until that is done.
    pub fn new(roles: BTreeSet<Role>, clock: C, store: Store<F>, trust: TrustDir) -> Self {
        let lists = store.lists();
        let mut held = Set { lists: lists.by_domain, ..Set::default() };
        match store.entries() {
            Ok(entries) => {
                for (role, entry) in entries.unwrap_or_default() {
                    match entry {
                        Ok(entry) => drop(held.roles.insert(role, Arc::new(entry))),
                        Err(error) => {
                            tracing::warn!(%role, %error, "the files on disk cannot be used; asking for new ones");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the files on disk cannot be used; asking for new ones"),
        }
        held.roles.retain(|role, entry| {
            let good = entry.with_bundle(*role, entry.bundle(), clock.now());
            if let Err(error) = &good {
                tracing::warn!(%role, %error, "the certificate on disk is of no use; asking for a new one");
            }
            roles.contains(role) && good.is_ok()
        });
        let mut stated = Statements::default();
        let mut entries: Vec<_> = held.roles.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.record().received);
        for (role, entry) in entries {
            if let Some(digest) = &entry.record().in_force {
                stated.remember(role.domain(), digest);
            }
        }
        Self {
            answered: trust.is_of_answers().then(Answered::default),
            questions: None,
            roles,
            clock,
            store: RefCell::new(store),
            trust,
            stated: RefCell::new(stated),
            pace: RefCell::default(),
            awaited: Arc::default(),
            held: RefCell::new(held),
            fresh: RefCell::default(),
            dirty: Cell::new(!lists.whole),
        }
    }

    /// The same, where somebody sees what etcd's members trust.
    pub fn with_questions(self, questions: Option<Arc<Questions>>) -> Self {
        if let Some(questions) = questions.as_ref().filter(|_| self.answered.is_some()) {
            questions.look_ahead();
        }
        Self { questions, ..self }
    }

    /// The roles to hold.
    pub const fn roles(&self) -> &BTreeSet<Role> {
        &self.roles
    }

    /// Ends when a certificate was issued by a CA of none of the bundles at hand: the one on offer is too old.
    pub async fn unknown_issuer(&self) {
        self.awaited.told().await;
    }

    /// The CAs that signed certificates wait for.
    pub const fn awaited(&self) -> &Arc<Awaited> {
        &self.awaited
    }

    /// The etcd members that a certificate under a bundle of `domain` waits for.
    fn others(&self, domain: Domain, bundle: &Bundle) -> DistrustingMembers {
        match &self.questions {
            Some(questions) => questions.ask(domain, bundle),
            None => DistrustingMembers::unseen("this pod runs no etcd to ask"),
        }
    }

    /// The clocks.
    pub const fn clock(&self) -> &C {
        &self.clock
    }

    /// The set held; it is also the set on disk unless [`Self::is_dirty`].
    pub fn held(&self) -> Set {
        self.held.borrow().clone()
    }

    /// `role`'s entry.
    pub fn entry(&self, role: Role) -> Option<Arc<Entry>> {
        self.held.borrow().roles.get(&role).cloned()
    }

    /// The set on disk, independent of the one in memory.
    pub fn on_disk(&self) -> Option<Entries> {
        self.store.borrow().entries().ok().flatten()
    }

    /// Forgets the set in memory, so that every role is requested again; the files on disk stay until then.
    pub fn forget(&self) {
        self.held.borrow_mut().roles.clear();
    }

    /// True if something held is not on disk.
    pub fn is_dirty(&self) -> bool {
        self.dirty.get()
    }

    fn domains(&self) -> BTreeSet<Domain> {
        self.roles.iter().map(|role| role.domain()).collect()
    }

    /// Takes the revocation lists on offer where they may be taken; returns what was refused.
    pub fn take_lists(&self) -> Vec<(Domain, CrlError)> {
        let mut refused = Vec::new();
        for domain in self.domains() {
            let mut held = self.held.borrow_mut();
            let in_use = held.lists.get(&domain).map(Arc::as_ref);
            let taken = self.trust.list(domain, in_use).and_then(|offered| match offered {
                Some(offered) => revocation::take(&held, domain, offered),
                None => Ok(None),
            });
            match taken {
                Ok(Some(list)) => {
                    tracing::info!(%domain, number = list.number(), entries = list.entries().len(), "revocation list taken");
                    held.lists.insert(domain, list);
                    self.dirty.set(true);
                }
                Ok(None) => {}
                Err(error) => refused.push((domain, error)),
            }
        }
        refused
    }

    /// True if every role on disk has a revocation list, without which etcd refuses everybody.
    pub fn has_lists(&self) -> bool {
        self.store.borrow().lists().whole
    }

    /// Asks for `template`, for as long as `limit` says.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn obtain<A: Api>(
        &self,
        template: &Template,
        api: A,
        trusts: Option<String>,
        limit: Option<Duration>,
    ) -> Result<Entry, Failure> {
        let current = self.entry(template.role);
        let others = |domain, bundle: &Bundle| self.others(domain, bundle);
        obtain::obtain(Issuance {
            template,
            api,
            clock: &self.clock,
            store: &self.store,
            current: current.as_deref(),
            bundles: &|domain, answer| self.bundles(domain, answer),
            others: self.answered.as_ref().map(|_| &others as Distrusting<'_>),
            awaited: &self.awaited,
            trusts,
            limit,
        })
        .await
    }

    /// Holds a proven entry; [`Self::install`] brings it to disk.
    pub fn hold(&self, role: Role, entry: Entry) {
        let mut held = self.held.borrow_mut();
        *held = held.with(role, entry);
        self.fresh.borrow_mut().insert(role);
        self.dirty.set(true);
    }

    /// Writes what is held, if it is whole and not yet on disk; says which roles' certificates are new there, or `None`
    /// where nothing was written.
    ///
    /// # Errors
    /// The old set is still in use, whole; the new one is still held, so that nothing needs to be asked for again.
    pub fn install(&self) -> Result<Option<BTreeSet<Role>>, StoreError> {
        let held = self.held.borrow();
        if !self.dirty.get() || !held.holds(&self.roles) {
            return Ok(None);
        }
        let store = self.store.borrow();
        store.install(&held)?;
        self.dirty.set(false);
        let fresh = std::mem::take(&mut *self.fresh.borrow_mut());
        for role in &fresh {
            if let Err(error) = store.forget_pending(*role) {
                tracing::warn!(%error, "a pending key could not be removed");
            }
            if let Some(entry) = held.roles.get(role) {
                let chain = entry.chain();
                tracing::info!(
                    %role,
                    serial = chain.serial,
                    not_after = %jiff::Timestamp::try_from(chain.not_after).map_or_else(|_| "?".to_owned(), |t| t.to_string()),
                    file = names::CERT_FILE,
                    "certificate installed"
                );
            }
        }
        Ok(Some(fresh))
    }
}
