//! Tier 2: injected pods on a real API server: every shape is valid, a `restricted` namespace accepts it, and a pod that is
//! sent again with the server's additions comes back unchanged.

use std::{fs, path::PathBuf};

use etcd_tls_webhook::{
    inject::{Options, inject},
    injection::Config,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, PostParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use serde_json::{Value, json};
use tests::{apiserver::ApiServer, installation, repository};

/// Kinds that carry pods.
const KINDS: [&str; 6] = ["Pod", "StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob"];

fn shapes() -> Vec<PathBuf> {
    let directory = repository().join("webhook/tests/golden");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .expect("the golden files")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            !name.contains(".injected.") && !name.starts_with("refused-") && !name.ends_with(".txt")
        })
        .collect();
    files.sort();
    files
}

/// The documents of a manifest that carry pods, Lists taken apart.
fn objects(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(text, options).unwrap_or_else(|e| panic!("{e}"));
    let flat = documents.into_iter().flat_map(|mut d| match d["items"].take() {
        Value::Array(items) => items,
        _ => vec![d],
    });
    flat.filter(|o| o["kind"].as_str().is_some_and(|k| KINDS.contains(&k))).collect()
}

async fn create(api: &ApiServer, namespace: &str, mut object: Value, dry_run: bool) -> Result<Value, String> {
    object["metadata"]["namespace"] = json!(namespace);
    if object["kind"] == "Pod" && object["spec"]["priorityClassName"].is_string() {
        // Made by a controller that does not run here.
        object["spec"].as_object_mut().expect("a spec").remove("priority");
    }
    let version = object["apiVersion"].as_str().expect("a version").to_owned();
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, object["kind"].as_str().expect("a kind"));
    let objects = Api::<DynamicObject>::namespaced_with(api.client.clone(), namespace, &ApiResource::from_gvk(&kind));
    let object: DynamicObject = serde_json::from_value(object).map_err(|e| e.to_string())?;
    let created = objects.create(&PostParams { dry_run, ..PostParams::default() }, &object).await;
    created.map_err(|e| e.to_string()).and_then(|o| serde_json::to_value(o).map_err(|e| e.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_injected_shape_is_valid() {
    let Some(api) = ApiServer::start().await else { return };
    api.namespace("shapes", &[]).await;
    api.namespace("strict", &[("pod-security.kubernetes.io/enforce", "restricted")]).await;
    for namespace in ["shapes", "strict"] {
        api.service_account(namespace, "release-etcd").await;
    }
    let injection = Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() };
    let mut refused = Vec::new();
    let mut checked = 0;
    for file in shapes() {
        let name = file.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        // Names of the namespace that it is tried in.
        let text = fs::read_to_string(&file).expect("a golden file").replace(".prod.svc", ".shapes.svc");
        let before = objects(&text);
        for (index, mut object) in before.into_iter().enumerate() {
            if object["metadata"]["name"].is_null() && object["metadata"]["generateName"].is_null() {
                object["metadata"]["name"] = json!("x");
            }
            object["metadata"]["namespace"] = json!("shapes");
            let options = Options { injection: injection.clone(), namespace: "shapes".to_owned() };
            let injected = inject(&object.to_string(), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let injected: Value = serde_json::from_str(&injected.text).expect("JSON");
            // A fault from before the injection does not count.
            if let Err(error) = create(&api, "shapes", object, true).await {
                refused.push(format!("{name} {index}, before: {error}"));
            } else if let Err(error) = create(&api, "shapes", injected.clone(), true).await {
                refused.push(format!("{name} {index}: {error}"));
            }
            if name == "restricted" {
                create(&api, "strict", injected, false).await.expect("a restricted namespace takes it");
            }
            checked += 1;
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(checked >= 25, "only {checked} shapes");
}

/// Why our usual requests and limits are left out of a pod that has no room for them: the API server's own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_resources_of_its_own_takes_no_more() {
    let Some(api) = ApiServer::start().await else { return };
    api.namespace("bounded", &[]).await;
    let file = repository().join("webhook/tests/golden/pod-resources.injected.yaml");
    let [pod] = &objects(&fs::read_to_string(file).expect("a golden file"))[..] else { panic!("not one pod") };
    create(&api, "bounded", pod.clone(), true).await.expect("as it is injected");
    for (resources, why) in [
        (
            json!({"requests": {"cpu": "10m", "memory": "16Mi"}}),
            "must be greater than or equal to aggregate container requests of 510m",
        ),
        // A limit without a request is the request, too.
        (
            json!({"limits": {"memory": "600Mi"}}),
            "must be greater than or equal to aggregate container requests of 1112Mi",
        ),
    ] {
        let mut more = pod.clone();
        more["spec"]["initContainers"][1]["resources"] = resources;
        let refused = create(&api, "bounded", more, true).await.expect_err("no room");
        assert!(refused.contains(why), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn additions_of_the_api_server_do_not_matter() {
    let Some(installation) = installation::Installation::start(&installation::Options::default()).await else { return };
    installation.api.namespace("again", &[("etcd-tls", "dynamic")]).await;
    let mut checked = 0;
    for file in shapes() {
        let name = file.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let text = fs::read_to_string(&file).expect("a golden file");
        for mut pod in objects(&text).into_iter().filter(|o| o["kind"] == "Pod") {
            pod["metadata"].as_object_mut().expect("metadata").remove("name");
            pod["metadata"]["generateName"] = json!("x-");
            pod["metadata"]["labels"]["etcd-tls"] = json!("dynamic");
            let first = create(&installation.api, "again", pod, false).await.unwrap_or_else(|e| panic!("{name}: {e}"));
            let projects = ["foreign-trust-bundle", "foreign-trust-signer"].contains(&name.as_str());
            if projects && !first["spec"].to_string().contains("clusterTrustBundle") {
                // A server without the feature ClusterTrustBundleProjection drops it.
                continue;
            }
            let mut sent = first.clone();
            for field in ["name", "uid", "resourceVersion", "creationTimestamp", "managedFields"] {
                sent["metadata"].as_object_mut().expect("metadata").remove(field);
            }
            sent.as_object_mut().expect("an object").remove("status");
            let second =
                create(&installation.api, "again", sent, false).await.unwrap_or_else(|e| panic!("{name}, again: {e}"));
            assert_eq!(second["spec"], first["spec"], "{name}");
            let init = second["spec"]["initContainers"].as_array().map_or(0, Vec::len);
            assert!(init >= 2, "{name} was not injected into");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} pods");
    // A dry run leaves nothing.
    let pods = Api::<Pod>::namespaced(installation.api.client.clone(), "again");
    let dry = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dry"}, "spec": {"containers": [{"name": "etcd", "image": "etcd"}]}});
    let answer = create(&installation.api, "again", dry, true).await.expect("a dry run");
    assert_eq!(answer["spec"]["initContainers"][0]["name"], "etcd-tls-init");
    assert!(pods.get_opt("dry").await.expect("an answer").is_none());
}
