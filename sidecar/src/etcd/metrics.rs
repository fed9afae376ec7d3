//! The few of etcd's own metrics that tell what its gateway will not tell everybody.

/// The metrics of etcd that are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerMetrics {
    /// `etcd_server_id`: the member's id.
    pub id: Option<u64>,
    /// `etcd_server_is_leader`.
    pub leader: bool,
    /// `process_start_time_seconds`: when the process started, by the host's wall clock.
    pub started: Option<f64>,
}

impl ServerMetrics {
    /// Reads the Prometheus text format; lines of other metrics are passed over.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            if let Some(id) = name.strip_prefix("etcd_server_id{server_id=\"").and_then(|n| n.strip_suffix("\"}")) {
                metrics.id = u64::from_str_radix(id, 16).ok();
            } else if name == "etcd_server_is_leader" {
                metrics.leader = value == "1";
            } else if name == "process_start_time_seconds" {
                metrics.started = value.parse().ok();
            }
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_real_etcd_are_read() {
        let text = "# HELP etcd_server_id Server or member ID in hexadecimal format. 1 for 'server_id' label.\n\
                    # TYPE etcd_server_id gauge\netcd_server_id{server_id=\"bc17f762796be62c\"} 1\n\
                    etcd_server_is_leader 1\nprocess_start_time_seconds 1.79532365875e+09\n";
        let expected = ServerMetrics { id: Some(0xbc17_f762_796b_e62c), leader: true, started: Some(1_795_323_658.75) };
        assert_eq!(ServerMetrics::parse(text), expected);
        assert_eq!(ServerMetrics::parse("nothing of ours\n\nx"), ServerMetrics::default());
    }
}
