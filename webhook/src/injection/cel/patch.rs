//! The JSON patch as CEL.

use etcd_tls_contract::names;

use super::{
    CelError,
    template::Template,
    text::{literal, literals},
};
use crate::injection::Config;

/// The expression of the mutation: a list of operations, empty where there are problems or all is in place.
pub(super) fn patch(config: &Config, template: &Template) -> Result<String, CelError> {
    let warnings = literal(names::WARNINGS_ANNOTATION);
    let mut parts = vec![
        equip(template),
        probe(template),
        append("object.spec.?volumes", "/spec/volumes", &template.volumes()?),
        groups(),
    ];
    parts.extend(pull_secrets(config));
    parts.push(prepend(&template.containers()?));
    parts.push(
        "(variables.canSignal && !variables.shared\n\
         ? [JSONPatch{op: 'add', path: '/spec/shareProcessNamespace', value: true}] : [])"
            .to_owned(),
    );
    // Only admission's own warnings stand there.
    parts.push(format!(
        "({warnings} in variables.annotations\n\
         ? [JSONPatch{{op: 'remove', path: '/metadata/annotations/' + jsonpatch.escapeKey({warnings})}}] : [])"
    ));
    // An injected pod is marked, too: its label is how people select it.
    Ok(format!(
        "size(variables.problems) > 0 ? [] :\n(variables.injected ? [] :\n{})\n+ {}",
        parts.join("\n+ "),
        mark()
    ))
}

/// The path of the container `c`, as long as its list has no new items.
const PATH: &str = "'/spec/' + (variables.main.exists(m, m.name == c.name) ? 'containers/' : 'initContainers/')\n\
                    + string((variables.main.exists(m, m.name == c.name) ? object.spec.containers : variables.init)\
                    .map(m, m.name).indexOf(c.name))";

/// The liveness probe of the first container with etcd.
fn probe(template: &Template) -> String {
    format!(
        "(variables.reload == 'probe' ? variables.etcd.filter(c, c.name == variables.etcdNames[0]).map(c,\n\
         JSONPatch{{op: 'add', path: {PATH} + '/livenessProbe', value: {}}}) : [])",
        template.probe()
    )
}

/// Environment and mount of each target.
fn equip(template: &Template) -> String {
    let (mount, base) = (template.mount(), PATH);
    format!(
        "variables.targets.transformList(i, c,\n\
         (size(variables.env[i]) == 0 ? []\n\
         : has(c.env) ? variables.env[i].map(e, JSONPatch{{op: 'add', path: {base} + '/env/-', value: e}})\n\
         : [JSONPatch{{op: 'add', path: {base} + '/env', value: variables.env[i]}}])\n\
         + (c.?volumeMounts.orValue([]).exists(m, m.name == {volume} && m.mountPath == variables.mountPath) ? []\n\
         : has(c.volumeMounts) ? [JSONPatch{{op: 'add', path: {base} + '/volumeMounts/-', value: {mount}}}]\n\
         : [JSONPatch{{op: 'add', path: {base} + '/volumeMounts', value: [{mount}]}}])\n\
         ).flatten()",
        volume = literal(names::VOLUME),
    )
}

/// Items at the end of a list that may be missing.
fn append(list: &str, path: &str, items: &[String]) -> String {
    let one = |item: &String| format!("JSONPatch{{op: 'add', path: {}, value: {item}}}", literal(&format!("{path}/-")));
    format!(
        "({list}.hasValue()\n? [{}]\n: [JSONPatch{{op: 'add', path: {}, value: [{}]}}])",
        items.iter().map(one).collect::<Vec<_>>().join(",\n"),
        literal(path),
        items.join(", "),
    )
}

/// The init container and the sidecar, before all others.
fn prepend(items: &[String]) -> String {
    let one = |(index, item): (usize, &String)| {
        format!("JSONPatch{{op: 'add', path: '/spec/initContainers/{index}', value: {item}}}")
    };
    format!(
        "(size(variables.init) > 0\n? [{}]\n: [JSONPatch{{op: 'add', path: '/spec/initContainers', value: [{}]}}])",
        items.iter().enumerate().map(one).collect::<Vec<_>>().join(",\n"),
        items.join(",\n"),
    )
}

/// The group that may read the files.
fn groups() -> String {
    let gid = names::FILES_GID;
    format!(
        "(!has(object.spec.securityContext)\n\
         ? [JSONPatch{{op: 'add', path: '/spec/securityContext', value: {{'supplementalGroups': [{gid}]}}}}]\n\
         : {gid} in object.spec.securityContext.?supplementalGroups.orValue([]) ? []\n\
         : has(object.spec.securityContext.supplementalGroups)\n\
         ? [JSONPatch{{op: 'add', path: '/spec/securityContext/supplementalGroups/-', value: {gid}}}]\n\
         : [JSONPatch{{op: 'add', path: '/spec/securityContext/supplementalGroups', value: [{gid}]}}])"
    )
}

/// The Secrets that the image is pulled with.
fn pull_secrets(config: &Config) -> Option<String> {
    if config.pull_secrets.is_empty() {
        return None;
    }
    let names = literals(config.pull_secrets.iter().map(String::as_str));
    let missing =
        format!("{names}.filter(n, !object.spec.?imagePullSecrets.orValue([]).exists(s, s.?name.orValue('') == n))");
    Some(format!(
        "(has(object.spec.imagePullSecrets)\n\
         ? {missing}.map(n, JSONPatch{{op: 'add', path: '/spec/imagePullSecrets/-', value: {{'name': n}}}})\n\
         : [JSONPatch{{op: 'add', path: '/spec/imagePullSecrets', value: {names}.map(n, {{'name': n}})}}])"
    ))
}

/// The label of an injected pod.
fn mark() -> String {
    let label = literal(names::INJECTED_LABEL);
    format!(
        "(variables.labels[?{label}].orValue('') == 'true' ? []\n\
         : has(object.metadata.labels)\n\
         ? [JSONPatch{{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey({label}), value: 'true'}}]\n\
         : [JSONPatch{{op: 'add', path: '/metadata/labels', value: {{{label}: 'true'}}}}])"
    )
}
