//! The rows as text: a table for people, or what a program reads. Pure.

use std::fmt::Write as _;

use etcd_tls_contract::role::Role;
use serde_json::{Value, json};

use super::rows::{Row, State, duration};
use crate::{
    operator::plain,
    screen::{chars, hanging, wrapped},
};

/// How the rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// A line for each certificate, with serial numbers and times.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// The pods' names alone.
    Name,
}

/// The output that the table is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    /// Columns; `None`: nothing is cut.
    pub(super) width: Option<usize>,
    /// True if colours are shown.
    pub(super) colour: bool,
    /// True if the pods are of several namespaces.
    pub(super) all_namespaces: bool,
}

/// The least width of a column of names that is cut.
const LEAST: usize = 12;

/// A table and, below a pod's line, what somebody should know of it.
pub(super) fn table(rows: &[Row], screen: Screen) -> String {
    let heads = ["POD", "CLUSTER", "ROLES", "STATE", "EXPIRES", "SERVED", "TRUST"];
    let mut lines: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    for row in rows {
        let pod = if screen.all_namespaces { format!("{}/{}", row.namespace, row.pod) } else { row.pod.clone() };
        let roles: Vec<&str> = row.roles.iter().map(|role| role.role.as_str()).collect();
        let cluster = row.cluster.strip_prefix(&format!("{}/", row.namespace)).unwrap_or(&row.cluster);
        lines.push(vec![
            plain(&pod),
            plain(cluster),
            if roles.is_empty() { "-".to_owned() } else { roles.join(",") },
            row.state.as_str().to_owned(),
            expires(row),
            served(row).to_owned(),
            trust(row).to_owned(),
        ]);
    }
    // Names are cut first; every other column is short by its nature.
    fit(&mut lines, &[0, 1, 2], screen.width);
    let mut out = String::new();
    let formatted = columns(&lines);
    out += &formatted[0];
    out.push('\n');
    for (row, line) in rows.iter().zip(&formatted[1..]) {
        out += &coloured(line, row.state, screen.colour);
        out.push('\n');
        for detail in details(row) {
            for part in wrapped(&detail, screen.width.map(|width| width.saturating_sub(4))) {
                let _ = writeln!(out, "    {part}");
            }
        }
    }
    out
}

/// A line for each certificate; where the screen is too narrow for that, lines with the heads beside the values.
pub(super) fn wide(rows: &[Row], screen: Screen) -> String {
    let heads = [
        "NAMESPACE",
        "POD",
        "CLUSTER",
        "ROLE",
        "STATE",
        "SERIAL",
        "AGE",
        "EXPIRES",
        "RENEWS",
        "SERVED",
        "BUNDLE",
        "TRUST",
        "REVOCATION",
        "RESTART",
        "ROLLOVER",
        "WARNINGS",
    ];
    let mut lines: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    let mut states = Vec::new();
    let or_unknown = |text: Option<String>| plain(&text.unwrap_or_else(|| "unknown".to_owned()));
    for row in rows {
        for role in &row.roles {
            let domain = role.role.domain();
            let trust = row.trust.iter().find(|trust| trust.domain == domain);
            let port = row.revocation.iter().find(|port| port.domain == domain && role.role != Role::Client);
            let rollover = row.rollovers.iter().find(|rollover| rollover.domain == domain);
            let restart = match (row.restart_due, &row.restart_waits) {
                (false, _) => "-".to_owned(),
                (true, None) => "due".to_owned(),
                (true, Some(word)) => plain(word),
            };
            lines.push(vec![
                plain(&row.namespace),
                plain(&row.pod),
                plain(&row.cluster),
                role.role.to_string(),
                row.state.as_str().to_owned(),
                or_unknown(role.serial.clone()),
                role.age_seconds.map_or_else(|| "unknown".to_owned(), time),
                role.left_seconds.map_or_else(|| "unknown".to_owned(), left),
                or_unknown(role.renewal.clone()),
                role.served.to_owned(),
                or_unknown(trust.and_then(|trust| trust.bundle.clone())),
                trust.map_or("unknown", |trust| trust.state).to_owned(),
                port.map_or("-", |port| if port.enforced { "enforced" } else { "ignored" }).to_owned(),
                restart,
                rollover.map_or_else(|| "-".to_owned(), |rollover| plain(&rollover.phase)),
                row.warnings.len().to_string(),
            ]);
            states.push(row.state);
        }
    }
    let formatted = columns(&lines);
    let mut out = String::new();
    if screen.width.is_some_and(|width| formatted.iter().any(|line| chars(line) > width)) {
        for (state, line) in states.iter().zip(&lines[1..]) {
            out += &block(&heads, line, *state, screen);
        }
    } else {
        let _ = writeln!(out, "{}", formatted[0]);
        for (state, line) in states.iter().zip(&formatted[1..]) {
            let _ = writeln!(out, "{}", coloured(line, *state, screen.colour));
        }
    }
    for row in rows {
        let details = details(row);
        if !details.is_empty() {
            let _ = writeln!(out, "{}/{}:", plain(&row.namespace), plain(&row.pod));
            for detail in details {
                for part in wrapped(&detail, screen.width.map(|width| width.saturating_sub(4))) {
                    let _ = writeln!(out, "    {part}");
                }
            }
        }
    }
    out
}

/// A certificate on lines of its own: what it is and how, then each value with its head.
fn block(heads: &[&str], line: &[String], state: State, screen: Screen) -> String {
    const NAMES: usize = 5;
    let [namespace, pod, cluster, role, ..] = line else { return String::new() };
    let name = format!("{namespace}/{pod}  {cluster}  {role}  {}  ", state.as_str());
    let mut out = format!("{}\n", coloured(&name, state, screen.colour).trim_end());
    // A head and its value stay on one line.
    let pairs = heads.iter().zip(line).skip(NAMES).map(|(head, value)| format!("{head}\0{value}"));
    out += &hanging("    ", &pairs.collect::<Vec<_>>().join(" "), screen.width).replace('\0', " ");
    out
}

/// The names, as `kubectl get -o name` writes them.
pub(super) fn names(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("pod/{}\n", plain(&row.pod))).collect()
}

/// The value that JSON and YAML show.
///
/// # Errors
/// Never; a row is plain data.
pub(super) fn value(rows: &[Row], notes: &[String]) -> Result<Value, serde_json::Error> {
    Ok(json!({"pods": serde_json::to_value(rows)?, "notes": notes}))
}

/// The lines below a pod's line.
fn details(row: &Row) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for finding in &row.findings {
        lines.push(plain(&finding.reason));
        lines.push(format!("  → {}", plain(&finding.next)));
    }
    for rollover in &row.rollovers {
        let mut line = format!("rollover of {}: {}", rollover.domain, rollover.phase);
        if let Some(since) = &rollover.since {
            let _ = write!(line, " since {since}");
        }
        for waiting in &rollover.waiting {
            let _ = write!(line, "; waits for {waiting}");
        }
        lines.push(plain(&line));
    }
    lines.extend(row.warnings.iter().map(|warning| format!("warning of admission: {}", plain(warning))));
    lines
}

/// The time to the first end of a certificate.
fn expires(row: &Row) -> String {
    if row.roles.is_empty() || row.roles.iter().any(|role| role.left_seconds.is_none()) {
        return "unknown".to_owned();
    }
    row.roles.iter().filter_map(|role| role.left_seconds).min().map_or_else(|| "unknown".to_owned(), left)
}

fn left(seconds: i64) -> String {
    if seconds <= 0 { "expired".to_owned() } else { time(seconds) }
}

fn time(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    format!("{sign}{}", duration(std::time::Duration::from_secs(seconds.unsigned_abs())))
}

/// The least good of the certificates'.
fn served(row: &Row) -> &'static str {
    least(row.roles.iter().map(|role| role.served), &["no", "unknown", "yes", "-"])
}

fn trust(row: &Row) -> &'static str {
    least(row.trust.iter().map(|trust| trust.state), &["unknown", "due", "loaded", "-"])
}

fn least(words: impl Iterator<Item = &'static str>, order: &[&'static str]) -> &'static str {
    let rank = |word: &str| order.iter().position(|other| *other == word).unwrap_or(0);
    words.min_by_key(|word| rank(word)).unwrap_or("unknown")
}

/// Cuts the columns of `names`, the longest first, until a line has at most `width` columns.
fn fit(lines: &mut [Vec<String>], names: &[usize], width: Option<usize>) {
    let Some(width) = width else { return };
    let widths = |lines: &[Vec<String>]| -> Vec<usize> {
        (0..lines[0].len()).map(|i| lines.iter().map(|line| chars(&line[i])).max().unwrap_or(0)).collect()
    };
    let mut now = widths(lines);
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
    while total(&now) > width {
        let Some(longest) = names.iter().copied().filter(|i| now[*i] > LEAST).max_by_key(|i| now[*i]) else { return };
        now[longest] -= 1;
    }
    for line in lines {
        for i in names {
            line[*i] = cut(&line[*i], now[*i]);
        }
    }
}

/// Text of at most `width` characters, cut in its middle: the ends of pods' names tell them apart.
fn cut(text: &str, width: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    if all.len() <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let tail = kept / 2;
    let head = kept - tail;
    all[..head].iter().chain(&['…']).chain(&all[all.len() - tail..]).collect()
}

fn columns(lines: &[Vec<String>]) -> Vec<String> {
    let count = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count).map(|i| lines.iter().map(|line| chars(&line[i])).max().unwrap_or(0)).collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

fn coloured(line: &str, state: State, colour: bool) -> String {
    let code = match state {
        State::Failing => "31",
        State::Unknown => "35",
        State::Attention => "33",
        State::Ok => "32",
    };
    let word = state.as_str();
    if !colour {
        return line.to_owned();
    }
    // The word of the state alone, as a column: a pod and a cluster may have the same name, and other columns say unknown, too.
    let cell = format!("  {word}  ");
    let behind_names = |at: &usize| line[..*at].split("  ").filter(|cell| !cell.trim().is_empty()).count() >= 3;
    let starts = || line.match_indices(&cell).map(|(at, _)| at);
    match starts().find(behind_names).or_else(|| starts().last()) {
        Some(start) => {
            let (before, rest) = line.split_at(start + 2);
            format!("{before}\u{1b}[{code}m{word}\u{1b}[0m{}", &rest[word.len()..])
        }
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests;
