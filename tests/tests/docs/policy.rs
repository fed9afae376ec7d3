//! docs/policy.md has every field that the parser of the policy takes, and no other.

use std::{collections::BTreeSet, fs};

use etcd_tls_contract::policy::Policy;
use serde_json::Value;
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

/// A field of an entry is marked as required exactly where an entry without it makes the policy invalid.
#[test]
fn the_fields_that_an_entry_needs_are_marked() {
    let page = fs::read_to_string(repository().join("docs/policy.md")).expect("docs/policy.md");
    let shipped = fs::read_to_string(repository().join("manifests/policy.yaml")).expect("the ConfigMap");
    let shipped: Value = serde_saphyr::from_str(&shipped).expect("YAML");
    let example = shipped["data"]["policy.yaml.example"].as_str().expect("an example");
    let example: Value = serde_saphyr::from_str(example).expect("YAML");
    let mut required = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (field, rest) = row.split_once("` | ").expect("a field");
        let Some((list, field)) = field.split_once("[].") else { continue };
        let mut policy = example.clone();
        policy[list][0].as_object_mut().expect("an entry").remove(field).expect("the example has it");
        let marked = rest.starts_with("required |");
        let missing = format!("missing field `{field}`");
        let refused = Policy::parse(&policy.to_string()).is_err_and(|error| error.to_string().contains(&missing));
        assert_eq!(marked, refused, "{list}[].{field}");
        required += usize::from(marked);
    }
    assert!(required > 15, "{required}");
    assert!(Policy::parse("revokers: [{}]").is_err(), "at least one of username and groups");
}
