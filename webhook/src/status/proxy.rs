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

/// One call: its code and body, of `most` bytes.
///
/// # Errors
/// The API server does not answer, or the answer is too long; in words.
pub(crate) async fn get(client: &Client, path: &str, most: usize) -> Result<(u16, String), String> {
    let request = hyper::Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
    let response = client.send(request).await.map_err(|error| format!("the API server fails: {error}"))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), most).collect().await;
    let body = body.map_err(|error| format!("the answer cannot be read: {error}"))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Asks the sidecar of the pod `name`, on its admin port.
///
/// # Errors
/// It cannot be reached, or the answer is not from a sidecar; with the next step.
pub(crate) async fn ask(client: &Client, namespace: &str, name: &str, port: u16) -> Result<Sidecar, Unseen> {
    let describe = || format!("kubectl -n {namespace} describe pod {name}");
    let unseen = |reason: String| Unseen { reason, next: describe() };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    let asked = async { get(client, &path, MAX_ANSWER).await.map_err(unseen) };
    let late = || unseen(format!("its sidecar gave no answer on port {port} within {} s", SIDECAR_LIMIT.as_secs()));
    let (status, text) = tokio::time::timeout(SIDECAR_LIMIT, asked).await.map_err(|_| late())??;
    let right = Right::new("get", "pods/proxy", Some(namespace));
    let words = || serde_json::from_str::<Status>(&text).map_or_else(|_| format!("status {status}"), |s| s.message);
    match status {
        200 => Sidecar::read(&text).map_err(|error| unseen(format!("its sidecar, on port {port}: {error}"))),
        401 | 403 => {
            let reason = format!("its sidecar cannot be asked: your account lacks the right to {right}");
            Err(Unseen { reason, next: right.question() })
        }
        _ => Err(unseen(format!("the API server does not reach its sidecar on port {port}: {}", words()))),
    }
}
