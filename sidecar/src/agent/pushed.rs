//! The trust ConfigMap as the API server sends it: bundles and revocation lists within seconds. kubelet brings the same to the
//! mounted directory, up to two minutes later. Of the two, what changed last is on offer.
//!
//! What is sent is verified as what is mounted: this module says only which of the two is newer.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use etcd_tls_contract::role::Domain;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{sync::Notify, time::timeout};

use crate::{
    issuance::schedule,
    kube::{
        ApiError,
        http::{Credentials, Kube},
        objects::ConfigMap,
        watch::Watched,
    },
    os::clock::Clock,
};

/// The API server ends a watch after a time between this and twice this.
const SHORTEST_WATCH: Duration = Duration::from_secs(5 * 60);
/// How much later it may do so: a connection that nobody ends is dead.
const LATE: Duration = Duration::from_secs(30);
/// A watch that ended sooner has failed, whatever its end looked like.
const TOO_SHORT: Duration = Duration::from_secs(10);
/// The longest pause between a watch and the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Failures in a row that are no news: an API server that restarts.
const PATIENCE: u32 = 3;

/// What was sent.
#[derive(Debug, Default)]
pub struct Pushed {
    contents: Mutex<BTreeMap<&'static str, Content>>,
    changed: Notify,
    /// 1 while the ConfigMap is watched.
    watched: Gauge,
}

/// What was sent last of one key.
#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    /// What was mounted when this was looked at first.
    mounted: Option<Option<u64>>,
    /// Whether the mounted file has changed since.
    overtaken: bool,
}

impl Pushed {
    /// Shows whether the ConfigMap is watched.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "trust_watched",
            "1 while the trust ConfigMap is watched; 0 while its changes come with the mounted one alone",
            self.watched.clone(),
        );
    }

    /// Ends when something else was sent since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The newer one of what was sent of `key` and of the mounted `file`.
    ///
    /// # Errors
    /// Those of the file, where nothing newer was sent.
    pub fn newest(&self, key: &str, file: io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
        let mut contents = self.contents();
        let Some(content) = contents.get_mut(key).filter(|content| !content.overtaken) else { return file };
        let mounted = file.as_ref().ok().map(|bytes| digest(bytes));
        if *content.mounted.get_or_insert(mounted) == mounted {
            return Ok(content.bytes.clone());
        }
        content.overtaken = true;
        file
    }

    /// Whether `bytes` were sent last of `key`.
    pub fn is(&self, key: &str, bytes: &[u8]) -> bool {
        self.contents().get(key).is_some_and(|content| content.bytes == bytes)
    }

    /// Takes what was sent. A key that is missing was not sent: what was sent before stays.
    fn take(&self, object: ConfigMap) {
        let (mut texts, mut binaries) = (object.data.unwrap_or_default(), object.binary_data.unwrap_or_default());
        let mut contents = self.contents();
        let bundles =
            Domain::ALL.into_iter().filter_map(|d| Some((d.trust_key(), texts.remove(d.trust_key())?.into_bytes())));
        let lists = Domain::ALL.into_iter().filter_map(Domain::crl_key);
        let lists = lists.filter_map(|key| Some((key, binaries.remove(key)?.0)));
        for (key, bytes) in bundles.chain(lists) {
            if contents.get(key).is_none_or(|content| content.bytes != bytes) {
                contents.insert(key, Content { bytes, mounted: None, overtaken: false });
                self.changed.notify_one();
            }
        }
    }

    fn contents(&self) -> MutexGuard<'_, BTreeMap<&'static str, Content>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Watches the ConfigMap `name` of `namespace` for ever. Where that is refused or impossible, the mounted directory remains, and
/// the log says so.
pub async fn follow<K: Credentials, C: Clock>(
    pushed: Arc<Pushed>,
    kube: Kube<K>,
    namespace: &str,
    name: &str,
    clock: C,
) {
    let (mut failures, mut said) = (0_u32, None);
    loop {
        let began = clock.elapsed();
        let lasts = SHORTEST_WATCH.mul_f64(1.0 + clock.chance());
        let end = match kube.watch_config_map(namespace, name, lasts).await {
            Ok(watched) => {
                pushed.watched.set(1);
                if said.take().is_some() {
                    tracing::info!(config_map = name, "the trust ConfigMap is watched again");
                }
                timeout(lasts + LATE, receive(&pushed, watched)).await.unwrap_or(Ok(()))
            }
            Err(error) => Err(error),
        };
        let short = clock.elapsed().saturating_sub(began) < TOO_SHORT;
        if end.is_ok() && !short {
            failures = 0;
            clock.sleep(PAUSE.mul_f64(clock.chance())).await;
            continue;
        }
        failures = failures.saturating_add(1);
        pushed.watched.set(0);
        // A right or a resource that is missing is no passing trouble.
        let refused = matches!(end, Err(ApiError::Status { code: 401 | 403 | 404, .. }));
        let error = end.err().map_or_else(|| "the watch ended at once".to_owned(), |error| error.to_string());
        if (refused || failures >= PATIENCE) && said.as_ref() != Some(&error) {
            tracing::warn!(
                config_map = name,
                error,
                "the trust ConfigMap is not watched; new bundles and revocation lists come with the mounted one, within two \
                 minutes"
            );
            said = Some(error);
        }
        let pause = if refused {
            schedule::verdict_backoff(failures, clock.chance())
        } else {
            schedule::backoff(failures, None, SystemTime::UNIX_EPOCH, clock.chance())
        };
        clock.sleep(pause.max(Duration::from_secs(1))).await;
    }
}

async fn receive(pushed: &Pushed, mut watched: Watched) -> Result<(), ApiError> {
    while let Some(object) = watched.next().await? {
        pushed.take(object);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn send(pushed: &Pushed, text: &str) {
        pushed.take(serde_json::from_value(json!({"data": {"peer.crt": text, "other": "x"}})).unwrap());
    }

    fn newest(pushed: &Pushed, mounted: &str) -> String {
        String::from_utf8(pushed.newest("peer.crt", Ok(mounted.into())).unwrap()).unwrap()
    }

    #[test]
    fn what_changed_last_is_on_offer() {
        let pushed = Pushed::default();
        assert_eq!(newest(&pushed, "1"), "1", "nothing was sent");
        send(&pushed, "2");
        assert_eq!(newest(&pushed, "1"), "2");
        send(&pushed, "2");
        assert_eq!(newest(&pushed, "1"), "2");
        assert_eq!(newest(&pushed, "2"), "2", "kubelet has brought it");
        assert_eq!(newest(&pushed, "3"), "3", "kubelet was faster");
        send(&pushed, "2");
        assert_eq!(newest(&pushed, "3"), "3", "the same again is no news");
        send(&pushed, "4");
        assert_eq!(newest(&pushed, "3"), "4");
        let missing = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert!(pushed.newest("peer.crl", missing()).is_err(), "of another key nothing was sent");
        send(&pushed, "5");
        assert_eq!(pushed.newest("peer.crt", missing()).unwrap(), b"5", "nothing is mounted");
    }

    #[tokio::test]
    async fn only_a_change_wakes() {
        let pushed = Pushed::default();
        let woken = || timeout(Duration::from_millis(20), pushed.changed());
        assert!(woken().await.is_err());
        send(&pushed, "1");
        assert!(woken().await.is_ok());
        send(&pushed, "1");
        pushed.take(ConfigMap::default());
        assert!(woken().await.is_err(), "the same, and nothing at all");
        assert!(pushed.is("peer.crt", b"1") && !pushed.is("peer.crt", b"2") && !pushed.is("other", b"x"));
    }
}
