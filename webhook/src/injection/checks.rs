//! Conflicts with the injected parts: mounts and ports in use.

use etcd_tls_contract::{args::PodArgs, names};

use super::{Work, json::Json, urls::Url, view::Container};

impl<'a> Work<'a> {
    pub(super) fn check_mounts(&mut self, container: &Container<'a>, ours: &str) {
        for mount in container.list("volumeMounts") {
            let text = |field: &str| mount.as_object().and_then(|mount| mount.get(field)?.as_str()).unwrap_or_default();
            let theirs = text("mountPath").trim_end_matches('/');
            let within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
            let what = if theirs == ours {
                "is where"
            } else if within(theirs, ours) {
                "is within where"
            } else if within(ours, theirs) && self.is_read_only(mount) {
                "is read-only and holds where"
            } else {
                continue;
            };
            self.problems.push(format!(
                "container {}: the mount {theirs} of volume {} {what} the certificates go ({ours}); choose another \
                 etcd-tls.dev/mount-path",
                container.name,
                text("name")
            ));
        }
    }

    /// True if no directory can be made in a mount for another one.
    fn is_read_only(&self, mount: &Json<'_>) -> bool {
        let volume = mount.get("name").as_str().and_then(|name| self.pod.volume(name));
        mount.get("readOnly").as_bool().unwrap_or(false)
            || volume.is_some_and(|v| {
                ["configMap", "secret", "projected", "downwardAPI"].iter().any(|kind| !v.get(*kind).is_null())
            })
    }

    pub(super) fn check_ports(&mut self, args: &PodArgs, listeners: &[Url]) {
        let chosen = self.pod.annotations.contains_key(&format!("{}admin-port", names::ANNOTATION_PREFIX));
        if self.pod.flag("hostNetwork") && !chosen {
            self.warnings.push(format!(
                "the pod is on the host's network, so etcd-tls-sidecar takes port {} of the node; give another such pod of \
                 the node another etcd-tls.dev/admin-port",
                args.admin_port
            ));
        }
        let declared = self.pod.containers.iter().filter(|c| !c.is_injected()).find(|c| {
            let port = |p: &Json<'_>| p.get("containerPort").as_u64() == Some(u64::from(args.admin_port));
            c.list("ports").iter().any(|p| port(p) && p.get("protocol").as_str().is_none_or(|p| p == "TCP"))
        });
        let by = match declared {
            Some(container) => format!("container {}", container.name),
            None if listeners.iter().any(|u| u.port == args.admin_port) => "etcd".to_owned(),
            None => return,
        };
        self.problems.push(format!(
            "port {} is etcd-tls-sidecar's, but {by} has it; choose another etcd-tls.dev/admin-port",
            args.admin_port
        ));
    }
}
