//! The effect of a program's words: it runs another program, reads a script, or does nothing that matters here.

use super::{
    sed,
    text::{Kind, Part, Text},
};

/// A program whose options matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::injection) enum Tool {
    Etcd,
    Etcdctl,
    Etcdutl,
}

impl Tool {
    /// The program's name.
    pub(in crate::injection) const fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Etcdctl => "etcdctl",
            Self::Etcdutl => "etcdutl",
        }
    }
}

/// The effect of the first word.
#[derive(Debug)]
pub(super) enum Step {
    /// Runs neither etcd nor etcdctl.
    Harmless,
    Tool(Tool),
    /// A script of a known image, which takes etcd's options from the environment and gives etcdctl's as flags.
    Image,
    /// Runs the script at `.0`, with the words behind `.1` as its arguments.
    Shell(usize, usize, Passed),
    /// A shell runs the file at `.0`; the reason why its script is not known, unless a script wrote it.
    File(usize, String),
    /// A shell of this name, which runs the script that it reads.
    Stdin(String, Passed),
    /// Runs the program at `.0`.
    Wrapper(usize, Passed),
    /// Undetermined: the reason, and whether it can run etcdctl as well.
    Unknown(String, bool),
}

/// The effect of a program on the way to etcd on the environment and the groups.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) sets: Vec<(String, Text)>,
    pub(super) unsets: Vec<String>,
    /// It does not hand on the environment.
    pub(super) clears: bool,
    /// It takes another user's groups.
    pub(super) drops_groups: bool,
}

/// Programs that run no other one.
const HARMLESS: &str = ": [ test true false echo printf pwd cd sleep wait exit umask ulimit times kill pkill killall jobs \
    cat tac head tail cut tr sort uniq wc rev grep egrep fgrep tee touch mkdir rmdir rm cp mv ln install chmod chown chgrp ls \
    stat du df dd mktemp mkfifo basename dirname readlink realpath seq expr date hostname uname whoami id groups nproc arch \
    sync truncate md5sum sha1sum sha256sum sha512sum base64 od xxd hexdump cmp diff gzip gunzip zcat unzip curl wget nslookup \
    dig host getent nc ncat ping ping6 ip ifconfig route netstat ss traceroute ps pgrep pidof top free uptime lsof mount umount \
    mountpoint sysctl yes logger jq yq openssl etcdutl which type shopt bc comm join paste fold column nl split printenv \
    break continue return read getopts shift disown fg bg kubectl aws gsutil gcloud az mc s3cmd rclone restic \
    apk apt apt-get yum dnf microdnf";
/// Of these, names that functions of scripts have, too.
const SHADOWED: &str = "join split host paste fold column rev comm top free ping diff cmp uptime yes mount umount";
/// Programs that write files, by which a name can become another program's.
const WRITERS: &str = "cp mv ln install tee curl wget unzip dd";
/// Those of which a path alone names a file: their first words are commands.
const STORES: &str = "aws gsutil mc s3cmd rclone restic";
const SHELLS: &str = "sh bash ash dash ksh mksh";
/// Programs that images have in their root directory.
const AT_ROOT: &str = "tini tini-static dumb-init catatonit gosu su-exec";
/// Scripts of known images that take etcd's options from the environment alone.
const IMAGE: &str = "/opt/bitnami/scripts/etcd/entrypoint.sh /opt/bitnami/scripts/etcd/run.sh \
    /opt/bitnami/scripts/etcd/healthcheck.sh /opt/bitnami/scripts/etcd/prestop.sh /opt/bitnami/scripts/etcd/snapshot.sh \
    /opt/bitnami/scripts/etcd/preupgrade.sh";
/// Each with its letters that take a value, those that take none, its long options without a value (with `=` any is
/// understood), and how many operands stand before the program; `.` is none.
const WRAPPERS: &str = "
    nice n 0123456789 . 0
    ionice cn t ignore 0
    nohup . . . 0
    timeout ks v preserve-status,foreground,verbose 1
    stdbuf ioe . . 0
    setsid . cfw ctty,fork,wait 0
    chrt TPD abdfimorR . 1
    taskset . ac . 1
    tini pe svwg . 0
    tini-static pe svwg . 0
    dumb-init r cv single-child,verbose 0
    catatonit . g . 0
    busybox . . . 0
    env uC i0v ignore-environment 0
    xargs nILPdsEa 0rtxp null,no-run-if-empty,verbose,exit 0
    gosu . . . 1
    su-exec . . . 1
    s6-setuidgid . . . 1
    setpriv . . clear-groups,keep-groups,init-groups,no-new-privs,nnp,reset-env 0
    sudo ugCp nEHbS preserve-env,non-interactive,set-home 0
    runuser ugG . . 0";

pub(super) fn has(list: &str, word: &str) -> bool {
    list.split([' ', ',', '\n']).any(|known| !known.is_empty() && known == word)
}

pub(super) fn basename(text: &str) -> &str {
    text.rsplit('/').next().unwrap_or(text)
}

/// The name of a program where it is one of the system's: without a path, or in a directory of programs.
fn system(text: &str) -> &str {
    let directories = ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    match text.rsplit_once('/') {
        None => text,
        Some((directory, name)) if directories.contains(&directory) || (directory.is_empty() && has(AT_ROOT, name)) => {
            name
        }
        Some(_) => "",
    }
}

/// True if a function of this name hides a program of which no more matters than that it runs no other.
pub(super) fn is_shadowed(name: &str) -> bool {
    has(SHADOWED, name)
}

/// True if a function of this name would hide a program that is understood.
pub(super) fn is_known(name: &str) -> bool {
    let step = step(&[Text::known(name)]);
    matches!(name, "exec" | "command" | "set" | "export")
        || has(SHELLS, name)
        || !(name.ends_with("sh") || matches!(step, Step::Unknown(_, false)))
}

/// The files that a program may write.
pub(super) fn writes(words: &[Text]) -> impl Iterator<Item = String> {
    let name = words.first().and_then(Text::as_str).map(basename).unwrap_or_default();
    let (writes, store) = (has(WRITERS, name), has(STORES, name));
    let base = |text: String| basename(text.trim_start_matches("of=")).to_owned();
    words.iter().skip(1).map(Text::shown).filter(move |text| writes || store && text.contains('/')).map(base)
}

/// The effect of `words`, a program and its arguments.
pub(super) fn step(words: &[Text]) -> Step {
    let Some(first) = words.first() else { return Step::Harmless };
    let Some(program) = first.as_str() else {
        return Step::Unknown(format!("runs {}, a program whose name is not written in the pod", first.shown()), true);
    };
    let name = system(program);
    match basename(program) {
        "etcd" => return Step::Tool(Tool::Etcd),
        "etcdctl" => return Step::Tool(Tool::Etcdctl),
        "etcdutl" => return Step::Tool(Tool::Etcdutl),
        // No program has such a name: `[ -e a && -e b ]`.
        _ if program.starts_with('-') => return Step::Harmless,
        _ if words.iter().all(|word| word.as_str().is_some_and(|text| has(IMAGE, text))) => return Step::Image,
        _ if has(SHELLS, name) => return shell(words, name),
        _ => {}
    }
    if name == "su" || (name == "runuser" && !words.iter().any(|w| w.as_str() == Some("-u"))) {
        return su(words);
    }
    let mut forms = WRAPPERS.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    if let Some(form) = forms.find(|form| form.first() == Some(&name)) {
        let unknown = || Step::Unknown(format!("runs {name} with options that are not understood"), true);
        return match wrapper(words, &form) {
            Some(Step::Wrapper(at, _)) if name == "xargs" && !is_harmless(&words[at..]) => others(program),
            step => step.unwrap_or_else(unknown),
        };
    }
    let without = |what: &[&str]| {
        words[1..].iter().all(|word| word.as_str().is_some_and(|text| what.iter().all(|w| !text.contains(w))))
    };
    let harmless = match name {
        "awk" | "gawk" | "mawk" => {
            without(&["system", "|"])
                && !words.iter().any(|w| w.prefix().starts_with("-f") || w.prefix().starts_with("--file"))
        }
        "sed" => sed::is_plain(&words[1..]),
        "find" => {
            let runs = |at: &usize| words[*at].prefix().starts_with("-exec") || words[*at].prefix().starts_with("-ok");
            words.iter().all(|word| word.as_str().is_some())
                && (1..words.len()).filter(runs).all(|at| is_harmless(&words[at + 1..]))
        }
        "tar" | "ip" => without(&["exec", "command", "-I", "program"]),
        "socat" => without(&["EXEC", "SYSTEM", "SHELL", "exec", "system", "shell"]),
        _ => has(HARMLESS, name),
    };
    if harmless {
        return Step::Harmless;
    }
    if program.ends_with("sh") || has("alias . source eval", name) {
        return others(program);
    }
    Step::Unknown(format!("runs {program:?}, a program that can run etcd as it likes"), false)
}

fn others(program: &str) -> Step {
    Step::Unknown(format!("runs {program:?}, a program that can run others as it likes"), true)
}

/// True if a program matters to nothing, whatever words follow these.
fn is_harmless(words: &[Text]) -> bool {
    let harmless =
        |name: &str| has(HARMLESS, system(name)) && !has(WRITERS, system(name)) && !has(STORES, system(name));
    words.first().is_none_or(|word| word.as_str().is_some_and(harmless))
}

/// True if the substitutions in a text, which a shell makes later, run programs alone that matter to nothing. In a prompt, a backslash may
/// stand for a line break or any other character.
pub(super) fn is_tame(text: &str) -> bool {
    let tame = |rest: &str| {
        let words: Vec<Text> = rest.split(')').next().unwrap_or_default().split_whitespace().map(Text::known).collect();
        words.first().is_some_and(|name| !is_shadowed(name.prefix())) && is_harmless(&words)
    };
    !text.contains(['`', ';', '|', '&', '<', '>', '\n', '\\']) && text.split("$(").skip(1).all(tame)
}

fn shell(words: &[Text], name: &str) -> Step {
    let unknown = |why: String| Step::Unknown(format!("starts {name} {why}"), true);
    let (mut at, mut string) = (1, false);
    while let Some(text) = words.get(at).and_then(Text::as_str) {
        let Some(letters) = text.strip_prefix(['-', '+']) else { break };
        at += 1;
        match letters {
            "" | "-" => break,
            "-norc" | "-noprofile" | "-posix" | "-login" => continue,
            _ if !letters.chars().all(|c| "bcefhlmuvxopCEHTO".contains(c))
                || letters.contains('o') && words.get(at).is_none_or(|o| has("allexport keyword", &o.shown())) =>
            {
                return unknown(format!("with {text}, by which it reads more than is written in the pod"));
            }
            _ => string |= letters.contains('c'),
        }
        at += usize::from(letters.contains(['o', 'O']));
    }
    match words.get(at) {
        Some(_) if string => Step::Shell(at, at + 1, Passed::default()),
        Some(file) => {
            Step::File(at, format!("starts {name} with the script {}, which is not written in the pod", file.shown()))
        }
        None if string => unknown("without the script of -c".to_owned()),
        None => Step::Stdin(name.to_owned(), Passed::default()),
    }
}

/// `su [options] [-] [user]`, with a script by `-c`.
fn su(words: &[Text]) -> Step {
    let (mut at, mut script, mut operands) = (1, None, 0);
    let mut passed = Passed { drops_groups: true, ..Passed::default() };
    while let Some(word) = words.get(at) {
        match word.as_str() {
            Some("-c") => script = words.get(at + 1).map(|_| at + 1),
            Some("-" | "-l" | "--login") => passed.clears = true,
            Some("-m" | "-p" | "-s") => {}
            Some(text) if text.starts_with('-') => operands = 9,
            _ => operands += 1,
        }
        at += if matches!(word.as_str(), Some("-c" | "-s")) { 2 } else { 1 };
    }
    match script {
        Some(script) if operands <= 1 => Step::Shell(script, words.len(), passed),
        _ => Step::Unknown("runs su without -c and a script that is written in the pod".to_owned(), true),
    }
}

/// A wrapper of this form; `None`: with an option that is not understood.
fn wrapper(words: &[Text], form: &[&str]) -> Option<Step> {
    let &[name, valued, letters, long, operands] = form else { return None };
    let (mut passed, mut at, mut keeps) = (Passed::default(), 1, name != "sudo");
    while let Some(text) = words.get(at).filter(|word| word.prefix().starts_with('-')).map(Text::shown) {
        at += 1;
        if let Some(option) = text.strip_prefix("--") {
            match option {
                "" => break,
                _ if !option.contains('=') && !has(long, option) => return None,
                _ if name == "env" && option != "ignore-environment" => return None,
                _ => {}
            }
            passed.clears |= option == "ignore-environment" || option == "reset-env";
            keeps |= option == "preserve-env";
            continue;
        }
        passed.clears |= name == "env" && text == "-";
        for (index, letter) in text.char_indices().skip(1) {
            let rest = &text[index + letter.len_utf8()..];
            if valued.contains(letter) && valued != "." {
                if name == "env" {
                    let value = if rest.is_empty() { words.get(at)?.as_str()? } else { rest };
                    passed.unsets.extend((letter == 'u').then(|| value.to_owned()));
                }
                at += usize::from(rest.is_empty());
                break;
            }
            if !letters.contains(letter) || letter == '.' {
                return None;
            }
            passed.clears |= name == "env" && letter == 'i';
            keeps |= name == "sudo" && letter == 'E';
        }
    }
    at += operands.parse::<usize>().ok()?;
    while let Some(set) = words.get(at).filter(|_| name == "env" || name == "sudo").and_then(assignment) {
        passed.sets.push(set);
        at += 1;
    }
    passed.clears |= !keeps;
    passed.drops_groups = has("gosu su-exec s6-setuidgid setpriv sudo runuser", name)
        && !words.iter().any(|word| word.as_str() == Some("--keep-groups"));
    (at <= words.len()).then_some(Step::Wrapper(at, passed))
}

/// `NAME=value`.
pub(super) fn assignment(word: &Text) -> Option<(String, Text)> {
    let (name, value) = word.prefix().split_once('=').filter(|(name, _)| is_name(name))?;
    let mut text = Text::known(value);
    text.append(&Text(word.0[1..].to_vec()), false);
    Some((name.to_owned(), text))
}

pub(super) fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// The variables that `etcdctl member add` prints for the shell of the new member.
pub(super) const MEMBER: [&str; 4] =
    ["ETCD_NAME", "ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_ADVERTISE_PEER_URLS", "ETCD_INITIAL_CLUSTER_STATE"];

/// What etcdctl prints of these are numbers, states, names and URLs.
const LISTS: [[&str; 2]; 3] = [["member", "list"], ["endpoint", "status"], ["endpoint", "health"]];

/// Files of one word, and files of names and addresses.
const ONE_WORD: &str = "/etc/hostname /var/run/secrets/kubernetes.io/serviceaccount/namespace \
    /run/secrets/kubernetes.io/serviceaccount/namespace /proc/sys/kernel/random/uuid";
const ADDRESSES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// True if a text is that of [`MEMBER`].
pub(super) fn is_member(text: &Text) -> bool {
    text.prefix().starts_with("ETCD_NAME=\"")
}

/// The output of a filter, which keeps words whole or leaves a part of a single one.
pub(super) fn filtered(words: &[Text], input: Option<&Text>) -> Option<Text> {
    let one_word =
        |word: &Text| word.0.iter().all(|part| matches!(part, Part::Known(_) | Part::Hole(_, Kind::Word, _)));
    let arguments: Vec<String> =
        words[1..].iter().map(|word| one_word(word).then(|| word.shown())).collect::<Option<_>>()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = words.first()?.as_str().map(system)?;
    let shown = |kind| Some(Text::hole(format!("$(… | {name} {})", arguments.join(" ")), kind));
    let (arguments, read) = match arguments.as_slice() {
        [all @ .., file] if ADDRESSES.contains(file) => (all, Some(Text::hole(*file, Kind::Words))),
        all => (all, None),
    };
    if let ("tr", [from, to]) = (name, arguments)
        && let Some(text) = input.and_then(|input| input.replaced(from, if *to == "\\n" { "\n" } else { to }))
    {
        return Some(text);
    }
    let of_words =
        read.as_ref().or(input).filter(|input| input.kind() <= Kind::Words && !input.prefix().starts_with('-'));
    if let ("grep" | "egrep", ["-o" | "-oE" | "-Eo", pattern]) = (name, arguments) {
        // Whatever it reads.
        return is_numeral(pattern, of_words.is_some()).then(|| shown(Kind::Words))?;
    }
    let kind = of_words?.kind();
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let prints = |program: &str| {
        let behind = if program.starts_with('/') { program.rfind('{').unwrap_or_default() } else { 0 };
        let program = program[behind..].replace(' ', "").replace(";exit", "");
        let program = program.trim_start_matches("NR==1").trim_start_matches("END");
        let field = program.strip_prefix("{print$").and_then(|rest| rest.strip_suffix('}'));
        field.is_some_and(|field| field == "NF" || number(field))
    };
    let one = kind == Kind::Word;
    // `-d/ -f1`, in either order.
    let cuts = |arguments: &[&str]| {
        let apart = arguments.iter().filter(|word| ["-d", "-f"].contains(word)).count();
        let options = Some(arguments.concat()).filter(|_| arguments.len() == 2 + apart)?;
        let rest = options.strip_prefix("-d").and_then(|rest| Some((rest.chars().next()?, rest)));
        let first = rest.and_then(|(by, rest)| Some((by, rest[by.len_utf8()..].strip_prefix("-f")?)));
        let last =
            || options.strip_prefix("-f").and_then(|rest| rest.split_once("-d")).map(|(f, by)| (by.chars().next(), f));
        let (by, field) = first.map(|(by, field)| (Some(by), field)).or_else(last)?;
        let fields = field.chars().all(|c| c.is_ascii_digit() || "-,".contains(c));
        Some(fields).filter(|fields| *fields && (one || by == Some(' ') || field == "1"))
    };
    let plain = |text: &&str| !text.contains(char::is_whitespace) && !text.contains('\\');
    let keeps = match (name, arguments) {
        ("head" | "tail" | "sort" | "uniq", all) => all.iter().all(|word| word.starts_with('-') || number(word)),
        ("grep" | "egrep" | "fgrep", [options @ .., pattern]) => {
            !pattern.starts_with('-') && options.iter().all(|o| ["-v", "-w", "-i", "-E", "-F", "-m1"].contains(o))
        }
        ("awk", [program]) => prints(program),
        // The first of each line begins as the line does.
        ("awk", [by, program]) => (one || program.ends_with("$1}")) && by.starts_with("-F") && prints(program),
        ("awk", ["-F", _, program]) => (one || program.ends_with("$1}")) && prints(program),
        ("cut", all) if all.concat().starts_with("-c") => {
            one || all.concat().strip_prefix("-c1-").is_some_and(|to| to.is_empty() || number(to))
        }
        ("cut", all) => cuts(all).is_some(),
        (
            "paste",
            ["-sd,"] | ["-sd,", "-"] | ["-s", "-d,"] | ["-s", "-d,", "-"] | ["-d,", "-s"] | ["-d,", "-s", "-"],
        ) => true,
        ("rev", []) | ("tr", ["-d", _]) => one,
        ("tr", [_, to]) => one && plain(to) || *to == ",",
        ("sed", _) => sed::keeps_words(arguments, one),
        _ => false,
    };
    keeps.then(|| shown(kind))?
}

/// True if no match of a pattern has white space or begins with a dash. `words`: nor has the input words that do, so that a match may go
/// on to the end of a line.
fn is_numeral(pattern: &str, words: bool) -> bool {
    let pattern = if words { pattern.strip_suffix(".*").unwrap_or(pattern) } else { pattern };
    let plain = pattern.replace("[0-9]", "0").replace("\\+", "+");
    let number = plain.trim_start_matches('^');
    number.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '"')
        && number.chars().all(|c| c.is_ascii_alphanumeric() || "\":_/*+$".contains(c))
}

/// The output of `words`; any text if it is not known.
pub(super) fn output(words: &[Text]) -> Text {
    let shown = format!("$({})", words.iter().map(Text::shown).collect::<Vec<_>>().join(" "));
    let arguments: Vec<&str> = words.iter().skip(1).map(|word| word.as_str().unwrap_or("$")).collect();
    let name = words.first().and_then(Text::as_str).map(system).unwrap_or_default();
    let etcdctl = words.first().is_some_and(|word| basename(word.prefix()) == "etcdctl");
    let kind = match (name, arguments.as_slice()) {
        ("echo", [first, ..]) if !first.strip_prefix('-').is_some_and(|o| o.chars().all(|c| "neE".contains(c))) => {
            let mut text = Text::default();
            for (index, word) in words[1..].iter().enumerate() {
                text.push_str(if index > 0 { " " } else { "" });
                text.append(word, false);
            }
            if !text.0.iter().any(|part| matches!(part, Part::Known(known) if known.contains('\\'))) {
                return text;
            }
            Kind::Any
        }
        (_, arguments) if etcdctl && arguments.windows(2).any(|pair| pair == ["member", "add"]) => {
            let mut text = Text::default();
            for name in MEMBER {
                text.push_str(&format!("{name}=\""));
                text.append(&Text::hole(format!("${{{name}}}"), Kind::Word), false);
                text.push_str("\"\n");
            }
            return text;
        }
        (_, arguments) if etcdctl && arguments.windows(2).any(|pair| LISTS.contains(&[pair[0], pair[1]])) => {
            Kind::Words
        }
        ("printf", _) => match formatted(words) {
            // As `$(…)` leaves it.
            Some(text) => return trimmed(text),
            None => Kind::Any,
        },
        ("which", [program]) | ("command", ["-v", program]) if *program != "$" => return Text::known(program),
        ("seq", all)
            if all.iter().any(|a| ["-s", "-f", "--"].iter().any(|o| a.starts_with(o)))
                && words[1..].iter().any(|word| word.kind() > Kind::Word) =>
        {
            Kind::Any
        }
        ("type", ["-p" | "-P", program]) if *program != "$" => return Text::known(program),
        ("hostname", [] | ["-s" | "-f"]) | ("nproc", _) | ("id", ["-u" | "-g"]) => Kind::Word,
        ("expr", _)
            if words[1..]
                .iter()
                .all(|word| word.kind() == Kind::Word && !word.shown().contains([';', '&', '|', '`'])) =>
        {
            Kind::Word
        }
        ("date", []) => Kind::Words,
        ("date", [format]) if format.starts_with("+%") && !format.contains(char::is_whitespace) => Kind::Word,
        ("id", ["-un" | "-gn"]) | ("uname", ["-n" | "-m" | "-s" | "-r"]) | ("whoami", []) => Kind::Word,
        ("basename" | "dirname", [_] | [_, _]) if words[1..].iter().all(|word| word.kind() == Kind::Word) => Kind::Word,
        ("wc", ["-l" | "-w" | "-c"]) | ("md5sum" | "sha1sum" | "sha256sum" | "sha512sum" | "cksum", []) => Kind::Words,
        ("cat", [file]) if has(ONE_WORD, file) => Kind::Word,
        ("cat", [file]) if ADDRESSES.contains(file) => Kind::Words,
        ("hostname", ["-i" | "-I" | "-d"])
        | ("seq" | "nslookup" | "dig" | "host" | "ifconfig", _)
        | ("getent", ["hosts" | "ahosts" | "ahostsv4" | "ahostsv6", _]) => Kind::Words,
        ("ip", arguments) if arguments.iter().any(|word| ["a", "addr", "address", "route", "r"].contains(word)) => {
            Kind::Words
        }
        _ => Kind::Any,
    };
    Text::hole(shown, kind)
}

/// The output of printf for a format of text, `%s`, numbers and ends of lines.
pub(super) fn formatted(words: &[Text]) -> Option<Text> {
    let format = words.get(1)?.as_str()?.replace("\\n", "\n");
    let pieces: Vec<&str> = format.split('%').collect();
    if format.starts_with('-') || format.contains('\\') {
        return None;
    }
    let mut text = Text::default();
    let mut rest = &words[2..];
    loop {
        text.push_str(pieces[0]);
        for piece in &pieces[1..] {
            let digits = piece.len() - piece.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, behind) = match piece[digits..].chars().next()? {
                's' if digits == 0 => (false, &piece[1..]),
                // Without a zero in front, spaces fill it up.
                'd' | 'i' if digits == 0 || piece.starts_with('0') => (true, &piece[digits + 1..]),
                _ => return None,
            };
            match rest.split_first() {
                Some((first, _)) if first.loose().is_some() => return None,
                Some((first, _)) if !number => text.append(first, true),
                Some((first, _)) => text.append(&Text::hole(first.shown(), Kind::Word), true),
                None if number => text.push_str("0"),
                None => {}
            }
            rest = rest.get(1..).unwrap_or_default();
            text.push_str(behind);
        }
        if rest.is_empty() || pieces.len() == 1 {
            return Some(text);
        }
    }
}

/// Without the ends of lines behind it.
fn trimmed(mut text: Text) -> Text {
    if let Some(Part::Known(last)) = text.0.last_mut() {
        last.truncate(last.trim_end_matches('\n').len());
        if last.is_empty() {
            text.0.pop();
        }
    }
    text
}
