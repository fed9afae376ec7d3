//! Each rule of approval without a person, tried by the one it holds back and by the one it is for.

#![allow(clippy::unwrap_used)]

use etcd_tls_contract::{key::KeyAlgorithm, san::Sans};

use super::*;
use crate::standalone::{store::holders::Holding, subject::recognise};

const HOSTS: &str = "system:bootstrappers:etcd";

fn user(name: &str, group: &str) -> User {
    User { name: name.to_owned(), groups: vec![group.to_owned()], ..User::default() }
}

fn request(role: Role, name: &str, dns: &[&str], ips: &[&str]) -> Request {
    Request {
        organization: role.organization().to_owned(),
        common_name: format!("{}{name}", role.common_name_prefix()),
        sans: Sans {
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        },
        key: KeyAlgorithm::EcdsaP256,
        public_key: Vec::new(),
    }
}

/// The decision where `holder` holds the request's names.
fn decision(user: &User, request: &Request, holder: Option<&str>, rules: &[&str]) -> AutoApproval {
    let mut holders = Holders::default();
    if let Some(holder) = holder {
        let (cn, sans) = (&request.common_name, &request.sans);
        holders.take(&holding(cn, holder, sans), SystemTime::UNIX_EPOCH);
    }
    decided(user, request, &holders, "", rules)
}

fn holding(cn: &str, principal: &str, sans: &Sans) -> Holding {
    Holding {
        common_name: cn.to_owned(),
        principal: principal.to_owned(),
        dns: sans.dns.iter().cloned().collect(),
        ips: sans.ips.iter().copied().collect(),
        until: 1000,
        given: false,
        subject: true,
    }
}

fn decided(user: &User, request: &Request, holders: &Holders, policy: &str, rules: &[&str]) -> AutoApproval {
    let rules: Vec<Rule> = rules.iter().map(|r| r.parse().unwrap()).collect();
    let policy = Policy::parse(policy).unwrap();
    let now = SystemTime::UNIX_EPOCH;
    let context = Context { rules: &rules, holders, policy: &policy, is_token_user: false, now };
    decide(user, request, &recognise(request).unwrap(), &context)
}

fn approved(user: &User, request: &Request, rules: &[&str]) -> bool {
    matches!(decision(user, request, None, rules), AutoApproval::Approve(_))
}

/// A host that asks with a certificate of these names.
fn host(role: Role, name: &str, dns: &[&str], ips: &[&str]) -> User {
    let presented = Some(request(role, name, dns, ips).sans);
    User { presented, ..user(&format!("{}{name}", role.common_name_prefix()), role.organization()) }
}

fn waits(decision: &AutoApproval) -> bool {
    matches!(decision, AutoApproval::Wait(_))
}

const ALL: [&str; 8] = [
    "system:etcd-peers=peer:192.0.2.0/24,*.example.com",
    "system:etcd-peers=server:192.0.2.0/24,*.example.com",
    "system:etcd-peers=metrics:192.0.2.0/24,*.example.com",
    "system:etcd-peers=client:backup,*.example.com",
    "system:etcd-servers=peer:192.0.2.0/24,*.example.com",
    "system:etcd-servers=server:192.0.2.0/24,*.example.com",
    "system:etcd-metrics=peer:192.0.2.0/24,*.example.com",
    "system:etcd-metrics=client:backup",
];

#[test]
fn a_renewal_asks_for_no_more_than_it_presents() {
    let m1 = host(Role::Peer, "m1", &["m1.example.com"], &["192.0.2.1"]);
    let empty = Holders::default();
    let ask =
        |user: &User, role, dns: &[&str], ips: &[&str]| decided(user, &request(role, "m1", dns, ips), &empty, "", &ALL);
    for (dns, ips) in [(&["m1.example.com"][..], &["192.0.2.1"][..]), (&["m1.example.com"], &[]), (&[], &["192.0.2.1"])]
    {
        assert!(matches!(ask(&m1, Role::Peer, dns, ips), AutoApproval::Approve(_)), "{dns:?} {ips:?}");
    }
    let server = ask(&m1, Role::Server, &["m1.example.com", "localhost"], &["192.0.2.1", "127.0.0.1", "::1"]);
    assert!(matches!(server, AutoApproval::Approve(_)), "{server:?}");
    for (dns, ips) in [
        (&["m2.example.com"][..], &["192.0.2.1"][..]),
        (&["*.example.com"], &[]),
        (&["*.m1.example.com"], &[]),
        (&["free.example.com"], &[]),
        (&["m1.example.com"], &["192.0.2.2"]),
        (&["m1.example.com"], &["192.0.2.1", "192.0.2.9"]),
    ] {
        for role in [Role::Peer, Role::Server, Role::Metrics] {
            assert!(waits(&ask(&m1, role, dns, ips)), "{role} {dns:?} {ips:?}");
        }
    }
    // A role that the certificate does not stand for.
    let names = (&["m1.example.com"][..], &["192.0.2.1"][..]);
    let as_server = host(Role::Server, "m1", names.0, names.1);
    let as_metrics = host(Role::Metrics, "m1", names.0, names.1);
    assert!(matches!(ask(&as_server, Role::Server, names.0, names.1), AutoApproval::Approve(_)));
    assert!(waits(&ask(&as_server, Role::Peer, names.0, names.1)));
    assert!(waits(&ask(&as_metrics, Role::Peer, names.0, names.1)));
    let client = |user: &User, name| decided(user, &request(Role::Client, name, &[], &[]), &empty, "", &ALL);
    assert!(waits(&client(&as_metrics, "backup")));
    // A client of another name is spelled by the rule, never a host's like name.
    assert!(matches!(client(&m1, "backup"), AutoApproval::Approve(_)));
    assert!(waits(&client(&m1, "m2.example.com")));
    // An organization of members without a host's name is nobody's renewal.
    let odd = User { presented: Some(Sans::default()), ..user("system:etcd-peer:M1", "system:etcd-peers") };
    assert!(waits(&ask(&odd, Role::Peer, names.0, names.1)));
}

/// A name that another role's certificate of the host holds is the host's.
#[test]
fn a_host_keeps_the_names_of_its_other_certificates() {
    let m1 = host(Role::Peer, "m1", &["m1.example.com"], &[]);
    let server = request(Role::Server, "m1", &["m1.example.com", "etcd.example.com"], &[]);
    let mut holders = Holders::default();
    assert!(waits(&decided(&m1, &server, &holders, "", &ALL)));
    holders.take(&holding("system:etcd-server:m1", "user/bootstrap", &server.sans), SystemTime::UNIX_EPOCH);
    assert!(matches!(decided(&m1, &server, &holders, "", &ALL), AutoApproval::Approve(_)));
}

#[test]
fn a_wildcard_is_only_where_a_rule_spells_it() {
    let host = user("bootstrap", HOSTS);
    let peer = |name: &str| request(Role::Peer, "m1", &[name], &[]);
    let pattern = ["system:bootstrappers:etcd=peer:*.example.com"];
    let spelled = ["system:bootstrappers:etcd=peer:wildcard:*.example.com,10.0.0.1"];
    assert!(approved(&host, &peer("a.example.com"), &pattern));
    for name in ["*.example.com", "*.a.example.com"] {
        assert!(!approved(&host, &peer(name), &pattern), "{name}");
    }
    assert!(approved(&host, &peer("*.example.com"), &spelled));
    for name in ["a.example.com", "*.a.example.com", "*.b.com"] {
        assert!(!approved(&host, &peer(name), &spelled), "{name}");
    }
    for bad in
        ["g=peer:wildcard:a.example.com", "g=peer:wildcard:*", "g=peer:wildcard:*.com", "g=client:wildcard:*.a.b"]
    {
        assert!(bad.parse::<Rule>().is_err(), "{bad}");
    }
}

#[test]
fn policy_rules_are_for_the_listed_host_alone() {
    const POLICY: &str = "hosts: [{username: cp-1-user, cluster: kube-system/etcd, roles: [peer], commonName: cp-1, \
                          dnsNames: [cp-1.example.com], ips: [192.0.2.1]}, {username: b, cluster: kube-system/etcd, \
                          roles: [client], commonName: backup}]";
    let rules = [
        "system:bootstrappers:etcd=peer:192.0.2.0/24,*.example.com,wildcard:*.example.com",
        "system:bootstrappers:etcd=server:192.0.2.0/24,*.example.com",
        "system:bootstrappers:etcd=client:backup,other",
    ];
    let bootstrap = user("bootstrap", HOSTS);
    let ask = |role, name: &str, dns: &[&str], ips: &[&str]| {
        decided(&bootstrap, &request(role, name, dns, ips), &Holders::default(), POLICY, &rules)
    };
    assert!(matches!(ask(Role::Peer, "cp-1", &["cp-1.example.com"], &["192.0.2.1"]), AutoApproval::Approve(_)));
    assert!(matches!(ask(Role::Peer, "cp-2", &["cp-2.example.com"], &["192.0.2.2"]), AutoApproval::Approve(_)));
    assert!(matches!(ask(Role::Client, "other", &[], &[]), AutoApproval::Approve(_)));
    for (role, name, dns, ips) in [
        (Role::Server, "cp-1", &["cp-1.example.com"][..], &["192.0.2.1"][..]),
        (Role::Peer, "cp-1", &["cp-1.example.com", "cp-9.example.com"], &[]),
        (Role::Peer, "cp-2", &["cp-1.example.com"], &[]),
        (Role::Peer, "cp-2", &["*.example.com"], &[]),
        (Role::Server, "cp-2", &[], &["192.0.2.1"]),
        (Role::Client, "backup", &[], &[]),
    ] {
        assert!(waits(&ask(role, name, dns, ips)), "{role} {name} {dns:?} {ips:?}");
    }
}

#[test]
fn a_client_is_not_a_tokens_user() {
    let b = user("bootstrap", HOSTS);
    let rules: Vec<Rule> = vec!["system:bootstrappers:etcd=client:admin".parse().unwrap()];
    let admin = request(Role::Client, "admin", &[], &[]);
    let (holders, policy) = (Holders::default(), Policy::default());
    for is_token_user in [true, false] {
        let context =
            Context { rules: &rules, holders: &holders, policy: &policy, is_token_user, now: SystemTime::UNIX_EPOCH };
        assert_eq!(waits(&decide(&b, &admin, &recognise(&admin).unwrap(), &context)), is_token_user);
    }
}

#[test]
fn every_name_must_be_listed() {
    let host = user("bootstrap", HOSTS);
    let rule = "system:bootstrappers:etcd=peer:m1.example.com,*.etcd.example.com,10.0.0.1,192.0.2.0/24,2001:db8::/64";
    for (dns, ips) in [
        (vec!["m1.example.com"], vec![]),
        (vec!["a.etcd.example.com"], vec!["10.0.0.1"]),
        (vec![], vec!["192.0.2.77", "2001:db8::9"]),
    ] {
        assert!(approved(&host, &request(Role::Peer, "m1", &dns, &ips), &[rule]), "{dns:?} {ips:?}");
    }
    for (dns, ips) in [
        (vec![], vec![]),
        (vec!["m2.example.com"], vec![]),
        (vec!["m1.example.com", "kubernetes.default.svc"], vec![]),
        (vec!["etcd.example.com"], vec![]),
        (vec!["xetcd.example.com"], vec![]),
        (vec!["localhost"], vec!["10.0.0.1"]),
        (vec![], vec!["10.0.0.1", "127.0.0.1"]),
        (vec![], vec!["10.0.0.2"]),
        (vec![], vec!["192.0.3.1"]),
        (vec![], vec!["2001:db8:0:1::9"]),
    ] {
        assert!(!approved(&host, &request(Role::Peer, "m1", &dns, &ips), &[rule]), "{dns:?} {ips:?}");
    }
}

#[test]
fn rules_are_for_their_group_and_profile() {
    let rule = "system:bootstrappers:etcd=server:10.0.0.0/8";
    let server = request(Role::Server, "m1", &["localhost"], &["10.0.0.1", "127.0.0.1", "::1"]);
    assert!(approved(&user("b", HOSTS), &server, &[rule]));
    assert!(!approved(&user("b", "other"), &server, &[rule]));
    assert!(!approved(&user("b", HOSTS), &request(Role::Peer, "m1", &[], &["10.0.0.1"]), &[rule]));
    assert!(!approved(&user("b", HOSTS), &server, &[]));
}

#[test]
fn no_names_mean_none() {
    let b = user("b", HOSTS);
    for rule in ["system:bootstrappers:etcd=peer", "system:bootstrappers:etcd=peer:"] {
        assert!(!approved(&b, &request(Role::Peer, "m1", &[], &["10.0.0.1"]), &[rule]));
        assert!(!approved(&b, &request(Role::Peer, "m1", &[], &[]), &[rule]));
    }
    assert!(!approved(&b, &request(Role::Client, "backup", &[], &[]), &["system:bootstrappers:etcd=client"]));
    assert!(approved(&b, &request(Role::Metrics, "m1", &[], &[]), &["system:bootstrappers:etcd=metrics"]));
    assert!(!approved(&b, &request(Role::Metrics, "m1", &["x.y"], &[]), &["system:bootstrappers:etcd=metrics"]));
}

#[test]
fn a_client_is_its_name() {
    let b = user("b", HOSTS);
    let rule = "system:bootstrappers:etcd=client:backup,*.jobs.example.com";
    assert!(approved(&b, &request(Role::Client, "backup", &[], &[]), &[rule]));
    assert!(approved(&b, &request(Role::Client, "x.jobs.example.com", &[], &[]), &[rule]));
    for name in ["root", "backup2", "jobs.example.com"] {
        assert!(!approved(&b, &request(Role::Client, name, &[], &[]), &[rule]), "{name}");
    }
    assert!(!approved(&b, &request(Role::Client, "backup", &["backup"], &[]), &[rule]));
}

#[test]
fn nobody_gets_the_name_of_another() {
    let rules =
        ["system:etcd-peers=peer:10.0.0.0/8", "system:etcd-peers=client:*.x.y,m2", "system:etcd-clients=client:c,d"];
    let m1 = user("system:etcd-peer:m1", "system:etcd-peers");
    let peer = |name| request(Role::Peer, name, &[], &["10.0.0.1"]);
    assert!(matches!(decision(&m1, &peer("m1"), None, &rules), AutoApproval::Approve(_)));
    assert!(matches!(decision(&m1, &peer("m2"), None, &rules), AutoApproval::Forbid(_)));
    assert!(matches!(decision(&m1, &request(Role::Server, "m2", &[], &[]), None, &rules), AutoApproval::Forbid(_)));
    let c = user("c", "system:etcd-clients");
    let client = |name| request(Role::Client, name, &[], &[]);
    assert!(matches!(decision(&c, &client("c"), None, &rules), AutoApproval::Approve(_)));
    assert!(matches!(decision(&c, &client("d"), None, &rules), AutoApproval::Forbid(_)));
    assert!(matches!(decision(&c, &peer("c"), None, &rules), AutoApproval::Forbid(_)));
}

#[test]
fn a_name_in_use_by_another_waits_for_a_person() {
    let rule = ["system:bootstrappers:etcd=peer:10.0.0.0/8", "system:etcd-peers=peer:10.0.0.0/8"];
    let bootstrap = user("bootstrap", HOSTS);
    let m1 = user("system:etcd-peer:m1", "system:etcd-peers");
    let peer = request(Role::Peer, "m1", &[], &["10.0.0.1"]);
    assert!(matches!(decision(&bootstrap, &peer, Some("user/bootstrap"), &rule), AutoApproval::Approve(_)));
    assert!(matches!(decision(&m1, &peer, Some("user/bootstrap"), &rule), AutoApproval::Approve(_)), "its own name");
    assert!(matches!(decision(&bootstrap, &peer, Some("host/m1"), &rule), AutoApproval::Wait(_)));
}

#[test]
fn a_rule_that_cannot_be_read_says_why() {
    for bad in ["", "g", "=peer:a.b", "g=what:a.b", "g=peer:10.0.0.0/33", "g=peer:a b", "g=peer:*", "g=peer:*.com"] {
        assert!(bad.parse::<Rule>().is_err(), "{bad}");
    }
}
