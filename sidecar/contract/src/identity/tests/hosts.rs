//! Hosts and static pods, which policy lists.

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

const CLIENT: &str = "
hosts: [{username: monitor, cluster: prod/etcd, roles: [client], ips: [10.0.0.7], commonName: etcd.prod}]
";

#[test]
fn an_address_of_a_host_is_no_pods_of_the_cluster_but_on_that_node() {
    let of = |username: &str, cluster: &str| {
        let host =
            format!("username: {username}, cluster: {cluster}, roles: [peer], ips: [10.0.0.7], commonName: cp-1");
        let policy = Policy::parse(&format!("hosts: [{{{host}}}]")).unwrap();
        let signer = |domain: &str| format!("{domain}.etcd-tls.dev/prod.etcd").parse().unwrap();
        let has = |domain| policy.host_with_ip(&signer(domain), ip("10.0.0.7"), NODE).is_some();
        (has("peer"), has("client"))
    };
    assert_eq!(of("cp-1", "prod/etcd"), (true, false), "it has a peer's certificate alone");
    assert_eq!(of("cp-1", "prod/events"), (false, false));
    assert_eq!(of(&format!("system:node:{NODE}"), "prod/etcd"), (false, false), "the pod is on that host");
    assert_eq!(of("system:node:another", "prod/etcd"), (true, false));
}

#[test]
fn a_pod_gets_no_etcd_user_of_a_host_by_the_name_of_its_service_account() {
    let mut case = Case::of(Role::Client, &[]);
    case.policy = Policy::parse(CLIENT).unwrap();
    assert_eq!(case.denied(), ["WrongUser"]);
    case.policy =
        Policy::parse(&format!("{CLIENT}users: [{{namespace: prod, serviceAccounts: [etcd], users: [etcd.prod]}}]"))
            .unwrap();
    case.approved();
    case.policy = Policy::parse(&CLIENT.replace("prod/etcd", "prod/events")).unwrap();
    case.approved();
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
