//! A caller's entitlement by the policy file and the pods, judged as the in-cluster approver does. Pods are described by
//! manifests in a directory.
//!
//! With neither `--policy` nor `--pods`, the default, no caller is known here. Write access to the directory is the right to
//! decide which pods exist. The directory is read for each request, as the in-cluster approver reads a pod live; one read costs
//! one `stat` of each file, and only a file that changed is read again.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    identity::{PodFacts, RequestFacts, ServiceFacts, Verdict, bound_pod, judge},
    policy::Policy,
};
use k8s_openapi::{
    api::core::v1::{Namespace, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use crate::{
    controller::facts::{self, LeanPod},
    standalone::auth::User,
};

/// The largest manifest that is read, and how many are.
const MAX_FILE: u64 = 2 << 20;
const MAX_FILES: usize = 1_000;
/// A file that changed as lately as this may change once more with no other time to show for it.
const UNSETTLED: Duration = Duration::from_millis(100);

/// The policy and the pods.
#[derive(Debug, Default)]
pub struct Entitlements {
    policy: Policy,
    pods: Option<Directory>,
}

impl Entitlements {
    /// By `policy`, and by the pods described in the directory `pods`.
    pub fn new(policy: Policy, pods: Option<PathBuf>) -> Self {
        Self { policy, pods: pods.map(|path| Directory { path, read: Mutex::default() }) }
    }

    /// The policy; the default one where none was given.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// True if this caller is judged by policy: a host that policy lists, or a service account where there are pods.
    pub fn knows(&self, user: &User) -> bool {
        if user.name.starts_with("system:serviceaccount:") {
            return self.pods.is_some();
        }
        self.policy.host(&user.name, &user.groups).is_some()
    }

    /// The pods as they are described now.
    pub fn snapshot(&self) -> Snapshot {
        let Some(directory) = &self.pods else { return Snapshot::default() };
        directory.snapshot().unwrap_or_else(|error| {
            tracing::error!(%error, "the pods cannot be read; requests of pods wait");
            Snapshot { unreadable: true, ..Snapshot::default() }
        })
    }

    /// The verdict, with the pods as they were at one time.
    pub fn judge(&self, asked: &RequestFacts<'_>, snapshot: &Snapshot) -> Verdict {
        if self.pods.is_none() {
            return judge(asked, None, &[], &self.policy);
        }
        let Ok(bound) = bound_pod(asked.requester) else { return judge(asked, None, &[], &self.policy) };
        if snapshot.unreadable {
            return Verdict::NotYet("the pods cannot be read".to_owned());
        }
        let (pod, services) = snapshot.facts(&bound.namespace, &bound.pod);
        judge(asked, pod.as_ref(), &services, &self.policy)
    }
}

/// The pods, Services and Namespaces of the directory at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with each change that was seen; with the same one, every verdict is the same.
    generation: u64,
    unreadable: bool,
    files: Vec<Arc<Manifests>>,
}

impl Snapshot {
    /// Which state of the directory it is; `None`: it could not be read.
    pub fn generation(&self) -> Option<u64> {
        (!self.unreadable).then_some(self.generation)
    }

    fn facts(&self, namespace: &str, pod: &str) -> (Option<PodFacts>, Vec<ServiceFacts>) {
        let within = |metadata: &ObjectMeta| metadata.namespace.as_deref() == Some(namespace);
        let is = |metadata: &ObjectMeta, name: &str| metadata.name.as_deref() == Some(name);
        let opted_in = self
            .files
            .iter()
            .flat_map(|f| &f.namespaces)
            .any(|n| is(&n.metadata, namespace) && facts::namespace_opted_in(n));
        let found = self.files.iter().flat_map(|f| &f.pods).find(|p| within(&p.metadata) && is(&p.metadata, pod));
        let services = self.files.iter().flat_map(|f| &f.services).filter(|s| within(&s.metadata));
        (found.map(|p| facts::pod(p, opted_in)), services.map(facts::service).collect())
    }
}

/// The directory, and what was read of it.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    read: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    files: BTreeMap<PathBuf, (Version, Arc<Manifests>)>,
    snapshot: Snapshot,
}

/// The fingerprint of a file's content: inode, size, mtime and ctime; and the time of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    stat: [i128; 4],
    settled: bool,
}

impl Version {
    fn of(metadata: &std::fs::Metadata, now: SystemTime) -> Self {
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let changed = time(metadata.ctime(), metadata.ctime_nsec());
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        // A clock that was set back makes every file look new: it is read again, and nothing is missed.
        let settled = i128::try_from(now).is_ok_and(|now| now - changed > UNSETTLED.as_nanos() as i128);
        let modified = time(metadata.mtime(), metadata.mtime_nsec());
        Self { stat: [metadata.ino().into(), metadata.size().into(), modified, changed], settled }
    }
}

impl Directory {
    /// Reads what changed since the last look.
    fn snapshot(&self) -> Result<Snapshot, String> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| format!("{}: {e}", self.path.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
        if paths.len() > MAX_FILES {
            return Err(format!("{}: over {MAX_FILES} manifests", self.path.display()));
        }
        // Nothing panics while it is held; a look that fails changes nothing.
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = BTreeMap::new();
        let mut changed = paths.len() != known.files.len();
        for path in paths {
            let error = |e: String| format!("{}: {e}", path.display());
            let metadata = std::fs::metadata(&path).map_err(|e| error(e.to_string()))?;
            if metadata.len() > MAX_FILE {
                return Err(error(format!("over {MAX_FILE} bytes")));
            }
            let version = Version::of(&metadata, SystemTime::now());
            let file = match known.files.get(&path) {
                Some((before, file)) if before.stat == version.stat && before.settled => (*before, Arc::clone(file)),
                _ => {
                    changed = true;
                    (version, Arc::new(Manifests::read(&path).map_err(error)?))
                }
            };
            files.insert(path, file);
        }
        if changed {
            let generation = known.snapshot.generation + 1;
            let all = files.values().map(|(_, file)| Arc::clone(file)).collect();
            known.files = files;
            known.snapshot = Snapshot { generation, unreadable: false, files: all };
        }
        Ok(known.snapshot.clone())
    }
}

/// The content of one file.
#[derive(Debug, Default)]
struct Manifests {
    pods: Vec<LeanPod>,
    services: Vec<Service>,
    namespaces: Vec<Namespace>,
}

impl Manifests {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| e.to_string())?;
        let mut all = Self::default();
        for document in documents {
            all.take(document)?;
        }
        Ok(all)
    }

    fn take(&mut self, document: Value) -> Result<(), String> {
        let bad = |e: serde_json::Error| e.to_string();
        match document["kind"].as_str() {
            Some("Pod") => self.pods.push(serde_json::from_value(document).map_err(bad)?),
            Some("Service") => self.services.push(serde_json::from_value(document).map_err(bad)?),
            Some("Namespace") => self.namespaces.push(serde_json::from_value(document).map_err(bad)?),
            Some("List") => {
                for item in document["items"].as_array().cloned().unwrap_or_default() {
                    self.take(item)?;
                }
            }
            // Other kinds may lie there, too.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn by_default_no_subject_is_known() {
        let entitlements = Entitlements::default();
        let pod = User { name: "system:serviceaccount:prod:etcd".to_owned(), ..User::default() };
        assert!(!entitlements.knows(&pod));
        assert!(!entitlements.knows(&User { name: "system:etcd-peer:m1".to_owned(), ..User::default() }));
        assert!(Entitlements::new(Policy::default(), Some(PathBuf::from("/"))).knows(&pod));
    }

    #[test]
    fn manifests_of_every_form_are_read() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-pods-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let pod = "kind: Pod\napiVersion: v1\nmetadata: {name: etcd-0, namespace: prod, uid: u}\n\
                   spec: {containers: [{name: etcd}]}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";
        std::fs::write(
            dir.join("a.yaml"),
            format!(
                "{pod}---\nkind: Namespace\napiVersion: v1\nmetadata: {{name: prod, labels: {{etcd-tls: dynamic}}}}\n"
            ),
        )
        .unwrap();
        std::fs::write(
            dir.join("b.json"),
            r#"{"kind":"List","items":[{"kind":"Service","apiVersion":"v1","metadata":{"name":"s","namespace":"prod"}}]}"#,
        )
        .unwrap();
        std::fs::write(dir.join("notes.txt"), "not a manifest").unwrap();
        let entitlements = Entitlements::new(Policy::default(), Some(dir.clone()));
        let snapshot = entitlements.snapshot();
        let (found, services) = snapshot.facts("prod", "etcd-0");
        let found = found.unwrap();
        assert_eq!((found.uid.as_str(), found.ips.len(), found.namespace_opted_in), ("u", 1, true));
        assert_eq!(services[0].name, "s");

        // A directory that rests is one generation, and each change of it is seen.
        std::thread::sleep(UNSETTLED * 2);
        let (first, second) = (entitlements.snapshot().generation(), entitlements.snapshot().generation());
        assert!(first.is_some() && first == second, "{first:?} {second:?}");
        std::fs::write(dir.join("a.yaml"), pod.replace("uid: u", "uid: v")).unwrap();
        let changed = entitlements.snapshot();
        assert_ne!(changed.generation(), second);
        assert_eq!(changed.facts("prod", "etcd-0").0.unwrap().uid, "v");
        std::fs::write(dir.join("a.yaml"), "kind: [").unwrap();
        assert_eq!(entitlements.snapshot().generation(), None, "an unreadable file is no empty directory");
        std::fs::remove_file(dir.join("a.yaml")).unwrap();
        assert!(entitlements.snapshot().facts("prod", "etcd-0").0.is_none());
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(entitlements.snapshot().generation(), None);
    }
}
