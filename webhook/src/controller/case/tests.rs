//! One good request, and every single deviation from it, from the objects as the API server stores them to the verdict.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use base64::Engine;
use etcd_tls_contract::{
    csr::{PrivateKey, key_digest},
    key::KeyAlgorithm,
    san::Sans,
};
use k8s_openapi::api::core::v1::{Pod, Service};

use super::*;
use crate::controller::facts;

const UID: &str = "0b1f4c9e-0000-4000-8000-000000000001";

/// A CSR and all that it is judged by.
struct World {
    csr: Value,
    pod: Option<Value>,
    namespace_opted_in: bool,
    services: Vec<Value>,
    policy: String,
}

impl World {
    /// A peer of `prod/etcd` asks for what it is.
    fn good() -> Self {
        let csr = json!({
            "metadata": {"uid": "c", "resourceVersion": "1"},
            "spec": {
                "signerName": "peer.etcd-tls.dev/prod.etcd",
                "usages": ["digital signature", "server auth", "client auth"],
                "expirationSeconds": 86400,
                "username": "system:serviceaccount:prod:etcd",
                "uid": "0b1f4c9e-0000-4000-8000-000000000002",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:prod", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=0b1f4c9e-0000-4000-8000-000000000003"],
                    "authentication.kubernetes.io/node-name": ["n1"],
                    "authentication.kubernetes.io/node-uid": ["0b1f4c9e-0000-4000-8000-000000000004"],
                    "authentication.kubernetes.io/pod-name": ["etcd-0"],
                    "authentication.kubernetes.io/pod-uid": [UID],
                },
            },
        });
        let pod = json!({
            "metadata": {"name": "etcd-0", "namespace": "prod", "uid": UID, "labels": {"app": "etcd"}},
            "spec": {"serviceAccountName": "etcd", "nodeName": "n1", "subdomain": "etcd", "containers": [{"name": "etcd"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        let world = Self { csr, pod: Some(pod), namespace_opted_in: true, services: Vec::new(), policy: String::new() };
        world.asking("system:etcd-peers", "system:etcd-peer:etcd-0", &["10.0.0.1"], &[])
    }

    /// With a request for these, by a new key that its name is of.
    fn asking(self, organization: &str, common_name: &str, ips: &[&str], dns: &[&str]) -> Self {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let sans = Sans {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
        };
        let pem = key.request(organization, common_name, &sans).unwrap();
        let role =
            self.csr["metadata"]["name"].as_str().and_then(|n| n.rsplit('-').nth(1)).unwrap_or("peer").to_owned();
        let name = format!("etcd-tls-{UID}-{role}-{}", key_digest(&key.public_key()));
        self.with("/metadata/name", json!(name)).pem(&pem)
    }

    /// With this text as `spec.request`.
    fn pem(self, pem: &str) -> Self {
        self.with("/spec/request", json!(base64::engine::general_purpose::STANDARD.encode(pem)))
    }

    fn text(&self) -> String {
        let request = self.csr["spec"]["request"].as_str().unwrap();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(request).unwrap()).unwrap()
    }

    /// With one value of the CSR changed, added, or (null) taken out.
    fn with(mut self, pointer: &str, value: Value) -> Self {
        set(&mut self.csr, pointer, value);
        self
    }

    fn extra(self, key: &str, value: Value) -> Self {
        self.with(&format!("/spec/extra/authentication.kubernetes.io~1{key}"), value)
    }

    /// With one value of the pod changed.
    fn pod(mut self, pointer: &str, value: Value) -> Self {
        set(self.pod.as_mut().unwrap(), pointer, value);
        self
    }

    fn policy(mut self, policy: &str) -> Self {
        policy.clone_into(&mut self.policy);
        self
    }

    fn verdict(&self) -> Verdict {
        let csr: Csr = serde_json::from_value(self.csr.clone()).unwrap();
        assert!(is_open(&csr) && is_ours(&csr.spec.signer_name), "{}", csr.spec.signer_name);
        let pod: Option<Pod> = self.pod.clone().map(|pod| serde_json::from_value(pod).unwrap());
        let pod = pod.map(|pod| facts::pod(&pod, self.namespace_opted_in));
        let services: Vec<_> = self
            .services
            .iter()
            .map(|service| facts::service(&serde_json::from_value::<Service>(service.clone()).unwrap()))
            .collect();
        let policy = Policy::parse(&self.policy).unwrap();
        Case::open(&csr).judge(&csr, pod.as_ref(), &services, &policy)
    }

    fn reasons(&self) -> Vec<&'static str> {
        match self.verdict() {
            Verdict::Deny(denials) => denials.iter().map(|denial| denial.reason).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/");
    let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(&key);
    } else {
        parent.insert(key, value);
    }
}

#[test]
fn a_request_within_its_pods_identity_is_approved() {
    let Verdict::Approve(entitlement) = World::good().verdict() else { panic!("{:?}", World::good().verdict()) };
    assert_eq!(entitlement.common_name, "system:etcd-peer:etcd-0");
    // Less than it is, too.
    let fewer = World::good().asking("system:etcd-peers", "system:etcd-peer:etcd-0", &[], &[]);
    assert!(matches!(fewer.verdict(), Verdict::Approve(_)));
}

#[test]
fn an_etcd_that_is_a_native_sidecar_is_an_etcd_pod_of_its_namespace() {
    let with = |policy: &str| {
        let world = World::good().pod("/spec/containers", json!([{"name": "app"}]));
        world.pod("/spec/initContainers", json!([{"name": "etcd", "restartPolicy": policy}]))
    };
    assert!(matches!(with("Always").verdict(), Verdict::Approve(_)), "{:?}", with("Always").verdict());
    // One that ends is no member.
    assert_eq!(with("OnFailure").reasons(), ["NotOptedIn"]);
}

#[test]
fn each_deviation_is_denied_with_its_reason() {
    let good = World::good;
    let peer = |cn: &str, ips: &[&str], dns: &[&str]| World::good().asking("system:etcd-peers", cn, ips, dns);
    let cn = "system:etcd-peer:etcd-0";
    let mut cases = vec![
        // The requester.
        ("a user", good().with("/spec/username", json!("jane")), "BadRequester"),
        ("another account", good().with("/spec/username", json!("system:serviceaccount:prod:other")), "WrongPod"),
        (
            "another namespace's account",
            good().with("/spec/username", json!("system:serviceaccount:dev:etcd")),
            "BadRequester",
        ),
        ("no uid", good().with("/spec/uid", json!("")), "BadRequester"),
        ("no groups", good().with("/spec/groups", json!([])), "BadRequester"),
        ("no extra", good().with("/spec/extra", Value::Null), "BadRequester"),
        ("two pods", good().extra("pod-uid", json!([UID, UID])), "BadRequester"),
        ("no pod name", good().extra("pod-name", Value::Null), "BadRequester"),
        ("no pod uid", good().extra("pod-uid", Value::Null), "BadRequester"),
        ("no node", good().extra("node-name", Value::Null), "BadRequester"),
        ("no credential", good().extra("credential-id", Value::Null), "BadRequester"),
        ("a credential of another kind", good().extra("credential-id", json!(["X509SHA256=00"])), "BadRequester"),
        ("an odd spelling", good().extra("Pod-Uid", json!([UID])), "BadRequester"),
        // The pod as it is.
        ("no pod", World { pod: None, ..good() }, "PodGone"),
        ("the pod made again", good().pod("/metadata/uid", json!("another")), "WrongPod"),
        ("on another node", good().pod("/spec/nodeName", json!("n2")), "WrongPod"),
        ("finished", good().pod("/status/phase", json!("Succeeded")), "PodFinished"),
        ("failed", good().pod("/status/phase", json!("Failed")), "PodFinished"),
        ("being deleted", good().pod("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")), "PodDeleting"),
        ("not opted in", World { namespace_opted_in: false, ..good() }, "NotOptedIn"),
        ("opted out", good().pod("/metadata/labels/etcd-tls", json!("disabled")), "NotOptedIn"),
        ("not an etcd pod", good().pod("/spec/containers", json!([{"name": "web"}])), "NotOptedIn"),
        (
            "a bad annotation",
            good().pod("/metadata/annotations", json!({"etcd-tls.dev/duration": "24"})),
            "BadAnnotation",
        ),
        ("not its role", good().pod("/metadata/annotations", json!({"etcd-tls.dev/roles": "client"})), "WrongRole"),
        // The signer's name.
        ("another namespace's", good().with("/spec/signerName", json!("peer.etcd-tls.dev/dev.etcd")), "WrongSigner"),
        ("another cluster's", good().with("/spec/signerName", json!("peer.etcd-tls.dev/prod.other")), "WrongSigner"),
        ("another domain's", good().with("/spec/signerName", json!("client.etcd-tls.dev/prod.etcd")), "WrongSigner"),
        ("no cluster", good().with("/spec/signerName", json!("peer.etcd-tls.dev/prod")), "WrongSigner"),
        ("too many parts", good().with("/spec/signerName", json!("peer.etcd-tls.dev/prod.etcd.x")), "WrongSigner"),
        ("no domain", good().with("/spec/signerName", json!("etcd-tls.dev/prod.etcd")), "WrongSigner"),
        // The CSR's name.
        ("another pod's", good().with("/metadata/name", json!("etcd-tls-x-peer-0")), "WrongName"),
        (
            "another key's",
            {
                let other = good().csr["metadata"]["name"].clone();
                good().with("/metadata/name", other)
            },
            "WrongName",
        ),
        // Usages and life.
        (
            "a CA's usages",
            good().with("/spec/usages", json!(["digital signature", "server auth", "client auth", "cert sign"])),
            "WrongUsages",
        ),
        ("no server auth", good().with("/spec/usages", json!(["digital signature", "client auth"])), "WrongUsages"),
        ("any", good().with("/spec/usages", json!(["any"])), "WrongUsages"),
        ("a life too long", good().with("/spec/expirationSeconds", json!(2_147_483_647)), "WrongLifetime"),
        // The subject and the names.
        ("masters", good().asking("system:masters", cn, &["10.0.0.1"], &[]), "WrongSubject"),
        ("another pod's CN", peer("system:etcd-peer:etcd-1", &["10.0.0.1"], &[]), "WrongSubject"),
        ("root", peer("root", &["10.0.0.1"], &[]), "WrongSubject"),
    ];
    for ip in ["10.0.0.2", "0.0.0.0", "::", "169.254.169.254", "224.0.0.1", "10.96.0.1"] {
        cases.push((ip, peer(cn, &[ip], &[]), ""));
    }
    for name in
        ["kubernetes.default.svc", "*.etcd.prod.svc", "etcd-1.etcd.prod.svc", "etcd-0.etcd", "etcd-0.etcd.dev.svc"]
    {
        cases.push((name, peer(cn, &[], &[name]), ""));
    }
    // Requests that the API server accepts but that cannot be parsed.
    let text = good().text();
    cases.extend([
        ("two blocks", good().pem(&text.repeat(2)), ""),
        ("text before", good().pem(&format!("hello\n{text}")), ""),
        ("no PEM", good().pem("hello"), ""),
        ("nothing", good().pem(""), ""),
        ("cut off", good().pem(&text[..text.len() / 2]), ""),
        ("1 MiB", good().pem(&format!("{}{text}", " ".repeat(1 << 20))), ""),
    ]);
    for (what, world, reason) in cases {
        let reasons = world.reasons();
        assert!(!reasons.is_empty() && (reason.is_empty() || reasons.contains(&reason)), "{what}: {reasons:?}");
    }
}

#[test]
fn every_reason_is_given_at_once() {
    let world = World::good()
        .asking("system:masters", "root", &["10.0.0.2"], &[])
        .with("/spec/usages", json!(["any"]))
        .with("/spec/signerName", json!("peer.etcd-tls.dev/dev.etcd"));
    let reasons = world.reasons();
    for reason in ["WrongSubject", "WrongUsages", "WrongSigner", "NameNotAllowed"] {
        assert!(reasons.contains(&reason), "{reasons:?}");
    }
    // Also where the request itself cannot be read.
    let reasons = World::good()
        .pem("hello")
        .with("/spec/signerName", json!("peer.etcd-tls.dev/x"))
        .with("/spec/uid", json!(""))
        .reasons();
    assert!(reasons.len() >= 3 && reasons.contains(&"WrongSigner") && reasons.contains(&"BadRequester"), "{reasons:?}");
}

#[test]
fn temporary_obstacles_deny_no_request() {
    let world = World::good().pod("/status/podIPs", Value::Null);
    assert!(matches!(world.verdict(), Verdict::NotYet(_)), "{:?}", world.verdict());
    // But what waiting cannot change is denied at once.
    let world = world.with("/spec/usages", json!(["any"]));
    assert_eq!(world.reasons(), ["WrongUsages"]);
}

#[test]
fn services_add_names_and_only_the_pods_own_ones() {
    let service = |selector: Value| json!({"metadata": {"name": "db"}, "spec": {"selector": selector, "clusterIPs": ["10.96.0.9"]}});
    let ask = || World::good().asking("system:etcd-peers", "system:etcd-peer:etcd-0", &[], &["db.prod.svc"]);
    assert_eq!(ask().reasons(), ["NameNotAllowed"]);
    let selecting = World { services: vec![service(json!({"app": "etcd"}))], ..ask() };
    assert!(matches!(selecting.verdict(), Verdict::Approve(_)), "{:?}", selecting.verdict());
    let another = World { services: vec![service(json!({"app": "web"}))], ..ask() };
    assert_eq!(another.reasons(), ["NameNotAllowed"]);
}

#[test]
fn a_host_is_what_policy_lists() {
    let policy = "hosts: [{username: 'system:node:cp', groups: ['system:nodes'], cluster: kube-system/etcd, roles: [peer], \
                  commonName: cp, ips: [192.0.2.1]}]";
    let host = |groups: Value| {
        World { pod: None, ..World::good() }
            .asking("system:etcd-peers", "system:etcd-peer:cp", &["192.0.2.1"], &[])
            .with("/spec/username", json!("system:node:cp"))
            .with("/spec/groups", groups)
            .with("/spec/signerName", json!("peer.etcd-tls.dev/kube-system.etcd"))
            .policy(policy)
    };
    assert!(
        matches!(host(json!(["system:nodes"])).verdict(), Verdict::Approve(_)),
        "{:?}",
        host(json!(["system:nodes"])).verdict()
    );
    assert_eq!(host(json!([])).reasons(), ["BadRequester"]);
    assert_eq!(host(json!(["system:nodes"])).policy("").reasons(), ["BadRequester"]);
}

#[test]
fn only_what_is_ours_and_open_concerns_us() {
    let concerns = |world: World| {
        let csr: Csr = serde_json::from_value(world.csr).unwrap();
        is_open(&csr) && is_ours(&csr.spec.signer_name)
    };
    let signer = |name: &str| World::good().with("/spec/signerName", json!(name));
    assert!(concerns(World::good()));
    for ours in ["metrics.etcd-tls.dev/a.b", "client.etcd-tls.dev/", "etcd-tls.dev/a.b"] {
        assert!(concerns(signer(ours)), "{ours}");
    }
    for foreign in [
        "kubernetes.io/kubelet-serving",
        "etcd-tls.example.com/pod2",
        "peer.xetcd-tls.dev/a.b",
        "x.etcd-tls.dev/a.b",
        "peer.x.etcd-tls.dev/a.b",
        "",
    ] {
        assert!(!concerns(signer(foreign)), "{foreign}");
    }
    for type_ in ["Approved", "Denied", "Failed"] {
        let decided = World::good().with("/status", json!({"conditions": [{"type": type_, "status": "True"}]}));
        assert!(!concerns(decided), "{type_}");
    }
    assert!(!concerns(World::good().with("/status", json!({"certificate": "AA=="}))));
    assert!(concerns(World::good().with("/status", json!({"conditions": [{"type": "Seen", "status": "True"}]}))));
}

#[test]
fn a_patch_is_bound_to_what_was_looked_at() {
    let world =
        World::good().with("/status", json!({"conditions": [{"type": "Seen", "status": "True", "reason": "x"}]}));
    let patch = patch(&serde_json::from_value(world.csr).unwrap(), "Denied", DENIED, "no", SystemTime::UNIX_EPOCH);
    assert_eq!(patch["metadata"], json!({"uid": "c", "resourceVersion": "1"}));
    let types: Vec<_> = patch["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str()).collect();
    assert_eq!(types, [Some("Seen"), Some("Denied")], "conditions of others stay");
}

#[test]
fn messages_are_bounded_and_hold_no_request() {
    let long = Denial { reason: "NameNotAllowed", message: "ä".repeat(100_000) };
    let text = message(&vec![long; 100]);
    assert!(text.starts_with("NameNotAllowed: ä") && text.ends_with("; and more"));
    assert!(text.len() > 7 * 1024, "{}", text.len());
    let two =
        message(&[Denial { reason: "A", message: "a".to_owned() }, Denial { reason: "B", message: "b".to_owned() }]);
    assert_eq!(two, "A: a; B: b");
}

/// The admission policies refuse a longer message, and then nobody would learn the reasons.
#[test]
fn no_message_is_longer_than_the_policies_take() {
    let manifests = [
        include_str!("../../../../manifests/guards/requests.yaml"),
        include_str!("../../../../manifests/components/approve-others/policies.yaml"),
    ];
    for manifest in manifests {
        let bound = |field: &str| -> Vec<usize> {
            let before = format!("{field}) <= ");
            let rest = manifest.split(&before).skip(1);
            rest.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap())
                .collect()
        };
        let ([messages], [reasons]) = (&bound(".message")[..], &bound(".reason")[..]) else { panic!("{manifest}") };
        for (number, of_each) in (1..=20).flat_map(|number| (0..=1200).map(move |of_each| (number, of_each))) {
            let denial = Denial { reason: "BadAnnotation", message: "x".repeat(of_each) };
            let text = message(&vec![denial; number]);
            assert!(text.len() <= *messages, "{number} of {of_each}: {}", text.len());
            let all = text.matches("BadAnnotation").count() == number;
            assert_eq!(text.ends_with("; and more"), !all, "{number} of {of_each}");
            // A reason is left out only where there is no room for it.
            assert!(all || text.len() + 1100 > *messages, "{number} of {of_each}: {}", text.len());
        }
        assert!([APPROVED, DENIED].iter().all(|reason| reason.len() <= *reasons));
    }
}
