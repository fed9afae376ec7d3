//! Command lines, put together at random.

use super::*;

impl Random {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    pub(super) fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    pub(super) fn flag(&mut self) -> String {
        self.pick(&[
            "--cert-file=/x",
            "--key-file=/y",
            "--cert-file /x",
            "--trusted-ca-file=/z",
            "--client-cert-auth",
            "-peer-cert-file=/p",
            "--peer-key-file /q",
            "--client-crl-file=/c",
            "--peer-crl-file /c",
            "--name=a",
            "--name b",
            "--data-dir=/d",
            "--initial-cluster-state new",
        ])
        .to_owned()
    }

    /// A flag in one of the ways in which it can be written.
    pub(super) fn spelled(&mut self) -> String {
        let flag = self.flag();
        let (name, value) = flag.split_once(['=', ' ']).unwrap_or((&flag, ""));
        match self.below(9) {
            0 if !value.is_empty() => format!("{name}=\"{value}\""),
            1 if !value.is_empty() => format!("\"{name}\"='{value}'"),
            2 => format!("'{name}'{}", if value.is_empty() { String::new() } else { format!(" \"{value}\"") }),
            3 => flag.replacen("-f", "\"-f\"", 1),
            4 => flag.replacen('e', "\\e", 1),
            5 => flag.replacen('=', " \\\n  ", 1),
            _ => flag,
        }
    }

    fn flags(&mut self) -> String {
        (0..=self.below(2)).map(|_| self.flag()).collect::<Vec<_>>().join(" ")
    }

    /// Something in etcd's place for arguments.
    fn argument(&mut self) -> String {
        let flag = self.flag();
        match self.below(32) {
            19 => "${A:1}".to_owned(),
            20 => "\"${A%x}\"".to_owned(),
            21 => "--name \"${A//,/ }\"".to_owned(),
            22 => "--name ${HOSTNAME^^}".to_owned(),
            23 => "--data-dir=\"${ENVIRONMENT:0:4}\"".to_owned(),
            24 => "\"${L[0]}\"".to_owned(),
            25 => "--name ${HOSTNAME//-/.} ${B/a/b}".to_owned(),
            26 => "\"${@:1}\"".to_owned(),
            0 => "$A".to_owned(),
            1 => "\"$A\"".to_owned(),
            2 => "${B}".to_owned(),
            3 => "\"$@\"".to_owned(),
            4 => "$*".to_owned(),
            5 => format!("${{A:-{flag}}}"),
            6 => format!("${{B:+{flag}}}"),
            7 => format!("$(echo {flag})"),
            8 => format!("`echo {flag}`"),
            9 => "\"${L[@]}\"".to_owned(),
            10 => "--{cert,key}-file=/x".to_owned(),
            11 => "${A#x }".to_owned(),
            12 => "\"--name=$HOSTNAME\"".to_owned(),
            13 => "--name $(hostname)".to_owned(),
            14 => "$1".to_owned(),
            15 => "$(f)".to_owned(),
            16 => "--name=\"${A}\"".to_owned(),
            17 => "--data-dir=/d/$((1 + 1))".to_owned(),
            18 => "${ENVIRONMENT}".to_owned(),
            _ => self.spelled(),
        }
    }

    fn etcd(&mut self) -> String {
        let arguments = (0..self.below(4)).map(|_| self.argument()).collect::<Vec<_>>().join(" ");
        format!("etcd {arguments}").trim_end().to_owned()
    }

    /// A statement before etcd.
    fn statement(&mut self, depth: usize) -> String {
        let (flags, flag) = (self.flags(), self.flag());
        let name = self.pick(&["A", "B"]);
        let inner = |random: &mut Self| if depth < 2 { random.statement(depth + 1) } else { "true".to_owned() };
        match self.below(61) {
            55 => format!("cat > ./run <<'EOF'\n#!/bin/sh\nexec etcd {flag} \"$@\"\nEOF\nchmod +x ./run"),
            56 => format!("echo 'etcd {flag}' >> ./run"),
            57 => format!("printf '%s\\n' '#!/bin/sh -e' 'exec etcd {flag}' > run && chmod +x run"),
            58 => format!("cat > ./run <<EOF\n{name}='{flag}'\nexec etcd \\${name} ${name} \\\\\nEOF\nchmod +x ./run"),
            59 => format!("echo \"{name}='{flags}'\" > ./file; cat ./file > ./run; . ./file"),
            60 => self
                .pick(&[
                    "sed -i s/cert-file/key-file/ ./run",
                    "cp ./file ./run",
                    "cd ..",
                    "rm -f ./run",
                    "mv ./file run",
                    ": > ./run",
                    "(echo 'etcd --cert-file=/x' > ./run)",
                    "[ -d /nope ] || echo 'etcd --key-file=/y' > ./run",
                    "set -C",
                    "sh -c 'echo etcd --trusted-ca-file=/z >> ./run'",
                    "echo 'etcd --client-cert-auth' | tee ./run",
                    "for f in ./run; do echo 'exec etcd --cert-file=/x' > $f; done",
                    "exec > ./run",
                ])
                .to_owned(),
            41 => format!("for ((i = 0; i < 2; i++)); do {name}=\"${name} {flag}\"; done"),
            42 => format!("((n = 1)); {name}=\"{flag}\"; ((n++))"),
            43 => format!("f() {{ etcd {flag}; }}\n((f))"),
            44 => format!("E='etcd {flag}'\n(( $E ))"),
            45 => format!("L[0]='{flag}'"),
            46 => format!("declare -A M=([a]='{flag}')\n{name}=\"${{M[a]}}\""),
            47 => format!("printf -v {name} '%s' '{flag}'"),
            48 => format!("{name}=\"x{flag}\"; {name}=\"${{{name}:1}}\""),
            49 => format!("{name}=\"{}\"; {name}=${{{name},,}}", flag.to_uppercase()),
            50 => format!("{name}=\"${{{name}/a/ {flag}}}\""),
            51 => format!("sh <<-EOF\n\t{name}='{flag}'\n\tetcd ${name}\n\tEOF"),
            52 => format!("exec --no-such-option; {name}='{flag}'"),
            53 => format!("for i in {{1..2}}; do {name}=\"${name} {flag}\"; done"),
            54 => format!("let i=1; {name}=\"$(({name}=1))\""),
            38 => format!("mapfile -t L <<< \"{flag}\""),
            39 => format!("readarray -t L <<EOF\n{flag}\n${name}\nEOF"),
            40 => format!("sh <<EOF\n{name}={}\nEOF", flag.replace(' ', "\\ ")),
            0..3 => format!("{name}=\"{flags}\""),
            3 => format!("{name}='{flag}'"),
            4 => format!("{name}=\"${name} {flags}\""),
            5 => format!("{name}+=\" {flag}\""),
            6 => format!("export {name}='{flags}'"),
            7 => format!("{name}={}", flag.replace(' ', "\\ ")),
            8 => format!("if [ -f /nope ]; then {}; else {}; fi", inner(self), inner(self)),
            9 => format!("for i in 1 2; do {}; done", inner(self)),
            10 => format!("for f in cert-file=/x name=a; do {name}=\"${name} --$f\"; done"),
            11 => format!("case x in y) {};; *) {};; esac", inner(self), inner(self)),
            12 => format!("[ -d /nope ] && {{ {}; }}", inner(self)),
            13 => format!("[ -d / ] && {name}='{flags}' || true"),
            14 => format!("set -- {flags}"),
            15 => format!("set -- \"$@\" {flags}"),
            16 => "shift".to_owned(),
            17 => format!("L=({flags})"),
            18 => format!("L+=({flag})"),
            19 => format!("f() {{ echo \"{flag}\"; }}"),
            20 => format!("f() {{ {}; }}\nf", inner(self)),
            21 => format!("g() {{ local {name}=\"{flag}\"; {}; }}\ng", inner(self)),
            22 => format!("cat > ./run <<EOF\n#!/bin/sh\netcd {flag}\nEOF\nchmod +x ./run"),
            23 => format!("echo \"{name}='{flags}'\" > ./file; . ./file"),
            24 => format!("eval \"{name}='{flags}'\""),
            25 => format!("read {name} <<X\n{flag}\nX"),
            26 => format!("echo '{flag}' | while read -r x; do {name}=\"$x\"; done"),
            27 => format!("( {} )", inner(self)),
            28 => format!("unset {name}"),
            29 => format!("{name}='{flags}' true"),
            30 => format!(": \"${{{name}:={flag}}}\""),
            31 => format!("{name}=$(echo {flag})"),
            32 => format!("while false; do {}; done", inner(self)),
            33 => format!("IFS=,; {name}=\"--name=a,{flag}\""),
            34 => self
                .pick(&["export ETCD_CERT_FILE=/e", "unset ETCD_CERT_FILE", "ETCD_KEY_FILE=/e", "export ETCD_NAME=n"])
                .to_owned(),
            35 => format!("{name}=`echo {flag}`"),
            36 => format!("alias etcd='etcd {flag}'"),
            _ => self
                .pick(&[
                    "set -e",
                    "set -x",
                    "mkdir -p ./d",
                    "sleep 0",
                    "echo starting",
                    "trap '' TERM",
                    "etcd --version",
                ])
                .to_owned(),
        }
    }

    /// The command that runs etcd.
    fn run(&mut self) -> String {
        let etcd = self.etcd();
        match self.below(53) {
            43..51 => self.as_a_user(),
            39..=41 => {
                let flags = self.flags();
                self.pick(&[
                    "exec ./run",
                    ". ./run",
                    "sh ./run",
                    "./run",
                    "gosu etcd ./run",
                    "bash -e ./run x",
                    "{ ./run; }",
                ])
                .to_owned()
                    + " "
                    + &flags
            }
            33 => format!("cat <<EOF | sh\n{etcd}\nEOF"),
            34 => format!("cat <<'EOF' | gosu etcd sh -e\n{}\n{etcd}\nEOF", self.statement(1)),
            35 => format!("sh <<< \"{}\"", etcd.replace('"', "\\\"")),
            36 => format!("bash <<'EOF'\n{}\nread X\n{etcd}\nEOF", self.statement(1)),
            37 => format!("{{ echo '{}'; }} | sh", etcd.replace('\'', "")),
            38 => format!("echo \"{}\" | {{ cat > /dev/null; sh; }}", etcd.replace('"', "\\\"")),
            0..7 => etcd,
            7..12 => format!("exec {etcd}"),
            12 => format!("command {etcd}"),
            13 => format!("env X=1 {etcd}"),
            14 => format!("env ETCD_CERT_FILE=/e {etcd}"),
            15 => format!("exec gosu etcd {etcd}"),
            16 => format!("sh -c \"{}\"", etcd.replace('"', "\\\"")),
            17 => format!("sh -c '{}' sh {}", etcd.replace('\'', ""), self.flags()),
            18 => format!("su-exec etcd sh -c '{}'", etcd.replace('\'', "")),
            19 => format!("eval \"{}\"", etcd.replace('"', "\\\"")),
            20 => format!("echo '{}' | sh", etcd.replace('\'', "")),
            21 => format!("echo {} | xargs etcd", self.flag()),
            22 => format!("r() {{ {etcd}; }}; r {}", self.flags()),
            23 => format!("r() {{ \"$@\"; }}; r {etcd}"),
            24 => format!("nice -n 5 {etcd}"),
            25 => format!("timeout 5 {etcd}"),
            26 => format!("( {etcd} )"),
            27 => format!("{etcd} & wait"),
            28 => format!("A=1 {etcd}"),
            29 => format!("P=etcd; exec $P {}", self.argument()),
            30 => format!("sh <<EOF\n{etcd}\nEOF"),
            31 => self
                .pick(&[
                    "./run",
                    "env -i PATH=\"$PATH\" etcd --name=a",
                    "sh ./file",
                    "exec \"$@\"",
                    "exec $(which etcd) --name=a",
                ])
                .to_owned(),
            32 => format!("if [ -f /nope ]; then {etcd}; else {}; fi", self.etcd()),
            _ => format!("true && {etcd} 2>&1 | cat"),
        }
    }

    /// A program that takes another user, or another root, runs etcd.
    fn as_a_user(&mut self) -> String {
        let (etcd, exec) = (self.etcd(), self.pick(&["", "exec "]));
        let wrapper = self.pick(&[
            "sudo -u etcd",
            "sudo -E -u etcd",
            "sudo -nE",
            "sudo --preserve-env -u etcd --",
            "sudo -E ETCD_CERT_FILE=/e",
            "sudo --preserve-env=ETCD_NAME -u etcd",
            "runuser -u etcd --",
            "runuser -u etcd",
            "setpriv --reuid=1001 --regid=1001 --clear-groups",
            "setpriv --reuid=1001 --keep-groups --",
            "setpriv --reset-env --reuid=1001 --init-groups",
            "s6-setuidgid etcd",
            "chroot /",
        ]);
        let script = etcd.replace(['\'', '\n', '\\'], "");
        match self.below(4) {
            0 => format!("{exec}{wrapper} sh -c '{script}'"),
            1 => {
                let su = self.pick(&[
                    "su etcd",
                    "su - etcd",
                    "su -m etcd",
                    "su -s /bin/sh etcd",
                    "runuser etcd",
                    "runuser -l etcd",
                ]);
                format!("{exec}{su} -c '{script}'")
            }
            _ => format!("{exec}{wrapper} {etcd}"),
        }
    }

    pub(super) fn case(&mut self) -> Case {
        let mut lines: Vec<String> = (0..self.below(4)).map(|_| self.statement(0)).collect();
        lines.push(self.run());
        let shell: &[&str] =
            [&["sh", "-c"][..], &["bash", "-c"], &["sh", "-ec"], &["busybox", "sh", "-c"]][self.below(4)];
        let mut command: Vec<String> = shell.iter().map(|s| (*s).to_owned()).collect();
        command.push(lines.join("\n"));
        let mut args = Vec::new();
        if self.below(4) == 0 {
            args = vec!["x".to_owned(), self.flag(), self.flag()];
        }
        let environment = if self.below(4) == 0 { self.flag() } else { "/data".to_owned() };
        Case { tool: Tool::Etcd, command, args, environment }
    }

    /// A script as manifests have it: variables, `exec`, a loop that puts the cluster together.
    pub(super) fn plain(&mut self) -> Case {
        let mut lines = vec!["set -e".to_owned()];
        for _ in 0..self.below(4) {
            let line = match self.below(23) {
                15 => "PEERS=\"\"\nfor ((i = 0; i < ${REPLICAS:-3}; i++)); do\n  PEERS+=\"${PEERS:+,}etcd-$i=https://etcd-$i.etcd:2380\"\ndone".to_owned(),
                16 => "PEERS=\"\"\nfor i in {0..2}; do PEERS=\"${PEERS}etcd-$i=https://etcd-$i.etcd:2380,\"; done\nPEERS=\"${PEERS%,}\"".to_owned(),
                17 => "declare -A SEEN=([a]=1)\nSEEN[b]=2".to_owned(),
                18 => "printf -v STATE '%s' new".to_owned(),
                19 => "(( ${#HOSTNAME} > 0 )) || exit 1".to_owned(),
                20 => "let n=1; ((n++)) || true".to_owned(),
                21 => "[[ $HOSTNAME =~ -([0-9]+)$ ]] && STATE=\"n${BASH_REMATCH[1]}\"".to_owned(),
                22 => "if [ \"${1:0:1}\" = \"-\" ]; then set -- etcd \"$@\"; fi".to_owned(),
                0 => "IP=$(hostname -i)".to_owned(),
                1 => "PEERS=\"\"\nfor i in $(seq 0 2); do\n  PEERS=\"${PEERS}${PEERS:+,}etcd-${i}=https://etcd-${i}.etcd:2380\"\ndone".to_owned(),
                2 => "if [ -d /nope ]; then STATE=existing; else STATE=new; fi".to_owned(),
                3 => format!("FLAGS=\"{}\"", self.flags()),
                4 => "mkdir -p ./data && chmod 700 ./data".to_owned(),
                5 => "echo \"starting ${HOSTNAME}\"".to_owned(),
                6 => "export ETCD_NAME=\"${HOSTNAME}\"".to_owned(),
                8 => "for f in cert-file=/x name=a; do LOOP=\"$LOOP --$f\"; done".to_owned(),
                9 => format!("LIST=({})\nif [ -d / ]; then LIST+=({}); fi", self.flags(), self.flag()),
                10 => format!("flags() {{\n  local flag=\"{}\"\n  echo \"$flag\"\n}}", self.flag()),
                11 => "function start { exec etcd --name=a \"$@\"; }\nSTART=start".to_owned(),
                12 => "cleanup() { kill -TERM $PID; }\ntrap cleanup TERM INT".to_owned(),
                13 => format!("FLAGS=\"{}\"\neval \"FLAGS='$FLAGS'\"", self.flags()),
                7 => "log() { echo \"$(date) $*\"; }\nlog starting".to_owned(),
                _ => "until true; do sleep 1; done".to_owned(),
            };
            lines.push(line);
        }
        let mut etcd = "exec etcd --data-dir=/var/lib/etcd".to_owned();
        let all = lines.join("\n");
        if all.contains("START=") {
            etcd = "start --data-dir=/var/lib/etcd".to_owned();
        }
        for (word, argument) in [
            ("IP=", " --listen-client-urls=https://${IP}:2379"),
            ("PEERS=", " \\\n  --initial-cluster \"${PEERS}\""),
            ("STATE", " --initial-cluster-state \"${STATE,,}\" --name \"${HOSTNAME//./-}\""),
            ("FLAGS=", " $FLAGS"),
            ("LOOP=", " $LOOP"),
            ("LIST=", " \"${LIST[@]}\""),
            ("flags()", " $(flags)"),
        ] {
            etcd.push_str(if all.contains(word) { argument } else { "" });
        }
        lines.push(etcd);
        Case {
            tool: Tool::Etcd,
            command: vec!["bash".to_owned(), "-c".to_owned(), lines.join("\n")],
            args: Vec::new(),
            environment: "/data".to_owned(),
        }
    }
}
