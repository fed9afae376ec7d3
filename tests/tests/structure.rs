//! The structure that CONTRIBUTING.md describes: what each crate may depend on, and modules that form no circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use tests::{process::run, repository};

/// The crates that a package is compiled with, without those of its tests.
fn dependencies(package: &str) -> BTreeSet<String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let tree = run(cargo.args(["--package", package]).current_dir(repository()));
    let all: BTreeSet<String> = tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(all.contains(package) && all.len() > 10, "{package}: {all:?}");
    all
}

#[test]
fn crates_depend_on_no_more_than_they_may() {
    for (package, others) in [
        ("etcd-tls-contract", &["kube", "k8s-openapi", "tokio", "hyper", "nix", "actix-web"][..]),
        ("etcd-tls-telemetry", &["kube", "k8s-openapi", "etcd-tls-contract"]),
        ("etcd-tls-sidecar", &["kube", "kube-client", "k8s-openapi", "actix-web", "etcd-tls-webhook"]),
        ("etcd-tls-webhook", &["etcd-tls-sidecar", "openssl", "ring"]),
    ] {
        let all = dependencies(package);
        let too_many: Vec<_> = others.iter().filter(|other| all.contains(**other)).collect();
        assert!(too_many.is_empty(), "{package} depends on {too_many:?}");
    }
}

/// The modules of a crate: `["sign", "reconcile"]` and its file. Those of tests are left out.
fn modules(source: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let within = path.strip_prefix(source).expect("a file of the crate").with_extension("");
            let module: Vec<String> = within.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            let other = ["lib", "main", "bin", "tests", "testing"];
            if path.extension().is_some_and(|e| e == "rs") && !module.iter().any(|part| other.contains(&part.as_str()))
            {
                found.insert(module, path);
            }
        }
    }
    found
}

/// The paths in `text` that begin with `crate`, `self` or `super`, those in braces of a `use` apart.
fn paths(text: &str) -> Vec<Vec<String>> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(part) {
                continue;
            }
            let end = code[at..].find(|c| !part(c)).map_or(code.len(), |end| at + end);
            let path: Vec<String> = code[at..end].split("::").map(str::to_owned).collect();
            if code[end..].starts_with('{') {
                expand(&path[..path.len() - 1], &code[end + 1..], &mut found);
            } else {
                found.push(path);
            }
        }
    }
    found
}

/// The paths of a `use` from behind an opening brace to its closing one; returns what follows that.
fn expand<'a>(prefix: &[String], mut text: &'a str, found: &mut Vec<Vec<String>>) -> &'a str {
    loop {
        text = text.trim_start_matches([' ', ',']);
        if let Some(after) = text.strip_prefix('}') {
            return after;
        }
        let end = text.find([',', '}', '{']).expect("a closing brace");
        let names = text[..end].split(" as ").next().unwrap_or_default().trim();
        let path: Vec<String> =
            prefix.iter().cloned().chain(names.split("::").filter(|n| !n.is_empty()).map(str::to_owned)).collect();
        if text[end..].starts_with('{') {
            text = expand(&path, &text[end + 1..], found);
        } else {
            found.push(path);
            text = &text[end..];
        }
    }
}

/// The module that a path of `module` leads to or into.
fn leads_to(module: &[String], path: &[String], all: &BTreeMap<Vec<String>, PathBuf>) -> Option<Vec<String>> {
    let mut absolute: Vec<String> = if path[0] == "crate" { Vec::new() } else { module.to_vec() };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name.to_owned()),
        }
    }
    (1..=absolute.len()).rev().map(|n| &absolute[..n]).find(|part| all.contains_key(*part)).map(<[String]>::to_vec)
}

/// Among the children of each module, and of the crate itself, none needs another that needs it. (A parent and its child may.)
#[test]
fn modules_form_no_circle() {
    let mut edges = 0;
    for source in ["sidecar/contract/src", "sidecar/telemetry/src", "sidecar/src", "webhook/src"] {
        let all = modules(&repository().join(source));
        // From a child to its siblings, by the path of their parent.
        let mut needs: BTreeMap<(Vec<String>, String), BTreeSet<String>> = BTreeMap::new();
        for (module, file) in &all {
            let text = fs::read_to_string(file).expect("a source");
            for other in paths(&text).iter().filter_map(|path| leads_to(module, path, &all)) {
                let common = module.iter().zip(&other).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (module.get(common), other.get(common)) {
                    needs.entry((module[..common].to_vec(), from.clone())).or_default().insert(to.clone());
                    edges += 1;
                }
            }
        }
        for (parent, child) in needs.keys() {
            let mut reached = BTreeSet::new();
            let mut next = vec![child];
            while let Some(name) = next.pop() {
                for to in needs.get(&(parent.clone(), name.clone())).into_iter().flatten() {
                    assert!(
                        to != child,
                        "{source}: {}::{child} is needed by {name}, which it needs",
                        parent.join("::")
                    );
                    if reached.insert(to) {
                        next.push(to);
                    }
                }
            }
        }
    }
    assert!(edges > 500, "{edges} uses of a sibling were read");
}
