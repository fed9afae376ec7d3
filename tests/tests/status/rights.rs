//! Each right that an operator's commands use, taken away in turn. The rights are those of the API server's audit log, so a new
//! request of a command is tried too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, Options},
    eventually,
    installation::LIMIT,
    process::binary,
    say,
    temp::TempDir,
};

use super::text;

/// The commands that only look. `web` holds one pod, which is well.
const COMMANDS: [&[&str]; 8] = [
    &["status", "-n", "web"],
    &["status", "-A"],
    &["check", "-n", "web", "-o", "json"],
    &["check", "--pre", "-o", "json"],
    &["check", "namespace", "web", "-o", "json"],
    &["check", "pod", "web/app-0", "-o", "json"],
    &["rollover", "web/etcd", "--status"],
    &["revoke", "web/etcd", "--list"],
];

/// The namespace of the operators' accounts.
const HOME: &str = "operators";
/// The one that has all rights.
const ALL: &str = "all";

/// A verb and a resource, with its subresource and its group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    resource: String,
    group: String,
}

impl Right {
    /// As the commands name it.
    fn name(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{} {}{dot}{}", self.verb, self.resource, self.group)
    }

    /// True if a text says so of a right that the account lacks: of this one, and not of one whose name is longer.
    fn is_named_in(&self, said: &str) -> bool {
        said.contains(&format!("{} in ", self.name()))
    }

    fn rule(&self) -> Value {
        json!({"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb]})
    }
}

/// What the commands of the account with all rights asked the API server for.
pub struct Audit(TempDir);

impl Audit {
    pub fn new() -> Self {
        let directory = TempDir::new("audit");
        let user = format!("system:serviceaccount:{HOME}:{ALL}");
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": [user]}, {"level": "None"}],
        });
        directory.write("policy.json", policy.to_string());
        Self(directory)
    }

    /// The API server with this audit log.
    pub fn options(&self) -> Options {
        let of = |flag: &str, file: &str| format!("--audit-{flag}={}", self.0.join(file).display());
        Options {
            apiserver_arguments: vec![of("policy-file", "policy.json"), of("log-path", "log")],
            ..Options::default()
        }
    }

    /// The events so far, one a line.
    fn events(&self) -> Vec<String> {
        let log = fs::read_to_string(self.0.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The rights of the requests after the first `known` events. A request as another account needs the right to act as it, and
    /// then that account's.
    fn rights(&self, known: usize) -> BTreeSet<Right> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let right = |line: &str| {
            let event: Value = serde_json::from_str(line).expect("an event of the audit log");
            if !event["impersonatedUser"].is_null() {
                return Some(Right {
                    verb: "impersonate".into(),
                    resource: "serviceaccounts".into(),
                    group: String::new(),
                });
            }
            let of = &event["objectRef"];
            let mut resource = word(&of["resource"]);
            if let Some(subresource) = of["subresource"].as_str() {
                resource += &format!("/{subresource}");
            }
            let everybodys = resource.is_empty() || resource.starts_with("self");
            (!everybodys).then(|| Right { verb: word(&event["verb"]), resource, group: word(&of["apiGroup"]) })
        };
        self.events()[known..].iter().filter_map(|line| right(line)).collect()
    }
}

/// Makes an account with each set of rights.
async fn accounts(api: &ApiServer, of: &[(String, Vec<Value>)]) -> BTreeMap<String, PathBuf> {
    let group = "rbac.authorization.k8s.io";
    let mut items = Vec::new();
    for (name, rules) in of {
        let role = format!("operator-{name}");
        items
            .push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": HOME}}));
        items.push(json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": role}, "rules": rules,
        }));
        items.push(json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": HOME}],
        }));
    }
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    let mut kubeconfigs = BTreeMap::new();
    for (name, _) in of {
        let token = api.token(HOME, name, None).await;
        kubeconfigs.insert(name.clone(), api.token_kubeconfig(&format!("operator-{name}"), &token));
    }
    kubeconfigs
}

fn run(kubeconfig: &Path, command: &[&str]) -> Output {
    let mut program = Command::new(binary("etcd-tls-webhook"));
    program.args(command).env("KUBECONFIG", kubeconfig).output().expect("run a command")
}

/// The states of the findings of `check`, by subject.
fn states(output: &Output) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
    let mut states: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for finding in findings {
        let word = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        states.entry(word("subject")).or_default().insert(word("state"));
    }
    Some(states)
}

/// The command without the right `missing` of `all`, beside what it says with all of them.
fn judge(missing: &Right, all: &BTreeSet<Right>, with_all: &Output, without: &Output) -> Result<(), String> {
    let said = text(&without.stdout) + &text(&without.stderr);
    let fault = |what: &str| Err(format!("{what}: {:?}\n{said}", without.status.code()));
    if !missing.is_named_in(&said) {
        return fault("the right is not named");
    }
    if let Some(other) = all.iter().find(|other| *other != missing && other.is_named_in(&said)) {
        return fault(&format!("it has the right to {}", other.name()));
    }
    match without.status.code() {
        Some(77) if without.stdout.is_empty() => return Ok(()),
        Some(4) => {}
        // A pod is judged by its sidecar then, which knows of its own last request.
        Some(0) if said.contains("denied and pending requests are not shown: cannot list ") => return Ok(()),
        _ => return fault("the exit code"),
    }
    // What was not seen is unknown, and the rest is as it was.
    if let (Some(before), Some(after)) = (states(with_all), states(without)) {
        for (subject, states) in &after {
            let unknown = states.contains("unknown");
            if !unknown && before.get(subject) != Some(states) {
                return fault(&format!("{subject} is another one"));
            }
        }
        let lost = before.keys().find(|subject| !after.contains_key(*subject));
        if let Some(lost) = lost.filter(|_| !after.values().any(|states| states.contains("unknown"))) {
            return fault(&format!("{lost} is not spoken of"));
        }
    }
    Ok(())
}

/// Takes each right away, one by one.
pub async fn each_missing_one_is_named(api: &ApiServer, audit: &Audit) {
    // The pod by which the installation was tried has no kubelet.
    api.kubectl(&["delete", "namespace", "installation-probe", "--wait=false"]);
    api.kubectl(&["-n", "installation-probe", "delete", "pods", "--all", "--grace-period=0", "--force"]);
    api.namespace(HOME, &[]).await;
    let any = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    let all = accounts(api, &[(ALL.to_owned(), vec![any])]).await.remove(ALL).expect("an account");
    let mut used = Vec::new();
    for command in COMMANDS {
        let known = audit.events().len();
        let output = eventually(&format!("{command:?} with all rights"), LIMIT, || async {
            let output = run(&all, command);
            if output.status.success() { Ok(output) } else { Err(format!("{output:?}")) }
        })
        .await;
        let rights = audit.rights(known);
        assert!(!rights.is_empty(), "{command:?}: no request is in the audit log");
        used.push((command, output, rights));
    }
    let rights: Vec<Right> =
        used.iter().flat_map(|(.., rights)| rights.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let without = |missing: &Right| rights.iter().filter(|right| *right != missing).map(Right::rule).collect();
    let of: Vec<_> = rights.iter().enumerate().map(|(n, right)| (format!("without-{n}"), without(right))).collect();
    let kubeconfigs = accounts(api, &of).await;
    let began = Instant::now();
    for (n, missing) in rights.iter().enumerate() {
        let kubeconfig = &kubeconfigs[&format!("without-{n}")];
        for (command, with_all, needed) in used.iter().filter(|(.., needed)| needed.contains(missing)) {
            eventually(&format!("{command:?} without {}", missing.name()), LIMIT, || async {
                judge(missing, needed, with_all, &run(kubeconfig, command))
            })
            .await;
        }
    }
    let commands: usize = used.iter().map(|(.., needed)| needed.len()).sum();
    say(&format!("{commands} commands without one of {} rights: {:.0?}", rights.len(), began.elapsed()));
}
