#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use etcd_tls_contract::names;
use serde_json::{Value, json};

use super::*;

fn admission() -> Admission {
    Admission {
        injection: Config { sidecar_image: "etcd-tls-sidecar:test".into(), ..Config::default() },
        leave_out: ["kube-system".to_owned()].into(),
    }
}

fn good() -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "prod", "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "admin"},
            "object": {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"generateName": "etcd-", "labels": {"etcd-tls": "dynamic"}},
                "spec": {"containers": [{"name": "etcd", "image": "etcd"}], "automountServiceAccountToken": false},
            },
            "oldObject": null,
        },
    })
}

fn asked(change: impl FnOnce(&mut Value)) -> Result<(Value, Verdict), BadReview> {
    let mut body = good();
    change(&mut body);
    let answer = mutate(&serde_json::to_vec(&body).unwrap(), &admission())?;
    let read: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(read["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(read["kind"], "AdmissionReview");
    assert_eq!(read["response"]["uid"], body["request"]["uid"]);
    Ok((read["response"].clone(), answer.verdict))
}

#[test]
fn a_pod_is_patched() {
    let (response, verdict) = asked(|_| {}).unwrap();
    assert_eq!((response["allowed"].clone(), verdict), (json!(true), Verdict::Inject));
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = good()["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    let (again, verdict) = asked(|body| body["request"]["object"] = pod).unwrap();
    assert_eq!(verdict, Verdict::InPlace);
    assert!(again.get("patch").is_none() && again.get("patchType").is_none());
}

#[test]
fn a_dry_run_is_answered_alike() {
    assert_eq!(asked(|_| {}), asked(|body| body["request"]["dryRun"] = json!(true)));
}

#[test]
fn invalid_reviews_are_errors() {
    let mut nested = vec![b'['; 10_000];
    nested.extend(vec![b']'; 10_000]);
    let mut deep = serde_json::to_string(&good()).unwrap().replace("\"oldObject\":null", "\"oldObject\":DEEP");
    deep = deep.replace(
        "\"automountServiceAccountToken\":false",
        &format!("\"x\":{}{}", "[".repeat(10_000), "]".repeat(10_000)),
    );
    let whole = serde_json::to_vec(&good()).unwrap();
    let utf16: Vec<u8> = String::from_utf8(whole.clone()).unwrap().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let trailing = [whole.as_slice(), b"{}"].concat();
    let mut invalid = whole.clone();
    let at = invalid.windows(4).position(|w| w == b"prod").unwrap();
    invalid[at] = 0xff;
    let many = format!("[{}1]", "1,".repeat(300_000));
    for body in [
        b"".as_slice(),
        b"null",
        b"[]",
        b"\"x\"",
        b"{}",
        b"{\"request\":null}",
        &whole[..whole.len() / 2],
        &trailing,
        &invalid,
        &utf16,
        &nested,
        deep.as_bytes(),
        many.as_bytes(),
        b"\x1f\x8b\x08\x00",
    ] {
        assert!(mutate(body, &admission()).is_err(), "{}", String::from_utf8_lossy(&body[..body.len().min(60)]));
    }
    for change in [
        json!({"apiVersion": "admission.k8s.io/v1beta1"}),
        json!({"apiVersion": "x"}),
        json!({"apiVersion": null}),
        json!({"kind": "Pod"}),
        json!({"request": null}),
        json!({"request": {}}),
        json!({"request": []}),
        json!({"request": {"uid": null}}),
        json!({"request": {"uid": 7}}),
        json!({"request": {"uid": ""}}),
        json!({"request": {"uid": "x".repeat(1 << 20)}}),
    ] {
        let mut body = good();
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        assert!(mutate(&serde_json::to_vec(&body).unwrap(), &admission()).is_err());
    }
}

#[test]
fn a_pod_that_is_none_is_refused_with_its_uid() {
    for (object, code) in [
        (json!(null), 400),
        (json!({"kind": "Secret"}), 400),
        (json!("x"), 422),
        (json!([]), 422),
        (json!({"kind": "Pod", "metadata": {"labels": {"etcd-tls": "dynamic"}}}), 422),
    ] {
        let (response, verdict) = asked(|body| body["request"]["object"] = object.clone()).unwrap();
        assert_eq!((response["allowed"].clone(), verdict), (json!(false), Verdict::Refuse), "{object}");
        assert_eq!(response["status"]["code"], code, "{object}");
        assert!(response["status"]["message"].as_str().unwrap().len() > 10);
        assert!(response.get("patch").is_none());
    }
    let (response, _) = asked(|body| {
        body["request"].as_object_mut().unwrap().remove("object");
    })
    .unwrap();
    assert_eq!(response["status"]["code"], 400);
    let (response, _) = asked(|body| body["request"]["namespace"] = json!(null)).unwrap();
    assert_eq!(response["status"]["code"], 400);
}

#[test]
fn reviews_of_other_operations_and_objects_are_left_alone() {
    for change in [
        json!({"operation": "UPDATE"}),
        json!({"operation": "DELETE", "object": null}),
        json!({"operation": "CONNECT"}),
        json!({"subResource": "ephemeralcontainers"}),
        json!({"subResource": "status"}),
        json!({"subResource": "binding"}),
        json!({"resource": {"group": "apps", "version": "v1", "resource": "deployments"}}),
        json!({"namespace": "kube-system"}),
    ] {
        let (response, verdict) = asked(|body| {
            for (key, value) in change.as_object().unwrap() {
                body["request"][key] = value.clone();
            }
        })
        .unwrap();
        assert_eq!((response["allowed"].clone(), verdict), (json!(true), Verdict::Leave), "{change}");
        assert!(response.get("patch").is_none());
    }
}

#[test]
fn mutilated_reviews_never_panic() {
    // Every truncation, and every byte replaced by bytes that mean something to JSON.
    let whole = serde_json::to_vec(&good()).unwrap();
    for end in 0..whole.len() {
        let _ = mutate(&whole[..end], &admission());
    }
    for at in 0..whole.len() {
        for byte in [b'"', b'{', b'}', b'[', b']', b',', b':', b'0', 0, 0xff] {
            let mut body = whole.clone();
            body[at] = byte;
            let _ = mutate(&body, &admission());
        }
    }
}

#[test]
fn a_field_given_twice_is_an_error_at_every_depth() {
    let of = |from: &str, to: &str| {
        let text = serde_json::to_string(&good()).unwrap().replacen(from, to, 1);
        mutate(text.as_bytes(), &admission()).map(|answer| answer.verdict)
    };
    let labels = r#"{"etcd-tls":"dynamic"}"#;
    let twice = |labels: &str| match of(r#"{"etcd-tls":"dynamic"}"#, labels) {
        Err(BadReview::Unreadable(why)) => assert!(why.contains("duplicate field"), "{why}"),
        other => panic!("{labels}: {other:?}"),
    };
    assert_eq!(of(labels, labels), Ok(Verdict::Inject));
    twice(r#"{"etcd-tls":"disabled","etcd-tls":"dynamic"}"#);
    twice(r#"{"etcd-tls":"dynamic","etcd-tls":"disabled"}"#);
    twice(r#"{"etcd-tls":"dynamic","etcd-tls":"dynamic"}"#);
    twice(r#"{"etcd-tls":"dynamic","etcd\u002dtls":"disabled"}"#);
    twice(r#"{"etcd-tls":"dynamic","x":[[{"a":{"b":1,"c":2,"b":1}}]]}"#);
    let many: Vec<String> = (0..1000).map(|n| format!(r#""k{n}":"v""#)).collect();
    let many = many.join(",");
    twice(&format!(r#"{{"etcd-tls":"dynamic",{many},"k7":"v"}}"#));
    assert_eq!(of(labels, &format!(r#"{{"etcd-tls":"dynamic",{many}}}"#)), Ok(Verdict::Inject));
    // Fields that no reader of a pod has: names are texts, whatever a JSON library makes of them.
    for key in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
        let labels = format!(r#"{{"etcd-tls":"dynamic","{key}":"{{\"etcd-tls\":\"disabled\"}}"}}"#);
        assert_eq!(of(r#"{"etcd-tls":"dynamic"}"#, &labels), Ok(Verdict::Inject), "{key}");
        let alone = format!(r#"{{"{key}":"{{\"etcd-tls\":\"disabled\"}}"}}"#);
        assert_eq!(of(r#"{"etcd-tls":"dynamic"}"#, &alone), Ok(Verdict::Inject), "{key}");
    }
    let text = serde_json::to_string(&good()).unwrap().replacen(r#""uid":"#, r#""uid":"x","uid":"#, 1);
    assert!(mutate(text.as_bytes(), &admission()).is_err(), "two uids are ambiguous");
}

#[test]
fn numbers_and_fields_that_nobody_knows_stay_as_they_are() {
    let future = r#""future":{"n":123456789012345678901234567890,"f":1e300,"i":9007199254740993},"containers""#;
    let text = serde_json::to_string(&good()).unwrap().replace(r#""containers""#, future);
    let answer = mutate(text.as_bytes(), &admission()).unwrap();
    let read: Value = serde_json::from_slice(&answer.body).unwrap();
    let patch = STANDARD.decode(read["response"]["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    assert!(!patch.is_empty());
    for operation in patch {
        assert_eq!(operation["op"], "add");
        assert!(!operation["path"].as_str().unwrap().contains("future"), "{operation}");
    }
}

/// A review of a StatefulSet whose pods speak plain HTTP.
fn workload(change: impl FnOnce(&mut Value)) -> (Value, Verdict) {
    let mut body = good();
    let template = json!({
        "metadata": {"labels": {"etcd-tls": "dynamic"}},
        "spec": {"containers": [{
            "name": "etcd", "image": "etcd", "command": ["etcd", "--listen-client-urls=http://0.0.0.0:2379"],
        }]},
    });
    body["request"]["resource"] = json!({"group": "apps", "version": "v1", "resource": "statefulsets"});
    body["request"]["object"] =
        json!({"kind": "StatefulSet", "metadata": {"name": "x"}, "spec": {"template": template}});
    change(&mut body["request"]);
    let answer = warn(&serde_json::to_vec(&body).unwrap(), &admission()).unwrap();
    let read: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(read["response"]["uid"], body["request"]["uid"]);
    (read["response"].clone(), answer.verdict)
}

#[test]
fn a_workload_is_warned_of_and_never_refused_or_changed() {
    let (response, _) = workload(|_| {});
    assert!(response["warnings"][0].as_str().unwrap().starts_with("etcd-tls: container etcd: "), "{response}");
    type Change = (&'static str, fn(&mut Value));
    let silent: [Change; 8] = [
        ("deleted", |r| r["operation"] = json!("DELETE")),
        ("the same template", |r| {
            r["operation"] = json!("UPDATE");
            r["oldObject"] = r["object"].clone();
        }),
        ("a subresource", |r| r["subResource"] = json!("scale")),
        ("another resource", |r| r["resource"]["resource"] = json!("replicasets")),
        ("a system namespace", |r| r["namespace"] = json!("kube-system")),
        ("no object", |r| r["object"] = json!(null)),
        ("no template", |r| r["object"]["spec"] = json!({})),
        ("no namespace", |r| r["namespace"] = json!(null)),
    ];
    for (what, change) in silent {
        let (response, verdict) = workload(change);
        assert_eq!((response["allowed"].clone(), verdict), (json!(true), Verdict::Leave), "{what}");
        assert!(response.get("warnings").is_none() && response.get("patch").is_none(), "{what}: {response}");
    }
    let (response, _) = workload(|r| {
        r["operation"] = json!("UPDATE");
        r["oldObject"] = r["object"].clone();
        r["oldObject"]["spec"]["template"]["metadata"]["labels"] = json!({});
    });
    assert!(response["warnings"].is_array(), "{response}");
    // Templates whose pods would be refused, and an invalid template.
    for template in [json!("x"), json!({"metadata": {"annotations": {"etcd-tls.dev/colour": "red"}}}), json!({})] {
        let (response, _) = workload(|r| r["object"]["spec"]["template"] = template.clone());
        assert_eq!(response["allowed"], true);
        let said = response["warnings"][0].as_str().unwrap();
        assert!(said.starts_with("etcd-tls: a pod of this template will be refused: "), "{said}");
    }
}

#[test]
fn a_review_in_a_trace_marks_the_pod_that_it_injects_and_answers_the_same_otherwise() {
    const PLACE: &str = "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c-01";
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(0x6a00_0000);
    // The pod after the review, and what is exported.
    let reviewed = |annotations: Value, traced: bool| {
        let mut body = good();
        body["request"]["uid"] = "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c12".into();
        body["request"]["object"]["metadata"]["annotations"] = annotations;
        let bytes = serde_json::to_vec(&body).unwrap();
        let answer =
            if traced { mutate_traced(&bytes, &admission(), now) } else { mutate(&bytes, &admission()) }.unwrap();
        let response: Value = serde_json::from_slice(&answer.body).unwrap();
        let patch = STANDARD.decode(response["response"]["patch"].as_str().unwrap()).unwrap();
        let mut pod = body["request"]["object"].take();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
        (pod, answer.trace)
    };
    let (plain, exported) = reviewed(json!({}), false);
    assert_eq!((plain["metadata"]["annotations"].get(names::TRACE_ANNOTATION), exported), (None, None));
    let (mut traced, exported) = reviewed(json!({}), true);
    let Traced { context, pod } = exported.unwrap();
    assert_eq!((context.to_string().as_str(), pod.as_str()), (PLACE, "prod/etcd-"));
    assert_eq!(traced["metadata"]["annotations"][names::TRACE_ANNOTATION], PLACE);
    traced["metadata"]["annotations"].as_object_mut().unwrap().remove(names::TRACE_ANNOTATION);
    assert_eq!(traced, plain);
    // An earlier look at the same pod may have written it; anything else is replaced.
    let other = PLACE.replace("0d5f", "1111");
    let annotated = |value: &str| json!({names::TRACE_ANNOTATION: value});
    assert_eq!(reviewed(annotated(&other), true).0["metadata"]["annotations"][names::TRACE_ANNOTATION], other.as_str());
    assert_eq!(reviewed(annotated("x"), true).0["metadata"]["annotations"][names::TRACE_ANNOTATION], PLACE);
    // Nothing is exported of a review that injects nothing.
    let mut left = good();
    left["request"]["namespace"] = "kube-system".into();
    let answer = mutate_traced(&serde_json::to_vec(&left).unwrap(), &admission(), now).unwrap();
    assert_eq!((answer.verdict, answer.trace), (Verdict::Leave, None));
}
