//! Reviews of which every sentence would be long: `admit` stays below the memory limit of its manifest, its answers are short, and the
//! next review is answered. An API server asks for a review before it looks at the names in a pod.

use serde_json::{Value, json};

use super::{ALONE, Admit, attack::LIMIT_KIB, body, is_patch, review};

const LONG: usize = 1 << 20;
/// More than any answer has.
const MOST: usize = 64 * 1024;

/// Containers that the pod names as etcd's, as many as it may, each with hosts that no certificate will hold.
fn members(review: &mut Value) {
    let names: Vec<String> = (0..64).map(|n| format!("c{n}")).collect();
    let command = json!([
        "etcd",
        "--listen-client-urls=https://a.test:2379",
        "--advertise-client-urls=https://b.test:2379",
        "--listen-peer-urls=http://c.test:2380",
        "--initial-advertise-peer-urls=https://d.test:2380"
    ]);
    let pod = &mut review["request"]["object"];
    pod["metadata"]["annotations"] = json!({"etcd-tls.dev/containers": names.join(",")});
    pod["spec"]["containers"] =
        names.iter().map(|name| json!({"name": name, "image": "etcd", "command": command})).collect();
}

/// A way in which all that is said of a pod can be long.
type Long = (&'static str, fn(&mut Value));

const LONGS: [Long; 6] = [
    ("names of containers, of which none is the one that is looked for", |review| {
        let wanted: Vec<String> = (0..64).map(|n| format!("c{n}")).collect();
        let pod = &mut review["request"]["object"];
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/containers": wanted.join(",")});
        let name = "x".repeat(LONG / 10);
        pod["spec"]["containers"] = (0..28).map(|n| json!({"name": format!("{name}{n}"), "image": "a"})).collect();
    }),
    ("short names of many containers", |review| {
        members(review);
        let names = |n: usize| json!({"name": format!("{n:063}"), "image": "a"});
        review["request"]["object"]["spec"]["containers"] = (0..9_000).map(names).collect();
    }),
    ("the name of a container with many mounts", |review| {
        let pod = &mut review["request"]["object"];
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/roles": "peer,server"});
        pod["spec"]["containers"][0]["name"] = "x".repeat(LONG).into();
        let mount = |n: usize| json!({"name": "v", "mountPath": format!("/etc/etcd/tls/{n}")});
        pod["spec"]["containers"][0]["volumeMounts"] = (0..9_000).map(mount).collect();
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    }),
    ("the hostname of many members", |review| {
        members(review);
        let spec = &mut review["request"]["object"]["spec"];
        (spec["hostname"], spec["subdomain"]) = ("x".repeat(LONG).into(), "y".repeat(LONG).into());
    }),
    ("the namespace of many members", |review| {
        members(review);
        review["request"]["namespace"] = "x".repeat(2 * LONG).into();
    }),
    ("the label", |review| {
        review["request"]["object"]["metadata"]["labels"]["etcd-tls"] = "\u{7f}".repeat(29 * LONG / 10).into();
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_pod_is_short_however_long_its_names_are() {
    let _alone = ALONE.lock().await;
    let admit = Admit::start_limited("admit-large", LIMIT_KIB).await;
    for (what, make) in LONGS {
        let mut review = review();
        make(&mut review);
        let (status, answer) = admit.post(&serde_json::to_vec(&review).expect("JSON")).await;
        let read: Value = serde_json::from_slice(&answer).unwrap_or_default();
        println!("{what}: {} bytes", answer.len());
        assert!(status == 200 && read["response"]["allowed"] == false, "{what}: {status} {read:.300}");
        assert!(answer.len() < MOST, "{what}: an answer of {} bytes", answer.len());
    }
    // The same of a workload's template, of which it only warns.
    let mut review = review();
    members(&mut review);
    let template =
        json!({"metadata": review["request"]["object"]["metadata"], "spec": review["request"]["object"]["spec"]});
    review["request"]["resource"] = json!({"group": "apps", "version": "v1", "resource": "statefulsets"});
    review["request"]["object"] =
        json!({"kind": "StatefulSet", "spec": {"serviceName": "x".repeat(2 * LONG), "template": template}});
    let bytes = serde_json::to_vec(&review).expect("JSON");
    let head = format!(
        "POST /warn HTTP/1.1\r\nHost: admit.test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    let (status, answer) = admit.request(&head, &bytes).await;
    assert!(status == 200 && answer.len() < MOST, "{status}, {} bytes", answer.len());
    assert!(is_patch(&admit.post(&body()).await), "the next review");
}
