#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::UNIX_EPOCH;

use super::{decide::CLOCK_GRACE, *};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);

fn at(days: u64) -> SystemTime {
    UNIX_EPOCH + DAY * 10_000 + DAY * u32::try_from(days).unwrap()
}

fn life(generation: &str, from: u64, until: u64) -> Life {
    Life { generation: generation.to_owned(), not_before: at(from), not_after: at(until) }
}

fn pod(n: u32) -> LivePod {
    LivePod {
        uid: format!("uid-{n}"),
        name: format!("prod/etcd-{n}"),
        roles: BTreeSet::from([Role::Peer]),
        of_kubelet: false,
        own: true,
    }
}

/// The subject of the tests: one authority, its pods and its persisted state.
struct World {
    now: SystemTime,
    active: Life,
    next: Option<Life>,
    given: Option<Life>,
    user_owned: bool,
    outside_clients: bool,
    client_overlap: Option<Duration>,
    pods: Vec<LivePod>,
    leaves_until: Option<SystemTime>,
    state: Option<Rollover>,
    made: u32,
}

impl World {
    /// A CA of 100 days, of which none is over; three members; leaves of a day.
    fn new() -> Self {
        Self {
            now: at(0),
            active: life("g0", 0, 100),
            next: None,
            given: None,
            user_owned: false,
            outside_clients: false,
            client_overlap: None,
            pods: vec![pod(0), pod(1), pod(2)],
            leaves_until: Some(at(1)),
            state: None,
            made: 0,
        }
    }

    fn decide(&self, request: Option<&Request>) -> Decision {
        decide(
            self.state.as_ref(),
            &Situation {
                now: self.now,
                active: &self.active,
                next: self.next.as_ref(),
                given: self.given.as_ref(),
                user_owned: self.user_owned,
                outside_clients: self.outside_clients,
                client_overlap: self.client_overlap,
                pods: &self.pods,
                leaves_until: self.leaves_until,
                request,
            },
        )
    }

    /// Does what is decided, as the signer would, and persists it: through JSON, as a crash would leave it.
    fn step(&mut self, request: Option<&Request>) -> Decision {
        let decision = self.decide(request);
        match decision.step.clone() {
            None => {}
            Some(step @ (Step::Publish(_) | Step::Force)) => {
                let trigger = if let Step::Publish(trigger) = step { trigger } else { Trigger::Command };
                let next = self.given.clone().filter(|_| self.user_owned).unwrap_or_else(|| {
                    self.made += 1;
                    let now = self.now.duration_since(at(0)).unwrap();
                    Life {
                        generation: format!("g{}", self.made),
                        not_before: at(0) + now,
                        not_after: at(0) + now + DAY * 100,
                    }
                });
                let accepted = BTreeSet::from([format!("{}+{}", self.active.generation, next.generation)]);
                self.state =
                    Some(Rollover::publish(trigger, &self.active.generation, &next.generation, accepted, self.now));
                self.next = Some(next);
                self.state().forced = step == Step::Force;
            }
            Some(Step::ConfirmClients) => self.state.as_mut().unwrap().clients_confirmed = true,
            Some(Step::Abort(_)) => {
                self.state = None;
                self.next = None;
            }
            Some(Step::ChangeOver(_)) => {
                let state = self.state.take().unwrap().change_over(self.leaves_until, self.now);
                self.state = Some(state);
                self.active = self.next.take().unwrap();
            }
            Some(Step::Retire | Step::ForceRetire) => self.state = None,
        }
        let text = serde_json::to_string(&self.state).unwrap();
        assert_eq!(serde_json::from_str::<Option<Rollover>>(&text).unwrap(), self.state, "{text}");
        decision
    }

    fn state(&mut self) -> &mut Rollover {
        self.state.as_mut().unwrap()
    }

    fn load(&mut self, n: u32) {
        let digest = self.state().accepted.first().unwrap().clone();
        assert!(self.state().note_trusts(&format!("uid-{n}"), Domain::Peer, &digest));
    }

    fn renew(&mut self, n: u32) {
        assert!(self.state().note_renewed(&format!("uid-{n}"), Role::Peer));
    }
}

/// The condition for a pod that has stated nothing.
fn waits(n: u32, w: &World) -> Waiting {
    Waiting::Pod { name: format!("prod/etcd-{n}"), since: w.state.as_ref().unwrap().since, unknown: None }
}

fn ask(action: Action) -> Request {
    Request { action, id: "1".to_owned() }
}

#[test]
fn nothing_happens_before_half_of_the_cas_life() {
    let mut w = World::new();
    w.now = at(50) - Duration::from_secs(1);
    assert_eq!(w.decide(None), Decision { step: None, waiting: vec![], answer: None });
    w.now = at(50);
    assert_eq!(w.decide(None).step, Some(Step::Publish(Trigger::Schedule)));
}

#[test]
fn a_whole_rollover_goes_by_what_pods_were_seen_to_do() {
    let mut w = World::new();
    assert_eq!(w.step(Some(&ask(Action::Start))).step, Some(Step::Publish(Trigger::Command)));
    w.load(0);
    w.load(1);
    let decision = w.step(None);
    assert_eq!((decision.step, decision.waiting), (None, vec![waits(2, &w)]));
    w.load(2);
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
    assert_eq!(w.active.generation, "g1");
    for n in 0..3 {
        w.renew(n);
    }
    // All live pods have new leaves; those of the dead still hold for a while.
    assert_eq!(w.step(None).waiting, [Waiting::OldLeaves { until: at(1) }]);
    w.now = at(1);
    assert_eq!(w.step(None).step, Some(Step::Retire));
    assert_eq!(w.state, None);
    assert_eq!(w.step(None).step, None);
}

#[test]
fn a_digest_without_the_new_ca_is_no_trust() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    assert!(!w.state().note_trusts("uid-0", Domain::Peer, "g0"));
    assert!(!w.state().note_trusts("uid-0", Domain::Peer, ""));
    assert_eq!(w.decide(None).waiting.len(), 3);
    // Said twice, it is persisted once.
    w.load(0);
    assert!(!w.state().note_trusts("uid-0", Domain::Peer, "g0+g1"));
}

#[test]
fn each_domain_of_a_pod_must_be_loaded() {
    let mut w = World::new();
    w.pods[0].roles = BTreeSet::from([Role::Server, Role::Client, Role::Metrics]);
    w.step(Some(&ask(Action::Start)));
    w.load(1);
    w.load(2);
    w.state().note_trusts("uid-0", Domain::Client, "g0+g1");
    assert_eq!(w.decide(None).step, None);
    w.state().note_trusts("uid-0", Domain::Metrics, "g0+g1");
    assert_eq!(w.decide(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
}

#[test]
fn clients_outside_are_confirmed_or_waited_for() {
    let mut w = World::new();
    w.outside_clients = true;
    w.step(Some(&ask(Action::Start)));
    (0..3).for_each(|n| w.load(n));
    assert_eq!(w.step(None).waiting, [Waiting::ClientsOutside { until: None }]);
    w.now = at(40);
    assert_eq!(w.step(None).step, None, "without a stated overlap it waits for ever");
    w.client_overlap = Some(DAY * 45);
    assert_eq!(w.step(None).waiting, [Waiting::ClientsOutside { until: Some(at(45)) }]);
    w.now = at(45);
    assert_eq!(w.decide(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));

    w.client_overlap = None;
    assert!(w.step(Some(&ask(Action::ConfirmClients))).answer.unwrap().accepted);
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
}

#[test]
fn confirmed_clients_do_not_stand_in_for_pods() {
    let mut w = World::new();
    w.outside_clients = true;
    w.step(Some(&ask(Action::Start)));
    w.step(Some(&ask(Action::ConfirmClients)));
    assert_eq!(w.step(None).step, None);
}

#[test]
fn a_second_rollover_is_refused_while_one_is_under_way() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    let before = w.state.clone();
    assert!(!w.step(Some(&ask(Action::Start))).answer.unwrap().accepted);
    assert_eq!(w.state, before);
    (0..3).for_each(|n| w.load(n));
    // A request that is refused does not keep the machine from going on.
    assert_eq!(w.step(Some(&ask(Action::Start))).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
    assert!(!w.step(Some(&ask(Action::Start))).answer.unwrap().accepted);
}

#[test]
fn abort_is_for_what_has_signed_nothing() {
    let mut w = World::new();
    assert!(!w.step(Some(&ask(Action::Abort))).answer.unwrap().accepted);
    w.step(Some(&ask(Action::Start)));
    assert_eq!(w.step(Some(&ask(Action::Abort))).step, Some(Step::Abort(Abort::Command)));
    assert_eq!((w.state.as_ref(), w.active.generation.as_str()), (None, "g0"));
    assert_eq!(w.step(None).step, None);

    w.step(Some(&ask(Action::Start)));
    (0..3).for_each(|n| w.load(n));
    w.step(None);
    let decision = w.step(Some(&ask(Action::Abort)));
    assert!(!decision.answer.unwrap().accepted);
    assert_eq!(w.active.generation, "g2");
}

#[test]
fn a_member_that_is_down_holds_the_changeover_and_one_that_is_gone_does_not() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    w.load(0);
    w.load(1);
    w.now = at(30);
    assert_eq!(w.step(None).waiting, [waits(2, &w)]);
    // It is made again under its name: another uid, which has to load the new CA, too.
    w.pods[2] = LivePod { uid: "uid-9".to_owned(), ..pod(2) };
    assert_eq!(w.step(None).step, None);
    let live = w.pods.clone();
    w.state().forget_gone(|uid| live.iter().any(|pod| pod.uid == *uid));
    w.load(9);
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
}

#[test]
fn a_pod_that_comes_between_is_waited_for() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    (0..3).for_each(|n| w.load(n));
    w.pods.push(pod(3));
    assert_eq!(w.step(None).waiting, [waits(3, &w)]);
}

#[test]
fn a_ca_about_to_expire_is_left_even_with_pods_missing() {
    let mut w = World::new();
    w.now = at(50);
    w.step(None);
    w.load(0);
    w.load(1);
    w.now = at(100) - HOUR - Duration::from_secs(1);
    assert_eq!(w.step(None).step, None, "the old CA still serves everybody");
    w.now = at(100) - HOUR;
    let late = waits(2, &w);
    let decision = w.step(None);
    assert_eq!(decision.step, Some(Step::ChangeOver(ChangeOver::Expiring)));
    assert_eq!(decision.waiting, [late]);
}

#[test]
fn an_expired_ca_is_succeeded_at_once() {
    let mut w = World::new();
    w.now = at(200);
    assert_eq!(w.step(None).step, Some(Step::Publish(Trigger::Schedule)));
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Expiring)));
}

#[test]
fn a_next_ca_that_expires_unused_is_replaced() {
    let mut w = World::new();
    w.active.not_after = at(10_000);
    w.step(Some(&ask(Action::Start)));
    w.now = at(100);
    assert_eq!(w.step(None).step, Some(Step::Abort(Abort::Expired)));
    assert_eq!(w.state, None);
}

/// A signer made it while its clock was ahead, and has the right time again.
#[test]
fn a_next_ca_that_is_not_valid_yet_is_taken_back_and_never_signs() {
    for force in [false, true] {
        let mut w = World::new();
        w.now = at(60);
        let action = if force { Action::Force } else { Action::Start };
        w.step(Some(&ask(action)));
        w.now = at(20);
        (0..3).for_each(|n| w.load(n));
        // Neither everybody's trust nor an order lets it sign.
        let decision = w.decide(Some(&ask(Action::Force)));
        assert!(!decision.answer.unwrap().accepted);
        assert_eq!(decision.step, Some(Step::Abort(Abort::NotValidYet)));
        assert_eq!(w.step(None).step, Some(Step::Abort(Abort::NotValidYet)));
        assert_eq!((w.step(None).step, w.active.generation.as_str()), (None, "g0"));
        // The next one is made by the right clock.
        w.step(Some(&ask(Action::Start)));
        (0..3).for_each(|n| w.load(n));
        assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
    }
    // Even when the old one is about to end.
    let mut w = World::new();
    w.now = at(110);
    w.step(None);
    w.now = at(100) - HOUR / 2;
    assert_eq!(w.step(None).step, Some(Step::Abort(Abort::NotValidYet)));
}

#[test]
fn a_users_ca_that_is_not_valid_now_is_not_published() {
    let mut w = World::new();
    w.user_owned = true;
    w.now = at(20);
    for given in [life("u1", 30, 200), life("u1", 0, 10)] {
        w.given = Some(given);
        assert_eq!(w.step(None).step, None);
    }
    w.given = Some(life("u1", 20, 200));
    assert_eq!(w.step(None).step, Some(Step::Publish(Trigger::Replaced)));
}

#[test]
fn a_users_ca_is_followed_and_never_made() {
    let mut w = World::new();
    w.user_owned = true;
    w.leaves_until = Some(at(61));
    w.given = Some(life("g0", 0, 100));
    assert!(!w.step(Some(&ask(Action::Start))).answer.unwrap().accepted);
    w.now = at(60);
    let decision = w.step(None);
    assert_eq!((decision.step, decision.waiting), (None, vec![Waiting::UserCa { until: at(100) }]));
    w.given = Some(life("u1", 60, 200));
    assert_eq!(w.step(None).step, Some(Step::Publish(Trigger::Replaced)));
    assert_eq!(w.next.as_ref().unwrap().generation, "u1");
    // Given yet another one: nothing was signed by u1, so it goes.
    w.given = Some(life("u2", 60, 200));
    assert_eq!(w.step(None).step, Some(Step::Abort(Abort::Replaced)));
    assert_eq!(w.step(None).step, Some(Step::Publish(Trigger::Replaced)));
    (0..3).for_each(|n| w.load(n));
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
    // And another one while u2 signs: after u1's leaves, not before.
    w.given = Some(life("u3", 60, 200));
    assert_eq!(w.step(None).step, None);
    (0..3).for_each(|n| w.renew(n));
    w.now = at(62);
    assert_eq!(w.step(None).step, Some(Step::Retire));
    assert_eq!(w.step(None).step, Some(Step::Publish(Trigger::Replaced)));
}

#[test]
fn a_users_secret_that_is_away_makes_no_ca() {
    let mut w = World::new();
    w.user_owned = true;
    w.now = at(99);
    assert_eq!(w.step(None).step, None);
}

#[test]
fn the_old_ca_stays_while_a_pod_may_hold_a_leaf_of_it() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    (0..3).for_each(|n| w.load(n));
    w.step(None);
    w.renew(0);
    w.renew(1);
    // An hour wrong, either way, takes nothing away.
    w.now = at(1) + HOUR;
    assert_eq!(w.step(None).waiting, [Waiting::Renewal("prod/etcd-2".to_owned())]);
    // Long after its leaf's end it has none to lose.
    w.now = at(1) + CLOCK_GRACE;
    assert_eq!(w.step(None).step, Some(Step::Retire));
}

#[test]
fn requests_and_reports_are_read_back() {
    for action in [Action::Abort, Action::ConfirmClients, Action::Force, Action::Start] {
        let request = ask(action);
        assert_eq!(request.to_string().parse(), Ok(request));
    }
    for bad in ["", "start", "start ", "stop 1", "start 1 2", "start \n", &format!("start {}", "a".repeat(65))] {
        bad.parse::<Request>().unwrap_err();
    }
    let mut w = World::new();
    let decision = w.step(Some(&ask(Action::Start)));
    let many: Vec<Waiting> = (0..12).map(|n| waits(n, &w)).collect();
    let report = Report::new(w.state.as_ref(), &many, decision.answer);
    assert_eq!(report.waiting.len(), Report::MOST + 1);
    assert_eq!(report.phase, "published");
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

/// Every order in which three members may load and renew, the signer killed after each step (a world is nothing but what
/// is persisted), leaves no moment at which the new CA signs before all have loaded it, or the old one goes before all
/// have new leaves.
#[test]
fn no_order_breaks_bundle_before_leaf() {
    const ORDERS: [[u32; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for loads in ORDERS {
        for renewals in ORDERS {
            let mut w = World::new();
            w.step(Some(&ask(Action::Start)));
            for (i, n) in loads.into_iter().enumerate() {
                assert_eq!(w.step(None).step, None, "{loads:?}: {i} have loaded");
                w.load(n);
            }
            assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
            w.now = at(1);
            for (i, n) in renewals.into_iter().enumerate() {
                assert_eq!(w.step(None).step, None, "{renewals:?}: {i} have renewed");
                w.renew(n);
            }
            assert_eq!(w.step(None).step, Some(Step::Retire));
        }
    }
}

#[test]
fn an_operator_forces_each_step() {
    let mut w = World::new();
    w.outside_clients = true;
    // From rest: published, and signing at the next look, even if nobody has loaded it.
    assert_eq!(w.step(Some(&ask(Action::Force))).step, Some(Step::Force));
    let decision = w.step(None);
    assert_eq!(decision.step, Some(Step::ChangeOver(ChangeOver::Forced)));
    assert_eq!(decision.waiting.len(), 3, "they are named");
    assert_eq!(w.active.generation, "g1");
    // The old CA's leaves have not ended, and it goes.
    assert_eq!(w.step(None).step, None);
    assert_eq!(w.step(Some(&ask(Action::Force))).step, Some(Step::ForceRetire));
    assert_eq!(w.step(None).step, None, "the next rollover is not forced");

    // One that waits.
    w.step(Some(&ask(Action::Start)));
    w.load(0);
    assert_eq!(w.step(None).step, None);
    let decision = w.step(Some(&ask(Action::Force)));
    assert_eq!(decision.step, Some(Step::ChangeOver(ChangeOver::Forced)));
    assert!(decision.answer.unwrap().accepted);
    assert!(!w.state().forced, "the old CA goes by its time");

    let mut users = World::new();
    users.user_owned = true;
    users.given = Some(life("g0", 0, 100));
    assert!(!users.step(Some(&ask(Action::Force))).answer.unwrap().accepted);
}

#[test]
fn what_kubelet_requests_is_waited_for_by_that_name() {
    let mut w = World::new();
    w.pods[2].of_kubelet = true;
    w.step(Some(&ask(Action::Start)));
    (0..2).for_each(|n| w.load(n));
    let waiting = w.step(None).waiting;
    let said = waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(waiting.len() == 1 && said.contains("prod/etcd-2") && said.contains("unknown (kubelet)"), "{said}");
    assert!(said.contains("--force"), "{said}");
}

#[test]
fn unknown_is_named_and_never_trust() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    (0..2).for_each(|n| w.load(n));
    assert!(w.state().note_trusts("uid-2", Domain::Peer, "unknown:listeners"));
    assert!(!w.state().note_trusts("uid-2", Domain::Peer, "unknown:listeners"), "persisted once");
    for garbage in ["unknown:", "unknown:A B", "unknown", &"x".repeat(70)] {
        assert!(!w.state().note_trusts("uid-2", Domain::Peer, garbage));
    }
    assert!(!w.state().note_trusts("uid-0", Domain::Peer, "unknown:unreachable"), "what was loaded stays loaded");
    let decision = w.step(None);
    assert_eq!(decision.step, None);
    let text = decision.waiting[0].to_string();
    assert!(text.contains("prod/etcd-2: since 19") && text.contains("client-url"), "{text}");
    // A reason of a later version, and then it is seen.
    for _ in 0..3 {
        for reason in ["unknown:kubelet", "unknown:a-later-reason"] {
            assert!(!w.state().note_trusts("uid-2", Domain::Peer, reason), "goes with the next write");
        }
    }
    assert!(w.step(None).waiting[0].to_string().contains("a-later-reason"));
    w.load(2);
    assert_eq!(w.step(None).step, Some(Step::ChangeOver(ChangeOver::Trusted)));
}

#[test]
fn a_pod_that_never_reports_is_said() {
    let mut w = World::new();
    w.step(Some(&ask(Action::Start)));
    w.load(0);
    let waiting = w.step(None).waiting;
    assert_eq!(overdue(&waiting, w.now + OVERDUE - Duration::from_secs(1)), None);
    let said = overdue(&waiting, w.now + OVERDUE).unwrap();
    assert!(said.contains("prod/etcd-1") && said.contains("1 more pods") && said.contains("--force"), "{said}");
    assert_eq!(overdue(&waiting, w.now + OVERDUE * 2), Some(said), "one text, however long it takes");
    assert_eq!(overdue(&[Waiting::ClientsOutside { until: None }], w.now + DAY), None);
}

/// Attack 9: pods without end that live for a minute, in either phase, for ten times as many as would fill the Secret.
#[test]
fn short_lived_pods_leave_no_records() {
    for phase in [Phase::Published, Phase::Signing] {
        let mut w = World::new();
        w.step(Some(&ask(Action::Start)));
        w.state().phase = phase;
        let digest = w.state().accepted.first().unwrap().clone();
        let live = w.pods.clone();
        let mut most = 0;
        for n in 0..100_000 {
            let uid = format!("0d5f2e0c-0000-0000-0000-{n:012}");
            match phase {
                Phase::Published => assert!(w.state().note_trusts(&uid, Domain::Client, &digest)),
                Phase::Signing => assert!(w.state().note_renewed(&uid, Role::Client)),
            }
            w.state().prune(|uid| live.iter().any(|pod| pod.uid == *uid));
            most = most.max(w.state().pods.len());
        }
        assert!(most <= MAX_GONE, "{most}");
        // Without a look between: bounded all the same, and issuing goes on.
        for n in 0..2 * MAX_PODS {
            w.state().note_trusts(&format!("0d5f2e0c-0000-0000-0000-{n:012}"), Domain::Client, &digest);
            w.state().note_renewed(&format!("0d5f2e0c-0000-0000-0000-{n:012}"), Role::Client);
        }
        assert!(w.state().pods.len() <= MAX_PODS);
        let size = serde_json::to_string(&w.state).unwrap().len();
        assert!(size < 1_000_000, "{size} bytes of a Secret");
    }
}
