//! What an authority has revoked: the record, and the signed list of it. Both are in the authority's Secret, so each change is
//! one write, and a killed signer leaves no state in between. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use etcd_tls_contract::crl::{Crl, Reason};
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

use super::{
    epoch::{seconds, time},
    issued::{Issued, whole},
    quorum::Standing,
};
use crate::{
    ca::{authority::Authority, crl, issue::IssueError},
    revoke::{Action, Report, Request, Selector},
    rollover::{Answer, rfc3339},
    sign::cache::pods::Voter,
};

/// Entries of one authority at most. They share its Secret with a rollover's pods, and two lists share a ConfigMap with the
/// bundles.
const MOST: usize = 2048;

/// Pods that are barred, at most.
const MOST_BARRED: usize = 256;

const RECORD: &str = "revoked.json";
const LIST: &str = "crl.der";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::sign) struct Revoked {
    record: Record,
    list: Option<Arc<Crl>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    /// The number of the last list.
    number: u64,
    /// The generation of the CA that signed it.
    signed_by: String,
    /// By serial number.
    entries: BTreeMap<String, Entry>,
    /// Pods that get no certificate any more, by uid.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    barred: BTreeMap<String, Bar>,
    /// The answer to the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
    /// Certificates that it was about.
    count: usize,
}

/// When it was revoked, when the certificate has ended at the latest and the entry leaves (seconds of the Unix epoch), and
/// why ([`Reason::code`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64, u64, u8);

/// Until when a pod gets no certificate (seconds of the Unix epoch), and which pod it is, as `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bar(u64, String);

/// What a request is judged by.
pub(in crate::sign) struct Known<'a> {
    /// What was issued.
    pub(in crate::sign) issued: &'a Issued,
    /// The authority's namespace, in which a pod's bare name is looked for.
    pub(in crate::sign) namespace: &'a str,
    /// Whether the CA may sign lists.
    pub(in crate::sign) signs_lists: bool,
    /// The members whose peer certificates it signs.
    pub(in crate::sign) voters: &'a [Voter],
    /// When every certificate of the authority that exists now has ended.
    pub(in crate::sign) leaves_end: SystemTime,
    /// When the CA ends.
    pub(in crate::sign) authority_end: SystemTime,
}

/// What cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot be read: {1}; restore it, or delete it and what was revoked is accepted again until it ends")]
pub(in crate::sign) struct RevokedError(&'static str, String);

impl Revoked {
    /// Reads it from a Secret's data. A Secret without it (of an earlier version, or restored by hand) has revoked nothing.
    pub(super) fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, RevokedError> {
        let record = data.get(RECORD).map(|text| serde_json::from_slice(&text.0)).transpose();
        let list = data.get(LIST).map(|der| Crl::parse(&der.0).map(Arc::new)).transpose();
        Ok(Self {
            record: record.map_err(|e| RevokedError(RECORD, e.to_string()))?.unwrap_or_default(),
            list: list.map_err(|e| RevokedError(LIST, e.to_string()))?,
        })
    }

    /// What is written into a Secret's data; nothing where nothing was signed or answered yet.
    pub(super) fn data(&self) -> Result<Vec<(&'static str, Vec<u8>)>, serde_json::Error> {
        let mut data = Vec::new();
        if self.record != Record::default() {
            data.push((RECORD, serde_json::to_vec(&self.record)?));
        }
        data.extend(self.list.as_ref().map(|list| (LIST, list.der().to_vec())));
        Ok(data)
    }

    /// The signed list; `None`: the CA may not sign one, or has not yet.
    pub(in crate::sign) const fn list(&self) -> Option<&Arc<Crl>> {
        self.list.as_ref()
    }

    /// The answer to the last request.
    pub(in crate::sign) const fn answer(&self) -> Option<&Answer> {
        self.record.answer.as_ref()
    }

    /// What is said of the last request.
    pub(in crate::sign) fn report(&self) -> Option<Report> {
        self.record.answer.as_ref().map(|answer| Report { answer: Some(answer.clone()), count: self.record.count })
    }

    /// Whether the holder of this uid gets no certificate any more.
    pub(in crate::sign) fn bars(&self, holder: &str) -> bool {
        self.record.barred.contains_key(holder)
    }

    /// The barred pods that `selector` names, by uid.
    fn bars_of(&self, selector: &Selector, namespace: &str) -> BTreeSet<String> {
        let Selector::Pod(pod) = selector else { return BTreeSet::new() };
        let whole = whole(pod, namespace);
        self.record.barred.iter().filter(|(_, bar)| bar.1 == whole).map(|(uid, _)| uid.clone()).collect()
    }

    /// Does what an operator asks, and answers.
    pub(in crate::sign) fn take(&mut self, request: &Request, known: &Known<'_>, now: SystemTime) {
        let named = known.issued.named(&request.selector, known.namespace);
        // A bar outlives the certificates for which it was made.
        let bars = self.bars_of(&request.selector, known.namespace);
        let takes_bars_back = request.action == Action::Undo && !bars.is_empty();
        let revoked = |serial: &&String| self.record.entries.contains_key(*serial);
        let what = &request.selector;
        let by_record = !matches!(what, Selector::Serial(_));
        let since = if by_record {
            format!(" (the record holds what was issued since {})", known.issued.since())
        } else {
            String::new()
        };
        let standings = Standing::of(
            known.issued,
            known.voters,
            |serial| self.record.entries.contains_key(serial),
            |serial| named.contains_key(serial),
            named.values().filter(|end| end.is_none()).count(),
        );
        let objection = standings.into_iter().find_map(|(cluster, standing)| standing.objection(cluster));
        let objection = objection.filter(|_| request.action == Action::Add);
        let (answer, count) = match request.action {
            _ if !known.signs_lists => (request.refused(
                "the CA may not sign revocation lists: its certificate has key usages without cRLSign. Give the signer a CA \
                 that has it, or one without key usages",
            ), 0),
            _ if named.is_empty() && !takes_bars_back => (request.accepted(&format!("there is no certificate of {what}{since}")), 0),
            _ if objection.is_some() => (request.refused(&objection.unwrap_or_default()), 0),
            Action::Add | Action::Force => {
                let new = named.keys().filter(|serial| !revoked(serial)).count();
                let bars = matches!(what, Selector::Pod(_)).then(|| known.issued.holders(named.keys())).unwrap_or_default();
                let new_bars = bars.iter().filter(|uid| !self.bars(uid)).count();
                let (full, barred_full) = (
                    self.record.entries.len() + new > MOST,
                    new_bars > 0 && self.record.barred.len() + new_bars > MOST_BARRED,
                );
                if full || barred_full {
                    let entries = self.record.entries.values().map(|entry| entry.1).filter(|_| full);
                    let free = entries.chain(self.record.barred.values().map(|bar| bar.0).filter(|_| barred_full)).min();
                    (request.refused(&format!(
                        "a list holds {MOST} certificates and bars {MOST_BARRED} pods at most; the next place is free at {}. To \
                         refuse all certificates of this CA, roll it over with --force",
                        free.map_or_else(String::new, |at| rfc3339::text(time(at)))
                    )), 0)
                } else {
                    for (serial, end) in &named {
                        let until = end.unwrap_or(known.leaves_end);
                        let entry = Entry(seconds(now), seconds(until), request.reason.code());
                        self.record.entries.entry(serial.clone()).or_insert(entry);
                    }
                    let end = named.values().map(|end| end.unwrap_or(known.leaves_end)).max().unwrap_or(now);
                    let mut text = format!("{what} is revoked until {}: {}", rfc3339::text(end), counted(named.len()));
                    if let Selector::Pod(pod) = what {
                        let bar = Bar(seconds(known.authority_end), whole(pod, known.namespace));
                        self.record.barred.extend(bars.into_iter().map(|uid| (uid, bar.clone())));
                        text += "; it gets no other until it is made again";
                    } else {
                        text += &in_use(&known.issued.without_newer(named.keys()));
                    }
                    (request.accepted(&(text + &since)), named.len())
                }
            }
            Action::Undo => {
                let taken: Vec<&String> = named.keys().filter(revoked).collect();
                let count = taken.len();
                for serial in taken.into_iter().cloned().collect::<Vec<_>>() {
                    self.record.entries.remove(&serial);
                }
                self.record.barred.retain(|uid, _| !bars.contains(uid));
                if count > 0 || takes_bars_back {
                    (request.accepted(&format!("{what} is not revoked any more: {}", counted(count))), count.max(1))
                } else {
                    (request.accepted(&format!("{what} is not revoked")), 0)
                }
            }
        };
        (self.record.answer, self.record.count) = (Some(answer), count);
    }

    /// Takes out what has ended, and signs a list where the last one says something else or is not `authority`'s. The number is
    /// never smaller than the time in seconds, so that it does not go back where the record is lost. Whether anything changed.
    ///
    /// # Errors
    /// The list could not be signed; nothing changed but the record.
    pub(in crate::sign) fn refresh(&mut self, authority: &Authority, now: SystemTime) -> Result<bool, IssueError> {
        let before = self.record.entries.len();
        self.record.entries.retain(|_, entry| now < time(entry.1));
        let mut changed = self.record.entries.len() != before;
        let before = self.record.barred.len();
        self.record.barred.retain(|_, bar| now < time(bar.0));
        changed |= self.record.barred.len() != before;
        if !authority.signs_lists() {
            return Ok(self.list.take().is_some() || changed);
        }
        let generation = authority.generation();
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

/// Pods named in an answer at most.
const MOST_NAMED: usize = 10;

/// Tells of pods that use a certificate that is revoked now: they get another one with their next renewal.
fn in_use(pods: &BTreeSet<&str>) -> String {
    let Some(first) = pods.first() else { return String::new() };
    let shown: Vec<&str> = pods.iter().copied().take(MOST_NAMED).collect();
    let more = if pods.len() > MOST_NAMED { format!(" and {} more", pods.len() - MOST_NAMED) } else { String::new() };
    format!("; in use by pod {}{more} until its next renewal: etcd-tls-webhook renew {first}", shown.join(", "))
}

fn counted(certificates: usize) -> String {
    if certificates == 1 { "1 certificate".to_owned() } else { format!("{certificates} certificates") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, UNIX_EPOCH};

    use etcd_tls_contract::key::KeyAlgorithm;

    use super::{super::issued::Leaf, *};

    const DAY: Duration = Duration::from_secs(86400);

    fn now() -> SystemTime {
        UNIX_EPOCH + DAY * 20_000
    }

    fn ca(name: &str) -> Authority {
        Authority::generate(name, KeyAlgorithm::EcdsaP256, DAY * 365, now()).unwrap()
    }

    fn ask(action: Action, serial: &str) -> Request {
        Request {
            action,
            id: format!("{serial}-{action:?}"),
            selector: Selector::Serial(serial.to_owned()),
            reason: Reason::KeyCompromise,
        }
    }

    fn known(issued: &Issued, signs_lists: bool, leaves_end: SystemTime) -> Known<'_> {
        Known { issued, namespace: "prod", signs_lists, voters: &[], leaves_end, authority_end: now() + DAY * 365 }
    }

    fn killed_and_read_back(revoked: &Revoked) -> Revoked {
        let data =
            revoked.data().unwrap().into_iter().map(|(key, bytes)| (key.to_owned(), ByteString(bytes))).collect();
        let read = Revoked::read(&data).unwrap();
        assert_eq!(read, *revoked);
        read
    }

    fn listed(revoked: &Revoked) -> Vec<&str> {
        revoked.list().unwrap().entries().keys().map(String::as_str).collect()
    }

    #[test]
    fn entries_come_and_go_and_the_number_only_grows() {
        let ca = ca("one");
        let mut revoked = Revoked::default();
        assert!(revoked.refresh(&ca, now()).unwrap());
        assert!(listed(&revoked).is_empty(), "a list from the first moment on");
        let first = revoked.list().unwrap().clone();
        assert!(!revoked.refresh(&ca, now()).unwrap(), "the same list stays, byte for byte");

        revoked = killed_and_read_back(&revoked);
        revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
        assert!(revoked.answer().unwrap().accepted);
        assert!(revoked.refresh(&ca, now()).unwrap());
        revoked = killed_and_read_back(&revoked);
        assert_eq!(listed(&revoked), ["4f0a"]);
        let second = revoked.list().unwrap().clone();
        assert_eq!(second.replaces(&first), Ok(true));
        assert_eq!(second.entries()["4f0a"].reason, Reason::KeyCompromise);

        revoked.take(&ask(Action::Add, "4f0b"), &known(&Issued::default(), true, now() + DAY * 2), now());
        revoked.take(&ask(Action::Undo, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
        revoked.refresh(&ca, now()).unwrap();
        assert_eq!(listed(&revoked), ["4f0b"]);
        revoked.take(&ask(Action::Undo, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
        assert_eq!(revoked.report().unwrap().count, 0, "it is not revoked");

        assert!(!revoked.refresh(&ca, now() + DAY).unwrap());
        assert!(revoked.refresh(&ca, now() + DAY * 2).unwrap(), "it leaves with its certificate");
        assert!(listed(&revoked).is_empty());
        assert_eq!(revoked.list().unwrap().replaces(&second), Ok(true));
    }

    #[test]
    fn a_changeover_signs_it_anew_and_a_lost_record_does_not_set_the_number_back() {
        let (one, two) = (ca("one"), ca("two"));
        let mut revoked = Revoked::default();
        revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), true, now() + DAY), now());
        revoked.refresh(&one, now()).unwrap();
        let old = revoked.list().unwrap().clone();
        assert!(revoked.refresh(&two, now()).unwrap());
        assert_eq!(listed(&revoked), ["4f0a"], "serial numbers of both CAs");
        assert_eq!(revoked.list().unwrap().verify(two.chain()), Ok(()));
        assert_eq!(revoked.list().unwrap().replaces(&old), Ok(true));
        let mut lost = Revoked::default();
        lost.refresh(&two, now() + DAY).unwrap();
        assert_eq!(lost.list().unwrap().replaces(revoked.list().unwrap()), Ok(true));
    }

    #[test]
    fn a_full_list_and_a_ca_that_may_sign_none_are_said() {
        let mut revoked = Revoked::default();
        for n in 0..MOST {
            revoked.take(
                &ask(Action::Add, &format!("{:x}", n + 1)),
                &known(&Issued::default(), true, now() + DAY),
                now(),
            );
        }
        revoked.take(&ask(Action::Add, "ffffff"), &known(&Issued::default(), true, now() + DAY), now());
        let answer = revoked.answer().unwrap();
        assert!(!answer.accepted && answer.message.contains("holds 2048 certificates"), "{answer:?}");
        revoked.refresh(&ca("one"), now()).unwrap();
        let bytes: usize = revoked.data().unwrap().iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(revoked.list().unwrap().der().len() <= 128 * 1024 && bytes <= 256 * 1024, "{bytes}");
        revoked.take(&ask(Action::Add, "4f0a"), &known(&Issued::default(), false, now() + DAY), now());
        assert!(revoked.answer().unwrap().message.contains("cRLSign"));
    }

    #[test]
    fn a_pod_that_uses_what_is_revoked_is_named() {
        let mut issued = Issued::default();
        let second = Duration::from_secs(1);
        for (serial, pod, at) in
            [("1", "prod/app-0", now()), ("2", "prod/app-0", now() + second), ("3", "prod/app-1", now())]
        {
            issued.note(serial, Leaf::new(pod, pod.to_owned(), "app", now() + DAY, at));
        }
        let said = |selector: Selector| {
            let mut revoked = Revoked::default();
            let request = Request { selector, ..ask(Action::Add, "x") };
            revoked.take(&request, &known(&issued, true, now() + DAY), now() + second);
            revoked.answer().unwrap().message.clone()
        };
        assert!(!said(Selector::Serial("1".to_owned())).contains("in use"), "it has a newer one");
        let newest = said(Selector::Serial("2".to_owned()));
        assert!(newest.contains("in use by pod prod/app-0 until") && newest.contains("renew prod/app-0"), "{newest}");
        assert!(said(Selector::User("app".to_owned())).contains("in use by pod prod/app-0, prod/app-1 until"));
        let pods: Vec<String> = (10..30).map(|n| format!("prod/app-{n}")).collect();
        assert!(in_use(&pods.iter().map(String::as_str).collect()).contains("prod/app-19 and 10 more"));
    }

    #[test]
    fn a_pod_that_is_revoked_is_barred_until_that_is_taken_back() {
        let mut issued = Issued::default();
        for (serial, days) in [("4f0a", 1), ("4f0b", 2)] {
            let leaf = Leaf::new("uid-0", "prod/etcd-0".to_owned(), "cn", now() + DAY * days, now());
            issued.note(serial, leaf);
        }
        let pod = |action| Request { selector: Selector::Pod("etcd-0".to_owned()), ..ask(action, "x") };
        let mut revoked = Revoked::default();
        let known = known(&issued, true, now() + DAY * 30);
        revoked.take(&pod(Action::Add), &known, now());
        assert_eq!(revoked.report().unwrap().count, 2);
        revoked.refresh(&ca("one"), now()).unwrap();
        assert_eq!(listed(&revoked), ["4f0a", "4f0b"]);
        revoked = killed_and_read_back(&revoked);
        assert!(revoked.bars("uid-0") && !revoked.bars("uid-1"), "made again, it has another uid");
        revoked.refresh(&ca("one"), now() + DAY).unwrap();
        assert_eq!(listed(&revoked), ["4f0b"], "each entry leaves with its certificate");
        assert!(revoked.bars("uid-0"));
        let before = revoked.clone();
        revoked.take(&pod(Action::Undo), &known, now());
        revoked.refresh(&ca("one"), now()).unwrap();
        assert!(listed(&revoked).is_empty() && !revoked.bars("uid-0"));
        // Its certificates have ended, and the record does not know them any more.
        let forgotten = Known { issued: &Issued::default(), ..known };
        let mut late = before;
        late.refresh(&ca("one"), now() + DAY * 3).unwrap();
        assert!(listed(&late).is_empty() && late.bars("uid-0"));
        late.take(&pod(Action::Undo), &forgotten, now() + DAY * 3);
        assert!(!late.bars("uid-0") && late.report().unwrap().count > 0, "{:?}", late.report());
        late.take(&pod(Action::Undo), &forgotten, now() + DAY * 3);
        assert_eq!(late.report().unwrap().count, 0, "there is nothing left to take back");
        let other = Request { selector: Selector::User("nobody".to_owned()), ..ask(Action::Add, "x") };
        revoked.take(&other, &known, now());
        let report = revoked.report().unwrap();
        assert_eq!(report.count, 0);
        assert!(report.answer.unwrap().message.contains("the record holds what was issued since"));
    }
}
