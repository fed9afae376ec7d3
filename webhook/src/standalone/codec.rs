//! Decodes bodies: JSON, or Kubernetes' protobuf encoding.

pub mod protobuf;

use serde_json::Value;

use crate::standalone::error::ApiError;

/// The object that a body stands for.
///
/// # Errors
/// A media type that is not known, or a body that is not of it.
pub fn object(content_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    let unreadable = |e: String| ApiError::BadRequest(format!("the object provided is unrecognized: {e}"));
    match content_type {
        "" | "application/json" => serde_json::from_slice(body).map_err(|e| unreadable(e.to_string())),
        protobuf::MEDIA_TYPE => protobuf::read(body).map_err(|e| unreadable(e.to_string())),
        _ => Err(ApiError::UnsupportedMediaType("application/json, application/vnd.kubernetes.protobuf")),
    }
}
