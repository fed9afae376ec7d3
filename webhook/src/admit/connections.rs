//! The open connections of the process: how many there may be, how long an idle one is kept, and which one goes when
//! there is no room for another.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How long requests in flight have after the shutdown signal.
pub(super) const DRAIN: Duration = Duration::from_secs(20);
/// How long a connection that must make room has to end well.
const EVICT: Duration = Duration::from_millis(200);

/// The peer that a connection counts for: an IPv4 address, or the /64 that an IPv6 address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer(IpAddr);

impl Peer {
    pub(super) fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

/// Bounds of the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Connections at once.
    pub(super) connections: usize,
    /// How long a connection may be idle after a review.
    pub(super) keep_alive: Duration,
    /// How long it may be idle before its first review.
    pub(super) short_keep_alive: Duration,
    /// How long any may be idle while more than half of the connections are taken.
    pub(super) crowded_keep_alive: Duration,
}

/// Every open connection.
#[derive(Debug)]
pub(super) struct Connections {
    bounds: Bounds,
    open: Mutex<Opened>,
    freed: Notify,
    draining: AtomicBool,
}

#[derive(Debug, Default)]
struct Opened {
    next: u64,
    by_id: HashMap<u64, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    peer: Peer,
    state: State,
    since: Instant,
    reviewed: bool,
    closing: bool,
    close: Arc<Notify>,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Between two requests, or in its handshake, or in a request's head.
    Idle,
    /// In a request's body.
    Reading,
    /// Its request is being answered.
    Answering,
}

/// One connection. Dropped, it is open no more.
#[derive(Debug)]
pub(super) struct Connection {
    owner: Arc<Connections>,
    id: u64,
    peer: Peer,
    close: Arc<Notify>,
}

impl Connections {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, open: Mutex::default(), freed: Notify::new(), draining: AtomicBool::new(false) })
    }

    /// Waits until there is room for one more connection. If there is none, an idle one is closed.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            {
                let mut open = self.open();
                if open.by_id.len() < self.bounds.connections {
                    return;
                }
                // A closing connection makes room soon.
                if !open.by_id.values().any(|entry| entry.closing)
                    && let Some(entry) = open.victim().and_then(|id| open.by_id.get_mut(&id))
                {
                    entry.close();
                }
            }
            freed.await;
        }
    }

    /// Takes in a connection from `ip`.
    pub(super) fn add(self: &Arc<Self>, ip: IpAddr, now: Instant) -> Connection {
        let (peer, close) = (Peer::of(ip), Arc::new(Notify::new()));
        let mut open = self.open();
        let id = open.next;
        open.next += 1;
        let entry =
            Entry { peer, state: State::Idle, since: now, reviewed: false, closing: false, close: Arc::clone(&close) };
        open.by_id.insert(id, entry);
        Connection { owner: Arc::clone(self), id, peer, close }
    }

    /// Tells every connection to close that has been idle for too long.
    pub(super) fn close_overdue(&self, now: Instant) {
        let mut open = self.open();
        let crowded = open.by_id.len() > self.bounds.connections / 2;
        for entry in open.by_id.values_mut() {
            if !entry.closing && entry.is_overdue(now, self.bounds, crowded) {
                entry.close();
            }
        }
    }

    /// Tells every connection to close after the request that it is in, and waits until all are.
    pub(super) async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        loop {
            let freed = self.freed.notified();
            {
                let mut open = self.open();
                if open.by_id.is_empty() {
                    return;
                }
                open.by_id.values_mut().filter(|entry| !entry.closing).for_each(Entry::close);
            }
            freed.await;
        }
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open().by_id.len()
    }

    fn open(&self) -> MutexGuard<'_, Opened> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    /// The connection to close for another one: of the peer with the most connections an idle one, else one that is in a
    /// body; the one that has been so for longest. None while all are being answered.
    fn victim(&self) -> Option<u64> {
        let mut peers: HashMap<Peer, usize> = HashMap::new();
        for entry in self.by_id.values() {
            *peers.entry(entry.peer).or_default() += 1;
        }
        let candidates = self.by_id.iter().filter(|(_, entry)| !entry.closing && entry.state != State::Answering);
        candidates
            .max_by_key(|(id, entry)| {
                let idle = entry.state == State::Idle;
                (peers.get(&entry.peer), idle, Reverse(entry.since), Reverse(**id))
            })
            .map(|(id, _)| *id)
    }
}

impl Entry {
    fn close(&mut self) {
        self.closing = true;
        self.close.notify_one();
    }

    fn is_overdue(&self, now: Instant, bounds: Bounds, crowded: bool) -> bool {
        let kept = match (self.reviewed, crowded) {
            (false, _) => bounds.short_keep_alive,
            (true, true) => bounds.crowded_keep_alive,
            (true, false) => bounds.keep_alive,
        };
        self.state == State::Idle && now.saturating_duration_since(self.since) >= kept
    }
}

impl Connection {
    pub(super) const fn peer(&self) -> Peer {
        self.peer
    }

    /// Resolves when the connection is to close; how long the request that it is in may take.
    pub(super) async fn closing(&self) -> Duration {
        self.close.notified().await;
        if self.owner.draining.load(Ordering::Acquire) {
            return DRAIN;
        }
        // A body that does not come is not waited for.
        let reading = self.owner.open().by_id.get(&self.id).is_some_and(|entry| entry.state == State::Reading);
        if reading { Duration::ZERO } else { EVICT }
    }

    /// Says that it brought a review that was answered.
    pub(super) fn reviewed(&self) {
        if let Some(entry) = self.owner.open().by_id.get_mut(&self.id) {
            entry.reviewed = true;
        }
    }

    /// Says what it does now.
    pub(super) fn set(&self, state: State, now: Instant) {
        if let Some(entry) = self.owner.open().by_id.get_mut(&self.id) {
            (entry.state, entry.since) = (state, now);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.owner.open().by_id.remove(&self.id);
        self.owner.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]

    use super::*;

    const BOUNDS: Bounds = Bounds {
        connections: 4,
        keep_alive: Duration::from_secs(100),
        short_keep_alive: Duration::from_secs(10),
        crowded_keep_alive: Duration::from_secs(25),
    };

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn closing(connections: &Connections) -> Vec<u64> {
        let open = connections.open();
        let mut ids: Vec<u64> = open.by_id.iter().filter(|(_, entry)| entry.closing).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    #[tokio::test]
    async fn the_oldest_idle_connection_makes_room() {
        let connections = Connections::new(BOUNDS);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut open: Vec<Connection> = (0..4).map(|n| connections.add(ip(1), at(n))).collect();
        open[0].set(State::Answering, at(4));
        open[1].set(State::Reading, at(4));
        open[2].set(State::Idle, at(5));
        let waiting = tokio::spawn({
            let connections = Arc::clone(&connections);
            async move { connections.room().await }
        });
        assert_eq!(open[3].closing().await, EVICT, "idle for longest, although it is the youngest");
        open.remove(3);
        waiting.await.expect("room");
        assert!(closing(&connections).is_empty());
        // Of two idle ones, the one of the peer that holds more.
        let other = connections.add(ip(2), at(0));
        assert_eq!(connections.open().victim(), Some(2));
        open[2].set(State::Answering, at(6));
        assert_eq!(connections.open().victim(), Some(1), "one in a body before the only one of another peer");
        drop(other);
    }

    #[test]
    fn an_idle_connection_is_kept_for_longer_once_it_brought_a_review() {
        let connections = Connections::new(BOUNDS);
        let start = Instant::now();
        let silent = connections.add(ip(1), start);
        let used = connections.add(ip(1), start);
        used.reviewed();
        let busy = connections.add(ip(1), start);
        busy.set(State::Reading, start);
        connections.close_overdue(start + BOUNDS.short_keep_alive - Duration::from_millis(1));
        assert!(closing(&connections).is_empty());
        drop(busy);
        connections.close_overdue(start + BOUNDS.short_keep_alive);
        assert_eq!(closing(&connections), [silent.id]);
        drop(silent);
        connections.close_overdue(start + BOUNDS.keep_alive - Duration::from_secs(1));
        assert!(closing(&connections).is_empty());
        // While more than half of the connections are taken, nobody's is kept for long.
        let _crowd: Vec<Connection> = (0..2).map(|_| connections.add(ip(1), start + BOUNDS.keep_alive)).collect();
        connections.close_overdue(start + BOUNDS.keep_alive - Duration::from_secs(1));
        assert_eq!(closing(&connections), [used.id]);
    }

    #[test]
    fn an_ipv6_peer_is_its_network() {
        let of = |text: &str| Peer::of(text.parse().expect("an address"));
        assert_eq!(of("fd00:1:2:3::1"), of("fd00:1:2:3:ffff::9"));
        assert_ne!(of("fd00:1:2:3::1"), of("fd00:1:2:4::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
