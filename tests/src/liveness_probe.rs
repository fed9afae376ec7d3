//! kubelet's part of `reload: probe`, for clusters that a [`EtcdSupervisor`] starts again: it runs each member's liveness probe,
//! and ends a member whose probe fails as often in a row as is allowed.

use std::{
    convert::Infallible,
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{etcd_supervisor::EtcdSupervisor, process::probe};

/// `periodSeconds`, for tests in a hurry.
const PERIOD: Duration = Duration::from_millis(300);
/// `failureThreshold`.
const THRESHOLD: u32 = 3;
/// `initialDelaySeconds`, which stands for periods in no hurry: the webhook's probe has none, and a new etcd that fails it is
/// ended after two periods, 20 s, at the earliest. Here it is so after less than 6.
const DELAY: Duration = Duration::from_secs(5);

/// Does `work` while the members, whose certificates are in `dirs`, are probed.
pub async fn probed<T>(dirs: &[PathBuf], supervisor: &EtcdSupervisor, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = probe_members(dirs, supervisor) => match never {},
    }
}

async fn probe_members(dirs: &[PathBuf], supervisor: &EtcdSupervisor) -> Infallible {
    let mut failures = vec![0; dirs.len()];
    let mut told: Vec<Option<Instant>> = vec![None; dirs.len()];
    loop {
        for (i, dir) in dirs.iter().enumerate() {
            let ended = supervisor.ends().iter().rev().find(|(member, _)| *member == i).map(|(_, at)| *at);
            // A container that is being ended is not probed, and a new one not at once.
            if told[i].is_some_and(|told| ended.is_none_or(|ended| ended < told))
                || ended.is_some_and(|ended| ended.elapsed() < DELAY)
            {
                continue;
            }
            failures[i] = if probe(dir).await.is_err() { failures[i] + 1 } else { 0 };
            if failures[i] == THRESHOLD {
                (failures[i], told[i]) = (0, Some(Instant::now()));
                supervisor.terminate(i);
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}
