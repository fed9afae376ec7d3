//! Pending requests, judged again when the pods change.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time;

use crate::standalone::{
    auth::User,
    requests::{approval, intake::check_again, server::Server},
};

/// How often requests of pods that are not ready to be judged are judged again.
const JUDGE_AGAIN: Duration = Duration::from_millis(250);

/// Judges the requests of pods again that could not be judged before, and signs what is approved by now. As long as the
/// pods stay as they are, each request is judged once.
pub async fn judge_again(server: Arc<Server>) {
    let mut judged: HashSet<String> = HashSet::new();
    let mut generation = None;
    loop {
        time::sleep(JUDGE_AGAIN).await;
        let waiting: Vec<_> = server.store.with(|index, _| index.iter().filter(|r| !r.decided()).cloned().collect());
        if waiting.is_empty() {
            continue;
        }
        let look = server.entitlements.look();
        // More judged than wait: some were decided on or deleted since.
        if look.generation().is_none() || look.generation() != generation || judged.len() > waiting.len() {
            judged.clear();
            generation = look.generation();
        }
        for stored in waiting {
            if judged.contains(stored.uid()) {
                continue;
            }
            let mut csr = stored.csr();
            let user = User::of(&csr);
            if !server.entitlements.knows(&user) {
                continue;
            }
            judged.insert(stored.uid().to_owned());
            let Ok(checked) = check_again(&server, &csr) else { continue };
            let now = SystemTime::now();
            let Ok(outcome) = server.judge(&user, &csr, &checked, now, Some(&look)) else { continue };
            if server.settle(&mut csr, &checked, outcome, now).is_some() {
                continue;
            }
            let (name, uid, revision) = (stored.name().to_owned(), stored.uid().to_owned(), stored.revision);
            let change = server.store.change(move |index| approval::replace(index.get(&name), &uid, revision, csr));
            match change.await {
                Ok(stored) => server.tell(&stored, &checked, &user),
                Err(error) => {
                    tracing::warn!(%error, request = stored.name(), "could not be decided on; tried again");
                    judged.remove(stored.uid());
                }
            }
        }
    }
}
