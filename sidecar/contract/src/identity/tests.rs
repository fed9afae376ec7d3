//! The table of verdicts: one good request, and every single deviation from it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, net::IpAddr};

use super::*;
use crate::{key::KeyAlgorithm, role::Domain};

const UID: &str = "8b1c0f6e-5d0b-4f1e-9d7a-0c4f2f6f1a11";
const NODE: &str = "node-a";

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn sans(dns: &[&str], ips: &[&str]) -> Sans {
    Sans { dns: dns.iter().map(|name| (*name).to_owned()).collect(), ips: ips.iter().map(|s| ip(s)).collect() }
}

/// A request and everything it is judged by. [`Case::good`] is approved; a test changes one thing.
#[derive(Clone)]
struct Case {
    name: Option<String>,
    role: Role,
    signer: SignerName,
    requester: Requester,
    usages: Vec<String>,
    expiration: Option<Duration>,
    request: Request,
    pod: Option<PodFacts>,
    services: Vec<ServiceFacts>,
    policy: Policy,
}

impl Case {
    fn good() -> Self {
        Self::of(Role::Server, &[])
    }

    /// A pod of a labelled namespace, and what its sidecar asks for.
    fn of(role: Role, annotations: &[(&str, &str)]) -> Self {
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

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self::good();
        change(&mut case);
        case
    }

    fn with_pod(change: impl FnOnce(&mut PodFacts)) -> Self {
        Self::with(|case| change(case.pod.as_mut().unwrap()))
    }

    fn judge(&self) -> Verdict {
        let name = self.name.clone().unwrap_or_else(|| names::csr_name(UID, self.role, &self.request.key_digest()));
        let asked = Asked {
            name: &name,
            signer: &self.signer,
            requester: &self.requester,
            usages: &self.usages,
            expiration: self.expiration,
            request: &self.request,
        };
        judge(&asked, self.pod.as_ref(), &self.services, &self.policy)
    }

    #[track_caller]
    fn approved(&self) -> Entitlement {
        match self.judge() {
            Verdict::Approve(entitlement) => entitlement,
            other => panic!("{other:?}"),
        }
    }

    /// The reasons of a denial, each once, in order.
    #[track_caller]
    fn denied(&self) -> Vec<&'static str> {
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

#[test]
fn each_role_is_approved_with_the_whole_grammar() {
    let names = [
        "etcd-0.etcd.prod",
        "etcd-0.etcd.prod.svc",
        "etcd-0.etcd.prod.svc.cluster.local",
        "etcd-client.prod",
        "etcd-client.prod.svc",
        "etcd-client.prod.svc.cluster.local",
        "etcd.prod",
        "etcd.prod.svc",
        "etcd.prod.svc.cluster.local",
    ];
    let server = [&names[..], &["localhost"]].concat();
    for (role, common_name, expected) in [
        (Role::Peer, "system:etcd-peer:etcd-0", sans(&names, &["10.0.0.7", "fd00::7"])),
        (
            Role::Server,
            "system:etcd-server:etcd-0",
            sans(&server, &["10.0.0.7", "fd00::7", "127.0.0.1", "::1", "10.96.0.9", "fd96::9"]),
        ),
        (Role::Client, "etcd.prod", Sans::default()),
        (Role::Metrics, "system:etcd-metrics:etcd-0", Sans::default()),
    ] {
        let case = Case::of(role, &[]);
        assert_eq!(
            case.approved(),
            Entitlement {
                role,
                signer: case.signer.clone(),
                common_name: common_name.to_owned(),
                sans: expected,
                lifetime: Duration::from_secs(86_400),
            }
        );
    }
}

#[test]
fn a_request_may_ask_for_less_or_for_all() {
    let all = Case::good().approved().sans;
    assert!(Case::good().request.sans.is_subset(&all));
    for sans in [Sans::default(), all] {
        let case = Case::with(|case| case.request.sans = sans);
        assert_eq!(case.approved(), Case::good().approved());
    }
}

#[test]
fn whoever_asks_with_anything_but_a_pods_token_is_denied() {
    type Change = fn(&mut Requester);
    const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
    let cases: &[(&str, Change)] = &[
        ("a person", |r| r.username = "alice".to_owned()),
        ("nobody", |r| r.username.clear()),
        ("a node", |r| r.username = "system:node:node-a".to_owned()),
        ("no service account's name", |r| r.username = "system:serviceaccount:prod".to_owned()),
        ("an empty service account", |r| r.username = "system:serviceaccount:prod:".to_owned()),
        ("an empty namespace", |r| r.username = "system:serviceaccount::etcd".to_owned()),
        ("a colon more", |r| r.username = "system:serviceaccount:prod:etcd:x".to_owned()),
        ("another case", |r| r.username = "System:serviceaccount:prod:etcd".to_owned()),
        ("a space", |r| r.username.push(' ')),
        ("no uid", |r| r.uid.clear()),
        ("no groups", |r| r.groups.clear()),
        ("not all service accounts", |r| drop(r.groups.remove(0))),
        ("not the namespace's service accounts", |r| drop(r.groups.remove(1))),
        ("not authenticated", |r| drop(r.groups.remove(2))),
        ("another namespace's service accounts", |r| r.groups[1] = "system:serviceaccounts:other".to_owned()),
        ("no extra", |r| r.extra.clear()),
        ("an unbound token", |r| r.extra.retain(|key, _| key.ends_with("credential-id"))),
        ("a node-bound token", |r| r.extra.retain(|key, _| !key.contains("/pod-"))),
        ("no pod name", |r| drop(r.extra.remove("authentication.kubernetes.io/pod-name"))),
        ("no pod uid", |r| drop(r.extra.remove(POD_UID))),
        ("no node name", |r| drop(r.extra.remove("authentication.kubernetes.io/node-name"))),
        ("no credential", |r| drop(r.extra.remove("authentication.kubernetes.io/credential-id"))),
        ("a credential of another kind", |r| {
            r.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec!["X509SHA256=1".to_owned()]);
        }),
        ("an empty credential", |r| {
            r.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec!["JTI=".to_owned()]);
        }),
        ("two pod uids", |r| r.extra.get_mut(POD_UID).unwrap().push("x".to_owned())),
        ("the same pod uid twice", |r| r.extra.get_mut(POD_UID).unwrap().push(UID.to_owned())),
        ("an empty list of pod uids", |r| r.extra.get_mut(POD_UID).unwrap().clear()),
        ("an empty pod uid", |r| r.extra.get_mut(POD_UID).unwrap()[0].clear()),
        ("a pod uid with a slash", |r| r.extra.get_mut(POD_UID).unwrap()[0] = "a/../b".to_owned()),
        ("a pod's name with a slash", |r| {
            r.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec!["../pods/x".to_owned()]);
        }),
        ("another spelling instead", |r| {
            let value = r.extra.remove(POD_UID).unwrap();
            r.extra.insert("Authentication.kubernetes.io/Pod-Uid".to_owned(), value);
        }),
        ("another spelling too", |r| {
            r.extra.insert("AUTHENTICATION.KUBERNETES.IO/POD-UID".to_owned(), vec!["other".to_owned()]);
        }),
    ];
    for (what, change) in cases {
        let case = Case::with(|case| change(&mut case.requester));
        assert_eq!(case.denied(), ["BadRequester"], "{what}");
    }
    let everything = bound_pod(&Requester::default()).unwrap_err();
    assert_eq!(everything.len(), 9, "every reason at once: {everything:?}");
}

#[test]
fn the_live_pod_must_be_the_tokens_and_alive() {
    assert_eq!(Case::with(|case| case.pod = None).denied(), ["PodGone"]);
    type Change = fn(&mut PodFacts);
    let cases: &[(&str, Change, &[&str])] = &[
        ("made again under its name", |pod| pod.uid = "other".to_owned(), &["WrongPod"]),
        ("another service account", |pod| pod.service_account = "default".to_owned(), &["WrongPod"]),
        ("another node", |pod| pod.node = "node-b".to_owned(), &["WrongPod"]),
        ("not scheduled", |pod| pod.node.clear(), &["WrongPod"]),
        ("finished", |pod| pod.finished = true, &["PodFinished"]),
        ("being deleted", |pod| pod.deleting = true, &["PodDeleting"]),
        ("both", |pod| (pod.finished, pod.deleting) = (true, true), &["PodFinished", "PodDeleting"]),
        ("its namespace not opted in", |pod| pod.namespace_opted_in = false, &["NotOptedIn"]),
        ("opted out", |pod| pod.labels.extend(map(&[("etcd-tls", "disabled")])), &["NotOptedIn"]),
        (
            "no etcd and no roles",
            |pod| {
                pod.containers = vec!["web".to_owned()];
                pod.annotations.clear();
            },
            &["NotOptedIn"],
        ),
        (
            "opted in by a near miss",
            |pod| {
                pod.namespace_opted_in = false;
                pod.labels.extend(map(&[("etcd-tls", "Dynamic")]));
            },
            &["NotOptedIn"],
        ),
    ];
    for (what, change, reasons) in cases {
        assert_eq!(Case::with_pod(change).denied()[..reasons.len()], **reasons, "{what}");
    }
    // Its own label is enough.
    Case::with_pod(|pod| {
        pod.namespace_opted_in = false;
        pod.labels.extend(map(&[("etcd-tls", "dynamic")]));
    })
    .approved();
    let elsewhere = Case::with_pod(|pod| pod.namespace = "other".to_owned());
    assert!(elsewhere.denied().contains(&"WrongPod"));
}

#[test]
fn a_pod_without_addresses_is_not_yet() {
    for addresses in [&[][..], &["127.0.0.1"], &["::1", "169.254.1.1", "fe80::1", "0.0.0.0", "224.0.0.1"]] {
        let case = Case::with_pod(|pod| pod.ips = addresses.iter().map(|s| ip(s)).collect());
        assert!(matches!(case.judge(), Verdict::NotYet(_)), "{addresses:?}");
        // What no address will change is said at once.
        let case = Case { usages: vec!["any".to_owned()], ..case };
        assert_eq!(case.denied(), ["WrongUsages"]);
    }
    for role in [Role::Client, Role::Metrics] {
        let mut case = Case::of(role, &[]);
        case.pod.as_mut().unwrap().ips.clear();
        case.approved();
    }
}

#[test]
fn the_name_is_the_pods_the_roles_and_the_keys() {
    let digest = Case::good().request.key_digest();
    let other = crate::csr::key_digest(b"another key");
    for name in [
        String::new(),
        "x".to_owned(),
        format!("etcd-tls-{UID}-server-{other}"),
        format!("etcd-tls-{UID}-server"),
        format!("etcd-tls-{UID}-server-"),
        format!("etcd-tls-{UID}-{digest}"),
        format!("etcd-tls-{UID}--{digest}"),
        format!("etcd-tls-{UID}-root-{digest}"),
        format!("etcd-tls-{UID}-Server-{digest}"),
        format!("etcd-tls-other-server-{digest}"),
        format!("etcd-tls--server-{digest}"),
        format!("etcd-tls-{UID}x-server-{digest}"),
        format!("x-etcd-tls-{UID}-server-{digest}"),
        format!("etcd-tls-{UID}-server-{digest}-x"),
        format!("etcd-tls-{UID}-server-{digest}:x"),
        format!("etcd-tls-{UID} -server-{digest}"),
        format!("etcd-tls-{UID}%2e-server-{digest}"),
        format!("etcd-tls-{}-server-{digest}", "a".repeat(300)),
        format!("etcd-tls-{UID}-server-{}", digest.to_uppercase()),
    ] {
        assert_eq!(Case::with(|case| case.name = Some(name.clone())).denied(), ["WrongName"], "{name}");
    }
    // Another role's name contradicts the subject, and the signer where it is another domain's.
    for (role, expected) in [
        (Role::Peer, &["WrongSubject", "WrongSigner"][..]),
        (Role::Client, &["WrongSubject", "WrongUsages", "NameNotAllowed"]),
        (Role::Metrics, &["WrongSubject", "WrongUsages", "WrongSigner", "NameNotAllowed"]),
    ] {
        let found = Case::with(|case| case.role = role).denied();
        assert!(expected.iter().all(|reason| found.contains(reason)), "{role}: {found:?}");
    }
}

#[test]
fn the_signer_is_the_clusters_of_the_pod() {
    let signer = |s: &str| s.parse::<SignerName>().unwrap();
    for other in [
        "peer.etcd-tls.dev/prod.etcd",
        "metrics.etcd-tls.dev/prod.etcd",
        "client.etcd-tls.dev/other.etcd",
        "client.etcd-tls.dev/prod.other",
        "client.etcd-tls.dev/kube-system.etcd",
    ] {
        assert_eq!(Case::with(|case| case.signer = signer(other)).denied(), ["WrongSigner"], "{other}");
    }
    let foreign = [("etcd-tls.dev/issuer", "csr:example.com/ca")];
    assert_eq!(Case::of(Role::Server, &foreign).denied(), ["WrongSigner"], "the pod's issuer is another");
    let mut cluster = Case::of(Role::Server, &[("etcd-tls.dev/cluster", "events")]);
    assert_eq!(cluster.denied(), ["WrongSigner"]);
    cluster.signer.cluster = "events".to_owned();
    cluster.approved();
}

#[test]
fn a_cluster_elsewhere_only_where_policy_says_so() {
    let elsewhere =
        [("etcd-tls.dev/issuer", "csr:client.etcd-tls.dev/core.etcd"), ("etcd-tls.dev/roles", "client,server")];
    let policy = |yaml: &str| Policy::parse(yaml).unwrap();
    let case = |role, policy| Case {
        signer: SignerName { domain: Domain::Client, namespace: "core".to_owned(), cluster: "etcd".to_owned() },
        policy,
        ..Case::of(role, &elsewhere)
    };
    assert_eq!(case(Role::Client, Policy::default()).denied(), ["WrongNamespace"]);
    let allowed = || policy("crossNamespace: [{from: prod, to: core/etcd, roles: [client]}]");
    let entitlement = case(Role::Client, allowed()).approved();
    assert_eq!(entitlement.common_name, "etcd.prod", "the user says where it is from");
    assert_eq!(entitlement.signer.to_string(), "client.etcd-tls.dev/core.etcd");
    assert_eq!(case(Role::Server, allowed()).denied(), ["WrongNamespace"], "another role");
    for other in ["from: web, to: core/etcd", "from: prod, to: core/events", "from: prod, to: kube-system/etcd"] {
        let other = policy(&format!("crossNamespace: [{{{other}, roles: [client]}}]"));
        assert_eq!(case(Role::Client, other).denied(), ["WrongNamespace"]);
    }
}

#[test]
fn the_subject_is_the_grammars() {
    for (organization, common_name) in [
        ("system:masters", "system:etcd-server:etcd-0"),
        ("system:etcd-peers", "system:etcd-server:etcd-0"),
        ("System:etcd-servers", "system:etcd-server:etcd-0"),
        ("system:etcd-servers ", "system:etcd-server:etcd-0"),
        ("system:etcd-servers", "system:etcd-server:etcd-1"),
        ("system:etcd-servers", "system:etcd-peer:etcd-0"),
        ("system:etcd-servers", "system:etcd-server:etcd-0,O=system:masters"),
        ("system:etcd-servers", "root"),
        ("system:etcd-servers", "etcd.prod"),
    ] {
        let case = Case::with(|case| {
            case.request.organization = organization.to_owned();
            case.request.common_name = common_name.to_owned();
        });
        assert_eq!(case.denied(), ["WrongSubject"], "{organization} {common_name}");
    }
}

#[test]
fn another_user_only_where_policy_says_so() {
    let case = |user: &str, policy: &str| Case {
        policy: Policy::parse(policy).unwrap(),
        ..Case::of(Role::Client, &[("etcd-tls.dev/user", user)])
    };
    let rule = "users: [{namespace: prod, serviceAccounts: [etcd], users: [backup]}]";
    assert_eq!(case("backup", rule).approved().common_name, "backup");
    assert_eq!(case("etcd.prod", "").approved().common_name, "etcd.prod", "its own needs no rule");
    assert_eq!(
        case("root", "users: [{namespace: prod, serviceAccounts: ['*'], users: [root]}]").approved().common_name,
        "root"
    );
    for (user, policy) in [
        ("backup", ""),
        ("root", ""),
        ("root", rule),
        ("backup", "users: [{namespace: web, serviceAccounts: [etcd], users: [backup]}]"),
        ("backup", "users: [{namespace: prod, serviceAccounts: [other], users: [backup]}]"),
        ("other.prod", ""),
        ("etcd.web", ""),
    ] {
        assert_eq!(case(user, policy).denied(), ["WrongUser"], "{user} {policy}");
    }
    // The annotation names a user, the request another.
    let mut other = Case::of(Role::Client, &[]);
    other.request.common_name = "root".to_owned();
    assert_eq!(other.denied(), ["WrongSubject"]);
}

#[test]
fn names_and_addresses_of_others_are_denied() {
    for name in [
        "*.prod.svc",
        "*.etcd.prod.svc",
        "*.etcd.prod.svc.cluster.local",
        "etcd-0",
        "etcd-0.etcd",
        "etcd",
        "etcd.svc",
        "etcd-1.etcd.prod.svc",
        "etcd-0.etcd.other.svc",
        "etcd.other",
        "etcd.other.svc",
        "other.prod.svc",
        "narrow.prod.svc",
        "empty.prod.svc",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "etcd.prod.svc.example.com",
        "localhost.localdomain",
        "xn--tcd-9la.prod.svc",
        "example.com",
    ] {
        let case = Case::with(|case| case.request.sans.dns.extend([name.to_owned()]));
        assert_eq!(case.denied(), ["NameNotAllowed"], "{name}");
    }
    for address in [
        "10.0.0.8",
        "fd00::8",
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
        "169.254.169.254",
        "127.0.0.2",
        "192.168.0.10",
        "8.8.8.8",
        "fe80::7",
    ] {
        let case = Case::with(|case| case.request.sans.ips.extend([ip(address)]));
        assert_eq!(case.denied(), ["NameNotAllowed"], "{address}");
    }
    // What the server may, a peer may not, and a client may nothing.
    for (role, name, address) in [
        (Role::Peer, "localhost", "127.0.0.1"),
        (Role::Peer, "localhost", "10.96.0.9"),
        (Role::Client, "etcd.prod.svc", "10.0.0.7"),
        (Role::Metrics, "etcd.prod.svc", "10.0.0.7"),
    ] {
        let mut case = Case::of(role, &[]);
        case.request.sans.dns.insert(name.to_owned());
        assert_eq!(case.denied(), ["NameNotAllowed"]);
        let mut case = Case::of(role, &[]);
        case.request.sans.ips.insert(ip(address));
        assert_eq!(case.denied(), ["NameNotAllowed"]);
    }
}

#[test]
fn extra_sans_only_where_policy_says_so() {
    let extra = [("etcd-tls.dev/extra-sans", "etcd.example.com,*.etcd.example.com,192.0.2.7,kubernetes.default.svc")];
    let full = "extraSans: [{namespaces: [prod], dnsNames: [etcd.example.com, '*.etcd.example.com', kubernetes.default.svc], ipBlocks: [192.0.2.0/24]}]";
    let case = |role, policy: &str| Case { policy: Policy::parse(policy).unwrap(), ..Case::of(role, &extra) };
    for role in [Role::Peer, Role::Server, Role::Client] {
        let sans = case(role, full).approved().sans;
        assert!(sans.dns.contains("*.etcd.example.com") && sans.ips.contains(&ip("192.0.2.7")), "{role}");
    }
    assert!(case(Role::Metrics, full).approved().sans.is_empty());
    for policy in [
        "",
        &full.replace("[prod]", "[web]"),
        &full.replace("[prod]", "[prod], clusters: [events]"),
        &full.replace("192.0.2.0/24", "192.0.3.0/24"),
        &full.replace("'*.etcd.example.com'", "x.etcd.example.com"),
        &full.replace(", kubernetes.default.svc]", "]"),
    ] {
        assert_eq!(case(Role::Server, policy).denied(), ["NameNotAllowed"], "{policy}");
    }
    // Policy allows, the pod does not say: what is asked for beside the annotation is not honoured.
    let mut unsaid = Case { policy: Policy::parse(full).unwrap(), ..Case::good() };
    unsaid.request.sans.dns.insert("etcd.example.com".to_owned());
    assert_eq!(unsaid.denied(), ["NameNotAllowed"]);
}

#[test]
fn usages_are_the_roles() {
    for usages in [
        &[][..],
        &["digital signature", "server auth"],
        &["digital signature", "client auth"],
        &["server auth", "client auth"],
        &["digital signature", "server auth", "client auth", "cert sign"],
        &["digital signature", "server auth", "client auth", "code signing"],
        &["digital signature", "server auth", "client auth", "any"],
        &["digital signature", "server auth", "client auth", "key encipherment"],
        &["digital signature", "server auth", "client auth", "client auth"],
        &["Digital Signature", "server auth", "client auth"],
        &["any"],
    ] {
        let case = Case::with(|case| case.usages = usages.iter().map(|usage| (*usage).to_owned()).collect());
        assert_eq!(case.denied(), ["WrongUsages"], "{usages:?}");
    }
    Case::with(|case| case.usages.reverse()).approved();
}

#[test]
fn keys_and_lives_are_policys() {
    let with_key = |key, policy: &str| {
        Case::with(|case| {
            case.request.key = key;
            case.policy = Policy::parse(policy).unwrap();
        })
    };
    for key in KeyAlgorithm::ALL {
        let case = with_key(key, "");
        if key == KeyAlgorithm::Rsa2048 { assert_eq!(case.denied(), ["KeyNotAllowed"]) } else { drop(case.approved()) }
    }
    with_key(KeyAlgorithm::Rsa2048, "keys: [rsa-2048]").approved();
    assert_eq!(with_key(KeyAlgorithm::EcdsaP256, "keys: [rsa-2048]").denied(), ["KeyNotAllowed"]);

    let with_life = |seconds: Option<u64>| Case::with(|case| case.expiration = seconds.map(Duration::from_secs));
    for seconds in [0, 1, 599, 168 * 3600 + 1, 2_147_483_647] {
        assert_eq!(with_life(Some(seconds)).denied(), ["WrongLifetime"], "{seconds}");
    }
    for seconds in [600, 3600, 168 * 3600] {
        assert_eq!(with_life(Some(seconds)).approved().lifetime.as_secs(), seconds);
    }
    assert_eq!(with_life(None).approved().lifetime.as_secs(), 86_400, "the pod's own");
    let longer = Case { expiration: None, ..Case::of(Role::Server, &[("etcd-tls.dev/duration", "400h")]) };
    assert_eq!(longer.approved().lifetime.as_secs(), 168 * 3600, "cut to policy's");
}

#[test]
fn a_role_or_annotation_that_the_pod_has_not_is_denied() {
    let mut case = Case::of(Role::Client, &[("etcd-tls.dev/roles", "peer,server")]);
    assert_eq!(case.denied(), ["WrongRole"]);
    case.pod.as_mut().unwrap().annotations = map(&[("etcd-tls.dev/roles", "root"), ("etcd-tls.dev/colour", "red")]);
    assert_eq!(case.denied(), ["BadAnnotation"]);
    let Verdict::Deny(denials) = case.judge() else { panic!() };
    assert_eq!(denials.len(), 2, "every problem: {denials:?}");
}

#[test]
fn every_reason_is_given_at_once() {
    let case = Case::with(|case| {
        case.request.organization = "system:masters".to_owned();
        case.request.common_name = "root".to_owned();
        case.request.key = KeyAlgorithm::Rsa2048;
        case.request.sans.dns.insert("kubernetes.default.svc".to_owned());
        case.usages = vec!["any".to_owned()];
        case.expiration = Some(Duration::from_secs(1));
        case.signer.namespace = "other".to_owned();
        case.pod.as_mut().unwrap().deleting = true;
    });
    assert_eq!(
        case.denied(),
        [
            "PodDeleting",
            "WrongSubject",
            "WrongUsages",
            "KeyNotAllowed",
            "WrongLifetime",
            "WrongSigner",
            "NameNotAllowed"
        ]
    );
}

#[test]
fn no_unqualified_name_is_ever_issued() {
    let wide = |namespace: &str, hostname: &str, subdomain: &str, service: &str| {
        let mut case = Case::good();
        let pod = case.pod.as_mut().unwrap();
        pod.namespace = namespace.to_owned();
        pod.hostname = hostname.to_owned();
        pod.subdomain = Some(subdomain.to_owned());
        case.services[0].name = service.to_owned();
        let settings = Settings::parse(&pod.annotations).unwrap();
        entitlement(Role::Server, pod, &case.services, &settings, &case.policy).unwrap().sans.dns
    };
    // A namespace called svc cannot spell the API server's name.
    let dns = wide("svc", "kubernetes", "default", "x");
    assert!(!dns.contains("kubernetes.default.svc") && dns.contains("kubernetes.default.svc.svc"), "{dns:?}");
    let dns = wide("prod", "kubernetes", "default", "kubernetes");
    assert!(!dns.iter().any(|name| name.starts_with("kubernetes.default") && !name.contains(".prod")), "{dns:?}");
    // What is no name is not made one.
    for (hostname, subdomain) in [
        ("a.b", "etcd"),
        ("", "etcd"),
        ("etcd-0", ""),
        ("etcd-0", "a.b"),
        ("*", "etcd"),
        ("Etcd", "etcd"),
        (&*"a".repeat(64), "etcd"),
    ] {
        let dns = wide("prod", hostname, subdomain, "s");
        assert!(
            dns.iter().all(|name| name == "localhost" || name.starts_with("s.") || name.starts_with("etcd-client.")),
            "{dns:?}"
        );
    }
}

#[test]
fn what_is_requested_is_always_within_what_is_entitled() {
    for role in Role::ALL {
        for namespace in ["prod", "svc", "default"] {
            for subdomain in [None, Some("etcd"), Some("kubernetes")] {
                for addresses in [&["10.0.0.7"][..], &["10.0.0.7", "127.0.0.1", "169.254.0.1", "fd00::7"]] {
                    let mut case = Case::of(role, &[]);
                    let pod = case.pod.as_mut().unwrap();
                    pod.namespace = namespace.to_owned();
                    pod.subdomain = subdomain.map(str::to_owned);
                    pod.ips = addresses.iter().map(|s| ip(s)).collect();
                    let settings = Settings::parse(&pod.annotations).unwrap();
                    let asked = requested_sans(role, pod, &settings);
                    let whole = entitlement(role, pod, &[], &settings, &case.policy).unwrap().sans;
                    assert!(asked.is_subset(&whole), "{role} {:?}", asked.beyond(&whole));
                }
            }
        }
    }
}

#[test]
fn common_names_have_64_characters_at_most_and_stay_apart() {
    assert_eq!(common_name(Role::Peer, "etcd-0"), "system:etcd-peer:etcd-0");
    assert_eq!(common_name(Role::Client, "backup.prod"), "backup.prod");
    for role in Role::ALL {
        let room = 64 - role.common_name_prefix().len();
        let fits = "a".repeat(room);
        assert_eq!(common_name(role, &fits), format!("{}{fits}", role.common_name_prefix()));
        let mut seen = std::collections::BTreeSet::new();
        for length in room + 1..=253 {
            let cut = common_name(role, &"a".repeat(length));
            assert_eq!(cut.len(), 64);
            assert!(cut.starts_with(role.common_name_prefix()));
            assert!(seen.insert(cut), "two names, one CN");
        }
    }
}

mod hosts {
    use super::*;

    const POLICY: &str = "
hosts:
- username: system:node:cp-1
  groups: [system:nodes]
  cluster: kube-system/etcd
  roles: [peer, server]
  dnsNames: [cp-1.example.com]
  ips: [192.0.2.11]
  commonName: cp-1
";

    fn host(role: Role) -> Case {
        let mut case = Case::of(role, &[]);
        case.pod = None;
        case.services.clear();
        case.policy = Policy::parse(POLICY).unwrap();
        case.name = Some(format!("etcd-tls-cp-1-{role}-{}", case.request.key_digest()));
        case.signer.namespace = "kube-system".to_owned();
        case.requester = Requester {
            username: "system:node:cp-1".to_owned(),
            groups: vec!["system:nodes".to_owned(), "system:authenticated".to_owned()],
            ..Requester::default()
        };
        case.request.common_name = common_name(role, "cp-1");
        case.request.sans = sans(&["cp-1.example.com"], &["192.0.2.11"]);
        case
    }

    #[test]
    fn a_listed_host_gets_what_policy_says() {
        for role in [Role::Peer, Role::Server] {
            let entitlement = host(role).approved();
            assert_eq!(entitlement.common_name, common_name(role, "cp-1"));
            assert_eq!(entitlement.sans, sans(&["cp-1.example.com"], &["192.0.2.11"]));
            assert_eq!(entitlement.signer.to_string(), format!("{}.etcd-tls.dev/kube-system.etcd", role.domain()));
        }
    }

    #[test]
    fn and_nothing_else() {
        type Change = fn(&mut Case);
        let cases: &[(&str, Change, &str)] = &[
            ("another host", |case| case.requester.username = "system:node:cp-2".to_owned(), "BadRequester"),
            ("not in the group", |case| case.requester.groups.clear(), "BadRequester"),
            ("no policy", |case| case.policy = Policy::default(), "BadRequester"),
            ("another's name", |case| case.request.sans.dns.extend(["cp-2.example.com".to_owned()]), "NameNotAllowed"),
            ("another's address", |case| case.request.sans.ips.extend([ip("192.0.2.12")]), "NameNotAllowed"),
            ("loopback, which is not listed", |case| case.request.sans.ips.extend([ip("127.0.0.1")]), "NameNotAllowed"),
            ("another CN", |case| case.request.common_name = "system:etcd-server:cp-2".to_owned(), "WrongSubject"),
            ("another cluster", |case| case.signer.cluster = "events".to_owned(), "WrongSigner"),
            ("another namespace", |case| case.signer.namespace = "prod".to_owned(), "WrongSigner"),
            ("no usages", |case| case.usages.clear(), "WrongUsages"),
            ("a weak key", |case| case.request.key = KeyAlgorithm::Rsa2048, "KeyNotAllowed"),
            ("too long a life", |case| case.expiration = Some(Duration::from_secs(999_999)), "WrongLifetime"),
            ("a name of no form", |case| case.name = Some("x".to_owned()), "WrongName"),
            (
                "a name without a middle",
                |case| {
                    case.name = Some(format!("etcd-tls--server-{}", case.request.key_digest()));
                },
                "WrongName",
            ),
        ];
        for (what, change, reason) in cases {
            let mut case = host(Role::Server);
            change(&mut case);
            assert_eq!(case.denied(), [*reason], "{what}");
        }
        assert!(host(Role::Client).denied().contains(&"WrongRole"));
    }

    #[test]
    fn a_pod_is_never_judged_as_a_host() {
        let mut case = Case::good();
        case.policy = Policy::parse(POLICY).unwrap();
        case.policy.hosts[0].username.clone_from(&case.requester.username);
        case.policy.hosts[0].groups.clear();
        case.requester.extra.clear();
        assert_eq!(case.denied(), ["BadRequester"]);
    }
}
