//! The policies as the manifests ship them, and how a live one falls short. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        ValidatingAdmissionPolicySpec,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::Guard;

const FILES: [&str; 10] = [
    include_str!("../../../../manifests/guards/requests.yaml"),
    include_str!("../../../../manifests/guards/bindings.yaml"),
    include_str!("../../../../manifests/guards/secrets.yaml"),
    include_str!("../../../../manifests/guards/trust.yaml"),
    include_str!("../../../../manifests/guards/webhooks.yaml"),
    include_str!("../../../../manifests/guards/pods.yaml"),
    include_str!("../../../../manifests/components/pod-certificates/policy.yaml"),
    include_str!("../../../../manifests/components/cluster-trust-bundles/policy.yaml"),
    include_str!("../../../../manifests/components/cert-manager/requests.yaml"),
    include_str!("../../../../manifests/components/approve-others/policies.yaml"),
];
/// The patch of [`Guard::RequestWrites`] by the component approve-others: it changes one validation.
const PATCH: &str = include_str!("../../../../manifests/components/approve-others/request-writes.yaml");
const HOUSEKEEPING: &str = include_str!("../../../../manifests/guards/housekeeping.yaml");

/// The program holds no usable copy of a policy: a defect of its build.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotShipped {
    /// It is in no manifest.
    #[error("there is no shipped policy {0}")]
    Missing(&'static str),
    /// Its manifest is no policy.
    #[error("the shipped policy {name} cannot be read: {reason}")]
    Unreadable {
        /// The policy.
        name: &'static str,
        /// The reader's words.
        reason: String,
    },
}

/// A shipped policy.
pub(super) struct Shipped {
    name: &'static str,
    spec: ValidatingAdmissionPolicySpec,
    /// Validations that a component has in the place of others, by their index.
    patched: BTreeMap<usize, String>,
}

/// An operation of a JSON patch.
#[derive(serde::Deserialize)]
struct Operation {
    path: String,
    value: String,
}

/// The validations that a patch replaces.
fn replaced(name: &'static str, patch: &str) -> Result<BTreeMap<usize, String>, NotShipped> {
    let unreadable = |reason: String| NotShipped::Unreadable { name, reason };
    let operations: Vec<Operation> = serde_saphyr::from_str(patch).map_err(|error| unreadable(error.to_string()))?;
    let one = |Operation { path, value }| {
        let index = path.strip_prefix("/spec/validations/").and_then(|rest| rest.strip_suffix("/expression"));
        let index = index.and_then(|index| index.parse().ok()).ok_or_else(|| unreadable(path.clone()))?;
        Ok((index, plain(&value)))
    };
    operations.into_iter().map(one).collect()
}

impl Shipped {
    /// The one of this guard.
    ///
    /// # Errors
    /// It is not in the manifests, or not readable there.
    pub(super) fn of(guard: Guard) -> Result<Self, NotShipped> {
        let name = guard.name();
        for document in FILES.into_iter().chain([HOUSEKEEPING]).flat_map(|file| file.split("\n---\n")) {
            if !document.contains("kind: ValidatingAdmissionPolicy\n") || !document.contains(&format!("name: {name}\n"))
            {
                continue;
            }
            let policy: ValidatingAdmissionPolicy = serde_saphyr::from_str(document)
                .map_err(|error| NotShipped::Unreadable { name, reason: error.to_string() })?;
            if let Some(spec) = policy.spec {
                let patched = if guard == Guard::RequestWrites { replaced(name, PATCH)? } else { BTreeMap::default() };
                return Ok(Self { name, spec, patched });
            }
        }
        Err(NotShipped::Missing(name))
    }

    /// Where the live objects are looser than the shipped ones. An administrator's additions are no fault, nor is a
    /// component's patch.
    pub(super) fn faults(
        &self,
        policy: Option<&ValidatingAdmissionPolicy>,
        binding: Option<&ValidatingAdmissionPolicyBinding>,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        match policy.map(|policy| policy.spec.as_ref()) {
            None => faults.push("the policy is missing".to_owned()),
            Some(None) => faults.push("the policy is empty".to_owned()),
            Some(Some(live)) => self.policy_faults(live, &mut faults),
        }
        match binding.map(|binding| binding.spec.as_ref()) {
            None | Some(None) => faults.push("its binding is missing".to_owned()),
            Some(Some(live)) => {
                if live.policy_name.as_deref() != Some(self.name) {
                    faults.push("its binding names another policy".to_owned());
                }
                let actions = live.validation_actions.as_deref().unwrap_or_default();
                if !actions.iter().any(|action| action == "Deny") {
                    faults.push(format!("its binding does not deny (validationActions: {})", actions.join(", ")));
                }
                if live.match_resources.as_ref().is_some_and(narrows) || live.param_ref.is_some() {
                    faults.push("its binding is narrowed (matchResources or paramRef)".to_owned());
                }
            }
        }
        faults
    }

    fn policy_faults(&self, live: &ValidatingAdmissionPolicySpec, faults: &mut Vec<String>) {
        if live.failure_policy.as_deref().unwrap_or("Fail") != "Fail" {
            faults.push("its failurePolicy is not Fail".to_owned());
        }
        if live.param_kind.is_some() {
            faults.push("it has a paramKind".to_owned());
        }
        let conditions = |spec: &ValidatingAdmissionPolicySpec| -> Vec<String> {
            spec.match_conditions.iter().flatten().map(|condition| plain(&condition.expression)).collect()
        };
        let shipped = conditions(&self.spec);
        if conditions(live).iter().any(|condition| !shipped.contains(condition)) {
            faults.push("it is narrowed (matchConditions)".to_owned());
        }
        let variables = |spec: &ValidatingAdmissionPolicySpec| -> BTreeMap<String, String> {
            spec.variables.iter().flatten().map(|v| (v.name.clone(), plain(&v.expression))).collect()
        };
        let live_variables = variables(live);
        for (name, expression) in variables(&self.spec) {
            if live_variables.get(&name) != Some(&expression) {
                faults.push(format!("its variable {name} is another one"));
            }
        }
        let live_validations: Vec<_> = live.validations.iter().flatten().map(|v| plain(&v.expression)).collect();
        for (index, validation) in self.spec.validations.iter().flatten().enumerate() {
            let is_there = |expression: &String| live_validations.contains(expression);
            if !is_there(&plain(&validation.expression)) && !self.patched.get(&index).is_some_and(is_there) {
                faults.push(format!("its validation {index} is missing"));
            }
        }
        let constraints = live.match_constraints.as_ref();
        if constraints.is_none_or(narrows) {
            faults.push("it is narrowed (matchConstraints)".to_owned());
        }
        let rules = |spec: &ValidatingAdmissionPolicySpec| -> Vec<NamedRuleWithOperations> {
            spec.match_constraints.iter().flat_map(|c| c.resource_rules.iter().flatten()).cloned().collect()
        };
        let live_rules = rules(live);
        if !rules(&self.spec).iter().all(|rule| live_rules.iter().any(|live| covers(live, rule))) {
            faults.push("it is narrowed (resourceRules)".to_owned());
        }
    }
}

/// True if it leaves anything out that its rules match.
fn narrows(resources: &MatchResources) -> bool {
    let selects = |selector: &Option<LabelSelector>| {
        selector.as_ref().is_some_and(|selector| {
            selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty())
                || selector.match_expressions.as_ref().is_some_and(|expressions| !expressions.is_empty())
        })
    };
    selects(&resources.namespace_selector)
        || selects(&resources.object_selector)
        || resources.match_policy.as_deref().is_some_and(|policy| policy != "Equivalent")
        || resources.exclude_resource_rules.as_ref().is_some_and(|rules| !rules.is_empty())
        || resources
            .resource_rules
            .iter()
            .flatten()
            .any(|rule| rule.resource_names.as_ref().is_some_and(|n| !n.is_empty()))
}

fn covers(live: &NamedRuleWithOperations, shipped: &NamedRuleWithOperations) -> bool {
    let all = |live: &Option<Vec<String>>, shipped: &Option<Vec<String>>| {
        let live = live.as_deref().unwrap_or_default();
        shipped.iter().flatten().all(|one| live.iter().any(|there| there == one || there == "*"))
    };
    all(&live.api_groups, &shipped.api_groups)
        && all(&live.api_versions, &shipped.api_versions)
        && all(&live.operations, &shipped.operations)
        && all(&live.resources, &shipped.resources)
        && live.scope.as_deref().unwrap_or("*") == shipped.scope.as_deref().unwrap_or("*")
}

/// An expression without its line breaks.
fn plain(expression: &str) -> String {
    expression.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use k8s_openapi::api::admissionregistration::v1::{
        MatchCondition, ParamRef, ValidatingAdmissionPolicyBindingSpec as BindingSpec, Validation,
    };

    use super::*;
    use crate::controller::guards::{Components, of_approve, of_sign};

    fn live(guard: Guard) -> (ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding) {
        let shipped = Shipped::of(guard).unwrap();
        let spec = BindingSpec {
            policy_name: Some(shipped.name.to_owned()),
            validation_actions: Some(vec!["Deny".to_owned()]),
            ..BindingSpec::default()
        };
        let policy = ValidatingAdmissionPolicy { spec: Some(shipped.spec), ..ValidatingAdmissionPolicy::default() };
        (policy, ValidatingAdmissionPolicyBinding { spec: Some(spec), ..ValidatingAdmissionPolicyBinding::default() })
    }

    #[test]
    fn every_guard_is_shipped_and_falls_short_of_itself_in_nothing() {
        let all = Components {
            cert_manager: true,
            cluster_trust_bundles: true,
            pod_certificates: true,
            approvals_of_cert_manager: true,
        };
        for guard in of_approve(all).iter().chain(&of_sign(all)) {
            let (policy, binding) = live(*guard);
            assert_eq!(Shipped::of(*guard).unwrap().faults(Some(&policy), Some(&binding)), Vec::<String>::new());
            assert!(!policy.spec.unwrap().validations.unwrap().is_empty(), "{}", guard.name());
        }
    }

    #[test]
    fn the_patch_of_a_component_is_no_fault_and_another_is() {
        let guard = Guard::RequestWrites;
        let shipped = Shipped::of(guard).unwrap();
        let faults = |change: &dyn Fn(&mut Vec<Validation>)| {
            let (mut policy, binding) = live(guard);
            change(policy.spec.as_mut().unwrap().validations.as_mut().unwrap());
            shipped.faults(Some(&policy), Some(&binding))
        };
        let [(index, patched)] = &Vec::from_iter(&shipped.patched)[..] else { panic!("{:?}", shipped.patched) };
        assert_eq!(faults(&|all| all[**index].expression = (*patched).clone()), Vec::<String>::new());
        let looser = patched.replace("check('approve')", "check('get')");
        assert_ne!(looser, **patched);
        assert_eq!(faults(&|all| all[**index].expression = looser.clone()), ["its validation 0 is missing"]);
        assert_eq!(faults(&|all| all[1].expression = (*patched).clone()), ["its validation 1 is missing"]);
        assert_eq!(faults(&|all| drop(all.remove(**index))), ["its validation 0 is missing"]);
    }

    #[test]
    fn a_looser_policy_is_a_fault() {
        let guard = Guard::Bindings;
        let shipped = Shipped::of(guard).unwrap();
        assert_eq!(shipped.faults(None, None).len(), 2);
        type Change = fn(&mut ValidatingAdmissionPolicySpec, &mut BindingSpec);
        let changes: [(&str, Change); 13] = [
            ("does not deny", |_, binding| {
                binding.validation_actions = Some(vec!["Warn".to_owned(), "Audit".to_owned()]);
            }),
            ("another policy", |_, binding| binding.policy_name = Some("x".to_owned())),
            ("paramRef", |_, binding| binding.param_ref = Some(ParamRef::default())),
            ("matchResources", |_, binding| {
                binding.match_resources = Some(MatchResources {
                    namespace_selector: Some(LabelSelector {
                        match_labels: Some([("a".to_owned(), "b".to_owned())].into()),
                        ..LabelSelector::default()
                    }),
                    ..MatchResources::default()
                });
            }),
            ("failurePolicy", |policy, _| policy.failure_policy = Some("Ignore".to_owned())),
            ("matchConditions", |policy, _| {
                policy
                    .match_conditions
                    .get_or_insert_default()
                    .push(MatchCondition { name: "x".to_owned(), expression: "false".to_owned() });
            }),
            ("validation 0", |policy, _| {
                policy.validations.as_mut().unwrap().remove(0);
            }),
            ("validation 3", |policy, _| policy.validations.as_mut().unwrap()[3].expression = "true".to_owned()),
            ("variable binding", |policy, _| {
                policy.variables.as_mut().unwrap()[0].expression = "oldObject".to_owned();
            }),
            ("resourceRules", |policy, _| {
                let rules = policy.match_constraints.as_mut().unwrap().resource_rules.as_mut().unwrap();
                rules[0].operations = Some(vec!["CREATE".to_owned()]);
            }),
            ("matchConstraints", |policy, _| {
                let rules = policy.match_constraints.as_mut().unwrap().resource_rules.as_mut().unwrap();
                rules[0].resource_names = Some(vec!["x".to_owned()]);
            }),
            ("matchConstraints", |policy, _| {
                policy.match_constraints.as_mut().unwrap().match_policy = Some("Exact".to_owned());
            }),
            ("matchConstraints", |policy, _| policy.match_constraints = None),
        ];
        for (what, change) in changes {
            let (mut policy, mut binding) = live(guard);
            change(policy.spec.as_mut().unwrap(), binding.spec.as_mut().unwrap());
            let faults = shipped.faults(Some(&policy), Some(&binding));
            assert!(faults.iter().any(|fault| fault.contains(what)), "{what}: {faults:?}");
        }
        // More is no fault, nor are line breaks.
        let (mut policy, binding) = live(guard);
        let validations = policy.spec.as_mut().unwrap().validations.as_mut().unwrap();
        validations.push(validations[0].clone());
        validations[0].expression = validations[0].expression.replace(' ', "\n ");
        assert_eq!(shipped.faults(Some(&policy), Some(&binding)), Vec::<String>::new());
    }
}
