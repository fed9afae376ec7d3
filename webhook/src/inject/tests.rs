#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn options() -> Options {
    Options {
        injection: injection::Config { sidecar_image: "etcd-tls-sidecar:test".into(), ..injection::Config::default() },
        namespace: "default".into(),
    }
}

#[track_caller]
fn run(text: &str) -> String {
    let injected = inject(text, &options()).unwrap();
    assert_eq!(inject(&injected.text, &options()).unwrap().text, injected.text, "injecting twice changed something");
    injected.text
}

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: etcd\nspec:\n  containers:\n  - name: etcd\n    image: etcd\n";

#[test]
fn documents_without_a_pod_stay_byte_for_byte() {
    let others = "# head\n\n---\n# a ConfigMap\napiVersion: v1\nkind:   ConfigMap   # odd spacing\ndata: {a: \"yes\",\n  b: |2\n     x\n}\n...\n---\n---\r\nkind: Unknown\r\n--- # comment\napiVersion: example.com/v1\nkind: Deployment\n";
    let valid = others.replace("data: {a: \"yes\",\n  b: |2\n     x\n}", "data: {a: \"yes\",\n  b: x}");
    assert_eq!(inject(&valid, &options()).unwrap().text, valid);
    let mixed = format!("{valid}---\n# the pod\n{POD}---\n# the end\n");
    let out = run(&mixed);
    assert!(out.starts_with(&valid));
    assert!(out.contains("---\n# the pod\napiVersion: v1\nkind: Pod\n"));
    assert!(out.ends_with("---\n# the end\n"));
    assert!(out.contains("etcd-tls: dynamic"));
}

#[test]
fn every_kind_with_pods_in_it() {
    let pod = |indent: &str| {
        let lines = ["metadata: {labels: {a: b}}", "spec:", "  containers:", "  - name: etcd", "    image: etcd"];
        lines.iter().map(|line| format!("{indent}{line}\n")).collect::<String>()
    };
    for (version, kind) in [
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "Deployment"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
        ("v1", "ReplicationController"),
    ] {
        let out = run(&format!("apiVersion: {version}\nkind: {kind}\nspec:\n  template:\n{}", pod("    ")));
        assert!(out.contains("        etcd-tls: dynamic\n"), "{kind}: {out}");
    }
    let out = run(&format!(
        "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    spec:\n      template:\n{}",
        pod("        ")
    ));
    assert!(out.contains("etcd-tls-init"));
    for list in ["v1\nkind: List", "v1\nkind: PodList"] {
        let kind = if list.ends_with("PodList") { "" } else { "apiVersion: v1\n  kind: Pod\n  " };
        let out = run(&format!(
            "apiVersion: {list}\nitems:\n- {kind}metadata:\n    name: a\n  spec:\n    containers:\n    - name: etcd\n"
        ));
        assert!(out.contains("etcd-tls-init"), "{out}");
        assert_eq!(out.contains("kind: Pod\n"), !kind.is_empty());
    }
}

#[test]
fn json_stays_json() {
    let compact = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"etcd"}]}}"#;
    let other = r#"{"kind":"ConfigMap",  "data":{}}"#;
    let out = run(&format!("{other}\n{compact}\n{other}\n"));
    assert!(out.starts_with(other) && out.ends_with(&format!("{other}\n")));
    assert_eq!(out.lines().count(), 3);
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(compact).unwrap()).unwrap();
    assert!(run(&pretty).lines().count() > 50);
}

#[test]
fn meanings_survive() {
    let out = run(&format!(
        "{POD}    env:\n    - {{name: A, value: \"yes\"}}\n    - {{name: B, value: '0777'}}\n    - {{name: C, value: \"1e3\"}}\n  volumes:\n  - name: s\n    secret: {{secretName: s, defaultMode: 0400}}\n"
    ));
    for line in ["value: 'yes'", "value: '0777'", "value: '1e3'", "defaultMode: 256"] {
        assert!(out.contains(line), "{line}\n{out}");
    }
}

#[test]
fn every_refusal_is_said_at_once() {
    let bad = format!(
        "{POD}---\n{}",
        POD.replace("name: etcd\nspec", "name: b\n  annotations: {etcd-tls.dev/key: x, etcd-tls.dev/roles: ''}\nspec")
    );
    let error = inject(&format!("{bad}---\n: : :\n  - [\n"), &options()).unwrap_err();
    let text = error.to_string();
    for word in ["Pod b", "etcd-tls.dev/key", "etcd-tls.dev/roles", "document 3"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn who_opted_out_stays_out_and_strangers_are_left() {
    let out = POD.replace("name: etcd\nspec", "name: b\n  labels: {etcd-tls: disabled}\nspec");
    assert_eq!(inject(&out, &options()).unwrap().text, out);
    let web = POD.replace("- name: etcd", "- name: web");
    let injected = inject(&web, &options()).unwrap();
    assert_eq!(injected.text, web);
    assert_eq!(injected.warnings.len(), 1);
}

#[test]
fn files_are_joined_as_documents() {
    let mut out = String::new();
    documents::join(&mut out, "a: 1");
    documents::join(&mut out, "b: 2\n");
    documents::join(&mut out, "--- # c\nc: 3\n");
    assert_eq!(out, "a: 1\n---\nb: 2\n--- # c\nc: 3\n");
}

#[test]
fn a_static_pod_is_served_by_its_host() {
    let host = HostPaths {
        kubeconfig: "/etc/kubernetes/etcd-tls/kubeconfig".into(),
        bootstrap_kubeconfig: Some("/etc/kubernetes/etcd-tls/bootstrap".into()),
        directory: "/var/lib/etcd-tls".into(),
    };
    let mut options = options();
    options.injection.host = Some(host);
    let kubeadm = include_str!("../../tests/golden/kubeadm-static-pod.yaml");
    let injected = inject(kubeadm, &options).unwrap();
    assert_eq!(inject(&injected.text, &options).unwrap().text, injected.text);
    for part in [
        "- --cert-file=/etc/etcd/tls/server/tls.crt\n",
        "- --peer-trusted-ca-file=/etc/etcd/tls/peer/ca.crt\n",
        "- --assetsdir=/var/run/etcd-tls/certs\n",
        "- --kubeconfig=/etc/kubernetes/etcd-tls/kubeconfig\n",
        "- --bootstrap-kubeconfig=/etc/kubernetes/etcd-tls/bootstrap\n",
        "- --ipaddrs=$(HOST_IPS),192.0.2.10\n",
        "- --namespace=kube-system\n",
        "path: /var/lib/etcd-tls\n",
        "shareProcessNamespace: true\n",
        "- --can-signal\n",
        "livez",
    ] {
        assert!(injected.text.contains(part), "{part}\n{}", injected.text);
    }
    for part in ["configMap:", "serviceAccountToken", "emptyDir", "/etc/kubernetes/pki/etcd/server.crt", "name: ETCD_"]
    {
        assert!(!injected.text.contains(part), "{part}\n{}", injected.text);
    }
    assert_eq!(injected.warnings.iter().filter(|w| w.contains(" was /etc/kubernetes/pki/etcd/")).count(), 6);

    // By its probe it is restarted as others are, with a program in its host's directory.
    let probed = kubeadm.replacen("  annotations:\n", "  annotations:\n    etcd-tls.dev/reload: probe\n", 1);
    let injected = inject(&probed, &options).unwrap();
    assert_eq!(inject(&injected.text, &options).unwrap().text, injected.text);
    for part in ["- /etc/etcd/tls/probe/etcd-tls-probe\n", "- --reload=probe\n", "failureThreshold: 8\n"] {
        assert!(injected.text.contains(part), "{part}\n{}", injected.text);
    }
    let asked = injected.text.lines().find(|line| line.contains("--liveness-url=")).unwrap();
    assert!(asked.contains("http://127.0.0.1:2381/livez"), "{asked}");
    assert!(!injected.text.contains("shareProcessNamespace"));

    let deployment =
        "apiVersion: apps/v1\nkind: Deployment\nspec:\n  template:\n    spec:\n      containers: [{name: etcd}]\n";
    let left = inject(deployment, &options).unwrap();
    assert_eq!(left.text, deployment);
    assert_eq!(left.warnings.len(), 1);
}

/// Documents that kubectl accepts, or that are no objects of ours, pass unchanged, however odd.
#[test]
fn a_document_without_a_pod_passes_byte_for_byte() {
    for odd in [
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: x\n  a: y\n",
        "apiVersion: v1\r\nkind: ConfigMap\r\ndata:\r\n  a: x\r\n  a: y\r\n",
        "%YAML 1.1\n---\napiVersion: v1\nkind: ConfigMap\n",
        "%YAML 1.2\n%TAG !e! tag:example.com,2000:\n---\napiVersion: v1\nkind: ConfigMap\ndata: {a: !e!x b}\n",
        "\u{feff}apiVersion: v1\nkind: ConfigMap\n",
        "kind: ConfigMap\ndata:\n\ta: b\n",
        "kind: \"Service\" # comment\nspec: &a {x: *a}\nspec: {}\n",
        "kind: Secret\ndata: *unknown\n",
    ] {
        let mixed = format!("{odd}---\n{POD}");
        let out = inject(odd, &options()).unwrap_or_else(|e| panic!("{odd:?}: {e}"));
        assert_eq!(out.text, odd);
        let out = inject(&mixed, &options()).unwrap_or_else(|e| panic!("{mixed:?}: {e}"));
        assert!(out.text.starts_with(odd), "{odd:?}: {}", out.text);
        assert!(out.text.contains("etcd-tls-init"));
    }
    // Documents that may hold a pod must be readable.
    for unread in [
        "apiVersion: v1\nkind: Pod\nspec: {}\nspec: {}\n",
        "{apiVersion: v1, kind: Pod, spec: {}, spec: {}}\n",
        "kind: &k Pod\nspec: {}\nspec: {}\n",
        "kind: List\nitems: []\nitems: []\n",
        "a: 1\na: 2\n",
        "? kind\n: Pod\nkind: ConfigMap\na: 1\na: 2\n",
    ] {
        assert!(inject(unread, &options()).is_err(), "{unread:?}");
    }
}

const TEMPLATE: &str =
    "template:\n    metadata: {labels: {a: b}}\n    spec:\n      containers:\n      - {name: etcd, image: etcd}\n";

#[test]
fn what_is_wrong_with_a_document_is_said_in_the_words_of_its_writer() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: etcd, image: etcd}]}\n";
    let error = |text: &str| inject(text, &options()).unwrap_err().to_string();
    let twice = error(&pod.replace("spec:", "spec: {}\nspec:"));
    assert!(twice.contains("duplicate mapping key: spec") && !twice.contains("Options"), "{twice}");
    let template = error(&pod.replace("{name: a}", "{name: {{ .Release.Name }}}"));
    assert!(template.contains("render it first") && !twice.contains("render it first"), "{template}");
    // Nothing is to be changed there, nor judged.
    let service = format!("kind: Service\nmetadata: {{}}\nmetadata: {{name: a}}\n---\n{pod}");
    assert!(inject(&service, &options()).is_ok());
    assert_eq!(dry_run::judge(&service, &options()).unwrap().judged, 1);
    let list = serde_json::json!([{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "etcd", "image": "etcd"}]}}])
        .to_string();
    let done = inject(&list, &options()).unwrap();
    assert!(done.text == list && done.warnings.iter().any(|w| w.contains("kind: List")), "{:?}", done.warnings);
}

#[test]
fn pod_templates_of_other_kinds_are_said_and_injected_into_where_they_are_named() {
    for (kind, text, path) in [
        ("DeploymentConfig", format!("apiVersion: apps.openshift.io/v1\nkind: DeploymentConfig\nmetadata: {{name: a}}\nspec:\n  {TEMPLATE}"), "spec.template"),
        ("Rollout", format!("apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {{name: a}}\nspec:\n  {TEMPLATE}"), "spec.template"),
        ("Etcd", format!("apiVersion: example.com/v1\nkind: Etcd\nmetadata: {{name: a}}\nspec:\n  {TEMPLATE}"), "spec.template"),
        (
            "Template",
            "apiVersion: template.openshift.io/v1\nkind: Template\nmetadata: {name: a}\nobjects:\n- kind: Service\n- kind: StatefulSet\n  spec:\n    template:\n      spec:\n        containers:\n        - {name: etcd, image: etcd}\n".to_owned(),
            "objects.*.spec.template",
        ),
    ] {
        let left = inject(&text, &options()).unwrap();
        assert_eq!(left.text, text);
        let flag = format!("--pod-template-path={kind}={path}");
        assert!(left.warnings.iter().any(|w| w.contains(&flag) && w.contains(kind)), "{:?}", left.warnings);
        let paths = [format!("{kind}={path}").parse().unwrap()];
        let injected = inject_at(&text, &options(), &paths).unwrap();
        assert!(injected.text.contains("etcd-tls-sidecar"), "{}", injected.text);
        assert_eq!(inject_at(&injected.text, &options(), &paths).unwrap().text, injected.text, "twice");
        let missing = [format!("{kind}=spec.other").parse().unwrap()];
        assert!(inject_at(&text, &options(), &missing).unwrap_err().to_string().contains("spec.other"));
    }
    for bad in ["", "Kind", "=spec", "Kind=", "Kind=a..b"] {
        assert!(bad.parse::<TemplatePath>().is_err(), "{bad}");
    }
}
