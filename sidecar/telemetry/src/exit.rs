//! The exit codes of both programs: those of sysexits.h, where one fits.

use std::process::ExitCode;

/// How a program ends. `docs/exit-codes.md` lists the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The work is done.
    Success,
    /// The work cannot be done. The last line on standard error gives the reason.
    Failure,
    /// The command line is invalid (reported by clap).
    Usage,
    /// `status`: pods are failing, or need attention.
    Attention,
    /// `status`, `check`: not everything could be seen, and nothing seen is wrong. `revoke`: done, and not all could be seen.
    Unknown,
    /// Something that the work needs cannot be reached or used: a port, an API server, a signer.
    Unavailable,
    /// The operating system failed.
    System,
    /// A file that belongs to the program is missing.
    MissingFile,
    /// A file or directory cannot be read or written.
    InputOutput,
    /// Not done in time; a later try may succeed.
    TryAgain,
    /// Denied: the policy, or the API server's authorization. Trying again changes nothing.
    Denied,
    /// A kubeconfig cannot be used; in the sidecar, an argument either.
    Configuration,
    /// SIGTERM or SIGINT came before the work was done, or a second one while a server shut down.
    Stopped,
}

impl Exit {
    /// Every one, for documentation and its test.
    pub const ALL: [Self; 13] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::Attention,
        Self::Unknown,
        Self::Unavailable,
        Self::System,
        Self::MissingFile,
        Self::InputOutput,
        Self::TryAgain,
        Self::Denied,
        Self::Configuration,
        Self::Stopped,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Attention => 3,
            Self::Unknown => 4,
            Self::Unavailable => 69,
            Self::System => 71,
            Self::MissingFile => 72,
            Self::InputOutput => 74,
            Self::TryAgain => 75,
            Self::Denied => 77,
            Self::Configuration => 78,
            // As a shell reports SIGTERM.
            Self::Stopped => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
