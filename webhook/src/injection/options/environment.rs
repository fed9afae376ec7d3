//! A container's environment, with Kubernetes' own `$(NAME)` put in.

use std::collections::HashMap;

use super::text::{Kind, Text};
use crate::injection::{json::Json, view::Container};

/// The values of a container's variables, as far as the pod's spec determines them.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub(super) by_name: HashMap<String, Text>,
    /// The beginnings of the names of others that `envFrom` may bring, of which nothing is known.
    elsewhere: Vec<String>,
    /// How much more text is put together, in bytes; 0: it was too much.
    pub(super) left: usize,
}

impl Environment {
    /// Reads `env`; at most `left` bytes are put together.
    pub(super) fn of(container: &Container<'_>, left: usize) -> Self {
        let prefix = |from: &Json<'_>| from.get("prefix").as_str().unwrap_or_default().to_owned();
        let elsewhere = container.list("envFrom").iter().map(prefix).collect();
        let mut environment = Self { by_name: HashMap::new(), elsewhere, left };
        for entry in container.list("env") {
            let Some(name) = entry.get("name").as_str() else { continue };
            let text = match entry.get("valueFrom") {
                Json::Null => environment.expand(entry.get("value").as_str().unwrap_or_default()),
                from => Text::hole(format!("${{{name}}}"), kind(from)),
            };
            environment.by_name.insert(name.to_owned(), text);
        }
        environment
    }

    /// True if `envFrom` may bring a variable of this name.
    pub(super) fn may_bring(&self, name: &str) -> bool {
        self.elsewhere.iter().any(|prefix| name.starts_with(prefix))
    }

    /// `text` as kubelet expands it in `command`, `args` and `env`.
    pub(super) fn expand(&mut self, text: &str) -> Text {
        let mut expanded = Text::default();
        let mut rest = text;
        self.left = self.left.saturating_sub(text.len());
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                expanded.push_str("$");
                rest = after;
                continue;
            }
            let Some((name, behind)) = after.strip_prefix('(').and_then(|named| named.split_once(')')) else {
                expanded.push_str("$");
                rest = after;
                // Without a bracket that closes there is no name in all of the rest.
                if after.starts_with('(') {
                    break;
                }
                continue;
            };
            rest = behind;
            let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            match self.by_name.get(name) {
                Some(value) => {
                    self.left = self.left.saturating_sub(value.cost());
                    if self.left > 0 {
                        expanded.append(value, false);
                    }
                }
                None if self.may_bring(name) && name.chars().all(upper) => {
                    expanded.append(&Text::hole(format!("${{{name}}}"), Kind::Any), false);
                }
                // Kubelet leaves what it does not know, $(hostname) for instance, to the shell.
                None => expanded.push_str(&format!("$({name})")),
            }
        }
        expanded.push_str(rest);
        expanded
    }
}

/// How much a `valueFrom` can bring.
fn kind(from: &Json<'_>) -> Kind {
    let path = from.get("fieldRef").get("fieldPath").as_str();
    let word = path.is_some_and(|path| !path.starts_with("metadata.annotations"));
    if word || !from.get("resourceFieldRef").is_null() { Kind::Word } else { Kind::Any }
}
