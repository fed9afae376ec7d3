#![allow(clippy::unwrap_used)]

use std::time::{Duration, UNIX_EPOCH};

use etcd_tls_contract::{key::KeyAlgorithm, life::BACKDATE};

use super::{super::issued::Leaf, *};

const DAY: Duration = Duration::from_secs(86400);

fn now() -> SystemTime {
    UNIX_EPOCH + DAY * 20_000
}

fn ca(name: &str) -> Authority {
    Authority::generate(name, KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap()
}

fn ask(action: Action, serial: &str) -> Request {
    Request {
        action,
        id: format!("{serial}-{action:?}"),
        selector: Selector::Serial(serial.to_owned()),
        reason: Reason::KeyCompromise,
        until: None,
    }
}

fn known(issued: &Issued, signs_lists: bool, leaves_end: SystemTime) -> Known<'_> {
    Known {
        issued,
        namespace: "prod",
        signs_lists,
        live: &[],
        voters: &[],
        by_record: None,
        leaves_end,
        authority_end: now() + DAY * 365,
    }
}

fn killed_and_read_back(revoked: &Revoked) -> Revoked {
    let data = revoked.data().unwrap().into_iter().map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).collect();
    let read = Revoked::read(&data).unwrap();
    assert_eq!(read, *revoked);
    read
}

fn listed(revoked: &Revoked) -> Vec<&str> {
    revoked.list().unwrap().entries().keys().map(String::as_str).collect()
}

#[test]
fn entries_come_and_go_and_the_number_only_grows() {
    let ca = ca("one");
    let mut revoked = Revoked::default();
    assert!(revoked.refresh(&ca, now()).unwrap());
    assert!(listed(&revoked).is_empty(), "a list from the first moment on");
    let first = revoked.list().unwrap().clone();
    assert!(!revoked.refresh(&ca, now()).unwrap(), "the same list stays, byte for byte");

    revoked = killed_and_read_back(&revoked);
    revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
    assert!(revoked.answer().unwrap().accepted);
    assert!(revoked.refresh(&ca, now()).unwrap());
    revoked = killed_and_read_back(&revoked);
    assert_eq!(listed(&revoked), ["4f0a"]);
    let second = revoked.list().unwrap().clone();
    assert_eq!(second.replaces(&first), Ok(true));
    assert_eq!(second.entries()["4f0a"].reason, Reason::KeyCompromise);

    revoked.take(&ask(Action::Add, "4f0b"), &known(&Issued::default(), true, now() + DAY * 2), now());
    revoked.take(&ask(Action::Undo, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
    revoked.refresh(&ca, now()).unwrap();
    assert_eq!(listed(&revoked), ["4f0b"]);
    revoked.take(&ask(Action::Undo, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
    assert_eq!(revoked.report().unwrap().count, 0, "it is not revoked");

    assert!(!revoked.refresh(&ca, now() + DAY).unwrap());
    // The clock may be ahead by an hour.
    let last = now() + DAY * 2 + BACKDATE - Duration::from_secs(1);
    assert!(!revoked.refresh(&ca, last).unwrap(), "it stays longer than its certificate");
    assert!(revoked.refresh(&ca, now() + DAY * 2 + BACKDATE).unwrap(), "it leaves after its certificate");
    assert!(listed(&revoked).is_empty());
    assert_eq!(revoked.list().unwrap().replaces(&second), Ok(true));
}

#[test]
fn a_changeover_signs_it_anew_and_a_lost_record_does_not_set_the_number_back() {
    let (one, two) = (ca("one"), ca("two"));
    let mut revoked = Revoked::default();
    revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
    revoked.refresh(&one, now()).unwrap();
    let old = revoked.list().unwrap().clone();
    assert!(revoked.refresh(&two, now()).unwrap());
    assert_eq!(listed(&revoked), ["4f0a"], "serial numbers of both CAs");
    assert_eq!(revoked.list().unwrap().verify(two.chain()), Ok(()));
    assert_eq!(revoked.list().unwrap().replaces(&old), Ok(true));
    let mut lost = Revoked::default();
    lost.refresh(&two, now() + DAY).unwrap();
    assert_eq!(lost.list().unwrap().replaces(revoked.list().unwrap()), Ok(true));
}

/// What a new leader finds later was not in the record, and the answer was not about it.
#[test]
fn an_answer_that_cannot_be_read_is_no_record_without_one() {
    let record = |answer: &str| {
        let text = format!(r#"{{"number":1,"signedBy":"","entries":{{}},"answer":{{{answer}}}}}"#);
        Revoked::read(&BTreeMap::from([(RECORD.to_owned(), ByteString(text.into_bytes()))]))
    };
    let whole = record(r#""id":"1","accepted":true,"message":"x""#).unwrap();
    assert_eq!(whole.answer().map(|answer| &*answer.id), Some("1"));
    assert!(record(r#""id":1"#).is_err(), "its request would be carried out again");
}

#[test]
fn the_report_says_what_the_record_lacked_when_it_was_answered() {
    let (mut revoked, mut lacking) = (Revoked::default(), Issued::default());
    lacking.lost(now(), now() + DAY);
    revoked.take(&ask(Action::Add, "4f0a"), &known(&lacking, true, now() + DAY), now());
    let report = killed_and_read_back(&revoked).report().unwrap();
    assert_eq!((report.lacked_before, report.lacks_before), (Some(seconds(now())), None));
    revoked.take(&ask(Action::Add, "4f0b"), &known(&Issued::default(), true, now() + DAY), now());
    assert_eq!(revoked.report().unwrap().lacked_before, None);
}

#[test]
fn a_full_list_and_a_ca_that_may_sign_none_are_said() {
    let mut revoked = Revoked::default();
    for n in 0..MOST {
        revoked.take(&ask(Action::Add, &format!("{:x}", n + 1)), &known(&Issued::default(), true, now() + DAY), now());
    }
    revoked.take(&ask(Action::Add, "ffffff"), &known(&Issued::default(), true, now() + DAY), now());
    let answer = revoked.answer().unwrap();
    assert!(!answer.accepted && answer.message.contains("holds 2048 certificates"), "{answer:?}");
    revoked.refresh(&ca("one"), now()).unwrap();
    let bytes: usize = revoked.data().unwrap().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(revoked.list().unwrap().der().len() <= 128 * 1024 && bytes <= 256 * 1024, "{bytes}");
    revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), false, now() + DAY), now());
    assert!(revoked.answer().unwrap().message.contains("cRLSign"));
}

/// Why [`MOST`] is not greater.
#[test]
fn ten_thousand_entries_with_their_list_do_not_fit_into_a_secret() {
    let mut revoked = Revoked::default();
    let entry = Entry(seconds(now()), seconds(now() + DAY), Reason::KeyCompromise.code());
    revoked.record.entries = (0..10_000).map(|n| (format!("4f{n:030x}"), entry)).collect();
    revoked.refresh(&ca("one"), now()).unwrap();
    assert_eq!(listed(&revoked).len(), 10_000);
    let bytes: usize = revoked.data().unwrap().iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes > 1024 * 1024, "{bytes}");
}

#[test]
fn compromised_keys_and_barred_pods_beyond_their_bounds_are_refused_and_other_revocations_are_not() {
    let (mut revoked, one) = (Revoked::default(), ca("one"));
    let of = |serial: &str| {
        let mut issued = Issued::default();
        let leaf = Leaf::new(&format!("uid-{serial}"), format!("prod/app-{serial}"), "app", now() + DAY, now());
        issued.note(serial, leaf.for_key(serial.as_bytes()));
        issued
    };
    let take = |revoked: &mut Revoked, request: Request, serial: &str, at: SystemTime| {
        let issued = of(serial);
        let known = Known { authority_end: now() + DAY * 30, ..known(&issued, true, now() + DAY) };
        revoked.take(&request, &known, at);
        revoked.answer().unwrap().clone()
    };
    for n in 1..=MOST {
        let serial = format!("{n:x}");
        assert!(take(&mut revoked, ask(Action::Add, &serial), &serial, now()).accepted);
    }
    // The entries have left after their certificates. The keys stay.
    revoked.refresh(&one, now() + DAY + BACKDATE).unwrap();
    assert!(listed(&revoked).is_empty() && revoked.record.keys.len() == MOST);
    let later = now() + DAY;
    let answer = take(&mut revoked, ask(Action::Force, "ffffff"), "ffffff", later);
    assert!(!answer.accepted && revoked.record.entries.is_empty(), "{answer:?}");
    let other = Request { reason: Reason::Superseded, ..ask(Action::Add, "ffffff") };
    assert!(take(&mut revoked, other, "ffffff", later).accepted);

    let pod = |n: usize| Request {
        selector: Selector::Pod(format!("app-{n:x}")),
        reason: Reason::Unspecified,
        ..ask(Action::Add, "x")
    };
    let mut revoked = Revoked::default();
    for n in 1..=MOST_BARRED {
        assert!(take(&mut revoked, pod(n), &format!("{n:x}"), now()).accepted);
    }
    let next = MOST_BARRED + 1;
    let answer = take(&mut revoked, pod(next), &format!("{next:x}"), now());
    assert!(!answer.accepted && answer.message.contains("bars 256 pods at most"), "{answer:?}");
    assert!(take(&mut revoked, pod(1), "1", now()).accepted, "it is barred already");
}

#[test]
fn a_pod_that_uses_what_is_revoked_is_named() {
    let mut issued = Issued::default();
    let second = Duration::from_secs(1);
    for (serial, pod, at) in
        [("1", "prod/app-0", now()), ("2", "prod/app-0", now() + second), ("3", "prod/app-1", now())]
    {
        issued.note(serial, Leaf::new(pod, pod.to_owned(), "app", now() + DAY, at));
    }
    let said = |selector: Selector| {
        let mut revoked = Revoked::default();
        let request = Request { selector, ..ask(Action::Add, "x") };
        revoked.take(&request, &known(&issued, true, now() + DAY), now() + second);
        revoked.answer().unwrap().message.clone()
    };
    assert!(!said(Selector::Serial("1".to_owned())).contains("in use"), "it has a newer one");
    let newest = said(Selector::Serial("2".to_owned()));
    assert!(newest.contains("in use by pod prod/app-0 until") && newest.contains("renew prod/app-0"), "{newest}");
    assert!(said(Selector::User("app".to_owned())).contains("in use by pod prod/app-0, prod/app-1 until"));
    let pods: Vec<String> = (10..30).map(|n| format!("prod/app-{n}")).collect();
    assert!(used_by(&pods.iter().map(String::as_str).collect()).contains("prod/app-19 and 10 more"));
}

#[test]
fn certificates_of_live_pods_stay_until_the_pods_have_renewed() {
    let mut issued = Issued::default();
    for (serial, pod) in [("1", "prod/app-0"), ("2", "prod/app-1"), ("3", "prod/gone")] {
        issued.note(serial, Leaf::new(&format!("uid of {pod}"), pod.to_owned(), "app", now() + DAY, now()));
    }
    let pod = |name: &str| LivePod {
        uid: format!("uid of {name}"),
        name: name.to_owned(),
        roles: BTreeSet::new(),
        of_kubelet: false,
        own: true,
    };
    let live = [pod("prod/app-0"), pod("prod/app-1")];
    let ask = |id: &str| Request {
        id: id.to_owned(),
        selector: Selector::User("app".to_owned()),
        ..ask(Action::Renewed, "x")
    };
    let (mut revoked, ca) = (Revoked::default(), ca("one"));
    revoked.take(&ask("1"), &Known { live: &live, ..known(&issued, true, now() + DAY) }, now());
    revoked.refresh(&ca, now()).unwrap();
    assert_eq!(listed(&revoked), ["3"], "nobody uses it");
    let report = killed_and_read_back(&revoked).report().unwrap();
    let used: Vec<(&str, Vec<&str>)> = report
        .in_use
        .iter()
        .map(|used| (used.pod.as_str(), used.serials.iter().map(String::as_str).collect()))
        .collect();
    assert_eq!((report.count, used), (1, vec![("prod/app-0", vec!["1"]), ("prod/app-1", vec!["2"])]));

    let later = now() + Duration::from_secs(60);
    issued.note("4", Leaf::new("uid of prod/app-0", "prod/app-0".to_owned(), "app", later + DAY, later));
    let settled = later + Duration::from_secs(10);
    let mut of_then = revoked.clone();
    let until = Request { until: report.at, ..ask("5") };
    of_then.take(&until, &Known { live: &live[..1], ..known(&issued, true, now() + DAY) }, settled);
    assert_eq!(of_then.report().unwrap().in_use, [], "the new one is none of those that were named");
    let known = |live| Known { live, ..known(&issued, true, now() + DAY) };
    revoked.take(&ask("2"), &known(&live), settled);
    revoked.refresh(&ca, settled).unwrap();
    assert_eq!(listed(&revoked), ["1", "3"], "the new one stays");
    revoked.take(&ask("3"), &known(&live[1..]), settled);
    revoked.refresh(&ca, settled).unwrap();
    assert_eq!(listed(&revoked), ["1", "3", "4"], "app-0 has gone");
    let serial = Request { selector: Selector::Serial("2".to_owned()), ..ask("4") };
    revoked.take(&serial, &known(&live), settled);
    let report = revoked.report().unwrap();
    assert!(report.count == 0 && report.answer.unwrap().accepted && report.in_use.len() == 1);
}

#[test]
fn nobody_renews_for_what_cannot_be_revoked() {
    let mut issued = Issued::default();
    for (serial, pod) in [("1", "prod/app-0"), ("2", "prod/gone")] {
        issued.note(serial, Leaf::new(&format!("uid of {pod}"), pod.to_owned(), "app", now() + DAY, now()));
    }
    let live = [LivePod {
        uid: "uid of prod/app-0".to_owned(),
        name: "prod/app-0".to_owned(),
        roles: BTreeSet::new(),
        of_kubelet: false,
        own: true,
    }];
    let request = Request { selector: Selector::User("app".to_owned()), ..ask(Action::Renewed, "x") };
    let in_use = |issued: &Issued, mut revoked: Revoked, signs_lists| {
        revoked.take(&request, &Known { live: &live, ..known(issued, signs_lists, now() + DAY) }, now());
        let report = revoked.report().unwrap();
        (report.answer.unwrap().accepted, report.in_use.len())
    };
    assert_eq!(in_use(&issued, Revoked::default(), true), (true, 1));
    assert_eq!(in_use(&issued, Revoked::default(), false), (false, 0), "no list");
    let mut full = Revoked::default();
    full.record.entries = (0..MOST).map(|n| (format!("{n:x}ff"), Entry(0, u64::MAX, 0))).collect();
    assert_eq!(in_use(&issued, full.clone(), true), (false, 0), "a full one");
    issued = Issued::default();
    issued.note("1", Leaf::new("uid of prod/app-0", "prod/app-0".to_owned(), "app", now() + DAY, now()));
    assert_eq!(in_use(&issued, full, true), (false, 0), "where all are in use");
}

#[test]
fn a_pod_that_is_revoked_is_barred_until_that_is_taken_back() {
    let mut issued = Issued::default();
    for (serial, days) in [("4f0a", 1), ("4f0b", 2)] {
        let leaf = Leaf::new("uid-0", "prod/etcd-0".to_owned(), "cn", now() + DAY * days, now());
        issued.note(serial, leaf);
    }
    let pod = |action| Request { selector: Selector::Pod("etcd-0".to_owned()), ..ask(action, "x") };
    let mut revoked = Revoked::default();
    let known = known(&issued, true, now() + DAY * 30);
    revoked.take(&pod(Action::Add), &known, now());
    assert_eq!(revoked.report().unwrap().count, 2);
    revoked.refresh(&ca("one"), now()).unwrap();
    assert_eq!(listed(&revoked), ["4f0a", "4f0b"]);
    revoked = killed_and_read_back(&revoked);
    assert!(revoked.bars("uid-0") && !revoked.bars("uid-1"), "made again, it has another uid");
    revoked.refresh(&ca("one"), now() + DAY + BACKDATE).unwrap();
    assert_eq!(listed(&revoked), ["4f0b"], "each entry leaves after its certificate");
    assert!(revoked.bars("uid-0"));
    for (later, bars) in [(DAY * 365, true), (DAY * 365 + BACKDATE, false)] {
        let mut late = revoked.clone();
        late.refresh(&ca("one"), now() + later).unwrap();
        assert_eq!(late.bars("uid-0"), bars, "{later:?}");
    }
    let before = revoked.clone();
    revoked.take(&pod(Action::Undo), &known, now());
    revoked.refresh(&ca("one"), now()).unwrap();
    assert!(listed(&revoked).is_empty() && !revoked.bars("uid-0"));
    // Its certificates have ended, and the record does not know them any more.
    let forgotten = Known { issued: &Issued::default(), ..known };
    let mut late = before;
    late.refresh(&ca("one"), now() + DAY * 3).unwrap();
    assert!(listed(&late).is_empty() && late.bars("uid-0"));
    late.take(&pod(Action::Undo), &forgotten, now() + DAY * 3);
    assert!(!late.bars("uid-0") && late.report().unwrap().count > 0, "{:?}", late.report());
    late.take(&pod(Action::Undo), &forgotten, now() + DAY * 3);
    assert_eq!(late.report().unwrap().count, 0, "there is nothing left to take back");
    let other = Request { selector: Selector::User("nobody".to_owned()), ..ask(Action::Add, "x") };
    revoked.take(&other, &known, now());
    let report = revoked.report().unwrap();
    assert_eq!(report.count, 0);
    assert!(report.answer.unwrap().message.contains("the record holds what was issued since"));
}

/// Its request for a first certificate of this authority may wait for approval, and the last one may have ended.
#[test]
fn a_pod_that_lives_is_barred_also_where_it_holds_no_certificate() {
    let pod = |uid: &str, name: &str| LivePod {
        uid: uid.to_owned(),
        name: name.to_owned(),
        roles: BTreeSet::new(),
        of_kubelet: false,
        own: true,
    };
    let live = [pod("uid-0", "prod/etcd-0"), pod("uid-1", "prod/etcd-1"), pod("uid-2", "other/etcd-0")];
    let nothing = Issued::default();
    let known = Known { live: &live, ..known(&nothing, true, now() + DAY) };
    let ask = |action, pod: &str| Request { selector: Selector::Pod(pod.to_owned()), ..ask(action, "x") };
    let mut revoked = Revoked::default();
    revoked.take(&ask(Action::Add, "etcd-0"), &known, now());
    let mut revoked = killed_and_read_back(&revoked);
    assert!(revoked.bars("uid-0") && !revoked.bars("uid-1") && !revoked.bars("uid-2"));
    let report = revoked.report().unwrap();
    let said = report.answer.unwrap().message;
    assert!(said.contains("no certificate of pod etcd-0; it gets no other until"), "{said}");
    assert_eq!((report.count, report.bars), (0, true), "no list has anything new");
    revoked.take(&ask(Action::Undo, "etcd-0"), &known, now());
    assert!(!revoked.bars("uid-0"));
    revoked.take(&ask(Action::Undo, "etcd-0"), &known, now());
    assert_eq!(revoked.report().unwrap().count, 0, "nothing bars it any more");
    revoked.take(&ask(Action::Add, "etcd-9"), &known, now());
    let report = revoked.report().unwrap();
    assert_eq!((report.count, report.bars), (0, false), "no such pod lives");
}

/// The command looks at the pods of the cluster's namespace; policy may let members live elsewhere.
#[test]
fn the_report_names_the_members_outside_of_the_namespace() {
    let member = |uid: &str, name: &str, role: Role| LivePod {
        uid: uid.to_owned(),
        name: name.to_owned(),
        roles: BTreeSet::from([role]),
        of_kubelet: false,
        own: true,
    };
    // It shares the authority.
    let of_another = |member: LivePod| LivePod { own: false, ..member };
    let live = [
        member("1", "team-a/etcd-9", Role::Server),
        member("2", "prod/etcd-0", Role::Peer),
        member("3", "web/app-0", Role::Client),
        member("host:system:node:m1", "of host system:node:m1", Role::Peer),
        of_another(member("4", "other/etcd-0", Role::Server)),
        of_another(member("host:m9", "of host m9", Role::Peer)),
    ];
    let issued = Issued::default();
    let mut revoked = Revoked::default();
    let known = Known { live: &live, ..known(&issued, true, now() + DAY) };
    revoked.take(&ask(Action::Add, "4f0a"), &known, now());
    let revoked = killed_and_read_back(&revoked);
    assert_eq!(revoked.report().unwrap().elsewhere, ["host system:node:m1", "pod team-a/etcd-9"]);
}

/// A pod that keeps its key has several certificates of it; whoever has the key can use each.
#[test]
fn a_compromised_key_is_revoked_with_all_its_certificates_and_gets_no_other() {
    let ca = ca("one");
    let mut issued = Issued::default();
    for (serial, key, at) in [("1", b"kept", 0), ("2", b"kept", 100), ("3", b"more", 200)] {
        let at = now() + Duration::from_secs(at);
        let leaf = Leaf::new("uid of prod/app-0", "prod/app-0".to_owned(), "app", at + DAY, at);
        issued.note(serial, leaf.for_key(key));
    }
    let key = |key: &[u8]| etcd_tls_contract::csr::key_digest(key);
    let at = now() + Duration::from_secs(300);
    let live = [LivePod {
        uid: "uid of prod/app-0".to_owned(),
        name: "prod/app-0".to_owned(),
        roles: BTreeSet::new(),
        of_kubelet: false,
        own: true,
    }];
    let known = Known { live: &live, ..known(&issued, true, now() + DAY) };
    let entries = |revoked: &Revoked| revoked.record.entries.keys().cloned().collect::<Vec<_>>();

    let mut other = Revoked::default();
    other.take(&Request { reason: Reason::Superseded, ..ask(Action::Add, "1") }, &known, at);
    assert!(entries(&other) == ["1"] && !other.compromised(&key(b"kept")), "the key is not compromised");

    let mut revoked = Revoked::default();
    revoked.take(&ask(Action::Add, "1"), &known, at);
    revoked.refresh(&ca, at).unwrap();
    let mut revoked = killed_and_read_back(&revoked);
    assert_eq!(entries(&revoked), ["1", "2"]);
    assert!(revoked.compromised(&key(b"kept")) && !revoked.compromised(&key(b"more")));
    revoked.refresh(&ca, at + DAY * 2).unwrap();
    assert!(revoked.compromised(&key(b"kept")), "after the end of its certificates, too");
    revoked.take(&ask(Action::Undo, "2"), &known, at);
    assert!(!revoked.compromised(&key(b"kept")));

    // The pod uses the newest of a key: it is asked for another key first.
    let mut used = Revoked::default();
    used.take(&ask(Action::Renewed, "3"), &known, at);
    assert_eq!((used.record.answered.as_ref().unwrap().in_use.len(), used.compromised(&key(b"more"))), (1, false));
    let newest = |serial: &str| {
        let mut issued = issued.clone();
        issued.note("4", Leaf::new("uid of prod/app-0", "prod/app-0".to_owned(), "app", at + DAY, at).for_key(b"more"));
        let known = Known { issued: &issued, ..known_of(&known) };
        let mut revoked = Revoked::default();
        revoked.take(&ask(Action::Renewed, serial), &known, at + Duration::from_secs(60));
        (entries(&revoked), revoked.record.answered.as_ref().unwrap().in_use.len(), revoked.compromised(&key(b"more")))
    };
    assert_eq!(newest("3"), (vec!["3".to_owned()], 1, false), "the older one of the key that is in use");
}

/// A key that the record lacks cannot be barred, and the answer says so.
#[test]
fn a_compromised_certificate_without_a_known_key_is_said_to_bar_none() {
    let mut issued = Issued::default();
    let leaf = || Leaf::new("uid of prod/app-0", "prod/app-0".to_owned(), "app", now() + DAY, now());
    issued.note("1", leaf().for_key(b"key"));
    issued.note("2", leaf());
    let said = |selector: Selector, reason: Reason, action: Action| {
        let mut revoked = Revoked::default();
        let request = Request { selector, reason, ..ask(action, "x") };
        revoked.take(&request, &known(&issued, true, now() + DAY), now());
        (revoked.answer().unwrap().message.clone(), revoked.record.keys.len())
    };
    let serial = |serial: &str| Selector::Serial(serial.to_owned());
    for (selector, lacks) in [
        (serial("ff"), "; the record lacks the key, so this authority bars no key"),
        (serial("2"), "; the record lacks the key, so this authority bars no key"),
        (Selector::User("app".to_owned()), "; the record lacks the keys of 1 of them, which are not barred"),
    ] {
        for action in [Action::Add, Action::Renewed, Action::Force] {
            let (text, keys) = said(selector.clone(), Reason::KeyCompromise, action);
            let barred = usize::from(matches!(selector, Selector::User(_)));
            assert!(text.contains(lacks) && keys == barred, "{action:?} {selector}: {text}");
        }
        let (text, _) = said(selector.clone(), Reason::Superseded, Action::Add);
        assert!(!text.contains("the record lacks"), "{selector}: {text}");
    }
    let (text, keys) = said(serial("1"), Reason::KeyCompromise, Action::Add);
    assert!(!text.contains("the record lacks") && keys == 1, "{text}");
}

fn known_of<'a>(known: &Known<'a>) -> Known<'a> {
    Known { ..*known }
}
