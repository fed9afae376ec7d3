//! The revocations of an authority: the record and the signed list of it. Both are in the authority's Secret, so each change is
//! one write, and a killed signer leaves no state in between. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::{
    crl::{Crl, Reason},
    role::Role,
};
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

use super::{
    epoch::{seconds, time},
    issued::{CLOCK, Issued, whole},
    leaf::Key,
    quorum::{MemberCounts, Unrecorded},
};
use crate::{
    ca::{authority::Authority, crl, issue::IssueError},
    revoke::{Action, InUse, MOST_IN_USE, MOST_WHOSE, NOT_YET, Report, Request, Selector},
    rollover::{Answer, LivePod, rfc3339},
    sign::cache::pods::{Voter, is_host},
};

mod adopted;
mod found;

pub(super) use adopted::Trust;

/// Entries of one authority at most. They share its Secret with a rollover's pods, and two lists share a ConfigMap with the
/// bundles.
const MOST: usize = 2048;

/// Pods that are barred, at most.
const MOST_BARRED: usize = 256;

const RECORD: &str = "revoked.json";
const LIST: &str = "crl.der";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revoked {
    record: Record,
    list: Option<Arc<Crl>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Text", rename_all = "camelCase")]
struct Record {
    /// The number of the last list.
    number: u64,
    /// The generation of the CA that signed it.
    signed_by: Key,
    /// By serial number.
    entries: BTreeMap<String, Entry>,
    /// Pods that get no certificate any more, by uid.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    barred: BTreeMap<String, Bar>,
    /// Digests of compromised keys, for which nothing is issued, and until when: seconds of the Unix epoch.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    keys: BTreeMap<String, u64>,
    /// The last request; most have none.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    answered: Option<Box<Answered>>,
}

/// A [`Record`] as it is read. An optional flattened part that cannot be read would count as none.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Text {
    number: u64,
    signed_by: Key,
    entries: BTreeMap<String, Entry>,
    barred: BTreeMap<String, Bar>,
    keys: BTreeMap<String, u64>,
    answer: Option<Answer>,
    count: usize,
    bars: bool,
    at: u64,
    in_use: Vec<InUse>,
    elsewhere: Vec<String>,
    lacked_before: Option<u64>,
}

impl From<Text> for Record {
    fn from(text: Text) -> Self {
        let Text { number, signed_by, entries, barred, keys, .. } = text;
        let Text { answer, count, bars, at, in_use, elsewhere, lacked_before, .. } = text;
        let answered =
            answer.map(|answer| Box::new(Answered { answer, count, bars, at, in_use, elsewhere, lacked_before }));
        Self { number, signed_by, entries, barred, keys, answered }
    }
}

/// A request that is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    /// The answer.
    answer: Answer,
    /// Certificates that it was about.
    count: usize,
    /// [`Report::bars`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    bars: bool,
    /// When it was answered, in seconds of the Unix epoch.
    at: u64,
    /// Pods that use what it named and left.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    in_use: Vec<InUse>,
    /// [`Report::elsewhere`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    elsewhere: Vec<String>,
    /// [`Report::lacked_before`].
    #[serde(skip_serializing_if = "Option::is_none")]
    lacked_before: Option<u64>,
}

/// When it was revoked, when the certificate has ended at the latest and the entry leaves (seconds of the Unix epoch), and
/// why ([`Reason::code`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64, u64, u8);

/// Until when a pod gets no certificate (seconds of the Unix epoch), and which pod it is, as `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bar(u64, String);

/// The input for judging a request.
pub(crate) struct Known<'a> {
    /// The issued certificates.
    pub(crate) issued: &'a Issued,
    /// The authority's namespace, in which a pod's bare name is looked for.
    pub(crate) namespace: &'a str,
    /// True if the CA may sign lists.
    pub(crate) signs_lists: bool,
    /// The pods that hold its certificates.
    pub(crate) live: &'a [LivePod],
    /// The members whose peer certificates it signs.
    pub(crate) voters: &'a [Voter],
    /// Set where the record alone tells the members and their certificates: at a standalone signer.
    pub(crate) by_record: Option<&'a ByRecord>,
    /// When every certificate of the authority that exists now has ended.
    pub(crate) leaves_end: SystemTime,
    /// When the CA ends.
    pub(crate) authority_end: SystemTime,
}

/// Of peers whose members the record alone tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByRecord {
    /// The members that are counted, for people.
    pub(crate) counted: String,
    /// Serial numbers that the record of another domain holds: they are no peer's.
    pub(crate) of_others: BTreeSet<String>,
}

/// The unreadable part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} cannot be read: {1}; restore it, or delete it: what the published list holds stays revoked, barred pods and keys do not"
)]
pub(crate) struct RevokedError(&'static str, String);

impl Revoked {
    /// Reads it from a Secret's data. A Secret without it (of an earlier version, or restored by hand) has revoked nothing.
    pub(crate) fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, RevokedError> {
        let record = data.get(RECORD).map(|text| serde_json::from_slice(&text.0)).transpose();
        let list = data.get(LIST).map(|der| Crl::parse(&der.0).map(Arc::new)).transpose();
        Ok(Self {
            record: record.map_err(|e| RevokedError(RECORD, e.to_string()))?.unwrap_or_default(),
            list: list.map_err(|e| RevokedError(LIST, e.to_string()))?,
        })
    }

    /// The record without the list, for a store that has no place for the list; none if nothing was signed or answered yet.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(crate) fn record(&self) -> Result<Option<(&'static str, Vec<u8>)>, serde_json::Error> {
        if self.record == Record::default() {
            return Ok(None);
        }
        Ok(Some((RECORD, serde_json::to_vec(&self.record)?)))
    }

    /// The entries of a Secret's data; none if nothing was signed or answered yet.
    pub(super) fn data(&self) -> Result<Vec<(&'static str, Vec<u8>)>, serde_json::Error> {
        let mut data: Vec<_> = self.record()?.into_iter().collect();
        data.extend(self.list.as_ref().map(|list| (LIST, list.der().to_vec())));
        Ok(data)
    }

    /// The signed list; `None`: the CA may not sign one, or has not yet.
    pub(crate) const fn list(&self) -> Option<&Arc<Crl>> {
        self.list.as_ref()
    }

    /// The answer to the last request.
    pub(crate) fn answer(&self) -> Option<&Answer> {
        self.record.answered.as_ref().map(|answered| &answered.answer)
    }

    /// The report on the last request.
    pub(crate) fn report(&self) -> Option<Report> {
        let Answered { answer, count, bars, at, in_use, elsewhere, lacked_before } =
            Answered::clone(self.record.answered.as_ref()?);
        Some(Report {
            answer: Some(answer),
            count,
            bars,
            at: Some(at),
            in_use,
            elsewhere,
            lacked_before,
            lacks_before: None,
            whose: BTreeMap::new(),
        })
    }

    /// Whose the certificates are that were revoked last, as far as the record tells.
    pub(crate) fn whose(&self, issued: &Issued) -> BTreeMap<String, String> {
        let mut last: Vec<_> = self.record.entries.iter().map(|(serial, entry)| (entry.0, serial)).collect();
        last.sort_unstable_by(|one, other| other.cmp(one));
        let whose = |(_, serial): (u64, &String)| Some((serial.clone(), issued.whose(serial)?));
        last.into_iter().filter_map(whose).take(MOST_WHOSE).collect()
    }

    /// True if the holder of this uid gets no certificate any more.
    pub(crate) fn bars(&self, holder: &str) -> bool {
        self.record.barred.contains_key(holder)
    }

    /// True if an operator has revoked a certificate of this key ([`etcd_tls_contract::csr::key_digest`]) because the key is
    /// compromised.
    pub(crate) fn compromised(&self, key: &str) -> bool {
        self.record.keys.contains_key(key)
    }

    /// True if this certificate is revoked.
    pub(crate) fn lists(&self, serial: &str) -> bool {
        self.record.entries.contains_key(serial)
    }

    /// The number of the last list.
    pub(super) const fn number(&self) -> u64 {
        self.record.number
    }

    /// The revoked serial numbers: at most [`MOST`].
    pub(crate) fn serials(&self) -> impl Iterator<Item = &str> {
        self.record.entries.keys().map(String::as_str)
    }

    /// The barred pods that `selector` names, by uid.
    fn bars_of(&self, selector: &Selector, namespace: &str) -> BTreeSet<String> {
        let Selector::Pod(pod) = selector else { return BTreeSet::new() };
        let whole = whole(pod, namespace);
        self.record.barred.iter().filter(|(_, bar)| bar.1 == whole).map(|(uid, _)| uid.clone()).collect()
    }

    /// The pods that a request bars, by uid: holders of `named`, and the one that lives. It may ask for its first certificate of
    /// this authority, or for one after the end of its last.
    fn barred_by<'a>(
        request: &Request,
        named: impl Iterator<Item = &'a String>,
        known: &Known<'_>,
    ) -> BTreeSet<String> {
        let Request { selector: Selector::Pod(pod), action: Action::Add | Action::Renewed | Action::Force, .. } =
            request
        else {
            return BTreeSet::new();
        };
        let whole = whole(pod, known.namespace);
        let mut bars = known.issued.holders(named);
        bars.extend(known.live.iter().filter(|pod| !is_host(&pod.uid) && pod.name == whole).map(|pod| pod.uid.clone()));
        bars
    }

    /// Does what an operator asks, and answers.
    pub(crate) fn take(&mut self, request: &Request, known: &Known<'_>, now: SystemTime) -> bool {
        let mut named = known.issued.named(&request.selector, known.namespace);
        if let Some(until) = request.until {
            named.retain(|serial, _| known.issued.at(serial).is_none_or(|at| at <= until));
        }
        // Who has the key can use each certificate of it.
        let compromised = request.reason == Reason::KeyCompromise && request.action != Action::Undo;
        if compromised {
            named.extend(known.issued.of_keys(&known.issued.keys(named.keys())));
        }
        let mut in_use = if request.action == Action::Renewed { left(&mut named, known, now) } else { Vec::new() };
        // A bar outlives the certificates for which it was made.
        let bars = self.bars_of(&request.selector, known.namespace);
        let takes_bars_back = request.action == Action::Undo && !bars.is_empty();
        let new_bars = Self::barred_by(request, named.keys(), known);
        let revoked = |serial: &&String| self.record.entries.contains_key(*serial);
        // A place for each that is revoked when its pod has renewed.
        let waiting = in_use.iter().flat_map(|used| &used.serials).filter(|serial| !revoked(serial)).count();
        let what = &request.selector;
        let by_record = !matches!(what, Selector::Serial(_));
        // Other certificates of a compromised key are named by the record.
        let by_record = by_record || (compromised && known.issued.lacks_before(now).is_some());
        let since = if by_record { format!(" ({})", known.issued.told(now)) } else { String::new() };
        let falls_unseen = |by: &ByRecord| {
            let unseen = |serial: &&String| !known.issued.has(serial) && !by.of_others.contains(*serial);
            named.keys().filter(|serial| !revoked(serial)).any(|serial| unseen(&serial))
        };
        let unseen = known.by_record.is_some_and(falls_unseen);
        let valid = self.record.entries.iter().filter(|(_, entry)| now < time(entry.1));
        let of_nobody = |serial: &str| !named.contains_key(serial) && !known.issued.has(serial);
        let counts = MemberCounts::of(
            known.issued,
            known.voters,
            |serial| self.record.entries.contains_key(serial),
            |serial| named.contains_key(serial),
            Unrecorded {
                named: named.values().filter(|end| end.is_none()).count(),
                revoked: valid.filter(|(serial, _)| of_nobody(serial)).count(),
                before: known.issued.lacks_before(now),
            },
        );
        let falls = unseen || counts.values().any(|members| members.falls());
        let members = known.by_record.filter(|_| falls).map_or_else(String::new, |by| {
            if by.counted.is_empty() {
                "; no members are known".to_owned()
            } else {
                format!("; members counted: {}", by.counted)
            }
        });
        let objection = counts.into_iter().find_map(|(cluster, members)| members.objection(cluster));
        let objection = objection.or_else(|| unseen.then(|| UNSEEN.to_owned())).map(|objection| objection + &members);
        let objection = objection.filter(|_| matches!(request.action, Action::Add | Action::Renewed));
        let (mut objected, mut bars_one) = (false, false);
        let (answer, count) = match request.action {
            _ if !known.signs_lists => {
                // Nobody renews for what is refused in any case.
                in_use.clear();
                (request.refused(
                "the CA may not sign revocation lists: its certificate has key usages without cRLSign. Give the signer a CA \
                 that has it, or one without key usages",
                ), 0)
            }
            _ if named.is_empty() && !in_use.is_empty() && self.record.entries.len() + waiting <= MOST => {
                (request.accepted(&format!("{what} {NOT_YET}")), 0)
            }
            _ if named.is_empty() && in_use.is_empty() && !takes_bars_back && new_bars.is_empty() => {
                (request.accepted(&format!("there is no certificate of {what}{since}")), 0)
            }
            _ if objection.is_some() => {
                objected = true;
                (request.refused(&objection.unwrap_or_default()), 0)
            }
            Action::Add | Action::Renewed | Action::Force => {
                let new = named.keys().filter(|serial| !revoked(serial)).count() + waiting;
                let more_bars = new_bars.iter().filter(|uid| !self.bars(uid)).count();
                // The pod that uses such a key is asked for another one first.
                let left = known.issued.keys(in_use.iter().flat_map(|used| &used.serials));
                let keys = if compromised { known.issued.keys(named.keys()) } else { BTreeSet::new() };
                let keys: BTreeSet<String> = keys.difference(&left).cloned().collect();
                let new_keys = keys.iter().filter(|key| !self.compromised(key)).count();
                let (full, barred_full) = (
                    self.record.entries.len() + new > MOST || self.record.keys.len() + new_keys > MOST,
                    more_bars > 0 && self.record.barred.len() + more_bars > MOST_BARRED,
                );
                if full || barred_full {
                    in_use.clear();
                    let entries = self.record.entries.values().map(|entry| entry.1).filter(|_| full);
                    let free =
                        entries.chain(self.record.barred.values().map(|bar| bar.0).filter(|_| barred_full)).min();
                    (request.refused(&format!(
                        "a list holds {MOST} certificates and bars {MOST_BARRED} pods at most; the next place is free at {}. To \
                         refuse all certificates of this CA, roll it over with --force",
                        free.map_or_else(String::new, |at| rfc3339::text(time(at.saturating_add(CLOCK))))
                    )), 0)
                } else {
                    for (serial, end) in &named {
                        let until = end.unwrap_or(known.leaves_end);
                        let entry = Entry(seconds(now), seconds(until), request.reason.code());
                        self.record.entries.entry(serial.clone()).or_insert(entry);
                    }
                    self.record.keys.extend(keys.into_iter().map(|key| (key, seconds(known.authority_end))));
                    let end = named.values().map(|end| end.unwrap_or(known.leaves_end)).max().unwrap_or(now);
                    let mut text = if named.is_empty() {
                        format!("there is no certificate of {what}")
                    } else {
                        format!("{what} is revoked until {}: {}", rfc3339::text(end), counted(named.len()))
                    };
                    text += &known.issued.described(named.keys());
                    if let Selector::Pod(pod) = what {
                        let bar = Bar(seconds(known.authority_end), whole(pod, known.namespace));
                        bars_one = !new_bars.is_empty();
                        self.record.barred.extend(new_bars.into_iter().map(|uid| (uid, bar.clone())));
                        text += "; it gets no other until it is made again";
                    } else if request.action != Action::Renewed {
                        text += &used_by(&known.issued.without_newer(named.keys()));
                    }
                    if compromised {
                        text += &without_key(known.issued.without_key(named.keys()), named.len());
                    }
                    (request.accepted(&(text + &since + &members)), named.len())
                }
            }
            Action::Undo => {
                let taken: Vec<&String> = named.keys().filter(revoked).collect();
                let (count, whose) = (taken.len(), known.issued.described(taken.iter().copied()));
                for serial in taken.into_iter().cloned().collect::<Vec<_>>() {
                    self.record.entries.remove(&serial);
                }
                self.record.barred.retain(|uid, _| !bars.contains(uid));
                let keys = known.issued.keys(named.keys());
                self.record.keys.retain(|key, _| !keys.contains(key));
                if count > 0 || takes_bars_back {
                    (
                        request.accepted(&format!("{what} is not revoked any more: {}{whose}", counted(count))),
                        count.max(1),
                    )
                } else {
                    (request.accepted(&format!("{what} is not revoked")), 0)
                }
            }
        };
        let (at, lacked_before) = (seconds(now), known.issued.lacks_before(now));
        let elsewhere = elsewhere(known);
        let bars = bars_one;
        self.record.answered = Some(Box::new(Answered { answer, count, bars, at, in_use, elsewhere, lacked_before }));
        objected
    }

    /// Changes nothing, and says why.
    pub(crate) fn leave(&mut self, request: &Request, why: &str, now: SystemTime) {
        let (answer, at) = (request.refused(why), seconds(now));
        let (bars, in_use, elsewhere) = (false, Vec::new(), Vec::new());
        self.record.answered =
            Some(Box::new(Answered { answer, count: 0, bars, at, in_use, elsewhere, lacked_before: None }));
    }

    /// True if the last request was refused.
    pub(crate) fn refuses(&self) -> bool {
        self.answer().is_some_and(|answer| !answer.accepted)
    }

    /// Takes out what has ended [a while](CLOCK) ago, and signs a list where the last one says something else or is not `authority`'s. The number is
    /// never smaller than the time in seconds, so that it does not go back where the record is lost. True if anything changed.
    ///
    /// # Errors
    /// The list could not be signed; nothing changed but the record.
    pub(crate) fn refresh(&mut self, authority: &Authority, now: SystemTime) -> Result<bool, IssueError> {
        // The clock here may be ahead of that of who refuses a certificate, and nobody puts back what has left.
        let ended = |end: u64| time(end.saturating_add(CLOCK)) <= now;
        let before = self.record.entries.len();
        self.record.entries.retain(|_, entry| !ended(entry.1));
        let mut changed = self.record.entries.len() != before;
        let before = self.record.barred.len();
        self.record.barred.retain(|_, bar| !ended(bar.0));
        changed |= self.record.barred.len() != before;
        let before = self.record.keys.len();
        self.record.keys.retain(|_, until| !ended(*until));
        changed |= self.record.keys.len() != before;
        if !authority.signs_lists() {
            return Ok(self.list.take().is_some() || changed);
        }
        let generation = Key::new(&authority.generation());
        let listed: BTreeSet<&String> = self.list.iter().flat_map(|list| list.entries().keys()).collect();
        let stale = self.record.signed_by != generation || !listed.into_iter().eq(self.record.entries.keys());
        if (self.list.is_none() || stale) && now < authority.not_after() {
            let number = self.record.number.saturating_add(1).max(seconds(now));
            let revoked = self.record.entries.iter().map(|(serial, entry)| crl::Revoked {
                serial,
                at: time(entry.0),
                reason: Reason::of_code(entry.2),
            });
            self.list = Some(Arc::new(crl::sign(authority, number, revoked, now)?));
            (self.record.number, self.record.signed_by) = (number, generation);
            changed = true;
        }
        Ok(changed)
    }
}

/// Why a standalone signer refuses a serial number that no record holds.
const UNSEEN: &str = "the record lacks this serial number, so it may be that of a member's peer certificate in use, and nothing \
                      tells whether a quorum would stand. Give --force if you know whose it is";

/// Pods named in an answer at most.
const MOST_NAMED: usize = 10;

/// Takes from `named` what live pods use, and gives these pods: those of the first pods alone where there are many.
fn left(named: &mut BTreeMap<String, Option<SystemTime>>, known: &Known<'_>, now: SystemTime) -> Vec<InUse> {
    let live: BTreeMap<&str, &str> =
        known.live.iter().filter(|pod| !is_host(&pod.uid)).map(|pod| (pod.uid.as_str(), pod.name.as_str())).collect();
    let serials: Vec<String> = named.keys().cloned().collect();
    let used = known.issued.in_use(serials.iter(), |uid| live.contains_key(uid), now);
    let mut in_use = Vec::new();
    for (uid, serials) in used {
        named.retain(|serial, _| !serials.contains(serial.as_str()));
        let pod = live.get(uid).copied().unwrap_or_default().to_owned();
        let kubelet =
            serials.iter().filter(|serial| known.issued.is_of_kubelet(serial)).map(|&s| s.to_owned()).collect();
        let serials = serials.into_iter().map(str::to_owned).collect();
        in_use.push(InUse { pod, uid: uid.to_owned(), serials, kubelet });
    }
    in_use.sort();
    in_use.truncate(MOST_IN_USE);
    in_use
}

/// [`Report::elsewhere`].
fn elsewhere(known: &Known<'_>) -> Vec<String> {
    let serves = |pod: &&LivePod| pod.roles.contains(&Role::Peer) || pod.roles.contains(&Role::Server);
    // Who may revoke in a cluster may be nobody in another one that shares its authority.
    let outside = known.live.iter().filter(serves).filter(|pod| pod.own).filter_map(|pod| {
        let namespace = pod.name.split_once('/').map(|(namespace, _)| namespace);
        match pod.name.strip_prefix("of host ").filter(|_| is_host(&pod.uid)) {
            Some(host) => Some(format!("host {host}")),
            None => (namespace != Some(known.namespace)).then(|| format!("pod {}", pod.name)),
        }
    });
    let mut all: Vec<String> = outside.collect();
    all.sort_unstable();
    all.truncate(MOST_IN_USE);
    all
}

/// Tells of pods that use a certificate that is revoked now: they get another one with their next renewal.
fn used_by(pods: &BTreeSet<&str>) -> String {
    let Some(first) = pods.first() else { return String::new() };
    let shown: Vec<&str> = pods.iter().copied().take(MOST_NAMED).collect();
    let more = if pods.len() > MOST_NAMED { format!(" and {} more", pods.len() - MOST_NAMED) } else { String::new() };
    format!("; in use by pod {}{more} until its next renewal: etcd-tls-webhook renew {first}", shown.join(", "))
}

/// Tells of compromised certificates of which the record lacks the key: `lacking` of `all`.
fn without_key(lacking: usize, all: usize) -> String {
    match lacking {
        0 => String::new(),
        _ if lacking == all => "; the record lacks the key, so this authority bars no key".to_owned(),
        _ => format!("; the record lacks the keys of {lacking} of them, which are not barred"),
    }
}

fn counted(certificates: usize) -> String {
    if certificates == 1 { "1 certificate".to_owned() } else { format!("{certificates} certificates") }
}

#[cfg(test)]
mod tests;
