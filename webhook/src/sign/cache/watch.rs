//! A watch that ends with its owner.

use tokio::task::AbortHandle;

/// The task of a watch. Dropped, it is aborted.
pub(in crate::sign) struct Watch(pub(in crate::sign) AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}
