//! Takes a revocation list on offer only if it is signed by a CA of the bundle in use, and newer than the list in use. Pure.

use std::sync::Arc;

use etcd_tls_contract::{
    crl::{Crl, CrlError},
    role::Domain,
};

use crate::store::Set;

/// The list on offer, where it takes the place of the one in use.
///
/// # Errors
/// The list in use stays.
pub(super) fn take(set: &Set, domain: Domain, offered: Crl) -> Result<Option<Arc<Crl>>, CrlError> {
    let entries = || set.roles.iter().filter(|(role, _)| role.domain() == domain).map(|(_, entry)| entry);
    // The issuing CA may be an intermediate, which comes with the certificate and stands in no bundle.
    let issuers = entries().flat_map(|e| e.bundle().certificates().iter().chain(e.chain().certificates.iter().skip(1)));
    offered.verify(issuers.map(Vec::as_slice))?;
    match set.lists.get(&domain) {
        Some(held) if !offered.replaces(held)? => Ok(None),
        _ => Ok(Some(Arc::new(offered))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use etcd_tls_contract::role::Role;

    use super::*;
    use crate::testing::Authority;

    #[test]
    fn a_list_of_the_bundle_is_taken_and_its_number_does_not_go_back() {
        let (ours, other) = (Authority::named("ours"), Authority::named("other"));
        let mut set = Set::default().with(Role::Peer, ours.entry(Role::Peer));
        let list = |authority: &Authority, number| Crl::parse(&authority.list(number, &["4f0a"])).unwrap();
        assert_eq!(take(&set, Domain::Peer, list(&other, 1)), Err(CrlError::Foreign));
        let taken = take(&set, Domain::Peer, list(&ours, 2)).unwrap().unwrap();
        set.lists.insert(Domain::Peer, Arc::clone(&taken));
        assert_eq!(take(&set, Domain::Peer, Crl::clone(&taken)), Ok(None), "the same");
        let old = CrlError::Old { offered: 1, held: 2 };
        assert_eq!(take(&set, Domain::Peer, list(&ours, 1)), Err(old));
        assert_eq!(take(&set, Domain::Peer, list(&other, 3)), Err(CrlError::Foreign));
        assert_eq!(
            take(&set, Domain::Client, list(&ours, 3)),
            Err(CrlError::Foreign),
            "nothing is held of the clients"
        );
        assert_eq!(take(&set, Domain::Peer, list(&ours, 3)).unwrap().unwrap().number(), 3);
    }
}
