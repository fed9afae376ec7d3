#![allow(clippy::unwrap_used)]

use etcd_tls_contract::san::Sans;

use super::*;

fn leaf(at: u64, until: u64, pod: &str, user: &str) -> Leaf {
    Leaf::new(&format!("uid of {pod}"), pod.to_owned(), user, time(until), time(at))
}

#[test]
fn certificates_are_found_by_serial_pod_and_user_until_they_end() {
    let mut issued = Issued::default();
    issued.note("1", leaf(10, 100, "prod/etcd-0", "system:etcd-peer:etcd-0"));
    issued.note("2", leaf(50, 150, "prod/etcd-0", "system:etcd-peer:etcd-0"));
    issued.note("3", leaf(50, 150, "web/app", "app"));
    let serials =
        |issued: &Issued, selector: &Selector| -> Vec<String> { issued.named(selector, "prod").into_keys().collect() };
    assert_eq!(serials(&issued, &Selector::Pod("etcd-0".to_owned())), ["1", "2"]);
    assert!(serials(&issued, &Selector::Pod("app".to_owned())).is_empty(), "of another namespace");
    assert_eq!(serials(&issued, &Selector::Pod("web/app".to_owned())), ["3"]);
    assert_eq!(serials(&issued, &Selector::User("app".to_owned())), ["3"]);
    let mut crowded = issued.clone();
    for n in 0..2 * u64::from(MOST) {
        crowded.note(&format!("f{n:x}"), leaf(60, 100_000 + n, "prod/loud", "loud"));
    }
    assert_eq!(serials(&crowded, &Selector::Pod("etcd-0".to_owned())).len(), 2, "nobody pushes others out");
    let by_serial = issued.named(&Selector::Serial("2".to_owned()), "prod");
    assert_eq!(by_serial["2"], Some(time(150)));
    assert_eq!(issued.named(&Selector::Serial("9".to_owned()), "prod")["9"], None, "any serial number can be named");
    assert_eq!(issued.holders(["1".to_owned()].iter()), BTreeSet::from(["uid of prod/etcd-0".to_owned()]));
    issued.note("4", leaf(100, 200, "web/app", "app"));
    assert_eq!(serials(&issued, &Selector::Pod("etcd-0".to_owned())), ["2"], "the first has ended");
}

#[test]
fn a_pod_uses_its_newest_certificate_and_a_new_one_after_some_seconds() {
    let mut issued = Issued::default();
    issued.note("1", leaf(10, 1000, "prod/app", "app"));
    issued.note("2", leaf(20, 1000, "prod/app", "app"));
    issued.note("3", leaf(20, 1000, "prod/app", "system:etcd-metrics:app"));
    issued.note("4", leaf(10, 1000, "prod/gone", "app"));
    issued.note("5", leaf(10, 1000, "prod/other", "app"));
    let all: Vec<String> = ["1", "2", "3", "4", "5", "ff"].map(str::to_owned).into();
    let used = |now| -> BTreeSet<&str> {
        issued.in_use(all.iter(), |uid| uid != "uid of prod/gone", time(now)).into_values().flatten().collect()
    };
    assert_eq!(used(25), BTreeSet::from(["2", "3", "5"]));
    assert_eq!(used(24), BTreeSet::from(["1", "2", "3", "5"]), "the new one may not be on the disk yet");
}

#[test]
fn the_sidecars_certificate_and_kubelets_do_not_replace_each_other() {
    let mut issued = Issued::default();
    let user = "system:etcd-peer:etcd-0";
    issued.note("1", leaf(10, 9000, "prod/etcd-0", user));
    issued.note("2", leaf(20, 9000, "prod/etcd-0", user).of_kubelet());
    issued.note("3", leaf(30, 9000, "prod/etcd-0", user));
    let used = |issued: &Issued, now| -> BTreeSet<String> {
        let all: Vec<String> = issued.leaves.iter().map(|(serial, _)| serial.to_owned()).collect();
        issued.in_use(all.iter(), |_| true, time(now)).into_values().flatten().map(str::to_owned).collect()
    };
    assert_eq!(
        used(&issued, 1000),
        BTreeSet::from(["2".to_owned(), "3".to_owned()]),
        "the sidecar has renewed its own"
    );
    assert_eq!(issued.newest_of_peers()[&("uid of prod/etcd-0", "")], ["3"]);
    issued.note("4", leaf(1000, 9000, "prod/etcd-0", user).of_kubelet());
    assert_eq!(issued.newest_of_peers()[&("uid of prod/etcd-0", "")], ["3"], "etcd uses the sidecar's");
    assert_eq!(used(&issued, 1000 + VOLUME_SETTLES - 1).len(), 3, "kubelet may not have written the volume");
    assert_eq!(used(&issued, 1000 + VOLUME_SETTLES), BTreeSet::from(["3".to_owned(), "4".to_owned()]));
    assert_eq!(issued.without_newer(["1".to_owned(), "2".to_owned()].iter()), BTreeSet::new());
    assert_eq!(issued.without_newer(["4".to_owned()].iter()).len(), 1);
    assert!(issued.is_of_kubelet("4") && !issued.is_of_kubelet("3") && !issued.is_of_kubelet("9"));
    let read: Issued = serde_json::from_slice(&serde_json::to_vec(&issued).unwrap()).unwrap();
    assert!(read.is_of_kubelet("4"), "the Secret holds it");
}

#[test]
fn a_pods_newest_certificate_is_near_its_end_when_a_quarter_of_its_life_is_left() {
    let mut issued = Issued::default();
    let (peer, server) = ("system:etcd-peer:etcd-0", "system:etcd-server:etcd-0");
    issued.note("1", leaf(1000, 1400, "prod/etcd-0", peer));
    issued.note("2", leaf(1000, 1400, "prod/etcd-0", server));
    issued.note("3", Leaf::new("host:x", String::new(), "x", time(1400), time(1000)));
    assert!(issued.knows("uid of prod/etcd-0", "9") && !issued.knows("uid of prod/etcd-1", "9"));
    assert!(!issued.knows("host:x", "3"), "itself is no other one");
    let ending = |issued: &Issued, now| -> BTreeSet<String> {
        issued.ending(time(now)).into_iter().map(|(serial, _)| serial).collect()
    };
    assert_eq!(ending(&issued, 1300), BTreeSet::new());
    assert_eq!(ending(&issued, 1301), BTreeSet::from(["1".to_owned(), "2".to_owned()]), "and no host's");
    issued.note("4", leaf(1200, 1600, "prod/etcd-0", peer));
    assert_eq!(ending(&issued, 1399), BTreeSet::from(["2".to_owned()]), "the other is renewed");
    let old = leaf(1000, 1400, "prod/etcd-0", peer);
    let all = [old.clone(), leaf(1000, 1400, "prod/etcd-0", server), old.of_kubelet()];
    let mut ending = all.map(|leaf| (leaf.place(), (String::new(), leaf))).into_iter().collect();
    issued.leave_out_renewed(&mut ending);
    let left: BTreeSet<_> = ending.into_keys().map(|(_, user, kubelet)| (user, kubelet)).collect();
    assert_eq!(left, BTreeSet::from([(server.to_owned(), false), (peer.to_owned(), true)]));
}

#[test]
fn a_holder_is_full_until_its_first_certificate_ends_and_its_neighbour_is_not() {
    let mut issued = Issued::default();
    let full = |issued: &Issued, pod: &str, now| issued.full_until("new", &leaf(now, 1000, pod, "x"), 3);
    for n in 0..3 {
        assert_eq!(full(&issued, "prod/greedy", 10 + n), None);
        issued.note(&format!("{n:x}"), leaf(10 + n, 100 + n, "prod/greedy", "greedy"));
    }
    assert_eq!(full(&issued, "prod/greedy", 50), Some(time(100)));
    assert_eq!(full(&issued, "prod/greedy", 99), Some(time(100)));
    assert_eq!(full(&issued, "prod/greedy", 100), None, "the first has ended");
    assert_eq!(full(&issued, "prod/neighbour", 50), None);
    let again = issued.full_until("2", &leaf(50, 1000, "prod/greedy", "x"), 3);
    assert_eq!(again, None, "an answer that is written again is no other certificate");
}

#[test]
fn it_is_bounded_and_says_since_when_it_is_complete() {
    let mut issued = Issued::default();
    for n in 0..2 * u64::from(MOST) {
        issued.note(&format!("{n:x}"), leaf(1000 + n, 100_000 + n, "prod/a", "a"));
    }
    assert_eq!(issued.leaves.len(), usize::from(MOST));
    assert_eq!(issued.since, 1000 + u64::from(MOST));
    let mut long = issued.clone();
    for (serial, leaf) in issued.leaves.iter() {
        let pod = format!("{}/{}", "n".repeat(63), "p".repeat(63));
        long.leaves.insert(serial, Leaf::new(leaf.holder(), pod, leaf.user(), time(leaf.until), time(leaf.at)));
    }
    assert!(serde_json::to_vec(&issued).unwrap().len() < 160 * 1024);
    assert!(serde_json::to_vec(&long).unwrap().len() < 320 * 1024);
}

/// The Secret's text is that of the versions before, to the byte: signers of two versions take turns during an upgrade.
#[test]
fn the_text_of_a_record_is_read_and_written_as_by_the_version_before() {
    const TEXT: &str = concat!(
        r#"{"leaves":{"#,
        r#""10ab":{"at":100,"until":900,"holder":"u-0","pod":"prod/etcd-0","user":"system:etcd-peer:etcd-0","peer":true,"#,
        r#""key":"000123456789abcdef0123456789abcd"},"#,
        r#""2":{"at":110,"until":910,"holder":"u-0","pod":"prod/etcd-0","user":"system:etcd-peer:etcd-0","peer":true,"#,
        r#""kubelet":true,"key":"ffffffffffffffffffffffffffffffff"},"#,
        r#""3":{"at":120,"until":920,"holder":"host/m1","pod":"","user":"m1"},"#,
        r#""4":{"at":130,"until":930,"holder":"u-0","pod":"prod/etcd-0","user":"system:etcd-peer:etcd-0","peer":true,"#,
        r#""key":"of another form"}},"since":90,"lackingUntil":800}"#
    );
    let record: Issued = serde_json::from_slice(TEXT.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string(&record).unwrap(), TEXT);
    let named = |selector: Selector| -> Vec<String> { record.named(&selector, "prod").into_keys().collect() };
    assert_eq!(named(Selector::Pod("etcd-0".to_owned())), ["10ab", "2", "4"]);
    assert_eq!(named(Selector::User("m1".to_owned())), ["3"]);
    assert_eq!(record.named(&Selector::Serial("10ab".to_owned()), "prod")["10ab"], Some(time(900)));
    let serials = ["10ab", "3", "4"].map(str::to_owned);
    let keys = BTreeSet::from(["000123456789abcdef0123456789abcd", "of another form"].map(str::to_owned));
    assert_eq!((record.keys(serials.iter()), record.without_key(serials.iter())), (keys.clone(), 1));
    assert_eq!(record.of_keys(&keys).into_keys().collect::<Vec<_>>(), ["10ab", "4"]);
    // The same certificates, recorded one by one, are the same record.
    let mut noted = Issued { since: 90, lacking_until: 800, ..Issued::default() };
    record.leaves.iter().for_each(|(serial, leaf)| noted.note(serial, leaf.clone()));
    assert_eq!(noted, record);
}

#[test]
fn certificates_of_one_pod_share_their_text_also_when_they_are_read() {
    let mut issued = Issued::default();
    issued.note("1", leaf(10, 1000, "prod/etcd-0", "system:etcd-peer:etcd-0"));
    let one = issued.bytes();
    for n in 2..18 {
        issued.note(&n.to_string(), leaf(10, 1000, "prod/etcd-0", "system:etcd-peer:etcd-0").for_key(&[n]));
    }
    let each = (issued.bytes() - one) / 16;
    assert!(each < 150, "{each}");
    let read: Issued = serde_json::from_slice(&serde_json::to_vec(&issued).unwrap()).unwrap();
    assert!(read.bytes() <= issued.bytes(), "{} of {}", read.bytes(), issued.bytes());
}

#[test]
fn with_less_memory_the_pod_with_the_most_loses_what_ends_first_and_that_is_said() {
    let mut issued = Issued::default();
    for n in 0..100 {
        issued.note(&format!("loud-{n}"), leaf(10, 1000 + n, "prod/loud", "loud"));
    }
    for n in 0..3 {
        issued.note(&format!("quiet-{n}"), leaf(10, 500, "prod/quiet", "quiet"));
    }
    let (before, all) = (issued.clone(), issued.bytes());
    issued.shrink_to(all);
    assert_eq!(issued, before, "there is room");
    issued.shrink_to(all / 2);
    assert!(issued.bytes() <= all / 2 && issued.bytes() > all / 3, "{} of {all}", issued.bytes());
    assert!((0..3).all(|n| issued.has(&format!("quiet-{n}"))), "the other pod loses none");
    assert!(issued.has("loud-99") && !issued.has("loud-0"));
    assert_eq!((before.lacks_before(time(500)), issued.lacks_before(time(500))), (None, Some(11)));
    issued.shrink_to(0);
    assert_eq!(issued.len(), 0);
    let end = 1099 + 65 * 60;
    assert_eq!((issued.lacks_before(time(end - 1)), issued.lacks_before(time(end))), (Some(11), None));
}

#[test]
fn a_clock_that_is_an_hour_fast_for_a_while_loses_no_certificate() {
    let mut issued = Issued::default();
    issued.note("1", leaf(10, 1000, "prod/etcd-0", "system:etcd-peer:etcd-0"));
    issued.forget_ended(time(900 + 3600));
    assert!(issued.has("1") && !issued.has_ended(time(900 + 3600)));
    assert!(issued.has_ended(time(1000 + CLOCK)));
    issued.forget_ended(time(1000 + CLOCK));
    assert_eq!((issued.len(), issued.lacks_before(time(0))), (0, None));
}

/// The names of a member or of an ordinary client.
fn named(leaf: Leaf, pod: &str, ip: u16) -> Leaf {
    let [high, low] = ip.to_be_bytes();
    let names = [pod.to_owned(), "etcd-client.tenant-1234".to_owned(), "etcd.tenant-1234".to_owned()];
    let forms = |name: String| {
        [String::new(), ".svc".to_owned(), ".svc.cluster.local".to_owned()].map(|end| name.clone() + &end)
    };
    let mut sans: Sans = names.into_iter().flat_map(forms).collect::<Vec<_>>().join(",").parse().unwrap();
    sans.extend(&format!("localhost,10.0.{high}.{low},10.96.0.9,127.0.0.1,::1").parse().unwrap());
    leaf.named(&sans)
}

/// A record of `each` certificates of each of `pods` members.
fn members(user: &str, pods: u16, each: u8, with_names: bool) -> Issued {
    let mut issued = Issued::default();
    for n in 0..pods {
        let (pod, user) = (format!("tenant-1234/etcd-{n}"), format!("{user}:etcd-{n}"));
        for at in 0..each {
            let holder = format!("0d5f2e0c-9c2f-4a68-9e53-{n:012}");
            let [high, low] = n.to_be_bytes();
            let leaf = Leaf::new(&holder, pod.clone(), &user, time(1_800_086_400), time(1_800_000_001))
                .for_key(&[high, low, at]);
            let leaf = if with_names { named(leaf, &format!("etcd-{n}.etcd.tenant-1234"), n) } else { leaf };
            issued.note(&format!("{:032x}", u32::from(n) * 256 + u32::from(at) + (1 << 31)), leaf);
        }
    }
    issued
}

fn stored(issued: &Issued) -> usize {
    serde_json::to_vec(issued).unwrap().len()
}

/// docs/scale.md has this of a cluster, and docs/revocation.md what the names take.
#[test]
fn the_records_of_a_cluster_of_three_take_little_of_eight_kib() {
    // A certificate, and the next one.
    let both = members("system:etcd-peer", 3, 2, true).bytes() + members("system:etcd-server", 3, 2, true).bytes();
    assert!(both <= 3072, "{both}");
    for (pods, each, memory, text) in [(3, 4, 24, 56), (256, 4, 12, 46)] {
        let [without, with] = [false, true].map(|names| members("system:etcd-server", pods, each, names));
        let of_each = |bytes: [usize; 2]| (bytes[1] - bytes[0]) / with.len();
        let names = (of_each([without.bytes(), with.bytes()]), of_each([stored(&without), stored(&with)]));
        assert!(names.0 <= memory && names.1 <= text, "{names:?} bytes of each of {}", with.len());
    }
}

/// A pod may ask for some of its names, so that each of its certificates has others.
#[test]
fn names_are_bounded_and_who_has_the_most_loses_its_own() {
    let mut issued = members("system:etcd-server", 3, 4, true);
    let label = "x".repeat(60);
    let long = |n: usize| -> Sans {
        let names = (0..100).map(|m| format!("n{n}-{m}.{label}.{label}.{label}.{label}"));
        Sans { dns: names.collect(), ..Sans::default() }
    };
    for n in 0..1000 {
        let leaf = leaf(1_800_000_002, 1_800_090_000 + n as u64, &format!("tenant-1234/loud-{}", n % 4), "loud");
        issued.note(&format!("{n:x}"), leaf.named(&long(n)));
    }
    assert_eq!(issued.len(), 1012, "all are recorded");
    let lists: BTreeSet<&str> = issued.leaves.values().filter_map(|leaf| Some(leaf.names()?.text())).collect();
    let bytes: usize = lists.iter().map(|list| list.len()).sum();
    assert!(bytes <= MOST_NAMES + 16 && bytes > MOST_NAMES / 4, "{bytes}");
    assert!(issued.bytes() < 400 << 10 && stored(&issued) < 400 << 10, "{} {}", issued.bytes(), stored(&issued));
    let first = issued.whose(&format!("{:032x}", 1_u32 << 31)).unwrap();
    assert!(first.contains("names etcd-0.etcd.tenant-1234, "), "the others keep theirs: {first}");
    let said = |n: usize| issued.whose(&format!("{n:x}")).unwrap();
    assert_eq!(said(0), "pod tenant-1234/loud-0, user loud, names and more", "left out, and that is said");
    assert!(said(999).len() < 400, "{}", said(999));
}

/// Signers of two versions take turns during an upgrade: one that knows no names passes over them, and its text lacks them.
#[test]
fn names_stand_beside_the_certificates_for_versions_that_know_none() {
    let issued = members("system:etcd-server", 3, 2, true);
    let text = serde_json::to_value(&issued).unwrap();
    let lists = text["names"].as_array().unwrap();
    assert_eq!(lists.len(), 1, "one of all members: {lists:?}");
    let read: Issued = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(read, issued);
    assert!(read.bytes() <= issued.bytes(), "they are shared again: {} of {}", read.bytes(), issued.bytes());
    let mut older = text;
    older.as_object_mut().unwrap().remove("names");
    for (_, leaf) in older["leaves"].as_object_mut().unwrap() {
        let fields = leaf.as_object_mut().unwrap();
        assert!(fields.remove("names").is_some() && fields.remove("addresses").is_some());
    }
    let without = members("system:etcd-server", 3, 2, false);
    assert_eq!(older, serde_json::to_value(&without).unwrap(), "all else is as before");
    assert_eq!(serde_json::from_value::<Issued>(older).unwrap(), without);
    // A list that is not there is none.
    let odd =
        r#"{"leaves":{"1":{"at":1,"until":9,"holder":"u","pod":"p/a","user":"a","names":7,"addresses":"x,10.0.0.1"}}}"#;
    let odd: Issued = serde_json::from_str(odd).unwrap();
    assert_eq!(odd.whose("1").unwrap(), "pod p/a, user a, names 10.0.0.1");
}

#[test]
fn people_are_told_whose_certificates_they_are() {
    let issued = members("system:etcd-server", 3, 2, true);
    let serials: Vec<String> = issued.iter().map(|(serial, _)| serial.to_owned()).collect();
    let said = issued.described(serials[..2].iter());
    let one = "pod tenant-1234/etcd-0, user system:etcd-server:etcd-0, names etcd-0.etcd.tenant-1234, \
               etcd-0.etcd.tenant-1234.svc, etcd-0.etcd.tenant-1234.svc.cluster.local, etcd-client.tenant-1234, \
               etcd-client.tenant-1234.svc, etcd-client.tenant-1234.svc.cluster.local, etcd.tenant-1234, etcd.tenant-1234.svc and 6 more";
    assert_eq!(said, format!(" ({one})"), "both are alike");
    assert_eq!(issued.described(["ff".to_owned()].iter()), "");
    let mut many = Issued::default();
    (0..5).for_each(|n| many.note(&n.to_string(), leaf(1, 9, &format!("web/app-{n}"), "app")));
    let serials: Vec<String> = many.iter().map(|(serial, _)| serial.to_owned()).collect();
    let said = many.described(serials.iter());
    assert_eq!(said, " (pod web/app-0, user app; pod web/app-1, user app; pod web/app-2, user app; and 2 more)");
}
