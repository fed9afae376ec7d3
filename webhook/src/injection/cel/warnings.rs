//! Containers that would fail or stay without TLS after an injection, as warnings of a policy: the API server hands
//! them to the creator of the pod, and writes them to its audit log. Policies read no command lines, so less is seen than by the webhook.

use etcd_tls_contract::{names, role::Role};
use serde_json::{Value, json};

use super::{
    Variable,
    pod::line,
    text::{literal, literals},
    variable,
};
use crate::injection::{contract, urls};

/// The name of the policy, and the beginning of its bindings' names.
pub const WARNINGS: &str = "etcd-tls-injection-warnings";

/// A warning: a variable with the names of the containers that it is about, and its text.
struct Warning {
    name: &'static str,
    containers: String,
    text: String,
}

/// The spec of the policy, but where and for which pods it is asked. `all`: the variables of the pod, of which it takes those that
/// it needs.
pub(super) fn spec(all: &[Variable]) -> Value {
    let warnings = warnings();
    let port = variable(
        "clientPort",
        "variables.clientUrl.matches(':[0-9]{1,5}/?$')\n\
         ? int(variables.clientUrl.substring(variables.clientUrl.lastIndexOf(':') + 1).replace('/', '')) : 2379",
    );
    let lines = variable("lines", format!("variables.own.map(c, {})", line("c")));
    let own = warnings.iter().map(|warning| variable(warning.name, warning.containers.as_str()));
    let own: Vec<Variable> = [port, lines].into_iter().chain(own).collect();
    let needed = needed(all, &own);
    let variables: Vec<Value> =
        needed.into_iter().chain(&own).map(|v| json!({"name": v.name, "expression": v.expression})).collect();
    let validations: Vec<Value> = warnings
        .iter()
        .map(|Warning { name, text, .. }| {
            json!({
                "expression": format!("size(variables.{name}) == 0"),
                "messageExpression": format!("'container ' + variables.{name}.join(', ') + {}", literal(&format!(": {text}"))),
                "message": text,
            })
        })
        .collect();
    json!({"failurePolicy": "Ignore", "variables": variables, "validations": validations})
}

/// Those of `all` that `own` names, by way of others as well.
fn needed<'a>(all: &'a [Variable], own: &[Variable]) -> Vec<&'a Variable> {
    let mut texts: Vec<&str> = own.iter().map(|v| v.expression.as_str()).collect();
    let mut kept: Vec<&Variable> = Vec::new();
    for one in all.iter().rev() {
        let word = format!("variables.{}", one.name);
        let named = |text: &&str| {
            text.match_indices(&word).any(|(at, _)| {
                !text[at + word.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_')
            })
        };
        if texts.iter().any(named) {
            texts.push(&one.expression);
            kept.push(one);
        }
    }
    kept.reverse();
    kept
}

/// Options with URLs of a role.
fn options(role: Role) -> Vec<&'static str> {
    contract::URLS.into_iter().filter(|(of, ..)| *of == role).map(|(_, option, _)| option).collect()
}

/// `envFrom` may bring variables of etcd.
const FROM: &str = "c.?envFrom.orValue([]).exists(f, 'ETCD_'.startsWith(f.?prefix.orValue('')) || f.?prefix.orValue('').startsWith('ETCD_'))";

/// The line of a container of `own`, and a regular expression of some options as flags.
const LINE: &str = "variables.lines[variables.own.map(o, o.name).indexOf(c.name)]";
/// A member whose flags and variables are all that etcd gets: the command is etcd itself, or the image's own.
const SEEN: &str = "(size(c.?command.orValue([])) == 0\n\
                    ? c.?args[?0].orValue('-').startsWith('-') : c.command[0].matches('(^|/)etcd$'))";

/// The names of the containers of `list` for which all of this holds.
fn those(list: &str, condition: &str) -> String {
    format!("variables.{list}.filter(c, {condition}).map(c, c.name)")
}

fn env(names: &[String], condition: &str) -> String {
    format!("c.?env.orValue([]).exists(e, e.name in {} && {condition})", literals(names.iter().map(String::as_str)))
}

fn variables_of(options: &[&str]) -> Vec<String> {
    options.iter().map(|option| urls::variable("ETCD", option)).collect()
}

/// The CEL condition that a member sets an option that begins so, by flag or by variable.
fn sets(option: &str) -> String {
    format!(
        "({LINE}.matches({}) || c.?env.orValue([]).exists(e, e.name.startsWith({})))",
        literal(&format!("(^|[^A-Za-z0-9_-])--?{option}")),
        literal(&urls::variable("ETCD", option))
    )
}

fn warnings() -> Vec<Warning> {
    let all: Vec<&str> = contract::URLS.into_iter().map(|(_, option, _)| option).collect();
    let unseen: Vec<String> = variables_of(&[&all[..], &["config-file"]].concat());
    let mut warnings = Vec::new();
    let mut warn =
        |name, containers: String, text: &str| warnings.push(Warning { name, containers, text: text.to_owned() });
    for (role, word, plain, unset, listen, default) in [
        (Role::Server, "server", "plainClientUrls", "unsetClientUrls", "listen-client-urls", 2379),
        (Role::Peer, "peer", "plainPeerUrls", "unsetPeerUrls", "listen-peer-urls", 2380),
    ] {
        let options = options(role);
        let names = variables_of(&options);
        let flags = [options.join("|"), names.join("|")].join("|");
        let says = literal(&format!("({flags})[= '\"]*[^ ]*http://"));
        warn(
            plain,
            those(
                "members",
                &format!(
                    "variables.{word} && ({} || {LINE}.matches({says}))",
                    env(&names, "e.?value.orValue('').contains('http://')")
                ),
            ),
            &format!("--{} still says http://; write https://", options.join(" or --")),
        );
        warn(
            unset,
            those(
                "members",
                &format!("variables.{word} && {SEEN} && !{FROM} && !{} && !{}", sets(listen), sets("config-file")),
            ),
            &format!("--{listen} is not set, so etcd listens on http://localhost:{default}; set it with https://"),
        );
    }
    warn(
        "unseen",
        those("members", &format!("{FROM}\n|| {}", env(&unseen, "has(e.valueFrom)"))),
        "envFrom or valueFrom may set URLs of etcd or ETCD_CONFIG_FILE, which admission cannot see; see that none says http:// or names \
         a config file, or write them into env",
    );
    warn(
        "discovered",
        those(
            "members",
            &format!(
                "variables.peer && ({LINE}.matches({}) || {})",
                literal(&format!("(^|[^A-Za-z0-9_-])--?({})[= ]", contract::DISCOVERY.join("|"))),
                env(&variables_of(&contract::DISCOVERY), "true")
            ),
        ),
        "etcd finds its members by discovery, which admission cannot see; see that each is https:// and \
         <pod>.<service>.<namespace>.svc",
    );
    warn("suites", those("members", &suites()), contract::SUITES);
    clients(&mut warn);
    warnings
}

/// Suites for keys of another kind, where there is no TLS 1.3, which has suites for all.
fn suites() -> String {
    let set = |option: &str, pattern: &str| {
        let variable = urls::variable("ETCD", option);
        format!(
            "({LINE}.matches({}) || c.?env.orValue([]).exists(e, e.name == {} && e.?value.orValue('').matches({})))",
            literal(&format!("--?{option}[= '\"]*[^ ]*{pattern}")),
            literal(&variable),
            literal(pattern)
        )
    };
    format!(
        "{} && {} && !(variables.key.startsWith('rsa-') ? {} : {})",
        set("cipher-suites", "TLS_"),
        set("tls-max-version", "TLS1\\.2"),
        set("cipher-suites", "_RSA_"),
        set("cipher-suites", "_ECDSA_")
    )
}

/// The containers that ask etcd's client port in a way that fails.
fn clients(warn: &mut impl FnMut(&'static str, String, &str)) {
    let hooks = [
        "c.?startupProbe",
        "c.?livenessProbe",
        "c.?readinessProbe",
        "c.?lifecycle.?postStart",
        "c.?lifecycle.?preStop",
    ];
    let asks = "g.hasValue() && g.?host.orValue('') == '' && (g.?port.orValue(0) == variables.clientPort\n\
                || c.?ports.orValue([]).exists(p, p.containerPort == variables.clientPort && p.?name.orValue('') == g.?port.orValue('')))";
    let handlers = hooks.map(|hook| format!("{hook}.?httpGet, {hook}.?grpc")).join(", ");
    warn(
        "probes",
        those("own", &format!("variables.server && [{handlers}].exists(g, {asks})")),
        "a probe or hook asks the client port by httpGet or grpc, without a client certificate; probe an http:// URL of \
         --listen-metrics-urls, or use tcpSocket",
    );
    let certified = "(variables.client && c.name in variables.wanted)";
    let etcdctl = "(^|[^A-Za-z0-9_-])etcdctl($|[^A-Za-z0-9_.-])";
    let offline = "etcdctl +(version|help|completion|snapshot +(status|restore))";
    warn(
        "etcdctl",
        those(
            "own",
            &format!(
                "variables.server && !{certified} && {LINE}.matches({}) && !{LINE}.matches({})\n\
                 && !{LINE}.matches('--cert[= ]') && !c.?env.orValue([]).exists(e, e.name == 'ETCDCTL_CERT')",
                literal(etcdctl),
                literal(offline)
            ),
        ),
        "it runs etcdctl, which needs a client certificate: add client to etcd-tls.dev/roles and the container to \
         etcd-tls.dev/containers",
    );
    let plain = "'http://[^ /,]*:' + string(variables.clientPort) + '($|[^0-9])'";
    let asked = "'(curl|wget|etcdctl)[^;|&]*' + ";
    warn(
        "plainRequests",
        those(
            "own",
            &format!(
                "(variables.server || !variables.member && {certified}) && (c.name in variables.memberNames\n\
                 ? {LINE}.matches({asked}{plain})\n\
                 || c.?env.orValue([]).exists(e, e.name == 'ETCDCTL_ENDPOINTS' && e.?value.orValue('').matches({plain}))\n\
                 : {LINE}.matches({plain}) || c.?env.orValue([]).exists(e, e.?value.orValue('').matches({plain})))"
            ),
        ),
        "it asks etcd's client port by http://, and etcd speaks TLS there and wants a client certificate; write https://",
    );
    warn(
        "bareRequests",
        those(
            "own",
            &format!(
                "variables.server && {LINE}.matches('(curl|wget)[^;|&]*https://[^ /,]*:' + string(variables.clientPort) + '($|[^0-9])')\n\
                 && !{LINE}.matches(' (-E|--cert)')"
            ),
        ),
        &format!(
            "it asks etcd's client port without a client certificate; ask an http:// URL of --listen-metrics-urls, or give it the \
             files in {}/client",
            names::DEFAULT_MOUNT_PATH
        ),
    );
}
