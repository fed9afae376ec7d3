//! The route of a call: its path and the requests that it selects.

use std::collections::HashMap;

use serde_json::Value;

use crate::standalone::{
    error::{ApiError, GROUP, RESOURCE},
    http::{discovery, openapi},
    store::StoredRequest,
    version::Version,
};

/// Terms of a label selector: each is looked for in each request.
const MOST_TERMS: usize = 64;

/// The query's parameters.
pub type Query = HashMap<String, String>;

/// The route of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Live,
    Ready,
    Metrics,
    Document(Value),
    OpenApiV2,
    Collection(Version),
    Item(Version, String),
    Status(Version, String),
    Approval(Version, String),
    Trust { namespace: String, name: String },
    Trusts { namespace: String },
}

impl Route {
    pub(super) fn of(path: &str) -> Option<Self> {
        let segments: Vec<String> =
            path.trim_start_matches('/').split('/').map(percent_decode).collect::<Option<_>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        Some(match segments.as_slice() {
            ["livez" | "healthz"] => Self::Live,
            ["readyz"] => Self::Ready,
            ["metrics"] => Self::Metrics,
            ["version"] => Self::Document(discovery::version()),
            ["api"] => Self::Document(discovery::core_versions()),
            ["api", "v1"] => Self::Document(discovery::core_resources()),
            ["api", "v1", "namespaces", namespace, "configmaps", name] => {
                Self::Trust { namespace: (*namespace).to_owned(), name: (*name).to_owned() }
            }
            ["api", "v1", "namespaces", namespace, "configmaps"] => Self::Trusts { namespace: (*namespace).to_owned() },
            ["apis"] => Self::Document(discovery::groups()),
            ["apis", group] if *group == GROUP => Self::Document(discovery::group()),
            ["openapi", "v2"] => Self::OpenApiV2,
            ["openapi", "v3"] => Self::Document(openapi::index()),
            ["openapi", "v3", "apis", group, version] if *group == GROUP => {
                Self::Document(openapi::v3(Version::of(version)?))
            }
            ["apis", group, version, rest @ ..] if *group == GROUP => {
                let version = Version::of(version)?;
                match rest {
                    [] => Self::Document(discovery::resources(version)),
                    [resource, rest @ ..] if *resource == RESOURCE => match rest {
                        [] => Self::Collection(version),
                        [name] => Self::Item(version, (*name).to_owned()),
                        [name, "approval"] => Self::Approval(version, (*name).to_owned()),
                        [name, "status"] => Self::Status(version, (*name).to_owned()),
                        _ => return None,
                    },
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

/// `%41` and the like; `None` where a sequence is cut off or the result is no UTF-8.
fn percent_decode(segment: &str) -> Option<String> {
    let mut bytes = segment.bytes();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Which requests a caller asks for, and may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Whose; `None` for an administrator.
    owner: Option<String>,
    name: Option<String>,
    signer: Option<String>,
    labels: Vec<(String, Option<String>, bool)>,
}

impl Selector {
    pub(super) fn parse(query: &Query, owner: Option<String>) -> Result<Self, ApiError> {
        let mut selector = Self { owner, ..Self::default() };
        for term in terms(query, "fieldSelector") {
            match term.split_once('=').map(|(key, value)| (key, value.trim_start_matches('='))) {
                Some(("metadata.name", value)) => selector.name = Some(value.to_owned()),
                Some(("spec.signerName", value)) => selector.signer = Some(value.to_owned()),
                _ => {
                    return Err(ApiError::BadRequest(format!(
                        "field selector {term:?} is not supported: only metadata.name= and spec.signerName= are"
                    )));
                }
            }
        }
        for term in terms(query, "labelSelector") {
            if selector.labels.len() >= MOST_TERMS {
                return Err(ApiError::BadRequest(format!("the label selector has more than {MOST_TERMS} terms")));
            }
            if term.contains(['(', ' ']) {
                return Err(ApiError::BadRequest(format!(
                    "label selector {term:?} is not supported: only key, !key, key=value and key!=value are"
                )));
            }
            selector.labels.push(match term.split_once('=') {
                Some((key, value)) => match key.strip_suffix('!') {
                    Some(key) => (key.to_owned(), Some(value.to_owned()), false),
                    None => (key.to_owned(), Some(value.trim_start_matches('=').to_owned()), true),
                },
                None => match term.strip_prefix('!') {
                    Some(key) => (key.to_owned(), None, false),
                    None => (term.to_owned(), None, true),
                },
            });
        }
        Ok(selector)
    }

    /// The one request that it can select, where it names one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// True if it selects the requests of all callers, as an administrator's does.
    pub const fn is_of_all(&self) -> bool {
        self.owner.is_none()
    }

    /// True if it selects `request`.
    pub fn takes(&self, request: &StoredRequest) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|w| w == value);
        is(&self.owner, request.owner())
            && is(&self.name, request.name())
            && is(&self.signer, request.signer())
            && self.labels.iter().all(|(key, value, wanted)| {
                let found = request.label(key).is_some_and(|v| value.as_ref().is_none_or(|wanted| wanted == v));
                found == *wanted
            })
    }
}

fn terms<'a>(query: &'a Query, key: &str) -> impl Iterator<Item = &'a str> {
    query.get(key).map(|s| s.split(',')).into_iter().flatten().filter(|t| !t.is_empty())
}

/// True if a parameter is given and not `false`.
pub(super) fn flag(query: &Query, key: &str) -> bool {
    query.get(key).is_some_and(|v| !matches!(v.as_str(), "" | "0" | "false"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_path_means_one_thing_or_nothing() {
        let v1 = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        assert_eq!(Route::of(v1), Some(Route::Collection(Version::V1)));
        let item = |name: &str| Some(Route::Item(Version::V1, name.to_owned()));
        assert_eq!(Route::of(&format!("{v1}/system:etcd-peer:m1")), item("system:etcd-peer:m1"));
        assert_eq!(Route::of(&format!("{v1}/system%3Aetcd-peer%3am1")), item("system:etcd-peer:m1"));
        assert_eq!(Route::of(&format!("{v1}/..%2f..%2fetc%2Fpasswd")), item("../../etc/passwd"), "a name of nothing");
        assert_eq!(Route::of(&format!("{v1}/a/approval")), Some(Route::Approval(Version::V1, "a".to_owned())));
        for nothing in [
            "/",
            "/apis/apps/v1",
            "/apis/certificates.k8s.io/v2/certificatesigningrequests",
            &format!("{v1}/a/b"),
            &format!("{v1}/a/approval/x"),
            &format!("{v1}/%zz"),
            &format!("{v1}/%4"),
            &format!("{v1}/%ff"),
        ] {
            assert_eq!(Route::of(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn selectors_are_read_or_refused() {
        let query = |key: &str, value: &str| Query::from([(key.to_owned(), value.to_owned())]);
        let parsed = Selector::parse(&query("fieldSelector", "metadata.name=a"), None).unwrap();
        assert_eq!(parsed.name.as_deref(), Some("a"));
        let labels = Selector::parse(&query("labelSelector", "a=b,c!=d,e,!f,g==h"), None).unwrap().labels;
        let is = |k: &str, v: Option<&str>, w: bool| (k.to_owned(), v.map(str::to_owned), w);
        assert_eq!(
            labels,
            [
                is("a", Some("b"), true),
                is("c", Some("d"), false),
                is("e", None, true),
                is("f", None, false),
                is("g", Some("h"), true)
            ]
        );
        assert!(Selector::parse(&query("fieldSelector", "spec.username=a"), None).is_err());
        assert!(Selector::parse(&query("labelSelector", "a in (b)"), None).is_err());
        assert!(Selector::parse(&query("labelSelector", &"!a,".repeat(MOST_TERMS)), None).is_ok());
        assert!(Selector::parse(&query("labelSelector", &"!a,".repeat(MOST_TERMS + 1)), None).is_err());
    }
}
