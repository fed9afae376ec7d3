//! The next step of a cluster between plain text and TLS: a function of what was seen.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::error::NotWell;

/// The protocol of a URL or of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// Of a URL.
    pub(super) fn of(url: &str) -> Option<Self> {
        match url.split_once("://")?.0 {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Http => Self::Https,
            Self::Https => Self::Http,
        }
    }

    /// The URL with this scheme.
    fn with(self, url: &str) -> String {
        url.split_once("://").map_or_else(|| url.to_owned(), |(_, rest)| format!("{}://{rest}", self.as_str()))
    }
}

/// The observed protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Is(Scheme),
    /// No answer, or none that tells.
    Unknown,
}

/// A registered URL, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) url: String,
    pub(super) spoken: Spoken,
    /// Why it could not be asked, or that it is not healthy.
    pub(super) trouble: Option<String>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Hexadecimal, as etcdctl writes it.
    pub(super) id: String,
    pub(super) name: String,
    pub(super) clients: Vec<Port>,
    pub(super) peers: Vec<Port>,
    /// By another member's id, whether this one reaches it; `None` where its metrics could not be read.
    pub(super) reaches: Option<BTreeMap<String, bool>>,
}

impl Member {
    fn has_client(&self, scheme: Scheme) -> bool {
        self.clients.iter().any(|port| port.spoken == Spoken::Is(scheme) && Scheme::of(&port.url) == Some(scheme))
    }

    fn client_urls(&self) -> String {
        self.clients.iter().map(|port| port.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Its peer URLs with this scheme.
    fn peer_urls(&self, scheme: Scheme) -> String {
        self.peers.iter().map(|port| scheme.with(&port.url)).collect::<Vec<_>>().join(",")
    }
}

/// Where a cluster stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Something is in the way: the member's name, and what.
    Repair(String, String),
    /// The peer port speaks something else than is registered: one of the two is to follow.
    Follow(String, String),
    /// A member is to be reached over the target's scheme, too.
    Both(String, String),
    /// Clients are to move, then the peers of this member.
    Peer(String, String),
    /// Only the scheme that is to go is left of this member's client port.
    Only(String, String),
    /// Nothing is left.
    Done,
}

/// The next step on the way to `to`.
pub(super) fn next(members: &[Member], to: Scheme) -> Step {
    let from = to.other();
    for member in members {
        if let Some(why) = silent(member) {
            return Step::Repair(member.name.clone(), why);
        }
    }
    for member in members {
        for port in &member.peers {
            let registered = Scheme::of(&port.url);
            match (registered, port.spoken) {
                (Some(registered), Spoken::Is(spoken)) if registered != spoken => {
                    let text = if registered == to { restart_peer(member, to) } else { update(member, to) };
                    return Step::Follow(member.name.clone(), text);
                }
                (Some(_), Spoken::Is(_)) => {}
                _ => {
                    let why =
                        format!("the protocol of {} is unknown: check that the port is reachable from here", port.url);
                    return Step::Repair(member.name.clone(), why);
                }
            }
        }
    }
    for member in members {
        if let Some(why) = unreached(member, members) {
            return Step::Repair(member.name.clone(), why);
        }
    }
    if let Some(member) = members.iter().find(|m| !m.has_client(to)) {
        let text = format!(
            "restart it with its client port in both schemes, on two ports:\n    --listen-client-urls={both} \
             --advertise-client-urls={both}\n  and with the options of its certificates for clients and for peers{files}. Its \
             peer URLs stay as they are.",
            both = format_args!("{},{}://<host>:<another port>", member.client_urls(), to.as_str()),
            files = if to == Scheme::Http { " as they are now" } else { "" },
        );
        return Step::Both(member.name.clone(), text);
    }
    if let Some(member) = members.iter().find(|m| m.peers.iter().any(|p| Scheme::of(&p.url) == Some(from))) {
        let text = format!("{}\n  Then {}", update(member, to), restart_peer(member, to));
        return Step::Peer(member.name.clone(), text);
    }
    if let Some(member) = members.iter().find(|m| m.clients.iter().any(|p| Scheme::of(&p.url) == Some(from))) {
        let left: Vec<_> =
            member.clients.iter().filter(|p| Scheme::of(&p.url) == Some(to)).map(|p| p.url.as_str()).collect();
        let text = format!(
            "when no client uses {} any more, restart it with\n    --listen-client-urls={urls} --advertise-client-urls={urls}{}",
            from.as_str(),
            if to == Scheme::Http { "\n  and without the options of its certificates" } else { "" },
            urls = left.join(","),
        );
        return Step::Only(member.name.clone(), text);
    }
    Step::Done
}

/// Why a member is not seen to be healthy.
fn silent(member: &Member) -> Option<String> {
    if member.clients.iter().any(|port| port.trouble.is_none()) {
        return None;
    }
    let troubles: Vec<_> = member
        .clients
        .iter()
        .map(|port| format!("{}: {}", port.url, port.trouble.as_deref().unwrap_or_default()))
        .collect();
    Some(if troubles.is_empty() {
        "it has not started yet: it is registered without a client URL".to_owned()
    } else {
        format!("it is not seen to be healthy: {}", troubles.join("; "))
    })
}

/// Which other member this one does not reach. Health does not show it: the other direction does for Raft.
fn unreached(member: &Member, members: &[Member]) -> Option<String> {
    let Some(reaches) = &member.reaches else {
        return Some("its /metrics cannot be read, so it is unknown whether it reaches the other members".to_owned());
    };
    let missing = members.iter().find(|o| o.id != member.id && reaches.get(&o.id) != Some(&true))?;
    Some(format!(
        "it does not reach {}. If that started a moment ago, look again; else start {} with the options of its peer \
         certificate (--peer-cert-file, --peer-key-file, --peer-trusted-ca-file), which it needs to dial https",
        missing.name, member.name
    ))
}

fn update(member: &Member, to: Scheme) -> String {
    format!("register its peer URL:\n    etcdctl member update {} --peer-urls={}", member.id, member.peer_urls(to))
}

fn restart_peer(member: &Member, to: Scheme) -> String {
    format!(
        "restart it with\n    --listen-peer-urls and --initial-advertise-peer-urls in {}: {}\n  and keep the options of its peer \
         certificate: it dials members of both schemes until all have changed.",
        to.as_str(),
        member.peer_urls(to)
    )
}

/// The observations and the next step, for people; with it, whether all is well so far.
pub(super) fn report(members: &[Member], to: Scheme) -> (String, Result<(), NotWell>) {
    let step = next(members, to);
    let stop = matches!(step, Step::Repair(..));
    let attention = NotWell::Attention {
        what: "members",
        failing: usize::from(stop),
        attention: 0,
        unknown: 0,
        all: members.len(),
    };
    let mut text = String::new();
    // Writing to a String does not fail.
    for member in members {
        let _ = writeln!(text, "{} ({})", member.name, member.id);
        for (kind, ports) in [("client", &member.clients), ("peer", &member.peers)] {
            for port in ports {
                let spoken = match port.spoken {
                    Spoken::Is(scheme) => format!("speaks {}", scheme.as_str()),
                    Spoken::Unknown => "unknown what it speaks".to_owned(),
                };
                let trouble = port.trouble.as_ref().map(|t| format!("; {t}")).unwrap_or_default();
                let _ = writeln!(text, "  {kind} {}: {spoken}{trouble}", port.url);
            }
        }
    }
    let _ = match step {
        Step::Done => writeln!(text, "Done: every URL is {}, and every member reaches the others.", to.as_str()),
        Step::Repair(name, what) => writeln!(text, "Stop. {name}: {what}."),
        Step::Follow(name, what) | Step::Both(name, what) | Step::Only(name, what) => {
            writeln!(text, "Next: {name}: {what}")
        }
        Step::Peer(name, what) => writeln!(
            text,
            "Next: move clients to the {} URLs first, if any is left: a client that knows {} alone loses this member's port.\n\
             Then {name}: {what}",
            to.as_str(),
            to.other().as_str()
        ),
    };
    (text, if stop { Err(attention) } else { Ok(()) })
}

#[cfg(test)]
mod tests;
