//! Command lines from the field by name, with what is right for each. `@BIN@` is the folder of the programs, `@WORK@` one to
//! write to.

use super::*;

/// The container's command, its arguments and its variable.
pub(super) type Known =
    (&'static str, &'static [&'static str], &'static [&'static str], Option<(&'static str, &'static str)>, Right);

/// What is right.
#[derive(Clone, Copy, Debug)]
pub(super) enum Right {
    /// It is injected into, and a real shell gives no option twice.
    Injected,
    /// It is refused in these words: a reader cannot know, or its etcd would lack what it needs.
    Refused(&'static str),
}
pub(super) use Right::{Injected, Refused};

const KNOWN: &[Known] = &[
    ("gosu-script", &["gosu", "etcd", "@WORK@/run"], &[], None, Refused("a program that can run etcd as it likes")),
    ("exec-tool-etcd", &["sh", "-c", "exec echo run etcd --data-dir=/d"], &[], None, Injected),
    ("tini-gosu", &["tini", "--", "gosu", "etcd", "sh", "-c", "etcd --cert-file=/x"], &[], None, Injected),
    ("fn-flags", &["bash", "-c", "flags() { echo \"--cert-file=/x\"; }\nexec etcd $(flags)"], &[], None, Injected),
    ("array-join", &["bash", "-c", "A=(--cert-file=/x)\nexec etcd ${A[*]}"], &[], None, Injected),
    (
        "array",
        &["bash", "-c", "ARGS=(--name=a --cert-file=/x --key-file=/y)\nexec etcd \"${ARGS[@]}\""],
        &[],
        None,
        Injected,
    ),
    (
        "array-append",
        &["bash", "-c", "ARGS=\"--name a\"\nARGS+=\" --cert-file=/x\"\nexec etcd $ARGS"],
        &[],
        None,
        Injected,
    ),
    ("function-args", &["sh", "-c", "run() { etcd \"$@\"; }\nrun --name a --cert-file=/x"], &[], None, Injected),
    ("gosu-sh", &["gosu", "etcd", "sh", "-c", "exec etcd --cert-file=/x"], &[], None, Injected),
    (
        "gosu-sh-in-sh",
        &[
            "sh",
            "-c",
            "chown etcd @WORK@ 2>/dev/null; exec su-exec etcd sh -c \"exec etcd --cert-file=/x --key-file=/y\"",
        ],
        &[],
        None,
        Injected,
    ),
    ("gosu-etcd", &["gosu", "etcd", "etcd", "--cert-file=/x"], &[], None, Injected),
    ("gosu-plain-sh", &["gosu", "nobody", "sh", "-c", "exec etcd --cert-file=/x"], &[], None, Injected),
    (
        "sudo-etcd",
        &["sh", "-c", "sudo -u etcd etcd --cert-file=/x"],
        &[],
        None,
        Refused("runs sudo, which clears the environment"),
    ),
    ("runuser", &["sh", "-c", "exec runuser -u etcd -- sh -c \"etcd --cert-file=/x\""], &[], None, Injected),
    ("openshift-start", &["bash", "-c", "exec echo openshift start etcd --config=/x"], &[], None, Injected),
    ("eval", &["sh", "-c", "etcd --version\nFLAGS=\"--cert-file=/x\"\neval \"exec etcd $FLAGS\""], &[], None, Injected),
    ("eval-only", &["sh", "-c", "FLAGS=\"--cert-file=/x\"\neval \"exec etcd $FLAGS\""], &[], None, Injected),
    (
        "for-append",
        &["sh", "-c", "for f in cert-file=/x key-file=/y; do A=\"$A --$f\"; done\netcd $A"],
        &[],
        None,
        Injected,
    ),
    (
        "default-mod",
        &["sh", "-c", "exec etcd ${ETCD_OPTS:---cert-file=/x}"],
        &[],
        None,
        Refused("gives etcd the words ${ETCD_OPTS}, which may hold any flags"),
    ),
    ("plus-mod", &["sh", "-c", "T=1; exec etcd ${T:+--cert-file=/x}"], &[], None, Injected),
    ("script-config-file", &["sh", "-c", "export ETCD_CONFIG_FILE=/conf/etcd.yaml\nexec etcd"], &[], None, Injected),
    (
        "listen-var",
        &["sh", "-c", "L=http://0.0.0.0:2379\nexec etcd --listen-client-urls $L --advertise-client-urls $L"],
        &[],
        None,
        Injected,
    ),
    ("env-cmd", &["sh", "-c", "exec env ETCD_CERT_FILE=/x ETCD_KEY_FILE=/y etcd --name a"], &[], None, Injected),
    ("env-cmd-argv", &["env", "ETCD_CERT_FILE=/x", "ETCD_KEY_FILE=/y", "etcd", "--name", "a"], &[], None, Injected),
    (
        "unset-env",
        &["sh", "-c", "unset ETCD_CERT_FILE ETCD_KEY_FILE; exec etcd --cert-file=/x --key-file=/y"],
        &[],
        None,
        Injected,
    ),
    (
        "env-i",
        &["sh", "-c", "exec env -i PATH=$PATH etcd --name a"],
        &[],
        None,
        Refused("runs env, which clears the environment"),
    ),
    (
        "quoted-var-multi",
        &["sh", "-c", "exec etcd \"--name=a\" \"$EXTRA\""],
        &[],
        Some(("EXTRA", "--cert-file=/x")),
        Injected,
    ),
    (
        "heredoc-chmod-run",
        &[
            "sh",
            "-c",
            "etcd --version\ncat > @WORK@/run <<EOF\n#!/bin/sh\nexec etcd --cert-file=/x\nEOF\nchmod +x @WORK@/run\nexec @WORK@/run",
        ],
        &[],
        None,
        Injected,
    ),
    ("var-prog", &["sh", "-c", "BIN=@BIN@/etcd; exec $BIN --cert-file=/x"], &[], None, Injected),
    ("cmd-subst-prog", &["sh", "-c", "exec $(which etcd) --cert-file=/x"], &[], None, Injected),
    ("alias-wrap", &["sh", "-c", "w=nice; exec $w -n 5 etcd --cert-file=/x"], &[], None, Injected),
    (
        "if-branches",
        &[
            "sh",
            "-c",
            "if [ -f /nope ]; then exec etcd --name a; else exec etcd --name b --cert-file=/x --key-file=/y; fi",
        ],
        &[],
        None,
        Injected,
    ),
    ("pipe-sh", &["sh", "-c", "etcd --version; echo \"etcd --cert-file=/x\" | sh"], &[], None, Injected),
    ("exec-a", &["bash", "-c", "exec -a etcd-main etcd --cert-file=/x"], &[], None, Injected),
    ("bg-wait", &["sh", "-c", "etcd --cert-file=/x & wait $!"], &[], None, Injected),
    ("args-dollar-at", &["sh", "-c", "exec etcd \"$@\"", "--"], &["--cert-file=/x"], None, Injected),
    ("envvar-expand", &["sh", "-c", "exec etcd $(X)"], &[], Some(("X", "--cert-file=/x")), Injected),
    ("mapfile", &["bash", "-c", "mapfile -t A <<< \"--cert-file=/x\"; exec etcd \"${A[@]}\""], &[], None, Injected),
    ("comment-in-cont", &["sh", "-c", "etcd --name a \\\n  --cert-file=/x   # TLS\n"], &[], None, Injected),
    ("timeout", &["timeout", "10", "etcd", "--cert-file=/x"], &[], None, Injected),
];

/// Tries each command line of a table; returns the faults, and how many are refused.
pub(super) fn faults(name: &str, table: &[Known]) -> (Vec<String>, usize) {
    let laboratory = Laboratory::new(name);
    let (mut faults, mut refused) = (Vec::new(), 0);
    for (at, (name, command, args, variable, right)) in table.iter().enumerate() {
        let directory = laboratory.case(at);
        let path = |name: &str| directory.join(name).display().to_string();
        let here = |words: &[&str]| -> Vec<String> {
            words.iter().map(|w| w.replace("@BIN@", &path("bin")).replace("@WORK@", &path("work"))).collect()
        };
        let mut container = json!({"name": "etcd", "image": "etcd", "command": here(command), "args": here(args)});
        if let Some((name, value)) = variable {
            container["env"] = json!([{"name": name, "value": value}]);
        }
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}});
        match (inject(&pod.to_string(), &options()), right) {
            (Ok(done), Injected) => {
                let pod: Value = serde_json::from_str(&done.text).unwrap();
                let said = run_in(&directory, &pod["spec"]["containers"][0]);
                if said.contains("CONFLICT") || (!said.contains("RAN etcd") && !command.concat().contains("exec echo"))
                {
                    faults.push(format!("{name}: {said:?}"));
                }
            }
            (Err(error), Refused(why)) if error.to_string().contains(why) => refused += 1,
            (Ok(_), Refused(_)) => faults.push(format!("{name}: is injected into")),
            (Err(error), _) => faults.push(format!("{name}: {error}")),
        }
    }
    (faults, refused)
}

#[test]
fn each_command_line_from_the_field_becomes_what_is_right_for_it() {
    let (faults, refused) = faults("known", KNOWN);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!((KNOWN.len(), refused), (40, 4));
}
