//! Whether and how the sidecar can restart etcd: by a signal in a shared process namespace, or through its liveness probe.
//!
//! The probe is then a program of ours, which the sidecar puts into the volume of the certificates. It asks the sidecar and
//! then does the user's own check. Only an answer of the sidecar fails the probe for a restart, never its silence.
//!
//! A shared process namespace opens `/proc/<pid>/root`, and with it the keys, to every container of etcd's user. So it is
//! opened only where no other container can have that user.

use etcd_tls_contract::{
    endpoint::Endpoint,
    invalid_value::InvalidValue,
    liveness::{self, LivenessUrl},
    names,
    settings::{Reload, Settings},
};
use serde_json::{Map, Value, json};

use super::{
    json::{Json, Object},
    urls::{self, Url},
    view::{Container, Pod},
};

/// The time that etcd may need to stop, in seconds.
const GRACE: u64 = 20;
/// A probe's `timeoutSeconds` where it has none.
const TIMEOUT: u64 = 1;
/// The `timeoutSeconds` of a probe that asks the sidecar alone. The program ends within seconds. A longer time means that the
/// node cannot start processes, which says nothing about etcd.
const ALONE_TIMEOUT: u64 = 60;

/// The restart methods that the pod allows.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The sidecar may signal etcd.
    pub(super) can_signal: bool,
    /// The pod must get `shareProcessNamespace: true` for that.
    pub(super) share: bool,
    /// The liveness probe to put in, and whether one is replaced.
    pub(super) probe: Option<Probe>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<String>,
}

/// The liveness probe by which the sidecar has etcd restarted.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) value: Value,
    pub(super) replaces: bool,
    /// The target of the pod's own probe.
    pub(super) liveness_url: Option<Endpoint>,
}

/// Plans for `etcd`, the containers with etcd in them, the first of which is described by `listeners`. `members`: they hold the
/// certificates of a member. `of_host`: a static pod, whose containers may be root's.
pub(super) fn plan(
    pod: &Pod<'_>,
    settings: &Settings,
    etcd: &[Container<'_>],
    members: bool,
    listeners: &[Url],
    of_host: bool,
) -> Plan {
    let mut plan = Plan::default();
    match &settings.reload {
        Reload::Auto if !members => {}
        Reload::Auto => match obstacles(pod, etcd, of_host) {
            Ok(share) => (plan.can_signal, plan.share) = (true, share),
            Err(why) => {
                let more = if why.len() > 1 { format!(" (and {} more)", why.len() - 1) } else { String::new() };
                plan.warnings.push(format!(
                    "a changed CA will be shown as \"restart needed\" and not acted upon: {}{more}; see etcd-tls.dev/reload",
                    why.first().map_or("no container runs etcd", String::as_str),
                ));
            }
        },
        Reload::Signal(signal) => match obstacles(pod, etcd, of_host) {
            Ok(share) => (plan.can_signal, plan.share) = (true, share),
            Err(why) => plan.problems.push(format!(
                "annotation etcd-tls.dev/reload: signal:{signal} cannot be delivered: {}; write auto, probe or none, or \
                 give each container a runAsUser of its own",
                why.join("; ")
            )),
        },
        Reload::Probe => match etcd.first() {
            Some(container) => match stays_away(pod, container) {
                Some(why) => plan
                    .problems
                    .push(format!("annotation etcd-tls.dev/reload: probe: {why}, so what it ends stays away")),
                // etcd ends its process by a signal, but with code 0 where it is process 1 (etcd osutil.HandleInterrupts).
                None if container.object.get("restartPolicy").is_none()
                    && restart_policy(pod) == Some("OnFailure")
                    && !pod.flag("shareProcessNamespace") =>
                {
                    plan.problems.push(
                        "annotation etcd-tls.dev/reload: probe: restartPolicy is OnFailure, and an etcd that is process 1 of its \
                         container ends with code 0, so kubelet does not start it again; write restartPolicy: Always"
                            .to_owned(),
                    );
                }
                None => plan.probe(settings, container, listeners),
            },
            None => plan.problems.push("annotation etcd-tls.dev/reload: probe needs a container with etcd".to_owned()),
        },
        Reload::None => {}
    }
    let grace = pod.spec.get("terminationGracePeriodSeconds").and_then(Json::as_u64);
    if let Some(grace) = grace.filter(|g| *g < GRACE && (plan.can_signal || plan.probe.is_some())) {
        plan.warnings.push(format!(
            "terminationGracePeriodSeconds is {grace}: etcd may need {GRACE} s to hand its leadership on when it is restarted"
        ));
    }
    plan
}

/// True if the process namespace is yet to be shared, or every reason why a signal cannot or must not reach etcd.
fn obstacles(pod: &Pod<'_>, etcd: &[Container<'_>], of_host: bool) -> Result<bool, Vec<String>> {
    let mut why = Vec::new();
    if pod.flag("hostPID") {
        why.push("hostPID shows the sidecar other pods' processes as well".to_owned());
    }
    let shared = pod.flag("shareProcessNamespace");
    if pod.spec.get("shareProcessNamespace") == Some(&Json::Bool(false)) {
        why.push("the pod says shareProcessNamespace: false".to_owned());
    }
    let mut away: Vec<String> = etcd.iter().filter_map(|container| stays_away(pod, container)).collect();
    away.dedup();
    why.append(&mut away);
    let mut users = Vec::new();
    for container in etcd {
        match pod.user(container) {
            // As kubeadm has it: the image's user, which is root. The sidecar of a static pod is root, too, since the host's
            // directories are; were etcd's user another one all the same, the signal would fail, and the sidecar says so.
            None | Some(0) if of_host => users.push(0),
            None => why.push(format!("container {} declares no runAsUser", container.name)),
            Some(0) => why.push(format!("container {} runs as root", container.name)),
            Some(user) => users.push(user),
        }
    }
    users.dedup();
    if users.len() > 1 {
        why.push("the containers with etcd run as different users".to_owned());
    }
    if !shared {
        let others = pod.containers.iter().filter(|c| c.runs_on() && !c.is_injected());
        for other in others.filter(|c| !etcd.iter().any(|e| e.name == c.name)) {
            match pod.user(other) {
                None => why.push(format!("container {} declares no runAsUser, so it could have etcd's", other.name)),
                Some(user) if users.contains(&user) => {
                    why.push(format!("container {} has etcd's user {user} and could read its keys", other.name));
                }
                Some(0) => why.push(format!("container {} runs as root and could read etcd's keys", other.name)),
                Some(_) => why.extend(powers(other).map(|power| {
                    format!("container {} {power}, by which it could become etcd's user and read its keys", other.name)
                })),
            }
        }
    }
    if why.is_empty() && !etcd.is_empty() { Ok(!shared) } else { Err(why) }
}

/// Why kubelet does not start a container again that was ended.
fn stays_away(pod: &Pod<'_>, container: &Container<'_>) -> Option<String> {
    // Its own precedes the pod's: a native sidecar is started again in a Job, too.
    let own = container.object.get("restartPolicy").and_then(Json::as_str);
    let never = own.is_none() && restart_policy(pod) == Some("Never");
    never.then(|| "restartPolicy is Never".to_owned()).or_else(|| own_restart_policy(container))
}

/// The same by `containers[].restartPolicy`, which Kubernetes has since 1.34 and which precedes the pod's.
fn own_restart_policy(container: &Container<'_>) -> Option<String> {
    let own = container.object.get("restartPolicy").and_then(Json::as_str).filter(|own| *own != "Always")?;
    Some(format!("container {} has a restartPolicy of its own, {own}", container.name))
}

/// ALL, and the capabilities by which a process takes another user, or is not asked for one (capabilities(7)).
pub(super) const POWERS: [&str; 8] =
    ["ALL", "SETUID", "SETGID", "SYS_PTRACE", "SYS_ADMIN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "CHOWN"];

/// The settings that give a container more than its user, which is not root: to become another user, or to read another's files.
fn powers(container: &Container<'_>) -> Option<&'static str> {
    let context = container.object.get("securityContext").and_then(Json::as_object)?;
    if context.get("privileged") == Some(&Json::Bool(true)) {
        return Some("is privileged");
    }
    let added = context.get("capabilities").and_then(|capabilities| capabilities.get("add").as_array())?;
    let mut added = added.iter().filter_map(Json::as_str).map(|name| name.strip_prefix("CAP_").unwrap_or(name));
    added.any(|name| POWERS.contains(&name)).then_some("adds capabilities")
}

fn restart_policy<'a>(pod: &Pod<'a>) -> Option<&'a str> {
    pod.spec.get("restartPolicy").and_then(Json::as_str)
}

/// Where etcd's container finds the program.
fn program(settings: &Settings) -> String {
    format!("{}/{}/{}", settings.mount_path, names::PROBE_DIR, names::PROBE_PROGRAM)
}

impl Plan {
    fn probe(&mut self, settings: &Settings, container: &Container<'_>, listeners: &[Url]) {
        let ours = |timeout: u64| {
            let words = json!([program(settings), format!("--timeout={timeout}")]);
            json!({"command": words})
        };
        let Some(theirs) = container.object.get("livenessProbe").and_then(Json::as_object) else {
            let value = json!({
                "exec": ours(TIMEOUT), "periodSeconds": 10u32, "timeoutSeconds": ALONE_TIMEOUT, "failureThreshold": 3u32,
            });
            self.probe = Some(Probe { value, replaces: false, liveness_url: None });
            return;
        };
        if is_ours(theirs, settings) {
            return;
        }
        let liveness_url = match liveness_url(theirs, container, listeners, settings) {
            Ok(url) => url,
            Err(why) => {
                self.problems.push(format!(
                    "annotation etcd-tls.dev/reload: probe: the liveness probe of container {} {why}; write an httpGet probe \
                     without httpHeaders or a tcpSocket probe, or another etcd-tls.dev/reload",
                    container.name
                ));
                return;
            }
        };
        let mut value = Map::from(theirs);
        let timeout = theirs.get("timeoutSeconds").and_then(Json::as_u64).filter(|t| *t > 0).unwrap_or(TIMEOUT);
        value.shift_remove("httpGet");
        value.shift_remove("tcpSocket");
        value.insert("exec".to_owned(), ours(timeout));
        value.insert("timeoutSeconds".to_owned(), liveness::timeout_seconds(timeout).into());
        self.warnings.push(format!(
            "container {}: its liveness probe is now {}, which asks etcd-tls-sidecar and {liveness_url}",
            container.name,
            names::PROBE_PROGRAM
        ));
        self.probe = Some(Probe { value: Value::Object(value), replaces: true, liveness_url: Some(liveness_url) });
    }
}

fn is_ours(probe: &Object<'_>, settings: &Settings) -> bool {
    let words = probe.get("exec").and_then(|exec| exec.get("command").as_array());
    words.and_then(|words| words.first()?.as_str()) == Some(program(settings).as_str())
}

/// The URL of the user's own probe in the arguments of a sidecar that is in the pod already; `None` where there is no such argument.
pub(super) fn injected_url(pod: &Pod<'_>) -> Option<LivenessUrl> {
    let sidecar = pod.container(names::SIDECAR_CONTAINER)?;
    let word = sidecar.words("args").find_map(|word| word.strip_prefix("--liveness-url="))?;
    let Ok(url) = word.parse();
    Some(url)
}

/// The warning of a URL that an earlier injection wrote and that cannot be read.
pub(super) fn not_asked(url: &LivenessUrl) -> Option<String> {
    let error = url.endpoint().err()?;
    Some(format!(
        "container {}: the argument --liveness-url, from an earlier injection, is not asked: {error}; uninject the manifest, correct \
         etcd's own livenessProbe, and inject again",
        names::SIDECAR_CONTAINER
    ))
}

/// The URL that a probe asks, as it is asked from beside etcd.
fn liveness_url(
    probe: &Object<'_>,
    container: &Container<'_>,
    listeners: &[Url],
    settings: &Settings,
) -> Result<Endpoint, String> {
    let (kind, handler) = if let Some(get) = probe.get("httpGet").filter(|v| !v.is_null()) {
        ("httpGet", get)
    } else if let Some(tcp) = probe.get("tcpSocket").filter(|v| !v.is_null()) {
        ("tcpSocket", tcp)
    } else {
        return Err("is neither httpGet nor tcpSocket".to_owned());
    };
    if handler.get("httpHeaders").as_array().is_some_and(|headers| !headers.is_empty()) {
        return Err("sends httpHeaders, which are not sent in its place".to_owned());
    }
    let port =
        port(handler.get("port"), container).ok_or_else(|| "has a port that no container port names".to_owned())?;
    let text = |field: &str| handler.as_object()?.get(field)?.as_str();
    let host = match text("host").filter(|h| !h.is_empty()) {
        Some(host) => urls::sidecar_host(host),
        None => {
            let listener = listeners.iter().find(|url| url.port == port).map_or("${POD_IP}", |url| url.host.as_str());
            urls::sidecar_host(listener)
        }
    };
    if port == settings.admin_port {
        return Err("asks etcd-tls-sidecar's port: take it out, and put in what etcd itself answers".to_owned());
    }
    let url = if kind == "tcpSocket" {
        format!("tcp://{host}:{port}")
    } else {
        let scheme = text("scheme").unwrap_or("HTTP").to_ascii_lowercase();
        let path = text("path").unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{host}:{port}{slash}{path}")
    };
    url.parse().map_err(|error: InvalidValue| format!("asks no URL that etcd-tls-sidecar can ask: {error}"))
}

/// A probe's port: a number, or the name of a container port.
pub(super) fn port(port: &Json<'_>, container: &Container<'_>) -> Option<u16> {
    match port {
        Json::Number(number) => number.as_u64()?.try_into().ok(),
        Json::Str(name) => name.parse().ok().or_else(|| {
            let named = container.list("ports").iter().find(|p| p.get("name").as_str() == Some(name))?;
            named.get("containerPort").as_u64()?.try_into().ok()
        }),
        _ => None,
    }
}
