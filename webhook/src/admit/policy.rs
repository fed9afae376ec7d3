//! What admission takes from the operator's policy, a mounted file: the rules for issuers, and the cluster's domain. An unreadable file
//! keeps the last good ones, and so does one that is gone: to have no rules, the operator writes an empty policy.

use std::{fs, io, path::Path, path::PathBuf, sync::Arc};

use etcd_tls_contract::policy::{Policy, PolicyError};
use tokio::sync::watch;

use super::review::Admission;
use crate::{
    injection::Issuers,
    platform::{essential::essential, file_watch::FileWatch},
};

/// The configuration of reviews, with the rules in `file` as they are now and after each change.
pub(super) fn watched(file: Option<PathBuf>, mut admission: Admission) -> watch::Receiver<Arc<Admission>> {
    let Some(file) = file else { return watch::channel(Arc::new(admission)).1 };
    // Before the first look, so that no change is missed.
    let watch = FileWatch::new([file.as_path()]);
    let (mut said, mut had) = (None, false);
    match read(&file, &mut had) {
        Ok(policy) => drop(apply(&mut admission, policy)),
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "the policy cannot be read; pods with issuers of other projects are refused until it can");
            said = Some(error.clone());
            admission.injection.issuers = Issuers::Unreadable(error.to_string());
        }
    }
    let (sender, receiver) = watch::channel(Arc::new(admission));
    tokio::spawn(essential("policy", follow(file, watch, said, had, sender)));
    receiver
}

async fn follow(
    file: PathBuf,
    mut watch: FileWatch,
    mut said: Option<PolicyError>,
    mut had: bool,
    sender: watch::Sender<Arc<Admission>>,
) {
    while !sender.is_closed() {
        watch.changed().await;
        match read(&file, &mut had) {
            Ok(policy) => {
                said = None;
                let changed = sender.send_if_modified(|admission| {
                    let mut next = Admission::clone(admission);
                    let changed = apply(&mut next, policy);
                    if changed {
                        *admission = Arc::new(next);
                    }
                    changed
                });
                if changed {
                    tracing::info!(file = %file.display(), "the rules for issuers or the cluster's domain have changed");
                }
            }
            Err(error) => {
                if said.as_ref() != Some(&error) {
                    tracing::error!(%error, file = %file.display(), "the policy cannot be read; the rules for issuers stay as they were");
                    said = Some(error);
                }
            }
        }
    }
}

/// Takes from `policy` what admission needs; whether that changes anything.
fn apply(admission: &mut Admission, policy: Policy) -> bool {
    let injection = &mut admission.injection;
    let (issuers, domain) = (Issuers::Rules(policy.issuers), Some(policy.cluster_domain));
    let changed = injection.issuers != issuers || injection.cluster_domain != domain;
    (injection.issuers, injection.cluster_domain) = (issuers, domain);
    changed
}

/// Where there never was a policy, it is the default. `had`: whether there was one that could be read.
fn read(file: &Path, had: &mut bool) -> Result<Policy, PolicyError> {
    match fs::read_to_string(file) {
        Ok(text) => Policy::parse(&text).inspect(|_| *had = true),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !*had => Ok(Policy::default()),
        Err(error) => Err(PolicyError(error.to_string())),
    }
}
