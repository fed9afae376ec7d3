//! An older Secret of an authority is restored: the revocations made since are in the published list alone, which the signer takes
//! over.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_tls_contract::{crl::Crl, names};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Namespace, Secret},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tests::{
    eventually,
    installation::{Installation, LIMIT, Options},
    revocation::{TRUST, on_disk, published, revoke},
};

use tokio::time::sleep;

use super::watched::Client;

/// The Secret of an authority.
struct Authority {
    secrets: Api<Secret>,
    name: String,
}

impl Authority {
    async fn read(&self) -> Secret {
        self.secrets.get(&self.name).await.expect("the authority")
    }

    /// Puts back what it was, whole.
    async fn restore(&self, older: &Secret) {
        eventually("restored", LIMIT, || async {
            let mut secret = self.read().await;
            secret.data.clone_from(&older.data);
            self.secrets.replace(&self.name, &PostParams::default(), &secret).await.map(|_| ())
        })
        .await;
    }

    /// The number of its list, and what it has revoked.
    async fn revoked(&self) -> (u64, BTreeSet<String>) {
        let data = self.read().await.data.expect("its content");
        let record: serde_json::Value = serde_json::from_slice(&data["revoked.json"].0).expect("JSON");
        let entries = record["entries"].as_object().expect("entries").keys().cloned().collect();
        (record["number"].as_u64().expect("a number"), entries)
    }
}

/// Looks at the list on disk until it is over: it never lacks one of `serials`, and its number does not go back.
async fn holds(files: PathBuf, serials: &'static [&'static str], over: Arc<AtomicBool>) {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let list = on_disk(&files);
        assert!(serials.iter().all(|serial| list.entries().contains_key(*serial)), "{list:?}: {:?}", list.entries());
        assert!(number <= list.number(), "{list:?} after {number}");
        number = list.number();
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restored_secret_every_revocation_stands_and_what_was_taken_back_stays_so() {
    let Some(mut installation) = Installation::start(&Options::default()).await else { return };
    installation.api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    installation.api.service_account("prod", "app").await;
    let admin = installation.api.kubeconfig.clone();
    let client = Client::start(&mut installation, "prod", "etcd").await;
    let maps: Api<ConfigMap> = Api::namespaced(installation.api.client.clone(), "prod");
    revoke(&admin, &["prod/etcd", "--serial", "4f0a"]).await.expect("revoked");
    client.has("the first", &["4f0a"]).await;
    let oldest = published(&maps).await.expect("lists")["client"].clone();
    revoke(&admin, &["prod/etcd", "--serial", "4f0e"]).await.expect("revoked");
    client.has("both", &["4f0a", "4f0e"]).await;
    let namespaces: Api<Namespace> = Api::all(installation.api.client.clone());
    let uid = namespaces.get("prod").await.expect("a namespace").metadata.uid.expect("a uid");
    let authority = Authority {
        secrets: Api::namespaced(installation.api.client.clone(), names::SYSTEM_NAMESPACE),
        name: format!("etcd-tls-ca-{uid}-etcd-client"),
    };
    let older = authority.read().await;
    for serial in ["4f0b", "4f0c"] {
        revoke(&admin, &["prod/etcd", "--serial", serial]).await.expect("revoked");
    }
    revoke(&admin, &["prod/etcd", "--serial", "4f0e", "--undo"]).await.expect("taken back");
    // Not the last request, which the signer would repeat.
    revoke(&admin, &["prod/etcd", "--user", "nobody"]).await.expect_err("there is no certificate of it");
    let all = ["4f0a", "4f0b", "4f0c"];
    client.has("all but what was taken back", &all).await;
    let listed = revoke(&admin, &["prod/etcd", "--list"]).await.expect("lists");
    assert!(!listed.contains("the record lacks"), "{listed}");

    let over = Arc::new(AtomicBool::new(false));
    let holds = tokio::spawn(holds(client.files().to_owned(), &["4f0a", "4f0b", "4f0c"], Arc::clone(&over)));
    let arguments: [String; 0] = [];
    for killed in [false, true] {
        let before = published(&maps).await.expect("lists")["client"].number();
        if killed {
            installation.sign.kill();
        }
        authority.restore(&older).await;
        if killed {
            installation.restart_sign(&arguments).await;
        }
        eventually("the Secret has the entries of the published list", LIMIT, || async {
            let (number, entries) = authority.revoked().await;
            if number >= before && entries.iter().eq(all) { Ok(()) } else { Err(format!("{number}: {entries:?}")) }
        })
        .await;
        installation.sign.logged("the Secret is older than the published revocation list", LIMIT).await;
        // Which certificates can be named no more is said, too.
        eventually("what the record lacks", LIMIT, || async {
            let listed = revoke(&admin, &["prod/etcd", "--list"]).await?;
            let said = "prod/etcd client: the record lacks certificates that were issued before 20";
            if listed.contains(said) { Ok(()) } else { Err(listed) }
        })
        .await;
    }
    revoke(&admin, &["prod/etcd", "--serial", "4f0d"]).await.expect("revoked");
    client.has("one more", &["4f0a", "4f0b", "4f0c", "4f0d"]).await;
    over.store(true, Ordering::Relaxed);
    holds.await.expect("no entry is lost, not for a moment");

    // A published list that the authority's CA has not signed is not taken, nor is an older one: what the Secret knows stands.
    let before = published(&maps).await.expect("lists");
    for (what, list) in [("another CA's", &before["peer"]), ("an older one", &oldest)] {
        let (number, list): (u64, &Crl) = (published(&maps).await.expect("lists")["client"].number(), list);
        installation.sign.kill();
        // Numbers are of the clock, or one more each: here the newer list is gone, and the clock is to pass its number.
        while SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs() <= number {
            sleep(Duration::from_millis(100)).await;
        }
        authority.restore(&older).await;
        let planted = json!({"binaryData": {"client.crl": ByteString(list.der().to_vec())}});
        maps.patch(TRUST, &PatchParams::default(), &Patch::Merge(planted)).await.expect("planted");
        installation.restart_sign(&arguments).await;
        eventually("a newer list of the signer's", LIMIT, || async {
            let now = published(&maps).await?;
            if now["client"].number() > number { Ok(()) } else { Err(format!("{what}: {now:?}, {number}")) }
        })
        .await;
        // The last request is answered again.
        client.has(what, &["4f0a", "4f0d", "4f0e"]).await;
        assert_eq!(authority.revoked().await.1.into_iter().collect::<Vec<_>>(), ["4f0a", "4f0d", "4f0e"], "{what}");
    }
}
