//! What a standalone signer stores, as its callers see it: byte for byte what they sent, also after the journal was written anew and
//! the signer was killed. By real processes.

use std::{collections::BTreeMap, fs};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, role::Role};
use serde_json::{Value, json};
use tests::signer::{ADMIN, BOOTSTRAP, Signer, V1, V1BETA1, assert_status, request, revoke, sans};

const OTHER: &str = "41b5d1e67c29a80f35e4c7b2d9608a13f4276c5be0918d3a74f2c6095eab18d7";
const RULES: [&str; 3] = [
    "--rate-limit=0",
    "--approve-group=system:bootstrappers:etcd=peer:10.0.0.0/8,*.example.com",
    "--approve-group=system:bootstrappers:etcd=client:first,last",
];

/// What an answer says of a request: name, `spec.request`, certificate, and annotations.
fn facts(object: &Value) -> (String, [Value; 3]) {
    let name = object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("{object}")).to_owned();
    let annotations = object["metadata"]["annotations"].clone();
    (name, [object["spec"]["request"].clone(), object["status"]["certificate"].clone(), annotations])
}

fn get(signer: &Signer, path: &str, accept: &str) -> String {
    let token = format!("Bearer {ADMIN}");
    let headers = [("Authorization", token.as_str()), ("Accept", accept)];
    let (code, body) = signer.try_ask("GET", path, &headers, b"", None).expect("an answer");
    assert_eq!(code, 200, "{path}: {body}");
    body
}

/// [`facts`] of all requests, by each way to read them.
fn read(signer: &Signer, names: &[&str]) -> Vec<(String, BTreeMap<String, [Value; 3]>)> {
    let json = "application/json";
    let object = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")) };
    let mut ways = Vec::new();
    for path in [V1, V1BETA1] {
        let list = object(&get(signer, path, json));
        ways.push((format!("list {path}"), list["items"].as_array().expect("items").iter().map(facts).collect()));
        let each = names.iter().map(|name| facts(&object(&get(signer, &format!("{path}/{name}"), json))));
        ways.push((format!("get {path}"), each.collect()));
        let events = get(signer, &format!("{path}?watch=true&timeoutSeconds=1"), json);
        let events = events.lines().filter(|line| line.starts_with('{')).map(object);
        let added = events.filter(|event| event["type"] == "ADDED").map(|event| facts(&event["object"])).collect();
        ways.push((format!("watch {path}"), added));
        let table = format!("{path}?includeObject=Object");
        let table = object(&get(signer, &table, "application/json;as=Table;v=v1;g=meta.k8s.io"));
        let rows = table["rows"].as_array().expect("rows").iter().map(|row| facts(&row["object"])).collect();
        ways.push((format!("table {path}"), rows));
    }
    ways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_comes_back_byte_for_byte_or_is_refused() {
    let mut signer = Signer::started(&RULES).await;
    let (object, _) = request("common", Role::Peer, "m1", &sans(&["m1.example.com"], &["10.0.0.1"]));
    let text = |object: &Value| object["spec"]["request"].as_str().expect("a request").to_owned();
    let pem = String::from_utf8(STANDARD.decode(text(&object)).expect("base64")).expect("PEM");
    let of = |name: &str, form: &str| {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        object["spec"]["request"] = json!(STANDARD.encode(form));
        // As `kubectl apply` leaves it: the request once more.
        object["metadata"]["annotations"] = json!({ "last-applied": object.to_string(), "request": text(&object) });
        object
    };
    let (begin, end) = ("-----BEGIN CERTIFICATE REQUEST-----\n", "-----END CERTIFICATE REQUEST-----\n");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let lines_of = |length: usize| -> String {
        let lines = body.as_bytes().chunks(length).map(|line| format!("{}\n", String::from_utf8_lossy(line)));
        format!("{begin}{}{end}", lines.collect::<String>())
    };
    assert_eq!(lines_of(64), pem);
    for (name, form) in [
        ("crlf", pem.replace('\n', "\r\n")),
        ("lines-of-48", lines_of(48)),
        ("lines-of-76", lines_of(76)),
        ("one-line", lines_of(body.len())),
        ("an-odd-line", pem.replacen(&body[..64], &format!("{}\n{}", &body[..20], &body[20..64]), 1)),
        ("a-space", pem.replacen('\n', " \n", 1)),
        ("a-header", pem.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1)),
        ("text-before", format!("Certificate Request:\n{pem}")),
        ("text-after", format!("{pem}# of m1\n")),
        ("an-empty-line-after", format!("{pem}\n")),
        ("twice", pem.repeat(2)),
        ("another-label", pem.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")),
    ] {
        assert_status(&signer.ask("POST", V1, BOOTSTRAP, &of(name, &form)), 422, "PEM");
        assert_eq!(signer.ask("GET", &format!("{V1}/{name}"), ADMIN, &Value::Null).0, 404, "{name}");
    }

    let mut expected = BTreeMap::new();
    let names = ["common", "without-the-last-line-feed"];
    for (name, form) in names.into_iter().zip([pem.as_str(), pem.trim_end()]) {
        let sent = of(name, form);
        let (code, created) = signer.ask("POST", V1, BOOTSTRAP, &sent);
        assert!(code == 201 && created["status"]["certificate"].is_string(), "{created}");
        let (name, [request, certificate, annotations]) = facts(&created);
        assert_eq!((&request, &annotations), (&sent["spec"]["request"], &sent["metadata"]["annotations"]));
        expected.insert(name, [request, certificate, annotations]);
    }
    for round in ["stored", "started again"] {
        for (way, found) in read(&signer, &names) {
            assert_eq!(found, expected, "{round}, {way}");
        }
        signer.process().kill();
        signer.start().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_was_written_anew_has_every_request_name_and_certificate() {
    const REQUESTS: usize = 420;
    let mut signer = Signer::new(&[&RULES[..], &["--cluster=kube-system/etcd"]].concat());
    let tokens = fs::read_to_string(signer.dir.join("tokens")).expect("tokens");
    signer.dir.write("tokens", format!("{tokens}{OTHER},other,3,system:bootstrappers:etcd\n"));
    signer.start().await;
    let client = |signer: &Signer, name: &str| {
        let (object, _) = request(name, Role::Client, name, &sans(&[], &[]));
        let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
        let pem = object["status"]["certificate"].as_str().unwrap_or_else(|| panic!("{code} {object}"));
        Chain::parse(&STANDARD.decode(pem).expect("base64")).expect("a chain").serial
    };
    let mut serials = vec![client(&signer, "first")];
    let journal = signer.dir.join("csrs/requests.journal");
    let written_anew = || {
        let journal = fs::read(&journal).expect("a journal");
        let first = journal.split(|byte| *byte == b'\n').find(|line| !line.starts_with(b"#"));
        first.is_some_and(|line| line.starts_with(b"{\"revision\":"))
    };
    assert!(!written_anew());
    let mut session = signer.session();
    for i in 0..REQUESTS {
        let host = format!("h{i}");
        let (mut object, _) = request(&host, Role::Peer, &host, &sans(&[&format!("{host}.example.com")], &[]));
        object["metadata"]["annotations"] = json!({ "fat": "x".repeat(8000) });
        let body = object.to_string();
        let head = format!("POST {V1} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {BOOTSTRAP}\r\n");
        let length = body.len();
        let call = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        let (code, answer) = session.send(call.as_bytes());
        assert!(code == 201 && answer.contains("\"certificate\""), "{answer}");
    }
    assert!(written_anew(), "{} bytes", fs::metadata(&journal).expect("a journal").len());
    serials.push(client(&signer, "last"));

    let list = |signer: &Signer| signer.ask("GET", V1, ADMIN, &Value::Null).1["items"].clone();
    let before = list(&signer);
    assert_eq!(before.as_array().map(Vec::len), Some(REQUESTS + 2));
    signer.process().kill();
    signer.start().await;
    assert!(written_anew());
    assert!(list(&signer) == before, "the same objects, with their revisions");
    // Their names are theirs, and another's are free.
    let names = [(0, false), (REQUESTS - 1, false), (REQUESTS, true)];
    for (host, free) in names.map(|(host, free)| (format!("h{host}"), free)) {
        let (object, _) =
            request(&format!("{host}-2"), Role::Peer, &host, &sans(&[&format!("{host}.example.com")], &[]));
        let (code, object) = signer.ask("POST", V1, OTHER, &object);
        assert_eq!((code, object["status"]["certificate"].is_string()), (201, free), "{host}: {object}");
    }
    // The record has them: else this needed --force.
    let admin = signer.kubeconfig("admin.kubeconfig", ADMIN);
    for serial in &serials {
        revoke(&admin, &["--serial", serial]).expect("revoked");
    }
    let listed = revoke(&admin, &["--list"]).expect("lists");
    assert!(serials.iter().all(|serial| listed.contains(serial.as_str())), "{listed}");
}
