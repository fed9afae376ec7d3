//! Plays kubelet for a cluster of real etcds: whichever ends is started again, at once, unless the test holds it down; and
//! looks on from outside, by connecting, how many are away at the same time.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::{net::TcpStream, task::JoinHandle, time::sleep};

use crate::etcd::EtcdCluster;

/// How often the processes are looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// A supervised cluster.
pub struct EtcdSupervisor {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    cluster: Mutex<EtcdCluster>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: BTreeSet<usize>,
    ends: Vec<(usize, Instant)>,
    most_away: usize,
    /// The longest that each member was away, by its own end alone.
    longest_away: Duration,
}

impl EtcdSupervisor {
    /// Supervises a cluster that was started.
    pub fn new(cluster: EtcdCluster) -> Self {
        let addresses: Vec<SocketAddr> = cluster.members.iter().map(|m| (m.address, m.client_port).into()).collect();
        let shared = Arc::new(Shared { cluster: Mutex::new(cluster), state: Mutex::default() });
        let tasks =
            vec![tokio::spawn(supervise(Arc::clone(&shared))), tokio::spawn(look_on(Arc::clone(&shared), addresses))];
        Self { shared, tasks }
    }

    /// Asks the cluster something.
    pub fn with<T>(&self, f: impl FnOnce(&mut EtcdCluster) -> T) -> T {
        f(&mut self.shared.cluster.lock().expect("no panic while held"))
    }

    /// Kills member `i` and keeps it down until [`Self::free`].
    pub fn hold_down(&self, i: usize) {
        self.state(|s| s.held.insert(i));
        self.with(|c| c.members[i].kill());
    }

    /// Ends member `i` as kubelet ends a container whose liveness probe fails.
    pub fn terminate(&self, i: usize) {
        self.with(|c| c.members[i].process().signal(Signal::SIGTERM));
    }

    /// Stops member `i` as a machine that is suspended stops it; it goes on with [`Self::resume`], knowing nothing of it.
    pub fn suspend(&self, i: usize) {
        self.with(|c| c.members[i].process().signal(Signal::SIGSTOP));
    }

    /// See [`Self::suspend`].
    pub fn resume(&self, i: usize) {
        self.with(|c| c.members[i].process().signal(Signal::SIGCONT));
    }

    /// Starts member `i` again.
    pub fn free(&self, i: usize) {
        self.state(|s| s.held.remove(&i));
    }

    /// When each end of a member was noticed, by the order in which they happened.
    pub fn ends(&self) -> Vec<(usize, Instant)> {
        self.state(|s| s.ends.clone())
    }

    /// The most members that refused a connection at the same time, those held down by the test included.
    pub fn most_away(&self) -> usize {
        self.state(|s| s.most_away)
    }

    /// The longest that a member refused connections, those held down by the test not counted.
    pub fn longest_away(&self) -> Duration {
        self.state(|s| s.longest_away)
    }

    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.shared.state.lock().expect("no panic while held"))
    }
}

impl Drop for EtcdSupervisor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn supervise(shared: Arc<Shared>) {
    let mut noted = BTreeSet::new();
    loop {
        {
            let mut cluster = shared.cluster.lock().expect("no panic while held");
            let mut state = shared.state.lock().expect("no panic while held");
            for i in 0..cluster.members.len() {
                if cluster.members[i].process().running() {
                    continue;
                }
                if noted.insert(i) {
                    state.ends.push((i, Instant::now()));
                }
                if !state.held.contains(&i) {
                    noted.remove(&i);
                    cluster.members[i].spawn();
                }
            }
        }
        sleep(GLANCE).await;
    }
}

async fn look_on(shared: Arc<Shared>, addresses: Vec<SocketAddr>) {
    let mut since: Vec<Option<Instant>> = vec![None; addresses.len()];
    loop {
        for (address, since) in addresses.iter().zip(&mut since) {
            match TcpStream::connect(address).await {
                Ok(_) => *since = None,
                Err(_) => drop(since.get_or_insert_with(Instant::now)),
            }
        }
        {
            let mut state = shared.state.lock().expect("no panic while held");
            state.most_away = state.most_away.max(since.iter().flatten().count());
            for (i, since) in since.iter().enumerate() {
                if let (Some(since), false) = (since, state.held.contains(&i)) {
                    state.longest_away = state.longest_away.max(since.elapsed());
                }
            }
        }
        sleep(GLANCE).await;
    }
}
