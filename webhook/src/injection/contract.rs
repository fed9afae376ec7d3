//! Checks the pod against the contract. Warns about each host that no certificate will hold, each URL without TLS, each probe,
//! hook and script that will fail under client-certificate authentication, and everything else that keeps etcd from starting. A
//! pod without a warning must start.

use std::collections::BTreeSet;

use etcd_tls_contract::{names, role::Role};

use super::{
    Target, Work,
    hosts::{self, Facts, Held},
    options::{Setting, Tool},
    paths::is_below,
    urls::{self, Url, setting},
    view::Container,
};

/// The options with URLs of etcd, and whether others dial their hosts or receive them.
pub(super) const URLS: [(Role, &str, bool); 5] = [
    (Role::Server, "listen-client-urls", false),
    (Role::Server, "advertise-client-urls", true),
    (Role::Peer, "listen-peer-urls", false),
    (Role::Peer, "initial-advertise-peer-urls", true),
    (Role::Peer, "initial-cluster", true),
];

/// The options by which etcd lets in certificates of one name alone (etcd `transport.TLSInfo.AllowedCN`, `AllowedHostname`).
pub(super) const ALLOWED: [&str; 3] =
    ["peer-cert-allowed-cn", "peer-cert-allowed-hostname", "client-cert-allowed-hostname"];

/// The options by which etcd looks for its members (etcd `embed.Config`; the last two are those of 3.6).
pub(super) const DISCOVERY: [&str; 4] = ["discovery", "discovery-srv", "discovery-token", "discovery-endpoints"];

/// Suites that fit no key of etcd, where nothing else is left.
pub(super) const SUITES: &str = "--cipher-suites has none for the key of the certificate, and --tls-max-version is TLS1.2, so no \
                                 connection succeeds; add one, or choose another etcd-tls.dev/key";

impl<'a> Work<'a> {
    pub(super) fn check_contract(&mut self, target: &Target<'a>) {
        self.check_unseen(target);
        self.check_urls(target);
        self.check_allowed(target);
        self.check_suites(target);
        if target.roles.contains(&Role::Peer) {
            self.check_bootstrap(target);
            self.check_discovery(target);
        }
        if target.roles.contains(&Role::Server) {
            self.check_http_listener(target);
        }
    }

    /// A program that takes the pod's groups away takes away the one that may read the keys.
    pub(super) fn check_groups(&mut self, target: &Target<'a>) {
        let mut said = BTreeSet::new();
        for run in &target.options.runs {
            let Some(by) = run.dropped.as_ref().filter(|_| run.tool != Some(Tool::Etcdutl)) else { continue };
            if !said.insert(by.clone()) {
                continue;
            }
            self.warnings.push(format!(
                "container {}: {} runs {} by {by}, which takes the pod's groups from it, and group {} may read the keys; \
                 set runAsUser in its securityContext instead",
                target.container.name,
                run.place,
                run.tool.map_or("the image's script", Tool::program),
                names::FILES_GID
            ));
        }
    }

    /// Sources of etcd's options outside the pod.
    fn check_unseen(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let name = container.name;
        if let Some(what) = &options.idle {
            self.warnings.push(format!(
                "container {name}: {what}, by which no etcd starts; if another container runs it, name that one in \
                 etcd-tls.dev/containers"
            ));
        }
        if container.env_from("ETCD_") {
            self.warnings.push(format!(
                "container {name}: envFrom may set ETCD_ variables, which admission cannot see; see that none says http:// or \
                 names a config file, or write them into env"
            ));
        }
        let unset: Vec<&str> = relevant(target)
            .into_iter()
            .filter(|(_, option, told)| !told && setting(options, option).is_none())
            .map(|(_, option, _)| option)
            .collect();
        if options.entrypoint && !unset.is_empty() && setting(options, "config-file").is_none() {
            self.warnings.push(format!(
                "container {name}: admission cannot see the image's default command, and etcd's own default is \
                 http://. Set {} in env, with https://",
                unset.iter().map(|option| urls::variable("ETCD", option)).collect::<Vec<_>>().join(" and ")
            ));
        }
    }

    fn check_urls(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let name = container.name;
        // etcd takes its options from a file alone, and its proxy has others.
        if setting(options, "config-file").is_some() || options.is_proxy() {
            return;
        }
        let seen = options.runs_etcd() && !container.env_from("ETCD_");
        let of = |option| setting(options, option);
        let cluster = urls::urls(of("initial-cluster").as_ref());
        let members = cluster.iter().map(|url| url.host.as_str()).collect::<BTreeSet<_>>().len();
        for (role, option, told) in relevant(target) {
            let setting = of(option);
            let urls = if option == "initial-cluster" { cluster.clone() } else { urls::urls(setting.as_ref()) };
            if let Some(url) = urls.iter().find(|u| !u.https) {
                self.warnings.push(format!(
                    "container {name}: --{option} still says http://{}:{}; write https://",
                    short(&url.host),
                    url.port
                ));
            }
            if self.check_form(target, option, setting.as_ref(), &urls) {
                continue;
            }
            match (option, &setting) {
                ("listen-client-urls", None) if seen => self.warnings.push(format!(
                    "container {name}: --listen-client-urls is not set, so etcd listens on http://localhost:2379"
                )),
                ("advertise-client-urls", None) if seen && of("listen-client-urls").is_some() => {
                    self.warnings.push(format!(
                        "container {name}: --listen-client-urls is set and --advertise-client-urls is not, at which etcd \
                         stops; write https://<pod>.<service>.{}.svc:<port>",
                        self.origin.namespace
                    ));
                }
                ("listen-peer-urls", None) if seen => self.warnings.push(format!(
                    "container {name}: --listen-peer-urls is not set, so etcd listens for members on http://localhost:2380"
                )),
                ("initial-advertise-peer-urls", None) if seen && of("initial-cluster").is_none() => {
                    self.warnings.push(format!(
                        "container {name}: --initial-advertise-peer-urls is not set, so etcd advertises \
                         http://localhost:2380; write https://<pod>.<service>.{}.svc:2380",
                        self.origin.namespace
                    ));
                }
                _ if told => {}
                _ => continue,
            }
            if told {
                self.check_hosts(target, (role, option), &urls, setting.as_ref(), members);
            }
        }
    }

    /// See [`ALLOWED`].
    fn check_allowed(&mut self, target: &Target<'a>) {
        let Target { container, options, roles, .. } = target;
        let why = [
            (Role::Peer, "each member's certificate has a CN of its own, system:etcd-peer:<pod>"),
            (Role::Peer, "each member's certificate holds its own names and etcd-tls.dev/extra-sans"),
            (Role::Server, "clients' certificates hold no names of hosts"),
        ];
        for (option, (role, why)) in ALLOWED.into_iter().zip(why) {
            if roles.contains(&role) && setting(options, option).is_some() {
                self.warnings.push(format!(
                    "container {}: --{option} is set, and {why}. Leave it out; the CA signs for this cluster alone",
                    container.name
                ));
            }
        }
    }

    /// Members that etcd finds by itself, whose hosts stand in no option.
    fn check_discovery(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let Some(option) = DISCOVERY.into_iter().find(|option| setting(options, option).is_some()) else { return };
        let see = match option {
            // etcd takes http:// where only _etcd-server._tcp is there (etcd srv.GetCluster).
            "discovery-srv" => "the port of their Service is named etcd-server-ssl",
            _ => "each has registered with https://",
        };
        self.warnings.push(format!(
            "container {}: cannot tell whether a certificate holds the hosts that --{option} finds; see that {see}, and that they \
             are <pod>.<service>.{}.svc",
            container.name, self.origin.namespace
        ));
    }

    /// Cipher suites of TLS 1.2 that fit the key of no certificate. A key of Ed25519 goes with those of ECDSA (RFC 8422, section 5.10);
    /// TLS 1.3 has suites for all keys.
    fn check_suites(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let of = |option| match setting(options, option) {
            Some(Setting::Text(text)) => text,
            _ => String::new(),
        };
        let (first, last, suites) = (of("tls-min-version"), of("tls-max-version"), of("cipher-suites"));
        let without = match (first.as_str(), last.as_str()) {
            ("TLS1.3", "TLS1.2") => Some("--tls-max-version is TLS1.2"),
            ("TLS1.3", _) if !suites.is_empty() => Some("--cipher-suites is set"),
            _ => None,
        };
        if let Some(other) = without {
            self.warnings.push(format!(
                "container {}: --tls-min-version is TLS1.3, and {other}, at which etcd stops; leave one out",
                container.name
            ));
            return;
        }
        let theirs = |option: &&str| matches!(setting(options, option), Some(Setting::Text(file)) if !is_below(&file, &self.settings.mount_path));
        if ["cert-file", "peer-cert-file"].iter().any(theirs) {
            return;
        }
        let kind = if self.settings.key.as_str().starts_with("rsa-") { "_RSA_" } else { "_ECDSA_" };
        if suites.trim().is_empty() || suites.contains('$') || suites.contains(kind) {
            return;
        }
        let said = match last.as_str() {
            "TLS1.2" => SUITES.to_owned(),
            _ => format!(
                "--cipher-suites has none for {} keys, so neither a client nor an etcd without TLS 1.3 can connect; add one, or \
                 choose another etcd-tls.dev/key",
                self.settings.key
            ),
        };
        self.warnings.push(format!("container {}: {said}", container.name));
    }

    /// A second kind of client port, on which some versions of etcd do not look at the revocation list.
    fn check_http_listener(&mut self, target: &Target<'a>) {
        let option = "listen-client-http-urls";
        let Some(setting) = setting(&target.options, option) else { return };
        let name = target.container.name;
        if let Some(url) = urls::urls(Some(&setting)).iter().find(|u| !u.https) {
            self.warnings.push(format!(
                "container {name}: --{option} still says http://{}:{}; write https://",
                short(&url.host),
                url.port
            ));
        }
        if self.lists() {
            self.warnings.push(format!(
                "container {name}: with --{option}, etcd before 3.5.32, and 3.6 before 3.6.13, takes revoked certificates on \
                 its client ports; upgrade etcd or leave it out"
            ));
        }
    }

    /// What certificates hold; the hosts may be others'.
    pub(super) fn facts(&self, container: Container<'a>) -> Facts<'_> {
        Facts {
            namespace: self.origin.namespace,
            container,
            host_network: self.pod.flag("hostNetwork"),
            extra: &self.settings.extra_sans,
            foreign: !self.settings.is_ours(),
            by_name: self.settings.is_of_kubelet(),
            members: 2,
            domain: self.config.cluster_domain.as_deref(),
            dns: None,
        }
    }

    /// The hosts of an option that no certificate will hold, and the undetermined ones. `members`: of how many the cluster is
    /// known to be.
    fn check_hosts(
        &mut self,
        target: &Target<'a>,
        (role, option): (Role, &str),
        urls: &[Url],
        setting: Option<&Setting>,
        members: usize,
    ) {
        // A static pod asks for the hosts that it advertises.
        if self.config.host.is_some() {
            return;
        }
        // The names in a certificate of the pod's own are not known.
        let file = if role == Role::Peer { "peer-cert-file" } else { "cert-file" };
        let ours = |file: &str| is_below(file, &self.settings.mount_path);
        if matches!(urls::setting(&target.options, file), Some(Setting::Text(file)) if !ours(&file)) {
            return;
        }
        let name = target.container.name;
        // Others' names stand in an initial cluster, too.
        let dns = self.pod.dns.filter(|_| option != "initial-cluster");
        let facts = Facts { members, dns, ..self.facts(target.container) };
        let pattern = format!("<pod>.<service>.{}.svc", self.origin.namespace);
        let instead = |instead: Option<String>| match instead {
            Some(instead) => format!("write {}", short(&instead)),
            None if self.settings.is_of_kubelet() => format!("write {pattern}, or use the issuer csr"),
            None => format!("write {pattern}, or name it in etcd-tls.dev/extra-sans where policy allows it"),
        };
        let mut never: Vec<(&str, String)> = Vec::new();
        let mut unknown: Vec<String> = urls::unclear(setting).or_else(|| urls::socket(setting)).into_iter().collect();
        for url in urls {
            match hosts::held(&url.host, role, &facts) {
                Held::Possible => {}
                Held::Never(_) | Held::NoSubdomain if never.iter().any(|(host, _)| *host == url.host) => {}
                Held::Never(other) => never.push((&url.host, instead(other))),
                Held::NoSubdomain => {
                    never.push((
                        &url.host,
                        "set spec.subdomain (serviceName of a StatefulSet) to the Service's name".to_owned(),
                    ));
                }
                Held::Unknown => unknown.push(url.host.clone()),
            }
        }
        if let Some((host, instead)) = never.first() {
            let more = if never.len() > 1 { format!(" (and {} more)", never.len() - 1) } else { String::new() };
            let said = format!(
                "container {name}: --{option} names {}{more}, which no certificate will hold; {instead}",
                short(host)
            );
            // An address listened at is nobody's to dial.
            match (self.settings.is_of_kubelet(), option.starts_with("listen-")) {
                (true, false) => self.problems.push(said),
                (true, true) => {}
                (false, _) => self.warnings.push(said),
            }
        } else if let Some(what) = unknown.first() {
            self.warnings.push(format!(
                "container {name}: cannot tell whether a certificate holds the hosts of --{option}: {}; see that it \
                 is https:// and the pod's address or {pattern}",
                short(what)
            ));
        }
    }
}

/// The options with URLs that matter for the roles of `target`.
fn relevant(target: &Target<'_>) -> Vec<(Role, &'static str, bool)> {
    URLS.into_iter().filter(|(role, ..)| target.roles.contains(role)).collect()
}

/// At most 60 characters of what the pod says, so that a warning stays below 256.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
