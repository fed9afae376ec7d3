//! The DER elements that are encoded and decoded here, and dates in the form of X.509.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use x509_cert::der::{self, Decode as _, ErrorKind, Header, Reader as _, SliceReader, Tag};

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const UTF8_STRING: u8 = 0x0c;

/// The subject of a DER certificate, as the very bytes that stand in it.
///
/// # Errors
/// `certificate` is not a whole version 3 certificate.
pub(crate) fn subject(certificate: &[u8]) -> der::Result<Vec<u8>> {
    field(certificate, 5).map(<[u8]>::to_vec)
}

/// The SubjectPublicKeyInfo of a DER certificate.
///
/// # Errors
/// `certificate` is not a whole version 3 certificate.
pub(crate) fn public_key(certificate: &[u8]) -> der::Result<&[u8]> {
    field(certificate, 6)
}

/// A field of what is signed of a certificate.
fn field(certificate: &[u8], place: usize) -> der::Result<&[u8]> {
    let outer = elements(certificate)?;
    let fields = elements(outer.first().copied().unwrap_or_default())?;
    // A version 1 certificate has no version field; it is no CA, so it does not come this far.
    fields
        .get(place)
        .copied()
        .ok_or_else(|| ErrorKind::TagUnexpected { expected: Some(Tag::Sequence), actual: Tag::Null }.into())
}

/// The elements of a DER SEQUENCE, each with its tag and length.
///
/// # Errors
/// `der` is not DER.
pub(crate) fn elements(der: &[u8]) -> der::Result<Vec<&[u8]>> {
    let mut reader = SliceReader::new(der)?;
    Header::decode(&mut reader)?;
    rest(reader)
}

/// DER elements that stand one after the other, each with its tag and length.
///
/// # Errors
/// `der` is not DER.
pub(crate) fn series(der: &[u8]) -> der::Result<Vec<&[u8]>> {
    rest(SliceReader::new(der)?)
}

fn rest<'a>(mut reader: SliceReader<'a>) -> der::Result<Vec<&'a [u8]>> {
    let mut elements = Vec::with_capacity(8);
    while !reader.is_finished() {
        elements.push(reader.tlv_bytes()?);
    }
    Ok(elements)
}

/// One DER element.
pub(crate) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let mut out = Vec::with_capacity(length + 5);
    out.push(tag);
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out.push(short);
    } else {
        let bytes = length.to_be_bytes();
        let bytes = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        #[allow(clippy::cast_possible_truncation, reason = "a usize has at most 8 bytes")]
        out.push(0x80 | bytes.len() as u8);
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(value);
    out
}

/// `t` as a date that X.509 can say, to the second; `None` outside the years 1970 to 9999.
pub(crate) fn date(t: SystemTime) -> Option<OffsetDateTime> {
    let seconds = t.duration_since(UNIX_EPOCH).ok()?.as_secs();
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}
