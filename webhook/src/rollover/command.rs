//! `etcd-tls-webhook rollover <namespace>/<cluster>`: requests a step of a rollover, or shows its status. It runs with the
//! caller's kubeconfig and needs only `get` and `patch` on the cluster's trust ConfigMap.

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use super::{
    Action, Answer, Report, Request, request_annotation, status_annotation,
    unreported::{is_own, left_out, not_seen, unreported},
    watch::{Progress, is_over},
};
use crate::{
    error::{Error, with_causes},
    operator::{Cluster, note, request_id, say, trust_map},
    screen,
};

/// How long to wait for the signer's answer.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// How often --watch looks.
const WATCH: Duration = Duration::from_secs(2);

/// Starts, shows, continues or aborts the change of a cluster to a new CA.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").args(["status", "abort", "confirm_clients", "force"])))]
pub struct Args {
    /// The cluster, as <namespace>/<cluster>.
    cluster: ClusterName,
    /// The CA to replace: peer, client or metrics. Default: every CA of the cluster for which the step is possible.
    #[arg(long)]
    domain: Option<Domain>,
    #[command(flatten)]
    kubernetes: Cluster,
    /// Show the status, and change nothing.
    #[arg(long)]
    status: bool,
    /// Withdraw a published CA. Possible until the new CA signs.
    #[arg(long)]
    abort: bool,
    /// Confirm that the clients outside the cluster trust the new CA.
    #[arg(long)]
    confirm_clients: bool,
    /// Take the next step without waiting, after a leaked key: publish a new CA that signs at once, let the published CA sign,
    /// or remove the old CA. First shows the outage that this can cause. It needs --domain.
    #[arg(long, requires = "domain")]
    force: bool,
    /// Do not ask for confirmation of --force.
    #[arg(long, requires = "force")]
    yes: bool,
    /// Follow the rollover until it is over: a line for each change, with an estimate of what is left.
    #[arg(short, long, conflicts_with = "abort")]
    watch: bool,
}

impl Args {
    /// Writes the request for each domain and waits for the signer's answers, or prints the status.
    ///
    /// # Errors
    /// No such cluster, no right to its ConfigMap, no domain for which the step is possible, no answer, or a refusal.
    pub async fn run(self) -> Result<(), Error> {
        let (client, _) = self.kubernetes.connect().await?;
        self.run_by(client).await
    }

    async fn run_by(self, client: Client) -> Result<(), Error> {
        let Self { cluster, domain, kubernetes: _, status, abort, confirm_clients, force, yes, watch: follow } = self;
        let name = cluster.trust_config_map(&cluster.namespace);
        let trust = Trust { api: Api::namespaced(client, &cluster.namespace), name };
        // Refuses a cluster that is not there, before anything is written.
        let object = trust_map::read(&trust.api, &trust.name).await?;
        let reports = trust.reports_of(&object, domain.as_ref().map_or(&Domain::ALL, std::slice::from_ref))?;
        let untold = if domain.is_none() { unreported(&object, &reports) } else { Vec::new() };
        let (untold, of_others): (Vec<Domain>, Vec<Domain>) =
            untold.into_iter().partition(|domain| is_own(&object, &cluster, *domain));
        if !of_others.is_empty() {
            note(&left_out(&cluster, &of_others))?;
        }
        if status {
            for (domain, report) in &reports {
                let text = describe(&format!("{cluster} {domain}"), report);
                say(&screen::wrapped_lines(&text, screen::width()))?;
            }
            let domains: Vec<Domain> = reports.into_iter().map(|(domain, _)| domain).collect();
            if follow {
                trust.watch(&domains).await?;
            }
            return not_seen(&cluster, &untold);
        }
        let action = match (abort, confirm_clients, force) {
            (true, ..) => Action::Abort,
            (_, true, _) => Action::ConfirmClients,
            (.., true) => Action::Force,
            _ => Action::Start,
        };
        let all = domain.is_none();
        let domains = domains(action, domain, &reports)?;
        if force {
            for (domain, report) in &reports {
                say(&outage(&format!("{cluster} {domain}"), report))?;
            }
            if !yes {
                confirm()?;
            }
        }
        let request = Request { action, id: request_id()? };
        let asked = domains.iter().map(|domain| (request_annotation(*domain), request.to_string()));
        trust_map::annotate(&trust.api, &trust.name, asked.collect()).await?;
        let mut refusals = Vec::new();
        let mut accepted = Vec::new();
        let mut failures = Vec::new();
        for (domain, answered) in trust.answers(&domains, &request).await? {
            match answered {
                Some((report, answer)) if answer.accepted => {
                    let text = format!("{}\n{}", answer.message, describe(&format!("{cluster} {domain}"), &report));
                    say(&screen::wrapped_lines(&text, screen::width()))?;
                    accepted.push(domain);
                }
                Some((_, answer)) => refusals.push(format!("{cluster} {domain}: refused: {}", answer.message)),
                None => failures.push(format!("{cluster} {domain}: {}", silent())),
            }
        }
        // The operator asked for what is possible, and the signer says that it is not: a CA of the user's own.
        if all && matches!(action, Action::Start) && !accepted.is_empty() {
            for refusal in std::mem::take(&mut refusals) {
                note(&refusal)?;
            }
        }
        failures.splice(..0, refusals);
        if follow && !accepted.is_empty() {
            trust.watch(&accepted).await?;
        }
        if failures.is_empty() {
            return not_seen(&cluster, &untold);
        }
        if let Err(untold) = not_seen(&cluster, &untold) {
            note(&untold.to_string())?;
        }
        Err(failures.join("\n").into())
    }
}

/// The domains that a request is for: the one that the operator names, or all for which the step is possible now.
fn domains(action: Action, named: Option<Domain>, reports: &[(Domain, Report)]) -> Result<Vec<Domain>, Error> {
    if let Some(named) = named {
        return Ok(vec![named]);
    }
    let possible = |(domain, report): &&(Domain, Report)| match action {
        Action::Start => report.phase == STABLE,
        Action::Abort | Action::Force => report.phase == PUBLISHED,
        Action::ConfirmClients => report.phase == PUBLISHED && *domain != Domain::Peer,
    };
    let domains: Vec<Domain> = reports.iter().filter(possible).map(|(domain, _)| *domain).collect();
    if domains.is_empty() {
        let phases: Vec<String> =
            reports.iter().map(|(domain, report)| format!("{domain} is {}", report.phase)).collect();
        let none = match action {
            Action::Start => "no CA of this cluster is stable",
            Action::Abort | Action::Force => "no new CA of this cluster is published",
            Action::ConfirmClients => "no new CA for clients of this cluster is published",
        };
        return Err(format!("{none}: {}; see --status", phases.join(", ")).into());
    }
    Ok(domains)
}

/// The phase without a rollover.
const STABLE: &str = "stable";
/// The phase in which both CAs are trusted and the old one signs.
const PUBLISHED: &str = "published";

/// A cluster's trust ConfigMap, by which the signer is asked and reports.
struct Trust {
    api: Api<ConfigMap>,
    name: String,
}

impl Trust {
    /// The report on each of `wanted` that has one.
    async fn reports(&self, wanted: &[Domain]) -> Result<Vec<(Domain, Report)>, Error> {
        self.reports_of(&trust_map::read(&self.api, &self.name).await?, wanted)
    }

    fn reports_of(&self, object: &ConfigMap, wanted: &[Domain]) -> Result<Vec<(Domain, Report)>, Error> {
        let name = &self.name;
        let annotation = |domain: Domain| object.metadata.annotations.as_ref()?.get(&status_annotation(domain));
        let mut reports = Vec::new();
        for domain in wanted {
            let Some(text) = annotation(*domain) else { continue };
            let report = serde_json::from_str(text)
                .map_err(|e| format!("the signer's report on ConfigMap {name} cannot be read: {e}"))?;
            reports.push((*domain, report));
        }
        if reports.is_empty() {
            let what = match wanted {
                [domain] => format!("an authority {domain}"),
                _ => "any authority".to_owned(),
            };
            return Err(format!(
                "ConfigMap {name} says nothing of {what}: by policy it is another domain's, or the signer is away"
            )
            .into());
        }
        Ok(reports)
    }

    /// Waits for the answer to `request` for each domain; `None` for one without an answer in time.
    async fn answers(
        &self,
        domains: &[Domain],
        request: &Request,
    ) -> Result<Vec<(Domain, Option<(Report, Answer)>)>, Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut reports: BTreeMap<Domain, Report> = self.reports(domains).await?.into_iter().collect();
            let mut answer = |domain: &Domain| {
                let report = reports.remove(domain)?;
                let answer = report.answer.clone().filter(|answer| answer.id == request.id)?;
                Some((report, answer))
            };
            let answers: Vec<_> = domains.iter().map(|domain| (*domain, answer(domain))).collect();
            if answers.iter().all(|(_, answer)| answer.is_some()) || Instant::now() >= deadline {
                return Ok(answers);
            }
            sleep(POLL).await;
        }
    }

    /// Follows the rollovers until all are over. One reading that fails is no end: a rollover takes as long as certificates
    /// live.
    async fn watch(&self, domains: &[Domain]) -> Result<(), Error> {
        let mut followed: Vec<(Domain, Progress)> =
            domains.iter().map(|domain| (*domain, Progress::default())).collect();
        let mut failed: Option<String> = None;
        let mut unusable = Vec::new();
        while !followed.is_empty() {
            let wanted: Vec<Domain> = followed.iter().map(|(domain, _)| *domain).collect();
            match self.reports(&wanted).await {
                Ok(reports) => {
                    failed = None;
                    let mut left = Vec::new();
                    for (domain, mut progress) in followed {
                        let Some((_, report)) = reports.iter().find(|(one, _)| *one == domain) else {
                            left.push((domain, progress));
                            continue;
                        };
                        if let Some(line) = progress.line(report, SystemTime::now()) {
                            say(&if domains.len() > 1 { format!("{domain}: {line}") } else { line })?;
                        }
                        match is_over(report) {
                            true if report.phase != STABLE => unusable.push(describe(&self.name, report)),
                            true => {}
                            false => left.push((domain, progress)),
                        }
                    }
                    followed = left;
                }
                Err(error) => {
                    let text = with_causes(&*error);
                    if failed.as_ref() != Some(&text) {
                        note(&format!("{text}; trying again"))?;
                    }
                    failed = Some(text);
                }
            }
            if !followed.is_empty() {
                sleep(WATCH).await;
            }
        }
        if unusable.is_empty() { Ok(()) } else { Err(unusable.join("\n").into()) }
    }
}

fn describe(what: &str, report: &Report) -> String {
    let mut text = format!("{what}: {}", report.phase);
    if let Some(since) = &report.since {
        text += &format!(" since {since}");
    }
    if let (Some(active), Some(until)) = (&report.active, &report.active_until) {
        text += &format!("\nsigned by {active} until {until}");
    }
    if let Some(new) = &report.new {
        text += &format!("\nnew CA {new}");
    }
    for line in &report.waiting {
        text += &format!("\nwaits for {}", with_age(line, SystemTime::now()));
    }
    text
}

/// A line with how long it is since the time in it.
fn with_age(line: &str, now: SystemTime) -> String {
    let age = || {
        let (_, rest) = line.split_once(": since ")?;
        let since: jiff::Timestamp = rest.split(' ').next()?.parse().ok()?;
        let age = now.duration_since(SystemTime::from(since)).ok()?;
        let minutes = age.as_secs() / 60;
        Some(format!("{} h {} min", minutes / 60, minutes % 60))
    };
    age().map_or_else(|| line.to_owned(), |age| format!("{line} (for {age})"))
}

/// The signer's silence.
fn silent() -> String {
    format!(
        "the signer did not answer within {} s; the request stands: see --status, and the log of deployment etcd-tls-sign in {}",
        PATIENCE.as_secs(),
        names::SYSTEM_NAMESPACE
    )
}

/// The outage that forcing the next step can cause.
fn outage(what: &str, report: &Report) -> String {
    let mut text = match report.phase.as_str() {
        "published" => format!(
            "Forcing {what}: the new CA signs at once. Pods and clients that have not loaded it refuse the certificates that \
             it signs: their connections to renewed members fail until they have."
        ),
        "signing" => format!(
            "Forcing {what}: the old CA leaves the bundle at once. Pods and clients that still hold a certificate of it are \
             refused until they have renewed."
        ),
        _ => format!(
            "Forcing {what}: a new CA is published and signs at once, before any pod or client has loaded it. Until they \
             have, their connections to renewed members fail. To lose fewer, begin a rollover without --force, wait some \
             minutes, and force it then."
        ),
    };
    if report.waiting.is_empty() {
        text += if report.phase == "published" || report.phase == "signing" {
            "\nNothing is waited for just now."
        } else {
            "\nNo pod is known to trust the new CA."
        };
    }
    for line in &report.waiting {
        text += &format!("\nnot done: {}", with_age(line, SystemTime::now()));
    }
    text
}

/// Asks at a terminal.
fn confirm() -> Result<(), Error> {
    use std::io::{BufRead as _, IsTerminal as _};

    if !std::io::stdin().is_terminal() {
        return Err("--force can mean an outage, as said above: give --yes as well".into());
    }
    write!(std::io::stdout(), "Type yes to go on: ")?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err("nothing was forced".into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;
    use etcd_tls_contract::key::KeyAlgorithm;

    use super::*;
    use crate::{ca::authority::Authority, error::NotSeen};

    #[test]
    fn pending_steps_are_shown_with_their_age() {
        let at: jiff::Timestamp = "2026-01-02T06:07:08Z".parse().unwrap();
        let line = "pod prod/etcd-0: since 2026-01-02T03:04:05Z its process was not seen to have loaded the new CA";
        assert_eq!(with_age(line, at.into()), format!("{line} (for 3 h 3 min)"));
        for other in ["clients outside: an operator's --confirm-clients", "pod a: since never", "pod a: since "] {
            assert_eq!(with_age(other, at.into()), other);
        }
    }

    #[test]
    fn without_a_domain_a_step_is_for_those_that_can_take_it() {
        let report = |phase: &str| Report { phase: phase.to_owned(), ..Report::new(None, &[], None) };
        let (peer, client, metrics) = (Domain::Peer, Domain::Client, Domain::Metrics);
        let of = |action, named, phases: &[(Domain, &str)]| {
            let reports: Vec<_> = phases.iter().map(|(domain, phase)| (*domain, report(phase))).collect();
            domains(action, named, &reports).map_err(|error| error.to_string())
        };
        let mixed = [(peer, "published"), (client, "stable"), (metrics, "lost")];
        assert_eq!(of(Action::Start, None, &mixed), Ok(vec![client]));
        assert_eq!(of(Action::Abort, None, &mixed), Ok(vec![peer]));
        // The signer answers for the domain that the operator names.
        assert_eq!(of(Action::Start, Some(peer), &mixed), Ok(vec![peer]));
        let all = [(peer, "published"), (client, "published"), (metrics, "published")];
        assert_eq!(of(Action::ConfirmClients, None, &all), Ok(vec![client, metrics]));
        let none = of(Action::ConfirmClients, None, &mixed).unwrap_err();
        assert_eq!(
            none,
            "no new CA for clients of this cluster is published: peer is published, client is stable, metrics is lost; see --status"
        );
        let under_way = of(Action::Start, None, &all).unwrap_err();
        assert!(under_way.starts_with("no CA of this cluster is stable: peer is published"), "{under_way}");
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The peers' CA is reported and the clients' is not, and has this name: `rollover --status` without a domain.
    async fn status(cluster: &str, name: &str) -> Result<(), Error> {
        let pem = |name: &str| {
            let year = Duration::from_secs(365 * 86_400);
            Authority::generate(name, KeyAlgorithm::EcdsaP256, year, SystemTime::now()).unwrap().bundle().to_pem()
        };
        let mut object = ConfigMap {
            data: Some(
                [(Domain::Peer, pem("peers")), (Domain::Client, pem(name))]
                    .map(|(d, p)| (d.trust_key().into(), p))
                    .into(),
            ),
            ..ConfigMap::default()
        };
        let report = serde_json::to_string(&Report::new(None, &[], None)).unwrap();
        object.metadata.annotations = Some([(status_annotation(Domain::Peer), report)].into());
        let object = serde_json::to_string(&object).unwrap();
        let server = tower::service_fn(move |_: hyper::Request<kube::client::Body>| {
            let body = http_body_util::Full::new(hyper::body::Bytes::from(object.clone()));
            std::future::ready(Ok::<_, std::convert::Infallible>(hyper::Response::new(body)))
        });
        Line::parse_from(["rollover", cluster, "--status"]).args.run_by(Client::new(server, "default")).await
    }

    #[tokio::test]
    async fn a_ca_of_another_cluster_is_no_error_and_the_clusters_own_is() {
        let long = format!("prod/{}", "e".repeat(50));
        let cut = format!("etcd-tls client 0a1b2c3d4e5f prod.{}", "e".repeat(30));
        assert_eq!(cut.len(), 64);
        let own = "etcd-tls client 0a1b2c3d4e5f prod.etcd";
        for (cluster, name, is_own) in [
            ("prod/etcd", own, true),
            ("prod/etcd", "etcd-tls peer 0a1b2c3d4e5f prod.other", false),
            ("prod/etcd", "etcd-tls peer 0a1b2c3d4e5f prod.et", false),
            ("prod/etcd", "prod.etcd", false),
            (&long, &cut, true),
            (&long, own, false),
        ] {
            let ended = status(cluster, name).await;
            assert_eq!(ended.as_ref().err().is_some_and(|error| error.is::<NotSeen>()), is_own, "{name}: {ended:?}");
            assert_eq!(ended.is_err(), is_own, "{name}: {ended:?}");
        }
    }

    #[test]
    fn forcing_says_who_is_not_ready() {
        for (phase, word) in
            [("stable", "before any pod"), ("published", "signs at once"), ("signing", "leaves the bundle")]
        {
            let report = Report {
                phase: phase.to_owned(),
                waiting: vec!["pod prod/etcd-0".to_owned()],
                ..Report::new(None, &[], None)
            };
            let text = outage("prod/etcd peer", &report);
            assert!(text.contains(word) && text.contains("not done: pod prod/etcd-0"), "{text}");
        }
    }
}
