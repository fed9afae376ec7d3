#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;
use crate::injection::view::{self, List};

mod ending;

fn read(container: &Value) -> Options {
    let container = crate::injection::json::borrowed(container);
    Options::read(&Container {
        name: "etcd",
        list: List::Main,
        index: 0,
        object: container.as_object().unwrap(),
        room: view::ROOM,
    })
}

fn command(words: &[&str]) -> Options {
    read(&json!({"name": "etcd", "command": words}))
}

fn text(s: &str) -> Option<Setting> {
    Some(Setting::Text(s.to_owned()))
}

#[test]
fn every_spelling_of_a_flag() {
    let options =
        command(&["/usr/local/bin/etcd", "--cert-file=/a", "-key-file", "/b", "--client-cert-auth", "--name", "x"]);
    assert_eq!(options.undetermined, None);
    assert!(options.runs_etcd());
    assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"));
    assert_eq!(options.flag(Tool::Etcd, "key-file"), text("/b"));
    assert_eq!(options.flag(Tool::Etcd, "client-cert-auth"), text("true"));
    assert_eq!(options.flag(Tool::Etcd, "name"), text("x"));
    assert_eq!(options.flag(Tool::Etcd, "peer-cert-file"), None);
    assert_eq!(options.flag(Tool::Etcd, "trusted-ca-file"), None);
}

/// A label's value is a name, and an annotation's any text.
#[test]
fn a_label_holds_no_flags() {
    let by = |path: &str| {
        let env = json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]);
        read(&json!({"name": "etcd", "command": ["sh", "-c", "exec etcd --name=a-$X"], "env": env})).undetermined
    };
    assert_eq!(by("metadata.labels['apps.kubernetes.io/pod-index']"), None);
    assert!(by("metadata.annotations['a']").is_some());
}

/// Of an image whose program is etcdctl, the words are etcdctl's.
#[test]
fn the_words_of_an_image_of_etcdctl_are_etcdctls() {
    for words in [
        json!(["snapshot", "save", "/x", "--cacert=/a", "--cert", "/b"]),
        json!(["--cacert=/a", "--cert", "/b", "--endpoints", "https://etcd:2379", "member", "list"]),
    ] {
        let options = read(&json!({"name": "backup", "image": "etcdctl", "args": words}));
        assert!(!options.entrypoint && !options.runs_etcd() && options.undetermined_client.is_none(), "{words}");
        assert_eq!(options.flag(Tool::Etcdctl, "cacert"), text("/a"), "{words}");
        assert_eq!(options.flag(Tool::Etcdctl, "cert"), text("/b"), "{words}");
    }
    let words = json!(["snapshot", "save", "$(WHERE)"]);
    let env = json!([{"name": "WHERE", "value": "/x --cacert=/a"}]);
    assert_eq!(read(&json!({"name": "a", "args": words, "env": env})).flag(Tool::Etcdctl, "cacert"), None);
    // The words of etcd's own image are etcd's.
    for words in [json!(["--name=snapshot"]), json!(["--name", "member", "--cert-file=/a"]), json!(["--pre-vote"])] {
        assert!(read(&json!({"name": "etcd", "args": words})).entrypoint, "{words}");
    }
}

#[test]
fn a_value_that_looks_like_the_program_is_a_value() {
    let options = command(&["tini", "--", "etcd", "--data-dir", "/var/lib/etcd", "--key-file=/k"]);
    assert_eq!(options.flag(Tool::Etcd, "data-dir"), text("/var/lib/etcd"));
    assert_eq!(options.flag(Tool::Etcd, "key-file"), text("/k"));
    assert_eq!(options.undetermined, None);
}

#[test]
fn the_images_program_is_assumed_and_its_flags_are_read() {
    let none = read(&json!({"name": "etcd"}));
    assert!(none.entrypoint && none.undetermined.is_none());
    let flags = read(&json!({"name": "etcd", "args": ["--cert-file", "/a"]}));
    assert!(flags.entrypoint && flags.undetermined.is_none());
    assert_eq!(flags.flag(Tool::Etcd, "cert-file"), text("/a"));
    let bitnami = command(&["/opt/bitnami/scripts/etcd/entrypoint.sh", "/opt/bitnami/scripts/etcd/run.sh"]);
    assert!(bitnami.entrypoint && bitnami.undetermined.is_none(), "{:?}", bitnami.undetermined);
}

#[test]
fn flags_in_a_shells_string() {
    for script in [
        "exec etcd --cert-file=/a --name=$(hostname)",
        "set -e\nIP=$(hostname -i)\nexec nice -n -19 ionice -c2 -n0 etcd \\\n  --cert-file=/a \\\n  --listen-client-urls=https://${IP}:2379 2>&1 | tee /log",
        "ARGS=\"--name=${HOSTNAME} --cert-file=/a\"; exec /usr/local/bin/etcd $ARGS",
        "if [ -f /x ]; then A=existing; fi; ETCDCTL_API=3 etcd --initial-cluster-state $A --cert-file /a",
        "ETCD=/usr/bin/etcd; $ETCD --cert-file /a",
        "exec etcd \"$@\"",
        "set -- etcd; set -- \"$@\" --cert-file=/a; exec \"$@\"",
        "su etcd -s /bin/sh -c 'exec etcd --cert-file=/a'",
        "BASE='--cert-file=/a'; ALL=\"$BASE --name x\"; etcd $ALL",
    ] {
        let options =
            read(&json!({"name": "etcd", "command": ["/bin/sh", "-ec"], "args": [script, "sh", "--cert-file", "/a"]}));
        assert_eq!(options.undetermined, None, "{script}");
        assert!(options.flag(Tool::Etcd, "cert-file").is_some(), "{script}");
        assert_eq!(options.flag(Tool::Etcd, "key-file"), None, "{script}");
    }
}

/// What cuts, counts or selects stays one word in quotes, and is a value there; at the place of a flag it is refused.
#[test]
fn values_by_expansions_are_read_and_flags_by_them_are_refused() {
    for value in [
        "\"${PEERS%,}\"",
        "\"${PEERS:1}\"",
        "\"${HOSTNAME,,}\"",
        "${HOSTNAME//./-}",
        "${HOSTNAME:0:8}",
        "\"${LIST[0]%,}\"",
        "\"${LIST[*]/%/x}\"",
        "$((n++))",
    ] {
        let script = format!("LIST=(a b)\nPEERS=$(cat /peers)\nexec etcd --cert-file=/a --initial-cluster {value}");
        let options = command(&["bash", "-c", &script]);
        assert_eq!(options.undetermined, None, "{script}");
        assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"), "{script}");
        let script = format!("LIST=(--cert-file=/a b)\nPEERS=$(cat /peers)\nexec etcd {value}");
        assert!(command(&["bash", "-c", &script]).undetermined.is_some(), "{script}");
    }
    for script in [
        "exec etcd --name ${PEERS%,}",
        "exec etcd --name ${PEERS/a/b}",
        "exec etcd --name \"${LIST[@]:1}\"",
        "exec etcd --name \"${@:1}\"",
        "f() { etcd --cert-file=/a; }; ((f)); etcd",
        "E='etcd --cert-file=/a'; (( $E )); etcd",
        "L[0]=--cert-file=/a; etcd ${L[0]}",
        "declare -A M=([a]=--cert-file=/a); etcd \"${M[@]}\"",
        "declare -A M=(k --cert-file=/a); etcd --name x ${M[*]}",
        "printf -v A -- --cert-file=/a; etcd $A",
        "exec -c etcd",
        "A=--CERT-FILE=/a; etcd --name \"${A,,}\"",
        "A=x--cert-file=/a; etcd --name \"${A:1}\"",
    ] {
        assert!(command(&["bash", "-c", script, "--", "x"]).undetermined.is_some(), "{script}");
    }
}

/// A replacement can begin a flag of etcdctl, too.
#[test]
fn a_replacement_that_begins_a_flag_is_refused() {
    for script in ["A=foo; etcd; etcdctl ${A/foo/--cert=x} get a", "A=foo; etcd; etcdctl ${A//foo/-cert=x} get a"] {
        assert!(command(&["bash", "-c", script]).undetermined_client.is_some(), "{script}");
    }
    assert_eq!(command(&["bash", "-c", "A=a.b; etcd; etcdctl get ${A//./-}"]).undetermined_client, None);
}

/// Loops that count, brace sequences, and an entry point that puts the program in front.
#[test]
fn the_first_process_of_an_image_stands_in_its_root() {
    for program in ["/tini", "/dumb-init", "/gosu"] {
        let options = command(
            &[program, "--", "etcd", "--cert-file=/a"]
                .map(|w| if w == "--" && program == "/gosu" { "etcd" } else { w }),
        );
        assert_eq!(
            (options.undetermined.clone(), options.flag(Tool::Etcd, "cert-file")),
            (None, text("/a")),
            "{program}"
        );
    }
    // Others of the root are the image's own.
    for program in ["/nice", "/test", "/run"] {
        assert!(command(&[program, "etcd"]).undetermined.is_some(), "{program}");
    }
}

#[test]
fn loops_that_count_and_entry_points_are_followed() {
    for script in [
        "for ((i = 0; i < 3; i++)); do C=\"${C:+$C,}e-$i=https://e-$i:2380\"; done; exec etcd --cert-file=/a --initial-cluster $C",
        "for i in {0..2}; do C=\"$C,e-$i=https://e-$i:2380\"; done; exec etcd --cert-file=/a --initial-cluster \"${C:1}\"",
        "if ((n > 1)); then S=existing; else S=new; fi; etcd --cert-file=/a --initial-cluster-state $S",
        "let i=0; ((i++)); etcd --cert-file=/a --name e-$i",
        "A[1]=x; etcd --cert-file=/a --name \"${A[1]}\"",
        "if [ \"${1:0:1}\" = - ]; then set -- etcd \"$@\"; fi; exec \"$@\"",
        "case $1 in etcd) shift; exec etcd \"$@\";; *) exec \"$@\";; esac",
        "sh <<-EOF\n\tetcd --cert-file=/a\n\tEOF\n",
    ] {
        for arguments in [["x", "--cert-file=/a", "--name=b"].as_slice(), &["x", "etcd", "--cert-file=/a"]] {
            if script.starts_with("case") != (arguments[1] == "etcd") {
                continue;
            }
            let options = command(&[["bash", "-c", script].as_slice(), arguments].concat());
            assert_eq!(options.undetermined, None, "{script}");
            assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"), "{script}");
        }
    }
}

/// Functions, arrays and loops over known words, followed to the words that etcd gets.
#[test]
fn functions_arrays_loops_and_eval_are_followed() {
    for script in [
        "flags() { local flag='--cert-file=/a'; echo $flag; }; exec etcd $(flags)",
        "run() { etcd \"$@\"; }; run --name a --cert-file=/a",
        "run() { \"$@\"; }; run etcd --cert-file=/a",
        "function start { shift; exec etcd \"$@\"; }; start x --cert-file=/a",
        "A=(--cert-file=/a); A+=(--name x); exec etcd \"${A[@]}\"",
        "A=(--cert-file=/a); exec etcd ${A[*]}",
        "local_args() { local -a args=(--cert-file=/a); etcd \"${args[@]}\"; }; local_args",
        "for f in cert-file=/a name=x; do A=\"$A --$f\"; done; etcd $A",
        "F=--cert-file=/a; eval \"exec etcd $F\"",
        "cleanup() { kill $PID; }; trap cleanup TERM; etcd --cert-file=/a & PID=$!; wait $PID",
        "echo 'etcd --cert-file=/a' | sh",
        "cat <<'EOF' | gosu etcd sh -e\nF='--cert-file=/a'\netcd $F\nEOF",
        "F=--cert-file=/a; exec sh <<EOF\nset -e\netcd ${F}\nEOF",
        "mapfile -t A <<< '--cert-file=/a'; etcd \"${A[@]}\"",
        "readarray -t A <<X\n--cert-file=/a\n--name=x\nX\netcd \"${A[@]}\"",
    ] {
        let options = command(&["bash", "-c", script]);
        assert_eq!(options.undetermined, None, "{script}");
        assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"), "{script}");
        assert_eq!(options.flag(Tool::Etcd, "key-file"), None, "{script}");
    }
    for (script, why) in [
        ("if [ -f /x ]; then f() { etcd; }; fi; f", "in a branch"),
        ("f() { echo --name=x; return; echo --cert-file=/a; }; etcd $(f)", "any flags"),
        ("f() { while read x; do A=\"$A $x\"; done; }; f; etcd $A", "any flags"),
        ("f() { A=--cert-file=/a; }; trap f USR1; etcd $A", "any flags"),
        ("A=(--name x); A[0]=--cert-file=/a; etcd ${A[@]}", "any flags"),
        ("mapfile -t A < /flags; etcd \"${A[@]}\"", "mapfile"),
        ("mapfile A <<< --cert-file=/a; etcd \"${A[@]}\"", "mapfile"),
        ("sh < /flags; etcd", "without a script"),
        ("sh <<EOF\netcd $(cat /flags)\nEOF\n", "within a here-document"),
        ("sh <<-EOF\n\tetcd $(cat /flags)\n\tEOF\n", "within a here-document"),
        ("sh <<EOF < /flags\necho\nEOF\n", "without a script"),
        ("sh 2>&1 <<A <<B\necho\nA\netcd\nB\n", "without a script"),
        ("echo 'etcd' | { read x; sh; }", "without a script"),
        ("cat <<'E' | sh\nread x\nF=\netcd $F\nE\n", "reads from the script itself"),
        ("F=$(cat /flags); echo \"etcd $F\" | sh", "of which nothing is known"),
        ("f() { f; }; f; etcd", "nested too deeply"),
    ] {
        let undetermined = command(&["bash", "-c", script]).undetermined;
        assert!(undetermined.as_ref().is_some_and(|doubt| doubt.why.contains(why)), "{script}: {undetermined:?}");
    }
    // A loop over nothing loses no etcd: whether a flag is in $x is not known, and the one that is written is seen.
    for script in [
        "for x in \"$@\"; do echo $x; done; exec etcd --cert-file=/a $x",
        "for x in; do echo $x; done; exec etcd --cert-file=/a $x",
    ] {
        let options = command(&["bash", "-c", script]);
        assert!(options.runs_etcd() && options.idle.is_none(), "{script}");
        assert!(options.undetermined.is_some() || options.flag(Tool::Etcd, "cert-file") == text("/a"), "{script}");
    }
    let idle = command(&["sleep", "infinity"]);
    assert!(idle.idle.is_some() && idle.undetermined.is_none() && !idle.runs_etcd());
}

#[test]
fn undetermined_options_are_reported() {
    for words in [
        vec!["sh", "-c", "exec etcd $OPTS"],
        vec!["sh", "-c", "exec etcd $(cat /flags)"],
        vec!["sh", "-c", "/scripts/run && exec /usr/bin/supervisord"],
        vec!["/scripts/run-etcd.sh"],
        vec!["/bin/bash", "/scripts/start"],
        vec!["bash", "-euo", "pipefail", "/scripts/start"],
        vec!["/app/launcher"],
        vec!["sh"],
        vec!["sh", "-c", "F=$(cat /x); etcd $F"],
    ] {
        assert!(command(&words).undetermined.is_some(), "{words:?}");
    }
    let from = read(&json!({
        "name": "etcd", "command": ["etcd", "$(ARGS)"],
        "env": [{"name": "ARGS", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}],
    }));
    assert!(from.undetermined.unwrap().why.contains("ARGS"));
    let envfrom = read(&json!({
        "name": "etcd", "command": ["etcd", "$(ARGS)"], "envFrom": [{"configMapRef": {"name": "a"}}],
    }));
    assert!(envfrom.undetermined.is_some());
}

#[test]
fn kubernetes_own_variables_are_put_in() {
    let options = read(&json!({
        "name": "etcd",
        "command": ["etcd", "--name", "$(POD_NAME)", "--listen-client-urls=https://$(POD_IP):2379", "$(EXTRA)", "--x=$$(Y)"],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "EXTRA", "value": "--key-file=/k"},
        ],
    }));
    assert_eq!(options.undetermined, None);
    assert_eq!(options.flag(Tool::Etcd, "listen-client-urls"), Some(Setting::Open("https://${POD_IP}:2379".into())));
    assert_eq!(options.flag(Tool::Etcd, "name"), Some(Setting::Open("${POD_NAME}".into())));
    assert_eq!(options.flag(Tool::Etcd, "key-file"), text("/k"));
    assert_eq!(options.flag(Tool::Etcd, "x"), text("$(Y)"));
}

#[test]
fn the_clients_flags_are_its_own() {
    let options = command(&[
        "/bin/sh",
        "-c",
        "curl --cacert /x https://y; etcdctl --endpoints=\"$EP\" --key=/k put \"$k\" \"$v\"; etcdctl snapshot save /backup/$(date).db",
    ]);
    assert_eq!(options.undetermined_client, None);
    assert_eq!(options.flag(Tool::Etcdctl, "cacert"), None, "that was curl's");
    assert_eq!(options.flag(Tool::Etcdctl, "key"), text("/k"));
    assert!(command(&["sh", "-c", "etcdctl $FLAGS get x"]).undetermined_client.is_some());
    let handler = command(&["sh", "-c", "trap 'etcdctl $F member remove x' TERM; etcd"]);
    assert!(handler.undetermined.is_none(), "{:?}", handler.undetermined);
    assert!(handler.undetermined_client.is_some());
    assert!(command(&["sh", "/scripts/backup.sh"]).undetermined_client.is_some());
    assert!(command(&["/app/server", "--cert=/x"]).undetermined_client.is_none());
}

#[test]
fn probes_share_the_environment() {
    let options = read(&json!({
        "name": "etcd", "command": ["etcd"],
        "livenessProbe": {"exec": {"command": ["/bin/sh", "-ec", "ETCDCTL_API=3 etcdctl --cacert=/ca get foo"]}},
    }));
    assert_eq!(options.flag(Tool::Etcdctl, "cacert"), text("/ca"));
    assert_eq!(options.undetermined, None);
}

/// Scripts that would expand to gigabytes if followed to the end.
#[test]
fn unbounded_growth_is_given_up_on() {
    let doubled = "set -- \"$@\" \"$@\"; ".repeat(60);
    let nested = |inner: &str| format!("{inner}; ").repeat(2000);
    let variables: String =
        (0..4).rev().map(|n| format!("v{n}=\"{}\"; ", format!("$v{} ", n + 1).repeat(400))).collect();
    let calls: String = (1..15).map(|n| format!("f{n}() {{ {} }}; ", format!("f{}; ", n - 1).repeat(8))).collect();
    let calls = format!("f0() {{ etcd; }}; {calls}");
    let long = "x".repeat(100_000);
    let env = json!([{"name": "LONG", "value": long}]);
    let many = vec!["$(LONG)"; 10_000];
    let mut positional =
        vec!["sh".to_owned(), "-c".to_owned(), format!("etcd {}", "\"$@\" ".repeat(5000)), "x".to_owned()];
    positional.extend((0..5000).map(|n| format!("-{n}")));
    let again = nested("\"$@\"");
    for container in [
        json!({"command": ["sh", "-c", format!("{doubled} exec etcd \"$@\""), "etcd", "--a=b"]}),
        json!({"command": ["sh", "-c", again, "x", "sh", "-c", again, "x", "sh", "-c", again, "x", "etcd", "--a=b"]}),
        json!({"command": positional}),
        json!({"command": ["sh", "-c", format!("{calls} f14")]}),
        json!({"command": ["sh", "-c", format!("v4=x; {variables} etcd $v0")]}),
        json!({"command": ["etcd"], "args": many, "env": env}),
        json!({"command": ["etcd"], "livenessProbe": {"exec": {"command": many}}, "env": env}),
    ] {
        let options = read(&container);
        let said = container.to_string().chars().take(60).collect::<String>();
        assert!(
            options.undetermined.as_ref().is_some_and(|why| why.why.contains("more than is read")),
            "{said}: {:?}",
            options.undetermined
        );
        assert!(options.undetermined_client.is_some(), "{said}");
    }
}

#[test]
fn a_command_of_many_forms_is_counted_once() {
    let branches: String = (0..12).map(|at| format!("{at}) X=A{at};; ")).collect();
    let options = command(&["sh", "-c", &format!("case $Q in {branches} esac\nexport $X\nexec etcd --cert-file=/a")]);
    assert_eq!((options.undetermined.clone(), options.flag(Tool::Etcd, "cert-file")), (None, text("/a")));
}

#[test]
fn long_scripts_are_read_all_the_same() {
    let script =
        format!("{}\nARGS=\"--cert-file=/a\"\nexec etcd $ARGS \"$@\"", "echo starting up; sleep 1\n".repeat(2000));
    let options = command(&["sh", "-c", &script, "x", "--key-file=/b"]);
    assert_eq!(options.undetermined, None);
    assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"));
    assert_eq!(options.flag(Tool::Etcd, "key-file"), text("/b"));
    // Brackets that never close, and a long environment of which every word asks.
    let brackets = "$(".repeat(300_000);
    assert!(command(&["etcd", &brackets]).runs_etcd());
    let env: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("v{n}")})).collect();
    let args = vec!["$(v1)"; 20_000];
    assert!(read(&json!({"command": ["etcd"], "args": args, "env": env})).runs_etcd());
}

#[test]
fn a_script_that_a_script_writes_is_followed() {
    for script in [
        "cat > /w/run <<EOF\n#!/bin/sh\nexec etcd --cert-file=/a\nEOF\nchmod +x /w/run\nexec /w/run",
        "cat <<'EOF' >./run\n#!/bin/bash -e\nA=--cert-file=/a\nexec etcd $A\nEOF\nchmod +x ./run && ./run",
        "A=--cert-file=/a\ncat > /w/run <<EOF\netcd $A\nEOF\nsh -e /w/run",
        "cat > /w/run <<EOF\nA=--cert-file=/a\nexec etcd \\$A\nEOF\n. /w/run",
        "cat > /w/run <<'EOF'\nexec gosu etcd etcd \"$@\"\nEOF\nbash /w/run --cert-file=/a",
        "echo '#!/bin/sh' > /w/run; echo 'exec etcd --cert-file=/a' >> /w/run; chmod 755 /w/run; gosu etcd /w/run",
        "printf '%s\\n' '#!/usr/bin/env sh' 'exec etcd --cert-file=/a' > /w/run; exec /w/run",
        "printf '#!/bin/sh\\nexec etcd --cert-file=/a\\n' > /w/run; exec /w/run",
        "echo A=--cert-file=/a > /w/env; . /w/env; exec etcd $A",
        "f() { echo \"exec etcd $1\" > /w/run; }\nf --cert-file=/a\nsh /w/run",
    ] {
        let options = command(&["sh", "-c", script]);
        assert_eq!(options.undetermined, None, "{script}");
        assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"), "{script}");
    }
    let written = "echo 'exec etcd --cert-file=/a' > /w/run";
    for script in [
        // It is not certain what is in it.
        "echo \"exec etcd $UNKNOWN\" > /w/run; sh /w/run",
        "[ -f /x ] && echo 'exec etcd --cert-file=/a' > /w/run; sh /w/run",
        "[ -f /x ] && sh -c \"echo 'exec etcd --cert-file=/a' > /w/run\"; sh /w/run",
        "if [ -f /x ]; then echo etcd --cert-file=/a > /w/run; else echo etcd --key-file=/a > /w/run; fi; sh /w/run",
        "echo 'exec etcd --cert-file=/a' > /w/run & sh /w/run",
        "echo 'exec etcd --cert-file=/a' >> /w/run; sh /w/run",
        "echo 'exec etcd --cert-file=/a' > /w/run > /w/other; sh /w/run",
        "set -C; echo 'exec etcd --cert-file=/a' > /w/run; sh /w/run",
        "{ echo 'exec etcd --cert-file=/a'; date; } > /w/run; sh /w/run",
        "echo 'import os' > /w/run; python3 /w/run",
        "printf '#!/usr/bin/python3\\nimport os\\n' > /w/run; /w/run",
        &format!("{written}; sed -i s/cert/key/ /w/run; sh /w/run"),
        &format!("{written}; cp -r /scripts/. /w; sh /w/run"),
        &format!("{written}; cd /x; sh ./w/run"),
        &format!("{written}; echo 'etcd --key-file=/b' > \"$F\"; sh /w/run"),
        &format!("{written}; echo 'etcd --key-file=/b' > /w/../w/run; sh /w/run"),
        &format!("{written}; etcdctl snapshot save /w/run; sh /w/run"),
        &format!("{written}; run"),
    ] {
        assert!(command(&["sh", "-c", script]).undetermined.is_some(), "{script}");
    }
}

#[test]
fn items_of_known_lists_are_known() {
    for script in
        ["A=(x --cert-file=/a); exec etcd \"${A[@]:1}\"", "A=(x --cert-file=/a); exec etcd ${A[1]} \"${A[-1]}\""]
    {
        let options = command(&["bash", "-c", script]);
        assert_eq!(options.undetermined, None, "{script}");
        assert_eq!(options.flag(Tool::Etcd, "cert-file"), text("/a"), "{script}");
    }
    for script in [
        // How many words there are before it, or whether there is one, is not known.
        "A=($UNKNOWN --cert-file=/a); etcd \"${A[@]:1}\"",
        "A=($(hostname -I) --cert-file=/a); etcd \"${A[1]}\"",
        "A=(x); A[1]=--cert-file=/a; etcd \"${A[1]}\"",
        "A=(x --cert-file=/a); etcd \"${A[$N]}\"",
        // No shell passes an array on.
        "export A; A=(--cert-file=/a); sh -c 'etcd $A'",
        // busybox cuts letters of the first.
        "set -- a --cert-file=/a b; etcd \"${@:3}\"",
    ] {
        assert!(command(&["bash", "-c", script]).undetermined.is_some(), "{script}");
    }
}

#[test]
fn what_printf_prints_is_known() {
    for script in [
        "A=$(printf '%s ' --cert-file=/a --name=b); exec etcd $A",
        "f() { printf '%s' '--cert-file=/a'; }; exec etcd $(f)",
        "exec etcd $(printf -- --cert-file=/a)",
    ] {
        let options = command(&["sh", "-c", script]);
        let known = options.undetermined.is_none();
        assert!(known != script.contains("-- --"), "{script}: {:?}", options.undetermined);
        assert!(!known || options.flag(Tool::Etcd, "cert-file") == text("/a"), "{script}");
    }
    for script in ["etcd $(printf \"$X\")", "etcd $(printf '\\055-cert-file=/a')", "etcd $(printf '%d' 1)"] {
        assert!(command(&["sh", "-c", script]).undetermined.is_some(), "{script}");
    }
}
