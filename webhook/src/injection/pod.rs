//! What the pod as a whole gets: volumes, a group, our two containers, the label.

use etcd_tls_contract::{args::PodArgs, names};
use serde_json::{Value, json};

use super::{Work, parts, patch::Additions, present, view};

impl Work<'_> {
    pub(super) fn volumes(&mut self, patch: &mut Additions) {
        let trust = self.settings.trust_config_map(self.origin.namespace);
        let ours = match &self.config.host {
            Some(host) => parts::host_volumes(host),
            None => vec![parts::certificates_volume(), parts::trust_volume(trust), parts::token_volume()],
        };
        let mut missing = Vec::new();
        for volume in ours {
            let mut same = self.pod.volumes.iter().filter(|v| v.get("name") == volume.get("name"));
            match same.next() {
                None => missing.push(volume),
                Some(theirs) if present::is_volume(theirs, &volume) && same.next().is_none() => {}
                Some(_) => self.problems.push(format!(
                    "volume {} is not etcd-tls's own; give the pod's volume another name",
                    volume.get("name").and_then(Value::as_str).unwrap_or_default()
                )),
            }
        }
        patch.append(&["spec"], self.pod.spec, "volumes", missing);
    }

    /// The group that may read the files. Not fsGroup, which would change the data volume's files.
    pub(super) fn groups(&mut self, patch: &mut Additions) {
        let gid = Value::from(names::FILES_GID);
        match self.pod.spec.get("securityContext").and_then(Value::as_object) {
            None => patch.set(&["spec", "securityContext"], json!({"supplementalGroups": [gid]})),
            Some(security) => {
                let groups = security.get("supplementalGroups");
                if groups.is_some_and(|g| !g.is_null() && !g.is_array()) {
                    self.problems.push("spec.securityContext.supplementalGroups is no list".to_owned());
                } else if !groups.and_then(Value::as_array).is_some_and(|g| g.contains(&gid)) {
                    patch.append(&["spec", "securityContext"], security, "supplementalGroups", vec![gid]);
                }
            }
        }
    }

    /// Our two containers, at the head of `initContainers`. Whether the sidecar, there already or not, is told that it
    /// may signal.
    pub(super) fn containers(&mut self, mut args: PodArgs, user: u64, share: bool, patch: &mut Additions) -> bool {
        let present = |name| self.pod.container(name);
        let sidecar = present(names::SIDECAR_CONTAINER);
        if let Some(theirs) = sidecar.and_then(|c| present::arguments(&c, "run")) {
            if theirs.can_signal && !args.can_signal {
                self.warnings.push(
                    "etcd-tls-sidecar was told that it may signal etcd, which since then is no longer safe: \
                     give each container a runAsUser of its own"
                        .to_owned(),
                );
            }
            args.can_signal = theirs.can_signal;
        }
        let can_signal = args.can_signal;
        let mut insert = Vec::new();
        let mut next = 0;
        for (name, ours) in [
            (names::INIT_CONTAINER, parts::init_container(self.config, &args, user, self.origin.namespace)),
            (names::SIDECAR_CONTAINER, parts::sidecar(self.config, &args, user, self.origin.namespace)),
        ] {
            let Some(theirs) = present(name) else {
                insert.push((next, ours));
                next += 1;
                continue;
            };
            next = theirs.index + 1;
            let differences = match self.config.host {
                Some(_) => present::plain_differences(&theirs, &ours),
                None => present::differences(&theirs, &ours, &args, present::subcommand(name)),
            };
            if !differences.is_empty() {
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

    pub(super) fn label(&self, patch: &mut Additions) {
        const LABEL: &str = names::LABEL;
        let label = || json!({LABEL: names::DYNAMIC});
        match (self.pod.has_metadata, self.pod.has_labels) {
            (false, _) => patch.set(&["metadata"], json!({"labels": label()})),
            (true, false) => patch.set(&["metadata", "labels"], label()),
            (true, true) => patch.set(&["metadata", "labels", names::LABEL], names::DYNAMIC),
        }
    }
}
