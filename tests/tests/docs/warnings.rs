//! docs/warnings.md against what admission says.

use std::fs;

use tests::repository;

/// Each row's words are those of a warning in the golden files or of a test that wants it said; each warning of the golden files has a
/// row.
#[test]
fn each_warning_of_the_page_is_one_that_admission_gives() {
    let webhook = repository().join("webhook");
    let files = |folder: &str, end: &str| {
        let entries = fs::read_dir(webhook.join(folder)).expect(folder).map(|entry| entry.expect("an entry").path());
        let named = entries.filter(|path| path.display().to_string().ends_with(end));
        named.map(|path| fs::read_to_string(path).expect("a file")).collect::<String>()
    };
    let said = files("tests/golden", ".warnings.txt") + &files("src/injection/tests", ".rs");
    let page = fs::read_to_string(repository().join("docs/warnings.md")).expect("the page");
    let rows: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(rows.len() > 30, "{rows:?}");
    let unknown: Vec<&&str> = rows.iter().filter(|words| !said.contains(**words)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // And each that the golden files have is in a row; but the lines for a config file, of which the one before speaks.
    let golden = files("tests/golden", ".warnings.txt");
    let missing: Vec<&str> = golden
        .lines()
        .filter(|line| !line.contains(": cert-file: ") && !rows.iter().any(|words| line.contains(words)))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
