//! One namespace that asks as fast as it can slows another's certificate by no more than twice.

use tests::installation::{Installation, Options};

use crate::{
    asks,
    crowd::{self, PODS, ROUNDS, Rounds, Sides},
    load::{Load, Spent},
    report::Report,
    stats::percentile,
    steps::{Audit, STEPS, medians},
    wire::Wire,
};

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    // A pod of the crowd gets as many certificates as it asks for.
    let sign = ["--certificates-per-pod=1024"].map(ToOwned::to_owned).to_vec();
    let all = [1, PODS];
    let crowds = all.map(crowd::crowded);
    let audit = Audit::new(&crowds.each_ref().map(String::as_str));
    let options = Options { sign, api: audit.options(), ..Options::default() };
    let Some(installation) = Installation::start(&options).await else {
        report.skip(
            "one namespace beside another one that asks as fast as it can",
            "no API server, or no address but loopback",
            "KUBEBUILDER_ASSETS=<directory with kube-apiserver, kubectl and etcd> make bench SECTIONS=fairness",
        );
        return Ok(());
    };
    let mut admin = Wire::open(asks::address(&installation.api), asks::admin(&installation.api)).await?;
    let writers = asks::writers(&installation.api).await;
    let load = Load::new(&installation);
    for accounts in all {
        let crowd = format!("a namespace with {accounts} service accounts that asks as fast as it can");
        let mut sides = Sides::new(&installation, accounts, &writers).await?;
        let (mut rounds, mut spent) = (Rounds::default(), Spent::default());
        for _ in 0..ROUNDS {
            load.of(&mut spent, &mut admin, sides.round(&installation, &mut rounds)).await?;
        }
        let [alone, beside] = rounds.medians();
        report.plain("a namespace's certificate, alone: p50", format!("{alone:.0} ms"));
        report.plain(
            format!("the same beside {crowd}: p50 and p99"),
            format!("{beside:.0} ms, {:.0} ms", percentile(&rounds.beside.took, 0.99)),
        );
        let [waited, ahead] = rounds.order();
        report.plain(
            "requests of that namespace that waited, and that were served before",
            format!("{waited:.0}, {ahead:.0}"),
        );
        let halves = [&rounds.alone, &rounds.beside].map(|half| audit.steps(&crowd::honest(accounts), &half.names));
        let [steps_alone, steps_beside] = halves.map(|half| half.map(|all| medians(&all)));
        for (step, (alone, beside)) in STEPS.iter().zip(steps_alone?.iter().zip(steps_beside?)) {
            report.plain(format!("{step}: alone, beside"), format!("{alone:.1} ms, {beside:.1} ms"));
        }
        let [by_hand, by_hand_beside] = rounds.by_hand();
        report.plain(
            "the three writes by hand: alone, beside",
            format!("{by_hand:.0} ms, {by_hand_beside:.0} ms: {:.1} times as long", by_hand_beside / by_hand),
        );
        let made = rounds.made as f64;
        report.plain("requests of that namespace", format!("{made:.0}, {:.0}/s", made / rounds.time));
        report.plain("CPU for a request of all", spent.cpu(made));
        let ratio = beside / alone;
        report.judged(format!("beside {crowd}, against alone"), format!("{ratio:.1}"), "<= 2", ratio <= 2.0);
    }
    Ok(())
}
