//! Injection without a cluster: manifests in, manifests out.
//!
//! Documents with nothing to inject into are given out byte for byte. A document that is injected into is rewritten:
//! its values and the order of its keys stay, its comments do not (but for those at its head). The command keeps what a YAML
//! document was before, in comments behind it.

use std::{
    io::{Read, Write},
    path::PathBuf,
};

use etcd_tls_contract::names;
use serde_json::Value;

use crate::{
    error::Error,
    injected::InjectedArgs,
    injection::{
        self, Decision, Host, Origin,
        cel::{self, Image},
        json,
    },
    operator::{plain, say},
};

use self::{documents::Document, original::Original};

mod anew;
mod documents;
mod dry_run;
mod flags;
mod foreign;
mod original;
mod uninject;
mod yaml;

pub use self::{
    foreign::TemplatePath,
    uninject::{UninjectArgs, uninject},
};
pub(crate) use yaml::write as to_yaml;

/// More bytes than any manifest has.
const MAX_BYTES: u64 = 64 << 20;
/// How deep Lists may hold Lists.
const MAX_LISTS: usize = 4;

/// The arguments of `inject`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A manifest, YAML or JSON, of one or more documents; - is standard input. May be given several times.
    #[arg(short = 'f', long = "filename", required_unless_present = "policy")]
    filenames: Vec<PathBuf>,
    /// The namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The image of the injected containers.
    #[arg(long, env = "SIDECAR_IMAGE", default_value = concat!("etcd-tls-sidecar:", env!("CARGO_PKG_VERSION")))]
    sidecar_image: String,
    #[command(flatten)]
    injected: InjectedArgs,
    /// The pods are static ones, which have no service account: a kubeconfig and directories of the host serve them, and
    /// flags that name other certificates are made to name ours.
    #[arg(long = "static")]
    for_static: bool,
    /// With --static: the kubeconfig on the host; its directory is mounted.
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/etcd-tls/kubeconfig", value_parser = absolute)]
    kubeconfig: String,
    /// With --static: a kubeconfig with a token on the host, to ask with while there is no certificate.
    #[arg(long, value_name = "FILE", requires = "for_static", value_parser = absolute)]
    bootstrap_kubeconfig: Option<String>,
    /// With --static: where keys and certificates are kept on the host.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/etcd-tls", value_parser = absolute)]
    host_dir: String,
    /// Where objects of another kind, such as OpenShift's or a custom resource, have their pod template, for instance
    /// DeploymentConfig=spec.template; * is each item of a list. May be given several times.
    #[arg(long = "pod-template-path", value_name = "KIND=PATH")]
    templates: Vec<TemplatePath>,
    /// Write nothing; name the pod templates that would be refused, of `kubectl get namespaces,statefulsets,… -A -o yaml`.
    #[arg(long, conflicts_with = "for_static")]
    dry_run: bool,
    /// Write the admission policies that inject without the webhook, for pods that state their options (Kubernetes 1.36 and later); the
    /// other arguments are constants in them.
    #[arg(long, conflicts_with_all = ["filenames", "for_static", "dry_run", "templates"])]
    policy: bool,
    /// With --policy: the image is that of PodTemplate etcd-tls-injection in etcd-tls-system, as the component without-webhook has it.
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
        let host = for_static.then_some(Host { kubeconfig, bootstrap_kubeconfig, directory: host_dir });
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
            let text = read(filename).map_err(|e| format!("{name}: {e}"))?;
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
        let text = read(filename).map_err(|e| format!("{name}: {e}"))?;
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

#[allow(clippy::print_stderr)] // The command's own words to its user; standard output is the manifest.
fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("Warning: {}", plain(warning));
    }
}

fn read(filename: &PathBuf) -> Result<String, Error> {
    let mut bytes = Vec::new();
    if filename.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(filename)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err("larger than 64 MiB".into());
    }
    Ok(String::from_utf8(bytes).map_err(|_| "not UTF-8")?)
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
        let mut visit = Visit {
            options,
            templates,
            warnings: &mut warnings,
            problems: &mut problems,
            changed: false,
            again: false,
        };
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

struct Visit<'v> {
    options: &'v Options,
    templates: &'v [TemplatePath],
    warnings: &'v mut Vec<String>,
    problems: &'v mut Vec<String>,
    changed: bool,
    /// There was a container of ours already.
    again: bool,
}

impl Visit<'_> {
    /// Converts a document.
    fn document(&mut self, document: Document<'_>, place: &str, keeps: bool) -> String {
        let raw = document.raw.to_owned();
        let mut value = match document.read() {
            Ok(Some(value)) => value,
            Ok(None) => return raw,
            Err(_) if foreign::passes_unread(document.raw) => return raw,
            Err(error) => {
                self.problems.push(format!("{place}: {error}"));
                return raw;
            }
        };
        let before = (keeps && !document.is_yaml()).then(|| value.clone());
        self.object(&mut value, 0);
        if !self.changed {
            return raw;
        }
        let written = match before {
            Some(before) => original::write_json(document, &before, &value).map(|(text, lost)| {
                self.warnings.extend(lost.into_iter().map(|lost| format!("{place}: {lost}")));
                text
            }),
            None => document.write(&value),
        };
        match written {
            Ok(text) if keeps && !self.again && document.is_yaml() => original::keep(&text, &raw),
            Ok(text) => text,
            Err(error) => {
                self.problems.push(format!("{place}: {error}"));
                raw
            }
        }
    }

    /// A document that was edited since it was injected: the original with the edits in it is injected into. `None`: the original
    /// is not known, or the edits change nothing that is injected.
    fn edited(&mut self, document: Document<'_>, place: &str) -> Option<String> {
        let (edited, original) = original::remembered(&document, &document.read().ok()??)?;
        if !anew::same_object(&edited, &original) {
            return None;
        }
        let mut scratch = (Vec::new(), Vec::new());
        let mut visit =
            Visit { warnings: &mut scratch.0, problems: &mut scratch.1, changed: false, again: false, ..*self };
        let mut injected = original.clone();
        visit.object(&mut injected, 0);
        if !visit.problems.is_empty() {
            return None;
        }
        let before = anew::undo(Some(&edited), Some(&injected), Some(&original), "")?;
        let mut now = before.clone();
        visit.object(&mut now, 0);
        let difference = match visit.problems.is_empty() {
            true => anew::difference(&edited, &now, &injected)?,
            false => "it would be refused".to_owned(),
        };
        let lost = anew::lost(&edited, &now, &injected)
            .map(|lost| format!("; set by hand and now as injected: {lost} (use the annotations, or set them again)"));
        let before = document.write(&before).ok()?;
        let anew = self.document(document.with(&before), place, true);
        let image = &self.options.injection.sidecar_image;
        self.warnings.push(format!(
            "{place}: injected anew, for it was changed since it was injected ({difference}); the image is now {image}; uninject now gives \
             back the manifest with these changes, without its comments{}",
            lost.unwrap_or_default()
        ));
        Some(anew)
    }

    /// Gives containers of ours, which are there already, the image that is asked for.
    fn image(&mut self, pod: &mut Value, what: &str) {
        let wanted = &self.options.injection.sidecar_image;
        let containers = pod.get_mut("spec").and_then(|s| s.get_mut("initContainers")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let image = container.get("image").and_then(Value::as_str).unwrap_or_default().to_owned();
            let ours = [names::INIT_CONTAINER, names::SIDECAR_CONTAINER].contains(&name.as_str());
            self.again |= ours;
            if ours && image != *wanted {
                container["image"] = wanted.clone().into();
                self.changed = true;
                self.warnings.push(format!("{what}: container {name}: the image was {image} and is now {wanted}"));
            }
        }
    }

    fn object(&mut self, object: &mut Value, depth: usize) {
        let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
        let (group, kind) = (text("apiVersion").to_owned(), text("kind").to_owned());
        let group = group.split_once('/').map_or("", |(group, _)| group);
        let path: &[&str] = match (group, kind.as_str()) {
            ("", "Pod") => &[],
            ("", "PodTemplate") => &["template"],
            ("", "ReplicationController")
            | ("apps", "StatefulSet" | "Deployment" | "DaemonSet" | "ReplicaSet")
            | ("batch", "Job") => &["spec", "template"],
            ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
            ("" | "apps" | "batch", list) if list.ends_with("List") && depth < MAX_LISTS => {
                let item_kind = list.strip_suffix("List").unwrap_or_default().to_owned();
                for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
                    self.item(item, &item_kind, group, depth + 1);
                }
                return;
            }
            _ => return self.foreign(object, &kind),
        };
        let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str);
        let name = metadata("name").or_else(|| metadata("generateName")).unwrap_or_default();
        let what = format!("{kind} {name}");
        let namespace = metadata("namespace").filter(|n| !n.is_empty()).unwrap_or(&self.options.namespace).to_owned();
        let mut pod = object;
        for field in path {
            match pod.get_mut(*field) {
                Some(inner) => pod = inner,
                None => return self.problems.push(format!("{what}: {} is missing", path.join("."))),
            }
        }
        self.pod(pod, &what, &namespace);
    }

    /// An object of a kind that is not known: injected into where its template is named, else its templates are said.
    fn foreign(&mut self, object: &mut Value, kind: &str) {
        let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str);
        let what = format!("{kind} {}", metadata("name").unwrap_or_default());
        let namespace = metadata("namespace").filter(|n| !n.is_empty()).unwrap_or(&self.options.namespace).to_owned();
        let named: Vec<&TemplatePath> = self.templates.iter().filter(|t| t.kind == kind).collect();
        if named.is_empty() {
            let found = foreign::templates(object);
            let untouched = |path: &String| {
                format!(
                    "left untouched: it holds a pod template; to inject into it give --pod-template-path={kind}={path}"
                )
            };
            return self.warn(&what, found.iter().map(untouched).collect());
        }
        for template in named {
            let mut seen = false;
            foreign::at(object, &template.path, &mut |pod| {
                seen |= pod.get("spec").is_some();
                if pod.get("spec").is_some() {
                    self.pod(pod, &what, &namespace);
                }
            });
            if !seen {
                let path = template.path.join(".");
                self.problems
                    .push(format!("{what}: there is no pod template at {path}, which --pod-template-path names"));
            }
        }
    }

    /// An item of a typed list may leave out its kind.
    fn item(&mut self, item: &mut Value, kind: &str, group: &str, depth: usize) {
        if item.get("kind").is_some() || kind.is_empty() || !item.is_object() {
            return self.object(item, depth);
        }
        let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        let mut typed = item.clone();
        typed["apiVersion"] = version.into();
        typed["kind"] = kind.into();
        let before = self.changed;
        self.changed = false;
        self.object(&mut typed, depth);
        if self.changed {
            if let Some(map) = typed.as_object_mut() {
                for field in ["apiVersion", "kind"] {
                    if item.get(field).is_none() {
                        map.shift_remove(field);
                    }
                }
            }
            *item = typed;
        }
        self.changed |= before;
    }

    fn pod(&mut self, pod: &mut Value, what: &str, namespace: &str) {
        if self.options.injection.host.is_some() {
            if !what.starts_with("Pod ") {
                return self.warn(what, vec!["left untouched: only a Pod can be static".to_owned()]);
            }
            let said = flags::point_at_ours(pod);
            self.changed |= !said.is_empty();
            self.warn(what, said);
        }
        let again = original::holds_ours(pod);
        // A template's own namespace is not looked at by anybody.
        let origin = Origin { namespace, namespace_opted_in: true, label: true, trace: None };
        match injection::decide(&json::borrowed(pod), &self.options.injection, origin) {
            Decision::Leave(warnings) => self.warn(what, warnings),
            Decision::Refuse(problems) => {
                self.problems.extend(problems.iter().map(|problem| format!("{what}: {problem}")));
            }
            Decision::Inject { patch, warnings } => {
                self.warn(what, warnings);
                match patch.apply(pod) {
                    Ok(()) => self.changed |= !patch.is_empty(),
                    Err(error) => self.problems.push(format!("{what}: the patch does not fit: {error}")),
                }
                if again {
                    self.image(pod, what);
                }
            }
        }
    }

    fn warn(&mut self, what: &str, warnings: Vec<String>) {
        self.warnings.extend(warnings.into_iter().map(|warning| format!("{what}: {warning}")));
    }
}

#[cfg(test)]
mod tests;
