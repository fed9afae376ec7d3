//! The serial number of each request that is being answered: the same when the answer is written again, so that an API server which
//! takes no writes for hours does not fill the record of what was issued. No two certificates with it are ever handed out: a request
//! takes one answer.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{error::Unspecified, rand};

/// See the module. By the request's uid, until it is answered or gone.
#[derive(Debug, Default)]
pub(super) struct Serials(Mutex<HashMap<Box<str>, [u8; 16]>>);

impl Serials {
    /// The serial number for a request.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(super) fn of(&self, uid: &str) -> Result<[u8; 16], Unspecified> {
        let mut serials = self.serials();
        if let Some(serial) = serials.get(uid) {
            return Ok(*serial);
        }
        let mut serial = [0; 16];
        rand::fill(&mut serial)?;
        serials.insert(uid.into(), serial);
        Ok(serial)
    }

    /// The request is answered or gone.
    pub(super) fn done(&self, uid: &str) {
        self.serials().remove(uid);
    }

    /// The requests are listed again.
    pub(super) fn clear(&self) {
        self.serials().clear();
    }

    fn serials(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, [u8; 16]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_request_that_is_answered_again_keeps_its_serial_number() {
        let serials = Serials::default();
        let first = serials.of("a").unwrap();
        assert_eq!(serials.of("a").unwrap(), first);
        assert_ne!(serials.of("b").unwrap(), first);
        serials.done("a");
        assert_ne!(serials.of("a").unwrap(), first);
        serials.clear();
        assert!(serials.serials().is_empty());
    }
}
