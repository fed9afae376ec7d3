//! Why a pod is refused, as CEL: each annotation that does not parse, and everything that the policies cannot do.
//!
//! No value of the pod stands in a reason: a line break would make the API server drop the whole message.

use etcd_tls_contract::{
    duration::{MAX_DURATION, MIN_DURATION},
    key::KeyAlgorithm,
    names,
    role::Role,
    settings::{
        CLOSED_DIRECTORIES, FILES, KEYS, LOG_LEVELS, MAX_VALUE, OUR_DIRECTORIES, SHARED_DIRECTORIES, SIGNALS,
        SYSTEM_DIRECTORIES,
    },
};

use super::{
    pod::{IS_ETCD, NEVER, OWN_RESTART_POLICY, line},
    room,
    settings::{DURATION, PORT, RESOURCE},
    template::Template,
    text::{has, literal, literals, only_if},
};
use crate::injection::{contract::ALLOWED, urls};

/// The next step of a person where the policies cannot inject.
const INSTEAD: &str = "run etcd-tls-webhook inject on the manifest, or install the webhook (docs/without-webhook.md)";
/// The most entries of a list.
const MAX_ENTRIES: usize = 64;
/// A DNS label.
const LABEL: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// A DNS name whose last label is no number, or a wildcard for the first label of one that has two.
const DNS_NAME: &str = "^(\\*\\.([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+|([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)*)\
                        [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// Where a sidecar reaches its own etcd.
const LISTENER: &str =
    "^https://(\\$\\(POD_IP\\)|\\[\\$\\(POD_IP\\)\\]|\\[[0-9a-f:]{2,39}\\]|[A-Za-z0-9._-]{1,253}):[1-9][0-9]{0,4}/?$";

/// A list of the reasons, empty where there is none. Of a pod that comes injected, whoever injected has judged the other annotations.
pub(super) fn problems(template: &Template) -> String {
    let structure = structure(template).into_iter().map(|(condition, why)| given(&condition, &why));
    let whole: Vec<String> = values().into_iter().chain(structure).collect();
    let mut parts = always();
    parts.push(format!("(variables.injected ? {}\n: {})", injected(template), whole.join("\n+ ")));
    parts.join("\n+ ")
}

fn given(condition: &str, why: &str) -> String {
    only_if(condition, &literal(why))
}

/// A list as all annotations have it: no empty entry, none twice.
fn bad_list(list: &str, entry: &str) -> String {
    format!("size({list}) > {MAX_ENTRIES} || size({list}.distinct()) != size({list}) || !{list}.all(e, {entry})")
}

fn annotated(key: &str, bad: &str, write: &str) -> String {
    given(&format!("{} && ({bad})", has(key)), &format!("annotation {}{key}: {write}", names::ANNOTATION_PREFIX))
}

/// The conditions for each pod that has opted in.
fn always() -> Vec<String> {
    let known: Vec<&str> = KEYS.into_iter().chain(["warnings", "traceparent"]).collect();
    let known = literals(known);
    let (label, dynamic) = (literal(names::LABEL), literal(names::DYNAMIC));
    let long = format!(
        "variables.keys.exists(k, k != 'renew' && size(variables.annotations['etcd-tls.dev/' + k]) > {MAX_VALUE})"
    );
    let roles = literals(Role::ALL.map(Role::as_str));
    vec![
        format!(
            "variables.keys.filter(k, !(k in {known})).map(k, 'annotation etcd-tls.dev/' + k + {})",
            literal(&format!(" is not known; known are {}", KEYS.join(", ")))
        ),
        given(
            &format!("variables.labels[?{label}].orValue({dynamic}) != {dynamic}"),
            &format!("label {}: write {} or {}", names::LABEL, names::DYNAMIC, names::DISABLED),
        ),
        given(&long, &format!("an annotation of etcd-tls.dev is longer than {MAX_VALUE} bytes")),
        annotated(
            "roles",
            &bad_list("variables.givenRoles", &format!("e in {roles}")),
            "write one or more of peer,server,client,metrics, each once, with a comma alone between them",
        ),
        annotated(
            "cluster",
            &format!("!variables.cluster.matches({})", literal(LABEL)),
            "write at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
        ),
    ]
}

/// The other annotations, as `Settings::parse` judges them.
fn values() -> Vec<String> {
    let annotated = |key: &str, bad: String, write: String| annotated(key, &bad, &write);
    let containers = "variables.wanted";
    let ours = literals([names::INIT_CONTAINER, names::SIDECAR_CONTAINER]);
    let keys = KeyAlgorithm::ALL.map(KeyAlgorithm::as_str);
    let signals: Vec<String> = SIGNALS.iter().map(|signal| format!("signal:{signal}")).collect();
    let reloads: Vec<&str> = ["auto", "probe", "none"].into_iter().chain(signals.iter().map(String::as_str)).collect();
    let matches = |pattern: &str| format!("e.matches({})", literal(pattern));
    let levels = LOG_LEVELS.join("|");
    vec![
        annotated(
            "containers",
            bad_list(containers, &format!("{} && !(e in {ours})", matches(LABEL))),
            "write names of the pod's own containers, each once, with a comma alone between them".to_owned(),
        ),
        annotated(
            "issuer",
            "variables.annotations['etcd-tls.dev/issuer'] != 'csr'".to_owned(),
            format!("without the webhook it is csr, since policies of admission do not see which issuers are allowed here; {INSTEAD}"),
        ),
        annotated(
            "duration",
            format!(
                "variables.duration == '' || !variables.duration.matches({}) || variables.seconds < {} || variables.seconds > {}",
                literal(DURATION),
                MIN_DURATION.as_secs(),
                MAX_DURATION.as_secs()
            ),
            "write whole numbers with the units h, m, s in that order, such as 24h or 1h30m; at least 10m, at most 8784h"
                .to_owned(),
        ),
        annotated("key", format!("!(variables.key in {})", literals(keys)), format!("write one of {}", keys.join(", "))),
        annotated(
            "key-rotation",
            "!(variables.keyRotation in ['always', 'on-ca-change'])".to_owned(),
            "write always or on-ca-change".to_owned(),
        ),
        annotated(
            "extra-sans",
            bad_list(
                "variables.givenSans",
                &format!(
                    "isIP(e) ? ip.isCanonical(e) && (ip(e).isGlobalUnicast() || ip(e).isLoopback() || \
                     ip(e).isLinkLocalUnicast()) : size(e) <= 253 && {} && !e.matches('(^|\\\\.)[0-9]+$')",
                    matches(DNS_NAME)
                ),
            ),
            "write DNS names of a-z, 0-9, - and dots, and addresses of one host in their canonical form, each once, with a comma \
             alone between them"
                .to_owned(),
        ),
        annotated(
            "extra-sans",
            "[4, 6].exists(f, size(variables.givenSans.filter(s, isIP(s) && ip(s).family() == f)) > 1)".to_owned(),
            format!("without the webhook one address of IPv4 and one of IPv6 are taken; {INSTEAD}"),
        ),
        annotated(
            "user",
            "!variables.user.matches('^[A-Za-z0-9._:@/-]{1,64}$') || variables.user.startsWith('system:') || !variables.client"
                .to_owned(),
            "write 1 to 64 of letters, digits and . _ : @ / -, not beginning with system:, for a pod with the role client"
                .to_owned(),
        ),
        annotated("mount-path", mount_path(), format!("write a directory of its own, such as {}", names::DEFAULT_MOUNT_PATH)),
        annotated(
            "admin-port",
            format!(
                "!variables.givenPort.matches({}) || variables.adminPort < 1024 || variables.adminPort > 65535",
                literal(PORT)
            ),
            "write a port from 1024 to 65535".to_owned(),
        ),
        annotated("reload", format!("!(variables.reload in {})", literals(reloads)), format!("write auto, probe, none or signal:<SIG> with one of {}", SIGNALS.join(", "))),
        annotated(
            "reload",
            "variables.member && variables.reload in ['signal:SIGHUP', 'signal:SIGQUIT']".to_owned(),
            "the signal kills etcd at once, without a shutdown; write auto, probe, none or signal:SIGTERM".to_owned(),
        ),
        annotated("resources", resources(), "write entries such as requests.cpu=10m,limits.memory=64Mi: requests or limits of cpu, memory and ephemeral-storage, each once, with at most three digits behind a point, and no request above its limit".to_owned()),
        annotated(
            "log-level",
            format!(
                "size(variables.logLevel) > 256 || {}",
                bad_list(
                    "variables.logLevel.split(',')",
                    &matches(&format!("^([A-Za-z0-9_:]+=)?({levels})$"))
                )
            ),
            format!("write a level ({}) or target=level", LOG_LEVELS.join(", ")),
        ),
        annotated("options", "!(variables.options in ['auto', 'env', 'none'])".to_owned(), "write auto, env or none".to_owned()),
        annotated("client-url", bad_url("variables.clientUrl"), listener()),
        annotated("peer-url", bad_url("variables.peerUrl"), listener()),
        annotated("revocation", "!(variables.revocation in ['on', 'off'])".to_owned(), "write on or off".to_owned()),
        annotated("trust", "true".to_owned(), "is for the issuers of others; remove it".to_owned()),
    ]
}

fn listener() -> String {
    "write a URL with a port, such as https://127.0.0.1:2379 or https://$(POD_IP):2379".to_owned()
}

fn bad_url(url: &str) -> String {
    format!(
        "!{url}.matches({}) || {url}.matches(':(6553[6-9]|655[4-9][0-9]|65[6-9][0-9]{{2}}|6[6-9][0-9]{{3}}|[7-9][0-9]{{4}})/?$')",
        literal(LISTENER)
    )
}

fn mount_path() -> String {
    let path = "variables.mountPath";
    let closed: Vec<&str> = CLOSED_DIRECTORIES.into_iter().chain(FILES).collect();
    let system: Vec<&str> = SYSTEM_DIRECTORIES.into_iter().chain(SHARED_DIRECTORIES).collect();
    format!(
        "size({path}) > 512 || !{path}.matches('^(/[A-Za-z0-9._-]+)+$')\n\
         || {path}.split('/').exists(p, p in ['.', '..'])\n\
         || {path} in {} || {}.exists(d, ({path} + '/').startsWith(d + '/'))\n\
         || {}.exists(d, ({path} + '/').startsWith(d + '/') || d.startsWith({path} + '/'))",
        literals(system),
        literals(closed),
        literals(OUR_DIRECTORIES),
    )
}

/// A name twice, an entry of another form, or a request above a limit that are both named.
fn resources() -> String {
    let entries = "variables.givenResources";
    let value = |of: &str| format!("{entries}.filter(r, r.startsWith('{of}.' + n + '='))[0].split('=')[1]");
    let (request, limit) = (value("requests"), value("limits"));
    let both = format!(
        "['requests.', 'limits.'].all(k, {entries}.exists(r, r.startsWith(k + n + '=') && !r.endsWith('=none')))"
    );
    format!(
        "{} || size({entries}.map(r, r.split('=')[0]).distinct()) != size({entries})\n\
         || ['cpu', 'memory', 'ephemeral-storage'].exists(n, {both} && quantity({request}).isGreaterThan(quantity({limit})))",
        bad_list(entries, &format!("e.matches({}) && size(e.split('=')[1]) <= 24", literal(RESOURCE)))
    )
}

/// The reasons against an injection, each with its condition.
fn structure(template: &Template) -> Vec<(String, String)> {
    let volumes = literals(template.volume_names());
    let ours = literals([names::INIT_CONTAINER, names::SIDECAR_CONTAINER]);
    let several = "size(variables.targets) > 1 && variables.member";
    let word = |names: &str| format!("(^|[^A-Za-z0-9_-])({names})($|[^A-Za-z0-9_.-])");
    let mut all = vec![
        (
            "!(variables.options in ['env', 'none'])".to_owned(),
            format!(
                "policies of admission do not read command lines: annotate etcd-tls.dev/options: env where etcd gets no TLS flag, or \
                 none where the pod passes its flags itself; or {INSTEAD}"
            ),
        ),
        ("object.spec.?os.?name.orValue('') == 'windows'".to_owned(), "spec.os.name is windows: etcd-tls runs on Linux".to_owned()),
        (
            "object.spec.?nodeSelector[?'kubernetes.io/os'].orValue('') == 'windows'".to_owned(),
            "spec.nodeSelector[kubernetes.io/os] is windows: etcd-tls runs on Linux".to_owned(),
        ),
        (
            format!("(variables.init + object.spec.containers).exists(c, c.name in {ours})"),
            format!("a container has the name {} or {}; give it another name", names::INIT_CONTAINER, names::SIDECAR_CONTAINER),
        ),
        (
            format!("object.spec.?volumes.orValue([]).exists(v, v.name in {volumes})"),
            format!("a volume has the name {}; give it another name", template.volume_names().join(" or ")),
        ),
        (
            "size(variables.targets) != size(variables.wanted)".to_owned(),
            "annotation etcd-tls.dev/containers: the pod has no such container".to_owned(),
        ),
        (
            "size(variables.wanted) == 0".to_owned(),
            format!("which container is etcd's? None is named {}; name it in annotation etcd-tls.dev/containers", names::ETCD_CONTAINER),
        ),
        (
            format!(
                "{several} && variables.targets.exists(c, !(c.name in variables.memberNames)\n\
                 && variables.targetLines[variables.wanted.indexOf(c.name)].matches({}))",
                literal(&word("etcd"))
            ),
            format!("which of the containers run etcd is not told without reading their command lines; {INSTEAD}"),
        ),
        (
            format!(
                "!({}) && variables.member && size(variables.main) == 1 && size(variables.sidecarsWithEtcd) == 0\n\
                 && !(variables.main + variables.sidecars).exists(c, c.name == {})\n\
                 && !variables.main.exists(c, {IS_ETCD}) && variables.sidecars.exists(c, ({}).matches({}))",
                has("containers"),
                literal(names::ETCD_CONTAINER),
                line("c"),
                literal(&word("etcd"))
            ),
            format!("which of the containers run etcd is not told without reading their command lines; {INSTEAD}"),
        ),
        (
            format!("variables.server && !({})", has("client-url")),
            "annotate etcd-tls.dev/client-url with where etcd listens for clients, as a container of the pod reaches it, such as https://127.0.0.1:2379".to_owned(),
        ),
        (
            format!("variables.peer && !({})", has("peer-url")),
            "annotate etcd-tls.dev/peer-url with where etcd listens for members, as a container of the pod reaches it, such as https://127.0.0.1:2380".to_owned(),
        ),
    ];
    all.extend(lines(template));
    all.extend(room::room());
    all.extend(restarts());
    all.extend(conflicts());
    all
}

/// The settings in command lines and variables of etcd that matter.
fn lines(template: &Template) -> Vec<(String, String)> {
    let of = |etcd: bool| {
        let units = template.units.iter().filter(move |(role, _)| (*role != "client") == etcd);
        units.flat_map(|(_, unit)| unit).map(|option| option.name.as_str()).collect::<Vec<_>>()
    };
    let flags = |names: &[&str], prefix: &str| {
        let flag = |name: &&str| name.trim_start_matches(prefix).to_ascii_lowercase().replace('_', "-");
        names.iter().map(flag).collect::<Vec<_>>().join("|")
    };
    let (etcd, client) = (of(true), of(false));
    let line = |pattern: &str, of: &str| {
        format!(
            "variables.options == 'env' && variables.targets.exists(c, {of}\n\
             && variables.targetLines[variables.wanted.indexOf(c.name)].matches({}))",
            literal(pattern)
        )
    };
    let flagged = |flags: &str| format!("(^|[^A-Za-z0-9_-])--?({flags})($|[^A-Za-z0-9_-])");
    let member = "c.name in variables.memberNames";
    let allowed = ALLOWED.map(|option| urls::variable("ETCD", option));
    let stops = |tool: &str| {
        format!(
            "annotation etcd-tls.dev/options is env, but a command line names a certificate by flag or variable, and {tool} stops \
             at both: leave it out, or write options: none; or {INSTEAD}"
        )
    };
    vec![
        (line(&flagged(&flags(&etcd, "ETCD_")), member), stops("etcd")),
        (line(&flagged(&flags(&client, "ETCDCTL_")), "variables.client"), stops("etcdctl")),
        (line(&format!("({})", etcd.join("|")), member), stops("etcd")),
        (line(&format!("({})", client.join("|")), "variables.client"), stops("etcdctl")),
        (
            line("(^|[ \t\n;&|/(])env +(-[A-Za-z]*i|- |--ignore-environment)", "true"),
            format!("annotation etcd-tls.dev/options is env, but a command line takes the environment away by env -i; {INSTEAD}"),
        ),
        (
            format!(
                "variables.options == 'env' && variables.targets.exists(c, {member} && (c.?env.orValue([]).exists(e, e.name == \
                 'ETCD_CONFIG_FILE')\n|| variables.targetLines[variables.wanted.indexOf(c.name)].matches({})))",
                literal(&format!("{}|ETCD_CONFIG_FILE", flagged("config-file")))
            ),
            "a config file of etcd overrides the environment: write options: none, and name the certificates in it".to_owned(),
        ),
        (
            format!(
                "variables.targets.exists(c, {member} && (c.?env.orValue([]).exists(e, e.name in {})\n\
                 || variables.targetLines[variables.wanted.indexOf(c.name)].matches({})))",
                literals(allowed.iter().map(String::as_str)),
                literal(&flagged(&ALLOWED.join("|")))
            ),
            format!("etcd lets in certificates of one name alone by --{}: leave it out; the CA signs for this cluster alone", ALLOWED.join(", --")),
        ),
        (
            "variables.targets.exists(c, c.name in variables.memberNames\n\
             && (c.?env.orValue([]).exists(e, e.name == 'ETCD_LISTEN_METRICS_URLS' && !e.?value.orValue('').startsWith('http://'))\n\
             || variables.targetLines[variables.wanted.indexOf(c.name)].matches('listen-metrics-urls[= ]*[^ ]*https:|LISTEN_METRICS_URLS')))"
                .to_owned(),
            format!("etcd may listen for metrics with TLS, and the policies do not tell the sidecar where; {INSTEAD}"),
        ),
    ]
}

/// Restarts that the policies cannot arrange.
fn restarts() -> Vec<(String, String)> {
    let mut all = vec![
        (
            format!("variables.reload == 'probe' && {NEVER}"),
            "annotation etcd-tls.dev/reload: probe: restartPolicy is Never, so what it ends stays away".to_owned(),
        ),
        (
            format!("variables.reload == 'probe' && {OWN_RESTART_POLICY}"),
            "annotation etcd-tls.dev/reload: probe: the container with etcd has a restartPolicy of its own, so what it ends stays away"
                .to_owned(),
        ),
        (
            "variables.reload == 'probe' && object.spec.?restartPolicy.orValue('') == 'OnFailure' && !variables.shared\n\
             && variables.etcd.exists(c, !has(c.restartPolicy))"
                .to_owned(),
            "annotation etcd-tls.dev/reload: probe: restartPolicy is OnFailure, and an etcd that is process 1 of its container ends \
             with code 0, so kubelet does not start it again; write restartPolicy: Always"
                .to_owned(),
        ),
        (
            "variables.reload == 'probe' && size(variables.etcd) > 0 && has(variables.etcd[0].livenessProbe)".to_owned(),
            format!("annotation etcd-tls.dev/reload: probe: the container has a liveness probe of its own, which would be replaced; {INSTEAD}"),
        ),
        (
            "variables.reload == 'probe' && size(variables.etcd) > 0\n\
             && !(variables.main + variables.sidecars).exists(c, c.name == variables.etcdNames[0])"
                .to_owned(),
            "annotation etcd-tls.dev/reload: probe: the container with etcd is an init container".to_owned(),
        ),
    ];
    all.push((
        "variables.reload.startsWith('signal:') && variables.obstacle != ''".to_owned(),
        "annotation etcd-tls.dev/reload: the signal cannot be delivered, see hostPID, shareProcessNamespace, restartPolicy and each \
         container's runAsUser; write auto, probe or none, or give each container a runAsUser of its own"
            .to_owned(),
    ));
    all
}

/// Mounts and ports in use.
fn conflicts() -> Vec<(String, String)> {
    let mine = "variables.mountPath";
    let with_slash = "(m.mountPath.endsWith('/') ? m.mountPath : m.mountPath + '/')";
    let read_only = "(m.?readOnly.orValue(false) || object.spec.?volumes.orValue([]).exists(v, v.name == m.name\n\
                     && (has(v.configMap) || has(v.secret) || has(v.projected) || has(v.downwardAPI))))";
    vec![
        (
            format!(
                "variables.targets.exists(c, c.?volumeMounts.orValue([]).exists(m, {with_slash}.startsWith({mine} + '/')\n\
                 || ({mine}.startsWith({with_slash}) && {read_only})))"
            ),
            "a mount of the container is where the certificates go, or is read-only and holds that; choose another etcd-tls.dev/mount-path"
                .to_owned(),
        ),
        (
            "variables.own.exists(c, c.?ports.orValue([]).exists(p, p.containerPort == variables.adminPort && p.?protocol.orValue('TCP') == 'TCP'))\n\
             || variables.targets.exists(c, (variables.targetLines[variables.wanted.indexOf(c.name)] + ' '\n\
             + c.?env.orValue([]).filter(e, e.name.startsWith('ETCD_LISTEN')).map(e, e.?value.orValue('')).join(' '))\n\
             .matches(':' + string(variables.adminPort) + '($|[^0-9])'))"
                .to_owned(),
            "the port of etcd-tls-sidecar is in use in the pod; choose another etcd-tls.dev/admin-port".to_owned(),
        ),
    ]
}

/// Containers and volumes of our names that are not ours, in a pod that comes injected.
fn injected(template: &Template) -> String {
    let (init, sidecar) = (literal(names::INIT_CONTAINER), literal(names::SIDECAR_CONTAINER));
    let all = literals(template.volume_names());
    let of_kubelet = literals([names::VOLUME, names::STATE_VOLUME, names::TOKEN_VOLUME]);
    // With trust: issuer the bundle comes with the certificate.
    let of_issuer = format!("variables.annotations[?'{}trust'].orValue('') == 'issuer'", names::ANNOTATION_PREFIX);
    let trust_volume = literal(names::TRUST_VOLUME);
    let volumes =
        format!("(variables.ofKubelet ? {of_kubelet} : {all}.filter(n, n != {trust_volume} || !({of_issuer})))");
    let volume = |name: &str, kind: &str| format!("(v.name == {} && has(v.{kind}))", literal(name));
    let trust = ["configMap", "projected"].map(|kind| volume(names::TRUST_VOLUME, kind)).join(" || ");
    let certificates = format!(
        "{} || {} || (variables.ofKubelet && {})",
        volume(names::STATE_VOLUME, "emptyDir"),
        volume(names::VOLUME, "emptyDir"),
        volume(names::VOLUME, "projected")
    );
    given(
        &format!(
            "variables.init.exists(c, c.name in [{init}, {sidecar}] && (has(c.command) || has(c.lifecycle) || has(c.envFrom)\n\
             || c.?args[?0].orValue('') != (c.name == {init} ? 'init' : 'run')\n\
             || !(('--roles=' + variables.roles.join(',')) in c.?args.orValue([]))))\n\
             || object.spec.containers.exists(c, c.name in [{init}, {sidecar}])\n\
             || !{volumes}.all(n, object.spec.?volumes.orValue([]).exists(v, v.name == n && ({} || {} || {})))",
            certificates,
            trust,
            volume(names::TOKEN_VOLUME, "projected"),
        ),
        "a container or volume with a name of etcd-tls is not etcd-tls's own, or has other settings than the annotations; give it \
         another name, or run etcd-tls-webhook inject on the manifest anew",
    )
}
