//! docs/metrics.md, made from the sources: `UPDATE_DOCS=1 cargo test -p tests --test docs metrics` writes it anew.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use tests::repository;

/// Where metrics are registered, by which processes, and what their names begin with.
const PLACES: [(&str, &[(&str, &str)]); 6] = [
    ("sidecar/src", &[("etcd-tls-sidecar", "etcd_tls_")]),
    ("webhook/src/admit", &[("admit", "etcd_tls_admit_")]),
    ("webhook/src/approve", &[("approve", "etcd_tls_approve_")]),
    ("webhook/src/sign", &[("sign", "etcd_tls_sign_")]),
    ("webhook/src/controller", &[("approve", "etcd_tls_approve_"), ("sign", "etcd_tls_sign_")]),
    ("webhook/src/controller/csr", &[("approve", "etcd_tls_approve_certificate_requests_")]),
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    process: String,
    name: String,
    kind: &'static str,
    help: String,
}

/// The text of the string literal that `text` begins with, after white space, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let inside = text.trim_start().strip_prefix('"')?;
    let end = inside.find('"')?;
    let joined = inside[..end].split("\\\n").map(str::trim_start).collect::<String>();
    Some((joined, &inside[end + 1..]))
}

/// The kind of metric that the field `name` of a struct in `source` is.
fn kind(source: &str, name: &str) -> &'static str {
    let field = format!(" {name}: ");
    let words = ["Counter", "Histogram", "Gauge", "UntilSet", "Seconds"];
    let declared = source.lines().filter_map(|line| line.split_once(&field)).map(|(_, declared)| declared);
    let word = declared.filter_map(|declared| words.into_iter().find(|word| declared.contains(word))).next();
    match word {
        Some("Counter") => "counter",
        Some("Histogram") => "histogram",
        Some(_) => "gauge",
        None => panic!("no declaration of {name}"),
    }
}

/// The metrics that one source registers: name, kind and help.
fn registered(source: &str) -> Vec<(String, &'static str, String)> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    let marks =
        [("metric(", ""), ("gauge(", ""), ("registry.register(", ""), ("registry.register_with_unit(", "_seconds")];
    for (mark, unit) in marks {
        for (at, _) in code.match_indices(mark) {
            let after = code[at + mark.len()..].trim_start();
            let after =
                after.strip_prefix("registry,").or_else(|| after.strip_prefix("&mut registry,")).unwrap_or(after);
            let Some((name, after)) = literal(after) else { continue };
            let Some((help, after)) = after.trim_start().strip_prefix(',').and_then(literal) else { continue };
            // Of a collector, which encodes it itself.
            if mark == "gauge(" {
                found.push((name, "gauge", help.trim_end_matches('.').to_owned()));
                continue;
            }
            // `field: metric(…)`, or `…, metrics.field.clone())`.
            let field = if mark == "metric(" {
                code[..at].trim_end().strip_suffix(':').and_then(|before| before.split_whitespace().last())
            } else {
                after.split(".clone()").next().and_then(|before| before.split([' ', '.', ',']).next_back())
            };
            let kind = kind(code, field.map(str::trim).unwrap_or_default());
            let suffix = if kind == "counter" { "_total" } else { "" };
            found.push((format!("{name}{unit}{suffix}"), kind, help));
        }
    }
    found
}

fn all() -> BTreeSet<Metric> {
    let mut all = BTreeSet::new();
    for (place, processes) in PLACES {
        let mut files = super::sources(&repository().join(place));
        files.extend(Some(repository().join(format!("{place}.rs"))).filter(|file| file.exists()));
        for file in files.iter().filter(|file| !is_test(file)) {
            for (name, kind, help) in registered(&fs::read_to_string(file).expect("a source")) {
                for (process, prefix) in processes {
                    let (process, name) = ((*process).to_owned(), format!("{prefix}{name}"));
                    all.insert(Metric { process, name, kind, help: help.clone() });
                }
            }
        }
    }
    for block in etcd_tls_telemetry::process::metrics().split("# HELP ").skip(1) {
        let (name, rest) = block.split_once(' ').expect("a name");
        let (help, rest) = rest.split_once(".\n").expect("a help");
        let kind = if rest.contains(" counter\n") { "counter" } else { "gauge" };
        let sample = rest.lines().nth(1).and_then(|line| line.split(['{', ' ']).next()).unwrap_or(name);
        all.insert(Metric {
            process: "every process".to_owned(),
            name: sample.to_owned(),
            kind,
            help: help.to_owned(),
        });
    }
    all
}

fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests") || file.components().any(|part| part.as_os_str() == "tests")
}

/// The names of all metrics.
pub fn names() -> BTreeSet<String> {
    all().into_iter().map(|metric| metric.name).collect()
}

#[test]
fn the_reference_of_metrics_is_current() {
    let all = all();
    assert!(all.len() > 60, "{} metrics", all.len());
    let mut page = "# Metrics\n\nOn the admin port, `/metrics`, in the OpenMetrics text format. Times are seconds of the Unix epoch; a counter ends in \
                    `_total`.\n`manifests/components/monitoring` has what is scraped, and [alerts](runbook.md).\n\nThis page is made from the sources.\n"
        .to_owned();
    let mut process = "";
    for metric in &all {
        assert!(metric.help.chars().all(|c| c != '|' && c != '\n'), "{metric:?}");
        if metric.process != process {
            process = &metric.process;
            let _ = write!(page, "\n## {process}\n\n| metric | type | meaning |\n| --- | --- | --- |\n");
        }
        let _ = writeln!(page, "| `{}` | {} | {} |", metric.name, metric.kind, metric.help);
    }
    let path = repository().join("docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("write docs/metrics.md");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|text| text == page),
        "docs/metrics.md is not current: UPDATE_DOCS=1 writes it"
    );
}
