//! Requests to the issuers of others: the identity of the pod is the same, and the annotation names the issuer.

use super::*;
use crate::policy::Policy;

const ANOTHER: &str = "csr:example.com/ca";

/// A request to `issuer`, of a pod whose annotation names `annotated`.
fn case(role: Role, annotated: &str, issuer: &str) -> Case {
    let mut case = Case::of(role, &[("etcd-tls.dev/issuer", annotated)]);
    case.issuer = Some(issuer.parse().unwrap());
    case
}

#[test]
fn the_same_names_as_of_our_signer() {
    for issuer in [ANOTHER, "cert-manager:Issuer/company", "cert-manager:ClusterIssuer/company"] {
        for role in Role::ALL {
            let (ours, theirs) = (Case::of(role, &[]).approved(), case(role, issuer, issuer).approved());
            assert_eq!((ours.sans, ours.common_name), (theirs.sans, theirs.common_name), "{role} of {issuer}");
        }
    }
}

#[test]
fn the_pods_annotation_names_the_issuer() {
    let with = |annotated: &str, asked: &str| case(Role::Server, annotated, asked).denied();
    for (annotated, asked) in [
        ("csr", ANOTHER),
        ("pod-certificate", ANOTHER),
        ("csr:example.com/other", ANOTHER),
        (ANOTHER, "cert-manager:Issuer/ca"),
        ("cert-manager:Issuer/company", "cert-manager:ClusterIssuer/company"),
        ("cert-manager:Issuer/company", "cert-manager:Issuer/company.example.com"),
    ] {
        assert_eq!(with(annotated, asked), ["WrongSigner"], "{asked} of a pod of {annotated}");
    }
    // And ours is not asked by a pod of another's.
    assert_eq!(Case::of(Role::Server, &[("etcd-tls.dev/issuer", ANOTHER)]).denied(), ["WrongSigner"]);
}

#[test]
fn nobody_asks_for_more_than_it_is() {
    let denied = |change: &dyn Fn(&mut Case)| {
        let mut case = case(Role::Server, ANOTHER, ANOTHER);
        change(&mut case);
        case.denied()
    };
    assert_eq!(denied(&|case| case.request.common_name = "system:etcd-server:etcd-1".to_owned()), ["WrongSubject"]);
    assert_eq!(denied(&|case| case.request.organization = "system:masters".to_owned()), ["WrongSubject"]);
    assert_eq!(denied(&|case| case.request.sans.ips.extend([ip("10.0.0.8")])), ["NameNotAllowed"]);
    assert_eq!(denied(&|case| case.request.sans.dns.extend(["etcd.example.com".to_owned()])), ["NameNotAllowed"]);
    assert_eq!(denied(&|case| case.usages.push("code signing".to_owned())), ["WrongUsages"]);
    assert_eq!(denied(&|case| case.expiration = Some(Duration::from_secs(365 * 86_400))), ["WrongLifetime"]);
    assert_eq!(denied(&|case| case.expiration = None), ["WrongLifetime"], "the issuer would choose it");
    assert_eq!(denied(&|case| case.name = Some(names::csr_name(UID, Role::Server, "x"))), ["WrongName"]);
    assert_eq!(denied(&|case| case.pod = None), ["PodGone"]);
    assert_eq!(denied(&|case| case.pod.as_mut().unwrap().uid = "another".to_owned()), ["WrongPod"]);
    assert_eq!(denied(&|case| case.pod.as_mut().unwrap().namespace_opted_in = false), ["NotOptedIn"]);
    assert_eq!(denied(&|case| case.requester.username = "system:node:cp-1".to_owned()), ["BadRequester"]);
    let listed = "hosts:\n- {username: \"system:node:cp-1\", cluster: prod/etcd, roles: [server], ips: [10.0.0.7], commonName: cp-1}\n";
    let host = denied(&|case| {
        case.policy = Policy::parse(listed).unwrap();
        case.requester.username = "system:node:cp-1".to_owned();
    });
    assert_eq!(host, ["BadRequester"], "a host has no annotation that names an issuer");
    let root = "etcd-tls.dev/user";
    let mut client = Case::of(Role::Client, &[("etcd-tls.dev/issuer", ANOTHER), (root, "root")]);
    client.issuer = Some(ANOTHER.parse().unwrap());
    assert_eq!(client.denied(), ["WrongUser"]);
}
