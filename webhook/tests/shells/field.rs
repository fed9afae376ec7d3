//! More command lines of real manifests by name, by the kind that each is the smallest form of.

use super::known::{Injected, Known, Refused, faults};

const FIELD: &[Known] = &[
    // Brackets around an address of IPv6 are no pattern that can become a flag; other brackets are.
    (
        "ipv6-by-case",
        &[
            "sh",
            "-c",
            "case $X in *:*) X=\"[$X]\";; esac\nexec etcd --listen-client-urls https://$X:2379 --listen-peer-urls=https://$X:2380 --cert-file=/x",
        ],
        &[],
        Some(("X", "fd00::7")),
        Injected,
    ),
    (
        "ipv6-url-in-variable",
        &["sh", "-c", "U=\"https://[$X]:2379\"; exec etcd --advertise-client-urls $U --cert-file=/x"],
        &[],
        Some(("X", "fd00::7")),
        Injected,
    ),
    (
        "pattern-of-a-flag",
        &["sh", "-c", "F='--cert-fil[e]'; touch ./--cert-file; exec etcd $F /x"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    // Functions whose names look like scripts' are functions.
    (
        "function-publish",
        &["sh", "-c", "publish() { etcd --cert-file=/x \"$@\"; }\npublish --name a"],
        &[],
        None,
        Injected,
    ),
    (
        "function-member-hash",
        &["sh", "-c", "member_hash() { echo a; }\nexec etcd --name $(member_hash) --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    // A variable that only the script appends to is empty before.
    (
        "append-to-nothing",
        &[
            "bash",
            "-c",
            "for ((i=0;i<3;i++)); do P+=\"e$i=https://e$i:2380,\"; done\nexec etcd --initial-cluster ${P%,} --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    // The name of the shell is the first of its words.
    ("name-of-the-shell", &["sh", "-c", "exec \"$0\" \"$@\"", "etcd"], &["--cert-file=/x"], None, Injected),
    ("name-of-another", &["sh", "-c", "exec \"$0\" etcd --cert-file=/x", "nice"], &[], None, Injected),
    // Programs that run harmless ones.
    (
        "xargs-rm",
        &["sh", "-c", "ls ./old 2>/dev/null | tail -n +8 | xargs -r -n 1 rm -f\nexec etcd --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    ("xargs-etcd", &["sh", "-c", "echo --cert-file=/x | xargs -n 1 etcd"], &[], None, Refused("can run others")),
    (
        "find-exec",
        &["sh", "-c", "find . -name '*.snap' -exec rm -f {} +\nexec etcd --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    (
        "find-exec-etcd",
        &["sh", "-c", "find . -maxdepth 0 -exec etcd --cert-file=/x \\;"],
        &[],
        None,
        Refused("as it likes"),
    ),
    // Commands that print nothing are not counted, however many they may be.
    (
        "exports-one-of-several",
        &[
            "sh",
            "-c",
            "case $X in a) V=A;; b) V=B;; *) V=C;; esac\nexec etcd $(export $V; echo --cert-file=/x; echo --name) a",
        ],
        &[],
        Some(("X", "a")),
        Refused("may hold any flags"),
    ),
    // What a pattern has matched is a part of what was matched against it.
    (
        "matched-number",
        &[
            "bash",
            "-c",
            "[[ $HOSTNAME =~ -([0-9]+)$ ]] || exit 1\nexec etcd --name etcd-${BASH_REMATCH[1]} --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "matched-flags",
        &["bash", "-c", "[[ $X =~ ^a(.*)$ ]]\nexec etcd ${BASH_REMATCH[1]}"],
        &[],
        Some(("X", "a --cert-file=/x")),
        Refused("may hold any flags"),
    ),
    // Filters keep words whole.
    (
        "address-by-pipe",
        &[
            "sh",
            "-c",
            "IP=$(hostname -i | awk '{print $1}')\nexec etcd --listen-client-urls https://$IP:2379 --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "number-by-pipe",
        &["sh", "-c", "N=$(echo $X | head -n 1 | cut -d- -f2)\nexec etcd --name e$N --cert-file=/x"],
        &[],
        Some(("X", "etcd-0")),
        Injected,
    ),
    (
        "flag-by-pipe",
        &["sh", "-c", "F=$(echo a:--cert-file=/x | cut -d: -f2)\nexec etcd $F"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    (
        "flags-by-pipe",
        &["sh", "-c", "F=$(echo --name a --cert-file=/x | head -n 1)\nexec etcd $F"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    // The separator of words.
    (
        "joined-by-comma",
        &["bash", "-c", "A=(--cert-file=/x --key-file=/y); IFS=,; exec etcd \"${A[*]}\""],
        &[],
        None,
        Injected,
    ),
    ("parted-by-comma", &["sh", "-c", "IFS=,; F=--cert-file=/x,--key-file=/y; exec etcd $F"], &[], None, Injected),
    (
        "joined-in-a-process",
        &[
            "bash",
            "-c",
            "A=(a=https://a:2380 b=https://b:2380); C=$(IFS=,; echo \"${A[*]}\"); F='--cert-file=/x --key-file=/y'\nexec etcd --initial-cluster $C $F",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "joined-in-a-function",
        &[
            "bash",
            "-c",
            "join_by() { local IFS=\"$1\"; shift; echo \"$*\"; }\nF='--cert-file=/x --key-file=/y'\nexec etcd --initial-cluster $(join_by , a=https://a b=https://b) $F",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "lines-read",
        &[
            "sh",
            "-c",
            "while IFS= read -r line; do :; done < /dev/null\nF='--cert-file=/x --key-file=/y'; exec etcd $F",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "unknown-separator",
        &["sh", "-c", "IFS=$X; F=--name:a; exec etcd $F"],
        &[],
        Some(("X", ":")),
        Refused("may hold any flags"),
    ),
    // What `etcdctl member add` prints sets four variables, none of them an option of TLS.
    (
        "added-member",
        &[
            "sh",
            "-c",
            "if [ -d . ]; then\netcdctl member add a --peer-urls=https://a:2380 | grep ^ETCD_ > @WORK@/new\nif [ -e ./none ]; then rm -f @WORK@/new; exit 1; fi\n. @WORK@/new\nexec etcd --cert-file=/x --initial-cluster ${ETCD_INITIAL_CLUSTER} --name b\nfi\nexec etcd --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "added-member-by-eval",
        &[
            "sh",
            "-c",
            "eval $(etcdctl member add a --peer-urls=https://a:2380 | grep ^ETCD_)\nexec etcd --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "added-and-another",
        &[
            "sh",
            "-c",
            "etcdctl member add a | grep ^ETCD_ > @WORK@/new\necho ETCD_CERT_FILE=/x > @WORK@/old\nmv @WORK@/old @WORK@/new\n. @WORK@/new\nexec etcd --cert-file=/x",
        ],
        &[],
        None,
        Refused("uses ., which is not supported"),
    ),
];

#[test]
fn each_kind_from_the_field_becomes_what_is_right_for_it() {
    let (faults, _) = faults("field", FIELD);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
