//! The trust ConfigMap as the API server sends it: bundles and revocation lists within seconds. kubelet updates the mounted
//! directory up to two minutes later. The watched content is on offer until the mounted content changes or the watch has failed
//! for long.
//!
//! Watched content is verified as mounted content is. This module decides only which of the two is newer.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_tls_contract::role::Domain;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{sync::Notify, time::timeout};

use crate::{
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
/// A watch that ended sooner counts as failed, even if it ended without an error.
const TOO_SHORT: Duration = Duration::from_secs(10);
/// The longest pause after a watch that lasted as long as it was to.
const PROMPT: Duration = Duration::from_secs(1);
/// The longest pause after a watch that ended early, after the first failure, and while no API server can be reached: one that restarts
/// has thousands of watches to serve at once, and a revocation waits for this.
const PAUSE: Duration = Duration::from_secs(5);
/// An attempt that failed later than this has had a connection.
const LONGEST_CONNECT: Duration = Duration::from_secs(20);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Failures in a row after which pauses grow also while no API server can be reached: five minutes' or more.
const OFTEN: u32 = 120;
/// The longest pause after the first refusal: a pod can be faster than `approve`, which gives the right.
const FIRST_REFUSED: Duration = Duration::from_secs(5);
/// The longest pause where the right is missing.
const LONGEST_REFUSED: Duration = Duration::from_secs(60 * 60);
/// How long failures are no news, and kubelet may be late with what was watched: an API server that restarts.
const PATIENCE: Duration = Duration::from_secs(2 * 60);
/// Refusals in a row that are none.
const PATIENCE_REFUSED: u32 = 2;

/// The watched content.
#[derive(Debug, Default)]
pub struct Pushed {
    contents: Mutex<BTreeMap<&'static str, Content>>,
    /// uid and version of the ConfigMap that was sent last.
    version: Mutex<Option<(String, u64)>>,
    /// The number of the watch.
    watch: AtomicU64,
    /// The watch that sent an earlier version than the last one.
    doubted: Mutex<Option<u64>>,
    changed: Notify,
    /// 1 while the ConfigMap is watched.
    watched: Gauge,
}

/// The last watched content of one key.
#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    /// The digest of the mounted content at the first look.
    mounted: Option<Option<u64>>,
    /// True if the mounted file has changed since.
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

    /// The watched content of `key`, unless the mounted `file` has changed since.
    ///
    /// # Errors
    /// Those of the file, where nothing was sent, or it has changed since.
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

    /// True if `bytes` were sent last of `key`.
    pub fn is(&self, key: &str, bytes: &[u8]) -> bool {
        self.contents().get(key).is_some_and(|content| content.bytes == bytes)
    }

    /// A watch begins.
    fn begin(&self) {
        self.watch.fetch_add(1, Ordering::Relaxed);
        self.watched.set(1);
    }

    /// True if an earlier state than the last one is to be ignored: once, as an API server may lag behind another. Where the next
    /// watch sends one as well, the datastore was restored.
    fn doubts(&self) -> bool {
        let watch = self.watch.load(Ordering::Relaxed);
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        *doubted.get_or_insert(watch) == watch
    }

    /// Takes an object of the watch. A missing key changes nothing: its earlier content stays. For an earlier state than the last
    /// one, see [`Self::doubts`].
    fn take(&self, object: ConfigMap) {
        let metadata = &object.metadata;
        if let (Some(uid), Some(Ok(version))) = (&metadata.uid, metadata.resource_version.as_ref().map(|v| v.parse())) {
            let mut last = self.version.lock().unwrap_or_else(PoisonError::into_inner);
            if last.as_ref().is_some_and(|(of, at)| of == uid && *at > version) && self.doubts() {
                return;
            }
            *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = None;
            *last = Some((uid.clone(), version));
        }
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

    /// The watch has failed for long: the mounted content counts.
    fn forget(&self) {
        self.contents().clear();
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
    let (mut failures, mut before, mut said) = (0_u32, None, None);
    // When something came last, or the first attempt was made.
    let mut last = clock.elapsed();
    loop {
        let began = clock.elapsed();
        let lasts = SHORTEST_WATCH.mul_f64(1.0 + clock.chance());
        let (mut unreachable, mut watched_it) = (false, false);
        let end = match kube.watch_config_map(namespace, name, lasts).await {
            Ok(watched) => {
                pushed.begin();
                watched_it = true;
                if said.take().is_some() {
                    tracing::info!(config_map = name, "the trust ConfigMap is watched again");
                }
                timeout(lasts + LATE, receive(&pushed, watched)).await.unwrap_or(Ok(()))
            }
            Err(error) => {
                // One that takes connections and does not answer is there, and has too much to do.
                let connecting = clock.elapsed().saturating_sub(began) < LONGEST_CONNECT;
                unreachable = connecting && matches!(error, ApiError::Unreachable { .. });
                Err(error)
            }
        };
        let short = clock.elapsed().saturating_sub(began) < TOO_SHORT;
        if !short && watched_it {
            (before, last) = (None, clock.elapsed());
        }
        if end.is_ok() && !short {
            let lasted = clock.elapsed().saturating_sub(began);
            let pause = between(lasted, lasts, clock.chance());
            if pause > PROMPT {
                pushed.watched.set(0);
            }
            clock.sleep(pause).await;
            continue;
        }
        pushed.watched.set(0);
        // A right or a resource that is missing is no passing trouble.
        let refused = matches!(end, Err(ApiError::Status { code: 401 | 403 | 404, .. }));
        let trouble = match (refused, unreachable) {
            (true, _) => Trouble::Refused,
            (false, true) => Trouble::Unreachable,
            (false, false) => Trouble::Other,
        };
        // An API server that comes back may refuse at first: that is another trouble than that it was away. One with too much to do
        // answers at times and at times not.
        let same = before.is_some_and(|before| (before == Trouble::Refused) == (trouble == Trouble::Refused));
        failures = if same { failures.saturating_add(1) } else { 1 };
        before = Some(trouble);
        let retry_after = match &end {
            Err(ApiError::Status { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let error = end.err().map_or_else(|| "the watch ended at once".to_owned(), |error| error.to_string());
        let lasting = clock.elapsed().saturating_sub(last) >= PATIENCE;
        if refused || lasting {
            pushed.forget();
        }
        let news = if refused { failures >= PATIENCE_REFUSED } else { lasting };
        if news && said.as_ref() != Some(&error) {
            tracing::warn!(
                config_map = name,
                error,
                "the trust ConfigMap is not watched; new bundles and revocation lists come with the mounted one, within two \
                 minutes"
            );
            said = Some(error);
        }
        clock.sleep(pause(failures, trouble, retry_after, clock.chance())).await;
    }
}

/// The pause after a watch that ended without an error, by `chance`. Where it `lasted` as it was to, those of others end at
/// other times; an API server that ended it earlier goes away, and ends all at once.
fn between(lasted: Duration, lasts: Duration, chance: f64) -> Duration {
    if lasted + PROMPT >= lasts { PROMPT.mul_f64(chance) } else { PAUSE.mul_f64(chance) }
}

/// Why there is no watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The right is missing.
    Refused,
    /// No API server was there to answer.
    Unreachable,
    /// It has too much to do, or the watch broke off at once.
    Other,
}

/// The pause after the `failures`th failure in a row (from 1), with full jitter by `chance`: 5 s, doubling to five minutes, while no API
/// server can be reached [`OFTEN`] times 5 s before; where the right is missing 5 s doubling to an hour; never less than the API server
/// asks for (`retry_after`).
fn pause(failures: u32, trouble: Trouble, retry_after: Option<Duration>, chance: f64) -> Duration {
    let (first, longest) = match trouble {
        Trouble::Refused => (FIRST_REFUSED, LONGEST_REFUSED),
        Trouble::Unreachable | Trouble::Other => (PAUSE, LONGEST_PAUSE),
    };
    let doublings = failures.saturating_sub(if trouble == Trouble::Unreachable { OFTEN } else { 1 });
    let most = first.saturating_mul(2_u32.saturating_pow(doublings)).min(longest);
    let jittered = most.mul_f64(if trouble == Trouble::Refused { 0.5 + 0.5 * chance } else { chance });
    retry_after.unwrap_or_default() + jittered
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
    fn the_last_change_is_on_offer() {
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

    #[test]
    fn an_earlier_state_is_ignored_and_a_lasting_failure_leaves_what_is_mounted() {
        let pushed = Pushed::default();
        let state = |uid: &str, version: &str, text: &str| {
            let object = json!({"metadata": {"uid": uid, "resourceVersion": version}, "data": {"peer.crt": text}});
            pushed.take(serde_json::from_value(object).unwrap());
        };
        state("a", "10", "2");
        state("a", "9", "1");
        assert_eq!(newest(&pushed, "0"), "2", "of an API server that lags");
        state("b", "5", "3");
        assert_eq!(newest(&pushed, "0"), "3", "made again");
        state("b", "5", "4");
        assert_eq!(newest(&pushed, "0"), "4");
        pushed.forget();
        assert_eq!(newest(&pushed, "0"), "0");
    }

    fn send_version(pushed: &Pushed, version: &str, text: &str) {
        let object = json!({"metadata": {"uid": "a", "resourceVersion": version}, "data": {"peer.crt": text}});
        pushed.take(serde_json::from_value(object).unwrap());
    }

    /// A datastore that was restored counts versions from an earlier one on.
    #[test]
    fn after_a_lasting_failure_an_earlier_version_counts() {
        let pushed = Pushed::default();
        let state = |version: &str, text: &str| send_version(&pushed, version, text);
        state("10", "2");
        pushed.forget();
        state("7", "3");
        assert_eq!(newest(&pushed, "0"), "3");
    }

    /// The API server was away for a moment only.
    #[test]
    fn an_earlier_version_of_two_watches_counts() {
        let pushed = Pushed::default();
        let state = |version: &str, text: &str| send_version(&pushed, version, text);
        pushed.begin();
        state("10", "2");
        pushed.begin();
        state("7", "3");
        state("8", "4");
        assert_eq!(newest(&pushed, "0"), "2", "of an API server that lags");
        state("11", "5");
        assert_eq!(newest(&pushed, "0"), "5", "it has caught up");
        pushed.begin();
        state("7", "6");
        assert_eq!(newest(&pushed, "0"), "5");
        pushed.begin();
        state("7", "6");
        assert_eq!(newest(&pushed, "0"), "6", "the datastore was restored");
        state("8", "7");
        assert_eq!(newest(&pushed, "0"), "7");
    }

    #[test]
    fn a_watch_that_ended_when_it_was_to_is_followed_at_once() {
        let seconds =
            |lasted, chance| between(Duration::from_secs(lasted), Duration::from_secs_f64(400.5), chance).as_secs_f64();
        assert!(seconds(400, 0.999) <= 1.0 && seconds(430, 0.999) <= 1.0);
        assert!(
            seconds(60, 0.5) > 2.0 && seconds(60, 0.999) <= 5.0,
            "the API server goes away, and thousands come back"
        );
    }

    /// Thousands of watches that end at once are not opened again at once.
    #[test]
    fn watches_come_back_spread_out() {
        use Trouble::{Other, Refused, Unreachable};
        let seconds =
            |failures, trouble, retry_after, chance| pause(failures, trouble, retry_after, chance).as_secs_f64();
        let spread: Vec<f64> = (0..99).map(|n| seconds(1, Other, None, f64::from(n) / 99.0)).collect();
        for (from, to) in [(0.0, 5.0 / 3.0), (5.0 / 3.0, 10.0 / 3.0), (10.0 / 3.0, 5.0)] {
            let count = spread.iter().filter(|s| (from..to).contains(*s)).count();
            assert!((25..=40).contains(&count), "{count} of 100 between {from} s and {to} s");
        }
        assert!(seconds(1, Other, Some(Duration::from_secs(40)), 0.0) >= 40.0, "as the API server asks");
        assert!(seconds(30, Other, None, 0.999) <= 300.0 && seconds(7, Other, None, 0.999) > 250.0);
        assert!((1..=OFTEN).all(|failures| seconds(failures, Unreachable, None, 0.999) <= 5.0), "a revocation waits");
        assert!(seconds(OFTEN + 6, Unreachable, None, 0.999) > 250.0, "nobody is there for long");
        assert!((2.5..=5.0).contains(&seconds(1, Refused, None, 0.3)), "a right that is being given");
        assert!((1800.0..=3600.0).contains(&seconds(30, Refused, None, 0.3)), "a right that is not given costs little");
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
