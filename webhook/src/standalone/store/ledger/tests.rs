#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, UNIX_EPOCH};

use etcd_tls_contract::{crl::Reason, key::KeyAlgorithm};

use super::*;
use crate::{
    ca::authority::Authority,
    revoke::{Action, Request, Selector},
    sign::ledger::Known,
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn recorded(serial: &str, domain: Domain, user: &str, until: u64) -> Recorded {
    let leaf = Leaf::new(&host_holder(user), String::new(), user, at(until), at(1000));
    let leaf = leaf.of_cluster("a/b".to_owned());
    let (serial, presented) = (serial.to_owned(), String::new());
    Recorded { domain, serial, leaf, until: at(until), presented, granted: false }
}

/// The known facts of the clients' authority.
fn known(ledger: &Ledger) -> Known<'_> {
    Known {
        issued: ledger.issued(Domain::Client).unwrap(),
        namespace: "a",
        signs_lists: true,
        live: &[],
        voters: &[],
        by_record: None,
        leaves_end: at(9000),
        authority_end: at(9000),
    }
}

#[test]
fn certificates_beyond_the_reach_of_revocations_are_refused() {
    let bounds = Bounds { per_name: 256, ..Bounds::default() };
    let mut ledger = Ledger::default();
    for serial in 0..256 {
        let new = recorded(&serial.to_string(), Domain::Client, "app", 5000 + serial);
        ledger.admit("x", &new, bounds).unwrap();
        ledger.note(&new, Bounds::default().room, at(1000));
    }
    let more = recorded("more", Domain::Client, "app", 6000);
    let full = ledger.admit("x", &more, bounds).unwrap_err();
    assert!(matches!(&full, ApiError::TooManyRequests { message, .. } if message.contains("256 valid")), "{full}");
    assert!(full.to_string().contains("revoke <namespace>/<cluster> --serial <number>`"), "{full}");
    ledger.admit("x", &recorded("1", Domain::Client, "app", 6000), bounds).unwrap();
    ledger.admit("x", &recorded("more", Domain::Client, "other", 6000), bounds).unwrap();
    ledger.admit("x", &recorded("more", Domain::Peer, "app", 6000), bounds).unwrap();
    let by_another = Recorded { leaf: more.leaf.clone().to("user/other".to_owned()), ..more };
    ledger.admit("x", &by_another, bounds).unwrap();

    // A revocation that came between the judgement of a request and its answer.
    let of_key = |serial: &str, key: &[u8]| {
        let new = recorded(serial, Domain::Client, "thief", 5000);
        Recorded { leaf: new.leaf.for_key(key), ..new }
    };
    ledger.note(&of_key("stolen", b"key"), Bounds::default().room, at(1000));
    let known = known(&ledger);
    let selector = Selector::Serial("stolen".to_owned());
    let reason = Reason::KeyCompromise;
    let mut revoked = Revoked::default();
    revoked.take(&Request { action: Action::Add, id: "1".to_owned(), selector, reason, until: None }, &known, at(1000));
    ledger.revise(Domain::Client, Arc::new(revoked));
    let again = ledger.admit("x", &of_key("again", b"key"), bounds).unwrap_err();
    assert!(matches!(&again, ApiError::Conflict { message, .. } if message.contains("compromised")), "{again}");
    ledger.admit("x", &of_key("again", b"another"), bounds).unwrap();
}

fn of(principal: &str, user: &str, serial: &str, until: u64) -> Recorded {
    let new = recorded(serial, Domain::Client, user, until);
    Recorded { leaf: new.leaf.to(principal.to_owned()), ..new }
}

/// Of a host by its certificate `presented`.
fn by(presented: &str, host: &str, serial: &str) -> Recorded {
    Recorded { presented: presented.to_owned(), ..of(&format!("host/{host}"), host, serial, 9000) }
}

fn take(ledger: &mut Ledger, new: &Recorded, bounds: Bounds) -> Result<(), ApiError> {
    ledger.admit("x", new, bounds)?;
    ledger.note(new, bounds.room, at(1000));
    Ok(())
}

/// How many branches are charged for these certificates.
fn roots<'a>(all: impl Iterator<Item = (&'a str, &'a Leaf)>) -> usize {
    all.map(|(serial, leaf)| leaf.root(serial)).collect::<BTreeSet<_>>().len()
}

const TOKEN: &str = "user/bootstrap";

/// As one token may flood it, and each invented host by its own certificates.
#[test]
fn one_token_does_not_fill_the_record_by_hosts_that_it_invents() {
    let bounds = Bounds { per_name: 256, per_user: 64, room: 1024 };
    let mut ledger = Ledger::default();
    let first = |host: usize| (format!("z{host}"), format!("z{host}-first"));
    let invented = (0..100).take_while(|n| {
        let (host, first) = first(*n);
        take(&mut ledger, &of(TOKEN, &host, &first, 9000), bounds).is_ok()
    });
    let invented = invented.count();
    assert_eq!(invented, bounds.per_user);
    for (host, first) in (0..invented).map(first) {
        // By each certificate that it gets, as often as that helps.
        let (mut own, mut n) = (vec![first], 0);
        while n < own.len() {
            let next = format!("{host}-{}", own.len());
            if take(&mut ledger, &by(&own[n], &host, &next), bounds).is_ok() { own.push(next) } else { n += 1 }
        }
    }
    let issued = ledger.issued(Domain::Client).unwrap();
    let taken = issued.iter().count();
    assert_eq!(taken, bounds.per_user * BRANCH * BRANCHES);
    assert_eq!(roots(issued.iter().filter(|(_, leaf)| leaf.origin() == TOKEN)), bounds.per_user);
    let shipped = Bounds::default();
    assert!(shipped.per_user * BRANCH * BRANCHES < shipped.by_rules(), "one token leaves place for others");
    let refused = take(&mut ledger, &of(TOKEN, "new", "new", 9000), bounds).unwrap_err();
    assert!(refused.to_string().contains("--certificates-per-user"), "{refused}");
    take(&mut ledger, &of("user/new", "new", "new", 9000), bounds).unwrap();
    take(&mut ledger, &Recorded { granted: true, ..of(TOKEN, "approved", "approved", 9000) }, bounds).unwrap();
}

#[test]
fn a_full_record_forgets_no_valid_certificate_and_keeps_place_for_renewals_and_approvals() {
    let bounds = Bounds { per_name: 256, per_user: 1024, room: 40 };
    let mut ledger = Ledger::default();
    take(&mut ledger, &of(TOKEN, "app", "app", 9000), bounds).unwrap();
    take(&mut ledger, &of(TOKEN, "m1", "first", 9000), bounds).unwrap();
    let new = |n: usize| of(&format!("user/{n}"), &format!("z{n}"), &format!("z{n}"), 9000);
    let rules = (0..bounds.room).take_while(|n| take(&mut ledger, &new(*n), bounds).is_ok()).count();
    assert_eq!(rules, 28, "three quarters, of which two are taken");
    let granted = |n| Recorded { granted: true, ..new(n) };
    let all = (rules..100).take_while(|n| take(&mut ledger, &granted(*n), bounds).is_ok()).count();
    assert_eq!(all, 10);
    // A holder of one gets another, and keeps the first.
    take(&mut ledger, &of(TOKEN, "app", "app-again", 9000), bounds).unwrap();
    take(&mut ledger, &by("first", "m1", "second"), bounds).unwrap();
    let has = |serial: &str| ledger.issued(Domain::Client).unwrap().has(serial);
    assert!(["app", "app-again", "first", "second", "z0", "z27", "z30"].into_iter().all(has));
    let more = (0..100).take_while(|n| take(&mut ledger, &of(TOKEN, "app", &format!("m{n}"), 9000), bounds).is_ok());
    assert_eq!(more.count(), bounds.room - 2, "memory is bounded");
    let full = take(&mut ledger, &by("second", "m1", "third"), bounds).unwrap_err();
    assert!(full.to_string().contains("80 are the limit (--max-certificates)"), "{full}");
}

/// A thief has a certificate of the host by the host's bootstrap token, or an old one of its own.
/// Ten times as many certificates as are valid at once, at most.
#[test]
fn a_record_of_certificates_that_have_ended_does_not_grow() {
    let bounds = Bounds { per_name: 256, per_user: 1024, room: 100 };
    let mut ledger = Ledger::default();
    for n in 0..10 * bounds.hard() as u64 {
        let (now, user) = (at(n), format!("m{}", n % 50));
        let leaf = Leaf::new(&host_holder(&user), String::new(), &user, at(n + 50), now);
        let (serial, presented) = (n.to_string(), String::new());
        let new = Recorded { domain: Domain::Client, serial, leaf, until: at(n + 50), presented, granted: false };
        ledger.admit("x", &new, bounds).unwrap();
        ledger.note(&new, bounds.room, now);
        ledger.keep();
        let recorded = ledger.issued(Domain::Client).unwrap().iter().count();
        assert!(recorded <= bounds.room, "{recorded} records after {n}");
    }
}

#[test]
fn a_host_renews_whatever_others_took_of_its_name() {
    let bounds = Bounds { per_name: 16, per_user: 32, room: 1024 };
    let mut ledger = Ledger::default();
    take(&mut ledger, &of(TOKEN, "m1", "own", 9000), bounds).unwrap();
    take(&mut ledger, &of(TOKEN, "m1", "stolen", 9000), bounds).unwrap();
    take(&mut ledger, &by("own", "m1", "own-2"), bounds).unwrap();
    for presented in ["stolen", "own"] {
        for n in 0..100 {
            drop(take(&mut ledger, &by(presented, "m1", &format!("{presented}-{n}")), bounds));
        }
    }
    let full = take(&mut ledger, &by("stolen", "m1", "more"), bounds).unwrap_err();
    assert!(matches!(full, ApiError::TooManyRequests { .. }), "{full}");
    take(&mut ledger, &by("own-2", "m1", "own-3"), bounds).unwrap();
    // The journal holds it, each certificate by itself and the record as a whole.
    let mut again = Ledger::default();
    for serial in ["own", "stolen", "own-2", "own-3"] {
        let own = of(TOKEN, "m1", serial, 9000);
        let entry = ledger.entry_of(&own).unwrap();
        let line = serde_json::to_vec(&entry).unwrap();
        again.replay(serde_json::from_slice(&line).unwrap()).unwrap();
    }
    let whole: Issued =
        serde_json::from_slice(&serde_json::to_vec(ledger.issued(Domain::Client).unwrap()).unwrap()).unwrap();
    for issued in [again.issued(Domain::Client).unwrap(), &whole] {
        let leaf = issued.get("own-3").unwrap();
        assert_eq!((leaf.branch("own-3"), leaf.origin()), ("own", TOKEN));
    }
}

/// Its answer never reached it, and its key is gone with its process.
#[test]
fn a_host_that_asks_again_by_the_same_certificate_is_answered_while_its_token_is_full() {
    let bounds = Bounds { per_name: 16, per_user: 1, room: 1024 };
    let mut ledger = Ledger::default();
    take(&mut ledger, &of(TOKEN, "m1", "own", 9000), bounds).unwrap();
    take(&mut ledger, &of(TOKEN, "m2", "other", 9000), bounds).unwrap_err();
    take(&mut ledger, &by("own", "m1", "lost"), bounds).unwrap();
    take(&mut ledger, &by("own", "m1", "again"), bounds).unwrap();
    // Once: the holder of an old certificate gets no more, and takes nothing of the host.
    take(&mut ledger, &by("own", "m1", "thief"), bounds).unwrap_err();
    take(&mut ledger, &by("lost", "m1", "found"), bounds).unwrap();
    take(&mut ledger, &by("again", "m1", "again-2"), bounds).unwrap();
    take(&mut ledger, &by("again", "m1", "again-3"), bounds).unwrap_err();
    let issued = ledger.issued(Domain::Client).unwrap();
    let (found, next) = (issued.get("found").unwrap(), issued.get("again-2").unwrap());
    assert_eq!((found.branch("found"), found.root("found")), ("own", "own"));
    assert_eq!((next.branch("again-2"), next.root("again-2")), ("again", "own"), "charged to the first one");
    assert_eq!(roots(issued.iter()), 1);
}

#[test]
fn changes_that_are_not_durable_are_taken_back() {
    let text = |ledger: &Ledger| serde_json::to_string(&ledger.entries().unwrap().collect::<Vec<_>>()).unwrap();
    let bounds = Bounds { per_name: 2, ..Bounds::default() };
    let mut ledger = Ledger::default();
    ledger.note(&of("user/a", "app", "short", 1500), bounds.room, at(1000));
    ledger.note(&of("user/a", "app", "long", 9000), bounds.room, at(1000));
    ledger.keep();
    let before = text(&ledger);
    // One that ended leaves for it.
    let leaf = Leaf::new(&host_holder("app"), String::new(), "app", at(9000), at(2000)).to("user/a".to_owned());
    let next = |serial: &str| Recorded { leaf: leaf.clone(), ..of("user/a", "app", serial, 9000) };
    ledger.note(&next("next"), bounds.room, at(2000));
    let has = |ledger: &Ledger, serial: &str| ledger.issued(Domain::Client).unwrap().has(serial);
    assert!(has(&ledger, "next") && !has(&ledger, "short"));
    ledger.admit("x", &next("more"), bounds).unwrap_err();
    ledger.take_back();
    assert_eq!(text(&ledger), before);
    ledger.admit("x", &next("more"), bounds).unwrap();
    ledger.note(&next("next"), bounds.room, at(2000));
    ledger.keep();
    ledger.take_back();
    assert!(has(&ledger, "next") && !has(&ledger, "short"), "it is durable");
    ledger.admit("x", &next("more"), bounds).unwrap_err();
}

/// As commit ed104b6 wrote them, with no principal.
#[test]
fn certificates_of_an_earlier_record_are_revocable_and_fill_nobodys_place() {
    let line = r#"{"issued":["client",{"leaves":{"4f":{"at":1700000000,"until":1700005000,"holder":"host:app","pod":"",
        "user":"app","key":"k"}},"since":1700000000}]}"#;
    let mut ledger = Ledger::default();
    ledger.replay(serde_json::from_str(line).unwrap()).unwrap();
    assert!(ledger.issued(Domain::Client).unwrap().has("4f"));
    let bounds = Bounds { per_name: 1, ..Bounds::default() };
    ledger.admit("x", &of("user/a", "app", "50", 6000), bounds).unwrap();
}

#[test]
fn a_journal_written_anew_holds_the_record_and_the_revocations() {
    let mut ledger = Ledger::default();
    ledger.note(&recorded("1", Domain::Client, "app", 5000), Bounds::default().room, at(1000));
    ledger.note(&recorded("2", Domain::Peer, "system:etcd-peer:m1", 5000), Bounds::default().room, at(1000));
    ledger.note(&recorded("3", Domain::Client, "old", 900), Bounds::default().room, at(1000));
    let authority = Authority::generate("a", KeyAlgorithm::EcdsaP256, Duration::from_secs(9000), at(1000)).unwrap();
    let known = known(&ledger);
    let selector = Selector::User("app".to_owned());
    let request =
        Request { action: Action::Renewed, id: "1".to_owned(), selector, reason: Reason::Unspecified, until: None };
    let mut revoked = Revoked::default();
    revoked.take(&request, &known, at(1000));
    revoked.refresh(&authority, at(1000)).unwrap();
    let number = revoked.list().unwrap().number();
    ledger.revise(Domain::Client, Arc::new(revoked));
    let mut again = Ledger::default();
    for entry in ledger.entries().unwrap() {
        let line = serde_json::to_vec(&entry).unwrap();
        again.replay(serde_json::from_slice(&line).unwrap()).unwrap();
    }
    assert_eq!(again.issued(Domain::Peer).unwrap().peers(at(1000)).len(), 1);
    assert!(again.lists("1") && !again.lists("2") && !again.lists("3"));
    let mut revoked = Revoked::clone(again.revoked(Domain::Client).unwrap());
    assert_eq!(revoked.report().unwrap().count, 1);
    assert_eq!(revoked.refresh(&authority, at(1001)), Ok(true), "the list is signed anew");
    let list = revoked.list().unwrap();
    assert!(list.number() > number && list.entries().contains_key("1"));
    assert_eq!(revoked.refresh(&authority, at(5000 + 65 * 60)), Ok(true));
    assert!(revoked.list().unwrap().entries().is_empty(), "its certificate has ended a while ago");
}
