//! Command lines that tell the shell how to run, and values that it reads or computes, by name.

use super::known::{Injected, Known, Refused, faults};

const TOLD: &[Known] = &[
    // Shells differ in what these quotes are.
    ("translated", &["bash", "-c", "exec etcd $\"--cert-file=/x\" --name a"], &[], None, Refused("may hold any flags")),
    // What a shell runs before each command that it shows.
    (
        "program-in-a-trace",
        &["bash", "-c", "PS4='$(etcd --cert-file=/x >&2)'; set -x; true"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    ("time-in-a-trace", &["bash", "-c", "PS4='+ $(date +%T) '; set -x; exec etcd --cert-file=/x"], &[], None, Injected),
    (
        "host-in-a-trace",
        &["bash", "-c", "PS4=\"+ $(hostname) \"; set -x; exec etcd --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    (
        "programs-in-a-trace",
        &["bash", "-c", "PS4='$(date; etcd --cert-file=/x >&2)'; set -x; true"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    (
        "escape-in-a-trace",
        &["bash", "-c", "PS4='$(date \\netcd --cert-file=/x >&2) '; set -x; true"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    (
        "number-in-a-trace",
        &["bash", "-c", "PS4='\\044(etcd --cert-file=/x >&2) '; set -x; true"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    ("colour-in-a-trace", &["bash", "-c", "PS4='\\033[1m+ '; set -x; exec etcd --cert-file=/x"], &[], None, Injected),
    (
        "function-in-a-trace",
        &["bash", "-c", "PS4='$(top)'; top() { etcd --cert-file=/x >&2; }; set -x; true"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    (
        "value-in-a-trace",
        &["bash", "-c", "PS4=\"\\$($A)\"; set -x; true; exec etcd --name a"],
        &[],
        None,
        Refused("sets PS4 to what runs programs"),
    ),
    ("line-in-a-trace", &["bash", "-c", "PS4='+(${LINENO}): '; set -x; exec etcd --cert-file=/x"], &[], None, Injected),
    // A login shell reads files of the image, which has variables of its own as well.
    ("login-shell", &["bash", "-lc", "exec @BIN@/etcd --cert-file=/x"], &[], None, Injected),
    ("login-by-name", &["bash", "--login", "-c", "exec @BIN@/etcd --cert-file=/x"], &[], None, Injected),
    // Each variable is exported.
    (
        "exported-all",
        &[
            "sh",
            "-c",
            "cat > @WORK@/all <<EOF\nETCD_CERT_FILE=/x\nETCD_KEY_FILE=/y\nEOF\nset -a\n. @WORK@/all\nset +a\nexec etcd --name a",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "exported-and-by-flag",
        &["sh", "-c", "set -o allexport; ETCD_CERT_FILE=/x; exec etcd --cert-file=/y"],
        &[],
        None,
        Refused("and ETCD_CERT_FILE is set as well"),
    ),
    (
        "exported-no-more",
        &["sh", "-c", "set -a; set +a; ETCD_CERT_FILE=/x; exec etcd --name a"],
        &[],
        None,
        Refused("does not export it"),
    ),
    (
        "exported-here-alone",
        &["sh", "-c", "set -a; sh -c 'ETCD_CERT_FILE=/x; exec etcd --name a'"],
        &[],
        None,
        Refused("does not export it"),
    ),
    ("declared-at-once", &["bash", "-c", "declare -rx ETCD_CERT_FILE=/x; exec etcd --name a"], &[], None, Injected),
    (
        "exported-by-the-shells-option",
        &["bash", "-o", "allexport", "-c", "ETCD_CERT_FILE=/x; exec etcd --cert-file=/y --key-file=/z"],
        &[],
        None,
        Refused("starts bash with -o"),
    ),
    (
        "exported-by-the-shells-environment",
        &["bash", "-c", "ETCD_CERT_FILE=/x; exec etcd --cert-file=/y --key-file=/z"],
        &[],
        Some(("SHELLOPTS", "allexport")),
        Refused("sets BASH_ENV or SHELLOPTS"),
    ),
    ("option-of-the-shell", &["bash", "-o", "pipefail", "-ec", "exec etcd --cert-file=/x"], &[], None, Injected),
    // Digests, and the beginnings of lines.
    (
        "digest",
        &[
            "sh",
            "-c",
            "A=$(hostname | md5sum | cut -d' ' -f1); B=$(echo $X | sha256sum | cut -c1-8)\nexec etcd --initial-cluster-token $A$B --cert-file=/x",
        ],
        &[],
        Some(("X", "a b")),
        Injected,
    ),
    (
        "beginning-of-flags",
        &["sh", "-c", "exec etcd $(echo --cert-file=/x | cut -c1-30)"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    (
        "end-of-words",
        &["sh", "-c", "exec etcd --name $(echo $X | sed 's/$/-/' | cut -c3-)"],
        &[],
        Some(("X", "a --cert-file=/x")),
        Refused("may hold any flags"),
    ),
    (
        "words-cut-in-two",
        &["sh", "-c", "exec etcd --name a$(echo \"$X\" | cut -c1-9,11-)"],
        &[],
        Some(("X", "10.0.0.1 x--cert-file=/q")),
        Refused("may hold any flags"),
    ),
    (
        "beginning-of-words",
        &["sh", "-c", "exec etcd --cert-file=/x --name a$(echo \"$X\" | cut -c 1-9)"],
        &[],
        Some(("X", "10.0.0.1 x--cert-file=/q")),
        Injected,
    ),
    (
        "address-by-a-name-server",
        &[
            "sh",
            "-c",
            "IP=$(nslookup $HOSTNAME 2>/dev/null | grep Address | tail -n1 | awk '{print $3}')\nexec etcd --name a$IP --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "address-by-other-programs",
        &[
            "sh",
            "-c",
            "A=$(ifconfig lo 2>/dev/null | awk '/inet / {print $2}'); B=$(cat /etc/hosts | grep localhost | awk 'NR==1{print $1}')\nC=$(ip route get 127.0.0.1 2>/dev/null | awk '{print $3;exit}')\nexec etcd --name a$A-$B-$C --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    // A list, one character of which is another's.
    (
        "list-by-tr",
        &[
            "sh",
            "-c",
            "for m in $(echo $X | tr ',' ' '); do L=$L,$m=https://$m; done\nexec etcd --initial-cluster ${L#,} --cert-file=/x",
        ],
        &[],
        Some(("X", "a,b")),
        Injected,
    ),
    (
        "flags-by-tr",
        &["sh", "-c", "exec etcd $(echo $X | tr , '\\n')"],
        &[],
        Some(("X", "--cert-file=/x,--name=a")),
        Injected,
    ),
    ("list-replaced", &["bash", "-c", "exec etcd ${X//,/ }"], &[], Some(("X", "--cert-file=/x,--name=a")), Injected),
    // A shell writes other texts than tr.
    (
        "n-replaced",
        &["bash", "-c", "exec etcd ${X//,/\\n}"],
        &[],
        Some(("X", "--name=a,--cert-file=/x")),
        Refused("may hold any flags"),
    ),
    (
        "slash-replaced",
        &["bash", "-c", "exec etcd ${X//,\\/n}"],
        &[],
        Some(("X", "--name=a,--cert-file=/x")),
        Refused("may hold any flags"),
    ),
    (
        "replaced-by-itself",
        &["bash", "-c", "exec etcd ${X//-/&}"],
        &[],
        Some(("X", "--cert-file=/x")),
        Refused("may hold any flags"),
    ),
    (
        "replaced-by-a-home",
        &["bash", "-c", "HOME=--cert-file=/x; exec etcd ${X//a/~}"],
        &[],
        Some(("X", "a")),
        Refused("may hold any flags"),
    ),
    (
        "class-by-tr",
        &["sh", "-c", "exec etcd $(echo $X | tr a-c ---)"],
        &[],
        Some(("X", "abcert-file=/x")),
        Refused("may hold any flags"),
    ),
];

#[test]
fn shells_are_told_how_to_run() {
    let (faults, _) = faults("told", TOLD);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
