//! Requests made by hand, byte by byte, and signed by a real key.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{PublicKeyData as _, SigningKey as _};

pub(crate) const OID_O: &[u8] = &[0x55, 4, 10];
pub(crate) const OID_CN: &[u8] = &[0x55, 4, 3];
pub(crate) const OID_SAN: &[u8] = &[0x55, 0x1d, 17];
pub(crate) const OID_BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
pub(crate) const OID_EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
pub(crate) const OID_CHALLENGE_PASSWORD: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 7];
pub(crate) const OID_MICROSOFT_EXTENSIONS: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 14];
pub(crate) const OID_ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
pub(crate) const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
pub(crate) const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
pub(crate) const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
pub(crate) const OID_ML_DSA_44: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 3, 0x11];
pub(crate) const OID_DSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1];

pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const OID: u8 = 6;
pub(crate) const UTF8: u8 = 12;
pub(crate) const PRINTABLE: u8 = 19;
pub(crate) const DNS: u8 = 0x82;
pub(crate) const IP: u8 = 0x87;

pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..128 => out.push(u8::try_from(length).unwrap()),
        128..256 => out.extend([0x81, u8::try_from(length).unwrap()]),
        _ => out.extend([0x82, u8::try_from(length >> 8).unwrap(), (length & 0xff) as u8]),
    }
    out.extend(content);
    out
}

pub(crate) fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(SEQUENCE, &parts.concat())
}

pub(crate) fn rdn(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
    tlv(SET, &atv(oid, tag, value))
}

pub(crate) fn atv(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
    seq(&[tlv(OID, oid), tlv(tag, value)])
}

pub(crate) fn extension(oid: &[u8], value: &[u8]) -> Vec<u8> {
    seq(&[tlv(OID, oid), tlv(4, value)])
}

pub(crate) fn san(names: &[Vec<u8>]) -> Vec<u8> {
    extension(OID_SAN, &seq(names))
}

pub(crate) fn attribute(oid: &[u8], values: &[Vec<u8>]) -> Vec<u8> {
    seq(&[tlv(OID, oid), tlv(SET, &values.concat())])
}

/// A request in parts, signed when it is put together.
pub(crate) struct Forge {
    pub(crate) key: rcgen::KeyPair,
    pub(crate) version: Vec<u8>,
    pub(crate) subject: Vec<Vec<u8>>,
    pub(crate) public_key: Vec<u8>,
    pub(crate) attributes: Vec<Vec<u8>>,
    pub(crate) algorithm: Vec<u8>,
}

impl Forge {
    pub(crate) fn good() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self {
            version: vec![2, 1, 0],
            subject: vec![rdn(OID_O, UTF8, b"system:etcd-peers"), rdn(OID_CN, UTF8, b"system:etcd-peer:etcd-0")],
            public_key: key.subject_public_key_info(),
            attributes: vec![attribute(OID_EXTENSION_REQUEST, &[seq(&[san(&Self::names())])])],
            algorithm: seq(&[tlv(OID, OID_ECDSA_SHA256)]),
            key,
        }
    }

    pub(crate) fn names() -> Vec<Vec<u8>> {
        vec![tlv(DNS, b"etcd-0.etcd.prod.svc"), tlv(IP, &[10, 0, 0, 7])]
    }

    pub(crate) fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut forge = Self::good();
        change(&mut forge);
        forge
    }

    pub(crate) fn with_names(names: &[Vec<u8>]) -> Self {
        Self::with(|forge| forge.attributes = vec![attribute(OID_EXTENSION_REQUEST, &[seq(&[san(names)])])])
    }

    pub(crate) fn with_extensions(extensions: &[Vec<u8>]) -> Self {
        Self::with(|forge| forge.attributes = vec![attribute(OID_EXTENSION_REQUEST, &[seq(extensions)])])
    }

    pub(crate) fn with_common_name(tag: u8, value: &[u8]) -> Self {
        Self::with(|forge| forge.subject[1] = rdn(OID_CN, tag, value))
    }

    pub(crate) fn info(&self) -> Vec<u8> {
        seq(&[self.version.clone(), seq(&self.subject), self.public_key.clone(), tlv(0xa0, &self.attributes.concat())])
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        let info = self.info();
        let signature = self.key.sign(&info).unwrap();
        seq(&[info, self.algorithm.clone(), tlv(3, &[&[0][..], &signature].concat())])
    }

    pub(crate) fn pem(&self) -> String {
        pem(&self.der())
    }
}

pub(crate) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", lines.join("\n"))
}
