//! The client of a controller: a write that an admission policy guards is sent only while that policy is enforced.

use kube::{
    Client,
    client::{Body, ClientBuilder},
};
use tower::filter::FilterLayer;

use super::{
    client::{ClientError, configuration},
    guards::{Access, Gate},
};

/// Connects as [`super::client::connect`] does, with a gate before each call.
///
/// # Errors
/// See [`super::client::connect`].
pub(crate) async fn connect(gate: Gate) -> Result<Client, ClientError> {
    let guarded = FilterLayer::new(move |request: hyper::Request<Body>| {
        let access = Access::of(request.method().as_str(), request.uri().path(), request.uri().query());
        gate.check(&access).map(|()| request).map_err(tower::BoxError::from)
    });
    Ok(ClientBuilder::try_from(configuration().await?)?.with_layer(&guarded).build())
}
