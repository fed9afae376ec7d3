//! The environment variables that etcd and etcdctl get, and those that they must not get.
//!
//! An option that the pod sets is the pod's: by flag, because etcd refuses to start over both, and by variable, because
//! whoever wrote it meant it. What thereby stays without our certificates is said.

use etcd_tls_contract::{names, role::Role};
use serde_json::{Value, json};

use super::{
    options::{Options, Setting, Tool},
    urls::{setting, variable},
    view::{Container, Variable},
};

/// What one container's environment gets, and what is to be said of it.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// Entries of `env` to add.
    pub(super) add: Vec<Value>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<String>,
}

/// Options that only make sense together: a certificate needs its key.
struct Unit {
    tool: Tool,
    options: Vec<(&'static str, String)>,
}

/// What `container` gets for `roles`, with its files under `mount`.
pub(super) fn environment(container: &Container<'_>, options: &Options, roles: &[Role], mount: &str) -> Environment {
    let mut environment = Environment::default();
    environment.etcd(container, options, roles, mount);
    if roles.contains(&Role::Client) {
        environment.etcdctl(container, options, mount);
    }
    // A reader of metrics is told where its files are by its own configuration.
    environment
}

impl Environment {
    fn etcd(&mut self, container: &Container<'_>, options: &Options, roles: &[Role], mount: &str) {
        let name = container.name;
        let file_overrides = setting(container, options, "config-file").is_some();
        let mut wanted = Vec::new();
        for &role in roles {
            let of = |file: &str| path(mount, role, file);
            let (units, section) = match role {
                Role::Server => (server_units(of), "client-transport-security"),
                Role::Peer => (peer_units(of), "peer-transport-security"),
                Role::Client | Role::Metrics => continue,
            };
            if file_overrides {
                self.warnings.push(format!(
                    "container {name}: a config file overrides the environment; its {section} must say what follows"
                ));
                self.warnings.push(format!(
                    "cert-file: {}, key-file: {}, trusted-ca-file: {}, client-cert-auth: true",
                    of(names::CERT_FILE),
                    of(names::KEY_FILE),
                    of(names::CA_FILE),
                ));
            } else {
                wanted.extend(units.iter().flat_map(|unit| unit.missing(container, options, &mut self.warnings)));
            }
        }
        match &options.untold {
            Some(why) if !wanted.is_empty() => self.problems.push(untold(name, why, "etcd", &wanted)),
            _ => self.add.append(&mut wanted),
        }
    }

    fn etcdctl(&mut self, container: &Container<'_>, options: &Options, mount: &str) {
        let of = |file| path(mount, Role::Client, file);
        let units = [
            Unit { tool: Tool::Etcdctl, options: vec![("cacert", of(names::CA_FILE))] },
            Unit { tool: Tool::Etcdctl, options: vec![("cert", of(names::CERT_FILE)), ("key", of(names::KEY_FILE))] },
        ];
        let wanted: Vec<Value> =
            units.iter().flat_map(|unit| unit.missing(container, options, &mut self.warnings)).collect();
        match &options.untold_client {
            Some(why) if !wanted.is_empty() => {
                self.problems.push(untold(container.name, why, "etcdctl", &wanted));
            }
            _ => self.add.extend(wanted),
        }
    }
}

impl Unit {
    /// The variables to add: none when the pod has its own way with one of the options.
    fn missing(&self, container: &Container<'_>, options: &Options, warnings: &mut Vec<String>) -> Vec<Value> {
        let (prefix, flags) = match self.tool {
            Tool::Etcd => ("ETCD", &options.etcd),
            Tool::Etcdctl => ("ETCDCTL", &options.etcdctl),
        };
        let mut missing = Vec::new();
        let mut foreign = Vec::new();
        for (option, ours) in &self.options {
            let variable = variable(prefix, option);
            let flag = flags.get(option).map(|setting| (format!("--{option}"), setting));
            let theirs = flag.or_else(|| {
                let value = match container.variable(&variable) {
                    Some(Variable::Literal(text)) => Setting::Text(text.to_owned()),
                    Some(Variable::From) => Setting::Unknown,
                    None if options.script_sets.contains(&variable) => Setting::Unknown,
                    None => return None,
                };
                Some((variable.clone(), value))
            });
            match theirs {
                None => missing.push(json!({"name": variable, "value": ours})),
                Some((_, Setting::Text(text))) if same(&text, ours) => {}
                Some((spelled, setting)) => foreign.push(match setting {
                    Setting::Text(text) | Setting::Open(text) => {
                        format!("{spelled}={}", text.chars().take(60).collect::<String>())
                    }
                    Setting::Unknown => spelled,
                }),
            }
        }
        if foreign.is_empty() {
            return missing;
        }
        let ours: Vec<&str> = self.options.iter().map(|(_, ours)| ours.as_str()).collect();
        warnings.push(format!(
            "container {}: {} is the pod's own and stays; etcd-tls would say {}",
            container.name,
            foreign.join(" and "),
            ours.join(" and ")
        ));
        Vec::new()
    }
}

fn server_units(of: impl Fn(&str) -> String) -> [Unit; 3] {
    [
        Unit {
            tool: Tool::Etcd,
            options: vec![("cert-file", of(names::CERT_FILE)), ("key-file", of(names::KEY_FILE))],
        },
        Unit { tool: Tool::Etcd, options: vec![("trusted-ca-file", of(names::CA_FILE))] },
        Unit { tool: Tool::Etcd, options: vec![("client-cert-auth", "true".to_owned())] },
    ]
}

fn peer_units(of: impl Fn(&str) -> String) -> [Unit; 3] {
    let pair = vec![("peer-cert-file", of(names::CERT_FILE)), ("peer-key-file", of(names::KEY_FILE))];
    [
        Unit { tool: Tool::Etcd, options: pair },
        Unit { tool: Tool::Etcd, options: vec![("peer-trusted-ca-file", of(names::CA_FILE))] },
        Unit { tool: Tool::Etcd, options: vec![("peer-client-cert-auth", "true".to_owned())] },
    ]
}

fn path(mount: &str, role: Role, file: &str) -> String {
    format!("{mount}/{role}/{file}")
}

fn same(theirs: &str, ours: &str) -> bool {
    // A switch is read as Go reads a bool.
    theirs == ours || (ours == "true" && matches!(theirs, "1" | "t" | "T" | "TRUE" | "True"))
}

fn untold(container: &str, why: &str, tool: &str, wanted: &[Value]) -> String {
    let variables: Vec<String> = wanted
        .iter()
        .map(|entry| {
            let text = |field| entry.get(field).and_then(Value::as_str).unwrap_or_default();
            format!("{}={}", text("name"), text("value"))
        })
        .collect();
    format!(
        "container {container}: {why}, so it cannot be told whether {tool} gets flags that its environment must not repeat; \
         write {tool} and its flags into command or args, or set in the container's env {}",
        variables.join(" ")
    )
}
