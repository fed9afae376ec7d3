//! `etcd-tls-webhook adopt <namespace>/<cluster>`: gives a cluster the CAs of a backup, where its namespace was made again under
//! another uid, in this Kubernetes cluster or in another one. It runs with the caller's kubeconfig, and needs `get` of
//! namespaces, and `get`, `list` and `create` of Secrets in the system namespace.

mod backup;

use std::{collections::BTreeMap, fs, io, io::Read as _, path::PathBuf, time::SystemTime};

use etcd_tls_contract::{
    names::{self, ClusterName, SignerName},
    role::Domain,
};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use self::backup::{Found, choose};
use super::{
    authorities::state::{self, Stored, secret_name},
    marks::{CA_LABEL, KEEP_ANNOTATION, SIGNER_ANNOTATION, UID_ANNOTATION},
};
use crate::{
    controller::client::within,
    error::{Error, OfFile, with_causes},
    operator::{Cluster, Refused, Right, say},
    rollover::rfc3339,
};

/// How many Secrets are read at a time: one may have a MiB.
const PAGE: u32 = 20;

/// Gives a cluster the certificate authorities of a backup: its namespace was made again, here or elsewhere.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The cluster, as <namespace>/<cluster>. Its namespace must exist.
    cluster: ClusterName,
    /// The backup: the Secrets of the CAs as YAML or JSON, as kubectl prints them; - is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: PathBuf,
    /// The cluster in the backup, if it had another name.
    #[arg(long, value_name = "NAMESPACE/CLUSTER")]
    from: Option<ClusterName>,
    /// The UID of the cluster's namespace at the time of the backup. Needed if the backup holds CAs of several namespaces with
    /// that name.
    #[arg(long, value_name = "UID")]
    from_uid: Option<String>,
    /// Restore the CAs even if another existing cluster trusts them. Members and clients of both clusters then trust each
    /// other.
    #[arg(long)]
    share: bool,
    #[command(flatten)]
    at: Cluster,
}

/// Why authorities are not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// No document of that form.
    #[error("{file} is no YAML or JSON of Kubernetes objects: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// The parser's message; it quotes no value.
        reason: String,
    },
    /// Nothing of this cluster.
    #[error(
        "the backup holds no authority of {cluster}; it holds those of: {}",
        if .others.is_empty() { "none".to_owned() } else { .others.join(", ") }
    )]
    None {
        /// The cluster.
        cluster: ClusterName,
        /// Signer names in the backup.
        others: Vec<String>,
    },
    /// Of more than one namespace.
    #[error("the backup holds authorities of several namespaces named {namespace}: give --from-uid with one of {}", .uids.join(", "))]
    Ambiguous {
        /// The namespace.
        namespace: String,
        /// Their uids.
        uids: Vec<String>,
    },
    /// A Secret of the backup cannot be used.
    #[error("Secret {secret} of the backup is unusable: {reason}")]
    Unusable {
        /// The Secret.
        secret: String,
        /// Why.
        reason: String,
    },
    /// Two states of one authority.
    #[error("the backup holds {signer} of namespace {uid} more than once: leave the newest one in the file")]
    Twice {
        /// The authority.
        signer: String,
        /// The namespace's uid.
        uid: String,
    },
    /// A cluster that exists has one of the CAs.
    #[error(
        "{from} still exists and trusts a CA of the backup: with it, members and clients of {from} and of {cluster} trust each \
         other. Delete namespace {} first, or accept this with --share",
        .from.namespace
    )]
    Alive {
        /// The cluster that has it.
        from: ClusterName,
        /// The cluster that adopts.
        cluster: ClusterName,
    },
    /// A cluster that exists may have one of the CAs.
    #[error(
        "{from} exists, and nobody can tell whether it trusts a CA of the backup: Secret {secret} in {} is unusable ({reason}); \
         nothing was changed. Restore that Secret or delete namespace {}, and adopt again, or accept with --share that members and \
         clients of both clusters may trust each other",
        names::SYSTEM_NAMESPACE,
        .from.namespace
    )]
    Unclear {
        /// The cluster.
        from: ClusterName,
        /// Its Secret.
        secret: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// A cluster that exists may have one of the CAs, and nobody can tell which.
    #[error(
        "Secret {secret} in {} has the label of a CA of etcd-tls, does not say of which cluster, and {why}; nothing was changed. \
         Restore its annotations, or delete it if no cluster uses it, and adopt again; or accept with --share that members and \
         clients of both clusters may trust each other",
        names::SYSTEM_NAMESPACE
    )]
    Nameless {
        /// The Secret.
        secret: String,
        /// What it has.
        why: String,
    },
    /// A request failed.
    #[error("{signer}: whether it was adopted is not known; adopt again")]
    Failed {
        /// The authority.
        signer: SignerName,
        /// The failure.
        source: Box<Refused>,
    },
    /// No namespace of that name.
    #[error("there is no namespace {0}; create it first")]
    NoNamespace(String),
    /// The existing object cannot be read.
    #[error(
        "Secret {secret} in {} is unusable ({reason}); nothing was changed for {signer}. Delete the Secret, and adopt again",
        names::SYSTEM_NAMESPACE
    )]
    Broken {
        /// The authority.
        signer: SignerName,
        /// Its Secret.
        secret: String,
        /// Why.
        reason: String,
    },
    /// Several of these.
    #[error("{}", .0.iter().map(|error| with_causes(error)).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
    /// Another CA is in use.
    #[error(
        "{signer} has another CA already, in Secret {secret} in {}; nothing was changed for it. To replace that CA, at the price of \
         an outage: delete every pod of the cluster and keep new ones away (scale to 0); delete the Secret, and ConfigMap {config_map} \
         in namespace {}; adopt again; scale up",
        names::SYSTEM_NAMESPACE,
        .signer.namespace
    )]
    Taken {
        /// The authority.
        signer: SignerName,
        /// Its Secret.
        secret: String,
        /// The ConfigMap of its trust.
        config_map: String,
    },
}

impl Args {
    /// Creates the Secrets of the cluster's authorities as the namespace is now.
    ///
    /// # Errors
    /// [`AdoptError`]; the file cannot be read, the caller lacks a right.
    pub async fn run(self) -> Result<(), Error> {
        let Self { cluster, filename, from, from_uid, share, at } = self;
        let text = if filename.as_os_str() == "-" {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            fs::read_to_string(&filename)
        };
        let text = text.map_err(|error| OfFile::new(&filename, error))?;
        let from = from.unwrap_or_else(|| cluster.clone());
        let now = SystemTime::now();
        let found = choose(&text, &filename.display().to_string(), &from, from_uid.as_deref(), now)?;
        let (client, _) = at.connect().await?;
        let uid = uid(&client, &cluster.namespace)
            .await?
            .ok_or_else(|| AdoptError::NoNamespace(cluster.namespace.clone()))?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), names::SYSTEM_NAMESPACE);
        if !share {
            not_in_use(&client, &secrets, (&uid, &cluster), &found, now).await?;
        }
        let mut refused = Vec::new();
        for (found, stored) in found {
            let signer = cluster.signer(found.domain);
            let secret = secret_name(&uid, &signer);
            let mut object = state::secret(&uid, &signer, found.data);
            // Its pods may come late.
            object
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(KEEP_ANNOTATION.to_owned(), "adopted".to_owned());
            let created = match create(&secrets, &object, &stored, now).await {
                Ok(created) => created,
                // One that fails hides neither what was adopted nor what was refused.
                Err(source) => {
                    refused.push(AdoptError::Failed { signer, source: Box::new(source) });
                    continue;
                }
            };
            match created {
                Created::New => {
                    let until = rfc3339::text(stored.active.not_after());
                    say(&format!("{signer}: adopted, as Secret {secret}; the CA ends at {until}"))?;
                }
                Created::Same => say(&format!("{signer}: has this CA already, in Secret {secret}"))?,
                Created::Broken(reason) => refused.push(AdoptError::Broken { signer, secret, reason }),
                Created::Taken => {
                    let config_map = cluster.trust_config_map(&cluster.namespace);
                    refused.push(AdoptError::Taken { signer, secret, config_map });
                }
            }
        }
        match refused.pop() {
            None => Ok(()),
            Some(one) if refused.is_empty() => Err(one.into()),
            Some(last) => Err(AdoptError::Several(refused.into_iter().chain([last]).collect()).into()),
        }
    }
}

/// How a create of an authority's Secret went.
enum Created {
    New,
    /// The same CA is there.
    Same,
    /// Another one is there.
    Taken,
    /// Something is there that cannot be read, and why.
    Broken(String),
}

async fn create(secrets: &Api<Secret>, object: &Secret, stored: &Stored, now: SystemTime) -> Result<Created, Refused> {
    let right = |verb| Right::new(verb, "secrets", Some(names::SYSTEM_NAMESPACE));
    match within(secrets.create(&PostParams::default(), object)).await {
        Ok(_) => return Ok(Created::New),
        Err(error) if error.code() == Some(409) => {}
        Err(error) => return Err(right("create").refused(error)),
    }
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let there = within(secrets.get(name)).await.map_err(|error| right("get").refused(error))?;
    Ok(match Stored::read(&there.data.unwrap_or_default(), now) {
        Ok(there) if there.active.generation() == stored.active.generation() => Created::Same,
        Ok(_) => Created::Taken,
        Err(error) => Created::Broken(error.to_string()),
    })
}

/// The uid of a namespace; `None`: there is none of that name.
async fn uid(client: &Client, namespace: &str) -> Result<Option<String>, Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = within(namespaces.get_opt(namespace))
        .await
        .map_err(|error| Right::new("get", "namespaces", None).refused(error))?;
    Ok(namespace.and_then(|namespace| namespace.metadata.uid))
}

/// Refuses where another cluster that exists trusts one of the CAs that were found, or may trust one: a backup may have been given to
/// several.
async fn not_in_use(
    client: &Client,
    secrets: &Api<Secret>,
    (namespace_uid, cluster): (&str, &ClusterName),
    found: &[(Found, Stored)],
    now: SystemTime,
) -> Result<(), Error> {
    let mut uids = BTreeMap::new();
    let mut params = ListParams::default().labels(&format!("{}={}", CA_LABEL.0, CA_LABEL.1)).limit(PAGE);
    loop {
        let page = within(secrets.list(&params))
            .await
            .map_err(|error| Right::new("list", "secrets", Some(names::SYSTEM_NAMESPACE)).refused(error))?;
        for secret in page.items {
            let Some((of, uid_then)) = owner(&secret) else {
                nameless(secret, (namespace_uid, cluster), found, now)?;
                continue;
            };
            if of == *cluster && uid_then == namespace_uid {
                continue;
            }
            let uid_now = match uids.get(&of.namespace) {
                Some(uid) => uid,
                None => uids.entry(of.namespace.clone()).or_insert(uid(client, &of.namespace).await?),
            };
            if uid_now.as_deref() != Some(uid_then.as_str()) {
                continue;
            }
            match Stored::read(&secret.data.unwrap_or_default(), now) {
                Ok(there) if found.iter().any(|(_, stored)| share_a_ca(stored, &there)) => {
                    return Err(AdoptError::Alive { from: of, cluster: cluster.clone() }.into());
                }
                Ok(_) => {}
                Err(error) => {
                    let (secret, reason) = (secret.metadata.name.unwrap_or_default(), error.to_string());
                    return Err(AdoptError::Unclear { from: of, secret, reason }.into());
                }
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Refuses where a Secret that does not say of which cluster it is has one of the CAs that were found, or may have one.
fn nameless(
    secret: Secret,
    (namespace_uid, cluster): (&str, &ClusterName),
    found: &[(Found, Stored)],
    now: SystemTime,
) -> Result<(), AdoptError> {
    let name = secret.metadata.name.unwrap_or_default();
    if Domain::ALL.into_iter().any(|domain| secret_name(namespace_uid, &cluster.signer(domain)) == name) {
        return Ok(());
    }
    let why = match Stored::read(&secret.data.unwrap_or_default(), now) {
        Ok(there) if found.iter().any(|(_, stored)| share_a_ca(stored, &there)) => "has a CA of the backup".to_owned(),
        Ok(_) => return Ok(()),
        Err(error) => format!("cannot be read ({error})"),
    };
    Err(AdoptError::Nameless { secret: name, why })
}

/// The cluster of an authority's Secret, and the uid of its namespace.
fn owner(secret: &Secret) -> Option<(ClusterName, String)> {
    let annotations = secret.metadata.annotations.as_ref()?;
    let signer: SignerName = annotations.get(SIGNER_ANNOTATION)?.parse().ok()?;
    let cluster = ClusterName { namespace: signer.namespace, name: signer.cluster };
    Some((cluster, annotations.get(UID_ANNOTATION)?.clone()))
}

/// True if the two trust a CA together, or sign with one key, in whatever phase of a rollover each of them is.
fn share_a_ca(one: &Stored, other: &Stored) -> bool {
    let keys = |of: &Stored| -> Vec<String> {
        [Some(&of.active), of.next.as_ref()].into_iter().flatten().map(|ca| ca.generation()).collect()
    };
    let (bundle, keys_of_other) = (other.bundle(), keys(other));
    one.bundle().certificates().iter().any(|certificate| bundle.certificates().contains(certificate))
        || keys(one).iter().any(|key| keys_of_other.contains(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use etcd_tls_contract::key::KeyAlgorithm;

    use super::*;
    use crate::{
        ca::authority::Authority,
        rollover::{ChangeOver, Step, Trigger},
    };

    /// Restored by hand, it may lack its annotations, and be in use all the same.
    #[test]
    fn a_secret_that_does_not_say_whose_it_is_is_compared() {
        let now = SystemTime::now();
        let ca = || Authority::generate("ca", KeyAlgorithm::EcdsaP256, Duration::from_secs(86400), now).unwrap();
        let (backup, other) = (Stored::new(ca()), Stored::new(ca()));
        let cluster: ClusterName = "prod/etcd".parse().unwrap();
        let secret = |name: &str, data: BTreeMap<String, k8s_openapi::ByteString>| {
            let mut secret = state::secret("u", &cluster.signer(Domain::Peer), data);
            (secret.metadata.name, secret.metadata.annotations) = (Some(name.to_owned()), None);
            assert_eq!(owner(&secret), None);
            secret
        };
        let of_backup =
            Found { secret: String::new(), uid: String::new(), domain: Domain::Peer, data: BTreeMap::new() };
        let found = [(of_backup, backup.clone())];
        let judged = |secret| nameless(secret, ("uid", &cluster), &found, now).map_err(|error| error.to_string());
        let said = judged(secret("restored", backup.data().unwrap())).unwrap_err();
        assert!(said.contains("Secret restored in") && said.contains("has a CA of the backup"), "{said}");
        assert!(judged(secret("damaged", BTreeMap::new())).unwrap_err().contains("cannot be read"));
        assert_eq!(judged(secret("another", other.data().unwrap())), Ok(()));
        let own = secret_name("uid", &cluster.signer(Domain::Peer));
        assert_eq!(judged(secret(&own, backup.data().unwrap())), Ok(()), "the cluster's own");
    }

    /// The three phases of a rollover are those of a backup and of the cluster it is from, each at its own time.
    #[test]
    fn a_ca_is_in_use_in_every_phase_of_a_rollover() {
        let now = SystemTime::now();
        let ca = || Authority::generate("ca", KeyAlgorithm::EcdsaP256, Duration::from_secs(86400), now).unwrap();
        let before = Stored::new(ca());
        let published = before.after(&Step::Publish(Trigger::Command), Some(ca()), now);
        let signing = published.after(&Step::ChangeOver(ChangeOver::Trusted), None, now);
        let done = signing.after(&Step::Retire, None, now);
        assert_ne!(published.active.generation(), signing.active.generation());
        let trusted = [
            (&before, &before),
            (&before, &published),
            (&before, &signing),
            (&published, &signing),
            (&published, &done),
        ];
        for (backup, source) in trusted.into_iter().chain([(&signing, &done)]) {
            assert!(share_a_ca(backup, source) && share_a_ca(source, backup));
        }
        assert!(!share_a_ca(&before, &done), "that CA has left");
        assert!(!share_a_ca(&before, &Stored::new(ca())));
    }
}
