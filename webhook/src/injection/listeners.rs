//! Where etcd listens, as the sidecar reaches it: as annotated, else as written in the pod, else not known. Nothing is
//! guessed: a sidecar that asks the wrong port would never see what etcd trusts.

use etcd_tls_contract::{args::PodArgs, endpoint::Endpoint, role::Role};

use super::{
    Target, Work,
    options::Setting,
    urls::{self, Url},
};

impl<'a> Work<'a> {
    /// Writes etcd's listeners into the sidecar's arguments; returns all of them for the port checks.
    pub(super) fn listeners(&mut self, targets: &[Target<'a>], args: &mut PodArgs) -> Vec<Url> {
        let member = |t: &&Target<'a>| t.roles.iter().any(|r| matches!(r, Role::Peer | Role::Server));
        let Some(target) = targets.iter().find(member) else { return Vec::new() };
        let of = |option| urls::urls(urls::setting(&target.options, option).as_ref());
        let (mut all, peers, metrics) = (of("listen-client-urls"), of("listen-peer-urls"), of("listen-metrics-urls"));
        if target.roles.contains(&Role::Server) {
            let annotated = self.settings.client_url.clone();
            args.client_url = annotated.or_else(|| self.listener(target, "listen-client-urls", "client-url", &all));
            args.metrics_url = metrics.iter().find(|u| u.https).and_then(|u| u.seen_from_sidecar().parse().ok());
        }
        if target.roles.contains(&Role::Peer) {
            let annotated = self.settings.peer_url.clone();
            args.peer_url = annotated.or_else(|| self.listener(target, "listen-peer-urls", "peer-url", &peers));
        }
        all.extend(peers);
        all.extend(metrics);
        all
    }

    /// One listener of etcd, which is not annotated; `known`: what `option` writes out. `None`, and a word of it, where it is
    /// not known.
    fn listener(&mut self, target: &Target<'a>, option: &str, annotation: &str, known: &[Url]) -> Option<Endpoint> {
        if target.options.is_proxy()
            && let Some(url) = proxy(target)
        {
            return url.seen_from_sidecar().parse().ok();
        }
        // One of TLS shows what etcd trusts; of another the sidecar says that it does not.
        let by_name = self.is_by_name();
        let tls = || known.iter().filter(|u| u.https);
        let at_loopback = || tls().find(|u| by_name && is_loopback(&urls::sidecar_host(&u.host)));
        if let Some(url) = at_loopback().or_else(|| tls().next()).or_else(|| known.first()) {
            return url.seen_from_sidecar().parse().ok();
        }
        let setting = urls::setting(&target.options, option);
        let why = match urls::unclear(setting.as_ref()).or_else(|| urls::socket(setting.as_ref())) {
            Some(unclear) => format!("--{option} is {unclear}"),
            None if target.options.is_proxy() => "--listen-addr is not written out".to_owned(),
            None if urls::setting(&target.options, "config-file").is_some() => "a config file says it".to_owned(),
            None if target.container.env_from("ETCD_") => "envFrom may say it".to_owned(),
            None if !target.options.runs_etcd() => "the image or a script says it".to_owned(),
            // etcd's own default, of which is warned.
            None => {
                let port = if option == "listen-peer-urls" { 2380 } else { 2379 };
                return format!("http://127.0.0.1:{port}").parse().ok();
            }
        };
        self.warnings.push(format!(
            "container {}: where etcd listens is not known ({why}), so the sidecar cannot see what it trusts, nor restart it \
             for a new CA; annotate etcd-tls.dev/{annotation}: https://127.0.0.1:<port>",
            target.container.name
        ));
        None
    }
}

/// True if an address is loopback's.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The listener of etcd's proxy, which takes an address instead of URLs; it has a default.
fn proxy(target: &Target<'_>) -> Option<Url> {
    let text = match urls::setting(&target.options, "listen-addr") {
        None => "127.0.0.1:23790".to_owned(),
        Some(Setting::Text(text) | Setting::Open(text)) => text,
        Some(Setting::Unknown) => return None,
    };
    urls::urls(Some(&Setting::Text(format!("https://{text}")))).pop()
}
