//! Tier 1: no warning means that it comes up. Each golden shape that injects without a warning is started as kubelet would:
//! its own command in a real shell, real etcd, the injected environment, and certificates of what the pod is entitled to, in
//! namespaces of its own where the pod's address, host name and DNS names are real. A client asks an etcd that has such certificates.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use etcd_tls_contract::{
    crl,
    identity::{self, Addressee, PodFacts, ServiceFacts},
    names,
    policy::Policy,
    role::Role,
    settings::{Issuer, Settings},
};
use etcd_tls_webhook::{
    inject::{Options, inject},
    injection::Config,
};
use serde_json::Value;
use tests::{
    pki::{Ca, LeafOptions},
    process::which,
    repository,
    temp::TempDir,
    tier,
};

#[path = "comes_up/clients.rs"]
mod clients;

use clients::Clients;

/// The pod's address.
const ADDRESS: &str = "10.77.0.10";
/// Starts the pod's command on a host of its own, waits until etcd answers by its listener and by what it advertises, and
/// asks its peer port.
const HOST: &str = r#"
set -eu
ip link set lo up; ip addr add "$ADDRESS/32" dev lo; hostname "$POD"
mount --make-rprivate /; mount --bind etc /etc; mount --bind tmp /tmp
# In a folder with a path that is true here: etcd 3.6 resolves its data directory.
(cd /tmp && exec ./start) > etcd.log 2>&1 &
ask() { "$CTL" --cacert=client/ca.crt --cert=client/tls.crt --key=client/tls.key --endpoints="$CLIENT" "$@"; }
up=
for _ in $(seq 60); do
    kill -0 $! 2>/dev/null || { echo "etcd ended"; break; }
    if ask endpoint health >health.log 2>&1; then up=yes; break; fi
    sleep 0.5
done
[ "$up" ] || { cat health.log; tail -n 15 etcd.log; exit 1; }
ask endpoint health --cluster || exit 1
peers=$(ask member list | awk -F', ' '{print $4}' | tr ',' ' ')
[ "$peers" ] || { echo "no member advertises a peer URL"; exit 1; }
# Without the role, members speak plain HTTP, which only a pod of one member's own does.
[ "$PEER" ] || exit 0
for url in $peers "$PEER"; do
    host=${url#https://}
    name="-verify_hostname ${host%:*}"
    [ "${host%:*}" != "$ADDRESS" ] || name="-verify_ip $ADDRESS"
    # The sidecar asks by loopback, without a name.
    [ "${host%:*}" != 127.0.0.1 ] || name=
    echo | openssl s_client -connect "$host" -verify_return_error $name -CAfile peer/ca.crt -cert peer/tls.crt \
        -key peer/tls.key >peer.log 2>&1 || { cat peer.log; exit 1; }
done
"#;

/// Whether namespaces can be made here.
fn isolated(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-n", "-m", "-u", "-p", "-f", "--kill-child", "sh", "-c", script]).stdin(Stdio::null());
    command
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The shapes that are not started, with the reason; any other one without a warning is.
const EXEMPT: [(&str, &str); 3] = [
    ("metrics-reader.yaml", "its configuration is in a file that the manifest does not have"),
    ("opted-out.yaml", "nothing is injected"),
    ("pod-certificate.yaml", "one file with the key: the tests of pod_certificates and cluster start it"),
];

/// The pod, or the pod template, of a workload.
fn pod_of(object: &Value) -> Option<Value> {
    let path = match text(object, "/kind") {
        "Pod" => "",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => "/spec/template",
    };
    object.pointer(path).cloned()
}

/// The Services that the words name without a pod, such as `etcd` in `https://etcd.prod.svc:2379`.
fn services_named(words: &[String], namespace: &str) -> Vec<String> {
    let hosts = words.iter().flat_map(|word| word.split("https://").skip(1));
    let services = hosts.filter_map(|host| {
        let host = host.split([':', '/', ',']).next()?;
        host.strip_suffix(".cluster.local").unwrap_or(host).strip_suffix(&format!(".{namespace}.svc"))
    });
    services.filter(|service| !service.contains(['.', '$'])).map(Into::into).collect()
}

/// A pod of an injected object, as it would run.
struct Running {
    facts: PodFacts,
    settings: Settings,
    services: Vec<ServiceFacts>,
    pod: Value,
    /// The container with etcd.
    container: Value,
}

impl Running {
    /// `None` where no member runs, or where the image decides what runs.
    fn of(object: &Value) -> Option<Self> {
        let (kind, pod) = (text(object, "/kind"), pod_of(object)?);
        let map = |path: &str| -> BTreeMap<String, String> {
            pod.pointer(path).map(|v| serde_json::from_value(v.clone()).expect("strings")).unwrap_or_default()
        };
        let (labels, annotations) = (map("/metadata/labels"), map("/metadata/annotations"));
        let settings = Settings::parse(&annotations).expect("settings");
        if settings.issuer == Issuer::PodCertificate {
            return None;
        }
        let containers = ["initContainers", "containers"].into_iter().flat_map(|list| pod["spec"][list].as_array());
        let of_etcd = |c: &&Value| {
            let has = |name: &str| c["env"].as_array().into_iter().flatten().any(|e| e["name"] == name);
            (c["command"].is_array() || has("ETCD_ON_K8S")) && has("ETCD_CERT_FILE")
        };
        let mut container = containers.flatten().find(of_etcd)?.clone();
        if !container["command"].is_array() {
            // This image's entry point runs etcd without flags; its volume is below /tmp here.
            container["command"] = serde_json::json!(["etcd"]);
            for entry in container["env"].as_array_mut().into_iter().flatten() {
                if let Some(path) = entry["value"].as_str().filter(|value| value.starts_with("/bitnami/")) {
                    entry["value"] = format!("/tmp{path}").into();
                }
            }
        }
        let name = text(object, "/metadata/name");
        let name = match kind {
            "Pod" => name.to_owned(),
            "StatefulSet" => format!("{name}-0"),
            _ => format!("{name}-x2b4c"),
        };
        let namespace = Some(text(object, "/metadata/namespace")).filter(|n| !n.is_empty()).unwrap_or("default");
        let subdomain = Some(text(&pod, "/spec/subdomain")).filter(|s| !s.is_empty());
        let subdomain = subdomain.or_else(|| Some(text(object, "/spec/serviceName")).filter(|s| !s.is_empty()));
        let facts = PodFacts {
            namespace: namespace.to_owned(),
            hostname: name.clone(),
            name,
            subdomain: subdomain.map(str::to_owned),
            ips: vec![ADDRESS.parse().expect("an address")],
            labels: labels.clone(),
            annotations,
            service_account: "default".to_owned(),
            ..PodFacts::default()
        };
        let service =
            |name: &String| ServiceFacts { name: name.clone(), cluster_ips: Vec::new(), selector: labels.clone() };
        let words = ["command", "args"].into_iter().flat_map(|f| container[f].as_array().into_iter().flatten());
        let words: Vec<String> = words.filter_map(Value::as_str).map(Into::into).collect();
        let services = facts.subdomain.iter().chain(&services_named(&words, namespace)).map(service).collect();
        Some(Self { facts, settings, services, container, pod: pod.clone() })
    }

    /// The container's environment as kubelet makes it.
    fn environment(&self) -> Vec<(String, String)> {
        let mut environment = vec![("HOSTNAME".to_owned(), self.facts.hostname.clone())];
        for entry in self.container["env"].as_array().into_iter().flatten() {
            let value = match text(entry, "/valueFrom/fieldRef/fieldPath") {
                "" => expand(text(entry, "/value"), &environment),
                "metadata.name" => self.facts.name.clone(),
                "metadata.namespace" => self.facts.namespace.clone(),
                "status.podIP" | "status.podIPs" => ADDRESS.to_owned(),
                other => panic!("{other} is not known here"),
            };
            environment.push((text(entry, "/name").to_owned(), value));
        }
        environment
    }

    /// An argument of the sidecar.
    fn argument(&self, name: &str) -> Option<String> {
        let containers = self.pod["spec"]["initContainers"].as_array().into_iter().flatten();
        let mut sidecar = containers.filter(|c| c["name"] == "etcd-tls-sidecar");
        let prefix = format!("--{name}=");
        let args = sidecar.next()?["args"].as_array()?.clone();
        args.iter().filter_map(Value::as_str).find_map(|a| Some(a.strip_prefix(&prefix)?.replace("$(POD_IP)", ADDRESS)))
    }

    /// Starts it, with DNS that also knows `others`; returns the failure.
    fn start(&self, binary: &tests::etcd::EtcdBinary, others: &[&str]) -> Result<(), String> {
        let files = TempDir::new("comes-up");
        let (peers, clients) = (Ca::new("peers"), Ca::new("clients"));
        let copied = Command::new("cp").args(["-a", "/etc/."]).arg(files.dir("etc")).output().expect("run cp");
        drop(copied); // A file that cannot be read is none that matters.
        files.dir("tmp");
        let mut names = vec![self.facts.hostname.clone()];
        for role in [Role::Peer, Role::Server, Role::Client] {
            let mut settings = self.settings.clone();
            settings.roles.insert(role);
            // Another project's issuer is asked for the same.
            settings.issuer = Settings::default().issuer;
            let signer = settings.our_signer(role, &self.facts.namespace).expect("a signer of ours");
            let (policy, addressee) = (Policy::default(), Addressee::Ours(&signer));
            let entitled = identity::entitlement(role, &self.facts, &self.services, &settings, &policy, addressee)
                .unwrap_or_else(|denials| panic!("{role}: {denials:?}"));
            names.extend(entitled.sans.dns.iter().filter(|n| *n != "localhost").cloned());
            let options = LeafOptions {
                common_name: entitled.common_name,
                dns: entitled.sans.dns.into_iter().collect(),
                ips: entitled.sans.ips.into_iter().collect::<Vec<IpAddr>>(),
                server: role != Role::Client,
                ..LeafOptions::default()
            };
            let ca = if role == Role::Peer { &peers } else { &clients };
            let mount = files.join(self.settings.mount_path.trim_start_matches('/'));
            ca.write_role(&mount.join(role.as_str()), &options);
            // As init leaves them: etcd refuses everybody while its configured list is missing.
            fs::write(mount.join(role.as_str()).join(names::CRL_FILE), crl::stand_in()).expect("write a list");
            if role != Role::Server {
                ca.write_role(&files.join(role.as_str()), &options);
            }
        }
        names.extend(others.iter().map(|name| (*name).to_owned()));
        files.write("etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n{ADDRESS} {}\n", names.join(" ")));

        let environment = self.environment();
        let words = ["command", "args"].into_iter().flat_map(|f| self.container[f].as_array().into_iter().flatten());
        let mut words: Vec<String> = words.filter_map(Value::as_str).map(|w| expand(w, &environment)).collect();
        // Where the image has it.
        if let Some(program) = words.first_mut().filter(|word| word.starts_with('/') && word.ends_with("/etcd")) {
            *program = binary.etcd.display().to_string();
        }
        let mut start = "#!/bin/sh\nexec env -i \"PATH=$PATH\"".to_owned();
        for (name, value) in &environment {
            let _ = write!(start, " {}", quoted(&format!("{name}={value}")));
        }
        for word in &words {
            let _ = write!(start, " {}", quoted(word));
        }
        let script = files.write("tmp/start", start + "\n");
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("make it executable");

        let client = self.argument("client-url").ok_or("the sidecar is not told where etcd listens for clients")?;
        let peer = if self.settings.roles.contains(&Role::Peer) {
            self.argument("peer-url").ok_or("the sidecar is not told where etcd listens for members")?
        } else {
            String::new()
        };
        let directory = binary.etcd.parent().unwrap_or(Path::new("/"));
        let path = std::env::var("PATH").unwrap_or_default();
        let output = isolated(HOST)
            .current_dir(files.path())
            .env("PATH", format!("{}:{path}", directory.display()))
            .env("ADDRESS", ADDRESS)
            .env("POD", &self.facts.hostname)
            .env("CLIENT", client)
            .env("PEER", peer)
            .env("CTL", binary.etcdctl.as_ref().ok_or("no etcdctl")?)
            .env("ETCDCTL_API", "3")
            .output()
            .expect("run unshare");
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }
}

/// `$(NAME)`, as kubelet expands it.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    environment.iter().rev().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The objects of a golden file, injected one by one, each with what was said of it.
fn injected(file: &Path) -> Vec<(Value, Vec<String>)> {
    let text = fs::read_to_string(file).expect("a golden file");
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, options).expect("YAML");
    let injection = Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() };
    let options = Options { injection, namespace: "default".to_owned() };
    let objects = documents.into_iter().flat_map(|mut d| match d["items"].take() {
        Value::Array(items) => items,
        _ => vec![d],
    });
    objects
        .filter(|object| object["kind"].is_string())
        .map(|object| {
            let injected = inject(&object.to_string(), &options).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            (serde_json::from_str(&injected.text).expect("JSON"), injected.warnings)
        })
        .collect()
}

/// The etcd to run; says so where this machine cannot make namespaces.
fn binary() -> Option<tests::etcd::EtcdBinary> {
    let binary = tier::etcd()?;
    let tools = ["unshare", "ip", "openssl"].iter().all(|tool| which(tool).is_some());
    let can =
        tools && isolated("ip link set lo up && mount --make-rprivate /").output().is_ok_and(|o| o.status.success());
    if !can || binary.etcdctl.is_none() {
        tier::skip_special("no network and mount namespaces, ip or openssl", "run as root, with iproute2 and openssl");
        return None;
    }
    Some(binary)
}

#[test]
fn pods_injected_without_a_warning_come_up() {
    let Some(binary) = binary() else { return };
    let (mut up, mut problems, mut exempt) = (0, Vec::new(), BTreeSet::new());
    for entry in fs::read_dir(repository().join("webhook/tests/golden")).expect("the golden files") {
        let file = entry.expect("a file").path();
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.contains(".injected.") || name.starts_with("refused-") || name.ends_with(".txt") {
            continue;
        }
        for (object, warnings) in injected(&file) {
            if !warnings.is_empty() || pod_of(&object).is_none() {
                continue;
            }
            let reason = EXEMPT.iter().find(|(exempt, _)| *exempt == name);
            let started = Running::of(&object).map(|running| running.start(&binary, &[]));
            let started = started.or_else(|| Clients::of(&object).map(|clients| clients.start(&binary)));
            match (started, reason) {
                (Some(Ok(())), None) => up += 1,
                (Some(Err(error)), None) => problems.push(format!("{name}: {error}")),
                (None, Some((name, _))) => {
                    exempt.insert(*name);
                }
                (None, None) => problems.push(format!("{name}: is neither started nor exempt")),
                (Some(_), Some((_, reason))) => {
                    problems.push(format!("{name}: can be started, and is exempt: {reason}"))
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(
        exempt,
        EXEMPT.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(),
        "one of them has a warning, or is not there"
    );
    assert!(up >= 3, "only {up} shapes were started");
}

/// The other way round: a pod with a warning does fail, so the test above can fail, too.
#[test]
fn pods_with_a_warning_fail() {
    let Some(binary) = binary() else { return };
    let file = repository().join("webhook/tests/golden/complete-flags.yaml");
    let good = fs::read_to_string(file).expect("the shape");
    for (right, wrong) in [
        ("advertise-client-urls=https://$(POD_NAME).etcd.prod.svc", "advertise-client-urls=https://$(POD_NAME).etcd"),
        ("listen-client-urls=https://0.0.0.0", "listen-client-urls=http://0.0.0.0"),
        ("        - --advertise-client-urls=https://$(POD_NAME).etcd.prod.svc:2379\n", ""),
        ("advertise-client-urls=https://$(POD_NAME)", "advertise-client-urls=https://${POD_NAME}"),
        ("listen-client-urls=https://0.0.0.0:2379", "listen-client-urls=https://0.0.0.0:2379/"),
        ("listen-client-urls=https://0.0.0.0:2379", "listen-client-urls=https://$(POD_NAME).etcd.prod.svc:2379"),
        ("        - --name=$(POD_NAME)\n", "        - --name=$(POD_NAME)\n        - --pre-vote\n        - 'false'\n"),
        ("        env:\n", "        env:\n        - {name: ETCD_NAME, value: a}\n"),
        ("peer,server,client", "server,client"),
    ] {
        let files = TempDir::new("comes-up");
        assert!(good.contains(right), "{right}");
        let file = files.write("shape.yaml", good.replace(right, wrong));
        let (object, warnings) = injected(&file).remove(0);
        assert!(!warnings.is_empty(), "nothing is said of {wrong:?}");
        let running = Running::of(&object).expect("a member");
        assert!(
            running.start(&binary, &["etcd-0.etcd"]).is_err(),
            "{wrong:?} comes up, and was warned of: {warnings:?}"
        );
    }
    let file = repository().join("webhook/tests/golden/job-restore.yaml");
    let (right, wrong) = ("https://etcd.default.svc:2379", "https://etcd:2379");
    let good = fs::read_to_string(file).expect("the shape");
    assert!(good.contains(right));
    let files = TempDir::new("comes-up");
    let file = files.write("shape.yaml", good.replace(right, wrong));
    let (object, warnings) = injected(&file).remove(0);
    assert!(warnings.iter().any(|w| w.contains("write etcd.default.svc")), "{warnings:?}");
    let error = Clients::of(&object).expect("clients").start(&binary).expect_err("answered, and was warned of");
    // The script's own line on a container: its etcd was healthy before.
    assert!(error.contains("tmp/start-") && error.contains(": failed"), "{error}");
}
