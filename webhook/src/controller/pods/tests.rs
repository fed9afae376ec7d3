#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, change: impl FnOnce(&mut Value)) -> LeanPod {
    let mut pod = json!({
        "metadata": {"namespace": "ns", "name": name, "uid": format!("uid-{name}")},
        "spec": {"nodeName": "n", "containers": [{"name": "etcd"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn names(state: &State, ip: &str) -> Vec<String> {
    state.by_ip.get(&ip.parse().unwrap()).into_iter().flatten().map(|(_, name)| name.to_string()).collect()
}

#[test]
fn addresses_follow_the_pods_that_report_them() {
    let mut state = State::default();
    state.take(Event::Applied(pod("a", |_| {})));
    state.take(Event::Applied(pod("b", |_| {})));
    assert_eq!(names(&state, "10.0.0.1"), ["a", "b"]);
    state.take(Event::Applied(pod("a", |p| p["status"]["podIPs"] = json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]))));
    assert_eq!((names(&state, "10.0.0.1"), names(&state, "fd00::2")), (vec!["b".to_owned()], vec!["a".to_owned()]));
    state.take(Event::Applied(pod("a", |p| p["status"]["phase"] = json!("Succeeded"))));
    state.take(Event::Deleted(pod("b", |_| {})));
    assert!(state.by_ip.is_empty() && state.live.is_empty(), "{:?}", state.by_ip);
    state.take(Event::Begins);
    state.take(Event::Complete);
    assert_eq!(state.bytes, 0);
}

#[test]
fn who_else_has_an_address_is_known_while_it_lives() {
    let mut state = State::default();
    state.take(Event::Begins);
    state.hold("unknown", [IpAddr::from([10, 0, 0, 1])], SystemTime::UNIX_EPOCH);
    assert_eq!(state.held.len(), 1, "requests may be listed first");
    state.take(Event::Complete);
    assert!(state.held.is_empty());
    let on = |node: &'static str, ip: &'static str| {
        move |p: &mut Value| {
            p["spec"]["nodeName"] = json!(node);
            p["status"]["podIPs"] = json!([{"ip": ip}]);
            p["status"]["hostIPs"] = json!([{"ip": format!("192.0.2.{}", node.len())}, {"ip": "127.0.0.1"}]);
        }
    };
    state.take(Event::Applied(pod("a", on("n", "10.0.0.1"))));
    state.take(Event::Applied(pod("same-node", on("n", "10.0.0.1"))));
    let a = PodFacts { node: "n".to_owned(), ips: vec!["10.0.0.1".parse().unwrap()], ..PodFacts::default() };
    assert_eq!(state.claims(&a), []);
    state.take(Event::Applied(pod("thief", on("node", "10.0.0.1"))));
    let claims = state.claims(&a);
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].to_string(), "10.0.0.1 is reported by pod ns/thief on node node too");
    // A node's own, by what any of its pods says.
    let thief = |ip: &str| PodFacts { node: "node".to_owned(), ips: vec![ip.parse().unwrap()], ..PodFacts::default() };
    assert_eq!(state.claims(&thief("192.0.2.1"))[0].by, Claimant::Node("n".to_owned()));
    assert_eq!(state.claims(&thief("192.0.2.4")), [], "its own node's");
    assert_eq!(state.claims(&thief("127.0.0.1")), []);

    let (now, hour) = (SystemTime::UNIX_EPOCH, std::time::Duration::from_secs(3600));
    state.hold("uid-a", a.ips.clone(), now + hour);
    state.hold("uid-a", a.ips.clone(), now);
    state.hold("unknown", a.ips.clone(), now + hour);
    assert_eq!(state.held.len(), 1);
    assert_eq!(state.held[&Uid::from("uid-a")], [(a.ips[0], now + hour)]);
    for n in 0..10 * MAX_CLAIMS {
        let ip = IpAddr::from([10, 1, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()]);
        state.hold("uid-a", [ip], now);
    }
    let held = &state.held[&Uid::from("uid-a")];
    assert!(held.len() <= MAX_CLAIMS && held.contains(&(a.ips[0], now + hour)));
    // A change of the pod takes nothing; its end takes all.
    state.take(Event::Applied(pod("a", on("n", "10.0.0.3"))));
    assert_eq!(state.held.len(), 1);
    state.take(Event::Applied(pod("thief", |p| p["status"]["phase"] = json!("Failed"))));
    assert_eq!(state.claims(&a), []);
    for name in ["a", "same-node", "thief"] {
        state.take(Event::Deleted(pod(name, |_| {})));
    }
    assert!(state.held.is_empty() && state.nodes.is_empty() && state.by_ip.is_empty());
}

#[test]
fn only_a_state_no_older_than_the_request_is_used() {
    let mut state = State::default();
    state.take(Event::Applied(pod("a", |_| {})));
    state.take(Event::Applied(pod("web", |p| p["spec"]["containers"][0]["name"] = json!("web"))));
    state.version = 7;
    let bound = |pod: &str| BoundPod {
        namespace: "ns".to_owned(),
        service_account: "sa".to_owned(),
        pod: pod.to_owned(),
        pod_uid: "u".to_owned(),
        node: "n".to_owned(),
    };
    assert!(matches!(state.watched(&bound("a"), "7"), Some(Found::There(_))));
    assert!(matches!(state.watched(&bound("a"), "6"), Some(Found::There(_))));
    assert_eq!(state.watched(&bound("gone"), "7"), Some(Found::Gone));
    for (pod, version) in [("a", "8"), ("gone", "8"), ("a", "x"), ("a", ""), ("web", "7")] {
        assert_eq!(state.watched(&bound(pod), version), None, "{pod} {version}");
    }
}

#[test]
fn pods_of_a_node_share_it_and_nodes_that_are_gone_are_forgotten() {
    let mut state = State::default();
    let on = |node: usize| move |p: &mut Value| p["spec"]["nodeName"] = json!(format!("node-{node}"));
    state.take(Event::Applied(pod("a", on(0))));
    state.take(Event::Applied(pod("b", on(0))));
    let node = |name: &str| Arc::clone(&state.pods.get("ns", name).unwrap().node);
    assert!(Arc::ptr_eq(&node("a"), &node("b")));
    for n in 0..10_000 {
        state.take(Event::Applied(pod("a", on(n))));
    }
    assert!(state.all_nodes.0.len() < 100, "{}", state.all_nodes.0.len());
}

#[test]
fn the_memory_for_pods_has_a_budget() {
    let mut state = State::default();
    let large = |p: &mut Value| p["metadata"]["annotations"] = json!({"etcd-tls.dev/x": "x".repeat(6000)});
    for n in 0..10_000 {
        state.take(Event::Applied(pod(&n.to_string(), large)));
    }
    assert!(state.bytes <= BUDGET && state.bytes > BUDGET - 2 * KEPT, "{}", state.bytes);
    assert_eq!(state.pods.iter().count(), 10_000, "where each of them is, is known");
    let larger = |p: &mut Value| p["metadata"]["annotations"] = json!({"etcd-tls.dev/x": "x".repeat(KEPT)});
    state = State::default();
    state.take(Event::Applied(pod("a", larger)));
    state.take(Event::Applied(pod("web", |p| p["spec"]["containers"][0]["name"] = json!("web"))));
    assert_eq!(state.bytes, 0, "neither a large one nor one that will never ask");
    state.take(Event::Applied(pod("a", |_| {})));
    assert!(state.bytes > 0);
}

#[test]
fn admissions_warnings_are_not_kept() {
    let warned = |p: &mut Value| {
        p["metadata"]["annotations"] =
            json!({"etcd-tls.dev/warnings": "x".repeat(3000), "etcd-tls.dev/cluster": "shop"});
    };
    let bound = BoundPod {
        namespace: "ns".to_owned(),
        service_account: "sa".to_owned(),
        pod: "a".to_owned(),
        pod_uid: "u".to_owned(),
        node: "n".to_owned(),
    };
    let mut state = State { version: 7, ..State::default() };
    state.take(Event::Applied(pod("a", warned)));
    let Some(Found::There(facts)) = state.watched(&bound, "7") else { panic!("it is kept") };
    assert_eq!(facts.annotations.keys().collect::<Vec<_>>(), ["etcd-tls.dev/cluster"]);
    assert!(state.bytes < 1000, "{}", state.bytes);
}
