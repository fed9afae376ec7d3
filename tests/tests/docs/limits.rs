//! The numbers in sentences of the pages are those of the sources. Their effects have tests of their own; here a change of one of them
//! does not leave a page behind.

use std::{collections::BTreeMap, fs, time::SystemTime};

use etcd_tls_contract::{life::Life, policy::Policy, settings::Settings};
use tests::repository;

/// Page, words of it, source file, and the line in it that the words repeat.
const SAME: [(&str, &str, &str, &str); 37] = [
    (
        "operations.md",
        "If it does not answer within two seconds, your own probe decides",
        "sidecar/contract/src/liveness.rs",
        "pub const SIDECAR_LIMIT: Duration = Duration::from_secs(2);",
    ),
    ("operations.md", "blocks restarts for at most 60 s", "sidecar/src/restart/lock.rs", "pub const TTL: u32 = 30;"),
    (
        "operations.md",
        "blocks restarts for at most 60 s",
        "sidecar/src/restart/lock.rs",
        "pub const LONGEST: Duration = Duration::from_secs(2 * TTL as u64);",
    ),
    (
        "operations.md",
        "else within 15 s",
        "sidecar/src/os/clock.rs",
        "const GLANCE: Duration = Duration::from_secs(15);",
    ),
    (
        "operations.md",
        "more than 50 service accounts",
        "webhook/src/approve/bindings/graced.rs",
        "pub(crate) const MAX_OF_NAMESPACE: usize = 50;",
    ),
    (
        "revocation.md",
        "An authority bars at most 2,048 keys",
        "webhook/src/sign/authorities/revoked.rs",
        "const MOST: usize = 2048;",
    ),
    (
        "revocation.md",
        "`revoke` revokes at most 2,048 certificates and bars at most 2,048 keys",
        "webhook/src/sign/authorities/revoked.rs",
        "const MOST: usize = 2048;",
    ),
    (
        "revocation.md",
        "up to 16,384 entries and 512 KiB",
        "sidecar/contract/src/crl.rs",
        "pub const MAX_ENTRIES: usize = 16 * 1024;",
    ),
    (
        "revocation.md",
        "up to 16,384 entries and 512 KiB",
        "sidecar/contract/src/crl.rs",
        "pub const MAX_CRL: usize = 512 * 1024;",
    ),
    (
        "revocation.md",
        "An authority bars at most 256 pods",
        "webhook/src/sign/authorities/revoked.rs",
        "const MOST_BARRED: usize = 256;",
    ),
    (
        "revocation.md",
        "record of the valid certificates of an authority, 1,024 at most",
        "webhook/src/sign/authorities/issued.rs",
        "pub(crate) const MOST: u16 = 1024;",
    ),
    ("revocation.md", "A pod that has 256 of them waits", "webhook/src/sign.rs", "default_value_t = 256,"),
    (
        "authorities.md",
        "`sign` writes the record within two seconds after a certificate, and a second more for each 16",
        "webhook/src/sign/authorities/unwritten.rs",
        "const RECORD_WITHIN: Duration = Duration::from_secs(2);",
    ),
    (
        "authorities.md",
        "and a second more for each 16 certificates and revocations that it has, 20 s at the most",
        "webhook/src/sign/authorities/unwritten.rs",
        "const A_SECOND_MORE: usize = 16;",
    ),
    (
        "authorities.md",
        "and a second more for each 16 certificates and revocations that it has, 20 s at the most",
        "webhook/src/sign/authorities/unwritten.rs",
        "const RECORD_WITHIN_AT_MOST: Duration = Duration::from_secs(20);",
    ),
    (
        "authorities.md",
        "requests stay until the Secret is written, for an hour at most",
        "webhook/src/sign/authorities/unwritten.rs",
        "const SPARES_FOR: Duration = Duration::from_secs(60 * 60);",
    ),
    (
        "revocation.md",
        "65 minutes after its certificate has expired",
        "webhook/src/sign/authorities/issued.rs",
        "pub(super) const CLOCK: u64 = 65 * 60;",
    ),
    (
        "revocation.md",
        "names and addresses of each certificate, at most 512 and 96 bytes",
        "webhook/src/sign/authorities/names.rs",
        "const MOST: usize = 512;",
    ),
    (
        "revocation.md",
        "names and addresses of each certificate, at most 512 and 96 bytes",
        "webhook/src/sign/authorities/names.rs",
        "const MOST_ADDRESSES: usize = 96;",
    ),
    (
        "revocation.md",
        "up to eight names and addresses",
        "webhook/src/sign/authorities/names.rs",
        "const SHOWN: (usize, usize) = (8, 240);",
    ),
    (
        "revocation.md",
        "64 KiB of different names in all",
        "webhook/src/sign/authorities/issued.rs",
        "const MOST_NAMES: usize = 64 << 10;",
    ),
    (
        "revocation.md",
        "The answer names the owner of up to three of the certificates",
        "webhook/src/sign/authorities/issued.rs",
        "const DESCRIBED: usize = 3;",
    ),
    (
        "revocation.md",
        "the 32 certificates that were revoked last",
        "webhook/src/revoke.rs",
        "pub const MOST_WHOSE: usize = 32;",
    ),
    (
        "revocation.md",
        "up to 5 s for the sidecar",
        "sidecar/src/agent/pushed.rs",
        "const PAUSE: Duration = Duration::from_secs(5);",
    ),
    (
        "revocation.md",
        "for five minutes or more (120 failed attempts)",
        "sidecar/src/agent/pushed.rs",
        "const OFTEN: u32 = 120;",
    ),
    ("revocation.md", "and 20 s for `sign`", "webhook/src/controller/client.rs", "wait.min(Duration::from_secs(20))"),
    (
        "revocation.md",
        "75 s for `sign`",
        "webhook/src/controller/listed/events.rs",
        "const SILENCE: Duration = Duration::from_secs(75);",
    ),
    (
        "revocation.md",
        "up to 12 s for the Lease",
        "webhook/src/controller/lease.rs",
        "pub const DURATION: Duration = Duration::from_secs(12);",
    ),
    (
        "revocation.md",
        "up to 30 s for [what the one before issued]",
        "webhook/src/sign/reconcile.rs",
        "const RECOLLECTED_WITHIN: Duration = Duration::from_secs(30);",
    ),
    (
        "issuers.md",
        "Of one pod and role at most the newest four stay",
        "webhook/src/sign/certificate_requests/grouped.rs",
        "const PER_ROLE: usize = 4;",
    ),
    (
        "issuers.md",
        "the oldest open ones beyond 4 of a pod and role, or 16 of a pod",
        "webhook/src/sign/cleaner/ledger.rs",
        "const OPEN_PER_ROLE: usize = 4;",
    ),
    (
        "issuers.md",
        "the oldest open ones beyond 4 of a pod and role, or 16 of a pod",
        "webhook/src/sign/cleaner/ledger.rs",
        "const OPEN_PER_POD: usize = 16;",
    ),
    (
        "standalone.md",
        "| open lists | 4; 2 while 16 or more are open; 28 of all users together | |",
        "webhook/src/standalone.rs",
        "const LISTS: usize = 32;",
    ),
    (
        "standalone.md",
        "| open watches | 100; 5 while 500 or more are open, 2 while 750 or more are; 875 of all users together | |",
        "webhook/src/standalone.rs",
        "const WATCHES: usize = 1_000;",
    ),
    (
        "standalone.md",
        "| 128; 6 while 512 or more are open, 2 while 768 or more are; 896 of all users together | |",
        "webhook/src/standalone.rs",
        "const BODIES: usize = 1_024;",
    ),
    ("issuers.md", "A bundle has at most 16 CAs", "sidecar/src/agent/answered.rs", "const MOST: usize = 16;"),
    (
        "standalone.md",
        "`request` asks for 20 s at most",
        "sidecar/src/agent/first.rs",
        "const REFUSED_LIMIT: Duration = Duration::from_secs(20);",
    ),
];

#[test]
fn numbers_of_the_pages_are_those_of_the_sources() {
    let mut stale = Vec::new();
    for (page, words, source, line) in SAME {
        let text = fs::read_to_string(repository().join("docs").join(page)).expect("a page");
        // Lines end anywhere.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.contains(words) {
            stale.push(format!("docs/{page} no longer says {words:?}"));
        }
        if !fs::read_to_string(repository().join(source)).expect("a source").contains(line) {
            stale.push(format!("{source} no longer has {line:?}, as docs/{page} says: {words:?}"));
        }
    }
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

/// docs/approval.md: how often a person decides about a pod with the longest life.
#[test]
fn a_person_decides_when_the_page_says() {
    let text = fs::read_to_string(repository().join("docs/approval.md")).expect("the page");
    assert!(text.contains("asks for the next one after 36 to 54 days"), "{text}");
    let life =
        text.split("etcd-tls.dev/duration: ").nth(1).and_then(|rest| rest.split('`').next()).expect("a duration");
    let allows = text.split("`lifetime: {max: ").nth(1).and_then(|rest| rest.split('}').next());
    assert_eq!(allows, Some(life));
    Policy::parse(&format!("lifetime: {{max: {life}}}")).expect("a policy");
    let annotations = BTreeMap::from([("etcd-tls.dev/duration".to_owned(), life.to_owned())]);
    let settings = Settings::parse(&annotations).expect("an annotation");

    let issued = SystemTime::UNIX_EPOCH;
    let life = Life::of(issued, issued + settings.duration, Some(issued));
    let days = |serial: u32| {
        let after = life.renew_at("uid", &serial.to_string()).duration_since(issued).expect("later");
        after.as_secs_f64() / 86_400.0
    };
    let all: Vec<f64> = (0..1000).map(days).collect();
    let (first, last) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
    assert!((36.0..36.5).contains(&first) && (53.5..54.0).contains(&last), "{first} to {last}");
}
