//! Memory of `approve` and `sign` beside the fattest objects that a tenant can make: at most the limit of the shipped
//! manifests, as the kernel counts it (VmHWM: the most that was ever resident), from start to end. In all tests but that of
//! full records, which looks at the peak alone, they run under that limit, as RLIMIT_DATA: all private memory that can be
//! written, thread stacks included. It is stricter than the cgroup of a container, and a process that reaches it ends.
//! `ETCD_TLS_BIN_DIR` names released programs to be tried so.
//!
//! The short form has so many fat objects that a page of them would exceed the limit. With `ETCD_TLS_SOAK` there are four times as
//! many and 10,000 ordinary pods, which takes some minutes.

#[path = "sign/beside.rs"]
mod beside;
#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{
    collections::{BTreeMap, HashMap},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use beside::Beside;
use etcd_tls_contract::{
    names::{SIDECAR_CONTAINER, SYSTEM_NAMESPACE},
    role::Role,
};
use futures::{StreamExt, stream};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret, Service},
};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use lab::{Asking, Lab};
use serde_json::{Value, json};
use signer::{cas, issue, member, sign, sign_at, sign_with};
use tests::{
    apiserver::{NODE, from_json},
    cert_manager::{CertManager, resource},
    eventually,
    faults::FaultProxy,
    ports,
    revocation::{ended, revoke, said},
};

/// `resources.limits.memory` of a shipped Deployment.
fn limit_kib(name: &str) -> u64 {
    let text = std::fs::read_to_string(tests::repository().join(format!("manifests/{name}.yaml"))).expect("a manifest");
    let deployment: Value = serde_saphyr::from_str(&text).expect("YAML");
    let limit = &deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"];
    let mib = limit.as_str().and_then(|limit| limit.strip_suffix("Mi")?.parse::<u64>().ok());
    mib.unwrap_or_else(|| panic!("{name}: {limit}")) * 1024
}

/// Lets a process that has just started have no more memory than its manifest.
fn bound(name: &str, id: u32) {
    let bytes = limit_kib(name) * 1024;
    tests::process::run(Command::new("prlimit").arg(format!("--pid={id}")).arg(format!("--data={bytes}")));
}

/// Asserts that a process runs on, and never had more memory than its manifest allows.
fn within_limit(name: &str, id: u32, beside: &str) {
    let peak = peak_kib(id);
    println!("{name}: {} MiB at most, {beside}", peak / 1024);
    assert!(peak < limit_kib(name), "{name} had {} MiB resident", peak / 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fat_objects_do_not_exceed_the_limit() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.namespace("fat", &[("etcd-tls", "dynamic")]).await;
    lab.api.namespace("honest", &[("etcd-tls", "dynamic")]).await;
    let (many, fat_ones) = if std::env::var_os("ETCD_TLS_SOAK").is_some() { (10_000, 60) } else { (300, 15) };
    make_pods(&lab, many, ordinary).await;
    make_pods(&lab, fat_ones, with_environment).await;
    make_pods(&lab, fat_ones, with_annotation).await;
    make_services(&lab, fat_ones).await;

    // There before they start: the lists. A change of each while they run: the watches.
    let approver = lab.approver("approve-a", &[]);
    let signer = sign(&lab, "sign-a", &[]).await;
    bound("approve", approver.process.id());
    bound("sign", signer.id());
    lab.ready(&approver).await;
    let fat: Api<Pod> = Api::namespaced(lab.api.client.clone(), "fat");
    let over = AtomicBool::new(false);
    let attack = async {
        for round in 0.. {
            if round >= 3 && over.load(Ordering::Relaxed) {
                break;
            }
            let change = json!({"metadata": {"labels": {"round": format!("r{round}")}}});
            for n in 0..fat_ones {
                for kind in ["environment", "annotation"] {
                    let name = format!("{kind}-{n}");
                    fat.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await.expect("change a pod");
                }
            }
        }
    };
    let honest = async {
        let pod = member(&lab, "honest", "etcd-0", Some("10.9.0.1")).await;
        // The cost of the opt-in and the CA is not measured.
        issue(&lab, &pod, Role::Peer, None).await;
        let mut beside = Beside::new(&lab, &pod).await;
        for _ in 0..8 {
            beside.turn(Role::Server).await;
            // A request that is denied has everything read again, the fat Services of its namespace as well.
            let bad = Asking::of(&pod, Role::Peer).organization("system:masters");
            bad.create(&lab.requester(&pod).await).await;
            lab.denied(&bad.name).await;
        }
        over.store(true, Ordering::Relaxed);
        let longest = beside.longest();
        assert!(longest < Duration::from_secs(20), "an honest request took {longest:?}");
        beside.within_a_second();
    };
    let fat_denial = async {
        let pod = member(&lab, "fat", "etcd-0", Some("10.9.0.2")).await;
        let bad = Asking::of(&pod, Role::Peer).organization("system:masters");
        bad.create_when_allowed(&lab.requester(&pod).await).await;
        lab.denied(&bad.name).await;
        issue(&lab, &pod, Role::Peer, None).await;
    };
    tokio::join!(attack, honest, fat_denial);
    for (name, id) in [("approve", approver.process.id()), ("sign", signer.id())] {
        within_limit(name, id, &format!("with {many} ordinary pods"));
    }
}

/// Requests that a tenant makes for any issuer, with names of ours: `sign` reads of each what it needs to delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fat_certificate_requests_do_not_exceed_the_limit() {
    let Some(lab) = Lab::new().await else { return };
    CertManager::install(&lab.api).await;
    // Its rights, and the policies without which it does not use them.
    lab.api.apply_components(&["cert-manager"]);
    lab.api.namespace("fat", &[]).await;
    let many = if std::env::var_os("ETCD_TLS_SOAK").is_some() { 200 } else { 60 };
    let requests: Api<DynamicObject> = Api::namespaced_with(lab.api.client.clone(), "fat", &resource());
    let name = |n: usize| format!("etcd-tls-0d5f2e0c-9c2f-4a68-9e53-{n:012x}-peer-0123456789abcdef0123456789abcdef");
    // Stored as JSON, where each of these characters takes six bytes.
    let fat = "<".repeat(230_000);
    for n in 0..many {
        let request = json!({
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
            "metadata": {"name": name(n), "annotations": {"x": fat}},
            "spec": {"request": "YWJj", "issuerRef": {"name": "x"}},
        });
        requests.create(&PostParams::default(), &from_json(request)).await.expect("create a request");
    }
    for n in 0..2 {
        let ready = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "Issued", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}});
        let params = PatchParams::default();
        requests.patch_status(&name(n), &params, &Patch::Merge(ready)).await.expect("finish a request");
    }
    let signer =
        sign(&lab, "sign-a", &["--cert-manager", "--check-pending-every=1s", "--delete-issued-after=1s"]).await;
    bound("sign", signer.id());
    eventually("the finished requests to go", lab::LIMIT, || async {
        let left = requests.list_metadata(&ListParams::default()).await.map_err(|e| e.to_string())?.items.len();
        if left == many - 2 { Ok(()) } else { Err(format!("{left} of {many}: {}", signer.log())) }
    })
    .await;
    within_limit("sign", signer.id(), &format!("beside {many} requests of 1.4 MB"));
}

/// As many as fill an API server's etcd. The test answers them: an API server takes many minutes to store them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_certificate_requests_does_not_exceed_the_limit() {
    const MANY: usize = 250_000;
    const PAGE: usize = 1000;
    let Some(lab) = Lab::new().await else { return };
    CertManager::install(&lab.api).await;
    lab.api.apply_components(&["cert-manager"]);
    let proxy = FaultProxy::start(&lab.api, 1).await;
    let lists = Arc::new(AtomicUsize::new(0));
    let complete = Arc::clone(&lists);
    proxy.answer_reads(move |path| {
        let query = path.strip_prefix("/apis/cert-manager.io/v1/certificaterequests?")?;
        let from = query.split('&').find_map(|part| part.strip_prefix("continue=")?.parse().ok()).unwrap_or_default();
        let items: Vec<Value> = (from..MANY.min(from + PAGE))
            .map(|n| {
                let name = format!("etcd-tls-0d5f2e0c-9c2f-4a68-9e53-{n:012x}-peer-{n:032x}");
                json!({"metadata": {
                    "name": name, "namespace": "x".repeat(63), "uid": name, "resourceVersion": "1",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                }})
            })
            .collect();
        let next = if from + PAGE < MANY { (from + PAGE).to_string() } else { String::new() };
        if next.is_empty() {
            complete.fetch_add(1, Ordering::Relaxed);
        }
        let list = json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": "1", "continue": next}, "items": items,
        });
        Some(list.to_string().into_bytes())
    });
    let signer = sign_at(&lab, "sign-a", &proxy.url, &["--cert-manager", "--check-pending-every=1s"]).await;
    bound("sign", signer.id());
    // One list is that of the trial of the policy; the others are rounds.
    eventually("some rounds", 3 * lab::LIMIT, || async {
        let lists = lists.load(Ordering::Relaxed);
        if lists >= 4 { Ok(()) } else { Err(format!("{lists}: {}", signer.log())) }
    })
    .await;
    within_limit("sign", signer.id(), &format!("beside {MANY} CertificateRequests"));
}

/// Namespaces of a tenant, each with as many clusters as it may have, of two authorities each.
const FULL: [&str; 3] = ["full-0", "full-1", "full-2"];
const CLUSTERS: usize = 31;
/// The namespace whose clusters have three members each.
const OF_THREE: &str = FULL[1];
/// Certificates on each record, of a pod each, with the longest names: half a megabyte.
const RECORDED: usize = 1000;
/// `--record-memory` is this by default.
const RECORDS: f64 = (32 << 20) as f64;

/// As many certificates of as many pods as would take three times the memory that there is for the record of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_records_do_not_exceed_the_limit() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let mut first = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("honest", &[("etcd-tls", "dynamic")]).await;
    let honest = member(&lab, "honest", "etcd-0", Some("10.9.0.1")).await;
    issue(&lab, &honest, Role::Peer, None).await;
    for namespace in FULL {
        lab.api.namespace(namespace, &[("etcd-tls", "dynamic")]).await;
        let members = if namespace == OF_THREE { 3 } else { 1 };
        stream::iter(0..CLUSTERS * members)
            .for_each_concurrent(8, |n| {
                let cluster = format!("c{}", n / members);
                let (lab, name) = (&lab, format!("{cluster}-{}", n % members));
                let pod = json!({
                    "metadata": {"name": name, "annotations": {"etcd-tls.dev/cluster": cluster}},
                    "spec": {
                        "containers": [{"name": "etcd", "image": "etcd"}],
                        "initContainers": [{"name": SIDECAR_CONTAINER, "image": "x", "restartPolicy": "Always"}],
                    },
                });
                let address = format!("10.9.1.{}", n + 1).parse().expect("an address");
                async move {
                    eventually("a pod", lab::LIMIT, || lab.api.pod(namespace, pod.clone())).await;
                    lab.api.set_pod_ips(namespace, &name, &[address]).await;
                }
            })
            .await;
    }
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), OF_THREE);
    let members: HashMap<String, String> = pods
        .list(&ListParams::default())
        .await
        .expect("list pods")
        .into_iter()
        .map(|pod| (pod.name_any(), pod.uid().expect("a uid")))
        .collect();
    eventually("the CAs", 3 * lab::LIMIT, || async {
        let mut missing = FULL.len() * CLUSTERS * 2;
        for namespace in FULL {
            missing -= cas(&lab, namespace).await.len();
        }
        if missing == 0 { Ok(()) } else { Err(missing) }
    })
    .await;
    let greedy: Pod = Api::namespaced(lab.api.client.clone(), FULL[0]).get("c0-0").await.expect("a pod");
    // It would write its own records over these.
    first.kill();
    let secrets: Api<Secret> = Api::namespaced(lab.api.client.clone(), SYSTEM_NAMESPACE);
    for namespace in FULL {
        stream::iter(cas(&lab, namespace).await)
            .for_each_concurrent(8, |name| {
                let record = if namespace == FULL[0] && name.ends_with("-c0-peer") {
                    record(100, |_| (greedy.uid().expect("a uid"), format!("{namespace}/c0-0")))
                } else {
                    record(RECORDED, |n| {
                        let unique = format!("{name}-{n}");
                        let own = || {
                            let cluster = name.strip_suffix("-peer")?.rsplit('-').next().filter(|_| n < 3)?;
                            let pod = format!("{cluster}-{n}");
                            Some((members.get(&pod).filter(|_| namespace == OF_THREE)?.clone(), pod))
                        };
                        let other = || (format!("0d5f2e0c-9c2f-4a68-9e53-{n:012x}"), format!("{unique:0>220}"));
                        let (holder, pod) = own().unwrap_or_else(other);
                        (holder, format!("{namespace}/{pod}"))
                    })
                };
                let patch = Patch::Merge(json!({"data": {"issued.json": ByteString(record.to_string().into_bytes())}}));
                let secrets = &secrets;
                async move { drop(secrets.patch(&name, &PatchParams::default(), &patch).await.expect("fill a record")) }
            })
            .await;
    }

    let admin = ports::loopback();
    let signer = sign_with(&lab, "sign-b", &lab.api.url, admin, &[]).await;
    let metrics = || async { lab::get(&format!("127.0.0.1:{admin}"), "/metrics").await };
    eventually("all of them read, and what is too much forgotten", 3 * lab::LIMIT, || async {
        let text = metrics().await?;
        let read = text.lines().filter(|line| line.starts_with("etcd_tls_sign_authority_phase{")).count();
        let taken = metric(&text, "etcd_tls_sign_record_bytes");
        let as_bound = 0.8 * RECORDS < taken && taken <= RECORDS;
        if read == (FULL.len() * CLUSTERS + 1) * 2 && as_bound { Ok(()) } else { Err(format!("{read}: {taken}")) }
    })
    .await;
    let per_pod = metric(&metrics().await.expect("metrics"), "etcd_tls_sign_certificates_per_pod_now");
    assert!((32.0..100.0).contains(&per_pod), "{per_pod}");
    let said = eventually("what a record forgot is said", lab::LIMIT, || async {
        let said = revoke(&lab.api.kubeconfig, &["full-0/c1", "--list"]).await?;
        if said.contains("c1 peer: the record lacks certificates") { Ok(said) } else { Err(said) }
    })
    .await;
    println!("{said}");
    nothing_is_taken_for_whole(&lab).await;

    // A pod that has many waits. One that has few gets its next one, beside a full record as elsewhere.
    let more = Asking::of(&greedy, Role::Peer);
    more.create_when_allowed(&lab.requester(&greedy).await).await;
    lab.event_of(FULL[0], "c0-0", "while little memory is left for the records of all pods").await;
    let few: Pod = Api::namespaced(lab.api.client.clone(), FULL[0]).get("c1-0").await.expect("a pod");
    issue(&lab, &few, Role::Peer, None).await;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let began = Instant::now();
        issue(&lab, &honest, Role::Server, None).await;
        longest = longest.max(began.elapsed());
    }
    let said = revoke(&lab.api.kubeconfig, &["honest/etcd", "--list"]).await.expect("lists");
    assert!(!said.contains("the record lacks"), "a small record is whole: {said}");
    let (peak, taken) =
        (peak_kib(signer.id()), metric(&metrics().await.expect("metrics"), "etcd_tls_sign_record_bytes"));
    println!(
        "sign: {} MiB at most, {:.1} MiB of records; an honest request took {longest:?}",
        peak / 1024,
        taken / f64::from(1 << 20)
    );
    assert!(peak < limit_kib("sign"), "sign had {} MiB resident", peak / 1024);
    assert!(taken <= 1.05 * RECORDS, "{taken}");
    assert!(longest < Duration::from_secs(20), "an honest request took {longest:?}");
}

/// A record that forgot certificates for the memory of all may lack some of any pod: `revoke` says so, and takes each member of
/// whom it may lack one for the owner of a certificate that it does not know.
async fn nothing_is_taken_for_whole(lab: &Lab) {
    // Some records forgot nothing: others left them room.
    let cluster = eventually("a record of peers that forgot some", 3 * lab::LIMIT, || async {
        let mut all = String::new();
        for n in 0..CLUSTERS {
            let said = revoke(&lab.api.kubeconfig, &[&format!("{OF_THREE}/c{n}"), "--list"]).await?;
            if said.contains(&format!("c{n} peer: the record lacks certificates")) {
                return Ok(format!("c{n}"));
            }
            all += &said;
        }
        Err(all)
    })
    .await;
    let whole = format!("{OF_THREE}/{cluster}");
    for named in [["--pod", &format!("{cluster}-0")], ["--user", &format!("system:etcd-peer:{:047}", 0)]] {
        // With the pods here, which no sidecar is in, it is not the worst that the command says.
        let said = said(&lab.api.kubeconfig, &[&whole, named[0], named[1], "--at-once"]).await;
        let untold = "Cannot determine whether there are other certificates to revoke";
        assert!(said.contains(untold), "{said}");
    }
    // One of three is refused now. This one may be of either of the others.
    let serial = [&whole, "--serial", "4f0a", "--at-once"];
    let (code, said) = ended(&lab.api.kubeconfig, &serial).await.expect_err("no quorum may be left");
    let why = "it would leave 1 of 3 members of";
    let lacks = "the record lacks certificates of 2 of them, which may be the ones named";
    assert!(code != Some(0) && said.contains(why) && said.contains(lacks), "{code:?}: {said}");
}

/// A record of `count` certificates, each of the holder and pod that `of` says.
fn record(count: usize, of: impl Fn(usize) -> (String, String)) -> Value {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
    // The first ones end last, and are not forgotten.
    let until = |n: usize| now + 86_400 + u64::try_from(count - n).expect("few");
    let leaf = |n: usize| {
        let (holder, pod) = of(n);
        let user = format!("system:etcd-peer:{n:047}");
        json!({
            "at": now - 60, "until": until(n), "holder": holder, "pod": pod, "user": user, "peer": true,
            "key": format!("{n:032x}"),
        })
    };
    let leaves: BTreeMap<String, Value> = (0..count).map(|n| (format!("{n:040x}"), leaf(n))).collect();
    json!({"leaves": leaves, "since": now - 60})
}

/// The value of a metric without labels.
fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
}

fn ordinary(n: usize) -> (String, Value) {
    let containers = json!([{"name": "web", "image": "web", "env": [{"name": "A", "value": "b".repeat(500)}]}]);
    (format!("ordinary-{n}"), json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}}))
}

/// 1.25 MB in etcd, six times that as JSON.
fn with_environment(n: usize) -> (String, Value) {
    let env: Vec<_> = (0..5).map(|m| json!({"name": format!("V{m}"), "value": "<".repeat(250_000)})).collect();
    let pod = json!({
        "metadata": {"labels": {"etcd-tls": "dynamic"}},
        "spec": {"containers": [{"name": "etcd", "image": "etcd", "env": env}]},
    });
    (format!("environment-{n}"), pod)
}

fn with_annotation(n: usize) -> (String, Value) {
    let pod = json!({
        "metadata": {"labels": {"etcd-tls": "dynamic"}, "annotations": {"etcd-tls.dev/user": "<".repeat(255 * 1024)}},
        "spec": {"containers": [{"name": "etcd", "image": "etcd"}]},
    });
    (format!("annotation-{n}"), pod)
}

async fn make_pods(lab: &Lab, count: usize, what: fn(usize) -> (String, Value)) {
    let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), "fat");
    stream::iter(0..count)
        .for_each_concurrent(8, |n| {
            let pods = pods.clone();
            async move {
                let (name, mut pod) = what(n);
                pod["metadata"]["name"] = name.into();
                pod["spec"]["nodeName"] = NODE.into();
                pods.create(&PostParams::default(), &from_json(pod)).await.expect("create a pod");
            }
        })
        .await;
}

async fn make_services(lab: &Lab, count: usize) {
    let services: Api<Service> = Api::namespaced(lab.api.client.clone(), "fat");
    for n in 0..count {
        let selector: std::collections::BTreeMap<_, _> =
            (0..8000).map(|m| (format!("example.com/key-{m}"), "v".repeat(60))).collect();
        let service = json!({
            "metadata": {"name": format!("fat-{n}"), "annotations": {"x": "<".repeat(250_000)}},
            "spec": {"selector": selector, "ports": [{"port": 1}]},
        });
        services.create(&PostParams::default(), &from_json(service)).await.expect("create a Service");
    }
}

/// The most memory of a process that was ever resident.
fn peak_kib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
