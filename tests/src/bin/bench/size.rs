//! The images' sizes: the files that the Dockerfiles copy, that is the programs and their shared libraries.

use std::{fs, path::Path, process::Command};

use etcd_tls_contract::names;
use tests::process::binary;

use crate::report::Report;

const MIB: f64 = 1_048_576.0;

/// Measures both.
pub(crate) fn measure(report: &mut Report) -> Result<(), String> {
    for (name, most) in [("etcd-tls-sidecar", 12.0), ("etcd-tls-webhook", 25.0)] {
        let program = binary(name);
        let libraries = match libraries(&program) {
            Ok(libraries) => libraries,
            Err(why) => {
                report.skip(&format!("the size of {name}'s image"), &why, "a C library with ldd");
                continue;
            }
        };
        let size = |path: &str| fs::metadata(path).map_or(0, |m| m.len()) as f64 / MIB;
        let own = size(&program.display().to_string());
        let mut all = own + libraries.iter().map(|l| size(l)).sum::<f64>();
        report.plain(format!("program {name}"), format!("{own:.1} MiB"));
        if name == "etcd-tls-sidecar" {
            // Linked statically, where it is built as it is shipped.
            let probe = size(&binary(names::PROBE_PROGRAM).display().to_string());
            report.plain(format!("program {}", names::PROBE_PROGRAM), format!("{probe:.1} MiB"));
            all += probe;
        }
        report.judged(format!("image of {name}"), format!("{all:.1} MiB"), &format!("<= {most} MiB"), all <= most);
    }
    Ok(())
}

/// The files that the loader would load, as ldd names them.
fn libraries(program: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("ldd").arg(program).output().map_err(|e| format!("ldd: {e}"))?;
    if !output.status.success() {
        return Err(format!("ldd {}: {}", program.display(), output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut files: Vec<String> =
        text.split_whitespace().filter(|word| word.starts_with('/')).map(ToOwned::to_owned).collect();
    files.sort();
    files.dedup();
    Ok(files)
}
