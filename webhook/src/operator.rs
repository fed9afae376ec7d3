//! Shared parts of the operator's commands: the connection by the caller's kubeconfig, missing rights, and text that is safe
//! for a terminal.

use std::io::{self, Write as _};

pub(crate) mod trust_map;

use etcd_tls_contract::{encoding::hex, names};
use kube::{Client, Config, client::ClientBuilder, config::KubeConfigOptions};
use tower::{BoxError, util::MapErrLayer};

use crate::{
    controller::client::{self, ApiServerError, ClientError},
    error::Error,
};

/// Which cluster an operator's command asks, as kubectl's flags of the same names.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Cluster {
    /// The kubeconfig's context. Default: the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Cluster {
    /// Connects with the caller's kubeconfig; without one, as the pod's service account. Returns the namespace of the context,
    /// too.
    ///
    /// # Errors
    /// There is no kubeconfig, or no such context in it.
    pub async fn connect(&self) -> Result<(Client, String), ClientError> {
        let config = self.configuration().await?;
        let namespace = config.default_namespace.clone();
        Ok((client_of(config)?, namespace))
    }

    /// Connects to act as the service account `user`, for which the caller needs the right to impersonate it.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub(crate) async fn connect_as(&self, user: &str) -> Result<Client, ClientError> {
        let mut config = self.configuration().await?;
        config.auth_info.impersonate = Some(user.to_owned());
        client_of(config)
    }

    async fn configuration(&self) -> Result<Config, ClientError> {
        match &self.context {
            None => client::configuration().await,
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                let mut config = Config::from_kubeconfig(&options)
                    .await
                    .map_err(|error| ClientError::Context { context: context.clone(), error })?;
                client::bound(&mut config);
                Ok(config)
            }
        }
    }
}

/// No answer of the API server that the kubeconfig names.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {server}")]
struct NoAnswer {
    server: String,
    #[source]
    cause: BoxError,
}

/// A client whose errors name the server.
fn client_of(config: Config) -> Result<Client, ClientError> {
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let named = move |cause: BoxError| -> BoxError {
        // These are no errors of the connection.
        if cause.is::<kube::Error>() { cause } else { Box::new(NoAnswer { server: server.clone(), cause }) }
    };
    Ok(ClientBuilder::try_from(config)?.with_layer(&MapErrLayer::new(named)).build())
}

/// A right in Kubernetes' terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{verb} {resource} {}", .namespace.as_ref().map_or_else(|| "in all namespaces".to_owned(), |n| format!("in namespace {n}")))]
pub struct Right {
    /// The verb.
    pub verb: &'static str,
    /// The resource, with its group where it has one.
    pub resource: &'static str,
    /// The namespace; `None`: the whole cluster.
    pub namespace: Option<String>,
}

/// A request of an operator's command that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {right}{}", if .source.is_forbidden() { ": your account lacks this right" } else { "" })]
pub struct Refused {
    /// The attempted action.
    pub right: Right,
    #[source]
    source: ApiServerError,
}

impl Refused {
    /// True if the object is not there any more: no other one has its name, or one with another uid.
    pub(crate) fn is_gone(&self) -> bool {
        // The API server's words: "Precondition failed: UID in precondition: …". Other conflicts pass.
        let other_uid = || self.source.code() == Some(409) && format!("{:?}", self.source).contains("UID");
        self.source.is_not_found() || other_uid()
    }
}

impl Right {
    /// The right to `verb` `resource` in `namespace`, or in all of them.
    pub fn new(verb: &'static str, resource: &'static str, namespace: Option<&str>) -> Self {
        Self { verb, resource, namespace: namespace.map(str::to_owned) }
    }

    /// The error of a request that needs this right.
    pub fn refused(self, source: ApiServerError) -> Refused {
        Refused { right: self, source }
    }

    /// The command that tells whether the caller has the right.
    pub fn question(&self) -> String {
        let place = self.namespace.as_ref().map_or_else(|| "--all-namespaces".to_owned(), |n| format!("-n {n}"));
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let subresource = if subresource.is_empty() { String::new() } else { format!(" --subresource={subresource}") };
        format!("kubectl auth can-i {} {resource}{subresource} {place}", self.verb)
    }
}

/// An argument that cannot be a namespace's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a namespace: write a DNS label")]
pub struct NoNamespace;

/// A namespace's name, on a command line.
///
/// # Errors
/// It is no DNS label.
pub fn namespace(name: &str) -> Result<String, NoNamespace> {
    names::is_dns_label(name).then(|| name.to_owned()).ok_or(NoNamespace)
}

/// Prints lines, in which there may be text of other people's objects.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn say(text: &str) -> Result<(), Error> {
    if !text.is_empty() {
        writeln!(io::stdout(), "{}", plain_lines(text))?;
    }
    Ok(())
}

/// An id for a request to the signer, by which its answer is recognised.
///
/// # Errors
/// There are no random numbers.
pub(crate) fn request_id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers")?;
    Ok(hex(&bytes))
}

/// Text of other people's objects, safe for a terminal: control characters are escaped, line ends become spaces.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// [`plain`] for text of several lines: the ends of its lines stay.
pub fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

/// JSON, safe for a terminal: what [`plain`] escapes and the serializer does not, as JSON's own escapes. The values stay.
pub(crate) fn plain_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of texts JSON has line ends and spaces alone, and no other of these is beyond U+FFFF.
        if c != '\n' && (c.is_control() || is_invisible(c)) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Says something beside the output of a command, on standard error.
///
/// # Errors
/// Standard error cannot be written.
pub(crate) fn note(text: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{}", plain_lines(text))
}

/// Characters that change how others are shown: bidirectional controls, zero-width characters and tags.
pub(crate) const fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_moves_no_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{202e}d é"), "a\\u{1b}[2Jb c\\u{202e}d é");
        assert_eq!(plain("\u{61c}a\u{180e}\u{e0041}"), "\\u{61c}a\\u{180e}\\u{e0041}");
        assert_eq!(plain_lines("a\r\nb\u{9b}2J\u{7f}"), "a\nb\\u{9b}2J\\u{7f}");
        let value = serde_json::json!({"a": "\u{1b}]0;x\u{7}\u{7f}\u{9b}2J\u{202e} é\n"});
        let text = plain_json(&format!("{value:#}"));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && !is_invisible(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).ok(), Some(value));
    }

    #[test]
    fn a_right_is_named_by_verb_resource_and_namespace() {
        let right = Right::new("get", "pods/proxy", Some("prod"));
        assert_eq!(right.to_string(), "get pods/proxy in namespace prod");
        assert_eq!(right.question(), "kubectl auth can-i get pods --subresource=proxy -n prod");
        let right = Right::new("list", "pods", None);
        assert_eq!(right.to_string(), "list pods in all namespaces");
        assert_eq!(right.question(), "kubectl auth can-i list pods --all-namespaces");
    }
}
