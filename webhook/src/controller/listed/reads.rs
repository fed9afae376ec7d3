//! Reads of a source's objects without a watch that lasts: one by its name, and all of them once.

use futures::StreamExt;
use http_body_util::BodyExt;
use kube::{Client, api::GetParams, core::Request};
use tokio::time::timeout;

use super::{
    answer::{BodyStream, Object, object, refusal},
    events::{Event, Events, Source, WatchError},
};
use crate::controller::{
    client::{ApiServerError, REQUEST_TIMEOUT},
    projection::{Piece, Projection},
};

impl Source {
    /// One of its objects as it is now; `None`: there is none.
    ///
    /// # Errors
    /// The request's.
    pub(crate) async fn get<T: Object>(&self, client: &Client, name: &str) -> Result<Option<T>, ApiServerError> {
        let build = |error| ApiServerError::Api(kube::Error::BuildRequest(error));
        let request = Request::new(&self.path).get(name, &GetParams::default()).map_err(build)?;
        let read = async {
            let answer = client.send(request.map(Into::into)).await?;
            let status = answer.status().as_u16();
            let mut body: BodyStream = Box::pin(answer.into_body().into_data_stream());
            if status >= 400 {
                let error = refusal(status, &mut body).await;
                return if error.is_not_found() { Ok(None) } else { Err(error) };
            }
            let mut projection = Projection::new(self.tree(&[], &[]), self.limit);
            let mut found = None;
            while let Some(chunk) = body.next().await {
                let broken = projection.push(&chunk?, |piece| {
                    if let Piece::Whole(kept) = piece {
                        found = Some(object(&kept));
                    }
                });
                broken.map_err(|error| kube::Error::Service(Box::new(error)))?;
            }
            // An answer that ends too soon does not say that there is no such object.
            let found = found.ok_or(ApiServerError::Incomplete)?;
            found.map(Some).map_err(|error| kube::Error::SerdeError(error).into())
        };
        timeout(REQUEST_TIMEOUT, read).await.map_err(|_| ApiServerError::Timeout)?
    }

    /// Shows all of its objects, as they are now, to `see`.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub(crate) async fn each<T: Object>(&self, client: &Client, mut see: impl FnMut(T)) -> Result<(), WatchError> {
        let mut events = Events::new(client.clone(), self.clone());
        loop {
            match events.next().await? {
                Event::Listed(object) => see(object),
                Event::Complete => return Ok(()),
                _ => {}
            }
        }
    }
}
