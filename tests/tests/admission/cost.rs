//! Attack 8: a review of a pod whose lists are long. The CPU that it costs grows with the pod, not with its square.

use std::time::Duration;

use etcd_tls_webhook::{
    admit::review::{Admission, Verdict, mutate},
    injection::Config,
};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::review;

/// Entries of the shorter pod; the longer one has four times as many.
const FEW: usize = 2_000;

fn admission() -> Admission {
    let injection = Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() };
    Admission { injection, leave_out: [].into() }
}

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// The least CPU of some reviews of the pod that `change` makes of a member, and what came of the last.
fn cost(change: &dyn Fn(&mut Value)) -> (Duration, Verdict) {
    let mut body = review();
    change(&mut body["request"]["object"]);
    let body = serde_json::to_vec(&body).expect("JSON");
    let admission = admission();
    let mut least = Duration::MAX;
    let mut verdict = Verdict::Leave;
    for _ in 0..3 {
        let began = cpu();
        verdict = mutate(&body, &admission).expect("a review").verdict;
        least = least.min(cpu() - began);
    }
    (least, verdict)
}

fn list(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    (0..count).map(entry).collect()
}

fn map(count: usize, entry: impl Fn(usize) -> (String, Value)) -> serde_json::Map<String, Value> {
    (0..count).map(entry).collect()
}

/// A way in which a pod can be long, by the number of entries.
type Long = (&'static str, fn(&mut Value, usize));

const LONG: [Long; 15] = [
    ("volumes, each mounted below /etc", |pod, count| {
        pod["spec"]["volumes"] = list(count, |n| json!({"name": format!("v{n}"), "configMap": {"name": "c"}}));
        pod["spec"]["containers"][0]["volumeMounts"] =
            list(count, |n| json!({"name": format!("v{n}"), "mountPath": format!("/etc/{n}"), "readOnly": true}));
    }),
    ("mounts where the certificates go", |pod, count| {
        pod["spec"]["volumes"] = list(count, |n| json!({"name": format!("v{n}"), "emptyDir": {}}));
        pod["spec"]["containers"][0]["volumeMounts"] =
            list(count, |n| json!({"name": format!("v{n}"), "mountPath": format!("/etc/etcd/tls/{n}")}));
    }),
    ("containers", |pod, count| {
        let etcd = pod["spec"]["containers"][0].clone();
        let more = list(count, |n| json!({"name": format!("c{n}"), "image": "c", "ports": [{"containerPort": 80}]}));
        pod["spec"]["containers"] = more;
        pod["spec"]["containers"].as_array_mut().expect("a list").push(etcd);
    }),
    ("initContainers", |pod, count| {
        pod["spec"]["initContainers"] =
            list(count, |n| json!({"name": format!("c{n}"), "image": "c", "restartPolicy": "Always"}));
    }),
    ("containers of one name", |pod, count| {
        pod["spec"]["initContainers"] = list(count, |_| json!({"name": "etcd-tls-sidecar", "image": "c"}));
    }),
    ("env entries", |pod, count| {
        pod["spec"]["containers"][0]["env"] = list(count, |n| json!({"name": format!("V{n}"), "value": "x"}));
    }),
    ("env entries that name each other", |pod, count| {
        let entry =
            |n: usize| json!({"name": format!("V{n}"), "value": format!("$(V{})$(V{})", n.max(1) - 1, n.max(1) - 1)});
        let mut env = list(count, entry);
        let last = json!({"name": "ETCD_LISTEN_CLIENT_URLS", "value": format!("https://$(V{}):2379", count - 1)});
        env.as_array_mut().expect("a list").push(last);
        pod["spec"]["containers"][0]["env"] = env;
    }),
    ("references in one word", |pod, count| {
        pod["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "x".repeat(10)}]);
        let urls = vec!["https://$(A):2379"; count].join(",");
        pod["spec"]["containers"][0]["args"] = json!([format!("--listen-client-urls={urls}")]);
    }),
    ("arguments", |pod, count| {
        pod["spec"]["containers"][0]["args"] = list(count, |n| json!(format!("--experimental-x{n}=https://a:{n}")));
    }),
    ("lines of a script", |pod, count| {
        let lines: String = (0..count).map(|n| format!("V{n}=${{V{}}}x\n", n.max(1) - 1)).collect();
        pod["spec"]["containers"][0]["command"] =
            json!(["sh", "-c", format!("{lines}exec etcd --name=$V{}", count - 1)]);
    }),
    ("annotations", |pod, count| {
        pod["metadata"]["annotations"] = map(count, |n| (format!("example.com/a{n}"), "x".into())).into();
    }),
    ("annotations of ours that are none", |pod, count| {
        pod["metadata"]["annotations"] = map(count, |n| (format!("etcd-tls.dev/a{n}"), "x".into())).into();
    }),
    ("tolerations and supplementalGroups", |pod, count| {
        pod["spec"]["tolerations"] = list(count, |n| json!({"key": format!("k{n}"), "operator": "Exists"}));
        pod["spec"]["securityContext"] = json!({"supplementalGroups": list(count, |n| json!(n))});
    }),
    ("containers that ask etcd", |pod, count| {
        let etcd = pod["spec"]["containers"][0].clone();
        let script = "A=xxxxxxxx; B=$A$A$A$A; C=$B$B$B$B; etcdctl get $C$C$C$C";
        let asking = |n: usize| json!({"name": format!("c{n}"), "image": "c", "command": ["sh", "-c", script]});
        pod["spec"]["containers"] = list(count, asking);
        pod["spec"]["containers"].as_array_mut().expect("a list").push(etcd);
    }),
    ("native sidecars that name etcd", |pod, count| {
        let script = "A=xxxxxxxx; B=$A$A$A$A; C=$B$B$B$B; exec etcd --name=$C$C$C$C";
        let one =
            |n: usize| json!({"name": format!("c{n}"), "restartPolicy": "Always", "command": ["sh", "-c", script]});
        pod["spec"]["initContainers"] = list(count, one);
        pod["spec"]["containers"][0]["name"] = json!("app");
        pod["spec"]["containers"][0]["command"] = json!(["app"]);
    }),
];

#[test]
fn the_cost_of_a_review_grows_with_the_pod() {
    let mut slow = Vec::new();
    for (what, make) in LONG {
        let (few, _) = cost(&|pod| make(pod, FEW));
        let (many, verdict) = cost(&|pod| make(pod, 4 * FEW));
        println!("{what}: {few:?}, {many:?} for four times as many ({verdict:?})");
        // A quadratic step takes sixteen times as long; the bound leaves room for constant costs and the allocator.
        if many > few * 8 + Duration::from_millis(20) || many > Duration::from_secs(5) {
            slow.push(format!("{what}: {few:?} for {FEW}, {many:?} for {}", 4 * FEW));
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}

#[test]
fn ten_thousand_volumes_are_answered_and_more_are_refused() {
    let (_, make) = LONG[0];
    let (took, verdict) = cost(&|pod| make(pod, 10_000));
    assert_eq!(verdict, Verdict::Inject);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(cost(&|pod| make(pod, 10_001)).1, Verdict::Refuse);
}

/// Expansion that doubles at each step ends.
#[test]
fn references_do_not_explode() {
    let (took, _) = cost(&|pod| LONG[6].1(pod, 64));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// Short scripts that put long texts together: of many containers, all together are read no further than those of a few.
#[test]
fn scripts_of_many_containers_are_read_as_far_as_those_of_a_few() {
    let script = "A=https://x.test:1,; B=$A$A$A$A$A$A$A$A; C=$B$B$B$B$B$B$B$B; D=$C$C$C$C$C$C$C$C; \
                  exec etcd --advertise-client-urls=$D$D$D --listen-client-urls=$D$D$D --initial-cluster=$D$D$D";
    let of = |count: usize| {
        cost(&|pod| {
            let names: Vec<String> = (0..count).map(|n| format!("c{n}")).collect();
            pod["metadata"]["annotations"] = json!({"etcd-tls.dev/containers": names.join(",")});
            pod["spec"]["containers"] =
                names.iter().map(|name| json!({"name": name, "command": ["sh", "-c", script]})).collect();
        })
    };
    let ((few, _), (many, _)) = (of(4), of(64));
    println!("{few:?} for 4, {many:?} for 64");
    assert!(many < few * 4 + Duration::from_millis(20), "{few:?} for 4, {many:?} for 64");
}
