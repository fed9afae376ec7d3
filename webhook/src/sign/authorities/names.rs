//! The names and addresses of a certificate in a record, as a short text. Pure.
//!
//! Nearly all names of a pod are made of its own and of its Services', so one text is that of all pods of a workload:
//!
//! ```text
//! $p.etcd.$n,+.svc,+.cluster.local,localhost,127.0.0.1,$
//! ```
//!
//! A label `$p` is the pod's name and `$n` its namespace. A name that begins with `+` continues the one before. `$` alone at the end: there are
//! more, which are left out. The addresses of the pod and of its Services differ from pod to pod: they are a text of their own.

use std::net::IpAddr;

use etcd_tls_contract::san::Sans;

use super::memory::chunk;

/// Bytes of one text at most.
const MOST: usize = 512;
/// Bytes of the addresses that are a text of their own, at most: those of a pod with two, and of two Services.
const MOST_ADDRESSES: usize = 96;
/// What stands for names that are left out.
const MORE: &str = "$";
/// Names and addresses in a description, at most, and bytes of them.
const SHOWN: (usize, usize) = (8, 240);

/// What certificates of several pods may have in common.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Names(Box<str>);

impl Names {
    /// The names of a certificate of `pod` (`<namespace>/<name>`, or empty), and the text of its addresses; `None`: it has no names.
    pub(super) fn of(sans: &Sans, pod: &str) -> (Option<Self>, String) {
        let (mut addresses, mut rest) = (String::new(), Vec::new());
        for ip in &sans.ips {
            let text = ip.to_string();
            if ip.is_loopback() || addresses.len() + text.len() >= MOST_ADDRESSES {
                rest.push(text);
            } else {
                add(&mut addresses, &text);
            }
        }
        let parts = parts(pod);
        let (mut text, mut before, mut more) = (String::new(), String::new(), false);
        for name in sans.dns.iter().map(|name| coded(name, parts)).chain(rest.into_iter().map(Some)) {
            let Some(name) = name else {
                more = true;
                continue;
            };
            let rest = name.strip_prefix(&*before).filter(|rest| !before.is_empty() && !rest.is_empty());
            let short = rest.map_or_else(|| name.clone(), |rest| format!("+{rest}"));
            if text.len() + short.len() + 2 + MORE.len() > MOST {
                more = true;
                break;
            }
            add(&mut text, &short);
            before = name;
        }
        if more {
            add(&mut text, MORE);
        }
        ((!text.is_empty()).then(|| Self::read(&text)), addresses)
    }

    /// A text that was written.
    pub(super) fn read(text: &str) -> Self {
        Self(text.into())
    }

    /// Names that are all left out.
    pub(super) fn left_out() -> Self {
        Self::read(MORE)
    }

    /// The text.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// The names of a certificate of `pod`, and true if there are more.
    pub(super) fn list(&self, pod: &str) -> (Vec<String>, bool) {
        let (name, namespace) = parts(pod);
        let (mut list, mut before) = (Vec::new(), String::new());
        for part in self.0.split(',') {
            if part == MORE {
                return (list, true);
            }
            let whole = part.strip_prefix('+').map_or_else(|| part.to_owned(), |rest| format!("{before}{rest}"));
            let label = |label: &str| match label {
                "$p" => name.to_owned(),
                "$n" => namespace.to_owned(),
                label => label.to_owned(),
            };
            list.push(whole.split('.').map(label).collect::<Vec<_>>().join("."));
            before = whole;
        }
        (list, false)
    }

    /// Bytes of memory beside a pointer to it that counts its holders in two words, about.
    pub(super) fn heap(&self) -> usize {
        chunk(size_of::<Self>() + 16) + chunk(self.0.len())
    }
}

/// Names and addresses for people: some of many.
pub(super) fn shown(names: &[String], more: bool) -> String {
    let (mut text, mut count) = (String::new(), 0);
    for name in names {
        if count == SHOWN.0 || text.len() + name.len() > SHOWN.1 {
            break;
        }
        text = if text.is_empty() { name.clone() } else { format!("{text}, {name}") };
        count += 1;
    }
    match names.len() - count {
        0 if !more => text,
        0 => format!("{text} and more").trim_start().to_owned(),
        left if more => format!("{text} and more than {left} more").trim_start().to_owned(),
        left => format!("{text} and {left} more").trim_start().to_owned(),
    }
}

/// The addresses of a text.
pub(super) fn addresses(text: &str) -> impl Iterator<Item = String> {
    text.split(',').filter(|part| part.parse::<IpAddr>().is_ok()).map(str::to_owned)
}

/// The name and the namespace of a pod.
fn parts(pod: &str) -> (&str, &str) {
    pod.split_once('/').map_or((pod, ""), |(namespace, name)| (name, namespace))
}

/// A DNS name with the pod's parts by their signs; `None`: no DNS name, as a CA that was in use before may have issued.
fn coded(name: &str, (pod, namespace): (&str, &str)) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_*".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return None;
    }
    let label = |label| match label {
        "" => "",
        label if label == pod => "$p",
        label if label == namespace => "$n",
        label => label,
    };
    Some(name.split('.').map(label).collect::<Vec<_>>().join("."))
}

fn add(text: &mut String, part: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(part);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sans(text: &str) -> Sans {
        text.parse().unwrap()
    }

    fn read_back(sans: &Sans, pod: &str) -> (Vec<String>, bool) {
        let (names, own) = Names::of(sans, pod);
        let (mut list, more) = names.map(|names| Names::read(names.text()).list(pod)).unwrap_or_default();
        list.extend(addresses(&own));
        list.sort();
        (list, more)
    }

    #[test]
    fn the_names_of_all_pods_of_a_workload_are_one_short_text() {
        let of = |n: u8| {
            sans(&format!(
                "etcd-{n}.etcd.prod,etcd-{n}.etcd.prod.svc,etcd-{n}.etcd.prod.svc.cluster.local,etcd.prod,etcd.prod.svc,\
                 etcd.prod.svc.cluster.local,localhost,10.0.0.{n},10.96.0.9,127.0.0.1,::1"
            ))
        };
        let (text, own) = Names::of(&of(1), "prod/etcd-1");
        let text = text.unwrap();
        let expected = "$p.etcd.$n,+.svc,+.cluster.local,etcd.$n,+.svc,+.cluster.local,localhost,127.0.0.1,::1";
        assert_eq!((text.text(), own.as_str()), (expected, "10.0.0.1,10.96.0.9"));
        assert_eq!(Names::of(&of(2), "prod/etcd-2").0.unwrap().text(), expected);
        assert!(Names::of(&Sans::default(), "prod/etcd-1") == (None, String::new()));
    }

    #[test]
    fn every_name_is_read_back() {
        for (text, pod) in [
            ("a.b,*.a.b,a.b.c,a.bc", "ns/a"),
            ("app.app.svc,app-2.app,x.app", "app/app"),
            ("a.prod.prod", "prod/prod"),
            ("m1.example.org,192.0.2.7,2001:db8::7", ""),
            ("a.b.c", "ns/a.b"),
            ("localhost", "ns/localhost"),
        ] {
            let sans = sans(text);
            let mut all = sans.texts();
            all.sort();
            assert_eq!(read_back(&sans, pod), (all, false), "{text}");
        }
        let odd = Sans { dns: ["$p.x".to_owned(), "a,b".to_owned()].into(), ..Sans::default() };
        assert_eq!(read_back(&odd, "ns/a"), (Vec::new(), true));
    }

    #[test]
    fn many_long_names_are_cut_and_that_is_said() {
        let label = "x".repeat(60);
        let dns: Vec<String> = (0..100).map(|n| format!("{n:03}{label}.{label}.{label}.{label}.ab")).collect();
        let ips = (0..100).map(|n| format!("2001:db8:1111:2222:3333:4444:5555:{n:x}").parse().unwrap()).collect();
        let sans = Sans { dns: dns.into_iter().collect(), ips };
        let (text, own) = Names::of(&sans, "ns/a");
        assert!(text.unwrap().text().len() <= MOST && own.len() <= MOST_ADDRESSES);
        let (list, more) = read_back(&sans, "ns/a");
        assert!(more && !list.is_empty() && list.iter().all(|name| sans.texts().contains(name)), "{list:?}");
        assert_eq!(Names::left_out().list("ns/a"), (Vec::new(), true));
    }

    #[test]
    fn people_are_shown_some_of_many() {
        let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
        assert_eq!(
            (shown(&names(2), false), shown(&names(2), true)),
            ("n0, n1".to_owned(), "n0, n1 and more".to_owned())
        );
        assert_eq!(shown(&names(10), false), "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more");
        assert_eq!((shown(&[], true), shown(&[], false)), ("and more".to_owned(), String::new()));
        let long = shown(&vec!["x".repeat(200); 100], true);
        assert!(long.len() < 300 && long.ends_with("and more than 99 more"), "{long}");
    }
}
