//! Subjects: which profile a request's organization and CN fit, and whose name a CN is.

use etcd_tls_contract::{csr::Request, names, role::Role};

/// A recognised request: its subject fits this profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The profile.
    pub role: Role,
    /// The host's name behind the profile's prefix in the CN; for a client the whole CN.
    pub name: String,
}

/// A subject that this signer never signs. The text names what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SubjectError(String);

/// The roles whose CN is a prefix and the name of a host.
pub const MEMBERS: [Role; 3] = [Role::Peer, Role::Server, Role::Metrics];
/// The prefix of the host's name in a metrics CN of the etcd-certificate-generator.
const OLD_METRICS: &str = "system:etcd-metric:";
/// Digits of the digest that ends a host's name too long for a CN (see `identity::common_name`).
const DIGEST_DIGITS: usize = 24;

/// Recognises the profile by organization and CN prefix together. A host's name is a DNS subdomain, so nothing in it reads
/// as another field of the subject.
///
/// # Errors
/// The subject is never signed here.
pub fn recognise(request: &Request) -> Result<Recognised, SubjectError> {
    let cn = &request.common_name;
    let role = Role::ALL.into_iter().find(|role| role.organization() == request.organization).ok_or_else(|| {
        let known: Vec<&str> = Role::ALL.iter().map(|role| role.organization()).collect();
        let known = known.join(", ");
        SubjectError(format!("the organization {:?} is of no profile; known are {known}", request.organization))
    })?;
    if role == Role::Client {
        return if is_client_name(cn) {
            Ok(Recognised { role, name: cn.clone() })
        } else {
            Err(SubjectError(format!(
                "{cn:?} cannot be a client's CN: 1 to 64 of letters, digits and . _ : @ / -, no member's, no service \
                 account's and no anonymous name"
            )))
        };
    }
    match member(role, cn) {
        Some(name) if is_host_name(name) => Ok(Recognised { role, name: name.to_owned() }),
        Some(name) if !name.is_empty() => Err(SubjectError(format!(
            "the host's name {name:?} in the CN is not a DNS subdomain: lower-case letters, digits, '-' and '.', each label \
             beginning and ending with a letter or digit"
        ))),
        _ => Err(SubjectError(format!(
            "the organization {} needs a CN of {}<host>, not {cn:?}",
            request.organization,
            role.common_name_prefix()
        ))),
    }
}

/// The host's name in a CN of a member role.
pub fn host_of(common_name: &str) -> Option<&str> {
    MEMBERS.into_iter().find_map(|role| member(role, common_name)).filter(|name| is_host_name(name))
}

/// Every CN that the certificates of `host` can have.
pub fn subjects_of(host: &str) -> impl Iterator<Item = String> {
    MEMBERS.into_iter().flat_map(prefixes).map(move |prefix| format!("{prefix}{host}"))
}

/// The part after the prefix of `role`.
pub fn member(role: Role, common_name: &str) -> Option<&str> {
    prefixes(role).find_map(|prefix| common_name.strip_prefix(prefix))
}

fn prefixes(role: Role) -> impl Iterator<Item = &'static str> {
    let old = (role == Role::Metrics).then_some(OLD_METRICS);
    (role != Role::Client).then(|| role.common_name_prefix()).into_iter().chain(old)
}

/// A DNS subdomain, or one that was cut to fit into a CN and ends with a digest.
fn is_host_name(name: &str) -> bool {
    let cut = |(kept, digest): (&str, &str)| {
        digest.len() == DIGEST_DIGITS
            && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && names::is_dns_subdomain(kept.trim_end_matches(['.', '-']))
    };
    names::is_dns_subdomain(name) || name.rsplit_once('-').is_some_and(cut)
}

/// A user of etcd that no member, service account or unknown caller can be taken for.
fn is_client_name(cn: &str) -> bool {
    let reserved = MEMBERS.into_iter().flat_map(prefixes).chain(["system:serviceaccount:", "system:anonymous"]);
    (1..=64).contains(&cn.len())
        && cn.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@/-".contains(&b))
        && !reserved.into_iter().any(|prefix| cn.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use etcd_tls_contract::{identity::common_name, key::KeyAlgorithm, san::Sans};

    use super::*;

    fn request(organization: &str, common_name: &str) -> Request {
        Request {
            organization: organization.to_owned(),
            common_name: common_name.to_owned(),
            sans: Sans::default(),
            key: KeyAlgorithm::EcdsaP256,
            public_key: Vec::new(),
        }
    }

    #[test]
    fn organization_and_prefix_go_together() {
        for (organization, common_name, role, name) in [
            ("system:etcd-peers", "system:etcd-peer:m1", Role::Peer, "m1"),
            ("system:etcd-servers", "system:etcd-server:m1.example.com", Role::Server, "m1.example.com"),
            ("system:etcd-metrics", "system:etcd-metrics:m1", Role::Metrics, "m1"),
            ("system:etcd-metrics", "system:etcd-metric:m1", Role::Metrics, "m1"),
            ("system:etcd-clients", "backup", Role::Client, "backup"),
            ("system:etcd-clients", "backup.prod", Role::Client, "backup.prod"),
        ] {
            let expected = Recognised { role, name: name.to_owned() };
            assert_eq!(recognise(&request(organization, common_name)), Ok(expected), "{common_name}");
        }
    }

    #[test]
    fn no_other_subject_is_ever_signed() {
        for (organization, common_name) in [
            ("system:masters", "admin"),
            ("", "system:etcd-peer:m1"),
            ("system:etcd-peers", "system:etcd-peer:"),
            ("system:etcd-peers", "system:etcd-server:m1"),
            ("system:etcd-servers", "system:etcd-peer:m1"),
            ("system:etcd-peers", "m1"),
            ("system:etcd-clients", ""),
        ] {
            assert!(recognise(&request(organization, common_name)).is_err(), "{organization} {common_name}");
        }
    }

    #[test]
    fn a_hosts_name_is_a_dns_subdomain_and_nothing_else() {
        for bad in [
            "z1,O=system:masters",
            "z1/O=system:masters",
            "z1+O=x",
            "z1\\,x",
            "z1 ",
            " z1",
            "z1\0",
            "z1\n",
            "Z1",
            "z1.",
            ".z1",
            "z1..z2",
            "-z1",
            "z1-",
            "*",
            "*.example.com",
            "z_1",
            "münchen",
            "z1:x",
            "z1\u{200b}",
            "@",
            "10.0.0.1/8",
            &"a".repeat(64),
            &"a.".repeat(127),
        ] {
            for role in MEMBERS {
                let cn = format!("{}{bad}", role.common_name_prefix());
                assert!(recognise(&request(role.organization(), &cn)).is_err(), "{cn}");
                assert_eq!(host_of(&cn), None, "{cn}");
            }
        }
        for bad in [
            "a,O=system:masters",
            "system:etcd-peer:m1",
            "system:etcd-metric:m1",
            "system:serviceaccount:a:b",
            "a b",
            "ü",
        ] {
            assert!(recognise(&request("system:etcd-clients", bad)).is_err(), "{bad}");
        }
        for good in ["m1", "10.0.0.1", "xn--mnchen-3ya.example.com", "ip-10-0-0-1.ec2.internal"] {
            for role in MEMBERS {
                assert!(recognise(&request(role.organization(), &common_name(role, good))).is_ok(), "{good}");
            }
        }
    }

    /// A name that does not fit into a CN is cut, at a dot too.
    #[test]
    fn a_cut_name_is_a_hosts_name() {
        for length in 30..80 {
            let name = format!("{}.example.com", "a".repeat(length.min(63)));
            let names = [name, format!("{}.b", vec!["abc"; length / 4].join("."))];
            for name in names {
                let cn = common_name(Role::Peer, &name);
                assert!(recognise(&request("system:etcd-peers", &cn)).is_ok(), "{cn}");
            }
        }
    }
}
