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

#[path = "inject/edited.rs"]
mod edited;

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

/// docs/plain-text-to-tls.md: its annotations for a container beside etcd are those of the shape `member-and-backup`, in which both
/// containers get their certificates. With the one container alone, etcd would get none.
#[test]
fn a_container_beside_etcd_gets_its_certificate_by_the_annotations_of_the_page() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plain-text-to-tls.md");
    let page = fs::read_to_string(page).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("    etcd-tls.dev/")).map(str::trim).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let shape = fs::read_to_string(directory().join("member-and-backup.yaml")).unwrap();
    assert!(lines.iter().all(|line| shape.contains(line)), "{lines:?}");
    let gets = |shape: &str| {
        let injected = inject(shape, &options()).unwrap().text;
        ["ETCD_PEER_CERT_FILE", "ETCD_CERT_FILE", "ETCDCTL_CERT"]
            .map(|name| injected.contains(&format!("name: {name}\n")))
    };
    assert_eq!(gets(&shape), [true; 3]);
    let alone = shape.replace("peer,server,client", "client").replace("etcd,backup", "backup");
    assert_eq!(gets(&alone), [false, false, true]);
}
