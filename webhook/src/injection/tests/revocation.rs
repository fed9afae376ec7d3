//! Containers that get the options of the revocation lists: etcd refuses everybody while the named file is missing.

use super::*;

const FILES: [(&str, &str); 2] =
    [("ETCD_CLIENT_CRL_FILE", "/etc/etcd/tls/server/ca.crl"), ("ETCD_PEER_CRL_FILE", "/etc/etcd/tls/peer/ca.crl")];

fn told(pod: &Value) -> Vec<(String, String)> {
    let env = pod["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    let pair = |e: &Value| Some((e["name"].as_str()?.to_owned(), e["value"].as_str()?.to_owned()));
    env.iter().filter_map(pair).filter(|(name, _)| name.ends_with("_CRL_FILE")).collect()
}

#[test]
fn a_member_is_told_of_its_lists_unless_it_does_not_want_them() {
    let expected = FILES.map(|(name, file)| (name.to_owned(), file.to_owned()));
    assert_eq!(told(&injected(&annotated("revocation", "on")).0), told(&injected(&member()).0));
    let mut all = told(&injected(&member()).0);
    all.sort();
    assert_eq!(all, expected);
    assert!(told(&injected(&annotated("revocation", "off")).0).is_empty());
    let client = injected(&annotated("roles", "client")).0;
    assert!(told(&client).is_empty(), "etcdctl takes no list");
    let issuer = with(|pod| {
        pod["metadata"]["annotations"] = json!({"etcd-tls.dev/issuer": "csr:example.com/etcd"});
    });
    if let PodDecision::Inject { patch, .. } = run(&issuer) {
        let mut after = issuer.clone();
        patch.apply(&mut after).unwrap();
        assert!(told(&after).is_empty(), "nobody publishes lists of another issuer");
    }
    let own = with(|pod| {
        pod["spec"]["containers"][0]["command"].as_array_mut().unwrap().push(json!("--client-crl-file=/own.crl"));
    });
    let (pod, warnings) = injected(&own);
    assert_eq!(told(&pod).len(), 1, "an option of the pod stays the pod's: etcd stops if both set it");
    assert!(warnings.iter().any(|w| w.contains("--client-crl-file=/own.crl")), "{warnings:?}");
}

/// The injected containers get the argument as well: an image that writes no lists refuses it, and the pod does not start.
#[test]
fn the_image_is_told_where_etcd_is() {
    let said = |pod: &Value| {
        let containers = pod["spec"]["initContainers"].as_array().unwrap();
        let told = |c: &&Value| c["args"].as_array().unwrap().contains(&json!("--revocation-lists"));
        containers.iter().filter(told).count()
    };
    assert_eq!(said(&injected(&member()).0), 2);
    for annotation in [("revocation", "off"), ("roles", "client")] {
        assert_eq!(said(&injected(&annotated(annotation.0, annotation.1)).0), 0, "{annotation:?}");
    }
}

#[test]
fn a_pod_that_was_injected_before_is_not_told() {
    let mut before = injected(&annotated("revocation", "off")).0;
    let annotations = before["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.shift_remove("etcd-tls.dev/revocation");
    assert!(told(&injected(&before).0).is_empty(), "its init container may write no list, under any image name");
    let mut renamed = injected(&member()).0;
    for container in renamed["spec"]["initContainers"].as_array_mut().unwrap() {
        container["image"] = json!("mirror.example.com/etcd-tls-sidecar:x");
    }
    let mut again = renamed.clone();
    again["spec"]["containers"][0]["env"] = json!([]);
    assert_eq!(injected(&renamed).0, renamed, "another webhook names the image otherwise");
    assert_eq!(told(&injected(&again).0).len(), 2);
}
