//! Writes that must be refused, tried as dry runs: nothing is kept of one that gets through.

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Secret},
    events::v1::Event,
    rbac::v1::{ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Guard;
use crate::controller::{
    client::{ApiServerError, within},
    listed::{self, Events, Metadata, Source, WatchError},
    namespaces,
};

/// A name that nothing of ours has.
const NAME: &str = "etcd-tls-policy-check";
/// A CA of nobody, whose key was thrown away: the API server takes no bundle without one.
const CERTIFICATE: &str = include_str!("check.pem");
/// Requests that are looked through for one of ours.
const PAGE: u32 = 50;
/// Metadata of CertificateRequests that are listed at once.
const METADATA_PAGE: u32 = 500;
/// How long they are looked through: other policies are to be proven, too.
const LOOK_FOR: Duration = Duration::from_secs(45);
/// Bytes of one CertificateRequest that are read.
const MOST_OF_ONE: usize = 4 * 1024;
/// Namespaces in which a write is tried, before there is nothing to try.
const NAMESPACES: usize = 5;

/// A write that the policy of a guard refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// A RoleBinding without `sign`.
    RoleBinding,
    /// A Role with another right.
    Role,
    /// A broad group among the requesters.
    Requesters,
    /// A Lease of another name.
    Lease,
    /// An Event under another name.
    Event,
    /// A Secret of another name.
    Secret,
    /// A ConfigMap of another name.
    ConfigMap,
    /// An annotation of the webhook configuration.
    WebhookConfiguration,
    /// An annotation of a request, with this subresource.
    Request(&'static str),
    /// A ClusterTrustBundle of another name.
    ClusterTrustBundle,
    /// The deletion of a CertificateRequest that is no pod's.
    CertificateRequest,
    /// A decision on such a CertificateRequest.
    CertificateRequestStatus,
}

/// Its result.
#[derive(Debug)]
pub(super) enum Answer {
    /// By the policy.
    Refused,
    /// Not refused.
    Accepted,
    /// There is no object on which to try it, and so none that could be misused.
    NothingToTry,
    /// Another answer, which says nothing of the policy.
    Unknown(String),
}

impl Attempt {
    /// Those of a process for a guard. Where there is none, what the live objects say must do.
    pub(super) fn of(guard: Guard, process: &str) -> Vec<Self> {
        let approve = process == "approve";
        match guard {
            Guard::Bindings => vec![Self::RoleBinding, Self::Role, Self::Requesters],
            Guard::Leases => vec![Self::Lease],
            Guard::Events => vec![Self::Event],
            Guard::Secrets => vec![Self::Secret],
            Guard::Trust => vec![Self::ConfigMap],
            Guard::Webhooks => vec![Self::WebhookConfiguration],
            Guard::ClusterTrustBundles => vec![Self::ClusterTrustBundle],
            Guard::CertificateRequestDeletes => vec![Self::CertificateRequest],
            Guard::CertificateRequestApprovals => vec![Self::CertificateRequestStatus],
            Guard::RequestWrites => vec![Self::Request(if approve { "approval" } else { "status" })],
            // Our accounts have none of the rights of pods, their requesters and kubelets. Another policy's attempt must prove
            // that the API server enforces policies: see `Access::guards`.
            Guard::Requests
            | Guard::Pods
            | Guard::PodCertificates
            | Guard::CertificateRequests
            | Guard::CertificateRequestIdentities => Vec::new(),
        }
    }

    /// The write, for people.
    pub(super) const fn what(self) -> &'static str {
        match self {
            Self::RoleBinding => "a RoleBinding for nobody",
            Self::Role => "a Role to read every Secret",
            Self::Requesters => "every authenticated user among the requesters",
            Self::Lease => "another Lease",
            Self::Event => "an Event under another name",
            Self::Secret => "another Secret",
            Self::ConfigMap => "another ConfigMap",
            Self::WebhookConfiguration => "an annotation of the webhook configuration",
            Self::Request(_) => "an annotation of a request",
            Self::ClusterTrustBundle => "another ClusterTrustBundle",
            Self::CertificateRequest => "the deletion of a CertificateRequest of others",
            Self::CertificateRequestStatus => "a decision on a CertificateRequest of others",
        }
    }

    /// Tries it.
    pub(super) async fn make(
        self,
        client: &Client,
        system: &str,
        namespaces: &namespaces::Current,
        policy: &str,
    ) -> Answer {
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };
        let apply = PatchParams { dry_run: true, ..PatchParams::apply("etcd-tls-policy-check").force() };
        let annotation = json!({"metadata": {"annotations": {NAME: "x"}}});
        let rbac = "rbac.authorization.k8s.io";
        let role = |name: &str| json!({"apiGroup": rbac, "kind": "ClusterRole", "name": name});
        match self {
            Self::RoleBinding => {
                let binding = json!({
                    "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": {"name": "etcd-tls-sign"},
                    "roleRef": role("etcd-tls-trust"), "subjects": [],
                });
                let api: Api<RoleBinding> = Api::namespaced(client.clone(), "default");
                judge(within(api.patch("etcd-tls-sign", &apply, &Patch::Apply(binding))).await, policy)
            }
            Self::Role => {
                let role = json!({
                    "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": {"name": "etcd-tls-trust-reader"},
                    "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
                });
                let api: Api<Role> = Api::namespaced(client.clone(), "default");
                judge(within(api.patch("etcd-tls-trust-reader", &apply, &Patch::Apply(role))).await, policy)
            }
            Self::Requesters => {
                let everybody = json!({"apiGroup": rbac, "kind": "Group", "name": "system:authenticated"});
                let binding = json!({
                    "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
                    "metadata": {"name": "etcd-tls-requesters"}, "roleRef": role("etcd-tls-requester"),
                    "subjects": [everybody],
                });
                let api: Api<ClusterRoleBinding> = Api::all(client.clone());
                judge(within(api.patch("etcd-tls-requesters", &apply, &Patch::Apply(binding))).await, policy)
            }
            Self::Lease => {
                let api: Api<Lease> = Api::namespaced(client.clone(), system);
                let lease =
                    json!({"metadata": {"name": NAME}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 1}});
                create(&api, lease, policy).await
            }
            Self::Event => {
                let api: Api<Event> = Api::namespaced(client.clone(), system);
                let event = json!({
                    "metadata": {"name": NAME}, "action": "Check", "reason": "Check", "type": "Normal", "note": "none",
                    "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/other",
                    "reportingInstance": "x", "regarding": {"kind": "Namespace", "name": system, "namespace": system},
                });
                create(&api, event, policy).await
            }
            Self::Secret => {
                let api: Api<Secret> = Api::namespaced(client.clone(), system);
                create(&api, json!({"metadata": {"name": NAME}, "type": "Opaque"}), policy).await
            }
            Self::ConfigMap => {
                let opted_in: Vec<String> = namespaces
                    .borrow()
                    .iter()
                    .flat_map(|map| map.iter())
                    .filter(|(_, facts)| facts.opted_in && !facts.deleting)
                    .map(|(name, _)| name.to_string())
                    .take(NAMESPACES)
                    .collect();
                for namespace in opted_in {
                    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
                    match create(&api, json!({"metadata": {"name": NAME}}), policy).await {
                        // Not bound there yet.
                        Answer::Unknown(error) if error.contains("cannot create resource") => {}
                        answer => return answer,
                    }
                }
                Answer::NothingToTry
            }
            Self::ClusterTrustBundle => {
                for version in ["v1", "v1beta1"] {
                    let kind = GroupVersionKind::gvk("certificates.k8s.io", version, "ClusterTrustBundle");
                    let resource = ApiResource::from_gvk_with_plural(&kind, "clustertrustbundles");
                    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
                    let bundle = json!({
                        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": NAME},
                        "spec": {"trustBundle": CERTIFICATE},
                    });
                    match create(&api, bundle, policy).await {
                        // Not served in this version.
                        Answer::NothingToTry => {}
                        answer => return answer,
                    }
                }
                Answer::NothingToTry
            }
            Self::CertificateRequest => try_another(client, policy, false).await,
            Self::CertificateRequestStatus => try_another(client, policy, true).await,
            Self::WebhookConfiguration => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
                judge(within(api.patch("etcd-tls", &dry, &Patch::Merge(annotation))).await, policy)
            }
            Self::Request(subresource) => {
                let api: Api<CertificateSigningRequest> = Api::all(client.clone());
                let list = match within(api.list_metadata(&ListParams::default().limit(PAGE))).await {
                    Ok(list) => list,
                    Err(error) => return Answer::Unknown(error.to_string()),
                };
                let ours = list.items.into_iter().filter_map(|item| item.metadata.name);
                let Some(name) = ours.into_iter().find(|name| name.starts_with("etcd-tls-")) else {
                    return Answer::NothingToTry;
                };
                let patch = Patch::Merge(annotation);
                judge(within(api.patch_subresource(subresource, &name, &dry, &patch)).await, policy)
            }
        }
    }
}

/// The CertificateRequests of the cluster, by their names.
fn of_cert_manager() -> Source {
    Source {
        path: "/apis/cert-manager.io/v1/certificaterequests".to_owned(),
        metadata_alone: true,
        in_pages: true,
        page: METADATA_PAGE,
        wanted: &[&["metadata", "namespace"], &["metadata", "name"]],
        limit: MOST_OF_ONE,
        ..Source::default()
    }
}

/// The namespace and the name of a CertificateRequest whose name is none of ours. However large the requests are, and however many,
/// one is read at a time, and none behind the first that is found.
async fn another(mut requests: Events<Metadata>) -> Result<Option<(String, String)>, WatchError> {
    loop {
        match requests.next().await? {
            listed::Event::Listed(object) => {
                let named = object.metadata.namespace.zip(object.metadata.name);
                if let Some(found) = named.filter(|(_, name)| !name.starts_with("etcd-tls-")) {
                    return Ok(Some(found));
                }
            }
            listed::Event::Complete => return Ok(None),
            _ => {}
        }
    }
}

/// Tries to delete or to decide a CertificateRequest whose name is none of ours. Where there is none, none could be misused.
async fn try_another(client: &Client, policy: &str, decide: bool) -> Answer {
    let requests = Events::new(client.clone(), of_cert_manager());
    let (namespace, name) = match timeout(LOOK_FOR, another(requests)).await {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) => return Answer::NothingToTry,
        // Not served: cert-manager is not installed.
        Ok(Err(WatchError::Request(error))) if error.is_not_found() => return Answer::NothingToTry,
        Ok(Err(error)) => return Answer::Unknown(error.to_string()),
        Err(_) => return Answer::Unknown(format!("no request of others was found within {} s", LOOK_FOR.as_secs())),
    };
    // By the query, as in all dry runs: the gate lets through what is one by its query, and kube writes it into the body.
    let path = format!("/apis/cert-manager.io/v1/namespaces/{namespace}/certificaterequests/{name}");
    let request = if decide {
        let status = json!({"status": {"conditions": [{"type": "Denied", "status": "True", "reason": NAME}]}});
        let request = hyper::Request::patch(format!("{path}/status?dryRun=All"));
        request.header("content-type", "application/merge-patch+json").body(status.to_string().into_bytes())
    } else {
        hyper::Request::delete(format!("{path}?dryRun=All")).body(Vec::new())
    };
    match request {
        Ok(request) => judge(within(client.request::<Value>(request)).await, policy),
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

async fn create<K>(api: &Api<K>, object: Value, policy: &str) -> Answer
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    match serde_json::from_value::<K>(object) {
        Ok(object) => {
            judge(within(api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object)).await, policy)
        }
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

/// Only the policy's own refusal proves it: RBAC, another policy and a failing API server refuse as well.
fn judge<T>(result: Result<T, ApiServerError>, policy: &str) -> Answer {
    match result {
        Ok(_) => Answer::Accepted,
        Err(error) if error.is_not_found() => Answer::NothingToTry,
        Err(ApiServerError::Api(kube::Error::Api(status)))
            if status.message.contains(&format!("ValidatingAdmissionPolicy '{policy}'")) =>
        {
            Answer::Refused
        }
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refused(code: u16, message: &str) -> Answer {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        judge::<()>(Err(ApiServerError::Api(kube::Error::Api(Box::new(status)))), "etcd-tls-secrets")
    }

    /// Of 100,000 requests of others, that would be hundreds of lists.
    #[tokio::test]
    async fn no_request_is_listed_behind_the_first_of_others() {
        let (asked, count) =
            (std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0)), std::sync::atomic::Ordering::SeqCst);
        let counted = std::sync::Arc::clone(&asked);
        let client = Client::new(
            tower::service_fn(move |_: hyper::Request<kube::client::Body>| {
                let page = counted.fetch_add(1, count);
                let named = |name: &str| json!({"metadata": {"namespace": "prod", "name": name}});
                let items = [named("etcd-tls-u-peer-1"), named(if page < 2 { "etcd-tls-u-peer-2" } else { "web-1" })];
                let page = json!({"metadata": {"resourceVersion": "7", "continue": "more"}, "items": items});
                let page = http_body_util::Full::new(hyper::body::Bytes::from(page.to_string()));
                std::future::ready(Ok::<_, std::convert::Infallible>(hyper::Response::new(page)))
            }),
            "default",
        );
        let found = another(Events::new(client, of_cert_manager())).await.expect("an answer");
        assert_eq!(found, Some(("prod".to_owned(), "web-1".to_owned())));
        assert_eq!(asked.load(count), 3);
    }

    #[test]
    fn only_the_policys_own_refusal_is_a_proof() {
        let by = |policy: &str| {
            format!(
                "secrets \"x\" is forbidden: ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: no"
            )
        };
        assert!(matches!(refused(403, &by("etcd-tls-secrets")), Answer::Refused));
        assert!(matches!(refused(422, &by("etcd-tls-secrets")), Answer::Refused));
        assert!(matches!(refused(403, &by("etcd-tls-secrets-2")), Answer::Unknown(_)));
        assert!(matches!(refused(403, "User \"x\" cannot create resource \"secrets\""), Answer::Unknown(_)));
        assert!(matches!(refused(500, "internal"), Answer::Unknown(_)));
        assert!(matches!(refused(404, "none"), Answer::NothingToTry));
        assert!(matches!(judge(Ok(()), "etcd-tls-secrets"), Answer::Accepted));
        assert!(matches!(judge::<()>(Err(ApiServerError::Timeout), "etcd-tls-secrets"), Answer::Unknown(_)));
    }
}
