//! A release packed from the programs of this build: the same bytes twice, images that hold together, one manifest, the chart,
//! bills of materials, checksums.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tests::{
    process::{binary, run, which},
    repository,
    temp::TempDir,
    tier,
};

#[path = "dist/pages.rs"]
mod pages;
#[path = "dist/programs.rs"]
mod programs;
#[path = "dist/runtimes.rs"]
mod runtimes;
#[path = "dist/workflows.rs"]
mod workflows;

const VERSION: &str = "0.1.0";

fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `dist/dist.sh`, or says what it needs.
fn pack(kubectl: &Path, programs: &Path, out: &Path, registry: &str) {
    let mut command = Command::new(repository().join("dist/dist.sh"));
    command.arg(out).env("BIN", programs).env("REGISTRY", registry).env("KUBEBUILDER_ASSETS", kubectl);
    run(command.env("SOURCE_DATE_EPOCH", "1700000000"));
}

fn tools() -> bool {
    let missing: Vec<_> = ["jq", "tar", "gzip", "sha256sum"].into_iter().filter(|name| which(name).is_none()).collect();
    if !missing.is_empty() {
        tier::skip_special(&format!("no {} in PATH", missing.join(", ")), "apt-get install jq");
    }
    missing.is_empty()
}

/// Small programs in place of ours: packing does not depend on their content.
fn programs() -> TempDir {
    let directory = TempDir::new("programs");
    for name in ["etcd-tls-webhook", "etcd-tls-sidecar", "etcd-tls-probe"] {
        let path = directory.write(name, format!("#!/bin/sh\necho {name}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it a program");
    }
    directory
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("a file"))
        })
        .collect()
}

/// A blob of an image's layout, by its descriptor, whose digest and size it has.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let name = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
    let bytes = fs::read(layout.join("blobs/sha256").join(name)).expect("a blob");
    assert_eq!(sha256(&bytes), name);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// The files of the image in `archive`, and that it holds together.
fn image(archive: &Path, reference: &str) -> TempDir {
    let layout = TempDir::new("layout");
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(layout.path()));
    assert_eq!(
        json_of(&fs::read(layout.join("oci-layout")).expect("oci-layout")),
        json!({"imageLayoutVersion": "1.0.0"})
    );
    let index = json_of(&fs::read(layout.join("index.json")).expect("index.json"));
    let manifest = &index["manifests"][0];
    assert_eq!(manifest["annotations"]["io.containerd.image.name"], reference);
    assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], VERSION);
    let manifest = json_of(&blob(layout.path(), manifest));
    let config = json_of(&blob(layout.path(), &manifest["config"]));
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 1);
    blob(layout.path(), &layers[0]);
    let name = layers[0]["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
    let tar = Command::new("gzip").arg("-dc").arg(layout.join("blobs/sha256").join(name)).output().expect("gzip");
    assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&tar.stdout))]}));
    assert_eq!(config["config"]["User"], "65532:65532");
    let root = TempDir::new("root");
    let layer = layout.write("layer.tar", &tar.stdout);
    run(Command::new("tar").arg("-xf").arg(layer).arg("-C").arg(root.path()));
    let entry = config["config"]["Entrypoint"][0].as_str().expect("an entry point").trim_start_matches('/');
    assert!(root.join(entry).is_file(), "{entry}");
    root
}

#[test]
fn a_release_is_packed_to_the_same_bytes() {
    if !tools() {
        return;
    }
    let Some(assets) = tier::kubernetes() else { return };
    let (programs, out) = (programs(), TempDir::new("dist"));
    let packed: Vec<PathBuf> = ["first", "second"].iter().map(|name| out.join(name)).collect();
    for directory in &packed {
        pack(&assets, programs.path(), directory, "");
    }
    let (first, second) = (files(&packed[0]), files(&packed[1]));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(second[name] == *bytes, "{name} differs");
    }

    // Every file is in SHA256SUMS.
    let sums = String::from_utf8(first["SHA256SUMS"].clone()).expect("a text");
    let summed: BTreeMap<&str, &str> =
        sums.lines().filter_map(|l| l.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    assert_eq!(summed.len(), first.len() - 1, "{sums}");
    for (name, sum) in &summed {
        assert_eq!(sha256(&first[*name]), *sum, "{name}");
    }

    for section in ["Without a registry, or without a network", "A release"] {
        let block = tests::pages::blocks("install.md", section).remove(0);
        let line = block.lines().next().expect("a command");
        assert!(line.starts_with("sha256sum --check "), "{line}");
        run(Command::new("bash").args(["-c", line]).current_dir(&packed[0]));
    }

    let of = |what: &str| {
        let found = first.keys().find(|name| name.starts_with(what) && name.ends_with(".oci.tar"));
        packed[0].join(found.unwrap_or_else(|| panic!("no {what}: {:?}", first.keys())))
    };
    let webhook = image(&of("etcd-tls-webhook-"), "docker.io/library/etcd-tls-webhook:0.1.0");
    let sidecar = image(&of("etcd-tls-sidecar-"), "docker.io/library/etcd-tls-sidecar:0.1.0");
    for (root, names) in
        [(&webhook, &["etcd-tls-webhook"] as &[&str]), (&sidecar, &["etcd-tls-sidecar", "etcd-tls-probe"])]
    {
        for name in names {
            assert_eq!(run(&mut Command::new(root.join("usr/bin").join(name))), format!("{name}\n"));
        }
        assert_eq!(files(&root.join("usr/bin")).len(), names.len());
    }

    let kustomized = run(Command::new(assets.join("kubectl")).arg("kustomize").arg(repository().join("manifests")));
    assert_eq!(String::from_utf8_lossy(&first["install.yaml"]), kustomized);

    // The command line, under each of its names.
    let programs = first.keys().find(|n| n.ends_with(".tar.gz")).expect("the programs");
    let unpacked = TempDir::new("unpacked");
    run(Command::new("tar").arg("-xzf").arg(packed[0].join(programs)).arg("-C").arg(unpacked.path()));
    for name in ["etcd-tls-webhook", "kubectl-etcd_tls", "kubectl_complete-etcd_tls"] {
        assert_eq!(run(&mut Command::new(unpacked.join(name))), "etcd-tls-webhook\n");
    }
}

#[test]
fn a_release_names_the_registry_of_its_images() {
    if !tools() {
        return;
    }
    let Some(assets) = tier::kubernetes() else { return };
    let (programs, out) = (programs(), TempDir::new("dist"));
    let out = out.join("dist");
    pack(&assets, programs.path(), &out, "example.com:5000/etcd");
    image(
        &fs::read_dir(&out)
            .expect("dist")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("etcd-tls-sidecar-") && name.ends_with(".oci.tar")
            })
            .expect("the image"),
        "example.com:5000/etcd/etcd-tls-sidecar:0.1.0",
    );
    let install = fs::read_to_string(out.join("install.yaml")).expect("install.yaml");
    let images: BTreeSet<&str> = install
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: ").or_else(|| line.trim().strip_prefix("value: ")))
        .collect();
    let expected = ["example.com:5000/etcd/etcd-tls-sidecar:0.1.0", "example.com:5000/etcd/etcd-tls-webhook:0.1.0"];
    assert_eq!(images, BTreeSet::from(expected));
    let chart = TempDir::new("chart");
    run(Command::new("tar").arg("-xzf").arg(out.join(format!("etcd-tls-{VERSION}.tgz"))).arg("-C").arg(chart.path()));
    let values = fs::read_to_string(chart.join("etcd-tls/values.yaml")).expect("the values");
    let values: Value = serde_saphyr::from_str(&values).expect("YAML");
    for name in ["webhook", "sidecar"] {
        assert_eq!(values["images"][name]["repository"], format!("example.com:5000/etcd/etcd-tls-{name}"));
    }
    if let Some(helm) = std::env::var_os("HELM").map(PathBuf::from).or_else(|| which("helm")) {
        let mut command = Command::new(helm);
        command.args(["template", "etcd-tls", "-n", "etcd-tls-system", "--kube-version", "1.30.0"]);
        let rendered = run(command.arg(out.join(format!("etcd-tls-{VERSION}.tgz"))).env("HOME", chart.path()));
        assert!(rendered.contains("image: example.com:5000/etcd/etcd-tls-webhook:0.1.0\n"), "{rendered}");
    }
}

/// From the lock file: the bill of materials lists the crates compiled into a program and none that only tests use.
#[test]
fn bills_of_materials_list_what_is_compiled_in() {
    if !tools() {
        return;
    }
    let Some(assets) = tier::kubernetes() else { return };
    let (programs, out) = (programs(), TempDir::new("dist"));
    let out = out.join("dist");
    pack(&assets, programs.path(), &out, "");
    for (package, with, without) in [
        (
            "etcd-tls-webhook",
            &["kube", "actix-web", "aws-lc-sys", "etcd-tls-contract", "cc"] as &[&str],
            &["tests", "libfuzzer-sys"] as &[&str],
        ),
        (
            "etcd-tls-sidecar",
            &["rustls", "aws-lc-rs", "etcd-tls-contract"],
            &["kube", "actix-web", "tests", "libfuzzer-sys"],
        ),
    ] {
        let all = files(&out);
        let (_, text) =
            all.iter().find(|(name, _)| name.starts_with(package) && name.ends_with(".cdx.json")).expect("a bill");
        let bill = json_of(text);
        assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&json!("CycloneDX"), &json!("1.5")));
        assert_eq!(bill["metadata"]["component"]["name"], package);
        let components = bill["components"].as_array().expect("components");
        let names: BTreeSet<_> = components.iter().filter_map(|c| c["name"].as_str()).collect();
        for name in with {
            assert!(names.contains(name), "{package}: {name} is missing");
        }
        for name in without {
            assert!(!names.contains(name), "{package}: {name} is not part of it");
        }
        let known: BTreeSet<_> =
            components.iter().chain([&bill["metadata"]["component"]]).map(|c| c["bom-ref"].as_str()).collect();
        assert_eq!(known.len(), components.len() + 1, "a reference is there twice");
        for dependency in bill["dependencies"].as_array().expect("dependencies") {
            assert!(known.contains(&dependency["ref"].as_str()), "{dependency}");
            for on in dependency["dependsOn"].as_array().expect("a list") {
                assert!(known.contains(&on.as_str()), "{on}");
            }
        }
        // Every crate from outside has a licence and a package URL; none names this machine.
        for component in components.iter().filter(|c| c["purl"].is_string()) {
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        }
        assert!(!String::from_utf8_lossy(text).contains(&repository().display().to_string()));
    }
}

/// Our own programs are what `make dist` packs.
#[test]
fn the_programs_that_are_packed_are_those_of_the_workspace() {
    let script = fs::read_to_string(repository().join("dist/build.sh")).expect("build.sh");
    for name in ["etcd-tls-webhook", "etcd-tls-sidecar", "etcd-tls-probe"] {
        assert!(binary(name).is_file());
        assert!(script.lines().any(|line| line.starts_with("static \"") && line.ends_with(name)), "{name}: {script}");
    }
}
