//! How etcd is restarted: `…/reload`.

use std::{fmt, str::FromStr};

use crate::{invalid_value::InvalidValue, text::quoted};

/// How etcd loads a changed trust bundle, which it does not notice by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// `auto`: SIGTERM in a shared process namespace where that is safe; otherwise the pending restart is reported.
    Auto,
    /// `signal:<SIG>`: that signal; admission refuses a pod in which it cannot be delivered. Never SIGHUP for etcd.
    Signal(String),
    /// `probe`: through the etcd container's liveness probe.
    Probe,
    /// `none`: never; the pending restart is reported.
    None,
}

/// The signals that `signal:<SIG>` takes: those that make servers reload or stop.
pub const SIGNALS: [&str; 7] = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"];

impl FromStr for Reload {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        match s {
            "auto" => Ok(Self::Auto),
            "probe" => Ok(Self::Probe),
            "none" => Ok(Self::None),
            _ => match s.strip_prefix("signal:") {
                Some(signal) if SIGNALS.contains(&signal) => Ok(Self::Signal(signal.to_owned())),
                _ => Err(format!(
                    "{} is none of auto, probe, none and signal:<SIG> with one of {}",
                    quoted(s),
                    SIGNALS.join(", ")
                )
                .into()),
            },
        }
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Signal(signal) => write!(f, "signal:{signal}"),
            Self::Probe => f.write_str("probe"),
            Self::None => f.write_str("none"),
        }
    }
}
