//! The rules for issuers of the operator's policy, from a mounted file. An unreadable file keeps the last good rules.

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
    let mut said = None;
    admission.injection.issuers = match read(&file) {
        Ok(policy) => Issuers::Rules(policy.issuers),
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "the policy cannot be read; pods with issuers of other projects are refused until it can");
            said = Some(error.clone());
            Issuers::Unreadable(error.to_string())
        }
    };
    let (sender, receiver) = watch::channel(Arc::new(admission));
    tokio::spawn(essential("policy", follow(file, watch, said, sender)));
    receiver
}

async fn follow(
    file: PathBuf,
    mut watch: FileWatch,
    mut said: Option<PolicyError>,
    sender: watch::Sender<Arc<Admission>>,
) {
    while !sender.is_closed() {
        watch.changed().await;
        match read(&file) {
            Ok(policy) => {
                said = None;
                let issuers = Issuers::Rules(policy.issuers);
                let changed = sender.send_if_modified(|admission| {
                    let changed = admission.injection.issuers != issuers;
                    if changed {
                        Arc::make_mut(admission).injection.issuers = issuers;
                    }
                    changed
                });
                if changed {
                    tracing::info!(file = %file.display(), "the rules for issuers have changed");
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

/// Without the file, the policy is the default.
fn read(file: &Path) -> Result<Policy, PolicyError> {
    match fs::read_to_string(file) {
        Ok(text) => Policy::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Policy::default()),
        Err(error) => Err(PolicyError(error.to_string())),
    }
}
