#![allow(clippy::unwrap_used)]

use super::*;

const START: f64 = 1_800_000_000.0;
const HOUR: f64 = 3600.0;

pub(in crate::status) fn port(port: &'static str, domain: Domain, enforced: bool) -> Port {
    Port { port, domain, enforced, reason: (!enforced).then(|| "because".to_owned()), unmeant: false, unlisted: false }
}

/// A member whose certificates were issued at [`START`] for a day, and are renewed after twelve hours.
pub(in crate::status) fn member(name: &str) -> PodSeen {
    let certificate = Certificate {
        serial: Some("5af3".to_owned()),
        issued: Some(START),
        renewal: Some(START + 12.0 * HOUR),
        expiry: Some(START + 24.0 * HOUR),
        ports: Some(1.0),
        served: Some(true),
    };
    let loaded = || (Trust::Loaded, "00ff".to_owned());
    let sidecar = Sidecar {
        certificates: [(Role::Peer, certificate.clone()), (Role::Server, certificate)].into(),
        bundles: [Domain::Peer, Domain::Client].map(|domain| (domain, loaded().1)).into(),
        trust: [Domain::Peer, Domain::Client].map(|domain| (domain, loaded().0)).into(),
        ..Sidecar::default()
    };
    PodSeen {
        namespace: "prod".to_owned(),
        name: name.to_owned(),
        settings: Ok(Settings::default()),
        injected: true,
        ports: vec![port("peer", Domain::Peer, true), port("client", Domain::Client, true)],
        trouble: Vec::new(),
        warnings: Vec::new(),
        sidecar: Ok(sidecar),
        rollovers: BTreeMap::new(),
        bundles: BTreeMap::new(),
        requests: Vec::new(),
        revoked: BTreeSet::new(),
    }
}

pub(in crate::status) fn after(hours: f64) -> SystemTime {
    at(START + hours * HOUR)
}

fn with(change: impl FnOnce(&mut PodSeen, &mut Sidecar)) -> PodSeen {
    let mut pod = member("etcd-0");
    let mut sidecar = pod.sidecar.clone().unwrap();
    change(&mut pod, &mut sidecar);
    if pod.sidecar.is_ok() {
        pod.sidecar = Ok(sidecar);
    }
    pod
}

fn peer(sidecar: &mut Sidecar) -> &mut Certificate {
    sidecar.certificates.get_mut(&Role::Peer).unwrap()
}

fn refusal(created: f64) -> RequestSeen {
    RequestSeen {
        name: "etcd-tls-u-peer-x".to_owned(),
        role: Role::Peer,
        created: Some(at(created)),
        refused: Some("denied: not yours".to_owned()),
        issued: false,
        awaits_person: false,
        trusts: None,
    }
}

fn report(phase: &str) -> Report {
    Report { phase: phase.to_owned(), ..Report::new(None, &[], None) }
}

#[test]
fn a_pod_is_as_bad_as_its_worst_finding() {
    let unseen = || Unseen { reason: "gone".to_owned(), next: "look".to_owned(), denied: false };
    type Change = Box<dyn FnOnce(&mut PodSeen, &mut Sidecar)>;
    let cases: Vec<(&str, Change, f64, State, &str)> = vec![
        ("well", Box::new(|_, _| {}), 1.0, State::Ok, ""),
        ("due", Box::new(|_, _| {}), 12.5, State::Ok, ""),
        ("overdue", Box::new(|_, _| {}), 16.0, State::Failing, "overdue; the certificate expires in 8h"),
        ("expired", Box::new(|_, _| {}), 25.0, State::Failing, "expired 1h ago"),
        ("none", Box::new(|_, s| s.certificates.clear()), 1.0, State::Failing, "no certificate yet"),
        ("not injected", Box::new(|p, _| p.injected = false), 1.0, State::Failing, "has no sidecar"),
        ("away", Box::new(move |p, _| p.sidecar = Err(unseen())), 1.0, State::Unknown, "gone"),
        (
            "a person",
            Box::new(|p, _| {
                p.requests = vec![RequestSeen { refused: None, awaits_person: true, ..refusal(1.0) }];
            }),
            1.0,
            State::Attention,
            "peer: request etcd-tls-u-peer-x waits for a person",
        ),
        (
            "annotations",
            Box::new(|p, _| {
                p.settings =
                    Err(vec![Problem { annotation: "etcd-tls.dev/roles".to_owned(), message: "bad".to_owned() }]);
            }),
            1.0,
            State::Unknown,
            "bad",
        ),
        (
            "a port without list",
            Box::new(|p, _| p.ports[0] = Port { unmeant: true, ..port("peer", Domain::Peer, false) }),
            1.0,
            State::Attention,
            "etcd takes revoked certificates on its peer port: because",
        ),
        (
            "a port without list, as somebody said",
            Box::new(|p, _| p.ports[0] = port("peer", Domain::Peer, false)),
            1.0,
            State::Ok,
            "",
        ),
        (
            "revoked",
            Box::new(|p, _| p.revoked = [Role::Server].into()),
            1.0,
            State::Failing,
            "server: the certificate 5af3 is revoked: no sidecar takes this member for healthy, so no other member restarts",
        ),
        ("waiting", Box::new(|p, _| p.trouble.push("c waits".to_owned())), 1.0, State::Attention, "c waits"),
        ("served", Box::new(|_, s| peer(s).served = Some(false)), 1.0, State::Attention, "serves another"),
        ("unseen", Box::new(|_, s| peer(s).served = None), 1.0, State::Unknown, "no port of etcd was seen"),
        ("unseen, new", Box::new(|_, s| peer(s).served = None), 0.01, State::Ok, ""),
        ("no port", Box::new(|_, s| (peer(s).served, peer(s).ports) = (None, Some(0.0))), 1.0, State::Ok, ""),
        (
            "restart",
            Box::new(|_, s| (s.restart_due, s.restart_waits) = (vec![Domain::Peer], Some("leader_last".to_owned()))),
            1.0,
            State::Attention,
            "the others go first",
        ),
        (
            "trust",
            Box::new(|_, s| drop(s.trust.insert(Domain::Peer, Trust::Unknown("plain-text".to_owned())))),
            1.0,
            State::Unknown,
            "cannot be seen which trust bundle",
        ),
        ("refused bundle", Box::new(|_, s| s.refused.push(Domain::Peer)), 1.0, State::Attention, "is refused"),
        (
            "timeout",
            Box::new(|_, s| drop(s.failing.insert(Role::Peer, "timeout".to_owned()))),
            1.0,
            State::Attention,
            "failed: timeout",
        ),
        (
            "a CA that the bundle lacks",
            Box::new(|_, s| drop(s.awaited.insert(Role::Peer, "CN=next CA".to_owned()))),
            1.0,
            State::Attention,
            "holds the CA CN=next CA",
        ),
        (
            "a CA that members do not trust yet",
            Box::new(|_, s| {
                for role in [Role::Peer, Role::Server] {
                    s.awaited.insert(role, "CN=next CA".to_owned());
                    s.awaited_members.insert(role, vec!["etcd-1".to_owned(), "etcd-2".to_owned()]);
                }
            }),
            16.0,
            State::Attention,
            "until etcd trusts the CA CN=next CA: etcd-1, etcd-2",
        ),
        ("denied", Box::new(|p, _| p.requests.push(refusal(START + HOUR))), 2.0, State::Failing, "denied: not yours"),
        ("denied before", Box::new(|p, _| p.requests.push(refusal(START - HOUR))), 2.0, State::Ok, ""),
        (
            "lost",
            Box::new(|p, _| drop(p.rollovers.insert(Domain::Peer, Ok(report("lost"))))),
            1.0,
            State::Failing,
            "is lost",
        ),
        (
            "rollover",
            Box::new(|p, _| drop(p.rollovers.insert(Domain::Peer, Ok(report("signing"))))),
            1.0,
            State::Ok,
            "",
        ),
        ("warned", Box::new(|p, _| p.warnings.push("w".to_owned())), 1.0, State::Ok, ""),
    ];
    for (what, change, hours, state, text) in cases {
        let row = &rows(&[with(change)], after(hours))[0];
        assert_eq!(row.state, state, "{what}: {row:?}");
        assert_eq!(row.findings.is_empty(), text.is_empty(), "{what}: {row:?}");
        assert!(text.is_empty() || row.findings[0].reason.contains(text), "{what}: {row:?}");
        assert!(row.findings.iter().all(|finding| !finding.next.is_empty()), "{what}: {row:?}");
    }
}

#[test]
fn urgent_rows_come_first() {
    let mut failing = member("z");
    failing.injected = false;
    let mut unknown = member("y");
    unknown.sidecar = Err(Unseen { reason: "r".to_owned(), next: "n".to_owned(), denied: false });
    let mut attention = member("x");
    attention.trouble.push("t".to_owned());
    let all = rows(&[member("b"), attention, member("a"), unknown, failing], after(1.0));
    assert_eq!(all.iter().map(|row| row.pod.as_str()).collect::<Vec<_>>(), ["z", "y", "x", "a", "b"]);
}

#[test]
fn an_unknown_pod_shows_nothing_as_well() {
    let mut pod = member("etcd-0");
    pod.sidecar = Err(Unseen { reason: "r".to_owned(), next: "n".to_owned(), denied: false });
    let row = &rows(&[pod], after(1.0))[0];
    assert!(row.roles.iter().all(|role| role.served == "unknown" && role.expiry.is_none()), "{row:?}");
    assert!(row.trust.iter().all(|trust| trust.state == "unknown"), "{row:?}");
}

#[test]
fn a_sidecar_may_say_any_number() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
        let pod = with(|_, sidecar| {
            let certificate = peer(sidecar);
            (certificate.expiry, certificate.issued, certificate.renewal) = (Some(odd), Some(odd), Some(odd));
        });
        assert_eq!(rows(&[pod], after(1.0)).len(), 1, "{odd}");
    }
}

#[test]
fn durations_have_two_units() {
    for (seconds, text) in [
        (0, "0s"),
        (59, "59s"),
        (61, "1m1s"),
        (3599, "59m"),
        (3600, "1h"),
        (5400, "1h30m"),
        (86_399, "23h"),
        (90_000, "1d1h"),
        (864_000, "10d"),
    ] {
        assert_eq!(duration(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn where_the_sidecar_cannot_be_asked_the_signer_tells_of_the_trust() {
    let away = |change: &dyn Fn(&mut PodSeen)| {
        let mut pod = member("etcd-0");
        pod.sidecar = Err(Unseen { reason: "no right".to_owned(), next: "ask".to_owned(), denied: false });
        change(&mut pod);
        let row = row(&pod, after(1.0));
        row.trust.iter().map(|trust| (trust.domain, trust.state, trust.reported)).collect::<Vec<_>>()
    };
    let (peer, client) = (Domain::Peer, Domain::Client);
    assert_eq!(away(&|_| {}), [(peer, "unknown", false), (client, "unknown", false)]);
    // Of a rollover: who is waited for, and who is not.
    let waits = |line: &'static str| {
        move |pod: &mut PodSeen| {
            let waiting = vec![line.to_owned()];
            pod.rollovers = [(peer, Ok(Report { waiting, ..report("published") }))].into();
        }
    };
    assert_eq!(away(&waits("pod prod/etcd-0: since x"))[0], (peer, "due", true));
    assert_eq!(away(&waits("pod prod/etcd-00: since x"))[0], (peer, "loaded", true));
    assert_eq!(away(&waits("and 3 more"))[0], (peer, "unknown", false));
    // Of its last request.
    let stated = |digest: &'static str| {
        move |pod: &mut PodSeen| {
            pod.bundles = [(peer, "00ff".to_owned())].into();
            let trusts = Some(TrustStatement::Loaded(digest.to_owned()));
            pod.requests = vec![RequestSeen { issued: true, refused: None, trusts, ..refusal(START) }];
        }
    };
    assert_eq!(away(&stated("00ff"))[0], (peer, "loaded", true));
    assert_eq!(away(&stated("00fe"))[0], (peer, "due", true));
}
