//! A lean client of etcd: its JSON gateway (`/v3/…`), and the plain HTTP paths of the client port (`/health`, `/metrics`)
//! and the peer port (`/members`, `/version`), in HTTP/1.1 over a connection of its own for each request, with a role's
//! files, read again, as identity and trust.
//!
//! With etcd's auth on, the gateway answers none of it (from 3.5 not even its status), while `/health`, `/metrics` and
//! `/members` do not ask; so what can be read there is.

pub mod handshake;
mod http;
mod metrics;

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_tls_contract::endpoint::Endpoint;
pub use http::{Client, EtcdError};
pub use metrics::ServerMetrics;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its id.
    #[serde(alias = "ID", deserialize_with = "number")]
    pub id: u64,
    /// Its name; empty until it has started once.
    #[serde(default)]
    pub name: String,
    /// Where the other members reach it.
    #[serde(default, rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started once.
    #[serde(default, rename = "clientURLs")]
    pub client_urls: Vec<String>,
    /// True if it has no vote.
    #[serde(default, rename = "isLearner")]
    pub learner: bool,
}

/// The result of an attempt to create a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is ours.
    Yes,
    /// It was there already.
    Already(HeldKey),
}

/// A key that exists already, and its holder's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// Its value.
    pub value: String,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
    /// The revision of its last change.
    pub revision: i64,
}

impl Client {
    /// Checks that the member reaches quorum: `/health`, a linearizable read.
    ///
    /// # Errors
    /// etcd's own reason, or the failure to ask.
    pub async fn health(&self, client_url: &Endpoint) -> Result<(), EtcdError> {
        let (status, body) = self.get(client_url, "/health").await?;
        // `"true"` is a string in every version; a reason stands beside it from 3.5 on.
        let healthy = serde_json::from_slice::<Value>(&body).is_ok_and(|v| v["health"] == "true");
        if status == 200 && healthy {
            return Ok(());
        }
        Err(EtcdError::refused(client_url, status, &body))
    }

    /// The numbers of `/metrics` that we look at.
    ///
    /// # Errors
    /// The failure.
    pub async fn metrics(&self, client_url: &Endpoint) -> Result<ServerMetrics, EtcdError> {
        let (status, body) = self.get(client_url, "/metrics").await?;
        if status != 200 {
            return Err(EtcdError::refused(client_url, status, &body));
        }
        Ok(ServerMetrics::parse(&String::from_utf8_lossy(&body)))
    }

    /// The members as the gateway lists them.
    ///
    /// # Errors
    /// The failure; with etcd's auth on, [`EtcdError::Forbidden`].
    pub async fn members(&self, client_url: &Endpoint) -> Result<Vec<Member>, EtcdError> {
        let answer = self.call(client_url, "/v3/cluster/member/list", &json!({})).await?;
        serde_json::from_value(answer["members"].clone()).map_err(|e| EtcdError::answer(client_url, e))
    }

    /// The members as the peer port lists them to a peer.
    ///
    /// # Errors
    /// The failure.
    pub async fn members_of_peer(&self, peer_url: &Endpoint) -> Result<Vec<Member>, EtcdError> {
        let (status, body) = self.get(peer_url, "/members").await?;
        if status != 200 {
            return Err(EtcdError::refused(peer_url, status, &body));
        }
        serde_json::from_slice(&body).map_err(|e| EtcdError::answer(peer_url, e))
    }

    /// Checks that a peer takes us for one: a whole TLS handshake as another member would make it, with the role's leaf and trust,
    /// and a request, since a TLS 1.3 client learns only then that its certificate was refused.
    ///
    /// # Errors
    /// The failure.
    pub async fn dial_peer(&self, peer_url: &Endpoint) -> Result<(), EtcdError> {
        let (status, body) = self.get(peer_url, "/version").await?;
        if status == 200 { Ok(()) } else { Err(EtcdError::refused(peer_url, status, &body)) }
    }

    /// Hands leadership from the member at `client_url`, which must be the leader, to `target`.
    ///
    /// # Errors
    /// The failure.
    pub async fn move_leader(&self, client_url: &Endpoint, target: u64) -> Result<(), EtcdError> {
        let body = json!({"targetID": target.to_string()});
        self.call(client_url, "/v3/maintenance/transfer-leadership", &body).await.map(|_| ())
    }

    /// Grants a lease of `ttl` seconds; its id.
    ///
    /// # Errors
    /// The failure.
    pub async fn grant(&self, client_url: &Endpoint, ttl: u32) -> Result<i64, EtcdError> {
        let answer = self.call(client_url, "/v3/lease/grant", &json!({"TTL": ttl.to_string()})).await?;
        integer(&answer["ID"]).ok_or_else(|| EtcdError::answer(client_url, "a lease without an ID"))
    }

    /// Keeps a lease alive; false if it is gone.
    ///
    /// # Errors
    /// The failure.
    pub async fn keep_alive(&self, client_url: &Endpoint, lease: i64) -> Result<bool, EtcdError> {
        let answer = self.call(client_url, "/v3/lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        // A lease that is gone is answered without a TTL.
        Ok(integer(&answer["result"]["TTL"]).is_some_and(|ttl| ttl > 0))
    }

    /// The seconds that a lease was granted for; `None` if it is gone.
    ///
    /// # Errors
    /// The failure.
    pub async fn granted(&self, client_url: &Endpoint, lease: i64) -> Result<Option<u64>, EtcdError> {
        let answer = self.call(client_url, "/v3/lease/timetolive", &json!({"ID": lease.to_string()})).await?;
        Ok(integer(&answer["grantedTTL"]).and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0))
    }

    /// Ends a lease, and with it the keys that hang on it. One that is gone already is no error.
    ///
    /// # Errors
    /// The failure.
    pub async fn revoke(&self, client_url: &Endpoint, lease: i64) -> Result<(), EtcdError> {
        match self.call(client_url, "/v3/lease/revoke", &json!({"ID": lease.to_string()})).await {
            Err(EtcdError::Refused { reason, .. }) if reason.contains("lease not found") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Creates `key` on `lease` if there is none, in one transaction.
    ///
    /// # Errors
    /// The failure.
    pub async fn create(
        &self,
        client_url: &Endpoint,
        key: &str,
        value: &str,
        lease: i64,
    ) -> Result<Created, EtcdError> {
        let key = STANDARD.encode(key);
        let body = json!({
            "compare": [{"target": "CREATE", "result": "EQUAL", "key": key, "create_revision": "0"}],
            "success": [{"request_put": {"key": key, "value": STANDARD.encode(value), "lease": lease.to_string()}}],
            "failure": [{"request_range": {"key": key}}],
        });
        let answer = self.call(client_url, "/v3/kv/txn", &body).await?;
        if answer["succeeded"] == true {
            return Ok(Created::Yes);
        }
        let found = &answer["responses"][0]["response_range"]["kvs"][0];
        let value = found["value"].as_str().and_then(|v| STANDARD.decode(v).ok()).unwrap_or_default();
        Ok(Created::Already(HeldKey {
            value: String::from_utf8_lossy(&value).into_owned(),
            lease: integer(&found["lease"]).unwrap_or_default(),
            revision: integer(&found["mod_revision"])
                .ok_or_else(|| EtcdError::answer(client_url, "a key without a revision"))?,
        }))
    }

    /// Replaces `key`, if it is still as it was `found`, in one transaction; false if it is not.
    ///
    /// # Errors
    /// The failure.
    pub async fn replace(
        &self,
        client_url: &Endpoint,
        key: &str,
        found: &HeldKey,
        value: &str,
        lease: i64,
    ) -> Result<bool, EtcdError> {
        let key = STANDARD.encode(key);
        let revision = found.revision.to_string();
        let body = json!({
            "compare": [{"target": "MOD", "result": "EQUAL", "key": key, "mod_revision": revision}],
            "success": [{"request_put": {"key": key, "value": STANDARD.encode(value), "lease": lease.to_string()}}],
        });
        Ok(self.call(client_url, "/v3/kv/txn", &body).await?["succeeded"] == true)
    }
}

/// The URLs, separated by commas.
pub(crate) fn joined(urls: &[Endpoint]) -> String {
    urls.iter().map(Endpoint::as_str).collect::<Vec<_>>().join(",")
}

/// 64-bit integers are strings in the gateway's JSON.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// … and numbers in the peer port's.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    value
        .as_u64()
        .or_else(|| value.as_str()?.parse().ok())
        .ok_or_else(|| serde::de::Error::custom("a member's id is no number"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn members_are_read_from_the_gateway_and_from_the_peer_port() {
        let gateway =
            r#"[{"ID":"13553573605910767148","name":"a","peerURLs":["https://p"],"clientURLs":["https://c"]}]"#;
        let peer = r#"[{"id":13553573605910767148,"peerURLs":["https://p"],"name":"a","clientURLs":["https://c"]}]"#;
        let read = |s| serde_json::from_str::<Vec<Member>>(s).unwrap();
        assert_eq!(read(gateway), read(peer));
        assert_eq!(read(gateway)[0].id, 13_553_573_605_910_767_148);
        assert!(!read(gateway)[0].learner);
    }

    #[test]
    fn a_member_that_never_started_has_no_name() {
        let added = r#"[{"ID":"1","peerURLs":["https://p"],"isLearner":true}]"#;
        let member = &serde_json::from_str::<Vec<Member>>(added).unwrap()[0];
        assert!(member.name.is_empty() && member.client_urls.is_empty() && member.learner);
    }
}
