//! Metrics as promtool checks them.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{process::which, tier};

/// Checks an answer of `/metrics` by `promtool check metrics`: names, units, help, types. promtool reads the older text format, in which
/// a counter's name in HELP and TYPE ends in `_total`, too, and an info is a gauge whose name ends in `_info`.
pub fn check_metrics(what: &str, text: &str) {
    let Some(promtool) = which("promtool") else {
        return tier::skip_special("no promtool", "apt-get install prometheus");
    };
    let typed = |kind: &str, end: &str| -> BTreeSet<&str> {
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(kind));
        names.filter(|name| !name.ends_with(end)).collect()
    };
    let (counters, infos) = (typed(" counter", "_total"), typed(" info", "_info"));
    let mut older = String::new();
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(word), Some(name), Some(rest)) if counters.contains(name) => {
                older += &format!("# {word} {name}_total {rest}\n");
            }
            (Some("#"), Some(word), Some(name), Some(rest)) if infos.contains(name) => {
                let rest = if word == "TYPE" { "gauge" } else { rest };
                older += &format!("# {word} {name}_info {rest}\n");
            }
            _ => older += &format!("{line}\n"),
        }
    }
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run promtool");
    child.stdin.take().expect("its input").write_all(older.as_bytes()).expect("write to promtool");
    let output = child.wait_with_output().expect("promtool's answer");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "{what}: {said}\n{older}");
}
