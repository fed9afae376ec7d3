//! SIGINT and SIGTERM end a command of an operator's at once, whatever it waits for, and leave the terminal as it was.

use std::{
    io::{Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tests::{
    process::{Process, binary, which},
    temp::TempDir,
};
use tokio::time::sleep;

use super::{kubeconfig, labelled, serve, status};

const LIMIT: Duration = Duration::from_secs(90);

/// Commands that go on until they are told to end, and those that wait for an answer.
const COMMANDS: [&[&str]; 5] = [
    &["status", "--watch", "--interval=1s"],
    &["rollover", "prod/etcd", "--domain=peer", "--status", "--watch"],
    &["renew", "prod/etcd-0", "--wait", "--timeout=1h"],
    &["revoke", "prod/etcd", "--serial=4f0a", "--at-once", "--timeout=1h"],
    &["check"],
];

/// What the API server does, from a request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Answers,
    Hangs,
    Refuses,
}

/// An API server whose first `good` answers are good, and the number of requests to it.
fn server(good: usize, then: Server) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let url = serve(move |method, path| {
        let before = counted.fetch_add(1, Ordering::SeqCst);
        match then {
            Server::Hangs if before >= good => loop {
                std::thread::park();
            },
            Server::Refuses if before >= good => status(503),
            _ if path.contains("/configmaps/") => trust_map(),
            _ => labelled(method, path),
        }
    });
    (url, count)
}

/// A trust ConfigMap whose rollover goes on.
fn trust_map() -> (u16, String) {
    let report = json!({"phase": "published", "waiting": ["pod prod/etcd-1"]}).to_string();
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"peer.crt": "x"},
        "metadata": {"name": "etcd-tls-trust-etcd", "namespace": "prod", "uid": "u", "resourceVersion": "1", "annotations": {
            "etcd-tls.dev/rollover-peer": report,
        }},
    });
    (200, map.to_string())
}

/// A program with the signals' default effects, however the tests are run: a shell has its background jobs ignore SIGINT.
fn with_default_signals(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM", program]).env_remove("COLUMNS").env_remove("NO_COLOR");
    command.env("TERM", "xterm").stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_a_command_at_once_whatever_it_waits_for() {
    let dir = TempDir::new("interrupted");
    let program = binary("etcd-tls-webhook").display().to_string();
    for (n, command) in COMMANDS.iter().enumerate() {
        // The first answer is needed by those that ask again.
        for (then, good) in [(Server::Hangs, 0), (Server::Hangs, 2), (Server::Answers, 0), (Server::Refuses, 2)] {
            for signal in [Signal::SIGINT, Signal::SIGTERM] {
                let what = format!("{command:?}, {then:?} after {good}, {signal}");
                let (url, requests) = server(good, then);
                let config = kubeconfig(&dir, "kubeconfig", &url);
                let mut started = with_default_signals(&program);
                let name = format!("{n}-{then:?}-{good}-{signal}");
                let mut process = Process::spawn(&name, started.args(*command).env("KUBECONFIG", &config), dir.path());
                let began = Instant::now();
                while requests.load(Ordering::SeqCst) <= good && process.running() {
                    assert!(began.elapsed() < LIMIT, "{what}: {requests:?} requests: {}", process.log());
                    sleep(Duration::from_millis(10)).await;
                }
                process.signal(signal);
                let ended = process.wait(LIMIT).await;
                // One that does not go on may be done, or may have given up.
                let goes_on =
                    command.contains(&"--watch") || then == Server::Hangs && requests.load(Ordering::SeqCst) > good;
                let by_itself = !goes_on && ended.code().is_some();
                assert!(by_itself || ended.signal() == Some(signal as i32), "{what}: {ended:?}: {}", process.log());
            }
        }
    }
}

/// Ctrl-C on a terminal: 130 for the shell, and the terminal's modes, colour and cursor as they were.
#[test]
fn ctrl_c_leaves_the_terminal_as_it_was() {
    if which("script").is_none() {
        return tests::tier::skip_special("no script", "apt-get install bsdutils");
    }
    for then in [Server::Answers, Server::Hangs] {
        let dir = TempDir::new("ctrl-c");
        // One update of `status` is four requests: two of them have been shown.
        let (url, requests) = server(if then == Server::Hangs { 10 } else { 0 }, then);
        let line = format!(
            "trap : INT; echo before $(stty -g); {} status --watch --interval=1s; echo ended $?; echo after $(stty -g)",
            binary("etcd-tls-webhook").display()
        );
        let mut script = with_default_signals("script");
        script.args(["-qec", &line, "/dev/null"]).env("KUBECONFIG", kubeconfig(&dir, "kubeconfig", &url));
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run script");
        let (mut keys, mut screen) = (script.stdin.take().expect("keys"), script.stdout.take().expect("a screen"));
        let (mut shown, mut part) = (String::new(), [0; 4096]);
        // A program that does not end would be waited for without end.
        let (over, id) = (Arc::new(AtomicBool::new(false)), Pid::from_raw(script.id().try_into().expect("a pid fits")));
        let watched = Arc::clone(&over);
        let watchdog = std::thread::spawn(move || {
            let began = Instant::now();
            while !watched.load(Ordering::SeqCst) {
                if began.elapsed() > LIMIT {
                    return kill(id, Signal::SIGKILL).expect("end script");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let mut read = |shown: &mut String| {
            let n = screen.read(&mut part).expect("read the screen");
            shown.push_str(&String::from_utf8_lossy(&part[..n]));
            n
        };
        while shown.matches("\u{1b}[2J").count() < 2 && read(&mut shown) > 0 {}
        if then == Server::Hangs {
            while requests.load(Ordering::SeqCst) <= 10 && !watchdog.is_finished() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        keys.write_all(b"\x03").and_then(|()| keys.flush()).expect("press Ctrl-C");
        while read(&mut shown) > 0 {}
        drop(keys);
        over.store(true, Ordering::SeqCst);
        watchdog.join().expect("the watchdog");
        script.wait().expect("wait for script");
        let after = |word: &str| {
            let (_, rest) = shown.rsplit_once(&format!("{word} ")).unwrap_or_else(|| panic!("no {word}: {shown:?}"));
            rest.lines().next().unwrap_or_default().trim().to_owned()
        };
        assert_eq!(after("ended"), "130", "{then:?}: {shown:?}");
        assert_eq!(after("after"), after("before"), "{then:?}: {shown:?}");
        let colour = shown.rsplit("\u{1b}[").find_map(|rest| {
            let (code, _) = rest.split_once('m')?;
            code.bytes().all(|b| b.is_ascii_digit() || b == b';').then(|| code.to_owned())
        });
        assert!(colour.is_none_or(|code| code == "0"), "{then:?}: {shown:?}");
        // Another screen, or a cursor that is not shown.
        assert!(!shown.contains("\u{1b}[?"), "{then:?}: {shown:?}");
    }
}
