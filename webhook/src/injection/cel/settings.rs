//! The pod's annotations as variables of CEL. A value that does not parse is a problem, and its variable is then of no
//! consequence, but must have a value.

use etcd_tls_contract::{
    names,
    role::Role,
    settings::{Resources, Settings},
};

use super::{
    Variable,
    template::resources,
    text::{annotation, has, literal, literals},
    variable,
};
use crate::injection::{Config, parts, resources::BOUNDED};

/// Durations: whole numbers with the units h, m, s in that order. No larger ones are within the bounds.
pub(super) const DURATION: &str = "^([0-9]{1,5}h)?([0-9]{1,7}m)?([0-9]{1,9}s)?$";
/// Ports that are written as numbers are.
pub(super) const PORT: &str = "^[1-9][0-9]{3,4}$";
/// An entry of the annotation `resources`. Of more than three digits behind the point the API server keeps none.
pub(super) const RESOURCE: &str = "^(requests|limits)\\.(cpu|memory|ephemeral-storage)=(none|[0-9]{1,18}m|\
                                   [0-9]{1,15}(\\.[0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?)$";

/// The variables, each with those before it in its expression.
pub(super) fn variables(config: &Config) -> Vec<Variable> {
    let defaults = Settings::default();
    let all = literals(Role::ALL.map(Role::as_str));
    let (duration, port) = (literal(DURATION), literal(PORT));
    let prefix = literal(names::ANNOTATION_PREFIX);
    let length = names::ANNOTATION_PREFIX.len();
    let mut variables = vec![
        variable("annotations", "object.metadata.?annotations.orValue({})"),
        variable("labels", "object.metadata.?labels.orValue({})"),
        variable("keys", format!("variables.annotations.map(k, k.startsWith({prefix}), k.substring({length}))")),
        variable("givenRoles", format!("{}.split(',')", annotation("roles", "peer,server"))),
        variable("roles", format!("{all}.filter(r, r in variables.givenRoles)")),
        variable("peer", "'peer' in variables.roles"),
        variable("server", "'server' in variables.roles"),
        variable("client", "'client' in variables.roles"),
        variable("member", "variables.peer || variables.server"),
        variable("options", format!("{}.trim()", annotation("options", "auto"))),
        variable("cluster", annotation("cluster", &defaults.cluster)),
        variable("mountPath", annotation("mount-path", &defaults.mount_path)),
        variable("givenPort", annotation("admin-port", &defaults.admin_port.to_string())),
        variable("adminPort", format!("variables.givenPort.matches({port}) ? int(variables.givenPort) : 0")),
        variable("duration", annotation("duration", "24h")),
        variable(
            "seconds",
            format!(
                "variables.duration != '' && variables.duration.matches({duration}) ? \
                 duration(variables.duration).getSeconds() : 0"
            ),
        ),
        variable(
            "lifetime",
            "(variables.seconds >= 3600 ? string(variables.seconds / 3600) + 'h' : '')\n\
             + (variables.seconds / 60 % 60 > 0 ? string(variables.seconds / 60 % 60) + 'm' : '')\n\
             + (variables.seconds % 60 > 0 ? string(variables.seconds % 60) + 's' : '')",
        ),
        variable("key", annotation("key", defaults.key.as_str())),
        variable("keyRotation", annotation("key-rotation", &defaults.key_rotation.to_string())),
        variable("reload", annotation("reload", &defaults.reload.to_string())),
        variable("user", annotation("user", "")),
        variable("logLevel", annotation("log-level", "")),
        variable("clientUrl", annotation("client-url", "")),
        variable("peerUrl", annotation("peer-url", "")),
        variable("revocation", format!("{}.trim()", annotation("revocation", "on"))),
        variable("lists", "variables.member && variables.revocation == 'on'"),
        // As the injection orders them: names, then addresses.
        variable("givenSans", format!("{} ? {}.split(',') : []", has("extra-sans"), annotation("extra-sans", ""))),
        variable(
            "sans",
            "variables.givenSans.filter(s, !isIP(s)).sort()\n\
             + variables.givenSans.filter(s, isIP(s) && ip(s).family() == 4)\n\
             + variables.givenSans.filter(s, isIP(s) && ip(s).family() == 6)",
        ),
        variable("givenResources", format!("{} ? {}.split(',') : []", has("resources"), annotation("resources", ""))),
    ];
    variables.extend(of_resources(config));
    variables
}

/// The CEL condition that `spec.resources` bounds the whole pod.
const BOUNDS: &str = "['requests', 'limits'].exists(k, size(object.spec.?resources[?k].orValue({})) > 0)";

/// The CEL condition that the annotation gives a request or a limit of a resource.
pub(super) fn gives(name: &str) -> String {
    let of = |kind: &str| format!("r.startsWith({})", literal(&format!("{kind}.{name}=")));
    format!("variables.givenResources.exists(r, {} || {})", of("requests"), of("limits"))
}

/// The value of each resource: the pod's, else the default. A request above a limit that is only a default raises it, and a limit
/// below a request that is only a default lowers that, as [`Resources::over`] has it.
fn of_resources(config: &Config) -> Vec<Variable> {
    let defaults: Resources = parts::default_resources(config);
    let default = |name: &str| {
        let (kind, name) = name.split_once('.').unwrap_or_default();
        let mut found = None;
        if kind == "requests" {
            found = defaults.requests().find(|(of, _)| *of == name).map(|(_, text)| text.to_owned());
        } else {
            found = found.or_else(|| Some(defaults.limits().find(|(of, _)| *of == name)?.1.to_owned()));
        }
        found.unwrap_or_else(|| "none".to_owned())
    };
    let given =
        |name: &str| format!("variables.givenResources.filter(r, r.startsWith({}))", literal(&format!("{name}=")));
    let named = |name: &str| {
        let given = given(name);
        let length = name.len() + 1;
        let mut otherwise = literal(&default(name));
        if let Some((_, of)) = name.split_once('.').filter(|(_, of)| BOUNDED.contains(of)) {
            otherwise = format!("({BOUNDS} && !({}) ? 'none' : {otherwise})", gives(of));
        }
        format!("(size({given}) > 0 ? {given}[0].substring({length}) : {otherwise})")
    };
    let names: Vec<(&str, &str)> = resources().collect();
    let mut variables = Vec::new();
    let (requests, limits) = names.split_at(names.len() / 2);
    for ((request, of_request), (limit, of_limit)) in requests.iter().zip(limits) {
        let (r, l) = (named(request), named(limit));
        // The problems name a quantity that is none.
        let fine = format!("variables.givenResources.all(r, r.matches({}))", literal(RESOURCE));
        let over = format!("{fine} && {r} != 'none' && {l} != 'none' && quantity({r}).isGreaterThan(quantity({l}))");
        let limit_given = format!("size({}) > 0", given(limit));
        variables.push(variable(of_request, format!("{over} && {limit_given} ? {l} : {r}")));
        variables.push(variable(of_limit, format!("{over} && !({limit_given}) ? {r} : {l}")));
    }
    variables
}
