#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn run(projection: &mut Projection, text: &str, step: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for chunk in text.as_bytes().chunks(step) {
        projection.push(chunk, |piece| pieces.push(piece)).unwrap();
    }
    pieces
}

fn value(kept: &Kept) -> Value {
    serde_json::from_slice(&kept.json).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&kept.json)))
}

fn whole(paths: &[&[&str]], limit: usize, text: &str) -> (Value, bool) {
    let fields = Arc::new(Fields::of(paths));
    let mut seen = None;
    // However the stream is cut into pieces.
    for step in [1, 2, 3, 7, 64, usize::MAX] {
        let pieces = run(&mut Projection::new(Arc::clone(&fields), limit), &format!("{text}\n"), step);
        let [Piece::Whole(kept)] = pieces.as_slice() else { panic!("{pieces:?}") };
        let this = (value(kept), kept.cut);
        assert_eq!(*seen.get_or_insert_with(|| this.clone()), this);
    }
    seen.unwrap()
}

const EVERYTHING: &str = r#" {"a": [1, -2.5e3, {"x": null}, [], {}, [true, false]], "b\"\\": "t\"e\\\"x\u003ct\\", "": {"": ""}, "ü": "ä€" } "#;

#[test]
fn all_is_all() {
    for text in [EVERYTHING, "7", "\"x\"", "[[[]]]", "null", r#"{"a":"\\"}"#] {
        assert_eq!(whole(&[&[]], usize::MAX / 2, text), (serde_json::from_str(text).unwrap(), false), "{text}");
    }
}

#[test]
fn unwanted_fields_are_not_kept() {
    let object = json!({
        "metadata": {"name": "n", "annotations": {"etcd-tls.dev/a": "1", "other": "x".repeat(100_000)}, "managedFields": [{"f": {}}]},
        "spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "<<<"}]}, {"image": "i"}, {"name": "b"}],
            "nodeName": null, "flag": false},
        "status": {"certificate": "MIIB", "other": null},
        "name": "outside",
    });
    let paths: &[&[&str]] = &[
        &["metadata", "name"],
        &["metadata", "annotations", "etcd-tls.dev/*"],
        &["spec", "containers", "[]", "name"],
        &["spec", "nodeName"],
        &["spec", "flag"],
        &["status", "certificate", "?"],
        &["status", "other", "?"],
        &["missing"],
    ];
    let wanted = json!({
        "metadata": {"name": "n", "annotations": {"etcd-tls.dev/a": "1"}},
        "spec": {"containers": [{"name": "a"}, {}, {"name": "b"}], "nodeName": null, "flag": false},
        "status": {"certificate": true, "other": null},
    });
    assert_eq!(whole(paths, 1000, &object.to_string()), (wanted, false));
}

#[test]
fn fields_of_another_type_are_null() {
    let paths: &[&[&str]] = &[&["a", "b"], &["c", "[]"], &["d", "e"]];
    let (value, cut) = whole(paths, 1000, r#"{"a": [1, 2], "c": {"x": [1]}, "d": "text"}"#);
    assert_eq!((value, cut), (json!({"a": null, "c": null, "d": "text"}), false));
}

#[test]
fn the_elements_of_a_list_come_one_by_one() {
    let fields = Arc::new(Fields::of(&[&["metadata", "continue"], &["items", "[]", "name"]]));
    let text = r#"{"kind":"L","metadata":{"continue":"c","x":[]},"items":[{"name":"a","items":[1]},{"b":1},{"name":"c"}],"z":1}"#;
    for step in [1, 5, usize::MAX] {
        let pieces = run(&mut Projection::of_list(Arc::clone(&fields), "items", 1000), text, step);
        let values: Vec<_> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Item(kept) => (true, value(kept)),
                Piece::Whole(kept) => (false, value(kept)),
            })
            .collect();
        let items = [json!({"name": "a"}), json!({}), json!({"name": "c"})].map(|item| (true, item));
        assert_eq!(values[..3], items);
        assert_eq!(values[3], (false, json!({"metadata": {"continue": "c"}})));
    }
    let empty = run(&mut Projection::of_list(fields, "items", 1000), r#"{"items":null,"metadata":{}}"#, 1);
    assert_eq!(empty.len(), 1);
    let Piece::Whole(kept) = &empty[0] else { panic!() };
    assert_eq!(value(kept)["metadata"], json!({}));
}

#[test]
fn a_watch_is_a_stream_of_values() {
    let fields = Arc::new(Fields::of(&[&["type"], &["object", "a"]]));
    let mut projection = Projection::new(fields, 1000);
    let text = "{\"type\":\"ADDED\",\"object\":{\"a\":1,\"b\":2}}\n{\"type\":\"DELETED\",\"object\":{}}\n";
    let pieces = run(&mut projection, text, 4);
    assert_eq!(pieces.len(), 2);
    assert!(projection.is_between_values());
    projection.push(b"{\"type\"", |_| panic!("not complete")).unwrap();
    assert!(!projection.is_between_values());
}

#[test]
fn more_than_the_limit_is_cut_and_stays_json() {
    let large = "<".repeat(5000);
    for text in [
        json!({"a": {"x": large, "y": 1}, "b": 1}),
        json!({"a": {"many": vec!["0123456789"; 1000]}, "b": 1}),
        json!({"a": (0..1000).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>(), "b": 1}),
        json!({"a": {"k".repeat(5000): 1}, "b": 1}),
        json!({"a": vec![vec![vec![1; 10]; 10]; 100]}),
    ] {
        let text = text.to_string().replace('<', "\\u003c");
        let (value, cut) = whole(&[&["a"], &["b"]], 1000, &text);
        assert!(cut && value.to_string().len() < 1500, "{value}");
    }
    // The next piece has its own limit.
    let mut projection = Projection::new(Arc::new(Fields::of(&[&["a"]])), 100);
    let pieces = run(&mut projection, &format!("{{\"a\":\"{large}\"}}{{\"a\":1}}\n"), 10);
    assert!(matches!(&pieces[..], [Piece::Whole(Kept { cut: true, .. }), Piece::Whole(Kept { cut: false, .. })]));
}

#[test]
fn memory_does_not_follow_the_object() {
    let mut projection = Projection::new(Arc::new(Fields::of(&[&["a"]])), 1000);
    let piece = "\\u003c".repeat(1000);
    projection.push(b"{\"b\":\"", |_| {}).unwrap();
    for _ in 0..2000 {
        projection.push(piece.as_bytes(), |_| {}).unwrap();
    }
    projection.push(b"\",\"a\":\"", |_| {}).unwrap();
    for _ in 0..2000 {
        projection.push(piece.as_bytes(), |_| {}).unwrap();
    }
    assert!(projection.out.capacity() + projection.key.capacity() < 16 * 1024);
    let mut cut = false;
    projection.push(b"\"}", |piece| cut = matches!(piece, Piece::Whole(Kept { cut: true, .. }))).unwrap();
    assert!(cut);
}

#[test]
fn invalid_json_is_an_error() {
    for text in ["}", "{]", "{\"a\":x}", "upstream connect error", &"[".repeat(100_000)] {
        let mut projection = Projection::new(Arc::new(Fields::All), 1000);
        assert!(projection.push(text.as_bytes(), |_| {}).is_err(), "{text:.20}");
    }
}
