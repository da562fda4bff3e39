//! Hooks: what the operator wrote to bring an application to rest before a snapshot, and to let it go after.
//!
//! [`load`] reads a hook and finds what is wrong with it before any application is disturbed; what it gives is run by the
//! job through [`HookRunner`]. Scripts are Rhai: they can compute, and beyond that only do what the functions in `api` do
//! and the operator's grants allow. The other kinds of the configuration (`wasm`, `exec`, `azure`) get a file of their own
//! beside `script` and their line in [`load`].
//!
//! One call of a hook, in this order: grants are filled in with the machine's settings; the script runs on a thread of its
//! own until it returns, fails, hits a limit or the deadline passes; each command that it ran has ended with everything
//! that it started before `run` returns (see [`crate::process`]), so when the call returns nothing is left of it.

mod api;
mod call;
mod context;
mod failure;
mod held;
mod import;
mod left;
mod limits;
mod script;
mod spec;
mod transcript;
mod trust;
mod undo;

use std::sync::Arc;

use coffre_engine::config::{Config, HookConfig, HookKind};
use coffre_engine::{HookFailure, HookFailureKind, HookRunner};

pub use spec::HookSpec;
pub use undo::Services;

/// Reads and checks a hook. Blocks for as long as reading a small file takes.
pub fn load(name: &str, spec: &HookSpec) -> Result<Arc<dyn HookRunner>, HookFailure> {
    spec.refuse_other_places(name)?;
    match spec.kind {
        HookKind::Rhai => Ok(Arc::new(script::RhaiHook::load(name, spec)?)),
        kind => Err(HookFailure {
            kind: HookFailureKind::Invalid,
            text: format!(
                "the hook `{name}` is of the kind `{}`, which this version cannot run yet",
                kind.as_str()
            ),
            hint: Some("write it as a Rhai script (kind = \"rhai\")".to_owned()),
            output: String::new(),
        }),
    }
}

/// [`load`], as the configuration describes the hook.
pub fn load_from_config(config: &Config, hook: &HookConfig) -> Result<Arc<dyn HookRunner>, HookFailure> {
    load(&hook.name, &HookSpec::from_config(config, hook)?)
}

#[cfg(test)]
mod tests;
