//! The readers of foreign bytes, each with the properties that must hold for all bytes. `make fuzz` runs the targets under
//! libFuzzer; a test runs them over the corpora in `tests/fuzz`, and over changes of these.

mod http;
mod mutate;
mod patch;

use std::{collections::BTreeMap, path::Path, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    crl::Crl,
    csr::Request,
    in_force::BundlesInForce,
    policy::Policy,
    settings::Settings,
};
use etcd_tls_sidecar::kube::{http::Credentials, kubeconfig::HostCredentials};
use etcd_tls_webhook::{
    admit::review::{Admission, Verdict, mutate, warn},
    inject::{self, inject},
    injection::Config,
    standalone::{auth::tokens::Tokens, codec, requests::approval::Change},
};
use serde_json::{Value, json};

pub use mutate::Changes;

use crate::temp::TempDir;

/// A reader and the properties that must hold for every input. A violation is a panic.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and its corpus' folder in `tests/fuzz`.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 12] = [
    Target { name: "review", run: review },
    Target { name: "command-line", run: command_line },
    Target { name: "csr", run: csr },
    Target { name: "csr-object", run: csr_object },
    Target { name: "http", run: http::run },
    Target { name: "manifest", run: manifest },
    Target { name: "annotations", run: annotations },
    Target { name: "certificates", run: certificates },
    Target { name: "crl", run: crl },
    Target { name: "tokens", run: tokens },
    Target { name: "kubeconfig", run: kubeconfig },
    Target { name: "policy", run: policy },
];

static ADMISSION: LazyLock<Admission> = LazyLock::new(|| Admission {
    injection: Config { sidecar_image: "etcd-tls-sidecar:fuzz".to_owned(), ..Config::default() },
    leave_out: std::iter::once("kube-system".to_owned()).collect(),
});

/// The bytes of an AdmissionReview. A patch means the same to two implementations, and a second review adds nothing.
fn review(bytes: &[u8]) {
    let _ = warn(bytes, &ADMISSION);
    let Ok(answer) = mutate(bytes, &ADMISSION) else { return };
    let body: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
    let response = &body["response"];
    assert_eq!(response["allowed"] == true, answer.verdict != Verdict::Refuse, "{body}");
    let warnings = response["warnings"].as_array().into_iter().flatten();
    for warning in warnings.filter_map(Value::as_str) {
        // The API server's bound on a warning is in characters.
        let length = warning.chars().count();
        assert!(length <= 256, "a warning of {length} characters: {warning}");
    }
    let Some(encoded) = response["patch"].as_str() else { return };
    let operations = STANDARD.decode(encoded).expect("base64");
    let read: Value = serde_json::from_slice(bytes).expect("a reviewed body is JSON");
    let object = &read["request"]["object"];
    let operations: Value = serde_json::from_slice(&operations).expect("a patch is JSON");
    let ours = patch::apply(object, &operations).expect("the patch applies");
    let mut theirs = object.clone();
    let parsed: json_patch::Patch = serde_json::from_value(operations.clone()).expect("a patch");
    json_patch::patch(&mut theirs, &parsed).expect("the patch applies");
    assert_eq!(ours, theirs, "two readers of {operations}");

    let mut again = read;
    again["request"]["object"] = ours;
    let answer = mutate(again.to_string().as_bytes(), &ADMISSION).expect("an injected pod is readable");
    let body: Value = serde_json::from_slice(&answer.body).expect("an answer is JSON");
    assert_eq!(body["response"]["patch"], Value::Null, "a second review changes something: {body}");
    assert_eq!(body["response"]["allowed"], true, "an injected pod is refused: {body}");
}

/// A script of a pod's main container.
fn command_line(bytes: &[u8]) {
    let Ok(script) = std::str::from_utf8(bytes) else { return };
    for command in [json!(["/bin/sh", "-ec", script]), json!(["bash", "-c", script, "etcd", "--name=a"])] {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "etcd-0", "labels": {"etcd-tls": "dynamic"}},
            "spec": {"containers": [{"name": "etcd", "image": "etcd", "command": command}]},
        });
        review(crate::admission::review("705ab4f5-6393-11e8-b7cc-42010a800002", "prod", &pod).to_string().as_bytes());
    }
}

/// PEM or DER of a certificate signing request.
fn csr(bytes: &[u8]) {
    for pem in [bytes.to_vec(), pem("CERTIFICATE REQUEST", bytes)] {
        let Ok(request) = Request::parse(&pem) else { continue };
        let digest = request.key_digest();
        let again = Request::parse(&pem).expect("the same bytes");
        assert_eq!(again.key_digest(), digest);
        assert!(pem.len() <= 64 * 1024, "a request of {} bytes", pem.len());
    }
}

/// A CertificateSigningRequest object, and changes to one, as standalone takes them.
fn csr_object(bytes: &[u8]) {
    for media in ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"] {
        if let Ok(object) = codec::object(media, bytes) {
            // Not the same to the last digit of a float, of which the resource has none.
            let again = codec::object("application/json", object.to_string().as_bytes());
            assert!(again.is_ok(), "a decoded object is refused: {object}");
        }
    }
    for media in ["application/json-patch+json", "application/merge-patch+json"] {
        let _ = Change::read(true, media, bytes);
    }
}

/// Manifests. A manifest without a pod of ours passes byte for byte; an injected one is left unchanged the next time.
fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let options = inject::Options { injection: ADMISSION.injection.clone(), namespace: "default".to_owned() };
    let Ok(injected) = inject(text, &options) else { return };
    let Ok(again) = inject(&injected.text, &options) else { panic!("an injected manifest is refused") };
    assert_eq!(again.text, injected.text, "a second injection changes something");
}

/// A JSON object of annotations.
fn annotations(bytes: &[u8]) {
    let Ok(annotations) = serde_json::from_slice::<BTreeMap<String, String>>(bytes) else { return };
    if let Ok(settings) = Settings::parse(&annotations) {
        assert!(settings.mount_path.split('/').all(|part| part != ".."), "{}", settings.mount_path);
    }
}

/// PEM or DER of certificates, with the signer's statement before them.
fn certificates(bytes: &[u8]) {
    for pem in [bytes.to_vec(), pem("CERTIFICATE", bytes)] {
        if let Ok(bundle) = Bundle::parse(&pem) {
            let again = Bundle::parse(bundle.to_pem().as_bytes()).expect("own output is readable");
            assert_eq!(again.digest(), bundle.digest());
        }
        if let Ok(chain) = Chain::parse(&pem) {
            Chain::parse(chain.to_pem().as_bytes()).expect("own output is readable");
        }
        let Ok(text) = std::str::from_utf8(&pem) else { continue };
        if let Ok(Some(stated)) = BundlesInForce::parse(text) {
            let again = BundlesInForce::parse(&stated.before("-----BEGIN CERTIFICATE-----\n"));
            assert_eq!(again, Ok(Some(stated)));
        }
    }
}

/// DER of a revocation list. The reader is strict: the same bytes are the same list, and a list replaces none with the same
/// number.
fn crl(bytes: &[u8]) {
    let Ok(list) = Crl::parse(bytes) else { return };
    assert_eq!(list.der(), bytes);
    assert_eq!(Crl::parse(bytes).expect("the same bytes").replaces(&list), Ok(false));
    assert!(list.entries().keys().all(|serial| serial.len() <= 40), "{list:?}");
    assert!(list.verify([bytes]).is_err(), "a list is no CA");
}

/// A token file.
fn tokens(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Tokens::parse(text);
    }
}

/// A kubeconfig, as a file.
fn kubeconfig(bytes: &[u8]) {
    static DIR: LazyLock<TempDir> = LazyLock::new(|| TempDir::new("fuzz-kubeconfig"));
    let file = DIR.path().join(format!("{:?}", std::thread::current().id()));
    std::fs::write(&file, bytes).expect("write");
    let _ = HostCredentials::new(&file, None).access();
    let _ = std::fs::remove_file(&file);
}

/// The policy.
fn policy(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Policy::parse(text);
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text.into_bytes()
}

/// The corpus of `target`, by file name.
///
/// # Panics
/// There is none.
pub fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = crate::repository().join("tests/fuzz").join(target.name);
    let mut seeds: Vec<_> = files(&dir).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "no corpus in {}", dir.display());
    seeds
}

fn files(dir: &Path) -> impl Iterator<Item = (String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| {
        let entry = entry.expect("an entry");
        (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("a seed"))
    })
}
