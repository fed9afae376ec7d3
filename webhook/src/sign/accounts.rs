//! Which namespace a requester is of, by its uid. A namespace that is made again under a name is another one, and the watch of
//! namespaces may be behind: a pod of the new one would get a certificate of the old one's authority, or the other way round.
//!
//! A service account's uid belongs to one namespace for ever, and the API server takes no token of an account that is gone. So a
//! namespace is read once for an account, not for each request.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use crate::controller::{Controller, Trouble, client::within, ids::Uid};

/// Accounts that are remembered; the oldest are forgotten first, and their namespace is read again.
const MOST: usize = 4096;

/// The uid of the namespace of each service account, by the account's uid.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    namespaces: HashMap<Uid, Uid>,
    order: VecDeque<Uid>,
}

impl Known {
    fn add(&mut self, account: &str, namespace: &str) {
        let account = Uid::from(account);
        if self.namespaces.insert(account.clone(), namespace.into()).is_none() {
            self.order.push_back(account);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.namespaces.remove(&oldest);
        }
    }
}

impl Accounts {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the namespace of a requester is the one that the watch of namespaces has. `account` is the uid of the
    /// requester's service account, and `asked` when it asked.
    ///
    /// # Errors
    /// It is another one, or that is not known now.
    pub(super) async fn check(
        &self,
        controller: &Controller,
        namespace: &str,
        account: &str,
        asked: Option<SystemTime>,
    ) -> Result<(), Trouble> {
        let namespaces = controller.namespaces.borrow().clone();
        let watched = namespaces.as_ref().and_then(|all| all.get(namespace)).map(|facts| facts.uid.as_str());
        let known = self.known().namespaces.get(&Uid::from(account)).cloned();
        if known.zip(watched).is_some_and(|(known, watched)| known == *watched) {
            return Ok(());
        }
        let api: Api<Namespace> = Api::all(controller.client.clone());
        let live = within(api.get_metadata_opt(namespace)).await?;
        let Some(metadata) = live.map(|live| live.metadata) else {
            return Err(Trouble::NotYet(format!("there is no namespace {namespace}")));
        };
        if is_older(asked, metadata.creation_timestamp.map(|time| time.0.into())) {
            return Err(Trouble::NotYet(format!(
                "the request is older than namespace {namespace}: it is of one before it that had this name"
            )));
        }
        let uid = metadata.uid.unwrap_or_default();
        if watched != Some(uid.as_str()) {
            return Err(Trouble::NotYet(format!(
                "namespace {namespace} was made again, and the watch of namespaces does not show it yet"
            )));
        }
        self.known().add(account, &uid);
        Ok(())
    }
}

/// True if a request is older than the namespace that has the name now. Both are of the API server's clock, in whole seconds.
fn is_older(asked: Option<SystemTime>, namespace: Option<SystemTime>) -> bool {
    asked.zip(namespace).is_some_and(|(asked, namespace)| asked < namespace)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_memory_of_accounts_is_bounded_and_the_newest_stay() {
        let mut known = Known::default();
        for n in 0..2 * MOST {
            known.add(&n.to_string(), "u");
            known.add(&n.to_string(), "v");
        }
        assert_eq!((known.namespaces.len(), known.order.len()), (MOST, MOST));
        assert_eq!(known.namespaces.get(&Uid::from((2 * MOST - 1).to_string().as_str())), Some(&Uid::from("v")));
        assert!(!known.namespaces.contains_key(&Uid::from("0")));
    }

    #[test]
    fn a_request_of_a_namespace_before_is_told_by_its_age() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert!(is_older(at(1), at(2)));
        assert!(!is_older(at(2), at(2)) && !is_older(at(3), at(2)) && !is_older(None, at(2)));
    }
}
