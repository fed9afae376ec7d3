//! Deletes the CertificateRequests of our pods that are done with, where the component for cert-manager is installed. Their
//! owner, the pod, takes the others with it.
//!
//! Foreign requests are recognised by the name; only their metadata is read. However large an object is, and however many there
//! are, no more than the wanted fields of a page of them is held, and what [`grouped`] keeps.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Preconditions},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    cleaner::ledger::{Times, Why},
    metrics::Metrics,
};
use crate::controller::{
    client::{ApiServerError, within},
    listed::{Event, Events, Metadata, Object, Source, WatchError},
};
use grouped::{Grouped, Known, Task};

mod grouped;

/// Bytes of one request that are read; its conditions have less.
const LIMIT: usize = 64 * 1024;
/// Requests that are read or deleted at once: more than the pods' level of the API server creates at once.
const AT_ONCE: usize = 16;
/// The wait for the next round while a pod leaves more requests than are kept.
const IN_A_FLOOD: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct CertificateRequests {
    pub(super) client: Client,
    pub(super) times: Times,
    pub(super) metrics: Metrics,
}

/// A request, as far as it is read: of the metadata the wanted fields alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lean {
    metadata: ObjectMeta,
    status: Value,
    #[serde(skip)]
    cut: bool,
}

impl Object for Lean {
    fn cut(&mut self) {
        self.cut = true;
    }
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Issued(SystemTime),
    Refused(SystemTime),
}

fn resource() -> ApiResource {
    ApiResource {
        group: "cert-manager.io".into(),
        version: "v1".into(),
        api_version: "cert-manager.io/v1".into(),
        kind: "CertificateRequest".into(),
        plural: "certificaterequests".into(),
    }
}

/// Those of all namespaces, by their metadata.
fn all() -> Source {
    Source {
        path: "/apis/cert-manager.io/v1/certificaterequests".to_owned(),
        metadata_alone: true,
        in_pages: true,
        wanted: &[
            &["metadata", "namespace"],
            &["metadata", "name"],
            &["metadata", "uid"],
            &["metadata", "creationTimestamp"],
        ],
        limit: LIMIT,
        ..Source::default()
    }
}

/// Those of a namespace, each to be read by its name.
fn of(namespace: &str) -> Source {
    Source {
        path: format!("/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests"),
        wanted: &[&["metadata", "uid"], &["status", "conditions"]],
        limit: LIMIT,
        ..Source::default()
    }
}

impl CertificateRequests {
    /// A round as often as open requests of our own signers are looked at.
    pub(super) async fn clean_up(&self) -> Infallible {
        let mut said = None;
        let mut grouped = Grouped::new(self.times);
        loop {
            match self.round(&mut grouped).await {
                Ok(()) => said = None,
                Err(error) => {
                    let text = if matches!(&error, WatchError::Request(error) if error.is_not_found()) {
                        "the API server serves no CertificateRequests of cert-manager.io/v1; is cert-manager installed?"
                            .to_owned()
                    } else {
                        error.to_string()
                    };
                    if said.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "finished CertificateRequests cannot be deleted; trying again");
                        said = Some(text);
                    }
                }
            }
            sleep(if grouped.round_ends() { self.times.open.min(IN_A_FLOOD) } else { self.times.open }).await;
        }
    }

    async fn round(&self, grouped: &mut Grouped) -> Result<(), WatchError> {
        let mut events = Events::<Metadata>::new(self.client.clone(), all());
        let (mut tasks, mut complete) = (FuturesUnordered::new(), false);
        while !(complete && tasks.is_empty()) {
            tokio::select! {
                event = events.next(), if !complete && tasks.len() < AT_ONCE => {
                    let found = match event? {
                        Event::Listed(object) => grouped.take(object.metadata, SystemTime::now()),
                        Event::Complete => {
                            complete = true;
                            grouped.group_ends(SystemTime::now())
                        }
                        _ => continue,
                    };
                    tasks.extend(found.into_iter().map(|task| self.take(task)));
                }
                Some(()) = tasks.next() => {}
            }
        }
        Ok(())
    }

    /// A request that cannot be deleted does not delay the others.
    async fn take(&self, task: Task) {
        let (request, result) = match task {
            Task::Delete(request) => {
                let version =
                    Preconditions { uid: Some(request.uid.clone()), resource_version: Some(request.version.clone()) };
                let result = self.delete(&request, version, Why::Superseded).await;
                (request, result)
            }
            Task::Look { request, superseded } => {
                let result = self.look(&request, superseded).await;
                (request, result)
            }
        };
        if let Err(error) = result {
            tracing::warn!(
                %error,
                namespace = request.namespace,
                request = request.name,
                "a CertificateRequest cannot be deleted; it is tried again"
            );
        }
    }

    async fn look(&self, request: &Known, superseded: bool) -> Result<(), ApiServerError> {
        let found = of(&request.namespace).get::<Lean>(&self.client, &request.name).await?;
        let Some(object) = found else { return Ok(()) };
        // An issuer writes a few conditions. With more than is read, it cannot be told that the request is finished.
        let state = if object.cut { State::Open } else { state(&object.status, request.created) };
        let Some(why) = done_with(state, superseded, self.times, SystemTime::now()) else { return Ok(()) };
        let preconditions =
            Preconditions { uid: object.metadata.uid, resource_version: object.metadata.resource_version };
        self.delete(request, preconditions, why).await
    }

    async fn delete(&self, request: &Known, preconditions: Preconditions, why: Why) -> Result<(), ApiServerError> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &request.namespace, &resource());
        match within(api.delete(&request.name, &DeleteParams::default().preconditions(preconditions))).await {
            Ok(_) => {
                self.metrics.deleted(why.as_str());
                tracing::debug!(
                    namespace = request.namespace,
                    request = request.name,
                    reason = why.as_str(),
                    "deleted"
                );
                Ok(())
            }
            // Changed or gone meanwhile: the next round looks again.
            Err(error) if error.is_not_found() || error.is_stale() => Ok(()),
            Err(error) => {
                self.metrics.delete_failures.inc();
                Err(error)
            }
        }
    }
}

fn state(status: &Value, created: SystemTime) -> State {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let text =
        |condition: &Value, field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let at = |condition: &Value| {
        let time = text(condition, "lastTransitionTime").parse::<jiff::Timestamp>();
        time.map_or(created, |time| SystemTime::from(time).max(created))
    };
    let conditions = || conditions.into_iter().flatten();
    let holds = |kind: &str| conditions().find(|c| text(c, "type") == kind && text(c, "status") == "True");
    if let Some(refusal) = holds("Denied").or_else(|| holds("InvalidRequest")) {
        return State::Refused(at(refusal));
    }
    if let Some(ready) = holds("Ready") {
        return State::Issued(at(ready));
    }
    let failed =
        conditions().find(|c| text(c, "type") == "Ready" && matches!(text(c, "reason").as_str(), "Failed" | "Denied"));
    failed.map_or(State::Open, |failed| State::Refused(at(failed)))
}

/// Why a request goes now; `None`: it stays.
fn done_with(state: State, superseded: bool, times: Times, now: SystemTime) -> Option<Why> {
    let past = |since: SystemTime, time: Duration| now.duration_since(since).is_ok_and(|age| age >= time);
    match state {
        State::Issued(at) => past(at, times.issued).then_some(Why::Issued),
        State::Refused(at) => past(at, times.refused).then_some(Why::Refused),
        State::Open => superseded.then_some(Why::Superseded),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_goes_when_it_is_done_with() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        let times = Times { issued: seconds(300), refused: seconds(3600), open: seconds(60) };
        let of = |conditions: Value| state(&json!({"conditions": conditions}), at(1000));
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": "1970-01-01T00:20:00Z"});
        assert_eq!(of(json!([])), State::Open);
        assert_eq!(state(&json!({}), at(0)), State::Open);
        assert_eq!(
            of(json!([condition("Approved", "True", "x"), condition("Ready", "False", "Pending")])),
            State::Open
        );
        assert_eq!(of(json!([condition("Ready", "True", "Issued")])), State::Issued(at(1200)));
        assert_eq!(of(json!([condition("Denied", "True", "x")])), State::Refused(at(1200)));
        assert_eq!(of(json!([condition("Ready", "False", "Failed")])), State::Refused(at(1200)));
        // A time before the request was made is not believed.
        let early = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z"}]);
        assert_eq!(of(early), State::Issued(at(1000)));
        for (state, superseded, now, expected) in [
            (State::Open, false, 1_000_000, None),
            (State::Open, true, 1001, Some(Why::Superseded)),
            (State::Issued(at(1000)), true, 1299, None),
            (State::Issued(at(1000)), false, 1300, Some(Why::Issued)),
            (State::Refused(at(1000)), false, 4599, None),
            (State::Refused(at(1000)), false, 4600, Some(Why::Refused)),
            (State::Issued(at(1000)), false, 0, None),
        ] {
            assert_eq!(done_with(state, superseded, times, at(now)), expected, "{state:?} at {now}");
        }
    }
}
