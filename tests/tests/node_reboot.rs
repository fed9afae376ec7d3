//! Tier 3: a whole self-hosted control plane loses its power and comes back by itself on a real kubelet and a real containerd.
//!
//! Three members of etcd, the API server that keeps its objects in them, and the approver and the signer are static pods of one
//! node, which has no network of pods and no API server but this one. Its kubelet, its containerd and all containers end by
//! SIGKILL at once. Then the node starts with all parts at once, and with the parts in two orders, chosen by the day of the year,
//! or with `ETCD_TLS_SOAK` in each of the six. `reboot.rs` shows the same of processes, without kubelet.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    eventually,
    installation::{Installation, own_address},
    node::{Node, static_pod_of},
    process::Process,
    say,
    self_hosted::{Members, Part, orders},
    signer::{BOOTSTRAP, Signer},
    tier,
};

/// How long a part is up before the next one is started, where it has to wait for one that is not up yet.
const ALONE: Duration = Duration::from_secs(5);
/// kubelet waits for up to 40 s before it starts a container again that ended three times.
const BACK: Duration = Duration::from_secs(300);

struct Plane {
    node: Node,
    members: Members,
    installation: Installation,
    api: Value,
    signer: [Value; 2],
}

impl Plane {
    fn add(&self, part: Part) {
        match part {
            Part::Etcds => self.members.all.iter().for_each(|member| self.node.add(&member.pod())),
            Part::Api => self.node.add(&self.api),
            Part::Signer => self.signer.iter().for_each(|pod| self.node.add(pod)),
        }
    }

    /// Waits until the API server answers, and a host that has nothing but its credential gets certificates: the approver and
    /// the signer work.
    async fn whole(&self, case: &str) {
        let began = Instant::now();
        eventually(&format!("{case}: the API server"), BACK, || self.installation.api.ready()).await;
        say(&format!("{case}: the API server is back after {:?}", began.elapsed()));
        let (mut request, anew) = self.members.all[0].request_anew(case);
        let status = request.wait(BACK).await;
        assert!(status.success(), "{case}: {}", request.log_end());
        assert!(anew.join("server/tls.crt").exists(), "{case}");
        // Of this run, not what was there.
        fs::remove_dir_all(&anew).expect("remove the certificates");
        say(&format!("{case}: a certificate after {:?}", began.elapsed()));
    }

    /// Ends everything at once, and starts the node with these parts, one after the other where `apart`.
    async fn reboot(&mut self, order: [Part; 3], apart: bool) {
        let case = if apart { format!("{order:?}") } else { "all at once".to_owned() };
        let value = format!("before {case}");
        self.members.etcdctl(&["put", "/test", &value]).expect("a write");
        self.node.power_off();
        assert!(self.members.etcdctl(&["get", "/test"]).is_err(), "{case}: etcd is away");
        assert!(self.installation.api.ready().await.is_err(), "{case}: the API server is away");
        if apart {
            self.node.clear();
        }
        self.node.power_on().await;
        for (i, part) in order.into_iter().enumerate() {
            let began = Instant::now();
            if apart {
                self.add(part);
            }
            if part == Part::Etcds {
                // From good files on its host, with or without the others.
                let started = if apart { &order[..=i] } else { &order };
                self.members.up(&format!("{case}: etcd with nothing but {started:?}")).await;
                say(&format!("{case}: etcd is back after {:?}", began.elapsed()));
                assert!(self.members.etcdctl(&["get", "/test"]).expect("a read").contains(&value), "{case}");
            }
            if apart && i < 2 {
                tokio::time::sleep(ALONE.saturating_sub(began.elapsed())).await;
            }
        }
        self.whole(&case).await;
    }
}

/// Ends a process, whose static pod is this one from now on.
fn hand_to_kubelet(process: &mut Process, node: &Node, pod: &Value) {
    process.kill();
    node.add(pod);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_lost_its_power_brings_the_control_plane_back() {
    let Some(runtime) = tier::runtime() else { return };
    let Some(etcd) = tier::etcd() else { return };
    let Some(address) = own_address() else {
        tier::skip(3, "no address but loopback, which a node cannot have", "a network interface with an address");
        return;
    };
    let names = ["peer", "server"].map(|role| {
        format!("--approve-group=system:bootstrappers:etcd={role}:127.0.0.0/8,{address}/32,cp-1,localhost")
    });
    let mut signer = Signer::started(&[names[0].as_str(), names[1].as_str()]).await;
    let bootstrap = fs::read_to_string(signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP)).expect("read");
    // Three members on the one host.
    let hosts = [("cp-1", address); 3];
    let etcdctl = etcd.etcdctl.expect("etcdctl beside etcd or in PATH");
    let image = runtime.etcd_image.clone();
    let members = Members::new(&signer, etcdctl, &image, &hosts, &bootstrap);
    let assets = runtime.assets.clone();

    // Before there is a cluster: kubelet knows its static pods alone.
    let mut node = Node::new(runtime, "cp-1", address);
    members.all.iter().for_each(|member| node.add(&member.pod()));
    let began = Instant::now();
    node.power_on().await;
    members.up("etcd with its first certificates, of a signer on a host").await;
    say(&format!("etcd is up after {:?}", began.elapsed()));
    let Some(mut installation) = members.control_plane(&signer, &bootstrap).await else { return };
    members.ask_at(&installation.api.url).await;
    signer.process().kill();
    say(&format!("the hosts are the cluster's after {:?}", began.elapsed()));

    // The API server, the approver and the signer become static pods, too, with their files where they are.
    let (own, of_signer) = (installation.api.directory().path().to_owned(), signer.dir.path());
    let api = static_pod_of("kube-apiserver", &image, installation.api.process(), &[&assets, &own, of_signer]);
    let shipped = "etcd-tls-webhook:0.1.0";
    let signer_pods = [("approve", &installation.approve), ("sign", &installation.sign)].map(|(name, process)| {
        let mut pod = static_pod_of(&format!("etcd-tls-{name}"), shipped, process, &[&own]);
        // The image has the program in its PATH.
        pod["spec"]["containers"][0]["command"][0] = "etcd-tls-webhook".into();
        pod
    });
    hand_to_kubelet(installation.api.process(), &node, &api);
    hand_to_kubelet(&mut installation.approve, &node, &signer_pods[0]);
    hand_to_kubelet(&mut installation.sign, &node, &signer_pods[1]);
    // From now on kubelet's API server is the one that it runs.
    node.kubeconfig = Some(installation.api.kubeconfig.clone());
    let mut plane = Plane { node, members, installation, api, signer: signer_pods };
    plane.whole("as static pods").await;

    let orders = orders();
    plane.reboot(orders[0], false).await;
    for order in orders {
        plane.reboot(order, true).await;
    }
    // kubelet has told the API server of them: it was theirs all the time.
    eventually("kubelet's pods in the API server", BACK, || async {
        let pods = plane.installation.api.kubectl(&["get", "pods", "-n", "kube-system", "-o", "name"]);
        let wanted = ["etcd-cp-1-cp-1", "etcd-cp-3-cp-1", "kube-apiserver-cp-1", "etcd-tls-sign-cp-1"];
        if wanted.iter().all(|pod| pods.contains(pod)) { Ok(()) } else { Err(pods) }
    })
    .await;
}
