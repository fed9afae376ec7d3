//! Traces of issuance, by OpenTelemetry: the spans of `admit`, `approve` and `sign` for one pod's first certificates form one trace.
//!
//! Nothing is exported unless the program is built with the feature `traces` and the environment names a collector. Identifiers
//! are derived from the uids of the review and of the request, so that the processes need not tell each other: admission alone
//! writes its place in the trace on the pod ([`names::TRACE_ANNOTATION`]).
//!
//! The spans of a trace:
//! * `admission`: the review, by `admit`;
//! * `request`, below it: from the creation of the request by the sidecar until its certificate is there, by `sign`;
//! * `approve` and `sign`, below that: each reconciliation of the request.
//!
//! **Invariant.** No span holds a byte of a request or of a certificate, and no decision depends on a trace.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{encoding, names};

#[cfg(feature = "traces")]
mod export;
#[cfg(not(feature = "traces"))]
#[path = "traces/without.rs"]
mod export;

pub use export::Traces;

/// The variables that name a collector: that of the OpenTelemetry protocol exporter, and its form for traces alone.
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Requests that a pod makes later than this after its admission are renewals, and have traces of their own.
const FIRST: Duration = Duration::from_secs(600);

/// A span's place: its trace and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16],
    span: [u8; 8],
}

impl Context {
    /// The place of the review with this uid, which was answered `at` that time. `None`: the uid is no UUID.
    ///
    /// The span's identifier begins with the seconds since 1970, by which a request is told from a renewal.
    pub fn of_admission(review_uid: &str, at: SystemTime) -> Option<Self> {
        let trace = uuid(review_uid)?;
        let seconds = u32::try_from(at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok()?;
        let mut span = [0; 8];
        span[..4].copy_from_slice(&seconds.to_be_bytes());
        span[4..].copy_from_slice(&trace[..4]);
        Some(Self { trace, span })
    }

    /// The place of the request with this uid: in the trace of its pod's admission if it was created soon after it, else in one
    /// of its own. `None`: the uid is no UUID.
    pub fn of_request(csr_uid: &str, created: SystemTime, admission: Option<Self>) -> Option<Self> {
        let own = uuid(csr_uid)?;
        let trace =
            admission.filter(|admission| admission.is_of_first(created)).map_or(own, |admission| admission.trace);
        let mut span = [0; 8];
        span.copy_from_slice(&own[..8]);
        Some(Self { trace, span })
    }

    /// True if a request created at that time is one of the first of the pod with this admission.
    fn is_of_first(&self, created: SystemTime) -> bool {
        let [a, b, c, d, ..] = self.span;
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(u32::from_be_bytes([a, b, c, d]).into());
        // The API server's clock is another one.
        created + Duration::from_secs(60) >= at && created <= at + FIRST
    }
}

/// `traceparent` of W3C Trace Context, sampled. <https://www.w3.org/TR/trace-context/#traceparent-header>
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", encoding::hex(&self.trace), encoding::hex(&self.span))
    }
}

/// A text is no `traceparent` of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent of W3C Trace Context")]
pub struct NoContext;

impl FromStr for Context {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<Self, NoContext> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(NoContext);
        let (version, trace, span, flags) = (part()?, part()?, part()?, part()?);
        let context = Self { trace: hex(trace).ok_or(NoContext)?, span: hex(span).ok_or(NoContext)? };
        let valid = version == "00" && hex::<1>(flags).is_some() && parts.next().is_none();
        let named = context.trace != [0; 16] && context.span != [0; 8];
        if valid && named { Ok(context) } else { Err(NoContext) }
    }
}

/// The bytes of a UUID that is not nil.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    hex(&digits).filter(|bytes: &[u8; 16]| bytes[..8] != [0; 8])
}

/// Exactly `N` bytes of lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The reconciliation of one request by a controller.
#[derive(Clone, Copy, Debug)]
pub struct Reconciliation<'a> {
    /// `metadata.name` of the CertificateSigningRequest.
    pub csr: &'a str,
    /// `metadata.uid`.
    pub csr_uid: &'a str,
    /// `metadata.creationTimestamp`.
    pub created: SystemTime,
    /// `spec.signerName`.
    pub signer: &'a str,
    /// `spec.username`.
    pub requester: &'a str,
    /// Its pod, `<namespace>/<name>`; empty for a host.
    pub pod: &'a str,
    /// The place of the pod's admission.
    pub admission: Option<Context>,
    /// The time at which it began.
    pub began: SystemTime,
}

/// The collector that the environment names.
fn collector() -> Option<String> {
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    let named = ENDPOINTS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    named.filter(|_| !disabled)
}

/// The place that admission wrote on a pod; `None` where there is none that can be read.
pub fn on_pod(annotations: &std::collections::BTreeMap<String, String>) -> Option<Context> {
    annotations.get(names::TRACE_ANNOTATION)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const UID: &str = "0d5f2e0c-9c2f-4a68-9e53-3b0a4f6d7c12";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_place_is_written_and_read_as_the_standard_says() {
        let context = Context::of_admission(UID, at(0x6a00_0000)).unwrap();
        let text = context.to_string();
        assert_eq!(text, "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c-01");
        assert_eq!(text.parse(), Ok(context));
        for bad in [
            "",
            "00",
            "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c",
            "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c-01-x",
            "00-0D5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c-01",
            "00-00000000000000000000000000000000-6a0000000d5f2e0c-01",
            "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-0000000000000000-01",
            "01-0d5f2e0c9c2f4a689e533b0a4f6d7c12-6a0000000d5f2e0c-01",
            "00-0d5f2e0c9c2f4a689e533b0a4f6d7c1é-6a0000000d5f2e0c-01",
        ] {
            assert_eq!(bad.parse::<Context>(), Err(NoContext), "{bad}");
        }
        assert_eq!(Context::of_admission("not-a-uuid", at(1)), None);
    }

    #[test]
    fn a_renewal_has_a_trace_of_its_own() {
        let (csr, admitted) = ("aaaaaaaa-1111-4111-8111-bbbbbbbbbbbb", 1_800_000_000);
        let admission = Context::of_admission(UID, at(admitted));
        let place = |after| Context::of_request(csr, at(admitted + after), admission).unwrap();
        assert_eq!(place(5).trace, admission.unwrap().trace);
        assert_eq!(place(600).trace, admission.unwrap().trace);
        assert_eq!(place(601).trace, uuid(csr).unwrap());
        assert_eq!(Context::of_request(csr, at(admitted), None).unwrap().trace, uuid(csr).unwrap());
        // One that a user made up.
        let forged = "00-0d5f2e0c9c2f4a689e533b0a4f6d7c12-00000000000000ff-01".parse().ok();
        assert_eq!(Context::of_request(csr, at(admitted), forged).unwrap().trace, uuid(csr).unwrap());
    }
}
