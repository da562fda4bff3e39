//! Hooks: what the operator wrote to bring an application to rest before a snapshot, and to let it go after.
//!
//! [`load`] reads a hook and finds what is wrong with it before any application is disturbed; what it gives is run by the
//! job through [`HookRunner`]. Each kind of the configuration has a file: `script` (Rhai, which can compute and beyond that
//! only do what the functions in `api` do and the operator's grants allow), `wasm` (a component, which is bound in the same
//! way), `exec` (a program) and `azure` (two programs, as a file of Azure's framework names them). The last two run programs
//! by `program`, which is no sandbox. A program that runs inside the machine is called by `far`.
//!
//! One call of a script, in this order: grants are filled in with the machine's settings; the script runs on a thread of its
//! own until it returns, fails, hits a limit or the deadline passes; each command that it ran has ended with everything
//! that it started before `run` returns (see [`crate::process`]), so when the call returns nothing is left of it.

mod api;
mod azure;
mod call;
mod context;
mod environment;
mod exchange;
mod exec;
mod failure;
mod far;
mod held;
mod import;
mod left;
mod limits;
mod program;
mod script;
mod secrets;
mod spec;
mod transcript;
mod trust;
mod undo;
mod wasm;

use std::sync::Arc;

use coffre_engine::config::{Config, HookConfig, HookKind};
use coffre_engine::{HookFailure, HookRunner};

pub use exchange::remove_left_behind;
pub use far::Reach;
pub use spec::HookSpec;
pub(crate) use transcript::Transcript;
pub use undo::Services;

/// Reads and checks a hook. Blocks for as long as reading a small file takes, and a component that was never compiled for
/// as long as that takes: tenths of a second.
pub fn load(name: &str, spec: &HookSpec) -> Result<Arc<dyn HookRunner>, HookFailure> {
    if let Some(reach) = spec.reach(name)? {
        return Ok(Arc::new(far::FarHook::load(name, spec, reach)?));
    }
    match spec.kind {
        HookKind::Rhai => Ok(Arc::new(script::RhaiHook::load(name, spec)?)),
        HookKind::Exec => Ok(Arc::new(exec::ExecHook::load(name, spec)?)),
        HookKind::Azure => Ok(Arc::new(azure::AzureHook::load(name, &spec.file))),
        HookKind::Wasm => Ok(Arc::new(wasm::WasmHook::load(name, spec)?)),
    }
}

/// [`load`], as the configuration describes the hook.
pub fn load_from_config(config: &Config, hook: &HookConfig) -> Result<Arc<dyn HookRunner>, HookFailure> {
    load(&hook.name, &HookSpec::from_config(config, hook)?)
}

#[cfg(test)]
mod tests;
