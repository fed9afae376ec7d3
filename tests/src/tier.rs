//! The tiers that this machine can run. A test whose tier is missing prints that and how to enable it, past the capture of the
//! test runner, and returns.

use std::{env, fs, io::Write, path::PathBuf};

use crate::{etcd::EtcdBinary, machine_clock::MachineClock, process::which};

/// Prints one line, even under the test runner's capture: the test did not run because its tier is missing, the reason, and how
/// to enable it. `make test` counts the test as skipped.
///
/// # Panics
/// `ETCD_TLS_REQUIRE` names this tier or a higher one: a machine that has the parts must not pass without them.
pub fn skip(tier: u8, reason: &str, enable: &str) {
    let required = required(env::var("ETCD_TLS_REQUIRE").ok().as_deref());
    assert!(
        tier > required,
        "ETCD_TLS_REQUIRE={required}, and tier {tier} cannot run: {reason}; enable with: {enable}"
    );
    say(&format!("tier {tier}"), reason, enable);
}

/// Says the same of a test that no tier has by itself: it takes long, or needs what few machines have.
pub fn skip_special(reason: &str, enable: &str) {
    say("special", reason, enable);
}

/// Whether the long forms run: `ETCD_TLS_SOAK` is set.
pub fn soaking() -> bool {
    env::var_os("ETCD_TLS_SOAK").is_some()
}

/// Whether a test that has only a long form runs. Says that `what` is skipped where it does not.
pub fn soak(what: &str) -> bool {
    if !soaking() {
        skip_special(what, "ETCD_TLS_SOAK=1");
    }
    soaking()
}

fn say(kind: &str, reason: &str, enable: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    // Not eprintln!, which the test runner captures.
    let _ = writeln!(std::io::stderr(), "SKIPPED {kind}: {test}: {reason}; enable with: {enable}");
}

/// The highest tier that must run; 0 where nothing is required.
fn required(value: Option<&str>) -> u8 {
    match value {
        None | Some("") => 0,
        Some(text) => text.parse().unwrap_or_else(|_| panic!("ETCD_TLS_REQUIRE={text}: write 1, 2 or 3")),
    }
}

/// Tier 1's etcd: `ETCD` names the binary (`etcdctl` beside it), else PATH.
pub fn etcd() -> Option<EtcdBinary> {
    let found = EtcdBinary::find();
    if found.is_none() {
        skip(1, "no etcd", "apt-get install etcd-server etcd-client, or ETCD=/path/to/etcd");
    }
    found
}

/// The series of etcd that the tests of revocation and rollovers shall try.
pub const SERIES: [&str; 3] = ["3.4", "3.5", "3.6"];

/// Says which of [`SERIES`] are missing, if any is. A test that calls it counts as skipped then.
///
/// # Panics
/// `ETCD_VERSIONS` names directories, and one of [`SERIES`] is missing.
pub fn every_series_of_etcd() {
    let versions: Vec<String> = EtcdBinary::all().into_iter().map(|etcd| etcd.version).collect();
    let has = |series: &&str| versions.iter().any(|version| version.starts_with(&format!("{series}.")));
    let missing: Vec<&str> = SERIES.into_iter().filter(|series| !has(series)).collect();
    if !missing.is_empty() {
        let named = env::var_os("ETCD_VERSIONS").is_some_and(|named| !named.is_empty());
        assert!(!named, "ETCD_VERSIONS lacks {missing:?}");
        skip_special(
            &format!("no etcd {}: tried with {}", missing.join(", "), versions.join(", ")),
            "ETCD_VERSIONS=<directory with etcd>:<another> make test",
        );
    }
}

/// Tier 2's directory with kube-apiserver, etcd and kubectl: `KUBEBUILDER_ASSETS`, else where envtest puts them.
pub fn kubernetes() -> Option<PathBuf> {
    let dir =
        env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    if dir.join("kube-apiserver").is_file() && dir.join("kubectl").is_file() {
        return Some(dir);
    }
    skip(
        2,
        &format!("no kube-apiserver and kubectl in {}", dir.display()),
        "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make test",
    );
    None
}

/// Tier 3's kubeconfig of a cluster with a node, which `KUBECONFIG` names. These tests install into it and delete from it,
/// so the default kubeconfig is not looked at.
pub fn cluster() -> Option<PathBuf> {
    let kubeconfig = env::var_os("KUBECONFIG").map(PathBuf::from).filter(|p| p.is_file());
    if kubeconfig.is_none() {
        skip(
            3,
            "KUBECONFIG names no cluster",
            "KUBECONFIG=<kubeconfig of a cluster to throw away, which has the images> make test",
        );
    }
    kubeconfig
}

/// Tier 3's kubelet on this machine: its static pod directory, which `ETCD_TLS_TEST_STATIC_PODS` names, and the etcd image
/// that its runtime has.
pub fn static_pods() -> Option<(PathBuf, String)> {
    let directory = env::var_os("ETCD_TLS_TEST_STATIC_PODS").map(PathBuf::from).filter(|d| d.is_dir());
    if directory.is_none() {
        skip(
            3,
            "ETCD_TLS_TEST_STATIC_PODS names no directory",
            "ETCD_TLS_TEST_STATIC_PODS=<staticPodPath of this machine's kubelet> ETCD_TLS_TEST_ETCD_IMAGE=<image> make test, as root",
        );
    }
    Some((directory?, etcd_image()))
}

/// The programs and images of a node that a test starts.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The directory with kubelet.
    pub assets: PathBuf,
    /// The socket of a containerd that has the images.
    pub socket: PathBuf,
    /// The image of etcd.
    pub etcd_image: String,
}

/// Tier 3's parts for a node of a test's own on this machine: root's rights, kubelet, containerd, runc, and the images of another
/// containerd, whose socket `ETCD_TLS_TEST_CONTAINERD` names: those of the static pod's test and that of `etcd-tls-webhook`.
pub fn runtime() -> Option<Runtime> {
    let assets =
        env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let socket = env::var_os("ETCD_TLS_TEST_CONTAINERD").map(PathBuf::from).filter(|path| path.exists());
    let missing = ["containerd", "ctr", "runc", "umount"].into_iter().find(|program| which(program).is_none());
    let reason = match (&socket, missing) {
        (None, _) => "ETCD_TLS_TEST_CONTAINERD names no socket".to_owned(),
        (_, Some(program)) => format!("no {program} in PATH"),
        _ if !assets.join("kubelet").is_file() => format!("no kubelet in {}", assets.display()),
        _ if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        _ => String::new(),
    };
    if !reason.is_empty() {
        skip(
            3,
            &reason,
            "ETCD_TLS_TEST_CONTAINERD=<socket of the containerd of a cluster to throw away, which has the images> \
             ETCD_TLS_TEST_ETCD_IMAGE=<image> make test, as root",
        );
        return None;
    }
    Some(Runtime { assets, socket: socket?, etcd_image: etcd_image() })
}

fn etcd_image() -> String {
    env::var("ETCD_TLS_TEST_ETCD_IMAGE").unwrap_or_else(|_| "localhost/etcd:3.5".to_owned())
}

/// The clock of this whole machine, stepped by the command that `ETCD_TLS_TEST_STEP_CLOCK` holds. Nothing else should run
/// there meanwhile, other tests included.
pub fn machine_clock() -> Option<MachineClock> {
    let command = env::var("ETCD_TLS_TEST_STEP_CLOCK").ok();
    if command.is_none() {
        skip_special(
            "ETCD_TLS_TEST_STEP_CLOCK holds no command that steps the machine's clock",
            "ETCD_TLS_TEST_STEP_CLOCK='step() { date -s \"$1 seconds\"; }; step' and the name of this test alone, as root on a \
             machine to throw away",
        );
    }
    command.map(MachineClock::new)
}

/// The library that gives a program another clock, in tier 1.
pub fn faketime() -> Option<PathBuf> {
    let under = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = under("/usr/lib").chain(["/usr/lib".into(), "/usr/lib64".into()]).find_map(|dir: PathBuf| {
        let library = dir.join("faketime/libfaketimeMT.so.1");
        library.is_file().then_some(library)
    });
    if found.is_none() {
        skip(1, "no libfaketime to step a clock with", "apt-get install libfaketime");
    }
    found
}
