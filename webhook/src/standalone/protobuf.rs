//! Bodies in Kubernetes' protobuf encoding, read into the JSON that they stand for.
//!
//! kubectl and the generated clients of client-go send objects so by default, and do not try again in JSON where a server
//! refuses. They all accept JSON in answer, so nothing is ever written in protobuf. Only the two kinds that are sent to this
//! resource are known, with the fields that are looked at; others are passed over, as protobuf means it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use etcd_tls_sidecar::api::protobuf::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec, Entry, Envelope,
    ObjectMeta,
};
use prost::Message;
use serde_json::{Map, Value, json};

pub use etcd_tls_sidecar::api::protobuf::MEDIA_TYPE;

/// Reads an object: its envelope, then by its kind.
///
/// # Errors
/// Not the encoding, or another kind.
pub fn read(bytes: &[u8]) -> Result<Value, String> {
    let Envelope { api_version, kind, content } =
        Envelope::open(Bytes::copy_from_slice(bytes)).map_err(|e| e.to_string())?;
    let mut object = match kind.as_str() {
        "CertificateSigningRequest" => request(&message(content)?)?,
        "DeleteOptions" => delete_options(&message(content)?)?,
        other => return Err(format!("{other:?} is not a kind that is read here")),
    };
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

type Object = Map<String, Value>;

/// k8s.io.apimachinery.pkg.apis.meta.v1.DeleteOptions.
#[derive(Clone, PartialEq, Message)]
struct DeleteOptions {
    #[prost(message, optional, tag = "2")]
    preconditions: Option<Preconditions>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    dry_run: Vec<Bytes>,
}

/// k8s.io.apimachinery.pkg.apis.meta.v1.Preconditions.
#[derive(Clone, PartialEq, Message)]
struct Preconditions {
    #[prost(bytes = "bytes", tag = "1")]
    uid: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    resource_version: Bytes,
}

fn message<M: Message + Default>(content: Bytes) -> Result<M, String> {
    M::decode(content).map_err(|e| format!("the protobuf is cut off or damaged: {e}"))
}

fn request(message: &CertificateSigningRequest) -> Result<Object, String> {
    let mut object = Object::new();
    if let Some(of) = &message.metadata {
        object.insert("metadata".to_owned(), Value::Object(metadata(of)?));
    }
    if let Some(of) = &message.spec {
        object.insert("spec".to_owned(), Value::Object(spec(of)?));
    }
    if let Some(of) = &message.status {
        // A certificate is the signer's to say.
        let mut status = Object::new();
        list(&mut status, "conditions", &of.conditions, condition)?;
        object.insert("status".to_owned(), Value::Object(status));
    }
    Ok(object)
}

fn metadata(message: &ObjectMeta) -> Result<Object, String> {
    let mut object = Object::new();
    put(&mut object, "name", &message.name)?;
    put(&mut object, "generateName", &message.generate_name)?;
    put(&mut object, "uid", &message.uid)?;
    put(&mut object, "resourceVersion", &message.resource_version)?;
    map(&mut object, "labels", &message.labels)?;
    map(&mut object, "annotations", &message.annotations)?;
    Ok(object)
}

/// Identity is taken from the connection, never from here.
fn spec(message: &CertificateSigningRequestSpec) -> Result<Object, String> {
    let mut object = Object::new();
    if !message.request.is_empty() {
        object.insert("request".to_owned(), json!(STANDARD.encode(&message.request)));
    }
    list(&mut object, "usages", &message.usages, |usage| Ok(json!(text(usage)?)))?;
    put(&mut object, "signerName", &message.signer_name)?;
    if let Some(seconds) = message.expiration_seconds {
        object.insert("expirationSeconds".to_owned(), json!(seconds));
    }
    Ok(object)
}

fn condition(message: &CertificateSigningRequestCondition) -> Result<Value, String> {
    let mut object = Object::new();
    put(&mut object, "type", &message.type_)?;
    put(&mut object, "reason", &message.reason)?;
    put(&mut object, "message", &message.message)?;
    put(&mut object, "status", &message.status)?;
    Ok(Value::Object(object))
}

fn delete_options(message: &DeleteOptions) -> Result<Object, String> {
    let mut object = Object::new();
    if let Some(of) = &message.preconditions {
        let mut preconditions = Object::new();
        put(&mut preconditions, "uid", &of.uid)?;
        put(&mut preconditions, "resourceVersion", &of.resource_version)?;
        object.insert("preconditions".to_owned(), Value::Object(preconditions));
    }
    list(&mut object, "dryRun", &message.dry_run, |stage| Ok(json!(text(stage)?)))?;
    Ok(object)
}

/// What others send is taken as it is or not at all.
fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a string is no UTF-8".to_owned())
}

/// A string; an empty one is the same as none.
fn put(object: &mut Object, key: &str, bytes: &[u8]) -> Result<(), String> {
    if !bytes.is_empty() {
        object.insert(key.to_owned(), json!(text(bytes)?));
    }
    Ok(())
}

/// A list; an empty one is the same as none.
fn list<M>(
    object: &mut Object,
    key: &str,
    messages: &[M],
    value: impl Fn(&M) -> Result<Value, String>,
) -> Result<(), String> {
    if !messages.is_empty() {
        object.insert(key.to_owned(), messages.iter().map(value).collect::<Result<_, _>>()?);
    }
    Ok(())
}

/// A map of strings; an empty one is the same as none.
fn map(object: &mut Object, key: &str, entries: &[Entry]) -> Result<(), String> {
    if !entries.is_empty() {
        let pair = |Entry { key, value }: &Entry| Ok((text(key)?.to_owned(), json!(text(value)?)));
        let map = entries.iter().map(pair).collect::<Result<Object, String>>()?;
        object.insert(key.to_owned(), Value::Object(map));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use super::*;

    const MAGIC: &[u8] = b"k8s\0";

    fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
        assert!(value.len() < 128 && number < 16);
        [&[number << 3 | 2, value.len() as u8], value].concat()
    }

    fn envelope(kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, b"certificates.k8s.io/v1"), bytes(2, kind.as_bytes())].concat();
        [MAGIC, &bytes(1, &meta), &bytes(2, raw), &bytes(3, b""), &bytes(4, b"")].concat()
    }

    fn sample() -> Vec<u8> {
        let label = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let metadata = [bytes(1, b"a"), bytes(2, b""), bytes(11, &label), vec![7 << 3, 0]].concat();
        let spec = [bytes(1, b"PEM"), bytes(2, b"forged"), bytes(5, b"client auth"), vec![8 << 3, 0xd8, 0x04]].concat();
        let condition = [bytes(1, b"Approved"), bytes(6, b"True"), bytes(4, &[8, 1])].concat();
        let status = [bytes(1, &condition), bytes(2, b"forged")].concat();
        envelope("CertificateSigningRequest", &[bytes(1, &metadata), bytes(2, &spec), bytes(3, &status)].concat())
    }

    #[test]
    fn an_object_is_read_without_what_it_may_not_say() {
        let object = read(&sample()).unwrap();
        assert_eq!(
            object,
            json!({
                "apiVersion": "certificates.k8s.io/v1",
                "kind": "CertificateSigningRequest",
                "metadata": { "name": "a", "labels": { "k": "v" } },
                "spec": { "request": "UEVN", "usages": ["client auth"], "expirationSeconds": 600 },
                "status": { "conditions": [{ "type": "Approved", "status": "True" }] },
            })
        );
        let options = envelope("DeleteOptions", &[bytes(2, &bytes(1, b"u")), bytes(5, b"All")].concat());
        let options = read(&options).unwrap();
        assert_eq!((&options["preconditions"]["uid"], &options["dryRun"][0]), (&json!("u"), &json!("All")));
    }

    #[test]
    fn a_number_may_be_negative_and_a_string_must_be_one() {
        let spec = |spec: &[u8]| read(&envelope("CertificateSigningRequest", &bytes(2, spec)));
        let minus_one = [&[8 << 3][..], &[0xff; 9], &[1]].concat();
        assert_eq!(spec(&minus_one).unwrap()["spec"]["expirationSeconds"], json!(-1));
        assert_eq!(spec(&bytes(7, b"\xff")).unwrap_err(), "a string is no UTF-8");
        // A field that nobody looks at is not looked at.
        assert_eq!(spec(&bytes(2, b"\xff")).unwrap()["spec"], json!({}));
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let whole = sample();
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]);
        }
        for bad in [&b""[..], b"k8s", b"{}", b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"k8s\0\x12\x7f"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read(&envelope("Pod", b"")).is_err());
        for i in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[i] ^= 0xff;
            let _ = read(&flipped);
        }
    }
}
