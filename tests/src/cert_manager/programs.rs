//! Programs of other projects that tests run where a variable names their directory. They are no part of this repository, and
//! nothing here brings them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::LIMIT;
use crate::{apiserver::ApiServer, eventually, temp::TempDir, tier};

/// The directory that `variable` names; `None`, having said so, where it names none. `holds` says what is to be there.
pub fn directory(variable: &str, program: &str, holds: &str) -> Option<PathBuf> {
    let found = env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        tier::skip_special(&format!("no {program}"), &format!("{variable}=<directory with {holds}>"));
    }
    found
}

/// Installs the CustomResourceDefinitions of a directory, and waits for them. In some repositories they are templates of a chart;
/// only labels are.
pub async fn install_definitions(api: &ApiServer, directory: &Path) {
    let files = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut manifest = String::new();
    for path in files.map(|file| file.expect("a file").path()) {
        if path.extension().is_some_and(|end| end == "yaml") {
            let text = fs::read_to_string(&path).expect("read a definition");
            let lines = text.lines().filter(|line| !line.contains("{{"));
            manifest.extend(lines.flat_map(|line| [line, "\n"]).chain(["---\n"]));
        }
    }
    let files = TempDir::new("definitions");
    let path = files.write("crds.yaml", manifest);
    // Some are too long for the annotation of `apply`.
    api.kubectl(&["create", "-f", &path.display().to_string()]);
    // `kubectl wait` fails at one that has no condition yet.
    eventually("CustomResourceDefinitions", LIMIT, || async {
        let text = api.kubectl(&["get", "crd", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let established = |crd: &Value| {
            let conditions = crd["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
        };
        if list["items"].as_array().is_some_and(|all| all.iter().all(established)) { Ok(()) } else { Err(text) }
    })
    .await;
}
