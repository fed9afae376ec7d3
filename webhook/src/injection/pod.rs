//! The changes to the pod as a whole: volumes, a group, our two containers, their image pull Secrets, a label and an
//! annotation.

use std::collections::BTreeMap;

use etcd_tls_contract::{args::PodArgs, names};
use serde_json::{Map, Value, json};

use crate::traces;

use super::{
    Work,
    json::{Json, Object},
    parts,
    patch::{Item, PodPatch},
    present, view,
};

impl Work<'_> {
    pub(super) fn volumes(&mut self, patch: &mut PodPatch) {
        // A manifest that an older version injected into stays as it is.
        let is_ours = |theirs: &Json<'_>, ours: &Value| {
            let before = &*parts::TOKEN_VOLUME_BEFORE;
            present::is_volume(theirs, ours)
                || theirs.get("name").as_str() == before.get("name").and_then(Value::as_str)
                    && present::is_volume(theirs, before)
        };
        let mut missing = Vec::new();
        for volume in parts::volumes(self.config, &self.settings, self.origin.namespace) {
            let name = volume.tree().get("name").and_then(Value::as_str).unwrap_or_default();
            let mut same = self.pod.volumes.iter().filter(|v| v.get("name").as_str() == Some(name));
            match same.next() {
                None => missing.push(volume.into_item()),
                Some(theirs) if is_ours(theirs, volume.tree()) && same.next().is_none() => {}
                Some(_) => self
                    .problems
                    .push(format!("volume {name} is not etcd-tls's own; give the pod's volume another name")),
            }
        }
        patch.append(&["spec"], self.pod.spec, "volumes", missing);
    }

    /// The group that may read the files. Not fsGroup, which would change the data volume's files.
    pub(super) fn groups(&mut self, patch: &mut PodPatch) {
        let gid = names::FILES_GID;
        let has = |groups: &[Json<'_>]| groups.iter().any(|group| group.as_u64() == Some(gid.into()));
        match self.pod.spec.get("securityContext").and_then(Json::as_object) {
            None => patch.set(&["spec", "securityContext"], json!({"supplementalGroups": [gid]})),
            Some(security) => {
                let groups = security.get("supplementalGroups");
                if groups.is_some_and(|g| !g.is_null() && !g.is_array()) {
                    self.problems.push("spec.securityContext.supplementalGroups is no list".to_owned());
                } else if !groups.and_then(Json::as_array).is_some_and(has) {
                    patch.append(
                        &["spec", "securityContext"],
                        security,
                        "supplementalGroups",
                        vec![Value::from(gid).into()],
                    );
                }
            }
        }
    }

    /// Our two containers, at the head of `initContainers`. Returns whether the sidecar, new or present, has the flag that lets
    /// it signal.
    pub(super) fn containers(
        &mut self,
        mut args: PodArgs,
        user: Option<u64>,
        share: bool,
        patch: &mut PodPatch,
    ) -> bool {
        let present = |name| self.pod.container(name);
        let sidecar = present(names::SIDECAR_CONTAINER);
        if let Some(theirs) = sidecar.and_then(|c| present::arguments(&c, "run")) {
            if theirs.can_signal && !args.can_signal {
                self.warnings.push(
                    "etcd-tls-sidecar is configured to signal etcd, which is no longer safe in this pod: \
                     give each container a runAsUser of its own"
                        .to_owned(),
                );
            }
            args.can_signal = theirs.can_signal;
        }
        let can_signal = args.can_signal;
        let template = parts::Template::new(self.config, &self.settings, &args, user, self.origin.namespace);
        let mut insert = Vec::new();
        let mut next = 0;
        // Files that kubelet brings are there before any container starts, and the sidecar checks them.
        let init = (!self.settings.is_of_kubelet()).then(|| (names::INIT_CONTAINER, template.init_container()));
        if init.is_none() && present(names::INIT_CONTAINER).is_some() {
            self.problems.push(format!(
                "container {} requests certificates, and kubelet does with issuer pod-certificate; take it out of the manifest",
                names::INIT_CONTAINER
            ));
        }
        for (name, ours) in init.into_iter().chain([(names::SIDECAR_CONTAINER, template.sidecar())]) {
            let unwritten = |error| format!("container {name} of etcd-tls has no form in JSON: {error}");
            let Some(theirs) = present(name) else {
                match Item::written(&ours, CONTAINER_SIZE) {
                    Ok(ours) => insert.push((next, ours)),
                    Err(error) => self.problems.push(unwritten(error)),
                }
                next += 1;
                continue;
            };
            next = theirs.index + 1;
            let ours = match serde_json::to_value(&ours) {
                Ok(ours) => ours,
                Err(error) => {
                    self.problems.push(unwritten(error));
                    continue;
                }
            };
            let differences = match self.config.host {
                Some(_) => present::plain_differences(&theirs, &ours),
                None => present::differences(&theirs, &ours, &args, present::subcommand(name)),
            };
            // All else is as it was injected.
            if !differences.is_empty() && differences.iter().all(|d| present::ADDED.contains(&d.as_str())) {
                self.problems.push(format!(
                    "container {name} of etcd-tls {}: another admission webhook or a policy engine has added that, or somebody \
                     has in the manifest; except the container there",
                    differences.join(", ")
                ));
            } else if !differences.is_empty() {
                self.problems.push(format!(
                    "container {name} is not etcd-tls's own: it {}; give the pod's container another name, or take the \
                     injected one out of the manifest",
                    differences.join(", ")
                ));
            }
        }
        patch.insert(&["spec"], self.pod.spec, view::List::Init.field(), insert);
        share && can_signal
    }

    /// The user of our containers where etcd's is not declared. None, so that a cluster can assign one; but a host's
    /// directories are root's, and a pod that is root's would make our containers root's.
    pub(super) fn default_user(&self) -> Option<u64> {
        if self.config.host.is_some() {
            return Some(0);
        }
        let of_root = self.pod.security("runAsUser").and_then(Json::as_u64) == Some(0);
        self.config.user.or_else(|| of_root.then_some(names::DEFAULT_UID.into()))
    }

    /// The Secrets that our image is pulled with.
    pub(super) fn pull_secrets(&self, patch: &mut PodPatch) {
        const FIELD: &str = "imagePullSecrets";
        let there = |name: &str| {
            let secrets = self.pod.spec.get(FIELD).and_then(Json::as_array);
            secrets.into_iter().flatten().any(|secret| secret.get("name").as_str() == Some(name))
        };
        let missing =
            self.config.pull_secrets.iter().filter(|name| !there(name)).map(|name| json!({"name": name}).into());
        patch.append(&["spec"], self.pod.spec, FIELD, missing.collect());
    }

    /// The marks of an injected pod: the label and, if admission injects, the annotation with warnings.
    pub(super) fn mark(&self, patch: &mut PodPatch) {
        let mut labels = Map::new();
        if self.origin.label && !self.pod.labels.contains_key(names::LABEL) {
            labels.insert(names::LABEL.to_owned(), names::DYNAMIC.into());
        }
        if self.pod.labels.get(names::INJECTED_LABEL).is_none_or(|value| value != "true") {
            labels.insert(names::INJECTED_LABEL.to_owned(), "true".into());
        }
        let annotations: Map<String, Value> = self.warnings_annotation().into_iter().chain(self.trace()).collect();
        let fields: Vec<(&str, Map<String, Value>)> =
            [("labels", labels), ("annotations", annotations)].into_iter().filter(|(_, map)| !map.is_empty()).collect();
        if !self.pod.has_metadata {
            if !fields.is_empty() {
                patch.set(&["metadata"], json!(fields.into_iter().collect::<BTreeMap<_, _>>()));
            }
            return;
        }
        for (field, map) in fields {
            if self.pod.metadata.get(field).is_some_and(Json::is_object) {
                map.into_iter().for_each(|(key, value)| patch.set(&["metadata", field, &key], value));
            } else {
                patch.set(&["metadata", field], map);
            }
        }
    }

    /// The annotation with the place of the admission in a trace. An earlier look at the same pod may have written it.
    fn trace(&self) -> Option<(String, Value)> {
        let written = traces::on_pod(&self.pod.annotations).is_some();
        let place = self.origin.trace.filter(|_| !written)?;
        Some((names::TRACE_ANNOTATION.to_owned(), place.to_string().into()))
    }

    /// The annotation with the warnings. None where a person injects, who reads them, nor where an earlier look injected and
    /// wrote it, nor where the pod's annotations would grow beyond what the API server takes.
    fn warnings_annotation(&self) -> Option<(String, Value)> {
        let ours = [names::INIT_CONTAINER, names::SIDECAR_CONTAINER];
        let ours = if self.settings.is_of_kubelet() { &ours[1..] } else { &ours[..] };
        let again = ours.iter().all(|n| self.pod.container(n).is_some());
        let forged = self.pod.annotations.contains_key(names::WARNINGS_ANNOTATION);
        if self.origin.label || again || (self.warnings.is_empty() && !forged) {
            return None;
        }
        let text = listed(&self.warnings);
        let annotations = self.pod.metadata.get("annotations").and_then(Json::as_object);
        let others =
            annotations.into_iter().flat_map(Object::iter).filter(|(key, _)| *key != names::WARNINGS_ANNOTATION);
        let size: usize = others.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
        let fits = size + names::WARNINGS_ANNOTATION.len() + text.len() <= MAX_ANNOTATIONS;
        fits.then(|| (names::WARNINGS_ANNOTATION.to_owned(), text.into()))
    }
}

/// The approximate size of a container of ours, in bytes.
const CONTAINER_SIZE: usize = 2 * 1024;
/// The API server's limit for the annotations of one object, keys and values, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// The longest value of the annotation with the warnings, in bytes.
const MAX_WARNINGS: usize = 4 * 1024;

/// A JSON list of as many warnings as fit, and how many did not.
fn listed(warnings: &[String]) -> String {
    let whole = json!(warnings).to_string();
    if whole.len() <= MAX_WARNINGS {
        return whole;
    }
    let more = |count: usize| format!("and {count} more");
    let mut some: Vec<&str> = Vec::new();
    let mut left = MAX_WARNINGS - json!([more(warnings.len())]).to_string().len();
    for warning in warnings {
        let size = json!(warning).to_string().len() + ",".len();
        if size > left {
            break;
        }
        left -= size;
        some.push(warning);
    }
    let last = more(warnings.len() - some.len());
    some.push(&last);
    json!(some).to_string()
}
