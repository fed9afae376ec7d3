//! How the paths of the certificates reach etcd and etcdctl.

use std::str::FromStr;

use crate::invalid_value::InvalidValue;

/// Annotation `options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OptionsMode {
    /// By environment variables, for each option that the command line does not set.
    #[default]
    Auto,
    /// By environment variables: the user says that the pod passes no TLS flag.
    Env,
    /// Not set: the pod passes its flags itself.
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
