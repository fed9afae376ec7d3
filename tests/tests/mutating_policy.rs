//! Tier 2: injection without the webhook, by the admission policies of `inject --policy` on a real API server. What they make of a
//! pod is held against what `inject` makes of it, with the API server's defaults in both.

use std::{collections::BTreeMap, process::Command, time::Duration};

use etcd_tls_contract::names;
use etcd_tls_webhook::{
    inject::{Options, inject},
    injection::{Config, cel},
};
use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    eventually,
    process::{binary, run},
    repository,
    temp::TempDir,
    tier,
};

use self::cases::{ANNOTATIONS, STRICTER, STRICTER_ANNOTATIONS, changed, complete, member, refused_lines, shapes};

#[path = "mutating_policy/cases.rs"]
mod cases;
#[path = "mutating_policy/warned.rs"]
mod warned;

/// The namespace of the pods here: without the label, so that each pod says for itself.
const NAMESPACE: &str = "pods";
/// A namespace that the policies leave alone, for what `inject` made with the API server's defaults.
const LEFT_OUT: &str = "kube-system";

fn config() -> Config {
    Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() }
}

/// An API server that has MutatingAdmissionPolicy v1.
async fn server() -> Option<ApiServer> {
    let api = ApiServer::start().await?;
    let served =
        api.client.list_api_group_resources("admissionregistration.k8s.io/v1").await.expect("the API's resources");
    if !served.resources.iter().any(|resource| resource.kind == "MutatingAdmissionPolicy") {
        tier::skip_special(
            "the API server has no v1 MutatingAdmissionPolicy",
            "KUBEBUILDER_ASSETS=<Kubernetes 1.36 or later>",
        );
        return None;
    }
    api.namespace(NAMESPACE, &[]).await;
    Some(api)
}

/// The same, with the policies in force.
async fn start() -> Option<ApiServer> {
    let api = server().await?;
    for namespace in [NAMESPACE, LEFT_OUT] {
        api.service_account(namespace, "release-etcd").await;
    }
    api.service_account(LEFT_OUT, "default").await;
    let image = format!("--sidecar-image={}", config().sidecar_image);
    api.apply(&run(Command::new(binary("etcd-tls-webhook")).args(["inject", "--policy", &image])));
    let fine = member(&[("options", "env")]);
    let bad = member(&[("options", "env"), ("key", "none")]);
    eventually("the policies are in force", Duration::from_secs(60), || async {
        match (create(&api, NAMESPACE, bad.clone()).await, create(&api, NAMESPACE, fine.clone()).await) {
            (Err(_), Ok(pod)) if pod["spec"]["initContainers"].is_array() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    Some(api)
}

/// The pod as the API server would store it, without what differs from one request to the next.
async fn create(api: &ApiServer, namespace: &str, mut pod: Value) -> Result<Value, String> {
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    let metadata = pod["metadata"].as_object_mut().expect("metadata");
    metadata.remove("name");
    metadata.insert("generateName".to_owned(), json!("x-"));
    metadata.insert("namespace".to_owned(), json!(namespace));
    // The volume with the token has a random name, and stands in another place.
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    if pod["spec"]["priorityClassName"].is_string() {
        pod["spec"].as_object_mut().expect("a spec").remove("priority");
    }
    let pods = Api::<DynamicObject>::namespaced_with(
        api.client.clone(),
        namespace,
        &ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod")),
    );
    let pod: DynamicObject = serde_json::from_value(pod).map_err(|e| e.to_string())?;
    let made =
        pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await.map_err(|e| e.to_string())?;
    let made = serde_json::to_value(made).expect("JSON");
    let of = |field: &str| made["metadata"].get(field).cloned().unwrap_or_else(|| json!({}));
    Ok(json!({"metadata": {"labels": of("labels"), "annotations": of("annotations")}, "spec": made["spec"]}))
}

/// The pod as `inject` changes it, or the reason of a refusal.
fn injected(pod: &Value) -> Result<Value, String> {
    let options = Options { injection: config(), namespace: NAMESPACE.to_owned() };
    let injected = inject(&pod.to_string(), &options).map_err(|e| e.to_string())?;
    Ok(serde_json::from_str(&injected.text).expect("JSON"))
}

/// The first field in which two objects differ.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => x
            .keys()
            .chain(y.keys())
            .find_map(|key| difference(&format!("{path}.{key}"), &a[key.as_str()], &b[key.as_str()])),
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().find_map(|(at, (a, b))| difference(&format!("{path}[{at}]"), a, b))
        }
        _ => (a != b).then(|| format!("{path}: inject has {a}, the policy {b}")),
    }
}

/// The fate of a pod.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// `inject` and the policies make the same of it.
    Same,
    /// Both refuse it; the policies' reasons.
    Refused(String),
    /// `inject` does it, and the policies refuse it for these reasons.
    Stricter(String),
    /// Anything else, which is a fault.
    Fault(String),
    /// The API server takes the pod of `inject` no more than one of its own.
    Invalid(String),
}

/// Holds what the policies make of a pod against what `inject` makes of it, in every field.
async fn outcome(api: &ApiServer, pod: &Value) -> Outcome {
    let expected = match injected(pod) {
        Ok(injected) => match create(api, LEFT_OUT, injected).await {
            Ok(expected) => Ok(expected),
            // It may need a feature that this API server has not.
            Err(why) => {
                let policed = create(api, NAMESPACE, pod.clone()).await.expect_err("the API server refused it before");
                return match policed.split_once("denied request: etcd-tls: ") {
                    Some((_, reasons)) => Outcome::Stricter(reasons.to_owned()),
                    None => Outcome::Invalid(why),
                };
            }
        },
        Err(why) => Err(why),
    };
    match (expected, create(api, NAMESPACE, pod.clone()).await) {
        (Ok(expected), Ok(policed)) => match difference("", &expected, &policed) {
            Some(difference) => Outcome::Fault(difference),
            None => Outcome::Same,
        },
        (Err(why), Ok(_)) => Outcome::Fault(format!("the policies take it, and inject says: {why}")),
        (expected, Err(why)) => match why.split_once("denied request: etcd-tls: ") {
            Some((_, reasons)) if expected.is_ok() => Outcome::Stricter(reasons.to_owned()),
            Some((_, reasons)) => Outcome::Refused(reasons.to_owned()),
            None => Outcome::Fault(why),
        },
    }
}

/// The pod, stating its options and where its etcd listens.
fn stating(pod: &Value, options: &str) -> Value {
    let mut pod = pod.clone();
    let annotations = &mut pod["metadata"]["annotations"];
    annotations["etcd-tls.dev/options"] = json!(options);
    for (key, url) in [("client-url", "https://127.0.0.1:2379"), ("peer-url", "https://127.0.0.1:2380")] {
        if annotations[format!("etcd-tls.dev/{key}")].is_null() {
            annotations[format!("etcd-tls.dev/{key}")] = json!(url);
        }
    }
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_golden_shapes_become_what_inject_makes_of_them() {
    let Some(api) = start().await else { return };
    let (mut same, mut stricter, mut faults) = (0, Vec::new(), Vec::new());
    for (name, mut pod) in shapes() {
        complete(&mut pod);
        for options in ["env", "none"] {
            let what = format!("{name} {options}");
            match outcome(&api, &stating(&pod, options)).await {
                Outcome::Same => same += 1,
                Outcome::Refused(_) => {}
                Outcome::Stricter(reasons) => stricter.push((what, reasons)),
                Outcome::Fault(fault) | Outcome::Invalid(fault) => faults.push(format!("{what}: {fault}")),
            }
        }
        // As it is, nothing states the options, but where the shape does so itself.
        if pod["metadata"]["annotations"]["etcd-tls.dev/options"].is_null() && injected(&pod).is_ok_and(|i| i != pod) {
            match outcome(&api, &pod).await {
                Outcome::Stricter(reasons)
                    if reasons.contains("annotate etcd-tls.dev/options: env")
                        && reasons.contains("run etcd-tls-webhook inject on the manifest, or install the webhook") => {}
                other => faults.push(format!("{name} as it is: {other:?}")),
            }
        }
    }
    for (what, reasons) in &stricter {
        match STRICTER.iter().find(|(of, _)| of == what) {
            Some((_, reason)) if reasons.contains(reason) => {}
            Some((_, reason)) => faults.push(format!("{what}: not refused by {reason:?}, but {reasons}")),
            None => faults.push(format!("{what}: refused: {reasons}")),
        }
    }
    let unexpected: Vec<_> =
        STRICTER.iter().filter(|(of, _)| !stricter.iter().any(|(what, _)| what == of)).map(|(of, _)| of).collect();
    assert!(unexpected.is_empty(), "no longer refused: {unexpected:?}: {}", faults.join("\n"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(same >= 50, "only {same} are the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_and_pods_are_judged_as_inject_judges_them() {
    let Some(api) = start().await else { return };
    let (mut same, mut refused, mut faults) = (0, 0, Vec::new());
    let mut pods: Vec<(String, Value)> = Vec::new();
    for (key, value) in ANNOTATIONS {
        let mut annotations = vec![("options", "env"), (*key, *value)];
        if *key == "user" {
            annotations.push(("roles", "peer,client"));
        }
        pods.push((format!("{key}={value:?}"), member(&annotations)));
    }
    pods.extend(changed());
    for (what, pod) in pods {
        match outcome(&api, &pod).await {
            Outcome::Same => same += 1,
            Outcome::Refused(_) => refused += 1,
            other => faults.push(format!("{what}: {other:?}")),
        }
    }
    for (key, value) in STRICTER_ANNOTATIONS {
        match outcome(&api, &member(&[("options", "env"), (key, value)])).await {
            Outcome::Stricter(reasons) if reasons.starts_with(&format!("annotation etcd-tls.dev/{key}: ")) => {}
            other => faults.push(format!("{key}={value:?}: {other:?}")),
        }
    }
    for (pod, reason) in refused_lines() {
        match outcome(&api, &pod).await {
            Outcome::Refused(reasons) | Outcome::Stricter(reasons) if reasons.contains(reason) => {}
            other => faults.push(format!("{reason}: {other:?}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(same >= 60 && refused >= 70, "{same} the same, {refused} refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn injected_pods_and_those_that_did_not_opt_in_are_left_alone() {
    let Some(api) = start().await else { return };
    // Once more, by the policies and by `inject`.
    let once = create(&api, NAMESPACE, member(&[("options", "env"), ("roles", "peer,server,client")]))
        .await
        .expect("injected");
    let twice = create(&api, NAMESPACE, once.clone()).await.expect("injected already");
    assert_eq!(difference("", &once, &twice), None);
    // The label by which people select injected pods is on each of them.
    let mut unmarked = once.clone();
    unmarked["metadata"]["labels"].as_object_mut().expect("labels").remove(names::INJECTED_LABEL);
    let marked = create(&api, NAMESPACE, unmarked).await.expect("injected already");
    assert_eq!(difference("", &once, &marked), None);
    assert_eq!(
        injected(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": once["metadata"], "spec": once["spec"]})),
        Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": once["metadata"], "spec": once["spec"]}))
    );
    let mut left = 0;
    for (name, mut pod) in shapes() {
        complete(&mut pod);
        let Ok(offline) = injected(&pod) else { continue };
        if offline == pod {
            continue;
        }
        let expected = create(&api, LEFT_OUT, offline.clone()).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let policed = create(&api, NAMESPACE, offline).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(difference("", &expected, &policed), None, "{name}");
        left += 1;
    }
    assert!(left >= 30, "only {left}");

    // A name of ours on another program.
    for change in [
        &(|c: &mut Value| c["command"] = json!(["sh"])) as &dyn Fn(&mut Value),
        &|c: &mut Value| c["args"] = json!(["run", "--roles=client"]),
        &|c: &mut Value| c["envFrom"] = json!([{"configMapRef": {"name": "a"}}]),
    ] {
        let mut forged = once.clone();
        change(&mut forged["spec"]["initContainers"][1]);
        let why = create(&api, NAMESPACE, forged).await.expect_err("another program");
        assert!(why.contains("is not etcd-tls's own"), "{why}");
    }

    // No label, of the namespace or of the pod; a namespace's label means its etcd pods.
    api.namespace("labelled", &[("etcd-tls", "dynamic")]).await;
    let mut plain = member(&[("options", "env")]);
    plain["metadata"] = json!({"annotations": plain["metadata"]["annotations"]});
    let is_injected = |pod: &Value| pod["spec"]["initContainers"].is_array();
    assert!(!is_injected(&create(&api, NAMESPACE, plain.clone()).await.expect("not opted in")));
    eventually("the namespace's label is seen", Duration::from_secs(60), || async {
        let pod = create(&api, "labelled", plain.clone()).await?;
        if is_injected(&pod) { Ok(()) } else { Err("not injected".to_owned()) }
    })
    .await;
    let mut unstated = plain.clone();
    unstated["metadata"] = json!({});
    let why = create(&api, "labelled", unstated.clone()).await.expect_err("an etcd pod of the namespace");
    assert!(why.contains("annotate etcd-tls.dev/options: env"), "{why}");
    let mut native = unstated.clone();
    native["spec"]["initContainers"] = native["spec"]["containers"].clone();
    native["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
    native["spec"]["containers"][0]["name"] = json!("app");
    let why = create(&api, "labelled", native).await.expect_err("an etcd that is a native sidecar");
    assert!(why.contains("annotate etcd-tls.dev/options: env"), "{why}");
    unstated["spec"]["containers"][0]["name"] = json!("web");
    assert!(!is_injected(&create(&api, "labelled", unstated).await.expect("no etcd pod")));
    plain["metadata"]["labels"] = json!({"etcd-tls": "disabled"});
    assert!(!is_injected(&create(&api, "labelled", plain.clone()).await.expect("opted out")));
    plain["metadata"]["labels"] = json!({"etcd-tls": "other"});
    let why = create(&api, "labelled", plain).await.expect_err("a label that nobody knows");
    assert!(why.contains("label etcd-tls: write dynamic or disabled"), "{why}");
}

/// The findings of `check`: state and reason, by subject.
fn check(api: &ApiServer) -> BTreeMap<String, (String, String)> {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    let output = command.args(["check", "-n", NAMESPACE, "-o", "json"]).env("KUBECONFIG", &api.kubeconfig).output();
    let list: Vec<Value> = serde_json::from_slice(&output.expect("check").stdout).expect("findings");
    let word = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    list.iter().map(|f| (word(f, "subject"), (word(f, "state"), word(f, "reason")))).collect()
}

/// The component: no `admit`, and the image where `images:` reaches it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_install_without_the_webhook_injects_and_is_checked() {
    let Some(api) = server().await else { return };
    let overlay = TempDir::new("without-webhook");
    let up = "../".repeat(overlay.path().components().count());
    let of = |path: &str| format!("{up}{}", repository().join(path).display());
    let kustomization = json!({
        "resources": [of("manifests")], "components": [of("manifests/components/without-webhook")],
        "images": [{"name": "etcd-tls-sidecar", "newName": "example.com/etcd-tls-sidecar", "newTag": "1"}],
    });
    overlay.write("kustomization.yaml", kustomization.to_string());
    let applied = api.kubectl(&["apply", "-k", &overlay.path().display().to_string()]);
    assert!(!applied.contains("etcd-tls-admit") && !applied.contains("webhookconfiguration"), "{applied}");
    let sign = api.kubectl(&["-n", "etcd-tls-system", "get", "deployment", "etcd-tls-sign", "-o", "jsonpath={..args}"]);
    assert!(sign.contains("--external-serving-pair"), "{sign}");

    let member = member(&[("options", "env")]);
    let pod = eventually("the policies are in force", Duration::from_secs(60), || async {
        let pod = create(&api, NAMESPACE, member.clone()).await?;
        if pod["spec"]["initContainers"].is_array() { Ok(pod) } else { Err("not injected".to_owned()) }
    })
    .await;
    for container in pod["spec"]["initContainers"].as_array().expect("injected") {
        assert_eq!(container["image"], "example.com/etcd-tls-sidecar:1");
    }
    // The guard of injected pods stays.
    let mut made = pod;
    made["metadata"]["name"] = json!("made");
    api.pod(NAMESPACE, made).await.expect("a pod");
    let mut tries = 0;
    eventually("the guard is in force", Duration::from_secs(60), || {
        tries += 1;
        let value = format!("etcd-tls.dev/cluster=c{tries}");
        let mut change = api.kubectl_command(&["-n", NAMESPACE, "annotate", "--overwrite", "pod", "made", &value]);
        let output = change.output().expect("kubectl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        async move { if said.contains("cannot be changed") { Ok(()) } else { Err(format!("{output:?}")) } }
    })
    .await;

    let findings = check(&api);
    assert_eq!(findings["injection policies"].0, "ok", "{findings:?}");
    assert!(findings["admission"].0 == "ok" && findings["admission"].1.contains("gets its sidecar"), "{findings:?}");
    assert!(!findings.contains_key("webhook configuration"), "{findings:?}");
    api.kubectl(&["delete", "validatingadmissionpolicybinding", "etcd-tls-injection-pods"]);
    let (state, reason) = check(&api)["injection policies"].clone();
    assert!(state == "failing" && reason.contains("etcd-tls-injection-pods is missing"), "{state} {reason}");

    // Without the image nothing starts without certificates.
    api.kubectl(&["-n", "etcd-tls-system", "delete", "podtemplate", "etcd-tls-injection"]);
    eventually("pods are refused", Duration::from_secs(60), || async {
        match create(&api, NAMESPACE, member.clone()).await {
            Err(why) if why.contains("no params found for policy binding") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The API server ends an expression that costs too much, and the pod is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_pod_is_within_the_budget() {
    let Some(api) = start().await else { return };
    let mut pod = member(&[("options", "env"), ("roles", "peer,server,client")]);
    let env: Vec<Value> = (0..200).map(|n| json!({"name": format!("V{n}"), "value": "x".repeat(100)})).collect();
    pod["spec"]["containers"][0]["env"] = json!(env);
    pod["spec"]["containers"][0]["args"] =
        json!([vec!["--flag=".to_owned() + &"y".repeat(60); 100], vec!["z".repeat(4096)]].concat());
    for n in 0..30 {
        let other =
            json!({"name": format!("c{n}"), "image": "x", "env": env, "securityContext": {"runAsUser": 2000 + n}});
        pod["spec"]["containers"].as_array_mut().expect("containers").push(other);
        let volume = json!({"name": format!("v{n}"), "emptyDir": {}});
        match pod["spec"]["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => pod["spec"]["volumes"] = json!([volume]),
        }
    }
    assert_eq!(outcome(&api, &pod).await, Outcome::Same);
    // A right to create pods alone is no right to change the policies.
    let rules = json!([{"apiGroups": ["", "apps"], "resources": ["*"], "verbs": ["*"]}]);
    let kubeconfig = api.account(NAMESPACE, "tenant", rules).await;
    for kind in [
        "mutatingadmissionpolicy",
        "mutatingadmissionpolicybinding",
        "validatingadmissionpolicy",
        "validatingadmissionpolicybinding",
    ] {
        let name = if kind.ends_with("binding") { format!("{}-pods", cel::POLICY) } else { cel::POLICY.to_owned() };
        let output = Command::new(api.kubectl_path())
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["delete", kind, &name])
            .output()
            .expect("kubectl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("(Forbidden)"), "{said}");
    }
}
