//! Whether the records have what the leader before had issued and not recorded, and what is found of that
//! ([`crate::sign::recollection`]).

use std::{sync::Arc, time::SystemTime};

use etcd_tls_contract::certificate::Chain;
use tokio::{sync::watch, time::Instant};

use super::{
    Authorities, Unavailable,
    issued::Leaf,
    quota::{Entry, Held},
    revoked::Revoked,
    state::Stored,
};
use crate::revoke::Report;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sign) enum Recollected {
    /// Not yet, in the term that began at this time.
    NotYet(SystemTime),
    /// All that there was to find is recorded.
    All,
}

impl Recollected {
    /// Of a term that begins.
    pub(super) fn begin() -> Self {
        Self::NotYet(SystemTime::now())
    }
}

impl Authorities {
    /// A term begins: the records may lack certificates of the leader before.
    pub(in crate::sign) fn begin(&self) {
        self.recollected.send_replace(Recollected::begin());
    }

    /// The records have what the leader before had issued, as far as it could be found.
    pub(in crate::sign) fn all_recollected(&self) {
        self.recollected.send_replace(Recollected::All);
        self.changed.notify_one();
    }

    /// What the records have in this term.
    pub(in crate::sign) fn recollected(&self) -> watch::Receiver<Recollected> {
        self.recollected.subscribe()
    }

    /// Notes in the record, until certificates of the leader before are found, that it may lack them. It is not to be written so.
    pub(in crate::sign) fn note_gap(&self, stored: &mut Stored) {
        if let Recollected::NotYet(since) = *self.recollected.borrow() {
            let end = stored.leaves_end();
            Arc::make_mut(&mut stored.issued).lost(since, end);
        }
    }

    /// The report of an authority on the last request, and on a record that is or may be incomplete.
    pub(super) fn report(&self, stored: &Stored, now: SystemTime) -> Option<Report> {
        let mut stored = stored.clone();
        self.note_gap(&mut stored);
        stored.report(now)
    }

    /// Records what was issued by a leader before, as far as the record lacks it, and revokes it where its pod is barred or its key
    /// compromised: an operator did that while the record lacked it. How many there are.
    ///
    /// # Errors
    /// The authority cannot be read or written now.
    pub(in crate::sign) async fn recollect(
        &self,
        entry: &Entry,
        found: Vec<(Chain, Leaf)>,
        now: SystemTime,
    ) -> Result<usize, Unavailable> {
        let mut held = entry.held.lock().await;
        if self.namespace(&entry.name).is_err() {
            // The namespace is going, and the authority with it.
            return Ok(0);
        }
        let revoked = &self.ready(entry, &mut held, now).await?.stored.revoked;
        if found.iter().any(|(_, leaf)| revoked.refuses_leaf(leaf)) {
            // A published list that is newer takes the place of the entries.
            self.compare(entry, &mut held, now).await?;
        }
        let Held::Ready(ready) = &mut *held else { return Ok(0) };
        // A CA of a namespace that was made again has issued none of them.
        let (bundle, mut after) = (ready.stored.bundle(), ready.stored.clone());
        let is_new = |(chain, _): &(Chain, Leaf)| {
            let ended = chain.not_after <= now;
            !ended && !ready.stored.issued.has(&chain.serial) && bundle.contains_issuer_of(chain)
        };
        let new: Vec<(Chain, Leaf)> = found.into_iter().filter(is_new).collect();
        let mut listed = false;
        for (chain, leaf) in &new {
            let mut revoked = Revoked::clone(&after.revoked);
            if let Some(reason) =
                revoked.take_found(&chain.serial, leaf, &after.issued, (after.active.not_after(), now))
            {
                tracing::warn!(
                    authority = %entry.name,
                    serial = chain.serial,
                    pod = leaf.pod(),
                    %reason,
                    "a certificate was not recorded when its pod or key was revoked: it is revoked now"
                );
                after.revoked = Arc::new(revoked);
                listed = true;
            }
            Arc::make_mut(&mut after.issued).note(&chain.serial, leaf.clone());
        }
        if listed {
            // At once: one that is recorded is not looked at again. The next round signs the list.
            self.persist(entry, &mut held, after).await?;
            self.changed.notify_one();
            return Ok(new.len());
        }
        for (chain, leaf) in &new {
            if let Some(wait) =
                entry.unwritten().add(&chain.serial, leaf.clone(), ready.stored.entries(), Instant::now())
            {
                self.ring_after(wait);
            }
        }
        ready.stored.issued = after.issued;
        entry.weigh(&mut held);
        Ok(new.len())
    }
}
