//! Real-world shapes of etcd pods, each with what it becomes: `X.yaml` -> `X.injected.yaml` and the warnings that go with
//! it, or the reasons why it is refused. Each result is injected into once more and must not change.
//!
//! `UPDATE_GOLDEN=1 cargo test -p etcd-tls-webhook --test golden` writes the results anew, for review.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_webhook::{
    inject::{Options, inject},
    injection::Config,
};
use serde_json::json;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn options() -> Options {
    let injection = Config { sidecar_image: "etcd-tls-sidecar:golden".to_owned(), ..Config::default() };
    Options { injection, namespace: "default".to_owned() }
}

fn inputs() -> Vec<PathBuf> {
    let mut inputs: Vec<PathBuf> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            !name.contains(".injected.") && !name.ends_with(".txt")
        })
        .collect();
    inputs.sort();
    inputs
}

/// Compares with the file, or writes it if asked; returns the difference.
fn compare(path: &Path, text: &str) -> Option<String> {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        if text.is_empty() {
            let _ = fs::remove_file(path);
        } else {
            fs::write(path, text).unwrap();
        }
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == text {
        return None;
    }
    let line = expected.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or_else(|| expected.lines().count().min(text.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("<end>").to_owned();
    Some(format!("{}:{}: expected {:?}, got {:?}", path.display(), line + 1, at(&expected), at(text)))
}

#[test]
fn every_shape_becomes_what_it_became() {
    let inputs = inputs();
    assert!(inputs.len() >= 30, "only {} shapes", inputs.len());
    let mut differences = Vec::new();
    for input in &inputs {
        let stem = input.file_stem().unwrap().to_str().unwrap();
        let extension = input.extension().unwrap().to_str().unwrap();
        let beside = |name: String| input.with_file_name(name);
        let text = fs::read_to_string(input).unwrap();
        let refused = beside(format!("{stem}.refused.txt"));
        match inject(&text, &options()) {
            Ok(injected) => {
                let again =
                    inject(&injected.text, &options()).unwrap_or_else(|e| panic!("{stem}, injected twice: {e}"));
                assert_eq!(again.text, injected.text, "{stem}: injecting twice changed something");
                differences.extend(compare(&beside(format!("{stem}.injected.{extension}")), &injected.text));
                let warnings: String = injected.warnings.iter().map(|warning| format!("{warning}\n")).collect();
                differences.extend(compare(&beside(format!("{stem}.warnings.txt")), &warnings));
                assert!(!refused.exists(), "{stem} was refused once and is not any more");
            }
            Err(error) => {
                assert!(stem.starts_with("refused-"), "{stem}: {error}");
                differences.extend(compare(&refused, &format!("{error}\n")));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The component without-webhook has what the command writes.
#[test]
fn the_shipped_policies_are_current() {
    let output = binary().args(["inject", "--policy", "--image-of-pod-template"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/components/without-webhook/policies.yaml");
    let difference = compare(&path, &text);
    assert!(difference.is_none(), "UPDATE_GOLDEN=1 writes it anew: {difference:?}");
    let output = binary().args(["inject", "--policy", "-f", "pod.json"]).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
}

/// Earlier builds did not bring the annotation `renew` to the sidecar.
#[test]
fn a_manifest_that_an_earlier_build_injected_into_stays_as_it_is() {
    let text = fs::read_to_string(directory().join("restricted.injected.yaml")).unwrap();
    let item = "\n          - path: renew\n            fieldRef:\n              apiVersion: v1\n              fieldPath: 'metadata.annotations[''etcd-tls.dev/renew'']'";
    let before = text.replace(item, "");
    assert_ne!(before, text);
    assert_eq!(inject(&before, &options()).unwrap().text, before);
    let stranger = text.replace("etcd-tls.dev/renew", "example.com/renew");
    let error = inject(&stranger, &options()).unwrap_err().to_string();
    assert!(error.contains("volume etcd-tls-token is not etcd-tls's own"), "{error}");
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_etcd-tls-webhook"));
    command.env_remove("SIDECAR_IMAGE").env_remove("SIDECAR_PULL_POLICY").current_dir(directory());
    command
}

#[test]
fn the_command_reads_files_and_standard_input() {
    let mut child = binary()
        .args(["inject", "-f", "list.yaml", "--sidecar-image=etcd-tls-sidecar:golden", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(directory().join("ipv6.yaml")).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let file = |name: &str| fs::read_to_string(directory().join(name)).unwrap();
    let expected = format!("{}---\n{}", file("list.injected.yaml"), file("ipv6.injected.yaml"));
    assert_eq!(without_originals(&String::from_utf8(output.stdout).unwrap()), expected);
    assert!(stderr.lines().any(|line| line.starts_with("Warning: list.yaml: Pod web: ")), "{stderr}");
    assert!(stderr.lines().any(|line| line.starts_with("Warning: -: Pod etcd: ")), "{stderr}");
}

#[test]
fn a_refusal_writes_nothing_and_fails() {
    let output = binary().args(["inject", "-f", "list.yaml", "-f", "refused-script-file.yaml"]).output().unwrap();
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("refused-script-file.yaml: Pod etcd: "), "{stderr}");
    let output = binary().args(["inject", "-f", "missing.yaml"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing.yaml"));
}

/// The text without the comments that keep what each document was.
fn without_originals(text: &str) -> String {
    let mut within = false;
    let kept = |line: &&str| {
        within = line.starts_with("# etcd-tls.dev/original: ") || (within && line.starts_with("# "));
        !within
    };
    text.split_inclusive('\n').filter(kept).collect()
}

fn piped(arguments: &[&str], input: &str) -> (bool, String, String) {
    let (pipe, mut command) = (Stdio::piped, binary());
    let mut child = command.args(arguments).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

const INJECT: [&str; 3] = ["inject", "-f", "-"];

#[test]
fn uninject_gives_back_what_inject_wrote_byte_for_byte() {
    let mut tried = 0;
    for input in inputs() {
        let text = fs::read_to_string(&input).unwrap();
        let crlf = text.replace('\n', "\r\n");
        let options: &[&str] = if input.ends_with("kubeadm-static-pod.yaml") { &["--static"] } else { &[] };
        let crlf =
            ["multi-document.yaml", "kubeadm-static-pod.yaml"].iter().any(|name| input.ends_with(name)).then_some(crlf);
        for text in std::iter::once(text).chain(crlf) {
            let (fine, injected, _) = piped(&[&INJECT[..], options].concat(), &text);
            if !fine || injected == text {
                continue;
            }
            let (fine, back, stderr) = piped(&["uninject", "-f", "-"], &injected);
            assert!(fine, "{}: {stderr}", input.display());
            assert_eq!(back, text, "{} {options:?}", input.display());
            tried += 1;
        }
    }
    assert!(tried >= 30, "only {tried}");
}

/// Of JSON an annotation keeps the original, for JSON has no comments.
#[test]
fn uninject_gives_back_json_byte_for_byte() {
    let pod = fs::read_to_string(directory().join("pod.json")).unwrap();
    let compact = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let member = compact(&pod);
    let template = json!({"metadata": member["metadata"], "spec": member["spec"]});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "etcd"},
        "spec": {"serviceName": "etcd", "selector": {"matchLabels": {"a": "b"}}, "template": template},
    });
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "\u{e9}"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [other, set, member]});
    let typed = json!({"apiVersion": "apps/v1", "kind": "StatefulSetList", "items": [{"metadata": {"name": "etcd"}, "spec": set["spec"]}]});
    let with = |annotations: serde_json::Value| {
        let mut set = set.clone();
        set["metadata"]["annotations"] = annotations;
        set
    };
    for text in [
        pod.clone(),
        pod.replace('\n', "\r\n"),
        format!("\n\t {set}\n\n"),
        format!("{other}\n{set}{pod}  \n"),
        serde_json::to_string_pretty(&list).unwrap(),
        json!({"apiVersion": "v1", "kind": "List", "items": [list]}).to_string(),
        typed.to_string(),
        with(json!({})).to_string(),
        with(json!({"a": "b", "inject.etcd-tls.dev/original": "sha256:of nobody"})).to_string(),
    ] {
        let (fine, injected, stderr) = piped(&INJECT, &text);
        assert!(fine && injected != text && injected.contains("etcd-tls-sidecar"), "{stderr}");
        assert_eq!(piped(&INJECT, &injected).1, injected, "injecting twice changes nothing");
        let (fine, back, stderr) = piped(&["uninject", "-f", "-"], &injected);
        assert!(fine && back == text, "{text:?} became {back:?}: {stderr}");
        // Another image injects anew, as if for the first time.
        let newer = ["inject", "-f", "-", "--sidecar-image=etcd-tls-sidecar:2"];
        let (_, second, stderr) = piped(&newer, &injected);
        assert!(stderr.contains("injected anew"), "{stderr}");
        assert_eq!(second, piped(&newer, &text).1);
    }

    let injected = piped(&INJECT, &set.to_string()).1;
    let pretty = serde_json::to_string_pretty(&compact(&injected)).unwrap();
    assert_eq!(piped(&INJECT, &pretty).1, pretty, "written in another way, it is the same");
    assert_eq!(piped(&["uninject", "-f", "-"], &pretty).1, set.to_string());
    let mut live = compact(&injected);
    live["status"] = json!({"replicas": 3});
    let mut large = set.clone();
    large["metadata"]["labels"] = json!({"a": "b".repeat(48 * 1024)});
    let (fine, large, stderr) = piped(&INJECT, &large.to_string());
    assert!(fine && stderr.contains("document 1: uninject cannot give it back"), "{stderr}");
    for (text, why) in [(live.to_string(), "changed since"), (large, "JSON of more than 48 KiB")] {
        let (fine, out, stderr) = piped(&["uninject", "-f", "-"], &text);
        assert!(!fine && out.is_empty() && stderr.contains("StatefulSet etcd: ") && stderr.contains(why), "{stderr}");
    }
}

/// Anyone who may read a workload reads its annotations, a Deployment's in its ReplicaSets, too.
#[test]
fn an_item_of_a_json_list_keeps_nothing_of_the_other_items() {
    let set = |namespace: &str, value: &str| {
        let pod = json!({"containers": [{"name": "etcd", "image": "etcd", "env": [{"name": "A", "value": value}]}]});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "etcd", "namespace": namespace},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}},
        })
    };
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"key": "aHVudGVyMg=="}});
    let inner = json!({"apiVersion": "v1", "kind": "List", "items": [secret, set("two", "of-two")]});
    let list = json!({"kind": "List", "apiVersion": "v1", "items": [secret, set("one", "of-one"), inner, secret]});
    for text in [list.to_string(), serde_json::to_string_pretty(&list).unwrap(), format!("{list:#}\n{list}\n")] {
        let (fine, injected, stderr) = piped(&INJECT, &text);
        assert!(fine && !stderr.contains("uninject cannot"), "{stderr}");
        let documents = serde_json::Deserializer::from_str(&injected).into_iter::<serde_json::Value>();
        for document in documents.map(Result::unwrap) {
            for item in [&document["items"][1], &document["items"][2]["items"][1]] {
                assert!(
                    item["spec"]["template"]["metadata"]["annotations"].get("inject.etcd-tls.dev/original").is_none()
                );
                let kept = item["metadata"]["annotations"]["inject.etcd-tls.dev/original"].as_str().unwrap();
                let kept = STANDARD.decode(kept.split_once(' ').unwrap().1).unwrap();
                let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
                let namespace = item["metadata"]["namespace"].as_str().unwrap();
                assert_eq!(kept, set(namespace, &format!("of-{namespace}")), "its own, and nothing else");
            }
            assert_eq!(document["items"][0], secret);
            assert!(document["metadata"].is_null() && document["items"][2]["metadata"].is_null(), "{document}");
        }
        assert_eq!(piped(&["uninject", "-f", "-"], &injected).1, text);
    }
    // Later additions to the list stay; an injected part that keeps nothing is removed.
    let mut injected: serde_json::Value = serde_json::from_str(&piped(&INJECT, &list.to_string()).1).unwrap();
    injected["items"][0]["data"]["key"] = "bmV3".into();
    let back = piped(&["uninject", "-f", "-"], &injected.to_string()).1;
    assert_eq!(back, list.to_string().replacen("aHVudGVyMg==", "bmV3", 1));
    let annotations = injected["items"][2]["items"][1]["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.remove("inject.etcd-tls.dev/original");
    let (fine, out, stderr) = piped(&["uninject", "-f", "-"], &injected.to_string());
    assert!(!fine && out.is_empty() && stderr.contains("does not hold what it was before"), "{stderr}");
}

#[test]
fn another_image_and_other_options_inject_anew_and_say_so() {
    let text = format!("# a comment\n{}", fs::read_to_string(directory().join("multi-document.yaml")).unwrap());
    let with = |options: &[&str], text: &str| {
        let (fine, out, stderr) = piped(&[&INJECT[..], options].concat(), text);
        assert!(fine, "{stderr}");
        (out, stderr)
    };
    let (first, stderr) = with(&["--sidecar-image=etcd-tls-sidecar:1"], &text);
    assert!(!stderr.contains("anew"), "{stderr}");
    let (same, stderr) = with(&["--sidecar-image=etcd-tls-sidecar:1"], &first);
    assert_eq!(same, first);
    assert!(!stderr.contains("anew"), "{stderr}");
    let newer = ["--sidecar-image=etcd-tls-sidecar:2", "--sidecar-resources=limits.memory=99Mi"];
    let (second, stderr) = with(&newer, &first);
    assert!(stderr.contains("injected anew") && stderr.contains("etcd-tls-sidecar:2"), "{stderr}");
    assert_eq!(second, with(&newer, &text).0, "as if it had been injected for the first time");
    assert_eq!(piped(&["uninject", "-f", "-"], &second).1, text);

    // Changed by hand, or from the API server: the image is changed and said, and there is nothing to give back.
    let edited = first.replace("name: etcd\n", "name: etcd\n  # mine\n");
    for (text, said) in [
        (edited, "injected anew, for it was changed since it was injected"),
        (without_originals(&first), "the image was etcd-tls-sidecar:1 and is now etcd-tls-sidecar:2"),
    ] {
        let (out, stderr) = with(&["--sidecar-image=etcd-tls-sidecar:2"], &text);
        assert!(stderr.contains(said) && stderr.contains("is now etcd-tls-sidecar:2"), "{stderr}");
        assert!(!out.contains("etcd-tls-sidecar:1"));
        let (fine, out, stderr) = piped(&["uninject", "-f", "-"], &text);
        assert!(!fine && out.is_empty() && stderr.contains("it was injected, and"), "{stderr}");
    }
}

/// The value of a document without what `uninject` needs.
fn read(text: &str) -> serde_json::Value {
    let mut value: serde_json::Value = serde_saphyr::from_str(&without_originals(text)).unwrap();
    if let Some(annotations) = value["metadata"].get_mut("annotations").and_then(serde_json::Value::as_object_mut) {
        annotations.remove("inject.etcd-tls.dev/original");
    }
    value
}

/// Injects into `manifest`, edits what comes out as `edit` says, and injects again: that has to be what the injection of the edited
/// manifest is, but for the order of fields. Returns it, and what was said.
#[track_caller]
fn edited_after(manifest: &str, edit: &dyn Fn(&str) -> String) -> (String, String) {
    let (fine, first, stderr) = piped(&INJECT, manifest);
    assert!(fine, "{stderr}");
    let edited = edit(&first);
    assert_ne!(edited, first);
    let (fine, again, stderr) = piped(&INJECT, &edited);
    assert!(fine, "{stderr}");
    let before = edit(manifest);
    assert_ne!(before, manifest);
    let (fine, at_once, said) = piped(&INJECT, &before);
    assert!(fine, "{said}");
    assert_eq!(read(&again), read(&at_once), "{edited}");
    // Once more it stays as it is, and uninject gives back the manifest with the edit.
    let (fine, third, said) = piped(&INJECT, &again);
    assert!(fine && third == again && !said.contains("anew"), "{said}");
    let (fine, back, said) = piped(&["uninject", "-f", "-"], &again);
    assert!(fine, "{said}");
    assert_eq!(read(&back), read(&before));
    (again, stderr)
}

/// A manifest that was edited after the injection: the sidecar is told what is so now.
#[test]
fn an_edited_manifest_is_injected_anew_and_says_so() {
    let member = fs::read_to_string(directory().join("restricted.yaml")).unwrap();
    let member = member.replace("  name: etcd\nspec", "  name: etcd\n  annotations:\n    a: b\nspec");
    let annotate = |annotation: &str| ("    a: b\n".to_owned(), format!("    a: b\n    etcd-tls.dev/{annotation}\n"));
    let words = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    for ((from, to), wanted) in [
        (
            words("--listen-client-urls=https://0.0.0.0:2379", "--listen-client-urls=https://0.0.0.0:12379"),
            "- --client-url=https://127.0.0.1:12379\n",
        ),
        (
            words("--listen-peer-urls=https://0.0.0.0:2380", "--listen-peer-urls=https://0.0.0.0:12380"),
            "- --peer-url=https://127.0.0.1:12380\n",
        ),
        (words("runAsUser: 2379\n", "runAsUser: 2400\n"), "      runAsUser: 2400\n"),
        (annotate("duration: 48h"), "- --duration=48h\n"),
        (annotate("roles: peer,server,client"), "- --roles=peer,server,client\n"),
        (annotate("reload: none"), "- --reload=none\n"),
        (annotate("reload: probe"), "/etc/etcd/tls/probe/etcd-tls-probe\n"),
        (annotate("mount-path: /tls"), "value: /tls/server/tls.crt\n"),
        (annotate("log-level: debug"), "value: debug\n"),
        (annotate("resources: limits.memory=99Mi"), "memory: 99Mi\n"),
        (annotate("trust: configmap/ca\n    etcd-tls.dev/issuer: csr:example.com/a"), "csr:example.com/a\n"),
        // Without lists the options that name them go, too: etcd would refuse everybody without the files.
        (annotate("revocation: 'off'"), "ETCD_CERT_FILE"),
    ] {
        let edit = |text: &str| text.replacen(&from, &to, 1);
        let (again, stderr) = edited_after(&member, &edit);
        assert!(stderr.contains("injected anew, for it was changed since it was injected ("), "{to}: {stderr}");
        assert!(again.contains(wanted), "{wanted}: {again}");
        let lists = !to.contains("revocation") && !to.contains("issuer");
        assert_eq!(again.contains("_CRL_FILE"), lists, "{to}");
    }
    // An edit of what the injection does not look at: it stays byte for byte.
    let (_, first, _) = piped(&INJECT, &member);
    let (fine, same, stderr) = piped(&INJECT, &first.replacen("a: b\n", "a: c\n", 1));
    assert!(fine && same == first.replacen("a: b\n", "a: c\n", 1) && !stderr.contains("anew"), "{stderr}");
    // A neighbour that came since: its user decides, as if it had been there.
    let agent = "  containers:\n  - name: agent\n    image: agent\n    securityContext:\n      runAsUser: 0\n      runAsNonRoot: false\n";
    let (again, stderr) = edited_after(&member, &|text| text.replacen("  containers:\n", agent, 1));
    assert!(!again.contains("--can-signal") && !again.contains("shareProcessNamespace"), "{stderr}: {again}");
    assert!(stderr.contains("container agent runs as root and could read etcd's keys"), "{stderr}");
    // A script that cannot be read is refused as it would be at once.
    let (fine, out, stderr) = piped(&INJECT, &first.replacen("- etcd\n", "- /start.sh\n", 1));
    assert!(!fine && out.is_empty() && stderr.contains("so the flags of etcd are unknown"), "{stderr}");
    // Another object behind the same comments, and another program under the name of ours, are not taken for what was injected.
    let (fine, _, stderr) = piped(&INJECT, &without_originals(&first).replacen("    - run\n", "    - other\n", 1));
    assert!(!fine && stderr.contains("container etcd-tls-sidecar is not etcd-tls's own"), "{stderr}");
    let other = first.replacen("  name: etcd\n", "  name: other\n", 1);
    let (fine, out, stderr) = piped(&INJECT, &other);
    assert!(fine && out == other, "{stderr}");
}

/// Of variables, mounts and probes below the mount some are their author's own.
#[test]
fn an_edited_manifest_keeps_what_its_author_wrote() {
    let pod = |annotations: serde_json::Value, container: serde_json::Value| {
        let mut etcd = json!({
            "name": "etcd", "image": "etcd", "securityContext": {"runAsUser": 1000},
            "command": ["etcd", "--listen-client-urls=https://0.0.0.0:2379", "--listen-peer-urls=https://0.0.0.0:2380"],
        });
        for (key, value) in container.as_object().unwrap() {
            etcd[key] = value.clone();
        }
        let metadata = json!({"name": "etcd", "annotations": annotations});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [etcd]}})
    };
    let own = |names: &[(&str, &str)]| {
        let all: Vec<_> = names.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        json!({"env": all})
    };
    let none = json!({"etcd-tls.dev/options": "none"});
    let auto = json!({"a": "b"});
    let probed = pod(
        json!({"a": "b", "etcd-tls.dev/reload": "probe"}),
        json!({"livenessProbe": {
            "httpGet": {"host": "127.0.0.1", "port": 2381, "path": "/health"}, "timeoutSeconds": 1, "periodSeconds": 9,
        }}),
    );
    let shapes = [
        // Whoever gives etcd its files by own variables.
        pod(
            none,
            own(&[
                ("ETCD_CERT_FILE", "/etc/etcd/tls/server/tls.crt"),
                ("ETCD_KEY_FILE", "/etc/etcd/tls/server/tls.key"),
                ("ETCD_CLIENT_CERT_AUTH", "true"),
                ("ETCDCTL_CACERT", "/etc/etcd/tls/client/ca.crt"),
            ]),
        ),
        // Variables of other programs, and etcdctl's without the client's role.
        pod(
            auto.clone(),
            own(&[
                ("ETCDCTL_CACERT", "/etc/etcd/tls/server/ca.crt"),
                ("ETCD_BACKUP_CERT_FILE", "/etc/etcd/tls/client/tls.crt"),
                ("ETCD_PEER_CLIENT_CERT_AUTH", "false"),
            ]),
        ),
        // The volume at another path, and a probe with a host of its own.
        pod(auto.clone(), json!({"volumeMounts": [{"name": "etcd-tls", "mountPath": "/mine"}]})),
        probed.clone(),
    ];
    for shape in shapes {
        for text in [format!("---\n{shape}\n"), format!("{shape:#}\n")] {
            for (from, to) in [("0.0.0.0:2379", "0.0.0.0:12379"), ("0.0.0.0:2380", "0.0.0.0:12380")] {
                let (again, _) = edited_after(&text, &|text| text.replacen(from, to, 1));
                let again = read(&again);
                let etcd = &again["spec"]["containers"][0];
                for variable in shape["spec"]["containers"][0]["env"].as_array().into_iter().flatten() {
                    assert!(etcd["env"].as_array().unwrap().contains(variable), "{variable}: {etcd}");
                }
            }
        }
    }
    let edit = |text: &str| text.replace("\"etcd-tls.dev/reload\": \"probe\"", "\"etcd-tls.dev/reload\": \"none\"");
    let (again, _) = edited_after(&format!("{probed:#}\n"), &edit);
    assert_eq!(
        read(&again)["spec"]["containers"][0]["livenessProbe"],
        probed["spec"]["containers"][0]["livenessProbe"]
    );
    // The pod's own word on its process namespace, given after the injection.
    let text = format!("---\n{}\n", pod(auto, json!({})));
    let (_, first, _) = piped(&INJECT, &text);
    assert!(first.contains("shareProcessNamespace: true"), "{first}");
    let (fine, again, stderr) =
        piped(&INJECT, &first.replace("shareProcessNamespace: true", "shareProcessNamespace: false"));
    assert!(
        fine && again.contains("shareProcessNamespace: false") && !again.contains("--can-signal"),
        "{stderr}: {again}"
    );
    assert!(stderr.contains("the pod says shareProcessNamespace: false"), "{stderr}");
    // What was tuned by hand stays, where nothing else is to change.
    let tuned = first.replacen("cpu: 500m", "cpu: 600m", 1);
    assert_ne!(tuned, first);
    let (fine, out, stderr) = piped(&INJECT, &tuned);
    assert!(fine && out == tuned, "{stderr}");
    // It does not where something else is: that is said.
    let both = tuned.replacen("shareProcessNamespace: true", "shareProcessNamespace: false", 1);
    let (fine, out, stderr) = piped(&INJECT, &both);
    assert!(fine && !out.contains("cpu: 600m"), "{out}");
    assert!(
        stderr.contains("set by hand and now as injected: ") && stderr.contains(".resources.limits.cpu"),
        "{stderr}"
    );
    assert!(
        stderr.contains("uninject now gives back the manifest with these changes, without its comments"),
        "{stderr}"
    );
}

/// `text` with a line `more` behind each line `line`, as far to the right.
fn line_behind(text: &str, line: &str, more: &[&str]) -> String {
    let mut out = String::new();
    for of in text.split_inclusive('\n') {
        out.push_str(of);
        let indent = &of[..of.len() - of.trim_start().len()];
        if of.trim() == line {
            out.extend(more.iter().map(|more| format!("{indent}{more}\n")));
        }
    }
    assert_ne!(out, text, "{line}");
    out
}

/// Of an older version's additions nothing stays, although this version does not make them. The same words of the author's stay.
#[test]
fn an_edited_manifest_of_an_older_version_keeps_none_of_its_additions() {
    let member = fs::read_to_string(directory().join("restricted.yaml")).unwrap();
    let member = member.replace("  name: etcd\nspec", "  name: etcd\n  annotations:\n    a: b\nspec");
    let of_kubelet = fs::read_to_string(directory().join("pod-certificate.yaml")).unwrap();
    // By an older version's judgement the signal could reach etcd.
    let silent = member.replace("    a: b\n", "    a: b\n    etcd-tls.dev/reload: none\n");
    let port = |text: &str| text.replacen("0.0.0.0:2379", "0.0.0.0:12379", 1);
    let is_injected = |text: &str| text.contains("name: etcd-tls-sidecar");
    let (again, _) = edited_after(&silent, &|text| match is_injected(text) {
        true => line_behind(
            &port(&text.replacen("\nspec:\n", "\nspec:\n  shareProcessNamespace: true\n", 1)),
            "- --roles=peer,server",
            &["- --can-signal"],
        ),
        false => port(text),
    });
    assert!(!again.contains("shareProcessNamespace"), "{again}");
    // It shares its namespace by its author's word: the sidecar had no right to signal.
    let share = |text: &str| port(&text.replacen("\nspec:\n", "\nspec:\n  shareProcessNamespace: true\n", 1));
    let (again, _) = edited_after(&silent, &share);
    assert!(again.contains("shareProcessNamespace: true"), "{again}");
    // It gave lists to all.
    let unlisted = member.replace("    a: b\n", "    a: b\n    etcd-tls.dev/revocation: 'off'\n");
    let lists = ["- name: ETCD_PEER_CRL_FILE", "  value: /etc/etcd/tls/peer/ca.crl"];
    let listed = |text: &str| {
        let behind = line_behind(text, "value: /etc/etcd/tls/server/ca.crt", &["LISTS"]);
        let indent = "    ";
        let lists = lists.map(|line| format!("{indent}{line}\n")).concat();
        let text: String = behind
            .split_inclusive('\n')
            .map(|line| if line.trim() == "LISTS" { lists.as_str() } else { line })
            .collect();
        line_behind(&text, "- --roles=peer,server", &["- --revocation-lists"])
    };
    let (again, _) = edited_after(&unlisted, &|text| if is_injected(text) { listed(&port(text)) } else { port(text) });
    assert!(!again.contains("_CRL_FILE"), "{again}");
    // Key and chain were two files.
    let longer = |text: &str| text.replacen("duration: 48h", "duration: 47h", 1);
    let (again, _) = edited_after(&of_kubelet, &|text| match is_injected(text) {
        true => {
            let mut text = longer(text);
            for role in ["peer", "server"] {
                let file = |file: &str| format!("_KEY_FILE\n          value: /etc/etcd/tls/{role}/{file}\n");
                assert!(text.contains(&file("tls.crt")), "{text}");
                text = text.replace(&file("tls.crt"), &file("tls.key"));
            }
            line_behind(&text, "- --roles=peer,server,client", &["- --older"])
        }
        false => longer(text),
    });
    assert!(again.contains("/server/tls.crt") && !again.contains("tls.key"), "{again}");
    // The probe of an older version had another timeout.
    let probed = fs::read_to_string(directory().join("reload-probe.yaml")).unwrap();
    let at = |text: &str| text.replacen(":2379", ":12379", 1);
    let (again, _) = edited_after(&probed, &|text| match is_injected(text) {
        true => {
            let (head, tail) = text.split_once("--timeout=").unwrap();
            let (_, tail) = tail.split_once('\n').unwrap();
            at(&format!("{head}--timeout=99\n{tail}"))
        }
        false => at(text),
    });
    assert!(!again.contains("--timeout=99"), "{again}");
}
