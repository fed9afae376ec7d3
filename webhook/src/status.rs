//! `etcd-tls-webhook status`: how the certificates of all pods are, with the caller's rights. It changes nothing.
//!
//! ```text
//! gather    what the API server and the sidecars say
//! proxy     a sidecar's port, through the API server
//! trouble   why a pod does not run; pure
//! metrics   a sidecar's metrics, read
//! lists     members whose etcd does not look at the revocation list; pure
//! membership  of which cluster a pod is; pure
//! rows      what is said of each pod; pure
//! render    how that is written; pure
//! ```

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, SystemTime},
};

use crate::{
    error::{Error, NotWell},
    inject,
    operator::{self, Cluster},
    screen,
};

mod gather;
mod lists;
mod membership;
mod metrics;
pub(crate) mod proxy;
mod render;
mod rows;
mod trouble;

pub(crate) use gather::{OnePod, PodReport, namespace, opted_in, pod};
pub(crate) use lists::{sentence, unlisted, unreadable, without_list};
pub(crate) use membership::{Membership, name};
pub(crate) use metrics::{Certificate, Sidecar};
pub(crate) use proxy::ask;
use render::{Output, Screen};
use rows::Row;
pub(crate) use rows::{State, Unseen, duration};

/// The arguments of `status`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pods of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// The pods of this namespace. Default: the one of the kubeconfig's context.
    #[arg(short, long, value_name = "NAME", value_parser = operator::namespace)]
    namespace: Option<String>,
    /// The output format. Default: a table, with notes below pods that need attention.
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// Show the status again and again, until interrupted.
    #[arg(short, long)]
    watch: bool,
    /// The time between two updates of --watch.
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = etcd_tls_contract::duration::parse_duration)]
    interval: Duration,
    #[command(flatten)]
    cluster: Cluster,
}

/// All is well, or how many of `what` are not.
pub(crate) fn well(what: &'static str, states: impl Iterator<Item = State>) -> Result<(), NotWell> {
    let states: Vec<State> = states.collect();
    let count = |state| states.iter().filter(|is| **is == state).count();
    let (failing, unknown, attention, all) =
        (count(State::Failing), count(State::Unknown), count(State::Attention), states.len());
    match (failing + attention, unknown) {
        (0, 0) => Ok(()),
        (0, _) => Err(NotWell::Unknown { what, unknown, all }),
        _ => Err(NotWell::Attention { what, failing, attention, unknown, all }),
    }
}

impl Args {
    /// Prints the status.
    ///
    /// # Errors
    /// Pods cannot be listed, or not all is well: [`NotWell`].
    pub async fn run(self) -> Result<(), Error> {
        let (client, default) = self.cluster.connect().await?;
        let namespace = (!self.all_namespaces).then(|| self.namespace.clone().unwrap_or(default));
        let terminal = std::io::stdout().is_terminal();
        let (mut first, mut failed) = (true, String::new());
        loop {
            let seen = match gather::gather(&client, namespace.as_deref()).await {
                Ok(seen) => seen,
                // What was shown stays; the API server may be back soon.
                Err(refused) if self.watch && !first => {
                    let said = format!("{}; trying again", gather::with_cause(&refused));
                    if said != failed {
                        operator::note(&said)?;
                    }
                    failed = said;
                    tokio::time::sleep(self.interval).await;
                    continue;
                }
                Err(refused) => return Err(refused.into()),
            };
            first = false;
            failed.clear();
            let rows = rows::rows(&seen.pods, SystemTime::now());
            let text = self.text(&rows, &seen.notes, self.screen(terminal))?;
            let mut out = std::io::stdout().lock();
            if self.watch && terminal {
                // Clears the screen.
                out.write_all(b"\x1b[H\x1b[2J\x1b[3J")?;
            }
            out.write_all(text.as_bytes())?;
            out.flush()?;
            drop(out);
            if let Some(namespace) = namespace.as_ref().filter(|_| rows.is_empty() && !self.watch)
                && gather::is_missing(&client, namespace).await
            {
                return Err(format!("there is no namespace {namespace}; kubectl get namespaces shows all").into());
            }
            if rows.is_empty() {
                operator::note(&namespace.as_ref().map_or_else(
                    || "no pod of any namespace has opted in".to_owned(),
                    |namespace| format!("no pod of namespace {namespace} has opted in; -A shows all namespaces"),
                ))?;
            }
            if !matches!(self.output, Some(Output::Json | Output::Yaml)) {
                for line in &seen.notes {
                    operator::note(line)?;
                }
            }
            if !self.watch {
                return well("pods", rows.iter().map(|row| row.state)).map_err(Into::into);
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    fn text(&self, rows: &[Row], notes: &[String], screen: Screen) -> Result<String, Error> {
        Ok(match self.output {
            None if rows.is_empty() => String::new(),
            Some(Output::Wide) if rows.is_empty() => String::new(),
            None => render::table(rows, screen),
            Some(Output::Wide) => render::wide(rows, screen),
            Some(Output::Name) => render::names(rows),
            Some(Output::Json) => format!("{}\n", operator::plain_json(&format!("{:#}", render::value(rows, notes)?))),
            Some(Output::Yaml) => inject::to_yaml(&render::value(rows, notes)?)?,
        })
    }

    fn screen(&self, terminal: bool) -> Screen {
        // https://no-color.org: any value but the empty one.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Screen { width: screen::width(), colour: terminal && !plain && !dumb, all_namespaces: self.all_namespaces }
    }
}
