//! Whether etcd comes back when the sidecar ends it: the container has to end with it, so that kubelet starts it again, or its
//! script has to start etcd anew, or a liveness probe has to ask etcd.

use std::collections::BTreeSet;

use etcd_tls_contract::settings::Reload;

use super::{
    Target,
    json::Json,
    options::{After, Fate},
    reload,
    view::{Container, Pod},
};

/// The longest warning, in characters: one of 256, as Kubernetes asks for, less admission's prefix.
const MAX: usize = 256 - "etcd-tls: ".len();

/// Warns of a member's container that may stay without etcd after a signal. `ports`: etcd's.
pub(super) fn warning(pod: &Pod<'_>, target: &Target<'_>, ports: &BTreeSet<u16>, reload: &Reload) -> Option<String> {
    let container = &target.container;
    let After { fate, why } = &target.options.after;
    // A policy of the container's own precedes the pod's.
    let policy = container.object.get("restartPolicy").or_else(|| pod.spec.get("restartPolicy"));
    let on_failure = policy.and_then(Json::as_str) == Some("OnFailure");
    let advice = "write exec etcd or a livenessProbe of its port, or see etcd-tls.dev/reload";
    let (before, behind) = match fate {
        Fate::EndsWell if on_failure => (
            "its script may end with code 0 when etcd ends",
            ", and by restartPolicy OnFailure it then stays away: write exec etcd as the last command".to_owned(),
        ),
        Fate::Ends | Fate::EndsWell => return None,
        Fate::Unknown | Fate::GoesOn if asks_etcd(container, ports) => return None,
        // Its author says that the signal serves.
        Fate::Unknown if matches!(reload, Reload::Signal(_)) => return None,
        Fate::Unknown => (
            "unknown whether its script ends with etcd",
            format!("; if not, a new CA leaves it without etcd: {advice}"),
        ),
        Fate::GoesOn => (
            "its script goes on when etcd ends",
            format!(", so a restart for a new CA leaves it without etcd: {advice}"),
        ),
    };
    let text = |why: &str| format!("container {}: {before} ({why}){behind}", container.name);
    let room = MAX.saturating_sub(text("").chars().count());
    Some(if why.chars().count() <= room {
        text(why)
    } else {
        text(&format!("{}…", why.chars().take(room.saturating_sub(1)).collect::<String>()))
    })
}

/// Whether the liveness probe of a container asks one of etcd's ports, and so fails when etcd is gone.
fn asks_etcd(container: &Container<'_>, ports: &BTreeSet<u16>) -> bool {
    let probe = container.object.get("livenessProbe").and_then(Json::as_object);
    ["httpGet", "tcpSocket", "grpc"].into_iter().any(|kind| {
        let handler = probe.and_then(|probe| probe.get(kind)).filter(|handler| !handler.is_null());
        let own = handler.filter(|handler| handler.get("host").as_str().is_none_or(str::is_empty));
        let port = own.and_then(|handler| reload::port(handler.get("port"), container));
        port.is_some_and(|port| ports.contains(&port))
    })
}
