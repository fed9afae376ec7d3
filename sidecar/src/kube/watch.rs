//! A watch of one ConfigMap: one long answer, a line of JSON for each change.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    ApiError,
    http::{Credentials, Kube, MAX_BODY},
    objects::{ConfigMap, Status},
};
use crate::http::{self, Sender};

/// A ConfigMap that is watched: the lines of an answer that goes on.
pub struct Watched {
    address: String,
    body: Incoming,
    /// The connection lasts as long as this.
    _connection: Sender,
    buffer: Vec<u8>,
    /// How much of the buffer is known to have no end of a line.
    searched: usize,
}

#[derive(Deserialize)]
struct Event<T> {
    object: T,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl<K: Credentials> Kube<K> {
    /// Watches a ConfigMap for at most `lasts`, beginning with its present state: the API server answers from memory.
    ///
    /// # Errors
    /// See [`ApiError`]; a 403 where the right is missing.
    pub async fn watch_config_map(&self, namespace: &str, name: &str, lasts: Duration) -> Result<Watched, ApiError> {
        // RBAC grants a watch of one name only to whom selects that name. Names need no escaping.
        let path = format!(
            "/api/v1/namespaces/{namespace}/configmaps?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion=0\
             &timeoutSeconds={}",
            lasts.as_secs()
        );
        let (address, connection, body) = self.open(&path).await?;
        Ok(Watched { address, body, _connection: connection, buffer: Vec::new(), searched: 0 })
    }
}

impl Watched {
    /// The ConfigMap's next state; `None`: the API server has ended the watch. A deletion is no state.
    ///
    /// # Errors
    /// See [`ApiError`]: the connection, an event that reports an error, or what is no watch.
    pub async fn next(&mut self) -> Result<Option<ConfigMap>, ApiError> {
        while let Some(line) = self.line().await? {
            let kind: Kind = self.parse(&line)?;
            match kind.kind.as_str() {
                "ADDED" | "MODIFIED" => return Ok(Some(self.parse::<Event<ConfigMap>>(&line)?.object)),
                "ERROR" => {
                    let status = self.parse::<Event<Status>>(&line)?.object;
                    let message = status.message.unwrap_or_default();
                    return Err(self.malformed(format!("the watch ended: {message}")));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest).into()));
            }
            self.searched = self.buffer.len();
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        if self.buffer.len() + data.len() > MAX_BODY {
                            return Err(self.malformed(format!("an event of more than {MAX_BODY} bytes")));
                        }
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    let message = http::with_causes(&error);
                    return Err(ApiError::Unreachable { address: self.address.clone(), message });
                }
                None => return Ok(None),
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(line).map_err(|e| self.malformed(format!("no event of a watch: {e}")))
    }

    fn malformed(&self, message: String) -> ApiError {
        ApiError::Malformed { address: self.address.clone(), message }
    }
}
