//! The programs of a release: compiled to the same bytes in any folder, for both architectures, with no name of a folder in them.
//!
//! The short form compiles a small workspace by `dist/build.sh`: its packages and programs have the names of ours. The long form
//! makes a release of this workspace, twice. Both compile with the profile `dev`, so the profiles of releases are not compared here.
//! `ETCD_TLS_TEST_ARM64_BIN_DIR` names a folder that `ARCH=arm64 dist/build.sh` has filled,
//! where it is not compiled anew.

use std::{
    env, fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use etcd_tls_contract::{certificate::Chain, role::Role};
use serde_json::Value;
use tests::{
    process::{binary, run, which},
    repository,
    signer::{BOOTSTRAP, Signer},
    temp::TempDir,
    tier,
};

use super::{files, image, json_of, tools};

const PROGRAMS: [&str; 3] = ["etcd-tls-webhook", "etcd-tls-sidecar", "etcd-tls-probe"];
/// The little-endian machine number in an ELF header, of this architecture of Rust.
const MACHINES: [(&str, u16); 2] = [("x86_64", 62), ("aarch64", 183)];

/// A program that holds the places where a compiler writes the name of a folder: a panic, a file that a build script made, lines for
/// debuggers.
const MAIN: &str = r#"
fn made(x: u32) -> u32 { include!(concat!(env!("OUT_DIR"), "/made.rs")) }
fn main() {
    println!("{} {}", std::env::args().count(), made(1));
    if std::env::args().count() > 9 { panic!("{}", std::fs::read("/").unwrap_err()); }
}
"#;
const SCRIPT: &str = r#"
fn main() {
    // What crates of C sources read: flags of ours, and none of the environment's.
    for (name, value) in std::env::vars_os() {
        let value = value.to_string_lossy();
        assert!(!value.contains("of-the-environment"), "{name:?} is {value}");
    }
    let ours = format!("CFLAGS_{}", std::env::var("TARGET").unwrap().replace('-', "_"));
    assert!(std::env::var(ours).unwrap().contains("-ffile-prefix-map="));
    let path = std::path::Path::new(&std::env::var("OUT_DIR").unwrap()).join("made.rs");
    std::fs::write(path, "{ assert!(x > 0, \"{}\", file!()); x + 41 }").unwrap();
}
"#;

/// A workspace in `folder` with our release scripts and three small programs of the names of ours.
fn workspace(folder: &Path) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write");
    };
    write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"webhook\", \"sidecar\"]\n");
    let mut lock = "version = 4\n".to_owned();
    for package in ["etcd-tls-sidecar", "etcd-tls-webhook"] {
        lock += &format!("\n[[package]]\nname = \"{package}\"\nversion = \"0.1.0\"\n");
        let name = package.trim_start_matches("etcd-tls-");
        let manifest = format!("[package]\nname = \"{package}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        write(&format!("{name}/Cargo.toml"), &manifest);
        write(&format!("{name}/build.rs"), SCRIPT);
        write(&format!("{name}/src/main.rs"), MAIN);
    }
    write("sidecar/src/bin/etcd-tls-probe.rs", MAIN);
    write("Cargo.lock", &lock);
    run(Command::new("cp").arg("-r").arg(repository().join("dist")).arg(folder));
    run(Command::new("cp").arg(repository().join("rust-toolchain.toml")).arg(folder));
}

/// The programs that `dist/build.sh` compiles in `folder`, quickly.
fn build(folder: &Path, target: Option<&Path>, architecture: &str) -> PathBuf {
    let programs = folder.join(format!("programs-{architecture}"));
    let mut command = Command::new(folder.join("dist/build.sh"));
    command.arg(&programs).env("ARCH", architecture).env("DIST_PROFILE", "dev").env_remove("CARGO");
    // None of them is taken.
    let depth = programs.components().count();
    command.env("RUSTFLAGS", format!("--cfg=of_{depth}")).env("CARGO_INCREMENTAL", "1");
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", (depth % 4).to_string());
    let cpu = if architecture == "arm64" { "aarch64" } else { "x86_64" };
    for name in ["CFLAGS", "HOST_CFLAGS", "TARGET_CFLAGS", "CPPFLAGS", "CXXFLAGS", "ASFLAGS", "AWS_LC_SYS_CFLAGS"] {
        command.env(name, "-Dof-the-environment");
    }
    for target in [format!("{cpu}-unknown-linux-gnu"), format!("{cpu}_unknown_linux_gnu")] {
        command.env(format!("CFLAGS_{target}"), "-Dof-the-environment\n=1");
    }
    match target {
        Some(target) => command.env("CARGO_TARGET_DIR", target),
        None => command.env_remove("CARGO_TARGET_DIR"),
    };
    run(&mut command);
    programs
}

/// Why this machine cannot compile and run programs of `architecture`.
fn missing(architecture: &str) -> Option<String> {
    let cpu = if architecture == "arm64" { "aarch64" } else { "x86_64" };
    if which("cargo").is_none() {
        return Some("no cargo in PATH".to_owned());
    }
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(repository()));
    let library = Path::new(sysroot.trim()).join(format!("lib/rustlib/{cpu}-unknown-linux-gnu/lib"));
    let mut missing: Vec<_> = [library].iter().filter(|path| !path.is_dir()).map(|p| p.display().to_string()).collect();
    if cpu != env::consts::ARCH {
        let tools = [format!("{cpu}-linux-gnu-gcc"), format!("qemu-{cpu}-static")];
        missing.extend(tools.into_iter().filter(|tool| which(tool).is_none()));
    }
    // Its C library, which the compiler may lack.
    let compiler = if cpu == env::consts::ARCH { "cc".to_owned() } else { format!("{cpu}-linux-gnu-gcc") };
    let file = |compiler| run(Command::new(compiler).arg("-print-file-name=libc.a"));
    if which(&compiler).is_none_or(|compiler| !Path::new(file(compiler).trim()).is_absolute()) {
        missing.push(format!("libc.a of {compiler}"));
    }
    (!missing.is_empty()).then(|| format!("no {}", missing.join(", ")))
}

/// The other architecture than this machine's, where it can be compiled for and run here.
fn other() -> Option<&'static str> {
    let architecture = if env::consts::ARCH == "aarch64" { "amd64" } else { "arm64" };
    let missing = missing(architecture);
    if let Some(missing) = &missing {
        let enable = "rustup target add aarch64-unknown-linux-gnu; apt-get install gcc-aarch64-linux-gnu \
                      libc6-dev-arm64-cross qemu-user-static";
        tier::skip_special(missing, enable);
    }
    missing.is_none().then_some(architecture)
}

/// A static program of the architecture that holds none of the folders.
fn shipped(program: &Path, architecture: &str, folders: &[&Path]) {
    let bytes = fs::read(program).expect("a program");
    let cpu = if architecture == "arm64" { "aarch64" } else { "x86_64" };
    let machine = MACHINES.iter().find(|(name, _)| *name == cpu).expect("a known architecture").1;
    assert_eq!(bytes[..4], *b"\x7fELF");
    assert_eq!(u16::from_le_bytes([bytes[18], bytes[19]]), machine, "{}", program.display());
    // PT_INTERP names the loader of shared libraries.
    let at = |offset: usize, length: usize| {
        bytes[offset..offset + length].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (headers, size, count) = (at(32, 8), at(54, 2), at(56, 2));
    assert!(count > 2 && (0..count).all(|i| at(headers + i * size, 4) != 3), "{} is not static", program.display());
    for folder in folders {
        let name = folder.display().to_string();
        assert!(name.len() > 3, "{name}");
        let found = bytes.windows(name.len()).position(|part| part == name.as_bytes());
        if let Some(at) = found {
            let around = &bytes[at..bytes.len().min(at + 120)];
            panic!("{} holds {}", program.display(), String::from_utf8_lossy(around));
        }
    }
}

/// The folders of this machine whose names a compiler could write.
fn folders() -> Vec<PathBuf> {
    // Not the home directory: injection knows `/root` and `/home` by name.
    let of_home = |name: &str| env::var_os("HOME").map(|home| PathBuf::from(home).join(name));
    let of_rust = [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")];
    let of_rust = of_rust.map(|(variable, name)| env::var_os(variable).map(PathBuf::from).or_else(|| of_home(name)));
    let deps = env::current_exe().ok().and_then(|program| program.ancestors().nth(3).map(Path::to_path_buf));
    // Each with the slash after it.
    let known = of_rust.into_iter().flatten().chain(deps);
    let mut all: Vec<_> = known.chain([repository()]).map(|folder| folder.join("")).collect();
    all.push(env::temp_dir().join("etcd-tls-"));
    all
}

fn check(programs: &Path, architecture: &str) {
    let folders = folders();
    let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    assert_eq!(files(programs).len(), PROGRAMS.len());
    for name in PROGRAMS {
        shipped(&programs.join(name), architecture, &folders);
    }
}

fn same(first: &Path, second: &Path) {
    let (first, second) = (files(first), files(second));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{name} differs");
    }
}

#[test]
fn programs_are_compiled_to_the_same_bytes_in_any_folder() {
    let here = if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    if let Some(missing) = missing(here) {
        return tier::skip_special(&missing, "https://rustup.rs");
    }
    if !tools() {
        return;
    }
    let directory = TempDir::new("folders");
    let (first, second) = (directory.dir("first"), directory.dir("another/further"));
    for folder in [&first, &second] {
        workspace(folder);
    }
    let target = directory.dir("target");
    let (one, two) = (build(&first, None, here), build(&second, Some(&target), here));
    same(&one, &two);
    check(&one, here);
    // The programs hold the names in whose place the folders' came.
    let bytes = fs::read(one.join("etcd-tls-webhook")).expect("a program");
    assert!(bytes.windows(8).any(|part| part == b"/target/"), "the place of a file that was made is not in it");
    assert_eq!(run(&mut Command::new(one.join("etcd-tls-probe"))), "1 42\n");

    let Some(other) = other() else { return };
    let (one, two) = (build(&first, None, other), build(&second, Some(&target), other));
    same(&one, &two);
    check(&one, other);
    let qemu = format!("qemu-{}-static", if other == "arm64" { "aarch64" } else { "x86_64" });
    assert_eq!(run(Command::new(qemu).arg(one.join("etcd-tls-probe"))), "1 42\n");
}

/// Runs `dist/build.sh` where it refuses to compile: the words that it ends with. It has made no folder of programs.
fn refused(script: &Path, environment: &[(&str, &Path)]) -> String {
    let directory = TempDir::new("refused");
    let mut command = Command::new(script);
    command.arg("programs").current_dir(directory.path()).envs(environment.iter().copied()).env_remove("CARGO");
    let output = command.env("DIST_PROFILE", "dev").output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(!directory.join("programs").exists(), "{said}");
    said
}

#[test]
fn an_architecture_that_is_not_released_is_refused() {
    let said = refused(&repository().join("dist/build.sh"), &[("ARCH", Path::new("riscv64"))]);
    assert!(said.contains("ARCH is riscv64: amd64 or arm64"), "{said}");
}

/// Flags of C compilers are split at white space, so that the name of such a folder would stay in the programs or end the build.
#[test]
fn a_machine_that_cannot_compile_a_release_is_told_why() {
    let here = if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    if let Some(missing) = missing(here) {
        return tier::skip_special(&missing, "https://rustup.rs");
    }
    if !tools() {
        return;
    }
    let directory = TempDir::new("machines");
    let spaced = directory.dir("with a space");
    workspace(&spaced);
    let said = refused(&spaced.join("dist/build.sh"), &[]);
    assert!(said.contains("with a space has a space in its name"), "{said}");
    let folder = directory.dir("workspace");
    workspace(&folder);
    let script = folder.join("dist/build.sh");
    let said = refused(&script, &[("CARGO_TARGET_DIR", &spaced)]);
    assert!(said.contains("with a space has a space in its name"), "{said}");

    let program = |name: &str, text: &str| {
        let path = directory.write(name, format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it a program");
        path
    };
    let linker = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_LINKER", env::consts::ARCH.to_uppercase());
    let musl = program("musl-cc", "echo x86_64-alpine-linux-musl");
    let said = refused(&script, &[(&linker, &musl)]);
    assert!(
        said.contains("musl-cc makes programs for x86_64-alpine-linux-musl, and a release is linked with glibc"),
        "{said}"
    );
    let shared = program("shared-cc", "case $1 in -dumpmachine) echo x86_64-redhat-linux ;; *) echo libc.a ;; esac");
    let said = refused(&script, &[(&linker, &shared)]);
    assert!(said.contains("shared-cc finds no libc.a to link programs statically"), "{said}");
    let rustc = program("rustc", "echo /nowhere");
    let said = refused(&script, &[("RUSTC", &rustc)]);
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    assert!(said.contains(&format!("no standard library for {target}: rustup target add {target}")), "{said}");
}

/// Copies the files of this repository that git knows, as they are now.
fn checkout(folder: &Path) {
    fs::create_dir_all(folder).expect("make a folder");
    let script = r#"git -C "$1" ls-files -z | tar -C "$1" --null -T - -c | tar -x -C "$2""#;
    run(Command::new("bash").args(["-ec", script, "bash"]).arg(repository()).arg(folder));
}

/// `make dist` in `folder`, quickly.
fn release(folder: &Path, target: &Path, assets: &Path, architecture: &str) -> PathBuf {
    let out = folder.join(format!("dist-{architecture}"));
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(folder)
        .arg("dist")
        .arg(format!("ARCH={architecture}"))
        .arg(format!("DIST={}", out.display()));
    command.env("DIST_PROFILE", "dev").env("CARGO_TARGET_DIR", target).env("SOURCE_DATE_EPOCH", "1700000000");
    run(command.env("KUBEBUILDER_ASSETS", assets).env_remove("CARGO"));
    out
}

#[test]
fn a_release_made_in_two_folders_is_the_same_bytes() {
    if !tier::soak("compiling a release twice takes long") || !tools() {
        return;
    }
    let Some(assets) = tier::kubernetes() else { return };
    let here = if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let directory = TempDir::new("releases");
    let made: Vec<_> = ["first", "another/further"]
        .iter()
        .map(|name| {
            let (folder, target) = (directory.join(name), directory.join(format!("{name}-target")));
            checkout(&folder);
            let out = release(&folder, &target, &assets, here);
            fs::remove_dir_all(target).expect("remove what was compiled");
            out
        })
        .collect();
    same(&made[0], &made[1]);
    let unpacked = TempDir::new("unpacked");
    run(Command::new("tar")
        .arg("-xzf")
        .arg(made[0].join(format!("etcd-tls-0.1.0-linux-{here}.tar.gz")))
        .arg("-C")
        .arg(unpacked.path()));
    let all = folders();
    let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
    for name in ["etcd-tls-webhook", "etcd-tls-sidecar"] {
        shipped(&unpacked.join(name), here, &all);
    }
}

/// A host gets its certificate from a standalone signer: the programs work together. Beside its own run it is that of the programs of
/// another architecture, below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_gets_its_certificate() {
    let signer = Signer::of_hosts(Duration::from_secs(3600)).await;
    let dir = signer.dir.join("etcd-0");
    let mut command = Command::new(binary("etcd-tls-sidecar"));
    command.args(["request", "--name=etcd-0", "--roles=peer,server", "--ipaddrs=127.0.0.1", "--timeout=60s"]);
    command.arg("--assetsdir").arg(&dir).arg("--kubeconfig").arg(signer.kubeconfig("kubeconfig", BOOTSTRAP));
    run(&mut command);
    for role in [Role::Peer, Role::Server] {
        let pem = fs::read(dir.join(role.to_string()).join("tls.crt")).expect("a certificate");
        let chain = Chain::parse(&pem).expect("a chain");
        assert_eq!(chain.common_name, format!("system:etcd-{role}:etcd-0"));
        assert!(chain.sans.ips.contains(&Ipv4Addr::LOCALHOST.into()), "{:?}", chain.sans);
    }
}

#[test]
fn programs_of_another_architecture_work() {
    let Some(other) = other() else { return };
    let directory = TempDir::new("other");
    let programs = match env::var_os("ETCD_TLS_TEST_ARM64_BIN_DIR") {
        Some(programs) if other == "arm64" => PathBuf::from(programs),
        _ if tier::soak("compiling for another architecture takes long") && tools() => {
            let Some(assets) = tier::kubernetes() else { return };
            let (folder, target) = (directory.join("folder"), directory.join("target"));
            checkout(&folder);
            let out = release(&folder, &target, &assets, other);
            packed(&out, other)
        }
        _ => return,
    };
    check(&programs, other);
    let wrappers = directory.dir("bin");
    for name in PROGRAMS {
        let qemu = format!("qemu-{}-static", if other == "arm64" { "aarch64" } else { "x86_64" });
        let path = wrappers.join(name);
        let program = programs.join(name);
        fs::write(&path, format!("#!/bin/sh\nexec {qemu} '{}' \"$@\"\n", program.display())).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    }
    // The same words as those of this machine's programs.
    let webhook = wrappers.join("etcd-tls-webhook");
    let example = repository().join("manifests/examples/cluster/etcd.yaml");
    for arguments in [&["--version"] as &[&str], &["inject", "-f", &example.display().to_string()]] {
        let ours = run(Command::new(binary("etcd-tls-webhook")).args(arguments));
        assert_eq!(run(Command::new(&webhook).args(arguments)), ours, "{arguments:?}");
        assert!(!ours.is_empty());
    }
    // A signer and a host of that architecture.
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "programs::a_host_gets_its_certificate"]).env("ETCD_TLS_BIN_DIR", &wrappers);
    let said = run(&mut command);
    assert!(said.contains("1 passed"), "{said}");
}

/// The programs of a release's images, of which each says its architecture.
fn packed(out: &Path, architecture: &str) -> PathBuf {
    let programs = out.join("../programs");
    fs::create_dir_all(&programs).expect("make a folder");
    for package in ["etcd-tls-webhook", "etcd-tls-sidecar"] {
        let archive = out.join(format!("{package}-0.1.0-linux-{architecture}.oci.tar"));
        let root = image(&archive, &format!("docker.io/library/{package}:0.1.0"));
        for name in files(&root.join("usr/bin")).keys() {
            fs::copy(root.join("usr/bin").join(name), programs.join(name)).expect("copy");
        }
    }
    programs
}

/// Packed for another architecture, an image says so, and the bill of materials is that of its programs.
#[test]
fn a_release_of_another_architecture_says_so() {
    let (Some(other), true) = (other(), tools()) else { return };
    let Some(assets) = tier::kubernetes() else { return };
    let directory = TempDir::new("packed");
    let folder = directory.join("workspace");
    workspace(&folder);
    let (programs, out) = (build(&folder, None, other), directory.join("dist"));
    let mut command = Command::new(repository().join("dist/dist.sh"));
    command.arg(&out).env("BIN", &programs).env("ARCH", other).env("KUBEBUILDER_ASSETS", assets);
    run(command.env("SOURCE_DATE_EPOCH", "1700000000"));
    for package in ["etcd-tls-webhook", "etcd-tls-sidecar"] {
        let archive = out.join(format!("{package}-0.1.0-linux-{other}.oci.tar"));
        let layout = TempDir::new("layout");
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(layout.path()));
        let index = json_of(&fs::read(layout.join("index.json")).expect("an index"));
        let manifest = &index["manifests"][0];
        assert_eq!(manifest["platform"]["architecture"], other);
        let blob = |descriptor: &Value| super::blob(layout.path(), descriptor);
        let config = json_of(&blob(&json_of(&blob(manifest))["config"]));
        assert_eq!(config["architecture"], other);
        assert!(out.join(format!("{package}-0.1.0-linux-{other}.cdx.json")).is_file());
    }
    assert!(out.join(format!("etcd-tls-0.1.0-linux-{other}.tar.gz")).is_file());
}
