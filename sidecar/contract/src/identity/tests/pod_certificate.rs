//! The certificates that kubelet may get for a pod.

use super::*;
use crate::life::POD_CERTIFICATE_BACKDATE;

/// A request of kubelet, and all that it is judged by.
struct Asks {
    case: Case,
    bound: BoundPod,
    max_expiration: Duration,
    key: Option<KeyAlgorithm>,
    annotations: BTreeMap<String, String>,
}

impl Asks {
    fn of(role: Role, annotations: &[(&str, &str)]) -> Self {
        let case = Case::of(role, annotations);
        let bound = bound_pod(&case.requester).unwrap();
        let role = BTreeMap::from([(ROLE_ANNOTATION.to_owned(), role.to_string())]);
        let max_expiration = Duration::from_secs(86_400);
        Self { case, bound, max_expiration, key: Some(KeyAlgorithm::EcdsaP256), annotations: role }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut asks = Self::of(Role::Peer, &[]);
        change(&mut asks);
        asks
    }

    fn judge(&self) -> Verdict {
        let asked = PodCertificateFacts {
            signer: &self.case.signer,
            bound: &self.bound,
            max_expiration: self.max_expiration,
            key: self.key,
            annotations: &self.annotations,
        };
        judge_for_kubelet(&asked, self.case.pod.as_ref(), &self.case.services, &self.case.policy)
    }

    #[track_caller]
    fn approved(&self) -> Entitlement {
        match self.judge() {
            Verdict::Approve(entitlement) => entitlement,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn denied(&self) -> Vec<&'static str> {
        match self.judge() {
            Verdict::Deny(denials) => denials.iter().map(|denial| denial.reason).collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pod_gets_its_names_without_addresses() {
    for role in Role::ALL {
        let asks = Asks::of(role, &[]);
        let (entitlement, by_csr) = (asks.approved(), asks.case.approved());
        assert_eq!((entitlement.role, &entitlement.common_name), (role, &by_csr.common_name));
        assert_eq!(entitlement.sans.dns, by_csr.sans.dns, "{role}");
        assert!(entitlement.sans.ips.iter().all(IpAddr::is_loopback), "{role} {:?}", entitlement.sans);
        let mut without = Asks::of(role, &[]);
        without.case.pod.as_mut().unwrap().ips.clear();
        assert_eq!(without.approved(), entitlement, "kubelet asks before the pod has an address");
    }
    let mut host = Asks::with(|asks| asks.case.pod.as_mut().unwrap().host_network = true);
    assert!(host.approved().sans.ips.contains(&ip("10.0.0.7")));
    host.case.pod.as_mut().unwrap().ips.clear();
    assert!(matches!(host.judge(), Verdict::NotYet(_)));
}

#[test]
fn a_request_beyond_the_live_pod_is_denied() {
    let pod = |change: fn(&mut PodFacts)| Asks::with(|asks| change(asks.case.pod.as_mut().unwrap()));
    for (what, asks, reason) in [
        ("gone", Asks::with(|asks| asks.case.pod = None), "PodGone"),
        ("uid", pod(|pod| pod.uid = "x".to_owned()), "WrongPod"),
        ("node", pod(|pod| pod.node = "x".to_owned()), "WrongPod"),
        ("account", pod(|pod| pod.service_account = "x".to_owned()), "WrongPod"),
        ("finished", pod(|pod| pod.finished = true), "PodFinished"),
        ("deleting", pod(|pod| pod.deleting = true), "PodDeleting"),
        ("a role that it has not", Asks::of(Role::Peer, &[("etcd-tls.dev/roles", "server")]), "WrongRole"),
        ("another cluster", Asks::with(|asks| asks.case.signer.cluster = "x".to_owned()), "WrongSigner"),
        (
            "another domain",
            Asks::with(|asks| asks.case.signer.domain = Domain::Client),
            "InvalidUnverifiedUserAnnotations",
        ),
        (
            "an unknown annotation",
            Asks::with(|asks| drop(asks.annotations.insert("x.dev/y".to_owned(), "z".to_owned()))),
            "InvalidUnverifiedUserAnnotations",
        ),
        (
            "no such role",
            Asks::with(|asks| drop(asks.annotations.insert(ROLE_ANNOTATION.to_owned(), "root".to_owned()))),
            "InvalidUnverifiedUserAnnotations",
        ),
        ("a key of no kind of ours", Asks::with(|asks| asks.key = None), "UnsupportedKeyType"),
        ("a key that policy lacks", Asks::with(|asks| asks.key = Some(KeyAlgorithm::Rsa2048)), "UnsupportedKeyType"),
        ("the pod's short life", Asks::of(Role::Peer, &[("etcd-tls.dev/duration", "57m")]), "LifetimeTooShort"),
        ("a short life", Asks::with(|asks| asks.max_expiration = Duration::from_secs(3599)), "LifetimeTooShort"),
    ] {
        assert_eq!(asks.denied(), [reason], "{what}");
    }
    // Of several roles of one signer none is guessed; of one, that one.
    assert_eq!(Asks::with(|asks| asks.annotations.clear()).approved().role, Role::Peer);
    let mut both = Asks::of(Role::Server, &[]);
    both.annotations.clear();
    assert_eq!(both.denied(), ["InvalidUnverifiedUserAnnotations"]);
}

#[test]
fn a_life_fits_what_the_api_server_takes() {
    for (max, duration, lives) in
        [(3600, "24h", 3480), (86_400, "24h", 86_280), (86_400, "58m", 3480), (7200, "1h", 3600)]
    {
        let mut asks = Asks::of(Role::Peer, &[("etcd-tls.dev/duration", duration)]);
        asks.max_expiration = Duration::from_secs(max);
        let lifetime = asks.approved().lifetime;
        assert_eq!(lifetime, Duration::from_secs(lives), "{max} {duration}");
        let whole = lifetime + POD_CERTIFICATE_BACKDATE;
        assert!((SHORTEST_POD_CERTIFICATE..=asks.max_expiration).contains(&whole));
    }
}
