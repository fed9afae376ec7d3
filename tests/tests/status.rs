//! The operator's view: `etcd-tls-webhook status` on a real API server, which reaches a real sidecar through its pod proxy.

use std::{
    net::IpAddr,
    path::Path,
    process::{Command, Output},
};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use tests::{
    downward::downward,
    eventually,
    installation::{self, Installation, LIMIT, Options, own_address},
    process::{binary, which},
    temp::TempDir,
};

#[path = "status/member.rs"]
mod member;
#[path = "status/rights.rs"]
mod rights;

/// A client of etcd: it has only its own files, so its sidecar's metrics are complete.
fn client_pod(name: &str) -> Value {
    installation::client_pod(name, "client")
}

fn status(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.arg("status").args(arguments).env("KUBECONFIG", kubeconfig);
    command.output().expect("run status")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_shows_each_pod_and_names_the_rights_that_are_missing() {
    let audit = rights::Audit::new();
    let options = Options { api: audit.options(), ..Options::default() };
    let Some(mut installation) = Installation::start(&options).await else { return };
    installation.api.namespace("web", &[]).await;
    let kubeconfig = installation.api.kubeconfig.clone();

    let none = status(&kubeconfig, &["-n", "web"]);
    assert!(none.status.success() && none.stdout.is_empty(), "{none:?}");
    assert!(text(&none.stderr).contains("no pod of namespace web has opted in"), "{none:?}");

    let typo = status(&kubeconfig, &["-n", "wbe", "-o", "json"]);
    assert_eq!(typo.status.code(), Some(1), "{typo:?}");
    assert!(text(&typo.stderr).contains("there is no namespace wbe"), "{typo:?}");
    let shown: Value = serde_json::from_slice(&typo.stdout).expect("JSON");
    assert_eq!(shown["pods"], json!([]));

    // The API server's proxy dials no loopback address.
    let ip: IpAddr = own_address().expect("the installation has one");
    let programs = [("app", which("true").expect("true"))];
    let mut pod = installation.local_pod("web", client_pod("app-0"), &[ip], &programs).await.expect("create a pod");
    pod.initialise(LIMIT).await.expect("init and sidecar");
    eventually("the pod is well", LIMIT, || async {
        let output = status(&kubeconfig, &["-n", "web"]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    let table = text(&status(&kubeconfig, &["-n", "web"]).stdout);
    let line: Vec<&str> = table.lines().nth(1).expect("a pod's line").split_whitespace().collect();
    assert_eq!(line[..4], ["app-0", "etcd", "client", "ok"], "{table}");
    assert!(!table.contains('\u{1b}'), "no colour where no terminal is: {table}");

    rights::each_missing_one_is_named(&installation.api, &audit).await;

    // It shows the files on disk.
    let output = status(&kubeconfig, &["-A", "-o", "json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of_the_pod = shown["pods"].as_array().expect("pods").iter().find(|p| p["pod"] == "app-0").expect("the pod");
    let file = std::fs::read(pod.volume("etcd-tls").join("client/tls.crt")).expect("a certificate");
    let chain = etcd_tls_contract::certificate::Chain::parse(&file).expect("a chain");
    let role = &of_the_pod["roles"][0];
    assert_eq!(role["serial"], chain.serial.as_str(), "{of_the_pod}");
    let ends: jiff::Timestamp = role["expiry"].as_str().expect("an expiry").parse().expect("a time");
    assert_eq!(std::time::SystemTime::from(ends), chain.not_after);

    // As a plugin of kubectl, by the name of its file.
    let bin = TempDir::new("plugin");
    std::os::unix::fs::symlink(binary("etcd-tls-webhook"), bin.join("kubectl-etcd_tls")).expect("link the plugin");
    let mut kubectl = Command::new(installation.api.kubectl_path());
    kubectl.args(["etcd-tls", "status", "-n", "web", "-o", "name"]).env("KUBECONFIG", &kubeconfig);
    let output = kubectl.env("PATH", bin.path()).output().expect("run kubectl");
    assert_eq!((text(&output.stdout), output.status.code()), ("pod/app-0\n".to_owned(), Some(0)), "{output:?}");
    let help = Command::new(bin.join("kubectl-etcd_tls")).args(["status", "--help"]).output().expect("run the plugin");
    assert!(text(&help.stdout).contains("Usage: kubectl etcd-tls status"), "{help:?}");

    // kubectl completes it by a link of another name.
    std::os::unix::fs::symlink(binary("etcd-tls-webhook"), bin.join("kubectl_complete-etcd_tls")).expect("link it");
    for (words, offered) in [
        (&["etcd-tls", "rollo"][..], "rollover"),
        (&["etcd-tls", "check", "na"], "namespace"),
        (&["etcd-tls", "status", "--all"], "--all-namespaces"),
        (&["etcd-tls", "status", "-o", "js"], "json"),
    ] {
        let mut kubectl = Command::new(installation.api.kubectl_path());
        let output = kubectl.arg("__complete").args(words).env("PATH", bin.path()).output().expect("run kubectl");
        let said = text(&output.stdout);
        let lines: Vec<&str> = said.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
        assert_eq!(lines, [offered, ":4"], "{words:?}: {output:?}");
    }

    // Without rights: which, and where.
    let nobody = installation.api.account("web", "nobody", json!([])).await;
    for (arguments, place) in [(&["-n", "web"][..], "in namespace web"), (&["-A"], "in all namespaces")] {
        let output = status(&nobody, arguments);
        assert_eq!(output.status.code(), Some(77), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(&format!("cannot list pods {place}: your account lacks this right")), "{said}");
    }
    let viewer = json!([{"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list"]}]);
    let output = status(&installation.api.account("web", "viewer", viewer).await, &["-n", "web"]);
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(out.contains("your account lacks the right to get pods/proxy in namespace web"), "{out}");
    assert!(out.contains("kubectl auth can-i get pods --subresource=proxy -n web"), "{out}");
    assert!(said.contains("cannot list certificatesigningrequests.certificates.k8s.io in all namespaces"), "{said}");

    // A pod whose sidecar cannot be reached is not well, and comes first.
    installation.api.pod("web", client_pod("app-1")).await.expect("create a pod");
    installation.api.kubectl(&["-n", "web", "delete", "pod", "app-1", "--grace-period=1", "--wait=false"]);
    let unreached = "its sidecar cannot be asked: the pod has no address yet; the pod is being deleted";
    let table = text(&status(&kubeconfig, &["-n", "web"]).stdout);
    assert!(table.contains(unreached), "{table}");
    let output = status(&kubeconfig, &["-n", "web", "-o", "name"]);
    assert_eq!(text(&output.stdout), "pod/app-1\npod/app-0\n", "{output:?}");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    on_a_terminal(&kubeconfig);

    // One that was evicted, or whose node is gone.
    installation.api.pod("web", client_pod("app-2")).await.expect("create a pod");
    let failed = r#"{"status": {"phase": "Failed", "reason": "Evicted"}}"#;
    installation.api.kubectl(&[
        "-n",
        "web",
        "patch",
        "pod",
        "app-2",
        "--subresource=status",
        "--type=merge",
        "-p",
        failed,
    ]);
    let mut check = Command::new(binary("etcd-tls-webhook"));
    let output = check.args(["check", "pod", "web/app-2"]).env("KUBECONFIG", &kubeconfig).output().expect("run check");
    let out = text(&output.stdout);
    assert!(
        output.status.code() == Some(3) && out.contains("it has ended (Failed)") && !out.contains("sidecar"),
        "{out}"
    );
    assert!(!text(&status(&kubeconfig, &["-n", "web", "-o", "name"]).stdout).contains("app-2"));
    drop(pod);
    let output = status(&kubeconfig, &["-n", "web"]);
    let out = text(&output.stdout);
    assert!(output.status.code() == Some(4) && out.contains("the API server does not reach its sidecar"), "{out}");
    // Nobody ends the deleted one, as on a node that is gone.
    eventually("the deleted pod is told why it is there", LIMIT, || async {
        let output = status(&kubeconfig, &["-n", "web"]);
        let out = text(&output.stdout);
        let said = out.contains("it was deleted, and should have been gone ");
        if said && output.status.code() == Some(4) { Ok(()) } else { Err(out) }
    })
    .await;
}

/// What a command writes to a terminal of so many columns, its lines' ends as they were.
fn terminal(kubeconfig: &Path, columns: u16, command: &str) -> String {
    terminal_with(kubeconfig, columns, command, ("TERM", "xterm"))
}

/// The same, with another variable.
fn terminal_with(kubeconfig: &Path, columns: u16, command: &str, (name, value): (&str, &str)) -> String {
    let mut script = Command::new("script");
    let line = format!("stty cols {columns} -onlcr; {} {command}", binary("etcd-tls-webhook").display());
    script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", kubeconfig);
    script.env("TERM", "xterm").env_remove("COLUMNS").env_remove("NO_COLOR").env(name, value);
    text(&script.stdin(std::process::Stdio::null()).output().expect("run script").stdout)
}

/// Colour, and lines that fit the terminal's own width.
fn on_a_terminal(kubeconfig: &Path) {
    if which("script").is_none() {
        return tests::tier::skip_special("no script", "apt-get install bsdutils");
    }
    let table = terminal(kubeconfig, 200, "status -n web");
    assert!(table.contains("\u{1b}[32mok\u{1b}[0m") && table.contains("\u{1b}[35munknown\u{1b}[0m"), "{table:?}");
    assert!(table.lines().any(|line| line.chars().count() > 66), "{table}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let table = terminal_with(kubeconfig, 200, "status -n web", plain);
        assert!(table.contains("app-0") && !table.contains('\u{1b}'), "{plain:?}: {table:?}");
    }
    for (columns, command) in [
        (66, "status -n web"),
        (80, "status -n web -o wide"),
        (80, "check pod app-0 -n web"),
        (80, "rollover web/etcd --status"),
    ] {
        let shown = terminal(kubeconfig, columns, command);
        let plain: String = shown
            .replace("\u{1b}[0m", "")
            .split('\u{1b}')
            .enumerate()
            .map(|(n, part)| if n == 0 { part } else { part.split_once('m').map_or("", |(_, rest)| rest) })
            .collect();
        // A command to type is not parted, and neither is a name.
        let whole = |line: &str| {
            line.trim_start().starts_with("next: ") || line.contains("kubectl") || !line.trim().contains(' ')
        };
        let of_text = plain.lines().filter(|line| !whole(line));
        let widest = of_text.map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(plain.lines().count() > 1 && widest <= usize::from(columns), "{command}: {widest}: {plain}");
    }
    let wide = terminal(kubeconfig, 80, "status -n web -o wide");
    assert!(wide.contains("web/app-0  web/etcd  client") && wide.contains("SERIAL "), "{wide}");
}

/// Somebody revoked the certificate that a member's clients see, at once. Its pod is named until it has another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_a_member_whose_server_certificate_is_revoked() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("web", &[]).await;
    let kubeconfig = installation.api.kubeconfig.clone();
    let ip: IpAddr = own_address().expect("the installation has one");
    let programs = [("app", which("true").expect("true"))];
    let mut member = installation::client_pod("etcd-0", "server");
    member["metadata"]["annotations"]["etcd-tls.dev/options"] = "none".into();
    let mut pod = installation.local_pod("web", member, &[ip], &programs).await.expect("a pod");
    let pods: Api<Pod> = Api::namespaced(installation.api.client.clone(), "web");
    let created = pods.get("etcd-0").await.expect("the pod");
    let _kubelet = downward(&created, pod.volume("etcd-tls-token"), pods);
    pod.initialise(LIMIT).await.expect("init and sidecar");
    let file = std::fs::read(pod.volume("etcd-tls").join("server/tls.crt")).expect("a certificate");
    let serial = etcd_tls_contract::certificate::Chain::parse(&file).expect("a chain").serial;
    let said = format!("server: the certificate {serial} is revoked: no sidecar takes this member for healthy");
    let shown = || text(&status(&kubeconfig, &["-n", "web"]).stdout);
    assert!(!shown().contains("is revoked"), "{}", shown());

    let mut revoke = Command::new(binary("etcd-tls-webhook"));
    revoke.args(["revoke", "web/etcd", "--serial", &serial, "--at-once"]).env("KUBECONFIG", &kubeconfig);
    let output = revoke.output().expect("run revoke");
    eventually("it is named", LIMIT, || async {
        let shown = shown();
        if shown.contains(&said) && shown.contains("etcd-tls-webhook renew web/etcd-0") {
            Ok(())
        } else {
            Err(format!("{shown}{output:?}"))
        }
    })
    .await;
    // As it says.
    let mut renew = Command::new(binary("etcd-tls-webhook"));
    let output = renew.args(["renew", "web/etcd-0"]).env("KUBECONFIG", &kubeconfig).output().expect("run renew");
    assert!(output.status.success(), "{output:?}");
    eventually("it has another certificate", LIMIT, || async {
        let shown = shown();
        if shown.contains("is revoked") { Err(shown) } else { Ok(()) }
    })
    .await;
}

/// An etcd that admission has told of the lists, one whose annotation leaves them out, and one that an earlier version injected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_check_show_which_members_refuse_revoked_certificates() {
    let Some(installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    // Admission does not see its pods.
    installation.api.namespace("old", &[]).await;
    let kubeconfig = installation.api.kubeconfig.clone();
    let etcd = json!([{"name": "etcd", "image": "etcd", "command": ["etcd"]}]);
    let pod = |name: &str, annotations: Value| json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"containers": etcd}});
    installation.api.pod("prod", pod("etcd-0", json!({}))).await.expect("a pod");
    installation.api.pod("prod", pod("etcd-1", json!({"etcd-tls.dev/revocation": "off"}))).await.expect("a pod");
    let mut earlier = pod("etcd-2", json!({}));
    earlier["metadata"]["labels"] = json!({"etcd-tls.dev/injected": "true"});
    earlier["spec"]["initContainers"] = json!([{"name": "etcd-tls-sidecar", "image": "s", "restartPolicy": "Always"}]);
    installation.api.pod("old", earlier).await.expect("a pod");
    let own = "--client-crl-file=/own.crl";
    for (name, annotations, args) in [
        ("etcd-3", json!({}), json!(["--config-file=/etc/etcd.yaml"])),
        ("etcd-4", json!({}), json!([own, "--peer-crl-file=/own.crl"])),
        ("etcd-5", json!({"etcd-tls.dev/options": "none"}), json!([])),
    ] {
        let mut member = pod(name, annotations);
        member["spec"]["containers"][0]["args"] = args;
        installation.api.pod("prod", member).await.expect("a pod");
    }
    // As kubelet shows a static pod, which no list reaches.
    let mut mirror = pod("etcd-6", json!({"kubernetes.io/config.mirror": "x"}));
    mirror["metadata"]["labels"] = json!({"etcd-tls.dev/injected": "true"});
    mirror["spec"]["initContainers"] = json!([{"name": "etcd-tls-sidecar", "image": "s", "restartPolicy": "Always"}]);
    installation.api.pod("old", mirror).await.expect("a pod");

    let output = status(&kubeconfig, &["-A", "-o", "json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let wide = text(&status(&kubeconfig, &["-A", "-o", "wide"]).stdout);
    let off = "annotation etcd-tls.dev/revocation is off";
    let before = "an earlier version injected into it";
    let own_options = "an earlier version injected into it, or its own options leave the list out";
    for (namespace, name, word, reason) in [
        ("prod", "etcd-0", "enforced", None),
        ("prod", "etcd-1", "ignored", Some(off)),
        ("old", "etcd-2", "ignored", Some(before)),
        ("prod", "etcd-3", "ignored", Some("its etcd has a config file, which has no key for a list")),
        ("prod", "etcd-4", "ignored", Some(own_options)),
        ("prod", "etcd-5", "ignored", Some(own_options)),
        ("old", "etcd-6", "ignored", Some("lists do not reach static pods")),
    ] {
        let of_the_pod =
            shown["pods"].as_array().expect("pods").iter().find(|pod| pod["pod"] == name).expect("the pod");
        let ports = of_the_pod["revocation"].as_array().expect("ports");
        assert_eq!(ports.iter().map(|port| &port["port"]).collect::<Vec<_>>(), ["peer", "client"], "{of_the_pod}");
        for port in ports {
            assert_eq!(port["enforced"], reason.is_none(), "{port}");
            let said = port["reason"].as_str();
            assert!(said.zip(reason).map_or(said == reason, |(said, reason)| said.contains(reason)), "{port}");
        }
        let lines: Vec<&str> = wide.lines().filter(|line| line.split_whitespace().nth(1) == Some(name)).collect();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.split_whitespace().any(|w| w == word)), "{wide}");
        // Nobody meant that, so somebody should know.
        let findings = of_the_pod["findings"].as_array().expect("findings").iter();
        let found = findings.filter(|f| f["reason"].as_str().is_some_and(|reason| reason.contains("revoked"))).count();
        let unmeant = ["etcd-2", "etcd-3", "etcd-4"].contains(&name);
        assert_eq!(found, usize::from(unmeant), "{of_the_pod}");

        let mut check = Command::new(binary("etcd-tls-webhook"));
        check.args(["check", "pod", name, "-n", namespace]).env("KUBECONFIG", &kubeconfig);
        let said = text(&check.output().expect("run check").stdout);
        let expected = reason.map_or_else(
            || "its etcd refuses revoked certificates".to_owned(),
            |reason| format!("takes revoked certificates on its peer and client port: {reason}"),
        );
        assert_eq!(said.matches(&expected).count(), 1, "{said}");
    }
}
