//! What a process says of itself. The log: one line an event on stderr, text for people or JSON for collectors; and metrics,
//! each made and named at one place.

use std::str::FromStr;

use prometheus_client::registry::{Metric, Registry};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line of text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log cannot be set up as asked.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log level {level:?}: {source}; write a level (info) or targets with levels (info,hyper=debug)")]
    Filter {
        /// What was asked.
        level: String,
        /// Why not.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody set a subscriber before.
    #[error("the log is set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets the process's log up: lines of `format` for what `level` lets through, a level (`info`) or targets with levels
/// (`info,kube_client=debug`).
///
/// # Errors
/// `level` does not parse, or the log is set up already.
pub fn init(format: Format, level: &str) -> Result<(), TelemetryError> {
    let filter =
        Targets::from_str(level).map_err(|source| TelemetryError::Filter { level: level.to_owned(), source })?;
    let subscriber = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match format {
        Format::Text => subscriber.with(lines).try_init()?,
        Format::Json => subscriber.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// A new metric, shown by `registry` as `name` (under the registry's prefix) with `help`.
pub fn metric<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
