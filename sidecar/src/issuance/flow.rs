//! One CertificateSigningRequest from its making to its certificate, as a step function: answers in, the next call out.
//!
//! ```text
//!            no key kept                      created, or it was there
//!   Create ───────────────▶ POST ──────────────────────────────────────▶ Await ──▶ GET, GET, … ──▶ an outcome
//!   Find   ───────────────▶ GET ── there is none ─▶ POST
//! ```
//!
//! While a certificate is pending, reads come from the API server's cache: a request only moves forward, so an old state means
//! another read. A request that is missing or foreign may be an old state, too, so only a most recent read decides that.
//!
//! Temporary failures (no right yet, an API server that is away or busy) are retried; permanent ones are an [`Outcome`]. The
//! caller decides what follows: `init` ends, `run` starts again.

use std::time::Duration;

use etcd_tls_contract::csr::Request;

use crate::{
    issuance::schedule,
    kube::{ApiError, Version, objects::CertificateSigningRequest},
};

/// A request's progress.
#[derive(Clone, Debug)]
pub struct Flow {
    expected: Expected,
    stage: Stage,
    failures: u32,
    /// [`Circumstances::elapsed`] when the object was first seen: from then on the signer is waited for.
    since: Duration,
}

/// The fields by which an object is recognised as our request.
#[derive(Clone, Debug)]
pub struct Expected {
    /// `spec.request`, as we read it.
    pub request: Request,
    /// `spec.signerName`.
    pub signer: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Find,
    Create,
    /// It was taken by the time that we made it: looked at for the first time.
    Recognise,
    /// Our own request's uid. `sure`: the next look has to be at its most recent state.
    Await {
        uid: String,
        sure: bool,
    },
}

/// A call to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// POST the request.
    Create,
    /// GET it by name.
    Get(Version),
}

/// The result of a [`Call`].
pub type Answer = Result<CertificateSigningRequest, ApiError>;

/// The step after an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this call after this pause; the error, if there was one, is for the log.
    Next(Call, Duration),
    /// The request has come to its end.
    Over(Outcome),
}

/// How a request ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A certificate chain in PEM, not yet looked at.
    Signed {
        /// The chain.
        chain: Vec<u8>,
        /// The issuer's CA in PEM, where the answer has one.
        ca: Option<Vec<u8>>,
    },
    /// The approver said no: its reason and message.
    Denied(String),
    /// The signer said that it cannot: its reason and message.
    Failed(String),
    /// The issuer said that the request itself is invalid: its reason and message.
    Invalid(String),
    /// Somebody deleted the request before it was signed.
    Deleted,
    /// Another object has its name: created again by somebody else (its uid changed), or not ours from the start.
    Replaced(String),
}

/// The further inputs of a step.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Time since the request was begun.
    pub elapsed: Duration,
    /// How long the answer took.
    pub took: Duration,
    /// The life of the certificate in use.
    pub life: Option<etcd_tls_contract::life::Life>,
    /// The wall clock.
    pub now: std::time::SystemTime,
    /// A number in [0, 1).
    pub chance: f64,
}

impl Flow {
    /// A request that nobody has seen yet.
    pub const fn new(expected: Expected) -> Self {
        Self { expected, stage: Stage::Create, failures: 0, since: Duration::ZERO }
    }

    /// A request that may have been made before a restart: looked for by name first.
    pub const fn resumed(expected: Expected) -> Self {
        Self { expected, stage: Stage::Find, failures: 0, since: Duration::ZERO }
    }

    /// The call to make.
    pub const fn begin(&self) -> Call {
        match self.stage {
            Stage::Create => Call::Create,
            Stage::Find | Stage::Recognise | Stage::Await { sure: true, .. } => Call::Get(Version::MostRecent),
            Stage::Await { sure: false, .. } => Call::Get(Version::Any),
        }
    }

    /// Takes the answer to the last call.
    pub fn step(&mut self, answer: Answer, circumstances: &Circumstances) -> Step {
        let error = match answer {
            Ok(object) => {
                self.failures = 0;
                return self.look(&object, circumstances);
            }
            Err(error) => error,
        };
        match (error.code(), &mut self.stage) {
            // Not yet: the right to ask comes with opting in, a moment after the pod.
            (Some(403), _) => {
                self.failures = 0;
                return Step::Next(
                    self.begin(),
                    schedule::poll(circumstances.elapsed, circumstances.took, circumstances.chance),
                );
            }
            (Some(404), Stage::Find) => {
                self.stage = Stage::Create;
                return Step::Next(Call::Create, Duration::ZERO);
            }
            (Some(404), Stage::Await { sure: true, .. }) => return Step::Over(Outcome::Deleted),
            (Some(404), Stage::Await { sure, .. }) => {
                *sure = true;
                return Step::Next(self.begin(), Duration::ZERO);
            }
            // It was there a moment ago, and is gone again: ours to make.
            (Some(404), Stage::Recognise) => self.stage = Stage::Create,
            (Some(409), Stage::Create) => {
                self.stage = Stage::Recognise;
                return Step::Next(self.begin(), Duration::ZERO);
            }
            _ => {}
        }
        self.failures = self.failures.saturating_add(1);
        let Circumstances { life, now, chance, .. } = *circumstances;
        let pause = schedule::backoff(self.failures, life, now, chance);
        // Asked to stay away: not sooner, but not for ever either.
        let asked = error.retry_after().unwrap_or_default().min(Duration::from_secs(300));
        Step::Next(self.begin(), pause.max(asked))
    }

    fn look(&mut self, object: &CertificateSigningRequest, circumstances: &Circumstances) -> Step {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let mut first = false;
        match &mut self.stage {
            Stage::Await { uid: known, sure } if *known != uid => {
                if *sure {
                    return Step::Over(Outcome::Replaced(format!("its uid was {known} and is now {uid}")));
                }
                *sure = true;
                return Step::Next(self.begin(), Duration::ZERO);
            }
            Stage::Await { sure, .. } => *sure = false,
            Stage::Find | Stage::Create | Stage::Recognise => {
                if let Err(difference) = self.expected.recognise(object) {
                    return Step::Over(Outcome::Replaced(difference));
                }
                self.stage = Stage::Await { uid, sure: false };
                self.since = circumstances.elapsed;
                first = true;
            }
        }
        let status = object.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let condition = |kind: &str| {
            conditions.iter().find(|c| c.type_ == kind && c.status == "True").map(|c| {
                let word = |s: &Option<String>| s.clone().unwrap_or_default();
                format!("{}: {}", word(&c.reason), word(&c.message))
            })
        };
        // The API server stores a certificate on a denied request as well: the verdict comes first.
        if let Some(reason) = condition("Denied") {
            return Step::Over(Outcome::Denied(reason));
        }
        if let Some(reason) = condition("InvalidRequest") {
            return Step::Over(Outcome::Invalid(reason));
        }
        if let Some(reason) = condition("Failed") {
            return Step::Over(Outcome::Failed(reason));
        }
        match status.and_then(|s| s.certificate.as_ref()) {
            Some(certificate) if !certificate.0.is_empty() => Step::Over(Outcome::Signed {
                chain: certificate.0.clone(),
                ca: status.and_then(|status| status.ca.as_ref()).map(|ca| ca.0.clone()),
            }),
            _ => {
                let pause = if first {
                    schedule::first_poll(circumstances.took)
                } else {
                    let waited = circumstances.elapsed.saturating_sub(self.since);
                    schedule::poll(waited, circumstances.took, circumstances.chance)
                };
                Step::Next(self.begin(), pause)
            }
        }
    }
}

impl Expected {
    /// Checks that `object` is the request that we made, or would have made.
    fn recognise(&self, object: &CertificateSigningRequest) -> Result<(), String> {
        if object.spec.signer_name != self.signer {
            return Err(format!("it is for signer {}, not {}", object.spec.signer_name, self.signer));
        }
        match Request::parse(&object.spec.request.0) {
            Ok(request) if request == self.request => Ok(()),
            Ok(_) => Err("it asks for something else".to_owned()),
            Err(e) => Err(format!("its request cannot be read: {e}")),
        }
    }
}
