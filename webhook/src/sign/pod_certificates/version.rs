//! Which version of PodCertificateRequests the API server serves.

use kube::Client;

use crate::controller::client::{ApiServerError, within};

pub(super) const GROUP: &str = "certificates.k8s.io";
/// The versions that are used, the preferred one first.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const RESOURCE: &str = "podcertificaterequests";

/// The version of the API that is served, such as `certificates.k8s.io/v1beta1`; `None`: none that is used.
///
/// # Errors
/// The API server cannot be asked.
pub(in crate::sign) async fn served(client: &Client) -> Result<Option<String>, ApiServerError> {
    for version in VERSIONS {
        let api_version = format!("{GROUP}/{version}");
        match within(client.list_api_group_resources(&api_version)).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == RESOURCE) => {
                return Ok(Some(api_version));
            }
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        convert::Infallible,
        future::{Ready, ready},
        task::{Context, Poll},
    };

    use http_body_util::Full;
    use hyper::{Request, Response, body::Bytes};
    use serde_json::json;

    use super::*;

    /// An API server that serves these versions of the group, each with these resources; an empty version fails.
    #[derive(Clone)]
    struct Versions(Vec<(&'static str, Vec<&'static str>)>);

    impl tower::Service<Request<kube::client::Body>> for Versions {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
            let asked = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let found = self.0.iter().find(|(version, _)| *version == asked);
            let (code, body) = match found {
                Some((_, names)) if names.is_empty() => {
                    (500, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500}))
                }
                Some((_, names)) => {
                    let resource = |name: &&str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "K", "verbs": ["get"]});
                    let resources: Vec<_> = names.iter().map(resource).collect();
                    let version = format!("{GROUP}/{asked}");
                    (
                        200,
                        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}),
                    )
                }
                None => (
                    404,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"}),
                ),
            };
            ready(Ok(Response::builder().status(code).body(Full::new(body.to_string().into())).unwrap()))
        }
    }

    #[tokio::test]
    async fn v1_is_preferred_and_v1beta1_does() {
        let csr = || vec!["certificatesigningrequests"];
        let both = || vec!["certificatesigningrequests", RESOURCE];
        for (versions, expected) in [
            // As in 1.36 with and without the gate, and as in a version that serves v1 alone or both.
            (vec![("v1", csr()), ("v1beta1", vec![RESOURCE, "podcertificaterequests/status"])], Some("v1beta1")),
            (vec![("v1", csr())], None),
            (vec![("v1", both())], Some("v1")),
            (vec![("v1beta1", vec![RESOURCE]), ("v1", both())], Some("v1")),
            (vec![], None),
        ] {
            let client = Client::new(Versions(versions.clone()), "default");
            let expected = expected.map(|version| format!("{GROUP}/{version}"));
            assert_eq!(served(&client).await.unwrap(), expected, "{versions:?}");
        }
        // One that fails is no answer.
        let client = Client::new(Versions(vec![("v1", vec![]), ("v1beta1", vec![RESOURCE])]), "default");
        assert!(served(&client).await.is_err());
    }
}
