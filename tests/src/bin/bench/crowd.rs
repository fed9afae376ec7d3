//! One namespace that asks as fast as it can, and another one that asks now and then: alone, and beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_tls_contract::{names, role::Role};
use futures::future::join_all;
use hyper::StatusCode;
use tests::installation::Installation;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    asks::{self, Asker, ByHand},
    wire::{Call, Wire},
};

/// Pods of the crowd.
pub(crate) const PODS: u32 = 20;
/// Calls of the crowd at once.
const AT_ONCE: usize = 60;
/// Requests of the honest namespace in each half of a round, one after the other; and as many certificates by hand.
const REQUESTS: usize = 8;
/// Rounds.
pub(crate) const ROUNDS: usize = 3;
/// Requests that the crowd makes before the honest one asks.
const HEAD_START: usize = 100;
/// How long a crowd that has stopped takes to be served, at most.
const LIMIT: Duration = Duration::from_secs(180);

/// Both, ready to ask.
pub(crate) struct Sides {
    crowd: Vec<Asker>,
    honest: Asker,
    by_hand: ByHand,
    cycles: usize,
    wires: Vec<Wire>,
    wire: Wire,
    admin: Wire,
}

/// Requests of the honest namespace.
#[derive(Default)]
pub(crate) struct Half {
    /// How long each took, in milliseconds.
    pub(crate) took: Vec<f64>,
    /// Its names.
    pub(crate) names: Vec<String>,
    /// How long the same writes take by hand, one after the other, and nothing else: nobody watches, judges or signs.
    pub(crate) by_hand: Vec<f64>,
}

/// The rounds so far.
#[derive(Default)]
pub(crate) struct Rounds {
    pub(crate) alone: Half,
    pub(crate) beside: Half,
    /// Requests that the crowd made.
    pub(crate) made: usize,
    /// For how long it made them, in seconds.
    pub(crate) time: f64,
    /// For each honest request beside the crowd, how many of the crowd's waited when it was made, and how many of the crowd's
    /// got their certificates before it got its own.
    pub(crate) order: Vec<(usize, usize)>,
}

impl Sides {
    /// Makes the namespaces, the pods and their connections. The pods of the crowd are of so many service accounts; `writers`
    /// write by hand.
    pub(crate) async fn new(installation: &Installation, accounts: u32, writers: &[Arc<str>]) -> Result<Self, String> {
        let [crowded, honest] = [crowded(accounts), honest(accounts)];
        for namespace in [&crowded, &honest] {
            installation.api.namespace(namespace, &[(names::LABEL, names::DYNAMIC)]).await;
        }
        for n in 0..accounts {
            installation.api.service_account(&crowded, &format!("account-{n}")).await;
        }
        let mut crowd = Vec::new();
        for n in 0..PODS {
            let account = format!("account-{}", n % accounts);
            crowd.push(asks::asker(&installation.api, &crowded, &format!("etcd-{n}"), &account, n).await);
        }
        let honest = asks::asker(&installation.api, &honest, "etcd-0", "default", PODS).await;
        let (address, nobody) = (asks::address(&installation.api), asks::nobody(&installation.api));
        let wires = Wire::open_many(AT_ONCE, address, &nobody).await?;
        let wire = Wire::open(address, nobody).await?;
        let admin = Wire::open(address, asks::admin(&installation.api)).await?;
        let by_hand = ByHand::new(&format!("by-hand-{accounts}"), 2 * ROUNDS * REQUESTS, writers);
        let mut sides = Self { crowd, honest, by_hand, cycles: 0, wires, wire, admin };
        // The right to ask comes with the first pods, and the CAs.
        asks::get_certificate(&mut sides.wire, &sides.honest.asks(&[Role::Peer])[0]).await?;
        asks::get_certificate(&mut sides.wires[0], &sides.crowd[0].asks(&[Role::Peer])[0]).await?;
        Ok(sides)
    }

    /// The honest namespace asks alone, and then beside the crowd.
    pub(crate) async fn round(&mut self, installation: &Installation, rounds: &mut Rounds) -> Result<(), String> {
        for _ in 0..REQUESTS {
            let ask = &self.honest.asks(&[Role::Peer])[0];
            rounds.alone.took.push(asks::get_certificate(&mut self.wire, ask).await?);
            rounds.alone.names.push(ask.name.clone());
            rounds.alone.by_hand.push(self.by_hand.cycle(&mut self.wire, self.cycles).await?);
            self.cycles += 1;
        }
        let (began, over, made) = (Instant::now(), AtomicBool::new(false), AtomicUsize::new(0));
        let before = issued(&installation.sign.log());
        let Self { crowd, honest, by_hand, cycles, wires, wire, .. } = self;
        let flood = join_all(wires.iter_mut().enumerate().map(|(n, wire)| {
            let asker = &crowd[n % crowd.len()];
            let (over, made) = (&over, &made);
            async move {
                while !over.load(Ordering::Relaxed) {
                    let ask = &asker.asks(&[Role::Peer])[0];
                    match wire.call(ask.create()).await? {
                        (status, _) if status.is_success() => drop(made.fetch_add(1, Ordering::Relaxed)),
                        // It asks again, as any client does, and at once.
                        (StatusCode::TOO_MANY_REQUESTS, _) => {}
                        (status, body) => return Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
                    }
                }
                Ok(())
            }
        }));
        let beside = async {
            while made.load(Ordering::Relaxed) < HEAD_START && began.elapsed() < LIMIT {
                sleep(Duration::from_millis(20)).await;
            }
            let mut took = Ok(());
            for _ in 0..REQUESTS {
                let ask = &honest.asks(&[Role::Peer])[0];
                // The log of `sign` when the request is there; it is in the order of service.
                let (mut log, mut waited) = (0, 0);
                let there = || {
                    let text = installation.sign.log();
                    log = text.len();
                    waited = (before + made.load(Ordering::Relaxed)).saturating_sub(issued(&text));
                };
                match asks::get_certificate_made(wire, ask, there).await {
                    Ok(ms) => {
                        rounds.beside.took.push(ms);
                        rounds.beside.names.push(ask.name.clone());
                        let text = installation.sign.log();
                        let after = text.get(log..).unwrap_or_default();
                        let ahead =
                            after.lines().take_while(|line| !line.contains(&ask.name)).filter(is_issued).count();
                        rounds.order.push((waited, ahead));
                    }
                    Err(error) => took = Err(error),
                }
                match by_hand.cycle(wire, *cycles).await {
                    Ok(ms) => rounds.beside.by_hand.push(ms),
                    Err(error) => took = Err(error),
                }
                *cycles += 1;
            }
            over.store(true, Ordering::Relaxed);
            took
        };
        let (flooded, asked) = tokio::join!(flood, beside);
        let (made, time) = (made.into_inner(), began.elapsed().as_secs_f64());
        rounds.made += made;
        rounds.time += time;
        flooded.into_iter().collect::<Result<Vec<()>, String>>()?;
        asked?;
        self.served().await?;
        let [alone, beside] = rounds.medians();
        println!(
            "  {alone:.0} ms alone, {beside:.0} ms beside {made} requests in {time:.1} s, which were served {:.1} s later",
            began.elapsed().as_secs_f64() - time
        );
        Ok(())
    }

    /// Waits until no request waits for anything.
    async fn served(&mut self) -> Result<(), String> {
        let wait = async {
            loop {
                let list = self.admin.succeed(&Call::get(asks::CSRS)).await?;
                let list: serde_json::Value = serde_json::from_slice(&list).map_err(|e| e.to_string())?;
                let all = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
                let waits = |csr: &&serde_json::Value| {
                    let refused = |c: &serde_json::Value| c["type"] != "Approved";
                    let conditions = csr["status"]["conditions"].as_array();
                    csr["status"]["certificate"].is_null() && !conditions.is_some_and(|c| c.iter().any(refused))
                };
                if !all.iter().any(|csr| waits(&csr)) {
                    return Ok(());
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        timeout(LIMIT, wait).await.unwrap_or_else(|_| Err(format!("the crowd is not served within {LIMIT:?}")))
    }
}

/// The namespace that asks as fast as it can, with so many service accounts.
pub(crate) fn crowded(accounts: u32) -> String {
    format!("crowd-{accounts}")
}

/// The other one.
pub(crate) fn honest(accounts: u32) -> String {
    format!("honest-{accounts}")
}

/// Whether a line of the log of `sign` says that a certificate was issued.
fn is_issued(line: &&str) -> bool {
    line.contains(": issued")
}

/// Certificates by the log of `sign`.
fn issued(log: &str) -> usize {
    log.lines().filter(is_issued).count()
}

impl Rounds {
    /// The median honest request, alone and beside the crowd, in milliseconds.
    pub(crate) fn medians(&self) -> [f64; 2] {
        [&self.alone, &self.beside].map(|half| crate::stats::median(&half.took))
    }

    /// The median of those by hand, alone and beside the crowd, in milliseconds.
    pub(crate) fn by_hand(&self) -> [f64; 2] {
        [&self.alone, &self.beside].map(|half| crate::stats::median(&half.by_hand))
    }

    /// The medians of [`Self::order`].
    pub(crate) fn order(&self) -> [f64; 2] {
        let of =
            |part: fn(&(usize, usize)) -> usize| self.order.iter().map(|pair| part(pair) as f64).collect::<Vec<_>>();
        [of(|pair| pair.0), of(|pair| pair.1)].map(|all| crate::stats::median(&all))
    }
}
