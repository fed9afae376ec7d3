//! The helm chart: made from the manifests, rendered by helm to the same objects, and held by its schema.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tests::{
    process::{run, which},
    repository,
    temp::TempDir,
    tier,
};

#[path = "chart/cluster.rs"]
mod cluster;
#[path = "chart/derive.rs"]
mod derive;
#[path = "chart/serving.rs"]
mod serving;
#[path = "chart/upgrade.rs"]
mod upgrade;
#[path = "chart/values.rs"]
mod values;

/// By kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

fn chart() -> PathBuf {
    repository().join("manifests/chart")
}

/// `HELM` names the program, else PATH.
fn helm() -> Option<PathBuf> {
    let found = env::var_os("HELM").map(PathBuf::from).or_else(|| which("helm"));
    if found.is_none() {
        tier::skip_special("no helm in PATH", "helm 3.14 or later, or HELM=/path/to/helm");
    }
    found
}

/// Each major version of helm that is here: the one of [`helm`], and helm 3, which `HELM3` or `helm3` in PATH names where the other is a
/// later one.
fn helms() -> Vec<PathBuf> {
    let mut all: Vec<_> = helm().into_iter().collect();
    let version = |helm: &Path| run(Command::new(helm).args(["version", "--template", "{{.Version}}"]));
    if all.iter().all(|helm| !version(helm).starts_with("v3.")) {
        let third = env::var_os("HELM3").map(PathBuf::from).or_else(|| which("helm3"));
        if let Some(third) = &third {
            assert!(version(third).starts_with("v3."), "{}: {}", third.display(), version(third));
        } else {
            tier::skip_special("no helm 3", "helm3 in PATH, or HELM3=/path/to/helm of 3.14 or later");
        }
        all.extend(third);
    }
    all
}

/// The output of `helm template` for values.
fn template(helm: &Path, namespace: &str, values: &Value) -> Output {
    let directory = TempDir::new("values");
    let file = directory.write("values.yaml", values.to_string());
    let mut command = Command::new(helm);
    // The oldest version that takes them.
    let needs = [("withoutWebhook", "1.36.0"), ("podCertificates", "1.35.0")];
    let version =
        needs.iter().find(|(value, _)| values[value]["enabled"] == true).map_or("1.30.0", |(_, version)| version);
    command.args(["template", "etcd-tls"]).arg(chart()).args(["--kube-version", version, "-n", namespace, "-f"]);
    command.arg(file).env("HOME", directory.path()).env_remove("KUBECONFIG").output().expect("run helm")
}

fn objects(yaml: &str) -> Objects {
    let of = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    // As helm and kubectl read YAML: a mode may be octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
    let all: Vec<Value> =
        serde_saphyr::from_multiple_with_options(yaml, options).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    let all = all.into_iter().filter(|object| !object.is_null()).map(|object| {
        let meta = &object["metadata"];
        ((of(&object["kind"]), of(&meta["namespace"]), of(&meta["name"])), object)
    });
    let mut objects = Objects::new();
    for (identity, object) in all {
        assert!(objects.insert(identity.clone(), object).is_none(), "{identity:?} is there twice");
    }
    objects
}

/// The objects of the chart. Helm manages them, and nothing else may claim that.
fn rendered(helm: &Path, values: &Value) -> Objects {
    let output = template(helm, "etcd-tls-system", values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut objects = objects(&String::from_utf8_lossy(&output.stdout));
    for (identity, object) in &mut objects {
        let labels = [&["metadata"] as &[&str], &["spec", "template", "metadata"]];
        for path in labels {
            let place = path.iter().try_fold(&mut *object, |at, key| at.get_mut(*key));
            if let Some(by) = place.and_then(|at| at.get_mut("labels")?.get_mut("app.kubernetes.io/managed-by")) {
                assert_eq!(*by, "Helm", "{identity:?}");
                *by = "kustomize".into();
            }
        }
    }
    objects
}

/// The objects of the manifests with some of their components.
fn kustomized(kubectl: &Path, components: &[&str]) -> Objects {
    let overlay = TempDir::new("overlay");
    let up = "../".repeat(overlay.path().components().count());
    let of = |path: String| format!("{up}{}", repository().join(path).display().to_string().trim_start_matches('/'));
    let components: Vec<_> = components.iter().map(|c| of(format!("manifests/components/{c}"))).collect();
    let kustomization = json!({"resources": [of("manifests".into())], "components": components});
    overlay.write("kustomization.yaml", kustomization.to_string());
    let output = Command::new(kubectl).arg("kustomize").arg(overlay.path()).output().expect("run kubectl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8_lossy(&output.stdout))
}

fn same(chart: &Objects, manifests: &Objects, what: &str) {
    assert_eq!(chart.keys().collect::<Vec<_>>(), manifests.keys().collect::<Vec<_>>(), "{what}");
    for (identity, object) in manifests {
        let mut ours = chart[identity].clone();
        // Objects of a component have no labels of the base's kustomization.
        if object["metadata"]["labels"]["app.kubernetes.io/instance"].is_null() {
            let labels = ours["metadata"]["labels"].as_object_mut().expect("labels");
            for label in ["instance", "version", "part-of", "managed-by"] {
                assert!(labels.remove(&format!("app.kubernetes.io/{label}")).is_some(), "{identity:?}: {label}");
            }
        }
        assert_eq!(ours, *object, "{what}: {identity:?}");
    }
}

#[test]
fn the_templates_are_made_from_the_manifests() {
    let directory = chart().join("templates");
    let made = derive::templates();
    assert!(made.len() > 20, "{:?}", made.keys());
    for (name, text) in &made {
        let path = directory.join(name);
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, text).expect("write a template");
        }
        assert!(
            fs::read_to_string(&path).is_ok_and(|there| there == *text),
            "manifests/chart/templates/{name} is not current: UPDATE_DOCS=1 writes it"
        );
    }
    for entry in fs::read_dir(directory).expect("templates") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let own = ["_helpers.tpl", "checks.yaml", "serving.yaml", "NOTES.txt"].contains(&name.as_str());
        assert!(own || made.contains_key(&name), "manifests/chart/templates/{name} is made from nothing");
    }
    // All that kustomize renders is in the chart.
    let kustomization = fs::read_to_string(repository().join("manifests/kustomization.yaml")).expect("a kustomization");
    let kustomization: Value = serde_saphyr::from_str(&kustomization).expect("YAML");
    for resource in kustomization["resources"].as_array().expect("resources") {
        let name = resource.as_str().expect("a path").replace('/', "-");
        assert!(made.contains_key(&name), "manifests/{resource} is not in the chart: tests/tests/chart/derive.rs");
    }
    // The version is that of the images.
    let chart: Value =
        serde_saphyr::from_str(&fs::read_to_string(chart().join("Chart.yaml")).expect("Chart.yaml")).expect("YAML");
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], kustomization["images"][0]["newTag"], "{key} of manifests/chart/Chart.yaml");
    }
}

#[test]
fn helm_and_kustomize_render_the_same_objects() {
    let Some(assets) = tier::kubernetes() else { return };
    for helm in helms() {
        renders_the_same_objects(&helm, &assets.join("kubectl"));
    }
}

fn renders_the_same_objects(helm: &Path, kubectl: &Path) {
    let base = kustomized(kubectl, &[]);
    assert!(base.len() > 40, "{:?}", base.keys());
    let namespace = ("Namespace".to_owned(), String::new(), "etcd-tls-system".to_owned());
    let mut without = base;
    without.remove(&namespace).expect("the namespace");
    same(&rendered(helm, &json!({})), &without, "default values");

    let components = [
        ("host-network", json!({"admit": {"hostNetwork": true}})),
        ("openshift", json!({"openshift": {"enabled": true}})),
        ("priority", json!({"priority": {"enabled": true}})),
        ("cert-manager", json!({"certManager": {"issuers": true}})),
        ("approve-others", json!({"approveOthers": {"enabled": true}})),
        ("cluster-trust-bundles", json!({"clusterTrustBundles": {"enabled": true}})),
        ("pod-certificates", json!({"podCertificates": {"enabled": true}})),
        ("without-webhook", json!({"withoutWebhook": {"enabled": true}})),
        ("monitoring", json!({"monitoring": {"enabled": true}})),
    ];
    for (component, mut values) in components {
        values["namespace"] = json!({"create": true});
        let mut chart = rendered(helm, &values);
        let created = chart.get_mut(&namespace).expect("the namespace");
        let annotations = created["metadata"].as_object_mut().expect("metadata").remove("annotations");
        // helm would delete the Secrets of the authorities with it.
        assert_eq!(annotations, Some(json!({"helm.sh/resource-policy": "keep"})));
        same(&chart, &kustomized(kubectl, &[component]), component);
    }
}

#[test]
fn the_signers_of_others_that_are_decided_are_arguments_and_rights() {
    let Some(helm) = helm() else { return };
    let names =
        json!({"enabled": true, "signers": ["example.com/ca"], "issuers": ["clusterissuers.cert-manager.io/company"]});
    let objects = rendered(&helm, &json!({"approveOthers": names}));
    let role = &objects[&("ClusterRole".to_owned(), String::new(), "etcd-tls-approve".to_owned())];
    let approves = |group: &str, name: &str| {
        let one =
            json!({"apiGroups": [group], "resources": ["signers"], "resourceNames": [name], "verbs": ["approve"]});
        role["rules"].as_array().is_some_and(|rules| rules.contains(&one))
    };
    assert!(approves("certificates.k8s.io", "example.com/ca"), "{role}");
    assert!(approves("cert-manager.io", "clusterissuers.cert-manager.io/company"), "{role}");
    let deployment = ("Deployment".to_owned(), "etcd-tls-system".to_owned(), "etcd-tls-approve".to_owned());
    let arguments = &objects[&deployment]["spec"]["template"]["spec"]["containers"][0]["args"];
    for argument in ["--approve-signer=example.com/ca", "--approve-issuer=clusterissuers.cert-manager.io/company"] {
        assert!(arguments.as_array().is_some_and(|all| all.contains(&argument.into())), "{arguments}");
    }
    let wild =
        template(&helm, "etcd-tls-system", &json!({"approveOthers": {"enabled": true, "signers": ["example.com/*"]}}));
    assert!(!wild.status.success(), "all signers of a domain");
}

#[test]
fn the_agent_of_a_secret_is_that_of_the_example_in_each_namespace_that_is_named() {
    let (Some(assets), Some(helm)) = (tier::kubernetes(), helm()) else { return };
    let example = repository().join("manifests/examples/secret");
    let output = Command::new(assets.join("kubectl")).arg("kustomize").arg(example).output().expect("run kubectl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of_example = objects(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(of_example.len(), 4, "{:?}", of_example.keys());
    let secrets = json!([
        {"namespace": "web", "name": "etcd-client-tls", "user": "app"},
        {"namespace": "batch", "name": "jobs-etcd", "user": "jobs", "cluster": "events"},
    ]);
    let mut objects = rendered(&helm, &json!({"secrets": secrets}));
    for ((kind, _, name), object) in of_example {
        let mut ours =
            objects.remove(&(kind.clone(), "web".to_owned(), name.clone())).unwrap_or_else(|| panic!("{kind}"));
        ours["metadata"].as_object_mut().expect("metadata").remove("namespace");
        if kind == "RoleBinding" {
            ours["subjects"][0].as_object_mut().expect("a subject").remove("namespace");
        }
        assert_eq!(ours, object, "{kind} {name}");
    }
    let of = |kind: &str| (kind.to_owned(), "batch".to_owned(), "jobs-etcd".to_owned());
    let role = &objects[&of("Role")];
    assert_eq!(role["rules"][0]["resourceNames"], json!(["jobs-etcd"]), "{role}");
    assert_eq!(objects[&of("RoleBinding")]["subjects"][0]["namespace"], "batch");
    let pod = &objects[&of("Deployment")]["spec"]["template"];
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(
        (&annotations["etcd-tls.dev/user"], &annotations["etcd-tls.dev/cluster"]),
        (&json!("jobs"), &json!("events"))
    );
    let arguments = pod["spec"]["containers"][0]["args"].as_array().expect("arguments");
    assert!(arguments.contains(&json!("--secret=jobs-etcd")), "{arguments:?}");
    assert!(!objects.keys().any(|(kind, ..)| kind == "Secret"), "an upgrade would empty it");
    for wrong in [json!({"namespace": "web", "name": "x"}), json!({"namespace": "Web", "name": "x", "user": "y"})] {
        let output = template(&helm, "etcd-tls-system", &json!({"secrets": [wrong]}));
        assert!(!output.status.success(), "{wrong}");
    }
}
