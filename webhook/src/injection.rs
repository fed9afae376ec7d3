//! Injection into a pod: nothing, a patch or a refusal. Pure: takes the raw object, returns a patch or every reason.
//!
//! ```text
//! view                 the raw pod, borrowed                         (recognise)
//! options              which flags a command line sets
//! environment, urls,   what etcd's container gets, what it listens
//! listeners, reload,   at, how it can be restarted, and whether
//! ending               it comes back
//! contract, asking,    what would fail or stop it, and what is in
//! written, hosts,      the way
//! stops, checks, mesh                                                (decide)
//! pod, parts, present  what the pod gets; what of it is there already
//! resources            what its own resources leave room for
//! told                 what a live member's etcd is told, for `check pod` and `status`
//! patch                the `add` operations                          (apply)
//! cel                  the same as admission policies, for pods that state their options
//! ```
//!
//! **Invariant.** Injecting twice changes nothing, even if the API server and other webhooks change the pod in between.

mod asking;
pub mod cel;
mod checks;
mod contract;
mod ending;
mod environment;
mod hosts;
pub mod json;
mod kubelet;
mod listeners;
mod mesh;
mod options;
mod parts;
pub mod patch;
mod paths;
mod pod;
mod present;
mod reload;
mod resources;
mod stops;
mod told;
mod urls;
mod view;
mod written;

pub(crate) use self::{
    environment::{STATE_ENV, STATE_NONE},
    told::{Told, ToldList, list_option, told, told_lists},
};

use std::collections::BTreeSet;

use etcd_tls_contract::{
    args::PodArgs,
    identity, names,
    policy::{IssuerRule, Policy},
    role::Role,
    settings::{Issuer, Reload, Resources, Settings},
};

use crate::traces::Context;

use self::{
    asking::DialledEtcd,
    json::Json,
    options::{Options, Tool},
    patch::{Item, PodPatch},
    view::{Container, Pod},
};

/// The settings that do not come from the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The image of both injected containers.
    pub sidecar_image: String,
    /// Their `imagePullPolicy`; `None` leaves it to the API server.
    pub image_pull_policy: Option<String>,
    /// Their resources if the pod sets none. Resources that are not named have the built-in default.
    pub resources: Resources,
    /// Secrets in the pod's namespace to pull their image with.
    pub pull_secrets: Vec<String>,
    /// Their user where etcd's is not declared; `None` leaves it to the image and to the cluster.
    pub user: Option<u64>,
    /// For static pods; `None` for all others.
    pub host: Option<HostPaths>,
    /// Which issuers pods may name.
    pub issuers: Issuers,
    /// The domain of the cluster, where it is known.
    pub cluster_domain: Option<String>,
}

/// The operator's rules for issuers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuers {
    /// Those of [`Policy::issuers`](etcd_tls_contract::policy::Policy::issuers).
    Rules(Vec<IssuerRule>),
    /// They cannot be read and none was read before; the error.
    Unreadable(String),
}

impl Default for Issuers {
    fn default() -> Self {
        Self::Rules(Vec::new())
    }
}

/// Where a static pod, which has no service account and no API objects, finds on its host what others are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    /// The kubeconfig to ask with; its directory is mounted.
    pub kubeconfig: String,
    /// The kubeconfig for requests while there is no certificate.
    pub bootstrap_kubeconfig: Option<String>,
    /// Where the files are kept, so that etcd starts again before anybody can be asked.
    pub directory: String,
}

/// Where a pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The namespace it goes to.
    pub namespace: &'a str,
    /// True if that namespace has opted in.
    pub namespace_opted_in: bool,
    /// True if to label the pod as opted in.
    pub label: bool,
    /// The subdomain that its StatefulSet gives it; `None`: the pod's own, or not known.
    pub subdomain: Option<&'a str>,
    /// The place of its admission in a trace, to be written on it; `None` where no traces are exported.
    pub trace: Option<Context>,
}

/// The decision on a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodDecision {
    /// Change nothing; the warnings.
    Leave(Vec<String>),
    /// Apply the patch, which is empty if everything is in place; the warnings.
    Inject {
        /// For the very object that was decided on.
        patch: PodPatch,
        /// For the person who made the pod.
        warnings: Vec<String>,
    },
    /// Refuse it, for every one of these reasons.
    Refuse(Vec<String>),
}

/// Decides on `pod`, a pod or a pod template.
pub fn decide(pod: &Json<'_>, config: &Config, origin: Origin<'_>) -> PodDecision {
    let mut pod = match Pod::read(pod) {
        Ok(pod) => pod,
        Err(error) => return PodDecision::Refuse(error.problems),
    };
    // A longer one is none, and is not repeated.
    let subdomain = origin.subdomain.map(|name| if name.len() <= view::MAX_LABEL { name } else { "" });
    pod.dns = subdomain.map(|subdomain| ("", subdomain)).or(pod.dns);
    if pod.mirror {
        return PodDecision::Leave(Vec::new());
    }
    if let Some(namespace) = pod.namespace.filter(|namespace| *namespace != origin.namespace) {
        return PodDecision::Refuse(vec![format!(
            "metadata.namespace is {namespace:?}, but the request is for {:?}",
            origin.namespace
        )]);
    }
    if let Some(left) = left_alone(&pod, origin) {
        return left;
    }
    match Settings::parse(&pod.annotations) {
        Ok(settings) => Work::new(pod, settings, config, origin).decide(),
        Err(problems) => PodDecision::Refuse(problems.iter().map(ToString::to_string).collect()),
    }
}

/// Pods that have not opted in.
fn left_alone(pod: &Pod<'_>, origin: Origin<'_>) -> Option<PodDecision> {
    let containers: Vec<&str> = pod.containers.iter().filter(|c| c.runs_on()).map(|c| c.name).collect();
    if identity::opted_in(origin.namespace_opted_in, &pod.labels, &pod.annotations, &containers) {
        return match pod.labels.get(names::LABEL).map(String::as_str) {
            None | Some(names::DYNAMIC) => None,
            Some(other) => Some(PodDecision::Refuse(vec![unknown_label(other)])),
        };
    }
    Some(match pod.labels.get(names::LABEL).map(String::as_str) {
        Some(names::DISABLED) => PodDecision::Leave(Vec::new()),
        Some(other) => PodDecision::Refuse(vec![unknown_label(other)]),
        // Injection by hand means the container that runs etcd, under any name.
        None if origin.label && pod.containers.iter().any(|c| Options::read(c).runs_etcd()) => return None,
        None if origin.namespace_opted_in => PodDecision::Leave(vec![format!(
            "etcd-tls: left untouched, since no container that keeps running is named {} and there is no annotation {}roles",
            names::ETCD_CONTAINER,
            names::ANNOTATION_PREFIX
        )]),
        None => PodDecision::Leave(Vec::new()),
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
    /// The roles whose options it gets.
    roles: Vec<Role>,
}

impl<'a> Work<'a> {
    fn new(pod: Pod<'a>, settings: Settings, config: &'a Config, origin: Origin<'a>) -> Self {
        Self { pod, settings, config, origin, problems: Vec::new(), warnings: Vec::new() }
    }

    fn decide(mut self) -> PodDecision {
        let spec = self.pod.spec;
        let of = |field: &str, name: &'static str| spec.get(field).and_then(|value| value.get(name).as_str());
        for (path, os) in
            [("os.name", of("os", "name")), ("nodeSelector[kubernetes.io/os]", of("nodeSelector", "kubernetes.io/os"))]
        {
            if os == Some("windows") {
                self.problems.push(format!("spec.{path} is windows: etcd-tls runs on Linux"));
            }
        }
        self.check_issuer();
        self.check_kubelet();
        self.check_resources();
        let targets = self.targets();
        let etcd: Vec<Container<'a>> = {
            let members = targets.iter().filter(|t| t.roles.iter().any(|r| matches!(r, Role::Peer | Role::Server)));
            let members: Vec<_> = members.map(|t| t.container).collect();
            if members.is_empty() { targets.iter().map(|t| t.container).collect() } else { members }
        };
        let mut patch = PodPatch::default();
        let asked = DialledEtcd::of(&targets, &self.settings.mount_path);
        for target in &targets {
            self.equip(target, &mut patch);
            self.check_target_asks(target, asked.as_ref());
        }
        self.check_neighbours(&targets, asked.as_ref());

        let mut args = PodArgs::of(&self.settings);
        let listeners = self.listeners(&targets, &mut args);
        self.check_reached(&args);
        let (runs_etcd, of_host) = (self.settings.runs_etcd(), self.config.host.is_some());
        let mut reload = reload::plan(&self.pod, &self.settings, &etcd, runs_etcd, &listeners, of_host);
        self.warnings.append(&mut reload.warnings);
        self.problems.append(&mut reload.problems);
        args.can_signal = reload.can_signal;
        if reload.can_signal && runs_etcd {
            let urls = [&args.client_url, &args.peer_url, &args.metrics_url].into_iter().flatten();
            let ports: BTreeSet<u16> = urls.map(|url| url.port).chain(listeners.iter().map(|url| url.port)).collect();
            let members = targets.iter().filter(|target| etcd.iter().any(|c| c.name == target.container.name));
            let may_stay_away = |target| ending::warning(&self.pod, target, &ports, &self.settings.reload);
            self.warnings.extend(members.filter_map(may_stay_away).next());
        }
        args.revocation_lists = runs_etcd && self.lists();
        if of_host {
            args.extra_sans.extend(advertised(&targets));
        }
        self.check_ports(&args, &listeners);

        if let (Some(probe), Some(container)) = (reload.probe, etcd.first()) {
            args.liveness_url = probe.liveness_url.map(Into::into);
            let index = container.index.to_string();
            let path = ["spec", container.list.field(), &index, "livenessProbe"];
            if probe.replaces { patch.replace(&path, probe.value) } else { patch.set(&path, probe.value) }
        } else if self.settings.reload == Reload::Probe {
            // In place already, and what the user's own asked stands in our arguments alone.
            args.liveness_url = reload::injected_url(&self.pod);
            self.warnings.extend(args.liveness_url.as_ref().and_then(reload::not_asked));
        }
        self.volumes(&mut patch);
        self.groups(&mut patch);
        self.pull_secrets(&mut patch);
        let declared = etcd.first().and_then(|c| self.pod.user(c)).filter(|u| *u != 0);
        let user = declared.or_else(|| self.default_user());
        let needs_user = self.config.host.is_some() && self.settings.roles.contains(&Role::Client);
        if needs_user && self.settings.user.is_none() {
            self.problems
                .push("annotation etcd-tls.dev/user: a static pod has no service account; name the user".to_owned());
        }
        if of_host && self.settings.trust.is_some() {
            self.problems.push(
                "annotation etcd-tls.dev/trust: a static pod mounts no ConfigMap and no ClusterTrustBundle; remove it, and \
                 keep the bundle on the host (docs/standalone.md)"
                    .to_owned(),
            );
        }
        if let (true, Issuer::CertManager(issuer)) = (of_host, &self.settings.issuer) {
            self.problems.push(format!(
                "annotation etcd-tls.dev/issuer: a static pod makes no CertificateRequest; use cert-manager's signers for \
                 CertificateSigningRequests, csr:{}",
                issuer.signer_name(self.origin.namespace)
            ));
        }
        let share = reload.share;
        let ports: BTreeSet<u16> = if runs_etcd { mesh::ports(&listeners) } else { BTreeSet::new() };
        let users = mesh::Users { own: user, etcd: etcd.first().and_then(|c| self.pod.user(c)) };
        self.warnings.extend(mesh::warnings(&self.pod, args.admin_port, &ports, users));
        let injected = self.containers(args, user, share, &mut patch);
        if share && injected {
            patch.set(&["spec", "shareProcessNamespace"], true);
        }
        if let (Some(host), Some(user)) = (&self.config.host, declared) {
            self.warnings.push(ownership(host, user));
        }
        if self.problems.is_empty() {
            self.mark(&mut patch);
            PodDecision::Inject { patch, warnings: self.warnings }
        } else {
            PodDecision::Refuse(self.problems)
        }
    }

    /// Checks that the pod's namespace may use its issuer.
    fn check_issuer(&mut self) {
        let refused = match &self.config.issuers {
            Issuers::Rules(rules) => {
                let policy = Policy { issuers: rules.clone(), ..Policy::default() };
                policy
                    .check_issuer(self.origin.namespace, &self.settings.issuer)
                    .err()
                    .map(|refused| refused.to_string())
            }
            // approve and sign judge our own once more, by the policy that they read last.
            Issuers::Unreadable(_) if self.settings.is_ours() => None,
            Issuers::Unreadable(why) => {
                Some(format!("{why}, so it is not known which issuers are allowed here; correct the policy"))
            }
        };
        self.problems.extend(refused.map(|why| format!("annotation etcd-tls.dev/issuer: {why}")));
    }

    /// The containers that the pod means: those it names, else the one named `etcd`, else the only one, else the native sidecar
    /// that is seen to run etcd.
    fn targets(&mut self) -> Vec<Target<'a>> {
        let own: Vec<Container<'a>> = self.pod.containers.iter().filter(|c| !c.is_injected()).copied().collect();
        let running: Vec<Container<'a>> = own.iter().filter(|c| c.runs_on()).copied().collect();
        let main: Vec<Container<'a>> = running.iter().filter(|c| c.list == view::List::Main).copied().collect();
        let mut chosen = Vec::new();
        if !self.settings.containers.is_empty() {
            for name in &self.settings.containers {
                match own.iter().find(|c| c.name == name) {
                    Some(container) => chosen.push(*container),
                    None => self.problems.push(format!(
                        "annotation etcd-tls.dev/containers: the pod has no container {name:?}; it has {}",
                        view::listed(&main)
                    )),
                }
            }
        } else if let Some(etcd) = running.iter().find(|c| c.name == names::ETCD_CONTAINER) {
            chosen.push(*etcd);
        } else if let ([only], sidecars) = (main.as_slice(), self.sidecars_with_etcd(&running))
            && (sidecars.len() < 2 || runs_etcd(only))
        {
            chosen.push(sidecars.first().filter(|_| !runs_etcd(only)).copied().unwrap_or(*only));
        } else {
            // Another webhook may have added a container since the first look: then the mount tells.
            let ours = parts::mount(&self.settings.mount_path);
            chosen.extend(running.iter().filter(|c| has_mount(c, &ours)));
            if chosen.is_empty() {
                self.problems.push(format!(
                    "which container is etcd's? None of {} is named {}; name it in annotation etcd-tls.dev/containers",
                    view::listed(&running),
                    names::ETCD_CONTAINER
                ));
            }
        }
        let read: Vec<(Container<'a>, Options)> = chosen.into_iter().map(|c| (c, Options::read(&c))).collect();
        // Among several, the members are those that run etcd; where none shows it, any may be one.
        let evident = |(c, o): &(Container<'a>, Options)| o.runs_etcd() || c.name == names::ETCD_CONTAINER;
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

    /// The native sidecars that are seen to run etcd; of a pod without a member's roles, none is looked for. Too many to be read are
    /// all taken for such.
    fn sidecars_with_etcd(&self, running: &[Container<'a>]) -> Vec<Container<'a>> {
        let sidecars = running.iter().filter(|c| self.settings.runs_etcd() && c.list == view::List::Init);
        let named: Vec<Container<'a>> = sidecars.filter(|c| names_etcd(c)).copied().collect();
        if named.len() > asking::MAX_READ { named } else { named.into_iter().filter(runs_etcd).collect() }
    }

    /// True if etcd gets the options of the revocation lists. Without the file it refuses everybody, so only if the init
    /// container writes it: one injected by an earlier version does not.
    fn lists(&self) -> bool {
        let init = self.pod.container(names::INIT_CONTAINER);
        // Nobody brings lists to a static pod's host.
        self.settings.revocation
            && self.settings.is_ours()
            && !self.settings.is_of_kubelet()
            && self.config.host.is_none()
            && init.is_none_or(|c| present::arguments(&c, "init").is_some_and(|args| args.revocation_lists))
    }

    /// Mount and environment of one container, and what is to be said of its URLs and probes.
    fn equip(&mut self, target: &Target<'a>, patch: &mut PodPatch) {
        let Target { container, options, roles } = target;
        let index = container.index.to_string();
        let path = ["spec", container.list.field(), index.as_str()];
        let mount_path = self.settings.mount_path.clone();
        let files =
            environment::Files { mount: &mount_path, lists: self.lists(), one_file: self.settings.is_of_kubelet() };
        let mut environment = environment::environment(container, options, self.settings.options, roles, files);
        self.warnings.append(&mut environment.warnings);
        self.problems.append(&mut environment.problems);
        match environment.add.iter().map(|variable| Item::written(variable, 128)).collect() {
            Ok(variables) => patch.append(&path, container.object, "env", variables),
            Err(error) => {
                self.problems.push(format!("container {}: its env has no form in JSON: {error}", container.name));
            }
        }
        self.check_groups(target);
        let mount = parts::mount(&mount_path);
        if !has_mount(container, &mount) {
            self.check_mounts(container, &mount_path);
            patch.append(&path, container.object, "volumeMounts", vec![mount.into()]);
        }
        if roles.iter().any(|r| matches!(r, Role::Peer | Role::Server)) {
            self.check_contract(target);
        }
        self.check_words(target);
        self.check_without(container, options, Some(roles));
    }
}

/// The commands to run on the host of a static pod whose etcd, and so whose sidecar, is not root: kubelet creates a missing
/// directory as root.
fn ownership(host: &HostPaths, user: u64) -> String {
    let wanted = [("the kubeconfig", parts::parent(&host.kubeconfig)), ("--host-dir", host.directory.as_str())];
    let (own, shared): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, dir)| paths::is_dedicated(dir));
    let mut said = format!("etcd runs as user {user}, and etcd-tls with it");
    for (what, dir) in shared {
        said.push_str(&format!("; {dir} may hold others' files, too: give {what} a directory of its own"));
    }
    let own: BTreeSet<String> = own.into_iter().map(|(_, dir)| paths::shell_word(dir)).collect();
    let mut commands = Vec::new();
    if !own.is_empty() {
        let dirs = own.into_iter().collect::<Vec<_>>().join(" ");
        commands.push(format!("install -d -o {user} -g {} -m 750 {dirs}", names::FILES_GID));
    }
    commands.extend(host.bootstrap_kubeconfig.iter().map(|file| format!("chown {user} {}", paths::shell_word(file))));
    if !commands.is_empty() {
        said.push_str("; before kubelet starts the pod, run on the host: ");
        said.push_str(&commands.join(" && "));
    }
    said
}

/// The hosts that a static pod's members advertise. Without an API server kubelet knows no address of such a pod, and by
/// these the other members know it all the same.
fn advertised(targets: &[Target<'_>]) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for Target { options, .. } in targets {
        for option in ["advertise-client-urls", "initial-advertise-peer-urls"] {
            for url in urls::urls(urls::setting(options, option).as_ref()) {
                let host = url.host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let outside = match host.parse::<std::net::IpAddr>() {
                    Ok(ip) => !ip.is_loopback() && etcd_tls_contract::names::is_san_ip(ip),
                    Err(_) => host != "localhost" && etcd_tls_contract::names::is_san_dns_name(&host),
                };
                if outside {
                    hosts.insert(host);
                }
            }
        }
    }
    hosts
}

/// True if the image of a container is etcd's by its name.
fn is_etcds_image(container: &Container<'_>) -> bool {
    let image = container.object.get("image").and_then(Json::as_str).unwrap_or_default();
    let name = image.rsplit('/').next().and_then(|last| last.split([':', '@']).next());
    name == Some(Tool::Etcd.program())
}

/// True if a container may be seen to run etcd: only then is its command line read.
fn names_etcd(container: &Container<'_>) -> bool {
    let named = |word: &str| word.contains(Tool::Etcd.program());
    is_etcds_image(container) || container.words("command").chain(container.words("args")).any(named)
}

/// True if a container is seen to run etcd: by its command line, or by its image's name where it runs the image's own.
fn runs_etcd(container: &Container<'_>) -> bool {
    if !names_etcd(container) {
        return false;
    }
    let options = Options::read(container);
    if options.entrypoint { is_etcds_image(container) } else { options.runs_etcd() }
}

/// True if our volume is mounted there already.
fn has_mount(container: &Container<'_>, ours: &serde_json::Value) -> bool {
    container.list("volumeMounts").iter().any(|mount| json::contains(mount, ours))
}

#[cfg(test)]
mod tests;
