//! A gauge that is absent from the metrics until it is set, and after it is cleared. A replica that does not lead has no
//! value to report; a 0 would trigger alerts.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::MetricType,
};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct UntilSet(Arc<Mutex<Option<i64>>>);

impl UntilSet {
    /// Shows `value`.
    pub fn set(&self, value: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// Shows nothing.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn get(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for UntilSet {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        self.get().map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.get().is_none()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[test]
    fn it_is_absent_until_it_is_set_and_once_it_is_cleared() {
        let mut registry = Registry::default();
        let gauge: UntilSet = crate::metric(&mut registry, "until", "When it ends");
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!text().contains("until"), "{}", text());
        gauge.set(7);
        assert!(text().contains("\nuntil 7\n"), "{}", text());
        gauge.clear();
        assert!(!text().contains("until"), "{}", text());
    }
}
