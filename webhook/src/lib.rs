//! Admission, approver, signer and standalone signer.
