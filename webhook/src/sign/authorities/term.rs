//! The beginning and the end of what a term knows: what a Secret that was read lacks, and what is written before the keys are
//! dropped.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::crl::Crl;
use futures::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use super::{
    Authorities, Unavailable,
    quota::{Entry, Held, Ready},
    revoked::{Revoked, Trust},
    state::Stored,
};
use crate::revoke::Report;

/// How long the end of a term may take: within it a successor waits for the Lease.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// Records that are written at once.
const AT_ONCE: usize = 16;

impl Stored {
    /// True if certificates were issued and the record of them is lost. A certificate is noted in the state before it is issued. One that
    /// is not in an empty record yet is found in its request.
    pub(super) fn has_lost_its_record(&self) -> bool {
        let of_old = self.state.rollover.as_ref().and_then(|rollover| rollover.old_leaves_until);
        self.unrecorded && of_old.max(self.state.leaves_until).is_some()
    }

    /// Certificates in the record, and revocations.
    pub(in crate::sign) fn entries(&self) -> usize {
        self.issued.len() + self.revoked.serials().count()
    }

    /// Takes over a published list that is newer than the Secret, which then is an older one that somebody restored. True if it
    /// did. The record then lacks what was issued since the Secret was saved.
    pub(super) fn adopt(&mut self, list: Crl, now: SystemTime) -> bool {
        let mut revoked = Revoked::clone(&self.revoked);
        let end = self.active.not_after();
        let trust = Trust {
            active: &self.active,
            next: self.next.as_deref(),
            issued: &self.issued,
            unknown_end: end.max(self.leaves_end()),
        };
        let adopted = revoked.adopt(list, &trust);
        if adopted {
            self.revoked = Arc::new(revoked);
            Arc::make_mut(&mut self.issued).lost(now, end);
        }
        adopted
    }

    /// The report on the last request, and on a record that is not complete.
    pub(super) fn report(&self, now: SystemTime) -> Option<Report> {
        // By the minute, as each change is a write of the ConfigMap.
        let lacks_before = self.issued.lacks_before(now).map(|before| before.div_ceil(60) * 60);
        match (self.revoked.report(), lacks_before) {
            (None, None) => None,
            (report, lacks_before) => {
                let whose = self.revoked.whose(&self.issued);
                Some(Report { lacks_before, whose, ..report.unwrap_or_default() })
            }
        }
    }
}

impl Authorities {
    /// Adds to an authority that was read what is recorded and not written yet, and says where a record is lost.
    pub(super) fn recall(&self, entry: &Entry, ready: &mut Ready, now: SystemTime) {
        let mut unwritten = entry.unwritten();
        // Once for each loss: until that is written, it is read again and again.
        if ready.stored.has_lost_its_record()
            && let Some(wait) = unwritten.lost(now, ready.stored.leaves_end(), ready.stored.entries())
        {
            tracing::warn!(
                authority = %entry.name,
                "the record of what was issued is lost: only --serial revokes certificates of before"
            );
            self.ring_after(wait);
        }
        ready.stored.unrecorded = false;
        if !unwritten.is_empty() {
            Arc::make_mut(&mut ready.stored.issued).take_in(unwritten.issued());
        }
    }

    /// Rings when a record is to be written.
    pub(super) fn ring_after(&self, wait: Duration) {
        let changed = Arc::clone(&self.changed);
        tokio::spawn(async move {
            sleep(wait).await;
            changed.notify_one();
        });
    }

    /// Compares an authority that was read with its published list, once. Certificates do not wait for this: what is published
    /// may not be readable yet.
    ///
    /// # Errors
    /// The list cannot be read now, or what it adds could not be written.
    pub(super) async fn compare(&self, entry: &Entry, held: &mut Held, now: SystemTime) -> Result<(), Unavailable> {
        if !matches!(held, Held::Ready(ready) if !ready.compared) {
            return Ok(());
        }
        if let Some(list) = self.published_list(&entry.name).await? {
            self.adopt(entry, held, list, now).await?;
        }
        if let Held::Ready(ready) = held {
            ready.compared = true;
        }
        Ok(())
    }

    /// Has an authority that was read take over the published list, where that is newer: somebody restored an older
    /// Secret, and sidecars have the revocations that it lacks. It is written before another list is signed or published.
    ///
    /// # Errors
    /// It could not be written.
    async fn adopt(&self, entry: &Entry, held: &mut Held, list: Crl, now: SystemTime) -> Result<(), Unavailable> {
        let Held::Ready(ready) = &*held else { return Ok(()) };
        let mut after = ready.stored.clone();
        let (number, entries) = (list.number(), list.entries().len());
        let known = ready.stored.revoked.number();
        if !after.adopt(list, now) {
            if number > known {
                tracing::warn!(
                    authority = %entry.name,
                    number,
                    known,
                    "the published revocation list is newer than the Secret, and no CA of the Secret has signed it: it is not taken over. If somebody restored a Secret of before a rollover, repeat the revocations since then"
                );
            }
            return Ok(());
        }
        self.persist(entry, held, after).await?;
        tracing::warn!(
            authority = %entry.name,
            number,
            entries,
            "the Secret is older than the published revocation list: the list is taken over. Bars of pods and keys since then are \
             lost: repeat revocations by --pod, and with --reason keyCompromise"
        );
        Ok(())
    }

    /// Writes the records that are not written yet, within a few seconds: at the end of a term, before [`Self::clear`].
    pub(in crate::sign) async fn flush(&self) {
        // A request under way records under the lock of its authority, before this or never.
        self.over.store(true, Ordering::SeqCst);
        let all = self.entries();
        let due = || all.iter().filter(|entry| !entry.unwritten().is_empty());
        let each = stream::iter(&all).for_each_concurrent(AT_ONCE, |entry| async move {
            if let Err(error) = self.flush_one(entry).await {
                tracing::warn!(authority = %entry.name, %error, "the record is not written");
            }
        });
        let in_time = timeout(FLUSH_WITHIN, each).await.is_ok();
        for entry in due() {
            let certificates = entry.unwritten().issued().len();
            tracing::warn!(
                authority = %entry.name,
                certificates,
                in_time,
                "the record lacks the last certificates: only --serial revokes them"
            );
        }
    }

    /// Writes one record. Where the successor has written the Secret already, this record is added to what that wrote; the
    /// successor sees the change, and reads it.
    async fn flush_one(&self, entry: &Entry) -> Result<(), Unavailable> {
        let mut held = entry.held.lock().await;
        if matches!(&*held, Held::Ready(ready) if self.is_replaced(&entry.name, ready)) {
            // A namespace that was made again inherits nothing.
            entry.unwritten().clear();
        }
        let mut result = Ok(());
        for _ in 0..2 {
            if entry.unwritten().is_empty() {
                break;
            }
            if !matches!(&*held, Held::Ready(_)) {
                let now = SystemTime::now();
                let (uid, _) = self.namespace(&entry.name)?;
                let again = self.read_again(&entry.name, &uid, now).await?;
                let mut again = again.ok_or_else(|| Unavailable::NotYet("its Secret is gone".to_owned()))?;
                self.recall(entry, &mut again, now);
                *held = Held::Ready(Box::new(again));
            }
            let Held::Ready(ready) = &*held else { break };
            let stored = ready.stored.clone();
            result = self.persist(entry, &mut held, stored).await;
        }
        result
    }
}
