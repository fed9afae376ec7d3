//! A record of all certificates and CAs by an independent observer: one certificate for each request, one CA for each
//! authority.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use futures::StreamExt;
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest as Csr, core::v1::Secret};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// The certificates of each request and the CAs of each Secret that there ever were, by what they are of.
#[derive(Debug, Default)]
pub struct Truths {
    /// By the request's uid.
    pub certificates: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// By the Secret's name and key: `tls.crt`, and `next.crt` of a rollover.
    pub authorities: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// Requests that were denied or failed, with what was said.
    pub refused: BTreeMap<String, String>,
}

impl Truths {
    fn of_request(&mut self, csr: Csr) {
        let name = csr.metadata.name.unwrap_or_default();
        let status = csr.status.unwrap_or_default();
        for condition in status.conditions.iter().flatten() {
            if condition.type_ != "Approved" {
                self.refused.insert(name.clone(), format!("{}: {:?}", condition.type_, condition.message));
            }
        }
        if let Some(certificate) = status.certificate {
            self.certificates.entry(csr.metadata.uid.unwrap_or_default()).or_default().insert(certificate.0);
        }
    }

    fn of_secret(&mut self, secret: Secret) {
        let data = secret.data.unwrap_or_default();
        for key in ["tls.crt", "next.crt"] {
            if let Some(pem) = data.get(key) {
                let of = format!("{}: {key}", secret.metadata.name.as_deref().unwrap_or_default());
                self.authorities.entry(of).or_default().insert(pem.0.clone());
            }
        }
    }

    /// # Panics
    /// Where a request has two certificates, or a Secret two CAs under one key.
    pub fn assert_one_each(&self) {
        for (of, all) in self.certificates.iter().chain(&self.authorities) {
            assert_eq!(all.len(), 1, "{} truths of {of}", all.len());
        }
    }
}

/// Sees every request, and every Secret of a namespace, from its start until it is dropped.
pub struct Witness {
    truths: Arc<Mutex<Truths>>,
    tasks: [JoinHandle<()>; 2],
}

impl Witness {
    /// Begins to look.
    pub fn start(client: &Client, namespace: &str) -> Self {
        let truths = Arc::new(Mutex::new(Truths::default()));
        let (requests, secrets) = (Arc::clone(&truths), Arc::clone(&truths));
        let tasks = [
            seen(Api::<Csr>::all(client.clone()), move |csr| {
                requests.lock().expect("not poisoned").of_request(csr);
            }),
            seen(Api::<Secret>::namespaced(client.clone(), namespace), move |secret| {
                secrets.lock().expect("not poisoned").of_secret(secret);
            }),
        ];
        Self { truths, tasks }
    }

    /// The observations so far.
    pub fn truths(&self) -> MutexGuard<'_, Truths> {
        self.truths.lock().expect("not poisoned")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Sees every object that there is from now on, and each change.
fn seen<K>(api: Api<K>, mut see: impl FnMut(K) + Send + 'static) -> JoinHandle<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    tokio::spawn(async move {
        let mut objects = Box::pin(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
        while let Some(object) = objects.next().await {
            match object {
                Ok(object) => see(object),
                Err(error) => println!("watched on after {error}"),
            }
        }
    })
}
