//! `run --kubeconfig`: renews the certificates of a host.
//!
//! With `--bootstrap-kubeconfig` the first certificate is requested with that file's token. Then the kubeconfig is written
//! with the certificate and used from then on. If the certificate has expired, the bootstrap kubeconfig is used again.

use std::{future::pending, path::Path, sync::Arc};

use etcd_tls_contract::{args::PodArgs, names};
use tokio::{sync::watch, time::timeout};

use crate::{
    agent::{
        host::{Host, HostArgs},
        pushed::follow,
        work::{Work, keep},
    },
    error::Error,
    issuance::schedule,
    kube::{
        http::Kube,
        kubeconfig::{HostCredentials, Written},
    },
    os::{clock::System, process::FoundBy},
    restart,
};

/// Renews the certificates of a host until SIGTERM or SIGINT.
///
/// # Errors
/// Failures that no retry mends: arguments, the directory, the admin port.
pub async fn run(args: &PodArgs, host_args: &HostArgs) -> Result<(), Error> {
    let settings = args.settings().map_err(Error::Arguments)?;
    let host = Host::new(host_args, settings, None).map_err(Error::Arguments)?;
    let kubeconfig = host_args.kubeconfig.as_deref().unwrap_or_else(|| Path::new("kubeconfig"));
    let credentials = HostCredentials::new(kubeconfig, host_args.bootstrap_kubeconfig.as_deref());
    let source = host.trust(host_args.cacrt.as_deref(), Some(&args.trust_dir), &args.dir).map_err(Error::Arguments)?;
    let mut trust = source.dir;
    if let Some(fetched) = &source.fetched {
        fetched.make_dir()?;
        trust = trust.with_pushed(Arc::default());
    }
    let pushed = trust.pushed().cloned();
    let work = Work {
        args,
        roles: host.roles().clone(),
        trust,
        restart: || restart_options(args, host_args, &host),
        api: || Kube::new(credentials.clone()),
        template: |role| host.template(role),
        renew: None,
        projected: None,
    };
    let identity = host.identity().map(|role| args.dir.join(role.as_str()));
    let beside = |installed: watch::Receiver<u64>| {
        let credentials = &credentials;
        async move {
            let fetching = async {
                if let Some(fetched) = &source.fetched {
                    fetched.keep(credentials).await;
                }
                pending::<()>().await;
            };
            // A list is to arrive within seconds.
            let watching = async {
                if let (Some(pushed), Some(fetched)) = (pushed, &source.fetched) {
                    let kube = Kube::new(credentials.clone());
                    follow(pushed, kube, &fetched.namespace, &fetched.config_map, System::new()).await;
                }
                pending::<()>().await;
            };
            let writing = async {
                if let Some(identity) = &identity {
                    keep_kubeconfig(credentials, identity, installed).await;
                }
                pending::<()>().await;
            };
            tokio::join!(fetching, watching, writing);
        }
    };
    keep(work, beside).await
}

/// Writes the kubeconfig after each install, and when the bootstrap kubeconfig names another server or CA: a host is handed
/// over to another signer so.
async fn keep_kubeconfig(credentials: &HostCredentials, dir: &Path, mut installed: watch::Receiver<u64>) {
    loop {
        installed.borrow_and_update();
        if dir.join(names::CERT_FILE).exists() {
            write_kubeconfig(credentials, dir);
        }
        if let Ok(Err(_)) = timeout(schedule::TICK, installed.changed()).await {
            return;
        }
    }
}

/// Writes the kubeconfig around the certificate in `dir`, and says what came of it.
pub fn write_kubeconfig(credentials: &HostCredentials, dir: &Path) {
    match credentials.write(dir) {
        Ok(Written::Now) => tracing::info!("kubeconfig written around the certificate"),
        Ok(Written::Before | Written::NotOurs) => {}
        Err(error) => tracing::error!(%error, "the kubeconfig stays as it is"),
    }
}

fn restart_options(args: &PodArgs, host_args: &HostArgs, host: &Host) -> restart::Options {
    let place = match (&host_args.etcd_unit, &host_args.etcd_pid_file) {
        (Some(unit), _) => FoundBy::Unit(unit.clone()),
        (None, Some(file)) => FoundBy::PidFile(file.clone()),
        (None, None) => FoundBy::Anywhere,
    };
    restart::Options::of_host(args, place, host.name().to_owned())
}
