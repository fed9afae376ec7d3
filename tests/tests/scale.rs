//! Many etcd clusters under one API server, each in a namespace of its own, with bound tokens and no kubelet: what `approve` and
//! `sign` hold and cost is the same for many namespaces as for few, or grows by little for each.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "sign/signer.rs"]
#[allow(dead_code, reason = "the signer's tests use the rest")]
mod signer;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use etcd_tls_contract::{names, role::Role};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use lab::{LIMIT, Lab};
use signer::{issue, member, sign, trust};
use tests::{eventually, process::Process};

/// Namespaces at first, and those that come then; three members in each.
const FEW: u16 = 15;
const MORE: u16 = 85;
const MEMBERS: u16 = 3;
/// Calls of the harness at once.
const AT_ONCE: usize = 12;
/// Watches that `approve` or `sign` may hold.
const WATCHES: usize = 20;
/// Connections beside them, for calls: as many as a process makes at once.
const CONNECTIONS: usize = 64;
/// KiB of a process for a namespace with a cluster of three, in a debug build, the allocator's slack included.
const KIB_EACH: f64 = 80.0;

fn namespace(n: u16) -> String {
    format!("tenant-{n}")
}

/// Makes namespaces, labelled, with the members of a cluster in each; gets each member a certificate.
async fn tenants(lab: &Lab, numbers: std::ops::Range<u16>) {
    stream::iter(numbers)
        .for_each_concurrent(AT_ONCE, |n| async move {
            lab.api.namespace(&namespace(n), &[(names::LABEL, names::DYNAMIC)]).await;
            for m in 0..MEMBERS {
                let [high, low] = n.to_be_bytes();
                let ip = Ipv4Addr::new(10, high, low, u8::try_from(10 + m).expect("few"));
                let pod = member(lab, &namespace(n), &format!("etcd-{m}"), Some(&ip.to_string())).await;
                certified(lab, &pod, ip.into()).await;
            }
        })
        .await;
}

/// Gets a member a certificate, which says what it is.
async fn certified(lab: &Lab, pod: &Pod, ip: IpAddr) {
    let (_, chain) = issue(lab, pod, Role::Peer, None).await;
    assert!(chain.sans.ips.contains(&ip), "{:?} of {ip}", chain.sans);
}

/// The API server's own figures whose names begin so, added up by their labels.
async fn figures(lab: &Lab, name: &str) -> BTreeMap<String, f64> {
    let request = hyper::Request::get("/metrics").body(Vec::new()).expect("a request");
    let text = lab.api.client.request_text(request).await.expect("metrics");
    let line = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        Some((labels.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The watches that the API server serves, by what they are of.
async fn watches(lab: &Lab) -> BTreeMap<String, f64> {
    let mut all = figures(lab, "apiserver_longrunning_requests").await;
    all.retain(|labels, count| labels.contains("verb=\"WATCH\"") && *count > 0.0);
    all
}

/// Calls that the API server turned away.
async fn turned_away(lab: &Lab) -> f64 {
    let all = figures(lab, "apiserver_request_total").await;
    all.iter().filter(|(labels, _)| labels.contains("code=\"429\"")).map(|(_, count)| count).sum()
}

/// Sockets that a process has open.
fn sockets(process: &Process) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", process.id())).expect("a running process").flatten();
    all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))).count()
}

/// KiB of a process's own data.
fn memory(process: &Process) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.id())).expect("a running process");
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("its anonymous memory");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_namespaces_cost_no_more_watches_than_few() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/flow.yaml").display().to_string()]);
    let began = Instant::now();
    let own = watches(&lab).await;
    let approver = lab.approver("approve-a", &[]);
    let mut signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    tenants(&lab, 0..FEW).await;
    let of_both = |all: &BTreeMap<String, f64>| all.values().sum::<f64>() - own.values().sum::<f64>();
    let of_namespaces = |all: &BTreeMap<String, f64>| -> f64 {
        all.iter().filter(|(labels, _)| labels.contains("scope=\"namespace\"")).map(|(_, count)| count).sum()
    };
    let few = watches(&lab).await;
    let at_few = [memory(&approver.process), memory(&signer)];
    tenants(&lab, FEW..FEW + MORE).await;
    for n in [0, FEW, FEW + MORE - 1] {
        trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
    }
    // One that is opened anew at this moment counts twice, or not at all.
    eventually("as many watches for many namespaces as for few", LIMIT, || async {
        let many = watches(&lab).await;
        // The Secrets of the system namespace.
        let by_namespace = of_namespaces(&many) - of_namespaces(&own);
        if of_both(&many) <= of_both(&few) && by_namespace <= 1.0 { Ok(()) } else { Err(format!("{few:#?} {many:#?}")) }
    })
    .await;
    assert!(of_both(&few) <= 2.0 * WATCHES as f64, "{few:#?}");
    for ((name, process), before) in [("approve", &approver.process), ("sign", &signer)].into_iter().zip(at_few) {
        let (sockets, each) = (sockets(process), (memory(process) - before) / f64::from(MORE));
        println!("{name}: {sockets} sockets, {each:.1} KiB for each namespace, {:.0} KiB in all", memory(process));
        assert!(sockets <= WATCHES + CONNECTIONS, "{name} has {sockets} sockets");
        assert!(each <= KIB_EACH, "{name} takes {each:.1} KiB for each namespace");
    }
    println!("{} watches of both, after {:?}", of_both(&few), began.elapsed());

    // Started beside all of them, it is turned away nowhere, and serves.
    let before = turned_away(&lab).await;
    signer.kill();
    let began = Instant::now();
    let signer = sign(&lab, "sign-a", &[]).await;
    let pod = member(&lab, &namespace(0), "etcd-9", Some("10.0.0.99")).await;
    certified(&lab, &pod, "10.0.0.99".parse().expect("an address")).await;
    println!("a signer that starts anew serves after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(turned_away(&lab).await, before, "calls were turned away");
    assert!(sockets(&signer) <= WATCHES + CONNECTIONS, "{} sockets", sockets(&signer));
}
