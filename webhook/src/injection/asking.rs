//! Programs, probes and hooks that ask etcd: each needs TLS and a client certificate.

use std::{cell::LazyCell, collections::BTreeSet};

use etcd_tls_contract::role::Role;

use super::{
    Target, Work,
    contract::short,
    options::{self, Run, Setting, Tool},
    reload,
    urls::{self, Url, setting},
};

impl<'a> Work<'a> {
    /// Probes and hooks by which kubelet asks a port that wants a client certificate.
    pub(super) fn check_probes(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let clients = LazyCell::new(|| urls::urls(setting(options, "listen-client-urls").as_ref()));
        let metrics = LazyCell::new(|| urls::urls(setting(options, "listen-metrics-urls").as_ref()));
        let wants_certificate = |port: u16| {
            let of = |urls: &[Url]| urls.iter().any(|u| u.port == port && u.https);
            of(&clients)
                || of(&metrics)
                || clients.iter().any(|u| u.port == port)
                || (clients.is_empty() && port == 2379)
        };
        let object = container.object;
        let probes = ["startupProbe", "livenessProbe", "readinessProbe"].map(|field| (field, object.get(field)));
        let lifecycle = object.get("lifecycle");
        let hooks = ["postStart", "preStop"].map(|field| (field, lifecycle.map(|l| l.get(field))));
        for (field, probe) in probes.into_iter().chain(hooks) {
            for kind in ["httpGet", "grpc"] {
                let Some(handler) = probe.map(|p| p.get(kind)).filter(|v| !v.is_null()) else { continue };
                let elsewhere = handler.get("host").as_str().is_some_and(|host| !host.is_empty());
                if !elsewhere && reload::port(handler.get("port"), container).is_some_and(wants_certificate) {
                    self.warnings.push(format!(
                        "container {}: its {field} asks a port that wants a client certificate by {kind} and has none, so it \
                         will fail for ever; probe an http:// URL of --listen-metrics-urls, or use tcpSocket",
                        container.name
                    ));
                }
            }
        }
    }

    /// curl and wget in scripts, probes and hooks that ask etcd's port without TLS or without a certificate.
    pub(super) fn check_requests(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let clients = LazyCell::new(|| urls::urls(setting(options, "listen-client-urls").as_ref()));
        let is_client = |port: u16| clients.iter().any(|u| u.port == port) || (clients.is_empty() && port == 2379);
        let line = container.words("command").chain(container.words("args")).collect::<Vec<_>>().join(" ");
        let hooks = options::hooks(container).map(|(place, words)| (place, words.join(" ")));
        let lines = std::iter::once(("command".to_owned(), line)).chain(hooks);
        for (place, text) in lines.filter(|(_, text)| text.contains("curl") || text.contains("wget")) {
            let asks = |command: &str| {
                let words: Vec<&str> = command
                    .split(|c: char| c.is_whitespace() || "'\"`()".contains(c))
                    .filter(|w| !w.is_empty())
                    .collect();
                let tool = words.iter().any(|w| matches!(w.rsplit('/').next(), Some("curl" | "wget")));
                let certificate =
                    words.iter().any(|w| *w == "-E" || w.starts_with("--cert") || w.starts_with("--certificate"));
                let of_etcd = |word: &&&str| port(word).is_some_and(is_client);
                let url = words.iter().find(of_etcd).filter(|_| tool)?;
                let plain = !url.contains("https://");
                (plain || !certificate).then(|| (short(url), plain))
            };
            let Some((url, plain)) = text.split(['\n', ';', '|', '&']).find_map(asks) else { continue };
            let missing = if plain { "speaks TLS" } else { "wants a client certificate" };
            self.warnings.push(format!(
                "container {}: {place} asks {url}, a port that {missing}; ask an http:// URL of --listen-metrics-urls, or give \
                 it https:// and the files in {}/client (role client)",
                container.name, self.settings.mount_path
            ));
        }
    }

    /// Runs of etcdctl that have no certificate, another's, or no TLS.
    pub(super) fn check_etcdctl(&mut self, target: &Target<'a>) {
        let Target { container, options, roles } = target;
        let (name, mount) = (container.name, self.settings.mount_path.clone());
        let client = roles.contains(&Role::Client);
        let text = |setting: Option<Setting>| match setting {
            Some(Setting::Text(text) | Setting::Open(text)) => Some(text),
            Some(Setting::Unknown) => Some(String::new()),
            None => None,
        };
        let ours = |path: &str| path.starts_with(&format!("{mount}/"));
        let trusted = text(setting(options, "trusted-ca-file")).is_none_or(|path| ours(&path));
        let mut said = BTreeSet::new();
        let mut say = |warning: String| said.extend([warning]);
        for run in options.runs_of(Tool::Etcdctl).filter(|run| run.dials()) {
            let of = |option: &str| {
                let variable = || options.variable(Tool::Etcdctl, &urls::variable("ETCDCTL", option));
                text(run.flags.get(option).cloned().or_else(variable))
            };
            let place = &run.place;
            match of("cert") {
                Some(path) if !path.is_empty() && !path.contains('$') && !ours(&path) && trusted => say(format!(
                    "container {name}: {place} gives etcdctl {}, which etcd will not trust; name {mount}/client/tls.crt, tls.key \
                     and ca.crt{}",
                    short(&path),
                    if client { "" } else { ", and add client to etcd-tls.dev/roles" }
                )),
                None if !client && !options.own_client_flags => say(format!(
                    "container {name}: {place} runs etcdctl, which needs a client certificate: add client to \
                     etcd-tls.dev/roles"
                )),
                _ => {}
            }
            if let Some(endpoint) = of("endpoints").filter(|text| text.contains("http://")) {
                say(format!(
                    "container {name}: {place} gives etcdctl the endpoint {}, which will speak TLS; write https://",
                    short(&endpoint)
                ));
            }
        }
        let hooks = options::hooks(container).flat_map(|(_, words)| words);
        let mut words = container.words("command").chain(container.words("args")).chain(hooks);
        let told = options.untold_client.is_none() || options.runs_of(Tool::Etcdctl).any(Run::dials);
        if !told && !client && words.any(|word| word.contains("etcdctl")) {
            say(format!(
                "container {name}: it names etcdctl, which needs a client certificate; add client to etcd-tls.dev/roles"
            ));
        }
        self.warnings.extend(said);
    }
}

/// The port of a URL or of `host:port`, as curl and wget take them.
fn port(word: &str) -> Option<u16> {
    let rest = word.split_once("://").map_or(word, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}
