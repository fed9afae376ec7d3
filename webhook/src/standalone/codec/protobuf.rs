//! Bodies in Kubernetes' protobuf encoding, read into the JSON that they stand for.
//!
//! kubectl and the generated clients of client-go send objects so by default, and do not try again in JSON where a server
//! refuses. They all accept JSON in answer, so nothing is ever written in protobuf. Only the two kinds that are sent to this
//! resource are known, with the fields that are looked at; others are passed over, as protobuf means it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The prefix of the envelope.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It does not begin with the magic number.
    #[error("the body does not begin as Kubernetes' protobuf does")]
    Envelope,
    /// The envelope names an encoding of the content.
    #[error("the content is encoded")]
    Encoded,
    /// An object of another kind.
    #[error("{0:?} is not a kind that is read here")]
    Kind(String),
    /// A string that is not text.
    #[error("a string is no UTF-8")]
    Text,
    /// A field that ends too early or has an unknown type.
    #[error("the protobuf is cut off or damaged")]
    Damaged,
}

/// Reads an object: its envelope, then by its kind.
///
/// # Errors
/// Not the encoding, or another kind.
pub fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(DecodeError::Envelope)?;
    let mut api_version = String::new();
    let mut kind = String::new();
    let mut raw: &[u8] = &[];
    for field in Fields(envelope) {
        match field? {
            (1, Field::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Field::Bytes(b)) => api_version = text(b)?,
                        (2, Field::Bytes(b)) => kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Field::Bytes(b)) => raw = b,
            (3, Field::Bytes(encoding)) if !encoding.is_empty() => return Err(DecodeError::Encoded),
            _ => {}
        }
    }
    let mut object = match kind.as_str() {
        "CertificateSigningRequest" => request(raw)?,
        "DeleteOptions" => delete_options(raw)?,
        other => return Err(DecodeError::Kind(other.to_owned())),
    };
    object.insert("apiVersion".to_owned(), json!(api_version));
    object.insert("kind".to_owned(), json!(kind));
    Ok(Value::Object(object))
}

type Object = Map<String, Value>;

fn request(bytes: &[u8]) -> Result<Object, DecodeError> {
    let mut object = Object::new();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(b)) => object.insert("metadata".to_owned(), Value::Object(metadata(b)?)),
            (2, Field::Bytes(b)) => object.insert("spec".to_owned(), Value::Object(spec(b)?)),
            (3, Field::Bytes(b)) => object.insert("status".to_owned(), Value::Object(status(b)?)),
            _ => None,
        };
    }
    Ok(object)
}

fn metadata(bytes: &[u8]) -> Result<Object, DecodeError> {
    let mut object = Object::new();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(b)) => put(&mut object, "name", b)?,
            (2, Field::Bytes(b)) => put(&mut object, "generateName", b)?,
            (5, Field::Bytes(b)) => put(&mut object, "uid", b)?,
            (6, Field::Bytes(b)) => put(&mut object, "resourceVersion", b)?,
            (11, Field::Bytes(b)) => entry(&mut object, "labels", b)?,
            (12, Field::Bytes(b)) => entry(&mut object, "annotations", b)?,
            _ => {}
        }
    }
    Ok(object)
}

fn spec(bytes: &[u8]) -> Result<Object, DecodeError> {
    let mut object = Object::new();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(b)) => {
                object.insert("request".to_owned(), json!(STANDARD.encode(b)));
            }
            (5, Field::Bytes(b)) => push(&mut object, "usages", json!(text(b)?)),
            (7, Field::Bytes(b)) => put(&mut object, "signerName", b)?,
            (8, Field::Number(n)) => {
                // An int32: a negative one is written as if it were an int64.
                #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
                object.insert("expirationSeconds".to_owned(), json!(n as i64 as i32));
            }
            // Identity is taken from the connection, never from here.
            _ => {}
        }
    }
    Ok(object)
}

fn status(bytes: &[u8]) -> Result<Object, DecodeError> {
    let mut object = Object::new();
    for field in Fields(bytes) {
        if let (1, Field::Bytes(b)) = field? {
            let mut condition = Object::new();
            for field in Fields(b) {
                match field? {
                    (1, Field::Bytes(b)) => put(&mut condition, "type", b)?,
                    (2, Field::Bytes(b)) => put(&mut condition, "reason", b)?,
                    (3, Field::Bytes(b)) => put(&mut condition, "message", b)?,
                    (6, Field::Bytes(b)) => put(&mut condition, "status", b)?,
                    _ => {}
                }
            }
            push(&mut object, "conditions", Value::Object(condition));
        }
    }
    Ok(object)
}

fn delete_options(bytes: &[u8]) -> Result<Object, DecodeError> {
    let mut object = Object::new();
    for field in Fields(bytes) {
        match field? {
            (2, Field::Bytes(b)) => {
                let mut preconditions = Object::new();
                for field in Fields(b) {
                    match field? {
                        (1, Field::Bytes(b)) => put(&mut preconditions, "uid", b)?,
                        (2, Field::Bytes(b)) => put(&mut preconditions, "resourceVersion", b)?,
                        _ => {}
                    }
                }
                object.insert("preconditions".to_owned(), Value::Object(preconditions));
            }
            (5, Field::Bytes(b)) => push(&mut object, "dryRun", json!(text(b)?)),
            _ => {}
        }
    }
    Ok(object)
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Text)
}

/// A string; an empty one is the same as none.
fn put(object: &mut Object, key: &str, bytes: &[u8]) -> Result<(), DecodeError> {
    if !bytes.is_empty() {
        object.insert(key.to_owned(), json!(text(bytes)?));
    }
    Ok(())
}

fn push(object: &mut Object, key: &str, value: Value) {
    if let Value::Array(list) = object.entry(key).or_insert_with(|| json!([])) {
        list.push(value);
    }
}

/// One entry of a map of strings.
fn entry(object: &mut Object, key: &str, bytes: &[u8]) -> Result<(), DecodeError> {
    let (mut name, mut value) = (String::new(), String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(b)) => name = text(b)?,
            (2, Field::Bytes(b)) => value = text(b)?,
            _ => {}
        }
    }
    object.entry(key).or_insert_with(|| json!({}))[name] = json!(value);
    Ok(())
}

/// A field's value, as far as the wire tells its type.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message, with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // The rest cannot be parsed.
            self.0 = &[];
        }
        Some(field.ok_or(DecodeError::Damaged))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, field))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use super::*;

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
