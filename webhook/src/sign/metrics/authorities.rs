//! How each authority stands. There are thousands, so they are kept in few bytes, and become rows with labels when they are read.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroI64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use etcd_tls_contract::names::SignerName;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

/// Every word of [`crate::rollover::Report::phase`] that is shown.
pub(super) const PHASES: [&str; 5] = ["stable", "published", "signing", "lost", "unusable"];

/// The rows of one authority.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shown {
    /// Of the others there are no rows: they would be most of what `sign` shows for an authority.
    pub(super) phase: Option<&'static str>,
    /// Pods and confirmations.
    pub(super) waiting: u32,
    /// Seconds of the Unix epoch.
    pub(super) waiting_since: Option<NonZeroI64>,
    /// Seconds of the Unix epoch.
    pub(super) not_after: Option<NonZeroI64>,
    /// Seconds of the Unix epoch.
    pub(super) retires: Option<NonZeroI64>,
}

/// A row's phase, where it has one, and its value.
type Row = (Option<&'static str>, i64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Authorities(Arc<Mutex<BTreeMap<Arc<SignerName>, Shown>>>);

impl Authorities {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<SignerName>, Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the rows of an authority.
    pub(super) fn show(&self, name: &Arc<SignerName>, change: impl FnOnce(&mut Shown)) {
        change(self.lock().entry(Arc::clone(name)).or_default());
    }

    /// Shows an authority no more.
    pub(super) fn forget(&self, name: &SignerName) {
        self.lock().remove(name);
    }

    /// Shows none.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

impl Collector for Authorities {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.lock();
        let mut gauge = |name, help, value: fn(&Shown) -> Option<Row>| {
            let mut rows = all.iter().filter_map(|(key, shown)| Some((key, value(shown)?))).peekable();
            if rows.peek().is_none() {
                return Ok(());
            }
            let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (name, (phase, value)) in rows {
                let SignerName { domain, namespace, cluster } = &**name;
                let (namespace, cluster) = (namespace.as_str(), cluster.as_str());
                let mut labels = vec![("namespace", namespace), ("cluster", cluster), ("domain", domain.as_str())];
                labels.extend(phase.map(|phase| ("phase", phase)));
                encoder.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        };
        gauge(
            "authority_phase",
            "1 for the phase that an authority is in; lost and unusable ones issue nothing.",
            |shown| shown.phase.map(|phase| (Some(phase), 1)),
        )?;
        gauge("rollover_waiting", "Pods and confirmations that an authority's rollover waits for.", |shown| {
            Some((None, shown.waiting.into()))
        })?;
        gauge(
            "rollover_waiting_since_timestamp_seconds",
            "Since when an authority's rollover waits for pods to load the new CA; absent while it waits for none.",
            |shown| Some((None, shown.waiting_since?.get())),
        )?;
        gauge("authority_expiry_timestamp_seconds", "notAfter of the CA that signs.", |shown| {
            Some((None, shown.not_after?.get()))
        })?;
        gauge(
            "authority_retires_timestamp_seconds",
            "When an authority that nobody uses is deleted; absent of those in use, and where the policy's idleAuthorities is never.",
            |shown| Some((None, shown.retires?.get())),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn an_authority_has_the_rows_of_its_state_and_none_when_it_is_forgotten() {
        let mut registry = Registry::with_prefix("etcd_tls_sign");
        let authorities = Authorities::default();
        registry.register_collector(Box::new(authorities.clone()));
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert_eq!(text(), "# EOF\n");
        let name = Arc::new("peer.etcd-tls.dev/prod.etcd".parse::<SignerName>().unwrap());
        authorities.show(&name, |shown| {
            *shown = Shown {
                phase: Some("published"),
                waiting: 2,
                waiting_since: NonZeroI64::new(7),
                not_after: NonZeroI64::new(9),
                retires: NonZeroI64::new(11),
            };
        });
        let labels = "namespace=\"prod\",cluster=\"etcd\",domain=\"peer\"";
        for row in [
            format!("\netcd_tls_sign_authority_phase{{{labels},phase=\"published\"}} 1\n"),
            format!("\netcd_tls_sign_rollover_waiting{{{labels}}} 2\n"),
            format!("\netcd_tls_sign_rollover_waiting_since_timestamp_seconds{{{labels}}} 7\n"),
            format!("\netcd_tls_sign_authority_expiry_timestamp_seconds{{{labels}}} 9\n"),
            format!("\netcd_tls_sign_authority_retires_timestamp_seconds{{{labels}}} 11\n"),
        ] {
            assert!(text().contains(&row), "{row}\n{}", text());
        }
        authorities.show(&name, |shown| *shown = Shown::default());
        assert!(text().contains("rollover_waiting{") && !text().contains("_seconds") && !text().contains("phase"));
        authorities.forget(&name);
        assert_eq!(text(), "# EOF\n");
    }
}
