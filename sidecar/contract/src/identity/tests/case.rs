//! A request and all that it is judged by.

use super::*;

/// A request and everything it is judged by. [`Case::good`] is approved; a test changes one thing.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: Option<String>,
    pub(super) role: Role,
    pub(super) signer: SignerName,
    /// Another's issuer, in the place of the signer.
    pub(super) issuer: Option<Issuer>,
    pub(super) requester: Requester,
    pub(super) usages: Vec<String>,
    pub(super) expiration: Option<Duration>,
    pub(super) request: Request,
    pub(super) pod: Option<PodFacts>,
    pub(super) services: Vec<ServiceFacts>,
    pub(super) policy: Policy,
}

impl Case {
    pub(super) fn good() -> Self {
        Self::of(Role::Server, &[])
    }

    /// A pod of a labelled namespace, and what its sidecar asks for.
    pub(super) fn of(role: Role, annotations: &[(&str, &str)]) -> Self {
        let mut annotations = map(annotations);
        annotations.entry("etcd-tls.dev/roles".to_owned()).or_insert_with(|| "peer,server,client,metrics".to_owned());
        let pod = PodFacts {
            namespace: "prod".to_owned(),
            name: "etcd-0".to_owned(),
            uid: UID.to_owned(),
            service_account: "etcd".to_owned(),
            node: NODE.to_owned(),
            host_network: false,
            ips: vec![ip("10.0.0.7"), ip("fd00::7")],
            hostname: "etcd-0".to_owned(),
            subdomain: Some("etcd".to_owned()),
            labels: map(&[("app", "etcd"), ("index", "0")]),
            annotations,
            containers: vec!["etcd".to_owned()],
            finished: false,
            deleting: false,
            namespace_opted_in: true,
        };
        let settings = Settings::parse(&pod.annotations).unwrap();
        let one = |value: &str| vec![value.to_owned()];
        Self {
            name: None,
            role,
            signer: SignerName { domain: role.domain(), namespace: "prod".to_owned(), cluster: "etcd".to_owned() },
            issuer: None,
            requester: Requester {
                username: "system:serviceaccount:prod:etcd".to_owned(),
                uid: "3a2b".to_owned(),
                groups: ["system:serviceaccounts", "system:serviceaccounts:prod", "system:authenticated"]
                    .map(str::to_owned)
                    .to_vec(),
                extra: [
                    ("authentication.kubernetes.io/pod-name", one("etcd-0")),
                    ("authentication.kubernetes.io/pod-uid", one(UID)),
                    ("authentication.kubernetes.io/node-name", one(NODE)),
                    ("authentication.kubernetes.io/node-uid", one("77")),
                    ("authentication.kubernetes.io/credential-id", one("JTI=1")),
                ]
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
            },
            usages: usages(role).iter().map(|usage| (*usage).to_owned()).collect(),
            expiration: Some(Duration::from_secs(86_400)),
            request: Request {
                organization: role.organization().to_owned(),
                common_name: subject_common_name(role, &pod, &settings),
                sans: requested_sans(role, &pod, &settings),
                key: KeyAlgorithm::EcdsaP256,
                public_key: b"a key".to_vec(),
            },
            pod: Some(pod),
            services: vec![
                ServiceFacts { name: "etcd".to_owned(), cluster_ips: vec![], selector: map(&[("app", "etcd")]) },
                ServiceFacts {
                    name: "etcd-client".to_owned(),
                    cluster_ips: vec![ip("10.96.0.9"), ip("fd96::9")],
                    selector: map(&[("app", "etcd")]),
                },
                ServiceFacts {
                    name: "other".to_owned(),
                    cluster_ips: vec![ip("10.96.0.1")],
                    selector: map(&[("app", "other")]),
                },
                ServiceFacts { name: "empty".to_owned(), cluster_ips: vec![ip("10.96.0.2")], selector: map(&[]) },
                ServiceFacts {
                    name: "narrow".to_owned(),
                    cluster_ips: vec![ip("10.96.0.3")],
                    selector: map(&[("app", "etcd"), ("index", "1")]),
                },
            ],
            policy: Policy::default(),
        }
    }

    pub(super) fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self::good();
        change(&mut case);
        case
    }

    pub(super) fn with_pod(change: impl FnOnce(&mut PodFacts)) -> Self {
        Self::with(|case| change(case.pod.as_mut().unwrap()))
    }

    pub(super) fn judge(&self) -> Verdict {
        let name = self.name.clone().unwrap_or_else(|| names::csr_name(UID, self.role, &self.request.key_digest()));
        let asked = RequestFacts {
            name: &name,
            signer: self.issuer.as_ref().map_or(Addressee::Ours(&self.signer), Addressee::Another),
            requester: &self.requester,
            usages: &self.usages,
            expiration: self.expiration,
            request: &self.request,
        };
        judge(&asked, self.pod.as_ref(), &self.services, &self.policy)
    }

    #[track_caller]
    pub(super) fn approved(&self) -> Entitlement {
        match self.judge() {
            Verdict::Approve(entitlement) => entitlement,
            other => panic!("{other:?}"),
        }
    }

    /// The reasons of a denial, each once, in order.
    #[track_caller]
    pub(super) fn denied(&self) -> Vec<&'static str> {
        match self.judge() {
            Verdict::Deny(denials) => {
                assert!(!denials.is_empty());
                for denial in &denials {
                    assert!(denial.message.len() < 2000 && !denial.message.contains('\n'), "{denial:?}");
                }
                let mut reasons: Vec<&str> = denials.iter().map(|denial| denial.reason).collect();
                reasons.dedup();
                reasons
            }
            other => panic!("{other:?}"),
        }
    }
}
