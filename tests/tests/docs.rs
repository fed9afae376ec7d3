//! The pages that people read, held against the repository: links lead somewhere, named tests exist, tables are complete.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use tests::{
    pages,
    process::{binary, run, which},
    repository,
    temp::TempDir,
    tier,
};

#[path = "docs/actors.rs"]
mod actors;
#[path = "docs/alerts.rs"]
mod alerts;
#[path = "docs/command_line.rs"]
mod command_line;
#[path = "docs/events.rs"]
mod events;
#[path = "docs/field.rs"]
mod field;
#[path = "docs/limits.rs"]
mod limits;
#[path = "docs/metrics.rs"]
mod metrics;
#[path = "docs/names.rs"]
mod names;
#[path = "docs/policy.rs"]
mod policy;
#[path = "docs/proofs.rs"]
mod proofs;
#[path = "rights/shipped.rs"]
mod shipped;
#[path = "docs/warnings.rs"]
mod warnings;

/// README.md and every page of docs/, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = repository();
    let mut pages = vec![root.join("README.md"), root.join("CONTRIBUTING.md"), root.join("SECURITY.md")];
    for entry in fs::read_dir(root.join("docs")).expect("docs/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    assert!(pages.len() > 8, "the pages are read: {pages:?}");
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("a page"))).collect()
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut seen = 0;
    for (page, text) in pages() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { page.clone() } else { page.parent().expect("a directory").join(file) };
            assert!(file.exists(), "{}: {target} leads nowhere", page.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&file).expect("a page");
                let anchors: BTreeSet<String> = there
                    .lines()
                    .filter_map(|l| l.strip_prefix('#'))
                    .map(|l| anchor(l.trim_start_matches('#')))
                    .collect();
                assert!(anchors.contains(heading), "{}: {target} names no heading of {anchors:?}", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} links");
}

/// Everybody who clones the repository has them, and each stands in a page.
#[test]
fn pictures_are_small_and_shown() {
    let text: String = pages().into_iter().map(|(_, text)| text).collect();
    let mut seen = 0;
    for entry in fs::read_dir(repository().join("docs/images")).expect("docs/images") {
        let path = entry.expect("an entry").path();
        let picture = fs::read(&path).expect("a picture");
        assert!(picture.starts_with(b"\x89PNG") && picture.len() <= 150_000, "{}: {}", path.display(), picture.len());
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(text.contains(&format!("(images/{name})")), "no page shows {name}");
        seen += 1;
    }
    assert!(seen > 0, "no picture");
}

/// docs/SUMMARY.md is the book's table of contents: each page stands in it once. `mdbook`, where there is one, builds it without a
/// warning.
#[test]
fn the_book_has_every_page_once() {
    let docs = repository().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).expect("docs/SUMMARY.md");
    let mut listed: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    listed.sort_unstable();
    let mut there: Vec<String> = fs::read_dir(&docs)
        .expect("docs/")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    there.sort_unstable();
    assert_eq!(listed, there);

    let Some(mdbook) = which("mdbook") else { return tier::skip_special("no mdbook", "cargo install mdbook") };
    let built = TempDir::new("book");
    let output =
        Command::new(mdbook).arg("build").arg(&docs).arg("--dest-dir").arg(built.path()).output().expect("run mdbook");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{said}");
    for page in there {
        let html = built.join(page.replace(".md", ".html"));
        assert!(html.exists(), "{} was not built", html.display());
    }
}

/// `check` names a section of the documentation with each finding.
#[test]
fn sections_that_the_programs_name_exist() {
    let mut seen = 0;
    for file in sources(&repository().join("webhook/src")) {
        let text = fs::read_to_string(&file).expect("a source");
        for target in text.split("\"docs/").skip(1).filter_map(|rest| rest.split('"').next()) {
            let Some((page, heading)) = target.split_once('#').filter(|(page, _)| page.ends_with(".md")) else {
                continue;
            };
            let text =
                fs::read_to_string(repository().join("docs").join(page)).unwrap_or_else(|e| panic!("{target}: {e}"));
            let headings = text.lines().filter(|line| line.starts_with('#')).map(|l| anchor(l.trim_start_matches('#')));
            assert!(headings.into_iter().any(|there| there == heading), "{}: {target}", file.display());
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} sections");
}

/// The sources below `directory`.
pub fn sources(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every function that is a test, in any crate of the workspace.
fn tests_of_the_workspace() -> BTreeSet<String> {
    fn walk(dir: PathBuf, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let mut attribute = false;
                for line in text.lines().map(str::trim) {
                    if let Some((_, rest)) = line.split_once("fn ").filter(|_| attribute && !line.starts_with("//")) {
                        found.insert(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
                    }
                    attribute = line.starts_with("#[test]")
                        || line.starts_with("#[tokio::test")
                        || attribute && line.starts_with("#[");
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    for dir in ["sidecar", "webhook", "tests"] {
        for part in ["src", "tests", "contract/src", "telemetry/src"] {
            let dir = repository().join(dir).join(part);
            if dir.is_dir() {
                walk(dir, &mut found);
            }
        }
    }
    found
}

/// docs/security.md names a test for each attack: `file.rs`: `name`.
#[test]
fn the_threat_model_names_tests_that_exist() {
    let page = fs::read_to_string(repository().join("docs/security.md")).expect("docs/security.md");
    let text = page.split("## Attacks").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the attacks");
    let known = tests_of_the_workspace();
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let Some(cell) = row.trim_end_matches(" |").rsplit(" | ").next() else { continue };
        let heading = row.starts_with("| attack |") || row.starts_with("| --- |");
        assert_eq!(row.matches(" | ").count(), 2, "not an attack, a defence and tests: {row}");
        assert!(heading || cell.contains('`'), "docs/security.md names no test for: {row}");
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(known.contains(name), "docs/security.md names {name}, which no test is");
            named += 1;
        }
    }
    assert!(named > 20, "{named} tests are named");
}

/// README's table of components is the folder.
#[test]
fn every_component_is_documented() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let section = readme.split("## Install").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let documented: BTreeSet<String> =
        section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    let there = fs::read_dir(repository().join("manifests/components")).expect("the components");
    let there: BTreeSet<String> =
        there.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    assert!(there.len() > 8, "{there:?}");
    assert_eq!(documented, there);
}

/// Bounds that pages give beside a flag, as the signer's help states them.
#[test]
fn the_bounds_of_the_standalone_signer_are_its_defaults() {
    let mut help = Command::new(binary("etcd-tls-webhook"));
    let help = run(help.args(["standalone", "--help"]).env("COLUMNS", "1000"));
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let default = |flag: &str| {
        let text = help.split(&format!(" --{flag} <")).nth(1).unwrap_or_else(|| panic!("no --{flag}: {help}"));
        let value = text.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
        value.unwrap_or_else(|| panic!("--{flag} has no default: {text}")).to_owned()
    };
    for (flag, value) in [
        ("certificates-per-name", "256"),
        ("certificates-per-user", "1024"),
        ("max-certificates", "16384"),
        ("max-requests", "10000"),
        ("max-pending-per-user", "1000"),
        // Of which standalone.md makes 2,000 and 10,000.
        ("max-requests-per-user", "a fifth of --max-requests"),
        ("max-names-per-user", "--max-requests"),
    ] {
        assert!(default(flag).starts_with(value), "{flag}: {}", default(flag));
    }
    let page = |name: &str| {
        let text = fs::read_to_string(repository().join("docs").join(name)).expect("a page");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (name, said) in [
        (
            "revocation.md",
            "256 valid certificates of one host or client (`--certificates-per-name`), and 1,024 in all (`--certificates-per-user`)",
        ),
        ("revocation.md", "16,384 (`--max-certificates`)"),
        ("standalone.md", "| stored requests | 2,000 | `--max-requests-per-user` |"),
        ("standalone.md", "| names and addresses that were approved automatically | 10,000 | `--max-names-per-user` |"),
        ("standalone.md", "got their certificates by its token | 1,000 | `--max-pending-per-user` |"),
    ] {
        assert!(page(name).contains(said), "{name}: {said}");
    }
}

/// docs/operations.md builds an image with the feature by an argument of the Dockerfile.
#[test]
fn the_argument_of_the_image_with_traces_reaches_cargo() {
    let command = pages::blocks("operations.md", "Traces").remove(0);
    let build = command.lines().find(|line| line.starts_with("docker build")).expect("the command");
    let words: Vec<&str> = build.split(' ').collect();
    let after = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).copied().expect("a value");
    let file = fs::read_to_string(repository().join(after("-f"))).expect("the Dockerfile");
    let (name, feature) = after("--build-arg").split_once('=').expect("an argument");
    // Of the stage that builds, and before the command that does.
    let stage = file.split("\nFROM ").nth(1).expect("the first stage");
    let (declared, used) = (stage.find(&format!("\nARG {name}=\n")), stage.find(&format!("--features \"${name}\"")));
    assert!(declared.is_some() && declared < used, "{name}: {declared:?} {used:?}");
    let manifest = fs::read_to_string(repository().join("webhook/Cargo.toml")).expect("webhook/Cargo.toml");
    assert!(manifest.lines().any(|line| line.starts_with(&format!("{feature} = ["))), "no feature {feature}");
}

/// README's table of annotations is the list that admission reads.
#[test]
fn every_annotation_is_documented() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let settings = fs::read_to_string(repository().join("sidecar/contract/src/settings.rs")).expect("settings.rs");
    let section =
        readme.split("## Annotations").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let documented: BTreeSet<&str> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split(" | ").next().unwrap_or_default().split('`').skip(1).step_by(2))
        .collect();
    let list = settings.split("const KEYS").nth(1).and_then(|rest| rest.split("];").next()).expect("KEYS");
    let read: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(read.len() > 8, "{read:?}");
    assert_eq!(documented, read);
}
