//! The URLs that etcd listens at and advertises, as far as the pod writes them out.

use super::options::{Options, Setting, Tool};

/// The pod's address in a sidecar's own arguments.
const POD_IP: &str = "$(POD_IP)";

/// One URL of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// As written, brackets included.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Url {
    /// The URL under which the sidecar, in the same network namespace, reaches it.
    pub(super) fn seen_from_sidecar(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}:{}", sidecar_host(&self.host), self.port)
    }
}

/// The host under which the sidecar reaches a listener on `host`.
pub(super) fn sidecar_host(host: &str) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(_) => host.to_owned(),
        Err(_) if bare == "localhost" || bare.is_empty() => "127.0.0.1".to_owned(),
        // A variable or a name of the pod: its address. Brackets are kept, they say that it is IPv6.
        Err(_) if host.starts_with('[') => format!("[{POD_IP}]"),
        Err(_) => POD_IP.to_owned(),
    }
}

/// The pod's setting of etcd's `option`: by flag, else by environment variable. An empty one is none.
pub(super) fn setting(options: &Options, option: &str) -> Option<Setting> {
    let set = options.flag(Tool::Etcd, option).or_else(|| options.variable(Tool::Etcd, &variable("ETCD", option)));
    set.filter(|setting| *setting != Setting::Text(String::new()))
}

/// The environment variable of a tool's option.
pub(super) fn variable(tool: &str, option: &str) -> String {
    let mut variable = String::with_capacity(tool.len() + 1 + option.len());
    variable.push_str(tool);
    variable.push('_');
    variable.extend(option.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
    variable
}

/// The URLs that are written out in a setting.
pub(super) fn urls(setting: Option<&Setting>) -> Vec<Url> {
    match setting {
        Some(Setting::Text(text) | Setting::Open(text)) => pieces(text).filter_map(url).collect(),
        Some(Setting::Unknown) | None => Vec::new(),
    }
}

/// The undetermined part of a setting's URLs, as written. Of Unix sockets, see [`socket`].
pub(super) fn unclear(setting: Option<&Setting>) -> Option<String> {
    match setting {
        Some(Setting::Text(text) | Setting::Open(text)) => pieces(text)
            .map(str::trim)
            .find(|piece| !piece.is_empty() && !piece.starts_with("unix") && url(piece).is_none())
            .map(|piece| piece.chars().take(60).collect()),
        Some(Setting::Unknown) => Some("a value that is not written in the pod".to_owned()),
        None => None,
    }
}

/// A part of a setting that looks like a variable, where it is known to the letter. Kubelet knows those of Services, which the pod
/// does not.
pub(super) fn literal(setting: Option<&Setting>) -> Option<String> {
    let Some(Setting::Text(text)) = setting else { return None };
    let dollar = |piece: &&str| {
        let mut names = piece.split('$').skip(1);
        names.any(|rest| {
            rest.starts_with(|c: char| c == '{' || c == '(' || c.is_ascii_alphabetic())
                && !["_SERVICE_", "_PORT"].iter().any(|of| rest.contains(of))
        })
    };
    pieces(text).map(str::trim).find(dollar).map(str::to_owned)
}

/// A URL without a port, or with a path.
pub(super) fn malformed(setting: Option<&Setting>) -> Option<String> {
    let Some(Setting::Text(text) | Setting::Open(text)) = setting else { return None };
    let bad = |piece: &&str| {
        let Some((scheme, rest)) = piece.split_once("://") else { return false };
        let http = ["http", "https"].iter().any(|known| scheme.to_ascii_lowercase().ends_with(known));
        let ported = rest.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'))
        });
        http && (rest.ends_with('/') || !rest.contains(['$', '…']) && !ported)
    };
    pieces(text).map(str::trim).find(bad).map(str::to_owned)
}

/// A Unix socket in a setting that names nothing else: no other pod, and not even the sidecar, reaches it.
pub(super) fn socket(setting: Option<&Setting>) -> Option<String> {
    let Some(Setting::Text(text) | Setting::Open(text)) = setting else { return None };
    let mut named = pieces(text).map(str::trim).filter(|piece| !piece.is_empty()).peekable();
    let first = named.peek()?.chars().take(60).collect();
    named.all(|piece| piece.rsplit('=').next().is_some_and(|url| url.starts_with("unix"))).then_some(first)
}

/// The parts between commas; a comma within `${…}` or `$(…)` parts nothing.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |c: char| {
        match c {
            '{' | '(' => depth += 1,
            '}' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn url(text: &str) -> Option<Url> {
    // `name=https://…` in an initial cluster.
    let at = text.find("://")?;
    let (scheme, rest) = (text[..at].rsplit('=').next()?.trim().to_ascii_lowercase(), &text[at + 3..]);
    let rest = rest.split('/').next()?;
    let (host, port) = rest.rsplit_once(':')?;
    // The text that a loop adds at each turn is shown as an ellipsis.
    let port = port.trim().trim_end_matches('…').parse().ok()?;
    // etcd takes an address of IPv6 in brackets alone.
    let bare = host.parse::<std::net::Ipv6Addr>().is_ok();
    Some(Url { https: scheme == "https", host: host.to_owned(), port })
        .filter(|_| !bare && (scheme == "https" || scheme == "http"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn seen(text: &str) -> Vec<String> {
        urls(Some(&Setting::Text(text.to_owned()))).iter().map(Url::seen_from_sidecar).collect()
    }

    #[test]
    fn a_listener_is_reached_from_beside_it() {
        assert_eq!(seen("https://0.0.0.0:2379"), ["https://127.0.0.1:2379"]);
        assert_eq!(
            seen("https://[::]:2379,http://127.0.0.1:2381"),
            ["https://127.0.0.1:2379", "http://127.0.0.1:2381"]
        );
        assert_eq!(seen("https://${POD_IP}:2379"), ["https://$(POD_IP):2379"]);
        assert_eq!(seen("https://[${POD_IP}]:2379"), ["https://[$(POD_IP)]:2379"]);
        assert_eq!(seen("https://[fd00::1]:2379/"), ["https://[fd00::1]:2379"]);
        assert_eq!(seen("a=https://etcd-0.etcd:2380"), ["https://$(POD_IP):2380"]);
        assert!(seen("unix:///x,,2379,https://a:b").is_empty());
        assert_eq!(seen("https://${IP:-a,b}:2379"), ["https://$(POD_IP):2379"]);
    }

    #[test]
    fn undetermined_urls_are_not_taken_for_none() {
        let unclear = |text: &str| unclear(Some(&Setting::Open(text.to_owned())));
        for text in ["https://0.0.0.0:${PORT}", "https://${ADDRESS}", "${URLS}", "https://a:b", "https://a"] {
            assert_eq!(unclear(text).as_deref(), Some(text));
            assert_eq!(unclear(&format!("https://0.0.0.0:2379,{text}")).as_deref(), Some(text));
        }
        for text in ["", "https://0.0.0.0:2379", "unix:///x,https://[::]:2379", "a=https://a:2380,b=https://b:2380…"]
        {
            assert_eq!(unclear(text), None, "{text}");
        }
        assert!(super::unclear(Some(&Setting::Unknown)).is_some());
        for (text, named) in [
            ("unixs://localhost:2379", Some("unixs://localhost:2379")),
            ("unix://a:1, unixs://b:2", Some("unix://a:1")),
            ("a=unixs://a:1", Some("a=unixs://a:1")),
            ("unix://a:1,https://[::]:2379", None),
            ("", None),
        ] {
            assert_eq!(socket(Some(&Setting::Text(text.to_owned()))).as_deref(), named, "{text}");
        }
        assert_eq!(super::unclear(None), None);
    }
}
