//! The queue of CertificateRequests that `approve` decides: its figures, and that a leader is not ready before it has seen them all.

use serde_json::{Value, json};
use tests::{cert_manager::CertManager, eventually, ports};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    approving::{approve_at, install, lab, let_approve, pod},
    approving_rules::init,
    scene::{Kind, LIMIT},
};

const ROLE: &str = "etcd-tls-approve";
const PREFIX: &str = "etcd_tls_approve_certificate_requests_";

/// The answer of an admin port, with its status line.
async fn get(port: u16, path: &str) -> Result<String, String> {
    let read = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    read.await.map_err(|error| error.to_string())
}

/// A figure of the queue.
async fn figure(port: u16, name: &str) -> Result<u64, String> {
    let metrics = get(port, "/metrics").await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{PREFIX}{name} ")));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| format!("{name}: {metrics}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_of_certificate_requests_shows_itself_and_a_leader_is_ready_when_it_has_seen_them_all() {
    let Some(lab) = lab().await else { return };
    install(&lab);
    lab.grant("cm", Kind::CertManager);
    let signer = "issuers.cert-manager.io/cm.company";
    let_approve(&lab, "cert-manager.io", signer);
    lab.api.kubectl(&["delete", "crd", "certificaterequests.cert-manager.io"]);
    // Without the right, nobody can tell whether there are any.
    let of_kind = |rules: &Value| {
        let all = rules.as_array().expect("rules").iter();
        all.filter(|rule| rule["resources"] != json!(["certificaterequests"])).cloned().collect::<Vec<_>>()
    };
    let role: Value =
        serde_json::from_str(&lab.api.kubectl(&["get", "clusterrole", ROLE, "-o", "json"])).expect("JSON");
    let rules = |rules: &Value| {
        let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
        lab.api.kubectl(&["patch", "clusterrole", ROLE, "--type=json", "--patch", &patch]);
    };
    let fewer = Value::from(of_kind(&role["rules"]));
    assert_ne!(fewer, role["rules"]);
    rules(&fewer);
    let port = ports::loopback();
    let approve = approve_at(&lab, port, &[format!("--approve-issuer={signer}")]).await;
    eventually("it waits for CertificateRequests alone", LIMIT, || async {
        let answer = get(port, "/ready").await?;
        let waits = answer.starts_with("HTTP/1.1 503") && answer.contains("CertificateRequests not listed yet: ");
        let others = answer.contains("CertificateSigningRequests not") || answer.contains("pods not listed");
        if waits && answer.contains("forbidden") && !others { Ok(()) } else { Err(answer) }
    })
    .await;
    assert_eq!(figure(port, "queue_synced").await, Ok(0));

    // Where cert-manager is not installed, there are none, and the rollout ends.
    rules(&role["rules"]);
    let ready = || async {
        let answer = get(port, "/ready").await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    };
    eventually("it is ready without cert-manager", LIMIT, ready).await;
    assert_eq!(figure(port, "queue_synced").await, Ok(0));
    let log = approve.log();
    assert_eq!(log.matches("install cert-manager, or remove --approve-issuer").count(), 1, "{log}");

    CertManager::install(&lab.api).await;
    eventually("it has listed them", LIMIT, || async {
        let synced = figure(port, "queue_synced").await?;
        if synced == 1 { Ok(()) } else { Err(format!("{synced}: {}", approve.log_end())) }
    })
    .await;
    ready().await.expect("ready");
    assert!(figure(port, "queue_lists_total").await.expect("a figure") >= 1);
    let issuer = lab.issuer("cm");
    issuer.leave_approval_to_others();
    let named = "cert-manager:Issuer/company";
    let pod = pod(&lab, "cm", "etcd-0", &[("issuer", named), ("roles", "peer,server")]).await;
    init(&lab, "cm", &pod, &issuer.ca(), &format!("--issuer={named}")).await.expect("certificates");
    eventually("both requests are decided and counted", LIMIT, || async {
        let decided = figure(port, "request_duration_seconds_count").await?;
        let left = figure(port, "queue_depth").await? + figure(port, "queue_in_flight").await?;
        if decided >= 2 && left == 0 { Ok(()) } else { Err(format!("{decided} decided, {left} left")) }
    })
    .await;
}
