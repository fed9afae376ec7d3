//! What of a pod would not work with certificates: mounts in the way, URLs and probes without TLS, ports that are taken.

use etcd_tls_contract::{args::PodArgs, role::Role};

use serde_json::Value;

use super::{
    Target, Work, options, reload,
    urls::{self, Url},
    view::Container,
};

impl<'a> Work<'a> {
    pub(super) fn check_mounts(&mut self, container: &Container<'a>, ours: &str) {
        for mount in container.list("volumeMounts") {
            let text = |field: &str| mount.get(field).and_then(Value::as_str).unwrap_or_default();
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

    /// Whether no directory can be made in a mount for another one.
    fn is_read_only(&self, mount: &Value) -> bool {
        let volume = mount.get("name").and_then(Value::as_str).and_then(|name| self.pod.volume(name));
        mount.get("readOnly").and_then(Value::as_bool).unwrap_or(false)
            || volume.is_some_and(|v| {
                ["configMap", "secret", "projected", "downwardAPI"]
                    .iter()
                    .any(|kind| v.get(kind).is_some_and(|s| !s.is_null()))
            })
    }

    pub(super) fn check_urls(&mut self, target: &Target<'a>) {
        let Target { container, options, roles } = target;
        for (role, option) in [
            (Role::Server, "listen-client-urls"),
            (Role::Server, "advertise-client-urls"),
            (Role::Peer, "listen-peer-urls"),
            (Role::Peer, "initial-advertise-peer-urls"),
            (Role::Peer, "initial-cluster"),
        ] {
            if !roles.contains(&role) {
                continue;
            }
            let setting = urls::setting(options, option);
            let plain: Vec<Url> = urls::urls(setting.as_ref()).into_iter().filter(|u| !u.https).collect();
            let unset = setting.is_none() && option == "listen-client-urls" && options.runs_etcd();
            if unset && !options.is_proxy() && config_file(target).is_none() {
                self.warnings.push(format!(
                    "container {}: --listen-client-urls is not set, so etcd listens on http://localhost:2379",
                    container.name
                ));
            } else if let Some(url) = plain.first() {
                self.warnings.push(format!(
                    "container {}: --{option} still says http://{}:{}; write https://",
                    container.name, url.host, url.port
                ));
            }
        }
    }

    pub(super) fn check_probes(&mut self, target: &Target<'a>) {
        let Target { container, options, roles } = target;
        if !roles.contains(&Role::Server) {
            return;
        }
        let clients = urls::urls(urls::setting(options, "listen-client-urls").as_ref());
        let is_client_port = |port: u16| clients.iter().any(|u| u.port == port) || (clients.is_empty() && port == 2379);
        for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(probe) = container.object.get(field) else { continue };
            for kind in ["httpGet", "grpc"] {
                let Some(handler) = probe.get(kind).filter(|v| !v.is_null()) else { continue };
                if reload::port(handler.get("port"), container).is_some_and(is_client_port) {
                    self.warnings.push(format!(
                        "container {}: its {field} asks the client port by {kind} and has no client certificate, so it will \
                         fail for ever; probe --listen-metrics-urls, or use tcpSocket",
                        container.name
                    ));
                }
            }
            let text = probe.get("exec").map(ToString::to_string).unwrap_or_default();
            if text.contains("etcdctl") && !text.contains("--cert") && !self.settings.roles.contains(&Role::Client) {
                self.warnings.push(format!(
                    "container {}: its {field} runs etcdctl, which needs a client certificate: add client to \
                     etcd-tls.dev/roles",
                    container.name
                ));
            }
        }
    }

    /// etcd's listeners, put into the sidecar's arguments; all of them, for whoever looks for a port.
    pub(super) fn listeners(&self, targets: &[Target<'a>], args: &mut PodArgs) -> Vec<Url> {
        let member = |t: &&Target<'a>| t.roles.iter().any(|r| matches!(r, Role::Peer | Role::Server));
        let Some(target) = targets.iter().find(member) else { return Vec::new() };
        let of = |option| urls::urls(urls::setting(&target.options, option).as_ref());
        let seen = |urls: &[Url], port: u16| match urls.iter().find(|u| u.https) {
            Some(url) => url.seen_from_sidecar().parse().ok(),
            // Written nowhere here: in a file, or by the image.
            None if urls.is_empty() => format!("https://127.0.0.1:{port}").parse().ok(),
            None => None,
        };
        let (clients, peers, metrics) = (of("listen-client-urls"), of("listen-peer-urls"), of("listen-metrics-urls"));
        if target.roles.contains(&Role::Server) {
            args.client_url = seen(&clients, 2379);
            args.metrics_url = metrics.iter().find(|u| u.https).and_then(|u| u.seen_from_sidecar().parse().ok());
        }
        if target.roles.contains(&Role::Peer) {
            args.peer_url = seen(&peers, 2380);
        }
        [clients, peers, metrics].concat()
    }

    pub(super) fn check_ports(&mut self, args: &PodArgs, listeners: &[Url]) {
        let declared = self.pod.containers.iter().filter(|c| !c.is_injected()).find(|c| {
            let port = |p: &Value| p.get("containerPort").and_then(Value::as_u64) == Some(u64::from(args.admin_port));
            c.list("ports").iter().any(|p| port(p) && p.get("protocol").is_none_or(|p| p.as_str() == Some("TCP")))
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

fn config_file(target: &Target<'_>) -> Option<options::Setting> {
    urls::setting(&target.options, "config-file")
}
