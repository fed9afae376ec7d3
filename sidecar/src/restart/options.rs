//! The settings of a restarter: its etcd, from the arguments of a pod or of a host, and how that etcd may be restarted.

use std::{path::PathBuf, time::Duration};

use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    endpoint::Endpoint,
    role::Role,
    settings::Reload,
};
use nix::sys::signal::Signal;

use crate::{kube::pod::PodCredentials, os::process::FoundBy};

/// Between saying that a one-member cluster will be away and its being away.
const NOTICE: Duration = Duration::from_secs(30);

/// The settings of a [`Restarter`](super::Restarter).
#[derive(Clone)]
pub struct Options {
    /// The certificates' directory: `<dir>/<role>/{tls.crt,tls.key,ca.crt}`.
    pub dir: PathBuf,
    /// The roles held.
    pub roles: Vec<Role>,
    /// How etcd may be restarted.
    pub reload: Reload,
    /// True if a signal reaches etcd.
    pub can_signal: bool,
    /// How etcd's process is distinguished from others of its name.
    pub place: FoundBy,
    /// etcd's client port.
    pub client_url: Option<Endpoint>,
    /// etcd's peer port.
    pub peer_url: Option<Endpoint>,
    /// The URL of the user's own liveness probe, under `reload: probe`.
    pub liveness_url: Option<Endpoint>,
    /// The identity of the lock's holder: the pod's name and uid.
    pub holder: String,
    /// The least time between two restarts of ours: kubelet delays a second one within ten minutes.
    pub pace: Duration,
    /// How long before it a restart that is an outage is announced.
    pub notice: Duration,
    /// The Lease to take, with etcd's lock or in its place.
    pub lease: Option<LeaseOptions>,
}

/// The Kubernetes Lease that is taken after etcd's own lock, or stands in for it.
#[derive(Clone)]
pub struct LeaseOptions {
    /// The API server, and the pod's own token.
    pub credentials: PodCredentials,
    /// The pod's namespace.
    pub namespace: String,
    /// [`lease_name`].
    pub name: String,
}

/// The name of the Lease that stands in for etcd's own lock.
pub fn lease_name(cluster: &str) -> String {
    format!("etcd-tls-restart-{cluster}")
}

/// How etcd is restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// This signal ends it, and its supervisor starts it again.
    End(Signal),
    /// This signal makes a server that is not etcd read its files again; it stays up.
    Tell(Signal),
    /// kubelet does, when its liveness probe fails.
    Probe,
    /// Not by us; why.
    Manual(String),
}

impl Options {
    /// The settings from a pod's arguments.
    pub fn of_pod(args: &PodArgs, pod: &DownwardArgs, credentials: PodCredentials) -> Self {
        Self {
            dir: args.dir.clone(),
            roles: args.roles.clone(),
            reload: args.reload.clone(),
            can_signal: args.can_signal,
            place: FoundBy::Anywhere,
            client_url: args.client_url.clone(),
            peer_url: args.peer_url.clone(),
            liveness_url: args.liveness_endpoint().cloned(),
            holder: format!("{}/{}", pod.pod_name, pod.pod_uid),
            pace: args.restart_pace,
            notice: NOTICE,
            lease: (args.reload != Reload::None).then(|| LeaseOptions {
                credentials,
                namespace: pod.pod_namespace.clone(),
                name: lease_name(&args.cluster),
            }),
        }
    }

    /// The settings from a host's arguments, for the etcd at `place`. Naming etcd's unit or pid file permits signals.
    pub fn of_host(args: &PodArgs, place: FoundBy, holder: String) -> Self {
        Self {
            dir: args.dir.clone(),
            roles: args.roles.clone(),
            reload: args.reload.clone(),
            can_signal: args.can_signal || place != FoundBy::Anywhere,
            place,
            client_url: args.client_url.clone(),
            peer_url: args.peer_url.clone(),
            liveness_url: args.liveness_endpoint().cloned(),
            holder,
            pace: args.restart_pace,
            notice: NOTICE,
            lease: None,
        }
    }

    /// The restart method that follows from `reload`.
    pub(super) fn method(&self) -> Method {
        let manual = |why: &str| Method::Manual(why.to_owned());
        match &self.reload {
            Reload::None => manual("reload is none: restart etcd by hand, one member at a time"),
            Reload::Probe => Method::Probe,
            Reload::Auto if self.can_signal => Method::End(Signal::SIGTERM),
            Reload::Auto => manual(
                "the sidecar cannot signal etcd (no shared process namespace, or another user): restart the pods one at a \
                 time, or set etcd-tls.dev/reload: probe",
            ),
            Reload::Signal(name) => {
                let full = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
                match full.parse::<Signal>() {
                    Ok(signal @ (Signal::SIGTERM | Signal::SIGINT)) => Method::End(signal),
                    Ok(Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGQUIT) | Err(_) => {
                        manual(&format!("{full} is no signal to restart or tell a server with"))
                    }
                    Ok(signal) => Method::Tell(signal),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reload_says_how_etcd_is_restarted() {
        let method = |reload, can_signal| {
            let options = Options {
                dir: PathBuf::new(),
                roles: vec![Role::Peer],
                reload,
                can_signal,
                place: FoundBy::Anywhere,
                client_url: None,
                peer_url: None,
                liveness_url: None,
                holder: String::new(),
                pace: etcd_tls_contract::args::RESTART_PACE,
                notice: NOTICE,
                lease: None,
            };
            options.method()
        };
        let signal = |name: &str| method(Reload::Signal(name.to_owned()), true);
        assert_eq!(method(Reload::Auto, true), Method::End(Signal::SIGTERM));
        assert!(matches!(method(Reload::Auto, false), Method::Manual(why) if why.contains("reload: probe")));
        assert_eq!(method(Reload::Probe, false), Method::Probe);
        assert!(matches!(method(Reload::None, true), Method::Manual(_)));
        assert_eq!(signal("SIGTERM"), Method::End(Signal::SIGTERM));
        assert_eq!(signal("INT"), Method::End(Signal::SIGINT));
        assert_eq!(signal("HUP"), Method::Tell(Signal::SIGHUP));
        for none in ["SIGKILL", "STOP", "QUIT", "NOPE", ""] {
            assert!(matches!(signal(none), Method::Manual(_)), "{none}");
        }
    }
}
