//! Finds etcd among the processes that this one sees, by what it is: its name, its user, the ports it listens on (on a
//! host also its systemd unit or pid file). Never by a process id that was noted down: ids are given out again, so a
//! process here is an id *and* a start time, and both are looked at once more before a signal goes out.
//!
//! Reads `/proc` alone. Names and start times are readable for every user; a process's sockets only for its own user, which
//! is also the one who may signal it.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Clock ticks per second in `/proc/<pid>/stat`: the value of every Linux, used if the system does not state one.
const TICKS: u64 = 100;

/// Selects the process of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSelector {
    /// The program's name, the last part of its path; `None`: any process that listens there.
    pub program: Option<String>,
    /// Where it listens; any of them will do. Empty where nothing is known.
    pub listeners: Vec<Listener>,
    /// Where else to look than at the name.
    pub place: FoundBy,
}

/// A TCP port that a process listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// One address, reached through this one or all of them; `None`: any.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// The way in which the process is found among others of its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FoundBy {
    /// By its ports alone: a pod's shared process namespace.
    #[default]
    Anywhere,
    /// It is in this systemd unit (`etcd.service`).
    Unit(String),
    /// Its id is in this file; it must be of that name all the same.
    PidFile(PathBuf),
}

/// A process: an id, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id in this process namespace.
    pub pid: i32,
    /// When it started, in clock ticks since the system did.
    pub start_ticks: u64,
}

/// Why there is no process to signal.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// None is there: it is starting, the process namespace is not shared, or what was said of its place is wrong.
    #[error("no process {program} is visible{}", whereabouts(place))]
    Absent {
        /// The name looked for.
        program: String,
        /// Where it was looked for.
        place: FoundBy,
    },
    /// Several, and nothing tells them apart.
    #[error("{count} processes {program} are visible and their ports do not tell which is meant; none is signalled")]
    Ambiguous {
        /// The name looked for.
        program: String,
        /// How many.
        count: usize,
    },
    /// It is gone, or its id has passed on to another process.
    #[error("process {pid} has ended")]
    Ended {
        /// Its id.
        pid: i32,
    },
    /// It belongs to another user.
    #[error("process {pid} cannot be signalled: the sidecar must run as etcd's user")]
    Denied {
        /// Its id.
        pid: i32,
    },
    /// `/proc` cannot be read.
    #[error("{path}: {source}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The known facts of one process of the right name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    process: Process,
    /// True if it holds a listening socket of the wanted ports; `None` where that cannot be seen.
    listens: Option<bool>,
}

/// Possible reasons why no process was found.
fn whereabouts(place: &FoundBy) -> String {
    match place {
        FoundBy::Anywhere => {
            ": is it starting, or does the pod not share its process namespace (shareProcessNamespace)?".to_owned()
        }
        FoundBy::Unit(unit) => {
            format!(" in unit {unit} that listens at etcd's URLs: is it starting, or is --etcd-unit another's?")
        }
        FoundBy::PidFile(file) => format!(
            " of the id in {} that listens at etcd's URLs: is it starting, or is the file old, or another's?",
            file.display()
        ),
    }
}

/// Finds the one process that is `wanted`.
///
/// # Errors
/// None, or more than one.
pub fn find(wanted: &ProcessSelector) -> Result<Process, ProcessError> {
    find_in(Path::new("/proc"), wanted)
}

fn find_in(proc: &Path, wanted: &ProcessSelector) -> Result<Process, ProcessError> {
    let failed = |source| ProcessError::Proc { path: proc.to_owned(), source };
    let sockets = listening(proc, &wanted.listeners);
    let listed = match &wanted.place {
        FoundBy::PidFile(path) => {
            let text = fs::read_to_string(path).map_err(|source| ProcessError::Proc { path: path.clone(), source })?;
            Some(text.trim().to_owned())
        }
        FoundBy::Anywhere | FoundBy::Unit(_) => None,
    };
    let mut candidates = Vec::new();
    for entry in fs::read_dir(proc).map_err(failed)? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if listed.as_deref().is_some_and(|l| l != pid.to_string()) {
            continue;
        }
        let dir = entry.path();
        if wanted.program.as_ref().is_some_and(|p| !is_program(&dir, p)) || !in_place(&dir, &wanted.place) {
            continue;
        }
        // A process that ends while it is looked at is none.
        let Some(start_ticks) = start_ticks(&dir) else { continue };
        let listens = if wanted.listeners.is_empty() { None } else { holds(&dir, &sockets) };
        // Without a name, a process is what it listens on.
        if wanted.program.is_none() && wanted.place == FoundBy::Anywhere && listens != Some(true) {
            continue;
        }
        candidates.push(Candidate { process: Process { pid, start_ticks }, listens });
    }
    choose(&candidates, wanted)
}

/// One that listens beats those of which it is not known; one that does not listen, while its sockets can be seen, is
/// another etcd, or this one before it listens.
fn choose(candidates: &[Candidate], wanted: &ProcessSelector) -> Result<Process, ProcessError> {
    let of = |listens| candidates.iter().filter(move |c| c.listens == listens).collect::<Vec<_>>();
    let program = wanted.program.as_deref().unwrap_or("that listens there").to_owned();
    match (of(Some(true)).as_slice(), of(None).as_slice()) {
        ([one], _) | ([], [one]) => Ok(one.process),
        ([], []) => Err(ProcessError::Absent { program, place: wanted.place.clone() }),
        ([], many) | (many, _) => Err(ProcessError::Ambiguous { program, count: many.len() }),
    }
}

impl Process {
    /// Sends `signal`, if this is still the same process.
    ///
    /// # Errors
    /// It has ended, or belongs to another user.
    pub fn signal(self, signal: Signal) -> Result<(), ProcessError> {
        if !self.runs() {
            return Err(ProcessError::Ended { pid: self.pid });
        }
        kill(Pid::from_raw(self.pid), signal).map_err(|e| match e {
            Errno::ESRCH => ProcessError::Ended { pid: self.pid },
            Errno::EPERM => ProcessError::Denied { pid: self.pid },
            other => ProcessError::Proc { path: PathBuf::from("kill"), source: other.into() },
        })
    }

    /// True if it still runs; a zombie does not.
    pub fn runs(self) -> bool {
        let dir = PathBuf::from(format!("/proc/{}", self.pid));
        start_ticks(&dir) == Some(self.start_ticks)
    }

    /// When it started, since the system did; a stepped clock does not move it.
    pub fn started(self) -> Duration {
        let hz = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|t| u64::try_from(t).ok()).unwrap_or(TICKS);
        Duration::from_millis(self.start_ticks.saturating_mul(1000) / hz.max(1))
    }
}

/// How long the system has been up, sleep included.
///
/// # Errors
/// `/proc` cannot be read.
pub fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|s| s.parse().ok());
    seconds
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/uptime"))
}

/// When the system started, by its present clock, in seconds since 1970.
///
/// # Errors
/// `/proc` cannot be read.
pub fn boot_time() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    text.lines()
        .find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat"))
}

/// By the executable where it may be read, else by the first argument, else by the name that the kernel keeps.
fn is_program(dir: &Path, program: &str) -> bool {
    let last = |path: &Path| path.file_name().map(|n| n.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
    if let Ok(exe) = fs::read_link(dir.join("exe")) {
        return last(&exe).as_deref() == Some(program);
    }
    let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let cmdline = fs::read(dir.join("cmdline")).unwrap_or_default();
    let first = cmdline.split(|b| *b == 0).next().unwrap_or_default();
    let first = last(Path::new(String::from_utf8_lossy(first).as_ref()));
    // The kernel keeps 15 bytes.
    let name: String = program.chars().take(15).collect();
    comm.trim_end() == name && first.as_deref() == Some(program)
}

fn in_place(dir: &Path, place: &FoundBy) -> bool {
    match place {
        FoundBy::Anywhere | FoundBy::PidFile(_) => true,
        FoundBy::Unit(unit) => fs::read_to_string(dir.join("cgroup"))
            .unwrap_or_default()
            .lines()
            .any(|l| l.rsplit(':').next().is_some_and(|path| path.split('/').any(|part| part == unit))),
    }
}

/// Field 22 of `stat`, counted after the name, which may hold spaces and parentheses; `None` for a zombie.
fn start_ticks(dir: &Path) -> Option<u64> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Inodes of the TCP sockets that listen at one of `listeners`, in this network namespace.
fn listening(proc: &Path, listeners: &[Listener]) -> HashSet<u64> {
    const LISTEN: &str = "0A";
    let mut inodes = HashSet::new();
    for table in ["net/tcp", "net/tcp6"] {
        let text = fs::read_to_string(proc.join("self").join(table)).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields.as_slice() else { continue };
            let Some((address, port)) = socket_address(local) else { continue };
            if listeners.iter().any(|l| l.port == port && l.address.is_none_or(|a| reaches(a, address))) {
                inodes.extend(inode.parse::<u64>());
            }
        }
    }
    inodes
}

/// `0100007F:094B`: an address in words of the machine's own byte order, and a port.
fn socket_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..address.len())
        .step_by(8)
        .map(|at| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [v4] => IpAddr::from(*v4),
        [a, b, c, d] => {
            let octets: [u8; 16] = [*a, *b, *c, *d].concat().try_into().ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// True if a connection to `wanted` arrives at a socket bound to `bound`. Go binds `0.0.0.0` as `::`.
fn reaches(wanted: IpAddr, bound: IpAddr) -> bool {
    bound.is_unspecified() || bound == wanted.to_canonical()
}

/// True if a process holds one of `sockets`; `None` where its descriptors may not be seen: their numbers may be listed by
/// its user, what they are only by who has its groups and capabilities, too.
fn holds(dir: &Path, sockets: &HashSet<u64>) -> Option<bool> {
    let mut unseen = false;
    for entry in fs::read_dir(dir.join("fd")).ok()? {
        // The link's target is `socket:[inode]`; following it gives the socket itself.
        let Ok(entry) = entry else { continue };
        match fs::metadata(entry.path()) {
            Ok(descriptor) if sockets.contains(&descriptor.ino()) => return Some(true),
            Ok(_) => {}
            // A descriptor that was closed meanwhile is none.
            Err(error) => unseen |= error.kind() != io::ErrorKind::NotFound,
        }
    }
    (!unseen).then_some(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::TcpListener, os::unix::process::CommandExt, process::Command};

    use super::*;

    fn own_name() -> String {
        std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned()
    }

    fn wanted(program: &str, ports: &[u16]) -> ProcessSelector {
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let listeners = ports.iter().map(|port| Listener { address, port: *port }).collect();
        ProcessSelector { program: Some(program.to_owned()), listeners, place: FoundBy::Anywhere }
    }

    #[test]
    fn a_process_is_found_by_name_and_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = find(&wanted(&own_name(), &[port])).unwrap();
        assert_eq!(found.pid, i32::try_from(std::process::id()).unwrap());
        assert!(found.runs() && found.started() <= uptime().unwrap());
        assert_eq!(find(&ProcessSelector { program: None, ..wanted("", &[port]) }).unwrap(), found);
        // On that port of another address.
        let elsewhere = Listener { address: Some(IpAddr::from([127, 0, 0, 9])), port };
        let another = ProcessSelector { listeners: vec![elsewhere], ..wanted(&own_name(), &[]) };
        assert!(matches!(find(&another), Err(ProcessError::Absent { .. })));
        // Of that name, but not on that port.
        drop(listener);
        assert!(matches!(find(&wanted(&own_name(), &[port])), Err(ProcessError::Absent { .. })));
        assert!(matches!(find(&wanted("no-such-program", &[])), Err(ProcessError::Absent { .. })));
    }

    #[test]
    fn a_process_that_only_calls_itself_so_is_not_taken() {
        let mut child = Command::new("sleep").arg0("etcd-look-alike").arg("60").spawn().unwrap();
        assert!(matches!(find(&wanted("etcd-look-alike", &[])), Err(ProcessError::Absent { .. })));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_pid_that_passed_on_is_not_signalled() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ticks = start_ticks(&PathBuf::from(format!("/proc/{pid}"))).unwrap();
        let successor = Process { pid, start_ticks: ticks + 1 };
        assert!(matches!(successor.signal(Signal::SIGKILL), Err(ProcessError::Ended { .. })));
        assert!(child.try_wait().unwrap().is_none());
        Process { pid, start_ticks: ticks }.signal(Signal::SIGTERM).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!Process { pid, start_ticks: ticks }.runs());
    }

    #[test]
    fn a_pid_file_and_a_unit_narrow_the_search() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-pid-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("etcd.pid");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&file, format!("{}\n", child.id())).unwrap();
        let by_file = ProcessSelector { place: FoundBy::PidFile(file.clone()), ..wanted("sleep", &[]) };
        assert_eq!(find(&by_file).unwrap().pid, i32::try_from(child.id()).unwrap());
        let another = ProcessSelector { program: Some("etcd".into()), ..by_file };
        assert!(matches!(find(&another), Err(ProcessError::Absent { .. })));
        // A file that was left behind, and names another etcd by now: one that listens elsewhere.
        let old = ProcessSelector { place: FoundBy::PidFile(file.clone()), ..wanted("sleep", &[1]) };
        let error = find(&old).unwrap_err();
        assert!(matches!(error, ProcessError::Absent { .. }) && error.to_string().contains("etcd.pid"), "{error}");
        let unit = ProcessSelector { place: FoundBy::Unit("no-such-unit.service".into()), ..wanted("sleep", &[]) };
        assert!(matches!(find(&unit), Err(ProcessError::Absent { .. })));
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn descriptors_that_are_listed_and_not_shown_say_nothing() {
        let dir = std::env::temp_dir().join(format!("etcd-tls-fd-{}", std::process::id()));
        let fd = dir.join("fd");
        fs::create_dir_all(&fd).unwrap();
        fs::write(fd.join("0"), "").unwrap();
        let inode = fs::metadata(fd.join("0")).unwrap().ino();
        assert_eq!(holds(&dir, &HashSet::from([inode])), Some(true));
        assert_eq!(holds(&dir, &HashSet::new()), Some(false));
        std::os::unix::fs::symlink("gone", fd.join("1")).unwrap();
        assert_eq!(holds(&dir, &HashSet::new()), Some(false), "closed meanwhile");
        // In /proc this would be an error of permission, which root never gets.
        std::os::unix::fs::symlink("2", fd.join("2")).unwrap();
        assert_eq!(holds(&dir, &HashSet::new()), None);
        assert_eq!(holds(&dir, &HashSet::from([inode])), Some(true));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let little = cfg!(target_endian = "little");
        let v4 = if little { "0100007F:094B" } else { "7F000001:094B" };
        assert_eq!(socket_address(v4), Some((IpAddr::from([127, 0, 0, 1]), 2379)));
        let any = socket_address("00000000000000000000000000000000:094B").unwrap();
        assert!(reaches(IpAddr::from([10, 0, 0, 1]), any.0) && any.1 == 2379);
        let mapped =
            if little { "0000000000000000FFFF00000100007F:094B" } else { "00000000000000000000FFFF7F000001:094B" };
        assert_eq!(socket_address(mapped).unwrap().0, IpAddr::from([127, 0, 0, 1]));
        for bad in ["", "0100007F", "01:1", "0100007F:", "zzzzzzzz:1", "0100007F0100007F:1"] {
            assert_eq!(socket_address(bad), None, "{bad}");
        }
    }

    #[test]
    fn one_that_listens_beats_the_unseen_and_doubt_signals_nobody() {
        let candidate = |pid, listens| Candidate { process: Process { pid, start_ticks: 1 }, listens };
        let chosen = |all: &[Candidate]| choose(all, &wanted("etcd", &[])).ok().map(|p| p.pid);
        let (yes, no, unseen) = (Some(true), Some(false), None);
        for (all, expected) in [
            (vec![], None),
            (vec![candidate(1, unseen)], Some(1)),
            (vec![candidate(1, no)], None),
            (vec![candidate(1, yes)], Some(1)),
            (vec![candidate(1, no), candidate(2, yes), candidate(3, unseen)], Some(2)),
            (vec![candidate(1, no), candidate(2, unseen)], Some(2)),
            (vec![candidate(1, unseen), candidate(2, unseen)], None),
            (vec![candidate(1, yes), candidate(2, yes)], None),
        ] {
            assert_eq!(chosen(&all), expected, "{all:?}");
        }
    }
}
