//! `etcd-tls-sidecar run`: renews the certificates of a pod or host until it is stopped.
//!
//! In a pod here; on a host, [`crate::commands::on_host`]; a Secret, [`crate::secret::keep`].

use std::{future::pending, path::PathBuf, sync::Arc};

use clap::{ArgMatches, Args, FromArgMatches};
use etcd_tls_contract::{
    args::{DownwardArgs, PodArgs},
    invalid_value::InvalidValue,
};

use crate::{
    agent::{
        host::HostArgs,
        projected::Projected,
        pushed::follow,
        renew::RenewFile,
        subject::Subject,
        work::{Work, keep},
    },
    commands::{init::write_termination_message, on_host},
    error::Error,
    kube::{http::Kube, pod::PodCredentials},
    os::clock::System,
    restart,
    secret::keep,
};

/// Arguments of `run`: in a pod, with `--kubeconfig` on a host, or with `--secret` for a Secret.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pod: PodArgs,
    #[command(flatten)]
    downward: Downward,
    #[command(flatten)]
    host: HostArgs,
    /// Keep this Secret in the pod's namespace equal to the certificate in --dir, which the pod's own etcd-tls-sidecar renews.
    /// Give one role.
    #[arg(long, value_name = "NAME", conflicts_with = "kubeconfig")]
    secret: Option<String>,
    /// The file for the reason of a failure. kubelet shows it in the pod's status.
    #[arg(long, default_value = "/dev/termination-log")]
    termination_log: PathBuf,
}

impl RunArgs {
    /// Renews until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// Failures that no retry mends: arguments, the directory, the admin port.
    pub async fn run(self) -> Result<(), Error> {
        let Self { pod, downward, host, secret, termination_log } = self;
        let result = match (host.kubeconfig.is_some(), downward.0) {
            _ if secret.is_some() => keep::run(&pod, secret.as_deref().unwrap_or_default()).await,
            (true, _) => on_host::run(&pod, &host).await,
            (false, Ok(downward)) => in_pod(&pod, &downward).await,
            (false, Err(error)) => Err(Error::Arguments(error.at("on a host give --kubeconfig; in a pod"))),
        };
        if let Err(error) = &result {
            write_termination_message(&termination_log, &error.to_string());
        }
        result
    }
}

/// [`DownwardArgs`], or the error if one is missing. On a host they are not needed.
#[derive(Clone, Debug)]
struct Downward(Result<DownwardArgs, InvalidValue>);

impl FromArgMatches for Downward {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(DownwardArgs::from_arg_matches(matches).map_err(|e| e.to_string().into())))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Downward {
    fn augment_args(command: clap::Command) -> clap::Command {
        // In an update nothing is required.
        DownwardArgs::augment_args_for_update(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        DownwardArgs::augment_args_for_update(command)
    }
}

async fn in_pod(pod: &PodArgs, downward: &DownwardArgs) -> Result<(), Error> {
    let subject = Subject::of(pod, downward).map_err(Error::Arguments)?;
    let credentials = PodCredentials::from_env(&pod.token_dir)?;
    let mut trust = subject.trust(pod);
    if trust.is_ours() {
        trust = trust.with_pushed(Arc::default());
    }
    let pushed = trust.pushed().cloned();
    let work = Work {
        args: pod,
        roles: subject.settings.roles.clone(),
        trust,
        restart: || restart::Options::of_pod(pod, downward, credentials.clone()),
        api: || subject.requests(credentials.clone()),
        template: |role| subject.template(role, subject.addresses()),
        renew: Some(RenewFile::new(&pod.token_dir)),
        projected: subject.settings.is_of_kubelet().then(|| Projected::new(&pod.projected_dir)),
    };
    let config_map = subject.settings.trust_config_map(&subject.facts.namespace);
    let watching = async {
        if let Some(pushed) = pushed {
            let kube = Kube::new(credentials.clone());
            follow(pushed, kube, &subject.facts.namespace, &config_map, System::new()).await;
        }
        pending::<()>().await;
    };
    keep(work, |_| watching).await
}
