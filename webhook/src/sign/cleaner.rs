//! Which requests are finished, and when each of them is deleted. [`ledger`] decides; [`super::cleaning`] deletes.
//!
//! The ledger is built from the watch of requests, so a new leader or a restarted process has it after one list.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::duration::parse_duration;
use tokio::{sync::Notify, time::Instant};

use crate::controller::facts::Csr;
use ledger::{Ledger, Times, Why};

pub(super) mod ledger;

/// When requests are deleted.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct CleanerArgs {
    /// How long an issued request is kept, so that its certificate can be fetched.
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    delete_issued_after: Duration,
    /// How long a denied or failed request is kept, so that people can read the reason.
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    delete_refused_after: Duration,
    /// How often to check that the pod of an undecided request still exists.
    #[arg(long, default_value = "1m", value_parser = parse_duration)]
    check_pending_every: Duration,
}

impl CleanerArgs {
    pub(super) const fn times(self) -> Times {
        let Self { delete_issued_after, delete_refused_after, check_pending_every } = self;
        Times { issued: delete_issued_after, refused: delete_refused_after, open: check_pending_every }
    }
}

/// See the module.
pub(super) struct Cleaner {
    ledger: Mutex<Ledger>,
    pub(super) changed: Notify,
}

impl Cleaner {
    pub(super) fn new(args: CleanerArgs) -> Self {
        Self { ledger: Mutex::new(Ledger::new(args.times())), changed: Notify::new() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a request of ours.
    pub(super) fn observe(&self, csr: &Csr) {
        self.ledger().observe(csr, SystemTime::now(), Instant::now());
        self.changed.notify_one();
    }

    /// A request is gone.
    pub(super) fn gone(&self, csr: &Csr) {
        self.ledger().gone(csr);
        self.changed.notify_one();
    }

    /// A list of all requests begins.
    pub(super) fn list_begins(&self) {
        self.ledger().list_begins();
    }

    /// A list of all requests is complete.
    pub(super) fn list_ends(&self) {
        self.ledger().list_ends();
        self.changed.notify_one();
    }
}

impl Why {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
            Self::Unanswered => "unanswered",
            Self::Orphaned => "orphaned",
        }
    }
}
