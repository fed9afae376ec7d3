//! Where a certificate waits: the API server's audit log has when each call of a request's way came and when it was answered.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use jiff::Timestamp;
use serde::Deserialize;
use tests::{apiserver::Options, temp::TempDir};

use crate::stats::median;

/// The steps, in their order.
pub(crate) const STEPS: [&str; 9] = [
    "the creation, in the API server",
    "until the first call of `approve` for it",
    "reads of `approve`, and between them",
    "the approval, in the API server",
    "until the first call of `sign` for it",
    "reads of `sign`, and between them",
    "the certificate's write, in the API server",
    "until the look that finds it",
    "that look, in the API server",
];

/// Milliseconds of each step.
pub(crate) type Steps = [f64; STEPS.len()];

/// The audit log of an API server.
pub(crate) struct Audit {
    directory: TempDir,
}

/// One call.
#[derive(Debug)]
struct Event {
    came: Timestamp,
    answered: Timestamp,
    verb: String,
    user: String,
    subresource: String,
    code: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    user: User,
    object_ref: Object,
    response_status: Status,
    request_received_timestamp: String,
    stage_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

impl Audit {
    /// Of the calls for requests and pods, but those of the service accounts of the namespaces `but`.
    pub(crate) fn new(but: &[&str]) -> Self {
        let directory = TempDir::new("audit");
        let groups: Vec<String> = but.iter().map(|namespace| format!("system:serviceaccounts:{namespace}")).collect();
        let policy = serde_json::json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [
                {"level": "None", "userGroups": groups},
                {
                    "level": "Metadata", "verbs": ["create", "get", "patch"],
                    "resources": [
                        {"group": "certificates.k8s.io", "resources": ["certificatesigningrequests", "certificatesigningrequests/*"]},
                        {"group": "", "resources": ["pods"]},
                    ],
                },
                {"level": "None"},
            ],
        });
        directory.write("policy.yaml", policy.to_string());
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    /// With these options an API server writes it.
    pub(crate) fn options(&self) -> Options {
        let (policy, log) = (self.directory.path().join("policy.yaml"), self.path());
        Options {
            apiserver_arguments: vec![
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", log.display()),
            ],
            ..Options::default()
        }
    }

    /// The steps of the requests of these names, by pods of `namespace`, which asked one after the other.
    pub(crate) fn steps(&self, namespace: &str, names: &[String]) -> Result<Vec<Steps>, String> {
        let text = std::fs::read_to_string(self.path()).map_err(|e| e.to_string())?;
        let (mut of, mut pods) = (BTreeMap::<&str, Vec<Event>>::new(), Vec::new());
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<Line>(line) else { continue };
            let at = |text: &str| text.parse::<Timestamp>().map_err(|e| format!("{text}: {e}"));
            let Object { resource, subresource, namespace: there, name } = line.object_ref;
            let event = Event {
                came: at(&line.request_received_timestamp)?,
                answered: at(&line.stage_timestamp)?,
                verb: line.verb,
                user: line.user.username,
                subresource,
                code: line.response_status.code,
            };
            if resource == "pods" && there == namespace {
                pods.push(event);
            } else if let Some(known) = names.iter().find(|known| **known == name) {
                of.entry(known).or_default().push(event);
            }
        }
        names.iter().map(|name| steps(of.get(name.as_str()).ok_or(format!("no call for {name}"))?, &pods)).collect()
    }
}

/// The steps of one request, of its own calls and of the reads of its pod.
fn steps(calls: &[Event], pods: &[Event]) -> Result<Steps, String> {
    let ok = |event: &&Event| event.code < 300;
    let missing = |what: &str| format!("the audit log has no {what}: {calls:?}");
    let create = calls.iter().filter(ok).find(|e| e.verb == "create").ok_or_else(|| missing("creation"))?;
    let write = |subresource: &str| {
        let found = calls.iter().filter(ok).find(|e| e.verb == "patch" && e.subresource == subresource);
        found.ok_or_else(|| missing(subresource))
    };
    let (approval, status) = (write("approval")?, write("status")?);
    // A read of the pod that began before may serve, so the first one after is looked for; without one, the write is the first call.
    let first = |by: &Event, from: Timestamp| {
        let here = |e: &&Event| e.user == by.user && e.came >= from && e.came <= by.came;
        calls.iter().chain(pods).filter(here).map(|e| e.came).min().unwrap_or(by.came)
    };
    // The requester may have seen a 404 of a cache that was behind, and looks that found no certificate.
    let look =
        calls.iter().filter(ok).filter(|e| e.verb == "get" && e.user == create.user && e.answered >= status.came);
    let look = look.min_by_key(|e| e.answered).ok_or_else(|| missing("look"))?;
    let (approves, signs) = (first(approval, create.came), first(status, approval.came));
    Ok([
        ms(create.came, create.answered),
        ms(create.answered, approves),
        ms(approves, approval.came),
        ms(approval.came, approval.answered),
        ms(approval.answered, signs),
        ms(signs, status.came),
        ms(status.came, status.answered),
        ms(status.answered, look.came),
        ms(look.came, look.answered),
    ])
}

/// From one to the other; a watch may deliver before the writer has its answer, and then it is negative.
fn ms(from: Timestamp, to: Timestamp) -> f64 {
    let [from, to] = [from, to].map(SystemTime::from);
    let seconds = match to.duration_since(from) {
        Ok(later) => later.as_secs_f64(),
        Err(earlier) => -earlier.duration().as_secs_f64(),
    };
    seconds * 1e3
}

/// The median of each step.
pub(crate) fn medians(all: &[Steps]) -> Steps {
    std::array::from_fn(|step| median(&all.iter().map(|steps| steps[step]).collect::<Vec<_>>()))
}
