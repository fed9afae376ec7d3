//! The requests of operators and the reports of the signer: two annotations of the trust ConfigMap in the cluster's own
//! namespace.

use std::fmt;

use etcd_tls_contract::{names, role::Domain};
use serde::{Deserialize, Serialize};

use super::Rollover;

/// The annotation with an operator's [`Request`].
pub fn request_annotation(domain: Domain) -> String {
    format!("{}rollover-{domain}-request", names::ANNOTATION_PREFIX)
}

/// The annotation with the signer's [`Report`].
pub fn status_annotation(domain: Domain) -> String {
    format!("{}rollover-{domain}", names::ANNOTATION_PREFIX)
}

/// An operator's request: `<action> <id>`; the id makes each request unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The action.
    pub action: Action,
    /// Letters, digits and hyphens; at most 64.
    pub id: String,
}

/// See [`Request::action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the next CA back.
    Abort,
    /// The clients outside trust the new CA.
    ConfirmClients,
    /// Go on without waiting.
    Force,
    /// Begin.
    Start,
}

/// No request that is understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <start|abort|confirm-clients|force> <id>")]
pub struct InvalidRequest;

impl std::str::FromStr for Request {
    type Err = InvalidRequest;

    fn from_str(s: &str) -> Result<Self, InvalidRequest> {
        let (action, id) = s.split_once(' ').ok_or(InvalidRequest)?;
        let action = match action {
            "abort" => Action::Abort,
            "confirm-clients" => Action::ConfirmClients,
            "force" => Action::Force,
            "start" => Action::Start,
            _ => return Err(InvalidRequest),
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(InvalidRequest);
        }
        Ok(Self { action, id: id.to_owned() })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Abort => "abort",
            Action::ConfirmClients => "confirm-clients",
            Action::Force => "force",
            Action::Start => "start",
        };
        write!(f, "{action} {}", self.id)
    }
}

/// The signer's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id.
    pub id: String,
    /// True if it is done.
    pub accepted: bool,
    /// The action taken, or the reason for the refusal.
    pub message: String,
}

impl Answer {
    pub(super) fn accepted(request: &Request, message: &str) -> Self {
        Self { id: request.id.clone(), accepted: true, message: message.to_owned() }
    }

    pub(super) fn refused(request: &Request, message: &str) -> Self {
        Self { id: request.id.clone(), accepted: false, message: message.to_owned() }
    }
}

/// The status of an authority's rollover, as the signer last reported it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `stable`, `published`, `signing`, `lost` or `unusable`.
    pub phase: String,
    /// The generation that signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// When the CA that signs ends; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_until: Option<String>,
    /// The generation that takes over, or has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// When the phase began; RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The conditions that it waits for: at most [`Report::MOST`] lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// The answer to the last request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

impl Report {
    /// Lines of [`Self::waiting`] at most: annotations are bounded, and ten names tell as much as a hundred.
    pub const MOST: usize = 10;

    /// The report on a rollover; `None` is none.
    pub fn new(rollover: Option<&Rollover>, waiting: &[super::Waiting], answer: Option<Answer>) -> Self {
        let mut lines: Vec<String> = waiting.iter().take(Self::MOST).map(ToString::to_string).collect();
        if waiting.len() > Self::MOST {
            lines.push(format!("and {} more", waiting.len() - Self::MOST));
        }
        Self {
            phase: rollover.map_or("stable", |r| r.phase.as_str()).to_owned(),
            active: None,
            active_until: None,
            new: rollover.map(|r| r.new.clone()),
            since: rollover.map(|r| super::rfc3339::text(r.since)),
            waiting: lines,
            answer,
        }
    }
}
