//! The issued and the requested names and addresses.

use super::*;

/// The names and addresses that our own signer issues.
fn granted(role: Role, pod: &PodFacts, services: &[ServiceFacts], settings: &Settings, policy: &Policy) -> Sans {
    let signer = settings.our_signer(role, &pod.namespace).unwrap();
    entitlement(role, pod, services, settings, policy, Addressee::Ours(&signer)).unwrap().sans
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
        granted(Role::Server, pod, &case.services, &settings, &case.policy).dns
    };
    // A namespace called svc cannot spell the API server's name.
    let dns = wide("svc", "kubernetes", "default", "x");
    assert!(!dns.contains("kubernetes.default.svc") && dns.contains("kubernetes.default.svc.svc"), "{dns:?}");
    let dns = wide("prod", "kubernetes", "default", "kubernetes");
    assert!(!dns.iter().any(|name| name.starts_with("kubernetes.default") && !name.contains(".prod")), "{dns:?}");
    // An invalid name is left out.
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
fn requested_names_are_always_within_the_entitled_ones() {
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
                    let whole = granted(role, pod, &[], &settings, &case.policy);
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

/// A pod, a user or a host may be called what another is cut to.
#[test]
fn a_name_that_reads_like_a_cut_one_has_a_cn_of_its_own() {
    for role in Role::ALL {
        let prefix = role.common_name_prefix();
        for long in ["a".repeat(65), format!("{}.prod", "b-".repeat(31)), "c".repeat(253)] {
            let cn = common_name(role, &long);
            let literal = cn.strip_prefix(prefix).unwrap();
            let of_literal = common_name(role, literal);
            assert_ne!(of_literal, cn, "two names, one CN");
            assert_eq!(of_literal.len(), 64);
            // And so on.
            let again = common_name(role, of_literal.strip_prefix(prefix).unwrap());
            assert!(again != of_literal && again != cn);
            // A name that only resembles one stays whole.
            for other in
                [literal[1..].to_owned(), literal.to_uppercase(), format!("{}z", &literal[..literal.len() - 1])]
            {
                assert_eq!(common_name(role, &other), format!("{prefix}{other}"), "{other}");
            }
        }
    }
    let cut = common_name(Role::Client, &"a".repeat(65));
    assert!(crate::settings::user(&cut).is_err() && crate::settings::user(&cut[1..]).is_ok());
}
