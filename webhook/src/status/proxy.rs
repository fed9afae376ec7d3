//! Calls of a pod's port through the API server's pod proxy.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use kube::{Client, client::Body};
use serde::Deserialize;

use super::{metrics::Sidecar, rows::Unseen};
use crate::operator::Right;

/// How long one sidecar may take. The API server tries an address for 30 s.
const SIDECAR_LIMIT: Duration = Duration::from_secs(6);
/// The limit of a sidecar's answer in bytes: a real one has some 10 KiB, but the pod's owner may send anything.
const MAX_ANSWER: usize = 1024 * 1024;

/// The API server's answer for a missing object.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The path is none of a URL.
    #[error("the call cannot be made: {0}")]
    Call(#[from] hyper::http::Error),
    /// The API server does not answer.
    #[error("the API server fails: {0}")]
    ApiServer(#[from] Box<kube::Error>),
    /// It breaks off, or is too long.
    #[error("the answer cannot be read: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
}

/// One call: its code and body, of `most` bytes.
///
/// # Errors
/// See [`ProxyError`].
pub(crate) async fn get(client: &Client, path: &str, most: usize) -> Result<(u16, String), ProxyError> {
    let request = hyper::Request::get(path).body(Body::empty())?;
    let response = client.send(request).await.map_err(Box::new)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), most).collect().await.map_err(ProxyError::Answer)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Asks the sidecar of the pod `name`, on its admin port.
///
/// # Errors
/// It cannot be reached, or the answer is not from a sidecar; with the next step.
pub(crate) async fn ask(client: &Client, namespace: &str, name: &str, port: u16) -> Result<Sidecar, Unseen> {
    let describe = || format!("kubectl -n {namespace} describe pod {name}");
    let unseen = |reason: String| Unseen { reason, next: describe(), denied: false };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    let asked = async { get(client, &path, MAX_ANSWER).await.map_err(|error| unseen(error.to_string())) };
    let late = || unseen(format!("its sidecar gave no answer on port {port} within {} s", SIDECAR_LIMIT.as_secs()));
    let (status, text) = tokio::time::timeout(SIDECAR_LIMIT, asked).await.map_err(|_| late())??;
    let right = Right::new("get", "pods/proxy", Some(namespace));
    let words = || serde_json::from_str::<Status>(&text).map_or_else(|_| format!("status {status}"), |s| s.message);
    match status {
        200 => Sidecar::read(&text).map_err(|error| unseen(format!("its sidecar, on port {port}: {error}"))),
        401 | 403 => {
            let reason = format!("its sidecar cannot be asked: your account lacks the right to {right}");
            Err(Unseen { reason, next: right.question(), denied: true })
        }
        // The API server's words for a pod without an address.
        _ if words().contains("address not allowed") => {
            Err(unseen("its sidecar cannot be asked: the pod has no address yet".to_owned()))
        }
        _ => Err(unseen(format!("the API server does not reach its sidecar on port {port}: {}", words()))),
    }
}
