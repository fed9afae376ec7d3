//! Revocation: the requests of operators, which stand as annotations of the trust ConfigMap in the cluster's own namespace, and
//! the signer's answers beside them.

mod command;

use std::fmt;

use etcd_tls_contract::{
    crl::{self, Reason},
    names,
    role::Domain,
};
use serde::{Deserialize, Serialize};

pub use self::command::Args;
use crate::rollover::Answer;

/// The domains that have a revocation list. Metrics have their CA with the clients, or are not asked for their certificate.
pub const DOMAINS: [Domain; 2] = [Domain::Peer, Domain::Client];

/// The annotation with an operator's [`Request`].
pub fn request_annotation(domain: Domain) -> String {
    format!("{}revoke-{domain}-request", names::ANNOTATION_PREFIX)
}

/// The annotation with the signer's [`Report`].
pub fn status_annotation(domain: Domain) -> String {
    format!("{}revoke-{domain}", names::ANNOTATION_PREFIX)
}

/// What an operator asks for: `<add|undo> <id> <serial> <reason>`, the id making each request one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub action: Action,
    /// Letters, digits and hyphens; at most 64.
    pub id: String,
    /// The certificate's serial number.
    pub serial: String,
    /// Why.
    pub reason: Reason,
}

/// See [`Request::action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Revoke it.
    Add,
    /// Accept it again.
    Undo,
}

/// No request that is understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <add|undo> <id> <serial> <reason>")]
pub struct RequestError;

impl Request {
    /// That it was done.
    pub fn accepted(&self, message: &str) -> Answer {
        Answer { id: self.id.clone(), accepted: true, message: message.to_owned() }
    }

    /// That it was not.
    pub fn refused(&self, message: &str) -> Answer {
        Answer { id: self.id.clone(), accepted: false, message: message.to_owned() }
    }
}

impl std::str::FromStr for Request {
    type Err = RequestError;

    fn from_str(s: &str) -> Result<Self, RequestError> {
        let words: Vec<&str> = s.split(' ').collect();
        let [action, id, serial, reason] = words[..] else { return Err(RequestError) };
        let action = match action {
            "add" => Action::Add,
            "undo" => Action::Undo,
            _ => return Err(RequestError),
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(RequestError);
        }
        let (serial, reason) = (crl::serial(serial), reason.parse());
        let (Ok(serial), Ok(reason)) = (serial, reason) else { return Err(RequestError) };
        Ok(Self { action, id: id.to_owned(), serial, reason })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Add => "add",
            Action::Undo => "undo",
        };
        write!(f, "{action} {} {} {}", self.id, self.serial, self.reason)
    }
}

/// What the signer says of an authority's revocation list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The answer to the last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back_and_near_misses_are_not() {
        for text in ["add 12-ab 4f0a keyCompromise", "undo 1 4f0a unspecified"] {
            assert_eq!(text.parse::<Request>().map(|r| r.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "add",
            "add 1 4f0a",
            "add  4f0a keyCompromise",
            "add 1 xyz keyCompromise",
            "add 1 4f0a because",
            "add 1 4f0a keyCompromise x",
            "start 1 4f0a keyCompromise",
            &format!("add {} 4f0a keyCompromise", "i".repeat(65)),
        ] {
            assert_eq!(text.parse::<Request>(), Err(RequestError), "{text}");
        }
    }
}
