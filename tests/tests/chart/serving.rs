//! The chart's `certManager.servingPair` with cert-manager itself: its Certificate is admission's serving pair, and is renewed.

use etcd_tls_contract::certificate::Chain;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use tests::{
    apiserver::ApiServer,
    cert_manager::{
        CertManager,
        itself::{Controller, ISSUER, Programs},
    },
    eventually,
    installation::{self, Installation, LIMIT, Options},
};

use super::{cluster::SYSTEM, helm, rendered};

const PAIR: &str = "etcd-tls-admit-serving";

/// The serial number of the pair that is there.
async fn serial(secrets: &Api<Secret>) -> Result<String, String> {
    let secret = secrets.get_opt(PAIR).await.map_err(|e| e.to_string())?.ok_or("no Secret")?;
    let data = secret.data.unwrap_or_default();
    let chain = data.get("tls.crt").filter(|chain| !chain.0.is_empty()).ok_or("no certificate")?;
    Chain::parse(&chain.0).map(|chain| chain.serial).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_of_cert_manager_itself_serves_admission() {
    let Some(programs) = Programs::find() else { return };
    let Some(helm) = helm() else { return };
    if !installation::can_start() {
        return;
    }
    let Some(api) = ApiServer::start().await else { return };
    api.apply_kustomization("manifests");
    let controller = Controller::start(&api, &programs).await;
    let _issuer = CertManager::itself(&controller, SYSTEM);
    let issuer = json!({"kind": "Issuer", "name": ISSUER});
    let objects = rendered(&helm, &json!({"certManager": {"servingPair": {"enabled": true, "issuer": issuer}}}));
    let certificate = objects.iter().find(|((kind, ..), _)| kind == "Certificate").expect("a Certificate").1;
    api.apply(&certificate.to_string());
    let secrets: Api<Secret> = Api::namespaced(api.client.clone(), SYSTEM);
    eventually("cert-manager's pair", LIMIT, || serial(&secrets)).await;

    // In the place of cainjector, as the annotation of the chart's configurations has it.
    let ca = secrets.get(PAIR).await.expect("the Secret").data.unwrap_or_default().remove("ca.crt").expect("its CA");
    let ca = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &ca.0);
    let path = "mutatingwebhookconfiguration";
    let live: Value = serde_json::from_str(&api.kubectl(&["get", path, "etcd-tls", "-o", "json"])).expect("JSON");
    let count = live["webhooks"].as_array().expect("webhooks").len();
    let place = |n: usize| json!({"op": "add", "path": format!("/webhooks/{n}/clientConfig/caBundle"), "value": ca});
    let add = Value::Array((0..count).map(place).collect()).to_string();
    api.kubectl(&["patch", path, "etcd-tls", "--type=json", "--patch", &add]);

    // It begins when a labelled pod can be created.
    let options = Options { sign: vec!["--external-serving-pair".to_owned()], ..Options::default() };
    let installation = Installation::start_on(api, &options).await;
    let first = serial(&secrets).await.expect("the pair");
    let injected = |name: &'static str| {
        let installation = &installation;
        async move {
            let pod = installation
                .api
                .pod("installation-probe", installation::client_pod(name, "client"))
                .await
                .map_err(|e| e.to_string())?;
            let containers = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
            if containers.len() == 2 { Ok(()) } else { Err("not injected".to_owned()) }
        }
    };
    injected("first").await.expect("a pod");
    // Its next pair comes into use, and nobody but it writes.
    installation.api.kubectl(&["-n", SYSTEM, "delete", "secret", PAIR]);
    eventually("the next pair", LIMIT, || async {
        let next = serial(&secrets).await?;
        if next == first { Err(next) } else { Ok(()) }
    })
    .await;
    injected("second").await.expect("a pod");
    let of = secrets.get(PAIR).await.expect("the Secret").metadata.annotations.unwrap_or_default();
    assert_eq!(of.get("cert-manager.io/certificate-name").map(String::as_str), Some("etcd-tls-admit"), "{of:?}");
}
