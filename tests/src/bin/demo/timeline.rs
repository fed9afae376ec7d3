//! The demo's course as one page: which certificate each port showed when, what restarted, and what the client wrote. The page
//! is one file, without scripts and without anything from elsewhere.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use tests::workload::Report;

/// Width of a chart, of the space for its labels, and height of a lane, in pixels.
const WIDTH: f64 = 1060.0;
const LABELS: f64 = 130.0;
const LANE: f64 = 26.0;
/// Height of a chart of figures.
const CHART: f64 = 110.0;

/// The events with their times, in seconds since the start of the demo.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// The serial that a port showed first at a time, by pod and role.
    lanes: BTreeMap<(String, String), Vec<(f64, String)>>,
    restarts: Vec<(f64, String)>,
    marks: Vec<(f64, String)>,
    samples: Vec<Sample>,
}

/// The client's work since the sample before.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: f64,
    writes: u64,
    failed: u64,
    longest: Duration,
}

impl Timeline {
    /// Nothing yet; `start`: the start of the demo.
    pub const fn new(start: Instant) -> Self {
        Self { start, lanes: BTreeMap::new(), restarts: Vec::new(), marks: Vec::new(), samples: Vec::new() }
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// A port shows this certificate.
    pub fn shows(&mut self, pod: &str, role: &str, serial: &str) {
        let now = self.now();
        let lane = self.lanes.entry((pod.to_owned(), role.to_owned())).or_default();
        if lane.last().is_none_or(|(_, last)| last != serial) {
            lane.push((now, serial.to_owned()));
        }
    }

    /// A pod's etcd was started again.
    pub fn restarted(&mut self, pod: &str) {
        self.restarts.push((self.now(), pod.to_owned()));
    }

    /// Something that concerns all.
    pub fn mark(&mut self, what: &str) {
        self.marks.push((self.now(), what.to_owned()));
    }

    /// The client's figures up to now; `longest`: its longest operation since the sample before.
    pub fn sample(&mut self, writes: u64, failed: u64, longest: Duration) {
        self.samples.push(Sample { at: self.now(), writes, failed, longest });
    }

    /// The page; `title` and `figures` stand at its top.
    pub fn page(&self, title: &str, figures: &[(&str, String)]) -> String {
        let mut page = String::from(HEAD);
        let _ = writeln!(page, "<h1>{}</h1>", escaped(title));
        page += "<table>\n";
        for (name, value) in figures {
            let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(value));
        }
        page += "</table>\n<h2>Certificates</h2>\n<p>Each bar is a certificate that the port showed in handshakes; a change of \
                 colour is a renewal. A triangle is a restart of etcd, to load a new CA. A dashed line is a step of the \
                 rollover.</p>\n";
        page += &self.certificates();
        page += "<h2>Writes a second</h2>\n";
        page += &self.chart("writes", &self.rates());
        page += "<h2>Longest write, in milliseconds</h2>\n";
        let longest: Vec<(f64, f64)> = self.samples.iter().map(|s| (s.at, s.longest.as_secs_f64() * 1000.0)).collect();
        page += &self.chart("longest", &longest);
        page += "<h2>Steps</h2>\n<ol>\n";
        for (at, what) in &self.marks {
            let _ = writeln!(page, "<li>{at:.1} s: {}</li>", escaped(what));
        }
        page += "</ol>\n</body>\n</html>\n";
        page
    }

    /// When the last thing happened.
    fn end(&self) -> f64 {
        let lanes = self.lanes.values().flatten().map(|(at, _)| *at);
        let samples = self.samples.iter().map(|s| s.at);
        lanes.chain(samples).chain(self.marks.iter().map(|(at, _)| *at)).fold(1.0, f64::max)
    }

    fn x(&self, at: f64) -> f64 {
        (WIDTH - LABELS).mul_add(at / self.end(), LABELS)
    }

    fn certificates(&self) -> String {
        let height = LANE * self.lanes.len() as f64 + 24.0;
        let mut svg = svg("certificates", height);
        for (n, ((pod, role), shown)) in self.lanes.iter().enumerate() {
            let top = LANE * n as f64;
            let _ = writeln!(svg, "<text x=\"0\" y=\"{:.1}\">{} {}</text>", top + 17.0, escaped(pod), escaped(role));
            for (i, (at, serial)) in shown.iter().enumerate() {
                let until = shown.get(i + 1).map_or_else(|| self.end(), |(next, _)| *next);
                let (x, to) = (self.x(*at), self.x(until));
                let _ = writeln!(
                    svg,
                    "<rect class=\"c{}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                    i % 2,
                    top + 3.0,
                    (to - x).max(1.0),
                    LANE - 6.0,
                    escaped(&format!("{pod} {role}: serial {serial}, {at:.1} s to {until:.1} s")),
                );
            }
            for (at, _) in self.restarts.iter().filter(|(_, of)| of == pod) {
                let x = self.x(*at);
                let (low, high) = (top + LANE - 4.0, top + 6.0);
                let _ = writeln!(
                    svg,
                    "<path class=\"restart\" d=\"M{:.1},{low:.1} L{:.1},{low:.1} L{x:.1},{high:.1} Z\"><title>{}</title></path>",
                    x - 6.0,
                    x + 6.0,
                    escaped(&format!("{pod}: etcd restarted at {at:.1} s")),
                );
            }
        }
        self.finish(svg, height)
    }

    /// Writes a second between samples.
    fn rates(&self) -> Vec<(f64, f64)> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(a, b)| (b.at, b.writes.saturating_sub(a.writes) as f64 / (b.at - a.at).max(0.001))).collect()
    }

    fn chart(&self, name: &str, values: &[(f64, f64)]) -> String {
        let height = CHART + 24.0;
        let mut svg = svg(name, height);
        let most = values.iter().map(|(_, value)| *value).fold(1.0, f64::max);
        let y = |value: f64| (CHART - 8.0).mul_add(-value / most, CHART);
        let _ = writeln!(svg, "<text x=\"0\" y=\"14\">{most:.0}</text><text x=\"0\" y=\"{CHART:.1}\">0</text>");
        let points: String = values.iter().map(|(at, value)| format!("{:.1},{:.1} ", self.x(*at), y(*value))).collect();
        let _ = writeln!(svg, "<polyline class=\"line\" points=\"{}\"/>", points.trim_end());
        for failed in self.samples.windows(2).filter(|pair| pair[1].failed > pair[0].failed) {
            let x = self.x(failed[1].at);
            let _ = writeln!(
                svg,
                "<line class=\"failed\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{CHART:.1}\"><title>a write failed</title></line>"
            );
        }
        self.finish(svg, height)
    }

    /// The steps and the seconds, over a chart.
    fn finish(&self, mut svg: String, height: f64) -> String {
        let base = height - 20.0;
        for (at, what) in &self.marks {
            let x = self.x(*at);
            let _ = writeln!(
                svg,
                "<line class=\"step\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{base:.1}\"><title>{}</title></line>",
                escaped(&format!("{at:.1} s: {what}"))
            );
        }
        let mut second = 0.0;
        while second <= self.end() {
            let _ = writeln!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{second:.0} s</text>",
                self.x(second),
                height - 4.0
            );
            second += 10.0;
        }
        svg += "</svg>\n";
        svg
    }
}

/// The figures at the top of the page.
pub fn figures(report: &Report, certificates: usize, restarts: u32, most_down: usize) -> Vec<(&'static str, String)> {
    vec![
        ("certificates issued", certificates.to_string()),
        ("restarts of etcd", restarts.to_string()),
        ("members down at once, at most", most_down.to_string()),
        ("handshakes of the client", report.connections.to_string()),
        ("writes", report.writes.to_string()),
        ("writes failed", report.failed.to_string()),
        ("writes lost", report.lost.len().to_string()),
        ("longest write", format!("{} ms", report.longest.as_millis())),
    ]
}

fn svg(name: &str, height: f64) -> String {
    format!(
        "<svg id=\"{name}\" viewBox=\"0 0 {WIDTH} {height:.1}\" width=\"100%\" role=\"img\" aria-label=\"{name}\">\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>etcd-tls demo</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 0.4rem; }
table { border-collapse: collapse; } th { text-align: left; font-weight: normal; color: #57606a; padding-right: 1.5rem; } td { text-align: right; font-variant-numeric: tabular-nums; }
svg { font-size: 12px; display: block; } text { fill: #57606a; } .tick { text-anchor: middle; }
.c0 { fill: #2f6fdb; } .c1 { fill: #8fb5f2; } .restart { fill: #d4380d; } .step { stroke: #57606a; stroke-dasharray: 4 3; }
.line { fill: none; stroke: #2f6fdb; stroke-width: 1.5; } .failed { stroke: #cf222e; stroke-width: 2; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } th, text { color: #9198a1; fill: #9198a1; } }
</style>
</head>
<body>
";
