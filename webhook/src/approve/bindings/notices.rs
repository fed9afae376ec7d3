//! Events about bindings that somebody else owns and about accounts for which there is no room.

use etcd_tls_contract::names::{DYNAMIC, LABEL};
use k8s_openapi::api::{core::v1::ObjectReference, rbac::v1::RoleRef};

use super::{RBAC, SIGN_BINDING, SignBinding, TRUST_ROLE, graced::MAX_OF_NAMESPACE, readers::READER};
use crate::controller::{
    events::{
        Notice,
        reasons::{FOREIGN_BINDING, TOO_MANY_ACCOUNTS},
    },
    ids::Uid,
};

fn role_binding(namespace: &str, name: &str, uid: Option<&Uid>) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{RBAC}/v1")),
        kind: Some("RoleBinding".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: uid.map(ToString::to_string),
        ..ObjectReference::default()
    }
}

/// A RoleBinding of the name of those who watch trust that binds another role.
pub(super) fn foreign_reader(namespace: &str, uid: Option<&Uid>) -> Notice {
    Notice {
        regarding: role_binding(namespace, READER, uid),
        reason: FOREIGN_BINDING,
        note: format!(
            "RoleBinding {READER} binds another role than Role {READER}: pods of this namespace may not watch trust ConfigMaps, and new \
             bundles and revocation lists take two minutes. Delete it: kubectl -n {namespace} delete rolebinding {READER}"
        ),
    }
}

/// A RoleBinding of our name that binds another role.
pub(super) fn foreign_binding(namespace: &str, binding: &SignBinding, role: &RoleRef) -> Notice {
    Notice {
        regarding: role_binding(namespace, SIGN_BINDING, binding.uid.as_ref()),
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
