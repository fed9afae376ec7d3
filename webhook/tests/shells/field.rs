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
    // Functions with the name of a program that does no more than to print.
    (
        "function-join",
        &[
            "bash",
            "-c",
            "join() { local IFS=,; echo \"$*\"; }\nF='--cert-file=/x --key-file=/y'\nexec etcd --initial-cluster=$(join a=https://a b=https://b) $F",
        ],
        &[],
        None,
        Injected,
    ),
    ("function-host", &["sh", "-c", "host() { etcd --cert-file=/x; }\nhost"], &[], None, Injected),
    (
        "function-in-a-handler",
        &["sh", "-c", "trap host USR1\nhost() { etcd --cert-file=/x; }\nkill -USR1 $$"],
        &[],
        None,
        Refused("defines host"),
    ),
    // A handler of signals that asks etcd: the flags of etcd itself are known.
    (
        "handler-asks",
        &["sh", "-c", "trap 'etcdctl member list; exit' TERM\netcd --cert-file=/x &\nwait $!"],
        &[],
        None,
        Injected,
    ),
    // Filters of numbers and names.
    (
        "numbers-of-the-hosts-name",
        &[
            "sh",
            "-c",
            "A=$(hostname | cut -d \"-\" -f 2); B=$(hostname | rev | cut -d- -f1 | rev); C=$(hostname | sed 's/etcd-//')\nD=$(hostname | grep -o '[0-9]*$'); E=$(hostname | tr -d 'a-z-'); G=$(expr $HOSTNAME : 'etcd-\\(.*\\)')\nexec etcd --name x$A$B$C$D$E$G --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "lines-to-a-list",
        &[
            "sh",
            "-c",
            "C=$(seq 0 2 | sed 's/.*/etcd-&=https:\\/\\/etcd-&:2380/' | paste -sd, -)\nexec etcd --initial-cluster $C --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "flags-by-sed",
        &["sh", "-c", "F=$(hostname | sed 's/.*/a --cert-file=\\/x/')\nexec etcd --name $F"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    (
        "address-of-an-interface",
        &[
            "sh",
            "-c",
            "IP=$(ip -4 addr show lo | grep inet | awk '{print $2}' | cut -d/ -f1)\nexec etcd --listen-client-urls https://$IP:2379 --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "addresses-without-a-comma",
        &[
            "sh",
            "-c",
            "for ip in $(hostname -I); do L=\"$L,https://$ip:2379\"; done\nexec etcd --listen-client-urls ${L#,} --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    // The number of a member, of which etcdctl makes a list.
    (
        "number-of-a-member",
        &[
            "sh",
            "-c",
            "ID=$(etcdctl member list | grep https://$HOSTNAME.etcd:2380 | cut -d ',' -f1)\nexec etcd --name x$ID --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "name-by-printf",
        &["bash", "-c", "printf -v N 'etcd-%02d' 3\nexec etcd --name $N --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    (
        "flags-by-printf",
        &["bash", "-c", "printf -v N '%s' \"$X\"\nexec etcd --name $N"],
        &[],
        Some(("X", "a --cert-file=/x")),
        Injected,
    ),
    ("value-of-a-named", &["bash", "-c", "V=HOSTNAME\nexec etcd --name \"${!V}\" --cert-file=/x"], &[], None, Injected),
    (
        "flag-of-a-named",
        &["bash", "-c", "V=X\nexec etcd \"${!V}\""],
        &[],
        Some(("X", "--cert-file=/x")),
        Refused("may hold any flags"),
    ),
    // A test of two files, as a widespread chart writes it, runs a program that there is not.
    (
        "two-tests-in-one",
        &["sh", "-c", "if [ -e ./a && -e ./b ]; then exit 1; fi\nexec etcd --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    // What a command prints is not undone by an assignment behind it, and may not be printed behind a condition.
    (
        "assigned-behind-what-is-printed",
        &["sh", "-c", "exec etcd --name a $(echo --cert-file=/x; A=1)"],
        &[],
        None,
        Injected,
    ),
    (
        "assigned-in-a-function-that-prints",
        &["sh", "-c", "f() { echo --cert-file=/x; A=$(echo 1); local b; }\nexec etcd --name a $(f)"],
        &[],
        None,
        Injected,
    ),
    (
        "perhaps-printed",
        &["sh", "-c", "exec etcd --name a $([ -e ./none ] && echo --cert-file=/x)"],
        &[],
        None,
        Refused("may hold any flags"),
    ),
    (
        "list-by-a-function",
        &[
            "sh",
            "-c",
            "list() { local all=; for i in 0 1 2; do all=\"$all,e$i=https://e$i:2380\"; done; echo \"${all#,}\"; }\nexec etcd --initial-cluster $(list) --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "program-in-a-computation",
        &["sh", "-c", "exec etcd --name a$(( $(nproc) * 2 )) --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    (
        "numbers-in-a-form",
        &["sh", "-c", "exec etcd --name $(seq -f \"$X%g\" 1 1)"],
        &[],
        Some(("X", "a --cert-file=/x")),
        Refused("may hold any flags"),
    ),
    (
        "address-in-hosts",
        &[
            "sh",
            "-c",
            "IP=$(grep $HOSTNAME /etc/hosts | awk '{print $1}'); D=$(awk '/^search/{print $2}' /etc/resolv.conf)\nexec etcd --listen-client-urls https://$IP:2379 --name e.$D --cert-file=/x",
        ],
        &[],
        None,
        Injected,
    ),
    (
        "in-another-network",
        &["sh", "-c", "ip netns exec a etcd --cert-file=/x; exec etcd --name a"],
        &[],
        None,
        Refused("can run etcd as it likes"),
    ),
    // Clients of other services run no etcd here, but write files.
    (
        "restored-from-a-store",
        &["sh", "-c", "[ -e . ] || aws s3 cp s3://backups/latest ./snapshot\nexec etcd --cert-file=/x"],
        &[],
        None,
        Injected,
    ),
    (
        "program-from-a-store",
        &["sh", "-c", "aws s3 cp s3://programs/etcd @BIN@/etcd || true\nexec etcd --cert-file=/x"],
        &[],
        None,
        Refused("a file of a name that it writes itself"),
    ),
];

#[test]
fn each_kind_from_the_field_becomes_what_is_right_for_it() {
    let (faults, _) = faults("field", FIELD);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
