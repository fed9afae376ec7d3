//! A memory budget for request bodies, shared by the whole process.
//!
//! Bytes are charged as they arrive, not as `Content-Length` announces them. When the budget is used up, the body that
//! makes room is the oldest one of the peer that holds the most bytes. A review that arrives at once is therefore read
//! while any number of unfinished bodies is held open; its own peer's unfinished bodies go before it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::connections::Peer;

/// The limit of all bodies together, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// Bytes of all bodies.
    pub(super) bytes: usize,
    /// Bodies.
    pub(super) bodies: usize,
}

/// Every body that is being read or waits to be answered.
#[derive(Debug)]
pub(super) struct Bodies {
    held: Mutex<Held>,
    freed: Notify,
}

/// The body was given up to make room for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many unfinished bodies; try again")]
pub(super) struct Evicted;

/// One body. Dropped, its bytes are free.
#[derive(Debug)]
pub(super) struct Body {
    owner: Arc<Bodies>,
    id: u64,
    bytes: Vec<u8>,
    evict: Arc<Notify>,
}

impl Bodies {
    pub(super) fn new(budget: Budget) -> Arc<Self> {
        let held = Held { budget, used: 0, next: 0, open: BTreeMap::new() };
        Arc::new(Self { held: Mutex::new(held), freed: Notify::new() })
    }

    /// Begins a body of `peer`.
    pub(super) fn open(self: &Arc<Self>, peer: Peer) -> Body {
        let evict = Arc::new(Notify::new());
        let id = self.held().open(peer, &evict);
        Body { owner: Arc::clone(self), id, bytes: Vec::new(), evict }
    }

    /// Bytes charged at the moment.
    pub(super) fn used(&self) -> usize {
        self.held().used
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn charge(&self, id: u64, bytes: usize) -> Result<(), Evicted> {
        loop {
            let freed = self.freed.notified();
            match self.held().charge(id, bytes) {
                Charge::Done => return Ok(()),
                Charge::Evicted => return Err(Evicted),
                Charge::Wait => {}
            }
            freed.await;
        }
    }
}

impl Body {
    /// Appends `data`. The capacity is charged; it doubles, so that a long body in small pieces is not copied for each.
    ///
    /// # Errors
    /// The body was given up.
    pub(super) async fn push(&mut self, data: &[u8]) -> Result<(), Evicted> {
        let (have, needed) = (self.bytes.capacity(), self.bytes.len() + data.len());
        if needed > have {
            let target = needed.max(have * 2);
            self.owner.charge(self.id, target - have).await?;
            self.bytes.reserve_exact(target - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// How long it is so far.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Resolves when the body is given up.
    pub(super) fn evicted(&self) -> impl Future<Output = ()> + use<> {
        let evict = Arc::clone(&self.evict);
        async move { evict.notified().await }
    }

    /// From now on it is not given up any more: it is being answered. Its bytes.
    ///
    /// # Errors
    /// It was given up before.
    pub(super) fn answering(&self) -> Result<&[u8], Evicted> {
        self.owner.held().answering(self.id)?;
        Ok(&self.bytes)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // Free the memory first: the next body may take the charge.
        self.bytes = Vec::new();
        self.owner.held().close(self.id);
        self.owner.freed.notify_waiters();
    }
}

#[derive(Debug)]
struct Held {
    budget: Budget,
    used: usize,
    next: u64,
    /// By age: ids are given out in order.
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    peer: Peer,
    bytes: usize,
    state: State,
    evict: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Answering,
    Evicted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    Done,
    Wait,
    Evicted,
}

impl Held {
    fn open(&mut self, peer: Peer, evict: &Arc<Notify>) -> u64 {
        if self.open.len() >= self.budget.bodies {
            self.evict(1, |_| 1);
        }
        let id = self.next;
        self.next += 1;
        self.open.insert(id, Open { peer, bytes: 0, state: State::Reading, evict: Arc::clone(evict) });
        id
    }

    fn close(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            self.used -= open.bytes;
        }
    }

    fn answering(&mut self, id: u64) -> Result<(), Evicted> {
        match self.open.get_mut(&id) {
            Some(open) if open.state != State::Evicted => {
                open.state = State::Answering;
                Ok(())
            }
            _ => Err(Evicted),
        }
    }

    fn charge(&mut self, id: u64, bytes: usize) -> Charge {
        if self.open.get(&id).is_none_or(|open| open.state == State::Evicted) {
            return Charge::Evicted;
        }
        if self.used + bytes > self.budget.bytes {
            // Bodies that were given up or are being answered are gone soon.
            let coming: usize = self.open.values().filter(|o| o.state != State::Reading).map(|o| o.bytes).sum();
            let missing = (self.used + bytes - self.budget.bytes).saturating_sub(coming);
            if missing > 0 {
                self.evict(missing, |open| open.bytes);
            }
            let evicted = self.open.get(&id).is_none_or(|open| open.state == State::Evicted);
            return if evicted { Charge::Evicted } else { Charge::Wait };
        }
        if let Some(open) = self.open.get_mut(&id) {
            open.bytes += bytes;
            self.used += bytes;
        }
        Charge::Done
    }

    /// Has bodies given up until `wanted` of `weight` is free or none is left that can be.
    fn evict(&mut self, wanted: usize, weight: impl Fn(&Open) -> usize) {
        let mut peers: HashMap<Peer, usize> = HashMap::new();
        for open in self.open.values().filter(|open| open.state == State::Reading) {
            *peers.entry(open.peer).or_default() += weight(open);
        }
        let mut freed = 0;
        while freed < wanted {
            let Some((&peer, &weighs)) = peers.iter().max_by_key(|(_, weight)| **weight) else { return };
            let mut left = weighs;
            for open in self.open.values_mut().filter(|open| open.peer == peer && open.state == State::Reading) {
                if freed >= wanted {
                    break;
                }
                open.state = State::Evicted;
                open.evict.notify_one();
                freed += weight(open);
                left -= weight(open);
            }
            if left == 0 {
                peers.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn held(bytes: usize, bodies: usize) -> Held {
        Held { budget: Budget { bytes, bodies }, used: 0, next: 0, open: BTreeMap::new() }
    }

    fn peer(last: u8) -> Peer {
        Peer::of([10, 0, 0, last].into())
    }

    fn states(held: &Held) -> Vec<State> {
        held.open.values().map(|open| open.state).collect()
    }

    #[test]
    fn the_oldest_body_of_the_heaviest_peer_makes_room() {
        let evict = Arc::new(Notify::new());
        let mut held = held(100, 10);
        let honest = held.open(peer(1), &evict);
        assert_eq!(held.charge(honest, 10), Charge::Done);
        let hoards: Vec<u64> = (0..3).map(|_| held.open(peer(2), &evict)).collect();
        for id in &hoards {
            assert_eq!(held.charge(*id, 30), Charge::Done);
        }
        let late = held.open(peer(3), &evict);
        assert_eq!(held.charge(late, 20), Charge::Wait);
        assert_eq!(
            states(&held),
            [State::Reading, State::Evicted, State::Reading, State::Reading, State::Reading],
            "the older body of the light peer stays"
        );
        // Asked again before the memory is back, nobody else is given up.
        assert_eq!(held.charge(late, 20), Charge::Wait);
        assert_eq!(held.open[&hoards[1]].state, State::Reading);
        assert_eq!(held.charge(hoards[0], 1), Charge::Evicted);
        held.close(hoards[0]);
        assert_eq!(held.charge(late, 20), Charge::Done);
        assert_eq!(held.used, 90);
    }

    #[test]
    fn a_body_alone_in_the_way_goes_itself() {
        let evict = Arc::new(Notify::new());
        let mut held = held(100, 10);
        let only = held.open(peer(1), &evict);
        assert_eq!(held.charge(only, 90), Charge::Done);
        assert_eq!(held.charge(only, 20), Charge::Evicted);
    }

    #[test]
    fn a_body_being_answered_is_waited_for() {
        let evict = Arc::new(Notify::new());
        let mut held = held(100, 10);
        let one = held.open(peer(1), &evict);
        assert_eq!(held.charge(one, 90), Charge::Done);
        held.answering(one).unwrap();
        let two = held.open(peer(1), &evict);
        assert_eq!(held.charge(two, 20), Charge::Wait);
        held.close(one);
        assert_eq!(held.charge(two, 20), Charge::Done);
    }

    #[test]
    fn the_number_of_bodies_is_bounded() {
        let evict = Arc::new(Notify::new());
        let mut held = held(100, 2);
        let ids: Vec<u64> = (0..3).map(|_| held.open(peer(1), &evict)).collect();
        assert_eq!(held.open[&ids[0]].state, State::Evicted);
        assert_eq!((held.open[&ids[1]].state, held.open[&ids[2]].state), (State::Reading, State::Reading));
    }

    #[tokio::test]
    async fn a_waiting_body_goes_on_when_another_is_dropped() {
        let bodies = Bodies::new(Budget { bytes: 100, bodies: 10 });
        let mut first = bodies.open(peer(1));
        first.push(&[0; 90]).await.unwrap();
        let mut second = bodies.open(peer(2));
        let pushing = tokio::spawn(async move { second.push(&[0; 50]).await.map(|()| second.len()) });
        first.evicted().await;
        assert_eq!(first.push(&[0; 50]).await, Err(Evicted));
        drop(first);
        assert_eq!(pushing.await.unwrap(), Ok(50));
        assert_eq!(bodies.used(), 0);
    }
}
