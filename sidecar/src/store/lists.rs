//! Revocation lists among the files: each role has one, so that etcd finds the file named in its options.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use etcd_tls_contract::{
    crl::{self, Crl},
    names,
    role::{Domain, Role},
};

use super::{Set, current, is_directory};

/// The lists in use.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Those of a CA; a stand-in is none.
    pub by_domain: BTreeMap<Domain, Arc<Crl>>,
    /// True if every role has a list that can be read.
    pub whole: bool,
}

/// The content of `role`'s file.
pub(super) fn of(set: &Set, role: Role) -> &[u8] {
    match set.lists.get(&role.domain()) {
        Some(list) => list.der(),
        None => crl::stand_in(),
    }
}

/// Reads the lists of the generation in use in `dir`. Where there is no generation, none is missing.
pub(super) fn read(dir: &Path) -> Lists {
    let mut lists = Lists { whole: true, ..Lists::default() };
    let Ok(Some(name)) = current(dir) else { return lists };
    for role in Role::ALL {
        let dir = dir.join(&name).join(role.as_str());
        if !is_directory(&dir) {
            continue;
        }
        let der = read_bounded(&dir.join(names::CRL_FILE));
        match der.map_err(|e| e.to_string()).and_then(|der| Crl::parse(&der).map_err(|e| e.to_string())) {
            Ok(list) if list.der() == crl::stand_in() => {}
            Ok(list) => drop(lists.by_domain.insert(role.domain(), Arc::new(list))),
            Err(error) => {
                tracing::warn!(%role, error, "the revocation list on disk cannot be used; it is written anew");
                lists.whole = false;
            }
        }
    }
    lists
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut der = Vec::new();
    File::open(path)?.take(crl::MAX_CRL as u64 + 1).read_to_end(&mut der)?;
    Ok(der)
}
