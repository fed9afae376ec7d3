//! Answers of the API server: an object, or the reason for a refusal.

use std::{collections::BTreeMap, pin::Pin};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kube::core::Status;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use crate::controller::{
    client::{ApiServerError, REQUEST_TIMEOUT},
    projection::Kept,
};

/// Bytes of an error's body that are read.
const MAX_STATUS: usize = 16 * 1024;

/// A body as it comes.
pub(super) type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, kube::Error>> + Send>>;

/// An object of which no more than the wanted fields is read.
pub(crate) trait Object: DeserializeOwned + Send + 'static {
    /// The wanted fields exceed the source's limit: the object is incomplete.
    fn cut(&mut self) {}
}

/// The fields common to every object, bookmark and error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) metadata: HeadMetadata,
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeadMetadata {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// An object of which the wanted fields were kept.
pub(super) fn object<T: Object>(kept: &Kept) -> Result<T, serde_json::Error> {
    let mut object: T = serde_json::from_slice(&kept.json)?;
    if kept.cut {
        object.cut();
    }
    Ok(object)
}

/// The API server's reason for a refusal.
pub(super) async fn refusal(code: u16, body: &mut BodyStream) -> ApiServerError {
    let mut text = Vec::new();
    while text.len() < MAX_STATUS
        && let Ok(Some(Ok(chunk))) = timeout(REQUEST_TIMEOUT, body.next()).await
    {
        text.extend_from_slice(&chunk);
    }
    let said = serde_json::from_slice::<Head>(&text).unwrap_or_default();
    let message = if said.message.is_empty() { format!("HTTP status {code}") } else { said.message };
    ApiServerError::Api(kube::Error::Api(Status::failure(&message, &said.reason).with_code(code).boxed()))
}
