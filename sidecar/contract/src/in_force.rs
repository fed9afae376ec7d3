//! The trust bundles in force, as the signer states them in the answer to a request.
//!
//! RFC 7468, section 5.2, lets explanatory text stand before the first PEM block, and Kubernetes leaves it alone in
//! `status.certificate`. Only a holder of the verb `sign` can write there. One line of that text is ours:
//!
//! ```text
//! etcd-tls trust: peer=<digest> client=<digest>
//! ```
//!
//! A requester accepts a changed bundle only if its digest is in the answer to a request of its own. So a writer of the
//! ConfigMap can withhold a bundle, but cannot introduce another one.

use std::{collections::BTreeMap, fmt};

use crate::role::Domain;

/// The words that begin the line.
const PREFIX: &str = "etcd-tls trust:";
/// Hexadecimal digits of [`crate::certificate::Bundle::digest`].
const DIGITS: usize = 32;
/// The longest line that is read; three digests take a third of it.
const MAX_LINE: usize = 512;

/// The digest of each domain's bundle in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundlesInForce(BTreeMap<Domain, String>);

/// The line is there, but does not follow the grammar, or stands there twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signer's statement of the trust bundles in force cannot be read: {0}")]
pub struct InvalidBundlesInForce(&'static str);

impl BundlesInForce {
    /// A statement of these digests, as [`crate::certificate::Bundle::digest`] gives them.
    pub const fn new(digests: BTreeMap<Domain, String>) -> Self {
        Self(digests)
    }

    /// Reads the statement before the first PEM block of `answer`, a `status.certificate`. Other text is ignored, and so
    /// are words of later versions (`name=value`). `None`: there is no statement, as in the answers of other signers and
    /// of earlier versions of etcd-tls.
    ///
    /// # Errors
    /// Two statements, a digest that is stated twice, or a statement that does not follow the grammar.
    pub fn parse(answer: &str) -> Result<Option<Self>, InvalidBundlesInForce> {
        let text = answer.find("-----BEGIN").map_or(answer, |at| &answer[..at]);
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX));
        let Some(rest) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            return Err(InvalidBundlesInForce("it stands there twice"));
        }
        if rest.len() > MAX_LINE {
            return Err(InvalidBundlesInForce("it is too long"));
        }
        let words = rest.strip_prefix(' ').ok_or(InvalidBundlesInForce("no space behind the colon"))?;
        let mut seen = BTreeMap::new();
        for word in words.split(' ') {
            let (name, value) = word.split_once('=').ok_or(InvalidBundlesInForce("a word without ="))?;
            if !is_name(name) || !is_value(value) {
                return Err(InvalidBundlesInForce("a word that is not <name>=<value>"));
            }
            if seen.insert(name, value).is_some() {
                return Err(InvalidBundlesInForce("a name stands there twice"));
            }
        }
        let mut digests = BTreeMap::new();
        for domain in Domain::ALL {
            if let Some(value) = seen.get(domain.as_str()) {
                if !is_digest(value) {
                    return Err(InvalidBundlesInForce("a digest that is not 32 lower-case hexadecimal digits"));
                }
                digests.insert(domain, (*value).to_owned());
            }
        }
        if digests.is_empty() {
            return Err(InvalidBundlesInForce("it states no digest"));
        }
        Ok(Some(Self(digests)))
    }

    /// The digest of `domain`'s bundle. Metrics have the client authority unless they are stated apart.
    pub fn digest(&self, domain: Domain) -> Option<&str> {
        let or_client = || self.0.get(&Domain::Client).filter(|_| domain == Domain::Metrics);
        self.0.get(&domain).or_else(or_client).map(String::as_str)
    }

    /// `chain_pem` with the statement before its first block; unchanged if there is nothing to state.
    pub fn before(&self, chain_pem: &str) -> String {
        if self.0.is_empty() { chain_pem.to_owned() } else { format!("{self}\n{chain_pem}") }
    }
}

impl fmt::Display for BundlesInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|(domain, digest)| write!(f, " {domain}={digest}"))
    }
}

fn is_name(s: &str) -> bool {
    (1..=32).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_value(s: &str) -> bool {
    (1..=128).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic())
}

fn is_digest(s: &str) -> bool {
    s.len() == DIGITS && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "ffffffffffffffffffffffffffffffff";
    const BLOCK: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn both() -> BundlesInForce {
        BundlesInForce::new(BTreeMap::from([(Domain::Peer, A.to_owned()), (Domain::Client, B.to_owned())]))
    }

    #[test]
    fn a_written_statement_is_read_back() {
        let answer = both().before(BLOCK);
        assert_eq!(answer, format!("etcd-tls trust: peer={A} client={B}\n{BLOCK}"));
        let read = BundlesInForce::parse(&answer).unwrap().unwrap();
        assert_eq!(read, both());
        assert_eq!((read.digest(Domain::Peer), read.digest(Domain::Client)), (Some(A), Some(B)));
        assert_eq!(read.digest(Domain::Metrics), Some(B), "the client authority's");
        let own = format!("etcd-tls trust: metrics={A} client={B}\r\n{BLOCK}");
        assert_eq!(BundlesInForce::parse(&own).unwrap().unwrap().digest(Domain::Metrics), Some(A));
        assert_eq!(BundlesInForce::default().before(BLOCK), BLOCK);
    }

    #[test]
    fn other_text_is_ignored_and_so_is_what_stands_behind_the_first_block() {
        for answer in [
            BLOCK.to_owned(),
            String::new(),
            format!("subject: etcd-0\n Etcd-tls trust: x\n etcd-tls trust: x\n{BLOCK}"),
            format!("{BLOCK}etcd-tls trust: peer={A}\n{BLOCK}"),
        ] {
            assert_eq!(BundlesInForce::parse(&answer), Ok(None), "{answer}");
        }
        let between = format!("issuer: x\netcd-tls trust: peer={A}\nserial: 7\n{BLOCK}etcd-tls trust: peer={B}\n");
        assert_eq!(BundlesInForce::parse(&between).unwrap().unwrap().digest(Domain::Peer), Some(A));
        let later = format!("etcd-tls trust: crl=7 peer={A} next-thing=sha512:x\n{BLOCK}");
        assert_eq!(BundlesInForce::parse(&later).unwrap().unwrap().digest(Domain::Peer), Some(A));
    }

    #[test]
    fn lines_outside_the_grammar_are_refused() {
        for line in [
            "etcd-tls trust:".to_owned(),
            "etcd-tls trust: ".to_owned(),
            format!("etcd-tls trust:peer={A}"),
            format!("etcd-tls trust:  peer={A}"),
            format!("etcd-tls trust: peer={A} "),
            format!("etcd-tls trust: peer={A}  client={B}"),
            format!("etcd-tls trust: peer={A},client={B}"),
            format!("etcd-tls trust: peer={A} peer={A}"),
            format!("etcd-tls trust: peer={A} peer={B}"),
            format!("etcd-tls trust: peer={A} x=1 x=2"),
            format!("etcd-tls trust: peer={A}\netcd-tls trust: peer={A}"),
            format!("etcd-tls trust: peer={A}\netcd-tls trust: client={B}"),
            format!("etcd-tls trust: peer={}", A.to_uppercase()),
            format!("etcd-tls trust: peer={}", &A[1..]),
            format!("etcd-tls trust: peer={A}0"),
            "etcd-tls trust: peer=".to_owned(),
            "etcd-tls trust: peer".to_owned(),
            "etcd-tls trust: crl=7".to_owned(),
            format!("etcd-tls trust: Peer={A}"),
            format!("etcd-tls trust: peer={A}\tclient={B}"),
            format!("etcd-tls trust: peer={A} {}", "x=1 y".repeat(200)),
        ] {
            assert!(BundlesInForce::parse(&format!("{line}\n{BLOCK}")).is_err(), "{line:?}");
        }
    }
}
