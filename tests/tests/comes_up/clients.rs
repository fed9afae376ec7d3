//! Clients of an etcd in another pod: each container that gets certificates runs in its order, against a real etcd whose
//! certificate holds what a member's holds, under the names that the container has in its words.

use super::*;

/// Starts etcd on a host of its own, and then the client's containers, each of which must end well.
const HOST: &str = r#"
set -eu
ip link set lo up; ip addr add "$ADDRESS/32" dev lo; hostname "$POD"
mount --make-rprivate /; mount --bind etc /etc; mount --bind tmp /tmp
(cd /tmp && exec etcd --data-dir=/tmp/etcd --listen-client-urls="https://$ADDRESS:2379" \
    --advertise-client-urls="https://$ADDRESS:2379" --cert-file=server/tls.crt --key-file=server/tls.key \
    --trusted-ca-file=server/ca.crt --client-cert-auth) > etcd.log 2>&1 &
ask() { "$CTL" --cacert=client/ca.crt --cert=client/tls.crt --key=client/tls.key --endpoints="https://$ADDRESS:2379" "$@"; }
up=
for _ in $(seq 120); do
    if ask endpoint health >health.log 2>&1; then up=yes; break; fi
    sleep 0.5
done
[ "$up" ] || { cat health.log; tail -n 15 etcd.log; exit 1; }
for start in tmp/start-*; do (cd /tmp && "/$start") || { echo "$start: failed"; exit 1; }; done
"#;

/// The flags of the shape whose program is an application, and etcdctl's in their place.
const APPLICATION: [(&str, &str); 4] =
    [("etcd-endpoints", "endpoints"), ("etcd-ca", "cacert"), ("etcd-cert", "cert"), ("etcd-key", "key")];

/// A pod of clients, as it would run.
pub(super) struct Clients {
    settings: Settings,
    namespace: String,
    containers: Vec<Value>,
}

impl Clients {
    /// `None` where there is none, or where its program is not known.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let pod = pod_of(object)?;
        let annotations: BTreeMap<String, String> =
            serde_json::from_value(pod["metadata"]["annotations"].clone()).ok()?;
        let settings = Settings::parse(&annotations).expect("settings");
        let namespace = Some(text(object, "/metadata/namespace")).filter(|n| !n.is_empty()).unwrap_or("default");
        let named: Vec<&str> =
            annotations.get("etcd-tls.dev/containers").map_or(Vec::new(), |c| c.split(',').collect());
        let of = |list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default();
        let containers: Vec<Value> = [of("initContainers"), of("containers")]
            .concat()
            .into_iter()
            .filter(|container| named.contains(&text(container, "/name")))
            .filter_map(with_etcdctl)
            .collect();
        let whole = settings.roles.iter().all(|role| *role == Role::Client) && !containers.is_empty();
        whole.then(|| Self { settings, namespace: namespace.to_owned(), containers })
    }

    /// Runs them; returns the failure.
    pub(super) fn start(&self, binary: &tests::etcd::EtcdBinary) -> Result<(), String> {
        let files = TempDir::new("client-comes-up");
        let ca = Ca::new("clients");
        let (mut names, mut ips) = (vec!["etcd-0".to_owned()], Vec::<IpAddr>::new());
        drop(Command::new("cp").args(["-a", "/etc/."]).arg(files.dir("etc")).output().expect("run cp"));
        for host in self.containers.iter().flat_map(hosts) {
            names.push(host.clone());
            let mut parts = host.split('.').map(str::to_owned);
            let service = parts.next().expect("a name");
            let namespace = parts.next().unwrap_or_else(|| self.namespace.clone());
            let labels = BTreeMap::from([("app".to_owned(), "etcd".to_owned())]);
            let facts = PodFacts {
                labels: labels.clone(),
                namespace: namespace.clone(),
                name: "etcd-0".to_owned(),
                hostname: "etcd-0".to_owned(),
                ips: vec![ADDRESS.parse().expect("an address")],
                service_account: "default".to_owned(),
                ..PodFacts::default()
            };
            let service = ServiceFacts { name: service, cluster_ips: Vec::new(), selector: labels };
            let settings = Settings::default();
            let signer = settings.our_signer(Role::Server, &namespace).expect("a signer of ours");
            let (policy, addressee) = (Policy::default(), Addressee::Ours(&signer));
            let entitled = identity::entitlement(Role::Server, &facts, &[service], &settings, &policy, addressee)
                .unwrap_or_else(|denials| panic!("{denials:?}"));
            ips.extend(entitled.sans.ips);
            let options = LeafOptions {
                common_name: entitled.common_name,
                dns: entitled.sans.dns.into_iter().collect(),
                ips: ips.clone(),
                server: true,
                ..LeafOptions::default()
            };
            ca.write_role(&files.dir("tmp").join("server"), &options);
        }
        let client = LeafOptions { common_name: "client".to_owned(), server: false, ..LeafOptions::default() };
        let mount = files.join(self.settings.mount_path.trim_start_matches('/'));
        // Where the pod has them, on a host of its own.
        let seen = match self.settings.mount_path.starts_with("/etc/") {
            true => mount,
            false => files.dir("tmp").join(self.settings.mount_path.trim_start_matches('/')),
        };
        ca.write_role(&seen.join("client"), &client);
        ca.write_role(&files.join("client"), &client);
        files.write("etc/hosts", format!("127.0.0.1 localhost\n{ADDRESS} {}\n", names.join(" ")));
        for (at, container) in self.containers.iter().enumerate() {
            let script = files.write(format!("tmp/start-{at}"), self.script(container));
            fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("make it executable");
        }
        let directory = binary.etcd.parent().unwrap_or(Path::new("/"));
        let ctl = binary.etcdctl.as_ref().ok_or("no etcdctl")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let beside = ctl.parent().unwrap_or(Path::new("/")).display().to_string();
        let output = isolated(HOST)
            .current_dir(files.path())
            .env("PATH", format!("{}:{beside}:{path}", directory.display()))
            .envs([("ADDRESS", ADDRESS), ("POD", "client"), ("ETCDCTL_API", "3")])
            .env("CTL", ctl)
            .output()
            .expect("run unshare");
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// The container's command with its environment.
    fn script(&self, container: &Value) -> String {
        let here = |text: &str| match self.settings.mount_path.starts_with("/etc/") {
            true => text.to_owned(),
            false => text.replace(&self.settings.mount_path, &format!("/tmp{}", self.settings.mount_path)),
        };
        let mut environment = vec![("ETCDCTL_API".to_owned(), "3".to_owned())];
        for entry in container["env"].as_array().into_iter().flatten() {
            environment.push((text(entry, "/name").to_owned(), here(&expand(text(entry, "/value"), &environment))));
        }
        let mut script = "#!/bin/sh\nexec env -i \"PATH=$PATH\"".to_owned();
        for (name, value) in &environment {
            let _ = write!(script, " {}", quoted(&format!("{name}={value}")));
        }
        for word in words(container) {
            let _ = write!(script, " {}", quoted(&here(&expand(&word, &environment))));
        }
        script + "\n"
    }
}

fn words(container: &Value) -> Vec<String> {
    let list = |field: &str| container[field].as_array().cloned().unwrap_or_default();
    [list("command"), list("args")].concat().iter().filter_map(Value::as_str).map(Into::into).collect()
}

/// The container with a known command: its own, or for the application etcdctl with the same files.
fn with_etcdctl(mut container: Value) -> Option<Value> {
    if container["command"].is_array() {
        return words(&container).iter().any(|word| word.contains("etcdctl")).then_some(container);
    }
    let mut command = vec!["etcdctl".to_owned()];
    for word in words(&container) {
        let (flag, value) = word.strip_prefix("--")?.split_once('=')?;
        let (_, flag) = APPLICATION.iter().find(|(theirs, _)| *theirs == flag)?;
        command.push(format!("--{flag}={value}"));
    }
    command.extend(["endpoint".to_owned(), "health".to_owned()]);
    (command.len() == 3 + APPLICATION.len()).then(|| {
        container["command"] = command.into();
        container["args"] = Value::Array(Vec::new());
        // Its files stand in its flags alone.
        container["env"] = Value::Array(Vec::new());
        container
    })
}

/// The hosts of the URLs in the words and variables of a container.
fn hosts(container: &Value) -> Vec<String> {
    let values = container["env"].as_array().into_iter().flatten().filter_map(|entry| entry["value"].as_str());
    let texts = words(container).into_iter().chain(values.map(Into::into));
    texts
        .flat_map(|text| text.split("https://").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|rest| rest.split([':', '/', ',']).next().map(str::to_owned))
        .collect()
}
