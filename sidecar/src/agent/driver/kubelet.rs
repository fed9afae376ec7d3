//! The certificates that kubelet brings, in the loop: the issuer `pod-certificate`.

use etcd_tls_contract::role::Role;

use super::{Driver, Progress};
use crate::{
    agent::projected::{ProjectedError, is_late},
    issuance::renewal::{Template, life},
    kube::Api,
    os::clock::Clock,
    store::files::Files,
};

impl<C, F, A, M, W> Driver<C, F, M, W>
where
    C: Clock,
    F: Files,
    A: Api + 'static,
    M: Fn() -> A,
    W: Fn(Role) -> Template,
{
    /// Takes what kubelet has brought, and tells once what is wrong with it. etcd reads the same files, at each handshake.
    pub(super) fn look_at_projected(&self, progress: &mut Progress<'_>) {
        let Some(projected) = &self.projected else { return };
        let clock = self.agent.clock();
        for (role, state) in &mut progress.roles {
            let current = self.agent.entry(*role);
            let template = (self.template)(*role);
            if std::mem::take(&mut state.asked).is_due() {
                tracing::warn!(
                    %role,
                    "the annotation renew asks for a new certificate, but kubelet alone requests this pod's, at its own time: \
                     create the pod again"
                );
            }
            let said = match projected.take(&template, current.as_deref(), clock.now()) {
                Ok(Some(entry)) => {
                    tracing::info!(%role, serial = entry.chain().serial, "kubelet has brought a certificate");
                    self.health.asked(*role, None);
                    state.received = clock.elapsed();
                    self.agent.hold(*role, entry);
                    None
                }
                Ok(None) => current.as_deref().filter(|entry| is_late(life(entry, clock.now()), clock.now())).map(|entry| {
                    format!(
                        "kubelet has not renewed the certificate with serial {}, of whose life a quarter is left: see \
                         `kubectl describe pod` and the PodCertificateRequests of the namespace",
                        entry.chain().serial
                    )
                }),
                Err(error) => {
                    self.health.trouble(error.to_string());
                    if state.said.as_ref() != Some(&error.to_string())
                        && matches!(error, ProjectedError::Refused { .. })
                    {
                        self.health.asked(*role, Some("rejected"));
                    }
                    Some(error.to_string())
                }
            };
            if let Some(said) = said.as_ref().filter(|said| state.said.as_ref() != Some(*said)) {
                tracing::error!(%role, "kubelet's volume: {said}; etcd reads what is there");
            }
            state.said = said;
        }
    }
}
