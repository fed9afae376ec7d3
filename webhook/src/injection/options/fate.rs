//! What becomes of a container when the etcd in it ends.

use super::programs::has;

/// What becomes of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::injection) enum Fate {
    /// It ends with etcd's code, or its script starts etcd again.
    #[default]
    Ends,
    /// It ends, perhaps with code 0.
    EndsWell,
    /// Not known.
    Unknown,
    /// It goes on.
    GoesOn,
}

/// A fate, and where the script says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::injection) struct After {
    pub(in crate::injection) fate: Fate,
    pub(in crate::injection) why: String,
}

impl After {
    /// The worse of both.
    pub(super) fn or(self, other: Self) -> Self {
        if other.fate > self.fate { other } else { self }
    }
}

/// Programs that end soon, whatever their arguments are.
const BRIEF: &str = ": [ test true false echo printf pwd cd exit umask ulimit times kill pkill killall jobs wait touch mkdir rmdir rm cp \
    mv ln chmod chown chgrp ls stat df mktemp basename dirname readlink realpath expr date hostname uname whoami id groups nproc arch \
    sync truncate etcdutl which type shopt printenv return break continue shift pgrep pidof ps getopts";
/// Programs that end with their input.
const READERS: &str =
    "cat tee grep egrep fgrep sed awk gawk mawk tr cut head sort uniq wc logger jq gzip read mapfile readarray";
/// Commands of etcdctl that wait for others.
const WAITS: &str = "watch elect lock make-mirror";
/// The most that a script may sleep before it goes on, in seconds.
const MOMENT: f64 = 60.0;

/// What becomes of a script that runs a program of this name behind etcd. `piped`: its input is etcd's output.
pub(super) fn lasts(name: &str, arguments: &[String], piped: bool) -> Fate {
    let any = |what: &dyn Fn(&str) -> bool| arguments.iter().any(|argument| what(argument));
    let follows =
        |a: &str| a.starts_with("--follow") || (a.starts_with('-') && !a.starts_with("--") && a.contains(['f', 'F']));
    let read = |file: &str| !file.starts_with(['-', '$']) && !file.starts_with("/dev/") && !file.starts_with("/proc/");
    match name {
        "sleep" if any(&|time| matches!(time, "infinity" | "inf")) => Fate::GoesOn,
        "sleep" if any(&|time| !seconds(time).is_some_and(|time| time <= MOMENT)) => Fate::Unknown,
        "tail" if any(&follows) && !any(&|a| a.starts_with("--pid")) => Fate::GoesOn,
        "etcdctl" if any(&|word| has(WAITS, word)) => Fate::Unknown,
        // The input of a container may have no end.
        "cat" if !arguments.is_empty() && arguments.iter().all(|file| read(file)) => Fate::EndsWell,
        "sleep" | "etcdctl" => Fate::EndsWell,
        _ if has(BRIEF, name) || piped && has(READERS, name) => Fate::EndsWell,
        _ => Fate::Unknown,
    }
}

/// A time as `sleep` reads it.
fn seconds(time: &str) -> Option<f64> {
    let unit = match time.chars().last()? {
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86400.0,
        _ => 1.0,
    };
    Some(time.trim_end_matches(['s', 'm', 'h', 'd']).parse::<f64>().ok().filter(|number| number.is_finite())? * unit)
}
