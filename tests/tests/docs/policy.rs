//! docs/policy.md has every field that the parser of the policy takes, and no other.

use std::{collections::BTreeSet, fs};

use etcd_tls_contract::policy::Policy;
use tests::repository;

/// The fields that the parser names beside one that it does not know; `None`: the text has another fault.
fn expected(yaml: &str) -> Option<Vec<String>> {
    let error = Policy::parse(yaml).expect_err("an unknown field").to_string();
    let (_, rest) = error.split_once("unknown field `nonsense`")?;
    let names = rest.split_once("expected ")?.1.lines().next()?.trim_start_matches("one of ");
    Some(names.replace(" or ", ", ").split(", ").map(|name| name.trim_matches([' ', '`']).to_owned()).collect())
}

#[test]
fn every_field_of_the_policy_is_documented() {
    let mut fields = BTreeSet::new();
    for field in expected("nonsense: 1").expect("the fields of the policy") {
        let nested = [(format!("{field}: {{nonsense: 1}}"), "."), (format!("{field}: [{{nonsense: 1}}]"), "[].")];
        let nested = nested.iter().find_map(|(yaml, dot)| Some((expected(yaml)?, dot)));
        match nested {
            Some((names, dot)) => fields.extend(names.into_iter().map(|name| format!("{field}{dot}{name}"))),
            None => {
                fields.insert(field);
            }
        }
    }
    assert!(fields.len() > 35 && fields.contains("hosts[].dnsNames"), "{fields:?}");
    let page = fs::read_to_string(repository().join("docs/policy.md")).expect("docs/policy.md");
    let rows: BTreeSet<String> =
        page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    assert_eq!(rows, fields);
}
