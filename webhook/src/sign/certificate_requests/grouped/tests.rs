use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::*;

const UID: &str = "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c11";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn grouped() -> Grouped {
    let seconds = Duration::from_secs;
    Grouped::new(Times { issued: seconds(300), refused: seconds(3600), open: seconds(60) })
}

fn object(namespace: &str, pod: u64, role: &str, n: u64, created: i64) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.to_owned()),
        name: Some(format!("etcd-tls-0d5f2e0c-9c2f-4a68-9e53-{pod:012x}-{role}-{n:032x}")),
        uid: Some(n.to_string()),
        resource_version: Some("1".to_owned()),
        creation_timestamp: Some(Time(Timestamp::from_second(created).expect("a time"))),
        ..ObjectMeta::default()
    }
}

fn deleted(tasks: &[Task]) -> Vec<&str> {
    tasks.iter().filter_map(|t| if let Task::Delete(known) = t { Some(known.uid.as_str()) } else { None }).collect()
}

fn read(tasks: &[Task]) -> Vec<(&str, bool)> {
    let look = |t| {
        if let &Task::Look { ref request, superseded } = t { Some((request.uid.as_str(), superseded)) } else { None }
    };
    tasks.iter().filter_map(look).collect()
}

#[test]
fn names_of_others_are_not_ours() {
    let digest = "0af1".repeat(8);
    assert_eq!(owner(&format!("etcd-tls-{UID}-peer-{digest}")), Some(format!("{UID}-peer")));
    for name in [
        format!("etcd-tls-peer-{digest}"),
        format!("etcd-tls-{UID}-peer"),
        format!("etcd-tls-{UID}-peer-"),
        format!("etcd-tls-{UID}-peer-0af1"),
        format!("etcd-tls-{UID}-peer-{digest}0"),
        format!("etcd-tls-{UID}-root-{digest}"),
        format!("etcd-tls-{UID}-peer-{}", "xyz1".repeat(8)),
        format!("etcd-tls-{UID}x-peer-{digest}"),
        format!("x-etcd-tls-{UID}-peer-{digest}"),
        format!("{UID}-peer-{digest}"),
    ] {
        assert_eq!(owner(&name), None, "{name}");
    }
}

#[test]
fn the_newest_of_a_pod_and_role_stay() {
    let mut grouped = grouped();
    let mut tasks = Vec::new();
    for (n, created) in [50, 10, 60, 20, 40, 30, 60].into_iter().enumerate() {
        tasks.extend(grouped.take(object("a", 1, "peer", n as u64, created), at(70)));
    }
    assert_eq!(deleted(&tasks), ["1", "3", "5"], "the oldest go at once");
    assert_eq!(read(&tasks), []);
    // Neither another role nor another pod or namespace is of this group.
    let tasks = grouped.take(object("a", 1, "server", 0, 1), at(70));
    assert_eq!(read(&tasks), [("4", true), ("0", true)]);
    assert!(deleted(&tasks).is_empty());
    for next in [object("a", 2, "server", 0, 1), object("b", 2, "server", 0, 1)] {
        assert_eq!(grouped.take(next, at(70)), [], "young, and the only one of its group");
    }
    assert_eq!(read(&grouped.group_ends(at(301))), [("0", false)], "old enough to be finished");
    assert!(grouped.round_ends() && !grouped.round_ends());
}

#[test]
fn a_namespace_has_so_many_read_in_a_round_and_the_next_round_goes_on() {
    let mut grouped = grouped();
    let (mut seen, mut rounds) = (std::collections::BTreeMap::<String, usize>::new(), Vec::new());
    let many = LOOKS as u64 * 2 + 10;
    for _ in 0..4 {
        let mut tasks = Vec::new();
        for pod in 0..many {
            tasks.extend(grouped.take(object("a", pod, "peer", pod, 0), at(1000)));
        }
        tasks.extend(grouped.take(object("b", 0, "peer", many, 0), at(1000)));
        tasks.extend(grouped.group_ends(at(1000)));
        assert!(read(&tasks).iter().any(|(uid, _)| *uid == many.to_string()), "another namespace has its own");
        rounds.push(tasks.len() - 1);
        read(&tasks).iter().for_each(|(uid, _)| *seen.entry((*uid).to_owned()).or_default() += 1);
        assert!(!grouped.round_ends());
    }
    assert_eq!(rounds, [LOOKS, LOOKS, 10, LOOKS]);
    assert_eq!(seen.len() as u64, many + 1, "every one was read");
}

#[test]
fn what_is_held_does_not_grow_with_the_number() {
    let mut grouped = grouped();
    let mut deletes = 0;
    for n in 0..250_000 {
        // Many pods with a few each, and one pod with many.
        let pod = if n % 2 == 0 { n } else { 7 };
        deletes += deleted(&grouped.take(object("a", pod, "peer", n, n as i64), at(0))).len();
        assert!(grouped.newest.len() <= PER_ROLE && grouped.newest.capacity() <= 2 * PER_ROLE);
        assert!(grouped.begins.len() + grouped.next.len() <= 1);
    }
    for n in 0..1000 {
        deletes += deleted(&grouped.take(object("b", 7, "peer", n, 0), at(0))).len();
    }
    assert_eq!(deletes, 1000 - PER_ROLE);
}
