//! Events that no work waits for: few are written at once, and a bounded number waits. One that finds no place, or that cannot be
//! written now, is left out; where there is another occasion, it is said then.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::controller::{
    events::{Notice, Outcome, Recorder},
    told::Told,
};

/// Events that wait or are being written.
const PLACES: usize = 1024;
/// Events that are being written: each is a request of the API server.
const AT_ONCE: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Asides {
    places: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
    told: Arc<Mutex<Told>>,
}

impl Default for Asides {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PLACES)),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            told: Arc::default(),
        }
    }
}

impl Asides {
    /// Writes an Event about `subject`, unless there was one or there is no place.
    pub(super) fn say_once(&self, subject: &str, recorder: &Recorder, notice: Notice) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        if !self.told.lock().unwrap_or_else(PoisonError::into_inner).add(subject) {
            return;
        }
        let (at_once, recorder) = (Arc::clone(&self.at_once), recorder.clone());
        let (told, subject) = (Arc::clone(&self.told), subject.to_owned());
        tokio::spawn(async move {
            if let Ok(_turn) = at_once.acquire().await
                && recorder.say_and_wait(notice).await == Outcome::Failed
            {
                told.lock().unwrap_or_else(PoisonError::into_inner).forget(&subject);
            }
            drop(place);
        });
    }
}
