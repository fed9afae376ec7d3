//! The rules for the names and addresses of each requester. Pure: values in, verdict out.
//!
//! Shared by the requester, which builds its request from [`requested_sans`], the approver, which judges by [`judge`], and
//! the signer, which judges again and issues [`entitlement`], whole. Nothing in a request's own body is believed; it is only
//! compared.

mod contested;
mod facts;
mod grammar;
mod pod_certificate;
mod requester;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::{
    contested::{Claim, Claimant, Claims, contested, unless_contested},
    facts::{BoundPod, PodFacts, Requester, ServiceFacts},
    grammar::{common_name, entitlement, opted_in, requested_sans, subject_common_name},
    pod_certificate::{PodCertificateFacts, ROLE_ANNOTATION, SHORTEST_POD_CERTIFICATE, judge_for_kubelet},
    requester::{POD_UID, SERVICE_ACCOUNT_PREFIX, bound_pod},
};
use crate::{
    csr::Request,
    duration::format_duration,
    names::{self, SignerName},
    policy::Policy,
    role::Role,
    san::Sans,
    settings::{Issuer, Settings},
};

/// All that one role of one pod is entitled to. The signer issues this, whole; a request may ask for less of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// The role.
    pub role: Role,
    /// The authority that signs it; to another's issuer, the one that would sign it if it were ours.
    pub signer: SignerName,
    /// The subject's CN.
    pub common_name: String,
    /// The names and addresses.
    pub sans: Sans,
    /// The longest life that policy and the pod's settings allow.
    pub lifetime: Duration,
}

/// The verdict on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says no more than its pod is.
    Approve(Entitlement),
    /// Terminal: every reason, for what waiting cannot change.
    Deny(Vec<Denial>),
    /// Waiting may change it (no pod IP yet, policy unreadable): left pending, looked at again.
    NotYet(String),
}

/// One reason to deny; [`Denial::reason`] is its bounded word for metrics and conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// One CamelCase word of a fixed set.
    pub reason: &'static str,
    /// The fault with its values, and the next step; no PEM, no token.
    pub message: String,
}

/// The signer that a request is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee<'a> {
    /// An authority of ours.
    Ours(&'a SignerName),
    /// Another project's issuer. The pod's annotation must name the same one; names and addresses are those that a cluster of the
    /// pod's own namespace gives it.
    Another(&'a Issuer),
}

/// The content of a request, without the pod.
#[derive(Clone, Debug)]
pub struct RequestFacts<'a> {
    /// `metadata.name`.
    pub name: &'a str,
    /// The signer.
    pub signer: Addressee<'a>,
    /// The requester.
    pub requester: &'a Requester,
    /// `spec.usages`.
    pub usages: &'a [String],
    /// `spec.expirationSeconds`.
    pub expiration: Option<Duration>,
    /// `spec.request`, strictly read.
    pub request: &'a Request,
}

/// The verdict, from the live pod (`None`: there is none of that name) and the Services of its namespace.
///
/// A requester that is no service account is judged by [`judge_host`].
pub fn judge(asked: &RequestFacts<'_>, pod: Option<&PodFacts>, services: &[ServiceFacts], policy: &Policy) -> Verdict {
    if !asked.requester.username.starts_with(SERVICE_ACCOUNT_PREFIX) {
        return judge_host(asked, policy);
    }
    let bound = match bound_pod(asked.requester) {
        Ok(bound) => bound,
        Err(denials) => return Verdict::Deny(denials),
    };
    let Some(pod) = pod else {
        // The token was bound to it, so it was there; a name that comes back comes with another uid.
        return deny("PodGone", format!("there is no pod {}/{}", bound.namespace, bound.pod));
    };
    let mut denials = live(&bound, pod, "token");
    let settings = match Settings::parse(&pod.annotations) {
        Ok(settings) => settings,
        Err(problems) => {
            denials.extend(problems.iter().map(|problem| denial("BadAnnotation", problem.to_string())));
            return Verdict::Deny(denials);
        }
    };
    let role = match role_of(asked, Some(&bound.pod_uid)) {
        Ok(role) => role,
        Err(wrong) => {
            denials.push(wrong);
            return Verdict::Deny(denials);
        }
    };
    denials.extend(form(asked, role, &subject_common_name(role, pod, &settings), policy));
    let mut entitlement = match entitlement(role, pod, services, &settings, policy, asked.signer) {
        Ok(entitlement) => entitlement,
        Err(more) => {
            denials.extend(more);
            return Verdict::Deny(denials);
        }
    };
    if let Some(reason) = grammar::lacks_address(role, pod) {
        // Objections that no address will change are returned now.
        return if denials.is_empty() { Verdict::NotYet(reason) } else { Verdict::Deny(denials) };
    }
    denials.extend(content(asked, &entitlement));
    // The annotation may have changed since. The requested lifetime counts, within policy.
    entitlement.lifetime = asked.expiration.unwrap_or(entitlement.lifetime).min(policy.lifetime.max);
    if denials.is_empty() { Verdict::Approve(entitlement) } else { Verdict::Deny(denials) }
}

/// The verdict on a host or static pod that policy lists by the name it authenticates with: its certificate holds what
/// policy says, all of it, and its CSR's name ends with the role and the key's digest.
pub fn judge_host(asked: &RequestFacts<'_>, policy: &Policy) -> Verdict {
    let requester = asked.requester;
    if let Addressee::Another(issuer) = asked.signer {
        return deny("BadRequester", format!("{:?} is no pod: {issuer} is asked by pods alone", requester.username));
    }
    let Some(host) = policy.host(&requester.username, &requester.groups) else {
        return deny(
            "BadRequester",
            format!(
                "{:?} is neither a pod nor a host that policy lists: a pod asks with a token of its own",
                requester.username
            ),
        );
    };
    let role = match role_of(asked, None) {
        Ok(role) => role,
        Err(d) => return Verdict::Deny(vec![d]),
    };
    let signer = host.cluster.signer(role.domain());
    let lifetime = asked.expiration.unwrap_or(policy.lifetime.max).min(policy.lifetime.max);
    let sans = if role == Role::Metrics { Sans::default() } else { host.sans() };
    let entitlement = Entitlement { role, signer, common_name: common_name(role, &host.common_name), sans, lifetime };
    let mut denials = Vec::new();
    if !host.roles.contains(&role) {
        denials.push(denial("WrongRole", format!("policy does not let the host {} be a {role}", host.username)));
    }
    denials.extend(form(asked, role, &entitlement.common_name, policy));
    denials.extend(content(asked, &entitlement));
    if denials.is_empty() { Verdict::Approve(entitlement) } else { Verdict::Deny(denials) }
}

fn denial(reason: &'static str, message: impl Into<String>) -> Denial {
    Denial { reason, message: message.into() }
}

fn deny(reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict::Deny(vec![denial(reason, message)])
}

/// Checks that the live pod is the one that the token, or kubelet's request, names, is running, and has opted in.
fn live(bound: &BoundPod, pod: &PodFacts, source: &str) -> Vec<Denial> {
    let mut denials = Vec::new();
    let name = format!("{}/{}", pod.namespace, pod.name);
    for (what, live, said) in [
        ("namespace", &pod.namespace, &bound.namespace),
        ("name", &pod.name, &bound.pod),
        ("uid", &pod.uid, &bound.pod_uid),
        ("service account", &pod.service_account, &bound.service_account),
        ("node", &pod.node, &bound.node),
    ] {
        if live != said {
            denials.push(denial(
                "WrongPod",
                format!("pod {name} has the {what} {live:?}, but the {source} says {said:?}"),
            ));
        }
    }
    if pod.finished {
        denials.push(denial("PodFinished", format!("pod {name} has finished")));
    }
    if pod.deleting {
        denials.push(denial("PodDeleting", format!("pod {name} is being deleted")));
    }
    let containers: Vec<&str> = pod.containers.iter().map(String::as_str).collect();
    if !opted_in(pod.namespace_opted_in, &pod.labels, &pod.annotations, &containers) {
        denials.push(denial(
            "NotOptedIn",
            format!("pod {name} has not opted in: label it or its namespace {}={}", names::LABEL, names::DYNAMIC),
        ));
    }
    denials
}

/// The role, from the CSR's name, which must be the one that [`names::csr_name`] gives for the pod's `uid` and the key.
/// A host has no uid: there that part of the name is free.
fn role_of(asked: &RequestFacts<'_>, uid: Option<&str>) -> Result<Role, Denial> {
    let digest = asked.request.key_digest();
    let middle = asked.name.strip_prefix("etcd-tls-").and_then(|rest| rest.strip_suffix(&format!("-{digest}")));
    let parts = middle.and_then(|middle| middle.rsplit_once('-'));
    let role = parts.and_then(|(named, role)| {
        let fits = uid.map_or(!named.is_empty(), |uid| named == uid);
        role.parse::<Role>().ok().filter(|_| fits)
    });
    role.ok_or_else(|| {
        let uid = uid.unwrap_or("<name>");
        denial(
            "WrongName",
            format!("the request's name is not etcd-tls-{uid}-<role>-{digest}, of its pod, role and key"),
        )
    })
}

/// Checks the form of a request: subject, usages, key, lifetime.
fn form(asked: &RequestFacts<'_>, role: Role, common_name: &str, policy: &Policy) -> Vec<Denial> {
    let mut denials = Vec::new();
    let request = asked.request;
    if request.organization != role.organization() {
        let message = format!("the subject's O is {:?}, not {:?}", request.organization, role.organization());
        denials.push(denial("WrongSubject", message));
    }
    if request.common_name != common_name {
        let message = format!("the subject's CN is {:?}, not {common_name:?}", request.common_name);
        denials.push(denial("WrongSubject", message));
    }
    let mut asked_usages: Vec<&str> = asked.usages.iter().map(String::as_str).collect();
    let mut needed = usages(role).to_vec();
    asked_usages.sort_unstable();
    needed.sort_unstable();
    if asked_usages != needed {
        let message = format!("the usages are not {}, as a {role} needs them", usages(role).join(", "));
        denials.push(denial("WrongUsages", message));
    }
    if !policy.keys.allow(request.key) {
        denials.push(denial("KeyNotAllowed", format!("policy's keys do not hold {}", request.key)));
    }
    if asked.expiration.is_none() && matches!(asked.signer, Addressee::Another(_)) {
        denials.push(denial("WrongLifetime", "no life is asked for, and another's issuer would choose it".to_owned()));
    }
    if let Some(life) = asked.expiration
        && !(policy.lifetime.min..=policy.lifetime.max).contains(&life)
    {
        let (min, max) = (format_duration(policy.lifetime.min), format_duration(policy.lifetime.max));
        let message = format!("a life of {} is asked for; policy allows {min} to {max}", format_duration(life));
        denials.push(denial("WrongLifetime", message));
    }
    denials
}

/// Checks a request against its pod: signer, names and addresses.
fn content(asked: &RequestFacts<'_>, entitlement: &Entitlement) -> Vec<Denial> {
    let mut denials = Vec::new();
    if let Addressee::Ours(signer) = asked.signer
        && *signer != entitlement.signer
    {
        let message = format!("the signer is {signer}, but this {} is of {}", entitlement.role, entitlement.signer);
        denials.push(denial("WrongSigner", message));
    }
    let beyond = asked.request.sans.beyond(&entitlement.sans);
    if !beyond.is_empty() {
        let message = format!("asked for beyond what the pod is: {}", beyond.join(", "));
        denials.push(denial("NameNotAllowed", message));
    }
    denials
}

/// `spec.usages` that `role` needs, in Kubernetes' words.
pub const fn usages(role: Role) -> &'static [&'static str] {
    match role {
        // A peer is both ends of a connection; etcd's gateway presents the server's certificate as a client.
        Role::Peer | Role::Server => &["digital signature", "server auth", "client auth"],
        Role::Client | Role::Metrics => &["digital signature", "client auth"],
    }
}
