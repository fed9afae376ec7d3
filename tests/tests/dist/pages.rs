//! Completion and man pages, made by the program itself.

use std::{collections::BTreeSet, fs, process::Command};

use tests::{
    process::{binary, run, which},
    temp::TempDir,
};

/// The subcommands that `--help` lists.
fn subcommands() -> BTreeSet<String> {
    let help = run(Command::new(binary("etcd-tls-webhook")).arg("--help"));
    let listed = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("commands");
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    let names: BTreeSet<String> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.contains("rollover") && names.contains("completion"), "{help}");
    names
}

#[test]
fn completion_knows_every_subcommand() {
    let directory = TempDir::new("completion");
    for shell in ["bash", "fish", "zsh"] {
        let text = run(Command::new(binary("etcd-tls-webhook")).args(["completion", shell]));
        for name in subcommands() {
            assert!(text.contains(&name), "{shell}: {name}");
        }
        if let Some(program) = which(shell) {
            run(Command::new(program).arg("-n").arg(directory.write(shell, &text)));
        }
    }
    // Bash's completions of partial words.
    let offered = |words: &str, index: usize| {
        let script = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD={index}; COMP_TYPE=9
            complete=$(complete -p etcd-tls-webhook | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            $complete etcd-tls-webhook \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$COMP_CWORD-1]}}\"
            echo \"${{COMPREPLY[@]}}\"",
            directory.join("bash").display()
        );
        run(Command::new("bash").args(["-c", &script])).trim().to_owned()
    };
    assert_eq!(offered("etcd-tls-webhook rollo", 1), "rollover");
    assert_eq!(offered("etcd-tls-webhook rollover --confirm", 2), "--confirm-clients");
    assert_eq!(offered("etcd-tls-webhook completion b", 2), "bash");
}

#[test]
fn every_subcommand_has_a_man_page() {
    let directory = TempDir::new("man");
    let pages = directory.join("man1");
    run(Command::new(binary("etcd-tls-webhook")).arg("man").arg(&pages));
    let top = fs::read_to_string(pages.join("etcd-tls-webhook.1")).expect("the program's page");
    for name in subcommands() {
        assert!(top.contains(&format!("etcd\\-tls\\-webhook\\-{}(1)", name.replace('-', "\\-"))), "{name}: {top}");
        let page = fs::read_to_string(pages.join(format!("etcd-tls-webhook-{name}.1"))).expect("a page");
        assert!(page.contains(".TH "), "{page}");
        // Every flag that --help knows.
        let help = run(Command::new(binary("etcd-tls-webhook")).args([&name, "--help"]));
        let flags = help.lines().filter_map(|line| {
            let line = line.trim_start();
            line.strip_prefix("--").or_else(|| line.split_once(", --").filter(|(short, _)| short.len() == 2)?.1.into())
        });
        for flag in flags.filter_map(|line| line.split([' ', '=', '<', '[']).next()) {
            assert!(page.contains(&format!("\\-\\-{}", flag.replace('-', "\\-"))), "{name}: --{flag}: {page}");
        }
    }
}
