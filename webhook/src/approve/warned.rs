//! Admission's warnings as an Event on the pod: if a controller created the pod, nobody reads the warnings in its answer.
//!
//! Once per pod, when it first asks for a certificate. The Event's name is a digest of what it says, so an approver that was
//! restarted writes no second one.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use etcd_tls_contract::names;

use crate::controller::{
    Controller,
    case::Case,
    events::{Notice, pod_reference},
    facts::Csr,
    pods::Found,
};

/// How many pods are remembered; the oldest are forgotten first.
const MAX_PODS: usize = 8192;
/// Bytes of a pod's uid that are remembered; the API server's have 36.
const MAX_UID: usize = 64;
/// Bytes of an Event's note; the API server takes 1024.
const MAX_NOTE: usize = 1000;

/// The pods that have their Event.
#[derive(Debug, Default)]
pub(super) struct Warned(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Told {
    /// Whether `uid` is new, and remembers it.
    fn add(&mut self, uid: &str) -> bool {
        if uid.len() > MAX_UID || !self.uids.insert(uid.to_owned()) {
            return false;
        }
        self.order.push_back(uid.to_owned());
        if self.order.len() > MAX_PODS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        true
    }
}

impl Warned {
    /// Writes the Event of the pod that asks by `csr`, if admission warned of it and no look before this one did.
    pub(super) async fn tell(&self, controller: &Controller, csr: &Csr, case: &Case) {
        let Some(bound) = case.needs_pod() else { return };
        if self.told().uids.contains(&bound.pod_uid) {
            return;
        }
        // The annotation does not change. A failure is the verdict's to report; it reads the same.
        let pod = match controller.pods.facts(bound) {
            Some(pod) => pod,
            None => match controller.pods.no_older_than(bound, csr.resource_version()).await {
                Ok(Found::There(pod)) => pod,
                _ => return,
            },
        };
        if pod.uid != bound.pod_uid || !self.told().add(&pod.uid) {
            return;
        }
        if let Some(note) = pod.annotations.get(names::WARNINGS_ANNOTATION).and_then(|text| note(text)) {
            let regarding = pod_reference(&pod.namespace, &pod.name, &pod.uid);
            controller.recorder.warn(Notice { regarding, reason: "InjectedWithWarnings", note }).await;
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    #[test]
    fn a_pod_is_told_once_and_the_memory_is_bounded() {
        let mut told = Told::default();
        assert!(told.add("a") && !told.add("a") && told.add("b"));
        assert!(!told.add(&"x".repeat(MAX_UID + 1)));
        for n in 0..2 * MAX_PODS {
            told.add(&n.to_string());
        }
        assert!(told.uids.len() <= MAX_PODS && told.order.len() <= MAX_PODS);
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
