//! The trust ConfigMap: bundles and revocation lists, in the form and under the name in which a cluster's signer publishes them.
//! A caller that may revoke also sees the answers to requests, and writes requests as annotations.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use bytes::Bytes;
use etcd_tls_contract::{
    names::{self, ClusterName},
    role::Domain,
};
use futures::{Stream, stream};
use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};
use tokio::time;

use crate::{
    revoke::{self, Request, STANDALONE_ANNOTATION},
    standalone::{auth::User, error::ApiError, limits::Permit, requests::server::Server},
};

/// How often a watcher hears that its connection lives.
const BOOKMARK: Duration = Duration::from_secs(30);

/// A trust ConfigMap that this signer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trust {
    cluster: ClusterName,
}

impl Trust {
    /// The ConfigMap `name` of `namespace`.
    ///
    /// # Errors
    /// [`ApiError::NoSuchPath`]: it is none of this signer's.
    pub(super) fn of(server: &Server, namespace: &str, name: &str) -> Result<Self, ApiError> {
        let cluster = name.strip_prefix(&names::trust_config_map("")).ok_or(ApiError::NoSuchPath)?;
        let cluster = ClusterName { namespace: namespace.to_owned(), name: cluster.to_owned() };
        let served = server.cluster.as_ref().is_none_or(|own| *own == cluster);
        if !served || !names::is_dns_label(&cluster.namespace) || !names::is_dns_label(&cluster.name) {
            return Err(ApiError::NoSuchPath);
        }
        Ok(Self { cluster })
    }

    /// The object, as `user` sees it.
    pub(super) fn object(&self, server: &Server, user: &User) -> Value {
        let bundles: Map<String, Value> = Domain::ALL
            .into_iter()
            .filter_map(|domain| Some((domain.trust_key().to_owned(), json!(server.profiles.bundle(domain)?.to_pem()))))
            .collect();
        let mut annotations = Map::from_iter([(STANDALONE_ANNOTATION.to_owned(), json!("true"))]);
        let mut lists = Map::new();
        let answers = server.may_revoke(user);
        server.store.with(|index, _| {
            for domain in Domain::WITH_LISTS {
                let Some(revoked) = index.revocations().get(domain) else { continue };
                if let (Some(key), Some(list)) = (domain.crl_key(), revoked.list()) {
                    lists.insert(key.to_owned(), json!(ByteString(list.der().to_vec())));
                }
                if let Some(report) = revoked.report().filter(|_| answers) {
                    // Nothing in the type can fail to be JSON.
                    let report = serde_json::to_string(&report).unwrap_or_default();
                    annotations.insert(revoke::status_annotation(domain), json!(report));
                }
            }
        });
        json!({
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {
                "name": names::trust_config_map(&self.cluster.name),
                "namespace": self.cluster.namespace,
                "annotations": annotations,
            },
            "data": bundles,
            "binaryData": lists,
        })
    }

    /// Takes the requests in a patch, of which nothing else is taken.
    ///
    /// # Errors
    /// The caller may not revoke, the patch says something else, or see [`Server::revoke`].
    pub(super) async fn patch(
        &self,
        server: &Server,
        user: &User,
        kind: &str,
        body: &[u8],
        dry: bool,
    ) -> Result<(), ApiError> {
        if !server.may_revoke(user) {
            let groups = server.admin_groups.join(", ");
            return Err(ApiError::Forbidden(format!(
                "User {:?} cannot revoke: that is for members of {groups} and for those whom policy lists (revokers)",
                user.name
            )));
        }
        if !matches!(kind, "application/merge-patch+json" | "application/strategic-merge-patch+json") {
            return Err(ApiError::UnsupportedMediaType("application/merge-patch+json"));
        }
        let requests = requests(body)?;
        if dry {
            return Ok(());
        }
        tracing::info!(by = user.name, cluster = %self.cluster, requests = ?requests.values().map(ToString::to_string).collect::<Vec<_>>(), "revocation asked for");
        server.revoke(self.cluster.clone(), requests).await
    }

    /// A watch: the object now, and after each change of a list.
    pub(super) fn watch(
        self,
        server: &web::Data<Server>,
        user: &User,
        lasts: Duration,
        bookmarks: bool,
        permit: Permit,
    ) -> HttpResponse {
        let watching = Watching {
            revisions: server.store.revisions_of_lists(),
            server: server.clone(),
            user: user.clone(),
            trust: self,
            end: Instant::now() + lasts,
            bookmarks,
            last: None,
            _permit: permit,
        };
        HttpResponse::Ok().content_type("application/json").streaming(watching.into_stream())
    }
}

/// The requests that a patch makes.
fn requests(body: &[u8]) -> Result<BTreeMap<Domain, Request>, ApiError> {
    let bad = |message: String| ApiError::BadRequest(message);
    let patch: Value = serde_json::from_slice(body).map_err(|e| bad(format!("the patch cannot be read: {e}")))?;
    let only = |value: &Value, key: &str| value.as_object().is_some_and(|object| object.keys().eq([key]));
    if !only(&patch, "metadata") || !only(&patch["metadata"], "annotations") {
        return Err(bad("only annotations that ask for a revocation can be written here".to_owned()));
    }
    let mut requests = BTreeMap::new();
    for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
        let domain = Domain::WITH_LISTS.into_iter().find(|domain| revoke::request_annotation(*domain) == *key);
        let (Some(domain), Some(text)) = (domain, value.as_str()) else {
            return Err(bad(format!("{key} asks for no revocation")));
        };
        requests
            .insert(domain, text.parse().map_err(|error: revoke::InvalidRevocation| bad(format!("{key}: {error}")))?);
    }
    Ok(requests)
}

/// Where a watch is.
struct Watching {
    server: web::Data<Server>,
    user: User,
    trust: Trust,
    revisions: tokio::sync::watch::Receiver<u64>,
    end: Instant,
    bookmarks: bool,
    /// The digest of the object that was sent last, which has hundreds of KiB where the lists are full.
    last: Option<u64>,
    /// One of the watches that the caller may have.
    _permit: Permit,
}

impl Watching {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
        stream::unfold(self, |mut state| async move {
            let line = state.next().await?;
            Some((Ok(Bytes::from(line)), state))
        })
    }

    /// The next event, or the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            // Seen before the object is made, so that a change in between wakes this watch again.
            self.revisions.borrow_and_update();
            let object = self.trust.object(&self.server, &self.user).to_string();
            let mut digest = DefaultHasher::new();
            object.hash(&mut digest);
            let digest = digest.finish();
            if self.last != Some(digest) {
                let kind = if self.last.is_none() { "ADDED" } else { "MODIFIED" };
                self.last = Some(digest);
                return Some(event(kind, &object));
            }
            drop(object);
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let pause = if self.bookmarks { left.min(BOOKMARK) } else { left };
            match time::timeout(pause, self.revisions.changed()).await {
                Ok(Ok(())) => {}
                // The store has ended.
                Ok(Err(_)) => return None,
                Err(_) if pause < left => {
                    let mark = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "0"}});
                    return Some(event("BOOKMARK", &mark.to_string()));
                }
                Err(_) => return None,
            }
        }
    }
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

/// An object as an answer.
pub(super) fn answer(object: &Value) -> HttpResponse {
    HttpResponse::build(StatusCode::OK)
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .body(object.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_asks_for_revocations_or_is_refused() {
        let read = |text: &str| requests(text.as_bytes());
        let good =
            r#"{"metadata":{"annotations":{"etcd-tls.dev/revoke-peer-request":"add 1 unspecified serial:4f0a"}}}"#;
        assert_eq!(read(good).map(|requests| requests.into_keys().collect::<Vec<_>>()), Ok(vec![Domain::Peer]));
        for bad in [
            "",
            "[]",
            r#"{"data":{"peer.crt":"x"}}"#,
            r#"{"metadata":{"labels":{"a":"b"}}}"#,
            r#"{"metadata":{"annotations":{"a":"b"}}}"#,
            r#"{"metadata":{"annotations":{"etcd-tls.dev/revoke-peer-request":null}}}"#,
            r#"{"metadata":{"annotations":{"etcd-tls.dev/revoke-peer-request":"add"}}}"#,
            r#"{"metadata":{"annotations":{"etcd-tls.dev/revoke-peer-request":"add 1 unspecified serial:4f0a"}},"data":{}}"#,
        ] {
            assert!(matches!(read(bad), Err(ApiError::BadRequest(_))), "{bad}");
        }
    }
}
