//! How etcd and etcdctl are told of their files.

use std::str::FromStr;

use crate::invalid_value::InvalidValue;

/// Annotation `options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OptionsMode {
    /// By environment variables for what the command line, read by the webhook, does not set by flag.
    #[default]
    Auto,
    /// By environment variables: the user says that the pod passes no TLS flag.
    Env,
    /// Not at all: the pod passes its flags itself.
    None,
}

impl FromStr for OptionsMode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "env" => Ok(Self::Env),
            "none" => Ok(Self::None),
            other => Err(format!(
                "{other:?} is not known; write auto (read the command line), env (set the environment; the pod passes no TLS \
                 flag) or none (the pod passes its flags itself)"
            ).into()),
        }
    }
}
