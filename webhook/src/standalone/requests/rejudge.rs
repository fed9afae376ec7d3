//! Pending requests, judged again when the pods change.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time;
use tracing::Instrument as _;

use crate::standalone::{
    auth::User,
    error::ApiError,
    requests::{approval, intake::check_again, judge, pods::Look, server::Server},
    store::Stored,
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
            let csr = stored.csr();
            let user = User::of(&csr);
            if judged.contains(stored.uid()) || !server.entitlements.knows(&user) {
                continue;
            }
            judged.insert(stored.uid().to_owned());
            let again = async {
                if let Err(error) = decide(&server, &stored, &user, &look).await {
                    tracing::warn!(%error, "could not be decided on; tried again");
                    judged.remove(stored.uid());
                }
            };
            again.instrument(judge::span(&csr)).await;
        }
    }
}

/// Decides on a pending request, as the pods are at `look`.
///
/// # Errors
/// The decision could not be stored.
async fn decide(server: &Server, stored: &Stored, user: &User, look: &Look) -> Result<(), ApiError> {
    let mut csr = stored.csr();
    let Ok(checked) = check_again(server, &csr) else { return Ok(()) };
    let now = SystemTime::now();
    let Ok(outcome) = server.judge(user, &csr, &checked, now, Some(look)) else { return Ok(()) };
    if server.settle(&mut csr, &checked, outcome, now).is_some() {
        return Ok(());
    }
    let (name, uid, revision) = (stored.name().to_owned(), stored.uid().to_owned(), stored.revision);
    let change = server.store.change(move |index| approval::replace(index.get(&name), &uid, revision, csr));
    server.tell(&*change.await?, &checked, user);
    Ok(())
}
