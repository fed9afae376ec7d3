//! The rights that components add: cert-manager, approve-others, pod-certificates and cluster-trust-bundles.

use tests::cluster_trust_bundle::cluster_trust_bundle;

use super::*;
use crate::rights::components::{BUNDLES, CERTIFICATE_REQUESTS, POD_REQUESTS, Requests, certificate_request};

const CERTIFICATE_REQUEST: &str = "cert-manager.io/certificaterequests";

pub(super) fn requester(t: &mut Of<'_>, scene: &Scene) {
    let r = CERTIFICATE_REQUEST;
    t.stated(r, &["get"], "a pod reads each CertificateRequest of the cluster whose name it knows");
    let good = certificate_request(&scene.uid, "f");
    t.try_(r, "create", "ours", Call::post(CERTIFICATE_REQUESTS, good.clone()).dry(), Works);
    let bad = |change: &dyn Fn(&mut Value)| {
        let mut request = good.clone();
        change(&mut request);
        Call::post(CERTIFICATE_REQUESTS, request)
    };
    let other = certificate_request("6cc1c6c0-0000-4000-8000-000000000000", "f")["metadata"]["name"].clone();
    for (what, call, why) in [
        ("for another pod", bad(&|r| r["metadata"]["name"] = other.clone()), "the name of the request must be"),
        ("for a CA", bad(&|r| r["spec"]["isCA"] = true.into()), "spec.isCA is not for pods"),
        (
            "of an issuer with a long name",
            bad(&|r| r["spec"]["issuerRef"]["name"] = "x".repeat(512).into()),
            "spec.issuerRef is longer",
        ),
        ("of another issuer", bad(&|r| r["spec"]["issuerRef"]["name"] = "x".into()), "may not request from"),
        (
            "in another namespace",
            Call::post(CERTIFICATE_REQUESTS.replace("prod", "web"), good.clone()),
            "of its own namespace",
        ),
    ] {
        t.try_(r, "create", what, call, Refused(why));
    }
}

/// To read its policies, and no other.
fn policies(t: &mut Of<'_>) {
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicies", &["get"], VAP, "other");
    t.other_name_refused("admissionregistration.k8s.io/validatingadmissionpolicybindings", &["get"], VAPB, "other");
}

pub(super) fn approve(t: &mut Of<'_>, requests: &Requests) {
    policies(t);
    t.stated(CERTIFICATE_REQUEST, &["get", "list", "watch"], "`approve` reads every CertificateRequest of the cluster");
    let r = "cert-manager.io/certificaterequests/status";
    let status = |name: &str, status: Value| {
        Call::merge(format!("{CERTIFICATE_REQUESTS}/{name}/status"), json!({"status": status}))
    };
    let condition =
        |type_: &str| json!({"conditions": [{"type": type_, "status": "True", "reason": "Test", "message": "m"}]});
    t.try_(r, "patch", "decide", status(&requests.listed, condition("Approved")).dry(), Works);
    for (what, call, why) in [
        ("another's issuer", status(&requests.unlisted, condition("Approved")), "needs the verb approve"),
        ("another's request", status("company", condition("Approved")), "only CertificateRequests of pods"),
        ("say that it is issued", status(&requests.listed, condition("Ready")), "one condition"),
        ("issue", status(&requests.listed, json!({"certificate": "YWJj"})), "no certificate"),
    ] {
        t.try_(r, "patch", what, call, Refused(why));
    }
}

pub(super) fn sign(t: &mut Of<'_>, scene: &Scene, requests: &Requests) {
    policies(t);
    let r = CERTIFICATE_REQUEST;
    t.stated(r, &["get", "list"], "`sign` reads every CertificateRequest of the cluster");
    let one = |name: &str| Call::delete(format!("{CERTIFICATE_REQUESTS}/{name}"));
    t.try_(r, "delete", "a pod's", one(&requests.listed).dry(), Works);
    t.try_(
        r,
        "delete",
        "another's",
        one("company"),
        Refused("etcd-tls: sign deletes only CertificateRequests of pods"),
    );

    let r = "certificates.k8s.io/podcertificaterequests";
    t.stated(r, &["get", "list", "watch"], "`sign` reads every PodCertificateRequest of the cluster");
    let denied = json!({"status": {"conditions": [{
        "type": "Denied", "status": "True", "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let answer = |name: &str| Call::merge(format!("{POD_REQUESTS}/{name}/status"), denied.clone());
    let r = &format!("{r}/status");
    t.try_(r, "patch", "of ours", answer("ours").dry(), Works);
    t.try_(r, "patch", "of another signer", answer("theirs"), Refused(r#"not permitted to "sign""#));

    let r = "certificates.k8s.io/clustertrustbundles";
    t.stated(r, &["list"], "`sign` reads every ClusterTrustBundle");
    let pem = &scene.api.ca.pem;
    let ours = |cluster: &str| {
        let signer = format!("peer.etcd-tls.dev/prod.{cluster}");
        cluster_trust_bundle(&format!("{}:bundle", signer.replace('/', ":")), Some(&signer), pem)
    };
    let only = Refused("etcd-tls: sign writes and deletes no ClusterTrustBundles but");
    let at = |object: &Value| format!("{BUNDLES}/{}", object["metadata"]["name"].as_str().expect("a name"));
    t.try_(r, "create", "ours", Call::post(BUNDLES, ours("new")).dry(), Works);
    t.try_(r, "create", "of no signer", Call::post(BUNDLES, cluster_trust_bundle("company2", None, pem)), only);
    let mut held = ours("new");
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    t.try_(r, "create", "with a finalizer", Call::post(BUNDLES, held), Refused("etcd-tls: sign writes no metadata"));
    let pem = json!({"spec": {"trustBundle": pem.repeat(2)}});
    let two = json!({"spec": {"trustBundle": format!("{}{}", scene.api.ca.pem, tests::pki::Ca::new("other").pem)}});
    t.try_(r, "patch", "ours", Call::merge(at(&ours("etcd")), two.clone()).dry(), Works);
    t.try_(r, "patch", "another's", Call::merge(format!("{BUNDLES}/company"), two), only);
    t.try_(r, "patch", "a CA twice", Call::merge(at(&ours("etcd")), pem), Refused("duplicate"));
    t.try_(r, "delete", "ours", Call::delete(at(&ours("etcd"))).dry(), Works);
    t.try_(r, "delete", "another's", Call::delete(format!("{BUNDLES}/company")), only);
    let theirs = cluster_trust_bundle("example.com:ca:x", Some("example.com/ca"), &scene.api.ca.pem);
    let r = "certificates.k8s.io/signers";
    t.try_(r, "attest", "for another signer", Call::post(BUNDLES, theirs), Refused("not permitted to attest"));
}
