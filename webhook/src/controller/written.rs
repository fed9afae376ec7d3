//! Writes of which only the metadata is answered: the writer has the rest, and a large answer would leave a buffer of its size
//! with the connection.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, core::PartialObjectMeta};

use super::{
    client::{ApiServerError, within},
    listed::METADATA_ALONE,
};

/// Sends a write and gives the metadata of the object as it was written. `kind` names the call in kube's own spans.
///
/// # Errors
/// The API server's, or [`ApiServerError::NotWritten`] if the answer names no object.
pub(crate) async fn written(
    client: &Client,
    mut request: hyper::http::Request<Vec<u8>>,
    kind: &'static str,
) -> Result<ObjectMeta, ApiServerError> {
    if let Ok(metadata_alone) = METADATA_ALONE.parse() {
        request.headers_mut().insert("accept", metadata_alone);
    }
    request.extensions_mut().insert(kind);
    let answer = within(client.request_text(request)).await?;
    let written: PartialObjectMeta = serde_json::from_str(&answer).map_err(kube::Error::SerdeError)?;
    // A success status alone proves nothing: a proxy may have answered.
    if written.metadata.uid.is_none() {
        return Err(ApiServerError::NotWritten);
    }
    Ok(written.metadata)
}
