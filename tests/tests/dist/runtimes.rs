//! The images of a release, given to what runs or copies images by the commands of docs/install.md: under the names that the manifests
//! look for.

use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

use tests::{
    eventually, pages,
    process::{Process, run, which},
    temp::TempDir,
    tier,
};

use super::{pack, programs, tools};

const SECTION: &str = "Without a registry, or without a network";
/// How long containerd may take to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// A release of small programs, for this machine's architecture; `None`, having said so, where it cannot be packed.
fn release() -> Option<TempDir> {
    if !tools() {
        return None;
    }
    let (assets, out) = (tier::kubernetes()?, TempDir::new("dist"));
    pack(&assets, programs().path(), &out.join("dist"), "");
    Some(out)
}

/// The images that the manifests of a release name, as a registry's clients read a name without a registry.
fn wanted(dist: &Path) -> BTreeSet<String> {
    let install = std::fs::read_to_string(dist.join("install.yaml")).expect("install.yaml");
    let names = install.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("- ");
        line.strip_prefix("image: ").or_else(|| line.strip_prefix("value: ").filter(|value| value.contains("sidecar:")))
    });
    let found: BTreeSet<String> = names.map(|name| format!("docker.io/library/{name}")).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    found
}

/// The lines of a block of the page that begin so, with this machine's architecture; and a sentence's code.
fn typed(section: &str, beginning: &str) -> String {
    let all = pages::blocks("install.md", section).join("\n");
    let lines: Vec<&str> = all.lines().filter(|line| line.starts_with(beginning)).collect();
    assert!(!lines.is_empty(), "{section} has no command {beginning}");
    let here = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    lines.join("\n").replace("linux-amd64", &format!("linux-{here}"))
}

fn bash(directory: &Path, environment: &[(&str, &str)], script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(directory).envs(environment.iter().copied());
    run(&mut command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_has_the_images_under_the_names_of_the_manifests() {
    let missing = ["containerd", "ctr"].into_iter().find(|program| which(program).is_none());
    if missing.is_some() || !nix::unistd::geteuid().is_root() {
        return tier::skip_special(missing.unwrap_or("not root"), "apt-get install containerd, as root");
    }
    let Some(out) = release() else { return };
    let dist = out.join("dist");
    let directory = TempDir::new("containerd");
    let (socket, here) = (directory.join("containerd.sock"), directory.path().display());
    let config = format!(
        "version = 2\nroot = \"{here}/root\"\nstate = \"{here}/state\"\n[grpc]\naddress = \"{}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
        socket.display()
    );
    let config = directory.write("config.toml", config);
    let mut command = Command::new("containerd");
    let _containerd = Process::spawn("containerd", command.arg("--config").arg(config), directory.path());
    let socket = socket.display().to_string();
    let environment = [("CONTAINERD_ADDRESS", socket.as_str()), ("CONTAINERD_SNAPSHOTTER", "native")];
    eventually("containerd answers", LIMIT, || async {
        let mut version = Command::new("ctr");
        let output = version.arg("version").envs(environment).output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    })
    .await;
    let there = || bash(&dist, &environment, "ctr -n k8s.io images ls -q");
    let named = |all: &str| wanted(&dist).iter().all(|name| all.lines().any(|line| line == name));
    assert!(!named(&there()));
    bash(&dist, &environment, &format!("{}\n{}", typed(SECTION, "sha256sum "), typed(SECTION, "ctr ")));
    assert!(named(&there()), "{}", there());
    as_kubelet_asks(&dist, &socket).await;
    // As `kind load image-archive` does on each node.
    for name in wanted(&dist) {
        run(Command::new("ctr").args(["-n", "k8s.io", "images", "rm", "--sync", &name]).envs(environment));
    }
    assert!(!named(&there()));
    let archives = typed("kind", "kind load image-archive target/dist/");
    for archive in archives.lines().filter_map(|line| line.rsplit_once('/')) {
        let import = "ctr --namespace=k8s.io images import --all-platforms --digests --snapshotter=native -";
        bash(&dist, &environment, &format!("{import} < {}", archive.1));
    }
    assert!(named(&there()), "{}", there());
}

/// By the runtime's API, with the name in the manifest.
async fn as_kubelet_asks(dist: &Path, socket: &str) {
    if which("crictl").is_none() {
        return tier::skip_special("no crictl", "put it in PATH");
    }
    let endpoint = format!("unix://{socket}");
    let environment = [("CONTAINER_RUNTIME_ENDPOINT", endpoint.as_str()), ("IMAGE_SERVICE_ENDPOINT", &endpoint)];
    for name in wanted(dist) {
        let short = name.trim_start_matches("docker.io/library/");
        // containerd answers before its part for kubelet has seen an image.
        eventually("kubelet's image", LIMIT, || async {
            let mut command = Command::new("crictl");
            let output =
                command.args(["inspecti", "-o", "json", short]).envs(environment).output().expect("run crictl");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let found = output.status.success() && said.contains(&format!("\"{name}\""));
            if found { Ok(()) } else { Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr))) }
        })
        .await;
    }
}

#[test]
fn podman_has_the_images_under_the_names_of_the_manifests() {
    if which("podman").is_none() || !nix::unistd::geteuid().is_root() {
        return tier::skip_special("no podman, or not root", "apt-get install podman, as root");
    }
    let Some(out) = release() else { return };
    let dist = out.join("dist");
    // A storage of its own.
    let (root, configuration) = (TempDir::new("podman"), TempDir::new("podman-configuration"));
    let text = |folder: &str| format!("\"{}\"", root.join(folder).display());
    let storage = configuration.write(
        "storage.conf",
        format!("[storage]\ndriver = \"vfs\"\nrunroot = {}\ngraphroot = {}\n", text("run"), text("root")),
    );
    let storage = storage.display().to_string();
    let environment = [("CONTAINERS_STORAGE_CONF", storage.as_str())];
    let there = || bash(&dist, &environment, "podman images --format '{{.Repository}}:{{.Tag}}'");
    assert_eq!(there(), "");
    bash(&dist, &environment, &typed(SECTION, "podman "));
    let found = there();
    assert_eq!(found.lines().map(str::to_owned).collect::<BTreeSet<_>>(), wanted(&dist));

    // README.md: what podman itself has built, for kind.
    let readme = std::fs::read_to_string(tests::repository().join("README.md")).expect("README.md");
    let script = readme.split("       for name in etcd-tls-webhook ").nth(1).expect("the commands for podman");
    let script = script.split("done").next().expect("a loop").replace("kind load image-archive", "ls");
    bash(&dist, &environment, "podman rmi --all --force");
    let names = wanted(&dist);
    for name in &names {
        let short = name.trim_start_matches("docker.io/library/");
        let file = configuration.write("Containerfile", "FROM scratch\nCOPY install.yaml /\n").display().to_string();
        bash(&dist, &environment, &format!("podman build --isolation=chroot -f {file} -t {short} . >&2"));
    }
    assert!(there().lines().all(|name| name.starts_with("localhost/etcd-tls-")), "{}", there());
    bash(&dist, &environment, &format!("for name in etcd-tls-webhook {script}done"));
    for name in names {
        let short = name.trim_start_matches("docker.io/library/").split(':').next().expect("a name");
        let manifest = bash(&dist, &[], &format!("tar -xOf {short}.tar manifest.json"));
        assert!(manifest.contains(&format!("[\"{name}\"]")), "{manifest}");
    }
}

#[test]
fn skopeo_copies_the_images() {
    if which("skopeo").is_none() {
        return tier::skip_special("no skopeo", "apt-get install skopeo");
    }
    let Some(out) = release() else { return };
    let dist = out.join("dist");
    let to = TempDir::new("registry");
    // A folder in the registry's place.
    let script = typed("From a registry of your own", "skopeo ");
    assert_eq!(script.matches("docker://registry.example.com/etcd-tls/").count(), 2, "{script}");
    let registry = format!("dir:{}/", to.path().display());
    bash(&dist, &[], &script.replace("docker://registry.example.com/etcd-tls/", &registry));
    for name in wanted(&dist) {
        let folder = to.join(name.trim_start_matches("docker.io/library/"));
        assert!(folder.join("manifest.json").is_file(), "{name}");
    }
}
