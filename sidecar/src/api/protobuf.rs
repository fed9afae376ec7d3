//! Kubernetes' protobuf: the envelope around an object, and the messages of what is exchanged with the API server.
//!
//! Numbers are those of `generated.proto` in k8s.io/apimachinery and k8s.io/api. Only fields that somebody looks at are
//! declared; the others are passed over. Strings are declared as bytes: the API server checks none for UTF-8, and one that
//! is none must not make its object unreadable. An empty string, a `false` and an empty list are what JSON leaves out.

use bytes::{Buf as _, Bytes};
use k8s_openapi::{
    ByteString,
    api::certificates::v1 as k8s,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta as K8sObjectMeta, Status as K8sStatus},
};
use prost::Message;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What stands before the envelope.
pub const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are not the object that was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unreadable {
    /// No [`MAGIC`].
    #[error("it does not begin as Kubernetes' protobuf does")]
    Magic,
    /// Cut off or damaged.
    #[error("the protobuf is cut off or damaged: {0}")]
    Damaged(#[from] prost::DecodeError),
    /// The content is in a further encoding, which nobody asked for.
    #[error("the content of the protobuf is encoded")]
    Encoded,
    /// Another object.
    #[error("it is a {kind:?} of {api_version:?}, not a {expected}")]
    Kind {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
        /// The kind that was asked for.
        expected: &'static str,
    },
}

/// An object whose kind is known and whose content is unread.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// The object's message.
    pub content: Bytes,
}

impl Envelope {
    /// Reads what is around an object.
    ///
    /// # Errors
    /// All but [`Unreadable::Kind`].
    pub fn open(mut body: Bytes) -> Result<Self, Unreadable> {
        if !body.starts_with(MAGIC) {
            return Err(Unreadable::Magic);
        }
        body.advance(MAGIC.len());
        let Unknown { type_meta, raw, content_encoding } = Unknown::decode(body)?;
        if !content_encoding.is_empty() {
            return Err(Unreadable::Encoded);
        }
        let TypeMeta { api_version, kind } = type_meta.unwrap_or_default();
        Ok(Self { api_version: text(&api_version), kind: text(&kind), content: raw })
    }

    /// The object, if it is one of this kind.
    ///
    /// # Errors
    /// [`Unreadable::Kind`], [`Unreadable::Damaged`].
    pub fn object<M: Message + Default>(self, api_version: &str, kind: &'static str) -> Result<M, Unreadable> {
        if (self.api_version.as_str(), self.kind.as_str()) != (api_version, kind) {
            return Err(Unreadable::Kind { api_version: self.api_version, kind: self.kind, expected: kind });
        }
        Ok(M::decode(self.content)?)
    }
}

/// A string as the API server's JSON has it: a byte that belongs to no UTF-8 is U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// A [`text`] that JSON leaves out when it is empty.
pub fn some_text(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| text(bytes))
}

/// A list that JSON leaves out when it is empty.
pub fn some_list<M, T>(messages: Vec<M>, into: impl FnMut(M) -> T) -> Option<Vec<T>> {
    (!messages.is_empty()).then(|| messages.into_iter().map(into).collect())
}

/// k8s.io.apimachinery.pkg.runtime.Unknown: the envelope.
#[derive(Clone, PartialEq, Message)]
pub struct Unknown {
    /// Of what kind the object is.
    #[prost(message, optional, tag = "1")]
    pub type_meta: Option<TypeMeta>,
    /// The object.
    #[prost(bytes = "bytes", tag = "2")]
    pub raw: Bytes,
    /// Empty: `raw` is the message itself.
    #[prost(bytes = "bytes", tag = "3")]
    pub content_encoding: Bytes,
}

/// k8s.io.apimachinery.pkg.runtime.TypeMeta.
#[derive(Clone, PartialEq, Message)]
pub struct TypeMeta {
    /// `apiVersion`.
    #[prost(bytes = "bytes", tag = "1")]
    pub api_version: Bytes,
    /// `kind`.
    #[prost(bytes = "bytes", tag = "2")]
    pub kind: Bytes,
}

/// k8s.io.apimachinery.pkg.apis.meta.v1.ObjectMeta.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectMeta {
    /// `name`.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// `generateName`.
    #[prost(bytes = "bytes", tag = "2")]
    pub generate_name: Bytes,
    /// `namespace`.
    #[prost(bytes = "bytes", tag = "3")]
    pub namespace: Bytes,
    /// `uid`.
    #[prost(bytes = "bytes", tag = "5")]
    pub uid: Bytes,
    /// `resourceVersion`.
    #[prost(bytes = "bytes", tag = "6")]
    pub resource_version: Bytes,
    /// `deletionTimestamp`.
    #[prost(message, optional, tag = "9")]
    pub deletion_timestamp: Option<Time>,
    /// `labels`.
    #[prost(message, repeated, tag = "11")]
    pub labels: Vec<Entry>,
    /// `annotations`.
    #[prost(message, repeated, tag = "12")]
    pub annotations: Vec<Entry>,
}

/// An entry of a map of strings, which protobuf writes as a list.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// k8s.io.apimachinery.pkg.apis.meta.v1.Time.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Time {
    /// Seconds since 1970; none in Go's zero time. (Fractions are never written.)
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
}

/// k8s.io.apimachinery.pkg.apis.meta.v1.Status.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// `message`.
    #[prost(bytes = "bytes", tag = "3")]
    pub message: Bytes,
    /// `reason`.
    #[prost(bytes = "bytes", tag = "4")]
    pub reason: Bytes,
    /// `code`: the HTTP status.
    #[prost(int32, tag = "6")]
    pub code: i32,
}

/// k8s.io.api.certificates.v1.CertificateSigningRequest.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateSigningRequest {
    /// `metadata`.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    /// `spec`.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<CertificateSigningRequestSpec>,
    /// `status`.
    #[prost(message, optional, tag = "3")]
    pub status: Option<CertificateSigningRequestStatus>,
}

/// k8s.io.api.certificates.v1.CertificateSigningRequestSpec, without the requester's identity.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateSigningRequestSpec {
    /// `request`.
    #[prost(bytes = "bytes", tag = "1")]
    pub request: Bytes,
    /// `usages`.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub usages: Vec<Bytes>,
    /// `signerName`.
    #[prost(bytes = "bytes", tag = "7")]
    pub signer_name: Bytes,
    /// `expirationSeconds`.
    #[prost(int32, optional, tag = "8")]
    pub expiration_seconds: Option<i32>,
}

/// k8s.io.api.certificates.v1.CertificateSigningRequestStatus.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateSigningRequestStatus {
    /// `conditions`.
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<CertificateSigningRequestCondition>,
    /// `certificate`.
    #[prost(bytes = "bytes", tag = "2")]
    pub certificate: Bytes,
}

/// k8s.io.api.certificates.v1.CertificateSigningRequestCondition.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateSigningRequestCondition {
    /// `type`.
    #[prost(bytes = "bytes", tag = "1")]
    pub type_: Bytes,
    /// `reason`.
    #[prost(bytes = "bytes", tag = "2")]
    pub reason: Bytes,
    /// `message`.
    #[prost(bytes = "bytes", tag = "3")]
    pub message: Bytes,
    /// `status`.
    #[prost(bytes = "bytes", tag = "6")]
    pub status: Bytes,
}

/// With the names, the uid, what is asked and what came of it: all that a requester looks at.
impl From<CertificateSigningRequest> for k8s::CertificateSigningRequest {
    fn from(message: CertificateSigningRequest) -> Self {
        let metadata = message.metadata.unwrap_or_default();
        let spec = message.spec.unwrap_or_default();
        let condition = |condition: CertificateSigningRequestCondition| k8s::CertificateSigningRequestCondition {
            type_: text(&condition.type_),
            status: text(&condition.status),
            reason: some_text(&condition.reason),
            message: some_text(&condition.message),
            ..k8s::CertificateSigningRequestCondition::default()
        };
        Self {
            metadata: K8sObjectMeta {
                name: some_text(&metadata.name),
                uid: some_text(&metadata.uid),
                resource_version: some_text(&metadata.resource_version),
                ..K8sObjectMeta::default()
            },
            spec: k8s::CertificateSigningRequestSpec {
                request: ByteString(spec.request.into()),
                signer_name: text(&spec.signer_name),
                usages: some_list(spec.usages, |usage| text(&usage)),
                expiration_seconds: spec.expiration_seconds,
                ..k8s::CertificateSigningRequestSpec::default()
            },
            status: message.status.map(|status| k8s::CertificateSigningRequestStatus {
                conditions: some_list(status.conditions, condition),
                certificate: (!status.certificate.is_empty()).then(|| ByteString(status.certificate.into())),
            }),
        }
    }
}

/// With message, reason and code.
impl From<Status> for K8sStatus {
    fn from(message: Status) -> Self {
        Self {
            message: some_text(&message.message),
            reason: some_text(&message.reason),
            code: (message.code != 0).then_some(message.code),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seal(api_version: &'static str, kind: &'static str, content: Vec<u8>) -> Unknown {
        let type_meta = Some(TypeMeta { api_version: api_version.into(), kind: kind.into() });
        Unknown { type_meta, raw: content.into(), content_encoding: Bytes::new() }
    }

    fn bytes(envelope: &Unknown) -> Bytes {
        [MAGIC, &envelope.encode_to_vec()].concat().into()
    }

    fn sample() -> Status {
        Status { message: "gone".into(), reason: "NotFound".into(), code: 404 }
    }

    #[test]
    fn an_object_is_read_if_it_is_of_the_kind() {
        let envelope = seal("v1", "Status", sample().encode_to_vec());
        let open = || Envelope::open(bytes(&envelope)).unwrap();
        assert_eq!(open().object::<Status>("v1", "Status").unwrap(), sample());
        for (api_version, kind) in [("v2", "Status"), ("v1", "Pod"), ("", "")] {
            let error = open().object::<Status>(api_version, kind).unwrap_err();
            assert!(matches!(error, Unreadable::Kind { .. }), "{error}");
        }
        let encoded = Unknown { content_encoding: "gzip".into(), ..envelope };
        assert!(matches!(Envelope::open(bytes(&encoded)), Err(Unreadable::Encoded)));
        for json in [&b"{}"[..], b"", b"k8s"] {
            assert!(matches!(Envelope::open(Bytes::copy_from_slice(json)), Err(Unreadable::Magic)));
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let whole = bytes(&seal("v1", "Status", sample().encode_to_vec()));
        let read = |body: Bytes| Envelope::open(body)?.object::<Status>("v1", "Status");
        assert_eq!(read(whole.clone()).unwrap(), sample());
        for cut in 0..whole.len() {
            assert!(read(whole.slice(..cut)).ok() != Some(sample()), "{cut}");
        }
        for i in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.to_vec();
                flipped[i] ^= 1 << bit;
                let _ = read(flipped.into());
            }
        }
        let cut = sample().encode_to_vec();
        let error = read(bytes(&seal("v1", "Status", cut[..cut.len() - 1].to_vec()))).unwrap_err();
        assert!(matches!(error, Unreadable::Damaged(_)), "{error}");
    }

    #[test]
    fn what_is_no_utf_8_is_replaced_as_go_replaces_it() {
        assert_eq!(text("a\u{e9}".as_bytes()), "a\u{e9}");
        // A byte each, where from_utf8_lossy makes one of a character that is cut off.
        assert_eq!(text(b"a\xe2\x82b\xff"), "a\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!((some_text(b""), some_text(b"\xff").as_deref()), (None, Some("\u{fffd}")));
    }
}
