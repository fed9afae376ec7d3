#![allow(clippy::unwrap_used)]

use super::*;
use crate::status::rows::{
    Unseen, rows,
    tests::{after, member},
};

const SCREEN: Screen = Screen { width: Some(80), colour: false, all_namespaces: false };

fn some() -> Vec<Row> {
    let mut away = member("etcd-of-a-team-with-quite-a-long-name-1");
    away.sidecar = Err(Unseen {
        reason: "its sidecar cannot be asked: your account lacks the right to get pods/proxy in namespace prod"
            .to_owned(),
        next: "kubectl auth can-i get pods --subresource=proxy -n prod".to_owned(),
        denied: false,
    });
    rows(&[member("etcd-0"), away], after(1.0))
}

#[test]
fn eighty_columns_are_enough() {
    let text = table(&some(), SCREEN);
    let expected = "\
POD                     CLUSTER  ROLES        STATE    EXPIRES  SERVED   TRUST
etcd-of-a-t…ong-name-1  etcd     peer,server  unknown  unknown  unknown  unknown
    its sidecar cannot be asked: your account lacks the right to get pods/proxy
      in namespace prod
      → kubectl auth can-i get pods --subresource=proxy -n prod
etcd-0                  etcd     peer,server  ok       23h      yes      loaded
";
    assert_eq!(text, expected);
    // The example of the page.
    let indented: String = expected.lines().map(|line| format!("    {line}\n")).collect();
    assert!(include_str!("../../../../docs/operations.md").contains(&indented), "{indented}");
    for all_namespaces in [false, true] {
        let text = table(&some(), Screen { all_namespaces, ..SCREEN });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

#[test]
fn nothing_is_cut_where_no_screen_is() {
    let text = table(&some(), Screen { width: None, all_namespaces: true, ..SCREEN });
    assert!(text.contains("prod/etcd-of-a-team-with-quite-a-long-name-1  etcd "), "{text}");
    assert!(text.contains(
        "\n    its sidecar cannot be asked: your account lacks the right to get pods/proxy in namespace prod\n"
    ));
}

#[test]
fn colours_are_for_terminals() {
    assert!(!table(&some(), SCREEN).contains('\u{1b}'));
    let text = table(&some(), Screen { colour: true, ..SCREEN });
    assert!(text.contains("\u{1b}[32mok\u{1b}[0m") && text.contains("\u{1b}[35munknown\u{1b}[0m  unknown"), "{text}");
}

#[test]
fn wide_fits_a_narrow_screen() {
    let text = wide(&some(), SCREEN);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let mut lines = text.lines().skip_while(|line| !line.starts_with("prod/etcd-0  prod/etcd  server  ok"));
    assert!(
        lines.next().is_some() && lines.next().is_some_and(|line| line.starts_with("    SERIAL 5af3 AGE 1h")),
        "{text}"
    );
    assert!(
        text.contains("REVOCATION enforced") && text.contains("\nprod/etcd-of-a-team-with-quite-a-long-name-1:\n"),
        "{text}"
    );
}

#[test]
fn wide_has_a_line_for_each_certificate() {
    let text = wide(&some(), Screen { width: None, ..SCREEN });
    let line = text.lines().find(|line| line.contains("etcd-0 ") && line.contains(" server ")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let expected = [
        "prod",
        "etcd-0",
        "prod/etcd",
        "server",
        "ok",
        "5af3",
        "1h",
        "23h",
        "2027-01-15T20:00:00Z",
        "yes",
        "00ff",
        "loaded",
        "enforced",
        "-",
        "-",
        "0",
    ];
    assert_eq!(words, expected);
}

#[test]
fn programs_get_the_same() {
    let rows = some();
    assert_eq!(names(&rows), "pod/etcd-of-a-team-with-quite-a-long-name-1\npod/etcd-0\n");
    let value = value(&rows, &["n".to_owned()]).unwrap();
    assert_eq!(value["pods"][1]["roles"][0]["serial"], "5af3");
    let port = &value["pods"][1]["revocation"][0];
    assert_eq!((&port["port"], &port["domain"], &port["enforced"]), (&"peer".into(), &"peer".into(), &true.into()));
    assert_eq!((&value["pods"][0]["state"], &value["notes"][0]), (&"unknown".into(), &"n".into()));
    let yaml = crate::inject::to_yaml(&value).unwrap();
    assert!(yaml.starts_with("pods:\n- namespace: prod\n"), "{yaml}");
}

#[test]
fn text_of_pods_moves_no_cursor() {
    let mut pod = member("etcd-0");
    pod.warnings.push("a\u{1b}[2Jb\u{202e}".to_owned());
    pod.trouble.push("c\rd".to_owned());
    for text in [table(&rows(&[pod.clone()], after(1.0)), SCREEN), wide(&rows(&[pod], after(1.0)), SCREEN)] {
        assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text}");
    }
}
