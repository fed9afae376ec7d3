//! etcd's liveness probe under `reload: probe`: the protocol between the sidecar and the program `etcd-tls-probe`, which
//! kubelet runs in etcd's container.
//!
//! ```text
//! <dir>/probe/etcd-tls-probe   the program, in the volume that both containers have     (install)
//! <dir>/probe/liveness         the URL of the user's own probe, if there is one
//! <dir>/probe/sidecar.sock     the sidecar's socket; only containers with the volume reach it
//! ```
//!
//! **Invariant.** The sidecar restarts etcd only by an explicit answer. The program has time limits of its own; kubelet, which
//! counts a late program as failed, waits much longer than those. If the sidecar refuses the connection, hangs, is missing or
//! sends anything else, it is *away*, and the user's own probe decides.
//!
//! Of the standard library alone, and without its name resolution: the program is linked statically, to run in any image.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use etcd_tls_contract::liveness::SIDECAR_LIMIT;

mod check;
pub mod install;

pub use self::check::Check;

/// The sidecar's socket in [`etcd_tls_contract::names::PROBE_DIR`].
pub const SOCKET: &str = "sidecar.sock";
/// The file with the URL of the user's own probe in [`etcd_tls_contract::names::PROBE_DIR`].
pub const LIVENESS: &str = "liveness";

/// Bytes of an answer of the sidecar's; it says less.
const MAX_ANSWER: u64 = 4096;
/// Characters of a reason, of which kubelet makes an event.
const MAX_REASON: usize = 300;

/// Why the liveness probe fails, and so etcd is restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(String);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The sidecar's answer to `etcd-tls-probe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Leave etcd alone.
    Alive,
    /// Restart etcd, for this reason.
    Dead(String),
    /// There is no answer that counts, for this reason.
    Unanswered(String),
}

/// The program's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is done: etcd is left alone.
    Pass,
    /// It is done: etcd is restarted; why.
    Fail(String),
    /// The answer to this is the answer.
    Ask(Check),
}

/// The sidecar is asked, and may ask etcd for so long, if it must.
pub fn request(limit: Duration) -> String {
    format!("check {}\n", limit.as_millis())
}

/// How long a request lets the sidecar ask etcd; `None` where it is no request.
pub fn requested(request: &[u8]) -> Option<Duration> {
    let text = str::from_utf8(request).ok()?.strip_suffix('\n')?;
    text.strip_prefix("check ")?.parse().ok().map(Duration::from_millis)
}

/// The sidecar's answer.
pub fn answer(verdict: &Result<(), Failure>) -> String {
    match verdict {
        Ok(()) => "alive\n".to_owned(),
        Err(reason) => format!("dead {}\n", one_line(&reason.to_string())),
    }
}

impl Liveness {
    /// Reads the sidecar's answer: the whole line or nothing.
    pub fn read(answer: &[u8]) -> Self {
        match str::from_utf8(answer).ok().and_then(|text| text.strip_suffix('\n')) {
            Some("alive") => Self::Alive,
            Some(line) if line.starts_with("dead ") && !line.contains('\n') => Self::Dead(one_line(&line[5..])),
            _ => Self::Unanswered("its answer is none".to_owned()),
        }
    }
}

/// The next step after the sidecar's answer, if the user's own probe is `check`.
pub fn decide(said: &Liveness, check: Check) -> Next {
    match (said, check) {
        (Liveness::Dead(reason), _) => Next::Fail(reason.clone()),
        // It has asked.
        (Liveness::Alive, Check::BySidecar(_)) => Next::Pass,
        (_, Check::None | Check::BySidecar(None)) => Next::Pass,
        // No TLS here: the program can only check whether the port accepts connections.
        (Liveness::Unanswered(_), Check::BySidecar(Some(address))) => Next::Ask(Check::Tcp(address)),
        (_, check) => Next::Ask(check),
    }
}

/// The program's verdict on etcd; `dir` is [`etcd_tls_contract::names::PROBE_DIR`]. Each check has `limit`.
///
/// # Errors
/// Why etcd is to be restarted.
pub fn verdict(dir: &Path, limit: Duration) -> Result<(), Failure> {
    let url = fs::read_to_string(dir.join(LIVENESS)).ok();
    let check = Check::of(url.as_deref().map(str::trim_end));
    let patience = if matches!(check, Check::BySidecar(_)) { SIDECAR_LIMIT + limit } else { SIDECAR_LIMIT };
    let said = sidecar(dir.join(SOCKET), limit, patience);
    match decide(&said, check) {
        Next::Pass => Ok(()),
        Next::Fail(reason) => Err(reason.into()),
        Next::Ask(check) => check.ask(limit).map_err(|error| match &said {
            Liveness::Unanswered(why) => format!("{error} (etcd-tls-sidecar is away: {why})").into(),
            Liveness::Alive | Liveness::Dead(_) => error,
        }),
    }
}

/// Asks the sidecar, for `patience` at most.
fn sidecar(socket: PathBuf, limit: Duration, patience: Duration) -> Liveness {
    // In a thread of its own: connecting to a stopped process's socket may block for ever and has no timeout.
    let (told, tells) = mpsc::channel();
    let asking = thread::Builder::new().spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = told.send(converse(&socket, limit));
    });
    if let Err(error) = asking {
        return Liveness::Unanswered(error.to_string());
    }
    match tells.recv_timeout(patience) {
        Ok(Ok(answer)) => Liveness::read(&answer),
        Ok(Err(error)) => Liveness::Unanswered(error.to_string()),
        Err(_) => Liveness::Unanswered(format!("no answer within {} s", patience.as_secs())),
    }
}

fn converse(socket: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request(limit).as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

/// A text of others as a reason.
fn one_line(text: &str) -> String {
    text.trim().chars().take(MAX_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::liveness::timeout_seconds;

    use super::*;

    #[test]
    fn the_sidecar_is_understood() {
        assert_eq!(requested(request(Duration::from_secs(5)).as_bytes()), Some(Duration::from_secs(5)));
        for request in ["", "check 5", "check \n", "check -1\n", "check 5\n\n", "GET / HTTP/1.1\r\n"] {
            assert_eq!(requested(request.as_bytes()), None, "{request:?}");
        }
        assert_eq!(Liveness::read(answer(&Ok(())).as_bytes()), Liveness::Alive);
        let why = "the peer bundle\nhas changed\n";
        assert_eq!(
            Liveness::read(answer(&Err(why.to_owned().into())).as_bytes()),
            Liveness::Dead("the peer bundle has changed".to_owned())
        );
        let long = answer(&Err("x".repeat(100_000).into()));
        assert!(matches!(Liveness::read(long.as_bytes()), Liveness::Dead(why) if why.len() == MAX_REASON));
    }

    #[test]
    fn an_incomplete_answer_is_no_answer() {
        let others: [&[u8]; 8] =
            [b"", b"alive", b"dead", b"dead \xff\n", b"dead cut", b"no\n", b"dead a\nb\n", b"HTTP/1.1 503 x\r\n\r\n"];
        for other in others {
            assert!(matches!(Liveness::read(other), Liveness::Unanswered(_)), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn the_sidecars_word_and_the_users_probe_make_the_verdict() {
        let address = "127.0.0.1:2379".parse().unwrap();
        let tcp = Check::Tcp(address);
        let (dead, away) = (Liveness::Dead("due".to_owned()), Liveness::Unanswered("refused".to_owned()));
        for check in [Check::None, tcp.clone(), Check::BySidecar(Some(address)), Check::BySidecar(None)] {
            assert_eq!(decide(&dead, check), Next::Fail("due".to_owned()));
        }
        for (said, check, next) in [
            (&Liveness::Alive, Check::None, Next::Pass),
            (&Liveness::Alive, tcp.clone(), Next::Ask(tcp.clone())),
            (&Liveness::Alive, Check::BySidecar(Some(address)), Next::Pass),
            (&away, Check::None, Next::Pass),
            (&away, tcp.clone(), Next::Ask(tcp.clone())),
            (&away, Check::BySidecar(Some(address)), Next::Ask(tcp)),
            (&away, Check::BySidecar(None), Next::Pass),
        ] {
            assert_eq!(decide(said, check.clone()), next, "{said:?} {check:?}");
        }
    }

    #[test]
    fn kubelet_waits_for_longer_than_the_program_does() {
        // Two seconds for the sidecar, twice the user's own timeout, and fifteen to start the program.
        assert_eq!([1, 5, 60].map(timeout_seconds), [19, 27, 137]);
        assert_eq!(timeout_seconds(u64::MAX), i32::MAX as u64);
    }
}
