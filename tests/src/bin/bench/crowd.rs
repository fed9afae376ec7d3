//! One namespace that asks as fast as it can, and another one that asks now and then: alone, and beside it.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use etcd_tls_contract::{names, role::Role};
use futures::future::join_all;
use hyper::StatusCode;
use tests::stack::Stack;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    asks::{self, Asker},
    wire::{Call, Wire},
};

/// Pods of the crowd.
pub(crate) const PODS: u32 = 20;
/// Calls of the crowd at once.
const AT_ONCE: usize = 60;
/// Requests of the honest namespace in each half of a round, one after the other.
const REQUESTS: usize = 8;
/// Requests that the crowd makes before the honest one asks.
const HEAD_START: usize = 100;
/// How long a crowd that has stopped takes to be served, at most.
const LIMIT: Duration = Duration::from_secs(180);

/// Both, ready to ask.
pub(crate) struct Sides {
    crowd: Vec<Asker>,
    honest: Asker,
    wires: Vec<Wire>,
    wire: Wire,
    admin: Wire,
}

/// The rounds so far: how long each honest request took, in milliseconds, and how many requests the crowd made.
#[derive(Default)]
pub(crate) struct Rounds {
    pub(crate) alone: Vec<f64>,
    pub(crate) beside: Vec<f64>,
    pub(crate) made: usize,
    /// For how long it made them, in seconds.
    pub(crate) time: f64,
    /// For each honest request beside the crowd, how many of the crowd's waited when it was made, and how many of the crowd's
    /// got their certificates before it got its own.
    pub(crate) order: Vec<(usize, usize)>,
}

impl Sides {
    /// Makes the namespaces, the pods and their connections. The pods of the crowd are of so many service accounts.
    pub(crate) async fn new(stack: &Stack, accounts: u32) -> Result<Self, String> {
        let [crowded, honest] = ["crowd", "honest"].map(|name| format!("{name}-{accounts}"));
        for namespace in [&crowded, &honest] {
            stack.api.namespace(namespace, &[(names::LABEL, names::DYNAMIC)]).await;
        }
        for n in 0..accounts {
            stack.api.service_account(&crowded, &format!("account-{n}")).await;
        }
        let mut crowd = Vec::new();
        for n in 0..PODS {
            let account = format!("account-{}", n % accounts);
            crowd.push(asks::asker(&stack.api, &crowded, &format!("etcd-{n}"), &account, n).await);
        }
        let honest = asks::asker(&stack.api, &honest, "etcd-0", "default", PODS).await;
        let (address, nobody) = (asks::address(&stack.api), asks::nobody(&stack.api));
        let wires = Wire::open_many(AT_ONCE, address, &nobody).await?;
        let wire = Wire::open(address, nobody).await?;
        let admin = Wire::open(address, asks::admin(&stack.api)).await?;
        let mut sides = Self { crowd, honest, wires, wire, admin };
        // The right to ask comes with the first pods, and the CAs.
        sides.ask(&mut Vec::new()).await?;
        asks::get_certificate(&mut sides.wires[0], &sides.crowd[0].asks(&[Role::Peer])[0]).await?;
        Ok(sides)
    }

    /// The honest namespace asks alone, and then beside the crowd.
    pub(crate) async fn round(&mut self, stack: &Stack, rounds: &mut Rounds) -> Result<(), String> {
        for _ in 0..REQUESTS {
            self.ask(&mut rounds.alone).await?;
        }
        let (began, over, made) = (Instant::now(), AtomicBool::new(false), AtomicUsize::new(0));
        let before = issued(&stack.sign.log());
        let Self { crowd, honest, wires, wire, .. } = self;
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
                    let text = stack.sign.log();
                    log = text.len();
                    waited = (before + made.load(Ordering::Relaxed)).saturating_sub(issued(&text));
                };
                match asks::get_certificate_made(wire, ask, there).await {
                    Ok(ms) => {
                        rounds.beside.push(ms);
                        let text = stack.sign.log();
                        let after = text.get(log..).unwrap_or_default();
                        let ahead =
                            after.lines().take_while(|line| !line.contains(&ask.name)).filter(is_issued).count();
                        rounds.order.push((waited, ahead));
                    }
                    Err(error) => took = Err(error),
                }
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

    async fn ask(&mut self, took: &mut Vec<f64>) -> Result<(), String> {
        took.push(asks::get_certificate(&mut self.wire, &self.honest.asks(&[Role::Peer])[0]).await?);
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
        [&self.alone, &self.beside].map(|all| crate::stats::median(all))
    }

    /// The medians of [`Self::order`].
    pub(crate) fn order(&self) -> [f64; 2] {
        let of =
            |part: fn(&(usize, usize)) -> usize| self.order.iter().map(|pair| part(pair) as f64).collect::<Vec<_>>();
        [of(|pair| pair.0), of(|pair| pair.1)].map(|all| crate::stats::median(&all))
    }
}
