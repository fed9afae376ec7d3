//! The reach of each account by the rights in the manifests, in two steps. On a real API server, with the shipped manifests, as
//! the account itself. The rules are read from the manifests: one without a trial fails the suite.

use std::collections::{BTreeMap, BTreeSet};

use rights::{
    attacks,
    scene::{Call, LIMIT, RBAC, Scene, trust_bundle},
    shipped::{self, Rules},
    streams, subresources,
    trials::{self, Outcome, Trial},
};
use serde_json::json;
use tests::{
    apiserver::{ApiServer, Options},
    eventually, tier,
};

mod rights {
    pub mod attacks;
    pub mod components;
    pub mod scene;
    pub mod shipped;
    pub mod streams;
    pub mod subresources;
    pub mod trials;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_right_is_tried_with_what_it_is_not_for() {
    let Some(scene) = Scene::new().await else { return };
    let trials = trials::all(&scene);
    let [names, _] = trials::names();
    every_rule_is_tried(shipped::rules(), names, &trials);
    let wrong = outcomes(&scene, trials).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_right_of_a_component_is_tried_with_what_it_is_not_for() {
    let Some((scene, requests)) = Scene::with_components().await else { return };
    let trials = trials::of_components(&scene, &requests);
    let [_, names] = trials::names();
    every_rule_is_tried(shipped::rules_of_components(), names, &trials);
    let wrong = outcomes(&scene, trials).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// That nothing is shipped without a trial and with other names than are `meant`, and nothing tried that is not shipped.
fn every_rule_is_tried(shipped: Rules, mut meant: Rules, trials: &[Trial]) {
    // A rule is tried by a refusal, or its reach is stated; each refusal has a legitimate use beside it.
    let mut tried: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for trial in trials {
        tried.entry(trial.rule.clone()).or_default().push(trial.outcome);
    }
    let untried: Vec<_> = shipped.keys().filter(|rule| !tried.contains_key(rule)).map(ToString::to_string).collect();
    assert!(untried.is_empty(), "rights that nothing tries to misuse: {untried:#?}");
    let gone: Vec<_> = tried.keys().filter(|rule| !shipped.contains_key(rule)).map(ToString::to_string).collect();
    assert!(gone.is_empty(), "trials of rights that are not shipped: {gone:#?}");
    for (rule, outcomes) in tried {
        let decided = outcomes.iter().any(|o| matches!(o, Outcome::Refused(_) | Outcome::Stated(_)));
        assert!(decided, "{rule}: nothing that it is not for is tried");
    }

    for (rule, names) in shipped {
        // A rule without names is one for every object.
        let meant = meant.remove(&rule).unwrap_or_else(|| BTreeSet::from([BTreeSet::new()]));
        assert_eq!(names, meant, "{rule}: the names of its objects");
    }
    assert!(meant.is_empty(), "names of rules that are not shipped: {meant:#?}");
}

/// What comes of other calls than it should.
async fn outcomes(scene: &Scene, trials: Vec<Trial>) -> Vec<String> {
    let mut wrong = Vec::new();
    for trial in trials {
        let (rule, what) = (&trial.rule, trial.what);
        let Some(call) = trial.call.clone() else {
            assert!(matches!(trial.outcome, Outcome::Stated(why) if why.len() > 20), "{rule}: {what}: not stated");
            continue;
        };
        match trial.outcome {
            Outcome::Refused(why) => match scene.call(trial.account, call).await {
                Ok(_) => wrong.push(format!("{rule}: {what}: not refused")),
                Err(error) if (error.starts_with("403") || error.starts_with("422")) && error.contains(why) => {}
                Err(error) => wrong.push(format!("{rule}: {what}: refused otherwise: {error}")),
            },
            Outcome::Works => {
                if let Err(error) = scene.call(trial.account, call).await {
                    wrong.push(format!("{rule}: {what}: refused: {error}"));
                }
            }
            Outcome::Stated(_) => unreachable!("a statement calls nothing"),
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_1_a_stolen_approver_gives_itself_nothing() {
    let Some(scene) = Scene::new().await else { return };
    attacks::stolen_approver(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_2_a_request_stays_small_after_it_was_created() {
    let Some(scene) = Scene::new().await else { return };
    attacks::requests_that_grow(&scene).await;
    attacks::flows(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_4_rights_to_config_maps_are_no_rights_to_trust() {
    let Some(scene) = Scene::new().await else { return };
    attacks::trust_by_config_map_rights(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_5_a_stolen_signer_sends_no_object_elsewhere_and_gets_no_token() {
    let Some(scene) = Scene::new().await else { return };
    attacks::stolen_signer(&scene).await;
    attacks::a_client_becomes_a_member(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subresource_of_a_pod_reaches_that_pod_and_does_not_change_what_it_is() {
    let Some(scene) = Scene::new().await else { return };
    subresources::reach_one_pod_and_do_not_change_what_it_is(&scene).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_into_a_pod_reaches_that_pod_and_its_ports_and_makes_no_request_of_it() {
    let Some(scene) = Scene::new().await else { return };
    streams::reach_the_pod_that_they_name(&scene).await;
}

/// With Kubernetes' controllers: `admin` holds the marker right, policies have no type errors, and namespaces go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_labelled_namespace_deletes_completely_and_its_admin_commands_its_authorities() {
    if !tier::kubernetes().is_some_and(|assets| assets.join("kube-controller-manager").is_file()) {
        return;
    }
    let options = Options { controller_manager: true, ..Options::default() };
    let Some(api) = ApiServer::start_with(&options).await else { return };
    api.apply_kustomization("manifests");
    api.namespace("prod", &[("etcd-tls", "dynamic")]).await;
    let binding = json!({"metadata": {"name": "anna"}, "subjects": [{"kind": "User", "name": "anna", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "admin", "apiGroup": "rbac.authorization.k8s.io"}});
    let call =
        async |client: &kube::Client, call: Call| rights::scene::send(client, call).await.map(|(_, value)| value);
    call(&api.client, Call::post(format!("{RBAC}/namespaces/prod/rolebindings"), binding)).await.expect("bind");
    let all = "/api/v1/namespaces/prod/configmaps";
    let anna = rights::scene::impersonating(&api, "anna", &["system:authenticated"]).await;
    let emil = rights::scene::impersonating(&api, "emil", &["system:authenticated"]).await;
    let edit = json!({"metadata": {"name": "emil"}, "subjects": [{"kind": "User", "name": "emil", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "edit", "apiGroup": "rbac.authorization.k8s.io"}});
    call(&api.client, Call::post(format!("{RBAC}/namespaces/prod/rolebindings"), edit)).await.expect("bind");
    eventually("the policy", LIMIT, || async {
        match call(&emil, Call::post(all, trust_bundle("etcd-tls-trust-etcd")).dry()).await {
            Err(error) if error.contains("etcd-tls-trust") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    eventually("admin holds the marker right", LIMIT, || {
        call(&anna, Call::post(all, trust_bundle("etcd-tls-trust-etcd")))
    })
    .await;
    // Deleted in the foreground, it waits for the garbage collector.
    let foreground =
        Call { body: json!({"propagationPolicy": "Foreground"}), ..Call::delete(format!("{all}/etcd-tls-trust-etcd")) };
    call(&anna, foreground).await.expect("delete");
    eventually("collected", LIMIT, || async {
        match call(&api.client, Call::get(format!("{all}/etcd-tls-trust-etcd"))).await {
            Err(error) if error.starts_with("404") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    call(&anna, Call::post(all, trust_bundle("etcd-tls-trust-etcd"))).await.expect("create");
    call(&api.client, Call::delete("/api/v1/namespaces/prod")).await.expect("delete");
    eventually("the namespace goes", LIMIT, || async {
        match call(&api.client, Call::get("/api/v1/namespaces/prod")).await {
            Err(error) if error.starts_with("404") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // kube-controller-manager checks the types of each policy.
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    eventually("types checked", LIMIT, || async {
        let found = call(&api.client, Call::get(policies)).await?;
        for policy in found["items"].as_array().expect("items") {
            let status = &policy["status"];
            if status["observedGeneration"] != policy["metadata"]["generation"] {
                return Err(format!("not yet: {}", policy["metadata"]["name"]));
            }
            assert!(status["typeChecking"]["expressionWarnings"].is_null(), "{}: {status}", policy["metadata"]["name"]);
        }
        Ok(())
    })
    .await;
}
