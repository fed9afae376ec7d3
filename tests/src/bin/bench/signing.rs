//! Many requests at once, through the installed approver and signer, through kube-controller-manager's with its stock
//! settings, and by the bare writes; all on one API server.

use std::time::{Duration, Instant};

use etcd_tls_contract::{names, role::Role};
use tests::{
    installation::{Installation, Options},
    process::Process,
};

use crate::{
    asks::{self, Ask, Asker, ByHand, burst, node_ask},
    load::{Load, Spent},
    report::Report,
    stats::{median, memory, percentile},
    wire::Wire,
};

const NAMESPACE: &str = "bench";
const ROLES: [Role; 2] = [Role::Peer, Role::Server];
/// Requests at once: two of each pod.
const AT_ONCE: usize = 400;
const TURNS: u32 = 4;
/// The time after which the work caused by new pods is done.
const SETTLED: Duration = Duration::from_secs(2);
/// Requests to kube-controller-manager, which signs some ten a second.
const NODES: usize = 100;
/// Requests after which the processes' memory is looked at, and how long they may take.
const MANY: usize = 6_000;
const MANY_LIMIT: Duration = Duration::from_secs(150);

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let Some(installation) = Installation::start(&Options::default()).await else {
        report.skip(
            "400 requests at once",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl, etcd and kube-controller-manager> make bench",
        );
        return Ok(());
    };
    let api = &installation.api;
    api.namespace(NAMESPACE, &[(names::LABEL, names::DYNAMIC)]).await;
    asks::accounts(api, NAMESPACE).await;
    let address = asks::address(api);
    let mut admins = Wire::open_many(AT_ONCE, address, &asks::admin(api)).await?;
    let mut pods = Wire::open_many(AT_ONCE, address, &asks::nobody(api)).await?;
    let writers = asks::writers(api).await;
    let pods_each = u32::try_from(AT_ONCE / ROLES.len()).unwrap_or_default();
    let processes = [("approver", &installation.approve), ("signer", &installation.sign)];
    let load = Load::new(&installation);

    // The right to ask comes with the first pod, and the CA.
    let mut askers = asks::askers(api, NAMESPACE, 0, pods_each).await;
    let first = asks_of(&askers[..1]);
    burst(&mut pods[..first.len()], &first).await?;
    let (mut ours, mut hands, mut ratios, mut latencies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut admin_hands, mut bounds) = (Vec::new(), Vec::new());
    let (mut spent, mut spent_by_hand) = (Spent::default(), Spent::default());
    let mut done = first.len();
    for turn in 0..TURNS {
        if turn > 0 {
            // Pods of their own, so that no request supersedes another one.
            askers = asks::askers(api, NAMESPACE, turn * pods_each, pods_each).await;
        }
        let all = asks_of(&askers);
        let by_hand = ByHand::new(&format!("turn-{turn}"), AT_ONCE, &writers);
        let by_admin = ByHand::new(&format!("admin-{turn}"), AT_ONCE, &[]);
        tokio::time::sleep(SETTLED).await;
        // Neither of the two always comes after the other.
        let (through, hand);
        if turn % 2 == 0 {
            through = load.of(&mut spent, &mut admins[0], burst(&mut pods, &all)).await?;
            hand = load.of(&mut spent_by_hand, &mut admins[0], by_hand.rate(&mut pods)).await?;
        } else {
            hand = load.of(&mut spent_by_hand, &mut admins[0], by_hand.rate(&mut pods)).await?;
            through = load.of(&mut spent, &mut admins[0], burst(&mut pods, &all)).await?;
        }
        let with_reads = ByHand::new(&format!("reads-{turn}"), AT_ONCE, &writers).with_reads(&askers);
        bounds.push(with_reads.rate(&mut pods).await? / hand);
        admin_hands.push(by_admin.rate(&mut admins).await?);
        done += all.len();
        ours.push(through.rate);
        hands.push(hand);
        ratios.push(through.rate / hand);
        latencies.extend(through.latencies);
    }
    let rate = median(&ours);
    report.plain("400 requests at once, rate", format!("{rate:.0}/s"));
    report.plain(
        "400 requests at once, p50 and p99",
        format!("{:.0} ms, {:.0} ms", median(&latencies), percentile(&latencies, 0.99)),
    );
    let count = latencies.len() as f64;
    report.plain("CPU for a certificate", spent.cpu(count));
    report.plain("calls to the API server for a certificate", spent.calls(count));
    report.plain("create, approval, status by hand, 400 at once", format!("{:.0}/s", median(&hands)));
    report.plain("the same by cluster-admin, whom no queue holds", format!("{:.0}/s", median(&admin_hands)));
    report.plain("CPU for three writes by hand", spent_by_hand.cpu(count));
    let ratio = median(&ratios);
    report.plain(
        "the writes by hand with one read of the pod and one look each, against those without",
        format!("{:.2}", median(&bounds)),
    );
    report.judged("rate against the writes by hand", format!("{ratio:.2}"), ">= 0.6", ratio >= 0.6);
    kubernetes_own(report, &installation, &mut admins, rate).await?;

    let began = Instant::now();
    while done < MANY && began.elapsed() < MANY_LIMIT {
        let all = asks_of(&askers);
        burst(&mut pods, &all).await?;
        done += all.len();
    }
    for (name, process) in processes {
        let memory = memory(process.id());
        report.judged(
            format!("{name} after {done} requests, resident (anonymous)"),
            format!("{:.1} MiB ({:.1} MiB)", memory.resident, memory.anonymous),
            "<= 25 MiB",
            memory.resident <= 25.0,
        );
    }
    if done < MANY {
        println!("  {done} requests only: {MANY_LIMIT:?} were over");
    }
    Ok(())
}

fn asks_of(askers: &[Asker]) -> Vec<Ask> {
    askers.iter().flat_map(|asker| asker.asks(&ROLES)).collect()
}

/// The same by kube-controller-manager: approver and signer of node certificates.
async fn kubernetes_own(
    report: &mut Report,
    installation: &Installation,
    wires: &mut [Wire],
    rate: f64,
) -> Result<(), String> {
    let arguments = ["--controllers=csrapproving,csrsigning".to_owned()];
    let Some(manager) = installation.api.start_controller_manager(&arguments) else {
        report.skip(
            "kube-controller-manager's rate",
            "no kube-controller-manager beside kube-apiserver",
            "put it into the directory that KUBEBUILDER_ASSETS names",
        );
        return Ok(());
    };
    let _manager: Process = manager;
    // The first one shows that it runs.
    let asks: Vec<Ask> = (0..=NODES).map(node_ask).collect();
    burst(&mut wires[..1], &asks[..1]).await?;
    let theirs = burst(wires, &asks[1..]).await?;
    report.plain(
        format!("kube-controller-manager, {NODES} requests at once: rate, p99"),
        format!("{:.1}/s, {:.1} s", theirs.rate, percentile(&theirs.latencies, 0.99) / 1e3),
    );
    let ratio = rate / theirs.rate;
    report.judged("rate against kube-controller-manager's", format!("{ratio:.1}"), ">= 10", ratio >= 10.0);
    Ok(())
}
