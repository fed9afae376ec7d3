//! The names that each caller gets from the standalone signer: each attack by a caller with exactly those rights, over TLS, and
//! the legitimate use beside it.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, csr::PrivateKey, key::KeyAlgorithm, role::Role, san::Sans};
use serde_json::{Value, json};
use tests::{
    pki::LeafOptions,
    signer::{ADMIN, BOOTSTRAP, Signer, V1, V1BETA1, assert_status, request, sans},
};

/// A certificate and its key, as a caller presents them.
type Leaf = (String, String);

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Issued,
    Waits,
    Denied,
}

/// The rules of the shipped example, for the group of the bootstrap token.
fn shipped_rules() -> Vec<String> {
    let file = tests::repository().join("manifests/host/standalone.env");
    let text = fs::read_to_string(file).expect("the example");
    let rules = text.split_whitespace().filter(|word| word.starts_with("--approve-group="));
    let rules: Vec<String> = rules.map(|r| r.replace("etcd-bootstrap=", "system:bootstrappers:etcd=")).collect();
    assert_eq!(rules.len(), 4);
    rules
}

async fn of_shipped_rules(more: &[&str]) -> Signer {
    let rules = shipped_rules();
    let arguments: Vec<&str> = rules.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Signer::started(&arguments).await
}

fn post(signer: &Signer, path: &str, leaf: Option<&Leaf>, token: Option<&str>, object: &Value) -> (u16, Value) {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(authorization.as_deref().map(|a| ("Authorization", a)));
    let leaf = leaf.map(|(cert, key)| (cert.as_str(), key.as_str()));
    let (code, body) = signer.try_ask("POST", path, &headers, object.to_string().as_bytes(), leaf).expect("an answer");
    (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn fate((code, object): &(u16, Value)) -> Fate {
    assert_eq!(*code, 201, "{object}");
    let conditions: Vec<&str> = object["status"]["conditions"]
        .as_array()
        .map(|all| all.iter().filter_map(|c| c["type"].as_str()).collect())
        .unwrap_or_default();
    match (object["status"]["certificate"].is_string(), conditions.as_slice()) {
        (true, ["Approved"]) => Fate::Issued,
        (false, []) => Fate::Waits,
        (false, ["Denied"]) => Fate::Denied,
        _ => panic!("{object}"),
    }
}

/// Asks with the bootstrap token.
fn by_token(signer: &Signer, name: &str, role: Role, host: &str, names: &Sans) -> Fate {
    fate(&post(signer, V1, None, Some(BOOTSTRAP), &request(name, role, host, names).0))
}

/// Asks with a certificate.
fn by_certificate(signer: &Signer, leaf: &Leaf, name: &str, role: Role, host: &str, names: &Sans) -> Fate {
    fate(&post(signer, V1, Some(leaf), None, &request(name, role, host, names).0))
}

/// The host's first certificate, got with the bootstrap token.
fn bootstrapped(signer: &Signer, role: Role, host: &str, names: &Sans) -> Leaf {
    let (object, key) = request(&format!("first-{role}-{host}"), role, host, names);
    let answer = post(signer, V1, None, Some(BOOTSTRAP), &object);
    assert_eq!(fate(&answer), Fate::Issued, "{host}");
    let pem = STANDARD.decode(answer.1["status"]["certificate"].as_str().expect("issued")).expect("base64");
    (String::from_utf8(pem).expect("PEM"), key.to_pem().to_string())
}

fn approve(signer: &Signer, name: &str) -> Value {
    approve_at(signer, &format!("{V1}/{name}/approval"))
}

fn approve_at(signer: &Signer, path: &str) -> Value {
    let approval = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "test" }] } });
    let token = format!("Bearer {ADMIN}");
    let headers = [("Authorization", token.as_str()), ("Content-Type", "application/merge-patch+json")];
    let (code, body) =
        signer.try_ask("PATCH", path, &headers, approval.to_string().as_bytes(), None).expect("an answer");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// Attack 12: a host with its own certificate, under the shipped rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosts_certificate_gets_no_name_that_it_does_not_present() {
    let mut signer = of_shipped_rules(&[]).await;
    let (n1, n2) = (sans(&["h1.example.com"], &["192.0.2.1"]), sans(&["h2.example.com"], &["192.0.2.2"]));
    let h1 = bootstrapped(&signer, Role::Peer, "h1", &n1);
    let h2 = bootstrapped(&signer, Role::Peer, "h2", &n2);
    let attacks: [(&str, &[&str], &[&str]); 8] = [
        ("h2-name", &["h1.example.com", "h2.example.com"], &["192.0.2.1"]),
        ("h2-address", &["h1.example.com"], &["192.0.2.1", "192.0.2.2"]),
        ("h2-alone", &["h2.example.com"], &["192.0.2.2"]),
        ("wildcard", &["*.example.com"], &[]),
        ("own-wildcard", &["*.h1.example.com"], &[]),
        ("free-name", &["h1.example.com", "free.example.com"], &[]),
        ("free-address", &[], &["192.0.2.99"]),
        ("under-own", &["a.h1.example.com"], &[]),
    ];
    for role in [Role::Peer, Role::Server] {
        for (name, dns, ips) in attacks {
            let name = format!("{name}-{role}");
            assert_eq!(by_certificate(&signer, &h1, &name, role, "h1", &sans(dns, ips)), Fate::Waits, "{name}");
        }
    }
    let (object, _) = request("another", Role::Peer, "h2", &n1);
    assert_status(&post(&signer, V1, Some(&h1), None, &object), 403, "of another");
    // The name under which another host's old agent asks.
    let (object, _) = request("system:etcd-peer:h2", Role::Peer, "h1", &n1);
    assert_status(&post(&signer, V1, Some(&h1), None, &object), 422, "metadata.name");
    assert_eq!(by_certificate(&signer, &h2, "system:etcd-peer:h2", Role::Peer, "h2", &n2), Fate::Issued);
    // Its own names, for each role of the rules; the names of every host; and fewer.
    assert_eq!(by_certificate(&signer, &h1, "again", Role::Peer, "h1", &n1), Fate::Issued);
    let server = sans(&["h1.example.com", "localhost"], &["192.0.2.1", "127.0.0.1", "::1"]);
    assert_eq!(by_certificate(&signer, &h1, "server", Role::Server, "h1", &server), Fate::Issued);
    assert_eq!(by_certificate(&signer, &h1, "less", Role::Peer, "h1", &sans(&[], &["192.0.2.1"])), Fate::Issued);
    // A server's certificate makes no peer, and one of metrics neither.
    for (role, organization) in [(Role::Server, "system:etcd-servers"), (Role::Metrics, "system:etcd-metrics")] {
        let leaf = signer.ca.leaf(&LeafOptions {
            organizations: vec![organization.to_owned(), "system:etcd-peers".to_owned()],
            common_name: format!("{}h1", role.common_name_prefix()),
            dns: vec!["h1.example.com".to_owned()],
            ips: vec!["192.0.2.1".parse().expect("an address")],
            ..LeafOptions::default()
        });
        let name = format!("peer-by-{role}");
        assert_eq!(by_certificate(&signer, &(leaf.cert, leaf.key), &name, Role::Peer, "h1", &n1), Fate::Waits);
    }

    // A person gives h1's address to h2: from then on h1 asks for it in vain, also after a kill, and h2 renews it.
    assert_eq!(by_certificate(&signer, &h2, "moved", Role::Peer, "h2", &sans(&[], &["192.0.2.1"])), Fate::Waits);
    let tried = approve_at(&signer, &format!("{V1}/moved/approval?dryRun=All"));
    assert_eq!(
        (&tried["status"]["conditions"][0]["type"], &tried["status"]["certificate"]),
        (&json!("Approved"), &Value::Null)
    );
    assert!(approve(&signer, "moved")["status"]["certificate"].is_string());
    for round in ["now", "after a kill"] {
        let ask = |leaf: &Leaf, name: &str, host: &str, names: &Sans| {
            by_certificate(&signer, leaf, &format!("{name}-{}", round.replace(' ', "-")), Role::Peer, host, names)
        };
        assert_eq!(ask(&h1, "h1-moved", "h1", &n1), Fate::Waits, "{round}");
        assert_eq!(ask(&h1, "h1-rest", "h1", &sans(&["h1.example.com"], &[])), Fate::Issued, "{round}");
        assert_eq!(ask(&h2, "h2-both", "h2", &sans(&["h2.example.com"], &["192.0.2.1", "192.0.2.2"])), Fate::Issued);
        signer.process().kill();
        signer.start().await;
    }
}

/// Attack 12 and 13 with the bootstrap token: a name is its host's from the first certificate that the host requests itself
/// until that certificate ends, even if the requests are deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_name_is_not_freed_by_deleting_or_evicting_requests() {
    let limits = ["--rate-limit=0", "--max-names-per-user=400"];
    let mut signer = of_shipped_rules(&limits).await;
    let n1 = sans(&["h1.example.com"], &["192.0.2.1"]);
    let h1 = bootstrapped(&signer, Role::Peer, "h1", &n1);
    // Shared as long as only the token has asked.
    assert_eq!(by_token(&signer, "by-token", Role::Peer, "h1", &n1), Fate::Issued);
    assert_eq!(by_certificate(&signer, &h1, "own", Role::Peer, "h1", &n1), Fate::Issued);
    for name in ["first-peer-h1", "by-token", "own"] {
        assert_eq!(signer.ask("DELETE", &format!("{V1}/{name}"), ADMIN, &Value::Null).0, 200);
    }
    // More than the journal keeps before it is rewritten, and more names than a user may hold.
    let mut fates = Vec::new();
    for i in 0..450 {
        let name = format!("x{i}");
        let (mut object, _) = request(&name, Role::Peer, &name, &sans(&[&format!("x{i}.example.com")], &[]));
        object["metadata"]["annotations"] = json!({ "fat": "x".repeat(8000) });
        fates.push(fate(&post(&signer, V1, None, Some(BOOTSTRAP), &object)));
        if fates.last() == Some(&Fate::Issued) {
            assert_eq!(signer.ask("DELETE", &format!("{V1}/{name}"), BOOTSTRAP, &Value::Null).0, 200);
        }
    }
    let issued = fates.iter().filter(|f| **f == Fate::Issued).count();
    assert_eq!((issued, fates[..issued].contains(&Fate::Waits)), (200, false), "two names each, 400 in all");
    let log = signer.process().log();
    assert!(log.contains("and 400 are the limit"), "{}", signer.process().log_end());
    for round in 0..2 {
        for (attack, role, host, names) in [
            ("cn", Role::Peer, "h1", sans(&["h9.example.com"], &[])),
            ("role", Role::Server, "h1", sans(&["h9.example.com"], &[])),
            ("dns", Role::Peer, "h9", sans(&["h1.example.com"], &[])),
            ("ip", Role::Server, "h9", sans(&[], &["192.0.2.1"])),
            ("wildcard", Role::Peer, "h9", sans(&["*.example.com"], &[])),
        ] {
            let name = format!("{attack}-{round}");
            assert_eq!(by_token(&signer, &name, role, host, &names), Fate::Waits, "{attack} {round}");
        }
        let renewed = by_certificate(&signer, &h1, &format!("renewed-{round}"), Role::Peer, "h1", &n1);
        assert_eq!(renewed, Fate::Issued, "the host itself, even with others at a limit");
        signer.process().kill();
        signer.start().await;
    }
}

/// A user's decided requests are bounded, too, and nobody else's are removed for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_fills_its_own_share_alone() {
    let signer = of_shipped_rules(&["--rate-limit=0", "--max-requests=60", "--max-requests-per-user=20"]).await;
    let mut last = (0, Value::Null);
    for i in 0..40 {
        let host = format!("y{i}");
        let (object, _) = request(&host, Role::Peer, &host, &sans(&[&format!("{host}.example.com")], &[]));
        last = post(&signer, V1, None, Some(BOOTSTRAP), &object);
        if last.0 != 201 {
            break;
        }
        assert_eq!(fate(&last), Fate::Issued);
    }
    assert_status(&last, 429, "20 requests stored");
    let (object, _) = request("of-admin", Role::Peer, "z", &sans(&["z.example.com"], &[]));
    assert_eq!(post(&signer, V1, None, Some(ADMIN), &object).0, 201);
}

/// One address or name, one holder, also between two users whose rules both take it; and for the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_never_get_one_name() {
    let mut signer =
        Signer::new(&["--rate-limit=0", "--approve-group=a=peer:10.0.0.0/8", "--approve-group=b=peer:10.0.0.0/8"]);
    let tokens = ["a1b2c3d4e5f60718293a4b5c6d7e8f90aa", "b1b2c3d4e5f60718293a4b5c6d7e8f90bb"];
    signer.dir.write("tokens", format!("{},a,1,a\n{},b,2,b\n{ADMIN},admin,3,system:masters\n", tokens[0], tokens[1]));
    signer.start().await;
    let signer = &signer;
    for i in 0..20 {
        let names = sans(&[], &[&format!("10.0.0.{i}")]);
        let ask = |user: usize| {
            let (object, _) = request(&format!("r{i}-{user}"), Role::Peer, &format!("u{user}"), &names);
            move || fate(&post(signer, V1, None, Some(tokens[user]), &object))
        };
        let (first, second) = (ask(0), ask(1));
        let fates = std::thread::scope(|scope| {
            let threads = [scope.spawn(first), scope.spawn(second)];
            threads.map(|thread| thread.join().expect("no panic"))
        });
        let issued = fates.iter().filter(|fate| **fate == Fate::Issued).count();
        assert_eq!(issued, 1, "{i}: {fates:?}");
    }
}

/// Attack 15: a caller in the policy is judged by policy alone, in every API version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_has_the_last_word_in_every_api_version() {
    let mut signer = Signer::new(&[
        "--approve-group=system:etcd-peers=peer:192.0.2.0/24,*.example.com",
        "--approve-group=system:etcd-peers=server:192.0.2.0/24,*.example.com",
        "--approve-group=system:bootstrappers:etcd=peer:192.0.2.0/24,*.example.com",
        "--approve-group=system:bootstrappers:etcd=server:192.0.2.0/24,*.example.com",
        "--approve-group=system:bootstrappers:etcd=client:*.example.com",
        "--cluster=kube-system/etcd",
    ]);
    let policy = signer.dir.write(
        "policy.yaml",
        "hosts: [{username: 'system:etcd-peer:cp-1', groups: ['system:etcd-peers'], cluster: kube-system/etcd, \
         roles: [peer], commonName: cp-1, dnsNames: [cp-1.example.com], ips: [192.0.2.11]}, \
         {username: 'system:etcd-peer:cp-3', cluster: kube-system/etcd, roles: [peer, server], commonName: cp-3, \
         dnsNames: [cp-3.example.com]}, \
         {username: op.example.com, cluster: kube-system/etcd, roles: [peer], commonName: cp-4}, \
         {username: 'system:etcd-peer:z9', cluster: kube-system/etcd, roles: [peer], commonName: cp-5}]\n\
         revokers: [{username: anna.example.com}]\nmanualApproval: [{namespaces: [kube-system], roles: [server]}]\n",
    );
    signer.arguments.push(format!("--policy={}", policy.display()));
    signer.start().await;
    let names = sans(&["cp-1.example.com"], &["192.0.2.11"]);
    let cp1 = bootstrapped(&signer, Role::Peer, "cp-1", &names);

    let digest = |key: &PrivateKey| etcd_tls_contract::csr::key_digest(&key.public_key());
    let v1 = |role: Role, host: &str, names: &Sans| {
        let (mut object, key) = request("name", role, host, names);
        object["metadata"]["name"] = json!(format!("etcd-tls-cp-1-{role}-{}", digest(&key)));
        (V1, object)
    };
    let v1beta1 = |name: &str, role: Role, host: &str, names: &Sans, signer: bool| {
        let (mut object, key) = request(name, role, host, names);
        object["apiVersion"] = json!("certificates.k8s.io/v1beta1");
        let spec = object["spec"].as_object_mut().expect("a spec");
        if signer {
            object["metadata"]["name"] = json!(format!("etcd-tls-cp-1-{role}-{}", digest(&key)));
        } else {
            spec.remove("signerName");
            spec.remove("usages");
        }
        (V1BETA1, object)
    };
    let more = sans(&["cp-1.example.com", "other.example.com"], &["192.0.2.11"]);
    for (what, (path, object)) in [
        ("v1, another role", v1(Role::Server, "cp-1", &names)),
        ("v1beta1 with a signer, another role", v1beta1("a", Role::Server, "cp-1", &names, true)),
        ("v1beta1, another role", v1beta1("b", Role::Server, "cp-1", &names, false)),
        ("v1beta1, a name more", v1beta1("c", Role::Peer, "cp-1", &more, false)),
        ("v1beta1, another host", v1beta1("d", Role::Peer, "cp-2", &names, false)),
        ("v1beta1, a wildcard", v1beta1("e", Role::Peer, "cp-1", &sans(&["*.example.com"], &[]), false)),
        ("v1beta1, a client", v1beta1("f", Role::Client, "root", &sans(&[], &[]), false)),
    ] {
        assert_eq!(fate(&post(&signer, path, Some(&cp1), None, &object)), Fate::Denied, "{what}");
    }
    // The names of the policy, by each version.
    for (what, (path, object)) in [
        ("v1", v1(Role::Peer, "cp-1", &names)),
        ("v1beta1 with a signer", v1beta1("g", Role::Peer, "cp-1", &names, true)),
        ("v1beta1", v1beta1("h", Role::Peer, "cp-1", &sans(&[], &["192.0.2.11"]), false)),
    ] {
        let answer = post(&signer, path, Some(&cp1), None, &object);
        assert_eq!(fate(&answer), Fate::Issued, "{what}");
        let pem = STANDARD.decode(answer.1["status"]["certificate"].as_str().expect("issued")).expect("base64");
        assert_eq!(Chain::parse(&pem).expect("a chain").sans, names, "{what}");
    }
    // What policy leaves to a person waits for one, who decides.
    let own = sans(&["cp-3.example.com"], &[]);
    let cp3 = bootstrapped(&signer, Role::Peer, "cp-3", &own);
    let (path, object) = v1beta1("person", Role::Server, "cp-3", &own, false);
    assert_eq!(fate(&post(&signer, path, Some(&cp3), None, &object)), Fate::Waits);
    assert!(approve(&signer, "person")["status"]["certificate"].is_string(), "a person has approved it");
    let (path, object) = v1beta1("no-person", Role::Server, "cp-3", &names, false);
    assert_eq!(fate(&post(&signer, path, Some(&cp3), None, &object)), Fate::Denied, "of another host");
    // The names and the roles of a listed host, asked for by those whom policy does not know.
    assert_eq!(by_token(&signer, "t1", Role::Server, "cp-1", &names), Fate::Waits);
    assert_eq!(by_token(&signer, "t2", Role::Peer, "cp-9", &names), Fate::Waits);
    assert_eq!(by_token(&signer, "t3", Role::Peer, "cp-9", &sans(&["cp-9.example.com"], &[])), Fate::Issued);
    // Certificates with which the caller would be such a host, or could revoke.
    let none = sans(&[], &[]);
    assert_eq!(by_token(&signer, "t4", Role::Client, "op.example.com", &none), Fate::Waits);
    assert_eq!(by_token(&signer, "t5", Role::Client, "anna.example.com", &none), Fate::Waits);
    assert_eq!(by_token(&signer, "t6", Role::Peer, "z9", &sans(&["z9.example.com"], &[])), Fate::Waits);
    assert_eq!(by_token(&signer, "t7", Role::Client, "job.example.com", &none), Fate::Issued);
    // A rule of the arguments needs no person, also for a role whose CA a person guards.
    assert_eq!(by_token(&signer, "t8", Role::Server, "cp-8", &sans(&["cp-8.example.com"], &[])), Fate::Issued);
}

/// Attack 16: nothing in a CN can be read as another field, and names are what DNS and Go take them for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cn_and_its_names_can_be_read_in_one_way() {
    let signer = Signer::started(&[
        "--approve-group=system:bootstrappers:etcd=peer:10.0.0.0/8,*.example.com",
        "--approve-group=system:bootstrappers:etcd=metrics",
        "--approve-group=system:bootstrappers:etcd=client:backup,system:etcd-peer:h1,admin",
    ])
    .await;
    let one = sans(&["h1.example.com"], &["10.0.0.1"]);
    let ask = |organization: &str, cn: &str, names: &Sans| {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
        let pem = key.request(organization, cn, names).map_err(|e| e.to_string())?;
        let (mut object, _) = request("odd", Role::Peer, "h1", &one);
        object["spec"]["request"] = json!(STANDARD.encode(pem));
        if organization == "system:etcd-clients" || organization == "system:etcd-metrics" {
            let domain = if organization == "system:etcd-clients" { "client" } else { "metrics" };
            object["spec"]["signerName"] = json!(format!("{domain}.etcd-tls.dev/kube-system.etcd"));
            object["spec"]["usages"] = json!(["digital signature", "client auth"]);
        }
        Ok::<_, String>(post(&signer, V1, None, Some(BOOTSTRAP), &object))
    };
    for cn in [
        "system:etcd-peer:z1,O=system:masters",
        "system:etcd-peer:z1+O=system:masters",
        "system:etcd-peer:z1/O=system:masters",
        "system:etcd-peer:Z1",
        "system:etcd-peer:z1.",
        "system:etcd-peer:.z1",
        "system:etcd-peer:z1 ",
        "system:etcd-peer:z_1",
        "system:etcd-peer:z1\u{0}",
        "system:etcd-peer:z\u{430}",
        "system:etcd-peer:*",
        "system:etcd-peer:",
    ] {
        // A request that cannot be built is not sent.
        if let Ok(answer) = ask("system:etcd-peers", cn, &one) {
            assert_status(&answer, 422, "spec.request");
        }
    }
    for cn in ["system:etcd-peer:h1", "system:etcd-metric:h1", "backup,O=system:masters", "system:serviceaccount:a:b"] {
        assert_status(&ask("system:etcd-clients", cn, &sans(&[], &[])).expect("a request"), 422, "spec.request");
    }
    for cn in ["system:etcd-metrics:a b", "system:etcd-metric:A"] {
        assert_status(&ask("system:etcd-metrics", cn, &sans(&[], &[])).expect("a request"), 422, "spec.request");
    }
    for names in [
        sans(&["H1.example.com"], &[]),
        sans(&["h1.example.com."], &[]),
        sans(&["a*.example.com"], &[]),
        sans(&["*.*.example.com"], &[]),
        sans(&["m\u{fc}nchen.example.com"], &[]),
        sans(&[], &["::ffff:10.0.0.1"]),
    ] {
        if let Ok(answer) = ask("system:etcd-peers", "system:etcd-peer:h1", &names) {
            assert_status(&answer, 422, "spec.request");
        }
    }
    // A client's name that is a token's user waits for a person; one of the rule's is given.
    let client = |name: &str| {
        fate(&post(&signer, V1, None, Some(BOOTSTRAP), &request(name, Role::Client, name, &sans(&[], &[])).0))
    };
    assert_eq!((client("admin"), client("backup")), (Fate::Waits, Fate::Issued));
    // The old agents' CN for metrics, IDN in its ASCII form, and a name of 253 characters that was cut.
    for cn in [
        "system:etcd-peer:xn--mnchen-3ya.example.com",
        &etcd_tls_contract::identity::common_name(Role::Peer, &"abc.".repeat(20)[..79]),
    ] {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
        let (mut object, _) = request(&format!("good-{}", cn.len()), Role::Peer, "h1", &one);
        let names = sans(&[&format!("n{}.example.com", cn.len())], &[]);
        object["spec"]["request"] =
            json!(STANDARD.encode(key.request("system:etcd-peers", cn, &names).expect("a request")));
        assert_eq!(fate(&post(&signer, V1, None, Some(BOOTSTRAP), &object)), Fate::Issued, "{cn}");
    }
}
