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
    /// One JSON object per line.
    Json,
}

/// The process has a log already.
#[derive(Debug, thiserror::Error)]
#[error("the log is set up twice: {0}")]
pub struct LogError(#[from] tracing_subscriber::util::TryInitError);

/// A text is neither a level nor a list of targets with levels.
#[derive(Debug, thiserror::Error)]
#[error("{0}; write a level (info) or targets with levels (info,hyper=debug)")]
pub struct LevelsError(tracing_subscriber::filter::ParseError);

/// A level (`info`), or targets with levels (`info,kube_client=debug`). [`WHOLE_ANSWERS`] is silent at every level.
#[derive(Clone, Debug)]
pub struct Levels(Targets);

impl FromStr for Levels {
    type Err = LevelsError;

    fn from_str(text: &str) -> Result<Self, LevelsError> {
        let targets = Targets::from_str(text).map_err(LevelsError)?;
        Ok(Self(targets.with_target(WHOLE_ANSWERS, LevelFilter::OFF)))
    }
}

/// The flags of the log, the same for every program and subcommand.
#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// The format of the log.
    #[arg(long, global = true, display_order = 900, env = "ETCD_TLS_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: Format,
    /// The log level: off, error, warn, info, debug or trace; or levels by module, such as info,hyper=debug.
    #[arg(long, global = true, display_order = 900, env = "ETCD_TLS_LOG_LEVEL", default_value = "info")]
    pub log_level: Levels,
}

impl LogArgs {
    /// Sets up the log of the process.
    ///
    /// # Errors
    /// As [`init`].
    pub fn init(&self) -> Result<(), LogError> {
        init(self.log_format, self.log_level.clone())
    }
}

/// The target whose lines quote an unreadable answer as a whole. Such an answer may be a truncated Secret. The caller's error
/// names the failure.
const WHOLE_ANSWERS: &str = "kube_client::client";

/// Sets up the log of the process: lines of `format` at `levels`.
///
/// # Errors
/// The log is set up already.
pub fn init(format: Format, levels: Levels) -> Result<(), LogError> {
    let subscriber = tracing_subscriber::registry().with(levels.0);
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

    fn targets(levels: &str) -> Targets {
        levels.parse::<Levels>().unwrap().0
    }

    #[test]
    fn no_level_lets_whole_answers_into_the_log() {
        for level in ["info", "trace", "info,kube_client=trace", "warn,kube_client::client=trace"] {
            assert!(!targets(level).would_enable(WHOLE_ANSWERS, &Level::WARN), "{level}");
            assert!(targets(level).would_enable("etcd_tls_webhook::sign", &Level::WARN), "{level}");
        }
        assert!(targets("info,kube_client=debug").would_enable("kube_client::api", &Level::DEBUG));
        assert!("a=nonsense".parse::<Levels>().is_err());
    }
}
