//! The visit of a document: which of its objects hold pods, and what is written in their place.

use etcd_tls_contract::names;
use serde_json::Value;

use crate::injection::{self, Origin, PodDecision, json};

use super::{
    Options, anew,
    documents::Document,
    flags,
    foreign::{self, TemplatePath},
    leftovers, original,
};

/// How deep Lists may hold Lists.
pub(super) const MAX_LISTS: usize = 4;

/// The state of one document's visit.
pub(super) struct Visit<'v> {
    options: &'v Options,
    templates: &'v [TemplatePath],
    warnings: &'v mut Vec<String>,
    problems: &'v mut Vec<String>,
    changed: bool,
    /// There was a container of ours already.
    again: bool,
}

impl<'v> Visit<'v> {
    /// A visit that adds to `warnings` and `problems`.
    pub(super) const fn new(
        options: &'v Options,
        templates: &'v [TemplatePath],
        warnings: &'v mut Vec<String>,
        problems: &'v mut Vec<String>,
    ) -> Self {
        Self { options, templates, warnings, problems, changed: false, again: false }
    }

    /// Converts a document. `keeps`: its original is kept in comments behind it.
    pub(super) fn document(&mut self, document: Document<'_>, place: &str, keeps: bool) -> String {
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
    pub(super) fn edited(&mut self, document: Document<'_>, place: &str) -> Option<String> {
        let (mut edited, original) = original::remembered(&document, &document.read().ok()??)?;
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
        let whole = edited.clone();
        leftovers::take_out(&mut edited, &injected, &original);
        let before = anew::undo(Some(&edited), Some(&injected), Some(&original), "")?;
        let mut now = before.clone();
        visit.object(&mut now, 0);
        let difference = match visit.problems.is_empty() {
            true => anew::difference(&whole, &now, &injected)?,
            false => "it would be refused".to_owned(),
        };
        let lost = anew::lost(&whole, &now, &injected)
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
        let service = object["spec"]["serviceName"].as_str().unwrap_or_default();
        let subdomain = (kind == "StatefulSet").then(|| service.to_owned());
        let mut pod = object;
        for field in path {
            match pod.get_mut(*field) {
                Some(inner) => pod = inner,
                None => return self.problems.push(format!("{what}: {} is missing", path.join("."))),
            }
        }
        self.pod(pod, &what, (namespace.as_str(), subdomain.as_deref()));
    }

    /// An object of a kind that is not known: injected into where its template is named, else its templates are said.
    fn foreign(&mut self, object: &mut Value, kind: &str) {
        let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str);
        let what =
            format!("{} {}", if kind.is_empty() { "object" } else { kind }, metadata("name").unwrap_or_default());
        let namespace = metadata("namespace").filter(|n| !n.is_empty()).unwrap_or(&self.options.namespace).to_owned();
        let named: Vec<&TemplatePath> = self.templates.iter().filter(|t| t.kind == kind).collect();
        if named.is_empty() {
            let found = foreign::templates(object);
            let untouched = |path: &String| match kind {
                "" => {
                    "left untouched: it holds a pod template, and has no kind; a list is one of kind: List, with items"
                        .to_owned()
                }
                _ => format!(
                    "left untouched: it holds a pod template; to inject into it give --pod-template-path={kind}={path}"
                ),
            };
            return self.warn(&what, found.iter().map(untouched).collect());
        }
        for template in named {
            let mut seen = false;
            foreign::at(object, &template.path, &mut |pod| {
                seen |= pod.get("spec").is_some();
                if pod.get("spec").is_some() {
                    self.pod(pod, &what, (namespace.as_str(), None));
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

    /// `at`: its namespace, and the subdomain that a StatefulSet gives it.
    fn pod(&mut self, pod: &mut Value, what: &str, at: (&str, Option<&str>)) {
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
        let (namespace, subdomain) = at;
        let origin = Origin { namespace, namespace_opted_in: true, label: true, subdomain, trace: None };
        match injection::decide(&json::borrowed(pod), &self.options.injection, origin) {
            PodDecision::Leave(warnings) => self.warn(what, warnings),
            PodDecision::Refuse(problems) => {
                self.problems.extend(problems.iter().map(|problem| format!("{what}: {problem}")));
            }
            PodDecision::Inject { patch, warnings } => {
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
