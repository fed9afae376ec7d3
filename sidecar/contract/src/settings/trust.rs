//! The source of a foreign issuer's trust bundle: `…/trust`.

use std::{fmt, str::FromStr};

use crate::{invalid_value::InvalidValue, names, settings::issuer::is_signer_name, text::quoted};

/// The key of a ConfigMap that is read unless another one is named.
const DEFAULT_KEY: &str = "ca.crt";
/// The value of [`Trust::Issuer`].
const ISSUER: &str = "issuer";
/// The most requirements of one label selector.
const MAX_REQUIREMENTS: usize = 16;

/// The source of the bundle that a foreign issuer's certificates are verified against. It is one bundle for all roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// `configmap/<name>[/<key>]`, in the pod's namespace.
    ConfigMap {
        /// Its name.
        name: String,
        /// The key with the PEM text.
        key: String,
    },
    /// `clustertrustbundle/<name>`.
    Bundle(String),
    /// `clustertrustbundle-signer/<signerName>[?<label selector>]`: all ClusterTrustBundles of that signer that match.
    SignerBundles {
        /// The signer's name.
        signer: String,
        /// All of them must hold; none matches every bundle of the signer.
        selector: Vec<Requirement>,
    },
    /// `issuer`: the CA that comes with each of the issuer's answers (`status.ca` of a CertificateRequest).
    Issuer,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The condition on its value.
    pub condition: Condition,
}

/// The condition of a [`Requirement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `key=value`.
    Is(String),
    /// `key!=value`; also holds without the label.
    IsNot(String),
    /// `key`.
    Exists,
    /// `!key`.
    Absent,
}

impl FromStr for Trust {
    type Err = InvalidValue;

    fn from_str(s: &str) -> Result<Self, InvalidValue> {
        let bad = || {
            InvalidValue::from(format!(
                "{} is no source of a trust bundle: issuer, configmap/<name>[/<key>], clustertrustbundle/<name> or \
                 clustertrustbundle-signer/<signerName>[?<label selector>]",
                quoted(s)
            ))
        };
        if s == ISSUER {
            return Ok(Self::Issuer);
        }
        let (kind, rest) = s.split_once('/').ok_or_else(bad)?;
        match kind {
            "configmap" => {
                let (name, key) = rest.split_once('/').unwrap_or((rest, DEFAULT_KEY));
                if !names::is_dns_subdomain(name) || !is_config_map_key(key) {
                    return Err(bad());
                }
                Ok(Self::ConfigMap { name: name.to_owned(), key: key.to_owned() })
            }
            // Linked to a signer, a name begins with the signer's name, which has colons for slashes.
            "clustertrustbundle" if rest.len() <= 253 && rest.split(':').all(names::is_dns_subdomain) => {
                Ok(Self::Bundle(rest.to_owned()))
            }
            "clustertrustbundle-signer" => {
                let (signer, selector) = match rest.split_once('?') {
                    Some((signer, selector)) => (signer, selector_of(selector)?),
                    None => (rest, Vec::new()),
                };
                if !is_signer_name(signer) {
                    return Err(bad());
                }
                Ok(Self::SignerBundles { signer: signer.to_owned(), selector })
            }
            _ => Err(bad()),
        }
    }
}

fn is_config_map_key(key: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=253).contains(&key.len()) && key.bytes().all(fine) && key != "." && !key.starts_with("..")
}

fn selector_of(text: &str) -> Result<Vec<Requirement>, InvalidValue> {
    let words: Vec<&str> = text.split(',').collect();
    if words.len() > MAX_REQUIREMENTS {
        return Err(format!("the label selector has more than {MAX_REQUIREMENTS} requirements").into());
    }
    let requirements: Vec<Requirement> =
        words.into_iter().map(|word| requirement(word).ok_or(word)).collect::<Result<_, _>>().map_err(|word| {
            format!("{} is no requirement of a label selector: key=value, key!=value, key or !key", quoted(word))
        })?;
    if requirements.iter().enumerate().any(|(index, one)| requirements[..index].contains(one)) {
        return Err("the label selector has a requirement twice".into());
    }
    Ok(requirements)
}

fn requirement(word: &str) -> Option<Requirement> {
    let (key, condition) = if let Some((key, value)) = word.split_once("!=") {
        (key, Condition::IsNot(value.to_owned()))
    } else if let Some((key, value)) = word.split_once('=') {
        (key, Condition::Is(value.to_owned()))
    } else if let Some(key) = word.strip_prefix('!') {
        (key, Condition::Absent)
    } else {
        (word, Condition::Exists)
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let value_fine = match &condition {
        Condition::Is(value) | Condition::IsNot(value) => value.is_empty() || is_label_text(value),
        Condition::Exists | Condition::Absent => true,
    };
    let fine = prefix.is_none_or(names::is_dns_subdomain) && is_label_text(name) && value_fine;
    fine.then(|| Requirement { key: key.to_owned(), condition })
}

/// The name part of a label's key, or a value that is not empty.
fn is_label_text(s: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = s.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap { name, key } => write!(f, "configmap/{name}/{key}"),
            Self::Issuer => f.write_str(ISSUER),
            Self::Bundle(name) => write!(f, "clustertrustbundle/{name}"),
            Self::SignerBundles { signer, selector } => {
                write!(f, "clustertrustbundle-signer/{signer}")?;
                for (index, requirement) in selector.iter().enumerate() {
                    write!(f, "{}{requirement}", if index == 0 { '?' } else { ',' })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.condition {
            Condition::Is(value) => write!(f, "{key}={value}"),
            Condition::IsNot(value) => write!(f, "{key}!={value}"),
            Condition::Exists => f.write_str(key),
            Condition::Absent => write!(f, "!{key}"),
        }
    }
}
