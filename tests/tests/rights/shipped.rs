//! The rules of every Role and ClusterRole in `manifests/`, read from the files themselves, and those that components add to them.

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// The names of a rule's objects; empty where it is for all.
pub type Names = BTreeSet<String>;

/// The rules of some roles, each with its `resourceNames`: more than one set where it is repeated.
pub type Rules = BTreeMap<Rule, BTreeSet<Names>>;

/// The rules of the roles.
pub fn rules() -> Rules {
    let mut rules = Rules::new();
    for document in documents() {
        let kind = document["kind"].as_str().unwrap_or_default();
        if is_role(kind) {
            let role = format!("{kind}/{}", document["metadata"]["name"].as_str().expect("a name"));
            for rule in document["rules"].as_array().expect("rules") {
                add(&mut rules, &role, rule);
            }
        }
    }
    rules
}

/// The rules that components add to them.
pub fn rules_of_components() -> Rules {
    let mut rules = Rules::new();
    let patches = documents().into_iter().filter_map(|document| document.get("patches")?.as_array().cloned());
    for patch in patches.flatten() {
        let target = &patch["target"];
        let kind = target["kind"].as_str().unwrap_or_default();
        if is_role(kind) {
            let role = format!("{kind}/{}", target["name"].as_str().expect("a name"));
            let text = patch["patch"].as_str().unwrap_or_else(|| panic!("{role}: extend this test for {patch}"));
            let operations: Vec<Value> = serde_saphyr::from_str(text).expect("a JSON patch");
            for operation in operations {
                let whole = operation["op"] == "add" && operation["path"] == "/rules/-";
                assert!(whole, "{role}: extend this test for {operation}");
                add(&mut rules, &role, &operation["value"]);
            }
        } else {
            // Of one other kind, by its name.
            assert!(!kind.is_empty() && kind.chars().all(char::is_alphabetic), "extend this test for {patch}");
        }
    }
    rules
}

fn is_role(kind: &str) -> bool {
    ["Role", "ClusterRole"].contains(&kind)
}

fn add(rules: &mut Rules, role: &str, rule: &Value) {
    assert!(rule["nonResourceURLs"].is_null(), "{role}: extend this test for URLs");
    let names: Names = rule["resourceNames"].as_array().into_iter().flatten().map(text).collect();
    assert_eq!(rule["resourceNames"].is_null(), names.is_empty(), "{role}: {rule}");
    for (group, resource, verb) in combinations(rule) {
        let resource = if group.is_empty() { resource } else { format!("{group}/{resource}") };
        rules.entry(Rule::new(role, &resource, &verb)).or_default().insert(names.clone());
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn combinations(rule: &Value) -> Vec<(String, String, String)> {
    let list = |key: &str| -> Vec<String> {
        let values = rule[key].as_array().unwrap_or_else(|| panic!("a rule without {key}: {rule}"));
        values.iter().map(text).collect()
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
