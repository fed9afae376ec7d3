//! A check's finding and its text. Pure.

use serde::Serialize;

use crate::{
    controller::client::ApiServerError,
    error::NotWell,
    operator::{Right, plain},
    screen,
    status::{self, State},
};

/// The next command where something of the install is missing or another one. `manifests` alone would reset an overlay.
pub(super) const APPLY: &str =
    "kubectl apply -k manifests   # or your overlay, or helm upgrade: what you installed with";

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// How it is.
    pub(super) state: State,
    /// The object of the check.
    pub(super) subject: String,
    /// The observation.
    pub(super) reason: String,
    /// The next command; `None` where there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
    /// The section of the documentation.
    pub(super) see: &'static str,
}

impl Finding {
    /// All is well with `subject`.
    pub(super) fn ok(subject: impl Into<String>, reason: impl Into<String>, see: &'static str) -> Self {
        Self { state: State::Ok, subject: subject.into(), reason: reason.into(), next: None, see }
    }

    /// Somebody has to do something: `next`.
    pub(super) fn bad(
        state: State,
        subject: impl Into<String>,
        reason: impl Into<String>,
        next: impl Into<String>,
        see: &'static str,
    ) -> Self {
        Self { state, subject: subject.into(), reason: reason.into(), next: Some(next.into()), see }
    }
}

/// The findings for people, the most urgent first, each followed by its next step; on lines of at most `width` columns where a
/// terminal has so many. A command is not parted.
pub(super) fn text(findings: &[Finding], width: Option<usize>) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.state);
    let mut out = String::new();
    for finding in sorted {
        let (state, subject, reason) = (finding.state.as_str(), plain(&finding.subject), plain(&finding.reason));
        out += &screen::hanging(&format!("{state:<9} "), &format!("{subject}: {reason}"), width);
        if let Some(next) = &finding.next {
            out += &format!("          next: {}\n          see:  {}\n", plain(next), finding.see);
        }
    }
    out
}

/// All is well, or how many findings are not.
pub(super) fn well(findings: &[Finding]) -> Result<(), NotWell> {
    status::well("checks", findings.iter().map(|finding| finding.state))
}

/// A request that failed, as a finding.
pub(super) fn unseen(subject: &str, right: Right, error: ApiServerError, see: &'static str) -> Finding {
    let next = right.question();
    let cause = error.to_string();
    Finding::bad(State::Unknown, subject, format!("{}: {cause}", right.refused(error)), next, see)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_findings_come_first_with_their_remedy() {
        let findings = [
            Finding::ok("clock", "fine", "docs/check.md#clock"),
            Finding::bad(State::Failing, "lease\u{1b} x", "old", "kubectl get lease", "docs/check.md#leases"),
        ];
        assert_eq!(
            text(&findings, None),
            "failing   lease\\u{1b} x: old\n          next: kubectl get lease\n          see:  docs/check.md#leases\nok        clock: fine\n"
        );
        let long = [Finding::ok("policy", "a word and ".repeat(12).trim_end(), "docs/check.md#policy")];
        let narrow = text(&long, Some(80));
        assert!(narrow.lines().count() == 2 && narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(
            narrow
                .lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("          a") || line.starts_with("          w")),
            "{narrow}"
        );
        assert!(matches!(well(&findings), Err(NotWell::Attention { failing: 1, all: 2, .. })));
        assert!(well(&findings[..1]).is_ok());
    }
}
