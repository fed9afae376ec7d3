//! Addresses that two have.

use super::*;

fn claimed(ip_: &str, by: Claimant) -> Claim {
    Claim { ip: ip(ip_), by }
}

fn by_pod(name: &str) -> Claimant {
    Claimant::Pod { namespace: "web".to_owned(), name: name.to_owned(), uid: "u".to_owned(), node: "node-b".to_owned() }
}

fn by_service(namespace: &str, name: &str) -> Claimant {
    Claimant::Service { namespace: namespace.to_owned(), name: name.to_owned() }
}

#[test]
fn an_address_that_another_has_too_is_not_yet() {
    let verdict = |role, claims: &Claims| {
        let case = Case::of(role, &[]);
        unless_contested(case.judge(), &case.pod.clone().unwrap(), &case.services, claims)
    };
    let claims =
        |claim: Claim, held: &[&str]| Claims { claims: vec![claim], held: held.iter().map(|s| ip(s)).collect() };
    let node = || Claimant::Node("node-b".to_owned());
    let host = || Claimant::Host("cp-1".to_owned());
    let outside = || Claimant::External { namespace: "prod".to_owned(), name: "etcd-client".to_owned() };
    for role in [Role::Peer, Role::Server] {
        for (what, claim, held, waits) in [
            ("another node's pod", claimed("10.0.0.7", by_pod("x")), &[][..], true),
            ("the second address", claimed("fd00::7", by_pod("x")), &[], true),
            ("another node", claimed("10.0.0.7", node()), &[], true),
            ("a host", claimed("10.0.0.7", host()), &[], true),
            ("it holds a certificate, a host", claimed("10.0.0.7", host()), &["10.0.0.7"], false),
            ("an external address", claimed("10.0.0.7", outside()), &[], true),
            ("it holds a certificate, an external address", claimed("10.0.0.7", outside()), &["10.0.0.7"], false),
            ("a Service", claimed("10.0.0.7", by_service("web", "x")), &[], true),
            ("a Service of that name elsewhere", claimed("10.0.0.7", by_service("web", "etcd-client")), &[], true),
            ("it holds a certificate", claimed("10.0.0.7", by_pod("x")), &["10.0.0.7"], false),
            ("it holds a certificate, a node", claimed("10.0.0.7", node()), &["10.0.0.7"], false),
            ("it holds one for the other address", claimed("10.0.0.7", by_pod("x")), &["fd00::7"], true),
            ("a Service's is never a pod's", claimed("10.0.0.7", by_service("web", "x")), &["10.0.0.7"], true),
            ("an address that is not the pod's", claimed("10.0.0.9", by_pod("x")), &[], false),
            ("a selecting Service's own", claimed("10.96.0.9", by_service("prod", "etcd-client")), &[], false),
        ] {
            let verdict = verdict(role, &claims(claim, held));
            assert_eq!(matches!(verdict, Verdict::NotYet(_)), waits, "{role} {what}: {verdict:?}");
            assert!(!matches!(verdict, Verdict::Deny(_)), "{what}");
        }
    }
    // A certificate without addresses needs no uncontested one.
    let claims = claims(claimed("10.0.0.7", by_pod("x")), &[]);
    for role in [Role::Client, Role::Metrics] {
        assert!(matches!(verdict(role, &claims), Verdict::Approve(_)), "{role}");
    }
    // Other objections are returned as well, and the reason names the other holder.
    let case = Case::with(|case| case.usages = vec!["any".to_owned()]);
    let verdict_ = unless_contested(case.judge(), &case.pod.clone().unwrap(), &case.services, &claims);
    assert!(matches!(verdict_, Verdict::Deny(_)));
    let Verdict::NotYet(reason) = verdict(Role::Server, &claims) else { panic!("not yet") };
    assert!(reason.contains("10.0.0.7 is reported by pod web/x on node node-b too"), "{reason}");
}
