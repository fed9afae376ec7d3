//! Keeps the Secret until SIGTERM or SIGINT.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use etcd_tls_contract::{args::PodArgs, crl::Crl, names, role::Role};
use etcd_tls_telemetry::admin;
use hyper::Method;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    decide::{MARK, Refusal, decide, serial},
    status::Status,
};
use crate::{
    agent::{health::PREFIX, work::listen},
    error::Error,
    issuance::schedule::TICK,
    kube::{
        ApiError,
        http::{Credentials, Kube},
        pod::PodCredentials,
    },
    os::{
        clock::{Clock as _, System},
        directory_watch::{DirectoryWatch, changes},
    },
    store::{self, Entry},
};

/// How often a write is tried again at once where the Secret was changed between GET and PUT.
const ATTEMPTS: u32 = 3;

/// Why the Secret is not current.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// There is no good certificate to write.
    #[error("{problem}; see the log of container {}", names::SIDECAR_CONTAINER)]
    Files {
        /// The fault of the files.
        problem: String,
    },
    /// The Secret is not to be written, or cannot be.
    #[error("Secret {secret} is not written: {refusal}")]
    Refused {
        /// `<namespace>/<name>`.
        secret: String,
        /// Why not.
        refusal: Refusal,
    },
    /// The API server says no.
    #[error("Secret {secret}: {error}{}", cure(error, secret))]
    Api {
        /// `<namespace>/<name>`.
        secret: String,
        /// The API server's error.
        error: ApiError,
    },
}

/// The next step after an answer that waiting may never change.
fn cure(error: &ApiError, secret: &str) -> String {
    let name = secret.split('/').next_back().unwrap_or_default();
    match error.code() {
        Some(403) => {
            format!("; let the pod's service account get and update that Secret: a Role with resourceNames: [{name}]")
        }
        Some(404) => {
            format!("; create it, of type kubernetes.io/tls and with the label {MARK}=true: this process may not")
        }
        Some(409) => "; somebody else writes it, too".to_owned(),
        _ => String::new(),
    }
}

/// Keeps the Secret `name` of the pod's namespace until SIGTERM or SIGINT.
///
/// # Errors
/// Failures that no retry mends: arguments, the admin port.
pub async fn run(args: &PodArgs, name: &str) -> Result<(), Error> {
    let [role] = args.roles[..] else {
        return Err(Error::Arguments("--secret is for one role: give one of --roles".into()));
    };
    if role != Role::Client {
        // Others have the pod's name for CN: the next pod of a Deployment could not go on with the Secret.
        return Err(Error::Arguments("--secret is for the role client: give --roles=client".into()));
    }
    if !names::is_dns_subdomain(name) {
        return Err(Error::Arguments(format!("--secret {name:?} is no name of a Secret").into()));
    }
    let namespace = namespace(&args.token_dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen(args.admin_port).await?;
    let status = Arc::new(Status::new(Registry::with_prefix(PREFIX)));
    tokio::spawn(admin::serve(listener, Arc::clone(&status) as Arc<dyn admin::Status>));
    let watch = DirectoryWatch::new(&args.dir)
        .inspect_err(|error| tracing::warn!(%error, "the certificates cannot be watched; they are read every minute"))
        .ok();
    let api = Object {
        kube: Kube::new(PodCredentials::from_env(&args.token_dir)?),
        path: format!("/api/v1/namespaces/{namespace}/secrets/{name}"),
    };
    let mut secret = Secret { api, name: format!("{namespace}/{name}") };
    let work = async {
        let mut failures = 0_u32;
        loop {
            let look = secret.look(role, &status, |now| settled(&args.dir, role, now)).await;
            let trouble = look.err().map(|error| error.to_string());
            failures = if trouble.is_some() { failures.saturating_add(1) } else { 0 };
            if status.set(trouble.clone()) {
                match trouble {
                    Some(trouble) => tracing::error!(%trouble, "the Secret is not current"),
                    None => tracing::info!(secret = secret.name, "the Secret is current"),
                }
            }
            secret.api.kube.close();
            let pause = if failures == 0 { TICK } else { Duration::from_secs(1 << failures.min(6)).min(TICK) };
            tokio::select! {
                () = sleep(pause) => {}
                () = changes(watch.as_ref()) => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop; the Secret stays as it is");
    Ok(())
}

/// The pod's namespace, as the mounted service account names it.
fn namespace(token_dir: &Path) -> Result<String, Error> {
    let path = token_dir.join("namespace");
    let wrong = |message: String| ApiError::Access(format!("{}: {message}; is this a pod?", path.display()));
    let text = fs::read_to_string(&path).map_err(|error: io::Error| wrong(error.to_string()))?;
    let namespace = text.trim();
    if names::is_dns_label(namespace) {
        Ok(namespace.to_owned())
    } else {
        Err(wrong("is no namespace".to_owned()).into())
    }
}

/// The two calls of the process.
trait Calls {
    async fn get(&mut self) -> Result<Value, ApiError>;

    async fn put(&mut self, object: &Value) -> Result<Value, ApiError>;
}

/// The Secret at the API server.
struct Object<C> {
    kube: Kube<C>,
    path: String,
}

impl<C: Credentials> Calls for Object<C> {
    async fn get(&mut self) -> Result<Value, ApiError> {
        self.kube.exchange(Method::GET, &self.path, None).await?.object()
    }

    async fn put(&mut self, object: &Value) -> Result<Value, ApiError> {
        self.kube.exchange(Method::PUT, &self.path, Some(object)).await?.object()
    }
}

struct Secret<A> {
    api: A,
    /// `<namespace>/<name>`.
    name: String,
}

impl<A: Calls> Secret<A> {
    /// Brings what `on_disk` says to the Secret.
    async fn look(
        &mut self,
        role: Role,
        status: &Status,
        on_disk: impl Fn(SystemTime) -> Result<OnDisk, String>,
    ) -> Result<(), KeepError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let now = System::new().now();
            // Read each time: a set installed in the meantime is newer.
            let OnDisk { entry, revoked } = on_disk(now).map_err(|problem| KeepError::Files { problem })?;
            let present = self.api.get().await.map_err(|error| self.error(error))?;
            let decision = decide(&present, role, &entry, revoked.as_deref(), now);
            let wanted = decision.map_err(|refusal| KeepError::Refused { secret: self.name.clone(), refusal })?;
            let Some(object) = wanted else { return Ok(()) };
            match self.api.put(&object).await {
                Ok(_) => {
                    status.wrote();
                    let serial = serial(&object).unwrap_or_default();
                    tracing::info!(secret = self.name, serial, bundle = entry.bundle().digest(), "Secret written");
                    return Ok(());
                }
                Err(error) if error.code() == Some(409) && attempts < ATTEMPTS => {}
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    fn error(&self, error: ApiError) -> KeepError {
        KeepError::Api { secret: self.name.clone(), error }
    }
}

/// [`on_disk`], read again where it fails: the sidecar removes the old files as soon as the link to the new ones has moved.
fn settled(dir: &Path, role: Role, now: SystemTime) -> Result<OnDisk, String> {
    on_disk(dir, role, now).or_else(|_| on_disk(dir, role, now)).or_else(|_| on_disk(dir, role, now))
}

/// What the pod's sidecar installed last.
struct OnDisk {
    entry: Entry,
    /// The revocation list, where there is one.
    revoked: Option<Arc<Crl>>,
}

fn on_disk(dir: &Path, role: Role, now: SystemTime) -> Result<OnDisk, String> {
    let mut entries = store::entries(dir).map_err(|error| error.to_string())?.unwrap_or_default();
    let entry = match entries.remove(&role) {
        Some(entry) => entry.map_err(|error| error.to_string())?,
        None => return Err(format!("{}: there is no certificate of role {role}", dir.display())),
    };
    // A bundle from a mount that somebody else wrote is verified here, too.
    let entry = entry.with_bundle(role, entry.bundle(), now).map_err(|error| error.to_string())?;
    if entry.chain().not_after < now {
        return Err(format!("the certificate of role {role} has expired and was not renewed"));
    }
    Ok(OnDisk { entry, revoked: store::list(dir, role.domain()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::VecDeque;

    use serde_json::json;

    use super::*;
    use crate::testing::Authority;

    /// Answers of the API server to PUT, in order; the objects that were put.
    struct Script {
        answers: VecDeque<Option<u16>>,
        gets: u32,
        put: Vec<Value>,
    }

    impl Calls for Script {
        async fn get(&mut self) -> Result<Value, ApiError> {
            self.gets += 1;
            Ok(json!({
                "type": "kubernetes.io/tls", "data": {},
                "metadata": {"labels": {MARK: "true"}, "resourceVersion": self.gets.to_string()},
            }))
        }

        async fn put(&mut self, object: &Value) -> Result<Value, ApiError> {
            self.put.push(object.clone());
            let answer = self.answers.pop_front().unwrap();
            answer.map_or(Ok(Value::Null), |code| {
                Err(ApiError::Status { code, message: "no".to_owned(), retry_after: None })
            })
        }
    }

    async fn look(answers: &[Option<u16>]) -> (Result<(), String>, Script) {
        let ca = Authority::new();
        let api = Script { answers: answers.iter().copied().collect(), gets: 0, put: Vec::new() };
        let mut secret = Secret { api, name: "prod/s".to_owned() };
        let status = Status::new(Registry::default());
        let result =
            secret.look(Role::Client, &status, |_| Ok(OnDisk { entry: ca.entry(Role::Client), revoked: None })).await;
        (result.map_err(|e| e.to_string()), secret.api)
    }

    #[tokio::test]
    async fn a_conflict_is_read_and_written_again_a_few_times() {
        let (result, api) = look(&[Some(409), Some(409), None]).await;
        assert_eq!((result, api.gets), (Ok(()), 3));
        let versions: Vec<&Value> = api.put.iter().map(|o| &o["metadata"]["resourceVersion"]).collect();
        assert_eq!(versions, ["1", "2", "3"], "each by what was read for it");
        let (result, api) = look(&[Some(409); 3]).await;
        assert!(result.unwrap_err().contains("somebody else writes it, too"));
        assert_eq!(api.gets, 3);
        // Deleted, or the right was taken away, between the two.
        for (code, word) in
            [(404, "create it"), (403, "resourceNames: [s]"), (422, "Secret prod/s: the API server answers 422")]
        {
            let (result, api) = look(&[Some(code)]).await;
            assert!(result.unwrap_err().contains(word));
            assert_eq!(api.gets, 1);
        }
    }

    #[tokio::test]
    async fn without_a_certificate_nothing_is_asked() {
        let api = Script { answers: VecDeque::new(), gets: 0, put: Vec::new() };
        let mut secret = Secret { api, name: "prod/s".to_owned() };
        let dir = std::env::temp_dir().join("etcd-tls-no-such-directory");
        let status = Status::new(Registry::default());
        let looked = secret.look(Role::Client, &status, |now| on_disk(&dir, Role::Client, now));
        let error = looked.await.unwrap_err().to_string();
        assert!(error.contains("no certificate of role client") && error.contains("etcd-tls-sidecar"), "{error}");
        assert_eq!(secret.api.gets, 0);
    }
}
