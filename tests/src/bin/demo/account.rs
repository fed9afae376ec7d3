//! The demo's observations, and the table at its end.

use std::collections::{BTreeMap, BTreeSet};

use tests::workload::Report;

use crate::timeline::{Timeline, figures};

/// Serials, by pod and role.
type Seen = BTreeMap<(String, String), BTreeSet<String>>;

/// The observations.
#[derive(Debug)]
pub struct Account {
    /// The same, by time.
    pub timeline: Timeline,
    /// Serials of certificates on disk.
    pub on_disk: Seen,
    /// Serials that etcd's own ports showed in handshakes.
    pub served: Seen,
    /// The last serial that a port showed.
    pub last: BTreeMap<(String, String), String>,
    /// Restarts of etcd, by pod.
    pub restarts: BTreeMap<String, u32>,
    /// Members that were seen down at the same moment, at most.
    pub most_down: usize,
    /// Changes of the authorities that came to their end.
    pub authorities: u32,
}

impl Account {
    /// Nothing yet.
    pub const fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            on_disk: Seen::new(),
            served: Seen::new(),
            last: BTreeMap::new(),
            restarts: BTreeMap::new(),
            most_down: 0,
            authorities: 0,
        }
    }

    /// Notes a certificate on disk; whether it is new.
    pub fn issued(&mut self, pod: &str, role: &str, serial: &str) -> bool {
        self.on_disk.entry((pod.to_owned(), role.to_owned())).or_default().insert(serial.to_owned())
    }

    /// Notes a certificate shown by a port; the one before it, where it is a new one.
    pub fn shown(&mut self, pod: &str, role: &str, serial: &str) -> Option<String> {
        self.timeline.shows(pod, role, serial);
        let key = (pod.to_owned(), role.to_owned());
        let new = self.served.entry(key.clone()).or_default().insert(serial.to_owned());
        let before = self.last.insert(key, serial.to_owned());
        if new { before } else { None }
    }

    /// Every certificate there was.
    pub fn certificates(&self) -> usize {
        self.on_disk.values().map(BTreeSet::len).sum()
    }

    /// The page of the whole course.
    pub fn page(&self, report: &Report, good: bool) -> String {
        let title = if good { "etcd-tls demo: no write failed, none was lost" } else { "etcd-tls demo: FAILED" };
        let restarts = self.restarts.values().sum();
        self.timeline.page(title, &figures(report, self.certificates(), restarts, self.most_down))
    }

    /// Prints the table; whether everything held.
    #[allow(clippy::print_stdout)]
    pub fn print(&self, report: &Report) -> bool {
        println!();
        println!("  pod      role     certificates  rotations  serials served  last serial");
        let mut rotated = true;
        for ((pod, role), serials) in &self.on_disk {
            let key = (pod.clone(), role.clone());
            let served = self.served.get(&key).map(BTreeSet::len);
            let shown = served.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let last = self.last.get(&key).map_or("-", |s| &s[..s.len().min(12)]);
            println!("  {pod:<8} {role:<8} {:>12} {:>10} {shown:>15}  {last}", serials.len(), serials.len() - 1);
            rotated &= serials.len() > 1 && served.is_none_or(|n| n > 1);
        }
        let restarts: u32 = self.restarts.values().sum();
        println!();
        println!("  certificates issued        {:>8}", self.certificates());
        println!("  authorities changed        {:>8}", self.authorities);
        println!("  restarts of etcd           {restarts:>8}   (for the authorities; none for a certificate)");
        println!("  members down at once       {:>8}   (at most)", self.most_down);
        println!("  handshakes of the client   {:>8}", report.connections);
        println!("  attempts made again        {:>8}", report.retried);
        println!("  longest operation          {:>8} ms", report.longest.as_millis());
        println!("  writes                     {:>8}", report.writes);
        println!("  writes failed              {:>8}", report.failed);
        println!("  writes lost                {:>8}", report.lost.len());
        println!("  writes the watch missed    {:>8}", report.unseen.len());
        println!();
        for error in report.errors.iter().filter(|_| report.failed > 0) {
            println!("  {error}");
        }
        if !rotated {
            println!("  a certificate was not renewed, or not served");
        }
        rotated
            && report.writes > 0
            && report.failed == 0
            && report.lost.is_empty()
            && report.unseen.is_empty()
            && self.most_down <= 1
    }
}
