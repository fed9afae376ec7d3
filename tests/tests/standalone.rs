//! The standalone signer by its real binary: kubectl, an old agent's wire, watches, and files that change under it.

use std::{fs, path::Path, process::Command, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    role::Role,
};
use serde_json::{Value, json};
use tests::{
    eventually,
    pki::Ca,
    process::{Process, run},
    signer::{ADMIN, BOOTSTRAP, LIMIT, Signer, V1, V1BETA1, assert_status, recorded, request, sans},
    tier,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_describes_approves_and_denies() {
    let Some(assets) = tier::kubernetes() else { return };
    let mut signer = Signer::started(&[]).await;
    let (admin, plain) = (signer.kubeconfig("admin", ADMIN), signer.kubeconfig("plain", BOOTSTRAP));
    let home = signer.dir.dir("home");
    let kubectl = |kubeconfig: &Path, arguments: &[&str]| {
        let mut command = Command::new(assets.join("kubectl"));
        command.env("HOME", &home).arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command
    };
    for name in ["a", "b"] {
        let (object, _) = request(name, Role::Peer, name, &sans(&["a.example.com"], &["2001:db8::1"]));
        let file = signer.dir.write(format!("{name}.json"), object.to_string());
        run(kubectl(&plain, &["create", "-f"]).arg(file));
    }
    let listed = run(&mut kubectl(&admin, &["get", "csr"]));
    assert!(listed.contains("REQUESTOR") && listed.matches("Pending").count() == 2, "{listed}");
    let refused = kubectl(&plain, &["certificate", "approve", "a"]).output().expect("run");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Forbidden"));
    run(&mut kubectl(&admin, &["certificate", "approve", "a"]));
    run(&mut kubectl(&admin, &["certificate", "deny", "b"]));
    // The signer is killed and comes back with all of it.
    signer.process().kill();
    signer.start().await;
    let described = run(&mut kubectl(&admin, &["describe", "csr", "a"]));
    assert!(described.contains("Approved") && described.contains("system:etcd-peer:a"), "{described}");
    let listed = run(&mut kubectl(&plain, &["get", "csr"]));
    assert!(listed.contains("Approved,Issued") && listed.contains("Denied"), "{listed}");
    let certificate = run(&mut kubectl(&plain, &["get", "csr", "a", "-o", "jsonpath={.status.certificate}"]));
    let chain = Chain::parse(&STANDARD.decode(certificate).expect("base64")).expect("a chain");
    assert_eq!(chain.sans, sans(&["a.example.com"], &["2001:db8::1"]));
    run(&mut kubectl(&admin, &["delete", "csr", "a", "b", "--timeout=20s"]));
    assert!(run(kubectl(&admin, &["get", "csr"]).arg("--no-headers")).is_empty());
}

/// The recorded wire of the etcd-certificate-generator's agent: client-go's of 2018, no credential, an RSA key, a CN for a
/// name, no usages, no signer name. It is served byte for byte as it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_agents_wire_is_served_unchanged() {
    let signer = Signer::started(&[
        "--insecure-allow-anonymous",
        "--approve-group=system:unauthenticated=peer:10.8.89.9,etcd1.example.com",
        "--approve-group=system:unauthenticated=server:10.8.89.9,etcd1.example.com,localhost",
        "--approve-group=system:unauthenticated=metrics:10.8.89.9,etcd1.example.com",
    ])
    .await;
    let wire = |name: &str| {
        let file = tests::repository().join("tests/fixtures/kube-client-agent").join(format!("{name}.http"));
        recorded(&fs::read(file).expect("a recorded connection"))
    };
    let object = |(code, body): (u16, String)| -> (u16, Value) { (code, serde_json::from_str(&body).expect(&body)) };
    for (recording, name, dns) in [
        ("peer", "system:etcd-peer:etcd1", &["etcd1.example.com"][..]),
        ("server", "system:etcd-server:etcd1", &["etcd1.example.com", "localhost"]),
        ("metrics", "system:etcd-metric:etcd1", &["etcd1.example.com"]),
    ] {
        let [post, get] = wire(recording).try_into().expect("two requests");
        let mut session = signer.session();
        let (code, created) = object(session.send(&post));
        assert_eq!(code, 201, "{created}");
        let (code, got) = object(session.send(&get));
        assert_eq!(code, 200, "{got}");
        for object in [&created, &got] {
            assert_eq!(object["apiVersion"], "certificates.k8s.io/v1beta1");
            assert_eq!(object["kind"], "CertificateSigningRequest");
            assert_eq!(object["metadata"]["name"], name);
            assert_eq!(object["spec"]["username"], "system:anonymous");
        }
        assert_eq!(got["status"]["conditions"][0]["type"], "Approved");
        let certificate = STANDARD.decode(got["status"]["certificate"].as_str().expect("issued")).expect("base64");
        let chain = Chain::parse(&certificate).expect("a chain");
        assert_eq!((chain.common_name.as_str(), &chain.sans), (name, &sans(dns, &["10.8.89.9"])));
    }
    // What nobody lets it have waits for a person, and the agent polls on.
    let pending = wire("pending");
    let [post, polls @ ..] = pending.as_slice() else { panic!("no request") };
    assert_eq!(polls.len(), 3);
    let mut session = signer.session();
    let (code, created) = object(session.send(post));
    assert!(code == 201 && created["status"].get("conditions").is_none(), "{created}");
    for (number, poll) in polls.iter().enumerate() {
        if number == 2 {
            let approved =
                json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
            let token = format!("Bearer {ADMIN}");
            let headers = [("Authorization", token.as_str()), ("Content-Type", "application/merge-patch+json")];
            let path = format!("{V1}/system:etcd-peer:etcd2/approval");
            let answer = signer.try_ask("PATCH", &path, &headers, approved.to_string().as_bytes(), None);
            assert_eq!(answer.expect("an answer").0, 200);
        }
        let (code, got) = object(session.send(poll));
        assert!(code == 200 && got["status"]["certificate"].is_string() == (number == 2), "{number}: {got}");
    }
    // It asks for the name "" where it is given none; its log then says what to do about it.
    let (code, refused) = object(signer.session().send(&wire("no-names")[0]));
    assert_status(&(code, refused), 422, "no DNS name");
    // Only the old agents, who make no other, have RSA keys of 2048 bits signed.
    let body = post.split(|b| *b == b'\n').find(|line| line.starts_with(b"{")).expect("a body");
    let mut of_today: Value = serde_json::from_slice(body).expect("JSON");
    of_today["apiVersion"] = json!("certificates.k8s.io/v1");
    of_today["spec"]["signerName"] = json!("peer.etcd-tls.dev/kube-system.etcd");
    of_today["spec"]["usages"] = json!(["server auth", "client auth"]);
    of_today["metadata"]["name"] = json!("of-today");
    assert_status(&signer.ask("POST", V1, ADMIN, &of_today), 422, "rsa-2048");

    // An agent that prefers protobuf takes JSON; one that takes nothing else is told so.
    for (accept, code) in
        [("application/vnd.kubernetes.protobuf, */*", 200), ("application/vnd.kubernetes.protobuf", 406)]
    {
        let path = format!("{V1BETA1}/system:etcd-peer:etcd1");
        let answer = signer.try_ask("GET", &path, &[("Accept", accept)], b"", None);
        assert_eq!(answer.expect("an answer").0, code, "{accept}");
    }
}

/// Files that change under the running signer: its CA's, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_ca_is_taken_where_its_certificates_are_accepted() {
    let mut signer = Signer::started(&["--approve-group=system:bootstrappers:etcd=peer:10.0.0.0/8"]).await;
    let issued = |signer: &Signer, name: &str| {
        let (object, _) = request(name, Role::Peer, name, &sans(&[], &["10.0.0.1"]));
        let (code, object) = signer.ask("POST", V1, BOOTSTRAP, &object);
        let pem = object["status"]["certificate"].as_str().unwrap_or_else(|| panic!("{code} {object}"));
        Chain::parse(&STANDARD.decode(pem).expect("base64")).expect("a chain")
    };
    let first = issued(&signer, "a");
    // Another CA, its key a moment later: not taken, and said; what is there goes on.
    let other = Ca::new("etcd CA");
    signer.dir.write("ca.crt", &other.pem);
    signer.dir.write("ca.key", &other.key_pem);
    signer.process().logged("this is another CA", LIMIT).await;
    let bundle = Bundle::parse(signer.ca.pem.as_bytes()).expect("a bundle");
    let second = issued(&signer, "b");
    for chain in [&first, &second] {
        assert!(bundle.contains_issuer_of(chain), "signed by the CA that everybody knows");
    }
    // The same key under a certificate of its own, as a renewal has it: taken.
    let renewed = signer.ca.renewed();
    signer.dir.write("ca.key", &signer.ca.key_pem);
    signer.dir.write("ca.crt", &renewed);
    eventually("the renewed certificate is published", LIMIT, || async {
        let (code, object) =
            signer.ask("GET", "/api/v1/namespaces/kube-system/configmaps/etcd-tls-trust-etcd", BOOTSTRAP, &Value::Null);
        if object["data"]["peer.crt"] == json!(renewed) { Ok(()) } else { Err(format!("{code} {object}")) }
    })
    .await;
    assert!(bundle.contains_issuer_of(&issued(&signer, "c")));
    assert!(!signer.process().log().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_shows_each_change_once() {
    let signer = Arc::new(Signer::started(&[]).await);
    let (_, list) = signer.ask("GET", V1, ADMIN, &Value::Null);
    let revision = list["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    let watcher = {
        let (signer, revision) = (Arc::clone(&signer), revision.clone());
        tokio::task::spawn_blocking(move || {
            let token = format!("Bearer {ADMIN}");
            let path =
                format!("{V1}?watch=true&resourceVersion={revision}&timeoutSeconds=6&fieldSelector=metadata.name%3Da");
            signer.try_ask("GET", &path, &[("Authorization", &token)], b"", None).expect("an answer")
        })
    };
    for name in ["a", "b"] {
        let (object, _) = request(name, Role::Peer, name, &sans(&[], &["10.0.0.1"]));
        assert_eq!(signer.ask("POST", V1, BOOTSTRAP, &object).0, 201);
    }
    let approval = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
    let token = format!("Bearer {ADMIN}");
    let headers = [("Authorization", token.as_str()), ("Content-Type", "application/merge-patch+json")];
    let path = format!("{V1}/a/approval");
    let patched = signer.try_ask("PATCH", &path, &headers, approval.to_string().as_bytes(), None).expect("an answer");
    assert_eq!(patched.0, 200, "{}", patched.1);
    assert_eq!(signer.ask("DELETE", &format!("{V1}/a"), ADMIN, &Value::Null).0, 200);
    let (code, body) = watcher.await.expect("no panic");
    assert_eq!(code, 200);
    let kinds: Vec<Value> = body
        .lines()
        .filter(|l| l.starts_with('{'))
        .map(|l| serde_json::from_str::<Value>(l).expect("JSON"))
        .map(|e| e["type"].clone())
        .collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"], "{body}");
    // A revision that is not known any more is a 410, for the client to list again.
    let gone = signer.ask("GET", &format!("{V1}?watch=true&resourceVersion=1"), ADMIN, &Value::Null).1;
    assert!(gone.to_string().contains("410") && gone.to_string().contains("Expired"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_reloaded_and_a_weak_one_starts_nothing() {
    let mut signer = Signer::started(&[]).await;
    let new = "0f1e2d3c4b5a69788796a5b4c3d2e1f00123456789abcdef";
    assert_status(&signer.ask("GET", V1, new, &Value::Null), 401, "Unauthorized");
    signer.dir.write("tokens", format!("{new},new,3,system:masters\n"));
    eventually("the new token", LIMIT, || async {
        let (code, body) = signer.ask("GET", V1, new, &Value::Null);
        if code == 200 { Ok(()) } else { Err(body.to_string()) }
    })
    .await;
    assert_status(&signer.ask("GET", V1, ADMIN, &Value::Null), 401, "Unauthorized");
    // A file that cannot be taken leaves the last good one in force.
    signer.dir.write("tokens", "weak,weak,4,system:masters\n");
    signer.process().logged("the last good one stays in force", LIMIT).await;
    assert_eq!(signer.ask("GET", V1, new, &Value::Null).0, 200);
    assert!(!signer.process().log().contains(new), "no token is ever logged");
    signer.process().kill();
    let mut command = signer.command(&signer.dir.join("csrs"), signer.port);
    let mut refused = Process::spawn("weak", &mut command, signer.dir.path());
    assert!(!refused.wait(LIMIT).await.success());
    assert!(refused.log().contains("128 random bits"), "{}", refused.log());
}
