//! The table *Proof of the policies* of docs/security.md, against the sources of the proofs.

use std::fs;

use tests::repository;

/// Every policy of `guards/policies.rs` has a row, and no other has one. A row names the processes that compare the policy, says what
/// the process says while it is not in force, and that there is no dry-run write exactly where `guards/attempt.rs` has none.
#[test]
fn each_policy_has_a_row_that_says_how_it_is_proven() {
    let source = |file: &str| {
        fs::read_to_string(repository().join("webhook/src/controller/guards").join(file)).expect("a source")
    };
    let (policies, attempts) = (source("policies.rs"), source("attempt.rs"));
    let page = fs::read_to_string(repository().join("docs/security.md")).expect("the page");
    let (_, section) = page.split_once("## Proof of the policies\n").expect("the section");
    let rows: Vec<&str> =
        section.lines().take_while(|l| !l.starts_with("## ")).filter(|l| l.starts_with("| `")).collect();

    let names = policies.split_once("const fn name(self)").expect("names").1.split("\n    }\n").next().expect("a body");
    let names: Vec<(&str, &str)> = names
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => "))
        .map(|(guard, name)| (guard, name.trim_matches(['"', ','])))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    assert_eq!(rows.len(), names.len(), "{rows:#?}");
    let none = attempts.split_once("=> Vec::new()").expect("those without a write").0;
    let none = none.rsplit_once(']').expect("the arm before").1;
    let between = |from: &str, to: &str| policies.split_once(from).expect(from).1.split_once(to).expect(to).0;
    let of = |list: &str, component: &str, guard: &str| {
        let all = format!("{},{}", between(list, "];"), between(component, "];"));
        all.split(|c: char| !c.is_alphanumeric() && c != ':').any(|word| word == format!("Guard::{guard}"))
    };
    let consequences = between("const fn consequence(self)", "\n    }\n");
    for (guard, name) in names {
        let row = rows.iter().find(|row| row.starts_with(&format!("| `{name}` |"))).unwrap_or_else(|| panic!("{name}"));
        let cells: Vec<&str> = row.split(" | ").collect();
        let tried = !none.contains(&format!("Guard::{guard}\n")) && !none.contains(&format!("Guard::{guard} "));
        assert_eq!(!cells[2].starts_with("none"), tried, "{row}");
        let compared = [
            ("`approve`", of("const APPROVE: ", "fn of_approve(", guard)),
            ("`sign`", of("const SIGN: ", "fn of_sign(", guard)),
        ];
        for (process, compares) in compared {
            assert_eq!(cells[1].contains(process), compares, "{process}: {row}");
        }
        let words = consequences.split_once(&format!("Self::{guard} ")).expect("its consequence").1;
        let words = words.split('"').nth(1).expect("words");
        assert_eq!(cells[3].trim_end_matches(" |").replace('`', ""), words, "{row}");
    }
}
