//! Authentication: by a token of the token file, by a client certificate, or, if explicitly allowed, anonymous.

pub mod clients;
pub mod tokens;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use etcd_tls_contract::{certificate::Chain, identity::Requester, role::Role, san::Sans};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::{Decode as _, asn1::ObjectIdentifier, asn1::PrintableStringRef, asn1::Utf8StringRef},
};

pub use tokens::{TokenFileError, Tokens};

use crate::standalone::{error::ApiError, subject};

/// Members of this group may do everything here.
pub const MASTERS: &str = "system:masters";
/// The field of `spec.extra` with the serial number of the client certificate that the caller presented.
pub const PRESENTED: &str = "etcd-tls.dev/presented-serial";
const AUTHENTICATED: &str = "system:authenticated";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// A caller. Every object that it creates gets these identity fields; values in its body are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// `spec.username`.
    pub name: String,
    /// `spec.uid`.
    pub uid: String,
    /// `spec.groups`.
    pub groups: Vec<String>,
    /// `spec.extra`.
    pub extra: BTreeMap<String, Vec<String>>,
    /// The names in the certificate that it presented; `None` for a token.
    pub presented: Option<Sans>,
}

impl User {
    /// The creator of a stored request, from the request itself.
    pub fn of(csr: &CertificateSigningRequest) -> Self {
        let spec = &csr.spec;
        Self {
            name: spec.username.clone().unwrap_or_default(),
            uid: spec.uid.clone().unwrap_or_default(),
            groups: spec.groups.clone().unwrap_or_default(),
            extra: spec.extra.clone().unwrap_or_default(),
            presented: None,
        }
    }

    /// True if the caller is in `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The host that the caller is, and the role of its certificate, where that is one as this signer issues it:
    /// organization and CN of a member. `None` for a bootstrap token or a person.
    pub fn member(&self) -> Option<(Role, &str)> {
        let host = subject::host_of(&self.name)?;
        let is = |role: &Role| self.is_in(role.organization()) && subject::member(*role, &self.name) == Some(host);
        subject::MEMBERS.into_iter().find(is).map(|role| (role, host))
    }

    /// The host of [`Self::member`].
    pub fn host(&self) -> Option<&str> {
        self.member().map(|(_, host)| host)
    }

    /// The caller's key in the record of names: one host is the same by each of its certificates, and no client is taken for a
    /// host or a token's user of the same name.
    pub fn principal(&self) -> String {
        match self.host() {
            Some(host) => format!("host/{host}"),
            None if self.is_client() => format!("client/{}", self.name),
            None => format!("user/{}", self.name),
        }
    }

    /// True if the caller is a client of etcd by a certificate as this signer issues it; its name is that client's.
    pub fn is_client(&self) -> bool {
        self.is_in(Role::Client.organization())
    }

    /// The caller, as the rules of identity take it.
    pub fn requester(&self) -> Requester {
        Requester {
            username: self.name.clone(),
            uid: self.uid.clone(),
            groups: self.groups.clone(),
            extra: self.extra.clone(),
        }
    }

    fn anonymous() -> Self {
        Self { name: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }
}

/// A verified client certificate that identifies no caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

/// The client certificate of a connection, verified by the TLS handshake.
#[derive(Clone, Debug)]
pub struct ConnectionIdentity {
    user: User,
    not_after: SystemTime,
    serial: String,
}

impl ConnectionIdentity {
    /// Reads CN and O of a verified leaf.
    ///
    /// # Errors
    /// A leaf without a CN, or with values that are no text.
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = Certificate::from_der(leaf).map_err(|e| IdentityError(e.to_string()))?;
        let mut names = Vec::new();
        let mut groups = Vec::new();
        let tbs = certificate.tbs_certificate();
        for attribute in tbs.subject().iter() {
            let list = match attribute.oid {
                COMMON_NAME => &mut names,
                ORGANIZATION => &mut groups,
                _ => continue,
            };
            let value = &attribute.value;
            let text = value
                .decode_as::<Utf8StringRef<'_>>()
                .map(|s| s.as_str().to_owned())
                .or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|s| s.as_str().to_owned()))
                .map_err(|_| {
                    IdentityError("a subject's attribute is neither UTF8String nor PrintableString".to_owned())
                })?;
            list.push(text);
        }
        // Of several CNs, others take the last or the first: a subject that can be read in two ways identifies nobody.
        let [name] = names.as_slice() else {
            return Err(IdentityError(format!("the subject has {} CNs, not one", names.len())));
        };
        if name.is_empty() {
            return Err(IdentityError("the subject's CN is empty".to_owned()));
        }
        if [ANONYMOUS, UNAUTHENTICATED].contains(&name.as_str()) {
            return Err(IdentityError(format!("{name} is nobody's name")));
        }
        groups.retain(|g| g != AUTHENTICATED && g != UNAUTHENTICATED);
        groups.push(AUTHENTICATED.to_owned());
        // A certificate that cannot be parsed as this signer's presents no names.
        let presented = Chain::from_der(vec![leaf.to_vec()]).map(|chain| chain.sans).unwrap_or_default();
        let serial = etcd_tls_contract::certificate::serial(&certificate);
        let extra = BTreeMap::from([(PRESENTED.to_owned(), vec![serial.clone()])]);
        Ok(Self {
            user: User { name: name.clone(), groups, extra, presented: Some(presented), ..User::default() },
            not_after: tbs.validity().not_after.to_system_time(),
            serial,
        })
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

/// Recognises callers.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Option<(PathBuf, RwLock<Arc<Tokens>>)>,
    anonymous: bool,
}

impl Authenticator {
    /// Reads the token file, where there is one.
    ///
    /// # Errors
    /// Every line that is wrong.
    pub fn new(token_file: Option<PathBuf>, anonymous: bool) -> Result<Self, TokenFileError> {
        let tokens = match token_file {
            Some(path) => {
                let tokens = Tokens::read(&path)?;
                Some((path, RwLock::new(Arc::new(tokens))))
            }
            None => None,
        };
        Ok(Self { tokens, anonymous })
    }

    /// Reloads the token file. If it cannot be parsed, the last valid one stays in force and an error is logged.
    pub fn reload(&self) {
        let Some((path, current)) = &self.tokens else { return };
        let before = Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner));
        match Tokens::read(path) {
            Ok(tokens) if tokens == *before => {}
            Ok(tokens) => {
                tracing::info!(file = %path.display(), tokens = tokens.len(), "token file read again");
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
            }
            Err(error) => tracing::error!(%error, "the token file cannot be taken; the last good one stays in force"),
        }
    }

    /// True if a token of the file is this user's.
    pub fn is_token_user(&self, name: &str) -> bool {
        let tokens = self.tokens.as_ref().map(|(_, t)| Arc::clone(&t.read().unwrap_or_else(PoisonError::into_inner)));
        tokens.is_some_and(|tokens| tokens.has_user(name))
    }

    /// The caller, from the connection's certificate, else the `Authorization` header.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`]. A credential that is not known is never taken for none.
    pub fn authenticate(
        &self,
        connection: Option<&ConnectionIdentity>,
        authorization: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<User, ApiError> {
        if let Some(identity) = connection {
            // Verified when the connection was made, which may be long ago.
            return if now < identity.not_after { Ok(identity.user.clone()) } else { Err(ApiError::Unauthorized) };
        }
        match authorization {
            Some(header) => {
                let token = bearer(header).ok_or(ApiError::Unauthorized)?;
                let tokens =
                    self.tokens.as_ref().map(|(_, t)| Arc::clone(&t.read().unwrap_or_else(PoisonError::into_inner)));
                tokens.and_then(|t| t.user(token)).ok_or(ApiError::Unauthorized)
            }
            None if self.anonymous => Ok(User::anonymous()),
            None => Err(ApiError::Unauthorized),
        }
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, group: &str) -> User {
        User { name: name.to_owned(), groups: vec![group.to_owned()], ..User::default() }
    }

    #[test]
    fn a_host_is_known_by_organization_and_name_together() {
        assert_eq!(member("system:etcd-peer:m1", "system:etcd-peers").host(), Some("m1"));
        assert_eq!(member("system:etcd-server:m1", "system:etcd-servers").host(), Some("m1"));
        assert_eq!(member("system:etcd-peer:m1", "system:etcd-clients").host(), None);
        assert_eq!(member("backup", "system:etcd-clients").host(), None);
        assert_eq!(member("system:etcd-metric:m1", "system:etcd-metrics").member(), Some((Role::Metrics, "m1")));
        assert_eq!(member("system:etcd-peer:m1,O=x", "system:etcd-peers").host(), None);
    }

    #[test]
    fn a_host_is_one_principal_by_each_certificate_and_nobody_else_is_it() {
        for (name, group, principal) in [
            ("system:etcd-peer:m1", "system:etcd-peers", "host/m1"),
            ("system:etcd-server:m1", "system:etcd-servers", "host/m1"),
            ("system:etcd-peer:m1", "system:etcd-clients", "client/system:etcd-peer:m1"),
            ("system:etcd-peer:m1", "other", "user/system:etcd-peer:m1"),
            ("host/m1", "other", "user/host/m1"),
        ] {
            assert_eq!(member(name, group).principal(), principal);
        }
    }

    #[test]
    fn an_unknown_credential_is_never_nobody() {
        let open = Authenticator::new(None, true).unwrap();
        assert_eq!(open.authenticate(None, None, SystemTime::now()).unwrap().name, ANONYMOUS);
        for header in ["Bearer x", "Bearer ", "Basic eDp5", "bearer", ""] {
            let answer = open.authenticate(None, Some(header.as_bytes()), SystemTime::now());
            assert_eq!(answer, Err(ApiError::Unauthorized), "{header:?}");
        }
        let closed = Authenticator::new(None, false).unwrap();
        assert_eq!(closed.authenticate(None, None, SystemTime::now()), Err(ApiError::Unauthorized));
    }
}
