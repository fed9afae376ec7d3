//! The readers of single values, whose errors continue "annotation <key>: ".

use std::time::Duration;

use crate::{
    duration::{MAX_DURATION, MIN_DURATION, format_duration, parse_duration},
    endpoint::Endpoint,
    invalid_value::InvalidValue,
    names,
    text::{list, quoted},
};

pub(super) fn label(s: &str, what: &str) -> Result<String, InvalidValue> {
    if names::is_dns_label(s) {
        Ok(s.to_owned())
    } else {
        Err(format!(
            "{} is not {what}: at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
            quoted(s)
        )
        .into())
    }
}

/// `on` or `off`.
pub(super) fn switch(value: &str) -> Result<bool, InvalidValue> {
    match value.trim() {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("{} is neither on nor off", quoted(other)).into()),
    }
}

/// Where the sidecar reaches a port of its own etcd.
pub(super) fn listener(s: &str) -> Result<Endpoint, InvalidValue> {
    let endpoint: Endpoint = s.parse()?;
    if !endpoint.tls {
        return Err(format!("{} has to be an https:// URL", quoted(s)).into());
    }
    if endpoint.host.starts_with('$') && endpoint.host != "$(POD_IP)" {
        return Err(format!("{}: of variables the sidecar knows $(POD_IP) alone", quoted(s)).into());
    }
    Ok(endpoint)
}

pub(super) fn container(s: &str) -> Result<String, InvalidValue> {
    if s == names::INIT_CONTAINER || s == names::SIDECAR_CONTAINER {
        return Err(format!("{s} is an injected container; name those that are to use the certificates").into());
    }
    label(s, "a container's name")
}

pub(super) fn lifetime(s: &str) -> Result<Duration, InvalidValue> {
    let duration = parse_duration(s)?;
    if duration < MIN_DURATION {
        return Err(format!(
            "{s} is too short: the API server takes no request under {}",
            format_duration(MIN_DURATION)
        )
        .into());
    }
    if duration > MAX_DURATION {
        return Err(
            format!("{s} is too long: at most {}, and policy allows less", format_duration(MAX_DURATION)).into()
        );
    }
    Ok(duration)
}

/// A user of etcd, as the CN of a client certificate.
///
/// # Errors
/// Not 1 to 64 characters of a set without meaning in a distinguished name, or under `system:`, which is ours, or with the end of a
/// name that was cut.
pub fn user(s: &str) -> Result<String, InvalidValue> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._:@/-".contains(&b);
    if s.is_empty() || s.len() > 64 || !s.bytes().all(fine) {
        return Err(format!(
            "{} is not a user: 1 to 64 of letters, digits and . _ : @ / - (a CN has no more)",
            quoted(s)
        )
        .into());
    }
    if s.len() == 64 && names::is_cut(s) {
        return Err(format!(
            "{} is reserved: it has the form of a longer name that was cut to 64 characters and ended with a digest",
            quoted(s)
        )
        .into());
    }
    if s.starts_with("system:") {
        return Err(format!("{} is reserved: names under system: are those of members", quoted(s)).into());
    }
    Ok(s.to_owned())
}

/// Directories that a mount would take away from the container.
pub const SYSTEM_DIRECTORIES: [&str; 17] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/etcd",
    "/home",
    "/lib",
    "/lib64",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
];
/// Nothing is mounted at or under these: the kernel's, and what programs are made of. Without `/etc/ssl` a program trusts nobody,
/// without `/usr/bin` there is none.
pub const CLOSED_DIRECTORIES: [&str; 25] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.conf.d",
    "/etc/pam.d",
    "/etc/pki",
    "/etc/profile.d",
    "/etc/security",
    "/etc/ssl",
    "/etc/sudoers.d",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/sbin",
];
/// Directories of which one below is somebody's own, and they themselves are not.
pub const SHARED_DIRECTORIES: [&str; 10] = [
    "/usr/local",
    "/usr/share",
    "/usr/local/share",
    "/usr/local/etc",
    "/var/cache",
    "/var/lib",
    "/var/lock",
    "/var/log",
    "/var/spool",
    "/var/tmp",
];
/// Files that every container has, and that kubelet or the image writes.
pub const FILES: [&str; 9] = [
    "/etc/group",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/shadow",
];
/// Where the injected containers have their own mounts, and where every container may have Kubernetes' own.
pub const OUR_DIRECTORIES: [&str; 4] = ["/var/run/etcd-tls", "/run/etcd-tls", "/var/run/secrets", "/run/secrets"];

pub(super) fn mount_path(s: &str) -> Result<String, InvalidValue> {
    let under = |path: &str, directory: &str| {
        path == directory || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
    };
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if s.len() > 512 || !s.bytes().all(fine) {
        return Err(format!("{} is not a path of at most 512 letters, digits and . _ - /", quoted(s)).into());
    }
    let Some(rest) = s.strip_prefix('/') else {
        return Err(format!("{} is not absolute: begin it with /", quoted(s)).into());
    };
    if rest.is_empty() {
        return Err("/ is the container's whole file system; name a directory".into());
    }
    if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{} is not normalised: no //, no . or .., no / at the end", quoted(s)).into());
    }
    let closed = CLOSED_DIRECTORIES.iter().chain(&FILES).any(|directory| under(s, directory));
    if closed || SYSTEM_DIRECTORIES.contains(&s) || SHARED_DIRECTORIES.contains(&s) {
        return Err(
            format!("{s} is the system's; name a directory of its own, such as {}", names::DEFAULT_MOUNT_PATH).into()
        );
    }
    if OUR_DIRECTORIES.iter().any(|directory| under(s, directory) || under(directory, s)) {
        return Err(format!(
            "{s} clashes with what Kubernetes or the sidecar mounts; name a directory such as {}",
            names::DEFAULT_MOUNT_PATH
        )
        .into());
    }
    Ok(s.to_owned())
}

/// Levels of a log, from none to all.
pub const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or targets with levels, as `--log-level` takes it: `debug`, `info,etcd_tls_sidecar::restart=debug`.
pub(super) fn log_level(s: &str) -> Result<String, InvalidValue> {
    let entry = |word: &str| {
        let (target, level) = word.split_once('=').unwrap_or(("x", word));
        let fine = !target.is_empty() && target.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
        if fine && LOG_LEVELS.contains(&level) {
            Ok(word.to_owned())
        } else {
            Err(format!("{} is neither a level ({}) nor a target=level", quoted(word), LOG_LEVELS.join(", ")).into())
        }
    };
    if s.len() > 256 {
        return Err("is longer than 256 characters".into());
    }
    list(s, entry).map(|entries| entries.join(","))
}

pub(super) fn port(s: &str) -> Result<u16, InvalidValue> {
    let canonical = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && !s.starts_with('0');
    match s.parse::<u16>() {
        Ok(port) if canonical && port >= 1024 => Ok(port),
        _ => {
            Err(format!("{} is not a port from 1024 to 65535 (the sidecar has no right to lower ones)", quoted(s))
                .into())
        }
    }
}
