//! The rules of every Role and ClusterRole in `manifests/`, read from the files themselves.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// One verb of one rule on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `ClusterRole/etcd-tls-sign`, `Role/etcd-tls-sign`.
    pub role: String,
    /// `certificates.k8s.io/certificatesigningrequests`; of the core group the resource alone.
    pub resource: String,
    /// The verb.
    pub verb: String,
}

impl Rule {
    pub fn new(role: &str, resource: &str, verb: &str) -> Self {
        Self { role: role.to_owned(), resource: resource.to_owned(), verb: verb.to_owned() }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.role, self.verb, self.resource)
    }
}

/// Every document of every YAML file below `manifests/`.
pub fn documents() -> Vec<Value> {
    let mut files = Vec::new();
    collect(&tests::repository().join("manifests"), &mut files);
    let mut documents = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("read a manifest");
        for part in text.split("\n---\n") {
            let document: Value = serde_saphyr::from_str(part).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            documents.push(document);
        }
    }
    documents
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of manifests") {
        let path = entry.expect("an entry").path();
        // A chart is no manifest before it is rendered; `tests/chart.rs` holds it to the same objects.
        if path.join("Chart.yaml").exists() {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
}

/// The rules that are shipped.
pub fn rules() -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for document in documents() {
        let kind = document["kind"].as_str().unwrap_or_default();
        if !["Role", "ClusterRole"].contains(&kind) {
            continue;
        }
        let role = format!("{kind}/{}", document["metadata"]["name"].as_str().expect("a name"));
        for rule in document["rules"].as_array().expect("rules") {
            assert!(rule["nonResourceURLs"].is_null(), "{role}: extend this test for URLs");
            for (group, resource, verb) in combinations(rule) {
                let resource = if group.is_empty() { resource } else { format!("{group}/{resource}") };
                rules.insert(Rule { role: role.clone(), resource, verb });
            }
        }
    }
    rules
}

fn combinations(rule: &Value) -> Vec<(String, String, String)> {
    let list = |key: &str| -> Vec<String> {
        let values = rule[key].as_array().unwrap_or_else(|| panic!("a rule without {key}: {rule}"));
        values.iter().map(|v| v.as_str().expect("a string").to_owned()).collect()
    };
    let mut all = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                assert!(![&group, &resource, &verb].contains(&&"*".to_owned()), "a rule for everything: {rule}");
                all.push((group.clone(), resource.clone(), verb));
            }
        }
    }
    all
}
