//! A rollover of the CA while certificates of the old and of the new one are revoked.

use std::{fs, path::PathBuf, process::Command, time::SystemTime};

use etcd_tls_contract::{
    certificate::{Bundle, Chain},
    crl::Crl,
    names,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tests::{
    etcd::EtcdBinary,
    eventually,
    installation::Installation,
    live::{LIMIT, Live, NAMESPACE, Place, files_of},
    process::binary,
    revocation::{published, revoke},
    say,
    temp::TempDir,
    tier,
};

use super::{
    live::{CLUSTER, accepted, chain},
    renewed::copied,
};

/// A certificate that was revoked: its files as they were then.
struct Gone {
    files: PathBuf,
    chain: Chain,
}

impl Gone {
    fn is_valid(&self) -> bool {
        SystemTime::now() < self.chain.not_after
    }
}

/// A cluster, and what was revoked there.
struct Rolled {
    live: Live,
    copies: TempDir,
    urls: Vec<String>,
    gone: Vec<Gone>,
}

impl Rolled {
    /// Revokes the certificate of a new client.
    async fn revoke(&mut self) {
        let n = self.gone.len();
        let app = self.live.client(&format!("gone-{n}"), 20 + u8::try_from(n).expect("few")).await;
        let files = self.copies.path().join(n.to_string());
        copied(&files_of(&app), &files);
        accepted(&self.urls, &files, true).await;
        let chain = chain(&files);
        let admin = self.live.installation.api.kubeconfig.clone();
        revoke(&admin, &[CLUSTER, "--serial", &chain.serial, "--at-once"]).await.expect("revoked");
        accepted(&self.urls, &files, false).await;
        // A rollover waits for the clients that are there.
        self.live.installation.api.delete_pod(NAMESPACE, &format!("gone-{n}")).await;
        self.gone.push(Gone { files, chain });
    }

    /// The published list, which a CA of the bundle has signed, holds all that is valid, and all members refuse it. The last one
    /// that was revoked is valid, so that it is the list that refuses it.
    async fn stands(&self, phase: &str) -> Crl {
        let list = self.list().await;
        let trusted = self.live.installation.bundle(NAMESPACE, "client").await.expect("a bundle");
        for gone in &self.gone {
            // A member may have a certificate of the new CA meanwhile: the one that is refused shall trust it.
            fs::write(gone.files.join(names::CA_FILE), &trusted).expect("written");
            accepted(&self.urls, &gone.files, false).await;
            assert!(
                list.entries().contains_key(&gone.chain.serial) || !gone.is_valid(),
                "{phase}: {:?}",
                list.entries()
            );
        }
        let last = self.gone.last().expect("one is revoked");
        assert!(last.is_valid(), "{phase}: the machine is too slow for certificates of this life");
        say(&format!("{phase}: list {} with {} entries", list.number(), list.entries().len()));
        list
    }

    async fn list(&self) -> Crl {
        let maps: Api<ConfigMap> = Api::namespaced(self.live.installation.api.client.clone(), NAMESPACE);
        eventually("a list that verifies", LIMIT, || async {
            Ok::<_, String>(published(&maps).await?["client"].clone())
        })
        .await
    }
}

/// No pod has a certificate, so nobody has to load the new CA first: it takes over at once, and signs the list with the entries of
/// before.
pub(super) async fn the_new_ca_signs_what_is_revoked(installation: &Installation, namespace: &str) {
    let maps: Api<ConfigMap> = Api::namespaced(installation.api.client.clone(), namespace);
    let bundle = async || {
        let pem = installation.bundle(namespace, "client").await.ok_or("no bundle")?;
        Bundle::parse(pem.as_bytes()).map_err(|e| e.to_string())
    };
    let (old, before) = (bundle().await.expect("a bundle"), published(&maps).await.expect("lists")["client"].clone());
    assert!(!before.entries().is_empty(), "{before:?}");
    let cluster = format!("{namespace}/etcd");
    for more in [&[][..], &["--force", "--yes"]] {
        let mut command = Command::new(binary("etcd-tls-webhook"));
        command
            .args(["rollover", &cluster, "--domain", "client"])
            .args(more)
            .env("KUBECONFIG", &installation.api.kubeconfig);
        let output = command.output().expect("run the command");
        assert!(output.status.success(), "{output:?}");
    }
    eventually("a list of the new CA", LIMIT, || async {
        let (bundle, list) = (bundle().await?, published(&maps).await?["client"].clone());
        let new = bundle.certificates().iter().filter(|der| !old.certificates().contains(der)).map(Vec::as_slice);
        list.verify(new).map_err(|e| format!("{e}: {} CAs", bundle.certificates().len()))?;
        assert!(list.entries().keys().eq(before.entries().keys()) && list.number() > before.number(), "{list:?}");
        Ok::<_, String>(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_stays_refused_in_every_phase_of_a_rollover() {
    if !tier::soak("a rollover with revoked certificates (eight minutes for each etcd)") {
        return;
    }
    if tier::etcd().is_none() {
        return;
    }
    for etcd in EtcdBinary::all() {
        rolls_over(&etcd).await;
    }
}

async fn rolls_over(etcd: &EtcdBinary) {
    let Some(live) = Live::start(etcd, "150s", None).await else { return };
    let urls = live.places.iter().map(Place::client_url).collect();
    let mut rolled = Rolled { live, copies: TempDir::new("rolled-over"), urls, gone: Vec::new() };
    let work = rolled.live.workload();
    rolled.revoke().await;
    let mut numbers = vec![rolled.stands("before").await.number()];
    let old = rolled.live.begin("client").await;
    rolled.live.ended(3).await;
    // The members have loaded both CAs, and the old one signs.
    rolled.revoke().await;
    numbers.push(rolled.stands("published").await.number());
    assert!(old.contains_issuer_of(&rolled.gone[1].chain));
    rolled.live.rollover("client", &["--confirm-clients"]).await.expect("confirm the clients");
    rolled.live.phase("client", "signing").await;
    numbers.push(rolled.stands("signing").await.number());
    rolled.revoke().await;
    assert!(!old.contains_issuer_of(&rolled.gone[2].chain), "of the new CA");
    let list = rolled.stands("signing, and one of the new CA").await;
    numbers.push(list.number());
    assert!(rolled.gone[1].is_valid(), "the machine is too slow for certificates of this life");
    let serials = [&rolled.gone[1].chain.serial, &rolled.gone[2].chain.serial];
    assert!(serials.iter().all(|serial| list.entries().contains_key(*serial)), "of both CAs: {:?}", list.entries());

    rolled.live.phase("client", "stable").await;
    rolled.live.settled(6).await;
    let new = rolled.live.bundle("client").await;
    assert!(new.certificates().len() == 1 && new != old, "the new CA alone");
    numbers.push(rolled.list().await.number());
    assert!(numbers.is_sorted(), "{numbers:?}");
    let report = work.stop().await.expect("read etcd");
    say(&format!("etcd {}: a rollover with revoked certificates: {report}", etcd.version));
    assert_eq!((report.failed, report.lost.len(), report.unseen.len()), (0, 0, 0), "{report}");
}
