//! Decides if the Secret is written, and its content. Pure.

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_tls_contract::{certificate::Chain, crl::Crl, csr::PrivateKey, names, role::Role};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::store::Entry;

/// The label, with the value `true`, of a Secret that may be written.
pub const MARK: &str = "etcd-tls.dev/secret";
/// The type of the Secret.
pub const TYPE: &str = "kubernetes.io/tls";
/// The API server takes no more bytes of data in a Secret.
const MAX_DATA: usize = 1024 * 1024;

/// Why a Secret is not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `type` cannot be changed.
    #[error(
        "its type is {0:?}, not {TYPE}, and a type cannot be changed: delete it and create it again, or name another"
    )]
    Type(String),
    /// It may be somebody else's.
    #[error("it lacks the label {MARK}=true: label it if its content may be replaced, or name another")]
    Foreign,
    /// `immutable: true`.
    #[error("it is immutable: delete it and create it again")]
    Immutable,
    /// It has a deletionTimestamp.
    #[error("it is being deleted: create it again when it is gone")]
    Deleting,
    /// The API server would refuse it.
    #[error("it would hold {0} bytes, and a Secret holds at most {MAX_DATA}: remove its other keys")]
    TooLarge(usize),
}

/// The object to write in the place of `present`, which is a v1 Secret; `None` where it is current.
///
/// The newest good certificate stays: two processes that keep one Secret (a Deployment while it is rolled out) do not
/// overwrite each other's. One that is `revoked` goes. Other keys, labels and annotations stay. The resourceVersion is the one that was read.
///
/// # Errors
/// The Secret is not to be written, or cannot be.
pub fn decide(
    present: &Value,
    role: Role,
    entry: &Entry,
    revoked: Option<&Crl>,
    now: SystemTime,
) -> Result<Option<Value>, Refusal> {
    let metadata = &present["metadata"];
    let kind = present["type"].as_str().unwrap_or("Opaque");
    if kind != TYPE {
        return Err(Refusal::Type(kind.chars().take(100).collect()));
    }
    if metadata["labels"][MARK] != "true" {
        return Err(Refusal::Foreign);
    }
    if !metadata["deletionTimestamp"].is_null() {
        return Err(Refusal::Deleting);
    }
    let held = Held::read(&present["data"]).filter(|held| held.replaces(role, entry, revoked, now));
    let (chain, key) = match &held {
        Some(held) => (held.chain_pem.as_str(), held.key_pem.as_str()),
        None => (entry.chain_pem(), entry.key_pem()),
    };
    let bundle = entry.bundle().to_pem();
    let wanted = [(names::CERT_FILE, chain), (names::KEY_FILE, key), (names::CA_FILE, &bundle)];
    let mut object = present.clone();
    let mut changed = false;
    for (name, text) in wanted {
        let encoded = STANDARD.encode(text);
        if object["data"][name] != encoded.as_str() {
            changed = true;
            object["data"][name] = json!(encoded);
        }
    }
    if !changed {
        return Ok(None);
    }
    if present["immutable"] == true {
        return Err(Refusal::Immutable);
    }
    let values = object["data"].as_object().into_iter().flatten();
    let bytes =
        values.map(|(_, value)| STANDARD.decode(value.as_str().unwrap_or_default()).map_or(0, |v| v.len())).sum();
    if bytes > MAX_DATA {
        return Err(Refusal::TooLarge(bytes));
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    Ok(Some(object))
}

/// The serial number of the certificate in a Secret, if there is one.
pub fn serial(object: &Value) -> Option<String> {
    let pem = STANDARD.decode(object["data"][names::CERT_FILE].as_str()?).ok()?;
    Chain::parse(&pem).ok().map(|chain| chain.serial)
}

/// A certificate with its key, as a Secret holds them.
struct Held {
    chain: Chain,
    chain_pem: String,
    key_pem: Zeroizing<String>,
    public_key: Vec<u8>,
}

impl Held {
    /// `None` where there is none, or the two do not fit each other.
    fn read(data: &Value) -> Option<Self> {
        let text = |name: &str| {
            let bytes = STANDARD.decode(data[name].as_str()?).ok()?;
            String::from_utf8(bytes).ok().map(Zeroizing::new)
        };
        let chain_pem = text(names::CERT_FILE)?.as_str().to_owned();
        let key_pem = text(names::KEY_FILE)?;
        let chain = Chain::parse(chain_pem.as_bytes()).ok()?;
        let public_key = PrivateKey::from_pem(&key_pem).ok()?.public_key();
        (chain.public_key == public_key).then_some(Self { chain, chain_pem, key_pem, public_key })
    }

    /// True if it is good for all that `entry` is good for, and was issued later.
    fn replaces(&self, role: Role, entry: &Entry, revoked: Option<&Crl>, now: SystemTime) -> bool {
        let (ours, sans) = (entry.chain(), &entry.chain().sans);
        self.chain.not_before > ours.not_before
            && self.chain.common_name == ours.common_name
            && self.chain.sans == *sans
            && revoked.is_none_or(|list| !list.entries().contains_key(&self.chain.serial))
            && self.chain.verify(role, entry.bundle(), &self.public_key, sans, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use etcd_tls_contract::{key::KeyAlgorithm, san::Sans};

    use super::*;
    use crate::{store::Record, testing::Authority};

    fn now() -> SystemTime {
        SystemTime::now()
    }

    /// An entry that was issued `age` ago.
    fn entry(ca: &Authority, age: Duration) -> Entry {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let (sans, hour) = (Sans::default(), Duration::from_secs(3600));
        let pem = ca.sign(&key.public_key(), &sans, now() - age, now() + hour);
        Entry::prove(Role::Client, &pem, &key, &ca.bundle(), &sans, Record::default(), now()).unwrap()
    }

    fn empty() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE, "data": {"tls.crt": "", "tls.key": "", "more": "eA=="},
            "metadata": {"name": "s", "uid": "u", "resourceVersion": "7", "labels": {MARK: "true", "a": "b"}, "managedFields": []},
        })
    }

    fn text(object: &Value, name: &str) -> String {
        String::from_utf8(STANDARD.decode(object["data"][name].as_str().unwrap()).unwrap()).unwrap()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_empty_secret_is_filled_once_and_the_rest_of_it_stays() {
        let ours = entry(&Authority::new(), MINUTE);
        let written = decide(&empty(), Role::Client, &ours, None, now()).unwrap().unwrap();
        assert_eq!(text(&written, "tls.crt"), ours.chain_pem());
        assert_eq!(text(&written, "tls.key"), ours.key_pem());
        assert_eq!(text(&written, "ca.crt"), ours.bundle().to_pem());
        assert_eq!(written["data"]["more"], "eA==");
        let metadata = &written["metadata"];
        assert_eq!((&metadata["resourceVersion"], &metadata["uid"]), (&json!("7"), &json!("u")));
        assert_eq!((&metadata["labels"]["a"], metadata.get("managedFields")), (&json!("b"), None));
        assert_eq!(serial(&written), Some(ours.chain().serial.clone()));
        assert_eq!(decide(&written, Role::Client, &ours, None, now()), Ok(None));
        // One that never changes again is fine as long as it need not change.
        let mut immutable = written;
        immutable["immutable"] = true.into();
        assert_eq!(decide(&immutable, Role::Client, &ours, None, now()), Ok(None));
    }

    #[test]
    fn the_newest_good_certificate_stays_with_the_bundle_of_now() {
        let (ca, next) = (Authority::named("old"), Authority::named("new"));
        let (old, new) = (entry(&ca, 2 * MINUTE), entry(&ca, MINUTE));
        let of = |present: &Value, entry: &Entry| decide(present, Role::Client, entry, None, now()).unwrap();
        let (with_old, with_new) = (of(&empty(), &old).unwrap(), of(&empty(), &new).unwrap());
        assert_eq!(serial(&of(&with_old, &new).unwrap()), Some(new.chain().serial.clone()));
        assert_eq!(of(&with_new, &old), None, "another process wrote a newer one");
        let both = ca.bundle().union(&next.bundle());
        let overlap = of(&with_new, &old.with_bundle(Role::Client, &both, now()).unwrap()).unwrap();
        assert_eq!(serial(&overlap), Some(new.chain().serial.clone()));
        assert_eq!(text(&overlap, "ca.crt"), both.to_pem());
        let list = |serial: &str| Crl::parse(&ca.list(1, &[serial])).unwrap();
        let beside = |list: &Crl| decide(&with_new, Role::Client, &old, Some(list), now()).unwrap();
        assert_eq!(beside(&list("4f0a")), None);
        let written = beside(&list(&new.chain().serial)).unwrap();
        assert_eq!(serial(&written), Some(old.chain().serial.clone()), "the newer one is revoked");
        // Newer, but of no use: another CA's, with another's key, damaged.
        let foreign = of(&empty(), &entry(&next, Duration::ZERO)).unwrap();
        let mut mixed = with_new.clone();
        mixed["data"]["tls.key"] = with_old["data"]["tls.key"].clone();
        let mut damaged = with_new;
        damaged["data"]["tls.crt"] = "AAAA".into();
        for present in [foreign, mixed, damaged] {
            let written = of(&present, &old).unwrap();
            assert_eq!(
                (text(&written, "tls.crt"), text(&written, "tls.key")),
                (old.chain_pem().to_owned(), old.key_pem().to_owned())
            );
        }
    }

    #[test]
    fn foreign_and_immutable_secrets_are_refused() {
        let ours = entry(&Authority::new(), MINUTE);
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 7] = [
            (|s| s["type"] = "Opaque".into(), "its type is \"Opaque\""),
            (|s| drop(s.as_object_mut().map(|s| s.remove("type"))), "its type is \"Opaque\""),
            (|s| s["metadata"]["labels"] = json!({}), "lacks the label"),
            (|s| s["metadata"]["labels"][MARK] = "false".into(), "lacks the label"),
            (|s| s["immutable"] = true.into(), "immutable"),
            (|s| s["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(), "being deleted"),
            (|s| s["data"]["more"] = STANDARD.encode(vec![0; MAX_DATA - 100]).into(), "at most 1048576"),
        ];
        for (change, word) in cases {
            let mut present = empty();
            change(&mut present);
            let refusal = decide(&present, Role::Client, &ours, None, now()).unwrap_err().to_string();
            assert!(refusal.contains(word), "{word}: {refusal}");
        }
    }
}
