//! Approving and denying by hand: `PUT` and `PATCH` of `/approval`.
//!
//! Only conditions are taken from the body, and of those only one new one: `Approved` or `Denied`, on a request that has
//! neither. An approval signs at once, and the certificate is stored in the same write.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use json_patch::PatchOperation;
use k8s_openapi::{
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use tracing::Instrument as _;

use crate::standalone::{
    auth::User,
    codec,
    error::ApiError,
    requests::{
        intake::check_again,
        judge::{self, Judgement, NotSigned},
        server::Server,
    },
    store::{Mutation, StoredRequest, status_mut},
    version::Version,
};

/// A caller's decision on a request.
#[derive(Clone, Debug)]
pub enum Change {
    /// To be this object.
    Replace(Value),
    /// RFC 7386; and, since no list of the type is merged by key, Kubernetes' strategic one too.
    Merge(Value),
    /// RFC 6902.
    Patch(json_patch::Patch),
}

impl Change {
    /// Reads the body by its media type.
    ///
    /// # Errors
    /// A media type that is not known, or a body that is not of it.
    pub fn read(patch: bool, content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::BadRequest(format!("the body cannot be read: {e}"));
        match (patch, content_type) {
            (true, "application/merge-patch+json" | "application/strategic-merge-patch+json") => {
                serde_json::from_slice(body).map(Self::Merge).map_err(bad)
            }
            (true, "application/json-patch+json") => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                // Each could double the object.
                if patch.iter().any(|operation| matches!(operation, PatchOperation::Copy(_))) {
                    return Err(ApiError::BadRequest("the patch copies; write the values".to_owned()));
                }
                Ok(Self::Patch(patch))
            }
            (false, _) => codec::object(content_type, body).map(Self::Replace),
            (true, _) => Err(ApiError::UnsupportedMediaType(
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
            )),
        }
    }

    /// The object as the caller wants it.
    fn apply(self, current: Value) -> Result<Value, ApiError> {
        match self {
            Self::Replace(value) => Ok(value),
            Self::Merge(patch) => {
                let mut value = current;
                json_patch::merge(&mut value, &patch);
                Ok(value)
            }
            Self::Patch(patch) => {
                let mut value = current;
                json_patch::patch(&mut value, &patch)
                    .map_err(|e| ApiError::BadRequest(format!("the patch cannot be applied: {e}")))?;
                Ok(value)
            }
        }
    }
}

/// Applies `change` to the request's conditions, and signs what it approves.
///
/// # Errors
/// A change that is not allowed, a conflict, or that it could not be stored.
pub async fn decide(
    server: &Server,
    user: &User,
    version: Version,
    name: &str,
    change: Change,
    dry_run: bool,
) -> Result<Arc<StoredRequest>, ApiError> {
    let before = server.store.get(name).ok_or_else(|| ApiError::NotFound(name.to_owned()))?;
    let span = judge::span(&before.csr());
    decide_on(server, user, version, before, change, dry_run).instrument(span).await
}

/// The rest of [`decide`], for the request as it was `before`.
async fn decide_on(
    server: &Server,
    user: &User,
    version: Version,
    before: Arc<StoredRequest>,
    change: Change,
    dry_run: bool,
) -> Result<Arc<StoredRequest>, ApiError> {
    let name = before.name();
    let mut csr = before.csr();
    let wanted = change.apply(version.object(&csr))?;
    let new = new_condition(&before, &wanted)?;
    let Some(new) = new else { return Ok(before) };
    let checked = check_again(server, &csr);
    if new.type_ == "Approved" {
        let now = SystemTime::now();
        let mut checked = checked.as_ref().map_err(|error| NotSigned::Invalid(error.clone()));
        let requester = User::of(&csr);
        let mut entitled = None;
        // A person approves, and policy still says what the certificate holds.
        let outcome = match &checked {
            Ok(read) if server.entitlements.knows(&requester) => Some(server.judge(&requester, &csr, read, now, None)?),
            _ => None,
        };
        match &outcome {
            Some(Judgement::Approved { entitled: whole, .. }) => entitled = whole.as_ref(),
            Some(Judgement::Denied(reasons)) => checked = Err(NotSigned::Denied(reasons.clone())),
            Some(Judgement::Waiting(reason)) => {
                let message = format!("its requester is judged by policy, which cannot tell yet: {reason}");
                return Err(ApiError::invalid(name, "status.conditions", message));
            }
            None => {}
        }
        server.approve(&mut csr, new, checked, entitled, now);
    } else {
        status_mut(&mut csr).conditions.get_or_insert_default().push(new);
    }
    if dry_run {
        // A certificate that is not stored is in no record, and could not be revoked by its user.
        status_mut(&mut csr).certificate = None;
        return Ok(Arc::new(StoredRequest::new(&csr)));
    }
    let (uid, revision) = (before.uid().to_owned(), before.revision);
    let stored = server
        .store
        .change(move |index| replace(index.get(csr.metadata.name.as_deref().unwrap_or_default()), &uid, revision, csr))
        .await?;
    if let Ok(checked) = &checked {
        server.tell(&stored, checked, user);
    }
    Ok(stored)
}

/// Puts `csr` in the place of the very object that was decided on, and of no other.
pub(super) fn replace(
    current: Option<&Arc<StoredRequest>>,
    uid: &str,
    revision: u64,
    csr: CertificateSigningRequest,
) -> Result<Mutation, ApiError> {
    let name = csr.metadata.name.clone().unwrap_or_default();
    match current {
        None => Err(ApiError::NotFound(name)),
        Some(current) if current.uid() != uid || current.revision != revision => Err(modified(&name)),
        Some(_) => Ok(Mutation::Put(Box::new(csr.into()))),
    }
}

fn modified(name: &str) -> ApiError {
    ApiError::Conflict {
        name: name.to_owned(),
        message: "the object has been modified; please apply your changes to the latest version and try again"
            .to_owned(),
    }
}

/// The one condition that `wanted` has and the request does not; `None` where they are the same.
fn new_condition(
    before: &StoredRequest,
    wanted: &Value,
) -> Result<Option<CertificateSigningRequestCondition>, ApiError> {
    let name = before.name();
    let text = |pointer: &str| wanted.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty());
    if text("/metadata/name").is_some_and(|n| n != name) {
        return Err(ApiError::BadRequest("the name of the object does not match the name on the URL".to_owned()));
    }
    let revision = before.revision.to_string();
    if text("/metadata/uid").is_some_and(|uid| uid != before.uid())
        || text("/metadata/resourceVersion").is_some_and(|r| r != revision)
    {
        return Err(modified(name));
    }
    let invalid = |message: String| ApiError::invalid(name, "status.conditions", message);
    let conditions = wanted.pointer("/status/conditions").cloned().unwrap_or_else(|| json!([]));
    let conditions = if conditions.is_null() { json!([]) } else { conditions };
    let mut conditions = conditions.as_array().cloned().ok_or_else(|| invalid("is no list".to_owned()))?;
    for condition in &mut conditions {
        // v1beta1 may leave it out.
        if let Some(fields) = condition.as_object_mut()
            && fields.get("status").is_none_or(|s| s.is_null() || s == "")
        {
            fields.insert("status".to_owned(), json!("True"));
        }
    }
    let conditions: Vec<CertificateSigningRequestCondition> =
        serde_json::from_value(Value::Array(conditions)).map_err(|e| invalid(e.to_string()))?;
    let old = before.csr().status.and_then(|s| s.conditions).unwrap_or_default();
    if let Some(gone) = old.iter().find(|o| !conditions.iter().any(|c| c.type_ == o.type_)) {
        return Err(invalid(format!("{} is decided and cannot be taken back", gone.type_)));
    }
    let mut new: Vec<_> = conditions.into_iter().filter(|c| !old.iter().any(|o| o.type_ == c.type_)).collect();
    let Some(mut condition) = new.pop() else { return Ok(None) };
    if !new.is_empty() {
        return Err(invalid("Approved and Denied are mutually exclusive, and one is added at a time".to_owned()));
    }
    if !matches!(condition.type_.as_str(), "Approved" | "Denied") {
        return Err(invalid(format!("{:?} is neither Approved nor Denied", condition.type_)));
    }
    if condition.status != "True" {
        return Err(invalid(format!("{} must have the status True", condition.type_)));
    }
    if !old.is_empty() {
        return Err(invalid(format!("the request is {} already", old[0].type_)));
    }
    let long = |text: &Option<String>| text.as_ref().is_some_and(|t| t.len() > 4096);
    if long(&condition.message) || long(&condition.reason) {
        return Err(invalid("reason and message are at most 4096 bytes".to_owned()));
    }
    let now = Some(Time(Timestamp::now()));
    condition.last_update_time = now.clone();
    condition.last_transition_time = now;
    Ok(Some(condition))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::standalone::requests::judge::condition;

    fn pending() -> StoredRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.metadata.name = Some("a".to_owned());
        csr.metadata.uid = Some("u".to_owned());
        csr.metadata.resource_version = Some("5".to_owned());
        StoredRequest::new(&csr)
    }

    fn with(conditions: Value) -> Value {
        json!({ "metadata": { "name": "a" }, "status": { "conditions": conditions } })
    }

    #[test]
    fn one_decision_is_taken() {
        let new = new_condition(&pending(), &with(json!([{ "type": "Approved", "reason": "r" }]))).unwrap().unwrap();
        assert_eq!((new.type_.as_str(), new.status.as_str()), ("Approved", "True"));
        assert!(new.last_update_time.is_some());
        assert_eq!(new_condition(&pending(), &with(json!([]))).unwrap(), None);
        assert_eq!(new_condition(&pending(), &json!({})).unwrap(), None);
    }

    #[test]
    fn everything_else_is_refused() {
        for conditions in [
            json!([{ "type": "Approved" }, { "type": "Denied" }]),
            json!([{ "type": "Failed", "status": "True" }]),
            json!([{ "type": "Other", "status": "True" }]),
            json!([{ "type": "Approved", "status": "False" }]),
            json!({ "type": "Approved" }),
            json!([1]),
        ] {
            assert!(
                matches!(new_condition(&pending(), &with(conditions.clone())), Err(ApiError::Invalid { .. })),
                "{conditions}"
            );
        }
        let mut denied = pending().csr();
        status_mut(&mut denied).conditions = Some(vec![condition("Denied", "r", "m")]);
        let denied = StoredRequest::new(&denied);
        for conditions in
            [json!([]), json!([{ "type": "Approved" }]), json!([{ "type": "Denied" }, { "type": "Approved" }])]
        {
            assert!(new_condition(&denied, &with(conditions.clone())).is_err(), "{conditions}");
        }
    }

    #[test]
    fn another_object_is_a_conflict() {
        for metadata in [json!({ "uid": "v" }), json!({ "resourceVersion": "4" })] {
            let wanted = json!({ "metadata": metadata, "status": { "conditions": [{ "type": "Approved" }] } });
            assert!(matches!(new_condition(&pending(), &wanted), Err(ApiError::Conflict { .. })), "{metadata}");
        }
        let named = json!({ "metadata": { "name": "b" } });
        assert!(matches!(new_condition(&pending(), &named), Err(ApiError::BadRequest(_))));
    }

    #[test]
    fn each_kind_of_patch_gives_the_same_object() {
        let current = json!({ "metadata": { "name": "a" }, "status": {} });
        let condition = json!([{ "type": "Approved" }]);
        let merge = json!({ "status": { "conditions": condition } }).to_string();
        let patch = json!([{ "op": "add", "path": "/status/conditions", "value": condition }]).to_string();
        for (kind, body) in [
            ("application/merge-patch+json", &merge),
            ("application/strategic-merge-patch+json", &merge),
            ("application/json-patch+json", &patch),
        ] {
            let change = Change::read(true, kind, body.as_bytes()).unwrap();
            assert_eq!(change.apply(current.clone()).unwrap(), with(condition.clone()), "{kind}");
        }
        for kind in ["application/apply-patch+yaml", "application/json", ""] {
            assert!(matches!(Change::read(true, kind, b"{}"), Err(ApiError::UnsupportedMediaType(_))), "{kind}");
        }
    }
}
