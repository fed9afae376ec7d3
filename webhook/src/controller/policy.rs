//! The operator's policy, watched: ConfigMap `etcd-tls-policy` in the system namespace.
//!
//! If the policy cannot be parsed, the last valid one stays in force; a log line, a metric and an Event on the ConfigMap say
//! so. Until a first valid policy is read, decisions wait instead of denying. A denial is made only after a live read
//! ([`live`]).
//!
//! Rules for a namespace whose uid the policy states count only while the namespace has it ([`in_force`]).

use std::sync::Arc;

use etcd_tls_contract::{names, policy::Policy};
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::{
    client::{ApiServerError, within},
    events::{
        Notice, Recorder,
        reasons::{POLICY_NAMESPACE_REPLACED, POLICY_UNREADABLE},
    },
    listed::{Event, Events, Object, Source},
    namespaces,
    tasks::Tasks,
};

/// The policy in force; `None` while none was readable yet.
pub type Current = watch::Receiver<Option<Arc<Policy>>>;

/// Bytes of a ConfigMap's content, with room for its escapes.
const LIMIT: usize = 2 << 20;

impl Object for ConfigMap {}

/// Watches the policy in `namespace` for as long as the process lives. `readable` is 1 while the ConfigMap is what is in
/// force, 0 while it cannot be read.
pub(crate) fn spawn(client: &Client, namespace: &str, recorder: &Recorder, readable: &Gauge, tasks: &Tasks) -> Current {
    let (sender, receiver) = watch::channel(None);
    let source = Source {
        path: format!("/api/v1/namespaces/{namespace}/configmaps"),
        fields: Some(format!("metadata.name={}", names::POLICY_CONFIG_MAP)),
        wanted: &[
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "uid"],
            &["data", names::POLICY_KEY],
        ],
        limit: LIMIT,
        ..Source::default()
    };
    let (client, recorder, readable) = (client.clone(), recorder.clone(), readable.clone());
    tasks.keep("policy", move || {
        follow(client.clone(), source.clone(), recorder.clone(), readable.clone(), sender.clone())
    });
    receiver
}

/// The part of a `written` policy that counts for the namespaces that there are: see [`Policy::for_namespaces`].
pub(crate) fn in_force(
    written: Current,
    namespaces: namespaces::Current,
    system: &str,
    recorder: &Recorder,
    tasks: &Tasks,
) -> Current {
    let (sender, receiver) = watch::channel(None);
    let (system, recorder) = (system.to_owned(), recorder.clone());
    tasks.keep("policy in force", move || {
        match_namespaces(written.clone(), namespaces.clone(), system.clone(), recorder.clone(), sender.clone())
    });
    receiver
}

async fn match_namespaces(
    mut written: Current,
    mut namespaces: namespaces::Current,
    system: String,
    recorder: Recorder,
    sender: watch::Sender<Option<Arc<Policy>>>,
) {
    let mut said = Vec::new();
    loop {
        let policy = written.borrow_and_update().clone();
        let there = namespaces.borrow_and_update().clone();
        if let Some(policy) = policy {
            // Without uids nothing depends on the namespaces.
            let uid = |name: &str| there.as_ref()?.get(name).map(|facts| facts.uid.as_str());
            let (matched, replaced) = if policy.namespace_uids.is_empty() {
                (Some(policy), Vec::new())
            } else {
                let matched = there.is_some().then(|| Arc::new(policy.for_namespaces(uid)));
                (matched, replaced(&policy, uid))
            };
            sender.send_if_modified(|current| {
                let changed = *current != matched;
                if changed {
                    *current = matched;
                }
                changed
            });
            // In force first: an Event may take its time.
            if there.is_some() && replaced != said {
                for note in &replaced {
                    tracing::warn!(note, "a rule of the policy does not count");
                    recorder.say_beside(of_policy(&system, note));
                }
                said = replaced;
            }
        }
        let changed = tokio::select! {
            changed = written.changed() => changed,
            changed = namespaces.changed() => changed,
        };
        if changed.is_err() {
            // The other end lives as long as the process, but at its end.
            std::future::pending::<()>().await;
        }
    }
}

/// The part of a policy in force that counts for these namespaces, too: it may have been matched with those of a moment ago.
pub(crate) fn for_these(policy: Arc<Policy>, there: Option<&namespaces::Map>) -> Arc<Policy> {
    let uid = |name: &str| there?.get(name).map(|facts| facts.uid.as_str());
    let replaced = policy.namespace_uids.iter().any(|(name, meant)| uid(name) != Some(meant.as_str()));
    if replaced { Arc::new(policy.for_namespaces(uid)) } else { policy }
}

/// A sentence on each namespace that is there and is not the one that the policy means.
fn replaced<'a>(policy: &Policy, uid: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let other = |(name, meant): (&String, &String)| {
        let now = uid(name).filter(|now| now != meant)?;
        Some(format!(
            "namespace {name} has the uid {now}, and namespaceUids of the policy means that of uid {meant}: the rules that name it do \
             not count. If it shall have their rights, write its uid there"
        ))
    };
    policy.namespace_uids.iter().filter_map(other).collect()
}

fn of_policy(system: &str, note: &str) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            namespace: Some(system.to_owned()),
            name: Some(names::POLICY_CONFIG_MAP.to_owned()),
            ..ObjectReference::default()
        },
        reason: POLICY_NAMESPACE_REPLACED,
        note: note.to_owned(),
    }
}

async fn follow(
    client: Client,
    source: Source,
    recorder: Recorder,
    readable: Gauge,
    sender: watch::Sender<Option<Arc<Policy>>>,
) {
    let mut events = Events::<ConfigMap>::new(client, source);
    let mut listed = None;
    loop {
        let object = match events.next().await {
            Ok(Event::Begins) => {
                listed = None;
                continue;
            }
            Ok(Event::Listed(object)) => {
                listed = Some(object);
                continue;
            }
            Ok(Event::Progress) => continue,
            Ok(Event::Complete) => listed.take(),
            Ok(Event::Applied(object)) => Some(object),
            Ok(Event::Deleted(_)) => None,
            Err(error) => {
                tracing::warn!(%error, "cannot watch the policy; trying again");
                continue;
            }
        };
        match read(object.as_ref()) {
            Ok(policy) => {
                readable.set(1);
                sender.send_if_modified(|current| put(current, policy));
            }
            Err(error) => {
                readable.set(0);
                let in_force = if sender.borrow().is_some() { KEPT } else { NONE };
                tracing::error!(%error, "policy unreadable: {in_force}");
                if let Some(object) = object {
                    recorder.say_beside(unreadable(&object, &format!("{error}; {in_force}")));
                }
            }
        }
    }
}

/// The policy as it is written now, not as a watch saw it; `None`: there is none that can be read, so that the last readable
/// one stays in force, which the watch says.
///
/// # Errors
/// The request's.
pub async fn live(client: &Client, namespace: &str) -> Result<Option<Policy>, ApiServerError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    Ok(read(within(api.get_opt(names::POLICY_CONFIG_MAP)).await?.as_ref()).ok())
}

/// Puts a policy in force; whether it is another one.
fn put(current: &mut Option<Arc<Policy>>, policy: Policy) -> bool {
    let changed = current.as_deref() != Some(&policy);
    if changed {
        tracing::info!(?policy, "policy in force");
        *current = Some(Arc::new(policy));
    }
    changed
}

const KEPT: &str = "the last readable one stays in force";
const NONE: &str = "no request is decided until it can be read";

/// Reads the policy out of its ConfigMap.
///
/// # Errors
/// Why not, for the operator.
fn read(object: Option<&ConfigMap>) -> Result<Policy, String> {
    let name = names::POLICY_CONFIG_MAP;
    let key = names::POLICY_KEY;
    let object = object.ok_or_else(|| {
        format!(
            "ConfigMap {name} is missing: apply the manifests again, or make one; an empty {key} is the default policy"
        )
    })?;
    // The shipped ConfigMap has no such key, so that applying the manifests again leaves the operator's alone.
    let text = object.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
    Policy::parse(text).map_err(|error| error.to_string())
}

fn unreadable(object: &ConfigMap, note: &str) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone(),
            uid: object.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        reason: POLICY_UNREADABLE,
        note: note.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    fn config_map(key: &str, text: &str) -> ConfigMap {
        ConfigMap { data: Some(BTreeMap::from([(key.to_owned(), text.to_owned())])), ..ConfigMap::default() }
    }

    #[test]
    fn no_key_is_the_default_policy_and_no_config_map_is_none() {
        assert_eq!(read(Some(&ConfigMap::default())).unwrap(), Policy::default());
        assert_eq!(read(Some(&config_map("policy.yaml.example", "nonsense: 1"))).unwrap(), Policy::default());
        assert!(read(None).unwrap_err().contains("etcd-tls-policy is missing"));
    }

    #[test]
    fn a_policy_is_read_strictly() {
        let policy = read(Some(&config_map(names::POLICY_KEY, "clusterDomain: k8s.example"))).unwrap();
        assert_eq!(policy.cluster_domain, "k8s.example");
        assert!(read(Some(&config_map(names::POLICY_KEY, "clusterDomian: x"))).is_err());
    }

    /// A request was judged by rules for a namespace of a moment ago, and its requester checked against the one of now.
    #[test]
    fn a_policy_that_was_matched_a_moment_ago_counts_for_the_namespaces_of_now() {
        let rules = "users: [{namespace: web, serviceAccounts: [app], users: [root]}]\nnamespaceUids: {web: u1}";
        let policy = Arc::new(Policy::parse(rules).unwrap());
        let web = |uid: &str| {
            let facts =
                namespaces::NamespaceFacts { uid: uid.to_owned(), opted_in: true, deleting: false, hosts: false };
            namespaces::Map::from([("web".into(), Arc::new(facts))])
        };
        let allows =
            |there: Option<&namespaces::Map>| for_these(Arc::clone(&policy), there).allows_user("web", "app", "root");
        assert!(allows(Some(&web("u1"))));
        assert!(!allows(Some(&web("u2"))) && !allows(Some(&namespaces::Map::new())) && !allows(None));
        let free = Arc::new(Policy { namespace_uids: BTreeMap::new(), ..Policy::clone(&policy) });
        assert!(for_these(free, Some(&web("u2"))).allows_user("web", "app", "root"));
    }
}
