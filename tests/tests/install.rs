//! An installation from beginning to end, on a real API server: the manifests' demands on a cluster, an upgrade from an older
//! version.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use etcd_tls_contract::certificate::Chain;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    eventually,
    installation::{Installation, LIMIT, Options, SIDECAR_IMAGE, client_pod},
    pages,
    process::{binary, run},
    temp::TempDir,
    tier,
};

const SYSTEM: &str = "etcd-tls-system";
const NAME: &str = "app.kubernetes.io/name";
const INJECTED: &str = "etcd-tls.dev/injected";
/// The version that an upgrade is tried from.
const OLDER: &str = "7dacd69";

/// Commands that the older version took, and whose etcd this version cannot tell the options of: a script that is not in the pod,
/// and a program that takes the environment away.
const TAKEN_BEFORE: [(&str, &[&str]); 2] =
    [("file", &["gosu", "etcd", "/scripts/run"]), ("sudo", &["sh", "-c", "sudo -u etcd etcd \"$@\"", "etcd"])];

/// Renders with kustomize; fails on warnings.
fn render(kubectl: &Path, directory: &Path) -> Vec<Value> {
    let output = Command::new(kubectl).arg("kustomize").arg(directory).output().expect("run kubectl");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    serde_saphyr::from_multiple(&String::from_utf8_lossy(&output.stdout)).expect("YAML")
}

fn identity(object: &Value) -> (String, String) {
    let of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    (of(&object["kind"]), of(&object["metadata"]["name"]))
}

/// A kustomization on the shipped manifests with components of theirs.
fn overlay(components: &[&str]) -> TempDir {
    let overlay = TempDir::new("overlay");
    let up = "../".repeat(overlay.path().components().count());
    let of = |path: &str| {
        let path = tests::repository().join(path).display().to_string();
        format!("{up}{}", path.trim_start_matches('/'))
    };
    let components: Vec<_> = components.iter().map(|c| of(&format!("manifests/components/{c}"))).collect();
    overlay.write("kustomization.yaml", json!({"resources": [of("manifests")], "components": components}).to_string());
    overlay
}

fn deployments(objects: &[Value]) -> Vec<&Value> {
    let all: Vec<_> = objects.iter().filter(|o| o["kind"] == "Deployment").collect();
    assert_eq!(all.len(), 3);
    all
}

#[test]
fn the_manifests_ask_nothing_of_a_cluster_that_it_may_not_have() {
    let Some(assets) = tier::kubernetes() else { return };
    let kubectl = assets.join("kubectl");
    let objects = render(&kubectl, &tests::repository().join("manifests"));
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        for label in ["name", "instance", "version", "part-of", "managed-by"] {
            assert!(labels[format!("app.kubernetes.io/{label}")].is_string(), "{label}: {:?}", identity(object));
        }
        assert_eq!(labels[NAME], "etcd-tls");
    }
    for deployment in deployments(&objects) {
        let spec = &deployment["spec"]["template"]["spec"];
        assert_eq!(spec["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
        assert!(spec["priorityClassName"].is_null(), "not everywhere may a namespace have a class of the system's");
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let component = &labels["app.kubernetes.io/component"];
        assert!(component.is_string() && labels["app.kubernetes.io/version"].is_string(), "{labels}");
        // Immutable: another one makes `kubectl apply` fail.
        assert_eq!(
            deployment["spec"]["selector"],
            json!({"matchLabels": {NAME: "etcd-tls", "app.kubernetes.io/component": component}})
        );
    }
    let with = render(&kubectl, overlay(&["priority"]).path());
    for deployment in deployments(&with) {
        assert_eq!(deployment["spec"]["template"]["spec"]["priorityClassName"], "system-cluster-critical");
    }
    assert!(with.iter().any(|o| o["kind"] == "ResourceQuota" && o["metadata"]["namespace"] == SYSTEM));
}

/// The overlays of docs/install.md and docs/without-webhook.md, as they stand there.
#[test]
fn the_overlays_of_the_pages_name_their_images_and_pull_secrets() {
    let Some(assets) = tier::kubernetes() else { return };
    let path = pages::path(&[&assets]);
    for (page, section, deployments, registry, secrets) in [
        ("install.md", "From a registry of your own", 3, "example.com/", json!([{"name": "registry"}])),
        ("install.md", "Without a registry, or without a network", 3, "docker.io/library/", Value::Null),
        ("without-webhook.md", "Install", 2, "example.com/", Value::Null),
    ] {
        let blocks = pages::blocks(page, section);
        let overlay = blocks.iter().find(|block| block.contains("kubectl apply -k")).expect("an overlay");
        let directory = TempDir::new("page-overlay");
        symlink(tests::repository().join("manifests"), directory.join("manifests")).expect("link");
        let script = format!("set -e\n{}", overlay.replace("kubectl apply -k", "kubectl kustomize"));
        let rendered = pages::bash(directory.path(), &path, None, &script).unwrap_or_else(|error| panic!("{error}"));
        let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
        let all: Vec<_> = objects.iter().filter(|object| object["kind"] == "Deployment").collect();
        assert_eq!(all.len(), deployments, "{page}");
        for deployment in all {
            let spec = &deployment["spec"]["template"]["spec"];
            let image = spec["containers"][0]["image"].as_str().expect("an image");
            assert!(image.contains(registry) && image.ends_with("/etcd-tls-webhook:0.1.0"), "{page}: {image}");
            assert_eq!(spec["imagePullSecrets"], secrets, "{page}");
        }
        let sidecar = rendered.lines().any(|l| l.contains(registry) && l.ends_with("/etcd-tls-sidecar:0.1.0"));
        assert!(sidecar, "{page}: the injected image");
        let admits = |object: &&Value| identity(object) == ("Deployment".to_owned(), "etcd-tls-admit".to_owned());
        if let Some(admit) = objects.iter().find(admits)
            && !secrets.is_null()
        {
            let variables = admit["spec"]["template"]["spec"]["containers"][0]["env"].as_array().expect("variables");
            let wanted = json!({"name": "SIDECAR_PULL_SECRETS", "value": "registry"});
            assert!(variables.contains(&wanted), "{variables:?}");
        }
    }
}

/// README's overlay, as it stands there: the component comes with all of `manifests`, and the policies come before the rights.
#[test]
fn the_overlay_of_readme_adds_the_component_that_it_names() {
    let Some(assets) = tier::kubernetes() else { return };
    let blocks = pages::blocks("../README.md", "Install");
    let overlay = blocks.iter().find(|block| block.contains("kubectl apply -k my-overlay")).expect("an overlay");
    let directory = TempDir::new("readme-overlay");
    symlink(tests::repository().join("manifests"), directory.join("manifests")).expect("link");
    let script = format!("set -e\n{}", overlay.replace("kubectl apply -k", "kubectl kustomize"));
    let rendered = pages::bash(directory.path(), &pages::path(&[&assets]), None, &script);
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&rendered.unwrap_or_else(|error| panic!("{error}"))).expect("YAML");
    let at =
        |kind: &str| objects.iter().position(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    assert_eq!(objects.iter().filter(|object| object["kind"] == "Deployment").count(), 3);
    assert!(at("ValidatingAdmissionPolicy") < at("ClusterRole") && at("PodMonitor") > 0);
}

/// Each component and example on its own: kustomize has nothing to say, such as that a field is deprecated.
#[test]
fn kustomize_takes_every_component_and_example_without_a_word() {
    let Some(assets) = tier::kubernetes() else { return };
    let kubectl = assets.join("kubectl");
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(tests::repository().join(directory)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
    };
    let mut objects = Vec::new();
    for component in names("manifests/components") {
        objects.extend(render(&kubectl, overlay(&[&component]).path()));
    }
    for example in names("manifests/examples") {
        objects.extend(render(&kubectl, &tests::repository().join("manifests/examples").join(example)));
    }
    // The label is a mark for people. A selector with it would take users' pods for ours.
    let selecting: BTreeSet<_> = objects.iter().filter(|object| selects(object, INJECTED)).map(identity).collect();
    assert_eq!(selecting, BTreeSet::new());
    let sidecars = objects.iter().find(|o| o["kind"] == "PodMonitor" && o["metadata"]["name"] == "etcd-tls-sidecars");
    let sidecars = &sidecars.expect("the monitor of the sidecars")["spec"];
    assert_eq!(sidecars["selector"], json!({}), "every pod with one of the ports");
    let ports = sidecars["podMetricsEndpoints"].as_array().expect("ports");
    assert!(ports.iter().all(|port| port["port"].is_string()), "{ports:?}");
}

/// Whether a selector in it has this label.
fn selects(value: &Value, label: &str) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| selects(item, label)),
        Value::Object(fields) => fields.iter().any(|(key, field)| {
            let selector = key.to_lowercase().ends_with("selector") && field.to_string().contains(label);
            selector || selects(field, label)
        }),
        _ => false,
    }
}

/// OpenShift's restricted-v2, as a policy: users and groups are of the namespace's range or are not named.
const RANGES: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: ranges}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  variables:
  - {name: least, expression: "1000680000"}
  - {name: contexts, expression: "object.spec.containers.filter(c, has(c.securityContext)).map(c, c.securityContext) + (has(object.spec.initContainers) ? object.spec.initContainers.filter(c, has(c.securityContext)).map(c, c.securityContext) : [])"}
  validations:
  - expression: "!has(object.spec.securityContext) || !has(object.spec.securityContext.runAsUser) || object.spec.securityContext.runAsUser >= variables.least"
  - expression: "!has(object.spec.securityContext) || !has(object.spec.securityContext.fsGroup) || object.spec.securityContext.fsGroup >= variables.least"
  - expression: "variables.contexts.all(c, !has(c.runAsUser) || c.runAsUser >= variables.least)"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: ranges}
spec: {policyName: ranges, validationActions: [Deny]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_assigns_users_takes_our_pods() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply(RANGES);
    let pods = Api::<Pod>::namespaced(api.client.clone(), SYSTEM);
    let templates = async || {
        let all = Api::<Deployment>::namespaced(api.client.clone(), SYSTEM);
        let all = all.list(&ListParams::default()).await.expect("list").items;
        assert_eq!(all.len(), 3);
        all.into_iter().map(|d| serde_json::to_value(d.spec.expect("a spec").template).expect("JSON"))
    };
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    api.apply_kustomization("manifests");
    for mut pod in templates().await {
        pod["metadata"]["name"] = "a".into();
        // The policy is in force a moment after it was applied.
        eventually("refused", LIMIT, || async {
            match pods.create(&dry_run, &from_json(pod.clone())).await {
                Err(error) if error.to_string().contains("ranges") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    let overlay = overlay(&["openshift"]);
    api.kubectl(&["apply", "-k", &overlay.path().display().to_string()]);
    for mut pod in templates().await {
        pod["metadata"]["name"] = "a".into();
        pods.create(&dry_run, &from_json(pod)).await.expect("taken");
    }
}

/// The manifests of an older version, from the repository's history.
fn older_manifests() -> Option<TempDir> {
    let dir = TempDir::new("older");
    let script = format!(
        "git -C '{}' archive {OLDER} manifests | tar -x -C '{}'",
        tests::repository().display(),
        dir.path().display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().expect("run");
    if dir.join("manifests/kustomization.yaml").is_file() {
        return Some(dir);
    }
    tier::skip(
        2,
        &format!("no {OLDER}: {}", String::from_utf8_lossy(&output.stderr).trim()),
        "a clone with its history",
    );
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_is_upgraded_and_its_leftovers_are_listed() {
    let Some(older) = older_manifests() else { return };
    let Some(api) = ApiServer::start().await else { return };
    let before = api.kubectl(&["kustomize", &older.join("manifests").display().to_string()]);
    let before: Vec<Value> = serde_saphyr::from_multiple(&before).expect("YAML");
    api.kubectl(&["apply", "-k", &older.join("manifests").display().to_string()]);
    // A selector that differs is refused here.
    api.apply_kustomization("manifests");
    let after: BTreeSet<_> =
        render(&api.kubectl_path(), &tests::repository().join("manifests")).iter().map(identity).collect();
    let guide = fs::read_to_string(tests::repository().join("docs/upgrade.md")).expect("the guide");
    let listed: BTreeSet<_> = guide
        .lines()
        .filter_map(|line| line.trim().strip_prefix("kubectl delete "))
        .filter_map(|line| line.split_once(' '))
        .map(|(kind, name)| (kind.to_owned(), name.to_owned()))
        .collect();
    let left: BTreeSet<_> = before
        .iter()
        .map(identity)
        .filter(|object| !after.contains(object))
        .map(|(kind, name)| (kind.to_lowercase(), name))
        .collect();
    assert_eq!(listed, left, "docs/upgrade.md lists what an upgrade from {OLDER} leaves");
    for (kind, name) in left {
        api.kubectl(&["delete", &kind, &name]);
    }
}

/// The programs of an older version, where this machine has them.
fn older_programs() -> Option<PathBuf> {
    let dir = env::var_os("ETCD_TLS_TEST_OLDER_BIN_DIR").map(PathBuf::from);
    if dir.is_none() {
        let enable = format!("the programs of {OLDER} in a directory");
        tier::skip_special("ETCD_TLS_TEST_OLDER_BIN_DIR names no directory", &enable);
    }
    dir
}

/// A pod as the older version has injected it runs the older sidecar on: the new approver and signer serve it, its certificates
/// are not issued anew for nothing, and are renewed when they are due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_of_an_older_version_are_served() {
    let (Some(older), Some(programs)) = (older_manifests(), older_programs()) else { return };
    // The older program under the arguments of the newer admission, as docs/upgrade.md says.
    let output = Command::new(programs.join("etcd-tls-sidecar")).args(["init", "--revocation-lists"]).output();
    let output = output.expect("run the older sidecar");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--revocation-lists"), "{said}");
    for (name, command) in TAKEN_BEFORE {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [
            {"name": "etcd", "image": "etcd", "command": command, "args": ["--listen-client-urls=https://0.0.0.0:2379"]},
        ]}});
        let file = older.write("taken.json", pod.to_string());
        run(Command::new(programs.join("etcd-tls-webhook")).args(["inject", "-f"]).arg(file));
    }
    let sign = vec!["--max-lifetime=120s".to_owned()];
    let options = Options { before: Some(older.join("manifests")), sign, ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}},
        "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": ["etcd"], "args": [
        "--listen-client-urls=https://0.0.0.0:2379", "--advertise-client-urls=https://127.0.0.1:2379"]}]}}"#;
    let file = older.write("pod.json", manifest);
    let mut inject = Command::new(programs.join("etcd-tls-webhook"));
    let injected = run(inject.args(["inject", "--sidecar-image", SIDECAR_IMAGE, "-f"]).arg(file));
    let mut injected: Value = serde_saphyr::from_str(&injected).expect("YAML");
    injected["metadata"]["namespace"] = "prod".into();
    let sidecar = programs.join("etcd-tls-sidecar");
    let ip = "10.0.0.7".parse().expect("an address");
    let mut pod = installation.local_pod("prod", injected, &[ip], &[(SIDECAR_IMAGE, sidecar)]).await.expect("a pod");
    // The new version's own admission leaves what is injected as it is.
    let status = pod.run_to_end("etcd-tls-init", LIMIT).await;
    assert!(status.success(), "{}", pod.log("etcd-tls-init"));
    let leaf = pod.volume("etcd-tls").join("peer/tls.crt");
    let serial = || Chain::parse(&fs::read(&leaf).expect("a certificate")).expect("a chain").serial;
    let first = serial();
    // The container is restarted.
    let status = pod.run_to_end("etcd-tls-init", LIMIT).await;
    assert!(status.success() && serial() == first, "{}", pod.log("etcd-tls-init"));
    pod.start_container("etcd-tls-sidecar");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(pod.process("etcd-tls-sidecar").running(), "{}", pod.log("etcd-tls-sidecar"));
    assert_eq!(serial(), first, "nothing is issued anew");
    eventually("a renewal", LIMIT, async || if serial() == first { Err(pod.log("etcd-tls-sidecar")) } else { Ok(()) })
        .await;
    assert!(pod.process("etcd-tls-sidecar").running(), "{}", pod.log("etcd-tls-sidecar"));
    // In a pod that is started again it is used, and not issued anew.
    assert!(pod.process("etcd-tls-sidecar").terminate(LIMIT).await.success(), "{}", pod.log("etcd-tls-sidecar"));
    let second = serial();
    let status = pod.run_to_end("etcd-tls-init", LIMIT).await;
    assert!(status.success() && serial() == second, "{}", pod.log("etcd-tls-init"));
}

/// A roll back under running pods: the newer sidecar goes on with its certificates, and the older approver and signer renew them. They
/// refuse a pod with an annotation that the older version does not know, as docs/upgrade.md says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_are_served_by_an_older_version() {
    let (Some(older), Some(programs)) = (older_manifests(), older_programs()) else { return };
    let sign = vec!["--max-lifetime=45s".to_owned()];
    let Some(mut installation) = Installation::start(&Options { sign: sign.clone(), ..Options::default() }).await
    else {
        return;
    };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    // Peers without TLS are warned of in an annotation.
    let warned = json!({"metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}}, "spec": {"containers": [{
        "name": "etcd", "image": "etcd", "command": ["etcd"],
        "args": ["--listen-client-urls=https://0.0.0.0:2379", "--advertise-client-urls=https://127.0.0.1:2379"],
    }]}});
    let [ip, other] = ["10.0.0.7", "10.0.0.8"].map(|ip| ip.parse().expect("an address"));
    let mut warned = installation.local_pod("prod", warned, &[ip], &[]).await.expect("a pod");
    let mut pod = installation.local_pod("prod", client_pod("app", "client"), &[other], &[]).await.expect("a pod");
    for pod in [&mut warned, &mut pod] {
        pod.initialise(LIMIT).await.expect("init and sidecar");
    }
    let directory = pod.volume("etcd-tls").join("client");
    let read = |file: &str| fs::read(directory.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let serial = || Chain::parse(&read("tls.crt")).expect("a chain").serial;
    let bundle = read("ca.crt");

    installation.api.kubectl(&["apply", "-k", &older.join("manifests").display().to_string()]);
    installation.replace_controllers(&programs, &sign).await;
    installation.sign.logged("leading", LIMIT).await;
    let log = || pod.log("etcd-tls-sidecar");
    for what in ["a renewal by the older signer", "another one"] {
        let before = serial();
        eventually(what, LIMIT, async || if serial() == before { Err(log()) } else { Ok(()) }).await;
    }
    assert_eq!(read("ca.crt"), bundle, "the bundle is as it was");
    assert!(pod.process("etcd-tls-sidecar").running(), "{}", pod.log("etcd-tls-sidecar"));
    let refused = "annotation etcd-tls.dev/warnings: is not known";
    let log = || warned.log("etcd-tls-sidecar");
    eventually(refused, LIMIT, async || if log().contains(refused) { Ok(()) } else { Err(log()) }).await;
}

/// The findings before an upgrade and the leftovers of an older version, for an administrator and for a user without rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_an_upgrade_refused_pods_and_leftovers_are_named() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    api.namespace("other", &[]).await;
    let check = |kubeconfig: &Path| {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        let output = command.args(["check", "--pre"]).env("KUBECONFIG", kubeconfig).output().expect("run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = check(&api.kubeconfig);
    assert!(code == Some(0) && said.contains("no pod would be refused; 0 workloads have opted in"), "{code:?}: {said}");

    let template = |kind: &str, namespace: &str, name: &str, annotations: Value, command: &[&str]| {
        let listen = "--listen-client-urls=https://0.0.0.0:2379";
        json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": command, "args": [listen]}]},
            }},
        })
    };
    let workload = |namespace: &str, kind: &str, duration: &str| {
        template(kind, namespace, "etcd", json!({"etcd-tls.dev/duration": duration}), &["etcd"])
    };
    let taken_before = |(name, command): (&str, &[&str]), annotations: Value| {
        template("StatefulSet", "prod", name, annotations, command)
    };
    api.apply(&workload("prod", "StatefulSet", "a day").to_string());
    api.apply(&workload("prod", "Deployment", "24h").to_string());
    api.apply(&workload("other", "StatefulSet", "a day").to_string());
    for case in TAKEN_BEFORE {
        api.apply(&taken_before(case, json!({})).to_string());
    }
    let role = |name: &str, namespace: &str, labels: Value| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": namespace, "labels": labels}, "rules": []})
    };
    let ours = json!({NAME: "etcd-tls"});
    api.apply(&role("etcd-tls-old", SYSTEM, ours.clone()).to_string());
    // Not ours, and not here.
    api.apply(&role("another", SYSTEM, json!({})).to_string());
    api.apply(&role("etcd-tls-lease-lock", "prod", ours).to_string());
    let (code, said) = check(&api.kubeconfig);
    assert_eq!(code, Some(3), "{said}");
    for text in [
        "workloads: would be refused: prod: StatefulSet etcd: ",
        "next: kubectl -n prod edit statefulset etcd\n",
        "replaced objects: Role etcd-tls-old ",
        "next: kubectl -n etcd-tls-system delete role etcd-tls-old\n",
    ] {
        assert!(said.contains(text), "{text:?}: {said}");
    }
    for (name, _) in TAKEN_BEFORE {
        let refused = format!("workloads: would be refused: prod: StatefulSet {name}: container etcd: command[2] ");
        // Where etcd does not see the variables, there is one way out.
        let options = if name == "sudo" { "none, and give the flags" } else { "env (or none, " };
        let next = format!(
            "next: kubectl -n prod edit statefulset {name}   # in spec.template.metadata.annotations, add \
             etcd-tls.dev/options: {options}"
        );
        assert!(said.contains(&refused) && said.contains(&next), "{name}: {said}");
    }
    assert_eq!(said.matches("attention ").count(), 2 + TAKEN_BEFORE.len(), "{said}");
    // The same from a file, by the command of the page.
    let page = pages::blocks("upgrade.md", "Before: the pods that the new version would refuse");
    let line = page[0].replace("./target/release/", "");
    let path = pages::path(&[api.kubectl_path().parent().expect("a directory")]);
    let directory = TempDir::new("upgrade");
    let said = pages::bash(directory.path(), &path, Some(&api.kubeconfig), &format!("set -o pipefail\n{line}"));
    let said = said.expect_err("a pod would be refused");
    assert!(said.contains("prod: StatefulSet etcd: ") && !said.contains("Deployment etcd"), "{said}");
    for (name, _) in TAKEN_BEFORE {
        let line = said.lines().find(|line| line.starts_with(&format!("prod: StatefulSet {name}: ")));
        let line = line.unwrap_or_else(|| panic!("{name}: {said}"));
        assert!(line.contains("annotate etcd-tls.dev/options: none and give it --"), "{line}");
        assert_eq!(line.contains("annotate etcd-tls.dev/options: env,"), name != "sudo", "{line}");
    }
    assert!(line.contains("replicasets"), "{line}");

    let nobody = api.account("prod", "nobody", json!([])).await;
    let (code, said) = check(&nobody);
    assert_eq!(code, Some(4), "{said}");
    for resource in ["namespaces", "statefulsets.apps", "validatingadmissionpolicies.admissionregistration.k8s.io"] {
        assert!(said.contains(&format!("cannot list {resource} in all namespaces")), "{resource}: {said}");
    }
    assert!(!said.contains("would be refused") && !said.contains("ok "), "{said}");

    // The printed next step helps.
    api.apply(&workload("prod", "StatefulSet", "24h").to_string());
    for (case, options) in TAKEN_BEFORE.into_iter().zip(["env", "none"]) {
        api.apply(&taken_before(case, json!({"etcd-tls.dev/options": options})).to_string());
    }
    api.kubectl(&["-n", SYSTEM, "delete", "role", "etcd-tls-old"]);
    let (code, said) = check(&api.kubeconfig);
    assert!(code == Some(0) && said.contains("no pod would be refused; 4 workloads have opted in"), "{code:?}: {said}");
}
