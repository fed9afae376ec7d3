//! The revocation lists in the loop.

use etcd_tls_contract::{
    crl::CrlError,
    role::{Domain, Role},
};

use super::Driver;
use crate::{issuance::renewal::Template, kube::Api, os::clock::Clock, store::files::Files};

impl<C, F, A, M, W> Driver<C, F, M, W>
where
    C: Clock,
    F: Files,
    A: Api + 'static,
    M: Fn() -> A,
    W: Fn(Role) -> Template,
{
    /// Takes the lists on offer, and tells once what is refused.
    pub(super) fn look_at_lists(&self, before: &mut Vec<(Domain, CrlError)>) {
        let refused = self.agent.take_lists();
        for domain in Domain::ALL.into_iter().filter(|domain| domain.crl_key().is_some()) {
            let now = refused.iter().find(|(of, _)| *of == domain);
            let anew = now.filter(|refusal| !before.contains(refusal));
            self.health.list_refused(domain, now.is_some(), anew.is_some());
            if let Some((_, error)) = anew {
                tracing::error!(%domain, %error, "revocation list refused; the one before stays in use");
            }
        }
        *before = refused;
    }
}
