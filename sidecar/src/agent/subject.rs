//! What `init` and `run` share: the set held, the bundles on offer, the wishes of each role, and the one place where
//! files are written.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    certificate::Bundle,
    identity::{self, PodFacts},
    names,
    role::{Domain, Role},
    san::Sans,
    settings::Settings,
};

use crate::{
    agent::{
        addresses::{self, Address},
        trust::{self, TrustDir, TrustError},
    },
    issuance::obtain::{self, Errand, Failure, Wish},
    kube::Api,
    os::clock::Clock,
    store::{Entry, Set, Store, StoreError, files::Files},
};

/// Who asks, and for what: the pod as it is told of itself.
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
    /// `--extra-sans` holds what is neither a name nor an address.
    pub fn of(pod: &PodArgs, downward: &DownwardArgs) -> Result<Self, String> {
        let mut extra_sans = Sans::default();
        if !pod.extra_sans.is_empty() {
            extra_sans = pod.extra_sans.join(",").parse().map_err(|e| format!("--extra-sans: {e}"))?;
        }
        let settings = Settings {
            roles: pod.roles.iter().copied().collect(),
            cluster: pod.cluster.clone(),
            issuer: pod.issuer.clone(),
            duration: pod.duration,
            key: pod.key,
            key_rotation: pod.key_rotation,
            extra_sans,
            user: pod.user.clone(),
            admin_port: pod.admin_port,
            reload: pod.reload.clone(),
            ..Settings::default()
        };
        let hostname = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok());
        let facts = PodFacts {
            namespace: downward.pod_namespace.clone(),
            name: downward.pod_name.clone(),
            uid: downward.pod_uid.clone(),
            service_account: downward.pod_service_account.clone(),
            node: downward.node_name.clone(),
            ips: downward.pod_ips.clone(),
            hostname: hostname.unwrap_or_default(),
            ..PodFacts::default()
        };
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

    /// The bundles mounted at `dir`.
    pub fn trust(&self, dir: &Path) -> TrustDir {
        let ours = self.settings.our_signer(Role::Peer, &self.facts.namespace).is_some();
        TrustDir::new(dir).of_our_signer(ours)
    }

    /// What `role` asks for while the pod has `ips`.
    pub fn wish(&self, role: Role, ips: Vec<IpAddr>) -> Wish {
        let facts = PodFacts { ips, ..self.facts.clone() };
        Wish {
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

/// The certificates of one pod or host: what is held, and what is on disk.
pub struct Agent<C, F> {
    roles: BTreeSet<Role>,
    clock: C,
    store: RefCell<Store<F>>,
    trust: TrustDir,
    held: RefCell<Set>,
    /// Roles whose held entry is not on disk yet; their pending keys stay until it is.
    fresh: RefCell<BTreeSet<Role>>,
    dirty: Cell<bool>,
}

impl<C: Clock, F: Files> Agent<C, F> {
    /// With what is on disk. Files that do not hold together are asked for anew; they stay until that is done.
    pub fn new(roles: BTreeSet<Role>, clock: C, store: Store<F>, trust: TrustDir) -> Self {
        let mut held = match store.load() {
            Ok(set) => set.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the files on disk are of no use; asking for new ones");
                Set::default()
            }
        };
        held.roles.retain(|role, entry| {
            let good = entry.with_bundle(*role, entry.bundle(), clock.now());
            if let Err(error) = &good {
                tracing::warn!(%role, %error, "the certificate on disk is of no use; asking for a new one");
            }
            roles.contains(role) && good.is_ok()
        });
        Self {
            roles,
            clock,
            store: RefCell::new(store),
            trust,
            held: RefCell::new(held),
            fresh: RefCell::default(),
            dirty: Cell::new(false),
        }
    }

    /// The roles to hold.
    pub const fn roles(&self) -> &BTreeSet<Role> {
        &self.roles
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

    /// Holds nothing any more, so that everything is asked for anew; what is on disk stays until then.
    pub fn forget(&self) {
        self.held.borrow_mut().roles.clear();
    }

    /// Whether something held is not on disk.
    pub fn is_dirty(&self) -> bool {
        self.dirty.get()
    }

    fn domains(&self) -> BTreeSet<Domain> {
        self.roles.iter().map(|role| role.domain()).collect()
    }

    /// Takes the bundles on offer where they may be taken; returns what was refused.
    pub fn take_trust(&self) -> Vec<(Domain, TrustError)> {
        let (mut offered, mut refused) = (BTreeMap::new(), Vec::new());
        for domain in self.domains() {
            match self.trust.read(domain) {
                Ok(bundle) => drop(offered.insert(domain, bundle)),
                Err(error) => refused.push((domain, error)),
            }
        }
        let (next, errors) = trust::take(&self.held.borrow(), &offered, self.clock.now());
        refused.extend(errors);
        if let Some(next) = next {
            for (role, entry) in &next.roles {
                tracing::info!(%role, bundle = entry.bundle().digest(), "trust bundle on offer taken");
            }
            *self.held.borrow_mut() = next;
            self.dirty.set(true);
        }
        refused
    }

    /// See [`TrustDir::outdated`].
    pub fn outdated(&self, refused: &[(Domain, TrustError)]) -> BTreeMap<Role, String> {
        self.trust.outdated(refused)
    }

    /// The bundles that a new certificate of `domain` may verify under: those in use, then the one on offer.
    fn bundles(&self, domain: Domain) -> Vec<Bundle> {
        let held = self.held.borrow();
        let mut bundles: Vec<Bundle> = Vec::new();
        let in_use = held.roles.iter().filter(|(role, _)| role.domain() == domain).map(|(_, e)| e.bundle().clone());
        for bundle in in_use.chain(self.trust.read(domain).ok()) {
            if !bundles.contains(&bundle) {
                bundles.push(bundle);
            }
        }
        bundles
    }

    /// Digest of the bundle that a role of `domain` has in use, or would have first.
    pub fn bundle_digest(&self, domain: Domain) -> Option<String> {
        self.bundles(domain).first().map(Bundle::digest)
    }

    /// Asks for `wish`, for as long as `limit` says.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn obtain<A: Api>(
        &self,
        wish: &Wish,
        api: A,
        trusts: Option<String>,
        limit: Option<Duration>,
    ) -> Result<Entry, Failure> {
        let current = self.entry(wish.role);
        obtain::obtain(Errand {
            wish,
            api,
            clock: &self.clock,
            store: &self.store,
            current: current.as_deref(),
            bundles: &|domain| self.bundles(domain),
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
