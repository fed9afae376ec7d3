//! The manifests as shipped, on a real API server: they apply, apply again without wiping what the processes and the
//! operator keep in them, give exactly the rights that they should, and meet the Pod Security of their own namespace.

use std::time::Duration;

use etcd_tls_contract::policy::Policy;
use etcd_tls_sidecar::restart::lease_name;
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::Deployment,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{ConfigMap, Pod},
    rbac::v1::ClusterRoleBinding,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    eventually,
    process::run,
    temp::TempDir,
    tier,
};

const SYSTEM: &str = "etcd-tls-system";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_again_wipes_nothing() {
    let Some(api) = ApiServer::start().await else { return };
    let first = api.apply_kustomization("manifests");
    assert!(first.lines().all(|l| l.ends_with("created")), "{first}");

    // The fields that `approve`, `sign` and the operator write into shipped objects.
    let bindings = Api::<ClusterRoleBinding>::all(api.client.clone());
    let subject =
        json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:prod"});
    let patch = Patch::Merge(json!({"subjects": [subject]}));
    bindings.patch("etcd-tls-requesters", &PatchParams::default(), &patch).await.expect("subjects");
    let webhooks = Api::<MutatingWebhookConfiguration>::all(api.client.clone());
    // The API server proves a bundle to be PEM.
    let pem = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &api.ca.pem);
    let ca_bundle: Vec<_> = (0..3)
        .map(|i| json!({"op": "add", "path": format!("/webhooks/{i}/clientConfig/caBundle"), "value": pem}))
        .collect();
    let ca_bundle = Value::from(ca_bundle).to_string();
    api.kubectl(&["patch", "mutatingwebhookconfiguration", "etcd-tls", "--type=json", "--patch", &ca_bundle]);
    let policies = Api::<ConfigMap>::namespaced(api.client.clone(), SYSTEM);
    let patch = Patch::Merge(json!({"data": {"policy.yaml": "clusterDomain: example.test\n"}}));
    policies.patch("etcd-tls-policy", &PatchParams::default(), &patch).await.expect("write the policy");

    let second = api.apply_kustomization("manifests");
    assert!(second.lines().all(|l| l.ends_with("unchanged") || l.ends_with("configured")), "{second}");
    let binding = bindings.get("etcd-tls-requesters").await.expect("get");
    assert_eq!(binding.subjects.expect("subjects")[0].name, "system:serviceaccounts:prod");
    let webhook = webhooks.get("etcd-tls").await.expect("get");
    for entry in webhook.webhooks.expect("three entries") {
        assert!(entry.client_config.ca_bundle.is_some(), "{} lost its caBundle", entry.name);
    }
    let policy = policies.get("etcd-tls-policy").await.expect("get");
    assert!(policy.data.expect("data").contains_key("policy.yaml"), "the operator's policy was wiped");
}

/// Whether the API server allows a service account of ours something, `resource.group` or `resource/subresource` as
/// kubectl writes it.
async fn may(api: &ApiServer, account: &str, verb: &str, resource: &str, name: &str, namespace: &str) -> bool {
    service_account_may(api, (SYSTEM, account), verb, resource, name, namespace).await
}

/// The same for any service account, by namespace and name.
async fn service_account_may(
    api: &ApiServer,
    (home, account): (&str, &str),
    verb: &str,
    resource: &str,
    name: &str,
    namespace: &str,
) -> bool {
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{home}:{account}")),
            groups: Some(vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{home}"),
                "system:authenticated".into(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: some(group),
                resource: some(resource),
                subresource: some(subresource),
                name: some(name),
                namespace: some(namespace),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(api.client.clone());
    reviews.create(&PostParams::default(), &review).await.expect("review").status.expect("a status").allowed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_has_its_own_rights_and_no_other() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    let csr = "certificatesigningrequests.certificates.k8s.io";
    let signers = "signers.certificates.k8s.io";
    let ours = "peer.etcd-tls.dev/prod.etcd";
    // RBAC is answered from a cache.
    eventually("rights in force", Duration::from_secs(30), || async {
        let all = may(&api, "etcd-tls-approve", "get", csr, "x", "").await
            && may(&api, "etcd-tls-sign", "get", "secrets", "x", SYSTEM).await
            && may(&api, "etcd-tls-approve", "update", "leases.coordination.k8s.io", "etcd-tls-approve", SYSTEM).await;
        if all { Ok(()) } else { Err("not yet") }
    })
    .await;

    let allowed = [
        ("etcd-tls-approve", "patch", "certificatesigningrequests/approval.certificates.k8s.io", "", ""),
        ("etcd-tls-approve", "approve", signers, "peer.etcd-tls.dev/*", ""),
        ("etcd-tls-approve", "bind", "clusterroles.rbac.authorization.k8s.io", "etcd-tls-requester", ""),
        ("etcd-tls-approve", "bind", "clusterroles.rbac.authorization.k8s.io", "etcd-tls-trust", ""),
        ("etcd-tls-approve", "patch", "clusterrolebindings.rbac.authorization.k8s.io", "etcd-tls-requesters", ""),
        ("etcd-tls-approve", "create", "rolebindings.rbac.authorization.k8s.io", "etcd-tls-sign", "prod"),
        ("etcd-tls-sign", "patch", "certificatesigningrequests/status.certificates.k8s.io", "", ""),
        ("etcd-tls-sign", "delete", csr, "x", ""),
        ("etcd-tls-sign", "sign", signers, "client.etcd-tls.dev/*", ""),
        ("etcd-tls-sign", "create", "secrets", "", SYSTEM),
        ("etcd-tls-sign", "patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "etcd-tls", ""),
        ("etcd-tls-sign", "patch", "validatingwebhookconfigurations.admissionregistration.k8s.io", "etcd-tls", ""),
    ];
    for (account, verb, resource, name, namespace) in allowed {
        assert!(
            may(&api, account, verb, resource, name, namespace).await,
            "{account} may not {verb} {resource} {name}"
        );
    }

    let forbidden = [
        ("etcd-tls-admit", "get", "pods", "p", "prod"),
        ("etcd-tls-admit", "create", csr, "", ""),
        ("etcd-tls-admit", "get", "secrets", "s", SYSTEM),
        ("etcd-tls-admit", "get", "configmaps", "etcd-tls-policy", SYSTEM),
        ("etcd-tls-approve", "patch", "certificatesigningrequests/status.certificates.k8s.io", "", ""),
        ("etcd-tls-approve", "sign", signers, ours, ""),
        ("etcd-tls-approve", "approve", signers, "kubernetes.io/kube-apiserver-client", ""),
        ("etcd-tls-approve", "delete", csr, "x", ""),
        ("etcd-tls-approve", "create", csr, "", ""),
        ("etcd-tls-approve", "get", "secrets", "s", SYSTEM),
        ("etcd-tls-approve", "list", "secrets", "", SYSTEM),
        ("etcd-tls-approve", "bind", "clusterroles.rbac.authorization.k8s.io", "cluster-admin", ""),
        ("etcd-tls-approve", "patch", "clusterrolebindings.rbac.authorization.k8s.io", "another", ""),
        ("etcd-tls-approve", "create", "clusterrolebindings.rbac.authorization.k8s.io", "", ""),
        ("etcd-tls-approve", "create", "rolebindings.rbac.authorization.k8s.io", "", "prod"),
        ("etcd-tls-approve", "patch", "rolebindings.rbac.authorization.k8s.io", "another", "prod"),
        ("etcd-tls-approve", "create", "pods", "", "prod"),
        ("etcd-tls-approve", "create", "serviceaccounts/token", "etcd-tls-sign", SYSTEM),
        ("etcd-tls-sign", "patch", "certificatesigningrequests/approval.certificates.k8s.io", "", ""),
        ("etcd-tls-sign", "approve", signers, ours, ""),
        ("etcd-tls-sign", "sign", signers, "kubernetes.io/kube-apiserver-client", ""),
        ("etcd-tls-sign", "create", csr, "", ""),
        ("etcd-tls-sign", "get", "secrets", "s", "prod"),
        ("etcd-tls-sign", "list", "secrets", "", ""),
        ("etcd-tls-sign", "create", "configmaps", "", "prod"),
        ("etcd-tls-sign", "create", "configmaps", "", SYSTEM),
        ("etcd-tls-sign", "patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "another", ""),
        ("etcd-tls-sign", "patch", "validatingwebhookconfigurations.admissionregistration.k8s.io", "another", ""),
        ("etcd-tls-sign", "create", "rolebindings.rbac.authorization.k8s.io", "", "prod"),
        ("etcd-tls-sign", "create", "pods", "", SYSTEM),
    ];
    for (account, verb, resource, name, namespace) in forbidden {
        assert!(!may(&api, account, verb, resource, name, namespace).await, "{account} may {verb} {resource} {name}");
    }
}

/// A ServiceAccount's admission plugin must not be what makes a pod of ours pass: the templates go in as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_pods_meet_the_restricted_standard() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    let deployments = Api::<Deployment>::namespaced(api.client.clone(), SYSTEM);
    let pods = Api::<Pod>::namespaced(api.client.clone(), SYSTEM);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    for name in ["etcd-tls-admit", "etcd-tls-approve", "etcd-tls-sign"] {
        let template = deployments.get(name).await.expect("a deployment").spec.expect("a spec").template;
        let mut pod: Value = serde_json::to_value(template).expect("JSON");
        pod["metadata"]["name"] = name.into();
        // The class is made a moment after an API server's start.
        let create = || async { pods.create(&dry_run, &from_json(pod.clone())).await };
        eventually(name, Duration::from_secs(30), create).await;
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
        let refused = pods.create(&dry_run, &from_json(pod)).await.expect_err("restricted is not enforced");
        assert!(refused.to_string().contains("restricted"), "{refused}");
    }
}

/// The example in the shipped ConfigMap is a valid policy.
#[test]
fn the_policy_example_is_a_policy() {
    let path = tests::repository().join("manifests/policy.yaml");
    let manifest: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).expect("policy.yaml")).expect("YAML");
    let example = manifest["data"]["policy.yaml.example"].as_str().expect("the example");
    let policy = Policy::parse(example).expect("a policy");
    assert_ne!(policy, Policy::default(), "the example says nothing");
    assert_eq!(policy.hosts.len(), 1);
    assert!(manifest["data"]["policy.yaml"].is_null(), "applying again would wipe the operator's policy");
}

/// A path of the repository as an overlay may name it: kustomize takes no absolute path.
fn relative(overlay: &TempDir, path: &str) -> String {
    let up = "../".repeat(overlay.path().components().count());
    format!("{up}{}", tests::repository().join(path).display().to_string().trim_start_matches('/'))
}

fn apply(api: &ApiServer, overlay: &TempDir, kustomization: &Value) {
    overlay.write("kustomization.yaml", kustomization.to_string());
    api.kubectl(&["apply", "-k", &overlay.path().display().to_string()]);
}

/// The image that admission injects follows an overlay's `images:`, as every other image does.
#[test]
fn an_overlays_images_reach_the_injected_sidecar() {
    let Some(assets) = tier::kubernetes() else { return };
    let overlay = TempDir::new("overlay");
    let base = relative(&overlay, "manifests");
    overlay.write(
        "kustomization.yaml",
        format!("resources: [{base}]\nimages: [{{name: etcd-tls-sidecar, newName: example.com/s, newTag: v9}}]\n"),
    );
    // One more overlay, for mirrored images: the names in the overlay below refer to it.
    let mirror = TempDir::new("mirror");
    let digest = format!("sha256:{}", "a".repeat(64));
    let below =
        format!("{}{}", "../".repeat(mirror.path().components().count()), &overlay.path().display().to_string()[1..]);
    mirror.write(
        "kustomization.yaml",
        format!(
            "resources: [{below}]\nimages: [{{name: example.com/s, newName: mirror.example/s, digest: \"{digest}\"}}]\n"
        ),
    );
    for (directory, image) in
        [(&overlay, "example.com/s:v9".to_owned()), (&mirror, format!("mirror.example/s@{digest}"))]
    {
        let rendered = run(std::process::Command::new(assets.join("kubectl")).arg("kustomize").arg(directory.path()));
        let injected = format!("- name: ETCD_TLS_SIDECAR_IMAGE\n          value: {image}\n");
        assert!(
            rendered.contains("--sidecar-image=$(ETCD_TLS_SIDECAR_IMAGE)\n") && rendered.contains(&injected),
            "{rendered}"
        );
        assert!(rendered.contains(&format!("image: {image}")));
        assert!(rendered.contains("image: etcd-tls-webhook:"), "the other image is left alone");
    }
}

/// `kubectl apply` writes in the order of the text: when a right is there, so is the policy that limits it.
#[test]
fn policies_come_before_the_rights_that_they_limit() {
    let Some(assets) = tier::kubernetes() else { return };
    let overlay = TempDir::new("order");
    let base = relative(&overlay, "manifests");
    overlay.write("kustomization.yaml", format!("sortOptions: {{order: fifo}}\nresources: [{base}]\n"));
    for directory in [tests::repository().join("manifests"), overlay.path().to_owned()] {
        let rendered = run(std::process::Command::new(assets.join("kubectl")).arg("kustomize").arg(directory));
        let kinds: Vec<&str> = rendered.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
        let last_policy = kinds.iter().rposition(|kind| kind.starts_with("ValidatingAdmissionPolicy"));
        let first_right = kinds.iter().position(|kind| kind.ends_with("Role") || kind.ends_with("RoleBinding"));
        assert!(last_policy.is_some() && last_policy < first_right, "{kinds:?}");
    }
}

/// The component, and what its comment says about more clusters and accounts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_lock_is_for_its_namespace_and_its_leases() {
    let Some(api) = ApiServer::start().await else { return };
    api.namespace("prod", &[]).await;
    let overlay = TempDir::new("lease-lock");
    let another = json!([{"op": "add", "path": "/rules/0/resourceNames/-", "value": "etcd-tls-restart-events"}]);
    let subject = json!({"kind": "ServiceAccount", "name": "etcd", "namespace": "prod"});
    let subject = json!([{"op": "add", "path": "/subjects/-", "value": subject}]);
    let kustomization = json!({
        "namespace": "prod",
        "components": [relative(&overlay, "manifests/components/lease-lock")],
        "patches": [
            {"target": {"kind": "Role", "name": "etcd-tls-lease-lock"}, "patch": another.to_string()},
            {"target": {"kind": "RoleBinding", "name": "etcd-tls-lease-lock"}, "patch": subject.to_string()},
        ],
    });
    apply(&api, &overlay, &kustomization);

    let leases = "leases.coordination.k8s.io";
    let may = async |account: &str, verb: &str, name: &str, namespace: &str| {
        service_account_may(&api, ("prod", account), verb, leases, name, namespace).await
    };
    // RBAC is answered from a cache.
    eventually("the right to create in force", Duration::from_secs(30), async || {
        if may("etcd", "create", "", "prod").await { Ok(()) } else { Err("not yet") }
    })
    .await;
    for account in ["default", "etcd"] {
        for name in [lease_name("etcd"), lease_name("events")] {
            for verb in ["get", "update"] {
                assert!(may(account, verb, &name, "prod").await, "{account} may not {verb} {name}");
                assert!(!may(account, verb, &name, "other").await, "{account} may {verb} {name} in another namespace");
            }
            assert!(!may(account, "delete", &name, "prod").await, "{account} may delete {name}");
        }
        assert!(may(account, "create", "", "prod").await, "{account} may not create");
        assert!(!may(account, "get", "another", "prod").await, "{account} may read another's Lease");
        assert!(!may(account, "update", "another", "prod").await, "{account} may write another's Lease");
        assert!(!may(account, "list", "", "prod").await, "{account} may list");
    }
    assert!(!may("another", "create", "", "prod").await, "another account may create");
}

/// Admission on the host's network: the API server takes its pods, and Service and probes come to where it listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admission_goes_on_the_hosts_network() {
    let Some(api) = ApiServer::start().await else { return };
    let overlay = TempDir::new("host-network");
    let kustomization = json!({
        "resources": [relative(&overlay, "manifests")],
        "components": [relative(&overlay, "manifests/components/host-network")],
    });
    apply(&api, &overlay, &kustomization);

    let deployments = Api::<Deployment>::namespaced(api.client.clone(), SYSTEM);
    let deployment = deployments.get("etcd-tls-admit").await.expect("a deployment").spec.expect("a spec");
    let mut pod: Value = serde_json::to_value(deployment.template).expect("JSON");
    pod["metadata"]["name"] = "etcd-tls-admit".into();
    let pods = Api::<Pod>::namespaced(api.client.clone(), SYSTEM);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let create = async || pods.create(&dry_run, &from_json(pod.clone())).await;
    let made = eventually("a pod of admission's", Duration::from_secs(30), create).await.spec.expect("a spec");
    assert_eq!(made.host_network, Some(true));
    let container = &made.containers[0];
    let args = container.args.as_deref().unwrap_or_default();
    for (port, flag) in [("webhook", "--address"), ("admin", "--admin-address")] {
        let ports = container.ports.as_deref().unwrap_or_default();
        let number = ports.iter().find(|p| p.name.as_deref() == Some(port)).expect("the port").container_port;
        assert!(args.contains(&format!("{flag}=[::]:{number}")), "{port} is {number}: {args:?}");
    }
}
