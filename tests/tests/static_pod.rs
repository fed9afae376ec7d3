//! A static pod on a real kubelet: etcd's manifest as kubeadm writes it, injected offline, served by a standalone signer on
//! the host, renewed, and restarted by its sidecar when the CA's certificate is another one.
//!
//! `ETCD_TLS_TEST_STATIC_PODS` is the static pod directory of this machine's kubelet, whose runtime has the image
//! `etcd-tls-sidecar` in the tag of the manifests and the etcd image that `ETCD_TLS_TEST_ETCD_IMAGE` names.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use etcd_tls_contract::certificate::Chain;
use serde_json::{Value, json};
use tests::{
    etcd_client::served_serial,
    eventually,
    installation::own_address,
    ports,
    process::{binary, run},
    repository,
    signer::{ADMIN, BOOTSTRAP, Signer, V1, mode},
    temp::TempDir,
    tier,
};

/// A kubelet looks at its directory every 20 s, and the restart of a one-member cluster is announced half a minute ahead.
const LIMIT: Duration = Duration::from_secs(300);

/// A manifest in kubelet's directory. Dropped, it is gone, and kubelet ends the pod.
struct StaticPod(PathBuf);

impl Drop for StaticPod {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// kubeadm's manifest, with this machine's address, ports and directories in the place of a control plane's.
fn manifest(image: &str, name: &str, address: &str, urls: &[u16; 3], admin: u16, dir: &Path) -> String {
    let kubeadm = repository().join("webhook/tests/golden/kubeadm-static-pod.yaml");
    let [client, peer, metrics] = urls;
    let text = fs::read_to_string(kubeadm).expect("read");
    let mut text = text
        .replace("192.0.2.10", address)
        .replace(":2379", &format!(":{client}"))
        .replace(":2380", &format!(":{peer}"))
        .replace("2381", &metrics.to_string())
        .replace("path: /var/lib/etcd", &format!("path: {}", dir.join("data").display()))
        .replace("path: /etc/kubernetes/pki/etcd", &format!("path: {}", dir.join("pki").display()))
        .replace("cp-1", name)
        .replace("  name: etcd\n  namespace", &format!("  name: {name}\n  namespace"))
        .replace("  annotations:\n", &format!("  annotations:\n    etcd-tls.dev/admin-port: \"{admin}\"\n"))
        .replace("registry.example/etcd:3.6.8-0", image);
    if image.contains(":3.4.") {
        // Paths that etcd 3.4 does not have yet.
        text = text.replace("path: /livez", "path: /health").replace("path: /readyz", "path: /health");
        text = text.lines().filter(|l| !l.contains("--feature-gates") && !l.contains("--watch-progress")).fold(
            String::new(),
            |mut text, line| {
                text.push_str(line);
                text.push('\n');
                text
            },
        );
    }
    text
}

/// Approves every pending request, as a person would.
fn approve(signer: &Signer) -> Result<(), String> {
    let (code, list) = signer.ask("GET", V1, ADMIN, &Value::Null);
    for item in list["items"].as_array().ok_or_else(|| format!("{code} {list}"))? {
        if item["status"]["conditions"].is_array() {
            continue;
        }
        let mut item = item.clone();
        item["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True", "reason": "Test" }] });
        let path = format!("{V1}/{}/approval", item["metadata"]["name"].as_str().unwrap_or_default());
        signer.ask("PUT", &path, ADMIN, &item);
    }
    Ok(())
}

/// Processes etcd of that member, by id and start.
fn etcds(name: &str) -> BTreeSet<(u32, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let member = format!("--name={name}");
        if words.starts_with(b"etcd\0") && words.split(|b| *b == 0).any(|w| w == member.as_bytes()) {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let started = stat.rsplit(") ").next().and_then(|s| s.split(' ').nth(19)).unwrap_or_default().to_owned();
            found.insert((pid, started));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubeadms_static_pod_is_served_by_a_signer_on_its_host() {
    let Some((directory, image)) = tier::static_pods() else { return };
    let signer = Signer::started(&["--peercertdur=60s", "--servercertdur=60s"]).await;
    let dir = TempDir::new("static-pod");
    let name = format!("etcd-tls-test-{}", std::process::id());
    let address = own_address().unwrap_or_else(|| Ipv4Addr::new(127, 0, 0, 2).into());
    let numbers = [(); 3].map(|()| ports::free(address));
    let admin = ports::free(address);
    let bootstrap = dir.dir("kube").join("bootstrap.kubeconfig");
    fs::copy(signer.kubeconfig("bootstrap.kubeconfig", BOOTSTRAP), &bootstrap).expect("copy");

    // Injected where kubelet does not look yet.
    let original = dir.write("etcd.yaml", manifest(&image, &name, &address.to_string(), &numbers, admin, dir.path()));
    let mut command = Command::new(binary("etcd-tls-webhook"));
    command.args(["inject", "--static", "--sidecar-pull-policy=IfNotPresent", "--filename"]).arg(original);
    command.arg("--kubeconfig").arg(dir.join("kube/kubeconfig")).arg("--bootstrap-kubeconfig").arg(&bootstrap);
    let injected = run(command.arg("--host-dir").arg(dir.join("certs")));
    let pod = StaticPod(directory.join(format!("{name}.yaml")));
    fs::write(&pod.0, injected).expect("write the manifest");

    let signer = Arc::new(signer);
    let approver = {
        let signer = Arc::clone(&signer);
        tokio::spawn(async move {
            loop {
                let signer = Arc::clone(&signer);
                let _ = tokio::task::spawn_blocking(move || approve(&signer)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    };
    let (url, role) = (format!("https://127.0.0.1:{}", numbers[0]), dir.join("certs/server"));
    let serial = || async { served_serial(&url, &role).await.map_err(|e| e.to_string()) };
    let first = eventually("etcd serves with its first certificate", LIMIT, serial).await;
    assert_eq!(mode(&dir.join("kube/kubeconfig")), 0o600);
    let etcd = etcds(&name);
    assert_eq!(etcd.len(), 1, "{etcd:?}");
    let on_disk = || Chain::parse(&fs::read(role.join("tls.crt")).unwrap_or_default()).map_err(|e| e.to_string());
    assert!(on_disk().expect("a chain").sans.ips.contains(&address), "the address that etcd advertises");
    eventually("the renewed certificate is served", LIMIT, || async {
        let (served, chain) = (serial().await?, on_disk()?);
        if served != first && served == chain.serial { Ok(()) } else { Err(format!("{served}, {}", chain.serial)) }
    })
    .await;
    assert_eq!(etcds(&name), etcd, "a renewal restarts nothing");

    // The CA renewed: etcd loads it at its next start, which the sidecar brings about.
    signer.dir.write("ca.crt", signer.ca.renewed());
    eventually("etcd restarted for the CA's new certificate", LIMIT, || async {
        let now = etcds(&name);
        if now.len() == 1 && now != etcd { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    eventually("etcd serves again", LIMIT, serial).await;
    approver.abort();
    drop(pod);
    eventually("kubelet ends the pod", LIMIT, || async {
        let left = etcds(&name);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}
