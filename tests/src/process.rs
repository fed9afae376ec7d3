//! Real processes: built binaries or others, their output in a file, killed on drop.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use etcd_tls_contract::{liveness::timeout_seconds, names};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::eventually;

/// How much of a log is shown when a test fails.
const SHOWN_LOG_BYTES: usize = 8 * 1024;

/// A child process with its output in a log file. Dropped, it is killed; dropped in a panic, the end of its log is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, its standard output and error appended to `<directory>/<name>.log`.
    pub fn spawn(name: &str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let open = || fs::File::options().create(true).append(true).open(&log).expect("open a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|e| panic!("start {name} ({}): {e}", command.get_program().display()));
        Self { name: name.to_owned(), child, log, status: None }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far, of earlier processes of this name and directory too.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        self.status
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.exited().is_none()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.running() {
            let pid = Pid::from_raw(i32::try_from(self.id()).expect("a pid fits"));
            kill(pid, signal).unwrap_or_else(|e| panic!("{signal} to {}: {e}", self.name));
        }
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// When it does not within `limit`; its log is shown.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(start.elapsed() < limit, "{} still runs after {limit:?}:\n{}", self.name, self.log_end());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM, and waits until it ends.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(limit).await
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits until `needle` is in its log.
    ///
    /// # Panics
    /// When it is not within `limit`.
    pub async fn logged(&self, needle: &str, limit: Duration) {
        eventually(&format!("{}: {needle:?} in its log", self.name), limit, || async {
            if self.log().contains(needle) { Ok(()) } else { Err(self.log_end()) }
        })
        .await;
    }

    /// The end of [`Self::log`], for a message.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let mut from = log.len().saturating_sub(SHOWN_LOG_BYTES);
        while !log.is_char_boundary(from) {
            from += 1;
        }
        log[from..].to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let before = self.exited();
        self.kill();
        if std::thread::panicking() {
            let state = before.map_or_else(|| "was running".to_owned(), |s| s.to_string());
            let _ = writeln!(std::io::stderr(), "--- {} ({state}):\n{}", self.name, self.log_end());
        }
    }
}

/// The program `name` of this workspace (`etcd-tls-webhook`, `etcd-tls-sidecar`, `etcd-tls-probe`), in the profile of the running test.
/// Built first, since `cargo test` builds no other package's binaries; nothing is left to do when `make` has.
/// `ETCD_TLS_BIN_DIR` names a directory of built ones instead.
pub fn binary(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let path = DIRECTORY.get_or_init(directory_of_binaries).join(name);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

fn directory_of_binaries() -> PathBuf {
    if let Some(dir) = env::var_os("ETCD_TLS_BIN_DIR") {
        return dir.into();
    }
    let exe = env::current_exe().expect("this program's path");
    // target/<profile>/deps/<test> or target/<profile>/<program>
    let dir =
        exe.ancestors().find(|d| d.join("deps").is_dir()).expect("this program is in a target directory").to_owned();
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(crate::repository());
        if dir.file_name().is_some_and(|n| n == "release") {
            build.arg("--release");
        }
        let status = build.status().expect("run cargo");
        assert!(status.success(), "cargo build: {status}");
    }
    dir
}

/// Runs the program that is etcd's liveness probe under `reload: probe` from the certificates' directory `dir`, as kubelet
/// does.
///
/// # Errors
/// The message of the failure.
///
/// # Panics
/// When it takes longer than kubelet lets it, which would count as a failure.
pub async fn probe(dir: &Path) -> Result<(), String> {
    let program = dir.join(names::PROBE_DIR).join(names::PROBE_PROGRAM);
    let mut command = tokio::process::Command::new(&program);
    command.arg("--timeout=1").env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let limit = Duration::from_secs(timeout_seconds(1));
    let output = tokio::time::timeout(limit, command.output()).await.expect("the probe's program ends in time");
    let output = output.unwrap_or_else(|e| panic!("start {}: {e}", program.display()));
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => panic!("{}: {}: {}", program.display(), output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// The first program `name` in PATH.
pub fn which(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs a command to its end.
///
/// # Panics
/// When it fails, with its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("start {}: {e}", command.get_program().display()));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}
