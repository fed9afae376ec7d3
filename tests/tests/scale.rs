//! Many etcd clusters under one API server, each in a namespace of its own, with bound tokens and no kubelet: what `approve` and
//! `sign` hold and cost is the same for many namespaces as for few, or grows by little for each.

#[path = "approve/lab.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod lab;
#[path = "approve/proxy.rs"]
#[allow(dead_code, reason = "the approver's tests use the rest")]
mod proxy;
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
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Pod};
use kube::{Api, api::ListParams};
use lab::{Asking, LIMIT, Lab};
use proxy::Proxy;
use serde_json::json;
use signer::{issue, issued, member, member_of, sign, sign_at, trust, write_trust};
use tests::{eventually, process::Process, tier, truths::Witness};
use tokio::time::sleep;

/// Namespaces at first, and all that there are then; three members in each. `ETCD_TLS_SCALE=100,300` says others.
const NUMBERS: [u16; 2] = [15, 100];
const MEMBERS: u16 = 3;
/// Namespaces of which two signers make one truth.
const PAIRS: u16 = 5;
/// How long nothing is written when what happened is over.
const SETTLED: Duration = Duration::from_secs(10);
/// How long nothing is written when nothing happens: more than the rest between two passes of the reconciler. `ETCD_TLS_SOAK` makes
/// it an hour.
const IDLE: Duration = Duration::from_secs(65);
const IDLE_HOUR: Duration = Duration::from_secs(3600);
/// Processor time that a process may take of it. A release takes less than a hundredth.
const IDLE_SHARE: f64 = 0.03;
/// How long certificates are requested one after the other.
const RECORDED: Duration = Duration::from_secs(10);
/// Calls of the harness at once.
const AT_ONCE: usize = 12;
/// Watches that `approve` or `sign` may hold.
const WATCHES: usize = 20;
/// Connections beside them, for calls: as many as a process makes at once.
const CONNECTIONS: usize = 64;
/// KiB of `approve` and of `sign` for a namespace with a cluster of three, in a debug build, the allocator's slack included. They took 5.5
/// and 13.7; before keys, names and uids were kept in few bytes it was 8 and 25.
const KIB_EACH: [f64; 2] = [12.0, 22.0];
/// KiB of a connection, which is open for another reason: buffers and the state of TLS.
const KIB_A_CONNECTION: f64 = 64.0;

/// See [`NUMBERS`].
fn numbers() -> [u16; 2] {
    let Ok(text) = std::env::var("ETCD_TLS_SCALE") else { return NUMBERS };
    let numbers: Vec<u16> = text.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("ETCD_TLS_SCALE={text}: two numbers of namespaces"))
}

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

/// How many calls of a verb the API server has answered for a resource.
async fn calls(lab: &Lab, verb: &str, resource: &str) -> f64 {
    let (verb, resource) = (format!("verb=\"{verb}\""), format!("resource=\"{resource}\""));
    let all = figures(lab, "apiserver_request_total").await;
    all.iter().filter(|(labels, _)| labels.contains(&verb) && labels.contains(&resource)).map(|(_, count)| count).sum()
}

/// Writes of all, but those of Leases and dry runs.
async fn writes(lab: &Lab) -> BTreeMap<String, f64> {
    let mut all = figures(lab, "apiserver_request_total").await;
    all.retain(|labels, _| {
        let is = |label: &str| labels.contains(label);
        let writes = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].iter().any(|verb| is(&format!("verb=\"{verb}\"")));
        writes && is("dry_run=\"\"") && !is("resource=\"leases\"")
    });
    all
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

/// Seconds of the processor that a process has used.
fn processor_time(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("a running process");
    // utime and stime, in hundredths of a second: the 14th and the 15th field, of which the second is the name.
    let fields = stat.rsplit_once(") ").expect("a name").1.split(' ').skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().expect("a number") / 100.0).sum()
}

/// Waits until the requests are deleted: five minutes after their certificates.
async fn requests_are_gone(lab: &Lab) {
    let requests: Api<CertificateSigningRequest> = Api::all(lab.api.client.clone());
    eventually("no request is left", 5 * LIMIT, || async {
        let list = requests.list_metadata(&ListParams::default().limit(1)).await.map_err(|error| error.to_string())?;
        let left = list.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} and {:?} more", list.metadata.remaining_item_count)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_namespaces_cost_no_more_watches_than_few() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/flow.yaml").display().to_string()]);
    let [first, all] = numbers();
    let began = Instant::now();
    let own = watches(&lab).await;
    let approver = lab.approver("approve-a", &[]);
    let mut signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let at_none = [memory(&approver.process), memory(&signer)];
    tenants(&lab, 0..first).await;
    let of_both = |all: &BTreeMap<String, f64>| all.values().sum::<f64>() - own.values().sum::<f64>();
    let of_namespaces = |all: &BTreeMap<String, f64>| -> f64 {
        all.iter().filter(|(labels, _)| labels.contains("scope=\"namespace\"")).map(|(_, count)| count).sum()
    };
    let few = watches(&lab).await;
    let at_few = [&approver.process, &signer].map(|process| (memory(process), sockets(process)));
    tenants(&lab, first..all).await;
    for n in [0, first, all - 1] {
        trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
    }
    // One that is opened again at this moment counts twice, or not at all.
    eventually("as many watches for many namespaces as for few", LIMIT, || async {
        let many = watches(&lab).await;
        // The Secrets of the system namespace.
        let by_namespace = of_namespaces(&many) - of_namespaces(&own);
        if of_both(&many) <= of_both(&few) && by_namespace <= 1.0 { Ok(()) } else { Err(format!("{few:#?} {many:#?}")) }
    })
    .await;
    assert!(of_both(&few) <= 2.0 * WATCHES as f64, "{few:#?}");
    let processes = [("approve", &approver.process), ("sign", &signer)];
    for (((name, process), (before, connected)), most) in processes.into_iter().zip(at_few).zip(KIB_EACH) {
        let sockets = sockets(process);
        let connections = sockets.saturating_sub(connected) as f64 * KIB_A_CONNECTION;
        let each = (memory(process) - before - connections) / f64::from(all - first);
        println!("{name}: {sockets} sockets, {each:.1} KiB for each namespace, {:.0} KiB in all", memory(process));
        assert!(sockets <= WATCHES + CONNECTIONS, "{name} has {sockets} sockets");
        assert!(each <= most, "{name} takes {each:.1} KiB for each namespace");
    }
    println!("{} watches of both, after {:?}", of_both(&few), began.elapsed());
    if tier::soaking() {
        requests_are_gone(&lab).await;
        for ((name, process), before) in processes.into_iter().zip(at_none) {
            let each = (memory(process) - before) / f64::from(all);
            println!(
                "{name}: {each:.1} KiB for each namespace when the requests are gone, {:.0} KiB in all",
                memory(process)
            );
        }
    }

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

    // When nothing happens, nothing is written, and little is done. Requests go five minutes after their certificates.
    let idle = if tier::soaking() { IDLE_HOUR } else { IDLE };
    let processes = [approver.process.id(), signer.id()];
    let shares = eventually("the last writes", LIMIT + 10 * idle, || async {
        let before = writes(&lab).await;
        sleep(SETTLED).await;
        if before != writes(&lab).await {
            return Err("not at rest yet".to_owned());
        }
        let (before, worked) = (writes(&lab).await, processes.map(processor_time));
        let began = Instant::now();
        sleep(idle).await;
        let (took, after) = (began.elapsed().as_secs_f64(), writes(&lab).await);
        let shares = [0, 1].map(|n| (processor_time(processes[n]) - worked[n]) / took);
        let little = shares.iter().all(|share| *share < IDLE_SHARE);
        if before == after && little { Ok(shares) } else { Err(format!("{shares:?} {before:#?} {after:#?}")) }
    })
    .await;
    println!("at rest: {:.2} % and {:.2} % of a core", shares[0] * 100.0, shares[1] * 100.0);
}

/// The members that ask at once for two certificates each.
const ASKING: u16 = 30;

/// `approve` and `sign` judge by a state of the pod no older than the request. The watch has no such state where no pod changes, so
/// each of them reads the pod: where requests wait for their turn, once for both of a pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_requests_that_wait_both_of_a_pod_are_judged_by_one_read() {
    let Some(lab) = Lab::new().await else { return };
    // So that requests do wait.
    let approver = lab.approver("approve-a", &["--workers=2"]);
    let _signer = sign(&lab, "sign-a", &["--workers=1"]).await;
    lab.ready(&approver).await;
    lab.api.namespace("tenant", &[(names::LABEL, names::DYNAMIC)]).await;
    let mut pods = Vec::new();
    for n in 0..ASKING {
        let [_, low] = n.to_be_bytes();
        let ip = Ipv4Addr::new(10, 9, 0, low + 1).to_string();
        let pod = member(&lab, "tenant", &format!("etcd-{n}"), Some(&ip)).await;
        let requester = lab.requester(&pod).await;
        pods.push((pod, requester));
    }
    // The right to ask, and the authorities.
    let first = member(&lab, "tenant", "first", Some("10.9.1.1")).await;
    for role in [Role::Peer, Role::Server] {
        issue(&lab, &first, role, None).await;
    }
    let reads = || calls(&lab, "GET", "pods");
    let before = reads().await;
    let asked = pods.iter().map(|(pod, requester)| async {
        let both = [Role::Peer, Role::Server].map(|role| Asking::of(pod, role));
        futures::join!(both[0].create_when_allowed(requester), both[1].create_when_allowed(requester));
        both.map(|asking| asking.name)
    });
    for names in futures::future::join_all(asked).await {
        for name in names {
            issued(&lab, &name).await;
        }
    }
    let (each, certificates) = (reads().await - before, 2.0 * f64::from(ASKING));
    println!("{:.2} reads of a pod for a certificate, by approve and sign", each / certificates);
    // Two if each read for each request; one if the two requests of a pod always stood together.
    assert!(each > 0.0 && each <= 1.6 * certificates, "{each} reads for {certificates} certificates");
}

/// A full record is 350 KiB, and the API server's policies read each write of it several times: it is written two seconds after a
/// certificate, and a second more for each 16 that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_certificates_is_written_the_less_often_the_larger_it_is() {
    let Some(lab) = Lab::new().await else { return };
    let approver = lab.approver("approve-a", &[]);
    let _signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    lab.api.namespace("tenant", &[(names::LABEL, names::DYNAMIC)]).await;
    let pod = member(&lab, "tenant", "etcd-0", Some("10.9.0.1")).await;
    let both =
        async || drop(futures::join!(issue(&lab, &pod, Role::Peer, None), issue(&lab, &pod, Role::Server, None)));
    let written = || calls(&lab, "PUT", "secrets");
    both().await;
    let mut certificates = 1;
    for (at_least, pause, lasts) in [(1, 2.0, RECORDED / 2), (48, 5.0, RECORDED)] {
        while certificates < at_least {
            both().await;
            certificates += 1;
        }
        let (before, began) = (written().await, Instant::now());
        while began.elapsed() < lasts || written().await - before < 2.0 {
            assert!(began.elapsed() < LIMIT, "of {certificates} certificates, nothing more was written");
            both().await;
            certificates += 1;
        }
        let (writes, seconds) = (written().await - before, began.elapsed().as_secs_f64());
        println!(
            "{writes} writes of two records in {seconds:.1} s, which have {certificates} certificates each by now"
        );
        // One more of each for the certificates before.
        assert!(writes <= 2.0 * (seconds / pause + 1.0), "{writes} writes in {seconds} s");
    }
    // A rollover waits for a pod that states another reason with each request: none of them is written by itself.
    let request = json!({"metadata": {"annotations": {"etcd-tls.dev/rollover-peer-request": "start one"}}});
    write_trust(&lab, "tenant", names::DEFAULT_CLUSTER, request).await;
    eventually("both CAs in the bundle", LIMIT, || async {
        let [peer, ..] = trust(&lab, "tenant", names::DEFAULT_CLUSTER).await;
        if peer.certificates().len() == 2 { Ok(()) } else { Err(peer.certificates().len()) }
    })
    .await;
    issue(&lab, &pod, Role::Peer, Some("unknown:kubelet")).await;
    let (before, began) = (written().await, Instant::now());
    for reason in ["unknown:listeners", "unknown:kubelet"].repeat(8) {
        issue(&lab, &pod, Role::Peer, Some(reason)).await;
    }
    let (writes, seconds) = (written().await - before, began.elapsed().as_secs_f64());
    println!("{writes} writes in {seconds:.1} s, for 16 statements of a pod");
    // One for the certificates before, of each record.
    assert!(writes <= 2.0 * (seconds / 5.0 + 1.0), "{writes} writes in {seconds} s");
}

/// A Lease keeps two signers from working, not what they write from being one truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signers_that_both_lead_make_one_truth() {
    let Some(lab) = Lab::new().await else { return };
    let _approver = lab.approver("approve-a", &[]);
    let token = lab.api.token(names::SYSTEM_NAMESPACE, "etcd-tls-sign", None).await;
    let rights = lab.api.client_with_token(&token).await;
    let proxy = Proxy::with_own_lease(rights, lab.api.client.clone(), "etcd-tls-sign").await;
    let first = sign(&lab, "sign-a", &[]).await;
    let second = sign_at(&lab, "sign-b", &proxy.url, &[]).await;
    eventually("two leaders", LIMIT, || async {
        let leads = |process: &Process| process.log().contains("leading");
        if leads(&first) && leads(&second) { Ok(()) } else { Err(second.log_end()) }
    })
    .await;

    let witness = Witness::start(&lab.api.client, names::SYSTEM_NAMESPACE);
    tenants(&lab, 0..PAIRS).await;
    // Both begin a rollover, of each peer authority.
    for n in 0..PAIRS {
        trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
        let request = json!({"metadata": {"annotations": {"etcd-tls.dev/rollover-peer-request": "start one"}}});
        write_trust(&lab, &namespace(n), names::DEFAULT_CLUSTER, request).await;
    }
    for n in 0..PAIRS {
        eventually("both CAs in the bundle", LIMIT, || async {
            let [peer, ..] = trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
            if peer.certificates().len() == 2 { Ok(()) } else { Err(peer.certificates().len()) }
        })
        .await;
        let pod: Pod = Api::namespaced(lab.api.client.clone(), &namespace(n)).get("etcd-0").await.expect("a pod");
        let (_, chain) = issue(&lab, &pod, Role::Peer, None).await;
        let [peer, ..] = trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
        assert!(peer.contains_issuer_of(&chain));
    }

    let worked = |process: &Process| {
        let log = process.log();
        log.matches(": issued").count() + log.matches("changed since it was looked at").count()
    };
    println!("requests that each signer worked on: {}, {}", worked(&first), worked(&second));
    assert!(worked(&first) > 0 && worked(&second) > 0, "both work: {}", second.log_end());
    let truths = witness.truths();
    assert!(truths.certificates.len() >= usize::from(PAIRS * MEMBERS), "{}", truths.certificates.len());
    truths.assert_one_each();
    let next = truths.authorities.keys().filter(|of| of.ends_with("next.crt")).count();
    assert_eq!(next, usize::from(PAIRS), "a next CA of each");
}

/// Namespaces of a cold start, and certificates after which its leaders are killed.
const STARTING: u16 = 10;
const KILLED_AFTER: usize = (STARTING * MEMBERS) as usize / 4;

/// The members of all clusters ask at once, and both leaders are killed when a few of them have certificates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_die_in_a_cold_start_cost_no_certificate_and_no_second_ca() {
    let Some(lab) = Lab::new().await else { return };
    let witness = Witness::start(&lab.api.client, names::SYSTEM_NAMESPACE);
    let mut first = (lab.approver("approve-a", &[]), sign(&lab, "sign-a", &[]).await);
    lab.ready(&first.0).await;
    let kill = async {
        let issued = || witness.truths().certificates.len();
        eventually("some certificates", LIMIT, || async {
            if issued() >= KILLED_AFTER { Ok(()) } else { Err(issued()) }
        })
        .await;
        first.0.process.kill();
        first.1.kill();
        let at = issued();
        (at, lab.approver("approve-b", &[]), sign(&lab, "sign-b", &[]).await)
    };
    let ((at, approver, signer), ()) = tokio::join!(kill, tenants(&lab, 0..STARTING));
    for n in 0..STARTING {
        trust(&lab, &namespace(n), names::DEFAULT_CLUSTER).await;
    }
    println!("the leaders were killed after {at} of {} certificates", STARTING * MEMBERS);
    assert!(at < usize::from(STARTING * MEMBERS), "they were killed too late");
    assert!(
        signer.log().contains(": issued") && approver.process.log().contains(": approved "),
        "{}",
        signer.log_end()
    );
    // The witness is a watch of its own.
    eventually("each request has its certificate", LIMIT, || async {
        let truths = witness.truths();
        let seen = (truths.certificates.len(), truths.authorities.len());
        // Two authorities of each cluster, and the webhook's own CA.
        let all = seen.0 == usize::from(STARTING * MEMBERS) && seen.1 >= usize::from(2 * STARTING);
        if all { Ok(()) } else { Err(format!("{seen:?} {:?}", truths.refused)) }
    })
    .await;
    let truths = witness.truths();
    truths.assert_one_each();
    assert_eq!(truths.refused.len(), 0, "{:?}", truths.refused);
}

async fn asks_for_both(lab: &Lab, pod: &Pod) {
    let client = lab.requester(pod).await;
    for role in [Role::Peer, Role::Server] {
        lab::Asking::of(pod, role).create_when_allowed(&client).await;
    }
}

/// Pods of a namespace that has asked for two certificates each, when three others ask for one; and their service accounts.
const CROWD: u16 = 90;
const ACCOUNTS: u16 = 45;
const BACKLOG: usize = 2 * CROWD as usize;
/// How many of the backlog may be approved before the last of the others: those under way at once, and a few turns.
const AHEAD: usize = BACKLOG / 9;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_one_certificate_does_not_wait_for_the_backlog_of_another_namespace() {
    let Some(lab) = Lab::new().await else { return };
    lab.api.kubectl(&["apply", "-f", &tests::repository().join("manifests/flow.yaml").display().to_string()]);
    let mut approver = lab.approver("approve-a", &[]);
    let mut signer = sign(&lab, "sign-a", &[]).await;
    lab.ready(&approver).await;
    let mut pods = Vec::new();
    for n in 0..4 {
        lab.api.namespace(&namespace(n), &[(names::LABEL, names::DYNAMIC)]).await;
        let ip = Ipv4Addr::new(10, 1, 0, u8::try_from(n + 1).expect("few")).to_string();
        let pod = member(&lab, &namespace(n), "etcd-0", Some(&ip)).await;
        // Its right to request is there.
        issue(&lab, &pod, Role::Peer, None).await;
        pods.push((lab.requester(&pod).await, pod));
    }
    approver.process.kill();
    for n in 0..ACCOUNTS {
        lab.api.service_account(&namespace(0), &format!("account-{n}")).await;
    }
    let lab = &lab;
    let [_, others @ ..] = &pods[..] else { unreachable!("four pods") };
    stream::iter(0..CROWD)
        .for_each_concurrent(AT_ONCE, |n| async move {
            let ip = Ipv4Addr::new(10, 2, 0, u8::try_from(n + 1).expect("few")).to_string();
            let account = format!("account-{}", n % ACCOUNTS);
            let pod = member_of(lab, &namespace(0), &account, &format!("crowd-{n}"), Some(&ip)).await;
            asks_for_both(lab, &pod).await;
        })
        .await;
    let asked: Vec<_> = others.iter().map(|(client, pod)| (client, lab::Asking::of(pod, Role::Server))).collect();
    for (client, asking) in &asked {
        asking.create_when_allowed(client).await;
    }
    let approver = lab.approver("approve-b", &["--workers=4"]);
    for (_, asking) in &asked {
        signer::issued(lab, &asking.name).await;
    }
    let names: Vec<&str> = asked.iter().map(|(_, asking)| asking.name.as_str()).collect();
    let ahead = ahead_of(&approver.process, ": approved ", &names).await;
    println!("approve: {ahead} of {BACKLOG} before the last of {} others", names.len());
    assert!(ahead <= AHEAD, "{ahead} of {BACKLOG} before the last of {} others", names.len());

    // The same of the signer: new requests of all, which are approved while it is away.
    issued_all(&signer, BACKLOG + 4 + names.len()).await;
    signer.kill();
    stream::iter(0..CROWD)
        .for_each_concurrent(AT_ONCE, |n| async move {
            let pods: Api<Pod> = Api::namespaced(lab.api.client.clone(), &namespace(0));
            let pod = pods.get(&format!("crowd-{n}")).await.expect("a pod");
            asks_for_both(lab, &pod).await;
        })
        .await;
    let asked: Vec<_> = others.iter().map(|(client, pod)| (client, lab::Asking::of(pod, Role::Server))).collect();
    for (client, asking) in &asked {
        asking.create_when_allowed(client).await;
        lab.approved(&asking.name).await;
    }
    eventually("approvals of all", LIMIT, || async {
        let approved = approver.process.log().matches(": approved ").count();
        if approved >= 2 * (BACKLOG + asked.len()) { Ok(()) } else { Err(approved) }
    })
    .await;
    let signer = sign(lab, "sign-b", &["--workers=4"]).await;
    let names: Vec<&str> = asked.iter().map(|(_, asking)| asking.name.as_str()).collect();
    issued_all(&signer, BACKLOG + names.len()).await;
    let ahead = ahead_of(&signer, ": issued", &names).await;
    println!("sign: {ahead} of {BACKLOG} before the last of {} others", names.len());
    assert!(ahead <= AHEAD, "{ahead} of {BACKLOG} before the last of {} others", names.len());
}

/// Waits until a signer has issued so many.
async fn issued_all(signer: &Process, count: usize) {
    eventually("the backlog's certificates", LIMIT, || async {
        let issued = signer.log().matches(": issued").count();
        if issued >= count { Ok(()) } else { Err(issued) }
    })
    .await;
}

/// How many others a process finished, by the `word` of its log, before the last of these requests. A look at the API server would
/// come too late.
async fn ahead_of(process: &Process, word: &str, names: &[&str]) -> usize {
    let lines: Vec<String> = eventually("the backlog's end", LIMIT, || async {
        let log = process.log();
        let lines: Vec<String> = log.lines().filter(|line| line.contains(word)).map(str::to_owned).collect();
        if lines.len() >= BACKLOG + names.len() { Ok(lines) } else { Err(lines.len()) }
    })
    .await;
    let of_others = |line: &String| names.iter().any(|name| line.contains(name));
    let last = lines.iter().rposition(of_others).expect("the others'");
    last + 1 - names.len()
}
