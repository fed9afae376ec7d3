//! Manifests that were edited after the injection.

use std::fs;

use serde_json::json;

use crate::{INJECT, directory, piped, without_originals};

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
