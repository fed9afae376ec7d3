//! From the bytes of an AdmissionReview to the bytes of its answer. Pure.
//!
//! A body that is no review has nobody to answer to and is an HTTP error; everything with a uid gets an answer with that
//! uid, a refusal where it must be one.

use std::{borrow::Cow, collections::BTreeSet, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use etcd_tls_telemetry::review_span;
use serde::{Deserialize, Serialize};
use tracing::Span;

use super::{words, workload};
use crate::{
    injection::{
        Config, Origin, PodDecision, decide,
        json::{self, Json},
    },
    traces::Context,
};

/// The only version that is spoken.
const API_VERSION: &str = "admission.k8s.io/v1";
/// The longest uid that is echoed; the API server's have 36 characters.
const MAX_UID: usize = 256;
/// The longest name of a namespace. It stands in many sentences.
const MAX_NAMESPACE: usize = 63;
/// The approximate size of a patch of two containers and three volumes, in bytes.
const PATCH_CAPACITY: usize = 8 * 1024;
/// The approximate size of an answer without its patch, in bytes.
const ANSWER_CAPACITY: usize = 1024;
/// More JSON values than a pod that runs has. Each takes some hundred bytes once read, an array or object with one item some
/// hundred more, which bounds the memory.
const MAX_VALUES: usize = 100_000;

/// The configuration of reviews.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The settings of injection.
    pub injection: Config,
    /// Namespaces whose pods are never touched.
    pub leave_out: BTreeSet<String>,
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The AdmissionReview, JSON.
    pub body: Vec<u8>,
    /// The decision.
    pub verdict: Verdict,
    /// The review in a trace; `None` where no traces are exported, and where nothing is injected.
    pub trace: Option<Traced>,
}

/// A review in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Its place.
    pub context: Context,
    /// The pod, `<namespace>/<name>`.
    pub pod: String,
}

/// The decision, for metrics and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A patch was answered.
    Inject,
    /// Everything was in place already.
    InPlace,
    /// Not ours to touch.
    Leave,
    /// The pod was refused.
    Refuse,
}

/// A body that is no AdmissionReview that could be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReview {
    /// No JSON, or none of this shape.
    #[error("the body is no AdmissionReview: {0}")]
    Unreadable(String),
    /// Another version or another kind.
    #[error("the body is {0}, not an AdmissionReview of {API_VERSION}")]
    Foreign(String),
    /// More values than any pod has.
    #[error("the body holds too many values")]
    TooLarge,
}

impl Resource<'_> {
    /// The field of the log that names an object of this kind.
    fn field(&self) -> &'static str {
        if self.group.is_empty() && self.resource == "pods" { "pod" } else { "workload" }
    }
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Inject, Self::InPlace, Self::Leave, Self::Refuse];

    /// The verdict's word in metrics and log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::InPlace => "in-place",
            Self::Leave => "leave",
            Self::Refuse => "refuse",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    #[serde(borrow)]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    resource: Resource<'a>,
    #[serde(borrow)]
    sub_resource: Option<Cow<'a, str>>,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow)]
    operation: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "json::unambiguous")]
    object: Json<'a>,
    #[serde(borrow, default, deserialize_with = "json::unambiguous")]
    old_object: Json<'a>,
}

#[derive(Default, Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(borrow, default)]
    resource: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answered<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
    code: u16,
    reason: &'static str,
    message: String,
}

/// Answers a review of the creation of a pod: with the patch that injects into it.
///
/// # Errors
/// The body is no review.
pub fn mutate(body: &[u8], admission: &Admission) -> Result<Answer, BadReview> {
    review(body, |request| decide_pod(request, admission, None))
}

/// [`mutate`], where the review has a place in a trace from `now` on; the pod is marked with it.
///
/// # Errors
/// The body is no review.
pub fn mutate_traced(body: &[u8], admission: &Admission, now: SystemTime) -> Result<Answer, BadReview> {
    let mut trace = None;
    let answer = review(body, |request| {
        let context = Context::of_admission(&request.uid, now);
        trace = context.map(|context| Traced { context, pod: request.object_name() });
        decide_pod(request, admission, context)
    })?;
    let trace = trace.filter(|_| answer.verdict == Verdict::Inject);
    Ok(Answer { trace, ..answer })
}

/// Answers a review of a workload: with what is to be said of its pods. It allows everything.
///
/// # Errors
/// The body is no review.
pub fn warn(body: &[u8], admission: &Admission) -> Result<Answer, BadReview> {
    review(body, |request| (PodDecision::Leave(decide_workload(request, admission)), 0))
}

fn review(body: &[u8], decide: impl FnOnce(&Request<'_>) -> (PodDecision, u16)) -> Result<Answer, BadReview> {
    // Counted as bytes, so that a refusal costs no memory. A value takes a byte and a comma at least.
    if body.len() > MAX_VALUES && body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count() > MAX_VALUES {
        return Err(BadReview::TooLarge);
    }
    let unreadable = |why: &dyn std::fmt::Display| BadReview::Unreadable(why.to_string());
    // Checked once as a whole, instead of string by string.
    let body = std::str::from_utf8(body).map_err(|e| unreadable(&e))?;
    let review: Review<'_> = serde_json::from_str(body).map_err(|e| unreadable(&e))?;
    let (version, kind) = (review.api_version.unwrap_or_default(), review.kind.unwrap_or_default());
    if version != API_VERSION || kind != "AdmissionReview" {
        let clip = |s: &str| s.chars().take(80).collect::<String>();
        return Err(BadReview::Foreign(format!("{:?} of {:?}", clip(&kind), clip(&version))));
    }
    let request = review.request.ok_or_else(|| unreadable(&"it has no request"))?;
    if request.uid.is_empty() || request.uid.len() > MAX_UID {
        return Err(unreadable(&"request.uid is empty or too long"));
    }
    let span = request.span();
    let _in_review = span.enter();
    let answer = answer(&request.uid, decide(&request)).map_err(|e| unreadable(&e))?;
    tracing::debug!(verdict = answer.verdict.as_str(), "review");
    Ok(answer)
}

/// A decision on a pod, and the code of the status if it is a refusal.
fn decide_pod(request: &Request<'_>, admission: &Admission, trace: Option<Context>) -> (PodDecision, u16) {
    let pod = request.resource.group.is_empty() && request.resource.resource == "pods";
    if !pod || !request.is_whole() || request.operation.as_deref() != Some("CREATE") {
        return (PodDecision::Leave(Vec::new()), 0);
    }
    let namespace = request.namespace.as_deref().unwrap_or_default();
    if namespace.is_empty() || namespace.len() > MAX_NAMESPACE {
        return (PodDecision::Refuse(vec!["request.namespace is empty or too long".to_owned()]), 400);
    }
    if admission.leave_out.contains(namespace) {
        return (PodDecision::Leave(Vec::new()), 0);
    }
    let object = &request.object;
    if object.is_null() {
        return (PodDecision::Refuse(vec!["request.object is missing".to_owned()]), 400);
    }
    if let Some(kind) =
        object.as_object().and_then(|object| object.get("kind")).filter(|kind| kind.as_str() != Some("Pod"))
    {
        let kind: String = kind.to_string().chars().take(80).collect();
        return (PodDecision::Refuse(vec![format!("request.object is no Pod but {kind}")]), 400);
    }
    // A pod without our label can only have come by the entry for labelled namespaces.
    (
        decide(
            object,
            &admission.injection,
            Origin { namespace, namespace_opted_in: true, label: false, subdomain: None, trace },
        ),
        422,
    )
}

/// The warnings for a workload that is created or whose template changes.
fn decide_workload(request: &Request<'_>, admission: &Admission) -> Vec<String> {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let path = workload::template_path(&request.resource.group, &request.resource.resource);
    let Some(path) = path else { return Vec::new() };
    let made = matches!(request.operation.as_deref(), Some("CREATE" | "UPDATE"));
    let named = (1..=MAX_NAMESPACE).contains(&namespace.len());
    if !made || !request.is_whole() || !named || admission.leave_out.contains(namespace) {
        return Vec::new();
    }
    workload::warnings(path, &request.object, &request.old_object, namespace, &admission.injection)
}

impl Request<'_> {
    /// The fields of every log line about this review; most processes log none.
    fn span(&self) -> Span {
        let span = review_span!(&*self.uid);
        if span.is_disabled() {
            return span;
        }
        span.record(self.resource.field(), self.object_name());
        span
    }

    /// The object, `<namespace>/<name>`.
    fn object_name(&self) -> String {
        let name =
            |field: &str| self.object.get("metadata").as_object()?.get(field)?.as_str().filter(|s| !s.is_empty());
        let namespace = self.namespace.as_deref().unwrap_or_default();
        // A pod of a controller has no name yet.
        let name = name("name").or_else(|| name("generateName")).unwrap_or_default();
        format!("{namespace}/{name}")
    }

    /// True if it is about an object and not a subresource.
    fn is_whole(&self) -> bool {
        self.sub_resource.as_deref().unwrap_or_default().is_empty()
    }
}

fn answer(uid: &str, (decision, code): (PodDecision, u16)) -> Result<Answer, serde_json::Error> {
    let mut response = Response { uid, allowed: true, patch_type: None, warnings: Vec::new(), status: None };
    let mut written = Vec::new();
    let verdict = match decision {
        PodDecision::Leave(warnings) => {
            response.warnings = words::spoken(warnings);
            Verdict::Leave
        }
        PodDecision::Inject { patch, warnings } => {
            response.warnings = words::spoken(warnings);
            if patch.is_empty() {
                Verdict::InPlace
            } else {
                response.patch_type = Some("JSONPatch");
                written.reserve(PATCH_CAPACITY);
                patch.write(&mut written)?;
                Verdict::Inject
            }
        }
        PodDecision::Refuse(problems) => {
            response.allowed = false;
            response.status = Some(Status {
                status: "Failure",
                code,
                reason: if code == 400 { "BadRequest" } else { "Invalid" },
                message: words::refusal(problems),
            });
            Verdict::Refuse
        }
    };
    let mut body = Vec::with_capacity(ANSWER_CAPACITY + encoded_len(&written));
    serde_json::to_writer(&mut body, &Answered { api_version: API_VERSION, kind: "AdmissionReview", response })?;
    if !written.is_empty() {
        put_patch(&mut body, &written)?;
    }
    Ok(Answer { body, verdict, trace: None })
}

/// Puts the patch, in base64, behind the other fields of the response, with which the review ends. It is most of the
/// answer, and nothing in base64 is ever escaped: so it is written once, where it is sent from.
fn put_patch(body: &mut Vec<u8>, patch: &[u8]) -> Result<(), serde_json::Error> {
    const END: &[u8] = b"}}";
    body.truncate(body.len() - END.len());
    body.extend_from_slice(b",\"patch\":\"");
    let at = body.len();
    body.resize(at + encoded_len(patch), b'=');
    STANDARD.encode_slice(patch, &mut body[at..]).map_err(serde::ser::Error::custom)?;
    body.push(b'"');
    body.extend_from_slice(END);
    Ok(())
}

/// The length of `bytes` in base64.
const fn encoded_len(bytes: &[u8]) -> usize {
    bytes.len().div_ceil(3) * 4
}

#[cfg(test)]
mod tests;
