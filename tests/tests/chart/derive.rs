//! The chart's templates, made from the manifests: the same text, with values where the chart has some. So there is one
//! source, and a change of the manifests that no edit below fits is noticed without helm.

use std::{collections::BTreeMap, fs};

/// A text that stands exactly so many times in a manifest, and what the template has instead.
struct Edit(usize, &'static str, &'static str);

/// A manifest, the template that is made of it, and the condition on which the template gives something.
struct Source {
    manifest: &'static str,
    when: Option<&'static str>,
    edits: &'static [Edit],
}

const fn plain(manifest: &'static str) -> Source {
    Source { manifest, when: None, edits: &[] }
}

const AFTER_REQUESTER: &str = "---
# `approve` keeps the subjects";
const RULE_OF_REQUESTER: &str = "{{- if .Values.certManager.issuers }}
- apiGroups: [cert-manager.io]
  resources: [certificaterequests]
  verbs: [create, get]
{{- end }}
---
# `approve` keeps the subjects";
const RULE_OF_APPROVE: &str = "{{- if .Values.certManager.issuers }}
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [etcd-tls-certificate-requests]
  verbs: [get]
{{- end }}
{{- if .Values.approveOthers.enabled }}
- apiGroups: [cert-manager.io]
  resources: [certificaterequests]
  verbs: [get, list, watch]
- apiGroups: [cert-manager.io]
  resources: [certificaterequests/status]
  verbs: [patch]
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [etcd-tls-certificate-request-approvals, etcd-tls-certificate-request-identities]
  verbs: [get]
{{- with .Values.approveOthers.signers }}
- apiGroups: [certificates.k8s.io]
  resources: [signers]
  resourceNames: {{- toYaml . | nindent 4 }}
  verbs: [approve]
{{- end }}
{{- with .Values.approveOthers.issuers }}
- apiGroups: [cert-manager.io]
  resources: [signers]
  resourceNames: {{- toYaml . | nindent 4 }}
  verbs: [approve]
{{- end }}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
";
const AFTER_SIGN: &str = "---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
";
const RULE_OF_SIGN: &str = "{{- if .Values.certManager.issuers }}
- apiGroups: [cert-manager.io]
  resources: [certificaterequests]
  verbs: [get, list, delete]
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [etcd-tls-certificate-request-deletes]
  verbs: [get]
{{- end }}
{{- if .Values.clusterTrustBundles.enabled }}
- apiGroups: [certificates.k8s.io]
  resources: [clustertrustbundles]
  verbs: [list, create, patch, delete]
- apiGroups: [certificates.k8s.io]
  resources: [signers]
  resourceNames: [\"peer.etcd-tls.dev/*\", \"client.etcd-tls.dev/*\", \"metrics.etcd-tls.dev/*\"]
  verbs: [attest]
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [etcd-tls-cluster-trust-bundles]
  verbs: [get]
{{- end }}
{{- if .Values.podCertificates.enabled }}
- apiGroups: [certificates.k8s.io]
  resources: [podcertificaterequests]
  verbs: [get, list, watch]
- apiGroups: [certificates.k8s.io]
  resources: [podcertificaterequests/status]
  verbs: [patch]
- apiGroups: [admissionregistration.k8s.io]
  resources: [validatingadmissionpolicies, validatingadmissionpolicybindings]
  resourceNames: [etcd-tls-pod-certificates]
  verbs: [get]
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
";

const WITH_WEBHOOK: &str = "not .Values.withoutWebhook.enabled";
const AFTER_ADMIT_ACCOUNT: &str = "automountServiceAccountToken: false\n---\n";

/// The edits that all three Deployments share.
const DEPLOYMENT: &[Edit] = &[
    Edit(1, "  replicas: 2\n", "  replicas: {{ .Values.PROCESS.replicas }}\n"),
    Edit(
        1,
        "      annotations: {kubectl.kubernetes.io/default-container: PROCESS}\n",
        "      annotations:
        kubectl.kubernetes.io/default-container: PROCESS
        {{- with .Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
",
    ),
    Edit(1, "      nodeSelector: {kubernetes.io/os: linux}\n", "      {{- include \"etcd-tls.pod\" . | nindent 6 }}\n"),
    Edit(
        1,
        "        runAsUser: 65532\n        runAsGroup: 65532\n",
        "        {{- if not .Values.openshift.enabled }}
        runAsUser: 65532
        runAsGroup: 65532
        {{- end }}
",
    ),
    Edit(1, "ScheduleAnyway", "{{ .Values.topologySpread.whenUnsatisfiable }}"),
    Edit(1, "image: etcd-tls-webhook\n", "image: {{ include \"etcd-tls.image\" (list . .Values.images.webhook) }}\n"),
    Edit(
        1,
        "        resources:
          requests: {cpu: 20m, memory: 24Mi}
          limits: {cpu: \"1\", memory: 128Mi}
",
        "        resources: {{- toYaml .Values.PROCESS.resources | nindent 10 }}\n",
    ),
];

const ADMIT: &[Edit] = &[
    Edit(
        1,
        "    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}\n",
        "    {{- if .Values.admit.hostNetwork }}
    # A node has each port once: with two nodes and two replicas, a new pod's place is an old one's.
    rollingUpdate: {maxUnavailable: 1, maxSurge: 0}
    {{- else }}
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
    {{- end }}
",
    ),
    Edit(
        1,
        "      enableServiceLinks: false\n",
        "      enableServiceLinks: false
      {{- if .Values.admit.hostNetwork }}
      hostNetwork: true
      # It asks no name, but what it would ask is the cluster's.
      dnsPolicy: ClusterFirstWithHostNet
      {{- end }}
",
    ),
    Edit(
        1,
        "        fsGroup: 65532\n",
        "        {{- if not .Values.openshift.enabled }}
        fsGroup: 65532
        {{- end }}
",
    ),
    Edit(2, "imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.images.pullPolicy }}"),
    Edit(
        1,
        "        - --policy-file=/var/run/etcd-tls/policy/policy.yaml\n",
        "        - --policy-file=/var/run/etcd-tls/policy/policy.yaml
        {{- if .Values.admit.hostNetwork }}
        # Ports that a node's own processes seldom have; sidecars on the host's network have 9179.
        - \"--address=[::]:18443\"
        - \"--admin-address=[::]:19179\"
        {{- end }}
        {{- include \"etcd-tls.arguments\" (list . .Values.admit) | nindent 8 }}
",
    ),
    Edit(
        1,
        "        # The image that is injected. `images:` of a kustomization sets it (images.yaml).\n",
        "        # The image that is injected.\n",
    ),
    Edit(
        1,
        "value: etcd-tls-sidecar}",
        "value: {{ include \"etcd-tls.image\" (list . .Values.images.sidecar) | quote }}}",
    ),
    Edit(1, "image: etcd-tls-sidecar\n", "image: {{ include \"etcd-tls.image\" (list . .Values.images.sidecar) }}\n"),
    Edit(1, "containerPort: 8443}", "containerPort: {{ if .Values.admit.hostNetwork }}18443{{ else }}8443{{ end }}}"),
    Edit(1, "containerPort: 9179}", "containerPort: {{ if .Values.admit.hostNetwork }}19179{{ else }}9179{{ end }}}"),
];

const APPROVE: &[Edit] = &[
    Edit(1, "imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.images.pullPolicy }}"),
    Edit(
        1,
        "        - approve\n",
        "        - approve
        {{- if .Values.certManager.issuers }}
        - --cert-manager
        {{- end }}
        {{- if .Values.approveOthers.enabled }}
        {{- range .Values.approveOthers.signers }}
        - {{ printf \"--approve-signer=%s\" . | quote }}
        {{- end }}
        {{- range .Values.approveOthers.issuers }}
        - {{ printf \"--approve-issuer=%s\" . | quote }}
        {{- end }}
        {{- end }}
        {{- include \"etcd-tls.arguments\" (list . .Values.approve) | nindent 8 }}\n",
    ),
];

const SIGN: &[Edit] = &[
    Edit(1, "imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.images.pullPolicy }}"),
    Edit(
        1,
        "        - sign\n",
        "        - sign
        {{- if .Values.certManager.issuers }}
        - --cert-manager
        {{- end }}
        {{- if or .Values.certManager.servingPair.enabled .Values.withoutWebhook.enabled }}
        - --external-serving-pair
        {{- end }}
        {{- if .Values.clusterTrustBundles.enabled }}
        - --cluster-trust-bundles
        {{- end }}
        {{- if .Values.podCertificates.enabled }}
        - --pod-certificates
        {{- end }}
        {{- include \"etcd-tls.arguments\" (list . .Values.sign) | nindent 8 }}
",
    ),
];

/// The patch of the component approve-others.
const REQUESTS: &[Edit] = &[Edit(
    1,
    "      || (variables.deletes && request.userInfo.username == 'system:serviceaccount:etcd-tls-system:etcd-tls-sign' && variables.ofPod)\n",
    "      {{- if .Values.approveOthers.enabled }}
      || (variables.ofPod && (request.userInfo.username == 'system:serviceaccount:etcd-tls-system:etcd-tls-sign' ? variables.deletes
      : request.subResource == 'approval'
      && authorizer.group('certificates.k8s.io').resource('signers').name(oldObject.spec.signerName).check('approve').allowed()))
      {{- else }}
      || (variables.deletes && request.userInfo.username == 'system:serviceaccount:etcd-tls-system:etcd-tls-sign' && variables.ofPod)
      {{- end }}\n",
)];

/// The agent of a Secret, once for each entry of a list, in the namespace that it names.
const SECRET: &[Edit] = &[
    Edit(
        1,
        "apiVersion: v1\nkind: ServiceAccount\n",
        "{{- range .Values.secrets }}\n---\napiVersion: v1\nkind: ServiceAccount\n",
    ),
    Edit(
        4,
        "metadata:\n  name: etcd-client-tls\n",
        "metadata:\n  name: SECRET\n  namespace: {{ .namespace | quote }}\n",
    ),
    Edit(
        1,
        "- {kind: ServiceAccount, name: etcd-client-tls}",
        "- {kind: ServiceAccount, name: SECRET, namespace: {{ .namespace | quote }}}",
    ),
    Edit(1, "image: etcd-tls-sidecar\n", "image: {{ include \"etcd-tls.image\" (list $ $.Values.images.sidecar) }}\n"),
    Edit(
        1,
        "        etcd-tls.dev/user: app\n",
        "        etcd-tls.dev/user: {{ .user | quote }}
        {{- with .cluster }}
        etcd-tls.dev/cluster: {{ . | quote }}
        {{- end }}
",
    ),
    Edit(1, "          capabilities: {drop: [ALL]}\n", "          capabilities: {drop: [ALL]}\n{{- end }}\n"),
    Edit(1, "--secret=etcd-client-tls", "--secret={{ .name }}"),
    Edit(9, "etcd-client-tls", "SECRET"),
    Edit(14, "SECRET", "{{ .name | quote }}"),
];

/// A budget beside a single replica would keep its node from being drained.
const BUDGET: &[Edit] = &[
    Edit(
        1,
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata:\n  name: etcd-tls-PROCESS\n",
        "{{- if COUNTED }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: etcd-tls-PROCESS
",
    ),
    Edit(
        1,
        "  selector: {matchLabels: {app.kubernetes.io/name: etcd-tls, app.kubernetes.io/component: PROCESS}}\n",
        "  selector: {matchLabels: {app.kubernetes.io/name: etcd-tls, app.kubernetes.io/component: PROCESS}}
{{- end }}
",
    ),
];

const SOURCES: &[Source] = &[
    Source {
        manifest: "namespace.yaml",
        when: Some(".Values.namespace.create"),
        edits: &[
            // The namespace holds the Secrets of the CAs.
            Edit(1, "  labels:\n", "  annotations: {helm.sh/resource-policy: keep}\n  labels:\n"),
            Edit(
                1,
                "    pod-security.kubernetes.io/enforce: restricted\n",
                "    {{- if .Values.admit.hostNetwork }}
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/warn: restricted
    pod-security.kubernetes.io/warn-version: latest
    {{- else }}
    pod-security.kubernetes.io/enforce: restricted
    {{- end }}
",
            ),
        ],
    },
    Source {
        manifest: "service-accounts.yaml",
        when: None,
        edits: &[
            Edit(1, "# One for each process", "{{- if not .Values.withoutWebhook.enabled }}\n# One for each process"),
            Edit(1, AFTER_ADMIT_ACCOUNT, "automountServiceAccountToken: false\n---\n{{- end }}\n"),
        ],
    },
    Source { manifest: "rbac-requesters.yaml", when: None, edits: &[Edit(1, AFTER_REQUESTER, RULE_OF_REQUESTER)] },
    Source { manifest: "rbac-approve.yaml", when: None, edits: &[Edit(1, AFTER_SIGN, RULE_OF_APPROVE)] },
    Source { manifest: "rbac-sign.yaml", when: None, edits: &[Edit(1, AFTER_SIGN, RULE_OF_SIGN)] },
    plain("rbac-authorities.yaml"),
    plain("flow.yaml"),
    Source {
        manifest: "policy.yaml",
        when: None,
        edits: &[Edit(
            1,
            "\ndata:\n",
            "\ndata:
  {{- with .Values.policy }}
  policy.yaml: |
    {{- (kindIs \"string\" . | ternary . (toYaml .)) | nindent 4 }}
  {{- end }}
",
        )],
    },
    Source { manifest: "guards/requests.yaml", when: None, edits: REQUESTS },
    plain("guards/trust.yaml"),
    plain("guards/bindings.yaml"),
    plain("guards/secrets.yaml"),
    plain("guards/webhooks.yaml"),
    plain("guards/pods.yaml"),
    plain("guards/housekeeping.yaml"),
    Source { manifest: "admit.yaml", when: Some(WITH_WEBHOOK), edits: ADMIT },
    Source { manifest: "approve.yaml", when: None, edits: APPROVE },
    Source { manifest: "sign.yaml", when: None, edits: SIGN },
    Source {
        manifest: "webhook.yaml",
        when: Some(WITH_WEBHOOK),
        edits: &[Edit(
            2,
            "metadata:\n  name: etcd-tls\n",
            "metadata:
  name: etcd-tls
  {{- if .Values.certManager.servingPair.enabled }}
  annotations: {cert-manager.io/inject-ca-from: etcd-tls-system/etcd-tls-admit}
  {{- end }}
",
        )],
    },
    Source {
        manifest: "network.yaml",
        when: Some(".Values.networkPolicy.enabled"),
        edits: &[
            Edit(1, "# `admit`: connections", "{{- if not .Values.withoutWebhook.enabled }}\n# `admit`: connections"),
            Edit(1, "---\n# `approve` and `sign`:", "---\n{{- end }}\n# `approve` and `sign`:"),
        ],
    },
    Source {
        manifest: "components/without-webhook/policies.yaml",
        when: Some(".Values.withoutWebhook.enabled"),
        edits: &[],
    },
    Source {
        manifest: "components/without-webhook/image/template.yaml",
        when: Some(".Values.withoutWebhook.enabled"),
        edits: &[Edit(
            1,
            "image: etcd-tls-sidecar\n",
            "image: {{ include \"etcd-tls.image\" (list . .Values.images.sidecar) }}\n",
        )],
    },
    plain("disruption.yaml"),
    Source { manifest: "examples/secret/agent.yaml", when: None, edits: SECRET },
    Source {
        manifest: "components/cluster-trust-bundles/policy.yaml",
        when: Some(".Values.clusterTrustBundles.enabled"),
        edits: &[],
    },
    Source {
        manifest: "components/pod-certificates/policy.yaml",
        when: Some(".Values.podCertificates.enabled"),
        edits: &[],
    },
    Source { manifest: "components/cert-manager/requests.yaml", when: Some(".Values.certManager.issuers"), edits: &[] },
    Source {
        manifest: "components/approve-others/policies.yaml",
        when: Some(".Values.approveOthers.enabled"),
        edits: &[],
    },
    Source {
        manifest: "components/priority/quota.yaml",
        when: Some(".Values.priority.enabled"),
        edits: &[
            Edit(1, "Six pods, and", "All pods, and"),
            Edit(
                1,
                "\"12\"",
                "{{ mul 2 (add .Values.admit.replicas .Values.approve.replicas .Values.sign.replicas) | quote }}",
            ),
        ],
    },
    Source {
        manifest: "components/monitoring/alerts.yaml",
        when: Some(".Values.monitoring.enabled"),
        edits: &[Edit(17, "runbook_url: docs/runbook.md#", "runbook_url: {{ .Values.monitoring.runbookUrl }}#")],
    },
    Source { manifest: "components/monitoring/dashboard.yaml", when: Some(".Values.monitoring.enabled"), edits: &[] },
    Source {
        manifest: "components/monitoring/monitors.yaml",
        when: Some(".Values.monitoring.enabled"),
        edits: &[Edit(3, "interval: 30s", "interval: {{ .Values.monitoring.interval }}")],
    },
];

fn apply(text: &str, manifest: &str, process: &str, edits: &[Edit]) -> String {
    edits.iter().fold(text.to_owned(), |text, Edit(times, old, new)| {
        let (old, new) = (old.replace("PROCESS", process), new.replace("PROCESS", process));
        assert_eq!(
            text.matches(&old).count(),
            *times,
            "manifests/{manifest}: {old:?}; tests/tests/chart/derive.rs edits it"
        );
        text.replace(&old, &new)
    })
}

/// The labels that kustomize adds, where the template adds its own: in the metadata of each object and of each pod template,
/// not in selectors, which are immutable.
fn labelled(text: &str, helper: &str) -> String {
    let mut anchored = String::new();
    let mut out = String::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let rest = line.trim_start().strip_prefix("labels:").map(str::trim);
        let own = match rest {
            Some("*labels") => Some(anchored.clone()),
            Some("") => Some(String::new()),
            Some(flow) if flow.contains("app.kubernetes.io/name: etcd-tls") => {
                let inner = flow.trim_start_matches("&labels ").trim_start_matches('{').trim_end_matches('}');
                if flow.starts_with('&') {
                    inner.clone_into(&mut anchored);
                }
                Some(inner.to_owned())
            }
            _ => None,
        };
        let Some(own) = own else {
            out += &line.replace("*labels", &format!("{{{anchored}}}"));
            out.push('\n');
            continue;
        };
        let (outer, inner) = (" ".repeat(indent), " ".repeat(indent + 2));
        out += &format!("{outer}labels:\n{inner}{{{{- include \"{helper}\" . | nindent {} }}}}\n", indent + 2);
        for label in own.split(", ").filter(|label| !label.is_empty()) {
            out += &format!("{inner}{label}\n");
        }
    }
    out
}

/// The text with the templates in it, which are Prometheus' own, as helm gives them back.
fn escaped(text: &str) -> String {
    text.replace("{{", "\0").replace("}}", "{{ \"}}\" }}").replace('\0', "{{ \"{{\" }}")
}

/// Each template by its path in the chart.
pub fn templates() -> BTreeMap<String, String> {
    let directory = tests::repository().join("manifests");
    let mut made = BTreeMap::new();
    for Source { manifest, when, edits } in SOURCES {
        let mut text = fs::read_to_string(directory.join(manifest)).unwrap_or_else(|e| panic!("{manifest}: {e}"));
        if text.contains("{{") {
            text = escaped(&text);
        }
        let process = manifest.strip_suffix(".yaml").unwrap_or(manifest);
        let shared = if matches!(process, "admit" | "approve" | "sign") { DEPLOYMENT } else { &[] };
        let text = apply(&text, manifest, process, shared);
        let mut text = apply(&text, manifest, process, edits);
        if *manifest == "disruption.yaml" {
            for process in ["admit", "approve", "sign"] {
                text = apply(&text, manifest, process, BUDGET);
                let several = format!("gt (int .Values.{process}.replicas) 1");
                let counted = match process {
                    "admit" => format!("and ({several}) (not .Values.withoutWebhook.enabled)"),
                    _ => several,
                };
                text = text.replace("COUNTED", &counted);
            }
        }
        let monitoring = manifest.starts_with("components/monitoring/");
        let helper = if monitoring { "etcd-tls.monitoring.labels" } else { "etcd-tls.labels" };
        // An agent is of its namespace: its labels are its own.
        let text = if manifest.starts_with("examples/") { text } else { labelled(&text, helper) };
        let head =
            format!("{{{{- /* Made from manifests/{manifest}. UPDATE_DOCS=1 and the test `chart` write it. */}}}}\n");
        let text = match when {
            Some(value) => format!("{head}{{{{- if {value} }}}}\n{text}{{{{- end }}}}\n"),
            None => head + &text,
        };
        made.insert(manifest.trim_start_matches("components/").replace('/', "-"), text);
    }
    made
}
