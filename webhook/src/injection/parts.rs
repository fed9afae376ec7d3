//! What is injected, as JSON: two containers and three volumes, made to meet Pod Security `restricted`.

use std::sync::LazyLock;

use etcd_tls_contract::{
    args::PodArgs,
    names,
    role::Domain,
    settings::{Condition, Requirement, Resources, Settings, Trust},
};
use serde_json::{Map, Value, json};

use super::{Config, Host};

/// What the injected containers have where neither the pod nor the webhook's flag says otherwise.
static DEFAULT_RESOURCES: LazyLock<Resources> = LazyLock::new(|| {
    let text = "requests.cpu=10m,requests.memory=16Mi,limits.cpu=500m,limits.memory=64Mi";
    text.parse().unwrap_or_default()
});
/// The variable of the injected containers' log level.
const LOG_LEVEL: &str = "ETCD_TLS_LOG_LEVEL";
/// How long the projected token lives; kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;

/// The volume of keys and certificates: in memory, and bounded.
pub(super) fn certificates_volume() -> Value {
    json!({"name": names::VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}})
}

/// The volume with the trust bundles. Not optional: the pod waits for it, where an optional one would come a minute late.
pub(super) fn trust_volume(settings: &Settings, namespace: &str) -> Value {
    match &settings.trust {
        None => json!({"name": names::TRUST_VOLUME, "configMap": {"name": settings.trust_config_map(namespace)}}),
        Some(trust) => json!({"name": names::TRUST_VOLUME, "projected": {"sources": trust_sources(trust)}}),
    }
}

/// One bundle under the name of each domain: the issuer is the same for all roles.
fn trust_sources(trust: &Trust) -> Vec<Value> {
    let of_domains = |source: &dyn Fn(&str) -> Value| Domain::ALL.map(|domain| source(domain.trust_key())).to_vec();
    match trust {
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
    }
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

/// A token of our containers' own, so that `automountServiceAccountToken: false` stays the pod's word for its containers.
pub(super) fn token_volume() -> Value {
    let token = json!({"path": "token", "expirationSeconds": TOKEN_SECONDS});
    let ca = json!({"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]});
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    json!({"name": names::TOKEN_VOLUME, "projected": {"sources": [
        {"serviceAccountToken": token},
        {"configMap": ca},
        {"downwardAPI": {"items": [namespace]}},
    ]}})
}

/// The mount of an etcd container.
pub(super) fn mount(path: &str) -> Value {
    json!({"name": names::VOLUME, "mountPath": path, "readOnly": true})
}

/// What the injected containers are made from.
pub(super) struct Template<'a> {
    pub(super) config: &'a Config,
    pub(super) settings: &'a Settings,
    pub(super) args: &'a PodArgs,
    /// The user to run as; `None` leaves it to the image, to the pod or to the cluster.
    pub(super) user: Option<u64>,
    pub(super) namespace: &'a str,
}

impl Template<'_> {
    /// The init container, which obtains the first certificates.
    pub(super) fn init_container(&self) -> Value {
        let mut container = self.container(names::INIT_CONTAINER, "init");
        container["resources"] = self.resources();
        container
    }

    /// The native sidecar, which renews.
    pub(super) fn sidecar(&self) -> Value {
        let mut container = self.container(names::SIDECAR_CONTAINER, "run");
        container["restartPolicy"] = "Always".into();
        let admin_port = self.args.admin_port;
        container["ports"] = json!([{"name": "etcd-tls-admin", "containerPort": admin_port, "protocol": "TCP"}]);
        // The files are there before it starts, so it is ready at once or something is wrong with them.
        let ready = json!({"path": "/ready", "port": admin_port, "scheme": "HTTP"});
        container["startupProbe"] =
            json!({"httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 60});
        container["resources"] = self.resources();
        container
    }

    fn container(&self, name: &str, subcommand: &str) -> Value {
        let Self { config, settings, args, user, namespace } = self;
        let mut container = json!({"name": name, "image": config.sidecar_image});
        if let Some(policy) = &config.image_pull_policy {
            container["imagePullPolicy"] = policy.as_str().into();
        }
        let mut mounts = vec![json!({"name": names::VOLUME, "mountPath": names::CERTS_MOUNT_PATH})];
        let mut env;
        if let Some(host) = &config.host {
            container["args"] = host_words(host, subcommand, args, namespace).into();
            env = vec![
                field("HOST_NAME", "spec.nodeName"),
                field("POD_IP", "status.podIP"),
                field("HOST_IPS", "status.podIPs"),
            ];
            let directories = host_directories(host);
            mounts.extend(directories.map(|(volume, path)| json!({"name": volume, "mountPath": path})));
        } else {
            let mut words = vec![subcommand.to_owned()];
            words.extend(args.render());
            container["args"] = words.into();
            env = vec![
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
                field("POD_UID", "metadata.uid"),
                field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
                field("NODE_NAME", "spec.nodeName"),
                field("POD_IP", "status.podIP"),
                field("POD_IPS", "status.podIPs"),
            ];
            mounts.extend([
                json!({"name": names::TRUST_VOLUME, "mountPath": names::TRUST_MOUNT_PATH, "readOnly": true}),
                json!({"name": names::TOKEN_VOLUME, "mountPath": names::TOKEN_MOUNT_PATH, "readOnly": true}),
            ]);
        }
        env.extend(settings.log_level.iter().map(|level| json!({"name": LOG_LEVEL, "value": level})));
        container["env"] = env.into();
        container["volumeMounts"] = mounts.into();
        let mut security = json!({"runAsNonRoot": *user != Some(0)});
        if let Some(user) = user {
            security["runAsUser"] = (*user).into();
        }
        security["runAsGroup"] = names::FILES_GID.into();
        security["allowPrivilegeEscalation"] = false.into();
        security["readOnlyRootFilesystem"] = true.into();
        security["capabilities"] = json!({"drop": ["ALL"]});
        security["seccompProfile"] = json!({"type": "RuntimeDefault"});
        container["securityContext"] = security;
        container
    }

    fn resources(&self) -> Value {
        let defaults = self.config.resources.over(&DEFAULT_RESOURCES);
        let resources = self.settings.resources.over(&defaults);
        let map = |entries: &mut dyn Iterator<Item = (&str, &str)>| {
            entries.map(|(name, quantity)| (name.to_owned(), quantity.into())).collect::<Map<String, Value>>()
        };
        json!({"requests": map(&mut resources.requests()), "limits": map(&mut resources.limits())})
    }
}

/// A static pod's volumes: directories of its host.
pub(super) fn host_volumes(host: &Host) -> Vec<Value> {
    let volume =
        |name: &'static str, path: &str| json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let mut volumes = vec![volume(names::VOLUME, &host.directory)];
    volumes.extend(host_directories(host).map(|(name, path)| volume(name, path)));
    volumes
}

/// The directories of the kubeconfigs, mounted where they are on the host: one is written beside, by a rename.
fn host_directories(host: &Host) -> impl Iterator<Item = (&'static str, &str)> {
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
fn host_words(host: &Host, subcommand: &str, args: &PodArgs, namespace: &str) -> Vec<String> {
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

fn field(name: &'static str, path: &'static str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
}
