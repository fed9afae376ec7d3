//! Recognises a requester with a pod-bound service-account token in the user info that the API server records.

use super::{BoundPod, Denial, Requester};
use crate::names;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// The key of `spec.extra` under which the API server says which pod a token is bound to, by uid.
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// The prefix of service accounts' usernames.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Recognises a pod-bound service-account token in what the API server says of the requester.
///
/// # Errors
/// Every reason why it is none.
pub fn bound_pod(requester: &Requester) -> Result<BoundPod, Vec<Denial>> {
    let mut denials = Vec::new();
    let mut deny = |message: String| denials.push(Denial { reason: "BadRequester", message });

    let account = requester.username.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let account = account.filter(|(namespace, name)| names::is_dns_label(namespace) && names::is_dns_subdomain(name));
    if account.is_none() {
        deny(format!(
            "the requester {:?} is no service account; a pod asks with a token of its own",
            requester.username
        ));
    }
    let (namespace, service_account) = account.unwrap_or_default();
    if requester.uid.is_empty() {
        deny("the requester has no uid".to_owned());
    }
    for group in [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ] {
        if !requester.groups.contains(&group) {
            deny(format!("the requester is not in the group {group}"));
        }
    }
    // Keys reach the API server lower-cased from its own authenticator; another spelling comes from impersonation.
    for key in requester.extra.keys() {
        let lower = key.to_ascii_lowercase();
        if *key != lower && [POD_NAME, POD_UID, NODE_NAME, CREDENTIAL_ID].contains(&lower.as_str()) {
            deny(format!("the requester's extra key {key:?} is not spelt as the API server spells it"));
        }
    }
    let mut single = |key: &str, fine: &dyn Fn(&str) -> bool| {
        match requester.extra.get(key).map(Vec::as_slice) {
            Some([value]) if fine(value) => return value.clone(),
            Some([_]) => deny(format!("the requester's {key} has no value that the API server gives")),
            Some(_) => deny(format!("the requester's {key} has not exactly one value")),
            None => deny(format!("the requester has no {key}: the token is not bound to a pod")),
        }
        String::new()
    };
    let pod = single(POD_NAME, &names::is_dns_subdomain);
    let pod_uid = single(POD_UID, &is_uid);
    let node = single(NODE_NAME, &names::is_dns_subdomain);
    single(CREDENTIAL_ID, &|id| id.strip_prefix("JTI=").is_some_and(|jti| !jti.is_empty()));

    if !denials.is_empty() {
        return Err(denials);
    }
    Ok(BoundPod { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod, pod_uid, node })
}

/// A uid as the API server makes them; as part of a CSR's name it must be fit for one.
fn is_uid(s: &str) -> bool {
    names::is_dns_label(s)
}
