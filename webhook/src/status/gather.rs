//! Reads the input of the status: pods, requests and trust ConfigMaps from the API server, and the sidecars' metrics through
//! its pod proxy. Writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use etcd_tls_contract::{
    certificate::Bundle,
    names,
    role::{Domain, Role},
    settings::Settings,
};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{ConfigMap, Namespace, Pod, PodSpec},
};
use kube::{Api, Client, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    lists::{self, Port},
    metrics::Sidecar,
    proxy::ask,
    rows::{Finding, PodSeen, RequestSeen, RoleRow, State, Unseen},
    trouble,
};
use crate::{
    controller::client::{ApiServerError, within},
    operator::{Refused, Right},
    rollover::{Report, status_annotation},
};

/// Objects in one answer of the API server.
const PAGE: u32 = 200;
/// Sidecars that are asked at once.
const AT_ONCE: usize = 16;

/// All that was seen.
pub(super) struct Seen {
    pub(super) pods: Vec<PodSeen>,
    /// Facts that could not be read for any pod.
    pub(super) notes: Vec<String>,
}

/// Reads everything. `namespace` is `None` for all namespaces.
///
/// # Errors
/// Pods cannot be listed.
pub(super) async fn gather(client: &Client, namespace: Option<&str>) -> Result<Seen, Refused> {
    let pods = pods(client, namespace).await?;
    let mut notes = Vec::new();
    let mut requests = match requests(client, &pods).await {
        Ok(requests) => requests,
        Err(refused) => {
            notes.push(format!(
                "denied and pending requests are not shown: {}; {}",
                with_cause(&refused),
                refused.right.question()
            ));
            BTreeMap::new()
        }
    };
    let trust = trust(client, &pods).await;
    let pods = stream::iter(pods)
        .map(|pod| {
            let requests = requests.remove(&pod.uid).unwrap_or_default();
            whole(client, pod, requests, &trust)
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    Ok(Seen { pods, notes })
}

/// `pod` with what its sidecar says.
async fn whole(client: &Client, mut pod: Listed, requests: Vec<RequestSeen>, trust: &Trust) -> PodSeen {
    let sidecar = sidecar(client, &pod).await;
    let rollovers = pod.rollovers(trust);
    let mut revoked = BTreeSet::new();
    let mut bundles = BTreeMap::new();
    if let Some((_, Ok(published))) = pod.published(trust) {
        bundles.clone_from(&published.bundles);
        lists::without_any(&mut pod.seen.ports, &published.unlisted);
        let certificates = sidecar.iter().flat_map(|sidecar| &sidecar.certificates);
        let is_revoked = |role: Role, serial: &String| {
            published.revoked.get(&role.domain()).is_some_and(|serials| serials.contains(serial))
        };
        revoked.extend(
            certificates
                .filter(|(role, certificate)| {
                    certificate.serial.as_ref().is_some_and(|serial| is_revoked(**role, serial))
                })
                .map(|(role, _)| *role),
        );
    }
    PodSeen { sidecar, rollovers, bundles, requests, revoked, ..pod.seen }
}

/// One pod, looked at by name.
pub(crate) enum OnePod {
    /// There is none.
    Missing,
    /// It has not opted in itself, and was not injected; its label.
    Other {
        /// The value of the label `etcd-tls`.
        label: Option<String>,
    },
    /// It has ended, and needs no certificate any more.
    Ended {
        /// `Succeeded` or `Failed`.
        phase: String,
    },
    /// Its report.
    OptedIn(Box<PodReport>),
}

/// The report on one pod.
pub(crate) struct PodReport {
    /// True if it has the sidecar.
    pub(crate) injected: bool,
    /// True if kubelet requests its certificates.
    pub(crate) of_kubelet: bool,
    /// The version of its sidecar.
    pub(crate) version: Option<String>,
    /// Admission's warnings.
    pub(crate) warnings: Vec<String>,
    /// The findings.
    pub(crate) findings: Vec<Finding>,
    /// The ports of its etcd, and whether they look at the revocation lists.
    pub(crate) ports: Vec<Port>,
    /// Its certificates.
    pub(crate) certificates: Vec<RoleRow>,
    /// Its requests that are still there, the oldest first.
    pub(crate) requests: Vec<RequestSeen>,
    /// Why the requests cannot be seen, and what to do.
    pub(crate) requests_unseen: Option<(String, String)>,
}

/// Looks at the pod `name`.
///
/// # Errors
/// It cannot be read.
pub(crate) async fn pod(client: &Client, namespace: &str, name: &str) -> Result<OnePod, Refused> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = within(api.get_opt(name)).await.map_err(|e| Right::new("get", "pods", Some(namespace)).refused(e))?;
    let Some(found) = found else { return Ok(OnePod::Missing) };
    let label = found.metadata.labels.as_ref().and_then(|labels| labels.get(names::LABEL).cloned());
    if let Some(phase) = trouble::ended(&found) {
        return Ok(OnePod::Ended { phase: phase.to_owned() });
    }
    let Some(listed) = Listed::of(found) else { return Ok(OnePod::Other { label }) };
    let uid = listed.uid.clone();
    let pods = [listed];
    let (mut requests, requests_unseen) = match requests(client, &pods).await {
        Ok(mut requests) => (requests.remove(&uid).unwrap_or_default(), None),
        Err(refused) => (Vec::new(), Some((with_cause(&refused), refused.right.question()))),
    };
    requests.sort_by_key(|request| request.created);
    let trust = trust(client, &pods).await;
    let [listed] = pods;
    let seen = whole(client, listed, requests, &trust).await;
    let (injected, requests) = (seen.injected, seen.requests.clone());
    let of_kubelet = seen.settings.as_ref().is_ok_and(Settings::is_of_kubelet);
    let row = super::rows::rows(&[seen], SystemTime::now()).into_iter().next();
    Ok(row.map_or(OnePod::Missing, |row| {
        OnePod::OptedIn(Box::new(PodReport {
            injected,
            of_kubelet,
            version: row.sidecar_version,
            warnings: row.warnings,
            findings: row.findings,
            ports: row.revocation,
            certificates: row.roles,
            requests,
            requests_unseen,
        }))
    }))
}

/// One pod of a namespace.
pub(crate) struct PodLine {
    /// Its name.
    pub(crate) pod: String,
    /// How it is.
    pub(crate) state: State,
    /// The findings.
    pub(crate) findings: Vec<Finding>,
}

/// The pods of a namespace that have opted in, the most urgent first.
///
/// # Errors
/// Pods cannot be listed.
pub(crate) async fn namespace(client: &Client, namespace: &str) -> Result<Vec<PodLine>, Refused> {
    let seen = gather(client, Some(namespace)).await?;
    let rows = super::rows::rows(&seen.pods, SystemTime::now());
    Ok(rows.into_iter().map(|row| PodLine { pod: row.pod, state: row.state, findings: row.findings }).collect())
}

/// An error with its cause.
pub(super) fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// A pod before its sidecar was asked.
struct Listed {
    uid: String,
    deleting: bool,
    seen: PodSeen,
}

impl Listed {
    /// `None`: it has ended, and needs no certificate any more.
    fn of(pod: Pod) -> Option<Self> {
        let settings = Settings::parse(&pod.metadata.annotations.clone().unwrap_or_default());
        let ports = settings.as_ref().map(|settings| lists::ports(&pod, settings)).unwrap_or_default();
        if trouble::ended(&pod).is_some() {
            return None;
        }
        let (injected, deleting) = (is_injected(&pod), pod.metadata.deletion_timestamp.is_some());
        let trouble = trouble::of(&pod, SystemTime::now());
        let (labels, annotations) =
            (pod.metadata.labels.unwrap_or_default(), pod.metadata.annotations.unwrap_or_default());
        if !injected && labels.get(names::LABEL).is_none_or(|value| value != names::DYNAMIC) {
            return None;
        }
        let warnings = annotations.get(names::WARNINGS_ANNOTATION);
        let uid = pod.metadata.uid.unwrap_or_default();
        Some(Self {
            uid,
            deleting,
            seen: PodSeen {
                namespace: pod.metadata.namespace.unwrap_or_default(),
                name: pod.metadata.name.unwrap_or_default(),
                settings,
                injected,
                ports,
                trouble,
                warnings: warnings.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
                sidecar: Ok(Sidecar::default()),
                rollovers: BTreeMap::new(),
                bundles: BTreeMap::new(),
                requests: Vec::new(),
                revoked: BTreeSet::new(),
            },
        })
    }

    /// The trust ConfigMap and the domains of its authorities; `None`: another issuer's.
    fn trust(&self) -> Option<(String, BTreeSet<Domain>)> {
        let settings = self.seen.settings.as_ref().ok().filter(|settings| settings.is_ours())?;
        let name = settings.home(&self.seen.namespace).trust_config_map(&self.seen.namespace);
        Some((name, settings.roles.iter().map(|role| role.domain()).collect()))
    }

    /// Its trust ConfigMap, by name, as it was read.
    fn published<'a>(&self, all: &'a Trust) -> Option<(String, &'a Result<Published, Unseen>)> {
        let (name, _) = self.trust()?;
        let found = all.get(&(self.seen.namespace.clone(), name.clone()))?;
        Some((name, found))
    }

    fn rollovers(&self, all: &Trust) -> BTreeMap<Domain, Result<Report, Unseen>> {
        let Some((_, domains)) = self.trust() else { return BTreeMap::new() };
        let Some((name, found)) = self.published(all) else { return BTreeMap::new() };
        let mut rollovers = BTreeMap::new();
        for domain in domains {
            let report = match found {
                Err(unseen) => Some(Err(unseen.clone())),
                // By policy it may be another domain's authority, of which the report is elsewhere.
                Ok(published) => published.annotations.get(&status_annotation(domain)).map(|text| {
                    serde_json::from_str(text).map_err(|error| Unseen {
                        reason: format!("the signer's report on ConfigMap {name} cannot be read: {error}"),
                        next: "use the etcd-tls-webhook of the signer's version".to_owned(),
                        denied: false,
                    })
                }),
            };
            rollovers.extend(report.map(|report| (domain, report)));
        }
        rollovers
    }
}

/// All of a list, page by page.
async fn all<K: Clone + DeserializeOwned + std::fmt::Debug>(
    api: &Api<K>,
    selector: &str,
    mut take: impl FnMut(K),
) -> Result<(), ApiServerError> {
    let mut params = ListParams::default().labels(selector).limit(PAGE);
    loop {
        let page = within(api.list(&params)).await?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// The pods that have opted in or were injected.
async fn pods(client: &Client, namespace: Option<&str>) -> Result<Vec<Listed>, Refused> {
    Ok(opted_in(client, namespace).await?.into_iter().filter_map(Listed::of).collect())
}

/// True if it is known that there is no such namespace.
pub(super) async fn is_missing(client: &Client, namespace: &str) -> bool {
    let api: Api<Namespace> = Api::all(client.clone());
    matches!(within(api.get_metadata_opt(namespace)).await, Ok(None))
}

/// The pods that have opted in or were injected, of `namespace` or of all. A pod that a version without the label `injected` injected,
/// as its namespace has opted in, has neither label: only a look at one namespace finds it, since that reads all of its pods.
///
/// # Errors
/// Pods cannot be listed.
pub(crate) async fn opted_in(client: &Client, namespace: Option<&str>) -> Result<Vec<Pod>, Refused> {
    let (injected, dynamic) =
        (format!("{}=true", names::INJECTED_LABEL), format!("{}={}", names::LABEL, names::DYNAMIC));
    let (api, selectors) = match namespace {
        Some(name) => (Api::<Pod>::namespaced(client.clone(), name), vec![String::new()]),
        None => (Api::all(client.clone()), vec![injected, dynamic]),
    };
    let mut found = BTreeMap::new();
    for selector in selectors {
        let take = |pod: Pod| {
            if concerns_us(&pod) {
                found.insert(pod.metadata.uid.clone().unwrap_or_default(), pod);
            }
        };
        all(&api, &selector, take).await.map_err(|e| Right::new("list", "pods", namespace).refused(e))?;
    }
    Ok(found.into_values().collect())
}

/// True for a pod with one of our labels, or with the sidecar.
fn concerns_us(pod: &Pod) -> bool {
    let is = |label: &str, value: &str| {
        pod.metadata.labels.as_ref().is_some_and(|labels| labels.get(label).is_some_and(|is| is == value))
    };
    is(names::INJECTED_LABEL, "true") || is(names::LABEL, names::DYNAMIC) || is_injected(pod)
}

/// True for a pod with the sidecar. The label is for people; the container is what counts.
fn is_injected(pod: &Pod) -> bool {
    let containers = |spec: &PodSpec| {
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.into_iter().any(|container| container.name == names::SIDECAR_CONTAINER)
    };
    pod.spec.as_ref().is_some_and(containers)
}

/// The requests of `pods`, by uid.
async fn requests(client: &Client, pods: &[Listed]) -> Result<BTreeMap<String, Vec<RequestSeen>>, Refused> {
    let uids: BTreeSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    let mut found: BTreeMap<String, Vec<RequestSeen>> = BTreeMap::new();
    if uids.is_empty() {
        return Ok(found);
    }
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let take = |csr: CertificateSigningRequest| {
        if let Some((uid, request)) = request(csr, &uids) {
            found.entry(uid).or_default().push(request);
        }
    };
    all(&api, "", take)
        .await
        .map_err(|e| Right::new("list", "certificatesigningrequests.certificates.k8s.io", None).refused(e))?;
    Ok(found)
}

/// A request of one of the pods of `uids`. Its name names the pod; a request under another pod's name was denied.
fn request(csr: CertificateSigningRequest, uids: &BTreeSet<&str>) -> Option<(String, RequestSeen)> {
    let name = csr.metadata.name?;
    // `etcd-tls-<uid>-<role>-<digest>`; a uid has hyphens, the others have none.
    let (rest, _) = name.strip_prefix("etcd-tls-")?.rsplit_once('-')?;
    let (uid, role) = rest.rsplit_once('-')?;
    let (uid, role) = (*uids.get(uid)?, role.parse::<Role>().ok()?);
    let status = csr.status.unwrap_or_default();
    let issued = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
    let has = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind);
    let awaits_person = has(names::REVIEWED_CONDITION) && !["Approved", "Denied", "Failed"].into_iter().any(has);
    let refusal = status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
    let trusts = csr.metadata.annotations.unwrap_or_default().remove(names::TRUSTS_ANNOTATION);
    let trusts = trusts.and_then(|text| text.parse().ok());
    let refused = refusal.map(|condition| {
        let words = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("no reason is given");
        format!("{}: {words}", condition.type_.to_lowercase())
    });
    let created = csr.metadata.creation_timestamp.map(|time| SystemTime::from(time.0));
    Some((uid.to_owned(), RequestSeen { name, role, created, refused, issued, awaits_person, trusts }))
}

/// The facts of a trust ConfigMap.
struct Published {
    annotations: BTreeMap<String, String>,
    /// By domain, the digest of the bundle.
    bundles: BTreeMap<Domain, String>,
    /// [`lists::unlisted`].
    unlisted: BTreeSet<Domain>,
    /// [`lists::revoked`].
    revoked: BTreeMap<Domain, BTreeSet<String>>,
}

type Trust = BTreeMap<(String, String), Result<Published, Unseen>>;

/// Each trust ConfigMap of `pods`, by namespace and name.
async fn trust(client: &Client, pods: &[Listed]) -> Trust {
    let wanted: BTreeSet<(String, String)> =
        pods.iter().filter_map(|pod| Some((pod.seen.namespace.clone(), pod.trust()?.0))).collect();
    let read = |(namespace, name): (String, String)| async move {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        let found = match within(api.get_opt(&name)).await {
            Ok(Some(object)) => {
                let unlisted = lists::unlisted(&object);
                let revoked = lists::revoked(&object);
                let bundle = |domain: Domain| {
                    let text = object.data.as_ref()?.get(domain.trust_key())?;
                    Some((domain, Bundle::parse(text.as_bytes()).ok()?.digest()))
                };
                let bundles = Domain::ALL.into_iter().filter_map(bundle).collect();
                Ok(Published {
                    annotations: object.metadata.annotations.unwrap_or_default(),
                    bundles,
                    unlisted,
                    revoked,
                })
            }
            Ok(None) => Err(Unseen {
                reason: format!("there is no ConfigMap {name}: the signer is away, or has lost the CA"),
                next: format!("kubectl -n {} logs deploy/etcd-tls-sign", names::SYSTEM_NAMESPACE),
                denied: false,
            }),
            Err(error) => {
                let denied = error.is_forbidden();
                let refused = Right::new("get", "configmaps", Some(&namespace)).refused(error);
                Err(Unseen { reason: with_cause(&refused), next: refused.right.question(), denied })
            }
        };
        ((namespace, name), found)
    };
    stream::iter(wanted).map(read).buffered(AT_ONCE).collect().await
}

/// The metrics of `pod`'s sidecar, if it has one.
async fn sidecar(client: &Client, pod: &Listed) -> Result<Sidecar, Unseen> {
    let PodSeen { namespace, name, injected, settings, .. } = &pod.seen;
    let port = settings.as_ref().map_or(names::DEFAULT_ADMIN_PORT, |settings| settings.admin_port);
    if !injected {
        return Ok(Sidecar::default());
    }
    ask(client, namespace, name, port).await.map_err(|unseen| {
        let deleting = if pod.deleting { "; the pod is being deleted" } else { "" };
        Unseen { reason: format!("{}{deleting}", unseen.reason), ..unseen }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::{Value, json};

    use super::*;

    fn of(pod: Value) -> Option<Listed> {
        Listed::of(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn opted_in_and_injected_pods_are_shown() {
        let sidecar = json!({"initContainers": [{"name": "etcd-tls-sidecar"}], "containers": []});
        let metadata = |labels: Value| json!({"name": "etcd-0", "namespace": "prod", "uid": "u", "labels": labels});
        let dynamic = json!({"etcd-tls": "dynamic"});
        assert!(of(json!({"metadata": metadata(json!({})), "spec": sidecar})).unwrap().seen.injected);
        let plain = json!({"containers": [{"name": "etcd"}]});
        assert!(!of(json!({"metadata": metadata(dynamic.clone()), "spec": plain})).unwrap().seen.injected);
        // The mark alone is no sidecar, and no opt-in.
        assert!(of(json!({"metadata": metadata(json!({"etcd-tls.dev/injected": "true"})), "spec": plain})).is_none());
        for phase in ["Succeeded", "Failed"] {
            let ended = json!({"metadata": metadata(dynamic.clone()), "spec": sidecar, "status": {"phase": phase}});
            assert!(of(ended).is_none());
        }
    }

    #[test]
    fn a_request_belongs_to_the_pod_of_its_name() {
        let uid = "0b2f0f4c-0000-4000-8000-000000000001";
        let csr = |name: String| {
            let text = json!({
                "metadata": {"name": name}, "spec": {"request": "", "signerName": "s"},
                "status": {"conditions": [{"type": "Denied", "status": "True", "message": "no such pod"}]},
            });
            request(serde_json::from_value(text).unwrap(), &[uid].into())
        };
        let (of, seen) = csr(format!("etcd-tls-{uid}-server-abc")).unwrap();
        assert_eq!((of.as_str(), seen.role, seen.refused.as_deref()), (uid, Role::Server, Some("denied: no such pod")));
        assert!(!seen.awaits_person);
        for other in [format!("etcd-tls-{uid}-other-abc"), format!("etcd-tls-x{uid}-peer-abc"), "x".to_owned()] {
            assert!(csr(other).is_none());
        }
    }
}
