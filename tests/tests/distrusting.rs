//! Which members of a real cluster do not trust a CA yet, as a sidecar sees it at their ports. A certificate of a CA that an issuer
//! swapped waits for them.

use std::{collections::BTreeMap, time::Duration};

use etcd_tls_contract::role::Domain;
use etcd_tls_sidecar::issuance::others::DistrustingMembers;
use tests::{
    etcd::{EtcdBinary, leader},
    eventually,
    in_process_members::{Members, bundle},
    pki::Ca,
    say, tier,
};

/// One restart of a member, on a machine that is busy with other tests.
const RESTART: Duration = Duration::from_secs(60);

fn binaries() -> Vec<EtcdBinary> {
    let Some(first) = tier::etcd() else { return Vec::new() };
    if tier::soaking() {
        return EtcdBinary::all();
    }
    say("the short form of this test; the long one: ETCD_TLS_SOAK=1 cargo test -p tests --test distrusting");
    vec![first]
}

/// A certificate of a CA that an issuer swapped waits for these members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_that_do_not_trust_a_ca_yet_are_named() {
    for binary in binaries() {
        for (old, new) in [(Ca::new("old"), Ca::new("new")), (Ca::new("same"), Ca::new("same"))] {
            let mut pods = Members::start(&binary, 3, &old).await;
            pods.loaded(&bundle(&[&old]), RESTART).await;
            let both = bundle(&[&old, &new]);
            // A leader lets the others restart first.
            let urls: Vec<_> = pods.supervisor.with(|c| c.members.iter().map(|m| m.metrics_url()).collect());
            let last = leader(&urls).await;
            let others: Vec<usize> = (0..3).filter(|member| *member != last).collect();
            let names = |members: &[usize]| members.iter().map(|member| format!("etcd-{member}")).collect::<Vec<_>>();
            let waits = async |pods: &Members, members: &[usize]| {
                for domain in [Domain::Peer, Domain::Client] {
                    let expected = DistrustingMembers { members: names(members), unknown: None };
                    eventually(&format!("{domain}: {expected:?}"), RESTART, || async {
                        let mut seen = pods.pods[others[0]].distrusting(domain, &both);
                        seen.members.sort();
                        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
                    })
                    .await;
                }
            };
            waits(&pods, &[0, 1, 2]).await;
            for member in &others {
                pods.pods[*member].files.trust(&both);
                pods.pods[*member].installed();
            }
            eventually("two members have loaded both", 2 * RESTART, || async {
                let loaded = others.iter().all(|member| pods.pods[*member].has_loaded(&both));
                if loaded { Ok(()) } else { Err("not yet") }
            })
            .await;
            waits(&pods, &[last]).await;
            // It sees that the others trust more, so that its sidecar asks the issuer.
            assert_eq!(pods.pods[others[0]].status().ahead, BTreeMap::new(), "nobody trusts more than it");
            eventually("the last member sees the others' CA", RESTART, || async {
                pods.pods[last].installed();
                tokio::time::sleep(Duration::from_millis(500)).await;
                let ahead: Vec<Domain> = pods.pods[last].status().ahead.into_keys().collect();
                if ahead == [Domain::Peer, Domain::Client] { Ok(()) } else { Err(format!("{ahead:?}")) }
            })
            .await;
            // One that is away is not one that trusts it.
            pods.supervisor.hold_down(last);
            waits(&pods, &[last]).await;
            pods.pods[last].files.trust(&both);
            pods.pods[last].installed();
            pods.supervisor.free(last);
            waits(&pods, &[]).await;
        }
    }
}

/// A port that asks for no certificate shows no CAs: whether its member trusts one cannot be seen, and that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_port_asks_for_no_certificate_is_unknown() {
    for binary in binaries() {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let (trust, next) = (bundle(&[&old]), bundle(&[&new]));
        let pods = Members::start(&binary, 3, &old).await;
        pods.loaded(&trust, RESTART).await;
        pods.supervisor.with(|cluster| {
            // The last one of a flag counts.
            cluster.members[1].arguments = ["--client-cert-auth=false", "--trusted-ca-file="].map(str::to_owned).into();
        });
        pods.supervisor.terminate(1);
        let sees = async |domain, bundle, expected: DistrustingMembers| {
            eventually(&format!("{domain}: {expected:?}"), RESTART, || async {
                let mut seen = pods.pods[0].distrusting(domain, bundle);
                seen.members.sort();
                if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        };
        let why = "etcd-1: its client port asks for no certificate, so it does not show which CAs it trusts";
        sees(Domain::Client, &trust, DistrustingMembers::unseen(why)).await;
        sees(Domain::Peer, &trust, DistrustingMembers::default()).await;
        // Members that are seen not to trust it count first: a certificate waits longer for them.
        let against = ["etcd-0", "etcd-2"].map(str::to_owned).into();
        sees(Domain::Client, &next, DistrustingMembers { members: against, unknown: None }).await;
    }
}
