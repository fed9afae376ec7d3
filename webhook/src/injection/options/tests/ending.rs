//! What becomes of a container when its etcd ends.

use super::*;

fn after(script: &str) -> After {
    command(&["sh", "-c", script]).after
}

#[track_caller]
fn all(fate: Fate, scripts: &[&str]) {
    for script in scripts {
        assert_eq!(after(script).fate, fate, "{script}: {:?}", after(script));
    }
}

#[test]
fn a_container_ends_with_etcd_or_starts_it_again() {
    all(
        Fate::Ends,
        &[
            "etcd",
            "exec etcd --name a",
            "mkdir -p /d; etcd",
            "etcd & wait $!",
            "etcd & wait -n",
            "etcd &\nPID=$!\ntrap 'kill $PID; sleep 1000' TERM\nwait $PID",
            "etcd &\nP=$!\nwhile true; do sleep 3600; done &\nwait $P",
            "etcd &\nP=$!\ntail -F /log &\nwait $P",
            // The script ends its etcd itself, and starts another.
            "etcd --name a & P=$!; sleep 5; kill $P; wait $P; exec etcd",
            "etcd --name a & sleep 5; pkill etcd; etcd",
            "while true; do etcd; sleep 1; done",
            "while :; do etcd & wait; done",
            "for ((;;)); do etcd || sleep 5; done",
            "until false; do etcd; done",
            "while true; do etcd; sleep 1; done & sleep infinity",
            "if [ -d /d ]; then exec etcd; else exec etcd --name a; fi; sleep infinity",
            "case $HOSTNAME in a) exec etcd;; *) sleep infinity;; esac",
            "if [ -d /d ]; then sleep infinity; fi; exec etcd",
            "run() { exec etcd \"$@\"; }; run --name a",
            "exec etcd > >(tee /log) 2>&1",
            "sh -c 'exec etcd'",
            "etcd; exit 1",
            "etcd; exit $?",
        ],
    );
    for words in [&["etcd"][..], &["tini", "--", "etcd"], &["gosu", "etcd", "etcd", "--name=a"]] {
        assert_eq!(command(words).after, After::default(), "{words:?}");
    }
    assert_eq!(read(&json!({"name": "etcd", "args": ["--name=a"]})).after, After::default());
}

#[test]
fn a_container_may_end_with_code_0() {
    all(
        Fate::EndsWell,
        &[
            "etcd || true",
            "etcd; echo ended",
            "etcd; code=$?",
            "etcd; exit 0",
            // Whose code $? is, is not followed.
            "etcd; code=$?; echo $code; exit $code",
            "etcd & wait",
            "trap 'exit 0' TERM; etcd & wait",
            "etcd 2>&1 | tee /log",
            "exec etcd 2>&1 | cat",
            "etcd; sleep 5",
            "etcd; etcdutl snapshot status /b",
            "until etcd; do sleep 1; done",
            "while [ ! -e /stop ]; do etcd; sleep 1; done",
            "(sleep 10; etcdctl endpoint health) & etcd & wait",
        ],
    );
}

#[test]
fn a_script_that_goes_on_is_seen() {
    for (script, what) in [
        ("etcd & tail -f /dev/null", "tail -f /dev/null"),
        ("etcd & sleep infinity", "sleep infinity"),
        ("etcd || true; sleep inf", "sleep inf"),
        ("etcd & exec sleep infinity", "sleep infinity"),
        ("etcd & nohup tail --follow=name /log", "tail --follow=name /log"),
        ("etcd & while true; do sleep 60; done", "a loop"),
        ("etcd & while sleep 60; do date; done", "a loop"),
        ("etcd & for ((;;)); do sleep 1; done", "a loop"),
        ("sh -c 'exec etcd'; tail -F /log", "tail -F"),
        ("( exec etcd ); sleep infinity", "sleep infinity"),
        ("exec etcd | cat; sleep infinity", "sleep infinity"),
        ("if [ -d /d ]; then etcd; fi; sleep infinity", "sleep infinity"),
        ("run() { etcd \"$@\"; sleep infinity; }; run", "sleep infinity"),
        ("tail -f /dev/null & etcd & wait", "wait"),
    ] {
        let After { fate, why } = after(script);
        assert_eq!(fate, Fate::GoesOn, "{script}: {why}");
        assert!(why.contains(what) && why.contains("command[2]"), "{script}: {why}");
    }
    let long = after(&format!("etcd & tail -f {}", "x".repeat(10_000)));
    assert!(long.fate == Fate::GoesOn && long.why.len() < 200, "{}", long.why);
}

#[test]
fn what_cannot_be_told_is_unknown() {
    all(
        Fate::Unknown,
        &[
            ". /x; exec etcd",
            // It may end, and the container with it.
            "etcd; sleep 1d",
            "etcd || true; sleep 1000000",
            "etcd & sleep $LONG",
            "etcd & P=$!; tail --pid=$P -f /log",
            "etcd & /usr/bin/supervise",
            "etcd & exec sh /x.sh",
            "etcd & etcdctl watch a",
            "etcd & timeout 10 nc -lk 80",
            "etcd & etcd grpc-proxy start",
            "etcd | some-filter",
            "etcd | (cat; sleep 1000)",
            "(etcd; sleep infinity) & wait",
            // A shell that may end before.
            "set -e; etcd; sleep infinity",
            "set -e; while true; do etcd; done & sleep infinity",
            "etcd || exit 1; sleep infinity",
            // A turn that perhaps does not start it again.
            "while true; do if [ -e /once ]; then sleep 5; continue; fi; touch /once; etcd; done",
            "while true; do [ -e /once ] && sleep 1000; touch /once; etcd; done",
            "while true; do sh -c etcd; done",
            "sleep 1000 | etcd",
            "echo 'etcd & tail -f /dev/null' | sh",
            // A branch that is perhaps not taken, a loop that is perhaps left.
            "etcd & if [ -f /x ]; then tail -f /dev/null; fi",
            "etcd & [ -f /x ] && sleep infinity",
            "etcd & while true; do pgrep etcd || exit 1; sleep 5; done",
            // Which job is waited for, or killed.
            "tail -f /dev/null & A=$!; etcd & wait $A",
            "sleep 1000 & etcd & wait",
            "etcd & kill $P; sleep 5",
            // A loop with a condition that is not understood, also in front of `wait`.
            "etcd & P=$!; until etcdctl endpoint health; do sleep 1; done; wait $P",
            "etcd & P=$!; while kill -0 $P; do sleep 5; done; exit 1",
            "etcd & while pgrep sh; do sleep 1; done",
            "etcd & P=$!; while sleep 1 && kill -0 $P; do :; done",
            "etcd; while [ ! -e /stop ]; do sleep 1; done",
            "etcd & P=$!; /init.sh; wait $P",
            // A handler at the shell's end.
            "trap 'sleep infinity' EXIT; etcd",
            "trap 'sleep infinity' 0; etcd & wait",
            "trap 'sleep infinity' SIGCHLD; etcd & wait",
            "trap 'sleep infinity' $SIGNALS; etcd",
            // Programs that read.
            "etcd; cat",
            "etcd; cat /dev/stdin",
            "etcd; read line",
            "etcd; curl http://example.com",
        ],
    );
    for words in [&["/scripts/start.sh"][..], &["sh", "/scripts/start.sh"]] {
        assert_eq!(command(words).after.fate, Fate::Unknown, "{words:?}");
    }
}

/// 100 KB of commands, each of which could be a reason.
#[test]
fn a_long_script_gets_a_short_reason() {
    for line in
        ["etcd &\n", "sleep $X &\n", "etcd & wait $!\n", "( etcd )\n", "etcd | cat\n", "while true; do etcd; done &\n"]
    {
        let script = line.repeat(100_000 / line.len());
        let options = command(&["sh", "-c", &script]);
        assert!(options.after.why.len() < 400, "{line}: {}", options.after.why.len());
    }
}
