//! A certificate authority as a value: generated, or read from files of the user, and tried before it signs.
//!
//! **Invariant.** Nothing here prints a key: not `Debug`, not an error.

use std::{fmt, sync::Arc, time::SystemTime};

use etcd_tls_contract::{
    certificate::{self, Bundle},
    encoding,
};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use x509_cert::{
    Certificate,
    der::{Decode as _, Encode as _, asn1::ObjectIdentifier},
    ext::pkix::{self, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectKeyIdentifier},
};
use zeroize::Zeroizing;

use crate::ca::der;

// RFC 5280, section 4.2.1.12.
const ANY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// A certificate authority: its certificate, the intermediates above it, and its key.
///
/// `sign` holds thousands, most of which rest: the key is DER, which is read for each signature. To read a key, and to check it,
/// takes longer than to sign with it. So a key of RSA is kept as it was read, since such CAs are users' own and few; and any
/// key where there are few authorities ([`Self::keeping_key`]).
pub struct Authority {
    /// DER of the certificates below the anchor, the issuing one first; none where that is the anchor.
    intermediates: Vec<Vec<u8>>,
    /// The anchor.
    bundle: Bundle,
    key: Zeroizing<PrivateKeyDer<'static>>,
    /// The key as it was read, and the parts, where they are kept.
    kept: Option<Kept>,
    signs_lists: bool,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// What each signature needs, as it was read.
struct Kept {
    pair: Arc<Zeroizing<KeyPair>>,
    parts: Arc<IssuerParts>,
}

/// The parts of the issuing certificate that reach each leaf, as the exact bytes: a name encoded again may differ from the CA's
/// subject, and a verifier compares bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuerParts {
    /// DER Name.
    pub(crate) subject: Vec<u8>,
    /// The subject key identifier, where the certificate has one.
    pub(crate) key_identifier: Option<Vec<u8>>,
}

/// Why there is no authority. All but [`Self::Crypto`] are the giver's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// No certificate, or one that is no strict DER.
    #[error("the CA certificate cannot be read: {0}; tls.crt must hold PEM certificates, the issuing one first")]
    Certificate(String),
    /// The crypto library failed; a message of its own without key material.
    #[error("a CA could not be made: {0}")]
    Crypto(String),
    /// Past its notAfter.
    #[error("certificate {subject} of the CA expired at {not_after}; give a CA that is valid")]
    Expired {
        /// Whose.
        subject: String,
        /// RFC 3339.
        not_after: String,
    },
    /// No key, or of a kind that is not supported.
    #[error(
        "the CA's key cannot be read; tls.key must hold one unencrypted PEM key (PKCS#8, SEC 1 or PKCS#1) of ECDSA P-256, \
         P-384 or P-521, Ed25519 or RSA"
    )]
    Key,
    /// The key is not the first certificate's.
    #[error("the CA's key in tls.key does not belong to the first certificate in tls.crt ({subject}){hint}")]
    KeyMismatch {
        /// Whose.
        subject: String,
        /// A possible cause.
        hint: &'static str,
    },
    /// Name constraints would refuse some of what is issued, at the verifier, later.
    #[error(
        "certificate {0} of the CA has name constraints: pods' certificates hold addresses, localhost and Service names, \
         which verifiers might then refuse; give a CA without"
    )]
    NameConstraints(String),
    /// Its extended key usages leave out what members need. Go holds leaves to those of the CAs above, an anchor's too.
    #[error(
        "certificate {0} of the CA is not for both server and client authentication: its extendedKeyUsage must have both"
    )]
    Narrow(String),
    /// BasicConstraints does not say CA:TRUE.
    #[error("certificate {0} is not a CA: basicConstraints does not say CA:TRUE")]
    NotCa(String),
    /// keyUsage does not hold keyCertSign.
    #[error("certificate {0} may not sign certificates: its keyUsage lacks keyCertSign")]
    NotForSigning(String),
    /// The next certificate did not issue this one.
    #[error("the chain in tls.crt is out of order: {issued} was not issued by {next}, which follows it")]
    Order {
        /// The lower certificate's subject.
        issued: String,
        /// The subject of the certificate that follows.
        next: String,
    },
    /// An upper certificate allows fewer CAs below it than there are.
    #[error("certificate {subject} allows {allowed} CA certificates below it, and the chain has {below}")]
    PathLength {
        /// Whose.
        subject: String,
        /// Its pathLenConstraint.
        allowed: u8,
        /// CA certificates below it in the chain.
        below: usize,
    },
    /// A leaf made on trial is not accepted by verification.
    #[error("certificates of this CA would not be accepted: {0}")]
    Trial(String),
    /// Before its notBefore.
    #[error("certificate {subject} of the CA is not valid before {not_before}")]
    TooEarly {
        /// Whose.
        subject: String,
        /// RFC 3339.
        not_before: String,
    },
}

impl Authority {
    /// Judges the parts. Whether verification accepts what it issues is for a trial to tell ([`crate::ca::prove`]).
    pub(crate) fn assemble(
        chain: Vec<Vec<u8>>,
        pair: KeyPair,
        key: &PrivateKeyDer<'static>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let pair = Zeroizing::new(pair);
        let read: Vec<Certificate> = chain
            .iter()
            .map(|der| Certificate::from_der(der).map_err(|e| AuthorityError::Certificate(e.to_string())))
            .collect::<Result<_, _>>()?;
        let Some(first) = read.first() else {
            return Err(AuthorityError::Certificate("there is none".to_owned()));
        };
        let spki = pair.subject_public_key_info();
        if spki_of(first)? != spki {
            let hint = if read.iter().any(|c| spki_of(c).is_ok_and(|k| k == spki)) {
                ": the issuing certificate must come first"
            } else {
                ""
            };
            return Err(AuthorityError::KeyMismatch { subject: subject_of(first), hint });
        }
        for (below, certificate) in read.iter().enumerate() {
            judge(certificate, below, now)?;
        }
        for pair in read.windows(2) {
            if let [issued, next] = pair
                && issued.tbs_certificate().issuer() != next.tbs_certificate().subject()
            {
                return Err(AuthorityError::Order { issued: subject_of(issued), next: subject_of(next) });
            }
        }
        let usage = first
            .tbs_certificate()
            .get_extension::<KeyUsage>()
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let signs_lists = usage.is_none_or(|(_, usage)| usage.crl_sign());
        let mut intermediates = chain;
        let anchor = intermediates.pop().unwrap_or_default();
        intermediates.shrink_to_fit();
        let bundle = Bundle::from_der(vec![anchor]).map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let validity = |f: fn(&Certificate) -> SystemTime| read.iter().map(f);
        let is_rsa = *pair.algorithm() == rcgen::PKCS_RSA_SHA256;
        let mut authority = Self {
            intermediates,
            bundle,
            // The copy has no room to spare.
            key: Zeroizing::new(key.clone_key()),
            kept: None,
            signs_lists,
            // The whole chain must be valid for a leaf to be.
            not_before: validity(|c| c.tbs_certificate().validity().not_before.to_system_time()).max().unwrap_or(now),
            not_after: validity(|c| c.tbs_certificate().validity().not_after.to_system_time()).min().unwrap_or(now),
        };
        // Both are read again for each signature, unless they are kept.
        let parts = authority.parts()?;
        if is_rsa {
            authority.kept = Some(Kept { pair: Arc::new(pair), parts });
        } else {
            authority.pair()?;
        }
        Ok(authority)
    }

    /// Keeps the key as it is read now, for a signer of few authorities and many certificates.
    ///
    /// # Errors
    /// [`AuthorityError::Key`], which [`Self::assemble`] would have met.
    pub(crate) fn keeping_key(mut self) -> Result<Self, AuthorityError> {
        self.kept = Some(Kept { pair: self.pair()?, parts: self.parts()? });
        Ok(self)
    }

    /// The issuing certificate and what is above it, as they were given or made: PEM.
    pub fn certificate_pem(&self) -> String {
        self.chain().map(certificate::to_pem).collect()
    }

    /// The private key's PEM: for the Secret that keeps it, and nothing else.
    pub fn key_pem(&self) -> Zeroizing<String> {
        let label = match &*self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        encoding::pem(label, self.key.secret_der())
    }

    /// The anchor to publish: the topmost certificate of the chain.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// When the first certificate of the chain to expire does so. No leaf outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the whole chain has begun to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// True if `public_key`, DER SubjectPublicKeyInfo, is that of one of its certificates.
    pub(crate) fn has_key(&self, public_key: &[u8]) -> bool {
        self.chain().any(|der| der::public_key(der).is_ok_and(|key| key == public_key))
    }

    /// The digest that names this authority's generation: of the issuing certificate's DER, 32 hexadecimal digits.
    pub fn generation(&self) -> String {
        etcd_tls_contract::csr::key_digest(self.issuing())
    }

    /// True if it may sign revocation lists: its certificate has no key usage, or cRLSign among them. kubeadm's CAs have not.
    pub fn signs_lists(&self) -> bool {
        self.signs_lists
    }

    /// Its certificates, DER, the issuing one first.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.intermediates.iter().chain(self.bundle.certificates()).map(Vec::as_slice)
    }

    /// The rest of a leaf's chain: the certificates below the anchor.
    pub(crate) fn intermediates(&self) -> &[Vec<u8>] {
        &self.intermediates
    }

    fn issuing(&self) -> &[u8] {
        self.chain().next().unwrap_or_default()
    }

    /// The key, to sign with and to drop.
    ///
    /// # Errors
    /// [`AuthorityError::Key`], which [`Self::assemble`] would have met.
    pub(crate) fn pair(&self) -> Result<Arc<Zeroizing<KeyPair>>, AuthorityError> {
        match &self.kept {
            Some(kept) => Ok(Arc::clone(&kept.pair)),
            None => pair_of(&self.key).map(|pair| Arc::new(Zeroizing::new(pair))),
        }
    }

    /// The properties of the issuing certificate that affect each leaf.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`], which [`Self::assemble`] would have met.
    pub(crate) fn parts(&self) -> Result<Arc<IssuerParts>, AuthorityError> {
        if let Some(kept) = &self.kept {
            return Ok(Arc::clone(&kept.parts));
        }
        let unreadable = |e: x509_cert::der::Error| AuthorityError::Certificate(e.to_string());
        let certificate = Certificate::from_der(self.issuing()).map_err(unreadable)?;
        let identifier = certificate.tbs_certificate().get_extension::<SubjectKeyIdentifier>().map_err(unreadable)?;
        Ok(Arc::new(IssuerParts {
            subject: der::subject(self.issuing()).map_err(unreadable)?,
            key_identifier: identifier.map(|(_, id)| id.0.as_bytes().to_vec()),
        }))
    }
}

/// Reads a key of PEM.
///
/// # Errors
/// [`AuthorityError::Key`].
pub(crate) fn read_key(key_pem: &[u8]) -> Result<Zeroizing<PrivateKeyDer<'static>>, AuthorityError> {
    PrivateKeyDer::from_pem_slice(key_pem).map(Zeroizing::new).map_err(|_| AuthorityError::Key)
}

/// The key to sign with.
///
/// # Errors
/// [`AuthorityError::Key`].
pub(crate) fn pair_of(key: &PrivateKeyDer<'static>) -> Result<KeyPair, AuthorityError> {
    KeyPair::try_from(key).map_err(|_| AuthorityError::Key)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// Checks that `certificate`, with `below` CA certificates under it, may be in the chain of a CA.
fn judge(certificate: &Certificate, below: usize, now: SystemTime) -> Result<(), AuthorityError> {
    let tbs = certificate.tbs_certificate();
    let subject = subject_of(certificate);
    let unreadable = |e: &dyn fmt::Display| AuthorityError::Certificate(format!("{subject}: {e}"));
    let constraints = tbs.get_extension::<pkix::BasicConstraints>().map_err(|e| unreadable(&e))?;
    let Some((_, pkix::BasicConstraints { ca: true, path_len_constraint })) = constraints else {
        return Err(AuthorityError::NotCa(subject));
    };
    if let Some(allowed) = path_len_constraint
        && usize::from(allowed) < below
    {
        return Err(AuthorityError::PathLength { subject, allowed, below });
    }
    if let Some((_, usage)) = tbs.get_extension::<KeyUsage>().map_err(|e| unreadable(&e))?
        && !usage.key_cert_sign()
    {
        return Err(AuthorityError::NotForSigning(subject));
    }
    if tbs.get_extension::<NameConstraints>().map_err(|e| unreadable(&e))?.is_some() {
        return Err(AuthorityError::NameConstraints(subject));
    }
    if let Some((_, usages)) = tbs.get_extension::<ExtendedKeyUsage>().map_err(|e| unreadable(&e))?
        && !usages.0.contains(&ANY)
        && !(usages.0.contains(&SERVER_AUTH) && usages.0.contains(&CLIENT_AUTH))
    {
        return Err(AuthorityError::Narrow(subject));
    }
    let validity = tbs.validity();
    if validity.not_after.to_system_time() <= now {
        return Err(AuthorityError::Expired { subject, not_after: validity.not_after.to_string() });
    }
    if now < validity.not_before.to_system_time() {
        return Err(AuthorityError::TooEarly { subject, not_before: validity.not_before.to_string() });
    }
    Ok(())
}

fn subject_of(certificate: &Certificate) -> String {
    format!("\"{}\"", certificate.tbs_certificate().subject())
}

fn spki_of(certificate: &Certificate) -> Result<Vec<u8>, AuthorityError> {
    certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .map_err(|e| AuthorityError::Certificate(e.to_string()))
}
