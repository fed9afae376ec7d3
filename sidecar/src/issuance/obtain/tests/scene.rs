//! A scene for requests: a pod's store, an API server with a signer behind it, and a clock that passes at once.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use etcd_tls_contract::{
    certificate::Bundle,
    csr::Request,
    key::{KeyAlgorithm, KeyRotation},
    role::{Domain, Role},
};

use crate::{
    issuance::{
        awaited::Awaited,
        obtain::{Answer, Bundles, Failure, Issuance, obtain},
        others::{Distrusting, DistrustingMembers},
        renewal::Template,
    },
    kube::{
        Api, ApiError, Version,
        objects::{
            ByteString, CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
        },
    },
    os::clock::Clock,
    store::{Entry, Store, files::Disk},
    testing::{Authority, Fake},
};

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Answers instead of the server: by the time since the beginning and the number of the call.
pub(super) type Trouble = Box<dyn Fn(Duration, usize) -> Option<ApiError>>;
/// Judges a request that is looked at: by the time since the beginning.
pub(super) type Judge = Box<dyn Fn(Duration, &mut CertificateSigningRequest)>;

pub(super) struct Server {
    pub(super) clock: Fake,
    pub(super) requests: BTreeMap<String, CertificateSigningRequest>,
    pub(super) created: usize,
    pub(super) calls: usize,
    pub(super) most_pending: usize,
    pub(super) trouble: Trouble,
    pub(super) judge: Judge,
    /// Pending requests are deleted when they are so old, as the controller manager does.
    pub(super) collect_after: Option<Duration>,
    pub(super) made: BTreeMap<String, Duration>,
    /// For so long after a request was made, reads that take any version see [`Self::cached`].
    pub(super) lag: Duration,
    pub(super) cached: Option<CertificateSigningRequest>,
    /// How long each answer takes.
    pub(super) slow: Duration,
}

#[derive(Clone)]
pub(super) struct FakeApi(pub(super) Rc<RefCell<Server>>);

impl FakeApi {
    pub(super) fn begin(&self) -> Result<RefMut<'_, Server>, ApiError> {
        let mut server = self.0.borrow_mut();
        server.calls += 1;
        server.clock.pass(server.slow);
        let now = server.clock.elapsed();
        if let Some(limit) = server.collect_after {
            let made = server.made.clone();
            server.requests.retain(|name, object| object.status.is_some() || now - made[name] < limit);
        }
        match (server.trouble)(now, server.calls) {
            Some(error) => Err(error),
            None => Ok(server),
        }
    }
}

impl Api for FakeApi {
    async fn create(&mut self, request: &CertificateSigningRequest) -> Result<CertificateSigningRequest, ApiError> {
        let mut server = self.begin()?;
        let name = request.metadata.name.clone().unwrap();
        if server.requests.contains_key(&name) {
            return Err(status(409));
        }
        server.created += 1;
        let mut object = request.clone();
        object.metadata.uid = Some(format!("uid-{}", server.created));
        server.requests.insert(name.clone(), object.clone());
        let now = server.clock.elapsed();
        server.made.insert(name, now);
        let pending = server.requests.values().filter(|r| r.status.is_none()).count();
        server.most_pending = server.most_pending.max(pending);
        Ok(object)
    }

    async fn get(&mut self, name: &str, version: Version) -> Result<CertificateSigningRequest, ApiError> {
        let mut server = self.begin()?;
        let now = server.clock.elapsed();
        if version == Version::Any && server.made.get(name).is_some_and(|made| now < *made + server.lag) {
            // The earlier content of the cache: nothing, or a foreign request.
            return server.cached.clone().ok_or_else(|| status(404));
        }
        let Some(mut object) = server.requests.get(name).cloned() else { return Err(status(404)) };
        (server.judge)(now, &mut object);
        server.requests.insert(name.to_owned(), object.clone());
        Ok(object)
    }
}

pub(super) fn status(code: u16) -> ApiError {
    ApiError::Status { code, message: format!("status {code}"), retry_after: None }
}

/// See [`Distrusting`].
pub(super) type Seen = Box<dyn Fn(Domain, &Bundle) -> DistrustingMembers>;

pub(super) struct Scene {
    pub(super) authority: Rc<Authority>,
    pub(super) clock: Fake,
    pub(super) server: Rc<RefCell<Server>>,
    pub(super) store: RefCell<Store<Disk>>,
    pub(super) dir: PathBuf,
    pub(super) template: Template,
    pub(super) current: Option<Entry>,
    pub(super) bundles: Vec<Bundle>,
    /// The answers that the observer got.
    pub(super) heard: RefCell<Vec<Answer>>,
    pub(super) limit: Option<Duration>,
    /// The members that do not trust a bundle yet, where it comes with the answer.
    pub(super) others: Option<Seen>,
    pub(super) awaited: Rc<Awaited>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Scene {
    pub(super) fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("etcd-tls-renew-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (authority, clock) = (Rc::new(Authority::new()), Fake::new());
        let server = Server {
            clock: clock.clone(),
            requests: BTreeMap::new(),
            created: 0,
            calls: 0,
            most_pending: 0,
            trouble: Box::new(|_, _| None),
            judge: signer(&authority, &clock, 24 * HOUR),
            collect_after: None,
            made: BTreeMap::new(),
            lag: Duration::ZERO,
            cached: None,
            slow: Duration::ZERO,
        };
        let template = Template {
            role: Role::Peer,
            uid: "0d5f2e0c".to_owned(),
            common_name: "system:etcd-peer:etcd-0".to_owned(),
            sans: "10.0.0.1".parse().unwrap(),
            signer: "peer.etcd-tls.dev/prod.etcd".to_owned(),
            lifetime: 24 * HOUR,
            key: KeyAlgorithm::EcdsaP256,
            key_rotation: KeyRotation::Always,
        };
        Self {
            bundles: vec![authority.bundle()],
            store: RefCell::new(Store::open(&dir).unwrap()),
            server: Rc::new(RefCell::new(server)),
            authority,
            clock,
            dir,
            template,
            current: None,
            heard: RefCell::default(),
            limit: None,
            others: None,
            awaited: Rc::default(),
        }
    }

    pub(super) fn trouble(&self, trouble: impl Fn(Duration, usize) -> Option<ApiError> + 'static) {
        self.server.borrow_mut().trouble = Box::new(trouble);
    }

    pub(super) fn judge(&self, judge: impl Fn(Duration, &mut CertificateSigningRequest) + 'static) {
        self.server.borrow_mut().judge = Box::new(judge);
    }

    pub(super) fn obtain(&self) -> Result<Entry, Failure> {
        block_on(obtain(Issuance {
            template: &self.template,
            api: FakeApi(Rc::clone(&self.server)),
            clock: &self.clock,
            store: &self.store,
            current: self.current.as_ref(),
            bundles: &|_, answer| {
                self.heard.borrow_mut().extend(answer.cloned());
                Bundles { bundles: self.bundles.clone(), ..Bundles::default() }
            },
            others: self.others.as_ref().map(|others| others as Distrusting<'_>),
            awaited: &self.awaited,
            trusts: Some("digest".to_owned()),
            limit: self.limit,
        }))
    }

    pub(super) fn pending(&self) -> bool {
        self.store.borrow().pending(Role::Peer).is_some()
    }

    pub(super) fn created(&self) -> usize {
        self.server.borrow().created
    }
}

/// Signs for `life` what it sees.
pub(super) fn signer(authority: &Rc<Authority>, clock: &Fake, life: Duration) -> Judge {
    let (authority, clock) = (Rc::clone(authority), clock.clone());
    Box::new(move |_, object| {
        if object.status.is_none() {
            let request = Request::parse(&object.spec.request.0).unwrap();
            let now = clock.now();
            let pem = authority.sign(&request.public_key, &request.sans, now - Duration::from_secs(300), now + life);
            put(object, "Approved", "", Some(pem));
        }
    })
}

pub(super) fn put(object: &mut CertificateSigningRequest, type_: &str, message: &str, certificate: Option<String>) {
    let condition = CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some("Reason".to_owned()),
        message: Some(message.to_owned()),
    };
    let certificate = certificate.map(|pem| ByteString(pem.into_bytes()));
    object.status = Some(CertificateSigningRequestStatus { certificate, conditions: Some(vec![condition]), ca: None });
}
