//! A watch of one ConfigMap: one long answer, a line of JSON for each change.

use std::time::Duration;

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
    lines: Lines,
}

/// The received bytes that were not parsed yet.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// How much of the buffer is known to have no end of a line.
    searched: usize,
}

/// Why a watch says nothing more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum WatchError {
    #[error("an event of more than {MAX_BODY} bytes")]
    Long,
    #[error("no event of a watch: {0}")]
    NoEvent(String),
    #[error("the watch ended: {0}")]
    Ended(String),
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
        Ok(Watched { address, body, _connection: connection, lines: Lines::default() })
    }
}

impl Watched {
    /// The ConfigMap's next state; `None`: the API server has ended the watch. A deletion is no state.
    ///
    /// # Errors
    /// See [`ApiError`]: the connection, an event that reports an error, or what is no watch.
    pub async fn next(&mut self) -> Result<Option<ConfigMap>, ApiError> {
        loop {
            while let Some(line) = self.lines.next() {
                if let Some(object) = state(&line).map_err(|error| self.malformed(&error))? {
                    return Ok(Some(object));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(&data).map_err(|error| self.malformed(&error))?;
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

    fn malformed(&self, error: &WatchError) -> ApiError {
        ApiError::Malformed { address: self.address.clone(), message: error.to_string() }
    }
}

impl Lines {
    /// Adds what came.
    fn push(&mut self, data: &[u8]) -> Result<(), WatchError> {
        if self.buffer.len() + data.len() > MAX_BODY {
            return Err(WatchError::Long);
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// The next whole line, with its end.
    fn next(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + end + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

/// The state that an event tells; `None`: it tells none.
fn state(line: &[u8]) -> Result<Option<ConfigMap>, WatchError> {
    match parse::<Kind>(line)?.kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Some(parse::<Event<ConfigMap>>(line)?.object)),
        "ERROR" => Err(WatchError::Ended(parse::<Event<Status>>(line)?.object.message.unwrap_or_default())),
        _ => Ok(None),
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, WatchError> {
    serde_json::from_slice(line).map_err(|e| WatchError::NoEvent(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = b"{\"a\":1}\n{\"b\":2}\n{\"c\"";
        for size in 1..text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for part in text.chunks(size) {
                lines.push(part).unwrap();
                while let Some(line) = lines.next() {
                    found.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(found, ["{\"a\":1}\n", "{\"b\":2}\n"], "in parts of {size}");
        }
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; MAX_BODY]), Ok(()));
        assert_eq!(lines.push(b"x"), Err(WatchError::Long), "a line without an end");
    }

    #[test]
    fn only_a_state_is_taken_for_one() {
        let object = r#"{"kind":"ConfigMap","metadata":{"name":"x","annotations":null},"data":{"peer.crt":"p"},"binaryData":{"peer.crl":"YQ=="}}"#;
        for kind in ["ADDED", "MODIFIED"] {
            let told = state(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").as_bytes()).unwrap().unwrap();
            assert_eq!(
                (told.data.unwrap()["peer.crt"].as_str(), &*told.binary_data.unwrap()["peer.crl"].0),
                ("p", &b"a"[..])
            );
        }
        for kind in ["DELETED", "BOOKMARK", "NEW"] {
            assert_eq!(state(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").as_bytes()), Ok(None));
        }
        let gone = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}"#;
        assert_eq!(state(gone), Err(WatchError::Ended("too old resource version".to_owned())));
        for garbage in [
            "",
            "\n",
            "<html>",
            "{}",
            "[]",
            r#"{"type":"ADDED"}"#,
            r#"{"type":"ADDED","object":{"binaryData":{"a":"!"}}}"#,
        ] {
            assert!(matches!(state(garbage.as_bytes()), Err(WatchError::NoEvent(_))), "{garbage:?}");
        }
    }
}
