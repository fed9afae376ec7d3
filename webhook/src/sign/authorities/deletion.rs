//! How an authority ends: its namespace is gone, or nobody uses it.

use std::time::SystemTime;

use kube::api::{DeleteParams, Preconditions};

use super::{
    Authorities,
    quota::{Entry, Held},
};
use crate::{
    controller::{
        client::{ApiServerError, within},
        ids::Uid,
    },
    sign::cache::objects::Facts,
};

impl Authorities {
    /// Deletes the CA of an authority that nobody uses, if that is still so. The uid of the Secret that is gone.
    ///
    /// # Errors
    /// The API server's; somebody wrote the Secret meanwhile.
    pub(in crate::sign) async fn retire(&self, entry: &Entry, now: SystemTime) -> Result<Option<Uid>, ApiServerError> {
        // A request that is granted meanwhile waits here, and gets a new CA.
        let mut held = entry.held.lock().await;
        let Held::Ready(ready) = &*held else { return Ok(None) };
        let idle = ready.stored.state.idle_since.is_some() && ready.stored.rests(now);
        let Ok(metadata) = ready.secret.object(&entry.name) else { return Ok(None) };
        let (Some(name), Some(uid), Some(_), true) =
            (metadata.name, metadata.uid, &metadata.resource_version, idle && !self.is_replaced(&entry.name, ready))
        else {
            return Ok(None);
        };
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: Some(uid.clone()), resource_version: metadata.resource_version });
        let deleted = within(self.secrets().delete(&name, &params)).await;
        // Also after an error: it may have been deleted.
        *held = Held::Unknown;
        deleted?;
        Ok(Some(uid.as_str().into()))
    }

    /// Deletes the CA of a namespace that is gone.
    pub(in crate::sign) async fn delete(&self, name: &str, secret: &Facts) -> Result<(), ApiServerError> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(secret.uid.to_string()),
            resource_version: Some(secret.resource_version.to_string()),
        });
        within(self.secrets().delete(name, &params)).await?;
        tracing::info!(secret = name, "deleted the CA of a namespace that is gone");
        Ok(())
    }
}
