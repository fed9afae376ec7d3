//! The injected parts as JSON: two containers and three volumes that meet Pod Security `restricted`.

use std::{borrow::Cow, collections::BTreeMap, sync::LazyLock};

use etcd_tls_contract::{
    args::PodArgs,
    identity::ROLE_ANNOTATION,
    names,
    role::{Domain, Role},
    settings::{Condition, Requirement, Resources, Settings, Trust, key_type, max_expiration},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Config, HostPaths, patch::Item};

/// The resources of the injected containers if neither the pod nor the webhook's flag sets any.
static DEFAULT_RESOURCES: LazyLock<Resources> = LazyLock::new(|| {
    let text = "requests.cpu=10m,requests.memory=16Mi,limits.cpu=500m,limits.memory=64Mi";
    text.parse().unwrap_or_default()
});
/// The variable of the injected containers' log level.
const LOG_LEVEL: &str = "ETCD_TLS_LOG_LEVEL";
/// How long the projected token lives; kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;

/// The volume of keys and certificates: in memory, and bounded.
static CERTIFICATES_VOLUME: LazyLock<Fixed> =
    LazyLock::new(|| Fixed::new(json!({"name": names::VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}})));

/// A volume that is the same in every pod.
pub(super) struct Fixed {
    tree: Value,
    text: String,
}

impl Fixed {
    fn new(tree: Value) -> Self {
        Self { text: tree.to_string(), tree }
    }
}

/// A volume of ours.
pub(super) enum Volume {
    Fixed(&'static Fixed),
    OfPod(Value),
}

impl Volume {
    pub(super) const fn tree(&self) -> &Value {
        match self {
            Self::Fixed(fixed) => &fixed.tree,
            Self::OfPod(tree) => tree,
        }
    }

    /// The value that adds it.
    pub(super) fn into_item(self) -> Item {
        match self {
            Self::Fixed(fixed) => Item::Text(fixed.text.as_str().into()),
            Self::OfPod(tree) => tree.into(),
        }
    }
}

/// The volumes of a pod in `namespace`.
pub(super) fn volumes(config: &Config, settings: &Settings, namespace: &str) -> Vec<Volume> {
    match &config.host {
        Some(host) => host_volumes(host).into_iter().map(Volume::OfPod).collect(),
        None if settings.is_of_kubelet() => vec![
            Volume::OfPod(projected_volume(settings, namespace)),
            Volume::Fixed(&STATE_VOLUME),
            Volume::Fixed(&TOKEN_VOLUME),
        ],
        None => [
            Some(Volume::Fixed(&CERTIFICATES_VOLUME)),
            trust_volume(settings, namespace).map(Volume::OfPod),
            Some(Volume::Fixed(&TOKEN_VOLUME)),
        ]
        .into_iter()
        .flatten()
        .collect(),
    }
}

/// The same of the sidecar alone, where kubelet keeps the certificates.
static STATE_VOLUME: LazyLock<Fixed> = LazyLock::new(|| {
    Fixed::new(json!({"name": names::STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}))
});

/// The volume of keys, certificates and bundles with the issuer `pod-certificate`: kubelet requests the certificates, and moves one link
/// for all of its files. Key and chain are one file, which etcd takes for both. Its mode lets etcd's user read it, whichever it is: where
/// all containers have one user, or the pod an fsGroup, kubelet narrows it.
pub(super) fn projected_volume(settings: &Settings, namespace: &str) -> Value {
    let certificate = |role: &Role| {
        json!({"podCertificate": {
            "signerName": settings.signer_name(*role, namespace),
            "keyType": key_type(settings.key),
            "maxExpirationSeconds": max_expiration(settings.duration),
            "credentialBundlePath": format!("{role}/{}", names::CERT_FILE),
            "userAnnotations": {ROLE_ANNOTATION: role.as_str()},
        }})
    };
    let bundle = |role: &Role| json!({"key": role.domain().trust_key(), "path": format!("{role}/{}", names::CA_FILE)});
    let items: Vec<Value> = settings.roles.iter().map(bundle).collect();
    let trust = json!({"configMap": {"name": settings.trust_config_map(namespace), "items": items}});
    let sources: Vec<Value> = settings.roles.iter().map(certificate).chain([trust]).collect();
    json!({"name": names::VOLUME, "projected": {"defaultMode": PROJECTED_MODE, "sources": sources}})
}

/// 0444: a mode by group would need fsGroup, which changes the data volume's files, too.
const PROJECTED_MODE: u32 = 0o444;

/// The volume with the trust bundles; `None` where they come with the issuer's answers. Not optional: the pod waits for it, where
/// an optional one would come a minute late.
fn trust_volume(settings: &Settings, namespace: &str) -> Option<Value> {
    let source = match &settings.trust {
        None => json!({"configMap": {"name": settings.trust_config_map(namespace)}}),
        Some(trust) => json!({"projected": {"sources": trust_sources(trust)?}}),
    };
    let mut volume = json!({"name": names::TRUST_VOLUME});
    if let (Some(volume), Value::Object(source)) = (volume.as_object_mut(), source) {
        volume.extend(source);
    }
    Some(volume)
}

/// One bundle under the name of each domain: the issuer is the same for all roles. `None`: no volume holds it.
fn trust_sources(trust: &Trust) -> Option<Vec<Value>> {
    let of_domains = |source: &dyn Fn(&str) -> Value| Domain::ALL.map(|domain| source(domain.trust_key())).to_vec();
    Some(match trust {
        Trust::Issuer => return None,
        Trust::ConfigMap { name, key } => {
            let items = of_domains(&|path| json!({"key": key, "path": path}));
            vec![json!({"configMap": {"name": name, "items": items}})]
        }
        Trust::Bundle(name) => of_domains(&|path| json!({"clusterTrustBundle": {"name": name, "path": path}})),
        Trust::SignerBundles { signer, selector } => {
            let selector = label_selector(selector);
            of_domains(
                &|path| json!({"clusterTrustBundle": {"signerName": signer, "labelSelector": selector, "path": path}}),
            )
        }
    })
}

/// A selector without requirements matches all; without a selector, kubelet matches nothing.
fn label_selector(requirements: &[Requirement]) -> Value {
    let expressions = requirements.iter().map(|Requirement { key, condition }| match condition {
        Condition::Is(value) => json!({"key": key, "operator": "In", "values": [value]}),
        Condition::IsNot(value) => json!({"key": key, "operator": "NotIn", "values": [value]}),
        Condition::Exists => json!({"key": key, "operator": "Exists"}),
        Condition::Absent => json!({"key": key, "operator": "DoesNotExist"}),
    });
    let expressions: Vec<Value> = expressions.collect();
    if expressions.is_empty() { json!({}) } else { json!({"matchExpressions": expressions}) }
}

/// A token of our containers' own, so that `automountServiceAccountToken: false` stays the pod's word for its containers; beside
/// it the annotation `renew`, of which the sidecar sees each new value.
static TOKEN_VOLUME: LazyLock<Fixed> = LazyLock::new(|| {
    let path = format!("metadata.annotations['{}']", names::RENEW_ANNOTATION);
    let renew = json!({"path": names::RENEW_FILE, "fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    Fixed::new(token_volume_with(Some(renew)))
});

/// [`TOKEN_VOLUME`] as earlier builds injected it: without the annotation.
pub(super) static TOKEN_VOLUME_BEFORE: LazyLock<Value> = LazyLock::new(|| token_volume_with(None));

fn token_volume_with(more: Option<Value>) -> Value {
    let token = json!({"path": "token", "expirationSeconds": TOKEN_SECONDS});
    let ca = json!({"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]});
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let items: Vec<Value> = std::iter::once(namespace).chain(more).collect();
    json!({"name": names::TOKEN_VOLUME, "projected": {"sources": [
        {"serviceAccountToken": token},
        {"configMap": ca},
        {"downwardAPI": {"items": items}},
    ]}})
}

/// The mount of an etcd container.
pub(super) fn mount(path: &str) -> Value {
    json!({"name": names::VOLUME, "mountPath": path, "readOnly": true})
}

/// The input for the injected containers.
pub(super) struct Template<'a> {
    config: &'a Config,
    settings: &'a Settings,
    args: &'a PodArgs,
    /// `args`, written; neither container's subcommand is among them.
    words: Vec<String>,
    resources: Cow<'a, Resources>,
    /// The user to run as; `None` leaves it to the image, to the pod or to the cluster.
    user: Option<u64>,
    namespace: &'a str,
}

/// A container as the API server reads it (core/v1 `Container`). It is written from here at once: a tree of JSON values
/// would be half of what a review costs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container<'a> {
    name: &'static str,
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_pull_policy: Option<&'a str>,
    args: Vec<Cow<'a, str>>,
    env: Vec<Variable<'a>>,
    volume_mounts: Vec<Mount<'a>>,
    security_context: Security,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<[Port; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    startup_probe: Option<Probe>,
    resources: Requirements<'a>,
}

#[derive(Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum Variable<'a> {
    Plain { name: &'static str, value: &'a str },
    Field { name: &'static str, value_from: Source },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    field_ref: FieldRef,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FieldRef {
    field_path: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount<'a> {
    name: &'static str,
    mount_path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Security {
    run_as_non_root: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_user: Option<u64>,
    run_as_group: u32,
    allow_privilege_escalation: bool,
    read_only_root_filesystem: bool,
    capabilities: Capabilities,
    seccomp_profile: Seccomp,
}

#[derive(Serialize)]
struct Capabilities {
    drop: [&'static str; 1],
}

#[derive(Serialize)]
struct Seccomp {
    r#type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: &'static str,
    container_port: u16,
    protocol: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: HttpGet,
    period_seconds: u32,
    timeout_seconds: u32,
    failure_threshold: u32,
}

#[derive(Serialize)]
struct HttpGet {
    path: &'static str,
    port: u16,
    scheme: &'static str,
}

#[derive(Serialize)]
struct Requirements<'a> {
    requests: BTreeMap<&'a str, &'a str>,
    limits: BTreeMap<&'a str, &'a str>,
}

impl<'a> Template<'a> {
    /// The template of both containers of a pod in `namespace`.
    pub(super) fn new(
        config: &'a Config,
        settings: &'a Settings,
        args: &'a PodArgs,
        user: Option<u64>,
        namespace: &'a str,
    ) -> Self {
        let of_flag = over(&config.resources, Cow::Borrowed(&*DEFAULT_RESOURCES));
        let resources = over(&settings.resources, of_flag);
        Self { config, settings, args, words: args.render(), resources, user, namespace }
    }

    /// The init container, which obtains the first certificates.
    pub(super) fn init_container(&self) -> Container<'_> {
        self.container(names::INIT_CONTAINER, "init")
    }

    /// The native sidecar, which renews.
    pub(super) fn sidecar(&self) -> Container<'_> {
        let port = self.args.admin_port;
        Container {
            restart_policy: Some("Always"),
            ports: Some([Port { name: "etcd-tls-admin", container_port: port, protocol: "TCP" }]),
            // The files are there before it starts, so it is ready at once or something is wrong with them.
            startup_probe: Some(Probe {
                http_get: HttpGet { path: "/ready", port, scheme: "HTTP" },
                period_seconds: 1,
                timeout_seconds: 3,
                failure_threshold: 60,
            }),
            ..self.container(names::SIDECAR_CONTAINER, "run")
        }
    }

    fn container(&self, name: &'static str, subcommand: &'static str) -> Container<'_> {
        let of_kubelet = self.settings.is_of_kubelet();
        let own = if of_kubelet { names::STATE_VOLUME } else { names::VOLUME };
        let mut mounts = vec![Mount::writable(own, names::CERTS_MOUNT_PATH)];
        let (mut env, args);
        if let Some(host) = &self.config.host {
            args = host_words(host, subcommand, self.args, self.namespace).into_iter().map(Cow::Owned).collect();
            env = vec![
                Variable::field("HOST_NAME", "spec.nodeName"),
                Variable::field("POD_IP", "status.podIP"),
                Variable::field("HOST_IPS", "status.podIPs"),
            ];
            mounts.extend(host_directories(host).map(|(volume, path)| Mount::writable(volume, path)));
        } else {
            let words = self.words.iter().map(|word| Cow::Borrowed(word.as_str()));
            args = std::iter::once(Cow::Borrowed(subcommand)).chain(words).collect();
            env = vec![
                Variable::field("POD_NAME", "metadata.name"),
                Variable::field("POD_NAMESPACE", "metadata.namespace"),
                Variable::field("POD_UID", "metadata.uid"),
                Variable::field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
                Variable::field("NODE_NAME", "spec.nodeName"),
                Variable::field("POD_IP", "status.podIP"),
                Variable::field("POD_IPS", "status.podIPs"),
            ];
            if of_kubelet {
                mounts.push(Mount::read_only(names::VOLUME, names::PROJECTED_MOUNT_PATH));
            } else if !self.args.trust_of_issuer {
                mounts.push(Mount::read_only(names::TRUST_VOLUME, names::TRUST_MOUNT_PATH));
            }
            mounts.push(Mount::read_only(names::TOKEN_VOLUME, names::TOKEN_MOUNT_PATH));
        }
        let level = self.settings.log_level.iter();
        env.extend(level.map(|level| Variable::Plain { name: LOG_LEVEL, value: level }));
        Container {
            name,
            image: &self.config.sidecar_image,
            image_pull_policy: self.config.image_pull_policy.as_deref(),
            args,
            env,
            volume_mounts: mounts,
            security_context: Security {
                run_as_non_root: self.user != Some(0),
                run_as_user: self.user,
                run_as_group: names::FILES_GID,
                allow_privilege_escalation: false,
                read_only_root_filesystem: true,
                capabilities: Capabilities { drop: ["ALL"] },
                seccomp_profile: Seccomp { r#type: "RuntimeDefault" },
            },
            restart_policy: None,
            ports: None,
            startup_probe: None,
            resources: Requirements {
                requests: self.resources.requests().collect(),
                limits: self.resources.limits().collect(),
            },
        }
    }
}

/// The resources of a pod that sets none.
pub(super) fn default_resources(config: &Config) -> Resources {
    over(&config.resources, Cow::Borrowed(&*DEFAULT_RESOURCES)).into_owned()
}

/// `ours` over `defaults`, which stay as they are where `ours` names nothing.
fn over<'a>(ours: &Resources, defaults: Cow<'a, Resources>) -> Cow<'a, Resources> {
    if *ours == Resources::default() { defaults } else { Cow::Owned(ours.over(&defaults)) }
}

impl Variable<'_> {
    /// A variable of the downward API.
    const fn field(name: &'static str, field_path: &'static str) -> Self {
        Self::Field { name, value_from: Source { field_ref: FieldRef { field_path } } }
    }
}

impl<'a> Mount<'a> {
    const fn writable(name: &'static str, mount_path: &'a str) -> Self {
        Self { name, mount_path, read_only: None }
    }

    const fn read_only(name: &'static str, mount_path: &'a str) -> Self {
        Self { name, mount_path, read_only: Some(true) }
    }
}

/// A static pod's volumes: directories of its host.
fn host_volumes(host: &HostPaths) -> Vec<Value> {
    let volume =
        |name: &'static str, path: &str| json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let mut volumes = vec![volume(names::VOLUME, &host.directory)];
    volumes.extend(host_directories(host).map(|(name, path)| volume(name, path)));
    volumes
}

/// The directories of the kubeconfigs, mounted where they are on the host: one is written beside, by a rename.
fn host_directories(host: &HostPaths) -> impl Iterator<Item = (&'static str, &str)> {
    let own = parent(&host.kubeconfig);
    let bootstrap = host.bootstrap_kubeconfig.as_deref().map(parent).filter(|dir| *dir != own);
    std::iter::once(("etcd-tls-kubeconfig", own)).chain(bootstrap.map(|dir| ("etcd-tls-bootstrap", dir)))
}

/// The directory of `file`.
pub(super) fn parent(file: &str) -> &str {
    match file.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((dir, _)) => dir,
    }
}

/// `request` once and `run` for ever, as on a host.
fn host_words(host: &HostPaths, subcommand: &str, args: &PodArgs, namespace: &str) -> Vec<String> {
    let (ips, names): (Vec<&String>, Vec<&String>) =
        args.extra_sans.iter().partition(|san| san.parse::<std::net::IpAddr>().is_ok());
    let list = |own: &str, more: &[&String]| {
        std::iter::once(own).chain(more.iter().map(|san| san.as_str())).collect::<Vec<_>>().join(",")
    };
    let (dnsnames, ipaddrs) = (list("$(HOST_NAME)", &names), list("$(HOST_IPS)", &ips));
    let args = PodArgs { extra_sans: Vec::new(), ..args.clone() };
    let mut words = if subcommand == "init" {
        let known = ["--roles=", "--cluster=", "--issuer=", "--duration=", "--key=", "--user="];
        let mut words = vec!["request".to_owned(), format!("--assetsdir={}", names::CERTS_MOUNT_PATH)];
        words.extend(args.render().into_iter().filter(|word| known.iter().any(|flag| word.starts_with(flag))));
        words
    } else {
        let mut words = vec![subcommand.to_owned()];
        words.extend(args.render());
        words
    };
    words.push(format!("--kubeconfig={}", host.kubeconfig));
    words.extend(host.bootstrap_kubeconfig.iter().map(|file| format!("--bootstrap-kubeconfig={file}")));
    words.extend([
        "--name=$(HOST_NAME)".to_owned(),
        format!("--namespace={namespace}"),
        format!("--dnsnames={dnsnames}"),
        format!("--ipaddrs={ipaddrs}"),
    ]);
    words
}
