//! Publishes the trust bundle of each authority as a ClusterTrustBundle linked to its signer name, where the component
//! cluster-trust-bundles is installed and the API server serves them: workloads that are not injected can project it.
//!
//! One object for each authority: `<domain>.etcd-tls.dev:<namespace>.<cluster>:bundle`. It goes with its namespace, or with its
//! authority's Secret. The bundle of an authority that cannot be read stays as it is.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use etcd_tls_contract::names::SignerName;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    authorities::Authorities,
    marks::{MANAGED_LABEL, UID_ANNOTATION},
    metrics::Metrics,
};
use crate::controller::{
    client::{ApiServerError, within},
    namespaces::{self, NamespaceFacts},
};

const GROUP: &str = "certificates.k8s.io";
/// The versions that are used, the preferred one first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// How often the bundles are compared with what was published.
const EVERY: Duration = Duration::from_secs(2);
/// How often after a failure, and how often the versions of the objects are read: somebody else may have changed them.
const READ_EVERY: Duration = Duration::from_secs(30);
const PAGE: u32 = 50;
/// How long an authority that is being written is waited for.
const HELD_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct ClusterTrustBundles {
    pub(super) client: Client,
    pub(super) authorities: Arc<Authorities>,
    pub(super) namespaces: namespaces::Current,
    pub(super) metrics: Metrics,
}

/// Why nothing is published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(
        "the API server serves no ClusterTrustBundles of {GROUP}: turn on its feature gate ClusterTrustBundle and \
         --runtime-config={GROUP}/v1beta1/clustertrustbundles=true, or take the component cluster-trust-bundles away"
    )]
    NotServed,
    #[error(transparent)]
    Request(#[from] ApiServerError),
}

/// The wanted content of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    signer: SignerName,
    uid: String,
    pem: String,
}

/// The present content of one object of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    signer: Option<SignerName>,
    namespace_uid: Option<String>,
    /// Empty where it is not known any more.
    pem: String,
    uid: Option<String>,
    version: Option<String>,
}

/// The step for one object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Create(Wanted),
    /// The bundle has changed.
    Update(Wanted),
    /// Its namespace or its authority is gone.
    Delete {
        uid: Option<String>,
    },
}

/// The name of the object of `signer`: the API wants the signer name, with a colon for the slash, before the second colon.
fn object_name(signer: &SignerName) -> String {
    format!("{}:bundle", signer.to_string().replace('/', ":"))
}

/// The signer name of an object of ours; `None` for every other name.
fn signer_of(name: &str) -> Option<SignerName> {
    name.strip_suffix(":bundle")?.replacen(':', "/", 1).parse().ok()
}

/// The steps from the present objects to the wanted ones. `gone` names the authorities of which nothing is left. An object that
/// is neither wanted nor gone (its Secret cannot be read now) stays.
fn steps(
    wanted: &BTreeMap<String, Wanted>,
    present: &BTreeMap<String, Present>,
    gone: impl Fn(&SignerName) -> bool,
) -> Vec<(String, Step)> {
    let mut steps = Vec::new();
    for (name, wanted) in wanted {
        match present.get(name) {
            None => steps.push((name.clone(), Step::Create(wanted.clone()))),
            Some(there) if there.pem != wanted.pem || there.namespace_uid.as_ref() != Some(&wanted.uid) => {
                steps.push((name.clone(), Step::Update(wanted.clone())));
            }
            Some(_) => {}
        }
    }
    for (name, there) in present.iter().filter(|(name, _)| !wanted.contains_key(*name)) {
        if there.signer.as_ref().is_some_and(&gone) {
            steps.push((name.clone(), Step::Delete { uid: there.uid.clone() }));
        }
    }
    steps
}

impl ClusterTrustBundles {
    /// Publishes until it is dropped.
    pub(super) async fn keep(self) -> Infallible {
        let mut said = None;
        loop {
            match self.term(&mut said).await {
                Ok(never) => match never {},
                Err(error) => {
                    let text = error.to_string();
                    if said.as_ref() != Some(&text) {
                        tracing::warn!(
                            error = text,
                            "ClusterTrustBundles are not published; trying again every half minute"
                        );
                        said = Some(text);
                    }
                    self.metrics.cluster_trust_bundles.set(0);
                }
            }
            sleep(READ_EVERY).await;
        }
    }

    /// Until something fails.
    async fn term(&self, said: &mut Option<String>) -> Result<Infallible, PublishError> {
        let api = Api::all_with(self.client.clone(), &self.served().await?);
        let mut present = list(&api).await?;
        let mut read = Instant::now();
        loop {
            if read.elapsed() > READ_EVERY {
                changed(&api, &mut present).await?;
                read = Instant::now();
            }
            if let Some(wanted) = self.wanted().await {
                let gone = |signer: &SignerName| self.is_gone(signer);
                // One that cannot be written does not delay the others.
                let mut failed = None;
                for (name, step) in steps(&wanted, &present, gone) {
                    if let Err(error) = self.take(&api, &name, &step, &mut present).await {
                        tracing::debug!(bundle = name, %error, "not written; trying again");
                        failed.get_or_insert(error);
                    }
                }
                if let Some(error) = failed {
                    return Err(error.into());
                }
                self.metrics.cluster_trust_bundles.set(i64::try_from(present.len()).unwrap_or(i64::MAX));
                *said = None;
            }
            sleep(EVERY).await;
        }
    }

    /// The resource in the version that the API server serves.
    async fn served(&self) -> Result<ApiResource, PublishError> {
        for version in VERSIONS {
            let api_version = format!("{GROUP}/{version}");
            match within(self.client.list_api_group_resources(&api_version)).await {
                Ok(list) if list.resources.iter().any(|resource| resource.name == "clustertrustbundles") => {
                    return Ok(ApiResource {
                        group: GROUP.into(),
                        version: version.into(),
                        api_version,
                        kind: "ClusterTrustBundle".into(),
                        plural: "clustertrustbundles".into(),
                    });
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::NotServed)
    }

    /// The bundles to publish; `None` while the namespaces or the Secrets are not listed.
    async fn wanted(&self) -> Option<BTreeMap<String, Wanted>> {
        let namespaces = self.namespaces.borrow().clone()?;
        let mut wanted = BTreeMap::new();
        for entry in self.authorities.entries() {
            let signer = &entry.name;
            let Some(facts) = live(&namespaces, signer) else { continue };
            let bundle = timeout(HELD_WITHIN, self.authorities.bundle(signer)).await;
            if let Ok(Some(bundle)) = bundle {
                let of = Wanted { signer: SignerName::clone(signer), uid: facts.uid.clone(), pem: bundle.to_pem() };
                wanted.insert(object_name(signer), of);
            }
        }
        Some(wanted)
    }

    /// True if nothing is left of an authority: its namespace is gone, or it has neither a place nor a Secret.
    fn is_gone(&self, signer: &SignerName) -> bool {
        let namespaces = self.namespaces.borrow().clone();
        namespaces.is_some_and(|namespaces| live(&namespaces, signer).is_none()) || self.authorities.is_gone(signer)
    }

    async fn take(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        step: &Step,
        present: &mut BTreeMap<String, Present>,
    ) -> Result<(), ApiServerError> {
        let result = match step {
            Step::Create(wanted) => {
                match within(api.create(&PostParams::default(), &wanted.object(name)?)).await {
                    // Without our label it is in no list of ours.
                    Err(error) if error.code() == Some(409) => update(api, name, wanted).await,
                    result => result,
                }
            }
            Step::Update(wanted) => update(api, name, wanted).await,
            Step::Delete { uid } => {
                let preconditions = Preconditions { uid: uid.clone(), resource_version: None };
                let params = DeleteParams::default().preconditions(preconditions);
                match within(api.delete(name, &params)).await {
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
                present.remove(name);
                tracing::info!(bundle = name, "ClusterTrustBundle deleted");
                return Ok(());
            }
        };
        let object = result?;
        tracing::info!(bundle = name, "ClusterTrustBundle published");
        present.insert(name.to_owned(), recognise(&object));
        Ok(())
    }
}

/// Brings an object to its wanted content.
async fn update(api: &Api<DynamicObject>, name: &str, wanted: &Wanted) -> Result<DynamicObject, ApiServerError> {
    let body = json!({
        "metadata": {
            "labels": {MANAGED_LABEL.0: MANAGED_LABEL.1}, "annotations": {UID_ANNOTATION: wanted.uid},
        },
        "spec": {"trustBundle": wanted.pem},
    });
    within(api.patch(name, &PatchParams::default(), &Patch::Merge(body))).await
}

impl Wanted {
    fn object(&self, name: &str) -> Result<DynamicObject, ApiServerError> {
        let object = json!({
            "metadata": {
                "name": name, "labels": {MANAGED_LABEL.0: MANAGED_LABEL.1}, "annotations": {UID_ANNOTATION: self.uid},
            },
            "spec": {"signerName": self.signer.to_string(), "trustBundle": self.pem},
        });
        serde_json::from_value(object).map_err(|e| ApiServerError::Api(kube::Error::SerdeError(e)))
    }
}

/// The namespace of an authority, if it is there to stay.
fn live<'a>(namespaces: &'a namespaces::Map, signer: &SignerName) -> Option<&'a NamespaceFacts> {
    namespaces.get(&*signer.namespace).map(|facts| &**facts).filter(|facts| !facts.deleting)
}

/// All of ours, by name.
async fn list(api: &Api<DynamicObject>) -> Result<BTreeMap<String, Present>, ApiServerError> {
    let (mut present, mut params) = (BTreeMap::new(), ours());
    loop {
        let page = within(api.list(&params)).await?;
        let named = page.items.iter().filter_map(|object| Some((object.metadata.name.clone()?, recognise(object))));
        present.extend(named.filter(|(_, there)| there.signer.is_some()));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ours().continue_token(&token),
            None => return Ok(present),
        }
    }
}

/// Forgets what somebody else changed or deleted. Only the metadata is read.
async fn changed(api: &Api<DynamicObject>, present: &mut BTreeMap<String, Present>) -> Result<(), ApiServerError> {
    let (mut versions, mut params) = (BTreeMap::new(), ours());
    loop {
        let page = within(api.list_metadata(&params)).await?;
        versions.extend(page.items.into_iter().filter_map(|o| Some((o.metadata.name?, o.metadata.resource_version))));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = ours().continue_token(&token),
            None => break,
        }
    }
    present.retain(|name, _| versions.contains_key(name));
    for (name, there) in present {
        if versions.get(name) != Some(&there.version) {
            there.pem.clear();
        }
    }
    Ok(())
}

fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", MANAGED_LABEL.0, MANAGED_LABEL.1)).limit(PAGE)
}

fn recognise(object: &DynamicObject) -> Present {
    let annotations = object.metadata.annotations.as_ref();
    let pem = object.data.pointer("/spec/trustBundle").and_then(Value::as_str).unwrap_or_default();
    Present {
        signer: object.metadata.name.as_deref().and_then(signer_of),
        namespace_uid: annotations.and_then(|all| all.get(UID_ANNOTATION)).cloned(),
        pem: pem.to_owned(),
        uid: object.metadata.uid.clone(),
        version: object.metadata.resource_version.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn signer(name: &str) -> SignerName {
        name.parse().unwrap()
    }

    #[test]
    fn a_name_is_of_one_signer() {
        let peer = signer("peer.etcd-tls.dev/prod.etcd");
        assert_eq!(object_name(&peer), "peer.etcd-tls.dev:prod.etcd:bundle");
        assert_eq!(signer_of(&object_name(&peer)), Some(peer));
        for name in [
            "bundle",
            "example.com:ca:bundle",
            "peer.etcd-tls.dev:prod.etcd:x",
            "peer.etcd-tls.dev:prod:bundle",
            ":bundle",
        ] {
            assert_eq!(signer_of(name), None, "{name}");
        }
    }

    #[test]
    fn bundles_of_gone_authorities_are_deleted_and_unreadable_ones_stay() {
        let of = |name: &str, pem: &str| {
            let signer = signer(name);
            (object_name(&signer), Wanted { signer, uid: "u".to_owned(), pem: pem.to_owned() })
        };
        let there = |name: &str, pem: &str, uid: &str| {
            let signer = signer(name);
            let uid = Some(uid.to_owned());
            let pem = pem.to_owned();
            (object_name(&signer), Present { signer: Some(signer), namespace_uid: uid, pem, uid: None, version: None })
        };
        let [new, same, changed, again] =
            ["new", "same", "changed", "again"].map(|cluster| format!("peer.etcd-tls.dev/prod.{cluster}"));
        let (unread, gone) = ("peer.etcd-tls.dev/prod.unread", "peer.etcd-tls.dev/old.etcd");
        let wanted = BTreeMap::from([of(&new, "1"), of(&same, "1"), of(&changed, "2"), of(&again, "1")]);
        let present = BTreeMap::from([
            there(&same, "1", "u"),
            there(&changed, "1", "u"),
            there(&again, "1", "of a namespace of before"),
            there(unread, "1", "u"),
            there(gone, "1", "u"),
        ]);
        let steps = steps(&wanted, &present, |signer| signer.namespace == "old");
        let expected = [
            (of(&again, "1").0, Step::Update(of(&again, "1").1)),
            (of(&changed, "2").0, Step::Update(of(&changed, "2").1)),
            (of(&new, "1").0, Step::Create(of(&new, "1").1)),
            (of(gone, "").0, Step::Delete { uid: None }),
        ];
        assert_eq!(steps, expected);
    }
}
