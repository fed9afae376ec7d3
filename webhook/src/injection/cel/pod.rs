//! The pod as variables of CEL: the containers that are meant, what they get, and how etcd can be restarted.

use etcd_tls_contract::names;

use super::{
    CelError, Variable,
    template::{Option, Template},
    text::{annotation, has, literal, literals, only_if},
    variable,
};
use crate::injection::{Config, reload::POWERS};

/// All words that a container runs, probes and hooks included, as one text.
pub(super) fn line(container: &str) -> String {
    let hooks = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.?postStart", "lifecycle.?preStop"];
    let hooks = hooks.map(|hook| format!(" + {container}.?{hook}.?exec.?command.orValue([])")).join("");
    format!("({container}.?command.orValue([]) + {container}.?args.orValue([]){hooks}).join(' ')")
}

/// The CEL condition that a container is seen to run etcd by its own command or its image's.
const RUNS_ETCD: &str = "(c.name == 'etcd' || (size(c.?command.orValue([])) == 0 ? c.?args[?0].orValue('').startsWith('-')\n\
                         : c.command[0].matches('(^|/)etcd$')))";

/// The CEL condition that a native sidecar, or the main container beside it, is seen to run etcd: by its command line, or by its
/// image's name if it runs the image's own command.
pub(super) const IS_ETCD: &str = "(size(c.?command.orValue([])) == 0 ? c.?image.orValue('').matches('(^|/)etcd([:@]|$)')\n\
                       : c.command[0].matches('(^|/)etcd$'))";

/// The variables, each with those before it in its expression.
pub(super) fn variables(config: &Config, template: &Template) -> Result<Vec<Variable>, CelError> {
    let ours = literals([names::INIT_CONTAINER, names::SIDECAR_CONTAINER]);
    let user_of = "c.?securityContext.?runAsUser.orValue(object.spec.?securityContext.?runAsUser.orValue(-1))";
    let default_user = match config.user {
        Some(user) => user.to_string(),
        None => {
            format!("(object.spec.?securityContext.?runAsUser.orValue(-1) == 0 ? {} : -1)", names::DEFAULT_UID)
        }
    };
    Ok(vec![
        variable("init", "object.spec.?initContainers.orValue([])"),
        // Files that kubelet brings need no init container.
        variable("ofKubelet", format!("{} == 'pod-certificate'", annotation("issuer", "csr"))),
        variable(
            "injected",
            format!(
                "{ours}.all(n, variables.init.exists(c, c.name == n) || (variables.ofKubelet && n == {}))",
                literal(names::INIT_CONTAINER)
            ),
        ),
        variable("main", format!("object.spec.containers.filter(c, !(c.name in {ours}))")),
        variable("own", format!("variables.init.filter(c, !(c.name in {ours})) + variables.main")),
        // Native sidecars, which keep running.
        variable(
            "sidecars",
            format!("variables.init.filter(c, c.?restartPolicy.orValue('') == 'Always' && !(c.name in {ours}))"),
        ),
        variable("sidecarsWithEtcd", format!("variables.member ? variables.sidecars.filter(c, {IS_ETCD}) : []")),
        variable(
            "wanted",
            format!(
                "{} ? {}.split(',')\n\
                 : (variables.main + variables.sidecars).exists(c, c.name == {etcd}) ? [{etcd}]\n\
                 : size(variables.main) != 1 ? []\n\
                 : size(variables.sidecarsWithEtcd) == 0 || variables.main.exists(c, {IS_ETCD}) ? [variables.main[0].name]\n\
                 : size(variables.sidecarsWithEtcd) == 1 ? [variables.sidecarsWithEtcd[0].name] : []",
                has("containers"),
                annotation("containers", ""),
                etcd = literal(names::ETCD_CONTAINER),
            ),
        ),
        variable(
            "targets",
            "variables.wanted.map(n, variables.own.exists(c, c.name == n), variables.own.filter(c, c.name == n)[0])",
        ),
        variable("targetLines", format!("variables.targets.map(c, {})", line("c"))),
        // Among several, the members are those that run etcd; where none shows it, any may be one.
        variable(
            "members",
            format!(
                "variables.member ? (size(variables.targets) > 1 && variables.targets.exists(c, {RUNS_ETCD})\n\
                 ? variables.targets.filter(c, {RUNS_ETCD}) : variables.targets) : []"
            ),
        ),
        variable("memberNames", "variables.members.map(c, c.name)"),
        variable("etcd", "size(variables.members) > 0 ? variables.members : variables.targets"),
        variable("etcdNames", "variables.etcd.map(c, c.name)"),
        variable("users", format!("variables.etcd.map(c, int({user_of})).distinct()")),
        variable("shared", "object.spec.?shareProcessNamespace.orValue(false)"),
        variable("obstacle", obstacle(user_of)),
        variable(
            "canSignal",
            "(variables.reload == 'auto' && variables.member || variables.reload.startsWith('signal:'))\n\
             && variables.obstacle == ''",
        ),
        variable(
            "runAsUser",
            format!("size(variables.users) > 0 && variables.users[0] > 0 ? variables.users[0] : {default_user}"),
        ),
        variable("env", env(template)),
    ])
}

/// The CEL condition that a container with etcd is not started again by its own policy.
pub(super) const OWN_RESTART_POLICY: &str = "variables.etcd.exists(c, c.?restartPolicy.orValue('Always') != 'Always')";

/// The CEL condition that a container with etcd is not started again by the pod's policy. One of its own precedes it.
pub(super) const NEVER: &str =
    "(object.spec.?restartPolicy.orValue('') == 'Never' && variables.etcd.exists(c, !has(c.restartPolicy)))";

/// Why a signal cannot or must not reach etcd; empty where it can. The first of the reasons that `reload` has.
fn obstacle(user_of: &str) -> String {
    let others = "(variables.sidecars + variables.main).filter(c, !(c.name in variables.etcdNames))";
    let powers = POWERS.map(|name| [name.to_owned(), format!("CAP_{name}")]).concat();
    [
        ("size(variables.etcd) == 0".to_owned(), "no container runs etcd"),
        ("object.spec.?hostPID.orValue(false)".to_owned(), "hostPID shows the sidecar the processes of other pods"),
        (
            "has(object.spec.shareProcessNamespace) && !object.spec.shareProcessNamespace".to_owned(),
            "the pod says shareProcessNamespace: false",
        ),
        (NEVER.to_owned(), "restartPolicy is Never"),
        (OWN_RESTART_POLICY.to_owned(), "a container with etcd has a restartPolicy of its own"),
        ("variables.users.exists(u, u < 0)".to_owned(), "a container with etcd declares no runAsUser"),
        ("variables.users.exists(u, u == 0)".to_owned(), "a container with etcd runs as root"),
        ("size(variables.users) > 1".to_owned(), "the containers with etcd run as different users"),
        (
            format!("!variables.shared && {others}.exists(c, int({user_of}) in [-1, 0] + variables.users)"),
            "another container has the user of etcd, is root or declares no runAsUser, and could read its keys",
        ),
        (
            format!(
                "!variables.shared && {others}.exists(c, c.?securityContext.?privileged.orValue(false)\n\
                 || c.?securityContext.?capabilities.?add.orValue([]).exists(n, n in {}))",
                literals(powers.iter().map(String::as_str))
            ),
            "another container is privileged or adds capabilities, by which it could become the user of etcd and read its keys",
        ),
    ]
    .iter()
    .rev()
    .fold("''".to_owned(), |rest, (condition, why)| format!("{condition} ? {}\n: {rest}", literal(why)))
}

/// The variables that each of the targets gets: those of its roles that it does not have. Of a unit it gets none where it has its
/// own way with one of them.
fn env(template: &Template) -> String {
    let mut parts = Vec::new();
    for (role, unit) in &template.units {
        let holds = match *role {
            "client" => "variables.client".to_owned(),
            role => format!("variables.{role} && c.name in variables.memberNames"),
        };
        let entries: Vec<String> = unit.iter().map(missing).collect();
        let own: Vec<String> = unit.iter().map(own_way).collect();
        let lists = unit.iter().any(|option| option.name.ends_with("_CRL_FILE"));
        let lists = if lists { " && variables.lists" } else { "" };
        parts.push(format!("({holds}{lists} && !({}) ? {} : [])", own.join(" || "), entries.join(" + ")));
    }
    format!("variables.targets.map(c, variables.options == 'env' ? {} : [])", parts.join("\n+ "))
}

fn missing(option: &Option) -> String {
    let name = literal(&option.name);
    only_if(
        &format!("!c.?env.orValue([]).exists(e, e.name == {name})"),
        &format!("{{'name': {name}, 'value': {}}}", option.value),
    )
}

fn own_way(option: &Option) -> String {
    let value = match option.is_true {
        // A switch is read as Go reads a bool.
        true => "!(e.?value.orValue('') in ['true', '1', 't', 'T', 'TRUE', 'True'])".to_owned(),
        false => format!("e.?value.orValue('') != {}", option.value),
    };
    format!("c.?env.orValue([]).exists(e, e.name == {} && {value})", literal(&option.name))
}
