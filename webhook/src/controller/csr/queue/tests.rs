#![allow(clippy::unwrap_used)]

use super::*;

fn csr(name: &str, requester: &str) -> Csr {
    let mut csr = Csr::default();
    csr.metadata.name = Some(name.to_owned());
    csr.spec.username = requester.to_owned();
    csr
}

fn popped(queue: &mut Queue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.pop(now)).map(|job| job.name.to_string()).collect()
}

#[test]
fn a_flood_of_one_requester_starves_nobody() {
    let now = Instant::now();
    let mut queue = Queue::new(4);
    for n in 0..1000 {
        queue.offer(&csr(&format!("flood-{n}"), "flood"));
    }
    queue.offer(&csr("a", "quiet"));
    queue.offer(&csr("b", "other"));
    // Everybody's first before anybody's second; and within one requester in the order of arrival.
    assert_eq!(popped(&mut queue, now), ["flood-0", "a", "b", "flood-1"]);
    // One requester never has all workers.
    for name in ["flood-0", "a", "b", "flood-1"] {
        queue.finish(name, Handled::Done, now);
    }
    assert_eq!(popped(&mut queue, now), ["flood-2", "flood-3", "flood-4"]);
    queue.offer(&csr("c", "quiet"));
    assert_eq!(popped(&mut queue, now), ["c"]);
}

/// Each job is some calls, which the API server works on at once.
#[test]
fn of_many_workers_one_requester_has_a_few() {
    let now = Instant::now();
    let mut queue = Queue::new(32);
    for n in 0..100 {
        queue.offer(&csr(&format!("flood-{n}"), &format!("system:serviceaccount:flood:account-{n}")));
    }
    assert_eq!(popped(&mut queue, now).len(), AT_ONCE);
    for n in 0..100 {
        queue.offer(&csr(&format!("a-{n}"), &format!("system:serviceaccount:ns-{n}:default")));
    }
    assert_eq!(popped(&mut queue, now).len(), 32 - AT_ONCE, "the others have the other workers");
}

#[test]
fn all_service_accounts_of_a_namespace_take_one_turn() {
    let now = Instant::now();
    let mut queue = Queue::new(4);
    for n in 0..100 {
        queue.offer(&csr(&format!("flood-{n}"), &format!("system:serviceaccount:flood:account-{n}")));
    }
    for (name, requester) in [
        ("a", "system:serviceaccount:a:default"),
        ("b", "system:serviceaccount:flooded:default"),
        ("c", "system:node:c"),
    ] {
        queue.offer(&csr(name, requester));
    }
    assert_eq!(popped(&mut queue, now), ["flood-0", "a", "b", "c"]);
}

#[test]
fn the_service_accounts_of_a_namespace_take_turns_among_themselves() {
    let now = Instant::now();
    let mut queue = Queue::new(8);
    for n in 0..100 {
        queue.offer(&csr(&format!("loud-{n}"), "system:serviceaccount:ns:loud"));
    }
    queue.offer(&csr("a", "system:serviceaccount:ns:quiet"));
    queue.offer(&csr("b", "system:serviceaccount:ns:other"));
    queue.offer(&csr("c", "system:serviceaccount:ns:quiet"));
    assert_eq!(popped(&mut queue, now), ["loud-0", "a", "b", "loud-1"], "four: the share of a namespace");
    queue.finish("a", Handled::Done, now);
    queue.finish("loud-0", Handled::Done, now);
    assert_eq!(popped(&mut queue, now), ["c", "loud-2"]);
}

#[test]
fn the_requests_of_a_pod_take_one_turn_but_no_more_than_a_pod_has_roles() {
    let now = Instant::now();
    let mut queue = Queue::new(100);
    let of = |name: &str, requester: &str, pod: &str| {
        let mut csr = csr(name, requester);
        csr.spec.extra.insert(etcd_tls_contract::identity::POD_UID.to_owned(), vec![pod.to_owned()]);
        csr
    };
    for csr in [of("a1", "x", "a"), of("b1", "x", "b"), of("c1", "x", "c"), of("d1", "y", "a"), of("b2", "x", "b")] {
        queue.offer(&csr);
    }
    queue.offer(&of("a2", "x", "a"));
    let done = |queue: &mut Queue, names: &[&str]| {
        for name in names {
            queue.finish(name, Handled::Done, now);
        }
    };
    assert_eq!(popped(&mut queue, now), ["a1", "a2", "d1", "b1", "b2"], "and four are the share of x");
    done(&mut queue, &["a1", "a2", "d1", "b1", "b2"]);
    assert_eq!(popped(&mut queue, now), ["c1"]);

    for name in (0..6).map(|n| format!("f{n}")) {
        queue.offer(&of(&name, "flood", "f"));
    }
    queue.offer(&of("q", "quiet", "q"));
    assert_eq!(popped(&mut queue, now), ["f0", "f1", "f2", "f3", "q"]);
    done(&mut queue, &["f0", "f1", "f2", "f3"]);
    assert_eq!(popped(&mut queue, now), ["f4", "f5"]);

    // One that needs nothing any more is passed over.
    for name in ["g0", "g1", "g2"] {
        queue.offer(&of(name, "x", "g"));
    }
    queue.remove("g1");
    assert_eq!(popped(&mut queue, now), ["g0", "g2"]);
}

#[test]
fn each_retry_waits_longer_and_never_over_a_minute() {
    let mut now = Instant::now();
    let mut queue = Queue::new(1);
    queue.offer(&csr("a", "x"));
    let mut waits = Vec::new();
    for _ in 0..40 {
        assert_eq!(popped(&mut queue, now), ["a"]);
        queue.finish("a", Handled::NotYet, now);
        let due = queue.next_due().unwrap();
        waits.push(due - now);
        assert!(queue.pop(now).is_none());
        now = due;
    }
    assert!(waits[0] <= Duration::from_millis(25) && waits[0] >= Duration::from_millis(18), "{:?}", waits[0]);
    assert!(waits[1] > waits[0] && waits[4] > waits[3]);
    assert!(waits.iter().all(|w| *w <= Duration::from_secs(60)));
    assert!(*waits.last().unwrap() >= Duration::from_secs(45));
}

#[test]
fn the_end_of_a_request_tells_the_time_since_it_came() {
    let now = Instant::now();
    let mut queue = Queue::new(2);
    queue.offer(&csr("a", "x"));
    assert!(queue.pop(now).is_some());
    assert_eq!(queue.finish("a", Handled::NotYet, now), None, "it waits");
    let later = now + Duration::from_secs(5);
    assert!(queue.pop(later).is_some());
    let taken = queue.finish("a", Handled::Done, later).unwrap();
    assert!(taken > Duration::from_secs(4) && taken <= Duration::from_secs(5), "{taken:?}");
    assert_eq!(queue.finish("a", Handled::Done, later), None, "it is gone");
}

#[test]
fn events_during_the_work_are_not_lost() {
    let now = Instant::now();
    let mut queue = Queue::new(2);
    queue.offer(&csr("a", "x"));
    assert!(queue.pop(now).is_some());
    queue.offer(&csr("a", "x"));
    assert!(queue.pop(now).is_none(), "never two workers on one CSR");
    queue.finish("a", Handled::Done, now);
    assert_eq!(popped(&mut queue, now), ["a"]);

    // The echo of our own write needs nothing.
    queue.remove("a");
    queue.finish("a", Handled::Done, now);
    assert!(queue.pop(now).is_none());
    assert_eq!(queue.waiting(), 0);
    assert!(queue.lines.is_empty() && queue.entries.is_empty() && queue.turns.is_empty());
}

#[test]
fn decided_and_deleted_requests_leave_the_queue() {
    let now = Instant::now();
    let mut queue = Queue::new(2);
    queue.offer(&csr("a", "x"));
    queue.offer(&csr("b", "x"));
    queue.remove("a");
    queue.remove("b");
    assert!(queue.pop(now).is_none());
    assert!(queue.lines.is_empty() && queue.turns.is_empty());
    // And may come again under its name.
    queue.offer(&csr("a", "x"));
    assert_eq!(popped(&mut queue, now), ["a"]);
}

#[test]
fn a_long_queue_keeps_names_and_no_contents() {
    let now = Instant::now();
    let mut queue = Queue::new(1000);
    for n in 0..600 {
        queue.offer(&csr(&format!("c{n}"), &format!("x{n}")));
    }
    let jobs: Vec<Job> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(jobs.iter().filter(|j| j.csr.is_some()).count(), MAX_CONTENTS);
    assert_eq!(jobs.len(), 600);
    let mut big = csr("big", "y");
    big.spec.request.0 = vec![0; MAX_CONTENT + 1];
    for job in jobs {
        queue.finish(&job.name, Handled::Done, now);
    }
    assert_eq!(Arc::strong_count(&queue.places), 1, "each place is given back");
    queue.offer(&big);
    assert!(queue.pop(now).unwrap().csr.is_none());
}

#[test]
fn requests_that_do_not_fit_are_listed_again_when_there_is_room() {
    let mut queue = Queue::new(1);
    for n in 0..=PER_REQUESTER {
        queue.offer(&csr(&format!("c{n}"), "x"));
    }
    assert_eq!(queue.waiting(), PER_REQUESTER);
    assert!(!queue.has_room_again());
    for n in 0..=PER_REQUESTER / 2 {
        queue.remove(&format!("c{n}"));
    }
    assert!(queue.has_room_again());
    queue.forget_overflow();
    assert!(!queue.has_room_again());
}

#[test]
fn a_stale_one_is_read_anew_soon() {
    let now = Instant::now();
    let mut queue = Queue::new(1);
    queue.offer(&csr("a", "x"));
    assert!(queue.pop(now).unwrap().csr.is_some());
    queue.finish("a", Handled::Stale, now);
    let due = queue.next_due().unwrap();
    assert!(due - now <= Duration::from_millis(10));
    assert!(queue.pop(due).unwrap().csr.is_none());
}
