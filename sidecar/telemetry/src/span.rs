//! The spans of the log: one for each request for a certificate, each review, and each renewal. Every line that is written
//! in one has its fields; the same thing has the same name in every process. docs/operations.md lists them.
//!
//! The macros make a span in the module that calls them, so that a filter of that module lets it through.

/// The fields of the span `csr`: approver, signer and standalone signer, at one CertificateSigningRequest.
pub const CSR: [&str; 5] = ["csr", "csr_uid", "signer", "requester", "pod"];
/// The fields of the span `review`: admission, at one AdmissionReview.
pub const REVIEW: [&str; 3] = ["review_uid", "pod", "workload"];
/// The fields of the span `renewal`: sidecar and host agent, at one request for a certificate.
pub const RENEWAL: [&str; 4] = ["role", "pod_uid", "signer", "csr"];

/// A span of the fields [`CSR`]. `pod` is recorded where it is known.
#[macro_export]
macro_rules! csr_span {
    ($csr:expr, $csr_uid:expr, $signer:expr, $requester:expr) => {
        $crate::tracing::error_span!(
            "csr",
            csr = $csr,
            csr_uid = $csr_uid,
            signer = $signer,
            requester = $requester,
            pod = $crate::tracing::field::Empty
        )
    };
}

/// A span of the fields [`REVIEW`], at level debug as the one line that a review has. `pod` or `workload` is recorded.
#[macro_export]
macro_rules! review_span {
    ($review_uid:expr) => {
        $crate::tracing::debug_span!(
            "review",
            review_uid = $review_uid,
            pod = $crate::tracing::field::Empty,
            workload = $crate::tracing::field::Empty
        )
    };
}

/// A span of the fields [`RENEWAL`]. `csr` is recorded once the request has a name.
#[macro_export]
macro_rules! renewal_span {
    ($role:expr, $pod_uid:expr, $signer:expr) => {
        $crate::tracing::error_span!(
            "renewal",
            role = $role,
            pod_uid = $pod_uid,
            signer = $signer,
            csr = $crate::tracing::field::Empty
        )
    };
}

#[cfg(test)]
mod tests {
    use tracing::Span;

    use super::*;

    #[test]
    fn the_spans_have_the_fields_that_are_listed() {
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let names = |span: &Span| -> Vec<String> {
                span.metadata().into_iter().flat_map(|m| m.fields().iter()).map(|f| f.name().to_owned()).collect()
            };
            assert_eq!(names(&csr_span!("a", "b", "c", "d")), CSR);
            assert_eq!(names(&review_span!("a")), REVIEW);
            assert_eq!(names(&renewal_span!("a", "b", "c")), RENEWAL);
        });
    }
}
