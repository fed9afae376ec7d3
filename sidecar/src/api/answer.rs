//! The body of an API server's answer, in the encoding that its Content-Type says.
//!
//! Protobuf is asked for, since that costs kube-apiserver the least to write; what knows JSON alone (the standalone signer, a
//! proxy's error) answers in JSON.

use bytes::Bytes;
use hyper::{HeaderMap, header::CONTENT_TYPE};
use k8s_openapi::{api::certificates::v1::CertificateSigningRequest, apimachinery::pkg::apis::meta::v1::Status};

use super::protobuf::{self, Envelope, Unreadable};

/// The Accept of a request whose answer can be read in either encoding.
pub const ACCEPT: &str = "application/vnd.kubernetes.protobuf, application/json";
/// The Accept of one whose answer is read as JSON alone.
pub const ACCEPT_JSON: &str = "application/json";

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Anything that is not said to be protobuf.
    Json,
    /// [`protobuf::MEDIA_TYPE`].
    Protobuf,
}

/// A body that is not the object that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Said to be protobuf.
    #[error(transparent)]
    Protobuf(#[from] Unreadable),
    /// Anything else.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Encoding {
    /// What the headers of an answer say.
    pub fn of(headers: &HeaderMap) -> Self {
        let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = value.split(';').next().unwrap_or_default().trim();
        if media_type.eq_ignore_ascii_case(protobuf::MEDIA_TYPE) { Self::Protobuf } else { Self::Json }
    }
}

/// A CertificateSigningRequest; of protobuf what a requester looks at.
///
/// # Errors
/// It is none.
pub fn request(encoding: Encoding, body: Bytes) -> Result<CertificateSigningRequest, ReadError> {
    Ok(match encoding {
        Encoding::Json => serde_json::from_slice(&body)?,
        Encoding::Protobuf => Envelope::open(body)?
            .object::<protobuf::CertificateSigningRequest>("certificates.k8s.io/v1", "CertificateSigningRequest")?
            .into(),
    })
}

/// The Status that an API server says an error by, with message, reason and code; none if it is something else, as a proxy
/// may answer.
pub fn status(encoding: Encoding, body: &Bytes) -> Option<Status> {
    match encoding {
        Encoding::Json => serde_json::from_slice(body).ok(),
        Encoding::Protobuf => {
            let message = Envelope::open(body.clone()).ok()?.object::<protobuf::Status>("v1", "Status").ok()?;
            Some(message.into())
        }
    }
}

/// The message of an error's answer in one line, or the beginning of whatever it is; a few hundred characters at most.
pub fn message(encoding: Encoding, body: &Bytes) -> String {
    let text = match status(encoding, body).and_then(|status| status.message) {
        Some(message) => message,
        None => String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned(),
    };
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;
    use serde_json::json;

    use super::*;
    use crate::api::protobuf::{MAGIC, TypeMeta, Unknown};

    fn seal(api_version: &'static str, kind: &'static str, content: &impl prost::Message) -> Bytes {
        let type_meta = Some(TypeMeta { api_version: api_version.into(), kind: kind.into() });
        let envelope = Unknown { type_meta, raw: content.encode_to_vec().into(), content_encoding: Bytes::new() };
        [MAGIC, &envelope.encode_to_vec()].concat().into()
    }

    #[test]
    fn the_content_type_decides() {
        let of = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (CONTENT_TYPE, value.parse().unwrap())));
            Encoding::of(&headers)
        };
        for value in ["application/vnd.kubernetes.protobuf", "Application/vnd.kubernetes.protobuf ; charset=utf-8"] {
            assert_eq!(of(Some(value)), Encoding::Protobuf);
        }
        for value in [None, Some("application/json"), Some("text/plain"), Some("application/vnd.kubernetes.protobuf2")]
        {
            assert_eq!(of(value), Encoding::Json);
        }
    }

    #[test]
    fn a_request_is_the_same_in_either_encoding() {
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "7"},
            "spec": {"request": "UEVN", "signerName": "a/b", "usages": ["client auth"], "expirationSeconds": 600},
            "status": {
                "conditions": [{"type": "Approved", "status": "True", "reason": "R", "message": "m\u{fffd}"}],
                "certificate": "UEVN",
            },
        });
        let message = protobuf::CertificateSigningRequest {
            metadata: Some(protobuf::ObjectMeta {
                name: "n".into(),
                uid: "u".into(),
                resource_version: "7".into(),
                ..protobuf::ObjectMeta::default()
            }),
            spec: Some(protobuf::CertificateSigningRequestSpec {
                request: "PEM".into(),
                usages: vec!["client auth".into()],
                signer_name: "a/b".into(),
                expiration_seconds: Some(600),
            }),
            status: Some(protobuf::CertificateSigningRequestStatus {
                conditions: vec![protobuf::CertificateSigningRequestCondition {
                    type_: "Approved".into(),
                    reason: "R".into(),
                    message: Bytes::from_static(b"m\xff"),
                    status: "True".into(),
                }],
                certificate: "PEM".into(),
            }),
        };
        let read = |encoding, body| request(encoding, body).unwrap();
        let sealed = seal("certificates.k8s.io/v1", "CertificateSigningRequest", &message);
        let of_json = read(Encoding::Json, object.to_string().into());
        assert_eq!(of_json, read(Encoding::Protobuf, sealed.clone()));
        assert!(request(Encoding::Json, sealed).is_err());
        assert!(request(Encoding::Protobuf, object.to_string().into()).is_err());

        let object = json!({"metadata": {"name": "n"}, "spec": {"request": "", "signerName": ""}, "status": {}});
        let message = protobuf::CertificateSigningRequest {
            metadata: Some(protobuf::ObjectMeta { name: "n".into(), ..protobuf::ObjectMeta::default() }),
            spec: None,
            status: Some(protobuf::CertificateSigningRequestStatus::default()),
        };
        let sealed = seal("certificates.k8s.io/v1", "CertificateSigningRequest", &message);
        let mut object = object;
        object["apiVersion"] = "certificates.k8s.io/v1".into();
        object["kind"] = "CertificateSigningRequest".into();
        assert_eq!(read(Encoding::Json, object.to_string().into()), read(Encoding::Protobuf, sealed));
    }

    #[test]
    fn an_error_says_its_message_in_either_encoding_or_what_it_is() {
        let status = protobuf::Status { message: "a\n b".into(), reason: "NotFound".into(), code: 404 };
        let sealed = seal("v1", "Status", &status);
        let json = json!({"kind": "Status", "apiVersion": "v1", "message": "a\n b", "reason": "NotFound", "code": 404});
        let json = Bytes::from(json.to_string());
        assert_eq!(super::status(Encoding::Json, &json), super::status(Encoding::Protobuf, &sealed));
        assert_eq!(
            (message(Encoding::Json, &json), message(Encoding::Protobuf, &sealed)),
            ("a b".into(), "a b".into())
        );
        let page = Bytes::from("<html>\n  Bad   Gateway</html>".to_owned() + &"x".repeat(2000));
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let message = message(encoding, &page);
            assert!(message.starts_with("<html> Bad Gateway</html>x") && message.len() == 400, "{message}");
            assert_eq!(super::status(encoding, &page), None);
        }
    }
}
