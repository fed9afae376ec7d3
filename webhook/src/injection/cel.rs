//! Injection without the webhook: as admission policies of the API server itself, in CEL.
//!
//! The injected parts are not written here a second time. [`template`] has [`decide`](super::decide) inject into a pod whose
//! settings are placeholders, and writes the result as CEL with the pod's own settings in their places. CEL does not read command lines,
//! so a pod states its options (`etcd-tls.dev/options: env` or `none`) and where its etcd listens.
//!
//! ```text
//! template    what is injected, from a real injection
//! settings    the annotations, as variables of CEL
//! pod         the containers that are meant, users, the way to restart etcd
//! problems    why a pod is refused
//! room        the part of that about resources
//! patch       the JSON patch
//! warnings    what would fail all the same
//! ```
//!
//! Two policies have the same variables. The mutating one changes nothing where there are problems; the validating one, which
//! looks at what came of it, refuses the pod for them, or where it was not injected into. A third one warns and refuses nothing.

mod patch;
mod pod;
mod problems;
mod room;
mod settings;
mod template;
mod text;
mod warnings;

use etcd_tls_contract::names;
use serde_json::{Value, json};

use self::template::Template;
pub use self::warnings::WARNINGS;
use super::Config;

/// The name of both policies and of the PodTemplate with the image. Those of their bindings begin with it.
pub const POLICY: &str = "etcd-tls-injection";
/// Namespaces whose pods are never touched.
const LEFT_OUT: [&str; 2] = ["kube-system", names::SYSTEM_NAMESPACE];

/// The policies could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum CelError {
    /// The injection refused the pod with placeholders.
    #[error("the pod with placeholders is refused: {0}")]
    Refused(String),
    /// Its patch did not fit.
    #[error("the patch of the pod with placeholders: {0}")]
    Misfit(#[from] super::patch::Misfit),
    /// The injected pod is not of the form that is expected.
    #[error("the injected pod with placeholders has no {0}")]
    Form(&'static str),
    /// An argument that this generator does not know.
    #[error("the argument {0} of the injected containers has no form in CEL")]
    Argument(String),
    /// Settings that policies cannot carry.
    #[error("{0}")]
    Config(&'static str),
}

/// A variable of a policy.
pub(super) struct Variable {
    name: &'static str,
    expression: String,
}

fn variable(name: &'static str, expression: impl Into<String>) -> Variable {
    Variable { name, expression: expression.into() }
}

/// Where the image of the injected containers stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// In the policy.
    Constant,
    /// In the PodTemplate [`POLICY`] of the system namespace, where `images:` of a kustomization reaches it.
    PodTemplate,
}

/// The policies and their bindings, with the settings of `config` as constants.
///
/// # Errors
/// `config` is for static pods, or this program is at fault.
pub fn policies(config: &Config, image: Image) -> Result<Vec<Value>, CelError> {
    let by_template = Config { sidecar_image: template::IMAGE.to_owned(), ..config.clone() };
    let config = if image == Image::PodTemplate { &by_template } else { config };
    if config.host.is_some() {
        return Err(CelError::Config(
            "static pods do not pass through admission: run inject --static on their manifests",
        ));
    }
    let template = Template::of(config)?;
    let mut variables = settings::variables(config);
    variables.extend(pod::variables(config, &template)?);
    let mut warning = warnings::spec(&variables);
    variables.push(variable("words", template.words()?));
    variables.push(variable("problems", problems::problems(&template)));
    let variables: Vec<Value> = variables.iter().map(|v| json!({"name": v.name, "expression": v.expression})).collect();
    let mut mutating = json!({
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "matchConstraints": constraints(),
                "matchConditions": conditions(),
                "variables": variables,
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch::patch(config, &template)?}}],
    });
    let validating = json!({
                "failurePolicy": "Fail",
                "matchConstraints": constraints(),
                "matchConditions": conditions(),
                "variables": variables,
                "validations": [
                    {
                        "expression": "size(variables.problems) == 0",
                        "messageExpression": "'etcd-tls: ' + variables.problems.join('; ')",
                        "message": "etcd-tls: the pod is refused for more reasons than fit here; run etcd-tls-webhook inject on its \
                                    manifest, which names them all",
                        "reason": "Invalid",
                    },
                    {
                        "expression": "size(variables.problems) > 0 || variables.injected",
                        "message": format!(
                            "etcd-tls: the pod has opted in, and nothing was injected: see that the MutatingAdmissionPolicy \
                             {POLICY} and its bindings are there"
                        ),
                        "reason": "Invalid",
                    },
                ],
    });
    let mut bound = json!({});
    if image == Image::PodTemplate {
        mutating["paramKind"] = json!({"apiVersion": "v1", "kind": "PodTemplate"});
        bound["paramRef"] =
            json!({"name": POLICY, "namespace": names::SYSTEM_NAMESPACE, "parameterNotFoundAction": "Deny"});
    }
    let mut objects = vec![object("MutatingAdmissionPolicy", POLICY, mutating)];
    objects.extend(bindings("MutatingAdmissionPolicyBinding", POLICY, &bound));
    objects.push(object("ValidatingAdmissionPolicy", POLICY, validating));
    objects.extend(bindings("ValidatingAdmissionPolicyBinding", POLICY, &json!({"validationActions": ["Deny"]})));
    warning["matchConstraints"] = constraints();
    warning["matchConditions"] = conditions();
    objects.push(object("ValidatingAdmissionPolicy", WARNINGS, warning));
    let actions = json!({"validationActions": ["Warn", "Audit"]});
    objects.extend(bindings("ValidatingAdmissionPolicyBinding", WARNINGS, &actions));
    Ok(objects)
}

/// As `manifests/webhook.yaml` has it.
fn constraints() -> Value {
    json!({
        "resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced",
        }],
        "namespaceSelector": {
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": LEFT_OUT}],
        },
    })
}

/// A binding for the pods of labelled namespaces and one for labelled pods anywhere: the selectors of one are ANDed, and conditions
/// do not see the namespace.
fn bindings(kind: &str, policy: &str, spec: &Value) -> Vec<Value> {
    let anywhere = json!({"objectSelector": {"matchLabels": {names::LABEL: names::DYNAMIC}}});
    let labelled = [names::DISABLED, names::DYNAMIC];
    let namespaces = json!({
        "namespaceSelector": {"matchLabels": {names::LABEL: names::DYNAMIC}},
        "objectSelector": {"matchExpressions": [{"key": names::LABEL, "operator": "NotIn", "values": labelled}]},
    });
    let bound = |(name, resources): (String, Value)| {
        let mut spec = spec.clone();
        spec["policyName"] = policy.into();
        spec["matchResources"] = resources;
        object(kind, &name, spec)
    };
    [(format!("{policy}-namespaces"), namespaces), (format!("{policy}-pods"), anywhere)].map(bound).to_vec()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "etcd-tls"}}, "spec": spec,
    })
}

/// The namespace's label means its etcd pods, and a pod's label that pod.
fn conditions() -> Value {
    let mirror = text::literal(names::MIRROR_ANNOTATION);
    let roles = text::literal(&format!("{}roles", names::ANNOTATION_PREFIX));
    let (label, etcd) = (text::literal(names::LABEL), text::literal(names::ETCD_CONTAINER));
    json!([
        {
            "name": "no-mirror-pod",
            "expression": format!("!({mirror} in object.metadata.?annotations.orValue({{}}))"),
        },
        {
            "name": "opted-in",
            "expression": format!(
                "{label} in object.metadata.?labels.orValue({{}})\n\
                 || {roles} in object.metadata.?annotations.orValue({{}})\n\
                 || object.spec.containers.exists(c, c.name == {etcd})\n\
                 || object.spec.?initContainers.orValue([]).exists(c, c.name == {etcd} && c.?restartPolicy.orValue('') == 'Always')"
            ),
        },
    ])
}

#[cfg(test)]
mod tests;
