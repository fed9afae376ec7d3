//! The strict reader, outside in: PEM, DER, key, self-signature, subject, attributes, names.

use std::net::IpAddr;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use x509_cert::{
    attr::Attributes,
    der::{
        self, Decode as _, Encode as _, Reader as _, SliceReader, Tag, Tagged as _,
        asn1::{Any, ObjectIdentifier, PrintableStringRef, UintRef, Utf8StringRef},
    },
    ext::{
        Extensions,
        pkix::name::{GeneralName, GeneralNames},
    },
    name::Name,
    request::CertReq,
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};

use super::{CsrError, MAX_REQUEST, Request};
use crate::{key::KeyAlgorithm, names, san::Sans};

const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");

fn error(reason: &'static str, message: impl Into<String>) -> CsrError {
    CsrError { reason, message: message.into() }
}

/// See [`Request::parse`].
pub(super) fn request(pem: &[u8]) -> Result<Request, CsrError> {
    let der = unpem(pem)?;
    let not_der = |what: &str| error("NotDer", format!("the request is {what}"));
    let parsed = CertReq::from_der(&der).map_err(|e| not_der(&format!("no PKCS#10 request in DER: {e}")))?;
    // The reader accepts some BER (an explicit FALSE, for example). Input that does not encode to the same bytes again is not
    // DER.
    if parsed.to_der().map_err(|e| not_der(&e.to_string()))? != der {
        return Err(not_der("not in canonical DER"));
    }

    let public_key = parsed.info.public_key.to_der().map_err(|e| not_der(&e.to_string()))?;
    let key = algorithm(&parsed.info.public_key).ok_or_else(|| {
        error("BadKey", "the public key is none of ECDSA on a named P-256 or P-384, Ed25519, or RSA of 2048, 3072 or 4096 bits with exponent 65537")
    })?;
    let verifier = verifier(key, &parsed.algorithm).ok_or_else(|| {
        error(
            "BadSignatureAlgorithm",
            "the request is not signed by its key's algorithm with SHA-256, SHA-384 or SHA-512",
        )
    })?;
    let signed = parsed.info.to_der().map_err(|e| not_der(&e.to_string()))?;
    let signature = parsed.signature.as_bytes().ok_or_else(|| not_der("signed by a broken bit string"))?;
    let raw_key = parsed.info.public_key.subject_public_key.raw_bytes();
    UnparsedPublicKey::new(verifier, raw_key)
        .verify(&signed, signature)
        .map_err(|_| error("BadSignature", "the request's signature is not that of its key"))?;

    let (organization, common_name) = subject(&parsed.info.subject)?;
    let sans = attributes(&parsed.info.attributes)?;
    Ok(Request { organization, common_name, sans, key, public_key })
}

/// One PEM block in the common form: the two boundary lines, base64 in lines of 64 between them, at most a line feed after it.
/// PEM readers differ in what else they skip.
fn unpem(pem: &[u8]) -> Result<Vec<u8>, CsrError> {
    let bad = |what: &str| {
        error("NotPem", format!("the request is not one PEM block CERTIFICATE REQUEST and nothing else: {what}"))
    };
    if pem.len() > MAX_REQUEST {
        return Err(error(
            "TooLong",
            format!("the request is {} bytes long; at most {MAX_REQUEST} are read", pem.len()),
        ));
    }
    let text = std::str::from_utf8(pem).map_err(|_| bad("not text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let body = text
        .strip_prefix("-----BEGIN CERTIFICATE REQUEST-----\n")
        .ok_or_else(|| bad("it does not begin with the BEGIN line"))?;
    let body = body
        .strip_suffix("\n-----END CERTIFICATE REQUEST-----")
        .ok_or_else(|| bad("it does not end with the END line"))?;
    let lines: Vec<&str> = body.split('\n').collect();
    let (last, full) = lines.split_last().ok_or_else(|| bad("it is empty"))?;
    if full.iter().any(|line| line.len() != 64) || !(1..=64).contains(&last.len()) {
        return Err(bad("its lines are not of 64 characters"));
    }
    // The standard alphabet, padding required, no bits left over.
    STANDARD.decode(lines.concat()).map_err(|_| bad("not base64"))
}

/// See [`super::public_key_of_stub`].
pub(super) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    CertReq::from_der(der).ok()?.info.public_key.to_der().ok()
}

/// The algorithm of a DER SubjectPublicKeyInfo, if it is one of ours.
pub(super) fn key_algorithm(public_key: &[u8]) -> Option<KeyAlgorithm> {
    algorithm(&SubjectPublicKeyInfoOwned::from_der(public_key).ok()?)
}

fn algorithm(key: &SubjectPublicKeyInfoOwned) -> Option<KeyAlgorithm> {
    let raw = key.subject_public_key.as_bytes()?;
    let AlgorithmIdentifierOwned { oid, parameters } = &key.algorithm;
    match (*oid, parameters) {
        (EC_PUBLIC_KEY, Some(curve)) => {
            // A named curve; explicit parameters are a SEQUENCE. Uncompressed points alone: Go reads no others.
            let curve: ObjectIdentifier = (curve.tag() == Tag::ObjectIdentifier).then(|| curve.decode_as().ok())??;
            match (curve, raw.len(), raw.first()) {
                (P256, 65, Some(4)) => Some(KeyAlgorithm::EcdsaP256),
                (P384, 97, Some(4)) => Some(KeyAlgorithm::EcdsaP384),
                _ => None,
            }
        }
        (ED25519, None) => (raw.len() == 32).then_some(KeyAlgorithm::Ed25519),
        (RSA, Some(null)) if *null == Any::null() => rsa(raw),
        _ => None,
    }
}

/// `RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }`.
fn rsa(raw: &[u8]) -> Option<KeyAlgorithm> {
    let mut reader = SliceReader::new(raw).ok()?;
    let (modulus, exponent) =
        reader.sequence(|inner| Ok::<_, der::Error>((UintRef::decode(inner)?, UintRef::decode(inner)?))).ok()?;
    reader.finish().ok()?;
    if exponent.as_bytes() != [1, 0, 1] {
        return None;
    }
    let first = modulus.as_bytes().first()?;
    match (modulus.as_bytes().len(), first & 0x80) {
        (256, 0x80) => Some(KeyAlgorithm::Rsa2048),
        (384, 0x80) => Some(KeyAlgorithm::Rsa3072),
        (512, 0x80) => Some(KeyAlgorithm::Rsa4096),
        _ => None,
    }
}

/// The verifier of a signature by `key` under `algorithm`; `None` if they do not fit or the digest is weaker than SHA-256.
fn verifier(key: KeyAlgorithm, algorithm: &AlgorithmIdentifierOwned) -> Option<&'static dyn VerificationAlgorithm> {
    use KeyAlgorithm as K;
    let null = match &algorithm.parameters {
        None => false,
        Some(any) if *any == Any::null() => true,
        Some(_) => return None,
    };
    Some(match (key, algorithm.oid, null) {
        (K::EcdsaP256, ECDSA_SHA256, false) => &signature::ECDSA_P256_SHA256_ASN1,
        (K::EcdsaP256, ECDSA_SHA384, false) => &signature::ECDSA_P256_SHA384_ASN1,
        (K::EcdsaP256, ECDSA_SHA512, false) => &signature::ECDSA_P256_SHA512_ASN1,
        (K::EcdsaP384, ECDSA_SHA256, false) => &signature::ECDSA_P384_SHA256_ASN1,
        (K::EcdsaP384, ECDSA_SHA384, false) => &signature::ECDSA_P384_SHA384_ASN1,
        (K::EcdsaP384, ECDSA_SHA512, false) => &signature::ECDSA_P384_SHA512_ASN1,
        (K::Ed25519, ED25519, false) => &signature::ED25519,
        (K::Rsa2048 | K::Rsa3072 | K::Rsa4096, RSA_SHA256, true) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (K::Rsa2048 | K::Rsa3072 | K::Rsa4096, RSA_SHA384, true) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (K::Rsa2048 | K::Rsa3072 | K::Rsa4096, RSA_SHA512, true) => &signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return None,
    })
}

/// The subject: one O and one CN, each alone in its RDN.
fn subject(name: &Name) -> Result<(String, String), CsrError> {
    let bad = |what: &str| error("BadSubject", format!("the subject is not one O and one CN: {what}"));
    let (mut organization, mut common_name) = (None, None);
    for rdn in name.iter_rdn() {
        let [attribute] = rdn.iter().collect::<Vec<_>>()[..] else { return Err(bad("it has a multi-valued RDN")) };
        let place = match attribute.oid {
            ORGANIZATION => &mut organization,
            COMMON_NAME => &mut common_name,
            _ => return Err(bad("it has another attribute")),
        };
        let text = text(&attribute.value)
            .ok_or_else(|| bad("a value is no UTF8String or PrintableString of 1 to 64 ASCII characters"))?;
        if place.replace(text).is_some() {
            return Err(bad("one of them is there twice"));
        }
    }
    Ok((organization.ok_or_else(|| bad("there is no O"))?, common_name.ok_or_else(|| bad("there is no CN"))?))
}

/// ASCII without control characters: our own O and CN are never anything else. 64 is RFC 5280's bound.
fn text(value: &Any) -> Option<String> {
    let text = match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok()?.as_str().to_owned(),
        Tag::PrintableString => value.decode_as::<PrintableStringRef<'_>>().ok()?.as_str().to_owned(),
        _ => return None,
    };
    let fine = |b: u8| b == b' ' || b.is_ascii_graphic();
    ((1..=64).contains(&text.len()) && text.bytes().all(fine)).then_some(text)
}

/// None, or one extensionRequest with one value with one extension, subjectAltName.
fn attributes(attributes: &Attributes) -> Result<Sans, CsrError> {
    let bad = |what: String| error("BadExtension", what);
    let mut attributes = attributes.iter();
    let Some(attribute) = attributes.next() else { return Ok(Sans::default()) };
    if attributes.next().is_some() || attribute.oid != EXTENSION_REQUEST || attribute.values.len() != 1 {
        return Err(bad("the request has other attributes than one extensionRequest".to_owned()));
    }
    let value = attribute.values.get(0).ok_or_else(|| bad("the extensionRequest is empty".to_owned()))?;
    let value = value.to_der().map_err(|e| bad(e.to_string()))?;
    let extensions: Extensions =
        canonical(&value).ok_or_else(|| bad("the extensionRequest is not canonical DER".to_owned()))?;
    let [extension] = &extensions[..] else {
        return Err(bad(format!("the request has {} extensions; only one subjectAltName is taken", extensions.len())));
    };
    if extension.extn_id != SUBJECT_ALT_NAME {
        return Err(bad(format!("the request has the extension {}; only subjectAltName is taken", extension.extn_id)));
    }
    let general: GeneralNames = canonical(extension.extn_value.as_bytes())
        .ok_or_else(|| error("BadName", "subjectAltName is not canonical DER"))?;
    alternative_names(&general)
}

/// A value that is written back byte for byte.
fn canonical<T: for<'a> der::Decode<'a> + der::Encode>(bytes: &[u8]) -> Option<T> {
    let value = T::from_der(bytes).ok()?;
    (value.to_der().ok()? == bytes).then_some(value)
}

/// DNS names and IP addresses, at least one, none twice.
fn alternative_names(general: &GeneralNames) -> Result<Sans, CsrError> {
    let bad = |what: String| error("BadName", what);
    let mut sans = Sans::default();
    for name in general {
        let new = match name {
            GeneralName::DnsName(name) => {
                let name = name.as_str();
                if !names::is_san_dns_name(name.strip_prefix("*.").unwrap_or(name)) {
                    return Err(bad(format!("{name:?} is no DNS name of a-z, 0-9, - and dots")));
                }
                sans.dns.insert(name.to_owned())
            }
            GeneralName::IpAddress(bytes) => {
                let bytes = bytes.as_bytes();
                let ip = <[u8; 4]>::try_from(bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
                    .map_err(|_| bad(format!("an IP address has {} bytes", bytes.len())))?;
                if !names::is_san_ip(ip) {
                    return Err(bad(format!("{ip} is no address of one host")));
                }
                sans.ips.insert(ip)
            }
            _ => return Err(bad("a subjectAltName is neither a DNS name nor an IP address".to_owned())),
        };
        if !new {
            return Err(bad("a subjectAltName is there twice".to_owned()));
        }
    }
    if sans.is_empty() {
        return Err(bad("subjectAltName is empty".to_owned()));
    }
    Ok(sans)
}
