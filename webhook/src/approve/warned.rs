//! Admission's warnings as an Event on the pod: if a controller created the pod, nobody reads the warnings in its answer.
//!
//! Once per pod, when it is first seen, whoever issues its certificates. The Event's name is a digest of what it says, so an
//! approver that was restarted writes no second one.

mod waiting;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::names;
use tokio::{sync::Notify, time::Instant};

use self::waiting::{Sighted, Waiting};
use crate::{
    controller::{
        Controller,
        events::{Notice, pod_reference, reasons::INJECTED_WITH_WARNINGS},
        facts::{self, LeanPod},
        listed::Event,
        pods::Observer,
        told::Told,
    },
    platform::shutdown::until,
};

/// Bytes of an Event's note; the API server takes 1024.
const MAX_NOTE: usize = 1000;
/// A pod that is older is told no more: its Event was written, and has ended since. The API server keeps Events for an hour.
const NEW: Duration = Duration::from_secs(60 * 60);

/// The pods that have their Event, and those that shall get it.
#[derive(Debug, Default)]
pub(super) struct Warned {
    told: Mutex<Told>,
    waiting: Mutex<Waiting>,
    /// Rung when a pod waits.
    rung: Notify,
}

impl Warned {
    /// Sees the pods.
    pub(super) fn observer(self: &Arc<Self>) -> Observer {
        let warned = Arc::clone(self);
        Arc::new(move |event| {
            if let Event::Listed(pod) | Event::Applied(pod) = event {
                warned.see(pod, SystemTime::now());
            }
        })
    }

    fn see(&self, pod: &LeanPod, now: SystemTime) {
        let Some(sighted) = sighted(pod, now) else { return };
        if !self.told().has(&sighted.uid) {
            self.waiting().push(sighted, Instant::now());
            self.rung.notify_one();
        }
    }

    /// Writes the Events of the pods that are seen, while this replica leads.
    pub(super) async fn keep(&self, controller: &Controller) -> Infallible {
        let mut leader = controller.leader.clone();
        loop {
            until(&mut leader, true).await;
            let next = self.waiting().pop(Instant::now());
            let Some(pod) = next else {
                tokio::select! {
                    () = self.rung.notified() => {}
                    () = until(&mut leader, false) => {}
                }
                continue;
            };
            if self.told().add(&pod.uid) {
                let Sighted { namespace, name, uid, note } = pod;
                let regarding = pod_reference(&namespace, &name, &uid);
                controller.recorder.say(Notice { regarding, reason: INJECTED_WITH_WARNINGS, note }).await;
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod, if admission injected it not long ago and warned of it. That it has opted in is not asked: a namespace's label may come
/// and go, and the Event is beside its own pod.
fn sighted(pod: &LeanPod, now: SystemTime) -> Option<Sighted> {
    let metadata = &pod.metadata;
    let text = metadata.annotations.as_ref()?.get(names::WARNINGS_ANNOTATION)?;
    let injected = metadata.labels.as_ref()?.get(names::INJECTED_LABEL).is_some_and(|value| value == "true");
    let created: SystemTime = metadata.creation_timestamp.as_ref()?.0.into();
    let old = now.duration_since(created).is_ok_and(|age| age > NEW);
    if !injected || old || facts::has_finished(pod) {
        return None;
    }
    Some(Sighted {
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        note: note(text)?,
    })
}

/// The note for the annotation's JSON list; `None` where it is no list of texts, which admission did not write.
fn note(annotation: &str) -> Option<String> {
    let warnings: Vec<String> = serde_json::from_str(annotation).ok()?;
    let mut note = String::new();
    for (index, warning) in warnings.iter().enumerate() {
        let rest = format!("; and {} more in annotation {}", warnings.len() - index, names::WARNINGS_ANNOTATION);
        if note.len() + "; ".len() + warning.len() + rest.len() > MAX_NOTE {
            note.push_str(rest.trim_start_matches(if index == 0 { "; and " } else { "" }));
            break;
        }
        note.push_str(if index > 0 { "; " } else { "" });
        note.push_str(warning);
    }
    Some(note).filter(|note| !note.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    /// The issuer of its certificates, and whether it asks for any.
    #[test]
    fn an_injected_pod_that_is_new_is_told_when_it_is_seen() {
        let object = json!({
            "metadata": {
                "name": "etcd-0", "namespace": "prod", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"etcd-tls.dev/injected": "true"},
                "annotations": {"etcd-tls.dev/warnings": "[\"a\"]", "etcd-tls.dev/issuer": "cert-manager:Issuer/x"},
            },
        });
        let read = |object: serde_json::Value| -> LeanPod { serde_json::from_value(object).unwrap() };
        let created: SystemTime = read(object.clone()).metadata.creation_timestamp.as_ref().unwrap().0.into();
        let told = |change: &dyn Fn(&mut serde_json::Value), age: Duration| {
            let mut object = object.clone();
            change(&mut object);
            sighted(&read(object), created + age).map(|pod| (pod.name, pod.note))
        };
        assert_eq!(told(&|_| {}, NEW), Some(("etcd-0".to_owned(), "a".to_owned())));
        assert_eq!(told(&|_| {}, NEW + Duration::from_secs(1)), None, "its Event was written, and has ended");
        assert_eq!(told(&|pod| pod["status"] = json!({"phase": "Failed"}), NEW), None);
        assert_eq!(told(&|pod| pod["metadata"]["labels"] = json!({}), NEW), None, "nobody injected it");
        assert_eq!(told(&|pod| pod["metadata"]["annotations"] = json!({}), NEW), None);
        let warned = Warned::default();
        warned.see(&read(object.clone()), created);
        warned.see(&read(object.clone()), created);
        assert!(warned.waiting().pop(Instant::now()).is_some() && warned.waiting().pop(Instant::now()).is_none());
        warned.told().add("u");
        warned.see(&read(object), created);
        assert_eq!(warned.waiting().pop(Instant::now()), None, "once");
    }

    #[test]
    fn the_note_holds_as_many_warnings_as_fit() {
        assert_eq!(note("[\"a\", \"b\"]").unwrap(), "a; b");
        for bad in ["", "[]", "{}", "[1]", "\"a\"", "[\"\"]"] {
            assert_eq!(note(bad), None, "{bad}");
        }
        let many: Vec<String> = (0..15).map(|n| format!("{n}{}", "x".repeat(200))).collect();
        let said = note(&json!(many).to_string()).unwrap();
        assert!(said.len() <= 1024 && said.ends_with("; and 11 more in annotation etcd-tls.dev/warnings"), "{said}");
        let said = note(&json!(["x".repeat(3000)]).to_string()).unwrap();
        assert_eq!(said, "1 more in annotation etcd-tls.dev/warnings");
    }
}
