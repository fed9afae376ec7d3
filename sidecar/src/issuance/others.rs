//! The members that do not trust the CA of a new certificate yet. The certificate of a CA that has come with no overlap waits
//! for them.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_tls_contract::{certificate::Bundle, role::Domain};
use tokio::sync::Notify;

/// How long a question counts: it is asked again and again while a certificate waits.
const ASKED: Duration = Duration::from_secs(30);

/// The least time between two looks ahead, which dial each member.
const AHEAD: Duration = Duration::from_secs(10);

/// The word for members that cannot be seen.
pub const UNKNOWN: &str = "unknown";

/// The etcd members that a certificate waits for, because they do not trust its CA yet. Empty: it may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DistrustingMembers {
    /// The names of etcd's members, or [`UNKNOWN`].
    pub members: Vec<String>,
    /// Why they cannot be seen.
    pub unknown: Option<String>,
}

impl DistrustingMembers {
    /// They cannot be seen.
    pub fn unseen(why: impl Into<String>) -> Self {
        Self { members: vec![UNKNOWN.to_owned()], unknown: Some(why.into()) }
    }
}

/// The members that do not trust a bundle of a domain yet.
pub type Distrusting<'a> = &'a dyn Fn(Domain, &Bundle) -> DistrustingMembers;

/// Questions about the members' trust, from who waits to who can see the members.
#[derive(Debug, Default)]
pub struct Questions {
    by_domain: Mutex<BTreeMap<Domain, Question>>,
    ahead: AtomicBool,
    /// When it was last looked ahead.
    looked: Mutex<Option<Instant>>,
    asked: Notify,
}

#[derive(Debug)]
struct Question {
    bundle: Bundle,
    at: Instant,
    answer: Option<DistrustingMembers>,
}

impl Questions {
    /// The last answer of who does not trust all of `bundle`.
    pub fn ask(&self, domain: Domain, bundle: &Bundle) -> DistrustingMembers {
        let mut questions = self.lock();
        let question = questions.get_mut(&domain).filter(|q| q.bundle == *bundle && q.at.elapsed() < ASKED);
        if let Some(question) = question {
            question.at = Instant::now();
            return question.answer.clone().unwrap_or_else(|| DistrustingMembers::unseen("they are being asked"));
        }
        questions.insert(domain, Question { bundle: bundle.clone(), at: Instant::now(), answer: None });
        self.asked.notify_one();
        DistrustingMembers::unseen("they are being asked")
    }

    /// From now on it is looked whether other members trust more CAs: then the issuer may have changed its CA.
    pub fn look_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
    }

    /// How long it may not be looked again, however often the caller comes by; zero: it counts as looked at `now`. `None`:
    /// nobody wants a look. See [`Self::look_ahead`].
    pub fn looks_ahead_in(&self, now: Instant) -> Option<Duration> {
        if !self.ahead.load(Ordering::Relaxed) {
            return None;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = looked.map_or(Duration::ZERO, |at| AHEAD.saturating_sub(now.saturating_duration_since(at)));
        if wait.is_zero() {
            *looked = Some(now);
        }
        Some(wait)
    }

    /// The open questions.
    pub fn open(&self) -> BTreeMap<Domain, Bundle> {
        let mut questions = self.lock();
        questions.retain(|_, question| question.at.elapsed() < ASKED);
        questions.iter().map(|(domain, question)| (*domain, question.bundle.clone())).collect()
    }

    /// Answers the question about `bundle`, if it is still asked.
    pub fn answer(&self, domain: Domain, bundle: &Bundle, answer: DistrustingMembers) {
        if let Some(question) = self.lock().get_mut(&domain).filter(|question| question.bundle == *bundle) {
            question.answer = Some(answer);
        }
    }

    /// Ends when there is a new question.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Domain, Question>> {
        self.by_domain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Authority;

    #[test]
    fn looks_ahead_have_a_pace() {
        let (questions, begin) = (Questions::default(), Instant::now());
        assert_eq!(questions.looks_ahead_in(begin), None);
        questions.look_ahead();
        // A loop that comes by every 10 ms for five minutes looks 30 times, and knows when to come again.
        let mut looks = 0;
        for step in 0..30_000_u32 {
            let wait = questions.looks_ahead_in(begin + step * Duration::from_millis(10)).unwrap_or_default();
            assert!(wait <= AHEAD, "{wait:?}");
            looks += u32::from(wait.is_zero());
        }
        assert_eq!(looks, 30);
    }

    #[test]
    fn an_answer_is_of_the_bundle_that_was_asked_about() {
        let (one, two) = (Authority::named("one").bundle(), Authority::named("two").bundle());
        let questions = Questions::default();
        assert!(questions.open().is_empty());
        assert_eq!(questions.ask(Domain::Peer, &one).members, [UNKNOWN], "not answered yet");
        questions.answer(Domain::Peer, &two, DistrustingMembers::default());
        assert_eq!(questions.ask(Domain::Peer, &one).members, [UNKNOWN], "the answer was about another one");
        questions.answer(Domain::Peer, &one, DistrustingMembers::default());
        assert_eq!(questions.ask(Domain::Peer, &one), DistrustingMembers::default());
        assert_eq!(questions.ask(Domain::Peer, &two).members, [UNKNOWN]);
        assert_eq!(questions.open(), BTreeMap::from([(Domain::Peer, two)]));
    }
}
