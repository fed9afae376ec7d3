//! Injection without a cluster: manifests in, manifests out.
//!
//! Documents with nothing to inject into are given out byte for byte. A document that is injected into is rewritten:
//! its values and the order of its keys stay, its comments do not (but for those at its head). The command keeps what a YAML
//! document was before, in comments behind it.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    error::{Error, OfFile},
    injected::InjectedArgs,
    injection::{
        self, HostPaths,
        cel::{self, Image},
    },
    operator::{plain, say},
};

use self::{original::Original, visit::Visit};

mod anew;
mod documents;
mod dry_run;
mod flags;
mod foreign;
mod leftovers;
mod original;
mod uninject;
mod visit;
mod yaml;

pub use self::{
    foreign::TemplatePath,
    uninject::{UninjectArgs, uninject},
};
pub(crate) use yaml::write as to_yaml;

/// More bytes than any manifest has.
const MAX_BYTES: u64 = 64 << 20;

/// The arguments of `inject`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A YAML or JSON file with one or more manifests; - is standard input. Can be repeated.
    #[arg(short = 'f', long = "filename", required_unless_present = "policy")]
    filenames: Vec<PathBuf>,
    /// The namespace of objects that name no namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The image of the injected containers.
    #[arg(long, env = "SIDECAR_IMAGE", default_value = concat!("etcd-tls-sidecar:", env!("CARGO_PKG_VERSION")))]
    sidecar_image: String,
    #[command(flatten)]
    injected: InjectedArgs,
    /// Inject into static pods. They have no service account, so the sidecar uses a kubeconfig and directories of the host.
    /// etcd flags that name other certificates are changed to name the sidecar's.
    #[arg(long = "static")]
    for_static: bool,
    /// With --static: the kubeconfig on the host; its directory is mounted.
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/etcd-tls/kubeconfig", value_parser = absolute)]
    kubeconfig: String,
    /// With --static: a kubeconfig on the host with a token, which is used while there is no certificate.
    #[arg(long, value_name = "FILE", requires = "for_static", value_parser = absolute)]
    bootstrap_kubeconfig: Option<String>,
    /// With --static: the directory on the host for keys and certificates.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/etcd-tls", value_parser = absolute)]
    host_dir: String,
    /// The path of the pod template in objects of another kind, such as OpenShift's or a custom resource, for example
    /// DeploymentConfig=spec.template; * stands for each item of a list. Can be repeated.
    #[arg(long = "pod-template-path", value_name = "KIND=PATH")]
    templates: Vec<TemplatePath>,
    /// Write no manifests, but name the pod templates that would be refused. The input is the output of `kubectl get
    /// namespaces,statefulsets,… -A -o yaml`.
    #[arg(long, conflicts_with = "for_static")]
    dry_run: bool,
    /// Write the admission policies that inject without the webhook (Kubernetes 1.36 and later), for pods that state their
    /// options. The other arguments become constants in the policies.
    #[arg(long, conflicts_with_all = ["filenames", "for_static", "dry_run", "templates"])]
    policy: bool,
    /// With --policy: take the image from the PodTemplate etcd-tls-injection in etcd-tls-system, as the component
    /// without-webhook does.
    #[arg(long, requires = "policy")]
    image_of_pod_template: bool,
}

/// A path of a host.
fn absolute(path: &str) -> Result<String, String> {
    let clean = path.len() > 1 && path.starts_with('/') && !path.ends_with('/') && !path.contains("/../");
    if clean { Ok(path.to_owned()) } else { Err("not an absolute path".to_owned()) }
}

/// Manifests that cannot be injected into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct InjectError(Vec<String>);

/// How manifests are injected into.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings of injection.
    pub injection: injection::Config,
    /// The namespace of objects that name none.
    pub namespace: String,
}

/// Manifests, injected into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The manifests.
    pub text: String,
    /// Their warnings.
    pub warnings: Vec<String>,
}

impl Args {
    /// Reads, injects, writes. Nothing is written unless all of it can be.
    ///
    /// # Errors
    /// Unreadable input, or the pods that cannot be injected into.
    #[allow(clippy::unused_async)] // As every subcommand.
    pub async fn run(self) -> Result<(), Error> {
        let Self {
            filenames,
            namespace,
            sidecar_image,
            injected,
            for_static,
            kubeconfig,
            bootstrap_kubeconfig,
            host_dir,
            templates,
            dry_run,
            policy,
            image_of_pod_template,
        } = self;
        let host = for_static.then_some(HostPaths { kubeconfig, bootstrap_kubeconfig, directory: host_dir });
        let injection = injected.config(sidecar_image, host);
        if policy {
            let image = if image_of_pod_template { Image::PodTemplate } else { Image::Constant };
            let objects = cel::policies(&injection, image)?;
            let text = objects.iter().map(to_yaml).collect::<Result<Vec<_>, _>>()?.join("---\n");
            std::io::stdout().lock().write_all(text.as_bytes())?;
            return Ok(());
        }
        let options = Options { injection, namespace };
        if dry_run {
            return judge(&filenames, &options);
        }
        let mut problems = Vec::new();
        let mut out = String::new();
        for filename in &filenames {
            let name = filename.display();
            let text = read(filename)?;
            match inject_documents(&text, &options, &templates, true) {
                Ok(injected) => {
                    documents::join(&mut out, &injected.text);
                    warn(&injected.warnings.iter().map(|w| format!("{name}: {w}")).collect::<Vec<_>>());
                }
                Err(InjectError(found)) => problems.extend(found.iter().map(|problem| format!("{name}: {problem}"))),
            }
        }
        if !problems.is_empty() {
            return Err(InjectError(problems).into());
        }
        std::io::stdout().lock().write_all(out.as_bytes())?;
        Ok(())
    }
}

/// As this version's admission injects without flags.
fn unflagged() -> Options {
    let injection = injection::Config {
        sidecar_image: concat!("etcd-tls-sidecar:", env!("CARGO_PKG_VERSION")).to_owned(),
        image_pull_policy: None,
        resources: etcd_tls_contract::settings::Resources::default(),
        pull_secrets: Vec::new(),
        user: None,
        host: None,
        issuers: injection::Issuers::default(),
        cluster_domain: None,
    };
    Options { injection, namespace: "default".to_owned() }
}

/// Which of these live objects this version's admission would refuse the pods of.
pub(crate) fn would_refuse(objects: &[Value]) -> dry_run::Report {
    dry_run::judge_objects(objects, &unflagged())
}

/// Names what would be refused.
fn judge(filenames: &[PathBuf], options: &Options) -> Result<(), Error> {
    let mut all = dry_run::Report::default();
    for filename in filenames {
        let name = filename.display();
        let text = read(filename)?;
        let report = dry_run::judge(&text, options).map_err(|e| format!("{name}: {e}"))?;
        all.judged += report.judged;
        all.refused.extend(report.refused);
    }
    let (refused, judged) = (all.refused.len(), all.judged);
    match refused {
        0 => say(&format!("No pod would be refused; {judged} workloads have opted in."))?,
        _ => say(&all.refused.join("\n"))?,
    }
    if refused > 0 {
        return Err(format!("pods would be refused: {refused} reasons, {judged} workloads that have opted in").into());
    }
    Ok(())
}

/// Says them to the user: standard output is the manifest.
fn warn(warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "Warning: {}", plain(warning));
    }
}

fn read(filename: &Path) -> Result<String, OfFile> {
    let of = |cause: Error| OfFile::new(filename, cause);
    let mut bytes = Vec::new();
    let input: std::io::Result<Box<dyn Read>> = if filename.as_os_str() == "-" {
        Ok(Box::new(std::io::stdin().lock()))
    } else {
        std::fs::File::open(filename).map(|file| Box::new(file) as Box<dyn Read>)
    };
    let read = input.and_then(|input| input.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| of(error.into()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(of("larger than 64 MiB".into()));
    }
    String::from_utf8(bytes).map_err(|_| of("not UTF-8".into()))
}

/// Injects into every pod and pod template of `text`.
///
/// # Errors
/// Every document that cannot be read, and every pod that must be refused, with all reasons.
pub fn inject(text: &str, options: &Options) -> Result<Injected, InjectError> {
    inject_at(text, options, &[])
}

/// [`inject`], and into the templates that objects of other kinds have at `templates`.
///
/// # Errors
/// As [`inject`].
pub fn inject_at(text: &str, options: &Options, templates: &[TemplatePath]) -> Result<Injected, InjectError> {
    inject_documents(text, options, templates, false)
}

/// [`inject_at`]; `keeps` what each document was before.
fn inject_documents(
    text: &str,
    options: &Options,
    templates: &[TemplatePath],
    keeps: bool,
) -> Result<Injected, InjectError> {
    let mut out = String::new();
    let (mut warnings, mut problems) = (Vec::new(), Vec::new());
    for (index, document) in documents::split(text).into_iter().enumerate() {
        let place = format!("document {}", index + 1);
        let mut visit = Visit::new(options, templates, &mut warnings, &mut problems);
        // A document that this command injected into is injected again from its original.
        let kept = original::find(&document);
        if let Original::Kept(before) = &kept {
            let anew = visit.document(document.with(before), &place, true);
            // JSON may have been written in another way since.
            let same = match document.is_yaml() {
                true => document.raw.strip_prefix(&anew).is_some_and(|rest| rest.trim().is_empty()),
                false => document.with(&anew).read().ok() == document.read().ok(),
            };
            if same {
                out.push_str(document.raw);
            } else {
                let image = &options.injection.sidecar_image;
                warnings.push(format!(
                    "{place}: injected anew, by other options or another version; the image is now {image}"
                ));
                out.push_str(&anew);
            }
        } else if kept == Original::Changed
            && let Some(anew) = visit.edited(document, &place)
        {
            out.push_str(&anew);
        } else {
            out.push_str(&visit.document(document, &place, keeps));
        }
    }
    if problems.is_empty() { Ok(Injected { text: out, warnings }) } else { Err(InjectError(problems)) }
}

#[cfg(test)]
mod tests;
