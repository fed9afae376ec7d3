//! The commands of docs/authorities.md, docs/policy.md, docs/uninstall.md and docs/operations.md, as they stand there, typed by an
//! administrator.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{env, fs, path::Path, process::Command};

use etcd_tls_contract::{certificate::Bundle, names, role::Role};
use k8s_openapi::api::core::v1::Pod;
use lab::{Asking, Lab};
use serde_json::{Value, json};
use signer::{cas, issue, issued, issuer, sign, trust};
use tests::{
    apiserver::ApiServer,
    eventually,
    installation::{Installation, LIMIT, Options, own_address},
    pages,
    process::{binary, which},
    repository,
    temp::TempDir,
};

/// The command of a page that begins so.
fn command(page: &str, beginning: &str) -> String {
    let text = fs::read_to_string(repository().join("docs").join(page)).expect("a page");
    let indented = text.lines().filter(|line| line.starts_with("    ")).map(str::trim);
    let found = indented.into_iter().find(|line| line.starts_with(beginning));
    found.unwrap_or_else(|| panic!("{page} has no command {beginning}")).to_owned()
}

/// Runs a command line in `directory`, as cluster-admin.
fn shell(api: &ApiServer, directory: &Path, line: &str) -> Result<String, String> {
    let kubectl = api.kubectl_path();
    let (kubectl, ours) = (kubectl.parent().expect("a directory"), binary("etcd-tls-webhook"));
    let ours = ours.parent().expect("a directory");
    let path = format!("{}:{}:{}", kubectl.display(), ours.display(), env::var("PATH").expect("PATH"));
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(directory).env("PATH", path).env("KUBECONFIG", &api.kubeconfig);
    let output = command.output().expect("run a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A member with the label that admission gives.
async fn injected(lab: &Lab, namespace: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": "etcd-0", "labels": {"app": "etcd", "etcd-tls.dev/injected": "true"}, "annotations": {}},
        "spec": {
            "containers": [{"name": "etcd", "image": "etcd"}],
            "initContainers": [{"name": names::SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
        },
    });
    eventually("a pod", LIMIT, || lab.api.pod(namespace, pod.clone())).await;
    lab.api.set_pod_ips(namespace, "etcd-0", &["10.6.0.1".parse().expect("an address")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ca_is_restored_from_the_backup_or_begun_anew() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let namespace = "my-namespace";
    lab.api.namespace(namespace, &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = injected(&lab, namespace).await;
    let (_, first) = issue(&lab, &pod, Role::Peer, None).await;
    let before = trust(&lab, namespace, "etcd").await;

    let dir = TempDir::new("how-to");
    shell(&lab.api, dir.path(), &command("authorities.md", "kubectl -n etcd-tls-system get secrets"))
        .expect("a backup");
    let peers = cas(&lab, namespace).await.into_iter().find(|n| n.ends_with("-peer")).expect("the peers' CA");
    let lose = format!("kubectl -n etcd-tls-system delete secret {peers}");
    shell(&lab.api, dir.path(), &lose).expect("lose a CA");
    lab.event_of(namespace, &names::trust_config_map("etcd"), "is lost").await;
    let asking = Asking::of(&pod, Role::Peer);
    asking.create(&lab.requester(&pod).await).await;
    lab.approved(&asking.name).await;

    // The other authority's Secret is still there, so the command ends with an error, having restored the one.
    let said = shell(&lab.api, dir.path(), &command("authorities.md", "kubectl create -f authorities.yaml"))
        .expect_err("one is there");
    assert!(said.contains("AlreadyExists") && !said.contains(&peers), "{said}");
    let restored = issued(&lab, &asking.name).await;
    assert_eq!(issuer(&restored), issuer(&first), "the same CA");
    assert_eq!(trust(&lab, namespace, "etcd").await, before);

    shell(&lab.api, dir.path(), &pages::blocks("authorities.md", "Idle authorities")[0]).expect("mark it");
    let marked = lab.api.kubectl(&["-n", "etcd-tls-system", "get", "secret", &peers, "-o", "json"]);
    let marked: Value = serde_json::from_str(&marked).expect("JSON");
    assert_eq!(marked["metadata"]["annotations"]["etcd-tls.dev/keep"], "true", "{peers}");

    shell(&lab.api, dir.path(), &lose).expect("lose it again");
    lab.event_of(namespace, &names::trust_config_map("etcd"), "is lost").await;
    shell(&lab.api, dir.path(), &command("authorities.md", "kubectl -n my-namespace delete configmap"))
        .expect("begin anew");
    // As admission labels it. No kubelet ends it here.
    shell(&lab.api, dir.path(), "kubectl -n my-namespace label pod etcd-0 etcd-tls.dev/injected=true")
        .expect("a label");
    let restart =
        format!("{} --grace-period=0 --force", command("authorities.md", "kubectl -n my-namespace delete pod"));
    shell(&lab.api, dir.path(), &restart).expect("restart the pods");
    let pod = injected(&lab, namespace).await;
    let [peer, client, _] = trust(&lab, namespace, "etcd").await;
    assert!(peer != before[0] && client == before[1], "another CA for the peers alone");
    let (_, anew) = issue(&lab, &pod, Role::Peer, None).await;
    assert_ne!(issuer(&anew), issuer(&first), "of the new CA");

    // The namespace is made again: its CAs are gone, and those of the backup are adopted.
    lab.api.delete_pod(namespace, "etcd-0").await;
    signer::delete_namespace(&lab, namespace).await;
    let no_cas = || async {
        let left = cas(&lab, namespace).await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    };
    eventually("the CAs of the namespace to be gone", LIMIT, no_cas).await;
    let adopt = command("authorities.md", "etcd-tls-webhook adopt");
    let said = shell(&lab.api, dir.path(), &adopt).expect_err("there is no namespace");
    assert!(said.contains("there is no namespace my-namespace"), "{said}");
    signer::namespace_again(&lab, namespace).await;
    // Too late: a pod has asked already.
    let pod = injected(&lab, namespace).await;
    let (_, other) = issue(&lab, &pod, Role::Peer, None).await;
    assert_ne!(issuer(&other), issuer(&first), "a namespace made again inherits nothing");
    let said = shell(&lab.api, dir.path(), &adopt).expect_err("there is another CA");
    assert!(said.contains("has another CA already") && said.contains("scale to 0"), "{said}");
    let both = ["peer.etcd-tls.dev", "client.etcd-tls.dev"].iter().all(|domain| said.contains(domain));
    assert!(both, "each authority is named: {said}");
    lab.api.delete_pod(namespace, "etcd-0").await;
    for name in cas(&lab, namespace).await {
        shell(&lab.api, dir.path(), &format!("kubectl -n etcd-tls-system delete secret {name}")).expect("delete");
    }
    shell(&lab.api, dir.path(), "kubectl -n my-namespace delete configmap etcd-tls-trust-etcd").expect("delete");
    let said = shell(&lab.api, dir.path(), &adopt).expect("adopt the CAs of the backup");
    assert!(said.contains("peer.etcd-tls.dev/my-namespace.etcd: adopted") && !said.contains("PRIVATE"), "{said}");
    let pod = injected(&lab, namespace).await;
    let (_, again) = issue(&lab, &pod, Role::Peer, None).await;
    assert_eq!(issuer(&again), issuer(&first), "of the CA in the backup");
    assert_eq!(trust(&lab, namespace, "etcd").await, before, "for peers and for clients");
    let said = shell(&lab.api, dir.path(), &adopt).expect("nothing is left to do");
    assert!(said.contains("has this CA already"), "{said}");

    // Another name.
    let elsewhere = adopt.replace("my-namespace/etcd", "elsewhere/etcd --from my-namespace/etcd");
    lab.api.namespace("elsewhere", &[(names::LABEL, names::DYNAMIC)]).await;
    let said = shell(&lab.api, dir.path(), &elsewhere).expect_err("two clusters of one CA");
    assert!(said.contains("still exists") && said.contains("--share"), "{said}");
    shell(&lab.api, dir.path(), &format!("{elsewhere} --share")).expect("adopt under another name");
    let pod = injected(&lab, "elsewhere").await;
    let (_, moved) = issue(&lab, &pod, Role::Peer, None).await;
    assert_eq!(issuer(&moved), issuer(&first));

    // The cluster of the backup is gone; another one that adopted its CAs is not.
    lab.api.delete_pod(namespace, "etcd-0").await;
    signer::delete_namespace(&lab, namespace).await;
    let third = elsewhere.replace("elsewhere/etcd", "third/etcd");
    lab.api.namespace("third", &[(names::LABEL, names::DYNAMIC)]).await;
    let said = shell(&lab.api, dir.path(), &third).expect_err("two clusters of one CA");
    assert!(said.contains("elsewhere/etcd still exists") && said.contains("--share"), "{said}");
    assert_eq!(cas(&lab, "third").await, [""; 0]);
}

/// Whether the peers' bundle of the cluster holds a CA.
async fn publishes(lab: &Lab, root: &Bundle) -> Result<(), &'static str> {
    let [peer, ..] = trust(lab, "my-namespace", "etcd").await;
    if peer.contains(root) { Ok(()) } else { Err("another bundle") }
}

/// docs/policy.md, docs/authorities.md, *A CA of one's own*, and docs/clients-outside.md, as far as there is no member to call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_of_ones_own_signs_and_a_client_outside_gets_its_certificate() {
    for program in ["openssl", "jq"] {
        if which(program).is_none() {
            return tests::tier::skip_special(&format!("no {program} in PATH"), "install it");
        }
    }
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("my-namespace", &[(names::LABEL, names::DYNAMIC)]).await;
    let dir = TempDir::new("how-to");
    let type_ = |line: &str| shell(&lab.api, dir.path(), line).unwrap_or_else(|said| panic!("{line}: {said}"));
    let next_ca = |commands: &str| {
        type_(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=root -keyout root.key -out root.crt",
        );
        type_(commands);
        Bundle::parse(&fs::read(dir.join("root.crt")).expect("a root")).expect("a bundle")
    };

    // A CA of one's own, then the next one.
    let own = pages::blocks("authorities.md", "A CA of one's own");
    let outside = |section: &str| pages::blocks("clients-outside.md", section);
    let root = next_ca(&own[0]);
    let [write, read] = &pages::blocks("policy.md", "Policy")[..] else { panic!("two blocks") };
    // The backup of the ConfigMap does not become the policy in it.
    type_(&command("authorities.md", "kubectl -n etcd-tls-system get configmap etcd-tls-policy"));
    type_("cp etcd-tls-policy-configmap.yaml policy.yaml");
    shell(&lab.api, dir.path(), write).expect_err("a ConfigMap is no policy");
    assert_eq!(type_(&format!("{read}; cat policy.yaml")), "", "there is no policy yet");
    dir.write("policy.yaml", format!("{}\n{}\n", own[1], outside("A host that renews by itself")[0]));
    type_(write);
    assert_eq!(type_(&format!("cp policy.yaml written; {read}; diff written policy.yaml")), "");
    let keys = type_("kubectl -n etcd-tls-system get configmap etcd-tls-policy -o jsonpath='{.data}' | jq -c keys");
    assert_eq!(keys.trim(), r#"["policy.yaml","policy.yaml.example"]"#, "the shipped key stays");
    let pod = injected(&lab, "my-namespace").await;
    let (_, chain) = issue(&lab, &pod, Role::Peer, None).await;
    assert!(chain.certificates.len() == 2, "the intermediate is sent, the root is not");
    eventually("the root to be published", LIMIT, || publishes(&lab, &root)).await;
    let (make, create) = own[0].rsplit_once('\n').expect("two commands");
    assert!(create.starts_with("kubectl"), "{create}");
    let next = next_ca(make);
    type_("cp peer-ca-chain.crt next-chain.crt; cp peer-ca.key next.key");
    type_(&own[2]);
    eventually("the next root to be published", LIMIT, || publishes(&lab, &next)).await;

    // A client outside: a user of the API server, known by its certificate.
    let pki = lab.api.directory().join("pki").display().to_string();
    type_(&format!(
        "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout user.key -out user.csr -subj /CN=backup-host
         echo extendedKeyUsage=clientAuth > user.ext
         openssl x509 -req -in user.csr -CA {pki}/ca.crt -CAkey {pki}/ca.key -CAcreateserial -days 1 -extfile user.ext -out user.crt
         kubectl config view --raw --minify > backup.kubeconfig
         export KUBECONFIG=backup.kubeconfig
         kubectl config unset users
         kubectl config set-credentials backup --client-certificate=user.crt --client-key=user.key --embed-certs
         kubectl config set-context --current --user=backup"
    ));
    let block = outside("A host that renews by itself");
    type_(&block[1]);
    let run = format!("exec {} --admin-port {}", block[2], tests::ports::loopback());
    let mut client = std::process::Command::new("bash");
    client.args(["-c", &run]).current_dir(dir.path()).env("PATH", pages::path(&[]));
    let mut client = tests::process::Process::spawn("client", &mut client, dir.path());
    eventually("the certificate of the client outside", LIMIT, || async {
        if dir.join("certs/client/tls.crt").exists() { Ok(()) } else { Err(client.log_end()) }
    })
    .await;
    let said = type_(
        "openssl verify -CAfile certs/client/ca.crt certs/client/tls.crt; openssl x509 -noout -subject -in certs/client/tls.crt",
    );
    assert!(said.contains("certs/client/tls.crt: OK") && said.replace(' ', "").contains("CN=backup"), "{said}");
    client.terminate(LIMIT).await;

    // The bundle alone.
    type_(outside("A certificate that you bring").last().expect("a command"));
    let bundle = Bundle::parse(&fs::read(dir.join("ca.crt")).expect("a bundle")).expect("a bundle");
    assert_eq!(bundle, trust(&lab, "my-namespace", "etcd").await[1]);
}

/// docs/operations.md, *Traces*: the collector's address reaches the three Deployments, and the policies of the network let `admit`
/// reach nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployments_are_told_of_a_collector_and_admit_may_not_reach_it() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    let block = pages::blocks("operations.md", "Traces").remove(0);
    let set = block.split_once("kubectl ").map(|(_, rest)| format!("kubectl {rest}")).expect("a command");
    shell(&api, &repository(), &set).expect("set the variable");
    let found = |arguments: &[&str]| -> Vec<Value> {
        let list = api.kubectl(&[&["-n", "etcd-tls-system", "get", "-o", "json"], arguments].concat());
        let list: Value = serde_json::from_str(&list).expect("JSON");
        list["items"].as_array().expect("a list").clone()
    };
    for deployment in found(&["deployments"]) {
        let env =
            deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        let endpoint = env.iter().find(|variable| variable["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT");
        let endpoint = endpoint.unwrap_or_else(|| panic!("{}: {env:?}", deployment["metadata"]["name"]));
        assert!(endpoint["value"].as_str().expect("a value").starts_with("http://collector."), "{endpoint}");
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        let built = block.lines().find_map(|line| line.strip_prefix("docker push ")).expect("the image");
        assert_eq!(image, built);
    }
    let policies = found(&["networkpolicies"]);
    let selects = |policy: &&Value| {
        let selector = &policy["spec"]["podSelector"];
        let components = &selector["matchExpressions"][0]["values"];
        selector.as_object().is_none_or(serde_json::Map::is_empty)
            || selector["matchLabels"]["app.kubernetes.io/component"] == "admit"
            || components.as_array().is_some_and(|values| values.contains(&json!("admit")))
    };
    let of_admit: Vec<&Value> = policies.iter().filter(selects).collect();
    let types = |policy: &&Value| {
        policy["spec"]["policyTypes"].as_array().is_some_and(|types| types.contains(&json!("Egress")))
    };
    assert!(of_admit.iter().any(types), "egress is denied: {of_admit:?}");
    assert!(of_admit.iter().all(|policy| policy["spec"]["egress"].is_null()), "and nothing allows it: {of_admit:?}");
}

/// Names of the objects outside namespaces that have to do with etcd-tls.
fn left_over(api: &ApiServer) -> Vec<String> {
    let kinds = api.kubectl(&["api-resources", "--verbs=list", "--namespaced=false", "-o", "name"]);
    let kinds: Vec<&str> = kinds
        .lines()
        // The page says that requests stay for a while; nothing empties a namespace here.
        .filter(|kind| !["namespaces", "certificatesigningrequests.certificates.k8s.io"].contains(kind))
        .collect();
    assert!(kinds.len() > 15, "{kinds:?}");
    let names = api.kubectl(&["get", &kinds.join(","), "-o", "name", "--ignore-not-found"]);
    names.lines().filter(|name| name.contains("etcd-tls")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninstall_leaves_what_the_page_says_and_nothing_else() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let home = repository();
    let step = |installation: &Installation, beginning: &str| {
        shell(&installation.api, &home, &command("uninstall.md", beginning))
    };
    installation.api.namespace("my-namespace", &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = json!({
        "metadata": {
            "name": "app-0", "annotations": {"etcd-tls.dev/roles": "client", "etcd-tls.dev/containers": "app"},
        },
        "spec": {"containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    });
    let programs = [("app", which("true").expect("true"))];
    let ip = own_address().expect("the installation has one");
    let mut local = installation.local_pod("my-namespace", pod.clone(), &[ip], &programs).await.expect("a pod");
    local.start(LIMIT).await.expect("certificates");
    assert!(left_over(&installation.api).len() > 20, "installed objects are found: {:?}", left_over(&installation.api));

    // 1. Opt out.
    assert!(step(&installation, "kubectl get namespaces").expect("the namespaces").contains("my-namespace"));
    assert!(step(&installation, "kubectl get pods -A").expect("the pods").contains("app-0"));
    step(&installation, "kubectl label namespace").expect("opt out");
    drop(local);
    installation.api.delete_pod("my-namespace", "app-0").await;
    assert!(!step(&installation, "kubectl get pods -A").expect("the pods").contains("app-0"));
    let after = installation.api.pod("my-namespace", pod).await.expect("a pod");
    assert!(!serde_json::to_string(&after).expect("JSON").contains(names::SIDECAR_CONTAINER), "it is not injected");
    // 2. Rights.
    eventually("the rights of the namespace to go", LIMIT, || async {
        let left = step(&installation, "kubectl get rolebindings")?;
        // The pod with which the installation proves that admission answers opted in by its own label: ten minutes.
        let kept = |line: &&str| line.starts_with("etcd-tls-system ") || line.starts_with("installation-probe ");
        let readers = step(&installation, "kubectl get roles,rolebindings")?;
        let readers = readers.lines().filter(|line| line.contains("etcd-tls-trust-reader"));
        let others: Vec<&str> = left.lines().skip(1).chain(readers).filter(|line| !kept(line)).collect();
        if others.is_empty() { Ok(()) } else { Err(format!("{others:?}")) }
    })
    .await;
    // docs/upgrade.md, after a rollback: what it looks for is found.
    let guards = shell(&installation.api, &home, &command("upgrade.md", "kubectl get validatingadmissionpolicies"));
    let guards = guards.expect("the admission policies");
    for kind in ["validatingadmissionpolicy", "validatingadmissionpolicybinding"] {
        assert!(
            guards.lines().any(|line| line.starts_with(&format!("{kind}.admissionregistration.k8s.io/etcd-tls-"))),
            "{guards}"
        );
    }
    // 3. The installation; nothing empties its namespace here, and its Deployments are these processes.
    let delete = format!("{} --wait=false", command("uninstall.md", "kubectl delete -k manifests"));
    shell(&installation.api, &home, &delete).expect("delete the installation");
    for process in [&mut installation.admit, &mut installation.approve, &mut installation.sign] {
        process.terminate(LIMIT).await;
    }
    step(&installation, "kubectl delete clusterrolebindings").expect("delete more bindings");
    // docs/upgrade.md, after a rollback to a version without them: nobody makes or removes them any more.
    let readers = || {
        let all = installation.api.kubectl(&["get", "roles,rolebindings", "-A", "-o", "name"]);
        all.lines().filter(|line| line.ends_with("/etcd-tls-trust-reader")).count()
    };
    assert_eq!(readers(), 2, "a Role and its binding are left for the pod that opted in by its own label");
    shell(&installation.api, &home, &command("upgrade.md", "for kind in rolebindings roles")).expect("delete readers");
    assert_eq!(readers(), 0);
    assert_eq!(left_over(&installation.api), Vec::<String>::new());
    // 4. The bundles.
    let bundles = ["get", "configmaps", "-A", "-o", "name"];
    assert!(installation.api.kubectl(&bundles).contains("etcd-tls-trust-etcd"), "they stay until then");
    step(&installation, "kubectl delete configmaps").expect("delete the bundles");
    assert!(!installation.api.kubectl(&bundles).contains("etcd-tls"), "{}", installation.api.kubectl(&bundles));
    // A label means nothing any more, and stops nobody.
    let labelled = json!({
        "metadata": {"name": "app-1", "labels": {"etcd-tls": "dynamic"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    let after = installation.api.pod("my-namespace", labelled).await.expect("a pod");
    assert!(!serde_json::to_string(&after).expect("JSON").contains(names::SIDECAR_CONTAINER));
}
