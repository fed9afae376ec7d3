//! The state of a sidecar, read from the metrics on its admin port.

use std::collections::BTreeMap;

use etcd_tls_contract::role::{Domain, Role};

/// One series: its labels and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// The state of a sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sidecar {
    /// Its version.
    pub(crate) version: Option<String>,
    /// By role, for each certificate on disk.
    pub(crate) certificates: BTreeMap<Role, Certificate>,
    /// By role, the word for why the last request failed.
    pub(crate) failing: BTreeMap<Role, String>,
    /// By role, the CA of whose bundle a signed certificate waits.
    pub(crate) awaited: BTreeMap<Role, String>,
    /// By role, the members of etcd that do not trust that CA yet.
    pub(crate) awaited_members: BTreeMap<Role, Vec<String>>,
    /// By domain, the digest of the bundle on disk.
    pub(crate) bundles: BTreeMap<Domain, String>,
    /// By domain, what is known of the bundle that etcd has loaded.
    pub(crate) trust: BTreeMap<Domain, Trust>,
    /// The domains for whose bundle etcd has to be restarted.
    pub(crate) restart_due: Vec<Domain>,
    /// The word for what a due restart waits for.
    pub(crate) restart_waits: Option<String>,
    /// The id of the last request to end all connections that was carried out.
    pub(crate) cut: Option<String>,
    /// By domain, the number of the revocation list on disk.
    pub(crate) lists: BTreeMap<Domain, u64>,
    /// The domains whose revocation list on offer is refused.
    pub(crate) lists_refused: Vec<Domain>,
    /// The domains whose bundle on offer is refused.
    pub(crate) refused: Vec<Domain>,
}

/// A certificate on disk. Times are in seconds of the Unix epoch; `None`: the sidecar does not say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Certificate {
    /// Its serial number, in lower-case hexadecimal digits.
    pub(crate) serial: Option<String>,
    /// When it was received.
    pub(crate) issued: Option<f64>,
    /// When the next one is requested.
    pub(crate) renewal: Option<f64>,
    /// Its notAfter.
    pub(crate) expiry: Option<f64>,
    /// How many of etcd's ports serve it.
    pub(crate) ports: Option<f64>,
    /// True if all of them do.
    pub(crate) served: Option<bool>,
}

/// See [`Sidecar::trust`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// etcd has loaded the bundle on disk.
    Loaded,
    /// A restart of etcd loads it.
    Due,
    /// It cannot be seen, for the reason of this word.
    Unknown(String),
}

/// The text is not what a sidecar says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct MetricsError(String);

impl Sidecar {
    /// Reads the metrics of a sidecar.
    ///
    /// # Errors
    /// It is no text of metrics, or not a sidecar's.
    pub(super) fn read(text: &str) -> Result<Self, MetricsError> {
        let mut sidecar = Self::default();
        let mut ours = false;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let sample = sample(line).ok_or_else(|| MetricsError("the answer is no text of metrics".to_owned()))?;
            ours |= sample.name.starts_with("etcd_tls_");
            sidecar.take(&sample);
        }
        if ours {
            Ok(sidecar)
        } else {
            Err(MetricsError("the answer holds no metric of etcd-tls: another program listens there".to_owned()))
        }
    }

    fn take(&mut self, sample: &Sample) {
        let (role, domain) = (sample.label("role").parse::<Role>().ok(), sample.label("domain").parse::<Domain>().ok());
        let Some(name) = sample.name.strip_prefix("etcd_tls_") else { return };
        let is = sample.value > 0.0;
        match (name, role, domain) {
            ("build_info" | "sidecar_build_info", ..) => self.version = Some(sample.label("version").to_owned()),
            ("certificate_info", Some(role), _) if is => self.of(role).serial = Some(sample.label("serial").to_owned()),
            ("certificate_issued_timestamp_seconds", Some(role), _) => self.of(role).issued = Some(sample.value),
            ("certificate_renewal_timestamp_seconds", Some(role), _) => self.of(role).renewal = Some(sample.value),
            ("certificate_expiry_timestamp_seconds", Some(role), _) => self.of(role).expiry = Some(sample.value),
            ("certificate_ports", Some(role), _) => self.of(role).ports = Some(sample.value),
            ("certificate_served", Some(role), _) => self.of(role).served = Some(is),
            ("request_failing", Some(role), _) if is => {
                self.failing.insert(role, sample.label("result").to_owned());
            }
            ("certificate_waits", Some(role), _) if is => {
                self.awaited.insert(role, sample.label("ca").to_owned());
            }
            ("certificate_waits_for_member", Some(role), _) if is => {
                self.awaited_members.entry(role).or_default().push(sample.label("member").to_owned());
            }
            ("bundle_info", _, Some(domain)) if is => {
                self.bundles.insert(domain, sample.label("digest").to_owned());
            }
            ("trust_state", _, Some(domain)) if is => {
                let trust = match sample.label("state") {
                    "loaded" => Trust::Loaded,
                    "due" => Trust::Due,
                    _ => Trust::Unknown(sample.label("reason").to_owned()),
                };
                self.trust.insert(domain, trust);
            }
            ("restart_due", _, Some(domain)) if is => self.restart_due.push(domain),
            ("restart_waits", ..) if is => self.restart_waits = Some(sample.label("reason").to_owned()),
            ("cut_info", ..) if is => self.cut = Some(sample.label("id").to_owned()),
            // It is a whole number below 2^53.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            ("revocation_list_number", _, Some(domain)) if is => drop(self.lists.insert(domain, sample.value as u64)),
            ("revocation_list_refused", _, Some(domain)) if is => self.lists_refused.push(domain),
            ("bundle_refused", _, Some(domain)) if is => self.refused.push(domain),
            _ => {}
        }
    }

    fn of(&mut self, role: Role) -> &mut Certificate {
        self.certificates.entry(role).or_default()
    }
}

/// Reads one line: `name{label="value",…} number`, the braces left out where there are no labels.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').trim().to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the next quotation mark, with its escapes read, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TEXT: &str = r#"# HELP etcd_tls_sidecar_build The build.
# TYPE etcd_tls_sidecar_build info
etcd_tls_sidecar_build_info{version="0.1.0"} 1
etcd_tls_certificate_info{role="peer",serial="5af3"} 1
etcd_tls_certificate_expiry_timestamp_seconds{role="peer"} 1800086400.0
etcd_tls_certificate_issued_timestamp_seconds{role="peer"} 1800000000.0
etcd_tls_certificate_renewal_timestamp_seconds{role="peer"} 1800043200.0
etcd_tls_certificate_ports{role="peer"} 1
etcd_tls_certificate_served{role="peer"} 0
etcd_tls_request_failing{role="server",result="denied"} 1
etcd_tls_certificate_waits{role="server",ca="CN=next CA"} 1
etcd_tls_certificate_waits_for_member{role="server",member="etcd-1"} 1
etcd_tls_bundle_info{domain="peer",digest="00ff"} 1
etcd_tls_trust_state{domain="peer",state="unknown",reason="plain-text"} 1
etcd_tls_trust_state{domain="client",state="loaded",reason=""} 1
etcd_tls_restart_due{domain="peer"} 1
etcd_tls_restart_due{domain="client"} 0
etcd_tls_restart_waits{reason="leader_last"} 1
etcd_tls_cut_info{id="4f-0a"} 1
etcd_tls_revocation_list_number{domain="client"} 1795886277
etcd_tls_bundle_refused{domain="client"} 1
etcd_tls_revocation_list_refused{domain="peer"} 1
etcd_tls_revocation_list_refused{domain="client"} 0
etcd_tls_handshakes_total{port="a\"b\\c\nd",result="served"} 4
# EOF
"#;

    #[test]
    fn a_sidecars_metrics_are_read() {
        let sidecar = Sidecar::read(TEXT).unwrap();
        let expected = Certificate {
            serial: Some("5af3".to_owned()),
            issued: Some(1_800_000_000.0),
            renewal: Some(1_800_043_200.0),
            expiry: Some(1_800_086_400.0),
            ports: Some(1.0),
            served: Some(false),
        };
        assert_eq!(sidecar.certificates, [(Role::Peer, expected)].into());
        assert_eq!(sidecar.version.as_deref(), Some("0.1.0"));
        assert_eq!(sidecar.failing, [(Role::Server, "denied".to_owned())].into());
        assert_eq!(sidecar.awaited, [(Role::Server, "CN=next CA".to_owned())].into());
        assert_eq!(sidecar.awaited_members, [(Role::Server, vec!["etcd-1".to_owned()])].into());
        assert_eq!(sidecar.trust[&Domain::Peer], Trust::Unknown("plain-text".to_owned()));
        assert_eq!(sidecar.trust[&Domain::Client], Trust::Loaded);
        assert_eq!((&sidecar.restart_due[..], &sidecar.refused[..]), (&[Domain::Peer][..], &[Domain::Client][..]));
        assert_eq!(sidecar.lists_refused, [Domain::Peer]);
        assert_eq!(sidecar.restart_waits.as_deref(), Some("leader_last"));
        assert_eq!(sidecar.cut.as_deref(), Some("4f-0a"));
        assert_eq!(sidecar.lists, BTreeMap::from([(Domain::Client, 1_795_886_277)]));
    }

    #[test]
    fn another_programs_answer_is_no_status() {
        for bad in ["", "<html>", "go_goroutines 7\n", "etcd_tls_x{a=\"b} 1", "etcd_tls_x{a=\"b\"} x", "etcd_tls_x"] {
            assert!(Sidecar::read(bad).is_err(), "{bad}");
        }
        // Later versions say more.
        assert_eq!(Sidecar::read("etcd_tls_new{role=\"peer\",x=\"}\"} 1 1800\n"), Ok(Sidecar::default()));
    }
}
