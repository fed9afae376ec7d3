//! docs/metrics.md, made from the sources: `UPDATE_DOCS=1 cargo test -p tests --test docs metrics` writes it anew.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use tests::repository;

/// Where metrics are registered, by which processes, and what their names begin with.
const PLACES: [(&str, &[(&str, &str)]); 7] = [
    ("sidecar/src", &[("etcd-tls-sidecar", "etcd_tls_")]),
    ("webhook/src/admit", &[("admit", "etcd_tls_admit_")]),
    ("webhook/src/approve", &[("approve", "etcd_tls_approve_")]),
    ("webhook/src/sign", &[("sign", "etcd_tls_sign_")]),
    ("webhook/src/standalone", &[("standalone", "etcd_tls_standalone_")]),
    ("webhook/src/controller", &[("approve", "etcd_tls_approve_"), ("sign", "etcd_tls_sign_")]),
    ("webhook/src/controller/csr", &[("approve", "etcd_tls_approve_certificate_requests_")]),
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    process: String,
    name: String,
    kind: &'static str,
    labels: Vec<String>,
    help: String,
}

/// The text of the string literal that `text` begins with, after white space, and what follows it.
fn literal(text: &str) -> Option<(String, &str)> {
    let inside = text.trim_start().strip_prefix('"')?;
    let end = inside.find('"')?;
    let joined = inside[..end].split("\\\n").map(str::trim_start).collect::<String>();
    Some((joined, &inside[end + 1..]))
}

/// The kind of metric that the field `name` of a struct in `source` is, and its declaration.
fn kind<'a>(source: &'a str, name: &str) -> (&'static str, &'a str) {
    let field = format!(" {name}: ");
    let words = ["Counter", "Histogram", "Gauge", "UntilSet", "Seconds"];
    let mut declared = source.lines().filter_map(|line| line.split_once(&field)).map(|(_, declared)| declared);
    let found = declared.find_map(|declared| Some((words.into_iter().find(|word| declared.contains(word))?, declared)));
    match found {
        Some(("Counter", declared)) => ("counter", declared),
        Some(("Histogram", declared)) => ("histogram", declared),
        Some((_, declared)) => ("gauge", declared),
        None => panic!("no declaration of {name}"),
    }
}

/// The labels of the field `name` of a struct in `source`, by its declaration. Label sets are structs of `sources`, or are written where a
/// value is set.
fn labels(source: &str, name: &str, declared: &str, sources: &str) -> Vec<String> {
    let Some(set) = declared.split_once("Family<").map(|(_, set)| set) else { return Vec::new() };
    let declaration = format!("struct {} {{", set.split(',').next().unwrap_or_default());
    let Some((_, fields)) = [source, sources].into_iter().find_map(|source| source.split_once(&declaration)) else {
        let set = format!("{name}.get_or_create(");
        return written(sources.split_once(&set).unwrap_or_else(|| panic!("no value of {name}")).1);
    };
    let fields = fields.split('}').next().unwrap_or_default().lines().map(str::trim);
    let fields = fields.filter(|line| !line.starts_with("//")).filter_map(|line| line.split_once(": "));
    fields.map(|(field, _)| field.split(' ').next_back().unwrap_or(field).to_owned()).collect()
}

/// The names in the pairs of a label set that `text` begins with: `&[("a", …), ("b", …)]`, or `&Vec::new()`, which has none.
fn written(text: &str) -> Vec<String> {
    let pairs = text.split([']', ';']).next().unwrap_or_default();
    pairs.split("(\"").skip(1).filter_map(|pair| pair.split('"').next()).map(ToOwned::to_owned).collect()
}

/// The metrics that one source registers: name, kind, labels and help. `sources` are those of its crate.
fn registered(source: &str, sources: &str) -> Vec<(String, &'static str, Vec<String>, String)> {
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
                let mut labels = written(code.split_once("let mut labels = vec!").map_or("", |(_, after)| after));
                if after.split("gauge(").next().is_some_and(|own| own.contains("Some(phase)")) {
                    labels.push("phase".to_owned());
                }
                found.push((name, "gauge", labels, help.trim_end_matches('.').to_owned()));
                continue;
            }
            // `field: metric(…)`, or `…, metrics.field.clone())`.
            let field = if mark == "metric(" {
                code[..at].trim_end().strip_suffix(':').and_then(|before| before.split_whitespace().last())
            } else {
                after.split(".clone()").next().and_then(|before| before.split([' ', '.', ',']).next_back())
            };
            let field = field.map(str::trim).unwrap_or_default();
            let (kind, declared) = kind(code, field);
            let suffix = if kind == "counter" { "_total" } else { "" };
            found.push((format!("{name}{unit}{suffix}"), kind, labels(code, field, declared, sources), help));
        }
    }
    found
}

fn all() -> BTreeSet<Metric> {
    let mut all = BTreeSet::new();
    for (place, processes) in PLACES {
        let mut files = super::sources(&repository().join(place));
        files.extend(Some(repository().join(format!("{place}.rs"))).filter(|file| file.exists()));
        let texts: Vec<_> = files
            .iter()
            .filter(|file| !is_test(file))
            .map(|file| fs::read_to_string(file).expect("a source"))
            .collect();
        let sources = texts.concat();
        for source in &texts {
            for (name, kind, labels, help) in registered(source, &sources) {
                for (process, prefix) in processes {
                    let (process, name) = ((*process).to_owned(), format!("{prefix}{name}"));
                    all.insert(Metric { process, name, kind, labels: labels.clone(), help: help.clone() });
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
            labels: sample_labels(rest),
            help: help.to_owned(),
        });
    }
    all
}

/// The label names of the first sample below a HELP line.
fn sample_labels(block: &str) -> Vec<String> {
    let sample = block.lines().nth(1).and_then(|line| line.split_once('{')).map_or("", |(_, rest)| rest);
    let sample = sample.split('}').next().unwrap_or_default();
    sample.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned()).collect()
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
    let labelled = all.iter().filter(|metric| !metric.labels.is_empty()).count();
    assert!(labelled > 30, "{labelled} with labels");
    let mut page = "# Metrics\n\nOn the admin port, `/metrics`, in the OpenMetrics text format. Times are seconds of the Unix epoch; a counter ends in \
                    `_total`.\n`manifests/components/monitoring` has what is scraped, and [alerts](runbook.md).\n\nThis page is made from the sources.\n"
        .to_owned();
    let mut process = "";
    for metric in &all {
        assert!(metric.help.chars().all(|c| c != '|' && c != '\n'), "{metric:?}");
        if metric.process != process {
            process = &metric.process;
            let _ = write!(page, "\n## {process}\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{}` | {} | {} | {} |", metric.name, metric.kind, labels.join(", "), metric.help);
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
