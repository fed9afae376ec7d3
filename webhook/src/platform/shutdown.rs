//! SIGTERM and SIGINT: the first one drains, a second one aborts.

use etcd_tls_telemetry::exit::Exit;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::essential::essential;

/// Becomes `true` at the first SIGTERM or SIGINT, for the process to drain; at the second one the process ends at once
/// with [`Exit::Stopped`].
///
/// # Errors
/// The signals cannot be caught.
pub fn on_signals() -> std::io::Result<watch::Receiver<bool>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(essential("signals", async move {
        let mut next = async || tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" };
        let name = next().await;
        tracing::info!(signal = name, "shutting down; a second signal aborts");
        let _ = sender.send(true);
        let name = next().await;
        tracing::warn!(signal = name, "aborting");
        std::process::exit(i32::from(Exit::Stopped.code()))
    }));
    Ok(receiver)
}

/// Waits until `flag` is `value`; for ever when its sender is gone before.
pub async fn until(flag: &mut watch::Receiver<bool>, value: bool) {
    if flag.wait_for(|now| *now == value).await.is_err() {
        std::future::pending::<()>().await;
    }
}
