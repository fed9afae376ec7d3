//! The images' sizes: the programs, which are linked statically, and a file of a line.

use std::fs;

use etcd_tls_contract::names;
use tests::process::binary;

use crate::report::Report;

const MIB: f64 = 1_048_576.0;

/// Measures both.
pub(crate) fn measure(report: &mut Report) {
    let images: [(&[&str], f64); 2] =
        [(&["etcd-tls-sidecar", names::PROBE_PROGRAM], 9.0), (&["etcd-tls-webhook"], 25.0)];
    for (programs, most) in images {
        let mut all = 0.0;
        for program in programs {
            let size = fs::metadata(binary(program)).map_or(0, |m| m.len()) as f64 / MIB;
            report.plain(format!("program {program}"), format!("{size:.1} MiB"));
            all += size;
        }
        let image = programs.first().copied().unwrap_or_default();
        report.judged(format!("image of {image}"), format!("{all:.1} MiB"), &format!("<= {most} MiB"), all <= most);
    }
}
