use super::*;

fn port(url: &str, spoken: Scheme) -> Port {
    Port { url: url.to_owned(), spoken: Spoken::Is(spoken), trouble: None }
}

/// Three members in plain text that reach each other.
fn cluster() -> Vec<Member> {
    (1..=3)
        .map(|n| Member {
            id: format!("{n}"),
            name: format!("etcd-{n}"),
            clients: vec![port(&format!("http://10.0.0.{n}:2379"), Scheme::Http)],
            peers: vec![port(&format!("http://10.0.0.{n}:2380"), Scheme::Http)],
            reaches: Some((1..=3).filter(|o| *o != n).map(|o| (format!("{o}"), true)).collect()),
        })
        .collect()
}

/// One word of a step, and the member that it is about.
fn of(step: &Step) -> (&'static str, &str) {
    match step {
        Step::Repair(name, _) => ("repair", name),
        Step::Follow(name, _) => ("follow", name),
        Step::Both(name, _) => ("both", name),
        Step::Peer(name, _) => ("peer", name),
        Step::Only(name, _) => ("only", name),
        Step::Done => ("done", ""),
    }
}

/// Does what is said, one step after the other, to the end; the words of the steps.
fn walk(members: &mut [Member], to: Scheme) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        let step = next(members, to);
        let (word, name) = of(&step);
        words.push(format!("{word} {name}"));
        let Some(member) = members.iter_mut().find(|m| m.name == name) else { return words };
        match step {
            Step::Both(..) => {
                let url = to.with(&member.clients[0].url).replace(":2379", ":2378");
                member.clients.push(port(&url, to));
            }
            Step::Peer(..) => member.peers[0].url = to.with(&member.peers[0].url),
            Step::Follow(..) => member.peers[0].spoken = Spoken::Is(to),
            Step::Only(..) => member.clients.retain(|p| Scheme::of(&p.url) == Some(to)),
            Step::Repair(..) | Step::Done => return words,
        }
        assert!(words.len() < 50, "{words:?}");
    }
}

#[test]
fn a_cluster_goes_there_member_by_member_and_back() {
    let mut members = cluster();
    let expected = [
        "both etcd-1",
        "both etcd-2",
        "both etcd-3",
        "peer etcd-1",
        "follow etcd-1",
        "peer etcd-2",
        "follow etcd-2",
        "peer etcd-3",
        "follow etcd-3",
        "only etcd-1",
        "only etcd-2",
        "only etcd-3",
        "done ",
    ];
    assert_eq!(walk(&mut members, Scheme::Https), expected);
    assert_eq!(walk(&mut members, Scheme::Http), expected);
    assert_eq!(next(&members, Scheme::Http), Step::Done);
}

#[test]
fn unhealthy_and_unseen_members_stop_the_plan() {
    let mut members = cluster();
    members[1].clients[0].trouble = Some("connection refused".to_owned());
    assert_eq!(of(&next(&members, Scheme::Https)), ("repair", "etcd-2"));

    let mut members = cluster();
    members[2].peers[0].spoken = Spoken::Unknown;
    assert_eq!(of(&next(&members, Scheme::Https)), ("repair", "etcd-3"));

    // Health does not show it.
    let mut members = cluster();
    members[0].reaches = Some(BTreeMap::from([("2".to_owned(), true), ("3".to_owned(), false)]));
    let step = next(&members, Scheme::Https);
    assert_eq!(of(&step), ("repair", "etcd-1"));
    assert!(matches!(&step, Step::Repair(_, why) if why.contains("etcd-3")), "{step:?}");

    let mut members = cluster();
    members[0].reaches = None;
    assert_eq!(of(&next(&members, Scheme::Https)), ("repair", "etcd-1"));
}

#[test]
fn a_member_that_was_restarted_before_it_was_registered_is_registered() {
    let mut members = cluster();
    for member in &mut members {
        member.clients.push(port("https://10.0.0.9:2378", Scheme::Https));
    }
    members[1].peers[0].spoken = Spoken::Is(Scheme::Https);
    let step = next(&members, Scheme::Https);
    assert!(
        matches!(&step, Step::Follow(name, text) if name == "etcd-2" && text.contains("member update 2 --peer-urls=https://10.0.0.2:2380")),
        "{step:?}"
    );
}
