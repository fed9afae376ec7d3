//! Programs, probes and hooks that ask etcd: each needs TLS and a client certificate. They are looked for in every container of the
//! pod, since all of them reach etcd at the pod's own address.

use std::collections::BTreeSet;

use etcd_tls_contract::{names, role::Role};

use super::{
    Target, Work,
    contract::short,
    hosts::{Held, held},
    json::Json,
    listeners::is_loopback,
    options::{self, Kept, Options, Run, Setting, Tool},
    paths::is_below,
    reload,
    urls::{self, setting},
    view::Container,
};

/// How many containers are read that get no certificate. Others are reported as not looked at.
pub(super) const MAX_READ: usize = 64;
/// Programs that ask a URL or an address, and the beginnings of their flags for a client certificate.
const TOOLS: [(&str, &[&str]); 3] = [
    ("curl", &["-E", "--cert"]),
    ("wget", &["--certificate"]),
    ("grpc_health_probe", &["-tls-client-cert", "--tls-client-cert"]),
];

/// The ports of the pod's etcd that other containers dial.
#[derive(Default)]
pub(super) struct DialledEtcd {
    clients: BTreeSet<u16>,
    /// Others that want a client certificate: those of metrics and of members.
    others: BTreeSet<u16>,
    /// Those of metrics without TLS.
    plain: BTreeSet<u16>,
    /// Those at loopback addresses alone, which kubelet does not reach.
    inner: BTreeSet<u16>,
    /// All ports of the pod, where no other program can have one.
    all: Option<BTreeSet<u16>>,
    /// It trusts the certificates of etcd-tls alone.
    ours: bool,
}

impl DialledEtcd {
    /// The ports of all `targets` that serve clients with certificates below `mount`; `None` where none does.
    pub(super) fn of(targets: &[Target<'_>], mount: &str) -> Option<Self> {
        let mut servers = targets.iter().filter(|target| target.roles.contains(&Role::Server)).peekable();
        servers.peek()?;
        let mut asked = Self { ours: true, ..Self::default() };
        let mut outer = BTreeSet::new();
        for Target { options, roles, .. } in servers {
            let urls = |option| urls::urls(setting(options, option).as_ref());
            let https = |option| urls(option).into_iter().filter(|url| url.https).map(|url| url.port);
            for url in ["listen-client-urls", "listen-metrics-urls", "listen-peer-urls"].into_iter().flat_map(urls) {
                if is_loopback(&url.host) {
                    asked.inner.insert(url.port)
                } else {
                    outer.insert(url.port)
                };
            }
            asked.clients.extend(urls("listen-client-urls").iter().map(|url| url.port));
            asked.plain.extend(urls("listen-metrics-urls").iter().filter(|url| !url.https).map(|url| url.port));
            asked.others.extend(https("listen-metrics-urls"));
            asked.others.extend(https("listen-peer-urls").filter(|_| roles.contains(&Role::Peer)));
            asked.ours &= text(setting(options, "trusted-ca-file")).is_none_or(|path| is_below(&path, mount));
        }
        if let [Target { container, options, .. }] = targets {
            // A script that is understood runs no program that is not known; of those, few listen.
            let others = ["nc -l", "ncat", "socat", " serve", "proxy", "forward"];
            let mut words = container.words("command").chain(container.words("args"));
            let alone = options.runs_etcd()
                && options.undetermined.is_none()
                && !words.any(|word| others.iter().any(|other| word.contains(other)));
            let written = |option| {
                let setting = setting(options, option);
                setting.is_some() && urls::unclear(setting.as_ref()).is_none()
            };
            let known = alone
                && !options.is_proxy()
                && ["listen-client-urls", "listen-peer-urls"].into_iter().all(written)
                && ["config-file", "listen-client-http-urls"].iter().all(|option| setting(options, option).is_none())
                && (setting(options, "listen-metrics-urls").is_none() || written("listen-metrics-urls"));
            asked.all = known.then(|| outer.union(&asked.inner).copied().collect());
        }
        asked.inner.retain(|port| !outer.contains(port));
        Some(asked)
    }

    /// True if clients ask at `port`; where it is not written out, the usual one.
    fn is_client(&self, port: u16) -> bool {
        self.clients.contains(&port) || (self.clients.is_empty() && port == 2379)
    }

    /// True if all of these endpoints are another server's at the pod's loopback, such as an etcd that a script starts for a while.
    fn is_anothers(&self, endpoints: &str) -> bool {
        let anothers = |endpoint: &str| {
            let host =
                endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).rsplit_once(':').map(|(host, _)| host);
            host.is_some_and(is_loopback) && port(endpoint).is_some_and(|port| !self.is_client(port))
        };
        endpoints.split(',').map(str::trim).all(anothers)
    }

    fn wants_certificate(&self, port: u16) -> bool {
        self.is_client(port) || self.others.contains(&port)
    }
}

/// A container that may ask etcd.
pub(super) struct Asker<'a, 'b> {
    pub(super) container: Container<'a>,
    pub(super) options: &'b Options,
    /// Etcd itself runs in it.
    member: bool,
    /// It gets a client's certificate, and the variables of etcdctl.
    client: bool,
    /// How it would get them.
    advice: String,
}

impl<'a> Work<'a> {
    /// Checks the questions of a container with certificates. `asked`: the pod's own etcd.
    pub(super) fn check_target_asks(&mut self, target: &Target<'a>, asked: Option<&DialledEtcd>) {
        let client = target.roles.contains(&Role::Client);
        let advice = "add client to etcd-tls.dev/roles".to_owned();
        let member = target.roles.iter().any(|role| matches!(role, Role::Peer | Role::Server));
        let asker = Asker { container: target.container, options: &target.options, member, client, advice };
        match asked {
            Some(asked) => self.check_asker(&asker, asked),
            // A client of an etcd in another pod.
            None if client && !target.roles.contains(&Role::Peer) => {
                let elsewhere = DialledEtcd::default();
                let before = self.warnings.len();
                self.check_endpoints(&asker, &elsewhere);
                if self.warnings.len() == before {
                    self.check_plain_urls(&asker, &elsewhere);
                }
            }
            None => {}
        }
    }

    /// The containers that get no certificate, init containers included.
    pub(super) fn check_neighbours(&mut self, targets: &[Target<'a>], asked: Option<&DialledEtcd>) {
        let Some(asked) = asked else { return };
        let is_target = |c: &Container<'_>| targets.iter().any(|target| target.container.name == c.name);
        let others: Vec<Container<'a>> =
            self.pod.containers.iter().filter(|c| !c.is_injected() && !is_target(c)).copied().collect();
        let role = if self.settings.roles.contains(&Role::Client) { "" } else { "client to etcd-tls.dev/roles and " };
        let advice = format!("add {role}the container to etcd-tls.dev/containers");
        let mut read = 0;
        for container in others {
            if !names_a_way(&container) {
                self.check_probes(&container, asked, false);
                continue;
            }
            read += 1;
            if read > MAX_READ {
                continue;
            }
            let (options, advice) = (Options::read(&container), advice.clone());
            if container.runs_on() {
                self.check_without(&container, &options, None);
            }
            self.check_asker(&Asker { container, options: &options, member: false, client: false, advice }, asked);
        }
        if read > MAX_READ {
            self.warnings.push(format!(
                "{read} containers without certificates may ask etcd, and {MAX_READ} were looked at; see that the others ask \
                 by https:// and with a client certificate"
            ));
        }
    }

    fn check_asker(&mut self, asker: &Asker<'a, '_>, asked: &DialledEtcd) {
        let before = self.warnings.len();
        self.check_probes(&asker.container, asked, asker.member);
        self.check_requests(asker, asked);
        self.check_etcdctl(asker, asked);
        self.check_endpoints(asker, asked);
        self.check_written(asker);
        if self.warnings.len() == before {
            self.check_plain_urls(asker, asked);
        }
    }

    /// Probes and hooks by which kubelet asks a port that wants a client certificate, or, of a `member`, one where nobody listens: beside
    /// etcd, a proxy may listen there.
    fn check_probes(&mut self, container: &Container<'a>, asked: &DialledEtcd, member: bool) {
        let object = container.object;
        let probes = ["startupProbe", "livenessProbe", "readinessProbe"].map(|field| (field, object.get(field)));
        let lifecycle = object.get("lifecycle");
        let hooks = ["postStart", "preStop"].map(|field| (field, lifecycle.map(|l| l.get(field))));
        for (field, probe) in probes.into_iter().chain(hooks) {
            for kind in ["httpGet", "grpc", "tcpSocket"] {
                let Some(handler) = probe.map(|p| p.get(kind)).filter(|v| !v.is_null()) else { continue };
                // On the host's network, the host's loopback is the pod's.
                let here = |host: &str| host.is_empty() || (self.pod.flag("hostNetwork") && is_loopback(host));
                let elsewhere = handler.get("host").as_str().is_some_and(|host| !here(host));
                let port = reload::port(handler.get("port"), container);
                let Some(port) = port.filter(|_| !elsewhere) else { continue };
                if kind == "httpGet" && handler.get("scheme").as_str() == Some("HTTPS") && asked.plain.contains(&port) {
                    self.warnings.push(format!(
                        "container {}: its {field} asks port {port} by HTTPS, and --listen-metrics-urls has it without TLS, so it \
                         will fail for ever; leave out scheme",
                        container.name
                    ));
                } else if member && self.is_nobodys(port, asked) {
                    self.warnings.push(format!(
                        "container {}: its {field} asks port {port}, where etcd does not listen, so it will fail for ever; ask a \
                         port of --listen-client-urls or --listen-metrics-urls",
                        container.name
                    ));
                } else if kind != "tcpSocket" && asked.wants_certificate(port) {
                    self.warnings.push(format!(
                        "container {}: its {field} asks a port that wants a client certificate by {kind} and has none, so it \
                         will fail for ever; probe an http:// URL of --listen-metrics-urls, or use tcpSocket",
                        container.name
                    ));
                } else if member
                    && asked.inner.contains(&port)
                    && handler.get("host").as_str().is_none_or(str::is_empty)
                {
                    self.warnings.push(format!(
                        "container {}: its {field} asks port {port} of the pod's address, and etcd listens there at loopback \
                         alone, so it will fail for ever; let etcd listen at 0.0.0.0 or [::]",
                        container.name
                    ));
                }
            }
        }
    }

    /// True if no program of the pod listens at a port that a probe asks.
    fn is_nobodys(&self, port: u16, asked: &DialledEtcd) -> bool {
        let alone = self.pod.containers.iter().filter(|c| c.runs_on() && !c.is_injected()).count() == 1;
        let known = asked.all.as_ref().filter(|_| alone && !self.pod.flag("hostNetwork"));
        known.is_some_and(|ports| !ports.contains(&port)) && port != self.settings.admin_port
    }

    /// curl, wget and grpc_health_probe in scripts, probes and hooks that ask etcd's port without TLS or without a certificate.
    fn check_requests(&mut self, asker: &Asker<'a, '_>, asked: &DialledEtcd) {
        let container = &asker.container;
        let line = container.words("command").chain(container.words("args")).collect::<Vec<_>>().join(" ");
        let hooks = options::hooks(container).map(|(place, words)| (place, words.join(" ")));
        let lines = std::iter::once(("command".to_owned(), line)).chain(hooks);
        for (place, text) in lines.filter(|(_, text)| TOOLS.iter().any(|(tool, _)| text.contains(tool))) {
            let asks = |command: &str| {
                let words: Vec<&str> = command
                    .split(|c: char| c.is_whitespace() || "'\"`()".contains(c))
                    .filter(|w| !w.is_empty())
                    .collect();
                let is = |word: &str, tool: &str| word.rsplit('/').next() == Some(tool);
                let (tool, flags) = TOOLS.iter().find(|(tool, _)| words.iter().any(|w| is(w, tool)))?;
                let certificate = words.iter().any(|w| flags.iter().any(|flag| w.starts_with(flag)));
                let of_etcd = |word: &&&str| port(word).is_some_and(|port| asked.wants_certificate(port));
                let url = words.iter().find(of_etcd)?;
                let tls = match *tool {
                    "grpc_health_probe" => words.iter().any(|w| w.trim_start_matches('-').starts_with("tls")),
                    _ => url.contains("https://"),
                };
                (!tls || !certificate).then(|| (short(url), !tls))
            };
            let Some((url, plain)) = text.split(['\n', ';', '|', '&']).find_map(asks) else { continue };
            let missing = if plain { "speaks TLS" } else { "wants a client certificate" };
            let instead = match asker.client || asker.member {
                true => format!("give it https:// and the files in {}/client (role client)", self.settings.mount_path),
                false => asker.advice.clone(),
            };
            self.warnings.push(format!(
                "container {}: {place} asks {url}, a port that {missing}; ask an http:// URL of --listen-metrics-urls, or \
                 {instead}",
                container.name
            ));
        }
    }

    /// Runs of etcdctl that have no certificate, or another's.
    fn check_etcdctl(&mut self, asker: &Asker<'a, '_>, asked: &DialledEtcd) {
        let Asker { container, options, member, client, advice } = asker;
        let (name, mount) = (container.name, self.settings.mount_path.clone());
        let has_files = *client || *member || mounts_files(container);
        let mut said = BTreeSet::new();
        let mut say = |warning: String| said.extend([warning]);
        let elsewhere = |run: &&Run| of_run(options, run, "endpoints").is_some_and(|all| asked.is_anothers(&all));
        for run in options.runs_of(Tool::Etcdctl).filter(|run| run.dials() && !elsewhere(run)) {
            let place = &run.place;
            // The program's older half has options and variables of its own.
            let older = match run.variables.get("ETCDCTL_API") {
                Some(Kept::Set(version)) => version == "2",
                _ => matches!(options.variables.get("ETCDCTL_API"), Some(Setting::Text(version)) if version == "2"),
            };
            match of_run(options, run, if older { "cert-file" } else { "cert" }) {
                Some(path) if is_below(&path, &mount) && !has_files => say(format!(
                    "container {name}: {place} gives etcdctl {}, which the container does not have; {advice}",
                    short(&path)
                )),
                Some(path) if !path.is_empty() && !path.contains('$') && !is_below(&path, &mount) && asked.ours => {
                    say(format!(
                        "container {name}: {place} gives etcdctl {}, which etcd will not trust; name {mount}/client/tls.crt, \
                         {}",
                        short(&path),
                        if *client {
                            "tls.key and ca.crt".to_owned()
                        } else {
                            format!("tls.key and ca.crt, and {advice}")
                        }
                    ));
                }
                None if older && (*client || *member) => say(format!(
                    "container {name}: {place} runs etcdctl with ETCDCTL_API=2, which does not read ETCDCTL_CERT; leave that out, or give \
                     it --ca-file, --cert-file and --key-file with the files in {}/client (role client)",
                    short(&mount)
                )),
                None if !client && !options.own_client_flags => {
                    say(format!("container {name}: {place} runs etcdctl, which needs a client certificate: {advice}"));
                }
                _ => {}
            }
        }
        let hooks = options::hooks(container).flat_map(|(_, words)| words);
        let mut words = container.words("command").chain(container.words("args")).chain(hooks);
        let told = options.undetermined_client.as_ref().is_none_or(|doubt| {
            let mut runs = options.runs_of(Tool::Etcdctl);
            if doubt.is_of_words() { runs.next().is_some() } else { runs.any(Run::dials) }
        });
        if !told && !client && words.any(|word| word.contains("etcdctl")) {
            say(format!("container {name}: it names etcdctl, which needs a client certificate; {advice}"));
        }
        self.warnings.extend(said);
    }

    /// Runs of etcdctl without TLS, or by a name that no certificate holds.
    fn check_endpoints(&mut self, asker: &Asker<'a, '_>, asked: &DialledEtcd) {
        let (options, name) = (asker.options, asker.container.name);
        let runs = options.runs_of(Tool::Etcdctl).filter(|run| run.dials());
        let said: BTreeSet<String> = runs
            .filter_map(|run| {
                let (endpoints, place) = (of_run(options, run, "endpoints")?, &run.place);
                if asked.is_anothers(&endpoints) {
                    return None;
                }
                if endpoints.contains("http://") {
                    return Some(format!(
                        "container {name}: {place} gives etcdctl the endpoint {}, which will speak TLS; write https://",
                        short(&endpoints)
                    ));
                }
                let unverified = of_run(options, run, "insecure-skip-tls-verify").is_some();
                let theirs = |file: String| !file.is_empty() && !is_below(&file, &self.settings.mount_path);
                if unverified || of_run(options, run, "cacert").is_some_and(theirs) {
                    return None;
                }
                let hosts = || endpoints.split(',').map(str::trim);
                let told = hosts().find_map(|endpoint| self.unqualified(endpoint)).map(|host| self.not_held(host));
                let unheld = || hosts().filter(|_| asker.member).find_map(|url| self.unheld(asker, url, Role::Server));
                let told = told.or_else(unheld)?;
                Some(format!("container {name}: {place} gives etcdctl an endpoint with {told}"))
            })
            .collect();
        self.warnings.extend(said);
    }

    /// The host of a URL if it is a name without a namespace. A host that is no pod has certificates with such names.
    fn unqualified<'u>(&self, url: &'u str) -> Option<&'u str> {
        let rest = url.strip_prefix("https://").unwrap_or(url);
        let host = rest.split([':', '/', '?', '#']).next()?;
        let letters = host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let known = host.is_empty() || host == "localhost" || self.settings.extra_sans.dns.contains(host);
        (letters && !known && self.config.host.is_none()).then_some(host)
    }

    /// What is said of a URL of this member, or of another of its cluster, without the namespace.
    pub(super) fn unheld(&self, asker: &Asker<'a, '_>, url: &str, role: Role) -> Option<String> {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        let short_name = host.matches('.').count() < 2 && !host.ends_with(".svc");
        match held(host, role, &self.facts(asker.container)) {
            Held::Never(Some(instead)) if short_name && self.settings.is_ours() && self.config.host.is_none() => {
                Some(format!("the name {}, which no certificate will hold; write {}", short(host), short(&instead)))
            }
            _ => None,
        }
    }

    fn not_held(&self, host: &str) -> String {
        let host = short(host);
        format!(
            "the name {host}, and no certificate holds a name without its namespace unless a member's extra-sans has it; write \
             {host}.{}.svc",
            short(self.origin.namespace)
        )
    }

    /// URLs of etcd's port without TLS, or by a name that no certificate holds, for whichever program they are. Those of etcd's own
    /// options are checked by themselves.
    fn check_plain_urls(&mut self, asker: &Asker<'a, '_>, asked: &DialledEtcd) {
        // Runs of etcdctl are checked by themselves.
        let etcdctl = asker.options.runs_of(Tool::Etcdctl).any(Run::dials);
        let mut said = None;
        for (place, text) in self.told(asker) {
            let pieces = text.split(|c: char| c.is_whitespace() || "'\"`(),;|&=".contains(c));
            let mut urls = pieces.filter(|piece| port(piece).is_some_and(|port| asked.is_client(port)));
            let certificate =
                if asker.client || asker.member { String::new() } else { format!(", and {}", asker.advice) };
            said = urls.find_map(|url| match url.strip_prefix("https://") {
                _ if url.starts_with("http://") => Some(format!(
                    "{place} names {}, and etcd speaks TLS there and wants a client certificate; write https://{certificate}",
                    short(url)
                )),
                Some(_) if !etcdctl => Some(format!("{place} has {}", self.not_held(self.unqualified(url)?))),
                _ => None,
            });
            if said.is_some() {
                break;
            }
        }
        self.warnings.extend(said.map(|said| format!("container {}: {said}", asker.container.name)));
    }

    /// The variables and words of a container that may name etcd, each with its place.
    fn told(&self, asker: &Asker<'a, '_>) -> Vec<(String, String)> {
        let (container, options, member) = (&asker.container, asker.options, asker.member);
        let variables = container.list("env").iter().filter_map(|entry| {
            let name = entry.get("name").as_str().filter(|name| !member || *name == "ETCDCTL_ENDPOINTS")?;
            Some((name.to_owned(), text(options.variables.get(name).cloned())?))
        });
        let words = container.words("command").chain(container.words("args")).filter(|_| !member);
        variables.chain(words.map(|word| ("its command line".to_owned(), word.to_owned()))).collect()
    }
}

/// The value of an option for one run of etcdctl.
fn of_run(options: &Options, run: &Run, option: &str) -> Option<String> {
    let variable = || options.variable(Tool::Etcdctl, &urls::variable("ETCDCTL", option));
    text(run.flags.get(option).cloned().or_else(variable))
}

/// The text of a setting; empty where it is not known.
fn text(setting: Option<Setting>) -> Option<String> {
    match setting {
        Some(Setting::Text(text) | Setting::Open(text)) => Some(text),
        Some(Setting::Unknown) => Some(String::new()),
        None => None,
    }
}

/// True if the pod itself mounts our volume there.
fn mounts_files(container: &Container<'_>) -> bool {
    container.list("volumeMounts").iter().any(|mount| mount.get("name").as_str() == Some(names::VOLUME))
}

/// True if a container names a program that asks etcd, a URL, or a listener of an etcd. Only such a one is read.
fn names_a_way(container: &Container<'_>) -> bool {
    let hooks = options::hooks(container).flat_map(|(_, words)| words);
    let words = container.words("command").chain(container.words("args")).chain(hooks);
    let values = container.list("env").iter().filter_map(|entry| entry.get("value").as_str());
    let tells = |text: &str| {
        ["etcdctl", "://", "listen-client-urls"].iter().any(|way| text.contains(way))
            || TOOLS.iter().any(|(tool, _)| text.contains(tool))
    };
    let variable = |entry: &Json<'_>| {
        entry.get("name").as_str().is_some_and(|name| name.starts_with("ETCDCTL_") || name.starts_with("ETCD_LISTEN_"))
    };
    words.chain(values).any(tells) || container.list("env").iter().any(variable)
}

/// The port of a URL or of `host:port`, as curl and wget take them.
fn port(word: &str) -> Option<u16> {
    let rest = word.split_once("://").map_or(word, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}
