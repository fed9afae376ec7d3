//! One certificate of a record, in few bytes: a record has up to a thousand, and there are thousands of records.
//!
//! Its holder, pod, user and addresses are one text, which all certificates of the same in a record share ([`Leaf::share`]). So are its
//! names, which are the same for all pods of a workload ([`Names`]).

use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};

use etcd_tls_contract::{csr, role::Role, san::Sans};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    epoch::{seconds, time},
    memory::chunk,
    names::{self, Names},
};

/// The holder, the user, and true if kubelet asked: a newer certificate of these replaces an older one.
pub(crate) type Place = (String, String, bool);

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// When it was issued, and when it ends; seconds of the Unix epoch.
    pub(crate) at: u64,
    pub(crate) until: u64,
    of: Of,
    /// None: it has no names, or an earlier version recorded it.
    names: Option<Arc<Names>>,
    key: Key,
    /// What most have not.
    rare: Option<Box<Rare>>,
    /// Where the addresses begin in the text.
    addresses_begin: u32,
    /// True if it is a peer's.
    peer: bool,
    /// True if kubelet asked for it, for a volume of `podCertificate`. The sidecar's is another one, and neither replaces the other.
    pub(crate) kubelet: bool,
}

/// Holder, pod, user and addresses, one after the other.
#[derive(Clone, PartialEq, Eq)]
struct Of {
    text: Arc<str>,
    pod_begins: u32,
    user_begins: u32,
}

/// A [`csr::key_digest`].
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Key {
    Digest([u8; 16]),
    /// One that is no digest of this version: empty in records of earlier ones.
    Other(Box<str>),
}

/// Of certificates of a standalone signer.
#[derive(Clone, Default, PartialEq, Eq)]
struct Rare {
    cluster: Box<str>,
    principal: Box<str>,
    line: Option<Line>,
}

/// The certificates by which a caller of a standalone signer came to one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Line {
    /// The serial number of the certificate that was presented; empty: another credential.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) presented: String,
    /// The serial number of the first certificate of its branch: of renewals, each by the one before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) branch: String,
    /// The branch that is charged for its branch: that of the certificate that was presented a second time, as after a lost
    /// answer. Empty: its branch is charged itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) root: String,
    /// To whom it is charged: the caller that the presented certificates lead back to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) origin: String,
    /// True if its branch began in the record of another domain, where it is charged.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) elsewhere: bool,
}

/// The JSON of a certificate. Its names are elsewhere.
#[derive(Serialize, Deserialize)]
pub(super) struct Text<'a> {
    at: u64,
    until: u64,
    #[serde(borrow)]
    holder: Cow<'a, str>,
    #[serde(borrow)]
    pod: Cow<'a, str>,
    #[serde(borrow)]
    user: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    peer: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    kubelet: bool,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    cluster: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    principal: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    key: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    line: Option<Cow<'a, Line>>,
    /// Which of the lists of names beside it is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) names: Option<usize>,
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    addresses: Cow<'a, str>,
}

impl Text<'_> {
    pub(super) fn without_addresses(self) -> Self {
        Self { addresses: Cow::default(), ..self }
    }
}

/// A text of 4 GiB comes from nowhere: a Secret holds a mebibyte.
fn place(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl Of {
    fn new(holder: &str, pod: &str, user: &str, addresses: &str) -> Self {
        Self {
            text: [holder, pod, user, addresses].concat().into(),
            pod_begins: place(holder.len()),
            user_begins: place(holder.len() + pod.len()),
        }
    }

    fn part(&self, from: u32, to: Option<u32>) -> &str {
        let place = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
        self.text.get(place(from)..to.map_or(self.text.len(), place)).unwrap_or_default()
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl Key {
    pub(super) fn new(text: &str) -> Self {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let digest = (text.len() == 32 && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok());
        digest.flatten().map_or_else(|| Self::Other(text.into()), |digest| Self::Digest(digest.to_be_bytes()))
    }

    fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Digest(digest) => Cow::Owned(format!("{:032x}", u128::from_be_bytes(*digest))),
            Self::Other(text) => Cow::Borrowed(text),
        }
    }
}

impl Leaf {
    /// A certificate of now. `holder`: the uid of the pod, or [`host_holder`](crate::sign::cache::pods::host_holder); `pod`:
    /// `<namespace>/<name>` of it, empty for a host; `user`: the subject's CN.
    pub(crate) fn new(holder: &str, pod: String, user: &str, not_after: SystemTime, now: SystemTime) -> Self {
        // Every pod's peer has such a CN; a host has the one that policy gives it.
        let peer = user.starts_with(Role::Peer.common_name_prefix());
        Self {
            at: seconds(now),
            until: seconds(not_after),
            of: Of::new(holder, &pod, user, ""),
            names: None,
            key: Key::Other(Box::default()),
            rare: None,
            addresses_begin: place(holder.len() + pod.len() + user.len()),
            peer,
            kubelet: false,
        }
    }

    /// Its place.
    pub(crate) fn place(&self) -> Place {
        (self.holder().to_owned(), self.user().to_owned(), self.kubelet)
    }

    /// When it ends.
    pub(crate) fn end(&self) -> SystemTime {
        time(self.until)
    }

    /// The uid of the pod, or [`host_holder`](crate::sign::cache::pods::host_holder).
    pub(crate) fn holder(&self) -> &str {
        self.of.part(0, Some(self.of.pod_begins))
    }

    /// `<namespace>/<name>` of the pod; empty for a host.
    pub(crate) fn pod(&self) -> &str {
        self.of.part(self.of.pod_begins, Some(self.of.user_begins))
    }

    /// The subject's CN.
    pub(crate) fn user(&self) -> &str {
        self.of.part(self.of.user_begins, Some(self.addresses_begin))
    }

    /// Its list of names, which others may share.
    pub(super) const fn names(&self) -> Option<&Arc<Names>> {
        self.names.as_ref()
    }

    /// Whose it is, for people: its pod or host, its user, and some of its names and addresses.
    pub(super) fn described(&self) -> String {
        let pod = self.pod();
        let of = match self.holder().strip_prefix("host:") {
            Some(host) if pod.is_empty() => format!("host {host}"),
            _ => format!("pod {pod}"),
        };
        let (mut all, more) = self.names.as_ref().map(|names| names.list(pod)).unwrap_or_default();
        all.extend(names::addresses(self.of.part(self.addresses_begin, None)));
        let names = names::shown(&all, more);
        let names = if names.is_empty() { names } else { format!(", names {names}") };
        format!("{of}, user {}{names}", self.user())
    }

    /// [`csr::key_digest`] of its public key; empty in records of earlier versions.
    pub(crate) fn key(&self) -> Cow<'_, str> {
        self.key.text()
    }

    /// True if it has the key of another one, and that is known.
    pub(super) fn has_key_of(&self, other: &Self) -> bool {
        self.key == other.key && !self.lacks_key()
    }

    /// True if its key is not known.
    pub(super) fn lacks_key(&self) -> bool {
        matches!(&self.key, Key::Other(text) if text.is_empty())
    }

    /// The cluster, as `<namespace>/<name>`, of a standalone signer's peer: nothing else tells it there.
    pub(crate) fn cluster(&self) -> &str {
        self.rare.as_ref().map_or("", |rare| &rare.cluster)
    }

    /// To whom a standalone signer issued it. Several callers may share the name of one host or client there.
    pub(crate) fn principal(&self) -> &str {
        self.rare.as_ref().map_or("", |rare| &rare.principal)
    }

    /// How a standalone signer's caller came to it.
    pub(crate) fn line(&self) -> Option<&Line> {
        self.rare.as_ref()?.line.as_ref()
    }

    /// To whom it is charged. Records of earlier versions lack that.
    pub(crate) fn origin(&self) -> &str {
        self.line().map_or_else(|| self.principal(), |line| line.origin.as_str())
    }

    /// True if its branch began in the record of another domain.
    pub(crate) fn began_elsewhere(&self) -> bool {
        self.line().is_some_and(|line| line.elsewhere)
    }

    /// The branch of this certificate, whose own serial number is `serial`.
    pub(crate) fn branch<'a>(&'a self, serial: &'a str) -> &'a str {
        self.line().map_or(serial, |line| line.branch.as_str())
    }

    /// The branch that is charged for this certificate, whose own serial number is `serial`.
    pub(crate) fn root<'a>(&'a self, serial: &'a str) -> &'a str {
        let root = self.line().map(|line| line.root.as_str()).filter(|root| !root.is_empty());
        root.unwrap_or_else(|| self.branch(serial))
    }

    /// One for this public key, DER.
    pub(crate) fn for_key(self, public_key: &[u8]) -> Self {
        Self { key: Key::new(&csr::key_digest(public_key)), ..self }
    }

    /// One with these names and addresses.
    pub(crate) fn named(self, sans: &Sans) -> Self {
        let (names, addresses) = Names::of(sans, self.pod());
        let of = Of::new(self.holder(), self.pod(), self.user(), &addresses);
        Self { of, names: names.map(Arc::new), ..self }
    }

    /// Leaves out its names.
    pub(super) fn leave_out_names(&mut self, instead: &Arc<Names>) {
        self.names = Some(Arc::clone(instead));
    }

    /// One of a host of `cluster`, for a standalone signer.
    pub(crate) fn of_cluster(self, cluster: String) -> Self {
        self.with(|rare| rare.cluster = cluster.into())
    }

    /// One that a standalone signer issued to `principal`.
    pub(crate) fn to(self, principal: String) -> Self {
        self.with(|rare| rare.principal = principal.into())
    }

    /// One to which its caller came so.
    pub(crate) fn by(self, line: Line) -> Self {
        self.with(|rare| rare.line = Some(line))
    }

    fn with(mut self, change: impl FnOnce(&mut Rare)) -> Self {
        let mut rare = self.rare.take().unwrap_or_default();
        change(&mut rare);
        Self { rare: (*rare != Rare::default()).then_some(rare), ..self }
    }

    /// One that kubelet asked for.
    pub(crate) fn of_kubelet(self) -> Self {
        Self { kubelet: true, ..self }
    }

    /// One of this role.
    pub(crate) fn of_role(self, role: Role) -> Self {
        Self { peer: role == Role::Peer, ..self }
    }

    /// True if `other` is for the same user and comes by the same way.
    pub(super) fn alike(&self, other: &Self) -> bool {
        self.user() == other.user() && self.kubelet == other.kubelet
    }

    /// Records of earlier versions lack the role.
    pub(super) fn is_peer(&self) -> bool {
        self.peer || self.user().starts_with(Role::Peer.common_name_prefix())
    }

    /// Shares the text with `other`, if it is the same. True if it is.
    pub(super) fn share(&mut self, other: &Self) -> bool {
        let same = self.of == other.of;
        if same {
            self.of.text = Arc::clone(&other.of.text);
        }
        same
    }

    /// Shares the names with `other`, if they are the same. True if they are, or it has none.
    pub(super) fn share_names(&mut self, other: &Self) -> bool {
        let same = self.names == other.names;
        if same {
            self.names.clone_from(&other.names);
        }
        same || self.names.is_none()
    }

    /// The text that it may share.
    pub(super) const fn shared(&self) -> &Arc<str> {
        &self.of.text
    }

    /// Bytes of memory that it takes beside itself, about. It takes an equal part of what it shares.
    pub(super) fn heap(&self) -> usize {
        let names = self.names.as_ref().map_or(0, |names| names.heap() / Arc::strong_count(names).max(1));
        let key = match &self.key {
            Key::Digest(_) => 0,
            Key::Other(text) => chunk(text.len()),
        };
        let rare = |rare: &Rare| {
            let line = rare.line.as_ref().map_or(0, |line| {
                [&line.presented, &line.branch, &line.root, &line.origin].map(|text| chunk(text.len())).iter().sum()
            });
            chunk(size_of::<Rare>()) + chunk(rare.cluster.len()) + chunk(rare.principal.len()) + line
        };
        // An Arc counts its holders in two words.
        let shared = chunk(self.of.text.len() + 16) / Arc::strong_count(&self.of.text).max(1);
        key + self.rare.as_deref().map_or(0, rare) + shared + names
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().fmt(f)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'_, str>::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("at", &self.at)
            .field("until", &self.until)
            .field("holder", &self.holder())
            .field("pod", &self.pod())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}

impl Leaf {
    /// Its JSON; `names`: where its names are.
    pub(super) fn to_text(&self, names: Option<usize>) -> Text<'_> {
        Text {
            at: self.at,
            until: self.until,
            holder: self.holder().into(),
            pod: self.pod().into(),
            user: self.user().into(),
            peer: self.peer,
            kubelet: self.kubelet,
            cluster: self.cluster().into(),
            principal: self.principal().into(),
            key: self.key(),
            line: self.line().map(Cow::Borrowed),
            names,
            addresses: self.of.part(self.addresses_begin, None).into(),
        }
    }

    /// The one of this JSON, with these names.
    pub(super) fn of_text(text: Text<'_>, names: Option<&Arc<Names>>) -> Self {
        let rare = Rare {
            cluster: text.cluster.into(),
            principal: text.principal.into(),
            line: text.line.map(Cow::into_owned),
        };
        Self {
            at: text.at,
            until: text.until,
            of: Of::new(&text.holder, &text.pod, &text.user, &text.addresses),
            names: names.cloned(),
            key: Key::new(&text.key),
            rare: (rare != Rare::default()).then(|| Box::new(rare)),
            addresses_begin: place(text.holder.len() + text.pod.len() + text.user.len()),
            peer: text.peer,
            kubelet: text.kubelet,
        }
    }
}

/// Without its names: a standalone signer's, which records none.
impl Serialize for Leaf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_text(None).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Leaf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of_text(Text::deserialize(deserializer)?, None))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const TEXT: &str = concat!(
        r#"{"at":10,"until":20,"holder":"uid","pod":"prod/a\"b","user":"system:etcd-peer:a","peer":true,"kubelet":true,"#,
        r#""cluster":"prod/etcd","principal":"me","key":"0123456789abcdef0123456789abcdef","#,
        r#""line":{"presented":"4f","branch":"4e","root":"4d","origin":"o","elsewhere":true}}"#
    );

    #[test]
    fn its_text_is_read_and_written_as_it_was() {
        let leaf: Leaf = serde_json::from_str(TEXT).unwrap();
        assert_eq!(serde_json::to_string(&leaf).unwrap(), TEXT);
        assert_eq!((leaf.holder(), leaf.pod(), leaf.user()), ("uid", "prod/a\"b", "system:etcd-peer:a"));
        assert_eq!((leaf.cluster(), leaf.principal(), leaf.origin()), ("prod/etcd", "me", "o"));
        assert_eq!((leaf.branch("9"), leaf.root("9"), leaf.began_elsewhere()), ("4e", "4d", true));
        // Of an earlier version; of another form of key; with an empty line, which is not none.
        for text in [
            r#"{"at":10,"until":20,"holder":"uid","pod":"","user":""}"#,
            r#"{"at":10,"until":20,"holder":"","pod":"","user":"x","key":"0123456789ABCDEF0123456789ABCDEF"}"#,
            r#"{"at":10,"until":20,"holder":"","pod":"p","user":"x","key":"0123"}"#,
            r#"{"at":10,"until":20,"holder":"h","pod":"p","user":"","line":{}}"#,
        ] {
            let leaf: Leaf = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&leaf).unwrap(), text);
        }
    }

    #[test]
    fn a_key_that_is_not_known_is_no_others() {
        let leaf = || Leaf::new("uid", "prod/a".to_owned(), "a", UNIX_EPOCH, UNIX_EPOCH);
        assert!(leaf().lacks_key() && !leaf().has_key_of(&leaf()));
        let keyed = |key: &[u8]| leaf().for_key(key);
        assert!(keyed(b"1").has_key_of(&keyed(b"1")) && !keyed(b"1").has_key_of(&keyed(b"2")));
        assert_eq!(keyed(b"1").key(), csr::key_digest(b"1"));
    }

    #[test]
    fn one_takes_few_bytes_and_a_shared_text_counts_once() {
        assert!(size_of::<Leaf>() <= 88, "{}", size_of::<Leaf>());
        let leaf = || Leaf::new("uid", "prod/a".to_owned(), "a", UNIX_EPOCH + Duration::from_secs(9), UNIX_EPOCH);
        let alone = leaf().for_key(b"key").heap();
        assert_eq!(alone, chunk("uidprod/aa".len() + 16));
        let (one, mut other) = (leaf(), leaf());
        assert!(other.share(&one));
        assert_eq!(one.heap() + other.heap(), alone);
        assert!(!other.share(&Leaf::new("ui", "dprod/a".to_owned(), "a", UNIX_EPOCH, UNIX_EPOCH)), "the same letters");
        assert!(leaf().of_cluster("prod/etcd".to_owned()).heap() > alone);
    }
}
