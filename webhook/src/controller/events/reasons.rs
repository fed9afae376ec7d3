//! Every reason of an Event, with what docs/events.md says of it. An Event has a reason of this list, since nothing else makes one.

/// The reason of an Event.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    name: &'static str,
    normal: bool,
    object: &'static str,
    by: &'static str,
    meaning: &'static str,
}

impl Reason {
    /// One CamelCase word, such as `CertificateDenied`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The type of its Events: `Normal` for what goes as it should, `Warning` for what needs somebody.
    pub const fn kind(&self) -> &'static str {
        if self.normal { "Normal" } else { "Warning" }
    }

    /// The kinds of objects that its Events are beside.
    pub const fn object(&self) -> &'static str {
        self.object
    }

    /// The processes that write them.
    pub const fn by(&self) -> &'static str {
        self.by
    }

    /// The meaning and the next step.
    pub const fn meaning(&self) -> &'static str {
        self.meaning
    }
}

const NORMAL: bool = true;
const WARNING: bool = false;
const POD: &str = "Pod";
const TRUST: &str = "ConfigMap `etcd-tls-trust-…`";
const POLICY: &str = "ConfigMap `etcd-tls-policy`";
const BOTH: &str = "`approve`, `sign`";
const APPROVE: &str = "`approve`";
const SIGN: &str = "`sign`";

macro_rules! reasons {
    ($($id:ident $normal:ident $object:expr, $by:ident: $name:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $id: &Reason =
                &Reason { name: $name, normal: $normal, object: $object, by: $by, meaning: $meaning };
        )*
        /// All of them.
        pub const ALL: &[&Reason] = &[$($id),*];
    };
}

reasons! {
    ADDRESS_CONTESTED WARNING POD, BOTH: "AddressContested",
        "Two live pods report one address, or a Service or a host has it. Neither gets a first certificate for it until only one has it.";
    AUTHORITY_IDLE WARNING TRUST, SIGN: "AuthorityIdle",
        "No pod uses the CAs of a cluster. The Event says when they are deleted, and how to keep them.";
    AUTHORITY_LOST WARNING TRUST, SIGN: "AuthorityLost",
        "The Secret of a CA is gone, and its bundle is in use. Restore it from the backup, or create a new CA (docs/authorities.md).";
    AUTHORITY_RETIRED NORMAL TRUST, SIGN: "AuthorityRetired",
        "The CAs of a cluster that nobody used were deleted.";
    AUTHORITY_UNUSABLE WARNING TRUST, SIGN: "AuthorityUnusable",
        "The Secret of a CA cannot be read. Restore it from the backup.";
    CERTIFICATE_AWAITS_APPROVAL WARNING "Pod, CertificateSigningRequest", APPROVE: "CertificateAwaitsApproval",
        "By the policy, a person decides about the request. The Event has the command.";
    CERTIFICATE_DENIED WARNING POD, APPROVE: "CertificateDenied",
        "A request asks for more than its pod may have, such as another name or address. The Event lists every reason.";
    CERTIFICATE_ISSUED NORMAL POD, SIGN: "CertificateIssued",
        "The pod has its first certificate. Once for each pod; renewals have no Event, and where thousands of pods start at once, some pods have none.";
    CERTIFICATE_NEAR_EXPIRY WARNING POD, SIGN: "CertificateNearExpiry",
        "Three quarters of the lifetime of a certificate have passed, and the pod has not renewed it. Look at the sidecar's log, or try `check pod`.";
    CERTIFICATE_REFUSED WARNING POD, SIGN: "CertificateRefused",
        "An approved request does not pass the check of the signer, or an operator has revoked the pod. The Event has every reason.";
    CERTIFICATE_WAITS WARNING POD, SIGN: "CertificateWaits",
        "The namespace has too many CAs (`TooManyAuthorities`), or the pod too many certificates (`TooManyCertificates`).";
    FOREIGN_BINDING WARNING "RoleBinding `etcd-tls-sign` or `etcd-tls-trust-reader`", APPROVE: "ForeignBinding",
        "A RoleBinding with the name of ours binds another role, so no trust is published in the namespace, or no pod of it watches it. Delete it.";
    GIVEN_AUTHORITY_UNUSABLE WARNING TRUST, SIGN: "GivenAuthorityUnusable",
        "A CA of one's own cannot be used. The one in use stays; correct the Secret.";
    INJECTED_WITH_WARNINGS WARNING POD, APPROVE: "InjectedWithWarnings",
        "Admission warned of the pod when it injected it. The Event has the warnings.";
    NOT_REVOCABLE WARNING POD, SIGN: "NotRevocable",
        "The CA of the member's certificates may not sign a revocation list, so nobody can revoke them. Give the signer a CA with the key usage cRLSign.";
    POLICY_NAMESPACE_REPLACED WARNING POLICY, BOTH: "PolicyNamespaceReplaced",
        "A namespace has another uid than `namespaceUids` says, so the rules that name it do not count.";
    POLICY_NOT_ENFORCED WARNING "Deployment", BOTH: "PolicyNotEnforced",
        "An admission policy that guards a right of the process is not in force. Apply the manifests again.";
    POLICY_UNREADABLE WARNING POLICY, BOTH: "PolicyUnreadable",
        "The policy cannot be read. The last readable one stays in force.";
    ROLLOVER_ABORTED WARNING TRUST, SIGN: "RolloverAborted",
        "The next CA was taken back before it signed.";
    ROLLOVER_CHANGED_OVER NORMAL TRUST, SIGN: "RolloverChangedOver",
        "All pods trust the next CA, which signs from now on.";
    ROLLOVER_CLIENTS_CONFIRMED NORMAL TRUST, SIGN: "RolloverClientsConfirmed",
        "An operator has confirmed that the clients outside trust the next CA.";
    ROLLOVER_DONE NORMAL TRUST, SIGN: "RolloverDone",
        "The last certificate of the old CA has ended, and the old CA has left the bundle.";
    ROLLOVER_FORCED WARNING TRUST, SIGN: "RolloverForced",
        "A step was taken although not every pod was ready for it: by an operator, or because the old CA was about to end.";
    ROLLOVER_PUBLISHED NORMAL TRUST, SIGN: "RolloverPublished",
        "The next CA is published beside the one in use.";
    ROLLOVER_WAITS WARNING TRUST, SIGN: "RolloverWaits",
        "A rollover waits longer than it should. The Event names the pods.";
    TOO_MANY_ACCOUNTS WARNING "ServiceAccount", APPROVE: "TooManyAccounts",
        "More than 50 service accounts of the namespace have labelled pods. Only 50 get the right to request. Label the namespace instead.";
    TOO_MANY_AUTHORITIES WARNING TRUST, SIGN: "TooManyAuthorities",
        "The namespace, or all together, have as many CAs as the policy allows.";
    TRUST_NOT_REPAIRED WARNING TRUST, SIGN: "TrustNotRepaired",
        "The published bundle cannot be written. It is tried again.";
    TRUST_REPAIRED WARNING TRUST, SIGN: "TrustRepaired",
        "Somebody else changed the published bundle, and `sign` has repaired it. The audit log of the API server names the writer.";
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn reasons_are_in_their_order_and_unlike() {
        assert!(ALL.is_sorted_by(|a, b| a.name < b.name), "{ALL:?}");
        for reason in ALL {
            let word = reason.name.chars().all(|c| c.is_ascii_alphabetic()) && reason.name.len() <= 128;
            assert!(word && reason.meaning.ends_with('.') && !reason.meaning.contains('|'), "{reason:?}");
        }
    }
}
