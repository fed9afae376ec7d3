//! Errors in Kubernetes' own form: a `Status` object with code, reason, message and causes.

use actix_web::{HttpResponse, http::StatusCode, http::header};
use serde_json::{Value, json};

/// The one resource's plural, as it stands in paths and in `details.kind`.
pub const RESOURCE: &str = "certificatesigningrequests";
/// The one group.
pub const GROUP: &str = "certificates.k8s.io";

/// One field that is wrong, of an object that is refused as [`ApiError::Invalid`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The field's path: `spec.request`.
    pub field: &'static str,
    /// The fault.
    pub message: String,
}

/// Why a call is refused. Each variant is one HTTP code and one reason of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 409: an object of this name exists.
    #[error("certificatesigningrequests.certificates.k8s.io {0:?} already exists")]
    AlreadyExists(String),
    /// 400: the body or a parameter cannot be read.
    #[error("{0}")]
    BadRequest(String),
    /// 409: the object is another one by now.
    #[error("Operation cannot be fulfilled on certificatesigningrequests.certificates.k8s.io {name:?}: {message}")]
    Conflict {
        /// The object's name.
        name: String,
        /// The difference.
        message: String,
    },
    /// 410: a resource version that is no longer, or not yet, known here.
    #[error("{0}")]
    Expired(String),
    /// 403: authenticated, and not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// 507: the directory cannot take it.
    #[error("the request could not be stored, and nothing was changed: {0}")]
    InsufficientStorage(String),
    /// 500: ours to mend.
    #[error("{0}")]
    Internal(String),
    /// 422: an object that can never be taken as it is.
    #[error("CertificateSigningRequest.certificates.k8s.io {name:?} is invalid: {}", sentences(.causes))]
    Invalid {
        /// The object's name.
        name: String,
        /// Every field that is wrong.
        causes: Vec<Cause>,
    },
    /// 405: a method that this resource does not have.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// 406: nothing of what the caller accepts can be answered.
    #[error("only the following media types are accepted: application/json")]
    NotAcceptable,
    /// 404: no such object.
    #[error("certificatesigningrequests.certificates.k8s.io {0:?} not found")]
    NotFound(String),
    /// 404: no such path.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// 401: a credential that an operator has revoked.
    #[error("Unauthorized: the certificate with serial number {0} is revoked")]
    Revoked(String),
    /// 413: a body above the limit.
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// 429: too many calls, or too many requests stored.
    #[error("{message}")]
    TooManyRequests {
        /// Which limit.
        message: String,
        /// When to come again.
        retry_after_seconds: u64,
    },
    /// 401: no credential, or none that is known.
    #[error("Unauthorized")]
    Unauthorized,
    /// 415: a body that is no JSON.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(&'static str),
}

fn sentences(causes: &[Cause]) -> String {
    let mut all: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    if all.len() > 1 {
        all = vec![format!("[{}]", all.join(", "))];
    }
    all.concat()
}

impl ApiError {
    /// An object with one wrong field.
    pub fn invalid(name: &str, field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { name: name.to_owned(), causes: vec![Cause { field, message: message.into() }] }
    }

    /// The HTTP code.
    pub const fn code(&self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::Unauthorized | Self::Revoked(_) => 401,
            Self::Forbidden(_) => 403,
            Self::NotFound(_) | Self::NoSuchPath => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists(_) | Self::Conflict { .. } => 409,
            Self::Expired(_) => 410,
            Self::TooLarge(_) => 413,
            Self::UnsupportedMediaType(_) => 415,
            Self::Invalid { .. } => 422,
            Self::TooManyRequests { .. } => 429,
            Self::Internal(_) => 500,
            Self::InsufficientStorage(_) => 507,
        }
    }

    const fn reason(&self) -> &'static str {
        match self {
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::BadRequest(_) => "BadRequest",
            Self::Conflict { .. } => "Conflict",
            Self::Expired(_) => "Expired",
            Self::Forbidden(_) => "Forbidden",
            Self::InsufficientStorage(_) => "InsufficientStorage",
            Self::Internal(_) => "InternalError",
            Self::Invalid { .. } => "Invalid",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::NotFound(_) | Self::NoSuchPath => "NotFound",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::TooManyRequests { .. } => "TooManyRequests",
            Self::Unauthorized | Self::Revoked(_) => "Unauthorized",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
        }
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut details = json!({ "group": GROUP, "kind": RESOURCE });
        match self {
            Self::AlreadyExists(name) | Self::NotFound(name) | Self::Conflict { name, .. } => {
                details["name"] = json!(name);
            }
            Self::Invalid { name, causes } => {
                details["kind"] = json!("CertificateSigningRequest");
                details["name"] = json!(name);
                details["causes"] = causes
                    .iter()
                    .map(|c| json!({ "reason": "FieldValueInvalid", "message": c.message, "field": c.field }))
                    .collect();
            }
            Self::TooManyRequests { retry_after_seconds, .. } => {
                details["retryAfterSeconds"] = json!(retry_after_seconds);
            }
            Self::NoSuchPath | Self::Unauthorized | Self::Revoked(_) => details = json!({}),
            _ => {}
        }
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.reason(),
            "details": details,
            "code": self.code(),
        })
    }

    /// The answer to the caller.
    pub fn response(&self) -> HttpResponse {
        let code = StatusCode::from_u16(self.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(code);
        match self {
            Self::TooManyRequests { retry_after_seconds, .. } => {
                response.insert_header((header::RETRY_AFTER, retry_after_seconds.to_string()));
            }
            Self::Unauthorized | Self::Revoked(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"etcd-tls\""));
            }
            _ => {}
        }
        response.content_type("application/json").body(self.status().to_string())
    }
}

/// The answer to a deletion.
pub fn deleted(name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": { "name": name, "group": GROUP, "kind": RESOURCE, "uid": uid },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_object_names_every_field() {
        let error = ApiError::Invalid {
            name: "a".to_owned(),
            causes: vec![
                Cause { field: "spec.request", message: "no PEM".to_owned() },
                Cause { field: "spec.usages", message: "none".to_owned() },
            ],
        };
        let status = error.status();
        assert_eq!(status["code"], 422);
        assert_eq!(status["details"]["causes"][1]["field"], "spec.usages");
        assert_eq!(
            status["message"],
            "CertificateSigningRequest.certificates.k8s.io \"a\" is invalid: [spec.request: no PEM, spec.usages: none]"
        );
    }
}
