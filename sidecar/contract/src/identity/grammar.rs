//! The grammar of a pod's names and addresses in each role.

use aws_lc_rs::digest;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Addressee, Denial, Entitlement, PodFacts, ServiceFacts};
use crate::{
    encoding::hex,
    names::{self, CUT_DIGITS},
    policy::Policy,
    role::Role,
    san::Sans,
    settings::Settings,
};

/// RFC 5280, ub-common-name.
const MAX_COMMON_NAME: usize = 64;

/// True if a pod has opted in: its own label, or its namespace's unless the pod opted out; in a labelled namespace only a
/// pod with a container `etcd` or an `etcd-tls.dev/roles` annotation. `containers`: the names of those that keep running, native
/// sidecars included.
pub fn opted_in(
    namespace_opted_in: bool,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    containers: &[&str],
) -> bool {
    match labels.get(names::LABEL).map(String::as_str) {
        Some(names::DYNAMIC) => true,
        Some(names::DISABLED) => false,
        _ => {
            let roles = annotations.keys().any(|key| key.strip_prefix(names::ANNOTATION_PREFIX) == Some("roles"));
            namespace_opted_in && (roles || containers.contains(&names::ETCD_CONTAINER))
        }
    }
}

/// The subject's CN for `role`: at most 64 characters (RFC 5280, ub-common-name); a longer name is cut and ended by a
/// digest of the whole. So is a name that reads like a cut one, which would have the CN of another. `name` is the pod's name, for
/// a client the user.
pub fn common_name(role: Role, name: &str) -> String {
    let prefix = role.common_name_prefix();
    let room = MAX_COMMON_NAME - prefix.len();
    if name.len() < room || (name.len() == room && !names::is_cut(name)) {
        return format!("{prefix}{name}");
    }
    let digest = hex(digest::digest(&digest::SHA256, name.as_bytes()).as_ref());
    let kept: String = name.chars().filter(char::is_ascii).take(room - 1 - CUT_DIGITS).collect();
    format!("{prefix}{kept}-{}", &digest[..CUT_DIGITS])
}

/// The subject's CN for `role` of `pod`, as its settings say it: [`common_name`] of the pod's name, for a client of its user,
/// which is `<serviceaccount>.<namespace>` unless the settings name another.
pub fn subject_common_name(role: Role, pod: &PodFacts, settings: &Settings) -> String {
    match role {
        Role::Client => match &settings.user {
            Some(user) => common_name(role, user),
            None => common_name(role, &default_user(pod)),
        },
        Role::Peer | Role::Server | Role::Metrics => common_name(role, &pod.name),
    }
}

fn default_user(pod: &PodFacts) -> String {
    format!("{}.{}", pod.service_account, pod.namespace)
}

/// The names and addresses that the requester itself can know: its IPs, its hostname, `localhost`, and the `extra-sans` of its
/// settings. A subset of [`entitlement`], except that policy may refuse those last.
///
/// The hostname alone is never asked for: it is issued only in the namespace-qualified forms, which take a subdomain.
pub fn requested_sans(role: Role, pod: &PodFacts, settings: &Settings) -> Sans {
    let mut sans = own_sans(role, pod);
    sans.dns.extend(hostnames(role, pod).into_iter().flat_map(|name| short_forms(&name, &pod.namespace)));
    if takes_extra_sans(role) {
        sans.extend(&settings.extra_sans);
    }
    sans
}

/// The whole grammar: all that `role` of `pod` is entitled to from `addressee`. From another project's issuer, that is what the
/// cluster of the pod's own namespace gives. The pod may have no address yet; the caller decides whether to wait for one.
///
/// # Errors
/// Every reason to deny.
pub fn entitlement(
    role: Role,
    pod: &PodFacts,
    services: &[ServiceFacts],
    settings: &Settings,
    policy: &Policy,
    addressee: Addressee<'_>,
) -> Result<Entitlement, Vec<Denial>> {
    let (signer, name) = match addressee {
        Addressee::Ours(_) => (settings.our_signer(role, &pod.namespace), "this signer".to_owned()),
        Addressee::Another(issuer) => {
            let named = *issuer == settings.issuer && !settings.is_ours();
            (named.then(|| settings.home(&pod.namespace).signer(role.domain())), issuer.to_string())
        }
    };
    let mut denials = Vec::new();
    let mut deny = |reason, message| denials.push(Denial { reason, message });

    if !settings.roles.contains(&role) {
        deny("WrongRole", format!("the pod's {}roles do not hold {role}", names::ANNOTATION_PREFIX));
    }
    if signer.is_none() {
        deny("WrongSigner", format!("the pod's issuer is {}, not {name}", settings.issuer));
    }
    if let Some(signer) = &signer
        && !policy.allows_cluster(&pod.namespace, signer, role)
    {
        deny(
            "WrongNamespace",
            format!(
                "policy's crossNamespace lets no pod of {} be a {role} of {}/{}",
                pod.namespace, signer.namespace, signer.cluster
            ),
        );
    }
    if role == Role::Client
        && let Some(user) = &settings.user
        && *user != default_user(pod)
        && !policy.allows_user(&pod.namespace, &pod.service_account, user)
    {
        deny(
            "WrongUser",
            format!("policy's users do not let {} of {} be the etcd user {user}", pod.service_account, pod.namespace),
        );
    }
    if role == Role::Client
        && settings.user.as_ref().is_none_or(|user| *user == default_user(pod))
        && let Some(signer) = &signer
        && let Some(host) = policy.host_with_user(signer, &default_user(pod))
        && !policy.allows_user(&pod.namespace, &pod.service_account, &default_user(pod))
    {
        let (user, username) = (default_user(pod), &host.username);
        deny(
            "WrongUser",
            format!("the etcd user {user} is that of the policy's host {username}; name another service account"),
        );
    }
    let Some(signer) = signer.filter(|_| denials.is_empty()) else { return Err(denials) };

    let mut sans = own_sans(role, pod);
    let hostnames = hostnames(role, pod).into_iter();
    sans.dns.extend(hostnames.flat_map(|name| all_forms(&name, &pod.namespace, &policy.cluster_domain)));
    if needs_addresses(role) {
        for service in services.iter().filter(|service| selects(service, pod)) {
            sans.dns.extend(all_forms(&service.name, &pod.namespace, &policy.cluster_domain));
            if role == Role::Server {
                sans.ips.extend(service.cluster_ips.iter().copied().filter(|ip| is_host(*ip)));
            }
        }
    }
    if takes_extra_sans(role) {
        sans.extend(&policy.allowed_extra_sans(&pod.namespace, &signer, &settings.extra_sans));
    }
    Ok(Entitlement {
        role,
        common_name: subject_common_name(role, pod, settings),
        sans,
        lifetime: settings.duration.min(policy.lifetime.max),
        signer,
    })
}

/// The reason to wait, where `role` needs an address of `pod` and it has none yet.
pub(super) fn lacks_address(role: Role, pod: &PodFacts) -> Option<String> {
    (needs_addresses(role) && addresses(pod).next().is_none())
        .then(|| format!("pod {}/{} has no IP address yet", pod.namespace, pod.name))
}

/// True if the role is found by address: others dial it, or check its certificate against where it dials from.
const fn needs_addresses(role: Role) -> bool {
    matches!(role, Role::Peer | Role::Server)
}

/// A metrics client's certificate has no SAN, since etcd checks a scraper's against its address. A client's has none but
/// the extra ones: nobody dials it, and a proxy between it and etcd must not matter.
const fn takes_extra_sans(role: Role) -> bool {
    !matches!(role, Role::Metrics)
}

/// The addresses that a pod may have: a status that says loopback, multicast or link-local is not believed.
fn addresses(pod: &PodFacts) -> impl Iterator<Item = IpAddr> {
    pod.ips.iter().copied().filter(|ip| is_host(*ip))
}

fn is_host(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    names::is_san_ip(ip) && !ip.is_loopback() && !link_local
}

/// The names and addresses that need no Service and no DNS: the pod's addresses; loopback and `localhost` for the server role,
/// whose own gateway and probes dial them.
fn own_sans(role: Role, pod: &PodFacts) -> Sans {
    let mut sans = Sans::default();
    if needs_addresses(role) {
        sans.ips.extend(addresses(pod));
    }
    if role == Role::Server {
        sans.dns.insert("localhost".to_owned());
        sans.ips.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    sans
}

/// `<hostname>.<subdomain>`, where the pod has a subdomain and the role is dialled.
fn hostnames(role: Role, pod: &PodFacts) -> Option<String> {
    let subdomain = pod.subdomain.as_ref().filter(|subdomain| names::is_dns_label(subdomain))?;
    (needs_addresses(role) && names::is_dns_label(&pod.hostname)).then(|| format!("{}.{subdomain}", pod.hostname))
}

/// `<name>.<namespace>` and `….svc`: the forms that need no cluster domain.
///
/// A namespace called `svc` gets the second alone: there `<hostname>.<subdomain>.<namespace>` could spell
/// `kubernetes.default.svc`.
fn short_forms(name: &str, namespace: &str) -> Vec<String> {
    let mut forms = vec![format!("{name}.{namespace}.svc")];
    if namespace != "svc" {
        forms.push(format!("{name}.{namespace}"));
    }
    forms.retain(|form| names::is_san_dns_name(form));
    forms
}

/// [`short_forms`] and `….svc.<cluster domain>`.
fn all_forms(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let mut forms = short_forms(name, namespace);
    forms.push(format!("{name}.{namespace}.svc.{domain}"));
    forms.retain(|form| names::is_san_dns_name(form));
    forms
}

/// True if the Service's selector takes the pod in. An empty selector selects nothing.
fn selects(service: &ServiceFacts, pod: &PodFacts) -> bool {
    !service.selector.is_empty()
        && names::is_dns_label(&service.name)
        && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}
