//! A set of watches, one for each namespace that needs one.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::AbortHandle;

/// Tasks by namespace. Dropped, they are aborted.
#[derive(Default)]
pub(in crate::sign) struct Watches {
    tasks: BTreeMap<String, AbortHandle>,
}

impl Watches {
    /// Starts what is missing, stops what is not wanted any more, and says which those were.
    pub(in crate::sign) fn keep(
        &mut self,
        wanted: &BTreeSet<String>,
        mut start: impl FnMut(&str) -> AbortHandle,
    ) -> Vec<String> {
        let gone: Vec<String> = self.tasks.keys().filter(|namespace| !wanted.contains(*namespace)).cloned().collect();
        for namespace in &gone {
            if let Some(task) = self.tasks.remove(namespace) {
                task.abort();
            }
        }
        for namespace in wanted {
            if !self.tasks.contains_key(namespace) {
                self.tasks.insert(namespace.clone(), start(namespace));
            }
        }
        gone
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}
