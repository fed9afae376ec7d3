//! Paths of a host, as advice to its administrator speaks of them: no advice may give away a directory that others use.

/// Directories that others use. These, what is above them and what is in them are nobody's to give away.
const OTHERS: [&str; 22] = [
    "/etc/cni/net.d",
    "/etc/containerd",
    "/etc/kubernetes/manifests",
    "/etc/kubernetes/pki",
    "/etc/pki",
    "/etc/ssl",
    "/etc/systemd",
    "/opt/cni",
    "/run/containerd",
    "/run/systemd",
    "/usr",
    "/var/cache",
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lock",
    "/var/log",
    "/var/run/containerd",
    "/var/spool",
    "/var/tmp",
    "/dev",
    "/proc",
];

/// True if a directory can be etcd-tls's own: below the first level, and none that others are known to use. A directory
/// right below `/home` is a person's, and so is `.kube`.
pub(super) fn is_dedicated(dir: &str) -> bool {
    let parts = components(dir);
    if parts.len() < 2 || parts.contains(&"..") || parts.contains(&".kube") {
        return false;
    }
    if matches!(parts.as_slice(), ["home", _]) {
        return false;
    }
    !OTHERS.iter().any(|other| {
        let other = components(other);
        other.starts_with(&parts) || parts.starts_with(&other)
    })
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

/// `text` as one word of a POSIX shell.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// True if a file is in `mount` or below it.
pub(super) fn is_below(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_directories_are_not_given_away() {
        for dir in
            ["/etc/kubernetes/etcd-tls", "/var/lib/etcd-tls", "/srv/etcd/tls", "/home/a/etcd-tls", "/var/lib/etcd-2"]
        {
            assert!(is_dedicated(dir), "{dir}");
        }
        for dir in [
            "",
            "/",
            "//",
            "/etc",
            "/var/",
            "/etc/kubernetes",
            "//etc/./kubernetes/",
            "/etc/kubernetes/manifests",
            "/etc/kubernetes/pki/etcd",
            "/etc/kubernetes/etcd-tls/..",
            "/var/lib",
            "/var/lib/etcd",
            "/var/lib/kubelet/pki",
            "/var/run",
            "/usr/local/etc",
            "/opt/cni/bin",
            "/home/a",
            "/root/.kube",
        ] {
            assert!(!is_dedicated(dir), "{dir}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [
            ("/var/lib/etcd-tls", "/var/lib/etcd-tls"),
            ("/var/lib/etcd tls", "'/var/lib/etcd tls'"),
            ("/a;reboot", "'/a;reboot'"),
            ("/a$(id)'b", "'/a$(id)'\\''b'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(path), word);
        }
    }
}
