//! A new request: checked, decided on, signed if it is approved, and stored in one write.
//!
//! A request that could never be signed is refused and not stored.

use std::{sync::Arc, time::SystemTime};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::Value;
use tracing::Instrument as _;

use crate::standalone::{
    auth::User,
    error::ApiError,
    requests::{intake, judge, server::Server},
    store::{AUTO_APPROVED, StoredRequest, approved_by},
    version::Version,
};

/// A stored request, and why it waits for a person where it does.
pub struct Created {
    /// The request.
    pub stored: Arc<StoredRequest>,
    /// Shown to the caller.
    pub waits: Option<String>,
}

/// Creates a request.
///
/// # Errors
/// The fault of the request, or a failure to store it.
pub async fn create(
    server: &Server,
    user: &User,
    version: Version,
    body: Value,
    dry_run: bool,
) -> Result<Created, ApiError> {
    let mut csr = intake::read(version, body)?;
    intake::own(&mut csr, user)?;
    let span = judge::span(&csr);
    create_own(server, user, version, csr, dry_run).instrument(span).await
}

/// The rest of [`create`], for an object that has its caller's identity.
async fn create_own(
    server: &Server,
    user: &User,
    version: Version,
    mut csr: CertificateSigningRequest,
    dry_run: bool,
) -> Result<Created, ApiError> {
    let name = csr.metadata.name.clone().unwrap_or_default();
    let checked = intake::check(server, version, &csr)
        .map_err(|invalid| ApiError::Invalid { name: name.clone(), causes: invalid.0 })?;
    // The cheapest of all answers, before anything is signed.
    if server.store.get(&name).is_some() {
        return Err(ApiError::AlreadyExists(name));
    }
    let now = SystemTime::now();
    let outcome = server.unless_left(user, server.judge(user, &csr, &checked, now, None)?);
    if dry_run {
        return Ok(Created { stored: Arc::new(StoredRequest::new(&csr)), waits: None });
    }
    let waits = server.settle(&mut csr, &checked, outcome, now);
    let held_again = host_claim(user, &csr);
    let (stored, waits) = match held_again {
        // Another request may have got a name between the decision and now.
        Some(claim) => server.store.create_if_free(csr, claim).await?,
        None => (server.store.create(csr).await?, waits),
    };
    server.tell(&stored, &checked, user);
    if let Some(reason) = &waits {
        tracing::info!(reason, "waits for a decision");
    }
    Ok(Created { stored, waits })
}

/// The host that the caller is, where a rule's approval must be checked once more against the record of names.
fn host_claim(user: &User, csr: &CertificateSigningRequest) -> Option<Option<String>> {
    approved_by(csr).filter(|reason| *reason == AUTO_APPROVED).map(|_| user.host().map(str::to_owned))
}
