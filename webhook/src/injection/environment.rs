//! The environment variables that etcd and etcdctl get, and those that they must not get.
//!
//! An option that the pod sets stays the pod's: by flag, because etcd refuses to start with both; by variable, because its
//! author meant it. A warning names the options that thereby stay without our certificates.

use etcd_tls_contract::{names, role::Role, settings::OptionsMode};
use serde::Serialize;

use super::{
    options::{Doubt, Kept, Options, Run, Setting, Tool},
    paths::is_below,
    urls::{setting, variable},
    view::Container,
};

/// The variables to add to one container, with warnings and problems.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// Entries of `env` to add.
    pub(super) add: Vec<Variable>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<String>,
}

/// An entry of a container's `env`.
#[derive(Debug, Serialize)]
pub(super) struct Variable {
    name: String,
    value: String,
}

/// Options that only make sense together: a certificate needs its key.
pub(super) struct Unit {
    tool: Tool,
    pub(super) options: Vec<(&'static str, String)>,
}

/// The files of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    /// Where they are.
    pub(super) mount: &'a str,
    /// True if etcd gets the options of the revocation lists.
    pub(super) lists: bool,
    /// True if key and chain are one file, which etcd and etcdctl take for both options.
    pub(super) one_file: bool,
}

impl Files<'_> {
    /// The file of the key.
    const fn key(&self) -> &'static str {
        if self.one_file { names::CERT_FILE } else { names::KEY_FILE }
    }
}

/// The variables that `container` gets for `roles`, with these files.
pub(super) fn environment(
    container: &Container<'_>,
    options: &Options,
    mode: OptionsMode,
    roles: &[Role],
    files: Files<'_>,
) -> Environment {
    let mut environment = Environment::default();
    environment.etcd(container, options, mode, roles, files);
    if roles.contains(&Role::Client) {
        environment.etcdctl(container, options, mode, roles, files);
    }
    // A reader of metrics has the paths in its own configuration.
    environment
}

impl Environment {
    fn etcd(
        &mut self,
        container: &Container<'_>,
        options: &Options,
        mode: OptionsMode,
        roles: &[Role],
        files: Files<'_>,
    ) {
        let name = container.name;
        let file_overrides = setting(options, "config-file").is_some();
        let (mut all, mut lists) = (Vec::new(), Vec::new());
        for &role in roles {
            let of = |file: &str| path(files.mount, role, file);
            let (units, section) = match role {
                Role::Server => (server_units(of, files.key()), "client-transport-security"),
                Role::Peer => (peer_units(of, files.key()), "peer-transport-security"),
                Role::Client | Role::Metrics => continue,
            };
            if file_overrides {
                self.warnings.push(format!(
                    "container {name}: a config file overrides the environment; its {section} must say what follows"
                ));
                self.warnings.push(format!(
                    "cert-file: {}, key-file: {}, trusted-ca-file: {}, client-cert-auth: true",
                    of(names::CERT_FILE),
                    of(files.key()),
                    of(names::CA_FILE),
                ));
                if files.lists {
                    self.warnings.push(format!(
                        "container {name}: a config file has no key for a revocation list, so this member's {role} port takes \
                         revoked certificates"
                    ));
                }
            } else {
                all.extend(units);
                lists.extend(files.lists.then(|| list_unit(role, of(names::CRL_FILE))));
            }
        }
        self.units(container, options, mode, &all, options.undetermined.as_ref());
        self.lists(container, options, mode, &lists);
    }

    /// etcd also runs without a revocation list, so an obstacle to naming one is a warning and refuses no pod.
    fn lists(&mut self, container: &Container<'_>, options: &Options, mode: OptionsMode, lists: &[Unit]) {
        let mut apart = Self::default();
        apart.units(container, options, mode, lists, options.undetermined.as_ref());
        self.add.append(&mut apart.add);
        self.warnings.append(&mut apart.warnings);
        if !apart.problems.is_empty() {
            let flags: Vec<String> =
                lists.iter().flat_map(|unit| &unit.options).map(|(o, file)| format!("--{o}={file}")).collect();
            self.warnings.push(format!(
                "container {}: the flags of etcd are unknown, so it accepts revoked certificates unless it gets {}",
                container.name,
                flags.join(" ")
            ));
        }
    }

    fn etcdctl(
        &mut self,
        container: &Container<'_>,
        options: &Options,
        mode: OptionsMode,
        roles: &[Role],
        files: Files<'_>,
    ) {
        let of = |file| path(files.mount, Role::Client, file);
        // An image whose scripts give etcdctl the certificates of etcd by flag must not be given them by variable, too.
        if options.own_client_flags && mode == OptionsMode::Auto {
            let set = |name: &'static str| Some((name, options.variables.get(name)?));
            let automatic = || set("ETCD_AUTO_TLS").filter(|(_, value)| **value == Setting::Text("true".to_owned()));
            let given = set("ETCD_CERT_FILE").or_else(automatic);
            if roles.contains(&Role::Server)
                || matches!(given, Some((_, Setting::Text(file))) if is_below(file, files.mount))
            {
                return;
            }
            if let Some((name, _)) = given {
                self.warnings.push(format!(
                    "container {}: the image's scripts give etcdctl what {name} says; set ETCD_CERT_FILE: {}, ETCD_KEY_FILE: {} and \
                     ETCD_TRUSTED_CA_FILE: {}",
                    container.name,
                    of(names::CERT_FILE),
                    of(files.key()),
                    of(names::CA_FILE)
                ));
                return;
            }
        }
        let units = [
            Unit { tool: Tool::Etcdctl, options: vec![("cacert", of(names::CA_FILE))] },
            Unit { tool: Tool::Etcdctl, options: vec![("cert", of(names::CERT_FILE)), ("key", of(files.key()))] },
        ];
        self.units(container, options, mode, &units, options.undetermined_client.as_ref());
    }

    fn units(
        &mut self,
        container: &Container<'_>,
        options: &Options,
        mode: OptionsMode,
        units: &[Unit],
        undetermined: Option<&Doubt>,
    ) {
        let mut wanted: Vec<(&str, String, &str)> = Vec::new();
        for unit in units {
            wanted.extend(unit.missing(container, options, mode, self));
        }
        let Some((tool, ..)) = units.first().map(|unit| (unit.tool.program(), ())) else { return };
        let words =
            |text: &dyn Fn(&(&str, String, &str)) -> String| wanted.iter().map(text).collect::<Vec<_>>().join(" ");
        let name = container.name;
        match (mode, undetermined) {
            (_, _) if wanted.is_empty() => {}
            (OptionsMode::Auto, Some(doubt)) if doubt.clears_environment() => self.problems.push(format!(
                "container {name}: {} {}, so {tool} would get none of them; annotate {OPTIONS}: none and give it {}",
                doubt.place,
                doubt.why,
                words(&|(option, _, value)| format!("--{option}={value}")),
            )),
            (OptionsMode::Auto, Some(Doubt { why, place })) => self.problems.push(format!(
                "container {name}: {place} {why}, so the flags of {tool} are unknown, and {tool} does not start \
                 with an option set by flag and by variable. Write {tool} and its flags plainly into command or \
                 args; or, where it gets none of these flags, {STATE_ENV}, and etcd-tls sets {}; or \
                 annotate {OPTIONS}: none and give it {}",
                words(&|(_, variable, value)| format!("{variable}={value}")),
                words(&|(option, _, value)| format!("--{option}={value}")),
            )),
            (OptionsMode::None, None) => {
                for (option, _, value) in &wanted {
                    self.warnings.push(format!(
                        "container {name}: {OPTIONS} is none, but nothing gives {tool} --{option}={value}"
                    ));
                }
            }
            (OptionsMode::None, Some(_)) => {}
            (OptionsMode::Auto | OptionsMode::Env, _) => {
                if let Some(doubt) = undetermined.filter(|doubt| doubt.clears_environment()) {
                    self.warnings.push(format!(
                        "container {name}: {OPTIONS} is env, but {} {}; annotate {OPTIONS}: none and give {tool} its flags",
                        doubt.place, doubt.why
                    ));
                }
                let variables = wanted.into_iter().map(|(_, name, value)| Variable { name, value: value.to_owned() });
                self.add.extend(variables);
            }
        }
    }
}

/// The annotation by which a user says how options are given.
const OPTIONS: &str = "etcd-tls.dev/options";
/// The way out of a refused command line, in the words of the refusal.
pub(crate) const STATE_ENV: &str = "annotate etcd-tls.dev/options: env";
/// The only way out where etcd does not see the variables of its container.
pub(crate) const STATE_NONE: &str = "annotate etcd-tls.dev/options: none";

impl Unit {
    /// The options that the pod does not set, with their variables and values: none when it has its own way with one of them.
    fn missing<'u>(
        &'u self,
        container: &Container<'_>,
        options: &Options,
        mode: OptionsMode,
        said: &mut Environment,
    ) -> Vec<(&'u str, String, &'u str)> {
        let name = container.name;
        let prefix = self.tool.program().to_ascii_uppercase();
        let mut missing = Vec::new();
        let mut foreign = Vec::new();
        for (option, ours) in &self.options {
            let variable = variable(&prefix, option);
            let flag = options.flag(self.tool, option).map(|setting| (format!("--{option}"), setting));
            let both = |run: &&Run| run.flags.contains_key(*option) && options.is_set(run, &variable);
            if let Some(run) = options.runs_of(self.tool).find(both) {
                said.problems.push(format!(
                    "container {name}: {} gives {} --{option}, and {variable} is set as well, at which it stops; leave one out",
                    run.place,
                    self.tool.program()
                ));
                return Vec::new();
            }
            if flag.is_some() && mode == OptionsMode::Env {
                said.warnings.push(format!(
                    "container {name}: {OPTIONS} is env, but --{option} is given as well, and {} stops at both",
                    self.tool.program()
                ));
                missing.push((*option, variable, ours.as_str()));
                continue;
            }
            let theirs = flag.or_else(|| Some((variable.clone(), options.variable(self.tool, &variable)?)));
            match theirs {
                None => {
                    if let Some((run, _)) =
                        options.kept(self.tool, &variable).next().filter(|_| mode != OptionsMode::None)
                    {
                        said.problems.push(format!(
                            "container {name}: {} takes {variable} away or does not export it, so {} would run without it; leave \
                             it alone, or give --{option}={ours}",
                            run.place,
                            self.tool.program()
                        ));
                    }
                    missing.push((*option, variable, ours.as_str()));
                }
                Some((spelled, setting)) => {
                    let without = |run: &&Run| {
                        !run.flags.contains_key(*option) && !matches!(run.variables.get(&variable), Some(Kept::Set(_)))
                    };
                    let everywhere = options.variables.contains_key(&variable);
                    if let Some(run) =
                        options.runs_of(self.tool).find(without).filter(|_| !everywhere && self.tool == Tool::Etcd)
                    {
                        said.warnings.push(format!("container {name}: at {} etcd runs without --{option}", run.place));
                    }
                    match setting {
                        Setting::Text(text) if same(&text, ours) => {}
                        Setting::Text(text) | Setting::Open(text) => {
                            foreign.push(format!("{spelled}={}", text.chars().take(60).collect::<String>()));
                        }
                        Setting::Unknown => foreign.push(spelled),
                    }
                }
            }
        }
        if !foreign.is_empty() {
            let ours: Vec<&str> = self.options.iter().map(|(_, ours)| ours.as_str()).collect();
            said.warnings.push(format!(
                "container {name}: {} is the pod's own and stays; etcd-tls would say {}",
                foreign.join(" and "),
                ours.join(" and ")
            ));
            return Vec::new();
        }
        missing
    }
}

pub(super) fn server_units(of: impl Fn(&str) -> String, key: &str) -> [Unit; 3] {
    [
        Unit { tool: Tool::Etcd, options: vec![("cert-file", of(names::CERT_FILE)), ("key-file", of(key))] },
        Unit { tool: Tool::Etcd, options: vec![("trusted-ca-file", of(names::CA_FILE))] },
        Unit { tool: Tool::Etcd, options: vec![("client-cert-auth", "true".to_owned())] },
    ]
}

pub(super) fn peer_units(of: impl Fn(&str) -> String, key: &str) -> [Unit; 3] {
    let pair = vec![("peer-cert-file", of(names::CERT_FILE)), ("peer-key-file", of(key))];
    [
        Unit { tool: Tool::Etcd, options: pair },
        Unit { tool: Tool::Etcd, options: vec![("peer-trusted-ca-file", of(names::CA_FILE))] },
        Unit { tool: Tool::Etcd, options: vec![("peer-client-cert-auth", "true".to_owned())] },
    ]
}

fn list_unit(role: Role, file: String) -> Unit {
    let option = if role == Role::Peer { "peer-crl-file" } else { "client-crl-file" };
    Unit { tool: Tool::Etcd, options: vec![(option, file)] }
}

pub(super) fn path(mount: &str, role: Role, file: &str) -> String {
    [mount, role.as_str(), file].join("/")
}

pub(super) fn same(theirs: &str, ours: &str) -> bool {
    // A switch is read as Go reads a bool.
    theirs == ours || (ours == "true" && matches!(theirs, "1" | "t" | "T" | "TRUE" | "True"))
}
