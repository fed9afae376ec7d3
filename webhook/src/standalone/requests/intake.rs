//! Reads a new request strictly, sets its caller's identity, and names every invalid field.

use std::collections::{BTreeMap, BTreeSet};

use etcd_tls_contract::{
    csr::{MAX_REQUEST, Request},
    encoding::hex,
    identity::usages,
    key::KeyAlgorithm,
    names::{ClusterName, SignerName, SignerNameError},
    policy::AllowedKeys,
    role::Role,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::certificates::v1::CertificateSigningRequest,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::{Value, json};

use crate::standalone::{
    auth::User,
    error::{ApiError, Cause},
    requests::server::Server,
    subject::{Recognised, host_of, recognise},
    version::Version,
};

/// The signer name that v1beta1 gives a request without one: the profile follows from the subject alone.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";
/// The shortest life that may be asked for, as the API server has it.
const MIN_SECONDS: i32 = 600;
/// The longest name, and what one may be made of.
const MAX_NAME: usize = 253;
/// Labels and annotations together.
const MAX_METADATA: usize = 8 * 1024;

/// The parsed content of a request.
pub struct Checked {
    /// The request, strictly read.
    pub request: Request,
    /// Its profile.
    pub recognised: Recognised,
    /// Its signer; `None` for v1beta1's unknown one.
    pub signer: Option<SignerName>,
}

/// The object of the body, in the words of v1.
pub(super) fn read(version: Version, mut value: Value) -> Result<CertificateSigningRequest, ApiError> {
    let Some(object) = value.as_object_mut() else {
        return Err(ApiError::BadRequest("the object provided is unrecognized: no JSON object".to_owned()));
    };
    let is = |key: &str, expected: &str| object.get(key).is_none_or(|v| v == expected || v == "");
    if !is("kind", "CertificateSigningRequest") || !is("apiVersion", version.api_version()) {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data and its kind must be {} and CertificateSigningRequest",
            version.api_version()
        )));
    }
    object.insert("kind".to_owned(), json!("CertificateSigningRequest"));
    object.insert("apiVersion".to_owned(), json!(Version::V1.api_version()));
    if version == Version::V1beta1 {
        let spec = object.entry("spec").or_insert_with(|| json!({}));
        if let Some(spec) = spec.as_object_mut()
            && spec.get("signerName").is_none_or(|name| name == "" || name.is_null())
        {
            spec.insert("signerName".to_owned(), json!(LEGACY_UNKNOWN));
        }
    }
    serde_json::from_value(value).map_err(|e| {
        ApiError::BadRequest(format!(
            "CertificateSigningRequest in version {:?} cannot be handled: {e}",
            version.as_str()
        ))
    })
}

/// Keeps of the object what a caller may say, and puts the rest: identity, uid, time.
pub(super) fn own(csr: &mut CertificateSigningRequest, user: &User) -> Result<(), ApiError> {
    let mut id = [0; 16];
    let mut letters = [0; 5];
    aws_lc_rs::rand::fill(&mut id)
        .and_then(|()| aws_lc_rs::rand::fill(&mut letters))
        .map_err(|_| ApiError::Internal("the system gives no random numbers".to_owned()))?;
    let said = std::mem::take(&mut csr.metadata);
    let generate = said.generate_name.filter(|g| !g.is_empty());
    let name = match (said.name.filter(|n| !n.is_empty()), &generate) {
        (Some(name), _) => name,
        (None, Some(prefix)) => {
            // The alphabet of Kubernetes: without vowels, so that no real words appear.
            const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
            let suffix = letters.iter().map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]));
            prefix.chars().chain(suffix).collect()
        }
        (None, None) => String::new(),
    };
    csr.metadata = ObjectMeta {
        name: Some(name),
        generate_name: generate,
        labels: said.labels,
        annotations: said.annotations,
        uid: Some(uuid(id)),
        creation_timestamp: Some(Time(Timestamp::now())),
        ..ObjectMeta::default()
    };
    csr.spec.username = Some(user.name.clone());
    csr.spec.uid = (!user.uid.is_empty()).then(|| user.uid.clone());
    csr.spec.groups = Some(user.groups.clone());
    csr.spec.extra = (!user.extra.is_empty()).then(|| user.extra.clone());
    csr.status = None;
    Ok(())
}

/// A UUID of version 4.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let digits = hex(&bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// True if a request may be called so: as Kubernetes allows names in paths, and with nothing that reads as a path.
/// The etcd-certificate-generator's agents use their CN, which has colons.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= MAX_NAME
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("..")
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(b))
}

/// Every field that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join("; "))]
pub struct InvalidRequest(pub(super) Vec<Cause>);

/// Reads the request itself.
///
/// # Errors
/// Every field that is wrong.
pub(super) fn check(
    server: &Server,
    version: Version,
    csr: &CertificateSigningRequest,
) -> Result<Checked, InvalidRequest> {
    checked(server, version, csr, bounds(csr))
}

fn checked(
    server: &Server,
    version: Version,
    csr: &CertificateSigningRequest,
    mut causes: Vec<Cause>,
) -> Result<Checked, InvalidRequest> {
    causes.extend(check_metadata(csr));
    let mut wrong = |field: &'static str, message: String| causes.push(Cause { field, message });
    if csr.spec.expiration_seconds.is_some_and(|s| s < MIN_SECONDS) {
        wrong("spec.expirationSeconds", format!("may not specify a duration less than {MIN_SECONDS} seconds"));
    }
    let signer = check_signer(server, version, &csr.spec.signer_name).unwrap_or_else(|message| {
        wrong("spec.signerName", message);
        None
    });
    match check_request(server, csr, signer.as_ref()) {
        Ok((request, recognised)) => {
            if let Some(message) = name_of_another(csr, &request) {
                wrong("metadata.name", message);
            }
            let asked = csr.spec.usages.as_deref().unwrap_or_default();
            if let Some(message) = wrong_usages(version, recognised.role, asked) {
                wrong("spec.usages", message);
            }
            if causes.is_empty() { Ok(Checked { request, recognised, signer }) } else { Err(InvalidRequest(causes)) }
        }
        Err(message) => {
            wrong("spec.request", message);
            Err(InvalidRequest(causes))
        }
    }
}

/// The fault of a request that has the CN of another host for its name: the old agent of that host names its requests so, and would
/// find the name taken.
fn name_of_another(csr: &CertificateSigningRequest, request: &Request) -> Option<String> {
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    let of_another = host_of(name).is_some() && name != request.common_name;
    of_another.then(|| format!("is the CN of a host, and not that of this request, {}", request.common_name))
}

/// What bounds the size of a request that is stored. One that is stored already may be beyond it, of an earlier version.
fn bounds(csr: &CertificateSigningRequest) -> Vec<Cause> {
    let mut causes = Vec::new();
    if csr.metadata.generate_name.as_deref().is_some_and(|prefix| prefix.len() > MAX_NAME) {
        let message = format!("must be no more than {MAX_NAME} bytes");
        causes.push(Cause { field: "metadata.generateName", message });
    }
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    if usages.iter().collect::<BTreeSet<_>>().len() < usages.len() {
        causes.push(Cause { field: "spec.usages", message: "has a usage twice".to_owned() });
    }
    causes
}

fn check_metadata(csr: &CertificateSigningRequest) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !is_name(csr.metadata.name.as_deref().unwrap_or_default()) {
        let message = "must be of 1 to 253 letters, digits, '-', '.', '_' or ':', begin and end with a letter or digit, and \
                       hold no '..'";
        causes.push(Cause { field: "metadata.name", message: message.to_owned() });
    }
    let size = |map: &Option<BTreeMap<String, String>>| -> usize {
        map.iter().flatten().map(|(k, v)| k.len() + v.len()).sum()
    };
    if size(&csr.metadata.labels) + size(&csr.metadata.annotations) > MAX_METADATA {
        let message = format!("labels and annotations are over {MAX_METADATA} bytes");
        causes.push(Cause { field: "metadata.annotations", message });
    }
    causes
}

/// The signer that is asked; `None` for v1beta1's unknown one.
fn check_signer(server: &Server, version: Version, name: &str) -> Result<Option<SignerName>, String> {
    match name.parse::<SignerName>() {
        Ok(signer) => {
            let is = |c: &ClusterName| c.namespace == signer.namespace && c.name == signer.cluster;
            if server.cluster.as_ref().is_none_or(is) {
                Ok(Some(signer))
            } else {
                Err(format!("{signer} is of another cluster than this signer's"))
            }
        }
        Err(_) if version == Version::V1beta1 && name == LEGACY_UNKNOWN => Ok(None),
        Err(SignerNameError::Foreign(name)) => Err(format!(
            "{name:?} is no signer of this server; it is <peer|client|metrics>.etcd-tls.dev/<namespace>.<cluster>"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The request in the object: its subject, key and authority.
fn check_request(
    server: &Server,
    csr: &CertificateSigningRequest,
    signer: Option<&SignerName>,
) -> Result<(Request, Recognised), String> {
    let pem = &csr.spec.request.0;
    if pem.len() > MAX_REQUEST {
        return Err(format!("is {} bytes long; {MAX_REQUEST} are the limit", pem.len()));
    }
    let request = Request::parse(pem).map_err(|e| e.to_string())?;
    let recognised = recognise(&request).map_err(|e| e.to_string())?;
    let role = recognised.role;
    let keys = &server.entitlements.policy().keys;
    // The old agents make no other keys. A policy that lists the keys holds for them, too.
    let of_old_agent = csr.spec.signer_name == LEGACY_UNKNOWN
        && request.key == KeyAlgorithm::Rsa2048
        && *keys == AllowedKeys::default();
    if !keys.allow(request.key) && !of_old_agent {
        return Err(format!("keys of the kind {} are not signed here", request.key));
    }
    if server.profiles.lifetime(role).is_none() {
        return Err(format!("this signer has no CA for {role} certificates"));
    }
    match signer {
        Some(signer) if signer.domain != role.domain() => {
            Err(format!("a {role} certificate is signed by {}.etcd-tls.dev/..., not by {signer}", role.domain()))
        }
        _ => Ok((request, recognised)),
    }
}

/// Reads a stored request again, to decide on it by hand.
///
/// # Errors
/// The fault, for the `Failed` condition.
pub fn check_again(server: &Server, csr: &CertificateSigningRequest) -> Result<Checked, InvalidRequest> {
    // Under v1beta1 alone may a request have the unknown signer; its object does not say which version made it.
    checked(server, Version::V1beta1, csr, Vec::new())
}

/// The fault of the requested usages: each must be one that the profile issues. `None`: no fault.
fn wrong_usages(version: Version, role: Role, asked: &[String]) -> Option<String> {
    if asked.is_empty() {
        // v1beta1 has a default of its own, which the old agents rely on.
        return (version == Version::V1).then(|| format!("is required: {}", usages(role).join(", ")));
    }
    // RSA keys of TLS 1.2 and before: named by many a client, issued to none.
    let allowed = |usage: &String| {
        usage == "key encipherment"
            || usages(role).contains(&usage.as_str())
            || (role == Role::Metrics && usage == "server auth")
    };
    let beyond: Vec<&str> = asked.iter().filter(|u| !allowed(u)).map(String::as_str).collect();
    (!beyond.is_empty()).then(|| {
        format!("{} is not for a {role} certificate, whose usages are {}", beyond.join(", "), usages(role).join(", "))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::standalone::codec::object;

    fn read(version: Version, body: &[u8]) -> Result<CertificateSigningRequest, ApiError> {
        super::read(version, object("application/json", body)?)
    }

    #[test]
    fn names_are_never_paths() {
        for good in ["a", "system:etcd-peer:m1", "etcd-tls-m1-peer-00", "node-csr-AbC", &"a".repeat(253)] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/b",
            "a..b",
            "a%2fb",
            "a b",
            "a\0b",
            "ä",
            "-a",
            "a:",
            ".a",
            &"a".repeat(254),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_callers_identity_replaces_what_the_body_says() {
        let body = json!({
            "kind": "CertificateSigningRequest",
            "apiVersion": "certificates.k8s.io/v1",
            "metadata": { "name": "a", "uid": "forged", "resourceVersion": "7", "finalizers": ["x"], "labels": { "k": "v" } },
            "spec": {
                "request": "", "signerName": "x/y", "username": "admin", "uid": "0", "groups": ["system:masters"],
                "extra": { "authentication.kubernetes.io/pod-uid": ["forged"] },
            },
            "status": { "certificate": "Zm9yZ2Vk", "conditions": [{ "type": "Approved", "status": "True" }] },
        });
        let mut csr = read(Version::V1, body.to_string().as_bytes()).unwrap();
        let user = User { name: "m1".to_owned(), groups: vec!["g".to_owned()], ..User::default() };
        own(&mut csr, &user).unwrap();
        assert_eq!(csr.spec.username.as_deref(), Some("m1"));
        assert_eq!(csr.spec.groups, Some(vec!["g".to_owned()]));
        assert_eq!((csr.spec.uid, csr.spec.extra, csr.status), (None, None, None));
        assert_eq!((csr.metadata.resource_version, csr.metadata.finalizers), (None, None));
        assert_ne!(csr.metadata.uid.as_deref(), Some("forged"));
        assert_eq!(csr.metadata.labels.unwrap()["k"], "v");
    }

    #[test]
    fn a_body_that_is_no_request_is_a_400() {
        let deep = "[".repeat(10_000);
        for body in [
            "",
            "null",
            "[]",
            "\"x\"",
            "{",
            "{} x",
            "{\"kind\":\"Pod\"}",
            "{\"apiVersion\":\"certificates.k8s.io/v1beta1\"}",
            "{\"kind\":1}",
            "{\"metadata\":[]}",
            "{\"spec\":{\"request\":\"%%\"}}",
            "{\"spec\":{\"usages\":\"a\"}}",
            &deep,
        ] {
            assert!(matches!(read(Version::V1, body.as_bytes()), Err(ApiError::BadRequest(_))), "{body:.40}");
        }
        assert!(read(Version::V1, b"\xff\xfe").is_err());
    }

    #[test]
    fn an_old_agents_request_has_no_signer_and_no_usages() {
        let body = r#"{"kind":"CertificateSigningRequest","apiVersion":"certificates.k8s.io/v1beta1",
            "metadata":{"name":"system:etcd-peer:m1","creationTimestamp":null},"spec":{"request":"eA=="},"status":{}}"#;
        let csr = read(Version::V1beta1, body.as_bytes()).unwrap();
        assert_eq!(csr.spec.signer_name, LEGACY_UNKNOWN);
        assert_eq!(wrong_usages(Version::V1beta1, Role::Peer, &[]), None);
        assert!(wrong_usages(Version::V1, Role::Peer, &[]).is_some());
        let asked = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            wrong_usages(Version::V1, Role::Peer, &asked(&["digital signature", "key encipherment", "server auth"])),
            None
        );
        for usage in ["any", "cert sign", "code signing", "crl sign"] {
            assert!(wrong_usages(Version::V1, Role::Peer, &asked(&[usage])).is_some(), "{usage}");
        }
        assert!(wrong_usages(Version::V1, Role::Client, &asked(&["server auth"])).is_some());
        // Of a request that is stored, it is no fault.
        let twice = asked(&["client auth", "client auth"]);
        assert_eq!(wrong_usages(Version::V1beta1, Role::Client, &twice), None);
        let mut csr = csr;
        csr.spec.usages = Some(twice);
        csr.metadata.generate_name = Some("x".repeat(MAX_NAME + 1));
        let fields: Vec<_> = bounds(&csr).into_iter().map(|cause| cause.field).collect();
        assert_eq!(fields, ["metadata.generateName", "spec.usages"]);
    }
}
