//! docs/command-line.md, made from the programs' own help: `UPDATE_DOCS=1 cargo test -p tests --test docs command_line` writes it anew.

use std::{fmt::Write as _, fs, process::Command};

use tests::{process::binary, repository};

const PAGE: &str = "docs/command-line.md";

/// What `--help` prints for these subcommands.
fn help(program: &str, subcommands: &[&str]) -> String {
    let output = Command::new(binary(program)).args(subcommands).arg("--help").env_clear().output().expect("a program");
    assert!(output.status.success(), "{program} {subcommands:?}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// The subcommands that a help text lists, but `help`.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(ToOwned::to_owned).collect()
}

fn section(page: &mut String, program: &str, path: &[&str]) {
    let text = help(program, path);
    let title = [&[program], path].concat().join(" ");
    let indented: String = text.lines().map(|line| format!("    {line}").trim_end().to_owned() + "\n").collect();
    let _ = write!(page, "\n## {title}\n\n{indented}");
    for name in subcommands(&text) {
        section(page, program, &[path, &[&name]].concat());
    }
}

#[test]
fn the_reference_of_the_command_line_is_current() {
    let mut page = "# Command line\n\nThis page is made from the programs' own help. [Exit codes](exit-codes.md) are the same for all subcommands.\n"
        .to_owned();
    for program in ["etcd-tls-webhook", "etcd-tls-sidecar", "etcd-tls-probe"] {
        section(&mut page, program, &[]);
    }
    for subcommand in ["etcd-tls-webhook standalone", "etcd-tls-webhook check pod", "etcd-tls-sidecar run"] {
        assert!(page.contains(&format!("\n## {subcommand}\n")), "{subcommand}");
    }
    let path = repository().join(PAGE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("write the page");
    }
    assert!(fs::read_to_string(&path).is_ok_and(|text| text == page), "{PAGE} is not current: UPDATE_DOCS=1 writes it");
}
