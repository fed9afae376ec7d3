//! `etcd-tls-webhook check`: looks for what is wrong, and says what to do. It changes nothing.
//!
//! ```text
//! install      the API server's objects, and whether they work
//! without_webhook  the policies that inject where there is no webhook
//! leaders      the Leases and the clocks; pure
//! accounts     the rights of `approve` and `sign`
//! approvers    whether cert-manager's own approver is off
//! lists        the CAs of all clusters: which may sign no revocation list, and how many there are
//! pod          one pod
//! member       the etcd of one pod: its options, and a handshake
//! namespace    one namespace
//! policy       a policy, in a file or in force
//! upgrade      what an upgrade would refuse, and what it leaves
//! plain_text   one etcd cluster between plain text and TLS
//! finding      what was found, and how that is written; pure
//! ```

use std::{io::Write as _, path::PathBuf};

use crate::{
    error::Error,
    operator::{self, Cluster},
    screen,
};

mod accounts;
mod approvers;
mod finding;
mod install;
mod leaders;
mod lists;
mod member;
mod namespace;
mod plain_text;
mod pod;
mod policy;
mod upgrade;
mod webhook;
mod without_webhook;

use finding::Finding;

/// The arguments of `check`.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// The namespace in which `check` creates a pod as a dry run. Default: the one of the kubeconfig's context.
    #[arg(short, long, value_name = "NAME", value_parser = operator::namespace)]
    namespace: Option<String>,
    /// Run before an upgrade, with the new version of this program. Names the live workloads whose pods it would refuse, and
    /// objects that an older version left behind.
    #[arg(long, conflicts_with = "namespace")]
    pre: bool,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    plain_text: plain_text::PlainText,
}

/// How findings are written.
#[derive(clap::Args, Clone, Copy, Debug)]
struct Form {
    /// The output format. Default: text for people.
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// JSON.
    Json,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Check one namespace: label, rights, trust, authorities, policies, workloads, requests, pods.
    Namespace {
        /// The name of the namespace. Default: the one of the kubeconfig's context.
        #[arg(value_parser = operator::namespace)]
        name: Option<String>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Check one pod: admission, requests, certificates, etcd.
    Pod {
        /// The pod, as <name> or <namespace>/<name>.
        #[arg(value_name = "POD")]
        name: pod::Named,
        /// The namespace of the pod. Default: the one of the kubeconfig's context.
        #[arg(short, long, value_name = "NAME", value_parser = operator::namespace)]
        namespace: Option<String>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Check a policy before you apply it.
    Policy {
        /// A file with the content of the key policy.yaml of ConfigMap etcd-tls-policy.
        #[arg(short, long = "filename", alias = "file", value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        form: Form,
    },
}

impl Args {
    /// Looks, and prints what was found.
    ///
    /// # Errors
    /// A missing input: a file, the API server; or a finding that is not well: [`crate::error::NotWell`].
    pub async fn run(self) -> Result<(), Error> {
        let Self { what, namespace, pre, form, cluster, plain_text } = self;
        let (findings, form) = match what {
            Some(What::Pod { name, namespace, form, cluster }) => {
                let pod::Named { namespace: of_name, name } = name;
                if of_name.is_some() && namespace.is_some() && of_name != namespace {
                    return Err("the name of the pod and --namespace name two namespaces".into());
                }
                let (client, default) = cluster.connect().await?;
                (pod::look(&client, &of_name.or(namespace).unwrap_or(default), &name).await?, form)
            }
            Some(What::Namespace { name, form, cluster }) => {
                let name = match name {
                    Some(name) => name,
                    None => cluster.connect().await?.1,
                };
                (namespace::look(&cluster, &name).await?, form)
            }
            Some(What::Policy { file, form }) => (vec![policy::of_file(&file)?], form),
            None if plain_text.is_meant() => {
                let (report, well) = plain_text.report().await?;
                operator::say(&report)?;
                return Ok(well?);
            }
            None if pre => (upgrade::look(&cluster).await?, form),
            None => (install::look(&cluster, namespace.as_deref()).await?, form),
        };
        let text = match form.output {
            None => finding::text(&findings, screen::width()),
            Some(Output::Json) => {
                format!("{}\n", operator::plain_json(&serde_json::to_string_pretty::<Vec<Finding>>(&findings)?))
            }
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(finding::well(&findings)?)
    }
}
