//! The process that answers admission reviews.
//!
//! **Invariant.** It can neither read nor write anything in the cluster: it holds its serving pair, and no client of the
//! API. An answer depends on the review and on this process's arguments alone, so a dry run has no effect.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::names;
use etcd_tls_telemetry::listen;
use prometheus_client::registry::Registry;

use crate::{
    error::Error,
    injected::InjectedArgs,
    platform::{
        essential::essential,
        health::Health,
        shutdown,
        tls::{PairFiles, ServingPairs},
    },
    traces::Traces,
};

mod bodies;
mod connections;
mod policy;
pub mod review;
pub mod server;
mod words;
mod workload;

/// How often it looks when the serving pair in use ends.
const LOOK: Duration = Duration::from_secs(5);

/// The arguments of `admit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The image of the injected containers.
    #[arg(long, env = "SIDECAR_IMAGE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sidecar_image: String,
    #[command(flatten)]
    injected: InjectedArgs,
    /// The directory of the serving certificate and key, tls.crt and tls.key. Changes are loaded without a restart.
    #[arg(long, default_value = "/var/run/etcd-tls/serving")]
    serving_dir: PathBuf,
    /// The operator's policy; its rules for issuers apply here. Changes are loaded without a restart. Without this file every
    /// issuer is allowed.
    #[arg(long)]
    policy_file: Option<PathBuf>,
    /// Namespaces whose pods are never changed, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = ["kube-system".to_owned(), names::SYSTEM_NAMESPACE.to_owned()])]
    leave_out: Vec<String>,
    /// The address of POST /mutate and POST /warn, over TLS.
    #[arg(long, default_value = "[::]:8443")]
    address: SocketAddr,
    /// The address of /live, /ready and /metrics.
    #[arg(long, default_value = "[::]:9179")]
    admin_address: SocketAddr,
    /// The number of threads that answer reviews [default: one per core, at most four].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
}

/// The server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another one with --address")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Shows when the serving pair in use ends, for as long as there is one.
async fn show_expiry(pairs: Weak<ServingPairs>, metrics: server::Metrics) {
    while let Some(end) = pairs.upgrade().map(|pairs| pairs.not_after()) {
        if let Some(end) = end {
            metrics.serving_until(end);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Args {
    /// Serves until told to stop.
    ///
    /// # Errors
    /// The reason why it could not serve.
    pub async fn run(self) -> Result<(), Error> {
        let Self { sidecar_image, injected, serving_dir, policy_file, leave_out, address, admin_address, workers: _ } =
            self;
        let mut stop = shutdown::on_signals()?;
        let mut registry = Registry::with_prefix("etcd_tls_admit");
        let metrics = server::Metrics::register(&mut registry);
        let health = Arc::new(Health::new(registry));
        let (serving, is_serving) = tokio::sync::watch::channel(Err("no serving pair yet"));
        health.require(move || (*is_serving.borrow()).map_err(str::to_owned));
        health.serve(admin_address).await?;

        let files = PairFiles::in_dir(&serving_dir);
        tokio::select! {
            () = files.wait() => {}
            () = shutdown::until(&mut stop, true) => return Ok(()),
        }
        let pairs = ServingPairs::watch(vec![files])?;
        tokio::spawn(essential("expiry of the serving pair", show_expiry(Arc::downgrade(&pairs), metrics.clone())));
        let listener = listen::at(address).await.map_err(|source| ListenError { address, source })?;
        let bound = listener.local_addr()?;
        let injection = injected.config(sidecar_image, None);
        let leave_out: BTreeSet<String> = leave_out.into_iter().filter(|namespace| !namespace.is_empty()).collect();
        tracing::info!(address = %bound, sidecar_image = injection.sidecar_image, "serving admission");
        let traces = Traces::start("admit");
        let admission = policy::watched(policy_file, review::Admission { injection, leave_out });
        let answer: server::Answering = Arc::new(move |endpoint, body| {
            let admission = Arc::clone(&admission.borrow());
            match endpoint {
                server::Endpoint::Mutate if traces.is_on() => {
                    let now = SystemTime::now();
                    let answer = review::mutate_traced(body, &admission, now)?;
                    if let Some(review::Traced { context, pod }) = &answer.trace {
                        traces.admitted(*context, pod, answer.verdict.as_str(), now);
                    }
                    Ok(answer)
                }
                server::Endpoint::Mutate => review::mutate(body, &admission),
                server::Endpoint::Warn => review::warn(body, &admission),
            }
        });
        let _ = serving.send(Ok(()));
        let stopped = async {
            shutdown::until(&mut stop, true).await;
            let _ = serving.send(Err("shutting down"));
        };
        server::serve(listener, pairs.server_config(None)?, answer, metrics, stopped).await;
        Ok(())
    }

    /// Threads that answer, where the command line says how many.
    pub fn workers(&self) -> Option<usize> {
        self.workers.map(usize::from)
    }
}
