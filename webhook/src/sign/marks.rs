//! The labels and annotations by which the signer knows its own objects.

/// The annotation of a Secret or ConfigMap with the uid of the namespace that it is for.
pub(super) const UID_ANNOTATION: &str = "etcd-tls.dev/namespace-uid";
/// The annotation of a Secret with the signer name of its authority.
pub(super) const SIGNER_ANNOTATION: &str = "etcd-tls.dev/signer";
/// The annotation of an authority's Secret that keeps it from being retired, whatever its value. `adopt` sets it.
pub(super) const KEEP_ANNOTATION: &str = "etcd-tls.dev/keep";
/// The label of all that `sign` keeps.
pub(crate) const MANAGED_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "etcd-tls");
/// The label of an authority's Secret.
pub(super) const CA_LABEL: (&str, &str) = ("app.kubernetes.io/component", "certificate-authority");
