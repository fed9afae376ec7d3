//! `etcd-tls-sidecar init`: obtains the first certificates, before any other container of the pod starts. Valid files are
//! kept.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    duration::parse_duration,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    agent::{
        first::{fill, missing},
        subject::{Agent, Subject},
        work::open,
    },
    error::Error,
    issuance::renewal::Template,
    kube::pod::PodCredentials,
    os::clock::System,
};

/// The maximum that kubelet reads, in bytes.
const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Arguments of `init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    downward: DownwardArgs,
    /// How long to wait for the certificates. Then the container exits with the reason, and kubelet starts it again.
    #[arg(long, default_value = "5m", value_parser = parse_duration)]
    timeout: Duration,
    /// The file for the reason of a failure. kubelet shows it in the pod's status.
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

impl InitArgs {
    /// Obtains the missing certificates.
    ///
    /// # Errors
    /// The reason, which is also in the termination message.
    pub async fn run(self) -> Result<(), Error> {
        let Self { pod, downward, timeout, termination_log } = self;
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = once(&pod, &downward, timeout) => result,
            _ = terminate.recv() => Err(Error::Stopped),
        };
        if let Err(error) = &result {
            write_termination_message(&termination_log, &error.to_string());
        }
        result
    }
}

async fn once(pod: &PodArgs, downward: &DownwardArgs, timeout: Duration) -> Result<(), Error> {
    let subject = Subject::of(pod, downward).map_err(Error::Arguments)?;
    if subject.settings.is_of_kubelet() {
        return Err(Error::Arguments(
            "kubelet requests the certificates of issuer pod-certificate; use `run` alone".into(),
        ));
    }
    let clock = System::new();
    let store = open(&pod.dir, &clock).await?;
    let agent = Agent::new(subject.settings.roles.clone(), clock, store, subject.trust(pod));
    let templates: Vec<Template> =
        agent.roles().iter().map(|role| subject.template(*role, subject.facts.ips.clone())).collect();
    let credentials = PodCredentials::from_env(&pod.token_dir);
    if let Err(error) = &credentials
        && !missing(&agent, &templates).is_empty()
    {
        return Err(error.clone().into());
    }
    fill(&agent, &templates, || subject.requests(credentials.clone()), timeout).await
}

/// Writes the reason to the file that kubelet reads. Outside a pod there is no such file, and nothing is written.
pub fn write_termination_message(path: &Path, message: &str) {
    let mut end = message.len().min(MAX_TERMINATION_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    if path.exists()
        && let Err(error) = fs::write(path, &message[..end])
    {
        tracing::debug!(%error, path = %path.display(), "no termination message");
    }
}
