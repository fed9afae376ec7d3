//! A list of requests, written as it is sent: however long it is, it takes the memory of one chunk.

use std::{convert::Infallible, sync::Arc};

use actix_web::{HttpResponse, body::SizedStream};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use jiff::Timestamp;
use serde_json::json;
use tokio::task::{spawn_blocking, yield_now};

use crate::standalone::{
    error::ApiError,
    http::table::{self, Form},
    limits::Permit,
    store::StoredRequest,
    version::Version,
};

/// Bytes that are written together; one item may be larger.
const CHUNK: usize = 32 * 1024;

/// One page of requests, as they were at one revision.
pub struct List {
    /// The requests, in the order of their names.
    pub page: Vec<Arc<StoredRequest>>,
    /// The revision.
    pub revision: u64,
    /// The token of the next page, and how many requests are left.
    pub next: Option<(String, usize)>,
    /// In whose words.
    pub version: Version,
    /// In which form.
    pub form: Form,
    /// When it is asked for.
    pub now: Timestamp,
    /// One of the lists that the caller may have; `None` for a list of one request.
    pub permit: Option<Permit>,
}

impl List {
    /// The answer: its length is said first, its items are written while they are sent.
    ///
    /// # Errors
    /// [`ApiError::Internal`]: this process has no thread to count with.
    pub async fn response(self) -> Result<HttpResponse, ApiError> {
        let mut metadata = json!({ "resourceVersion": self.revision.to_string() });
        if let Some((token, remaining)) = &self.next {
            metadata["continue"] = json!(token);
            metadata["remainingItemCount"] = json!(remaining);
        }
        let (head, tail) = table::frame(&metadata, self.version, self.form);
        let list = Arc::new(self);
        // Rows are made to be counted and made again to be sent: a row costs less than to keep all of them.
        let counted = Arc::clone(&list);
        let items = match list.form {
            Form::Object => list.length(),
            Form::Table(_) => spawn_blocking(move || counted.length())
                .await
                .map_err(|_| ApiError::Internal("the list could not be counted".to_owned()))?,
        };
        let length = head.len() + items + tail.len();
        let body = SizedStream::new(u64::try_from(length).unwrap_or(u64::MAX), list.into_stream(head, tail));
        Ok(HttpResponse::Ok().content_type("application/json").body(body))
    }

    fn item(&self, position: usize) -> Option<[Bytes; 2]> {
        self.page.get(position).map(|stored| table::item(stored, self.version, self.form, self.now))
    }

    /// Bytes of all items and the commas between them.
    fn length(&self) -> usize {
        let items = self.page.iter().map(|stored| table::size(stored, self.version, self.form, self.now));
        items.sum::<usize>() + self.page.len().saturating_sub(1)
    }

    fn into_stream(self: Arc<Self>, head: String, tail: &'static str) -> impl Stream<Item = Result<Bytes, Infallible>> {
        // The position after the last item is the tail's.
        stream::unfold((self, head, 0), move |(list, mut head, mut position)| async move {
            if position > list.page.len() {
                return None;
            }
            // Let this thread serve other requests in between.
            yield_now().await;
            let mut chunk = BytesMut::from(std::mem::take(&mut head).as_bytes());
            while chunk.len() < CHUNK {
                match list.item(position) {
                    Some(parts) => {
                        if position > 0 {
                            chunk.extend_from_slice(b",");
                        }
                        parts.iter().for_each(|part| chunk.extend_from_slice(part));
                        position += 1;
                    }
                    None => {
                        chunk.extend_from_slice(tail.as_bytes());
                        position += 1;
                        break;
                    }
                }
            }
            Some((Ok(chunk.freeze()), (list, head, position)))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    use serde_json::Value;

    use super::*;
    use crate::standalone::http::table::Include;

    fn list(count: usize, version: Version, form: Form) -> List {
        let page = (0..count).map(|i| {
            let mut csr = CertificateSigningRequest::default();
            csr.metadata.name = Some(format!("r{i}"));
            csr.spec.request.0 = vec![b'x'; 2000];
            Arc::new(StoredRequest::new(&csr))
        });
        let (revision, now) = (7, Timestamp::UNIX_EPOCH);
        List { page: page.collect(), revision, next: Some(("t".to_owned(), 3)), version, form, now, permit: None }
    }

    #[tokio::test]
    async fn a_list_is_as_long_as_it_says_and_comes_in_chunks() {
        for (version, form) in [
            (Version::V1, Form::Object),
            (Version::V1beta1, Form::Object),
            (Version::V1, Form::Table(Include::Metadata)),
            (Version::V1, Form::Table(Include::None)),
            (Version::V1beta1, Form::Table(Include::Object)),
        ] {
            for count in [0, 1, 2, 100] {
                let list = Arc::new(list(count, version, form));
                let items = list.length();
                let metadata = json!({ "resourceVersion": "7" });
                let (head, tail) = table::frame(&metadata, version, form);
                let length = head.len() + items + tail.len();
                let chunks: Vec<Bytes> = list.into_stream(head, tail).map(Result::unwrap).collect().await;
                let largest = chunks.iter().map(Bytes::len).max().unwrap();
                assert!(largest < CHUNK + 8192, "{largest}");
                let all = chunks.concat();
                assert_eq!(all.len(), length, "{version:?} {form:?} {count}");
                let value: Value = serde_json::from_slice(&all).unwrap();
                let key = if form == Form::Object { "items" } else { "rows" };
                assert_eq!(value[key].as_array().map(Vec::len), Some(count));
            }
        }
    }
}
