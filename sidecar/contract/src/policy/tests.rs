//! The policy file: the documented example, the defaults, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

/// The example of [`Policy`]'s own documentation.
fn example() -> String {
    let source = include_str!("../policy.rs");
    let block = source.split("/// ```yaml\n").nth(1).unwrap().split("/// ```").next().unwrap();
    block.lines().map(|line| format!("{}\n", line.trim_start_matches("///").strip_prefix(' ').unwrap_or(""))).collect()
}

fn refused(yaml: &str) -> String {
    match Policy::parse(yaml) {
        Ok(policy) => panic!("{yaml} was taken: {policy:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_empty_file_is_the_default() {
    for empty in ["", "\n", "# nothing\n", "---\n", "---\n# nothing\n\n", "{}"] {
        assert_eq!(Policy::parse(empty).unwrap(), Policy::default(), "{empty:?}");
    }
    let policy = Policy::default();
    assert_eq!(policy.cluster_domain, "cluster.local");
    assert!(!policy.keys.allow(KeyAlgorithm::Rsa2048) && policy.keys.allow(KeyAlgorithm::Rsa3072));
    assert_eq!((policy.lifetime.min.as_secs(), policy.lifetime.max.as_secs()), (600, 604_800));
    assert_eq!(policy.rollover.ca_lifetime.as_secs(), 8760 * 3600);
    assert_eq!(policy.rollover.client_overlap, None);
    assert_eq!(policy.authorities_per_namespace, 64);
}

#[test]
fn the_documented_example_is_read() {
    let policy = Policy::parse(&example()).unwrap();
    assert_eq!(policy.extra_sans.len(), 1);
    assert!(policy.allows_user("prod", "backup", "backup") && !policy.allows_user("prod", "backup", "root"));
    let signer = |s: &str| s.parse::<SignerName>().unwrap();
    assert!(policy.allows_cluster("web", &signer("client.etcd-tls.dev/prod.etcd"), Role::Client));
    assert!(!policy.allows_cluster("web", &signer("client.etcd-tls.dev/prod.etcd"), Role::Server));
    assert!(policy.allows_cluster("web", &signer("client.etcd-tls.dev/web.etcd"), Role::Server));
    let groups = |groups: &[&str]| groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>();
    assert!(policy.host("system:node:cp-1", &groups(&["system:nodes", "x"])).is_some());
    assert!(policy.host("system:node:cp-1", &groups(&["x"])).is_none());
    assert_eq!(policy.authority(&signer("client.etcd-tls.dev/prod.etcd")), signer("peer.etcd-tls.dev/prod.etcd"));
    assert_eq!(policy.authority(&signer("metrics.etcd-tls.dev/prod.etcd")), signer("peer.etcd-tls.dev/prod.etcd"));
    assert_eq!(policy.authority(&signer("client.etcd-tls.dev/web.etcd")), signer("client.etcd-tls.dev/web.etcd"));
    assert_eq!(policy.given_secret(&signer("peer.etcd-tls.dev/prod.etcd")), Some("prod-peer-ca"));
    assert_eq!(policy.given_secret(&signer("peer.etcd-tls.dev/web.etcd")), None);
    assert_eq!(policy.rollover.client_overlap, Some(Duration::from_secs(720 * 3600)));
}

#[test]
fn a_namespace_is_held_to_its_issuers() {
    let policy = Policy::parse(
        "issuers:\n- namespaces: [prod, stage]\n  allow: ['cert-manager:ClusterIssuer/company-ca']\n\
         - namespaces: ['*']\n  allow: [csr]\n- namespaces: [stage]\n  allow: ['csr:example.com/ca']\n",
    )
    .unwrap();
    let refused = |namespace: &str, issuer: &str| policy.check_issuer(namespace, &issuer.parse().unwrap());
    for (namespace, issuer) in [
        ("prod", "cert-manager:ClusterIssuer/company-ca"),
        ("stage", "cert-manager:ClusterIssuer/company-ca"),
        ("stage", "csr:example.com/ca"),
        ("web", "csr"),
    ] {
        assert_eq!(refused(namespace, issuer), Ok(()), "{namespace} {issuer}");
    }
    for (namespace, issuer, rule) in [
        ("prod", "csr", "issuers[0]"),
        ("prod", "cert-manager:Issuer/company-ca", "issuers[0]"),
        ("prod", "cert-manager:ClusterIssuer/company-ca.issuers.example.com", "issuers[0]"),
        ("stage", "csr", "issuers[0] and issuers[2]"),
        ("web", "csr:example.com/ca", "issuers[1]"),
        ("web", "csr:peer.etcd-tls.dev/prod.etcd", "issuers[1]"),
    ] {
        let said = refused(namespace, issuer).unwrap_err().to_string();
        assert!(said.contains(&format!("policy's {rule} lets")) && said.contains(issuer), "{said}");
    }
    assert_eq!(Policy::default().check_issuer("prod", &Issuer::Csr), Ok(()));
    for bad in [
        "- {namespaces: [a], allow: []}",
        "- {namespaces: [], allow: [csr]}",
        "- {namespaces: [a], allow: [vault:x]}",
        "- {namespaces: [A], allow: [csr]}",
        "- {allow: [csr]}",
    ] {
        super::tests::refused(&format!("issuers:\n{bad}\n"));
    }
}

#[test]
fn a_person_decides_about_the_requests_that_a_rule_names() {
    let policy = Policy::parse(
        "manualApproval:\n- {namespaces: [prod], clusters: [main], roles: [peer]}\n- {namespaces: [ops]}\n\
         - {namespaces: [web], roles: [server]}\nnamespaceUids: {}\n\
         shared: [{authority: peer.etcd-tls.dev/prod.main, signers: [peer.etcd-tls.dev/dev.main]},\n\
         {authority: peer.etcd-tls.dev/dev.base, signers: [peer.etcd-tls.dev/web.guest, peer.etcd-tls.dev/ops.guest]}]\n",
    )
    .unwrap();
    let rule = |namespace: Option<&str>, signer: &str| policy.manual_approval(namespace, &signer.parse().unwrap());
    let main = "peer.etcd-tls.dev/prod.main";
    assert_eq!(rule(Some("prod"), main), Some(0));
    assert_eq!(rule(Some("test"), main), Some(0), "the cluster's namespace counts");
    assert_eq!(rule(None, main), Some(0), "a host is of its cluster's");
    assert_eq!(rule(Some("ops"), "client.etcd-tls.dev/prod.main"), Some(1), "and so does the pod's");
    assert_eq!(rule(Some("prod"), "client.etcd-tls.dev/prod.main"), None);
    assert_eq!(rule(Some("dev"), "peer.etcd-tls.dev/dev.main"), Some(0), "its CA is that of prod");
    assert_eq!(rule(Some("dev"), "client.etcd-tls.dev/dev.main"), None);
    for of_one_ca in ["web.guest", "dev.base"] {
        assert_eq!(
            rule(Some("dev"), &format!("peer.etcd-tls.dev/{of_one_ca}")),
            Some(1),
            "a guest of ops has the same CA"
        );
    }
    for other in ["client", "metrics"] {
        let signer = format!("{other}.etcd-tls.dev/web.main");
        assert_eq!(rule(Some("web"), &signer), Some(2), "its CA is that of servers");
    }
    assert_eq!(rule(Some("web"), "peer.etcd-tls.dev/web.main"), None);
    assert_eq!(rule(Some("prod"), "peer.etcd-tls.dev/prod.other"), None);
    assert_eq!(Policy::default().manual_approval(Some("prod"), &main.parse().unwrap()), None);
    for bad in ["{namespaces: []}", "{namespaces: [A]}", "{namespaces: [a], roles: []}", "{roles: [peer]}"] {
        refused(&format!("manualApproval: [{bad}]"));
    }
}

#[test]
fn metrics_share_the_client_authority_unless_told_otherwise() {
    let signer = |s: &str| s.parse::<SignerName>().unwrap();
    let metrics = signer("metrics.etcd-tls.dev/prod.etcd");
    assert_eq!(Policy::default().authority(&metrics), signer("client.etcd-tls.dev/prod.etcd"));
    assert_eq!(Policy::parse("metricsAuthority: own").unwrap().authority(&metrics), metrics);
}

#[test]
fn idle_authorities_are_kept_for_a_day_at_least_or_for_ever() {
    let idle =
        |text: &str| Policy::parse(text).map(|policy| policy.idle_authorities).map_err(|error| error.to_string());
    assert_eq!(idle(""), Ok(None));
    assert_eq!(idle("idleAuthorities: 24h"), Ok(Some(Duration::from_secs(86_400))));
    assert_eq!(idle("idleAuthorities: never"), Ok(None));
    for bad in ["23h", "x", "", "0"] {
        idle(&format!("idleAuthorities: '{bad}'")).unwrap_err();
    }
    for bad in ["0", "1000001"] {
        assert!(refused(&format!("authoritiesInAll: {bad}")).contains("authoritiesInAll"));
    }
    refused("authoritiesInAll: -1");
    assert_eq!(Policy::parse("authoritiesInAll: 9").unwrap().authorities_in_all, 9);
}

fn server_of(cluster: &str) -> SignerName {
    format!("client.etcd-tls.dev/prod.{cluster}").parse().unwrap()
}

#[test]
fn what_is_a_hosts_takes_a_rule_that_lists_it_itself() {
    let policy = |rule: &str, cluster: &str| {
        Policy::parse(&format!(
            "hosts: [{{username: cp-1, cluster: prod/{cluster}, roles: [peer, server], dnsNames: [cp-1.example.com], ips: [192.0.2.11], \
             commonName: cp-1}}]\nextraSans: [{{namespaces: [prod], {rule}}}]"
        ))
        .unwrap()
    };
    let asked: Sans = "*.example.com,cp-1.example.com,cp-2.example.com,192.0.2.11,192.0.2.12".parse().unwrap();
    let others: Sans = "cp-2.example.com,192.0.2.12".parse().unwrap();
    let wide = "dnsNames: ['*.example.com'], ipBlocks: [192.0.2.0/24]";
    let listed = "dnsNames: ['*.example.com', cp-1.example.com], ipBlocks: [192.0.2.0/24, 192.0.2.11/32]";
    let allowed = |policy: Policy| policy.allowed_extra_sans("prod", &server_of("etcd"), &asked);
    assert_eq!(allowed(policy(wide, "etcd")), others);
    assert_eq!(allowed(policy(listed, "etcd")), asked);
    assert_eq!(
        allowed(policy(wide, "events")),
        asked,
        "those who trust this cluster's CA look for no host of another's"
    );
}

#[test]
fn extra_sans_are_matched_whole() {
    let policy = Policy::parse(
        "extraSans: [{namespaces: ['*'], dnsNames: ['*.etcd.example.com', vip.example.com], ipBlocks: [192.0.2.0/25, '2001:db8::/64', 198.51.100.7/32]}]",
    )
    .unwrap();
    let allowed = |text: &str| {
        let asked: Sans = text.parse().unwrap();
        policy.allowed_extra_sans("prod", &server_of("etcd"), &asked) == asked
    };
    for yes in [
        "a.etcd.example.com",
        "a.b.etcd.example.com",
        "*.etcd.example.com",
        "vip.example.com",
        "192.0.2.0",
        "192.0.2.127",
        "2001:db8::ffff",
        "198.51.100.7",
    ] {
        assert!(allowed(yes), "{yes}");
    }
    for no in [
        "etcd.example.com",
        "xetcd.example.com",
        "example.com",
        "*.example.com",
        "*.a.etcd.example.com",
        "a.vip.example.com",
        "192.0.2.128",
        "192.0.1.255",
        "2001:db8:0:1::1",
        "198.51.100.6",
        "10.0.0.1",
        "::1",
    ] {
        assert!(!allowed(no), "{no}");
    }
    let everything = Policy::parse("extraSans: [{namespaces: [prod], ipBlocks: [0.0.0.0/0, '::/0']}]").unwrap();
    let asked: Sans = "203.0.113.1,2001:db8::1".parse().unwrap();
    assert_eq!(everything.allowed_extra_sans("prod", &server_of("x"), &asked), asked);
    assert!(everything.allowed_extra_sans("web", &server_of("x"), &asked).is_empty());
    let narrow = Policy::parse("extraSans: [{namespaces: [prod], clusters: [events], ipBlocks: [0.0.0.0/0]}]").unwrap();
    assert!(narrow.allowed_extra_sans("prod", &server_of("etcd"), &asked).is_empty());
}

#[test]
fn contradictory_rules_are_refused_and_named() {
    let host = "username: n, cluster: a/b, roles: [peer], commonName: n";
    for (yaml, part) in [
        ("colour: red", "colour"),
        ("clusterdomain: x", "clusterdomain"),
        ("- a", ""),
        ("hello", ""),
        ("clusterDomain: [", ""),
        ("clusterDomain: a\nclusterDomain: b", "clusterDomain"),
        ("clusterDomain: a\n---\nclusterDomain: b", ""),
        ("clusterDomain: Cluster.Local", "clusterDomain"),
        ("clusterDomain: ''", "clusterDomain"),
        ("clusterDomain: svc", "clusterDomain"),
        ("keys: []", "keys"),
        ("keys: [rsa-1024]", "rsa-1024"),
        ("keys: rsa-3072", "keys"),
        ("lifetime: {min: 10m, max: 5m}", "lifetime"),
        ("lifetime: {max: 100000h}", "lifetime"),
        ("lifetime: {max: 24}", "24"),
        ("lifetime: {max: 1d}", "1d"),
        ("lifetime: {maximum: 1h}", "maximum"),
        ("extraSans: [{dnsNames: [a.b]}]", "namespaces"),
        ("extraSans: [{namespaces: [], dnsNames: [a.b]}]", "namespaces"),
        ("extraSans: [{namespaces: [Prod]}]", "Prod"),
        ("extraSans: [{namespaces: [prod], dnsNames: ['*']}]", "*"),
        ("extraSans: [{namespaces: [prod], dnsNames: ['*.com']}]", "*.com"),
        ("extraSans: [{namespaces: [prod], dnsNames: ['a.*.b']}]", "a.*.b"),
        ("extraSans: [{namespaces: [prod], dnsNames: [A.b]}]", "A.b"),
        ("extraSans: [{namespaces: [prod], ipBlocks: [192.0.2.1]}]", "192.0.2.1"),
        ("extraSans: [{namespaces: [prod], ipBlocks: [192.0.2.1/24]}]", "192.0.2.1/24"),
        ("extraSans: [{namespaces: [prod], ipBlocks: [192.0.2.0/33]}]", "192.0.2.0/33"),
        ("extraSans: [{namespaces: [prod], ipBlocks: ['2001:db8::1/64']}]", "2001:db8::1/64"),
        ("users: [{namespace: prod, serviceAccounts: [], users: [a]}]", "serviceAccounts"),
        ("users: [{namespace: '*', serviceAccounts: [a], users: [a]}]", "namespace"),
        ("users: [{namespace: prod, serviceAccounts: [a], users: ['*']}]", "users"),
        ("users: [{namespace: prod, serviceAccounts: [a], users: [system:masters]}]", "users"),
        ("crossNamespace: [{from: '*', to: a/b, roles: [client]}]", "from"),
        ("crossNamespace: [{from: web, to: a, roles: [client]}]", "<namespace>/<cluster>"),
        ("crossNamespace: [{from: web, to: a/b, roles: [root]}]", "root"),
        ("crossNamespace: [{from: web, to: a/b, roles: [metrics]}]", "metricsAuthority: own"),
        ("crossNamespace: [{from: web, to: a/b, roles: [peer, metrics]}]", "metricsAuthority: own"),
        (&format!("hosts: [{{{host}, colour: red}}]"), "colour"),
        (&format!("hosts: [{{{}}}]", host.replace("username: n", "username: ''")), "username"),
        (&format!("hosts: [{{{}}}]", host.replace("username: n", "username: system:serviceaccount:a:b")), "username"),
        (&format!("hosts: [{{{}}}]", host.replace("username: n", "username: system:anonymous")), "username"),
        (&format!("hosts: [{{{host}}}, {{{}, groups: [g]}}]", host.replace("a/b", "a/c")), "listed twice"),
        ("revokers: [{}]", "everybody"),
        ("revokers: [{username: ''}]", "everybody"),
        ("revokers: [{groups: [system:authenticated]}]", "everybody"),
        ("revokers: [{username: anna, clusters: [a/b]}]", "clusters"),
        ("authoritiesPerNamespace: 0", "authoritiesPerNamespace"),
        ("authoritiesPerNamespace: 10001", "authoritiesPerNamespace"),
        ("authoritiesPerNamespace: -1", "authoritiesPerNamespace"),
        (&format!("hosts: [{{{}}}]", host.replace("[peer]", "[]")), "roles"),
        (&format!("hosts: [{{{}}}]", host.replace("commonName: n", "commonName: 'a,b'")), "commonName"),
        (&format!("hosts: [{{{host}, dnsNames: ['*.a.b']}}]"), "dnsNames"),
        (&format!("hosts: [{{{host}, ips: [0.0.0.0]}}]"), "ips"),
        (&format!("hosts: [{{{host}, ips: [x]}}]"), ""),
        ("metricsAuthority: none", "none"),
        ("shared: [{authority: peer.etcd-tls.dev/a, signers: []}]", "peer.etcd-tls.dev/a"),
        ("shared: [{authority: example.com/a, signers: []}]", "example.com/a"),
        (
            "shared: [{authority: peer.etcd-tls.dev/a.b, signers: [client.etcd-tls.dev/a.b, client.etcd-tls.dev/a.b]}]",
            "mapped twice",
        ),
        (
            "shared: [{authority: peer.etcd-tls.dev/a.b, signers: [client.etcd-tls.dev/a.b]}, {authority: client.etcd-tls.dev/a.b, signers: [peer.etcd-tls.dev/c.d]}]",
            "itself mapped",
        ),
        ("authorities: [{signer: peer.etcd-tls.dev/a.b, secretName: A}]", "secretName"),
        (
            "authorities: [{signer: peer.etcd-tls.dev/a.b, secretName: a}, {signer: peer.etcd-tls.dev/a.b, secretName: b}]",
            "two Secrets",
        ),
        ("authorities: [{signer: metrics.etcd-tls.dev/a.b, secretName: a}]", "is signed by"),
        ("rollover: {caLifetime: 10m}", "caLifetime"),
        ("rollover: {caLifetime: 999999h}", "caLifetime"),
        ("rollover: {caLifetime: 100h, clientOverlap: 51h}", "clientOverlap"),
        ("rollover: {clientOverlap: soon}", "soon"),
    ] {
        let error = refused(yaml);
        assert!(error.starts_with("policy.yaml: ") && error.contains(part), "{yaml}: {error}");
    }
    refused(&format!("# {}\nclusterDomain: a.b", "x".repeat(MAX_POLICY)));
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (from, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        bomb.push_str(&format!("{to}: &{to} [{}]\n", [format!("*{from}").as_str(); 10].join(", ")));
    }
    refused(&bomb);
}

#[test]
fn the_shipped_example_is_the_documented_one() {
    let manifest = include_str!("../../../../manifests/policy.yaml");
    let shipped = manifest.split("policy.yaml.example: |\n").nth(1).unwrap();
    let shipped: String =
        shipped.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    assert_eq!(Policy::parse(&shipped).unwrap(), Policy::parse(&example()).unwrap());
}

#[test]
fn metrics_of_another_namespace_need_an_authority_of_their_own() {
    for taken in [
        "crossNamespace: [{from: web, to: a/b, roles: [metrics]}]\nmetricsAuthority: own",
        "crossNamespace: [{from: web, to: a/b, roles: [client, metrics]}]",
        "crossNamespace: [{from: web, to: a/b, roles: [client]}]",
    ] {
        Policy::parse(taken).unwrap();
    }
    let shared =
        "metricsAuthority: own\nshared: [{authority: client.etcd-tls.dev/a.b, signers: [metrics.etcd-tls.dev/a.b]}]";
    Policy::parse(&format!("crossNamespace: [{{from: web, to: a/b, roles: [metrics]}}]\n{shared}")).unwrap_err();
}

#[test]
fn only_listed_people_revoke_at_a_standalone_signer() {
    let policy =
        Policy::parse("revokers: [{username: anna}, {groups: [ops, night]}, {username: emil, groups: [ops]}]").unwrap();
    let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (username, of, may) in [
        ("anna", &[][..], true),
        ("emil", &["ops"], true),
        ("emil", &[], false),
        ("otto", &["ops"], false),
        ("otto", &["ops", "night"], true),
        ("", &[], false),
    ] {
        assert_eq!(policy.may_revoke(username, &groups(of)), may, "{username} {of:?}");
    }
    assert!(!Policy::default().may_revoke("anna", &groups(&["ops"])));
}
