//! What a live member's etcd is told of TLS, by flag or by variable, and where it listens: for `check pod`. A pod's spec does not
//! change, but what admission said of it may be lost, cut, or of another version.

use etcd_tls_contract::{names, role::Role, settings::Settings};
use serde_json::Value;

use super::{
    Config, Origin, Target, Work,
    contract::URLS,
    environment::{self, peer_units, server_units},
    json, listeners,
    options::Setting,
    urls,
    view::Pod,
};

/// One role of a member's etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// `peer` or `server`.
    pub(crate) role: Role,
    /// Its container.
    pub(crate) container: String,
    /// Options that keep our certificates from being used, or a URL from TLS.
    pub(crate) faults: Vec<String>,
    /// Options whose value the pod does not show.
    pub(crate) unseen: Vec<String>,
    /// The ports on which others reach it, by its URLs.
    pub(crate) ports: Vec<u16>,
}

/// What the pod tells its etcd for each role of a member; none of a pod that is no member.
///
/// # Errors
/// The pod cannot be read: each reason.
pub(crate) fn told(pod: &Value, settings: &Settings, namespace: &str) -> Result<Vec<Told>, Vec<String>> {
    each_role(pod, settings, namespace, |target, role| of_role(target, role, settings))
}

/// What a member's etcd is told of the revocation list of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToldList {
    /// It has the sidecar's.
    Ours,
    /// It has another one, or none that the pod shows.
    NotOurs,
    /// It has a config file, which has no key for a list.
    ConfigFile,
    /// It has one, and the pod does not show which: why.
    Unseen(String),
}

/// The same for each container of the pod that runs etcd, by role.
///
/// # Errors
/// The pod cannot be read: each reason.
pub(crate) fn told_lists(
    pod: &Value,
    settings: &Settings,
    namespace: &str,
) -> Result<Vec<(Role, ToldList)>, Vec<String>> {
    each_role(pod, settings, namespace, |target, role| (role, list_of_role(target, role, settings)))
}

/// The option of etcd that names the revocation list of a role.
pub(crate) const fn list_option(role: Role) -> &'static str {
    if matches!(role, Role::Peer) { "peer-crl-file" } else { "client-crl-file" }
}

fn list_of_role(target: &Target<'_>, role: Role, settings: &Settings) -> ToldList {
    let option = list_option(role);
    // Of a script that is not read to its end the text must do.
    let named = || {
        let mut words = ["command", "args"].into_iter().flat_map(|field| target.container.words(field));
        target.options.undetermined.is_some() && words.any(|word| word.split(is_between).any(names_config_file))
    };
    if urls::setting(&target.options, "config-file").is_some() || named() {
        return ToldList::ConfigFile;
    }
    match urls::setting(&target.options, option) {
        Some(Setting::Text(text)) if text == environment::path(&settings.mount_path, role, names::CRL_FILE) => {
            ToldList::Ours
        }
        Some(Setting::Text(_)) | None => ToldList::NotOurs,
        Some(Setting::Open(text)) => ToldList::Unseen(format!("--{option} is {}", quoted(&text))),
        Some(Setting::Unknown) => ToldList::Unseen(format!("--{option} is a value that is not written in the pod")),
    }
}

/// What parts the words of a script, roughly.
fn is_between(c: char) -> bool {
    c.is_whitespace() || "'\"`;|&()".contains(c)
}

fn names_config_file(word: &str) -> bool {
    let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
    option.is_some_and(|option| option == "config-file" || option.starts_with("config-file="))
}

fn each_role<T>(
    pod: &Value,
    settings: &Settings,
    namespace: &str,
    read: impl Fn(&Target<'_>, Role) -> T,
) -> Result<Vec<T>, Vec<String>> {
    let raw = json::borrowed(pod);
    let pod = Pod::read(&raw).map_err(|error| error.problems)?;
    let config = Config::default();
    let origin = Origin { namespace, namespace_opted_in: true, label: false, subdomain: None, trace: None };
    let mut work = Work::new(pod, settings.clone(), &config, origin);
    let targets = work.targets();
    if !work.problems.is_empty() {
        return Err(work.problems);
    }
    let each = targets.iter().flat_map(|target| target.roles.iter().map(move |role| (target, *role)));
    Ok(each
        .filter(|(_, role)| matches!(role, Role::Peer | Role::Server))
        .map(|(target, role)| read(target, role))
        .collect())
}

fn of_role(target: &Target<'_>, role: Role, settings: &Settings) -> Told {
    let container = target.container.name.to_owned();
    let mut told = Told { role, container, faults: Vec::new(), unseen: Vec::new(), ports: Vec::new() };
    let options = &target.options;
    if options.is_proxy() {
        told.unseen.push("it is etcd's proxy, which has options of its own".to_owned());
        return told;
    }
    if urls::setting(options, "config-file").is_some() {
        told.unseen.push("a config file sets its options".to_owned());
        return told;
    }
    let of = |file: &str| environment::path(&settings.mount_path, role, file);
    let key = if settings.is_of_kubelet() { names::CERT_FILE } else { names::KEY_FILE };
    let units = if role == Role::Peer { peer_units(of, key) } else { server_units(of, key) };
    let hidden = hidden(target);
    for (option, ours) in units.iter().flat_map(|unit| &unit.options) {
        match urls::setting(options, option) {
            Some(Setting::Text(text)) if environment::same(&text, ours) => {}
            Some(Setting::Text(text)) => told.faults.push(format!("--{option} is {}, not {ours}", quoted(&text))),
            Some(Setting::Open(text)) => told.unseen.push(format!("--{option} is {}", quoted(&text))),
            Some(Setting::Unknown) => told.unseen.push(format!("--{option} is a value that is not written in the pod")),
            None => match &hidden {
                Some(why) => told.unseen.push(format!("--{option}: {why}")),
                None => told.faults.push(format!("--{option} is not set; etcd-tls would say {ours}")),
            },
        }
    }
    for (_, option, _) in URLS.iter().filter(|(of, ..)| *of == role) {
        let setting = urls::setting(options, option);
        let all = urls::urls(setting.as_ref());
        if let Some(url) = all.iter().find(|url| !url.https) {
            told.faults.push(format!("--{option} says http://{}:{}", quoted(&url.host), url.port));
        }
        if let Some(unclear) = urls::unclear(setting.as_ref()) {
            told.unseen.push(format!("--{option} is {}", quoted(&unclear)));
        }
        if option.starts_with("listen-") {
            match (&setting, &hidden) {
                (None, Some(why)) => told.unseen.push(format!("--{option}: {why}")),
                (None, None) => told.faults.push(format!("--{option} is not set, and etcd's default is http://")),
                (Some(_), _) => {
                    let outside = all.iter().filter(|url| url.https && !listeners::is_loopback(&url.host));
                    told.ports.extend(outside.map(|url| url.port));
                }
            }
        }
    }
    told
}

/// Why an option that is not seen may be set all the same.
fn hidden(target: &Target<'_>) -> Option<String> {
    let options = &target.options;
    if let Some(doubt) = &options.undetermined {
        Some(format!("not known, since {} {}", doubt.place, doubt.why))
    } else if options.entrypoint {
        Some("not known, since the image's own command is not in the pod".to_owned())
    } else if target.container.env_from("ETCD_") {
        Some("not known, since envFrom may set it".to_owned())
    } else {
        None
    }
}

/// A value of the pod, at most so long.
fn quoted(text: &str) -> String {
    super::contract::short(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn of(etcd: Value) -> Vec<Told> {
        let mut etcd = etcd;
        etcd["name"] = "etcd".into();
        let pod = json!({"metadata": {"name": "etcd-0"}, "spec": {"containers": [etcd]}});
        told(&pod, &Settings::default(), "prod").unwrap()
    }

    fn flags(role: &str, prefix: &str) -> Vec<String> {
        let file = |option: &str, name: &str| format!("--{prefix}{option}=/etc/etcd/tls/{role}/{name}");
        vec![
            file("cert-file", "tls.crt"),
            file("key-file", "tls.key"),
            file("trusted-ca-file", "ca.crt"),
            format!("--{prefix}client-cert-auth"),
        ]
    }

    fn all_well() -> Vec<String> {
        let urls =
            ["listen-client-urls=https://0.0.0.0:2379,https://127.0.0.1:2378", "listen-peer-urls=https://0.0.0.0:2380"];
        let urls = urls.map(|url| format!("--{url}"));
        [urls.to_vec(), flags("server", ""), flags("peer", "peer-")].concat()
    }

    #[test]
    fn a_member_with_our_files_and_tls_alone_is_well() {
        let all = of(json!({"command": ["etcd"], "args": all_well()}));
        assert!(all.iter().all(|told| told.faults.is_empty() && told.unseen.is_empty()), "{all:?}");
        assert_eq!(
            all.iter().map(|told| (told.role, &told.ports[..])).collect::<Vec<_>>(),
            [(Role::Peer, &[2380][..]), (Role::Server, &[2379][..])]
        );
        // By variable, too.
        let (flag, rest) = all_well().into_iter().partition::<Vec<_>, _>(|flag| flag.starts_with("--cert-file"));
        let env = json!([{"name": "ETCD_CERT_FILE", "value": flag[0].split_once('=').unwrap().1}]);
        let all = of(json!({"command": ["etcd"], "args": rest, "env": env}));
        assert!(all.iter().all(|told| told.faults.is_empty()), "{all:?}");
    }

    #[test]
    fn each_option_that_is_wrong_or_unseen_is_named() {
        for (without, with, fault) in [
            ("--cert-file", "--cert-file=/mine.crt", "--cert-file is /mine.crt, not /etc/etcd/tls/server/tls.crt"),
            ("--peer-key-file", "--name=a", "--peer-key-file is not set"),
            ("--client-cert-auth", "--client-cert-auth=false", "--client-cert-auth is false, not true"),
            (
                "--listen-client",
                "--listen-client-urls=http://0.0.0.0:2379",
                "--listen-client-urls says http://0.0.0.0:2379",
            ),
            ("--listen-peer", "--name=a", "--listen-peer-urls is not set"),
            ("x", "--advertise-client-urls=http://etcd-0:2379", "--advertise-client-urls says http://etcd-0:2379"),
            ("x", "--initial-cluster=a=https://a:2380,b=http://b:2380", "--initial-cluster says http://b:2380"),
        ] {
            let args: Vec<String> =
                all_well().into_iter().filter(|flag| !flag.starts_with(without)).chain([with.to_owned()]).collect();
            let all = of(json!({"command": ["etcd"], "args": args}));
            assert!(all.iter().any(|told| told.faults.iter().any(|said| said.starts_with(fault))), "{fault}: {all:?}");
        }
        for etcd in [
            json!({"image": "etcd"}),
            json!({"command": ["sh", "-c", "$(cat /run-it)"]}),
            json!({"command": ["etcd", "--config-file=/etc/etcd.yaml"]}),
            json!({"command": ["etcd"], "envFrom": [{"configMapRef": {"name": "c"}}]}),
        ] {
            let all = of(etcd.clone());
            assert!(all.iter().all(|told| told.faults.is_empty() && !told.unseen.is_empty()), "{etcd}: {all:?}");
        }
    }
}
