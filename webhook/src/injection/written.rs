//! Members that a restore or an addition writes down: etcd takes their URLs from its data, once there is any, whatever its flags are.

use etcd_tls_contract::role::Role;

use super::{
    Work,
    asking::Asker,
    contract::short,
    options::{Setting, Tool},
};

/// The flags with members' URLs.
const MEMBERS: [&str; 3] = ["initial-cluster", "initial-advertise-peer-urls", "peer-urls"];

impl<'a> Work<'a> {
    /// Warns of a URL without TLS, and of one that no certificate will hold.
    pub(super) fn check_written(&mut self, asker: &Asker<'a, '_>) {
        let name = asker.container.name;
        let told = asker.options.runs.iter().find_map(|run| {
            let tool = run.tool.filter(|tool| *tool != Tool::Etcd)?;
            MEMBERS.into_iter().find_map(|option| {
                let Some(Setting::Text(urls) | Setting::Open(urls)) = run.flags.get(option) else { return None };
                let what = urls.split(',').find_map(|pair| {
                    let url = pair.rsplit('=').next().unwrap_or_default().trim();
                    // A member alone may dial itself there.
                    let alone = ["http://localhost", "http://127."].iter().any(|own| url.starts_with(own));
                    let plain = url.starts_with("http://") && !alone;
                    let said = format!("{}, and members speak TLS; write https://", short(url));
                    plain.then_some(said).or_else(|| self.unheld(asker, url, Role::Peer))
                })?;
                Some(format!(
                    "container {name}: {} gives {} --{option}, which etcd keeps in its data, with {what}",
                    run.place,
                    tool.program()
                ))
            })
        });
        self.warnings.extend(told);
    }
}
