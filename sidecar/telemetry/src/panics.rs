//! The panics of the process, counted. Each of them is a defect: it ends the task or the request in which it happens, or the
//! process.

use std::{
    panic,
    sync::atomic::{AtomicU64, Ordering},
};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts the process's panics from now on. They are shown on standard error as before.
pub fn count() {
    let show = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        show(info);
    }));
}

/// The panics since [`count`] was called.
pub fn counted() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]

    use super::*;

    #[tokio::test]
    async fn every_panic_is_counted_wherever_it_happens() {
        let shown = || crate::process::metrics().contains(&format!("\netcd_tls_panics_total {}\n", counted()));
        count();
        assert!(shown());
        let before = counted();
        assert!(tokio::spawn(async { panic!("in a task") }).await.is_err());
        assert!(std::thread::spawn(|| panic!("in a thread")).join().is_err());
        assert!(panic::catch_unwind(|| panic!("in a call that catches it")).is_err());
        // Tests beside this one may panic, too.
        assert!(counted() >= before + 3 && shown());
    }
}
