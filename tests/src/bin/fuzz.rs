//! One target under libFuzzer, named by `ETCD_TLS_FUZZ_TARGET`. `tests/fuzz/run.sh` builds it with coverage and runs it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tests::fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let wanted = std::env::var("ETCD_TLS_FUZZ_TARGET").expect("ETCD_TLS_FUZZ_TARGET names a target");
    TARGETS.iter().find(|target| target.name == wanted).unwrap_or_else(|| panic!("there is no target {wanted}"))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
