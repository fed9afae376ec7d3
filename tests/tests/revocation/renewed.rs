//! Pods that are trusted get new certificates before their old ones are revoked.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use etcd_tls_contract::{certificate::Chain, names};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use serde_json::json;
use tests::{
    downward::downward,
    etcd::EtcdBinary,
    eventually,
    installation::{Installation, LIMIT, Options, own_address},
    pages, ports,
    process::which,
    revocation::{ended, published, revoke, write},
    say,
    temp::TempDir,
    tier,
};

use super::{marker, may, member, operator};

fn chain(files: &Path) -> Chain {
    Chain::parse(&fs::read(files.join(names::CERT_FILE)).expect("read")).expect("a chain")
}

/// The files of a role as they are now: of one set, also while they are renewed.
pub(super) fn copied(files: &Path, to: &Path) {
    let read = || -> std::io::Result<Vec<(&str, Vec<u8>)>> {
        let now = fs::canonicalize(files)?;
        let names = [names::CERT_FILE, names::KEY_FILE, names::CA_FILE];
        names.into_iter().map(|name| Ok((name, fs::read(now.join(name))?))).collect()
    };
    // A set goes when the next one is there.
    let set = (0..100).find_map(|_| read().ok()).expect("a set of files");
    fs::create_dir_all(to).expect("a directory");
    for (name, content) in set {
        fs::write(to.join(name), content).expect("write");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_pod_is_renewed_before_its_certificate_is_revoked() {
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        renews_first(&etcd).await;
        say(&format!("etcd {}: a live pod was renewed first", etcd.version));
    }
}

async fn renews_first(etcd: &EtcdBinary) {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    let policy = "extraSans: [{namespaces: [prod], clusters: [etcd], ipBlocks: [127.0.0.0/8]}]\n";
    tests::policy::set(&installation.api.client, policy).await;
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let address = Ipv4Addr::new(127, 0, 0, 2);
    let url = |port| format!("https://{address}:{port}");
    let (client, peer) = (url(ports::free(address)), url(ports::free(address)));
    let programs = [("etcd", etcd.etcd.clone())];
    let mut etcd = installation
        .local_pod("prod", member(address, &client, &peer), &[[10, 7, 0, 10].into()], &programs)
        .await
        .expect("a member");
    etcd.start(LIMIT).await.expect("init and sidecar");

    // The API server's proxy, by which its sidecar is seen, dials no loopback address.
    let ip: IpAddr = own_address().expect("the installation has one");
    let app = json!({
        "metadata": {"name": "app", "annotations": {
            "etcd-tls.dev/roles": "client", "etcd-tls.dev/admin-port": ports::free(Ipv4Addr::UNSPECIFIED).to_string(),
        }},
        "spec": {"serviceAccountName": "app", "containers": [{"name": "app", "image": "app", "command": ["app"]}]},
    });
    installation.api.service_account("prod", "app").await;
    let programs = [("app", which("true").expect("true"))];
    let mut app = installation.local_pod("prod", app, &[ip], &programs).await.expect("a client");
    let pods: Api<Pod> = Api::namespaced(installation.api.client.clone(), "prod");
    let created = pods.get("app").await.expect("the pod");
    let kubelet = downward(&created, app.volume("etcd-tls-token"), pods.clone());
    app.initialise(LIMIT).await.expect("init and sidecar");
    let files = app.path("app", names::DEFAULT_MOUNT_PATH).join("client");
    eventually("the member serves", LIMIT, || write(&files, &client)).await;

    // Its program opens a connection for each write.
    let (writes, failed) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
    let directory = TempDir::new("revocation");
    let program = tokio::spawn({
        let (files, client, to) = (files.clone(), client.clone(), directory.path().join("now"));
        let (writes, failed) = (Arc::clone(&writes), Arc::clone(&failed));
        async move {
            loop {
                copied(&files, &to);
                if let Err(error) = write(&to, &client).await {
                    failed.lock().expect("a list").push(error);
                }
                writes.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let old = directory.path().join("old");
    copied(&files, &old);
    let first = chain(&old);
    let anna =
        vec![marker("revoke"), may("list", "pods"), may("get", "pods"), may("patch", "pods"), may("get", "pods/proxy")];
    let anna = operator(&installation, "prod", "anna", anna).await;
    let said = revoke(&anna, &["prod/etcd", "--serial", &first.serial]).await.expect("revoked");
    assert!(said.contains("pod prod/app: asked to renew"), "{said}");
    assert!(said.contains(&format!("client: {} is revoked until", first.serial)), "{said}");
    let second = chain(&files);
    assert_ne!(second.serial, first.serial);
    eventually("the old certificate is refused", LIMIT, || async {
        match write(&old, &client).await {
            Err(_) => Ok(()),
            Ok(()) => Err("still accepted"),
        }
    })
    .await;

    // By its user, if the sidecar cannot be read: the signer's record counts.
    let blind = vec![marker("revoke"), may("list", "pods"), may("get", "pods"), may("patch", "pods")];
    let blind = operator(&installation, "prod", "blind", blind).await;
    let said = revoke(&blind, &["prod/etcd", "--user", &first.common_name]).await.expect("revoked");
    assert!(said.contains("2 certificates"), "the two that were in use: {said}");
    let third = chain(&files);
    assert_ne!(third.serial, second.serial);
    let before = writes.load(Ordering::SeqCst);
    eventually("its program goes on", LIMIT, || async {
        if writes.load(Ordering::SeqCst) >= before + 20 { Ok(()) } else { Err("few writes") }
    })
    .await;
    assert_eq!(*failed.lock().expect("a list"), Vec::<String>::new(), "of {} writes", writes.load(Ordering::SeqCst));
    program.abort();

    // A key has leaked: by the commands of the page. `rollover` tries --cut; no etcd is restarted here.
    let [leaked, _] = &pages::blocks("revocation.md", "A key has leaked")[..] else {
        panic!("a client's and a member's")
    };
    let leaked = leaked.replace("my-namespace", "prod").replace("app-0", "app").replace("4F0A...", &third.serial);
    let lines: Vec<&str> = leaked.lines().collect();
    let [revokes, renews] = lines[..] else { panic!("{lines:?}") };
    let revokes = revokes.strip_suffix(" --cut").expect("it ends connections");
    let shell = async |line: &str| {
        let (line, anna, directory) = (line.to_owned(), anna.clone(), directory.path().to_owned());
        let run = move || pages::bash(&directory, &pages::path(&[]), Some(&anna), &line);
        tokio::task::spawn_blocking(run).await.expect("it ran").expect("it succeeds")
    };
    copied(&files, &old);
    let said = shell(revokes).await;
    assert!(said.contains("in use by pod prod/app until its next renewal"), "{said}");
    eventually("the pod is refused", LIMIT, || async {
        match write(&old, &client).await {
            Err(_) => Ok(()),
            Ok(()) => Err("still accepted"),
        }
    })
    .await;
    shell(renews).await;
    let fourth = chain(&files);
    assert!(fourth.serial != third.serial && fourth.public_key != third.public_key);
    eventually("the pod is accepted again", LIMIT, || write(&files, &client)).await;
    let third = fourth;

    // A pod that does not renew in time is named and its certificate stays; so does one that may not be asked.
    kubelet.abort();
    let maps: Api<ConfigMap> = Api::namespaced(installation.api.client.clone(), "prod");
    let listed = async || published(&maps).await.expect("lists")["client"].entries().contains_key(&third.serial);
    let arguments = ["prod/etcd", "--serial", &third.serial, "--timeout=3s"];
    let (code, refused) = ended(&anna, &arguments).await.expect_err("not renewed");
    assert!(code == Some(75) && refused.contains("pod prod/app has no newer certificate"), "{code:?}: {refused}");
    let viewer = operator(&installation, "prod", "viewer", vec![marker("revoke"), may("get", "pods")]).await;
    let (code, refused) = ended(&viewer, &arguments).await.expect_err("it may not patch pods");
    assert!(code == Some(77) && refused.contains("cannot patch pods in namespace prod"), "{code:?}: {refused}");
    assert!(!listed().await, "it is not revoked");
    let said = revoke(&anna, &[&arguments[..], &["--force"]].concat()).await.expect("revoked");
    assert!(said.contains("in use by pod prod/app until its next renewal") && listed().await, "{said}");
}
