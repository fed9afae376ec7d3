//! Command lines at which etcd or etcdctl stops, whatever certificates it has.

use std::collections::BTreeSet;

use etcd_tls_contract::role::Role;

use super::{
    Target, Work,
    contract::{DISCOVERY, short},
    hosts,
    options::{Kept, Options, Setting, Tool},
    urls::{self, Url, setting},
    view::Container,
};

/// What etcd needs to serve TLS for a role: the option with the URLs, that with the certificate, and that by which it makes its own.
const LISTENERS: [(Role, &str, &str, &str); 2] = [
    (Role::Server, "listen-client-urls", "cert-file", "auto-tls"),
    (Role::Peer, "listen-peer-urls", "peer-cert-file", "peer-auto-tls"),
];

impl<'a> Work<'a> {
    /// Words that are no options, and options given by flag and by variable (etcd `flags.SetFlagsFromEnv`); those of etcd-tls are refused.
    pub(super) fn check_words(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let name = container.name;
        if setting(options, "config-file").is_some() || options.is_proxy() {
            return;
        }
        let mut said = BTreeSet::new();
        for run in &options.runs {
            let Some(tool) = run.tool else { continue };
            let (place, program) = (&run.place, tool.program());
            let prefix = program.to_ascii_uppercase();
            let doubled = run.flags.keys().map(|flag| (flag, urls::variable(&prefix, flag))).find(|(_, variable)| {
                !matches!(run.variables.get(variable), Some(Kept::Unclear)) && options.is_set(run, variable)
            });
            if let Some((flag, variable)) = doubled {
                said.insert(format!(
                    "container {name}: {place} gives {program} --{flag}, and {variable} is set as well, at which it stops; leave \
                     one out"
                ));
            }
            if let Some(word) = run.words.first().filter(|_| tool == Tool::Etcd) {
                said.insert(format!(
                    "container {name}: {place} gives etcd the word {}, at which it stops; write each option as --option=value",
                    short(word)
                ));
            }
        }
        self.warnings.extend(said);
        if let Some(text) = urls::literal(setting(options, "name").as_ref()).filter(|_| is_plain(options)) {
            self.warnings.push(to_the_letter(name, "name", &text));
        }
    }

    /// Whether the URLs of an option are not of a form that etcd takes (etcd `types.NewURLs`, `embed.checkBindURLs`), of which is then
    /// warned.
    pub(super) fn check_form(
        &mut self,
        target: &Target<'a>,
        option: &str,
        setting: Option<&Setting>,
        urls: &[Url],
    ) -> bool {
        let name = target.container.name;
        let named =
            urls.iter().find(|url| option.starts_with("listen-") && hosts::is_name(&url.host, &target.container));
        let said = if let Some(text) = urls::literal(setting).filter(|_| is_plain(&target.options)) {
            to_the_letter(name, option, &text)
        } else if let Some(url) = urls::malformed(setting) {
            format!(
                "container {name}: --{option} has {}, at which etcd stops; write https://<host>:<port>, without a path",
                short(&url)
            )
        } else if let Some(url) = named {
            format!(
                "container {name}: --{option} names {:?}, and etcd listens at addresses alone, so it stops; write \
                 https://0.0.0.0:{port}, or https://[::]:{port}",
                short(&url.host),
                port = url.port
            )
        } else {
            return false;
        };
        self.warnings.push(said);
        true
    }

    /// An initial cluster that lacks this member or what it advertises, at which etcd stops when it starts without data
    /// (etcd `ServerConfig.VerifyBootstrap` and `advertiseMatchesCluster`).
    pub(super) fn check_bootstrap(&mut self, target: &Target<'a>) {
        let Target { container, options, .. } = target;
        let of = |option| setting(options, option);
        let seen = options.runs_etcd() && !container.env_from("ETCD_");
        let found_otherwise = ["config-file"].into_iter().chain(DISCOVERY).any(|option| of(option).is_some());
        let Some(advertised) = of("initial-advertise-peer-urls") else { return };
        if !seen || found_otherwise || options.is_proxy() {
            return;
        }
        let spaced = |pair: &&str| pair.starts_with(char::is_whitespace) && pair.contains('=');
        if let Some(Setting::Text(cluster) | Setting::Open(cluster)) = of("initial-cluster")
            && let Some(pair) = cluster.split(',').find(spaced)
        {
            self.warnings.push(format!(
                "container {}: --initial-cluster has white space in front of {}, which etcd takes for a part of the name, so \
                 that member stops; write the list without it",
                container.name,
                short(pair.trim())
            ));
        }
        let known = |setting| match setting {
            Setting::Text(text) => Some(text).filter(|text| !text.contains('$')),
            _ => None,
        };
        let advertised = known(advertised);
        let Some(member) = of("name").map_or_else(|| Some("default".to_owned()), known) else { return };
        let name = container.name;
        match (of("initial-cluster").map(known), advertised) {
            (None, Some(advertised)) if member == "default" => self.warnings.push(format!(
                "container {name}: --initial-advertise-peer-urls is set, and neither --name nor --initial-cluster, at which \
                 etcd stops; write --initial-cluster={}",
                short(&format!("{member}={advertised}"))
            )),
            (Some(Some(cluster)), advertised) => {
                let pairs = || cluster.split(',').filter_map(|pair| pair.split_once('='));
                let listed: BTreeSet<&str> = pairs().filter(|(of, _)| *of == member).map(|(_, url)| url).collect();
                let advertised: Option<BTreeSet<&str>> =
                    advertised.as_ref().map(|urls| urls.split(',').map(str::trim).collect());
                if listed.is_empty() {
                    self.warnings.push(format!(
                        "container {name}: --initial-cluster lacks this member, {}, at which etcd stops; see --name and \
                         --initial-cluster",
                        short(&member)
                    ));
                } else if let Some(advertised) = advertised.filter(|urls| *urls != listed) {
                    self.warnings.push(format!(
                        "container {name}: --initial-cluster has {} for this member, and it advertises {}; where they do not \
                         resolve to the same, etcd stops",
                        short(&listed.into_iter().collect::<Vec<_>>().join(",")),
                        short(&advertised.into_iter().collect::<Vec<_>>().join(",")),
                    ));
                }
            }
            _ => {}
        }
    }

    /// A gRPC proxy, which has flags of its own and reads no variables (etcd `etcdmain.newGRPCProxyStartCommand`).
    pub(super) fn check_proxy(&mut self, container: &Container<'a>, options: &Options) {
        let plain = |setting: &Setting| matches!(setting, Setting::Text(text) | Setting::Open(text) if text.contains("http://"));
        let bare = options.runs_of(Tool::Etcd).find(|run| {
            run.words.first().is_some_and(|word| word == "grpc-proxy")
                && !run.flags.contains_key("cert")
                && !run.flags.get("endpoints").is_some_and(plain)
        });
        self.warnings.extend(bare.map(|run| {
            format!(
                "container {}: {} runs etcd's grpc-proxy, which reads no ETCD_ variables; give it --cacert, --cert and --key, and \
                 for its own port --cert-file, --key-file and --trusted-ca-file",
                container.name, run.place
            )
        }));
    }

    /// An etcd that is to serve TLS and gets no certificate for it. `roles`: those whose certificates it gets.
    pub(super) fn check_without(&mut self, container: &Container<'a>, options: &Options, roles: Option<&[Role]>) {
        self.check_proxy(container, options);
        let elsewhere =
            options.is_proxy() || options.undetermined.is_some() || setting(options, "config-file").is_some();
        if !options.runs_etcd() || elsewhere {
            return;
        }
        for (role, listen, file, automatic) in LISTENERS {
            let gets = roles.is_some_and(|roles| roles.contains(&role));
            let own = [file, automatic].iter().any(|option| setting(options, option).is_some());
            let tls = urls::urls(setting(options, listen).as_ref()).iter().any(|url| url.https);
            if tls && !gets && !own && !container.env_from("ETCD_") {
                let advice = match roles {
                    Some(_) => format!("add {role} to etcd-tls.dev/roles"),
                    None => "name each container with an etcd in etcd-tls.dev/containers".to_owned(),
                };
                self.warnings.push(format!(
                    "container {}: --{listen} says https://, and nothing gives etcd --{file}, so it stops; {advice}",
                    container.name
                ));
                return;
            }
        }
    }
}

/// True if etcd gets its words as they stand in the pod.
fn is_plain(options: &Options) -> bool {
    options.runs_etcd() && options.undetermined.is_none()
}

fn to_the_letter(container: &str, option: &str, text: &str) -> String {
    format!(
        "container {container}: --{option} is {} to the letter: no shell reads it, and kubelet expands $(NAME) alone, of a variable \
         that env sets before it is used",
        short(text)
    )
}
