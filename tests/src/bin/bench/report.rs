//! The table at the end: each figure with its target beside it, and what could not run with its reason.

/// The measured values.
#[derive(Default)]
pub(crate) struct Report {
    section: &'static str,
    rows: Vec<Row>,
    skipped: Vec<String>,
}

/// Section, figure, measured, target, verdict.
struct Row([String; 5]);

impl Report {
    /// Starts the section `name`.
    pub(crate) fn section(&mut self, name: &'static str) {
        println!("{name}");
        self.section = name;
    }

    /// A figure with a target, and whether it is met.
    pub(crate) fn judged(&mut self, figure: impl Into<String>, measured: String, target: &str, meets: bool) {
        self.add(figure.into(), measured, target, if meets { "meets" } else { "misses" });
    }

    /// A figure without a target: the reference of a judged one.
    pub(crate) fn plain(&mut self, figure: impl Into<String>, measured: String) {
        self.add(figure.into(), measured, "", "");
    }

    /// A measurement that could not run, the reason, and how to enable it.
    pub(crate) fn skip(&mut self, what: &str, why: &str, enable: &str) {
        let line = format!("SKIPPED {what}: {why}; to enable it: {enable}");
        println!("  {line}");
        self.skipped.push(line);
    }

    /// The section went wrong.
    pub(crate) fn broke_off(&mut self, why: &str) {
        let line = format!("BROKE OFF {}: {why}", self.section);
        println!("  {line}");
        self.skipped.push(line);
    }

    fn add(&mut self, figure: String, measured: String, target: &str, verdict: &str) {
        println!("  {figure}: {measured}  {target}  {verdict}");
        self.rows.push(Row([self.section.to_owned(), figure, measured, target.to_owned(), verdict.to_owned()]));
    }

    /// Prints all of it.
    pub(crate) fn print(&self) {
        let mut widths = [0; 5];
        for Row(cells) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        println!();
        for Row(cells) in &self.rows {
            let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", padded.join("  ").trim_end());
        }
        for line in &self.skipped {
            println!("{line}");
        }
    }
}
