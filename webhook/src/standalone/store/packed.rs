//! The JSON of a stored request in fewer bytes: its request and its certificate are kept as DER, which JSON holds in base64 twice
//! over. The text is the same to the byte when it is written out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::encoding;

use crate::ca::der;

/// See the module. One buffer has all bytes: there are thousands of these.
#[derive(Debug)]
pub(super) struct Packed {
    /// The JSON without the values that were taken out, and still JSON.
    text: Box<str>,
    /// The bytes of the values, one after the other.
    bytes: Box<[u8]>,
    /// The values, in the order of their places.
    values: [Option<Value>; 2],
    /// Bytes of the whole JSON.
    length: usize,
}

/// A value that was taken out of the text.
#[derive(Clone, Copy, Debug)]
struct Value {
    /// Its place in the text.
    place: usize,
    /// Where its bytes end.
    end: usize,
    form: Form,
}

/// How the bytes of a value are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// PEM blocks with this label, in the form that they are written in: DER, one after the other.
    Blocks(Label),
    /// As they are.
    Other,
}

/// The label of PEM blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Request,
    Certificate,
}

impl Label {
    const fn text(self) -> &'static str {
        match self {
            Self::Request => "CERTIFICATE REQUEST",
            Self::Certificate => "CERTIFICATE",
        }
    }
}

/// Values of fewer characters stay in the text: a short one may also be found in a key of the JSON, and saves nothing.
const SHORTEST: usize = 64;

/// Bytes that stand in a JSON text in base64, and the label of the PEM blocks that they may be.
pub(super) type Value64<'a> = (&'a [u8], Label);

impl Packed {
    /// Takes these values out of the JSON, each where it is found.
    pub(super) fn new(json: &str, values: [Value64<'_>; 2]) -> Self {
        let mut cuts: Vec<(usize, usize, Value64<'_>)> = Vec::new();
        for (bytes, label) in values {
            let text = STANDARD.encode(bytes);
            // Wherever this text stands: the same is put there again.
            if text.len() >= SHORTEST
                && let Some(at) = json.find(&text)
                && cuts.iter().all(|(other, length, _)| at + text.len() <= *other || other + length <= at)
            {
                cuts.push((at, text.len(), (bytes, label)));
            }
        }
        cuts.sort_unstable_by_key(|(at, ..)| *at);
        // Of their very lengths: what is cut off a longer buffer stays free beside it, too short for the next one.
        let length = json.len() - cuts.iter().map(|(_, length, _)| length).sum::<usize>();
        let (mut text, mut kept, mut end) = (String::with_capacity(length), Vec::new(), 0);
        let mut values = [None; 2];
        for (value, (at, length, (bytes, label))) in values.iter_mut().zip(cuts) {
            text.push_str(&json[end..at]);
            let form = Form::keep(bytes, label, &mut kept);
            *value = Some(Value { place: text.len(), end: kept.len(), form });
            end = at + length;
        }
        text.push_str(&json[end..]);
        Self { text: text.into_boxed_str(), bytes: Box::from(kept.as_slice()), values, length: json.len() }
    }

    /// JSON that lacks the values: they are empty.
    pub(super) fn without_values(&self) -> &str {
        &self.text
    }

    /// Bytes of the whole JSON.
    pub(super) const fn len(&self) -> usize {
        self.length
    }

    /// The whole JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        let (mut json, mut text, mut bytes) = (String::with_capacity(self.length), 0, 0);
        for value in self.values.iter().flatten() {
            let Value { place, end, form } = *value;
            json.push_str(&self.text[text..place]);
            let kept = &self.bytes[bytes..end];
            match form {
                Form::Blocks(label) => STANDARD.encode_string(pem(label, kept), &mut json),
                Form::Other => STANDARD.encode_string(kept, &mut json),
            }
            (text, bytes) = (place, end);
        }
        json.push_str(&self.text[text..]);
        json.into_bytes()
    }
}

impl Form {
    /// Adds to `kept` what is kept of these bytes.
    fn keep(bytes: &[u8], label: Label, kept: &mut Vec<u8>) -> Self {
        match blocks(bytes, label) {
            Some(der) if pem(label, &der).as_bytes() == bytes => {
                kept.extend(der);
                Self::Blocks(label)
            }
            _ => {
                kept.extend(bytes);
                Self::Other
            }
        }
    }
}

/// The DER of the PEM blocks of this label, one after the other; what is between them, and how they are written, is for the
/// caller to compare.
fn blocks(pem: &[u8], label: Label) -> Option<Vec<u8>> {
    let label = label.text();
    let text = std::str::from_utf8(pem).ok()?;
    let (begin, end) = (format!("-----BEGIN {label}-----\n"), format!("-----END {label}-----\n"));
    let mut der = Vec::with_capacity(text.len() * 3 / 4);
    for block in text.split_inclusive(&*end) {
        let body = block.strip_prefix(&*begin)?.strip_suffix(&*end)?;
        let body: String = body.split('\n').collect();
        der.extend(STANDARD.decode(body).ok()?);
    }
    Some(der)
}

/// The PEM text of DER elements that stand one after the other.
fn pem(label: Label, elements: &[u8]) -> String {
    // Nothing that is no DER is in blocks: the text would be another one than it was made of.
    let elements = der::series(elements).unwrap_or_default();
    elements.into_iter().fold(String::new(), |pem, element| pem + &encoding::pem(label.text(), element))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: Label = Label::Request;
    const B: Label = Label::Certificate;

    fn written_out(json: &str, values: [Value64<'_>; 2]) -> Packed {
        let packed = Packed::new(json, values);
        assert_eq!(std::str::from_utf8(&packed.json()).unwrap(), json);
        assert_eq!(packed.len(), json.len());
        serde_json::from_str::<serde_json::Value>(packed.without_values()).unwrap();
        packed
    }

    fn sequence(length: usize) -> Vec<u8> {
        der::tlv(der::SEQUENCE, &vec![7; length])
    }

    #[test]
    fn the_json_is_the_same_to_the_byte() {
        let (one, two) = (pem(A, &sequence(300)), pem(B, &[sequence(400), sequence(20)].concat()));
        let lines = format!("\n{two}");
        let crlf = two.replace('\n', "\r\n");
        let short = two.trim_end();
        let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (first, second, as_der) in [
            (one.as_str(), two.as_str(), [true, true]),
            (&two, &two, [false, true]),
            (&one, &lines, [true, false]),
            (&one, &crlf, [true, false]),
            (&one, short, [true, false]),
            (&one, not_der, [true, false]),
            (&"no PEM".repeat(9), &"x".repeat(48), [false, false]),
        ] {
            let json = serde_json::json!({
                "annotation": first, "other": two,
                "b": STANDARD.encode(first), "a": { "a": STANDARD.encode(second), "c": "ü\"" },
            });
            let packed = written_out(&json.to_string(), [(first.as_bytes(), A), (second.as_bytes(), B)]);
            let is_der: Vec<bool> = packed.values.iter().flatten().map(|value| value.form != Form::Other).collect();
            if first == second {
                // One place, found twice.
                assert_eq!(is_der, [false]);
            } else {
                assert_eq!(is_der, as_der, "{second}");
            }
        }
        let elsewhere = [b'x'; 100];
        assert!(written_out("{}", [(b"", A), (&elsewhere, B)]).bytes.is_empty());
        // These are `metadata` and `kind` in base64.
        let words = ["metadata", "kind"].map(|word| STANDARD.decode(word).unwrap());
        let json = r#"{"kind":"x","metadata":{},"spec":{"request":"metadata"},"status":{"certificate":"kind"}}"#;
        assert_eq!(written_out(json, [(&words[0], A), (&words[1], B)]).without_values(), json);
    }

    #[test]
    fn it_takes_two_thirds_of_the_bytes_at_most() {
        let (one, two) = (pem(A, &sequence(300)), pem(B, &sequence(500)));
        let json = serde_json::json!({ "a": STANDARD.encode(&one), "b": STANDARD.encode(&two) }).to_string();
        let packed = written_out(&json, [(one.as_bytes(), A), (two.as_bytes(), B)]);
        let kept = packed.text.len() + packed.bytes.len();
        assert!(kept * 3 < json.len() * 2, "{kept} of {}", json.len());
    }
}
