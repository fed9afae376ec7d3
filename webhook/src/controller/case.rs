//! A controller's decision as a function of values: which CSRs are the approver's to decide, what the rules of identity say of
//! one, and the answer to write.
//!
//! The rules themselves are [`etcd_tls_contract::identity::judge`]; here is what stands around it: signer names that are no good,
//! requests that cannot be read, and what is written for each verdict.

use std::time::SystemTime;

use etcd_tls_contract::{
    csr::Request,
    identity::{
        self, Addressee, BoundPod, Denial, PodFacts, RequestFacts, Requester, SERVICE_ACCOUNT_PREFIX, ServiceFacts,
        Verdict,
    },
    names::{SIGNER_DOMAIN, SignerName, SignerNameError},
    policy::Policy,
    role::{Domain, Role},
    san::Sans,
    settings::Issuer,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::controller::facts::Csr;

/// The reason of an Approved condition.
pub(crate) const APPROVED: &str = "EtcdTlsApproved";
/// The reason of a condition [`etcd_tls_contract::names::REVIEWED_CONDITION`].
pub(crate) const MANUAL: &str = "ManualApproval";
/// The reason of a Denied condition; its message lists the objections.
pub(crate) const DENIED: &str = "EtcdTlsDenied";
const TOO_LARGE: &str = "the CertificateSigningRequest is larger than any that is needed";
/// Bytes of one reason's message: names out of a request may be as long as a request.
const MAX_MESSAGE: usize = 1024;
/// Bytes of a condition's message. The admission policies on what `approve` and `sign` write take no more characters.
const MAX_MESSAGES: usize = 8 * 1024;
/// The end of a message that does not hold every reason.
const MORE: &str = "; and more";

/// True if a CSR is neither decided nor done with by anybody.
pub(crate) fn is_open(csr: &Csr) -> bool {
    !(csr.approved() || csr.denied() || csr.failed() || csr.status.has_certificate)
}

/// True if somebody else than `approve` approved it. The admission policy on writes to requests keeps its reason for `approve`.
pub(crate) fn is_approved_by_another(csr: &Csr) -> bool {
    let by_another = |reason: Option<&str>| reason != Some(APPROVED);
    csr.status.conditions.iter().any(|c| c.type_ == "Approved" && c.status == "True" && by_another(c.reason.as_deref()))
}

/// True if a signer name is ours to decide about, well-formed or not. Under our domain that is what the approver has the
/// right to decide: the three domains, and their parent. Others (`x.etcd-tls.dev/…`) are nobody's.
pub(crate) fn is_ours(signer_name: &str) -> bool {
    match signer_name.parse::<SignerName>() {
        Ok(_) => true,
        Err(SignerNameError::Foreign(_)) => false,
        Err(SignerNameError::Malformed(_)) => {
            let host = signer_name.split('/').next().unwrap_or_default();
            host == SIGNER_DOMAIN
                || Domain::ALL.iter().any(|domain| host.strip_suffix(SIGNER_DOMAIN) == Some(&format!("{domain}.")))
        }
    }
}

/// True if a request to another's signer is a pod's, by the name that the admission policies on requests give it. `approve` decides
/// about it only where its arguments say so; `sign` deletes it when it is done with.
pub(crate) fn is_a_pods_to_another(csr: &Csr) -> bool {
    let names = |uid: &str| {
        let rest = csr.name().strip_prefix("etcd-tls-").and_then(|name| name.strip_prefix(uid));
        let Some((role, digest)) = rest.and_then(|rest| rest.strip_prefix('-')?.split_once('-')) else { return false };
        uid.len() == 36
            && Role::ALL.into_iter().any(|known| known.as_str() == role)
            && digest.len() == 32
            && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    !is_ours(&csr.spec.signer_name)
        && csr.spec.username.starts_with(SERVICE_ACCOUNT_PREFIX)
        && csr.pod_uid().is_some_and(names)
}

/// A CSR that concerns us, read as far as it can be without its pod.
#[derive(Debug)]
pub(crate) struct Case {
    requester: Requester,
    /// The pod that the requester's token is bound to.
    pub(crate) bound: Option<BoundPod>,
    /// The parts to judge, or the reasons why the request cannot be read.
    readable: Result<(Signer, Request), Vec<Denial>>,
}

/// The signer that a request is addressed to.
#[derive(Debug)]
enum Signer {
    Ours(SignerName),
    Another(Issuer),
}

impl Signer {
    fn of(csr: &Csr) -> Result<Self, SignerNameError> {
        let name = &csr.spec.signer_name;
        if let Some(issuer) = &csr.spec.issuer {
            return Ok(Self::Another(Issuer::CertManager(issuer.clone())));
        }
        match name.parse() {
            Ok(ours) => Ok(Self::Ours(ours)),
            Err(SignerNameError::Foreign(_)) => Ok(Self::Another(Issuer::Foreign(name.clone()))),
            Err(error @ SignerNameError::Malformed(_)) => Err(error),
        }
    }

    const fn addressee(&self) -> Addressee<'_> {
        match self {
            Self::Ours(signer) => Addressee::Ours(signer),
            Self::Another(issuer) => Addressee::Another(issuer),
        }
    }
}

impl Case {
    /// Reads a CSR.
    pub(crate) fn open(csr: &Csr) -> Self {
        let requester = csr.requester();
        let bound = identity::bound_pod(&requester);
        let mut denials = Vec::new();
        let signer = Signer::of(csr).map_err(|error| {
            denials.push(Denial { reason: "WrongSigner", message: error.to_string() });
        });
        let request = if csr.cut {
            denials.push(Denial { reason: "TooLarge", message: TOO_LARGE.to_owned() });
            Err(())
        } else {
            Request::parse(&csr.spec.request.0).map_err(|error| {
                denials.push(Denial { reason: error.reason, message: error.message });
            })
        };
        if csr.spec.is_ca {
            denials.push(Denial { reason: "WrongUsages", message: "spec.isCA: a pod gets no CA".to_owned() });
        }
        let readable = match (signer, request) {
            (Ok(signer), Ok(request)) if denials.is_empty() => Ok((signer, request)),
            _ => {
                // Nothing more can be said of the request, but of who asks there can.
                if let Err(who) = &bound
                    && requester.username.starts_with(SERVICE_ACCOUNT_PREFIX)
                {
                    denials.extend(who.iter().cloned());
                }
                Err(denials)
            }
        };
        Self { requester, bound: bound.ok(), readable }
    }

    /// The pod that the verdict depends on, and that must be read.
    pub(crate) fn needs_pod(&self) -> Option<&BoundPod> {
        self.readable.as_ref().ok().and(self.bound.as_ref())
    }

    /// The pod for the log, `<namespace>/<name>`; empty for a host.
    pub(crate) fn pod(&self) -> String {
        self.bound.as_ref().map(|bound| format!("{}/{}", bound.namespace, bound.pod)).unwrap_or_default()
    }

    /// The only bytes of the request that a signer looks at: DER SubjectPublicKeyInfo.
    pub(crate) fn public_key(&self) -> Option<&[u8]> {
        self.readable.as_ref().ok().map(|(_, request)| request.public_key.as_slice())
    }

    /// The signer of ours that is asked, if the request can be read.
    pub(crate) fn signer(&self) -> Option<&SignerName> {
        match self.readable.as_ref().ok()? {
            (Signer::Ours(signer), _) => Some(signer),
            (Signer::Another(_), _) => None,
        }
    }

    /// The names and addresses that are asked for.
    pub(crate) fn sans(&self) -> Option<&Sans> {
        self.readable.as_ref().ok().map(|(_, request)| &request.sans)
    }

    /// The verdict, given the live pod and the Services of its namespace.
    pub(crate) fn judge(
        &self,
        csr: &Csr,
        pod: Option<&PodFacts>,
        services: &[ServiceFacts],
        policy: &Policy,
    ) -> Verdict {
        match &self.readable {
            Ok((signer, request)) => {
                let asked = RequestFacts {
                    name: csr.name(),
                    signer: signer.addressee(),
                    requester: &self.requester,
                    usages: &csr.spec.usages,
                    expiration: csr.expiration(),
                    request,
                };
                identity::judge(&asked, pod, services, policy)
            }
            Err(denials) => Verdict::Deny(denials.clone()),
        }
    }
}

/// The reasons in one text of [`MAX_MESSAGES`] bytes at most, for a condition or an event.
pub(crate) fn message(denials: &[Denial]) -> String {
    let mut text = String::new();
    for (index, Denial { reason, message }) in denials.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let mut end = message.len().min(MAX_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let cut = if end < message.len() { "…" } else { "" };
        let one = format!("{separator}{reason}: {}{cut}", &message[..end]);
        // Whatever follows, there is room to say that more does.
        let rest = if index + 1 < denials.len() { MORE.len() } else { 0 };
        if text.len() + one.len() + rest > MAX_MESSAGES {
            text.push_str(MORE);
            break;
        }
        text.push_str(&one);
    }
    text
}

/// The patch of a condition, for a decision about exactly this CSR as it was looked at.
///
/// With uid and resourceVersion it cannot land on a CSR of the same name that was made in the meantime, nor on one that
/// somebody else decided. Conditions that others set stay.
pub(crate) fn patch(csr: &Csr, type_: &str, reason: &str, message: &str, now: SystemTime) -> Value {
    let mut conditions: Vec<Value> =
        csr.status.conditions.iter().filter_map(|c| serde_json::to_value(c).ok()).collect();
    conditions.push(json!({"type": type_, "status": "True", "reason": reason, "message": message}));
    // Of CertificateSigningRequests the API server writes the time.
    if csr.spec.issuer.is_some()
        && let Some(condition) = conditions.last_mut()
        && let Ok(now) = serde_json::to_value(Time(now.try_into().unwrap_or_default()))
    {
        condition["lastTransitionTime"] = now;
    }
    json!({
        "metadata": {"uid": csr.uid(), "resourceVersion": csr.resource_version()},
        "status": {"conditions": conditions},
    })
}

#[cfg(test)]
mod tests;
