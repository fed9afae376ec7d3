//! A self-hosted control plane: etcd's members as static pods on hosts, and a control plane on them whose signer takes over from
//! the standalone one.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::certificate::Bundle;
use serde_json::{Value, json};

use crate::{
    apiserver, eventually,
    installation::{Installation, Options},
    pki::LeafOptions,
    ports,
    process::{Process, binary, run},
    say,
    signer::{LIMIT, Signer},
    tier,
};

/// Where the injected containers have the host's certificates.
const MOUNTED: &str = "/var/run/etcd-tls/certs";

/// The parts that a reboot stops and starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All members of etcd.
    Etcds,
    /// The API server that stands on them.
    Api,
    /// The approver and the signer, which stand on the API server.
    Signer,
}

/// Each order.
static ORDERS: [[Part; 3]; 6] = [
    [Part::Etcds, Part::Signer, Part::Api],
    [Part::Signer, Part::Api, Part::Etcds],
    [Part::Etcds, Part::Api, Part::Signer],
    [Part::Api, Part::Etcds, Part::Signer],
    [Part::Api, Part::Signer, Part::Etcds],
    [Part::Signer, Part::Etcds, Part::Api],
];

/// The orders that a run tries: two, chosen by the day of the year, so that three days in a row try all; with `ETCD_TLS_SOAK`
/// each of the six. Says which.
pub fn orders() -> Vec<[Part; 3]> {
    let day = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).day_of_year();
    let orders = if tier::soaking() { ORDERS.to_vec() } else { orders_of(day).to_vec() };
    say(&format!("day {day} of the year: {orders:?}"));
    orders
}

fn orders_of(day: i16) -> &'static [[Part; 3]] {
    let (pairs, _) = ORDERS.as_chunks::<2>();
    &pairs[usize::from(day.unsigned_abs()) % pairs.len()]
}

/// A member: its manifest, injected, is `etcd.json` in its directory.
pub struct Member {
    /// etcd's name of it.
    pub name: String,
    /// The name of its host, which its certificates have.
    pub host: String,
    /// The host's directories: `data`, `certs`, `kube`.
    pub dir: PathBuf,
    /// Where it serves clients.
    pub url: String,
    /// Its host's.
    pub address: IpAddr,
}

impl Member {
    /// The manifest that kubelet reads.
    ///
    /// # Panics
    /// It is not there, or no JSON.
    pub fn pod(&self) -> Value {
        let text = fs::read_to_string(self.dir.join("etcd.json")).expect("the static pod's manifest");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Where the member asks, once it has a certificate.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kube/kubeconfig")
    }

    /// Starts to ask for certificates in a directory of their own, with the member's credential and nothing else. Returns that
    /// directory, too.
    pub fn request_anew(&self, case: &str) -> (Process, PathBuf) {
        let anew = self.dir.join(format!("anew-{}", case.replace(|c: char| !c.is_ascii_alphabetic(), "")));
        fs::create_dir_all(&anew).expect("a directory");
        // It names the files where a container has them.
        let text = fs::read_to_string(self.kubeconfig()).expect("the member's kubeconfig");
        let certificates = self.dir.join("certs").display().to_string();
        let kubeconfig = anew.join("kubeconfig");
        fs::write(&kubeconfig, text.replace(MOUNTED, &certificates)).expect("write");
        let mut command = Command::new(binary("etcd-tls-sidecar"));
        command.args(["request", "--roles=peer,server", "--timeout=120s"]).arg(format!("--name={}", self.host));
        command.arg(format!("--ipaddrs={},127.0.0.1", self.address)).arg("--assetsdir").arg(&anew);
        command.arg("--kubeconfig").arg(kubeconfig);
        (Process::spawn("anew", &mut command, &self.dir), anew)
    }
}

/// A manifest as kubeadm writes it, with the member's own addresses.
fn manifest(image: &str, name: &str, urls: &[(String, String, String)], at: usize, dir: &Path) -> Value {
    let (_, client, peer) = &urls[at];
    let cluster: Vec<String> = urls.iter().map(|(name, _, peer)| format!("{name}={peer}")).collect();
    let pki = "/etc/kubernetes/pki/etcd";
    let volume =
        |name: &str, path: &Path| json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    // On the host's network, so free wherever it binds.
    let admin = ports::free(Ipv4Addr::UNSPECIFIED).to_string();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("etcd-{name}"), "namespace": "kube-system", "annotations": {"etcd-tls.dev/admin-port": admin},
        },
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "etcd", "image": image,
                "command": [
                    "etcd", format!("--name={name}"), "--data-dir=/var/lib/etcd", "--client-cert-auth=true", "--peer-client-cert-auth=true",
                    format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster={}", cluster.join(",")),
                    format!("--cert-file={pki}/server.crt"), format!("--key-file={pki}/server.key"),
                    format!("--trusted-ca-file={pki}/ca.crt"), format!("--peer-cert-file={pki}/peer.crt"),
                    format!("--peer-key-file={pki}/peer.key"), format!("--peer-trusted-ca-file={pki}/ca.crt"),
                ],
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/etcd"}, {"name": "pki", "mountPath": pki}],
            }],
            "volumes": [volume("data", &dir.join("data")), volume("pki", &dir.join("pki"))],
        },
    })
}

/// The members, and a client's access to them.
pub struct Members {
    /// All of them.
    pub all: Vec<Member>,
    etcdctl: PathBuf,
    client: PathBuf,
}

impl Members {
    /// Members `cp-1`, `cp-2` and so on, on these hosts, whose manifests with this image are injected offline and ask with this
    /// kubeconfig at first.
    pub fn new(signer: &Signer, etcdctl: PathBuf, image: &str, hosts: &[(&str, IpAddr)], bootstrap: &str) -> Self {
        let urls: Vec<(String, String, String)> = hosts
            .iter()
            .enumerate()
            .map(|(i, (_, address))| {
                let url = || format!("https://{address}:{}", ports::free(*address));
                (format!("cp-{}", i + 1), url(), url())
            })
            .collect();
        let mut all = Vec::new();
        for (i, (name, url, _)) in urls.iter().enumerate() {
            let dir = signer.dir.dir(name);
            fs::create_dir_all(dir.join("kube")).expect("a directory");
            fs::write(dir.join("kube/bootstrap.kubeconfig"), bootstrap).expect("write");
            let original = dir.join("original.json");
            fs::write(&original, manifest(image, name, &urls, i, &dir).to_string()).expect("write");
            let mut command = Command::new(binary("etcd-tls-webhook"));
            command.args(["inject", "--static", "--sidecar-pull-policy=IfNotPresent", "--filename"]).arg(&original);
            command.arg("--kubeconfig").arg(dir.join("kube/kubeconfig"));
            command.arg("--bootstrap-kubeconfig").arg(dir.join("kube/bootstrap.kubeconfig"));
            let injected = run(command.arg("--host-dir").arg(dir.join("certs")));
            fs::write(dir.join("etcd.json"), injected).expect("write");
            let (host, address) = (hosts[i].0.to_owned(), hosts[i].1);
            all.push(Member { name: name.clone(), host, dir, url: url.clone(), address });
        }
        let client = signer.dir.join("kube-apiserver");
        let organizations = vec!["system:etcd-clients".to_owned()];
        let options = LeafOptions { organizations, common_name: "kube-apiserver".to_owned(), ..LeafOptions::default() };
        signer.ca.write_role(&client, &options);
        Self { all, etcdctl, client }
    }

    /// Where all of them serve clients.
    pub fn endpoints(&self) -> String {
        self.all.iter().map(|member| member.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// etcdctl as the API server.
    ///
    /// # Errors
    /// The text of stderr, where it failed.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.etcdctl);
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoints()));
        for (flag, file) in [("cacert", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key")] {
            command.arg(format!("--{flag}={}", self.client.join(file).display()));
        }
        let output =
            command.args(["--command-timeout=3s", "--dial-timeout=2s"]).args(arguments).output().expect("etcdctl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Waits until each member answers by consensus.
    pub async fn up(&self, what: &str) {
        // A container that ended may be started again a minute later.
        let asked = || async { tokio::task::block_in_place(|| self.etcdctl(&["endpoint", "health"])) };
        eventually(what, LIMIT * 2, asked).await;
    }

    /// Starts a control plane on them with a signer of its own, which takes over the CA of `signer`, and tells the hosts, which
    /// have `bootstrap` so far, where it is. `None`, having said so, where the machine has no API server.
    pub async fn control_plane(&self, signer: &Signer, bootstrap: &str) -> Option<Installation> {
        let file = |name: &str| self.client.join(name).display().to_string();
        let api = apiserver::Options {
            etcd: Some(self.endpoints()),
            apiserver_arguments: vec![
                format!("--etcd-cafile={}", file("ca.crt")),
                format!("--etcd-certfile={}", file("tls.crt")),
                format!("--etcd-keyfile={}", file("tls.key")),
            ],
            ..apiserver::Options::default()
        };
        let installation = Installation::start(&Options { api, ..Options::default() }).await?;
        let pki = installation.api.directory().join("pki/ca.crt");
        fs::write(&pki, format!("{}{}", installation.api.ca.pem, signer.ca.pem)).expect("write");
        let path = |name: &str| signer.dir.join(name).display().to_string();
        for domain in ["peer", "client"] {
            let (name, cert, key) = (format!("kube-system-etcd-{domain}"), path("ca.crt"), path("ca.key"));
            let secret = ["create", "secret", "tls", &name, "--cert", &cert, "--key", &key];
            installation.api.kubectl(&[&["-n", "etcd-tls-system"][..], &secret].concat());
        }
        let shipped = |name: &str| {
            let file = crate::repository().join("manifests/examples/self-hosted").join(name);
            fs::read_to_string(file).expect("a shipped example")
        };
        let mut policy = shipped("policy.yaml");
        for (i, member) in self.all.iter().enumerate() {
            policy = policy.replace(&format!("192.0.2.1{}", i + 1), &member.address.to_string());
        }
        installation.api.apply(&policy);
        installation.api.apply(&shipped("rbac.yaml"));
        eventually("trust of the hosts' cluster", LIMIT, || async {
            let found = installation.bundle("kube-system", "peer").await.ok_or("none")?;
            let same = Bundle::parse(found.as_bytes()) == Bundle::parse(signer.ca.pem.as_bytes());
            if same { Ok(()) } else { Err("another") }
        })
        .await;
        let text = bootstrap
            .replace(&format!("https://127.0.0.1:{}", signer.port), &installation.api.url)
            .replace(&STANDARD.encode(&signer.serving.pem), &STANDARD.encode(&installation.api.ca.pem));
        for member in &self.all {
            fs::write(member.dir.join("kube/bootstrap.kubeconfig"), &text).expect("write");
        }
        Some(installation)
    }

    /// Waits until each host asks at this URL.
    pub async fn ask_at(&self, url: &str) {
        for member in &self.all {
            eventually("a kubeconfig for the cluster", LIMIT, || async {
                let kubeconfig = fs::read_to_string(member.kubeconfig()).unwrap_or_default();
                if kubeconfig.contains(url) { Ok(()) } else { Err(kubeconfig) }
            })
            .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_days_have_tried_all_orders() {
        for first in 1..=364 {
            let tried: Vec<_> = (first..first + 3).flat_map(orders_of).collect();
            assert!(ORDERS.iter().all(|order| tried.contains(&order)), "{first}: {tried:?}");
        }
    }
}
