//! What each account can reach by the rights that the manifests give it, in two steps. On a real API server, with the shipped
//! manifests, as the account itself. The rules are read from the manifests: one without a trial fails the suite.

use std::collections::{BTreeMap, BTreeSet};

use rights::{
    scene::{Account, LIMIT, Scene},
    shipped,
    trials::{self, Outcome},
};
use tests::eventually;

mod rights {
    pub mod scene;
    pub mod shipped;
    pub mod trials;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_right_is_tried_with_what_it_is_not_for() {
    let Some(scene) = Scene::new().await else { return };
    let trials = trials::all(&scene);
    let shipped = shipped::rules();
    let tried: BTreeSet<_> = trials.iter().map(|trial| trial.rule.clone()).collect();
    let untried: Vec<_> = shipped.difference(&tried).map(ToString::to_string).collect();
    assert!(untried.is_empty(), "rights that nothing tries to misuse: {untried:#?}");
    let gone: Vec<_> = tried.difference(&shipped).map(ToString::to_string).collect();
    assert!(gone.is_empty(), "trials of rights that are not shipped: {gone:#?}");
    // A rule is tried by a refusal, or states what it reaches; what may be refused at all has its legitimate use beside it.
    let mut by_rule: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for trial in &trials {
        by_rule.entry(&trial.rule).or_default().push(trial.outcome);
    }
    for (rule, outcomes) in by_rule {
        let decided = outcomes.iter().any(|o| matches!(o, Outcome::Refused(_) | Outcome::Stated(_)));
        assert!(decided, "{rule}: nothing that it is not for is tried");
    }

    let mut wrong = Vec::new();
    for trial in trials {
        let Some(call) = trial.call.clone() else { continue };
        let (rule, what) = (&trial.rule, trial.what);
        match trial.outcome {
            Outcome::Refused(why) => match scene.call(trial.account, call).await {
                Ok(_) => wrong.push(format!("{rule}: {what}: not refused")),
                Err(error) if (error.starts_with("403") || error.starts_with("422")) && error.contains(why) => {}
                Err(error) => wrong.push(format!("{rule}: {what}: refused otherwise: {error}")),
            },
            Outcome::Works => {
                if let Err(error) = scene.call(trial.account, call).await {
                    wrong.push(format!("{rule}: {what}: refused: {error}"));
                }
            }
            Outcome::Stated(_) => unreachable!("a statement calls nothing"),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
