//! Siblings of command lines that people write: each kind with other flags, names, quotes and shells.

use super::*;

/// The ways in which a command line hands etcd its flags.
const KINDS: usize = 42;

/// A command line of a kind.
fn sibling(random: &mut Random, kind: usize) -> Case {
    let (flag, other) = (random.spelled(), random.flag());
    let name = random.pick(&["A", "FLAGS", "ETCD_EXTRA", "opts"]).to_owned();
    let shell = random.pick(&["sh", "bash"]).to_owned();
    let exec = random.pick(&["exec ", "", "exec  "]);
    let before = random.pick(&[
        "",
        "etcd --version\n",
        "set -e\n",
        "mkdir -p ./d && chmod 700 ./d\n",
        "echo \"starting $HOSTNAME\"\n",
    ]);
    let runner = random.pick(&[
        "gosu etcd",
        "su-exec etcd",
        "runuser -u etcd --",
        "sudo -u etcd",
        "tini --",
        "nice -n 5",
        "timeout 10",
        "sudo -E -u etcd",
        "s6-setuidgid etcd",
        "setpriv --reuid=1001 --clear-groups",
    ]);
    let (plain, quote) = (random.flag(), random.pick(&["\"", "'"]));
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let bash = |script: String| vec!["bash".to_owned(), "-c".to_owned(), format!("{before}{script}")];
    let script = |script: String| vec![shell.clone(), "-c".to_owned(), format!("{before}{script}")];
    let mut args = Vec::new();
    let command = match kind {
        0 => words(&format!("{runner} etcd {plain}")),
        1 => [words(&format!("{runner} {shell} -c")), vec![format!("{exec}etcd {flag} {other}")]].concat(),
        2 => script(format!("{exec}{runner} {shell} -c {quote}exec etcd {plain}{quote}")),
        3 => {
            script(format!("cat > ./run <<EOF\n#!/bin/sh\nexec etcd {plain}\nEOF\nchmod +x ./run\nexec ./run {other}"))
        }
        4 => script(format!(
            "cat > ./run <<'EOF'\n#!/bin/sh\n{name}='{plain}'\nexec etcd ${name} \"$@\"\nEOF\nchmod 755 ./run; {exec}{runner} ./run {other}"
        )),
        5 => script(format!("exec echo run etcd {plain}")),
        6 => script(format!("flags() {{ echo {quote}{plain}{quote}; }}\n{exec}etcd $(flags) {other}")),
        7 => script(format!("run() {{ {exec}etcd \"$@\"; }}\nrun {flag} {other}")),
        8 => script(format!("run() {{ {exec}etcd {flag} $1; }}\nrun {quote}{plain}{quote}")),
        9 => bash(format!("{name}=({flag} {plain})\n{exec}etcd \"${{{name}[@]}}\"")),
        10 => bash(format!("{name}=({plain})\n{name}+=({other})\n{exec}etcd ${{{name}[*]}}")),
        11 => bash(format!("{name}={quote}--name a{quote}\n{name}+={quote} {plain}{quote}\n{exec}etcd ${name}")),
        12 => bash(format!("mapfile -t {name} <<< {quote}{plain}{quote}; {exec}etcd \"${{{name}[@]}}\"")),
        13 => bash(format!("exec -a etcd-main etcd {flag} {other}")),
        14 => script(format!("{name}={quote}{plain}{quote}\neval {quote}exec etcd ${name}{quote}")),
        15 => script(format!("eval \"{name}='{plain}'\"; {exec}etcd ${name} {other}")),
        16 => {
            script(format!("for f in cert-file=/x key-file=/y; do {name}=\"${name} --$f\"; done\n{exec}etcd ${name}"))
        }
        17 => script(format!("for f in {plain}; do {name}=\"${name} $f\"; done\n{exec}etcd ${name}")),
        18 => script(format!("{exec}etcd ${{{name}:-{plain}}}")),
        19 => script(format!("T={}; {exec}etcd ${{T:+{plain}}} {other}", random.pick(&["1", "", "\"\""]))),
        20 => script(format!(": \"${{{name}:={plain}}}\"\n{exec}etcd ${name}")),
        21 => script(format!("export ETCD_CONFIG_FILE=/conf/etcd.yaml\n{exec}etcd {flag}")),
        22 => script(format!(
            "L=http://0.0.0.0:2379\n{exec}etcd --listen-client-urls $L --advertise-client-urls $L {flag}"
        )),
        23 => script(format!(
            "exec env ETCD_CERT_FILE=/x ETCD_KEY_FILE=/y etcd --name {}",
            random.pick(&["a", "$HOSTNAME"])
        )),
        24 => words(&format!("env ETCD_CERT_FILE=/x ETCD_KEY_FILE=/y etcd {plain}")),
        25 => script(format!("unset ETCD_CERT_FILE ETCD_KEY_FILE; {exec}etcd {flag} {other}")),
        26 => {
            script(format!("export ETCD_CERT_FILE={} ; {exec}etcd {other}", random.pick(&["/e", "\"\"", "$HOSTNAME"])))
        }
        27 => script(format!("exec env -i PATH=$PATH etcd {plain}")),
        28 => script(format!("{exec}etcd \"--name=a\" \"$ENVIRONMENT\" {other}")),
        29 => script(format!("BIN=etcd; {exec}${{BIN}} {flag}")),
        30 => script(format!("{exec}$({} etcd) {flag}", random.pick(&["which", "command -v"]))),
        31 => script(format!("w=nice; {exec}$w -n 5 etcd {flag}")),
        32 => script(format!("if [ -f /nope ]; then {exec}etcd {plain}; else {exec}etcd {flag} {other}; fi")),
        33 => script(format!(
            "case $HOSTNAME in etcd-0) {name}='{plain}';; *) {name}='{other}';; esac\n{exec}etcd ${name}"
        )),
        34 => script(format!("echo {quote}etcd {plain}{quote} | {shell}")),
        35 => script(format!("etcd {flag} & wait $!")),
        36 | 37 => {
            args = vec![plain.clone(), other.clone()];
            let all = ["\"$@\"", "$@", "$*", "\"$1\" $2", "${@:1}"];
            let mut command = script(format!("{exec}etcd {}", random.pick(&all)));
            command.push("--".to_owned());
            command
        }
        38 => {
            args = vec!["$(ENVIRONMENT)".to_owned(), other.clone()];
            vec!["etcd".to_owned(), plain.clone()]
        }
        39 => script(format!("{exec}etcd $(ENVIRONMENT) {flag}")),
        40 => script(format!("{exec}etcd --name a \\\n  {flag}   # TLS {other}\n")),
        _ => script(format!("set -- {flag} {other}\n[ -d / ] && set -- \"$@\" {plain}\n{exec}etcd \"$@\"")),
    };
    let environment = if random.below(3) == 0 { random.flag() } else { "/data".to_owned() };
    Case { tool: Tool::Etcd, command, args, environment }
}

#[test]
fn no_sibling_of_a_known_command_line_gives_etcd_an_option_twice() {
    let mut random = Random(SEED ^ 7);
    let cases: Vec<Case> = (0..8 * KINDS).map(|at| sibling(&mut random, at % KINDS)).collect();
    let Tried { mut faults, tried, injected: done, .. } = try_all("siblings", &cases);
    // A config file's options are not in the environment.
    faults.retain(|fault| fault.contains("CONFLICT"));
    assert!(faults.is_empty(), "{} faults, such as\n{}", faults.len(), faults.join("\n"));
    assert!(tried >= 300, "only {tried} in {TIME:?}");
    assert!(done * 10 >= tried * 8, "only {done} of {tried} are injected into");
}
