//! What is done to a pod: left alone, injected into, or refused. Pure: the raw object in, a patch or every reason out.
//!
//! ```text
//! view                 the raw pod, borrowed                         (recognise)
//! shell, options       which flags a command line sets
//! environment, urls,   what etcd's container gets, what it listens
//! reload               at, how it can be restarted                   (decide)
//! parts, present       what is added; what of it is there already
//! patch                the `add` operations                          (apply)
//! ```
//!
//! **Invariant.** Injecting twice changes nothing, whatever the API server and other webhooks add in between.

mod environment;
mod options;
mod parts;
mod patch;
mod present;
mod reload;
mod shell;
mod urls;
mod view;

use std::collections::BTreeSet;

use etcd_tls_sidecar::{args::PodArgs, identity, names, role::Role, settings::Settings};

pub use self::patch::{Kind, Operation, Patch};
use self::{
    options::Options,
    patch::Additions,
    urls::Url,
    view::{Container, Pod},
};
use crate::json::{Json, list, object};

/// What does not come from the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The image of both injected containers.
    pub sidecar_image: String,
    /// Their `imagePullPolicy`; `None` leaves it to the API server.
    pub image_pull_policy: Option<String>,
    /// For static pods; `None` for all others.
    pub host: Option<Host>,
}

/// Where a static pod, which has no service account and no API objects, finds on its host what others are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kubeconfig to ask with; its directory is mounted.
    pub kubeconfig: String,
    /// What to ask with while there is no certificate.
    pub bootstrap_kubeconfig: Option<String>,
    /// Where the files are kept, so that etcd starts again before anybody can be asked.
    pub directory: String,
}

/// Where a pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The namespace it goes to.
    pub namespace: &'a str,
    /// Whether that namespace has opted in.
    pub namespace_opted_in: bool,
    /// Whether to label the pod as opted in.
    pub label: bool,
}

/// What to do with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing; what to say of it.
    Leave(Vec<String>),
    /// Apply the patch, which is empty where everything is in place; what to say of it.
    Inject {
        /// For the very object that was decided on.
        patch: Patch,
        /// For the person who made the pod.
        warnings: Vec<String>,
    },
    /// Refuse it, for every one of these reasons.
    Refuse(Vec<String>),
}

/// Decides on `pod`, a pod or a pod template.
pub fn decide(pod: &Json<'_>, config: &Config, origin: Origin<'_>) -> Decision {
    let pod = match Pod::read(pod) {
        Ok(pod) => pod,
        Err(problems) => return Decision::Refuse(problems),
    };
    if pod.mirror {
        return Decision::Leave(Vec::new());
    }
    if let Some(namespace) = pod.namespace.filter(|namespace| *namespace != origin.namespace) {
        return Decision::Refuse(vec![format!(
            "metadata.namespace is {namespace:?}, but the request is for {:?}",
            origin.namespace
        )]);
    }
    if let Some(left) = left_alone(&pod, origin) {
        return left;
    }
    match Settings::parse(&pod.annotations) {
        Ok(settings) => Work::new(pod, settings, config, origin).decide(),
        Err(problems) => Decision::Refuse(problems.iter().map(ToString::to_string).collect()),
    }
}

/// Pods that have not opted in.
fn left_alone(pod: &Pod<'_>, origin: Origin<'_>) -> Option<Decision> {
    let containers: Vec<&str> = pod.containers.iter().filter(|c| c.list == view::List::Main).map(|c| c.name).collect();
    if identity::opted_in(origin.namespace_opted_in, &pod.labels, &pod.annotations, &containers) {
        return match pod.labels.get(names::LABEL).map(String::as_str) {
            None | Some(names::DYNAMIC) => None,
            Some(other) => Some(Decision::Refuse(vec![unknown_label(other)])),
        };
    }
    Some(match pod.labels.get(names::LABEL).map(String::as_str) {
        Some(names::DISABLED) => Decision::Leave(Vec::new()),
        Some(other) => Decision::Refuse(vec![unknown_label(other)]),
        // Whoever injects by hand means what runs etcd, whatever its container is called.
        None if origin.label && pod.containers.iter().any(|c| Options::read(c).etcd.runs) => return None,
        None if origin.namespace_opted_in => Decision::Leave(vec![format!(
            "etcd-tls: left untouched, since no container is named {} and there is no annotation {}roles",
            names::ETCD_CONTAINER,
            names::ANNOTATION_PREFIX
        )]),
        None => Decision::Leave(Vec::new()),
    })
}

fn unknown_label(value: &str) -> String {
    format!("label {}={value:?}: write {} or {}", names::LABEL, names::DYNAMIC, names::DISABLED)
}

/// A pod that opted in, while it is decided on.
struct Work<'a> {
    pod: Pod<'a>,
    settings: Settings,
    config: &'a Config,
    origin: Origin<'a>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// A container that gets mount and environment.
struct Target<'a> {
    container: Container<'a>,
    options: Options,
    /// The roles whose options it is told.
    roles: Vec<Role>,
}

impl<'a> Work<'a> {
    fn new(pod: Pod<'a>, settings: Settings, config: &'a Config, origin: Origin<'a>) -> Self {
        Self { pod, settings, config, origin, problems: Vec::new(), warnings: Vec::new() }
    }

    fn decide(mut self) -> Decision {
        let os = self.pod.spec.get("os").and_then(|os| os.get("name")).and_then(Json::as_str);
        if os == Some("windows") {
            self.problems.push("spec.os.name is windows: etcd-tls runs on Linux".to_owned());
        }
        let targets = self.targets();
        let etcd: Vec<Container<'a>> = {
            let members = targets.iter().filter(|t| t.roles.iter().any(|r| matches!(r, Role::Peer | Role::Server)));
            let members: Vec<_> = members.map(|t| t.container).collect();
            if members.is_empty() { targets.iter().map(|t| t.container).collect() } else { members }
        };
        let mut patch = Additions::default();
        for target in &targets {
            self.equip(target, &mut patch);
        }

        let mut args = PodArgs::of(&self.settings);
        let listeners = self.listeners(&targets, &mut args);
        let (runs_etcd, of_host) = (self.settings.runs_etcd(), self.config.host.is_some());
        let mut reload = reload::plan(&self.pod, &self.settings, &etcd, runs_etcd, &listeners, of_host);
        self.warnings.append(&mut reload.warnings);
        self.problems.append(&mut reload.problems);
        args.can_signal = reload.can_signal;
        if of_host {
            args.extra_sans.extend(advertised(&targets));
        }
        self.check_ports(&args, &listeners);

        if let (Some(probe), Some(container)) = (reload.probe, etcd.first()) {
            args.liveness_url = probe.liveness_url;
            let index = container.index.to_string();
            let path = ["spec", container.list.field(), &index, "livenessProbe"];
            if probe.replaces { patch.replace(&path, probe.value) } else { patch.set(&path, probe.value) }
        }
        self.volumes(&mut patch);
        self.groups(&mut patch);
        // A host's directories are root's.
        let default_user = if self.config.host.is_some() { 0 } else { names::DEFAULT_UID.into() };
        let user = etcd.first().and_then(|c| self.pod.user(c)).filter(|u| *u != 0);
        let needs_user = self.config.host.is_some() && self.settings.roles.contains(&Role::Client);
        if needs_user && self.settings.user.is_none() {
            self.problems
                .push("annotation etcd-tls.dev/user: a static pod has no service account; name the user".to_owned());
        }
        let share = reload.share;
        let injected = self.containers(args, user.unwrap_or(default_user), share, &mut patch);
        if share && injected {
            patch.set(&["spec", "shareProcessNamespace"], true);
        }
        if self.origin.label && !self.pod.labels.contains_key(names::LABEL) {
            self.label(&mut patch);
        }
        if self.problems.is_empty() {
            let warnings = self.warnings.into_iter().map(clipped).collect();
            Decision::Inject { patch: patch.patch(), warnings }
        } else {
            Decision::Refuse(self.problems)
        }
    }

    /// The containers that the pod means: those it names, else the one named `etcd`, else the only one.
    fn targets(&mut self) -> Vec<Target<'a>> {
        let own: Vec<Container<'a>> = self.pod.containers.iter().filter(|c| !c.is_injected()).copied().collect();
        let main: Vec<Container<'a>> = own.iter().filter(|c| c.list == view::List::Main).copied().collect();
        let mut chosen = Vec::new();
        if !self.settings.containers.is_empty() {
            for name in &self.settings.containers {
                match own.iter().find(|c| c.name == name) {
                    Some(container) => chosen.push(*container),
                    None => self.problems.push(format!(
                        "annotation etcd-tls.dev/containers: the pod has no container {name:?}; it has {}",
                        main.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
                    )),
                }
            }
        } else if let Some(etcd) = main.iter().find(|c| c.name == names::ETCD_CONTAINER) {
            chosen.push(*etcd);
        } else if let [only] = main.as_slice() {
            chosen.push(*only);
        } else {
            // Another webhook may have added a container since the first look: then the mount tells.
            chosen.extend(main.iter().filter(|c| has_mount(c, &self.settings.mount_path)));
            if chosen.is_empty() {
                self.problems.push(format!(
                    "which container is etcd's? None of {} is named {}; name it in annotation etcd-tls.dev/containers",
                    main.iter().map(|c| c.name).collect::<Vec<_>>().join(", "),
                    names::ETCD_CONTAINER
                ));
            }
        }
        let read: Vec<(Container<'a>, Options)> = chosen.into_iter().map(|c| (c, Options::read(&c))).collect();
        // Among several, the members are those that run etcd; where none shows it, any may be one.
        let evident = |(c, o): &(Container<'a>, Options)| o.etcd.runs || c.name == names::ETCD_CONTAINER;
        let any_evident = read.iter().any(evident);
        let several = read.len() > 1;
        let roles: Vec<Role> = self.settings.roles.iter().copied().collect();
        read.into_iter()
            .map(|pair| {
                let member = !several || !any_evident || evident(&pair);
                let roles =
                    roles.iter().filter(|r| member || !matches!(r, Role::Peer | Role::Server)).copied().collect();
                Target { container: pair.0, options: pair.1, roles }
            })
            .collect()
    }

    /// Mount and environment of one container, and what is to be said of its URLs and probes.
    fn equip(&mut self, target: &Target<'a>, patch: &mut Additions) {
        let Target { container, options, roles } = target;
        let index = container.index.to_string();
        let path = ["spec", container.list.field(), index.as_str()];
        let mount_path = self.settings.mount_path.clone();
        let mut environment = environment::environment(container, options, roles, &mount_path);
        self.warnings.append(&mut environment.warnings);
        self.problems.append(&mut environment.problems);
        patch.append(&path, container.object, "env", environment.add);
        if !has_mount(container, &mount_path) {
            self.check_mounts(container, &mount_path);
            patch.append(&path, container.object, "volumeMounts", vec![parts::mount(&mount_path)]);
        }
        if roles.iter().any(|r| matches!(r, Role::Peer | Role::Server)) {
            self.check_urls(target);
            self.check_probes(target);
        }
    }

    fn check_mounts(&mut self, container: &Container<'a>, ours: &str) {
        for mount in container.list("volumeMounts") {
            let text = |field: &str| mount.get(field).and_then(Json::as_str).unwrap_or_default();
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
    fn is_read_only(&self, mount: &Json<'_>) -> bool {
        let volume = self.pod.volumes.iter().find(|v| v.get("name") == mount.get("name"));
        mount.get("readOnly").and_then(Json::as_bool).unwrap_or(false)
            || volume.is_some_and(|v| {
                ["configMap", "secret", "projected", "downwardAPI"]
                    .iter()
                    .any(|kind| v.get(kind).is_some_and(|s| !s.is_null()))
            })
    }

    fn check_urls(&mut self, target: &Target<'a>) {
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
            let setting = urls::setting(container, options, option);
            let plain: Vec<Url> = urls::urls(setting.as_ref()).into_iter().filter(|u| !u.https).collect();
            let unset = setting.is_none() && option == "listen-client-urls" && options.etcd.runs;
            if unset && !options.etcd.is_proxy() && config_file(target).is_none() {
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

    fn check_probes(&mut self, target: &Target<'a>) {
        let Target { container, options, roles } = target;
        if !roles.contains(&Role::Server) {
            return;
        }
        let clients = urls::urls(urls::setting(container, options, "listen-client-urls").as_ref());
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
    fn listeners(&self, targets: &[Target<'a>], args: &mut PodArgs) -> Vec<Url> {
        let member = |t: &&Target<'a>| t.roles.iter().any(|r| matches!(r, Role::Peer | Role::Server));
        let Some(target) = targets.iter().find(member) else { return Vec::new() };
        let of = |option| urls::urls(urls::setting(&target.container, &target.options, option).as_ref());
        let seen = |urls: &[Url], port: u16| match urls.iter().find(|u| u.https) {
            Some(url) => Some(url.seen_from_sidecar()),
            // Written nowhere here: in a file, or by the image.
            None if urls.is_empty() => Some(format!("https://127.0.0.1:{port}")),
            None => None,
        };
        let (clients, peers, metrics) = (of("listen-client-urls"), of("listen-peer-urls"), of("listen-metrics-urls"));
        if target.roles.contains(&Role::Server) {
            args.client_url = seen(&clients, 2379);
            args.metrics_url = metrics.iter().find(|u| u.https).map(Url::seen_from_sidecar);
        }
        if target.roles.contains(&Role::Peer) {
            args.peer_url = seen(&peers, 2380);
        }
        [clients, peers, metrics].concat()
    }

    fn check_ports(&mut self, args: &PodArgs, listeners: &[Url]) {
        let declared = self.pod.containers.iter().filter(|c| !c.is_injected()).find(|c| {
            let port = |p: &Json<'_>| p.get("containerPort").and_then(Json::as_u64) == Some(u64::from(args.admin_port));
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

    fn volumes(&mut self, patch: &mut Additions) {
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
                    volume.get("name").and_then(Json::as_str).unwrap_or_default()
                )),
            }
        }
        patch.append(&["spec"], self.pod.spec, "volumes", missing);
    }

    /// The group that may read the files. Not fsGroup, which would change the data volume's files.
    fn groups(&mut self, patch: &mut Additions) {
        let gid = Json::from(names::FILES_GID);
        match self.pod.spec.get("securityContext").and_then(Json::as_object) {
            None => patch.set(&["spec", "securityContext"], object! {"supplementalGroups": list![gid]}),
            Some(security) => {
                let groups = security.get("supplementalGroups");
                if groups.is_some_and(|g| !g.is_null() && !g.is_array()) {
                    self.problems.push("spec.securityContext.supplementalGroups is no list".to_owned());
                } else if !groups.and_then(Json::as_array).is_some_and(|g| g.contains(&gid)) {
                    patch.append(&["spec", "securityContext"], security, "supplementalGroups", vec![gid]);
                }
            }
        }
    }

    /// Our two containers, at the head of `initContainers`. Whether the sidecar, there already or not, is told that it
    /// may signal.
    fn containers(&mut self, mut args: PodArgs, user: u64, share: bool, patch: &mut Additions) -> bool {
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
                insert.push((next, ours.into()));
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

    fn label(&self, patch: &mut Additions) {
        const LABEL: &str = names::LABEL;
        let label = || object! {LABEL: names::DYNAMIC};
        match (self.pod.has_metadata, self.pod.has_labels) {
            (false, _) => patch.set(&["metadata"], object! {"labels": label()}),
            (true, false) => patch.set(&["metadata", "labels"], label()),
            (true, true) => patch.set(&["metadata", "labels", names::LABEL], names::DYNAMIC),
        }
    }
}

/// The hosts that a static pod's members advertise. Without an API server kubelet knows no address of such a pod, and by
/// these the other members know it all the same.
fn advertised(targets: &[Target<'_>]) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for Target { container, options, .. } in targets {
        for option in ["advertise-client-urls", "initial-advertise-peer-urls"] {
            for url in urls::urls(urls::setting(container, options, option).as_ref()) {
                let host = url.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let outside = match host.parse::<std::net::IpAddr>() {
                    Ok(ip) => !ip.is_loopback() && etcd_tls_sidecar::names::is_san_ip(ip),
                    Err(_) => host != "localhost" && etcd_tls_sidecar::names::is_san_dns_name(&host),
                };
                if outside {
                    hosts.insert(host);
                }
            }
        }
    }
    hosts
}

/// The longest warning that the API server passes on whole, in bytes.
const MAX_WARNING: usize = 256;

fn clipped(mut warning: String) -> String {
    if warning.len() > MAX_WARNING {
        let end = (0..=MAX_WARNING - 3).rev().find(|at| warning.is_char_boundary(*at)).unwrap_or(0);
        warning.truncate(end);
        warning.push_str("...");
    }
    warning
}

fn config_file(target: &Target<'_>) -> Option<options::Setting> {
    urls::setting(&target.container, &target.options, "config-file")
}

/// Whether our volume is mounted there already.
fn has_mount(container: &Container<'_>, path: &str) -> bool {
    let ours = parts::mount(path);
    container.list("volumeMounts").iter().any(|mount| present::contains(mount, &ours))
}

#[cfg(test)]
mod tests;
