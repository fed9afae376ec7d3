//! Where the time of a burst goes: the CPU of each process, and the API server's own count of calls.

use std::collections::BTreeMap;

use tests::installation::Installation;

use crate::{
    stats::cpu,
    wire::{Call, Wire},
};

/// The processes that share the machine's cores.
pub(crate) struct Load(Vec<(&'static str, u32)>);

/// Their usage at one moment.
pub(crate) struct Reading {
    cpu: Vec<(&'static str, f64)>,
    calls: BTreeMap<String, f64>,
}

/// The usage between readings.
#[derive(Default)]
pub(crate) struct Spent {
    cpu: BTreeMap<&'static str, f64>,
    calls: BTreeMap<String, f64>,
}

impl Load {
    pub(crate) fn new(installation: &Installation) -> Self {
        let [apiserver, etcd] = installation.api.pids();
        Self(vec![
            ("kube-apiserver", apiserver),
            ("its etcd", etcd),
            ("approver", installation.approve.id()),
            ("signer", installation.sign.id()),
            ("requesters", std::process::id()),
        ])
    }

    /// Adds to `spent` what is used until `work` is done.
    pub(crate) async fn of<T>(
        &self,
        spent: &mut Spent,
        wire: &mut Wire,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let before = self.now(wire).await?;
        let done = work.await?;
        spent.add(&before, &self.now(wire).await?);
        Ok(done)
    }

    /// Reads it; `wire` is an administrator's.
    pub(crate) async fn now(&self, wire: &mut Wire) -> Result<Reading, String> {
        let metrics = wire.succeed(&Call::get("/metrics")).await?;
        let mut calls = BTreeMap::new();
        for line in String::from_utf8_lossy(&metrics).lines() {
            let Some((labels, count)) = line.strip_prefix("apiserver_request_total{").and_then(|l| l.split_once("} "))
            else {
                continue;
            };
            let label = |name: &str| {
                let value = labels.split_once(&format!("{name}=\""))?.1;
                Some(value.split('"').next().unwrap_or_default())
            };
            let Some(what) = label("resource").filter(|r| ["certificatesigningrequests", "pods"].contains(r)) else {
                continue;
            };
            let (verb, code) = (label("verb").unwrap_or_default(), label("code").unwrap_or_default());
            let part = label("subresource").filter(|s| !s.is_empty()).map(|s| format!("/{s}")).unwrap_or_default();
            let refused = if code.starts_with('2') { String::new() } else { format!(" ({code})") };
            *calls.entry(format!("{verb} {what}{part}{refused}")).or_default() += count.parse().unwrap_or(0.0);
        }
        Ok(Reading { cpu: self.0.iter().map(|(name, pid)| (*name, cpu(*pid))).collect(), calls })
    }
}

impl Spent {
    pub(crate) fn add(&mut self, before: &Reading, after: &Reading) {
        for ((name, before), (_, after)) in before.cpu.iter().zip(&after.cpu) {
            *self.cpu.entry(name).or_default() += after - before;
        }
        for (call, after) in &after.calls {
            *self.calls.entry(call.clone()).or_default() += after - before.calls.get(call).unwrap_or(&0.0);
        }
    }

    /// Milliseconds of each process for one of `count`.
    pub(crate) fn cpu(&self, count: f64) -> String {
        let of = |(name, seconds): (&&str, &f64)| format!("{name} {:.2} ms", seconds * 1e3 / count);
        self.cpu.iter().map(of).collect::<Vec<_>>().join(", ")
    }

    /// Calls of each kind for one of `count`.
    pub(crate) fn calls(&self, count: f64) -> String {
        let often = self.calls.iter().filter(|(_, n)| **n / count >= 0.01);
        often.map(|(call, n)| format!("{call} {:.2}", n / count)).collect::<Vec<_>>().join(", ")
    }
}
