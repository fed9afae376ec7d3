//! The table of verdicts: one good request, and every single deviation from it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, net::IpAddr};

mod another;
mod case;
mod contested;
mod grammar;
mod hosts;
mod pod_certificate;

use self::case::Case;
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
fn every_token_but_a_pods_is_denied() {
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
        // Objections that no address will change are returned at once.
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
    // The server's extra names are denied to a peer; a client gets none.
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
    // Policy allows it, but the pod's annotation does not name it: the request is refused.
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
