//! The table of names in docs/architecture.md, made by the function that approver and signer use: `UPDATE_DOCS=1 cargo test -p tests
//! --test docs names` writes it anew.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::IpAddr};

use etcd_tls_contract::{
    identity::{Addressee, PodFacts, ServiceFacts, entitlement, usages},
    names::SignerName,
    policy::Policy,
    role::Role,
    settings::Settings,
};
use tests::repository;

const HEADING: &str = "## Names in a certificate\n";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The pod and the Services that the page describes.
fn described() -> (PodFacts, Vec<ServiceFacts>) {
    let labels: BTreeMap<String, String> = [("app".to_owned(), "etcd".to_owned())].into();
    let pod = PodFacts {
        namespace: "my-namespace".to_owned(),
        name: "etcd-0".to_owned(),
        service_account: "default".to_owned(),
        ips: vec![address("10.0.0.7")],
        hostname: "etcd-0".to_owned(),
        subdomain: Some("etcd".to_owned()),
        labels: labels.clone(),
        ..PodFacts::default()
    };
    let service = |name: &str, ip: Option<&str>| ServiceFacts {
        name: name.to_owned(),
        cluster_ips: ip.map(address).into_iter().collect(),
        selector: labels.clone(),
    };
    (pod, vec![service("etcd", None), service("etcd-client", Some("10.96.0.9"))])
}

#[test]
fn the_table_of_names_is_what_a_pod_gets() {
    let (pod, services) = described();
    let annotations = [("etcd-tls.dev/roles".to_owned(), "peer,server,client,metrics".to_owned())].into();
    let settings = Settings::parse(&annotations).expect("settings");
    let mut table =
        "| role | subject | DNS names | IP addresses | extended key usages |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for role in Role::ALL {
        let signer: SignerName = settings.our_signer(role, &pod.namespace).expect("our signer");
        let entitled = entitlement(role, &pod, &services, &settings, &Policy::default(), Addressee::Ours(&signer));
        let entitled = entitled.expect("entitled");
        let dns: Vec<String> = entitled.sans.dns.iter().map(|name| format!("`{name}`")).collect();
        let ips: Vec<String> = entitled.sans.ips.iter().map(|ip| format!("`{ip}`")).collect();
        let usages: Vec<&str> = usages(role).iter().copied().filter(|usage| usage.ends_with(" auth")).collect();
        let _ = writeln!(
            table,
            "| `{role}` | `O={}, CN={}` | {} | {} | {} |",
            role.organization(),
            entitled.common_name,
            dns.join(", "),
            ips.join(", "),
            usages.join(", ")
        );
    }
    let path = repository().join("docs/architecture.md");
    let page = fs::read_to_string(&path).expect("the page");
    let (before, section) = page.split_once(HEADING).expect("the section");
    let mut blocks: Vec<&str> = section.split("\n\n").collect();
    // An empty line follows the heading; then the text, and the table.
    assert!(blocks.len() > 2, "{blocks:?}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        blocks[1] = table.trim_end();
        fs::write(&path, format!("{before}{HEADING}{}", blocks.join("\n\n"))).expect("write the page");
    }
    let page = fs::read_to_string(&path).expect("the page");
    assert!(page.contains(&table), "docs/architecture.md is not current: UPDATE_DOCS=1 writes it\n{table}");
}
