//! The parts *On Kubernetes* of the page, with a real API server, the real StatefulSet controller and admission. No node runs the
//! pods: a stand-in for kubelet says that a pod is ready where its probe asks a port that speaks plain HTTP.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    eventually,
    installation::{Installation, LIMIT, Options},
    pages, repository,
    temp::TempDir,
    tier,
};

const NAMESPACE: &str = "my-namespace";
/// What admission says of a URL without TLS.
const PLAIN: &str = "still says http://";

/// The StatefulSet at a step of the page.
#[derive(Clone)]
struct Step {
    clients: &'static [(&'static str, u16)],
    peers: &'static str,
    metrics: bool,
    labels: Value,
    partition: usize,
}

const BOTH: &[(&str, u16)] = &[("http", 2379), ("https", 2378)];

impl Step {
    fn manifest(&self) -> Value {
        let urls = |host: &str| {
            let urls: Vec<_> = self.clients.iter().map(|(scheme, port)| format!("{scheme}://{host}:{port}")).collect();
            urls.join(",")
        };
        let peers = self.peers;
        let cluster: Vec<String> =
            (0..3).map(|i| format!("etcd-{i}={peers}://etcd-{i}.etcd.{NAMESPACE}.svc:2380")).collect();
        let own = format!("$(POD_NAME).etcd.{NAMESPACE}.svc");
        let mut command = vec![
            "etcd".to_owned(),
            "--name=$(POD_NAME)".to_owned(),
            format!("--listen-client-urls={}", urls("0.0.0.0")),
            format!("--advertise-client-urls={}", urls(&own)),
            format!("--listen-peer-urls={peers}://0.0.0.0:2380"),
            format!("--initial-advertise-peer-urls={peers}://{own}:2380"),
            format!("--initial-cluster={}", cluster.join(",")),
        ];
        command.extend(self.metrics.then(|| "--listen-metrics-urls=http://0.0.0.0:2381".to_owned()));
        let mut labels = self.labels.clone();
        labels["app"] = "etcd".into();
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "etcd", "namespace": NAMESPACE},
            "spec": {
                "serviceName": "etcd", "replicas": 3, "selector": {"matchLabels": {"app": "etcd"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": self.partition}},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{
                    "name": "etcd", "image": "etcd", "command": command,
                    "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "readinessProbe": {"httpGet": {"path": "/health", "port": if self.metrics { 2381 } else { 2379 }}},
                    "securityContext": {"runAsUser": 2379},
                }]}},
            },
        })
    }
}

/// Whether kubelet's probe, which has no certificate, is answered.
fn answers(pod: &Pod) -> bool {
    let container = pod.spec.as_ref().map(|spec| &spec.containers[0]).expect("a container");
    let probe = serde_json::to_value(&container.readiness_probe).expect("JSON");
    let port = format!(":{}", probe["httpGet"]["port"]);
    let words = container.command.iter().flatten().filter(|word| word.starts_with("--listen-"));
    let mut urls = words.flat_map(|word| word.split(['=', ',']));
    urls.any(|url| url.starts_with("http://") && url.ends_with(&port))
}

struct Walk {
    installation: Installation,
    pods: Api<Pod>,
}

impl Walk {
    /// `kubectl apply` with these flags; what it says.
    fn kubectl_apply(&self, step: &Step, flags: &[&str]) -> String {
        let file = TempDir::new("plain-text");
        let path = file.write("set.json", step.manifest().to_string()).display().to_string();
        let arguments = [&["apply", "-f", path.as_str()][..], flags].concat();
        let output = self.installation.api.kubectl_command(&arguments).output().expect("run kubectl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// Waits until a dry run of `plain` has the warning. The API server gives the webhook of a StatefulSet one second, and goes on
    /// without it: what the next `kubectl apply` does not say means something only where admission answers in time.
    async fn warns(&self, plain: &Step) -> String {
        eventually("the warning", LIMIT, || async {
            let said = self.kubectl_apply(plain, &["--dry-run=server"]);
            if said.contains(PLAIN) { Ok(said) } else { Err(said) }
        })
        .await
    }

    /// `kubectl apply`; what it says. Returns when the controller has seen it.
    async fn apply(&self, step: &Step) -> String {
        let said = self.kubectl_apply(step, &[]);
        let sets = Api::<StatefulSet>::namespaced(self.installation.api.client.clone(), NAMESPACE);
        eventually("the StatefulSet controller", LIMIT, || async {
            let set = sets.get("etcd").await.map_err(|e| e.to_string())?;
            let seen = set.status.and_then(|status| status.observed_generation);
            if seen == set.metadata.generation { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        said
    }

    /// One look of the stand-in for kubelet; the pods that are ready, by name.
    async fn look(&self) -> BTreeMap<String, Pod> {
        let mut ready = BTreeMap::new();
        for pod in self.pods.list(&ListParams::default()).await.expect("pods").items {
            let name = pod.metadata.name.clone().expect("a name");
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                ready.insert(name, pod);
            } else if answers(&pod) && pod.metadata.deletion_timestamp.is_none() {
                let status = json!({"status": {
                    "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                }});
                // It may be gone.
                let _ = self.pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
            }
        }
        ready
    }

    /// Waits until all three are ready and those of `changed`, by ordinal, are not what they were; the others must be.
    async fn rolled(&self, what: &str, before: &BTreeMap<String, Pod>, changed: &[usize]) -> BTreeMap<String, Pod> {
        let uid = |pods: &BTreeMap<String, Pod>, i: usize| pods.get(&format!("etcd-{i}"))?.metadata.uid.clone();
        let after = eventually(what, LIMIT, || async {
            let now = self.look().await;
            let renewed = changed.iter().all(|i| uid(&now, *i) != uid(before, *i));
            if now.len() == 3 && renewed { Ok(now) } else { Err(format!("ready: {:?}", now.keys())) }
        })
        .await;
        for i in (0..3).filter(|i| !changed.contains(i) && !before.is_empty()) {
            assert_eq!(uid(&after, i), uid(before, i), "{what}: etcd-{i} is left alone");
        }
        after
    }
}

/// The variables of a pod's etcd, and whether our sidecar is beside it.
fn injected(pod: &Pod) -> (Vec<String>, bool) {
    let spec = pod.spec.as_ref().expect("a spec");
    let variables = spec.containers[0].env.iter().flatten().map(|entry| entry.name.clone());
    let sidecar = spec.init_containers.iter().flatten().any(|c| c.name == "etcd-tls-sidecar");
    (variables.filter(|name| name.starts_with("ETCD_")).collect(), sidecar)
}

fn says(pod: &Pod, flag: &str) -> String {
    let words = pod.spec.as_ref().and_then(|spec| spec.containers[0].command.clone()).unwrap_or_default();
    words.into_iter().find(|word| word.starts_with(flag)).unwrap_or_default()
}

/// The pod of the page has a client's certificate where the command reads it, and the member its own where etcdctl does.
fn check_in_a_pod(api: &ApiServer, member: &Pod) {
    let blocks = pages::blocks("plain-text-to-tls.md", "Reaching the members on Kubernetes");
    let [check, restricted, _, etcdctl] = blocks.as_slice() else { panic!("{blocks:?}") };
    // Nothing runs the pod, so nobody waits for its output.
    let create = check.replace(" --rm -i ", " ");
    assert_ne!(&create, check);
    let path = pages::path(&[api.kubectl_path().parent().expect("a directory")]);
    let type_ = |line: &str| pages::bash(&repository(), &path, Some(&api.kubeconfig), line);
    let level = "pod-security.kubernetes.io/enforce";
    api.kubectl(&["label", "namespace", NAMESPACE, &format!("{level}=restricted")]);
    let said = type_(&create).expect_err("a pod without the options is refused");
    assert!(said.contains("violates PodSecurity"), "{said}");
    type_(&create.replace(" -- check ", &format!(" {restricted} -- check "))).expect("a pod");
    api.kubectl(&["label", "namespace", NAMESPACE, &format!("{level}-")]);
    let pod = api.kubectl(&["-n", NAMESPACE, "get", "pod", "check", "-o", "json"]);
    let pod: Pod = serde_json::from_str(&pod).expect("JSON");
    for (pod, command, role) in [(&pod, check, "client"), (member, etcdctl, "server")] {
        assert!(injected(pod).1, "{pod:?}");
        let mounts = pod.spec.as_ref().expect("a spec").containers[0].volume_mounts.as_deref().unwrap_or_default();
        let mount = mounts.iter().find(|mount| mount.name == "etcd-tls").expect("the certificates");
        for (option, file) in [("cacert", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key")] {
            let value = format!("{}/{role}/{file}", mount.mount_path);
            let is = |word: &str| command.replace('=', " ").contains(&format!("--{option} {word}"));
            assert!(is(&value), "{option}: {value}: {command}");
        }
        let roles = serde_json::to_string(&pod.spec).expect("JSON");
        assert!(role == "server" || roles.contains(&format!("--roles={role}")), "{roles}");
    }
    api.kubectl(&["-n", NAMESPACE, "delete", "pod", "check", "--now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_goes_from_http_to_https_and_back() {
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    // Before the controllers, of which none makes service accounts here.
    installation.api.namespace(NAMESPACE, &[]).await;
    let Some(_controller) =
        installation.api.start_controller_manager(&["--controllers=statefulset-controller".to_owned()])
    else {
        tier::skip_special("no kube-controller-manager beside kube-apiserver", "put one there");
        return;
    };
    let pods = Api::<Pod>::namespaced(installation.api.client.clone(), NAMESPACE);
    let walk = Walk { installation, pods };
    let api: &ApiServer = &walk.installation.api;

    let start = Step { clients: &BOTH[..1], peers: "http", metrics: false, labels: json!({}), partition: 0 };
    walk.apply(&start).await;
    let plain = walk.rolled("a cluster in plain text", &BTreeMap::new(), &[]).await;
    assert!(plain.values().all(|pod| injected(pod) == (vec![], false)), "{plain:?}");

    // Step 1. Running pods do not change by the label.
    api.kubectl(&["label", "namespace", NAMESPACE, "etcd-tls=dynamic"]);
    walk.rolled("the label", &plain, &[]).await;
    let both = Step { clients: BOTH, metrics: true, ..start.clone() };
    let said = walk.warns(&both).await;
    assert!(!said.contains("readinessProbe") && !said.contains("refused"), "{said}");
    walk.apply(&both).await;
    let first = walk.rolled("certificates, and a second client port", &plain, &[0, 1, 2]).await;
    let (variables, sidecar) = injected(&first["etcd-0"]);
    assert!(sidecar, "{first:?}");
    for option in ["CERT_FILE", "KEY_FILE", "TRUSTED_CA_FILE", "CLIENT_CERT_AUTH"] {
        for variable in [format!("ETCD_{option}"), format!("ETCD_PEER_{option}")] {
            assert!(variables.contains(&variable), "{variable}: {variables:?}");
        }
    }

    check_in_a_pod(api, &first["etcd-0"]);

    // Step 3, one member after the other, from the highest ordinal down to 0.
    let mut before = first;
    let [_, lower] = &pages::blocks("plain-text-to-tls.md", "3. Peers, one member after the other")[..] else {
        panic!("a command")
    };
    let path = pages::path(&[api.kubectl_path().parent().expect("a directory")]);
    for partition in (0..=3).rev() {
        if partition == 3 {
            walk.apply(&Step { peers: "https", partition, ..both.clone() }).await;
        } else {
            let lower = lower.replace(r#""partition": 2"#, &format!(r#""partition": {partition}"#));
            pages::bash(&repository(), &path, Some(&api.kubeconfig), lower.trim()).expect("another partition");
        }
        let changed: Vec<usize> = (partition..3).take(1).collect();
        before = walk.rolled(&format!("partition {partition}"), &before, &changed).await;
        for (i, pod) in before.values().enumerate() {
            let scheme = if i < partition { "=http://" } else { "=https://" };
            assert!(says(pod, "--listen-peer-urls").contains(scheme), "partition {partition}, etcd-{i}");
        }
    }

    // Step 4. The probe asks --listen-metrics-urls, so the pods are ready.
    let closed = Step { clients: &BOTH[1..], peers: "https", ..both.clone() };
    let _warned = walk.warns(&both).await;
    let said = walk.apply(&closed).await;
    assert!(!said.contains("Warning: etcd-tls"), "{said}");
    before = walk.rolled("the plain port is closed", &before, &[0, 1, 2]).await;
    assert!(before.values().all(|pod| injected(pod).1), "{before:?}");

    // The last step back.
    let off = Step { labels: json!({"etcd-tls": "disabled"}), ..start };
    let _warned = walk.warns(&both).await;
    let said = walk.apply(&off).await;
    assert!(!said.contains("Warning: etcd-tls"), "{said}");
    before = walk.rolled("back in plain text", &before, &[0, 1, 2]).await;
    assert!(before.values().all(|pod| injected(pod) == (vec![], false)), "{before:?}");
}
