//! `etcd-tls-webhook rollover <namespace>/<cluster>`: requests a step of a rollover, or shows its status. It runs with the
//! caller's kubeconfig and needs only `get` and `patch` on the cluster's trust ConfigMap.

use std::{
    io::Write as _,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{
    names::{self, ClusterName},
    role::Domain,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    Action, Report, Request, request_annotation, status_annotation,
    watch::{Progress, is_over},
};
use crate::{
    controller::client,
    error::Error,
    operator::{note, request_id, say},
};

/// How long to wait for the signer's answer.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// How often --watch looks.
const WATCH: Duration = Duration::from_secs(2);

/// Starts, shows, continues or aborts the change of a cluster to a new CA.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").args(["status", "abort", "confirm_clients", "force"])))]
pub struct Args {
    /// The cluster, as <namespace>/<cluster>.
    cluster: ClusterName,
    /// The CA to replace: peer, client or metrics.
    #[arg(long)]
    domain: Domain,
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
    /// or remove the old CA. First shows the outage that this can cause.
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation of --force.
    #[arg(long, requires = "force")]
    yes: bool,
    /// Follow the rollover until it is over: a line for each change, with an estimate of what is left.
    #[arg(short, long, conflicts_with = "abort")]
    watch: bool,
}

impl Args {
    /// Writes the request and waits for the signer's answer, or prints the status.
    ///
    /// # Errors
    /// No such cluster, no right to its ConfigMap, no answer, or a refusal.
    pub async fn run(self) -> Result<(), Error> {
        let Self { cluster, domain, status, abort, confirm_clients, force, yes, watch: follow } = self;
        let api: Api<ConfigMap> = Api::namespaced(client::connect().await?, &cluster.namespace);
        let name = cluster.trust_config_map(&cluster.namespace);
        if status {
            let report = report(&api, &name, domain).await?;
            say(&describe(&format!("{cluster} {domain}"), &report))?;
            return if follow { watch(&api, &name, domain).await } else { Ok(()) };
        }
        let action = match (abort, confirm_clients, force) {
            (true, ..) => Action::Abort,
            (_, true, _) => Action::ConfirmClients,
            (.., true) => Action::Force,
            _ => Action::Start,
        };
        let request = Request { action, id: request_id()? };
        // Refuses a cluster that is not there, before anything is written.
        let before = report(&api, &name, domain).await?;
        if force {
            say(&outage(&format!("{cluster} {domain}"), &before))?;
            if !yes {
                confirm()?;
            }
        }
        let patch = json!({"metadata": {"annotations": {request_annotation(domain): request.to_string()}}});
        client::within(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let report = report(&api, &name, domain).await?;
            if let Some(answer) = report.answer.as_ref().filter(|a| a.id == request.id) {
                if !answer.accepted {
                    return Err(format!("refused: {}", answer.message).into());
                }
                say(&format!("{}\n{}", answer.message, describe(&format!("{cluster} {domain}"), &report)))?;
                return if follow { watch(&api, &name, domain).await } else { Ok(()) };
            }
            sleep(POLL).await;
        }
        Err(format!(
            "the signer did not answer within {} s; the request stands: see --status, and the log of deployment \
             etcd-tls-sign in {}",
            PATIENCE.as_secs(),
            names::SYSTEM_NAMESPACE
        )
        .into())
    }
}

/// Follows a rollover until it is over. One reading that fails is no end: a rollover takes as long as certificates live.
async fn watch(api: &Api<ConfigMap>, name: &str, domain: Domain) -> Result<(), Error> {
    let mut progress = Progress::default();
    let mut failed: Option<String> = None;
    loop {
        match report(api, name, domain).await {
            Ok(report) => {
                failed = None;
                if let Some(line) = progress.line(&report, SystemTime::now()) {
                    say(&line)?;
                }
                if is_over(&report) {
                    let stable = report.phase == "stable";
                    return if stable { Ok(()) } else { Err(describe(name, &report).into()) };
                }
            }
            Err(error) => {
                let text = error.to_string();
                if failed.as_ref() != Some(&text) {
                    note(&format!("{text}; trying again"))?;
                }
                failed = Some(text);
            }
        }
        sleep(WATCH).await;
    }
}

async fn report(api: &Api<ConfigMap>, name: &str, domain: Domain) -> Result<Report, Error> {
    let object = client::within(api.get_opt(name)).await?.ok_or_else(|| {
        format!(
            "there is no ConfigMap {name} in this namespace: no pod of this cluster has opted in, or the signer is away"
        )
    })?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    let text = annotations.get(&status_annotation(domain)).ok_or_else(|| {
        format!("ConfigMap {name} says nothing of an authority {domain}: by policy it is another domain's, or the signer is away")
    })?;
    serde_json::from_str(text)
        .map_err(|e| format!("the signer's report on ConfigMap {name} cannot be read: {e}").into())
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

    use super::*;

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
