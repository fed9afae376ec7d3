//! A directory with stand-ins for etcd, etcdctl and the programs that start others, in which injected command lines run.

use super::*;

/// The options that an injected member gets.
const ETCD: [&str; 10] = [
    "cert-file",
    "key-file",
    "trusted-ca-file",
    "client-cert-auth",
    "client-crl-file",
    "peer-cert-file",
    "peer-key-file",
    "peer-trusted-ca-file",
    "peer-client-cert-auth",
    "peer-crl-file",
];
/// The options that an injected client gets.
const ETCDCTL: [&str; 3] = ["cacert", "cert", "key"];
/// Flags without a value.
const SWITCHES: &str = "client-cert-auth|peer-client-cert-auth|insecure-skip-tls-verify";

const SHIFT: &str = "shift\nexec \"$@\"\n";
/// As with sudo's `env_reset`: the environment is kept with `-E` alone.
const SUDO: &str = r#"keep=
while [ $# -gt 0 ]; do case $1 in
--) shift; break;;
--preserve-env) keep=1; shift;;
--*) shift;;
-[ugCp]) shift 2;;
-*E*) keep=1; shift;;
-*) shift;;
*) break;;
esac; done
[ "$keep" ] && exec env "$@"
exec env -i "PATH=$PATH" "$@"
"#;
/// A login shell has an environment of its own.
const SU: &str = r#"login= script=
while [ $# -gt 0 ]; do case $1 in
-|-l|--login) login=1; shift;;
-c) script=$2; shift 2;;
-s) shift 2;;
-*) shift;;
*) shift; break;;
esac; done
while [ $# -gt 0 ]; do case $1 in -c) script=$2; shift 2;; *) break;; esac; done
[ "$login" ] && exec env -i "PATH=$PATH" sh -c "$script" "$@"
exec sh -c "$script" "$@"
"#;
const RUNUSER: &str = r#"[ "$1" = -u ] || exec su "$@"
shift 2
[ "$1" = -- ] && shift
exec "$@"
"#;
const SETPRIV: &str = r#"clear=
while [ $# -gt 0 ]; do case $1 in
--) shift; break;;
--reset-env) clear=1; shift;;
--*) shift;;
*) break;;
esac; done
[ "$clear" ] && exec env -i "PATH=$PATH" "$@"
exec "$@"
"#;
/// What a manifest's script asks of its surroundings.
const FINE: &str = "exit 0\n";

/// A stand-in with the rule of both programs: an option by flag and by variable is fatal. Its verdict goes to a file beside the
/// folder from which it is called, so no redirection hides it.
fn stand_in(program: &str, options: &[&str]) -> String {
    let mut text =
        String::from("verdict=${0%/*}\nverdict=${verdict%/*}/verdict\nflags=\nvalue=\nfor word in \"$@\"; do\n");
    // The word behind a flag that takes one is its value.
    text.push_str("[ \"$value\" ] && { value=; continue; }\ncase $word in\n--version|--help|-h) exit 0;;\n");
    text.push_str("-*) name=${word#-}; name=${name#-}; flags=\"$flags|${name%%=*}|\"\n");
    text.push_str(&format!("case $name in *=*|{SWITCHES}) ;; *) value=1;; esac;;\nesac; done\nsaid=\nbad=0\n"));
    for option in options {
        let variable = format!("{}_{}", program.to_uppercase(), option.to_uppercase().replace('-', "_"));
        text.push_str(&format!(
            "case $flags in *'|{option}|'*) [ \"${{{variable}+x}}\" ] && {{ bad=1; said=\"$said CONFLICT:{option}\"; }};; \
             *) [ \"${{{variable}+x}}\" ] || said=\"$said MISSING:{option}\";; esac\n"
        ));
    }
    text.push_str(&format!("echo \"RAN {program}$said $*\" >> \"$verdict\"\nexit $bad\n"));
    text
}

pub(super) struct Laboratory(PathBuf);

impl Laboratory {
    pub(super) fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("etcd-tls-shells-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("bin")).unwrap();
        let lab = Self(root);
        let (etcd, etcdctl) = (stand_in("etcd", &ETCD), stand_in("etcdctl", &ETCDCTL));
        for (program, text) in [
            ("etcd", etcd.as_str()),
            ("etcdctl", &etcdctl),
            ("gosu", SHIFT),
            ("su-exec", SHIFT),
            ("s6-setuidgid", SHIFT),
            ("tini", SHIFT),
            ("chroot", SHIFT),
            ("sudo", SUDO),
            ("su", SU),
            ("runuser", RUNUSER),
            ("setpriv", SETPRIV),
            ("ss", FINE),
            ("nslookup", FINE),
        ] {
            lab.program(program, text);
        }
        lab
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.0.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The directory of a case: `work`, where its command runs, and `bin`.
    pub(super) fn case(&self, at: usize) -> PathBuf {
        let directory = self.0.join(format!("case-{at}"));
        fs::create_dir_all(directory.join("work")).unwrap();
        std::os::unix::fs::symlink(self.0.join("bin"), directory.join("bin")).unwrap();
        directory
    }

    /// What the stand-ins say when the command of an injected container runs.
    pub(super) fn run(&self, container: &Value, at: usize) -> String {
        let directory = self.case(at);
        let said = run_in(&directory, container);
        let _ = fs::remove_dir_all(directory);
        said
    }
}

impl Drop for Laboratory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The same in the directory of a case.
pub(super) fn run_in(directory: &Path, container: &Value) -> String {
    let variables: BTreeMap<&str, &str> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| (entry["name"].as_str().unwrap(), entry["value"].as_str().unwrap_or("10.0.0.7")))
        .collect();
    let list = |field: &str| container[field].as_array().cloned().unwrap_or_default();
    let words: Vec<String> =
        [list("command"), list("args")].concat().iter().map(|w| expanded(w.as_str().unwrap(), &variables)).collect();
    let status = Command::new("timeout")
        .arg("20")
        .args(&words)
        .env_clear()
        .envs(variables)
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", directory.join("bin").display()))
        .env("HOSTNAME", "etcd-0")
        .current_dir(directory.join("work"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok(), "{status:?}");
    fs::read_to_string(directory.join("verdict")).unwrap_or_default()
}

/// `$(NAME)` as kubelet puts it in.
fn expanded(word: &str, variables: &BTreeMap<&str, &str>) -> String {
    variables.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("$({name})"), value))
}

pub(super) fn options() -> Options {
    let injection = Config { sidecar_image: "etcd-tls-sidecar:test".to_owned(), ..Config::default() };
    Options { injection, namespace: "default".to_owned() }
}

/// The injected container and the warnings, or the refusal.
pub(super) fn judged(case: &Case) -> Result<(Value, Vec<String>), String> {
    let container = json!({
        "name": "etcd", "image": "etcd", "command": case.command, "args": case.args,
        "env": [{"name": "ENVIRONMENT", "value": case.environment}],
        "securityContext": {"runAsUser": 1001},
    });
    let annotations = match case.tool {
        Tool::Etcd => json!({}),
        Tool::Etcdctl => json!({"etcd-tls.dev/roles": "client", "etcd-tls.dev/containers": "etcd"}),
    };
    let metadata = json!({"name": "etcd-0", "annotations": annotations});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}});
    let done = inject(&pod.to_string(), &options()).map_err(|error| error.to_string())?;
    let pod: Value = serde_json::from_str(&done.text).unwrap();
    Ok((pod["spec"]["containers"][0].clone(), done.warnings))
}

/// The injected container and the warnings; `None`: refused.
pub(super) fn injected(case: &Case) -> Option<(Value, Vec<String>)> {
    judged(case).ok()
}

/// What came of trying cases.
pub(super) struct Tried {
    pub(super) faults: Vec<String>,
    pub(super) tried: usize,
    /// Of them, injected into.
    pub(super) injected: usize,
    /// Of them, those that ran their program.
    pub(super) ran: usize,
}

/// Tries `cases`, as many as the time allows.
pub(super) fn try_all(name: &str, cases: &[Case]) -> Tried {
    let laboratory = Laboratory::new(name);
    let (next, done, ran, started) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0), Instant::now());
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while started.elapsed() < TIME {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(at) else { break };
                    let Some((container, warnings)) = injected(case) else { continue };
                    done.fetch_add(1, Ordering::Relaxed);
                    let said = laboratory.run(&container, at);
                    ran.fetch_add(usize::from(said.contains("RAN")), Ordering::Relaxed);
                    let warned = |of: &str| warnings.iter().any(|w| w.contains(of));
                    let lacking = said.split(' ').filter_map(|word| word.strip_prefix("MISSING:"));
                    // Of a revocation list that etcd cannot be given, the warning is its own.
                    let missing = lacking.filter(|o| !o.ends_with("crl-file") || !warned("accepts revoked")).count()
                        > 0
                        && !warned("is the pod's own")
                        && !warned("without");
                    if said.contains("CONFLICT") || missing {
                        faults.lock().unwrap().push(format!("case {at}: {case:?}\n{said}{warnings:#?}"));
                    }
                }
            });
        }
    });
    Tried {
        faults: faults.into_inner().unwrap(),
        tried: next.into_inner().min(cases.len()),
        injected: done.into_inner(),
        ran: ran.into_inner(),
    }
}
