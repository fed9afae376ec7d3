//! `rollover --watch`: a line for each change of a rollover's status, with an estimate of how long its phase lasts.

use std::time::{Duration, SystemTime};

use super::{Report, rfc3339};

/// How far a rollover has come since it is watched.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The phase, and how many pods were waited for when it was first seen.
    began: Option<(String, SystemTime, usize)>,
    last: String,
}

impl Progress {
    /// The line for this report at this time; `None`: unchanged.
    pub(super) fn line(&mut self, report: &Report, now: SystemTime) -> Option<String> {
        let pods = pods(report);
        let (phase, since, first) = self
            .began
            .take()
            .filter(|began| began.0 == report.phase)
            .unwrap_or_else(|| (report.phase.clone(), now, pods));
        // New pods join; they were not counted at first.
        let first = first.max(pods);
        let rest: Vec<&str> = report.waiting.iter().map(String::as_str).filter(|line| !is_of_pods(line)).collect();
        let what = describe(&report.phase, pods, &rest);
        let estimate = estimate(first - pods, pods, now.duration_since(since).unwrap_or_default());
        self.began = Some((phase, since, first));
        if self.last == what {
            return None;
        }
        self.last.clone_from(&what);
        let estimate = estimate.map_or_else(String::new, |rest| format!("; {rest} at this pace"));
        Some(format!("{} {what}{estimate}", rfc3339::text(now)))
    }
}

/// True if there is nothing more to follow: it is over, or cannot go on by itself.
pub(super) fn is_over(report: &Report) -> bool {
    !matches!(report.phase.as_str(), "published" | "signing")
}

fn is_of_pods(line: &str) -> bool {
    line.starts_with("pod ") || more(line).is_some()
}

/// How many further pods a report does not name.
fn more(line: &str) -> Option<usize> {
    line.strip_prefix("and ")?.strip_suffix(" more")?.parse().ok()
}

/// How many pods are waited for.
fn pods(report: &Report) -> usize {
    report.waiting.iter().map(|line| more(line).unwrap_or_else(|| usize::from(line.starts_with("pod ")))).sum()
}

fn describe(phase: &str, pods: usize, rest: &[&str]) -> String {
    let (meaning, of_pods) = match phase {
        "stable" => ("one CA is trusted and signs", ""),
        "published" => ("both CAs are trusted, the old one signs", "not seen to have loaded the new CA"),
        "signing" => ("both CAs are trusted, the new one signs", "without a certificate of the new CA"),
        _ => ("nothing is signed; see --status", ""),
    };
    let mut text = format!("{phase}: {meaning}");
    if pods > 0 {
        let noun = if pods == 1 { "pod" } else { "pods" };
        text += &format!("; {pods} {noun} {of_pods}");
    }
    for line in rest {
        text += &format!("; waits for {line}");
    }
    text
}

/// How long the pods that are left take, where those that are done say something of it.
fn estimate(done: usize, left: usize, took: Duration) -> Option<String> {
    if done == 0 || left == 0 {
        return None;
    }
    let seconds = took.as_secs() * u64::try_from(left).ok()? / u64::try_from(done).ok()?;
    Some(match seconds {
        0..60 => "less than a minute".to_owned(),
        60..5400 => format!("about {} min", seconds.div_ceil(60)),
        _ => format!("about {} h", (seconds + 1800) / 3600),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(phase: &str, waiting: &[&str]) -> Report {
        let waiting = waiting.iter().map(|line| (*line).to_owned()).collect();
        Report { phase: phase.to_owned(), waiting, ..Report::new(None, &[], None) }
    }

    #[test]
    fn each_change_is_a_line_with_an_estimate_once_there_is_a_pace() {
        let at = |minutes: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(minutes * 60);
        let mut progress = Progress::default();
        let pod = |n: usize| format!("pod a/etcd-{n}: since 2026-01-01T00:00:00Z its process was not seen");
        let (one, two, three) = (pod(1), pod(2), pod(3));
        let all = report("published", &[&one, &two, &three, "and 9 more"]);
        let said = progress.line(&all, at(0));
        assert_eq!(
            said.as_deref(),
            Some(
                "1970-01-01T00:00:00Z published: both CAs are trusted, the old one signs; 12 pods not seen to have loaded the new CA"
            )
        );
        assert_eq!(progress.line(&all, at(1)), None, "nothing has changed");
        // Three in two minutes: nine take six.
        let said = progress.line(&report("published", &[&one, &two, &three, "and 6 more"]), at(2));
        assert!(
            said.as_ref()
                .is_some_and(|line| line.contains("; 9 pods ") && line.ends_with("; about 6 min at this pace")),
            "{said:?}"
        );
        // A further phase has its own pace.
        let leaves = "the old CA's last leaf, which ends by 2026-01-02T00:00:00Z";
        let said = progress.line(&report("signing", &[&one, leaves]), at(3));
        assert!(
            said.as_ref().is_some_and(|line| line.contains("; 1 pod without") && line.ends_with(leaves)),
            "{said:?}"
        );
        assert!(progress.line(&report("signing", &[leaves]), at(4)).is_some());
        let over = report("stable", &[]);
        assert!(is_over(&over) && !is_over(&all) && is_over(&report("lost", &[])));
        assert_eq!(
            progress.line(&over, at(5)).as_deref(),
            Some("1970-01-01T00:05:00Z stable: one CA is trusted and signs")
        );
    }

    #[test]
    fn an_estimate_is_of_those_that_are_done() {
        let minutes = |m: u64| Duration::from_secs(m * 60);
        assert_eq!(estimate(0, 3, minutes(9)), None, "nobody is done");
        assert_eq!(estimate(3, 0, minutes(9)), None, "nobody is left");
        assert_eq!(estimate(3, 1, minutes(2)).as_deref(), Some("less than a minute"));
        assert_eq!(estimate(1, 3, minutes(10)).as_deref(), Some("about 30 min"));
        assert_eq!(estimate(1, 12, minutes(10)).as_deref(), Some("about 2 h"));
    }
}
