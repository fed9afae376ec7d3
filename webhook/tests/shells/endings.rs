//! What real shells do when their etcd is ended, against what admission says of their scripts.

use std::{os::unix::process::CommandExt, process::Child};

use super::*;

/// What admission says of a script.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    /// Nothing: etcd comes back.
    Ends,
    Unknown,
    GoesOn,
}
use Word::{Ends, GoesOn, Unknown};

/// How long a shell is watched that goes on.
const WATCHED: Duration = Duration::from_millis(1500);
const DEADLINE: Duration = Duration::from_secs(120);

/// Scripts, and what admission says of them; the last etcd is ended.
const SCRIPTS: &[(&str, Word)] = &[
    ("etcd", Ends),
    ("exec etcd --name a", Ends),
    ("echo starting; mkdir -p ./d; exec etcd", Ends),
    ("etcd || true", Ends),
    ("etcd; echo ended", Ends),
    ("etcd; exit 1", Ends),
    ("etcd & wait", Ends),
    ("etcd & wait $!", Ends),
    ("etcd & P=$!\nsleep 1000 &\nwait $P", Ends),
    ("etcd &\nPID=$!\ntrap 'kill $PID; sleep 1000' TERM\nwait $PID", Ends),
    ("while true; do sleep 3600; done & etcd", Ends),
    ("etcd 2>&1 | cat", Ends),
    ("etcd | while read -r line; do echo $line; done", Ends),
    ("sh -c 'exec etcd'", Ends),
    ("run() { exec etcd \"$@\"; }; run --name a; sleep 1000", Ends),
    ("if [ -d / ]; then exec etcd; else sleep infinity; fi", Ends),
    ("while true; do etcd; done", Ends),
    ("while true; do etcd --name a; sleep 0.1; done & sleep infinity", Ends),
    ("while :; do etcd & wait; done", Ends),
    ("until etcd; do sleep 0.1; done", Ends),
    ("while true; do if [ -d / ]; then exec etcd; fi; sleep 5; done", Ends),
    ("etcd --name first & P=$!; sleep 1; kill $P; wait $P; exec etcd", Ends),
    ("etcd & tail -f /dev/null", GoesOn),
    ("etcd & sleep infinity", GoesOn),
    ("etcd & exec sleep infinity", GoesOn),
    ("etcd; sleep infinity", GoesOn),
    ("etcd || true; sleep infinity", GoesOn),
    ("etcd | cat; sleep infinity", GoesOn),
    ("(exec etcd); sleep infinity", GoesOn),
    ("exec etcd | cat; tail -f /dev/null", GoesOn),
    ("sh -c 'exec etcd'; tail -f /dev/null", GoesOn),
    ("run() { etcd \"$@\"; sleep infinity; }; run", GoesOn),
    ("etcd & while true; do sleep 60; done", GoesOn),
    ("etcd & while sleep 60; do date; done", GoesOn),
    ("etcd &\ntail -f /dev/null &\nwait", GoesOn),
    ("tail -f /dev/null & etcd; wait", GoesOn),
    ("(etcd; sleep infinity) & wait", Unknown),
    ("etcd || sleep infinity", Unknown),
    ("etcd && sleep infinity", Unknown),
    ("set -e; etcd; sleep infinity", Unknown),
    ("set -e; while true; do etcd; done & sleep 1000", Unknown),
    ("etcd || exit 1; sleep infinity", Unknown),
    ("etcd; sleep 1000000", Unknown),
    ("etcd & if [ -d / ]; then sleep 1000; fi", Unknown),
    ("etcd | (cat; sleep 1000)", Unknown),
    ("trap 'sleep 1000' EXIT; etcd", Unknown),
    ("trap 'sleep 1000' CHLD; etcd", Unknown),
    ("while true; do if [ ! -e ./once ]; then touch ./once; etcd; fi; sleep 1; done", Unknown),
    ("while true; do if [ -e ./once ]; then sleep 1; continue; fi; touch ./once; etcd; done", Unknown),
    ("while true; do [ -e ./once ] && sleep 1000; touch ./once; etcd; done", Unknown),
    ("etcd & until etcdctl endpoint health; do sleep 0.1; done; wait", Unknown),
    ("etcd & while kill -0 $!; do sleep 0.1; done", Unknown),
];

/// What admission says of a pod with this command.
fn word(command: &[&str], script: &str) -> Word {
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).chain([script.to_owned()]).collect();
    let case = Case { tool: Tool::Etcd, command, args: Vec::new(), environment: String::new() };
    let (_, warnings) = injected(&case).unwrap_or_else(|| panic!("{script}: refused"));
    let said: Vec<&String> =
        warnings.iter().filter(|w| w.contains("when etcd ends") || w.contains("ends with etcd")).collect();
    assert!(said.len() <= 1 && said.iter().all(|w| w.chars().count() < 400), "{script}: {said:?}");
    match said.first() {
        None => Ends,
        Some(said) if said.contains("goes on when etcd ends") => GoesOn,
        Some(said) => {
            assert!(said.contains("unknown whether its script ends with etcd"), "{said}");
            Unknown
        }
    }
}

/// A directory with an etcd that notes its process and waits to be ended, and a shell that was started there.
struct Started {
    directory: PathBuf,
    child: Child,
}

impl Started {
    fn new(programs: &Path, at: &str, command: &[&str], script: &str) -> Self {
        let directory = programs.join(at);
        fs::create_dir_all(&directory).unwrap();
        let child = Command::new(command[0])
            .args(&command[1..])
            .arg(script)
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", programs.join("bin").display()))
            .env("RUNS", directory.join("runs"))
            .current_dir(&directory)
            // A group of its own, which is ended as a whole.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { directory, child }
    }

    fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("runs")).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    /// Ends etcd as the sidecar does. Whether the shell ends then, or starts another; it is waited for if that is `expected`.
    fn comes_back(&mut self, runs: usize, expected: bool) -> Result<bool, String> {
        wait_until(|| self.runs().len() >= runs).map_err(|()| "etcd does not start".to_owned())?;
        let etcd = self.runs()[runs - 1].clone();
        assert!(Command::new("kill").args(["-TERM", &etcd]).status().unwrap().success());
        let state = || fs::read_to_string(format!("/proc/{etcd}/stat")).unwrap_or_default();
        let ended = |state: String| {
            state
                .rsplit(')')
                .next()
                .is_none_or(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('Z'))
        };
        wait_until(|| ended(state())).map_err(|()| "etcd does not end".to_owned())?;
        let mut back = || self.child.try_wait().unwrap().is_some() || self.runs().len() > runs;
        if expected {
            return Ok(wait_until(back).is_ok());
        }
        std::thread::sleep(WATCHED);
        Ok(back())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

fn wait_until(mut done: impl FnMut() -> bool) -> Result<(), ()> {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > DEADLINE {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

struct Programs(PathBuf);

impl Programs {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("etcd-tls-endings-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("bin")).unwrap();
        for (name, text) in
            [("etcd", "#!/bin/sh\necho $$ >> \"$RUNS\"\nexec sleep 300\n"), ("etcdctl", "#!/bin/sh\nexit 0\n")]
        {
            let path = root.join("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(root)
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Does `each` for all of `items`, several at a time; the faults.
fn faults<T: Sync>(items: &[T], each: impl Fn(usize, &T) -> Option<String> + Sync) -> Vec<String> {
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    let fault = each(at, item);
                    faults.lock().unwrap().extend(fault);
                }
            });
        }
    });
    faults.into_inner().unwrap()
}

#[test]
fn admission_says_what_a_real_shell_does_when_its_etcd_ends() {
    let programs = Programs::new("table");
    let shells = [&["sh", "-c"][..], &["bash", "-c"]];
    let cases: Vec<_> = SCRIPTS.iter().flat_map(|case| shells.iter().map(move |shell| (case, *shell))).collect();
    let faults = faults(&cases, |at, ((script, expected), shell)| {
        let said = word(shell, script);
        if said != *expected {
            return Some(format!("{shell:?} {script}: {said:?} is said, not {expected:?}"));
        }
        if said == Unknown {
            return None;
        }
        let mut started = Started::new(&programs.0, &at.to_string(), shell, script);
        let runs = 1 + usize::from(script.contains("first"));
        match started.comes_back(runs, said == Ends) {
            Ok(back) if back == (said == Ends) => None,
            other => Some(format!("{shell:?} {script}: {said:?} is said, and of its return is seen: {other:?}")),
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A script of parts before, around and behind etcd.
fn composed(random: &mut Random) -> String {
    let before = random.pick(&[
        "",
        "",
        "",
        "sleep 1000 &\n",
        "true\n",
        "trap 'exit 0' TERM\n",
        "trap 'sleep 1000' EXIT\n",
        "stop() { sleep 1000; }\n",
        "for i in 1 2; do echo $i; done\n",
        "while true; do sleep 1000; done &\n",
        "echo \"exec etcd\" > ./run\n",
        "set -e\n",
    ]);
    let etcd = random.pick(&[
        "etcd",
        "etcd",
        "exec etcd",
        "(etcd)",
        "(etcd; sleep 1000)",
        "{ etcd; true; }",
        "sh -c etcd",
        "sh -c 'etcd; sleep 1000'",
        "sh ./run",
        "nice etcd",
        "if [ -d / ]; then etcd; fi",
        "if [ -d / ]; then exec etcd; else sleep 1000; fi",
        "[ -d / ] && etcd",
        "f() { etcd; }; f",
        "f() { exec etcd; }; f",
        "f() { etcd & }; f",
        "while true; do etcd; sleep 0.1; done",
        "while true; do etcd; break; done",
        "while [ ! -e ./x ]; do touch ./x; etcd; done",
        "until etcd; do sleep 0.1; done",
        "for i in 1 2; do etcd; done",
        "etcd | cat",
        "etcd | (cat; sleep 1000)",
        "exec etcd | tee ./log",
        "sleep 1000 | etcd",
        "true | etcd",
        "eval 'etcd; sleep 1000'",
        "echo 'etcd; sleep 1000' | sh",
        "sh <<X\netcd &\nX\n",
        "etcd > ./log 2>&1",
        "exec etcd > ./log",
    ]);
    let join = random.pick(&[
        "\n",
        "\n",
        " &\n",
        " &\n",
        " || true\n",
        " && true\n",
        " || sleep 1000\n",
        " || exit 3\n",
        " & P=$!\n",
    ]);
    let behind = [
        "",
        "wait",
        "wait $!",
        "wait ${P:-$!}",
        "sleep 1000",
        "sleep 1000 & wait",
        "sleep 1000 & wait $!",
        "tail -f /dev/null",
        "exit 0",
        "echo done",
        "[ -e ./nope ] && sleep 1000",
        "[ -d / ] && sleep 1000",
        "while true; do sleep 1000; done",
        "while true; do sleep 1000; done & wait",
        "while true; do [ -e ./y ] && break; touch ./y; done",
        "cat",
        "read line",
        "exec sleep 1000",
        "kill $! ; sleep 1000",
        "stop",
        "$(sleep 1000)",
        "X=$(sleep 1000)",
        "exec sh -c 'sleep 1000'",
        "true | sleep 1000",
        "case x in x) sleep 1000;; esac",
        "until false; do sleep 1000; done",
    ];
    let (first, second) = (random.pick(&behind), random.pick(&behind));
    let second = if random.below(2) == 0 { second } else { "" };
    format!("{before}{etcd}{join}{first}\n{second}")
}

#[test]
fn no_composed_script_goes_on_of_which_admission_says_nothing() {
    let programs = Programs::new("composed");
    let mut random = Random(SEED);
    let cases: Vec<(String, &[&str])> = (0..600)
        .map(|_| {
            let script = composed(&mut random);
            (script, if random.below(2) == 0 { &["sh", "-c"][..] } else { &["bash", "-c"] })
        })
        .collect();
    let (tried, silent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let faults = faults(&cases, |at, (script, shell)| {
        let case = Case {
            tool: Tool::Etcd,
            command: shell.iter().map(|w| (*w).to_owned()).chain([script.clone()]).collect(),
            args: Vec::new(),
            environment: String::new(),
        };
        injected(&case)?;
        tried.fetch_add(1, Ordering::Relaxed);
        if word(shell, script) != Ends {
            return None;
        }
        silent.fetch_add(1, Ordering::Relaxed);
        let mut started = Started::new(&programs.0, &at.to_string(), shell, script);
        match started.comes_back(1, true) {
            Ok(true) => None,
            other => Some(format!("{shell:?} {script:?}: {other:?}")),
        }
    });
    let (tried, silent) = (tried.into_inner(), silent.into_inner());
    assert!(faults.is_empty(), "{} of {silent} faults:\n{}", faults.len(), faults.join("\n"));
    assert!(
        tried > 300 && silent > 40,
        "{tried} of {} are injected into, {silent} of them without a word",
        cases.len()
    );
}
