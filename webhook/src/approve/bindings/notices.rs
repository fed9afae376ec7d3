//! Events about bindings that somebody else owns and about accounts for which there is no room.

use etcd_tls_contract::names::{DYNAMIC, LABEL};
use k8s_openapi::api::{core::v1::ObjectReference, rbac::v1::RoleRef};

use super::{RBAC, SIGN_BINDING, SignBinding, TRUST_ROLE, accounts::MAX_OF_NAMESPACE};
use crate::controller::events::{
    Notice,
    reasons::{FOREIGN_BINDING, TOO_MANY_ACCOUNTS},
};

/// A RoleBinding of our name that binds another role.
pub(super) fn foreign_binding(namespace: &str, binding: &SignBinding, role: &RoleRef) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some(format!("{RBAC}/v1")),
            kind: Some("RoleBinding".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(SIGN_BINDING.to_owned()),
            uid: binding.uid.clone(),
            ..ObjectReference::default()
        },
        reason: FOREIGN_BINDING,
        note: format!(
            "RoleBinding {SIGN_BINDING} binds {} {}, not ClusterRole {TRUST_ROLE}: the trust of this namespace's clusters cannot be \
             published. Delete it: kubectl -n {namespace} delete rolebinding {SIGN_BINDING}",
            role.kind, role.name
        ),
    }
}

/// A namespace with more accounts than may have the right.
pub(super) fn too_many_accounts(namespace: &str, name: &str, without: usize) -> Notice {
    Notice {
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ServiceAccount".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        },
        reason: TOO_MANY_ACCOUNTS,
        note: format!(
            "{without} service accounts of this namespace have a labelled pod and may not request certificates: {MAX_OF_NAMESPACE} \
             may, until ten minutes after their last pods. Use fewer service accounts, or label the namespace {LABEL}={DYNAMIC}"
        ),
    }
}
