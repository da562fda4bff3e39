//! One parser of the vault; `COFFRE_FUZZ_TARGET` names it. What each promises stands in `coffre_vault::testing::fuzz`.

#![no_main]

use std::sync::LazyLock;

use coffre_vault::testing::fuzz::{self, TARGETS, Target};
use libfuzzer_sys::fuzz_target;

mod seeds;

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("COFFRE_FUZZ_TARGET").unwrap_or_default();
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("set COFFRE_FUZZ_TARGET to one of {}", names.join(", "))
    })
});

fuzz_target!(
    init: seeds::write_if_asked(TARGETS.iter().map(|target| (target.name, fuzz::seeds(target.name)))),
    |bytes: &[u8]| (CHOSEN.run)(bytes)
);
