//! The restart lock against records that nobody of ours writes, over real time: on a real API server and on real etcds. A
//! record whose holder is gone must not block restarts for ever, with any content; a live holder keeps the lock.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_sidecar::{
    etcd::Client,
    kube::pod::PodCredentials,
    restart::lock::{Attempt, EtcdLock, KEY, LONGEST, LeaseLock, TTL},
};
use futures::future::join_all;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    apiserver::{ApiServer, from_json},
    etcd::{EtcdBinary, EtcdCluster},
    eventually, tier,
};
use tokio::time::sleep;

const NAMESPACE: &str = "lock";
/// How often one that waits tries.
const AGAIN: Duration = Duration::from_secs(1);
/// The extra time of attempts on a busy machine.
const SLACK: Duration = Duration::from_secs(15);

fn credentials(api: &ApiServer, token: &str) -> PodCredentials {
    let port = api.url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    PodCredentials::new(&api.token_directory("lock", NAMESPACE, token), "127.0.0.1", port)
}

/// A service account that has the right to every Lease of its namespace.
async fn holder_of_rights(api: &ApiServer) -> PodCredentials {
    api.namespace(NAMESPACE, &[]).await;
    let rbac = "rbac.authorization.k8s.io";
    let metadata = json!({"name": "lock", "namespace": NAMESPACE});
    let rules = json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update", "patch"]}]);
    let items = json!([
        {"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "lock"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": NAMESPACE}],
        },
    ]);
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    credentials(api, &api.token(NAMESPACE, "default", None).await)
}

/// After how long `name` was taken for "us"; `None`: not within the limit.
async fn taken_after(credentials: &PodCredentials, name: &str, limit: Duration) -> Option<Duration> {
    let (began, mut observed) = (Instant::now(), None);
    while began.elapsed() < limit {
        let attempt = LeaseLock::acquire(credentials.clone(), NAMESPACE, name, "us", &mut observed).await;
        match attempt.unwrap_or_else(|e| panic!("{name}: {e}")) {
            Attempt::Held(_) => return Some(began.elapsed()),
            // Or it was touched between the attempt's look and its write.
            Attempt::HeldBy(other) => {
                let touched = name == "touched" && other == "another member, by a moment";
                assert!(other == "ghost" || touched, "{name}: {other}");
            }
            Attempt::Unavailable(why) => panic!("{name}: {why}"),
        }
        sleep(AGAIN).await;
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_of_a_holder_that_is_gone_blocks_for_ever() {
    let Some(api) = ApiServer::start().await else { return };
    let credentials = holder_of_rights(&api).await;
    let leases = Api::<Lease>::namespaced(api.client.clone(), NAMESPACE);
    let (year_9999, year_1970) = ("9999-12-31T23:59:59.000000Z", "1970-01-01T00:00:00.000000Z");
    // The content of the Lease, and how long it then lasts.
    let longest = LONGEST.as_secs();
    let scenes = [
        ("empty-holder", json!({"holderIdentity": "", "leaseDurationSeconds": i32::MAX}), 0),
        ("no-holder", json!({"leaseDurationSeconds": i32::MAX, "renewTime": year_9999}), 0),
        ("of-before-a-restart", json!({"holderIdentity": "us", "leaseDurationSeconds": i32::MAX}), 0),
        ("short", json!({"holderIdentity": "ghost", "leaseDurationSeconds": 5}), 5),
        ("no-duration", json!({"holderIdentity": "ghost"}), TTL.into()),
        ("past", json!({"holderIdentity": "ghost", "leaseDurationSeconds": 30, "renewTime": year_1970}), 30),
        ("future", json!({"holderIdentity": "ghost", "leaseDurationSeconds": 30, "renewTime": year_9999}), 30),
        ("endless", json!({"holderIdentity": "ghost", "leaseDurationSeconds": i32::MAX}), longest),
        (
            "endless-future",
            json!({
                "holderIdentity": "ghost", "leaseDurationSeconds": i32::MAX, "leaseTransitions": i32::MAX,
                "acquireTime": year_9999, "renewTime": year_9999,
            }),
            longest,
        ),
        ("touched", json!({"holderIdentity": "ghost", "leaseDurationSeconds": i32::MAX}), longest),
    ];
    // By kubectl: the last second of the year 9999 is beyond what the types of k8s-openapi hold.
    let items: Vec<Value> = scenes
        .iter()
        .map(|(name, spec, _)| {
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kept": "yes"}}, "spec": spec,
            })
        })
        .collect();
    api.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    // The API server itself keeps these out.
    for spec in [json!({"leaseDurationSeconds": 0}), json!({"leaseDurationSeconds": -1})] {
        let lease = json!({"metadata": {"name": "refused"}, "spec": spec});
        assert!(leases.create(&PostParams::default(), &from_json(lease)).await.is_err(), "{spec}");
    }

    let mut observed = None;
    let alive = LeaseLock::acquire(credentials.clone(), NAMESPACE, "alive", "ghost", &mut observed).await;
    let Ok(Attempt::Held(mut alive)) = alive else { panic!("a Lease that is not there yet") };
    let limit = LONGEST + SLACK;
    let began = Instant::now();
    // Its metadata changes all the while, its holder's part does not.
    let touching = async {
        for n in 0.. {
            let patch = json!({"metadata": {"annotations": {"n": n.to_string()}}});
            if leases.patch("touched", &PatchParams::default(), &Patch::Merge(&patch)).await.is_err()
                || began.elapsed() > limit
            {
                return;
            }
            sleep(AGAIN).await;
        }
    };
    let renewing = async {
        while began.elapsed() < limit {
            alive.confirm().await.expect("a Lease that is renewed is kept");
            sleep(Duration::from_secs(5)).await;
        }
    };
    let taking = join_all(scenes.iter().map(|(name, ..)| taken_after(&credentials, name, limit)));
    let (taken, kept, (), ()) = tokio::join!(taking, taken_after(&credentials, "alive", limit), touching, renewing);
    for ((name, _, seconds), after) in scenes.iter().zip(taken) {
        let after = after.unwrap_or_else(|| panic!("{name}: not taken within {limit:?}"));
        let expected = Duration::from_secs(*seconds);
        assert!(after >= expected && after < expected + SLACK, "{name}: taken after {after:?}");
        let lease = leases.get(name).await.expect("the Lease");
        assert_eq!(lease.spec.and_then(|s| s.holder_identity).as_deref(), Some("us"), "{name}");
        assert_eq!(lease.metadata.labels.unwrap_or_default().get("kept").map(String::as_str), Some("yes"), "{name}");
    }
    assert_eq!(kept, None, "taken from a holder that renews it");
    alive.release().await.expect("give it back");
    assert!(taken_after(&credentials, "alive", SLACK).await.is_some(), "given back");
    // A holder that has lost the lock notices.
    let Ok(Attempt::Held(mut ours)) =
        LeaseLock::acquire(credentials.clone(), NAMESPACE, "alive", "us", &mut None).await
    else {
        panic!("our own Lease is taken up again")
    };
    let patch = json!({"spec": {"holderIdentity": "ghost"}});
    leases.patch("alive", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patch");
    let lost = ours.confirm().await.expect_err("another has it").to_string();
    assert!(lost.contains("ghost has Lease alive now"), "{lost}");
}

/// `edit` has Leases: who has it keeps no cluster from restarting. The pods of the namespace have the lock under their names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_a_right_to_leases_is_no_right_to_the_lock_for_restarts() {
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    holder_of_rights(&api).await;
    let name = "etcd-tls-restart-etcd";
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "c"}]}});
    let (member, other) = (
        eventually("a pod", SLACK, || api.pod(NAMESPACE, pod("etcd-0"))).await,
        eventually("a pod", SLACK, || api.pod(NAMESPACE, pod("etcd-1"))).await,
    );
    let holder = |pod: &Pod| format!("{}/{}", pod.name_any(), pod.uid().expect("a uid"));
    let ours = api.client_with_token(&api.token(NAMESPACE, "default", Some(&member)).await).await;
    let editor = api.client_with_token(&api.token(NAMESPACE, "default", None).await).await;
    let leases = |client: &kube::Client| Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    let lease = |holder: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 30}});
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the policy in force", SLACK, || async {
        let refused = leases(&editor).create(&dry, &from_json(lease("x"))).await;
        refused.map_or_else(|e| if is_of_policy(&e) { Ok(()) } else { Err(e.to_string()) }, |_| Err("taken".to_owned()))
    })
    .await;
    // The sidecar's own writes: take, confirm, give back.
    let credentials = credentials(&api, &api.token(NAMESPACE, "default", Some(&member)).await);
    let Ok(Attempt::Held(mut lock)) =
        LeaseLock::acquire(credentials.clone(), NAMESPACE, name, &holder(&member), &mut None).await
    else {
        panic!("a member cannot have the lock")
    };
    lock.confirm().await.expect("it is kept");
    let renewed = json!({"spec": {"renewTime": "2030-01-01T00:00:00.000000Z"}});
    let held = json!({"spec": {"holderIdentity": "x"}});
    let by_another = json!({"spec": {"holderIdentity": holder(&other)}});
    for (what, client, patch) in [
        ("a renewal without a pod's token", &editor, &renewed),
        ("a holder without a pod's token", &editor, &held),
        ("a holder that is no pod", &ours, &held),
        ("a holder that is another pod", &ours, &by_another),
    ] {
        let answer = leases(client).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let error = answer.expect_err(what);
        assert!(is_of_policy(&error), "{what}: {error}");
    }
    // An administrator, as the harness's client is, takes a lock away.
    leases(&api.client).patch(name, &PatchParams::default(), &Patch::Merge(&held)).await.expect("an administrator's");
    lock.confirm().await.expect_err("another has it");
    leases(&api.client).delete(name, &kube::api::DeleteParams::default()).await.expect("delete it");
    let again = LeaseLock::acquire(credentials, NAMESPACE, name, &holder(&member), &mut None).await;
    let Ok(Attempt::Held(lock)) = again else { panic!("the member has it again") };
    lock.release().await.expect("give it back");
    // Other Leases are of others.
    let free =
        json!({"metadata": {"name": "my-controller"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 3600}});
    leases(&editor).create(&dry, &from_json(free)).await.expect("another Lease");
}

fn is_of_policy(error: &kube::Error) -> bool {
    error.to_string().contains("the lock for restarts is written by a pod of its namespace")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_told_from_an_error() {
    let Some(api) = ApiServer::start().await else { return };
    let credentials = holder_of_rights(&api).await;
    api.service_account(NAMESPACE, "another").await;
    let directory = api.token_directory("another", NAMESPACE, &api.token(NAMESPACE, "another", None).await);
    let port = api.url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    let another = PodCredentials::new(&directory, "127.0.0.1", port);
    assert_eq!(LeaseLock::granted(credentials.clone(), NAMESPACE, "x").await, Ok(true), "there is none yet");
    assert_eq!(LeaseLock::granted(another.clone(), NAMESPACE, "x").await, Ok(false));
    match LeaseLock::acquire(another, NAMESPACE, "x", "us", &mut None).await {
        Ok(Attempt::Unavailable(why)) => assert!(why.contains("manifests/components/lease-lock"), "{why}"),
        Ok(_) => panic!("held without the right to it"),
        Err(error) => panic!("{error}"),
    }
    let nowhere = PodCredentials::new(&directory, "127.0.0.1", 1);
    assert!(LeaseLock::granted(nowhere.clone(), NAMESPACE, "x").await.is_err());
    assert!(LeaseLock::acquire(nowhere, NAMESPACE, "x", "us", &mut None).await.is_err());
}

/// The key in etcd: the TTL of its lease, if it has one, and whether it is kept alive.
struct Key {
    name: &'static str,
    holder: &'static str,
    ttl: Option<u32>,
    kept_alive: bool,
    /// Seconds after which "us" has it.
    taken: Option<u64>,
}

async fn key_is_taken(binary: &EtcdBinary, key: Key) {
    let mut cluster = EtcdCluster::new(binary, 1);
    cluster.start().await;
    let urls = [cluster.members[0].client_url().parse().expect("a URL")];
    let etcd = Client::plain();
    let lease = match key.ttl {
        Some(ttl) => etcd.grant(&urls[0], ttl).await.expect("a lease"),
        None => 0,
    };
    let put = json!({"key": STANDARD.encode(KEY), "value": STANDARD.encode(key.holder), "lease": lease.to_string()});
    etcd.call(&urls[0], "/v3/kv/put", &put).await.expect("put");
    let (began, mut observed) = (Instant::now(), None);
    let mut after = None;
    while began.elapsed() < LONGEST + SLACK {
        if key.kept_alive {
            assert!(etcd.keep_alive(&urls[0], lease).await.expect("keep alive"), "{}", key.name);
        }
        match EtcdLock::acquire(Path::new("/nowhere"), &urls, "us", &mut observed).await.expect(key.name) {
            Attempt::Held(mut lock) => {
                after = Some(began.elapsed());
                lock.confirm(&urls).await.expect("it is ours");
                lock.release(&urls).await.expect("give it back");
                break;
            }
            Attempt::HeldBy(other) => assert_eq!(other, key.holder, "{}", key.name),
            Attempt::Unavailable(why) => panic!("{}: {why}", key.name),
        }
        sleep(AGAIN).await;
    }
    match (key.taken, after) {
        (None, None) => {}
        (Some(seconds), Some(after)) => {
            let expected = Duration::from_secs(seconds);
            assert!(after >= expected && after < expected + SLACK, "{}: taken after {after:?}", key.name);
            let range = json!({"key": STANDARD.encode(KEY)});
            let left: Value = etcd.call(&urls[0], "/v3/kv/range", &range).await.expect("range");
            assert!(left["kvs"].is_null(), "{}: on a lease of ours it goes with it: {left}", key.name);
        }
        (taken, after) => panic!("{}: taken after {after:?}, not after {taken:?} s", key.name),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_of_a_holder_that_is_gone_blocks_for_ever() {
    let Some(binary) = tier::etcd() else { return };
    let key = |name, holder, ttl, taken| Key { name, holder, ttl, kept_alive: false, taken };
    let longest = Some(LONGEST.as_secs());
    let ten_years = Some(10 * 365 * 24 * 3600);
    join_all([
        key_is_taken(&binary, key("without a lease", "ghost", None, longest)),
        key_is_taken(&binary, key("ours, without a lease", "us", None, longest)),
        key_is_taken(&binary, key("on a lease of ten years", "ghost", ten_years, longest)),
        key_is_taken(&binary, key("on a short lease", "ghost", Some(5), Some(3))),
        key_is_taken(&binary, key("ours, of before a restart", "us", Some(TTL), Some(0))),
        key_is_taken(&binary, Key { kept_alive: true, ..key("of a holder that is there", "ghost", Some(TTL), None) }),
    ])
    .await;
}
