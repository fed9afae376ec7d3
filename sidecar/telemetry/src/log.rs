//! The log: one line per event on stderr, text for people or JSON for collectors.

use std::str::FromStr;

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

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
pub enum LogError {
    /// The filter does not parse.
    #[error("log level {level:?}: {source}; write a level (info) or targets with levels (info,hyper=debug)")]
    Filter {
        /// The requested level.
        level: String,
        /// Why not.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody set a subscriber before.
    #[error("the log is set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The flags of the log, the same for every program and subcommand.
#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// The format of a log line.
    #[arg(long, global = true, env = "ETCD_TLS_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: Format,
    /// A level, or targets with levels: info,etcd_tls_sidecar=debug.
    #[arg(long, global = true, env = "ETCD_TLS_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

impl LogArgs {
    /// Sets up the log of the process.
    ///
    /// # Errors
    /// As [`init`].
    pub fn init(&self) -> Result<(), LogError> {
        init(self.log_format, &self.log_level)
    }
}

/// The target whose lines quote an unreadable answer as a whole. Such an answer may be a truncated Secret. The caller's error
/// names the failure.
const WHOLE_ANSWERS: &str = "kube_client::client";

fn filter(level: &str) -> Result<Targets, LogError> {
    let filter = Targets::from_str(level).map_err(|source| LogError::Filter { level: level.to_owned(), source })?;
    Ok(filter.with_target(WHOLE_ANSWERS, LevelFilter::OFF))
}

/// Sets the process's log up: lines of `format` for what `level` lets through, a level (`info`) or targets with levels
/// (`info,kube_client=debug`). [`WHOLE_ANSWERS`] stays silent at every `level`.
///
/// # Errors
/// `level` does not parse, or the log is set up already.
pub fn init(format: Format, level: &str) -> Result<(), LogError> {
    let subscriber = tracing_subscriber::registry().with(filter(level)?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match format {
        Format::Text => subscriber.with(lines).try_init()?,
        Format::Json => subscriber.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tracing::Level;

    use super::*;

    #[test]
    fn no_level_lets_whole_answers_into_the_log() {
        for level in ["info", "trace", "info,kube_client=trace", "warn,kube_client::client=trace"] {
            assert!(!filter(level).unwrap().would_enable(WHOLE_ANSWERS, &Level::WARN), "{level}");
            assert!(filter(level).unwrap().would_enable("etcd_tls_webhook::sign", &Level::WARN), "{level}");
        }
        assert!(filter("info,kube_client=debug").unwrap().would_enable("kube_client::api", &Level::DEBUG));
        assert!(filter("=").is_err() || filter("a=nonsense").is_err());
    }
}
